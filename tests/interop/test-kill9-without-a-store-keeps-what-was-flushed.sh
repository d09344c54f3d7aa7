#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images that can't hold a store (docs/features.md: "direct") are killed by kill
# -9 under four clients: no cluster has too low a refcount (leaks are allowed,
# qemu-img check exits 0 or 3), and each sector holds what was flushed or a
# later write. The same holds after the next session, on the image as it was
# left. The order of writes is judged by tests/fault, not here: the host stays
# up.
# Breaks if: a flush returns before the tables are written.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
export CRASHLOAD_CLUSTER=4096
seed=${SEED:-$RANDOM}
echo "seed $seed"
RANDOM=$seed

kill_and_verify () # IMAGE KEY...
{
  local round rc
  for ((round = 1; round <= 2 * SCALE; round++)); do
    rm -rf log
    mkdir log
    start_server "$@"
    $PY "$HERE/nbdrun.py" "$URI" 'h.zero(32 << 20, 0); h.flush()'
    $PY "$HERE/crashload.py" run "$URI" $SRV_PID $((300 + RANDOM % 2000)) \
      $((seed + round)) 4 $((4 << 20)) log
    reap_killed_server
    rc=0
    qemu-img check "$1" >check.out 2>&1 || rc=$?
    [ $rc = 0 ] || [ $rc = 3 ] || { head check.out; die "check: status $rc"; }
    start_server "$@"
    $PY "$HERE/crashload.py" verify-flushed "$URI" $((4 << 20)) log
    stop_server
  done
  rc=0
  qemu-img check -q -r leaks "$1" >check.out 2>&1 || rc=$?
  equal "qemu-img check -r leaks" $rc 0
}

say 'version 2'
qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k v2.qcow2 32M
kill_and_verify v2.qcow2 dedup=off
say 'refcounts of 1 bit'
qemu-img create -q -f qcow2 -o refcount_bits=1,cluster_size=4k bit.qcow2 32M
kill_and_verify bit.qcow2
for raw in off on; do
  say "external data file, raw: $raw"
  rm -f data.raw
  qemu-img create -q -f qcow2 -o \
    data_file=data.raw,data_file_raw=$raw,cluster_size=4k data.qcow2 32M
  kill_and_verify data.qcow2 backing=any
done
