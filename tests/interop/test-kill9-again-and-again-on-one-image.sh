#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# One image survives twelve crashes in a row, some of them right after the
# restart, some with recoveries cut short by another kill -9, and load in
# between.
# Breaks if: recovery is not repeatable, or leaves something behind that breaks
# the next one (epochs, journal areas, quarantined clusters).
. "$(dirname "$0")/lib.sh"

seed=${SEED:-$RANDOM}
region=$((2 << 20))
disk=$TMP/disk.qcow2
start_server "$disk" size=16M
stop_server
for round in 1 2 3 4 5 6 7 8 9 10 11 12; do
  out=$TMP/r$round
  mkdir "$out"
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" "h.zero(16 << 20, 0); h.flush()"
  $PY "$HERE/crashload.py" run "$URI" $SRV_PID $((RANDOM % 400 + 20)) \
    $((seed + round)) 3 $region "$out" >/dev/null
  reap_killed_server
  for delay in 0.002 0.01 0.03; do    # die while recovering
    try_start_server "$disk"
    sleep $delay
    kill -9 "$SRV_PID" || die "server ended by itself: $(cat "$SRV_LOG")"
    reap_killed_server
  done
  start_server "$disk"
  $PY "$HERE/crashload.py" verify "$URI" $region "$out" >"$out/verify" ||
    die "round $round, seed $seed: $(cat "$out/verify")"
  if [ $((round % 2)) = 0 ]; then
    stop_server
    check_clean "$disk"
  else
    kill_server
  fi
done
start_server "$disk"
stop_server
check_clean "$disk"
