#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With refcounts of 4 bits one content written 100 times needs several clusters;
# the data is right, all is clean, and stock QEMU can still copy and snapshot
# it.
# Breaks if: a refcount overflows, or sharing stops for good at the limit.
. "$(dirname "$0")/lib.sh"

for bits in 4 2 8; do
  say "refcount-bits=$bits"
  disk=$TMP/r$bits.qcow2
  tool create -o refcount-bits=$bits "$disk" 16M
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" '
block = pat(1, 4096)
for i in range(100):
    h.pwrite(block, i * 8192)
h.pwrite(pat(2, 4096) * 200, 4 << 20)       # equal blocks in one request
h.flush()
for i in range(100):
    assert h.pread(4096, i * 8192) == block'
  kill_server
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" '
assert all(h.pread(4096, i * 8192) == pat(1, 4096) for i in range(100))
assert h.pread(4096 * 200, 4 << 20) == pat(2, 4096) * 200
for i in range(50):
    h.pwrite(pat(3, 4096), i * 8192)
    h.trim(4096, (4 << 20) + i * 4096)'
  nbdcopy "$URI" "$TMP/want.raw"
  stop_server
  check_clean "$disk"
  same_as_raw "$TMP/want.raw" "$disk"
  n=$(data_clusters "$disk")
  at_least data-clusters "$n" $((bits == 8 ? 3 : 4))
  if [ $bits != 2 ]; then at_most data-clusters "$n" 70; fi
done
