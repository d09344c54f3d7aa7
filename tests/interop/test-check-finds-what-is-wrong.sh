#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup check exits as qemu-img check does: 2 for corruption, 3 for
# leaks; and sees damage to the store, which stock QEMU can't.
# Breaks if: a class of damage is not looked for.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
tool create -o cluster-size=4k,log-store-order=5,journal-areas=2 "$disk" 64M
# Until there is a run: a freeze makes one in the background.
for ((round = 1; round <= 50; round++)); do
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" "h.pwrite(pat($round, 4 << 20), 0)"
  stop_server
  ! grep -q DDUPSEGP "$disk" || break
done
[ $round -le 50 ] || die "no run after 50 sessions"
check_clean "$disk"

# DAMAGE is Python with the image as bytearray d, and u64 (offset).
damaged () # STATUS WHAT DAMAGE
{
  local rc=0 stock=0
  cp "$disk" "$TMP/bad.qcow2"
  $PY - "$TMP/bad.qcow2" "$3" <<'END'
import struct
import sys
d = bytearray(open(sys.argv[1], 'rb').read())
u64 = lambda at: struct.unpack('>Q', d[at:at + 8])[0]
def put64(at, v): d[at:at + 8] = struct.pack('>Q', v)
def put16(at, v): d[at:at + 2] = struct.pack('>H', v)
MASK = 0x00fffffffffffe00
l1 = u64(40)
l2 = u64(l1) & MASK
reftable = u64(48)
refblock = u64(reftable)
exec(sys.argv[2])
open(sys.argv[1], 'wb').write(d)
END
  tool check "$TMP/bad.qcow2" >"$TMP/out" 2>&1 || rc=$?
  no_crash_in "$TMP/out"
  equal "status of check with $2" $rc "$1"
  qemu-img check "$TMP/bad.qcow2" >/dev/null 2>&1 || stock=$?
  if [ "${4:-same}" = same ]; then equal "qemu-img on $2" $stock $rc; fi
}

damaged 2 "a refcount too low" 'c = (u64(l2) & MASK) // 4096
put16(u64(reftable + 8 * (c // 2048)) + 2 * (c % 2048), 1)'
damaged 3 "a leaked cluster" 'c = len(d) // 4096 - 1
at = u64(reftable + 8 * (c // 2048)) + 2 * (c % 2048)
while d[at:at + 2] != bytes(2): at += 2; c += 1
put16(at, 1)
d += bytes((c + 1) * 4096 - len(d))'
damaged 2 "two guest clusters at a metadata cluster" 'put64(l2, reftable)'
damaged 2 "an L2 entry past the end" 'put64(l2, 1 << 50)'
damaged 2 "a page of a run" \
  'i = d.index(b"DDUPSEGP"); d[i + 100] ^= 1' other
damaged 2 "the filter of a run" \
  'i = d.rindex(b"DDUPSEGP"); d[i + 4096] ^= 1' other
damaged 2 "the configuration" 'i = d.index(b"DDUPCONF")
while i >= 0:
    d[i + 40] ^= 1
    i = d.find(b"DDUPCONF", i + 8)' other
