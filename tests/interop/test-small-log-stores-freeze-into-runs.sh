#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A log store of 2^6 buckets is frozen into tens of runs, which are merged.  The
# entries of each are found again: in this session, after a restart, and after
# more.
# Breaks if: freezing loses entries, a filter has false negatives, a merge
# loses entries, lookups stop at the wrong run, or loading fails.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
mb=$((32 * SCALE))
random_file "$TMP/a.raw" $mb 1
tool create -o cluster-size=4k,log-store-order=6,journal-areas=4 "$disk" \
  $((mb * 3))M
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
say "again in the same session"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((mb << 20))
stop_server
check_clean "$disk"
equal data-clusters "$(data_clusters "$disk")" $((mb * 256))
at_least runs "$(info_field "$disk" runs)" 1
at_least index-entries "$(info_field "$disk" index-entries)" $((mb * 256))
at_least run-entries "$(info_field "$disk" run-entries)" $((mb * 128))
equal "entries of all stages" "$(info_field "$disk" index-entries)" \
  $(($(info_field "$disk" log-store-entries) +
     $(info_field "$disk" incarnation-entries) +
     $(info_field "$disk" run-entries)))

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
