#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Space that was trimmed right before a stop, that an ended process left behind,
# or that overwriting freed is returned to the host: at the close, in the
# background of the next session, and when the server rests.  This works on file
# systems that know holes; elsewhere nothing happens.
# The bytes are gone from the file then (SECURITY.md, "Data at rest").
# Breaks if: a close forgets what was freed, a crash's leftovers are never
# found, freed space is kept, or space that is in use is punched.
. "$(dirname "$0")/lib.sh"

mb=32
random_file "$TMP/a.raw" $mb 1
random_file "$TMP/b.raw" $mb 2

# Counts blocks of data that was overwritten (a.raw) or trimmed (b.raw's first half).
old_blocks () # FILE
{
  $PY - "$1" "$TMP/a.raw" "$TMP/b.raw" <<'END'
import sys
disk, a, b = (open(f, 'rb').read() for f in sys.argv[1:])
def blocks(s):
    return {s[i:i + 4096] for i in range(0, len(s), 4096)}
print(len((blocks(a) | blocks(b[:len(b) // 2])) & blocks(disk)))
END
}

on_a_disk () # DIRECTORY
{
  local disk=$1/disk.qcow2 idle full
  start_server "$disk" size=256M
  idle=$(disk_usage "$disk")
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0

  say "$1: overwritten, and at rest"
  $PY "$HERE/put.py" "$URI" "$TMP/b.raw" 0
  full=$(disk_usage "$disk")
  for i in $(seq 150); do
    [ $(($(disk_usage "$disk") - idle)) -lt $(((mb + 8) << 20)) ] && break
    sleep 0.1
  done
  at_most "bytes on the host at rest (of $((full - idle)))" \
    $(($(disk_usage "$disk") - idle)) $(((mb + 8) << 20))

  say "$1: trimmed, and stopped at once"
  $PY "$HERE/nbdrun.py" "$URI" "h.trim($((mb << 19)), 0); h.flush()"
  stop_server
  at_most "bytes on the host after the close" \
    $(($(disk_usage "$disk") - idle)) $(((mb / 2 + 4) << 20))
  equal "blocks in the file that no disk has" "$(old_blocks "$disk")" 0
  check_clean "$disk"

  say "$1: overwritten, trimmed and killed: found by the next session"
  start_server "$disk"
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
  $PY "$HERE/nbdrun.py" "$URI" "h.trim($((mb << 19)), 0); h.flush()"
  kill_server
  full=$(disk_usage "$disk")
  start_server "$disk"
  for i in $(seq 150); do
    [ $(($(disk_usage "$disk") - idle)) -lt $(((mb / 2 + 8) << 20)) ] && break
    sleep 0.1
  done
  at_most "bytes on the host after a kill (of $((full - idle)))" \
    $(($(disk_usage "$disk") - idle)) $(((mb / 2 + 8) << 20))
  $PY "$HERE/nbdrun.py" "$URI" "
assert h.pread($((mb << 19)), $((mb << 19))) == \
  open('$TMP/a.raw', 'rb').read()[$((mb << 19)):]
assert h.pread($((mb << 19)), 0) == bytes($((mb << 19)))"
  stop_server
  check_clean "$disk"
  rm "$disk"
}

on_a_disk "$TMP"
if [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] && [ -w /dev/shm ]; then
  shm=$(mktemp -d /dev/shm/dedup-XXXXXX)
  at_exit "rm -rf $shm"
  on_a_disk "$shm"
fi
