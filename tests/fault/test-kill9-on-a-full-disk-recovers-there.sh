#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server is killed (kill -9) while the host's disk is full, again and again:
# each time it starts on the disk as it is, has all that was flushed, and
# continues.
# Breaks if: recovery needs space that nobody has kept for it.
. "$(dirname "$0")/fault.sh"
small_disk "$TMP/small" 48
disk=$TMP/small/disk.qcow2

start_server "$disk" size=20G commit-interval=1
$PY "$FAULT/full.py" fill "$URI" "$TMP" "$SEED"
for ((round = 1; round <= 8 * SCALE; round++)); do
  $PY "$FAULT/full.py" churn "$URI" "$TMP" $((SEED + round)) \
    $((RANDOM % 1500 + 10)) "$SRV_PID" >>"$TMP/churn.out"
  reap_killed_server
  at_most "kB free in round $round" "$(free_kb "$TMP/small")" 20000
  if [ $((round % 2)) = 0 ]; then       # somebody else takes the rest, too
    head -c 64M /dev/zero 2>/dev/null >"$TMP/small/ballast" || true
  fi
  if [ $((round % 3)) = 0 ]; then       # and dies while recovering
    try_start_server "$disk"
    sleep 0.0$((RANDOM % 6))
    kill -9 "$SRV_PID" || die "ended by itself"
    reap_killed_server
  fi
  start_server "$disk" commit-interval=1
  $PY "$FAULT/full.py" crashed "$URI" "$TMP"
  rm -f "$TMP/small/ballast"
done
grep -h "'full'" "$TMP/churn.out" >/dev/null || die "the disk was not full"
stop_server
check_clean "$disk"
