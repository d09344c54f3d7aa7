#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images by qemu-img with clusters of 512 bytes to 2 MiB and refcounts of 2 to
# 64 bits are served with their contents, deduplicated from the first write on,
# and clean after it.
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
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((14 << 20))
  stop_server
  check_clean "$disk"
  grown=$(($(data_clusters "$disk") - before))
  if [ "$2" -ge 4 ]; then
    equal "new clusters of the second copy" $grown 0
  fi
  for at in 10 14; do
    dd if="$TMP/a.raw" of="$TMP/want.raw" bs=1M seek=$at conv=notrunc \
      status=none
  done
  same_as_raw "$TMP/want.raw" "$disk"
  rm -f "$disk"
}

# The width of a refcount and the size of a cluster meet in the refcount
# tables only: each of both, and the extreme pairs.
for pair in 512:64 1k:4 2k:8 4k:16 4k:2 4k:32 4k:64 8k:2 16k:16 32k:32 64k:16 \
            64k:8 128k:4 256k:16 512k:64 1M:16 2M:64 2M:4 512:16; do
  one ${pair%:*} ${pair#*:}
done
