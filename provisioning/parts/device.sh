# What install.sh puts on a device, beside what it always does. It reads this; nobody runs it.

title=Holdfast user=holdfast
opt=$root/opt/holdfast
etc=$root/etc/holdfast
sysusers=$root/usr/lib/sysusers.d/holdfast.conf
rules=$root/usr/lib/udev/rules.d/60-holdfast.rules
watchdog=$root/etc/systemd/system.conf.d/holdfast.conf
names="holdfast-root.socket holdfast-root.service holdfast.service" # in the order of their start
static="holdfast-build.service holdfast-trial.service" # begun by those alone
next="Set link.broker_url in $etc/config.yaml, then: holdfast config check --config $etc/config.yaml"
kept="all that is not delivered yet"

install_files() {
    copy_folders docs models
    for name in uncounted.sh slots.sh; do
        copy "$here/$name" "$root/usr/lib/holdfast/$name" 755
    done
    run rm -f "$root/var/lib/holdfast/uncounted" # what failed before is mended now
    copy "$here/udev/60-holdfast.rules" "$rules" 644
    run mkdir -p "$etc/reset.d"
    copy_once "$here/config.yaml" "$etc/config.yaml" 640
    [ -e "$etc/update.keys" ] || copy "$here/update.keys" "$etc/update.keys" 644
    give_group "$etc/config.yaml"
    run mkdir -p "$root/var/lib/holdfast" # systemd gives it to the user at each start
    if [ -z "$root" ]; then
        run chown holdfast:holdfast /var/lib/holdfast
        run chmod 750 /var/lib/holdfast
    fi
    feed_watchdog
}

remove_files() {
    run rm -f "$rules"
    own=$(grep -v WatchdogSec= "$here/systemd/holdfast-watchdog.conf") # install may have bounded these
    if [ -f "$watchdog" ] && [ "$(grep -v WatchdogSec= "$watchdog")" = "$own" ]; then
        run rm -f "$watchdog" # nobody has made it his own
    fi
    run rm -rf "$root/usr/lib/holdfast"
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
