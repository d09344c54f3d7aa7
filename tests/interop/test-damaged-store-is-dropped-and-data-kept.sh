#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A store that can't be trusted (configuration, anchor or extension damaged in a
# clean image) is dropped with a message and a new one is started; guest data is
# never affected.
# Breaks if: damage to the store makes the image unusable, or is not noticed.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 4 1
tool create -o log-store-order=5,journal-areas=2 "$disk" 32M
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((8 << 20))
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"

damage () # WHAT PYTHON
{
  say "$1"
  cp "$disk" "$TMP/bad.qcow2"
  $PY - "$TMP/bad.qcow2" "$2" <<'END'
import sys
d = bytearray(open(sys.argv[1], 'rb').read())
def each(magic, fn):
    i = d.find(magic)
    while i >= 0:
        fn(i)
        i = d.find(magic, i + 8)
def flip(at): d[at] ^= 0x41
exec(sys.argv[2])
open(sys.argv[1], 'wb').write(d)
END
  start_server "$TMP/bad.qcow2"
  served_as_raw "$TMP/want.raw"
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((16 << 20))
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((24 << 20))
  stop_server
  check_clean "$TMP/bad.qcow2"
  qemu-img convert -O raw "$TMP/bad.qcow2" "$TMP/got.raw"
  cmp -n $((16 << 20)) "$TMP/want.raw" "$TMP/got.raw"
  cmp -n $((4 << 20)) -i $((24 << 20)):0 "$TMP/got.raw" "$TMP/a.raw"
  at_most data-clusters "$(data_clusters "$TMP/bad.qcow2")" 2048
}

damage "both configuration slots" 'each(b"DDUPCONF", lambda i: flip(i + 45))'
damage "one configuration slot" 'flip(d.find(b"DDUPCONF") + 45)'
damage "the header extension" \
  'flip(d.find(bytes.fromhex("CD8E819B")) + 8 + 6)'
damage "all runs" 'each(b"DDUPSEGH", lambda i: flip(i + 30))
each(b"DDUPSEGP", lambda i: flip(i + 99))'
damage "pages of runs" 'each(b"DDUPSEGP", lambda i: flip(i + 99))'
damage "all journal blocks" 'each(b"DDUPJRNL", lambda i: flip(i + 30))'
