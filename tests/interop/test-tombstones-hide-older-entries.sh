#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# verify=off trusts an exact index, so the entry of a freed cluster must be
# deleted, or hidden, before the cluster is used again.  Twelve contents take
# turns on a disk that holds two of them, twice: each is written, frozen
# into an incarnation, freed, its clusters used for others, and written again
# while those are there.  (A crash may end exactness, so it comes last.)
# Breaks if: a tombstone is missing, or lost in a freeze, or an older
# incarnation wins over it.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
# An index is exact if its store was begun with verify=off; one for so small a
# disk has the smallest log stores.
qemu-img create -q -f qcow2 -o cluster_size=4k "$disk" 8M
truncate -s 8M "$TMP/want.raw"
nr=0
for round in 1 2; do
  start_server "$disk" verify=off commit-interval=100ms
  for f in 1 2 3 4 5 6 7 8 9 10 11 12; do
    # The other half keeps what came before, mostly in clusters that were
    # those of f once: a stale entry leads there.
    at=$((nr % 2 * 4))
    nr=$((nr + 1))
    random_file "$TMP/part.raw" 4 $f
    $PY "$HERE/nbdrun.py" "$URI" "h.trim(4 << 20, $at << 20); h.flush()"
    sleep 0.4                   # some commits: what was freed is free to use
    $PY "$HERE/put.py" "$URI" "$TMP/part.raw" $((at << 20))
    dd if="$TMP/part.raw" of="$TMP/want.raw" bs=1M seek=$at conv=notrunc \
      status=none
    served_as_raw "$TMP/want.raw"
    if [ $f$round = 102 ]; then
      kill_server
      start_server "$disk" verify=off commit-interval=100ms
      served_as_raw "$TMP/want.raw"
    elif [ $f = 5 ]; then
      stop_server
      check_clean "$disk"
      start_server "$disk" verify=off commit-interval=100ms
    fi
  done
  stop_server
  check_clean "$disk"
  same_as_raw "$TMP/want.raw" "$disk"
  equal data-clusters "$(data_clusters "$disk")" 2048
done
# Else nothing was shown.
at_least runs "$(info_field "$disk" runs)" 1
at_least tombstones "$(info_field "$disk" tombstones)" 1
at_most "file size" "$(stat -c %s "$disk")" $((24 << 20))
