#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# In a build whose hashes are cut to 12 bits, most of thousands of different
# blocks have the hash of another one.  With verify=on contents are right all
# the same, also across kill -9; only the ratio suffers.
# Breaks if: two clusters are ever taken for equal without a comparison, or one is
# called bad because another one has its hash.
. "$(dirname "$0")/fault.sh"
need meson ninja
cut=$BUILD_DIR/test-hash-bits
if ! { [ -f "$cut/build.ninja" ] || meson setup -Dtest_hash_bits=12 \
         -Dtests=disabled "$cut" "$FAULT/../.."; } >"$TMP/build.log" 2>&1 ||
   ! ninja -C "$cut" plugin/nbdkit-dedup-plugin.so tools/qcow2-dedup \
       >>"$TMP/build.log" 2>&1; then
  tail -n 20 "$TMP/build.log" >&2
  die "the build with short hashes failed"
fi
PLUGIN=$cut/plugin/nbdkit-dedup-plugin.so
TOOL=$cut/tools/qcow2-dedup
preload=                        # that build has no sanitizer
disk=$TMP/disk.qcow2
no_bad_clusters ()
{
  ! grep 'has other bytes than were stored' "$SRV_LOG" ||
    die "the server called a cluster bad"
  "$TOOL" scrub --restart "$disk" >"$TMP/scrub" ||
    die "a scrub found: $(cat "$TMP/scrub")"
}

start_server "$disk" size=256M
$PY "$FAULT/full.py" churn "$URI" "$TMP" "$SEED" $((30000 * SCALE))
$PY "$FAULT/full.py" verify "$URI" "$TMP"
stop_server
check_clean "$disk"
at_least "data clusters" "$(data_clusters "$disk")" 6000
# A cluster whose entry another one replaced has a mark, which is an entry as well.
at_most "hashes in the index" "$(info_field "$disk" index-entries)" \
  $((4096 + $(stat -c %s "$disk") / 4096))
no_bad_clusters

for round in 1 2 3 4; do
  start_server "$disk"
  $PY "$FAULT/full.py" churn "$URI" "$TMP" $((SEED + round)) \
    $((RANDOM % 2000 + 50)) "$SRV_PID" >/dev/null
  reap_killed_server
  start_server "$disk"
  $PY "$FAULT/full.py" crashed "$URI" "$TMP"
  stop_server
  check_clean "$disk"
  no_bad_clusters
done

say "equal data from many writers at once"
rm -f "$disk"
start_server "$disk" size=64M
mkdir "$TMP/out"
$PY "$HERE/crashload.py" run "$URI" 0 $((3000 * SCALE)) "$SEED" 4 \
  $((2 << 20)) "$TMP/out" >/dev/null
$PY "$HERE/crashload.py" verify "$URI" $((2 << 20)) "$TMP/out" >/dev/null
stop_server
check_clean "$disk"
no_bad_clusters
