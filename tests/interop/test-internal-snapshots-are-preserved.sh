#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Internal snapshots from before the first session, of each geometry, hold the
# same bytes after our writes, trims and a crash.
# Breaks if: a cluster that only a snapshot still refers to is freed or
# rewritten, or an L2 table that is shared with a snapshot is changed in place.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
random_file a.raw 8 1
random_file b.raw 8 2
for c in 4k 64k 512; do
  say "clusters of $c"
  d=s$c.qcow2
  qemu-img create -q -f qcow2 -o cluster_size=$c $d 32M
  qemu-io -f qcow2 -c 'write -s a.raw 0 8M' $d >/dev/null
  qemu-img snapshot -c one $d
  qemu-io -f qcow2 -c 'write -s b.raw 4M 8M' -c 'discard 0 1M' $d >/dev/null
  qemu-img snapshot -c two $d
  for s in one two; do
    qemu-img convert -O raw -l snapshot.name=$s $d $s.raw
  done
  start_server $d
  served_as_raw two.raw
  $PY "$HERE/put.py" "$URI" a.raw $((6 << 20))
  $PY "$HERE/nbdrun.py" "$URI" '
h.trim(4 << 20, 3 << 20)
h.pwrite(pat(5, 3000), 777)
h.zero(1 << 20, 20 << 20, nbd.CMD_FLAG_NO_HOLE)
h.flush()'
  kill_server
  start_server $d
  $PY "$HERE/put.py" "$URI" b.raw $((20 << 20))
  nbdcopy "$URI" want.raw
  stop_server
  check_clean $d
  same_as_raw want.raw $d
  for s in one two; do
    qemu-img convert -O raw -l snapshot.name=$s $d got.raw
    cmp $s.raw got.raw || die "snapshot $s changed"
  done
  qemu-img snapshot -d one $d
  qemu-img check -q $d
  start_server $d
  served_as_raw want.raw
  stop_server
  check_clean $d
  qemu-img convert -O raw -l snapshot.name=two $d got.raw
  cmp two.raw got.raw || die "snapshot two changed"
done
