#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A pool serves each of its disks as a writable export with its own size, and
# each snapshot as a read-only one; the list describes them.  Clients of several
# disks write at the same time; after a restart, and after a kill -9 for what was
# flushed, each disk has its own contents, and after a clean close stock QEMU
# reads each disk from the closed file.
# Breaks if: one disk's data shows up in another or is lost, a snapshot changes,
# or the closed file is not a clean qcow2 image.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
MB=1048576
uri () { echo "nbd+unix:///$1?socket=$SOCK"; }
exports ()
{
  nbdinfo --list --json "$URI" | $PY -c '
import json, sys
for e in sorted(json.load(sys.stdin)["exports"],
                key=lambda e: e["export-name"]):
    print("%s|%d|%s|%s" % (e["export-name"], e["export-size"],
                           "ro" if e["is_read_only"] else "rw",
                           e.get("description", "")))'
}
same () # EXPORT RAW
{
  nbdcopy "$(uri "$1")" got.raw
  cmp "$2" got.raw || die "export '$1' differs from $2"
}
# What stock QEMU reads of a disk of the closed file.  It takes the length from
# the active disk, which is at least as long.
same_closed () # NAME RAW
{
  qemu-img convert -l "snapshot.name=$1" -O raw pool.qcow2 closed.raw
  truncate -s "$(stat -c %s "$2")" closed.raw
  cmp "$2" closed.raw || die "qemu-img convert -l of '$1' differs from $2"
}
all_same () # COMMAND
{
  "$1" vm1 vm1.raw
  "$1" vm1@base base.raw
  "$1" vm2 vm2.raw
  "$1" vm3 vm3.raw
}

tool create --pool pool.qcow2
for i in 1 2; do tool disk create pool.qcow2 vm$i ${i}0M; done
random_file vm1.raw 10 1
random_file vm2.raw 20 2

say "the list, and no default disk"
start_server pool.qcow2
today=$(date -u +%F)
exports >list
cat >want.list <<END
vm1|$((10 * MB))|rw|10 MiB, writable, made $today
vm2|$((20 * MB))|rw|20 MiB, writable, made $today
END
# Midnight may have passed since the disks were made.
[ "$(date -u +%F)" != "$today" ] || cmp list want.list ||
  die "the list is $(cat list)"
nbdinfo --size "$URI" >/dev/null 2>&1 && die "there is a default disk"
grep -q "there is no default disk: ask for one by its name: 'vm1', 'vm2'" \
  "$SRV_LOG" || die "no reason in the log"
nbdinfo --size "$(uri vm9)" >/dev/null 2>&1 && die "there is a disk that nobody made"
grep -q "there is no export 'vm9': disks and snapshots have names of their own; nbdinfo" \
  "$SRV_LOG" || die "no reason in the log"
nbdinfo "$(uri vm1)" | has 'description: 10 MiB, writable' ||
  die "no description of a connection's export"

grep -q 'pool.qcow2: serving a pool of 2 disks, clusters of 4 KiB' "$SRV_LOG" ||
  die "the log does not say what is served"

say "two disks are written at the same time"
nbdcopy vm1.raw "$(uri vm1)" &
copy=$!
nbdcopy vm2.raw "$(uri vm2)"
wait $copy
same vm1 vm1.raw
same vm2 vm2.raw
stop_server
check_clean pool.qcow2
same_closed vm1 vm1.raw
same_closed vm2 vm2.raw

say "a snapshot and a clone, and writes to all"
tool disk snapshot pool.qcow2 vm1 base
tool disk clone pool.qcow2 vm1 vm3
cp vm1.raw base.raw
cp vm1.raw vm3.raw
start_server pool.qcow2
exports | cut -d'|' -f1-3 >list
cat >want.list <<END
vm1|$((10 * MB))|rw
vm1@base|$((10 * MB))|ro
vm2|$((20 * MB))|rw
vm3|$((10 * MB))|rw
END
cmp list want.list || die "the list is $(cat list)"
exports | has '^vm3|.*, writable, clone of vm1, made ' || die "no origin"
exports | has '^vm1@base|.*, snapshot of vm1, made ' || die "no snapshot"
all_same same
for f in vm1 vm2 vm3; do
  n=${f#vm}
  qemu-io -f raw -c "write -P $((n + 16)) ${n}M 300k" -c "write -z ${n}000k 64k" \
    -c "discard 5M 1M" -c "write -P $((n + 32)) 7000k 10k" -c flush \
    "$(uri $f)" >/dev/null &
  pids[n]=$!
done
for n in 1 2 3; do wait "${pids[n]}"; done
for f in vm1 vm2 vm3; do
  n=${f#vm}
  qemu-io -f raw -c "write -P $((n + 16)) ${n}M 300k" -c "write -z ${n}000k 64k" \
    -c "write -z 5M 1M" -c "write -P $((n + 32)) 7000k 10k" $f.raw >/dev/null
done
all_same same

grep -q 'serving a pool of 3 disks and 1 snapshot, clusters' "$SRV_LOG" ||
  die "the log does not say what is served"

say "what was flushed is there after kill -9"
kill_server
start_server pool.qcow2
all_same same
say "and after a restart"
stop_server
start_server -r pool.qcow2
equal "writable exports" "$(exports | cut -d'|' -f3 | sort -u)" ro
all_same same
stop_server

say "stock QEMU reads each disk from the closed file"
tool recover pool.qcow2 >/dev/null
check_clean pool.qcow2
all_same same_closed

say "a deleted disk is gone, and the others have their contents"
tool disk delete pool.qcow2 vm1
start_server pool.qcow2
nbdinfo --size "$(uri vm1)" >/dev/null 2>&1 && die "vm1 is still there"
for f in vm2 vm3; do same $f $f.raw; done
same vm1@base base.raw
stop_server
tool recover pool.qcow2 >/dev/null
check_clean pool.qcow2
for f in vm2 vm3; do same_closed $f $f.raw; done
same_closed vm1@base base.raw
