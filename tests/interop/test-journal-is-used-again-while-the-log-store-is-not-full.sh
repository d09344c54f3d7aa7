#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A load of many records with little new content (the same few blocks written
# over and over, trimmed and zeroed) never fills the log store.  The journal is
# packed and its areas are reused; the file does not grow with the number of
# operations, and the index is complete.
# Breaks if: packing loses entries, or the journal grows without bound.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 1 1
tool create -o log-store-order=12,journal-areas=2 "$disk" 64M
start_server "$disk" commit-interval=1
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
load='
import random
rng = random.Random(5)
data = open(sys.argv[3], "rb").read()
for i in range(12000):
    n = rng.randrange(1, 17)
    at = rng.randrange(0, 256 - n)
    off = rng.randrange(256, 16384 - n) * 4096
    if i % 3 == 0:
        h.trim(n * 4096, off)
    else:
        h.pwrite(data[at * 4096:(at + n) * 4096], off)
h.flush()'
$PY "$HERE/nbdrun.py" "$URI" "$load" "$TMP/a.raw"
kill_server
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" "$load" "$TMP/a.raw"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((32 << 20))
nbdcopy "$URI" "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
equal data-clusters "$(data_clusters "$disk")" 256
at_most journal-bytes "$(info_field "$disk" journal-bytes)" $((16 << 20))
