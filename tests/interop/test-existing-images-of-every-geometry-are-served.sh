#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images by qemu-img with clusters of 512 bytes to 2 MiB and refcounts of 2 to
# 64 bits: served with their contents, deduplicated from the first write on,
# clean after it.
# Breaks if: a table's size or width is computed for one geometry only.
. "$(dirname "$0")/lib.sh"

random_file "$TMP/a.raw" 4 1
one () # CLUSTER BITS
{
  local disk=$TMP/g.qcow2 c=$1 before grown
  say "cluster_size=$1 refcount_bits=$2"
  qemu-img create -q -f qcow2 -o cluster_size=$1,refcount_bits=$2 "$disk" 20M
  qemu-io -f qcow2 -c "write -s $TMP/a.raw 1M 4M" -c 'write -z 6M 1M' \
    -c 'write -P 9 8M 100000' "$disk" >/dev/null
  qemu-img convert -O raw "$disk" "$TMP/want.raw"
  start_server "$disk"
  served_as_raw "$TMP/want.raw"
  # The first copy is stored, the next two are not.
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((10 << 20))
  stop_server
  check_clean "$disk"
  before=$(data_clusters "$disk")
  start_server "$disk"
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((15 << 20))
  stop_server
  check_clean "$disk"
  grown=$(($(data_clusters "$disk") - before))
  if [ "$2" -ge 4 ]; then
    equal "new clusters of the second copy" $grown 0
  fi
  for at in 10 15; do
    dd if="$TMP/a.raw" of="$TMP/want.raw" bs=1M seek=$at conv=notrunc \
      status=none
  done
  same_as_raw "$TMP/want.raw" "$disk"
  rm -f "$disk"
}

for c in 512 1024 2048 4096 8192 16384 32768 65536 131072 262144 524288 \
         1048576 2097152; do
  one $c 16
done
for bits in 2 4 8 32 64; do
  one 4096 $bits
done
one 65536 2
one 512 64
one 2097152 64
