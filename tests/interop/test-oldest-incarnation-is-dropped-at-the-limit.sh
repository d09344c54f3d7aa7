#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With max-incarnations=4 older entries are forgotten first in, first out, the
# space of dropped incarnations is used again (limbo), recent entries are still
# found, and data is never affected.
# Breaks if: more are kept, the youngest is dropped, or the file grows with
# every freeze; or a limit that is removed leaves incarnations, or loses them.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 24 1
tool create -o log-store-order=6,journal-areas=4,max-incarnations=4 "$disk" 96M
start_server "$disk"
export PUT_DEPTH=1              # in order, so that "the last" means something
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
stop_server
check_clean "$disk"
at_most incarnations "$(info_field "$disk" incarnations)" 4
at_least incarnations "$(info_field "$disk" incarnations)" 3
index=$(info_field "$disk" index-disk-bytes)

say "the last 500 blocks are known"
before=$(data_clusters "$disk")
last=$(((24 << 20) - 500 * 4096))
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((32 << 20)) $((500 * 4096)) $last
stop_server
equal data-clusters "$(data_clusters "$disk")" "$before"
check_clean "$disk"

say "the first ones are forgotten, and stored anew"
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((48 << 20)) $((8 << 20))
stop_server
check_clean "$disk"
at_least "new data clusters" $(($(data_clusters "$disk") - before)) 1900
at_most index-disk-bytes "$(info_field "$disk" index-disk-bytes)" \
  $((index + index / 2))
cp "$TMP/a.raw" "$TMP/want.raw"
truncate -s 96M "$TMP/want.raw"
dd if="$TMP/a.raw" of="$TMP/want.raw" bs=4096 conv=notrunc status=none \
  skip=$((last / 4096)) seek=8192 count=500
dd if="$TMP/a.raw" of="$TMP/want.raw" bs=1M conv=notrunc status=none \
  seek=48 count=8
same_as_raw "$TMP/want.raw" "$disk"

say "the limit by the plugin's key"
start_server "$disk" max-incarnations=2
random_file "$TMP/b.raw" 8 2
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((64 << 20))
stop_server
check_clean "$disk"
at_most incarnations "$(info_field "$disk" incarnations)" 2

say "no limit any more: incarnations become runs, and what they had is known"
index=$(info_field "$disk" incarnation-entries)
for i in 1 2 3 4 5 6 7 8 9 10; do
  start_server "$disk" max-incarnations=0
  random_file "$TMP/c.raw" 1 "$((10 + i))"
  $PY "$HERE/put.py" "$URI" "$TMP/c.raw" $((80 << 20))
  sleep 1
  stop_server
  [ "$(info_field "$disk" incarnations)" != 0 ] || break
done
check_clean "$disk"
equal incarnations "$(info_field "$disk" incarnations)" 0
equal max-incarnations "$(info_field "$disk" max-incarnations)" 0
at_least run-entries "$(info_field "$disk" run-entries)" "$index"
before=$(data_clusters "$disk")
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((84 << 20)) $((300 * 4096)) \
  $(((8 << 20) - 300 * 4096))
stop_server
equal "new data clusters" "$(($(data_clusters "$disk") - before))" 0
check_clean "$disk"
