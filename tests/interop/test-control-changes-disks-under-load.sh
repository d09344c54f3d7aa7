#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Disks are made, cloned, reset, resized, renamed and deleted over the control socket, by
# two clients at once, while fio writes to two disks and checks what it reads, and
# qemu-io writes to a third.  Nobody who writes gets an error; a clone of a disk that is
# written to is one moment of it; "quit" under load ends the server cleanly, and after
# that the image is clean for stock QEMU, and each disk has its contents.
# Breaks if: a change disturbs clients of other disks, mixes up disks, or waits for
# ever; or if an end by "quit" loses writes or leaves an image that is not clean.
. "$(dirname "$0")/lib.sh"
need fio

cd "$TMP"
MB=1048576
uri () { echo "nbd+unix:///$1?socket=$SOCK"; }
tool create --pool pool.qcow2
start_server pool.qcow2 control="$TMP/control"
cat >setup.py <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[2])
from controlclient import Client
c = Client(sys.argv[1])
for name in 'fio1', 'fio2', 'io', 'quiet':
    c.ok('disk-create', name=name, size=16 << 20)
PYTHON
$PY setup.py "$TMP/control" "$HERE"
random_file quiet.raw 16 7
nbdcopy quiet.raw "$(uri quiet)"

say "two clients change disks, others write"
for n in 1 2; do
  fio --name=job$n --ioengine=nbd --uri="$(uri fio$n)" --rw=randwrite --bs=4k \
    --size=16m --iodepth=8 --verify=crc32c --verify_backlog=64 \
    --randseed=$n --runtime=$((8 * SCALE)) --time_based >fio$n.log 2>&1 &
  fio[n]=$!
done
(while [ ! -e stop ]; do
   qemu-io -f raw -c 'write -P 1 0 1M' -c 'write -P 2 0 1M' "$(uri io)" \
     >io.log 2>&1 || exit 1
 done) &
io=$!
cat >change.py <<'PYTHON'
import sys
import time
sys.path.insert(0, sys.argv[2])
from controlclient import Client
nr, seconds = sys.argv[3], int(sys.argv[4])
c = Client(sys.argv[1])
a, b = 'a' + nr, 'b' + nr
end, rounds = time.monotonic() + seconds, 0
while time.monotonic() < end or rounds == 0:
    c.ok('disk-create', name=a, size=1 << 20)
    c.ok('disk-clone', source='fio1', name=b)
    c.ok('disk-snapshot', name='io', snapshot='s%s-%d' % (nr, rounds))
    c.ok('disk-resize', name=a, size=2 << 20)
    c.ok('disk-reset', name=a, source='fio2', force=True)
    assert len(c.ok('query-disks')) >= 6
    c.ok('disk-rename', name=b, new_name=b + 'x')
    c.ok('disk-resize', name=b + 'x', size=4 << 20, shrink=True)
    c.ok('disk-delete', name=a)
    c.ok('disk-delete', name=b + 'x', force=True)
    if rounds > 0:
        c.ok('disk-delete', name='io@s%s-%d' % (nr, rounds - 1))
    rounds += 1
mine = [e['id'] for e in c.take_events('BLOCK_EXPORT_DELETED')
        if e['id'] in (a, b + 'x')]
assert mine == [a, b + 'x'] * rounds, mine
print(rounds)
PYTHON
for n in 1 2; do
  $PY change.py "$TMP/control" "$HERE" $n $((6 * SCALE)) >rounds$n &
  change[n]=$!
done
for n in 1 2; do wait "${change[n]}" || die "client $n of the control socket failed"; done
for n in 1 2; do wait "${fio[n]}" || { cat fio$n.log; die "fio $n failed"; }; done
touch stop
wait $io || { cat io.log; die "qemu-io failed"; }
say "$(cat rounds1) and $(cat rounds2) rounds"

say "a snapshot is one moment of the disk"
for s in $(nbdinfo --list --json "$URI" |
           $PY -c 'import json, sys
for e in json.load(sys.stdin)["exports"]:
  if e["export-name"].startswith("io@"): print(e["export-name"])'); do
  nbdcopy "$(uri "$s")" got.raw
  # The writes of qemu-io are 1 MiB, which is cut into pieces; each piece is one
  # write or the other one.
  $PY - got.raw <<'PYTHON'
import sys
d = open(sys.argv[1], 'rb').read(1 << 20)
assert set(d) <= {0, 1, 2}, set(d)
for i in range(0, len(d), 4096):
    assert len(set(d[i:i + 4096])) == 1, i
PYTHON
done

say "quit while clients write"
for n in 1 2; do
  fio --name=job$n --ioengine=nbd --uri="$(uri fio$n)" --rw=randwrite --bs=4k \
    --size=16m --iodepth=8 --randseed=$n --runtime=60 --time_based \
    >fio$n.log 2>&1 &
  fio[n]=$!
done
sleep 1
nbdcopy "$(uri quiet)" got.raw
cmp quiet.raw got.raw || die "the disk that nobody writes to has changed"
cat >quit.py <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[2])
from controlclient import Client
c, other = Client(sys.argv[1]), Client(sys.argv[1])
assert c.ok('quit') == {}
c.rest()
other.rest()
for x in c, other:
    data = x.take_events('SHUTDOWN')
    assert data == [{'guest': False, 'reason': 'host-qmp-quit'}], data
PYTHON
$PY quit.py "$TMP/control" "$HERE"
rc=0
wait "$SRV_PID" || rc=$?
forget_server "$SRV_PID"
no_crash_in "$SRV_LOG"
equal "status of the server" $rc 0
# fio may wait for the server that is gone.
for n in 1 2; do
  kill "${fio[n]}" 2>/dev/null || true
  wait "${fio[n]}" || true
done
[ ! -e "$TMP/control" ] || die "the socket is still there"

tool recover pool.qcow2 >/dev/null
check_clean pool.qcow2
start_server -r pool.qcow2
nbdcopy "$(uri quiet)" got.raw
cmp quiet.raw got.raw || die "a disk has other contents after the end"
stop_server
