#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Persistent bitmaps of a served image: kept up to date through a clean close;
# marked in use, so that nobody relies on them, while it is written and after a
# crash; a disabled one stays as it is; a directory that can't be right gives
# them up.
# Breaks if: a backup program could take a bitmap for right that is not.
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
