#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Six connections write the same new blocks at the same moment, cut into
# requests differently; each block is stored once.  Then two nbdcopy write the
# same file over it at once.
# With large clusters, hashing and writing take long enough that the writers
# of each block are sure to meet in the middle of it.
# Breaks if: two writers of the same new content don't find each other.
. "$(dirname "$0")/lib.sh"
need nbdcopy

blocks=$((8192 * SCALE))
region=$((blocks * 4096))
start_server "$TMP/disk.qcow2" size=$((region * 6))
$PY "$HERE/race.py" "$URI" 6 $blocks $region 7 4096
stop_server
check_clean "$TMP/disk.qcow2"
equal data-clusters "$(data_clusters "$TMP/disk.qcow2")" $blocks
equal mapped-bytes "$(info_field "$TMP/disk.qcow2" mapped-bytes)" \
  $((region * 6))
equal stored-bytes "$(info_field "$TMP/disk.qcow2" stored-bytes)" $region
equal saved-bytes "$(info_field "$TMP/disk.qcow2" saved-bytes)" $((region * 5))

say "large clusters: writers meet for certain"
start_server "$TMP/large.qcow2" size=768M cluster-size=512k
$PY "$HERE/race.py" "$URI" 6 64 $((128 << 20)) 8 $((512 << 10))
stop_server
check_clean "$TMP/large.qcow2"
equal data-clusters "$(data_clusters "$TMP/large.qcow2")" 64

say "two copies of one file over it at once"
random_file "$TMP/new.raw" $((16 * SCALE)) 99
truncate -s $((region * 6)) "$TMP/new.raw"
start_server "$TMP/disk.qcow2"
nbdcopy --connections=2 --flush "$TMP/new.raw" "$URI" & one=$!
nbdcopy --connections=2 --flush "$TMP/new.raw" "$URI" & two=$!
wait $one
wait $two
served_as_raw "$TMP/new.raw"
stop_server
check_clean "$TMP/disk.qcow2"
same_as_raw "$TMP/new.raw" "$TMP/disk.qcow2"
equal data-clusters "$(data_clusters "$TMP/disk.qcow2")" \
  "$(distinct_blocks "$TMP/new.raw")"
