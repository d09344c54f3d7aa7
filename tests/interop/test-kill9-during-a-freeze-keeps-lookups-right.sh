#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With log stores of 2^6 buckets a freeze is nearly always under way; the server
# is closed and killed (kill -9) in the middle of it, again and again.
# Everything flushed is there, and everything written is found again.
# Breaks if: index start advances too early, a frozen log store is lost, or an
# incarnation is listed before its pages are there.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
mb=4
rounds=6
tool create -o log-store-order=6,journal-areas=4 "$disk" 128M
: >"$TMP/want.raw"
for ((i = 0; i < rounds; i++)); do
  random_file "$TMP/part.raw" $mb $((100 + i))
  cat "$TMP/part.raw" >>"$TMP/want.raw"
  start_server "$disk" commit-interval=0
  $PY "$HERE/put.py" "$URI" "$TMP/part.raw" $((i * mb << 20))
  if [ $((i % 3)) = 2 ]; then stop_server; else kill_server; fi
done
cp --sparse=always "$disk" "$TMP/crashed.qcow2"
tool recover "$disk"
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((rounds * mb * 256))

say "all of it is known: writing it again stores nothing"
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/want.raw" $((64 << 20))
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((rounds * mb * 256))
truncate -s 64M "$TMP/want.raw"
head -c $((rounds * mb << 20)) "$TMP/want.raw" >"$TMP/second.raw"
cat "$TMP/second.raw" >>"$TMP/want.raw"
truncate -s 128M "$TMP/want.raw"
same_as_raw "$TMP/want.raw" "$disk"

say "a mixed load over many freezes, killed"
disk2=$TMP/disk2.qcow2
tool create -o log-store-order=4,journal-areas=4 "$disk2" 64M
for round in 1 2 3; do
  mkdir "$TMP/r$round"
  start_server "$disk2" commit-interval=1
  $PY "$HERE/nbdrun.py" "$URI" 'h.trim(64 << 20, 0); h.flush()'
  $PY "$HERE/crashload.py" run "$URI" $SRV_PID $((2000 * round)) \
    $((${SEED:-$RANDOM} + round)) 4 $((4 << 20)) "$TMP/r$round"
  reap_killed_server
  start_server "$disk2"
  $PY "$HERE/crashload.py" verify "$URI" $((4 << 20)) "$TMP/r$round"
  stop_server
  check_clean "$disk2"
  before=$(data_clusters "$disk2")
  start_server "$disk2"
  $PY "$HERE/put.py" "$URI" URI $((32 << 20)) $((16 << 20))
  stop_server
  check_clean "$disk2"
  equal "data-clusters after the same again" "$(data_clusters "$disk2")" \
    "$before"
done
