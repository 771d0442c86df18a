#!/bin/sh
# Installs Holdfast as a service: user, /opt/holdfast, /etc/holdfast, units, and that systemd feeds the
# machine's own watchdog. Run it again to update: the new version goes beside the one that runs
# (docs/agent-update.md).
#
#   install.sh [install|uninstall] [--root DIR] [--wheels DIR] [--enable] [--start] [--dry-run]
#
#   --root DIR    into the tree of an image instead of this machine, which is then not touched
#   --wheels DIR  what is installed, all of it wheels; without it, this checkout with its locked
#                 requirements (requirements/device.txt), from the network
#   --enable      have it start with the machine
#   --start       start it now, or start it again
#   --dry-run     show what would be done
#
# It starts and enables nothing that it was not asked to. PYTHON names another Python (>= 3.11).
set -eu
umask 022 # the agent's user must read what root installs, whatever root's own habit is

PYTHON=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(dirname "$here")
what=install root= wheels= enable= start= dry=

fail() { echo "install.sh: $1" >&2; exit "${2:-1}"; }

run() {
    echo "  $*"
    [ -n "$dry" ] || "$@"
}

while [ $# -gt 0 ]; do
    case $1 in
        install | uninstall) what=$1 ;;
        --root) [ $# -gt 1 ] || fail "--root needs a folder" 2; root=$2; shift ;;
        --wheels) [ $# -gt 1 ] || fail "--wheels needs a folder" 2; wheels=$2; shift ;;
        --enable) enable=yes ;;
        --start) start=yes ;;
        --dry-run) dry=yes ;;
        -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) fail "unknown: $1 (--help tells what there is)" 2 ;;
    esac
    shift
done

if [ -n "$root" ]; then
    [ -d "$root" ] || fail "$root is no folder: make it first"
    root=$(cd "$root" && pwd)
    [ -z "$start" ] || fail "--start is for this machine, not for --root" 2
fi
root=${root%/}
[ -z "$wheels" ] || wheels=$(cd "$wheels" && pwd) || fail "$wheels is no folder"
[ -n "$dry" ] || [ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "only root can: use sudo"

opt=$root/opt/holdfast
etc=$root/etc/holdfast
units=$root/usr/lib/systemd/system
sysusers=$root/usr/lib/sysusers.d/holdfast.conf
rules=$root/usr/lib/udev/rules.d/60-holdfast.rules
watchdog=$root/etc/systemd/system.conf.d/holdfast.conf
names="holdfast.service holdfast-root.service holdfast-root.socket"
static="holdfast-build.service holdfast-trial.service" # begun by those alone

# systemd of this machine, where it runs it and this machine is meant.
systemd_here() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

make_user() {
    echo "user and group holdfast"
    if command -v systemd-sysusers > /dev/null; then # it adds what is missing: the groups, too
        run systemd-sysusers ${root:+"--root=$root"} "$sysusers"
    elif [ -f "$root/etc/passwd" ] && grep -q '^holdfast:' "$root/etc/passwd"; then
        return
    elif [ -z "$root" ]; then
        run useradd --system --user-group --no-create-home --home-dir /var/lib/holdfast \
            --shell /usr/sbin/nologin holdfast
    else
        echo "  left to the image's first boot ($sysusers)"
    fi
}

# The slot that does not run.
choose_slot() {
    case $(readlink "$opt/venv" || true) in
        slots/a) slot=b ;;
        *) slot=a ;;
    esac
    place=$opt/slots/$slot
}

make_venv() {
    choose_slot
    echo "Python environment $place"
    "$PYTHON" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' ||
        fail "$PYTHON is not Python >= 3.11 with venv: apt-get install python3 python3-venv"
    run mkdir -p "$opt/slots"
    run rm -f "$opt/slots/trial" "$place/slot.json" # who installs by hand has decided
    run rm -rf "$place"
    run "$PYTHON" -m venv "$place"
    if [ -n "$wheels" ]; then
        pip --no-index --no-deps "$wheels"/*.whl
    else
        pip --require-hashes -r "$checkout/requirements/device.txt"
        source=$(mktemp -d) # what builds it writes beside it
        run cp -r "$checkout/agent" "$checkout/fleet" "$checkout/pyproject.toml" "$checkout/README.md" "$source"
        pip --no-deps --no-build-isolation "$source"
        rm -rf "$source"
    fi
    [ -n "$dry" ] || name_slot
    [ -n "$dry" ] || [ -z "$root" ] || unstage
    point_link
}

# What is whole has this file, and what has it is on the disk.
name_slot() {
    version=$("$place/bin/python" -I -c 'from importlib import metadata as m; print(m.version("holdfast"))')
    sync
    printf '{"version":"%s"}\n' "$version" > "$place/slot.json"
    sync "$place/slot.json" "$place"
}

# From here on the new one is started. In the place of a folder, as it was once, no link can be put
# at once: what a power cut leaves of that, slots.sh mends before the next start.
point_link() {
    run ln -sfn "slots/$slot" "$opt/venv.new"
    [ -L "$opt/venv" ] || [ ! -d "$opt/venv" ] || run mv "$opt/venv" "$opt/venv.old"
    run mv -T "$opt/venv.new" "$opt/venv"
    run rm -rf "$opt/venv.old"
}

pip() {
    run "$place/bin/python" -m pip --disable-pip-version-check --no-cache-dir install --quiet "$@"
}

# Scripts name their Python by its path: in the image that is one without $root.
unstage() {
    for one in "$place"/bin/* "$place/pyvenv.cfg"; do
        if [ -f "$one" ] && [ ! -L "$one" ] && grep -qI "$root" "$one"; then
            sed -i "s|$root/|/|g" "$one"
        fi
    done
}

copy() { # FILE PLACE MODE
    run install -D -m "$3" "$1" "$2"
}

install_files() {
    echo "files"
    run mkdir -p "$opt"
    for folder in docs models; do
        run rm -rf "$opt/$folder.new"
        run cp -r "$checkout/$folder" "$opt/$folder.new"
        run rm -rf "$opt/$folder"
        run mv "$opt/$folder.new" "$opt/$folder"
    done
    for name in $names $static; do
        copy "$here/systemd/$name" "$units/$name" 644
    done
    for name in uncounted.sh slots.sh; do
        copy "$here/$name" "$root/usr/lib/holdfast/$name" 755
    done
    run rm -f "$root/var/lib/holdfast/uncounted" # what failed before is mended now
    copy "$here/udev/60-holdfast.rules" "$rules" 644
    run mkdir -p "$etc/reset.d"
    if [ -e "$etc/config.yaml" ]; then
        echo "  $etc/config.yaml is there, and stays as it is"
    else
        copy "$here/config.yaml" "$etc/config.yaml" 640
    fi
    [ -e "$etc/update.keys" ] || copy "$here/update.keys" "$etc/update.keys" 644
    group=$(sed -n 's/^holdfast:[^:]*:\([0-9]*\):.*/\1/p' "$root/etc/group" 2> /dev/null || true)
    if [ -n "$group" ] && [ "$(id -u)" = 0 ]; then
        run chgrp "$group" "$etc/config.yaml" # it may name passwords: not for everybody
    fi
    run mkdir -p "$root/var/lib/holdfast" # systemd gives it to the user at each start
    if [ -z "$root" ]; then
        run chown holdfast:holdfast /var/lib/holdfast
        run chmod 750 /var/lib/holdfast
    fi
}

# RuntimeWatchdogSec wherever systemd reads it, but for the file that is put there.
own_watchdog() {
    grep -lsE '^[[:space:]]*RuntimeWatchdogSec[[:space:]]*=' "$root"/etc/systemd/system.conf \
        "$root"/etc/systemd/system.conf.d/*.conf "$root"/run/systemd/system.conf.d/*.conf \
        "$root"/usr/local/lib/systemd/system.conf.d/*.conf "$root"/usr/lib/systemd/system.conf \
        "$root"/usr/lib/systemd/system.conf.d/*.conf | grep -vxF "$watchdog" | head -n 1
}

# What a driver does not take, systemd cannot set. (0: whatever it is asked for.)
bound_watchdog() {
    most=$(cat "$root/sys/class/watchdog/watchdog0/max_timeout" 2> /dev/null || echo 0)
    for name in RuntimeWatchdogSec RebootWatchdogSec; do
        asked=$(sed -n "s/^$name=//p" "$here/systemd/holdfast-watchdog.conf")
        if [ "$most" -gt 0 ] && [ "$asked" -gt "$most" ]; then
            run sed -i "s/^$name=.*/$name=$most/" "$watchdog"
        fi
    done
}

# systemd leaves the machine's own watchdog alone unless it is told not to.
feed_watchdog() {
    echo "the machine's own watchdog"
    if [ -e "$watchdog" ]; then
        echo "  $watchdog is there, and stays as it is"
    elif own=$(own_watchdog) && [ -n "$own" ]; then
        echo "  $own has RuntimeWatchdogSec already, and stays as it is"
    elif grep -qsE '^[^#]*owner:[[:space:]]*(agent|none)' "$etc/config.yaml"; then
        echo "  watchdog.owner is not systemd: left to it"
    elif [ -z "$root" ] && ! ls /dev/watchdog* > /dev/null 2>&1; then
        echo "  this machine has none: nothing would reset it if it hung (docs/watchdog.md)"
    else
        copy "$here/systemd/holdfast-watchdog.conf" "$watchdog" 644
        bound_watchdog
        if ! systemd_here; then
            return
        elif [ -n "$start" ]; then
            run systemctl daemon-reexec # it reads no new system.conf.d otherwise
        else
            echo "  armed from the next boot on, or by: systemctl daemon-reexec"
        fi
    fi
}

enable_units() {
    if systemd_here; then
        run systemctl daemon-reload
    fi
    [ -z "$enable" ] || run systemctl ${root:+"--root=$root"} enable $names
    [ -z "$start" ] || run systemctl restart holdfast-root.socket holdfast-root.service holdfast.service
}

do_install() {
    echo "installing Holdfast${root:+ into $root}${dry:+ (dry run: nothing is done)}"
    copy "$here/systemd/holdfast.sysusers" "$sysusers" 644
    make_user
    make_venv
    install_files
    feed_watchdog
    enable_units
    echo "done. Set link.broker_url in $etc/config.yaml, then: holdfast config check --config $etc/config.yaml"
    if [ -n "$start" ] || [ -n "$root" ]; then
        return
    elif systemd_here && systemctl --quiet is-active holdfast.service; then
        echo "the former version still runs; to start the new one: systemctl restart $names"
    else
        echo "to start it: systemctl enable --now $names"
    fi
}

do_uninstall() {
    echo "removing Holdfast${root:+ from $root}${dry:+ (dry run: nothing is done)}"
    if systemd_here; then
        run systemctl disable --now $names || true # they may never have been enabled
    elif [ -n "$root" ]; then
        run systemctl "--root=$root" disable $names || true
    fi
    for name in $names $static; do
        run rm -f "$units/$name"
    done
    run rm -f "$rules" "$sysusers"
    own=$(grep -v WatchdogSec= "$here/systemd/holdfast-watchdog.conf") # install may have bounded these
    if [ -f "$watchdog" ] && [ "$(grep -v WatchdogSec= "$watchdog")" = "$own" ]; then
        run rm -f "$watchdog" # nobody has made it his own
    fi
    run rm -rf "$root/usr/lib/holdfast"
    run rm -rf "$opt"
    if systemd_here; then
        run systemctl daemon-reload
    fi
    echo "left, for they are yours: $etc, $root/var/lib/holdfast (all that is not delivered yet), the user holdfast"
}

"do_$what"
