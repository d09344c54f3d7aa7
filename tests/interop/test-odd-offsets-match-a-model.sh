#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Requests of any alignment down to one byte, from three connections whose areas
# meet inside clusters, agree with a model in memory; for clusters of 512
# bytes to 2 MiB and a size that is no multiple of a cluster.
# Breaks if: read-modify-write of partial clusters is wrong or races.
. "$(dirname "$0")/lib.sh"

for cluster in 4k 512 64k 2M; do
  seed=${SEED:-$RANDOM}
  say "clusters of $cluster, seed $seed"
  disk=$TMP/disk-$cluster.qcow2
  start_server "$disk" size=20000256 cluster-size=$cluster commit-interval=1
  equal size "$(nbdinfo --size "$URI")" 20000256
  $PY "$HERE/odd.py" "$URI" $((2 * SCALE)) $seed 3 "$TMP/model"
  served_as_raw "$TMP/model"
  kill_server
  start_server "$disk"
  served_as_raw "$TMP/model"
  stop_server
  check_clean "$disk"
  qemu-img convert -O raw "$disk" "$TMP/got.raw"
  cmp "$TMP/model" "$TMP/got.raw" || die "stock QEMU differs"
done
