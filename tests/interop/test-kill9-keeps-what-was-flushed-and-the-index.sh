#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server is killed (kill -9) in the middle of a mixed load from several
# connections.  Stock qemu-img refuses the image by the feature's name; the next
# start recovers by itself; the disk is the state after a prefix of the
# operations with everything flushed in it; all is clean; and the same data
# again stores nothing new.
# Breaks if: a flush returns too early, replay skips or reorders records,
# recovery loses index entries or refcounts.
. "$(dirname "$0")/lib.sh"
need qemu-img

seed=${SEED:-$RANDOM}
region=$((4 << 20))
connections=4
half=$((region * connections))
disk=$TMP/disk.qcow2
start_server "$disk" size=$((half * 2)) commit-interval=1
for round in 1 2 3; do
  say "round $round, seed $seed"
  mkdir "$TMP/r$round"
  $PY "$HERE/nbdrun.py" "$URI" "h.trim($half, 0); h.trim($half, $half)
h.flush()"
  $PY "$HERE/crashload.py" run "$URI" $SRV_PID $((1500 * SCALE * round)) \
    $seed $connections $region "$TMP/r$round"
  reap_killed_server
  equal "bit 48 after kill -9" "$(bit48 "$disk")" 1
  refused qemu-img check "$disk"
  grep -q "$RECOVERY_NAME" "$TMP/refused" ||
    die "qemu-img does not name the feature: $(cat "$TMP/refused")"
  refused qemu-io -f qcow2 -r -c 'read 0 512' "$disk"
  equal state "$(info_field "$disk" state)" "needs recovery"

  if [ $round = 2 ]; then
    say "recovered by the tool"
    tool recover "$disk"
    check_clean "$disk"
  fi
  start_server "$disk"
  $PY "$HERE/crashload.py" verify "$URI" $region "$TMP/r$round"
  stop_server
  check_clean "$disk"

  say "the index survived"
  before=$(data_clusters "$disk")
  start_server "$disk"
  $PY "$HERE/put.py" "$URI" URI $half $half 0
  stop_server
  check_clean "$disk"
  equal "data-clusters after writing the same again" \
    "$(data_clusters "$disk")" "$before"
  qemu-img convert -O raw "$disk" "$TMP/now.raw"
  equal data-clusters "$before" "$(distinct_blocks "$TMP/now.raw")"
  seed=$((seed + 1))
  start_server "$disk" commit-interval=1
done
stop_server
check_clean "$disk"
