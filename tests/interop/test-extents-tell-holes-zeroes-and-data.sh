#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# base:allocation reports clusters that were never written or were trimmed as
# holes, clusters that were zeroed without permission to trim as allocated and
# zero, and the rest as data.
# Breaks if: the map and what a read returns disagree.
. "$(dirname "$0")/lib.sh"
need nbdinfo

disk=$TMP/disk.qcow2
start_server "$disk" size=16M
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(1, 1 << 20), 1 << 20)
h.pwrite(pat(1, 1 << 20), 4 << 20)
h.zero(1 << 20, 6 << 20, nbd.CMD_FLAG_NO_HOLE)
h.pwrite(pat(2, 1 << 20), 8 << 20)
h.trim(1 << 19, 8 << 20)
h.pwrite(bytes(1 << 20), 10 << 20)'
map ()
{
  nbdinfo --map "$URI" |
    awk '{ if ($3 == t) n += $2
           else { if (NR > 1) print s, n, t; s = $1; n = $2; t = $3 } }
         END { print s, n, t }'
}
map >"$TMP/map"
cat >"$TMP/want" <<END
0 1048576 3
1048576 1048576 0
2097152 2097152 3
4194304 1048576 0
5242880 1048576 3
6291456 1048576 2
7340032 1572864 3
8912896 524288 0
9437184 7340032 3
END
# Written zeroes may be a hole or an allocated zero: here, either.
sed -E '/^(9437184|10485760|11534336) /d' "$TMP/map" >"$TMP/got"
sed -E '/^9437184 /d' "$TMP/want" >"$TMP/want2"
diff "$TMP/want2" "$TMP/got"
awk '$1 + $2 > 9437184 && $3 == 0 { exit 1 }' "$TMP/map" ||
  die "written zeroes are stored as data"
$PY "$HERE/nbdrun.py" "$URI" '
seen = []
def extent(context, offset, entries, error):
    seen.extend(zip(entries[0::2], entries[1::2]))
pos = 0
while pos < h.get_size():
    seen.clear()
    h.block_status(h.get_size() - pos, pos, extent)
    for n, flags in seen:
        if flags & 2:
            assert h.pread(n, pos) == bytes(n), pos
        pos += n
h.block_status(1, 1048577, extent)          # any alignment'
stop_server
check_clean "$disk"
say "the same map after a restart"
start_server -r "$disk"
map >"$TMP/map2"
diff "$TMP/map" "$TMP/map2"
stop_server
