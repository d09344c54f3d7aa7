#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# info tells live entries from dead ones, and reports what the index did in all
# sessions; the debug log reports at the end what it did in this one. Both agree
# with the load.
# Breaks if: a figure is renamed, lost on the way, or counts something else.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 8 1    # 2048 blocks
random_file "$TMP/b.raw" 4 2    # 1024 others
tool create -o log-store-order=6,journal-areas=4 "$disk" 64M
start_server "$disk"
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
stop_server
grep -q 'lookups' "$SRV_LOG" && die "figures without -v"
equal live-entries "$(info_field "$disk" live-entries)" 2048

say "a new session has no hints: all of it is looked up"
start_server "$disk" -v
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((16 << 20))
$PY "$HERE/put.py" "$URI" "$TMP/b.raw" $((32 << 20))
stop_server
grep -o 'clusters: .*' "$SRV_LOG" >"$TMP/log" || die "no figures"
grep -o 'index: .*lookups.*' "$SRV_LOG" >>"$TMP/log" || die "no lookups"
cat "$TMP/log"
grep -q 'clusters: 1024 stored, 2048 shared, 0 of these by hints' "$TMP/log"
grep -q ' 3072 entries, 0 tombstones' "$TMP/log"
grep -q ' 3072 lookups, 2048 hits (66.67 %), 0 with other bytes' "$TMP/log"

say "info has both sessions"
equal lookups "$(info_field "$disk" lookups)" $((2048 + 3072))
equal hits "$(info_field "$disk" hits)" 2048
equal hint-hits "$(info_field "$disk" hint-hits)" 0
[ "$(info_field "$disk" hit-reads)" -ge 1900 ] || die "hits read nothing"
[ "$(info_field "$disk" false-positives)" -le 50 ] || die "filters are wrong"
tool info --verbose "$disk" >"$TMP/info"
grep -q '^writes: *5120 clusters looked up, 40.00 % found: 0 by hints, 2048 in the index; 3072 new$' "$TMP/info" ||
  die "writes in the plain form"
grep -q '^index reads: *[01]\.[0-9]* pages a hit, 0\.0[0-9]* pages a miss' \
  "$TMP/info" || die "reads in the plain form"

say "overwritten and trimmed blocks leave dead entries"
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" "h.trim(8 << 20, 0); h.trim(8 << 20, 16 << 20)"
stop_server
equal live-entries "$(info_field "$disk" live-entries)" 1024
all=$(info_field "$disk" index-entries)
equal dead-entries "$(info_field "$disk" dead-entries)" $((all - 1024))
equal entries-looked-at "$(info_field "$disk" entries-looked-at)" "$all"
tool info -v "$disk" | has '1024 live, ' || die "the plain form"
check_clean "$disk"
