#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# With -r writes are refused and not one byte of the image changes, also of one
# that crashed, which is replayed in memory only: everything flushed is there.
# Breaks if: recovery, the store or the locks write although read-only.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
stock=$TMP/stock.qcow2
qemu-img create -q -f qcow2 "$stock" 16M
qemu-io -f qcow2 -c 'write -P 3 0 1M' "$stock" >/dev/null
start_server "$disk" size=64M commit-interval=0
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(1, 3 << 20), 0)
h.pwrite(pat(1, 1 << 20), 10 << 20)
h.zero(65536, 1 << 20)
h.trim(65536, 2 << 20)
h.flush()'
nbdcopy "$URI" "$TMP/want.raw"
kill_server
equal "bit 48" "$(bit48 "$disk")" 1

state () { sha256sum <"$1"; stat -c '%s %Y %b' "$1"; }
for image in "$disk" "$stock"; do
  state "$image" >"$TMP/before"
  start_server -r "$image"
  equal read_only "$(nbdinfo --no-content --json "$URI" | $PY -c 'import json, sys
print(json.load(sys.stdin)["exports"][0]["is_read_only"])')" True
  if [ "$image" = "$disk" ]; then served_as_raw "$TMP/want.raw"; fi
  $PY "$HERE/nbdrun.py" "$URI" '
h.set_strict_mode(0)
for op in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(512, 0),
           lambda: h.trim(512, 0)):
    assert fails(op) == errno.EPERM, fails(op)'
  sleep 1.5
  stop_server
  state "$image" | diff "$TMP/before" - || die "$image changed"
done
tool info "$disk" >/dev/null
tool check "$disk" >/dev/null 2>&1 || true
state "$disk" >"$TMP/after"
start_server -r "$disk"
kill_server
state "$disk" | diff "$TMP/after" - || die "changed"

say "and then recovered for real"
start_server "$disk"
served_as_raw "$TMP/want.raw"
stop_server
check_clean "$disk"
same_as_raw "$TMP/want.raw" "$disk"
