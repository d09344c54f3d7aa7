#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Other NBD clients see served images of each kind as qemu-img sees the file
# itself, in sizes, block sizes, bytes and extents: nbdinfo, nbddump, nbdcopy,
# nbdfuse, and over nbd qemu-img's convert, compare, map, measure, bench and
# rebase, and qemu-io.
# Breaks if: a client is told a wrong size, limit or extent.
. "$(dirname "$0")/lib.sh"
need nbddump nbdfuse

cd "$TMP"
random_file part.raw 1 1
$PY - <<'END'
part = open('part.raw', 'rb').read()
disk = bytearray(6 * 1048576 + 1536)
disk[0:1048576] = part
disk[2 * 1048576:3 * 1048576] = part
disk[5000000:5000100] = b'needle' * 16 + b'endx'
disk[-600:] = b'z' * 600
open('disk.raw', 'wb').write(disk)
END
SIZE=$(stat -c %s disk.raw)

# "start length zero" of qemu-img map on FORMAT FILE.
zeroes_of ()
{
  qemu-img map --output=json -f "$1" "$2" | $PY -c '
import json, sys
runs = []
for e in json.load(sys.stdin):
    if runs and runs[-1][2] == e["zero"]:
        runs[-1][1] += e["length"]
    else:
        runs.append([e["start"], e["length"], e["zero"]])
for r in runs:
    print(*r)'
}

with_nbdfuse ()
{
  local i mnt=$TMP/mnt
  [ -c /dev/fuse ] && [ "$(id -u)" = 0 ] || { say "no nbdfuse here"; return 0; }
  mkdir -p "$mnt"
  nbdfuse "$mnt" "$URI" >"$TMP/fuse.log" 2>&1 &
  local pid=$!
  for ((i = 0; i < 200; i++)); do
    [ -e "$mnt/nbd" ] && break
    kill -0 $pid 2>/dev/null || { say "nbdfuse can't mount here"; return 0; }
    sleep 0.05
  done
  equal "size by nbdfuse" "$(stat -c %s "$mnt/nbd")" "$SIZE"
  cmp disk.raw "$mnt/nbd" || die "nbdfuse reads something else"
  fusermount3 -u "$mnt"
  wait $pid || true
}

peers () # FILE CLUSTER [KEY...]: reads as disk.raw
{
  local file=$1 cluster=$2
  shift 2
  say "$file"
  zeroes_of qcow2 "$file" >want.map
  start_server -r "$file" "$@"
  nbdinfo --json "$URI" | $PY -c '
import json, sys
e, = json.load(sys.stdin)["exports"]
want = {"export-size": int(sys.argv[1]), "block_size_minimum": 1,
        "block_size_preferred": int(sys.argv[2]), "block_size_maximum": 33554432,
        "is_read_only": True, "can_cache": True, "can_multi_conn": True,
        "is_rotational": False, "can_flush": True}
got = {k: e.get(k) for k in want}
assert got == want, got' "$SIZE" "$cluster"
  equal "size by nbdinfo" "$(nbdinfo --size "$URI")" "$SIZE"
  nbddump "$URI" | has 'needle' || die "nbddump does not show the text"
  cmp disk.raw <(nbdcopy "$URI" -) || die "nbdcopy reads something else"
  with_nbdfuse
  qemu-img convert -f raw -O raw "$URI" got.raw
  # QEMU rounds sizes up to a sector, which SIZE is a multiple of.
  cmp disk.raw got.raw || die "qemu-img convert reads something else"
  qemu-img compare -f raw -F raw disk.raw "$URI" >out || die "$(cat out)"
  qemu-img info --output=json -f raw "$URI" | json virtual-size >out
  equal "size by qemu-img info" "$(cat out)" "$SIZE"
  zeroes_of raw "$URI" >got.map
  cmp want.map got.map || { diff want.map got.map; die "extents differ"; }
  qemu-io -r -f raw -c 'read -v 4999680 512' "$URI" | has needle ||
    die "qemu-io does not show the text"
  qemu-img bench -q -f raw -c 50 -s 4096 -S 8192 "$URI" >/dev/null
  stop_server
}

qemu-img convert -f raw -O qcow2 -o cluster_size=64k disk.raw plain.qcow2
peers plain.qcow2 65536
cp plain.qcow2 copy.qcow2
qemu-img convert -f raw -O qcow2 -c -o cluster_size=32k disk.raw comp.qcow2
peers comp.qcow2 32768
qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 -o cluster_size=4k \
  over.qcow2
qemu-io -f qcow2 -c 'write -z 5M 4k' over.qcow2 >/dev/null
peers over.qcow2 4096 backing=same-dir
start_server ours.qcow2 size=$SIZE
nbdcopy --flush disk.raw "$URI"
stop_server
peers ours.qcow2 4096

say "written by peers"
start_server ours.qcow2
qemu-img bench -q -w -f raw -c 64 -s 512 -S 1536 --pattern=17 "$URI" >/dev/null
qemu-io -f raw -c 'write -P 3 1000k 5k' -c 'write -z 1M 96k' \
  -c 'discard 2M 128k' -c 'write -z -u 3M 1M' -c flush \
  -c 'read -P 3 1000k 5k' -c 'read -P 0 1M 96k' "$URI" >out
if grep -q 'verification failed\|failed:' out; then cat out; die "qemu-io"; fi
nbdcopy "$URI" now.raw
stop_server
check_clean ours.qcow2
same_as_raw now.raw ours.qcow2

say "an overlay over the export, rebased from it"
start_server -r ours.qcow2
qemu-img create -q -f qcow2 -b "$URI" -F raw top.qcow2
qemu-io -f qcow2 -c 'write -P 9 70k 3k' top.qcow2 >/dev/null
qemu-img convert -O raw top.qcow2 top.raw
qemu-img rebase -q -b plain.qcow2 -F qcow2 top.qcow2
qemu-img compare -q -f raw -F qcow2 top.raw top.qcow2 || die "rebase"
stop_server
