#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A log store of 2^6 buckets forces tens of incarnations.  The entries of each
# are found again: in this session, after a restart, and after more.
# Breaks if: freezing loses entries, the filter has false negatives, lookups
# stop at the wrong incarnation, or loading the filters fails.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
mb=$((32 * SCALE))
random_file "$TMP/a.raw" $mb 1
tool create -o cluster-size=4k,log-store-order=6,journal-areas=4,max-incarnations=1000 "$disk" \
  $((mb * 3))M
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
say "again in the same session"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((mb << 20))
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((mb * 256))
at_least incarnations "$(info_field "$disk" incarnations)" 20
at_least index-entries "$(info_field "$disk" index-entries)" $((mb * 256))

say "after a restart, while the filters load"
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((mb << 21))
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((mb * 256))
for i in 0 1 2; do cat "$TMP/a.raw"; done >"$TMP/want.raw"
same_as_raw "$TMP/want.raw" "$disk"

say "verify=off finds the same"
start_server "$disk" verify=off
$PY "$HERE/nbdrun.py" "$URI" "h.trim($((mb << 20)), 0)"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
served_as_raw "$TMP/want.raw"
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((mb * 256))
