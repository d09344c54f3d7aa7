#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup create makes a clean image that stock QEMU opens, with the
# geometry asked for; info --output=json has all its fields, and they add up.
# Breaks if: a field is renamed, or computed from the wrong thing.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
tool create -o cluster-size=8k,refcount_bits=32,max-incarnations=7 "$disk" 1G
check_clean "$disk"
qemu-img info --output=json "$disk" >"$TMP/q"
equal virtual-size "$(json virtual-size <"$TMP/q")" $((1 << 30))
equal cluster-size "$(json cluster-size <"$TMP/q")" 8192
equal refcount-bits "$($PY -c 'import json, sys
print(json.load(open(sys.argv[1]))["format-specific"]["data"]
      ["refcount-bits"])' "$TMP/q")" 32

start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(1, 1 << 20), 0)
h.pwrite(pat(1, 1 << 20), 8 << 20)
h.flush()'
kill_server
equal state "$(info_field "$disk" state)" "needs recovery"
tool recover "$disk"
check_clean "$disk"
tool recover "$disk"            # nothing to do is fine
tool info --output=json "$disk" >"$TMP/i"
for f in virtual-size cluster-size mapped-bytes stored-bytes saved-bytes \
         ratio data-clusters index-entries incarnations index-memory-bytes \
         index-disk-bytes journal-bytes hash state; do
  json $f <"$TMP/i" >/dev/null || die "no $f"
done
field () { json "$1" <"$TMP/i"; }
equal virtual-size "$(field virtual-size)" $((1 << 30))
equal cluster-size "$(field cluster-size)" 8192
equal mapped-bytes "$(field mapped-bytes)" $((2 << 20))
equal stored-bytes "$(field stored-bytes)" $((1 << 20))
equal saved-bytes "$(field saved-bytes)" $((1 << 20))
equal data-clusters "$(field data-clusters)" 128
equal index-entries "$(field index-entries)" 128
equal "entries of all stages" 128 $(($(field log-store-entries) +
  $(field incarnation-entries) + $(field run-entries)))
equal tombstones "$(field tombstones)" 0
equal hash "$(field hash)" sha256
equal state "$(field state)" clean
equal ratio "$(field ratio | cut -c1-3)" 2.0

say "the plain form: space first, the index in one line"
tool info "$disk" >"$TMP/plain"
cat "$TMP/plain"
sed 's/:.*//' "$TMP/plain" >"$TMP/labels"
printf '%s\n' image 'virtual size' mapped stored saved ratio 'on the host' \
  index state | diff - "$TMP/labels" || die "other lines"
line () { sed -n "s/^$1: *//p" "$TMP/plain"; }
equal "virtual size" "$(line 'virtual size')" '1 GiB'
equal mapped "$(line mapped)" '2 MiB'
equal stored "$(line stored)" '1 MiB, in clusters of 8 KiB'
equal saved "$(line saved)" '1 MiB, 50 % of the mapped data'
equal ratio "$(line ratio)" 2.00
line index | has -E '^128 entries, [0-9.]+ [KM]iB of memory, 0 B on disk$' ||
  die "index: $(line index)"
equal state "$(line state)" clean

say "what hints found is no miss"
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(2, 1 << 20), 16 << 20)
h.pwrite(pat(2, 1 << 20), 24 << 20)'
stop_server
tool info --verbose "$disk" >"$TMP/plain"
hints=$(info_field "$disk" hint-hits)
at_least "clusters found by hints" "$hints" 128
line writes | has -E "^[0-9]+ clusters looked up, 50.00 % found: $hints " ||
  die "writes: $(line writes)"

say "a plain image has no store"
qemu-img create -q -f qcow2 "$TMP/plain.qcow2" 1G
sum=$(sha256sum <"$TMP/plain.qcow2")
tool info "$TMP/plain.qcow2" | has '^index: *none: .*not dedup' ||
  die "the plain form without an index"
tool check "$TMP/plain.qcow2" >/dev/null
equal "plain image" "$(sha256sum <"$TMP/plain.qcow2")" "$sum"
