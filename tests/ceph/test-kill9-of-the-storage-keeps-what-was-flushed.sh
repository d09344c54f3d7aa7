#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The image is an RBD image on a real Ceph cluster.  In the middle of a mixed load of
# three connections, or right after one client's flush, kill -9 ends the server with its qemu-nbd (which takes the writes
# in librbd's cache along), or both and the OSD, or the server alone; then the disk,
# served again, is the state after a prefix of the operations with all that was
# flushed.  The first time, the next qemu-nbd waits until the OSD gives up the killed one;
# later that one is put on the blocklist, which spares a minute.  If the OSD alone dies and comes back, the load waits and meets no error.
# At the end the image is clean for stock QEMU, in a copy that Ceph's own client made.
# Breaks if: the order of writes is lost on the way to the cluster, a flush is
# answered before the cluster has the data, or a stall of the cluster is an error.
# DEDUP_TEST_SCALE=50 is 200 rounds.
. "$(dirname "$0")/ceph.sh"
need_ceph
need qemu-img
export PYTHONUNBUFFERED=1
seed=${SEED:-$RANDOM}
RANDOM=$seed
say "seed $seed (SEED=$seed $0)"
region=$((2 << 20))
out=$TMP/out
load () # VICTIMS OPERATIONS
{
  $PY "$HERE/crashload.py" run "$URI" "$1" "$2" $((seed + round)) 3 $region \
    "$out" >"$TMP/load.out" 2>&1 || die "round $round: $(tail -n 3 "$TMP/load.out")"
}
reap () # PID: after kill -9
{
  wait "$1" 2>/dev/null || true
  forget_server "$1"
}

# A qemu-nbd that follows a killed one takes the image's lock at its first write, which
# lasts a second or more.  A claim of the lease that lasts so long is not used, and the
# server watches for 30 s instead.  So the first write is another one, to bytes that no
# server uses.
serve_again ()
{
  fence_client pool
  serve_rbd pool
  $PY "$HERE/nbdrun.py" "$RBD_URI" 'h.pwrite(bytes(4096), 400 << 20)'
}

start_cluster
make_pool
rbd_ create --size 512M $POOL/pool
serve_rbd pool
tool create -o log-store-order=6,journal-areas=3 "$RBD_URI" 16M

say 'what one client has just flushed'
start_server uri="$RBD_URI"
$PY "$HERE/nbdrun.py" "$URI" 'for i in range(40):
  h.pwrite(bytes([i + 1]) * 4096, i << 14)
h.flush()'
kill -9 $RBD_PID $SRV_PID
reap $RBD_PID
reap_killed_server
serve_rbd pool
start_server uri="$RBD_URI"
$PY "$HERE/nbdrun.py" "$URI" 'for i in range(40):
  assert h.pread(4096, i << 14) == bytes([i + 1]) * 4096, i' ||
  die 'a flush was answered too early'
stop_server

for ((round = 1; round <= 4 * SCALE; round++)); do
  rm -rf "$out"
  mkdir "$out"
  start_server uri="$RBD_URI" commit-interval=$((RANDOM % 3))
  $PY "$HERE/nbdrun.py" "$URI" "h.zero(16 << 20, 0); h.flush()"
  operations=$((RANDOM % 600 + 50))
  case $((round % 4)) in
    1)
      say "round $round: the server and qemu-nbd, after $operations operations"
      load "$RBD_PID,$SRV_PID" $operations
      reap_killed_server
      reap $RBD_PID
      serve_again
      ;;
    2)
      say "round $round: the server, qemu-nbd and the OSD, after $operations"
      load "$OSD_PID,$RBD_PID,$SRV_PID" $operations
      reap_killed_server
      reap $RBD_PID
      reap $OSD_PID
      start_osd
      serve_again
      ;;
    3)
      say "round $round: the OSD, which comes back"
      load 0 $((operations * 4)) &
      loading=$!
      sleep "0.$((RANDOM % 10))"
      end_part KILL $OSD_PID
      start_osd
      wait $loading
      kill_server
      ;;
    0)
      say "round $round: the server, after $operations"
      load "$SRV_PID" $operations
      reap_killed_server
      ;;
  esac
  start_server uri="$RBD_URI"
  $PY "$HERE/crashload.py" verify "$URI" $region "$out" >"$out/verify" ||
    die "round $round: $(cat "$out/verify")"
  stop_server
done

rbd_ export --no-progress $POOL/pool "$TMP/pool.qcow2"
check_clean "$TMP/pool.qcow2"
