#!/bin/sh
# Installs Holdfast as a service: user, /opt/holdfast, /etc/holdfast, units, and that systemd feeds the
# machine's own watchdog. Run it again to update: the new version goes beside the one that runs
# (docs/agent-update.md).
#
#   install.sh [install|uninstall] [--fleet] [--root DIR] [--wheels DIR] [--enable] [--start] [--dry-run]
#
#   --fleet       the cloud side instead, ingest and controller (docs/fleet.md): /opt/holdfast-fleet,
#                 /etc/holdfast-fleet, and a user of its own; it may lie beside an agent
#   --root DIR    into the tree of an image instead of this machine, which is then not touched
#   --wheels DIR  what is installed, all of it wheels; without it, this checkout with its locked
#                 requirements (requirements/device.txt, or fleet.txt), from the network
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
what=install part=device root= wheels= enable= start= dry=

fail() { echo "install.sh: $1" >&2; exit "${2:-1}"; }

run() {
    echo "  $*"
    [ -n "$dry" ] || "$@"
}

while [ $# -gt 0 ]; do
    case $1 in
        install | uninstall) what=$1 ;;
        --fleet) part=fleet ;;
        --root) [ $# -gt 1 ] || fail "--root needs a folder" 2; root=$2; shift ;;
        --wheels) [ $# -gt 1 ] || fail "--wheels needs a folder" 2; wheels=$2; shift ;;
        --enable) enable=yes ;;
        --start) start=yes ;;
        --dry-run) dry=yes ;;
        -h | --help) sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 0 ;;
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

units=$root/usr/lib/systemd/system
. "$here/parts/$part.sh" # where it goes, and what only it has

# systemd of this machine, where it runs it and this machine is meant.
systemd_here() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

make_user() {
    echo "user and group $user"
    if command -v systemd-sysusers > /dev/null; then # it adds what is missing: the groups, too
        run systemd-sysusers ${root:+"--root=$root"} "$sysusers"
    elif [ -f "$root/etc/passwd" ] && grep -q "^$user:" "$root/etc/passwd"; then
        return
    elif [ -z "$root" ]; then
        run useradd --system --user-group --no-create-home --home-dir "/var/lib/$user" \
            --shell /usr/sbin/nologin "$user"
    else
        echo "  left to the image's first boot ($sysusers)"
    fi
}

# A process of that slot, of this system: its Python is named by its path. Empty: there is none.
runs_from() { # SLOT
    for one in /proc/[0-9]*; do
        line=
        { IFS= read -r line < "$one/cmdline"; } 2> /dev/null || true # no end of line is in it
        case $line in
            "$opt/slots/$1/"*) [ ! "$one/root$opt/slots/$1" -ef "$opt/slots/$1" ] || echo "${one#/proc/}" ;;
        esac
    done
}

# The slot that is not linked. What still runs there was installed before what is linked now, which
# has not been started: to make another one in its place would take from it what it has yet to load.
choose_slot() {
    case $(readlink "$opt/venv" || true) in
        slots/a) slot=b ;;
        *) slot=a ;;
    esac
    place=$opt/slots/$slot
    running=$(runs_from "$slot")
    [ -z "$running" ] || fail "what runs is from $place (process$(printf ' %s' $running)), and a newer version is
  installed and not started yet: start that first (systemctl restart $names), or end what runs"
}

make_venv() {
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
        pip --require-hashes -r "$checkout/requirements/$part.txt"
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

copy_folders() { # FOLDER... beside the environment
    run mkdir -p "$opt"
    for folder in "$@"; do
        run rm -rf "$opt/$folder.new"
        run cp -r "$checkout/$folder" "$opt/$folder.new"
        run rm -rf "$opt/$folder"
        run mv "$opt/$folder.new" "$opt/$folder"
    done
}

# What is there already is yours.
copy_once() { # FILE PLACE MODE
    if [ -e "$2" ]; then
        echo "  $2 is there, and stays as it is"
    else
        copy "$@"
    fi
}

# It may name passwords: not for everybody to read, but for the user.
give_group() { # PLACE...
    group=$(sed -n "s/^$user:[^:]*:\([0-9]*\):.*/\1/p" "$root/etc/group" 2> /dev/null || true)
    if [ -n "$group" ] && [ "$(id -u)" = 0 ]; then
        run chgrp "$group" "$@"
    fi
}

enable_units() {
    if systemd_here; then
        run systemctl daemon-reload
    fi
    [ -z "$enable" ] || run systemctl ${root:+"--root=$root"} enable $names
    [ -z "$start" ] || run systemctl restart $names
}

do_install() {
    echo "installing $title${root:+ into $root}${dry:+ (dry run: nothing is done)}"
    choose_slot
    copy "$here/systemd/$user.sysusers" "$sysusers" 644
    make_user
    make_venv
    echo "files"
    for name in $names $static; do
        copy "$here/systemd/$name" "$units/$name" 644
    done
    install_files # the part's
    enable_units
    echo "done. $next"
    if [ -n "$start" ] || [ -n "$root" ]; then
        return
    elif systemd_here && systemctl --quiet is-active "${names##* }"; then
        echo "the former version still runs; to start the new one: systemctl restart $names"
    else
        echo "to start it: systemctl enable --now $names"
    fi
}

do_uninstall() {
    echo "removing $title${root:+ from $root}${dry:+ (dry run: nothing is done)}"
    if systemd_here; then
        run systemctl disable --now $names || true # they may never have been enabled
    elif [ -n "$root" ]; then
        run systemctl "--root=$root" disable $names || true
    fi
    for name in $names $static; do
        run rm -f "$units/$name"
    done
    run rm -f "$sysusers"
    remove_files
    run rm -rf "$opt"
    if systemd_here; then
        run systemctl daemon-reload
    fi
    echo "left, for they are yours: $etc, $root/var/lib/$user ($kept), the user $user"
}

"do_$what"
