#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# On a full disk (ext4, tmpfs) new data is refused, but existing data can be
# overwritten, from the first time on and without end, with flushes in
# between and with none; large requests, too.  Trims make room for new data.
# Killed while full, the server recovers there, and overwrites continue.
# Breaks if: no clusters with space are spared, or what is freed is lost.
. "$(dirname "$0")/fault.sh"

small_tmpfs () # DIR MB
{
  mkdir "$1"
  mount -t tmpfs -o "size=$2m" none "$1" 2>/dev/null || skip "no tmpfs"
  at_exit "kill_servers; umount '$1'"
}

# One request of 2 MiB at the end of the disk, with data of its own.
large () # NUMBER
{
  $PY - "$URI" "$1" <<'PYTHON'
import sys
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
data = b''.join((int(sys.argv[2]) * 1000 + i).to_bytes(8, 'big') * 512
                for i in range(512))
at = h.get_size() - len(data)
h.pwrite(data, at)
assert h.pread(len(data), at) == data
PYTHON
}

overwrites_on () # KIND
{
  local disk=$TMP/$1/disk.qcow2 dir=$TMP/model-$1
  mkdir "$dir"
  "small_$1" "$TMP/$1" 56
  start_server "$disk" size=20G commit-interval=1
  large 1
  $PY "$FAULT/full.py" fill "$URI" "$dir" "$SEED"
  say "$1: $(free_kb "$TMP/$1") kB free"
  $PY "$FAULT/full.py" overwrite "$URI" "$dir" $((SEED + 1)) $((400 * SCALE))
  for i in 2 3 4 5; do large $i; done
  $PY "$FAULT/full.py" overwrite "$URI" "$dir" $((SEED + 2)) $((200 * SCALE))
  $PY "$FAULT/full.py" verify "$URI" "$dir"
  $PY "$FAULT/full.py" fill "$URI" "$dir" $((SEED + 3)) >"$TMP/fill.out"
  at_most "new clusters that the full disk took" \
    "$(grep -o "'written': [0-9]*" "$TMP/fill.out" |
       awk '{ n += $2 } END { print n + 0 }')" 300

  say "$1: killed"
  $PY "$FAULT/full.py" churn "$URI" "$dir" $((SEED + 4)) \
    $((RANDOM % 500 + 10)) "$SRV_PID" >/dev/null
  reap_killed_server
  start_server "$disk" commit-interval=1
  $PY "$FAULT/full.py" crashed "$URI" "$dir"
  $PY "$FAULT/full.py" overwrite "$URI" "$dir" $((SEED + 5)) 100

  say "$1: trims"
  $PY "$FAULT/full.py" trim "$URI" "$dir" $((SEED + 6)) 40
  sleep 2.5
  $PY "$FAULT/full.py" fill "$URI" "$dir" $((SEED + 7)) >"$TMP/fill.out"
  at_least "writes taken after the trim" \
    "$(grep -o "'written': [0-9]*" "$TMP/fill.out" |
       awk '{ n += $2 } END { print n + 0 }')" 300
  stop_server
  check_clean "$disk"
}

need_root
overwrites_on disk
overwrites_on tmpfs
