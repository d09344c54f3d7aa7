#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# verify=off trusts the index, so an entry of a freed cluster must be gone, or
# hidden, before the cluster is used again.  Contents are written, frozen into
# incarnations, freed, their clusters used for others, and written again, in
# several rounds, with small log stores.
# Breaks if: a tombstone is lost, or an older incarnation wins over it.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 8 1
random_file "$TMP/b.raw" 8 2
random_file "$TMP/c.raw" 8 3
tool create -o log-store-order=5,journal-areas=4 "$disk" 16M
for round in 1 2 3; do
  for f in a b c; do
    start_server "$disk" verify=off commit-interval=1
    $PY "$HERE/nbdrun.py" "$URI" 'h.trim(16 << 20, 0); h.flush()'
    sleep 1.3                   # two commits: what was freed is free to use
    $PY "$HERE/put.py" "$URI" "$TMP/$f.raw" 0
    $PY "$HERE/put.py" "$URI" "$TMP/$f.raw" $((8 << 20))
    cat "$TMP/$f.raw" "$TMP/$f.raw" >"$TMP/want.raw"
    served_as_raw "$TMP/want.raw"
    if [ $f$round = b2 ]; then
      kill_server
      start_server "$disk" verify=off
      served_as_raw "$TMP/want.raw"
    fi
    stop_server
    check_clean "$disk"
    same_as_raw "$TMP/want.raw" "$disk"
    equal data-clusters "$(data_clusters "$disk")" 2048
  done
done
# Contents of 8 MiB nine times in 4 KiB clusters: unless space was used again,
# nothing was shown.
at_most "file size" "$(stat -c %s "$disk")" $((40 << 20))
