#!/bin/sh
# Which version of the agent runs: FOLDER/venv, a link to FOLDER/slots/a or b (docs/agent-update.md).
#
#   slots.sh [--tell SYSTEMCTL] FOLDER start|switch|confirm|back|watch SECONDS
#
#   start     before each start of the agent: counts those of a version on trial, and leaves it
#             behind the third. It runs before anything of that version does, and needs nothing of it
#   switch    to the other slot, on trial
#   confirm   the version on trial stays
#   back      the version on trial does not: the former one is linked again
#   watch     as long as there is a trial: starts anew what systemd has given up, and goes back
#             after SECONDS of running
#
# slots/trial, while there is a trial: FROM TO STARTS BOOT UPTIME_S. slots/last: how the last one
# ended: TO confirmed|back WHY; it is the decision, and what follows from it is done at the next start
# if it could not be done at once. Each is replaced as a whole, and on the disk before what relies on
# it. A trial is one only while the link leads to TO: a power cut leaves the former state, or the next.
set -eu
umask 022
STARTS_MAX=3
tell=
if [ "$1" = --tell ]; then
    tell=$2
    shift 2
fi
cd "$1"
link=venv slots=slots trial=slots/trial last=slots/last
[ -d "$slots" ] || exit 0 # installed without them
exec 9> "$slots/link.lock"

fail() { echo "slots.sh: $1" >&2; exit 1; }

# systemd that does not take it is no reason to stop half-way.
order() { [ -z "$tell" ] || "$tell" --no-block "$@" || true; }

given_up() { [ -n "$tell" ] && "$tell" --quiet is-failed holdfast.service; }

keep() { # FILE TEXT
    printf '%s\n' "$2" > "$1.new"
    sync "$1.new"
    mv -T "$1.new" "$1"
    sync "$slots"
}

point() { # the link at a slot
    ln -sfn "slots/$1" "$link.new"
    mv -T "$link.new" "$link"
    sync .
}

whole() { [ -s "$slots/$1/slot.json" ] && [ -x "$slots/$1/bin/holdfast" ]; }

current() {
    case $(readlink "$link" || true) in
        slots/a) echo a ;;
        slots/b) echo b ;;
    esac
}

on_trial() {
    from='' to='' starts='' boot='' since_s=''
    { read -r from to starts boot since_s < "$trial"; } 2> /dev/null || return 1
    [ -n "$since_s" ] && [ "$(current)" = "$to" ]
}

this_boot() { cat /proc/sys/kernel/random/boot_id; }

uptime_s() { cut -d. -f1 /proc/uptime; }

decided() { # confirmed|back: whether the trial that is on has ended so
    verdict=
    { read -r slot verdict _ < "$last"; } 2> /dev/null || true
    [ "$verdict" = "$1" ]
}

stay() {
    decided confirmed || keep "$last" "$to confirmed by itself"
    rm -f "$trial"
    sync "$slots"
}

go_back() { # WHY. What failed is not gone to again.
    decided back || keep "$last" "$to back $1"
    rm -f "$slots/$to/slot.json"
    sync "$slots/$to"
    point "$from"
    rm -f "$trial"
    sync "$slots"
}

start() {
    if [ ! -e "$link" ]; then # the power went while install.sh put the link in the place of a folder
        for one in a b; do
            ! whole "$one" || point "$one"
        done
    fi
    if ! on_trial; then
        rm -f "$trial" # it never began
        return
    elif decided confirmed; then
        stay
        return
    elif decided back || [ "$starts" -ge "$STARTS_MAX" ]; then
        go_back "$starts starts came to nothing"
        return
    fi
    now=$(this_boot)
    [ "$boot" = "$now" ] || since_s=$(uptime_s)
    keep "$trial" "$from $to $((starts + 1)) $now $since_s"
    order start holdfast-trial.service
}

switch() {
    ! on_trial || fail "slot $to is on trial"
    from=$(current)
    case $from in
        a) to=b ;;
        b) to=a ;;
        *) fail "$link leads to no slot: install.sh makes them" ;;
    esac
    whole "$to" || fail "there is no version in slot $to"
    rm -f "$last"
    keep "$trial" "$from $to 0 $(this_boot) $(uptime_s)"
    point "$to"
    order start holdfast-trial.service
    echo "slot $to is on trial"
}

confirm() {
    on_trial || fail "no version is on trial"
    ! decided back || fail "it was decided already that slot $to does not stay"
    stay
    echo "slot $to stays"
}

back() {
    on_trial || fail "no version is on trial"
    ! decided confirmed || fail "slot $to is confirmed already"
    go_back "$1"
    echo "slot $from is linked again"
}

watch() {
    while on_trial; do
        if [ "$boot" = "$(this_boot)" ] && [ $(($(uptime_s) - since_s)) -ge "$1" ]; then
            flock 9
            ! on_trial || go_back "it was not confirmed within $1 s"
            flock -u 9
            order try-restart holdfast.service
            break
        elif given_up; then
            order restart holdfast.service # counted, as any start
        fi
        sleep 5
    done
    order try-restart holdfast-root.service # it is of the version that stays, too
}

[ "${2-}" = watch ] || flock 9
case ${2-} in
    start | switch | confirm) "$2" ;;
    back) back "the agent itself went back" ;;
    watch) watch "$3" ;;
    *) fail "unknown: ${2-}" ;;
esac
