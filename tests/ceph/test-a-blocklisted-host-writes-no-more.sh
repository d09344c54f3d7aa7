#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The host of a server hangs (its qemu-nbd is stopped) with writes under way.  Its
# address, which rbd status shows, is put on Ceph's blocklist; then another server
# takes over, recovers the image and goes on.  The first one wakes and writes what it
# had: the cluster refuses that, and the disk has what the second one wrote.  The RBD
# image has no exclusive-lock, which would shut out a silent client after a while by
# itself.
# Breaks if: the steps in docs/guides/ceph.md do not keep late writes away.
. "$(dirname "$0")/ceph.sh"
need_ceph
need qemu-img

start_cluster
make_pool
rbd_ create --size 512M --image-feature layering $POOL/pool
serve_rbd pool first
tool create "$RBD_URI" 64M
start_server uri="$RBD_URI" reconnect-delay=10
first=($SRV_PID $RBD_PID)
write () # NUMBER: 8 MiB of blocks that nobody else writes
{
  $PY "$HERE/nbdrun.py" "$URI" "for i in range(128):
  h.pwrite(b''.join((b'%d' % ($1 << 24 | i << 8 | j)).ljust(4096, b'.')
                    for j in range(16)), i << 16)
h.flush()"
}
write 1

say 'the first host hangs, with writes under way'
kill -STOP ${first[1]}
at_exit "kill -CONT ${first[1]} 2>/dev/null"
write 2 >"$TMP/late.out" 2>&1 &
late=$!
sleep 2
kill -0 $late || die "the write went through: $(cat "$TMP/late.out")"
kill -STOP ${first[0]}

say 'it is shut out, and another one takes over'
fence_client pool
serve_rbd pool second
tool unlock --force "$RBD_URI" >/dev/null
start_server uri="$RBD_URI"
write 3

say 'the first one wakes'
kill -CONT ${first[@]}
sleep 5
! wait $late || die 'its writes were taken'
kill -9 ${first[@]}
wait ${first[@]} 2>/dev/null || true
forget_server ${first[0]}
forget_server ${first[1]}

$PY "$HERE/nbdrun.py" "$URI" "for i in range(128):
  for j in range(16):
    want = (b'%d' % (3 << 24 | i << 8 | j)).ljust(4096, b'.')
    assert h.pread(4096, i << 16 | j << 12) == want, (i, j)"
stop_server
end_part TERM $RBD_PID
rbd_ export --no-progress $POOL/pool "$TMP/pool.qcow2"
check_clean "$TMP/pool.qcow2"
equal data-clusters "$(data_clusters "$TMP/pool.qcow2")" 2048
