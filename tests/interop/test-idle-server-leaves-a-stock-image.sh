#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server that has been idle for some seconds has checkpointed and cleared
# bit 48: kill -9 then leaves a stock image.  The next change sets it again.
# Breaks if: the background loop does not run, or the bit is not set again.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
start_server "$disk" size=64M commit-interval=1
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(pat(1, 1 << 20), 4096); h.flush()'
equal "bit 48 after a write" "$(bit48 "$disk")" 1
for i in $(seq 150); do
  [ "$(bit48 "$disk")" = 0 ] && break
  sleep 0.1
done
equal "bit 48 after some idle seconds" "$(bit48 "$disk")" 0
cp --sparse=always "$disk" "$TMP/copy.qcow2"
check_clean "$TMP/copy.qcow2"
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(pat(2, 5000), 4 << 20); h.flush()'
equal "bit 48 after the next change" "$(bit48 "$disk")" 1
kill_server
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" '
assert h.pread(1 << 20, 4096) == pat(1, 1 << 20)
assert h.pread(5000, 4 << 20) == pat(2, 5000)'
stop_server
check_clean "$disk"
