#!/bin/sh
# Before each start of the agent: bounds what the agent itself cannot count.
#
#   uncounted.sh FILE STARTS_MAX PAUSE_S
#
# FILE has how many starts there were since the agent last wrote one into its own book, which sets
# it back to 0 (agent/health/starts). What fails before that (a program that is not there, a torn
# installation, a disk that takes no writes) would end in systemd's StartLimit, and in a reboot,
# again after each boot. Behind STARTS_MAX of them, and where they cannot be counted, each start
# waits for PAUSE_S: then StartLimitBurst of them take longer than StartLimitIntervalSec, nobody
# reboots, and the agent is back once what kept it away is mended.
file=$1 starts_max=$2 pause_s=$3

count=0
{ read -r count < "$file"; } 2> /dev/null
case $count in
    '' | *[!0-9]* | 0?* | ??????*) count=0 ;; # torn
esac
[ "$count" -gt "$starts_max" ] || count=$((count + 1))
# Over what is there, not anew: that needs no room on a full disk.
if ! { printf '%s\n' "$count" 1<> "$file"; } 2> /dev/null; then
    echo "$file cannot be written, so nobody counts starts: waits for $pause_s s" >&2
elif [ "$count" -gt "$starts_max" ]; then
    echo "$starts_max starts came to nothing: waits for $pause_s s" >&2
else
    exit 0
fi
sleep "$pause_s"
