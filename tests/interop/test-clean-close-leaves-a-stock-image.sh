#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# After a clean close, whatever was done before, qemu-img check finds no errors,
# our check agrees, bit 48 is clear, stock QEMU reads the same bytes, and stock
# QEMU may write.
# Breaks if: the checkpoint at close misses a table, a refcount is off, or the
# feature bit stays.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
say "created, opened, never written"
start_server "$disk" size=64M
equal "bit 48 before the first change" "$(bit48 "$disk")" 0
stop_server
check_clean "$disk"

say "every kind of request"
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(1, 100000), 0)
h.pwrite(pat(1, 100000), 1 << 20)            # shared
h.pwrite(pat(2, 5000), 3333)                 # parts of shared clusters
h.pwrite(pat(3, 65536), 2 << 20, nbd.CMD_FLAG_FUA)
h.zero(30000, (2 << 20) + 10)
h.trim(65536, 1 << 20)
h.pwrite(pat(4, 1 << 20), (63 << 20))
h.trim(1 << 19, 63 << 20)
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE)
h.flush()
'
equal "bit 48 while it is written" "$(bit48 "$disk")" 1
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
qemu-img convert -O raw "$disk" "$TMP/got.raw"
cmp "$TMP/want.raw" "$TMP/got.raw"

say "ten sessions, each changes something"
for i in 1 2 3 4 5 6 7 8 9 10; do
  start_server "$disk"
  $PY "$HERE/nbdrun.py" "$URI" "
h.pwrite(pat($i, 40960), $i * 3000000)
h.pwrite(pat($i, 40960), 123456)
h.trim(20480, $i * 3000000 + 777)"
  stop_server
  check_clean "$disk"
done

say "no flush, then a clean close: nothing may be lost"
start_server "$disk" commit-interval=0
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(pat(77, 300000), 5 << 20)'
stop_server
check_clean "$disk"
start_server -r "$disk"
$PY "$HERE/nbdrun.py" "$URI" \
  'assert h.pread(300000, 5 << 20) == pat(77, 300000)'
stop_server

say "stock QEMU may write to it"
qemu-io -f qcow2 -c 'write -P 0x5a 1M 64k' "$disk" >/dev/null
qemu-img check -q "$disk"
