#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A disk may end inside a cluster: the last bytes can be read and written, and
# nothing past them.  New images are rounded up to whole sectors, because QEMU
# knows no other sizes; a header that says otherwise is taken at its word.
# Breaks if: the last cluster is cut short, or bytes behind the end get in.
. "$(dirname "$0")/lib.sh"

for size in 1 511 4097 1000001 $(((1 << 20) + 512)); do
  for cluster in 512 4k 64k; do
    disk=$TMP/$size-$cluster.qcow2
    start_server "$disk" size=$size cluster-size=$cluster
    equal size "$(nbdinfo --size "$URI")" $(((size + 511) / 512 * 512))
    stop_server
    $PY -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(24)
f.write(int(sys.argv[2]).to_bytes(8, "big"))' "$disk" $size
    start_server "$disk"
    equal size "$(nbdinfo --size "$URI")" $size
    $PY "$HERE/nbdrun.py" "$URI" '
size = h.get_size()
h.pwrite(pat(1, size), 0)
assert h.pread(size, 0) == pat(1, size)
h.pwrite(b"Z", size - 1)
assert h.pread(1, size - 1) == b"Z"
h.trim(1, size - 1)
h.zero(1, size - 1)
assert h.pread(1, size - 1) == b"\0"
h.pwrite(pat(1, size), 0)
h.set_strict_mode(0)
assert fails(h.pread, 2, size - 1) != 0
assert fails(h.pwrite, b"ab", size - 1) != 0
h.flush()'
    kill_server
    start_server "$disk"
    nbdcopy "$URI" "$TMP/got.raw"
    stop_server
    check_clean "$disk"
    equal size "$(stat -c %s "$TMP/got.raw")" $size
    $PY -c 'import random, sys
assert open(sys.argv[1], "rb").read() == random.Random(1).randbytes(
    int(sys.argv[2]))' "$TMP/got.raw" $size
  done
done
