#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Trimmed space is returned to the host's file system (holes), except what
# another guest cluster or a snapshot still uses; and freed space is used again,
# so that the file does not grow.
# Breaks if: nothing is punched, too much is, or freed clusters are forgotten.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
mb=32
random_file "$TMP/a.raw" $mb 1
start_server "$disk" size=256M commit-interval=1
idle=$(disk_usage "$disk")
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
full=$(disk_usage "$disk")
at_least "bytes on the host" $((full - idle)) $(((mb - 1) << 20))

say "trimmed: given back"
$PY "$HERE/nbdrun.py" "$URI" "h.trim($((mb << 20)), 0); h.flush()"
for i in $(seq 100); do
  [ $(($(disk_usage "$disk") - idle)) -lt $((mb << 18)) ] && break
  sleep 0.1
done
at_most "bytes on the host after the trim" \
  $(($(disk_usage "$disk") - idle)) $((mb << 18))

say "one of two copies trimmed: kept"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((64 << 20))
$PY "$HERE/nbdrun.py" "$URI" "h.trim($((mb << 20)), 0); h.flush()"
sleep 2.5
at_least "bytes on the host" $(($(disk_usage "$disk") - idle)) $(((mb - 1) << 20))
$PY "$HERE/nbdrun.py" "$URI" "
assert h.pread($((mb << 20)), $((64 << 20))) == \
  open('$TMP/a.raw', 'rb').read()"

say "overwritten ten times with new contents: the file does not grow"
for i in 1 2 3 4 5 6 7 8 9 10; do
  random_file "$TMP/b.raw" 8 $((i + 50))
  $PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((128 << 20))
  sleep 0.6
done
stop_server
check_clean "$disk"
at_most "file size" "$(stat -c %s "$disk")" $(((mb * 2 + 48) << 20))
# The copy that is left, and of 8 MiB: what is there, what is being written, and
# what was freed since the commit before the last; some 80 if none was used again.
at_most "bytes on the host" $(($(disk_usage "$disk") - idle)) \
  $(((mb + 8 * 5) << 20))
