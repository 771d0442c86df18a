# What install.sh --fleet puts on a server, beside what it always does. It reads this; nobody runs it.

title="Holdfast's cloud side" user=holdfast-fleet
opt=$root/opt/holdfast-fleet
etc=$root/etc/holdfast-fleet
sysusers=$root/usr/lib/sysusers.d/holdfast-fleet.conf
names="holdfast-fleet-ingest.service holdfast-fleet-control.service"
static=
next="Set broker and certificates in $etc/environment (docs/fleet.md)."
kept="the database, where it is SQLite"

install_files() {
    copy_folders docs
    run install -d -m 750 "$etc"
    copy_once "$here/systemd/holdfast-fleet.environment" "$etc/environment" 640
    give_group "$etc" "$etc/environment"
}

remove_files() { :; }
