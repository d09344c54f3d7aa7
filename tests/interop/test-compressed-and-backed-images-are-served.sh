#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images with compressed clusters (zlib, zstd) and with backing chains of raw
# and qcow2 are served as qemu-img converts them; writes, whole and partial, go
# on top; the result is clean.
# Breaks if: partial writes over compressed or backed clusters lose the rest,
# zeroes let the backing file show through, or refcounts of compressed clusters
# are wrong.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
$PY - <<'END'
import random
r = random.Random(3)
with open('a.raw', 'wb') as f:
    for i in range(2048):
        k = i % 4
        f.write(r.randbytes(4096) if k == 0 else bytes(4096) if k == 1 else
                (b'%08d' % i) * 512)
    f.write(r.randbytes(100))
END
changes='
h.pwrite(pat(1, 5000), 3333)
h.pwrite(pat(2, 65536), 1 << 20)
h.pwrite(b"x", 2000001)
h.zero(100000, 3000000)
h.zero(1 << 20, 4 << 20, nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 6 << 20)
h.pwrite(h.pread(1 << 20, 0), 7 << 20)
h.pwrite(b"end", h.get_size() - 3)'

try () # IMAGE
{
  say "$1"
  qemu-img convert -O raw "$1" want.raw
  start_server -r "$1" backing=same-dir
  served_as_raw want.raw
  stop_server
  start_server "$1" backing=same-dir
  served_as_raw want.raw
  $PY "$HERE/nbdrun.py" "$URI" "$changes
assert h.pread(5000, 3333) == pat(1, 5000)"
  nbdcopy "$URI" got.raw
  stop_server
  check_clean "$1"
  same_as_raw got.raw "$1"
  # What was not touched is as before, what was is as written.
  $PY - <<'END'
want = bytearray(open('want.raw', 'rb').read())
got = open('got.raw', 'rb').read()
import random
pat = lambda s, n: random.Random(s).randbytes(n)
want[3333:8333] = pat(1, 5000)
want[1 << 20:(1 << 20) + 65536] = pat(2, 65536)
want[2000001:2000002] = b'x'
want[3000000:3100000] = bytes(100000)
want[4 << 20:5 << 20] = bytes(1 << 20)
want[6 << 20:7 << 20] = bytes(1 << 20)
want[7 << 20:8 << 20] = want[:1 << 20]
want[-3:] = b'end'
assert want == got, [i for i in range(len(want)) if want[i] != got[i]][:5]
END
}

for kind in zlib-512 zlib-4k zlib-64k zstd-4k zstd-64k zstd-1M; do
  qemu-img convert -c -f raw -O qcow2 -o \
    "cluster_size=${kind#*-},compression_type=${kind%-*}" a.raw c-$kind.qcow2 ||
    continue
  try c-$kind.qcow2
done
qemu-img convert -f raw -O qcow2 -c -o cluster_size=64k a.raw base.qcow2
sum=$(sha256sum a.raw base.qcow2)
qemu-img create -q -f qcow2 -o cluster_size=4k -b a.raw -F raw o1.qcow2
try o1.qcow2
qemu-img create -q -f qcow2 -o cluster_size=64k -b base.qcow2 -F qcow2 o2.qcow2
qemu-io -f qcow2 -c 'write -P 5 100k 300k' -c 'write -z 5M 1M' o2.qcow2 \
  >/dev/null
try o2.qcow2
say "larger than its backing file, and a chain of three"
qemu-img create -q -f qcow2 -o cluster_size=8k -b o2.qcow2 -F qcow2 \
  o3.qcow2 20000000
try o3.qcow2
equal "backing files" "$(sha256sum a.raw base.qcow2)" "$sum"
