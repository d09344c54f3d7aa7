#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Each command of qcow2-dedup disk does to a closed pool what it says, and leaves an
# image that is clean for qemu-img, in which stock QEMU reads every disk.
# Breaks if: a command changes another disk, a deleted disk's space does not come
# back, bytes that were cut off come back with a larger size, import or export
# change a byte, or tables that are lent are left behind.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
pool=pool.qcow2
MiB=1048576

# Stock QEMU reads the disk or snapshot NAME as RAW, with zeroes behind it (qemu-img
# takes the length from the longest disk).
stock_reads () # NAME RAW
{
  qemu-img convert -O raw -l "snapshot.name=$1" $pool stock.raw
  cmp -n "$(stat -c %s "$2")" "$2" stock.raw || die "stock QEMU reads another $1"
  $PY -c 'import sys
f = open("stock.raw", "rb"); f.seek(int(sys.argv[1]))
for b in iter(lambda: f.read(1 << 20), b""):
    assert not any(b)' "$(stat -c %s "$2")" || die "$1 goes on behind its end"
  rm stock.raw
}

exported_is () # NAME RAW
{
  tool disk export $pool "$1" x.raw >/dev/null
  cmp "$2" x.raw || die "another $1 was exported"
  rm x.raw
}

is () # NAME RAW
{
  check_clean $pool
  stock_reads "$1" "$2"
  exported_is "$1" "$2"
}

names ()
{
  tool disk list --output=json $pool | $PY -c 'import json, sys
print(*[d["name"] for d in json.load(sys.stdin)["disks"]])'
}

of () # NAME FIELD: of disk info
{
  tool disk info --output=json $pool "$1" | json "$2"
}

pool_field () { tool disk info --output=json $pool | json "$1"; }

# a.raw: 32 MiB with 8 MiB of data in two places; b.raw: half of that is other data.
random_file 4a 4 1
random_file 4b 4 2
random_file 4c 4 3
truncate -s 32M a.raw
dd if=4a of=a.raw bs=1M seek=1 conv=notrunc status=none
dd if=4b of=a.raw bs=1M seek=20 conv=notrunc status=none
cp a.raw b.raw
dd if=4c of=b.raw bs=1M seek=20 conv=notrunc status=none
truncate -s 32M zero.raw

say "create"
tool create --pool --max-disk-size=256M $pool
check_clean $pool
equal disks "$(names)" ""
tool disk create $pool vm1 32M
is vm1 zero.raw
equal disks "$(names)" vm1
equal size "$(of vm1 virtual-size)" $((32 * MiB))
equal type "$(of vm1 type)" disk
tool disk create $pool "$(printf 'n%.0s' {1..255})" 256M
tool disk create $pool 'Größe 1' 512
equal "names" "$(names)" "Größe 1 $(printf 'n%.0s' {1..255}) vm1"
check_clean $pool
tool disk delete $pool 'Größe 1' "$(printf 'n%.0s' {1..255})"
equal disks "$(names)" vm1
check_clean $pool

say "import raw; holes are neither read nor stored"
tool disk import --output=json $pool vm2 a.raw >j
equal complete "$(json complete <j)" True
equal written "$(json written-bytes <j)" $((8 * MiB))
at_most read "$(json read-bytes <j)" $((16 * MiB))
is vm2 a.raw
equal mapped "$(of vm2 mapped-bytes)" $((8 * MiB))
equal exclusive "$(of vm2 exclusive-bytes)" $((8 * MiB))
equal "stored in the pool" "$(pool_field stored-bytes)" $((8 * MiB))
tool disk import $pool vm2b a.raw | has 'vm2b imported' || die "no summary"
is vm2b a.raw
equal "stored in the pool" "$(pool_field stored-bytes)" $((8 * MiB))
equal "logical" "$(pool_field logical-bytes)" $((16 * MiB))
equal ratio "$(pool_field ratio)" 2.0
equal exclusive "$(of vm2 exclusive-bytes)" 0
equal shared "$(of vm2 shared-bytes)" $((8 * MiB))
at_least "free on the host" "$(pool_field host-free-bytes)" 1
tool disk delete $pool vm2b
equal exclusive "$(of vm2 exclusive-bytes)" $((8 * MiB))

say "import qcow2, with zero clusters and compressed ones"
qemu-img convert -c -O qcow2 a.raw c.qcow2
qemu-io -f qcow2 -c 'write -z 2M 1M' c.qcow2 >/dev/null
qemu-img convert -O raw c.qcow2 c.raw
tool disk import $pool comp c.qcow2 >/dev/null
is comp c.raw
tool disk import --format=raw --size=64M $pool asis c.qcow2 >/dev/null
cp c.qcow2 asis.raw
truncate -s 64M asis.raw
is asis asis.raw
tool disk delete $pool comp asis

say "import over a disk, and to its end after a part"
dd if=/dev/zero of=part.raw bs=1M count=0 seek=32 status=none
dd if=4a of=part.raw bs=1M seek=1 conv=notrunc status=none
tool disk import $pool part part.raw >/dev/null
tool disk import --output=json --resume $pool part a.raw >j
equal "written by --resume" "$(json written-bytes <j)" $((4 * MiB))
is part a.raw
truncate -s 20M short.raw
dd if=4c of=short.raw bs=1M seek=3 conv=notrunc status=none
tool disk import --force $pool part short.raw >/dev/null
is part short.raw
tool disk import --force $pool part b.raw >/dev/null
is part b.raw
random_file big.raw $((32 * SCALE)) 7
for delay in 0.01 0.05 0.2; do
  rc=0
  timeout --preserve-status -s INT $delay "$TOOL" disk import $pool big big.raw \
    >out 2>&1 || rc=$?
  no_crash_in out
  [ $rc = 0 ] || [ $rc = 130 ] || die "interrupted import: status $rc: $(cat out)"
  tool disk import --resume $pool big big.raw >/dev/null
  exported_is big big.raw
  tool disk delete $pool big
done
rm big.raw
tool disk delete $pool part

say "export, raw and qcow2"
tool disk export --output=json $pool vm2 e.raw >j
equal format "$(json format <j)" raw
equal written "$(json written-bytes <j)" $((8 * MiB))
cmp a.raw e.raw
at_most "space of the raw file" "$(disk_usage e.raw)" $((9 * MiB))
tool disk export $pool vm2 e.qcow2 >/dev/null
same_as_raw a.raw e.qcow2
check_clean e.qcow2
at_most "space of the qcow2 file" "$(disk_usage e.qcow2)" $((10 * MiB))
qemu-img info e.qcow2 >j
if grep -q 'Snapshot list' j; then die "the exported image has a store"; fi
grep -q 'refcount bits: 16' j || die "other refcounts"
echo old >forced
tool disk export --force --format=qcow2 $pool vm2 forced >/dev/null
same_as_raw a.raw forced
tool disk export --progress $pool vm2 progress.raw 2>j >/dev/null
grep -q '^Exporting: 100 %$' j || die "no progress"
tool disk import $pool back e.qcow2 >/dev/null
is back a.raw
tool disk delete $pool back

say "the active disk is \"\", or --active"
tool create single.qcow2 32M
start_server single.qcow2
$PY "$HERE/put.py" "$URI" 4a 0
stop_server
tool disk export single.qcow2 "" s1.raw >/dev/null
tool disk export --active single.qcow2 s2.raw >/dev/null
cmp s1.raw s2.raw
cmp -n $((4 * MiB)) 4a s1.raw
equal size "$(tool disk info --output=json --active single.qcow2 |
              json virtual-size)" $((32 * MiB))

say "clone and snapshot"
tool disk clone $pool vm2 vm3
is vm3 a.raw
is vm2 a.raw
equal "clone of" "$(of vm3 clone-of)" vm2
equal clones "$(of vm2 clones)" "['vm3']"
tool disk snapshot $pool vm2 monday
is vm2@monday a.raw
equal type "$(of vm2@monday type)" snapshot
equal snapshots "$(of vm2 snapshots)" "['vm2@monday']"
equal disks "$(names)" "vm1 vm2 vm2@monday vm3"
equal "stored in the pool" "$(pool_field stored-bytes)" $((8 * MiB))
tool disk import --force $pool vm2 b.raw >/dev/null
is vm2 b.raw
is vm3 a.raw
is vm2@monday a.raw
equal exclusive "$(of vm2 exclusive-bytes)" $((4 * MiB))
tool disk clone $pool vm2@monday vm4
is vm4 a.raw
tool disk list $pool >list
cat list
grep -q '^  vm2@monday ' list || die "the snapshot is not under its disk"
grep -Eq '^vm3 .* vm2$' list || die "the list does not say what vm3 is a clone of"
tool disk list --sizes $pool | has -E '^vm4 +32 MiB +8 MiB ' || die "no sizes"

say "reset"
tool disk reset $pool vm2 vm2@monday
is vm2 a.raw
tool disk reset $pool vm1 vm2
is vm1 a.raw
tool disk import --force $pool vm1 b.raw >/dev/null
is vm1 b.raw
is vm2 a.raw

say "rename: the snapshots follow"
tool disk rename $pool vm2 web
equal disks "$(names)" "vm1 vm3 vm4 web web@monday"
is web a.raw
is web@monday a.raw
tool disk rename $pool web@monday web@old
equal disks "$(names)" "vm1 vm3 vm4 web web@old"

say "resize: what was cut off does not come back"
tool disk resize $pool vm3 64M
cp a.raw a64.raw
truncate -s 64M a64.raw
is vm3 a64.raw
size=$((22 * MiB + 512))
tool disk resize --shrink $pool vm3 $size
cp a.raw cut.raw
truncate -s $size cut.raw
is vm3 cut.raw
tool disk resize $pool vm3 32M
truncate -s 32M cut.raw
is vm3 cut.raw
is vm4 a.raw

say "delete, in any order, gives the space back"
tool disk delete $pool web vm1
equal disks "$(names)" "vm3 vm4 web@old"
is web@old a.raw
is vm3 cut.raw
tool disk create $pool vm1 32M
is vm1 zero.raw
tool disk delete $pool vm4 web@old vm3 vm1
equal disks "$(names)" ""
check_clean $pool
equal "stored in the empty pool" "$(pool_field stored-bytes)" 0

say "--no-wait leaves an image that only this program opens, until it is settled"
tool disk import $pool vm1 a.raw >/dev/null
tool disk clone --no-wait $pool vm1 vm2
equal "feature bit 48" "$(bit48 $pool)" 1
tool_check_clean $pool
$PY "$HERE/poolimg.py" check $pool >debts
grep -q ' [1-9][0-9]* with debts' debts || die "no debts: $(cat debts)"
exported_is vm2 a.raw
tool disk list $pool >/dev/null
start_server $pool
$PY "$HERE/nbdrun.py" "nbd+unix:///vm2?socket=$SOCK" \
  'h.pwrite(h.pread(4096, 0), 0); h.flush()'
kill_server
refused tool check $pool
one_error_line $pool 'not closed and needs recovery'
tool recover $pool
is vm1 a.raw
is vm2 a.raw
tool disk clone --no-wait $pool vm1 vm3
tool disk delete $pool vm1
is vm3 a.raw

say "info shows the pool first"
tool info $pool >info
cat info
equal "second line" "$(sed -n 2p info)" "pool:          2 disks, 0 snapshots"
tool info --output=json $pool | json pool >/dev/null

say "an image of another program may get disks, too"
qemu-img create -q -f qcow2 -o cluster_size=4k stock.qcow2 32M
qemu-io -f qcow2 -c 'write -s 4a 1M 4M' -c 'write -s 4b 20M 4M' stock.qcow2 >/dev/null
qemu-img snapshot -c theirs stock.qcow2
pool=stock.qcow2
tool disk create $pool vm1 16M
equal disks "$(names)" "theirs vm1"
check_clean $pool
qemu-img amend -o refcount_bits=32 $pool
tool disk clone $pool theirs vm2
is vm2 a.raw
tool disk clone --active $pool vm3
is vm3 a.raw
tool disk reset $pool vm1 --active
is vm1 a.raw
same_as_raw a.raw $pool
