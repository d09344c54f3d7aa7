#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Between our sessions stock QEMU writes and discards.  Served again, the data
# is right, the clusters that QEMU dropped are collected, deduplication
# continues, with old contents too, and everything is checked clean.
# Breaks if: the index or the garbage sweep trusts what was true before.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 16 1
start_server "$disk" size=64M
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((32 << 20))
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" 4096

say "qemu-io overwrites half of the first copy, discards some of both"
qemu-io -f qcow2 -d unmap -c 'write -P 0x11 0 8M' -c 'write -P 0x22 1000 3333' \
  -c 'discard 12M 4M' -c 'discard 44M 4M' -c 'write -z 40M 1M' \
  -c 'write -s '"$TMP/a.raw"' 50M 8M' "$disk" >/dev/null
qemu-img check -q "$disk" || die "stock QEMU made it unclean?"
qemu-img convert -O raw "$disk" "$TMP/want.raw"

start_server "$disk" commit-interval=1
served_as_raw "$TMP/want.raw"
# Lost for good are the blocks that both copies discarded: 12M to 16M.
say "garbage is collected"
sleep 2
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
garbage=$(($(data_clusters "$disk") - $(distinct_blocks "$TMP/want.raw")))
# What QEMU wrote is not ours and not deduplicated: two runs of equal blocks
# (8 MiB of 0x11) and the 8 MiB copy at 50M.
at_most "clusters beyond the distinct ones" $garbage $((2048 + 2048))

say "deduplication goes on, by old contents too"
before=$(data_clusters "$disk")
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((16 << 20)) $((12 << 20))
stop_server
check_clean "$disk"
after=$(data_clusters "$disk")
equal "clusters for a copy of blocks 0 to 12M" $((after - before)) 0

say "new contents, where the garbage was; and then again what was lost"
random_file "$TMP/b.raw" 4 2
start_server "$disk" commit-interval=1
sleep 1.5
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((4 << 20))
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((60 << 20)) $((4 << 20)) $((12 << 20))
stop_server
check_clean "$disk"
qemu-img convert -O raw "$disk" "$TMP/now.raw"
$PY "$HERE/distinct.py" "$TMP/now.raw" 4096 0 $((8 << 20)) >"$TMP/n"
equal "distinct blocks of the first 8M" "$(cat "$TMP/n")" 1024
cmp -n $((4 << 20)) "$TMP/b.raw" "$TMP/now.raw"
cmp -n $((4 << 20)) -i $((12 << 20)):$((60 << 20)) "$TMP/a.raw" "$TMP/now.raw"
