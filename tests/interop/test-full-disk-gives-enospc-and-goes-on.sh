#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# While the host's file system is full, writers of new data get ENOSPC and
# nothing breaks; overwriting what is allocated, trims and flushes still work,
# and with space again writes do.
# Breaks if: an error in the middle of a write leaks or loses anything, or
# turns the export read-only.
. "$(dirname "$0")/lib.sh"
need_root
mkdir "$TMP/small"
mount -t tmpfs -o size=48M none "$TMP/small" || skip "no tmpfs"
at_exit 'umount "$TMP/small"'

disk=$TMP/small/disk.qcow2
start_server "$disk" size=256M commit-interval=1
head -c $((8 << 20)) /dev/zero >"$TMP/small/ballast"
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(999, 1 << 20), 200 << 20)
h.flush()
full = 0
for i in range(1, 100):
    e = fails(h.pwrite, pat(i, 1 << 20), i << 20)
    assert e in (0, errno.ENOSPC), errno.errorcode[e]
    full += e == errno.ENOSPC
    if full > 3:
        break
assert full > 3, "never full"
for k in range(1, i - 4):
    assert h.pread(1 << 20, k << 20) == pat(k, 1 << 20), k
# Trims and flushes go on, and so does what needs no new space.
h.flush()
h.trim(4 << 20, 1 << 20)
h.flush()
h.pwrite(pat(999, 1 << 20), 201 << 20)      # known contents
h.flush()
'
rm "$TMP/small/ballast"
sleep 1.5
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(5000, 6 << 20), 100 << 20)
h.flush()
assert h.pread(6 << 20, 100 << 20) == pat(5000, 6 << 20)
assert h.pread(1 << 20, 201 << 20) == pat(999, 1 << 20)'
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
