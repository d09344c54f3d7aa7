#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Persistent bitmaps of a served image are kept up to date through a clean
# close, and marked in use, so that nobody relies on them, while it is written
# and after a crash; a disabled one stays as it is; a directory that can't be
# right gives them up.
# Breaks if: a backup program could rely on a bitmap that lacks changes.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

flags () # BITMAP: as qemu-img info has them
{
  qemu-img info -U --output=json b.qcow2 | $PY -c '
import json, sys
for b in json.load(sys.stdin)["format-specific"]["data"].get("bitmaps", []):
    if b["name"] == sys.argv[1]:
        print(*sorted(b["flags"]))' "$1"
}

cd "$TMP"
qemu-img create -q -f qcow2 b.qcow2 16M
qemu-img bitmap --add b.qcow2 on
qemu-img bitmap --add --disable b.qcow2 off
random_file a.raw 1 1

say 'clean close'
start_server b.qcow2
$PY "$HERE/put.py" "$URI" a.raw $((1 << 20))
# Once it is idle QEMU can look at it.
for ((i = 0; i < 600; i++)); do
  [ "$(bit48 b.qcow2)" = 0 ] && break
  sleep 0.05
done
equal 'flags while open' "$(flags on)" 'auto in-use'
stop_server
equal 'flags after close' "$(flags on)" auto
equal 'flags of the disabled one' "$(flags off)" ''
check_clean b.qcow2

say 'idle'
start_server b.qcow2
sleep 0.5
equal 'flags before any write' "$(flags on)" auto
stop_server
equal 'flags after a session of reading' "$(flags on)" auto

say 'kill -9'
start_server b.qcow2
$PY "$HERE/put.py" "$URI" a.raw $((3 << 20))
kill_server
tool recover b.qcow2 >/dev/null
equal 'flags after a crash' "$(flags on)" 'auto in-use'
equal 'flags of the disabled one' "$(flags off)" ''
check_clean b.qcow2
start_server b.qcow2
$PY "$HERE/put.py" "$URI" a.raw $((5 << 20))
stop_server
equal 'flags of one that was lost' "$(flags on)" 'auto in-use'
check_clean b.qcow2
qemu-img bitmap --remove b.qcow2 on

say 'a bad directory'
qemu-img create -q -f qcow2 bad.qcow2 16M
qemu-img bitmap --add bad.qcow2 x
# Extension 0x23852875: 32 bits of type and length, then the number of bitmaps.
at=$($PY -c 'print(open("bad.qcow2", "rb").read().index(b"\x23\x85\x28\x75"))')
printf '\377' | dd of=bad.qcow2 bs=1 seek=$((at + 16)) conv=notrunc status=none
start_server bad.qcow2
$PY "$HERE/put.py" "$URI" a.raw 0
stop_server
grep -q 'all bitmaps are given up' "$SRV_LOG" || die 'no warning'
equal 'autoclear bits' "$(od -An -tu1 -j95 -N1 bad.qcow2 | tr -d ' ')" 0
check_clean bad.qcow2

# What they had is free: no check finds a leak.  DAMAGE is Python with the
# directory at d of the image b.
given_up () # NAME OPTIONS KEYS DAMAGE
{
  say "given up: $1"
  rm -f bad.qcow2
  qemu-img create -q -f qcow2 -o "cluster_size=4k,$2" bad.qcow2 16M
  qemu-io -f qcow2 -c 'write -P 1 1M 1M' bad.qcow2 >/dev/null
  qemu-img snapshot -c s bad.qcow2
  for i in 1 2 3; do qemu-img bitmap --add bad.qcow2 x$i; done
  qemu-io -f qcow2 -c 'write -P 2 64k 2M' bad.qcow2 >/dev/null
  $PY - "$4" <<'END'
import struct, sys
b = bytearray(open('bad.qcow2', 'rb').read())
d, = struct.unpack_from('>Q', b, b.index(b'\x23\x85\x28\x75') + 24)
exec(sys.argv[1])
open('bad.qcow2', 'wb').write(b)
END
  qemu-img convert -O raw -l snapshot.name=s bad.qcow2 s.raw 2>/dev/null ||
    true                        # stock QEMU refuses to open it
  start_server bad.qcow2 $3
  grep -q 'all bitmaps are given up' "$SRV_LOG" || die 'no warning'
  nbdcopy "$URI" want.raw
  $PY "$HERE/put.py" "$URI" a.raw $((2 << 20))
  dd if=a.raw of=want.raw bs=1M seek=2 conv=notrunc status=none
  kill_server
  start_server bad.qcow2 $3
  served_as_raw want.raw
  stop_server
  check_clean bad.qcow2
  same_as_raw want.raw bad.qcow2
}
entry='struct.pack_into(">Q", b, d, 0x123)'
given_up "the table's place" lazy_refcounts=off '' "$entry"
given_up "an entry that does not end" lazy_refcounts=off '' \
  'struct.pack_into(">H", b, d + 18, 65535)'
given_up "without deduplication" lazy_refcounts=off dedup=off "$entry"
given_up "lazy refcounts" lazy_refcounts=on '' "$entry"

say 'given up, but more is wrong'
cp bad.qcow2 worse.qcow2
qemu-img bitmap --add worse.qcow2 y
$PY - <<'END'
import struct
b = bytearray(open('worse.qcow2', 'rb').read())
d, = struct.unpack_from('>Q', b, b.index(b'\x23\x85\x28\x75') + 24)
struct.pack_into('>Q', b, d, 0x123)
l1, = struct.unpack_from('>Q', b, 40)
l2 = struct.unpack_from('>Q', b, l1)[0] & 0x00fffffffffffe00
struct.pack_into('>Q', b, l2 + 8, 1 << 50)     # an entry past the end
open('worse.qcow2', 'wb').write(b)
END
start_server worse.qcow2
grep -q 'given up.*qemu-img check -r leaks' "$SRV_LOG" || die 'no advice'
$PY "$HERE/put.py" "$URI" a.raw $((4 << 20))
stop_server

# The table's first entry names a free cluster behind the end of the file, which the
# store or data gets: the disk is served, and bits are not written there.
for low in 0x1ff 0; do          # with reserved bits, and without
  for at in 0 3 40; do
    say "an entry for a free cluster: $at behind the end, low bits $low"
    rm -f free.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=4k free.qcow2 16M
    qemu-img bitmap --add free.qcow2 on
    $PY - free.qcow2 $at $low "$HERE" <<'PY'
import os, struct, sys
path, at, low, here = sys.argv[1:]
sys.path.insert(0, here)
import crosslink
table = crosslink.Image(path).bitmap_table()
end = -(-os.path.getsize(path) // 4096)
with open(path, 'r+b') as f:
    f.seek(table)
    f.write(struct.pack('>Q', (end + int(at)) * 4096 | int(low, 0)))
PY
    for session in first second; do
      start_server free.qcow2
      $PY "$HERE/put.py" "$URI" a.raw 0
      stop_server
    done
    qemu-img convert -O raw free.qcow2 free.raw
    cmp -n $((1 << 20)) free.raw a.raw || die 'bits were written over data'
  done
done
