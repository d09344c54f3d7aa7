#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With index-existing=on a stock image is indexed in the background while
# clients write, trim and read it at random against a model; a server that was
# killed continues at the next start.  In the end contents are right, the image
# is clean and idle, and data that no client wrote is stored once.
# Breaks if: indexing and a request meet in a cluster, or it never ends.
. "$(dirname "$0")/lib.sh"
need qemu-img

# The first 4 MiB are the clients', with what they find there; the rest is
# left alone.
$PY "$HERE/dupfile.py" "$TMP/a.raw" $((9000 * SCALE))
size=$(stat -c %s "$TMP/a.raw")
disk=$TMP/disk.qcow2
qemu-img create -q -f qcow2 -o cluster_size=4k "$disk" "$size"
qemu-img convert -q -n -S 0 -f raw -O qcow2 "$TMP/a.raw" "$disk"

wait_until_indexed ()
{
  local i
  for ((i = 0; i < 1200; i++)); do
    ! grep -q 'existing data is indexed' "$SRV_LOG" || return 0
    kill -0 "$SRV_PID" 2>/dev/null || die "the server is gone"
    sleep 0.05
  done
  die "not indexed after 60 s"
}

say "killed while clients write"
start_server "$disk" index-existing=on
$PY "$HERE/indexload.py" "$URI" $((4 << 20)) 400 "${SEED:-$RANDOM}" "$TMP/a.raw"
kill_server
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" 'h.flush()'
nbdcopy "$URI" "$TMP/now.raw"
cmp -i $((4 << 20)) "$TMP/now.raw" "$TMP/a.raw" ||
  die "what nobody wrote has changed"
stop_server
check_clean "$disk"

say "to the end"
start_server "$disk" index-existing=on
nbdcopy "$URI" "$TMP/a.raw"     # what the crash left is the model
$PY "$HERE/indexload.py" "$URI" $((4 << 20)) 400 "${SEED:-$RANDOM}" "$TMP/a.raw"
served_as_raw "$TMP/a.raw"
wait_until_indexed
served_as_raw "$TMP/a.raw"
say "the idle server leaves a stock image"
for ((i = 0; i < 600; i++)); do
  [ "$(bit48 "$disk")" = 1 ] || break
  sleep 0.05
done
equal "bit 48 of the idle image" "$(bit48 "$disk")" 0
stop_server
check_clean "$disk"
same_as_raw "$TMP/a.raw" "$disk"
# A client that races with it may store a copy of its own.
at_most "stored clusters" "$(data_clusters "$disk")" \
  $(($(distinct_blocks "$TMP/a.raw") + 50))
tool index --all "$disk" >/dev/null
equal "stored clusters" "$(data_clusters "$disk")" \
  "$(distinct_blocks "$TMP/a.raw")"

say "the next start finds nothing to do"
start_server "$disk" index-existing=on
wait_until_indexed
grep -q 'indexed: 0 clusters were new to the index, 0 are shared now' "$SRV_LOG" ||
  die "$(grep 'indexed:' "$SRV_LOG")"
stop_server

say "read-only, and where nothing is deduplicated, it does no harm"
sum=$(sha256sum <"$disk")
start_server "$disk" -r index-existing=on
stop_server
equal "image" "$(sha256sum <"$disk")" "$sum"
start_server "$disk" dedup=off index-existing=on
stop_server
check_clean "$disk"
same_as_raw "$TMP/a.raw" "$disk"
