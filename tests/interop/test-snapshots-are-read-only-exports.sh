#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Each internal snapshot is an export with its name, read-only, with its own
# size and contents, while the disk is written; the anchor is not exported; a
# snapshot whose name NBD cannot use is exported by its id; other names are
# refused.
# Breaks if: a root is read through another one's table or size, a snapshot can
# be written, or the disk changes what a snapshot shows.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
export_uri () { echo "nbd+unix:///$1?socket=$SOCK"; }
exports ()
{
  nbdinfo --list --json "$URI" | $PY -c '
import json, sys
print(" ".join(sorted("%s:%d:%s" % (e["export-name"], e["export-size"],
                                    "ro" if e["is_read_only"] else "rw")
                      for e in json.load(sys.stdin)["exports"])))'
}
same () # EXPORT RAW
{
  nbdcopy "$(export_uri "$1")" got.raw
  cmp "$2" got.raw || die "export '$1' differs from $2"
}

random_file a.raw 3 1
random_file b.raw 2 2
$PY -c 'import sys; sys.stdout.buffer.write(bytes(range(256)) * 8192)' >c.raw
qemu-img convert -f raw -O qcow2 -o cluster_size=4k a.raw disk.qcow2
qemu-img snapshot -c first disk.qcow2
qemu-img resize -q disk.qcow2 4M
qemu-io -f qcow2 -c 'write -P 7 0 300k' -c 'write -z 1M 64k' disk.qcow2 \
  >/dev/null
qemu-img convert -O raw disk.qcow2 second.raw
qemu-img snapshot -c 'zweiter Schnappschuß/2' disk.qcow2

say "made by qemu, adopted"
start_server disk.qcow2
MB=1048576
equal exports "$(exports)" ":$((4 * MB)):rw first:$((3 * MB)):ro zweiter\
 Schnappschuß/2:$((4 * MB)):ro"
same first a.raw
same 'zweiter%20Schnappschu%C3%9F/2' second.raw
nbdcopy b.raw "$URI"
same first a.raw
same 'zweiter%20Schnappschu%C3%9F/2' second.raw

say "several at once; read-only ones refuse writes"
$PY - "$SOCK" <<'END'
import sys, nbd
def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.add_meta_context('base:allocation')
    h.connect_unix(sys.argv[1])
    return h
disk, one, two = connect(''), connect('first'), connect('first')
was = one.pread(65536, 65536)
assert not disk.is_read_only() and one.is_read_only() and two.is_read_only()
for i in range(16):
    disk.pwrite(bytes([i + 1]) * 65536, 65536)
    disk.trim(65536, 65536 * (i + 2))
    assert one.pread(65536, 65536) == was == two.pread(65536, 65536)
disk.flush()
assert disk.pread(65536, 65536) == b'\x10' * 65536
one.set_strict_mode(0)
for call in (lambda: one.pwrite(b'x' * 512, 0), lambda: one.trim(4096, 0),
             lambda: one.zero(4096, 0),
             lambda: one.pread(512, one.get_size())):
    try:
        call()
    except nbd.Error:
        continue
    sys.exit('the snapshot took a write')
assert one.pread(65536, 65536) == was
END
for name in first nothing dedup "$ANCHOR" FIRST 1; do
  rc=0
  nbdinfo --size "$(export_uri $name)" >/dev/null 2>&1 || rc=$?
  equal "status for $name" $((rc != 0)) $([ $name = first ] && echo 0 || echo 1)
done
grep -q "disk.qcow2: there is no export 'nothing': " "$SRV_LOG" ||
  die "no reason in the log"
stop_server
check_clean disk.qcow2

say "extents as qemu-img map has them"
map_of () { # of stdin: start length zero
  $PY -c '
import json, sys
last = None
for e in json.load(sys.stdin):
    z = e.get("zero", bool(e.get("type", 0) & 2))
    s, n = e.get("start", e.get("offset")), e["length"]
    if last and last[2] == z:
        last[1] += n
    else:
        last and print(*last)
        last = [s, n, z]
print(*last)'
}
qemu-img convert -l snapshot.name=first -O qcow2 -o cluster_size=4k disk.qcow2 \
  first.qcow2
# It gives a snapshot the present size of the disk.
qemu-img resize -q --shrink first.qcow2 $((3 * MB))
start_server -r disk.qcow2
nbdinfo --map --json "$(export_uri first)" | map_of >got.map
same_as_raw a.raw first.qcow2
same first a.raw
qemu-img map --output=json first.qcow2 | map_of >want.map
cmp want.map got.map || die "extents of the snapshot differ"
same 'zweiter%20Schnappschu%C3%9F/2' second.raw
stop_server

say "names that are none, and the same name twice"
qemu-img create -q -f qcow2 twice.qcow2 1M
for i in 1 2 3 4; do qemu-img snapshot -c twin$i twice.qcow2; done
$PY - twice.qcow2 <<'END'
import sys
b = bytearray(open(sys.argv[1], 'rb').read())
for old, new in ((b'twin2', b'twin1'), (b'twin3', b'a\nbcd'),
                 (b'twin4', b'\xff\xfe\x01\x02\x03')):
    i = b.index(old)
    b[i:i + 5] = new
open(sys.argv[1], 'wb').write(b)
END
start_server twice.qcow2
equal exports "$(exports)" "1:$MB:ro 2:$MB:ro 3:$MB:ro 4:$MB:ro :$MB:rw"
stop_server
