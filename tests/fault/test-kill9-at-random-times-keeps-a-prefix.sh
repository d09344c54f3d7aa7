#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Rounds of load by three connections are cut short by kill -9 at a random time:
# under load, right after the start, during recovery (several times), while
# freezing (small log stores, so that it freezes all the time), while closing
# after SIGTERM.  After each, the disk is a prefix of the operations with all
# that was flushed; every few rounds the image is closed and checked.
# DEDUP_TEST_SCALE=10: ten times the rounds.
# Breaks if: any order of writes matters that only luck keeps.
. "$(dirname "$0")/fault.sh"
region=$((2 << 20))
disk=$TMP/disk.qcow2
rounds=$((24 * SCALE))

"$TOOL" create -o log-store-order=4,journal-areas=3 "$disk" 16M >/dev/null
kills=0
count_kill () { kills=$((kills + 1)); reap_killed_server 2>/dev/null; }

# Dies while it comes up, recovering what the last kill left.
die_starting ()
{
  local i
  for ((i = 0; i < 3; i++)); do
    try_start_server "$disk"
    sleep "0.0$(printf %02d $((RANDOM % 40)))"
    kill -9 "$SRV_PID" || die "ended by itself: $(cat "$SRV_LOG")"
    count_kill
  done
}

for ((round = 1; round <= rounds; round++)); do
  out=$TMP/out
  rm -rf "$out"
  mkdir "$out"
  start_server "$disk" commit-interval=$((RANDOM % 3))
  $PY "$HERE/nbdrun.py" "$URI" "h.zero(16 << 20, 0); h.flush()"
  if [ $((round % 3)) = 0 ]; then       # killed while closing
    $PY "$HERE/crashload.py" run "$URI" 0 $((RANDOM % 300 + 10)) \
      $((SEED + round)) 3 $region "$out" >/dev/null
    kill -TERM "$SRV_PID"
    sleep "0.0$(printf %02d $((RANDOM % 20)))"
    kill -9 "$SRV_PID" 2>/dev/null || true
    wait "$SRV_PID" 2>/dev/null || true
    forget_server "$SRV_PID"
    kills=$((kills + 1))
  else
    $PY "$HERE/crashload.py" run "$URI" "$SRV_PID" $((RANDOM % 600 + 5)) \
      $((SEED + round)) 3 $region "$out" >/dev/null
    count_kill
  fi
  [ $((round % 2)) = 0 ] || die_starting
  start_server "$disk"
  $PY "$HERE/crashload.py" verify "$URI" $region "$out" >"$out/verify" ||
    die "round $round: $(cat "$out/verify")"
  if [ $((round % 4)) = 0 ]; then
    stop_server
    check_clean "$disk"
  else
    kill_server 2>/dev/null
    kills=$((kills + 1))
  fi
done
start_server "$disk"
stop_server
check_clean "$disk"
say "$kills kills in $rounds rounds"
