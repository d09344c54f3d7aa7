#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Real input: ext4 file systems with the same tree of real files and different
# additions, as of virtual machines of one distribution, written at the same time
# to the disks of one pool.  Stored are exactly the distinct non-zero blocks of
# 4 KiB of all disks together, also after clones, writes to the clones, and
# deletions; each disk reads back.
# Breaks if: a block is stored twice because two disks have it, a clone copies
# data, or a deleted disk's blocks stay, or take those of another disk with them.
# DEDUP_TEST_SCALE 1 has 6 systems, 10 has 20 large ones.
. "$(dirname "$0")/lib.sh"
need mke2fs nbdcopy debugfs

cd "$TMP"
nr=$((SCALE >= 10 ? 20 : 6))
size=$((SCALE >= 10 ? 2560 : 192))
uri () { echo "nbd+unix:///$1?socket=$SOCK"; }

# Counted from the tables in the file, without our code.
stored () { $PY "$HERE/poolimg.py" data pool.qcow2; }
# The blocks of these raw files together.
distinct_of () # RAW...
{
  PYTHONPATH=$HERE $PY -c '
import sys, distinct
print(len(set().union(*map(distinct.blocks, sys.argv[1:]))))' "$@"
}
# Of the closed pool: stored are the blocks of these files, and no others.
stores_exactly () # RAW...
{
  local want
  want=$(distinct_of "$@")
  tool recover pool.qcow2 >/dev/null
  check_clean pool.qcow2
  $PY "$HERE/poolimg.py" check pool.qcow2
  equal "clusters of data" "$(stored)" "$want"
  equal stored-bytes "$(tool disk info --output=json pool.qcow2 |
    json stored-bytes)" $((want * 4096))
}
each_is_served ()
{
  local f
  for f; do
    nbdcopy "$(uri "${f%.raw}")" got.raw
    cmp "$f" got.raw || die "${f%.raw} differs"
    rm got.raw
  done
}

say "$nr file systems of $size MiB"
real_tree root $((32 * SCALE))
for ((i = 1; i <= nr; i++)); do
  real_tree more $((2 * SCALE)) $((200 + 15 * i))
  mv more root/more
  echo "vm$i" >root/hostname
  mke2fs -q -t ext4 -b 4096 -d root vm$i.raw ${size}M >/dev/null
  rm -rf root/more
done
rm -rf root
tool create --pool pool.qcow2
for ((i = 1; i <= nr; i++)); do tool disk create pool.qcow2 vm$i ${size}M; done

say "written at the same time"
start_server pool.qcow2
pids=()
for ((i = 1; i <= nr; i++)); do
  nbdcopy --flush vm$i.raw "$(uri vm$i)" &
  pids+=($!)
done
for p in "${pids[@]}"; do wait "$p"; done
each_is_served vm*.raw
stop_server
stores_exactly vm*.raw
sum=0
for ((i = 1; i <= nr; i++)); do sum=$((sum + $(distinct_blocks vm$i.raw))); done
all=$(stored)
say "$sum blocks one by one, $all together"
at_most "blocks together" "$all" $((sum / 2))

say "the same again: nothing new is stored"
start_server pool.qcow2
for i in 1 2; do nbdcopy --flush vm$i.raw "$(uri vm$((3 - i)))" & pids[i]=$!; done
for i in 1 2; do wait "${pids[i]}"; done
stop_server
mv vm1.raw x.raw; mv vm2.raw vm1.raw; mv x.raw vm2.raw
stores_exactly vm*.raw

say "clones of two, at once and without data"
for i in 1 2; do
  tool disk clone --no-wait pool.qcow2 vm$i c$i
  cp --sparse=always vm$i.raw c$i.raw
done
tool_check_clean pool.qcow2
start_server pool.qcow2
each_is_served c1.raw c2.raw
stop_server
stores_exactly vm*.raw
equal "clusters of data" "$(stored)" "$all"

say "both clones and their origins are written"
random_file new.raw 3 1
for f in c1 c2 vm1; do
  dd if=new.raw of=$f.raw bs=1M seek=$((40 + ${#f})) conv=notrunc status=none
  dd if=vm3.raw of=$f.raw bs=4k skip=9000 seek=3000 count=2000 conv=notrunc \
    status=none
done
start_server pool.qcow2
for f in c1 c2 vm1; do
  nbdcopy --flush $f.raw "$(uri $f)" &
done
wait_for=$(jobs -p)
for p in $wait_for; do [ "$p" = "$SRV_PID" ] || wait "$p"; done
each_is_served c?.raw vm?.raw
stop_server
stores_exactly c?.raw vm*.raw

say "disks are deleted, origins before their clones"
tool disk delete --no-wait pool.qcow2 vm1 vm4
tool_check_clean pool.qcow2
start_server pool.qcow2
nbdinfo --size "$(uri vm1)" >/dev/null 2>&1 && die "vm1 is still there"
stop_server
rm vm1.raw vm4.raw
stores_exactly c?.raw vm*.raw
tool disk reset pool.qcow2 vm2 c1
cp --sparse=always c1.raw vm2.raw
stores_exactly c?.raw vm*.raw
start_server pool.qcow2
each_is_served c?.raw vm?.raw
stop_server
tool disk delete pool.qcow2 c2
rm c2.raw
stores_exactly c1.raw vm*.raw
for f in c1.raw vm*.raw; do
  qemu-img convert -O raw -l "snapshot.name=${f%.raw}" pool.qcow2 got.raw
  cmp -n "$(stat -c %s "$f")" "$f" got.raw || die "stock QEMU reads another $f"
  rm got.raw
done
names=(c1.raw vm*.raw)
tool disk delete pool.qcow2 "${names[@]%.raw}"
check_clean pool.qcow2
equal "clusters of data" "$(stored)" 0
