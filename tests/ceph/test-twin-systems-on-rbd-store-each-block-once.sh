#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Real input on a real Ceph cluster: two ext4 file systems with the same tree of real
# files, and more in one of them, are written at the same time to two disks of a pool
# whose image is an RBD image (uri=), with the index in a local file (store=).  Stored
# are exactly the distinct non-zero blocks of 4 KiB of both; both read back.  Another
# process, behind another qemu-nbd and without the local file, as on another host,
# serves the same disks.  Trims of one disk leave the other one whole, and trims of
# both give the space back to the cluster, and the objects to `rbd sparsify`.  The image is judged by qemu-img on a copy
# that Ceph's own client made of it.
# Breaks if: an image behind NBD depends on anything local, a block is stored twice,
# or freed space stays allocated in the cluster.
. "$(dirname "$0")/ceph.sh"
need_ceph
need mke2fs nbdcopy qemu-img

cd "$TMP"
uri () { echo "nbd+unix:///$1?socket=$SOCK"; }
same () # DISK RAW: as it is served
{
  nbdcopy --connections=4 "$(uri "$1")" got.raw
  cmp "$2" got.raw || die "$1 differs"
  rm got.raw
}
# The blocks of these raw files together.
distinct_of () # RAW...
{
  PYTHONPATH=$HERE $PY -c '
import sys, distinct
print(len(set().union(*map(distinct.blocks, sys.argv[1:]))))' "$@"
}
# The closed pool is a clean image for stock QEMU and the tool, with NR clusters of
# data, which a script counts in its tables.
stores_exactly () # NR
{
  timeout 60 "$TOOL" recover "$RBD_URI" >/dev/null
  timeout 60 "$TOOL" check "$RBD_URI" >check.out || die "check: $(cat check.out)"
  rm -f pool.qcow2
  rbd_ export --no-progress $POOL/pool pool.qcow2
  check_clean pool.qcow2
  $PY "$HERE/poolimg.py" check pool.qcow2
  equal 'clusters of data' "$($PY "$HERE/poolimg.py" data pool.qcow2)" "$1"
  rm pool.qcow2
}
trim () # DISK
{
  $PY "$HERE/nbdrun.py" "$(uri "$1")" \
    'for off in range(0, h.get_size(), 1 << 24):
  h.trim(min(1 << 24, h.get_size() - off), off)
h.flush()'
}
allocated_at_most () { [ "$(osd_allocated)" -le "$1" ]; }

say 'two file systems'
size=$((192 * SCALE))
real_tree root $((48 * SCALE))
mke2fs -q -t ext4 -b 4096 -d root a.raw ${size}M
real_tree root/usr/local/more $((12 * SCALE)) 500
mke2fs -q -t ext4 -b 4096 -d root b.raw ${size}M
rm -rf root
want=$(distinct_of a.raw b.raw)

say 'a cluster'
start_cluster
make_pool
rbd_ create --size $((1024 + 2 * size)) $POOL/pool
serve_rbd pool
tool create --pool "$RBD_URI"
tool disk create "$RBD_URI" a ${size}M
tool disk create "$RBD_URI" b ${size}M

say 'written at the same time'
start_server uri="$RBD_URI" store="$TMP/index"
nbdcopy --flush a.raw "$(uri a)" &
first=$!
nbdcopy --flush b.raw "$(uri b)"
wait $first
same a a.raw
same b b.raw
stop_server
stores_exactly "$want"
used=$(rbd_used pool)
allocated=$(osd_allocated)
say "$(distinct_of a.raw) and $(distinct_of b.raw) blocks, $want together:" \
  "rbd du $((used >> 20)) MiB," \
  "$((allocated >> 20)) MiB allocated"
# Objects of 4 MiB, the tables, and the journal.
at_most 'bytes in the cluster' "$used" $((want * 4096 + (64 << 20)))

say 'another process, without the local file'
end_part TERM $RBD_PID
serve_rbd pool
rm index
start_server uri="$RBD_URI"
same a a.raw
same b b.raw

say 'trims'
trim b
same a a.raw
trim a
wait_for 60 'space given back' allocated_at_most $((allocated / 3))
stop_server
stores_exactly 0
# Objects that were freed piece by piece stay, empty, until they are asked for.
end_part TERM $RBD_PID
rbd_ sparsify --no-progress $POOL/pool
left=$(rbd_used pool)
say "rbd du $((left >> 20)) MiB, $(($(osd_allocated) >> 20)) MiB allocated"
at_most 'bytes in the cluster after rbd sparsify' "$left" $((used * 3 / 4))
