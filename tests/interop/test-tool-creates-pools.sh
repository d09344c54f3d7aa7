#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup create --pool makes a clean image that stock QEMU opens, with
# refcounts of 32 bits and room for long disks, and refuses what cannot be a
# pool, without a file.
# Breaks if: the L1 table is too small or too large, or options are ignored.
. "$(dirname "$0")/lib.sh"

pool=$TMP/pool.qcow2
tool create --pool "$pool"
check_clean "$pool"
qemu-img info --output=json "$pool" >"$TMP/q"
equal virtual-size "$(json virtual-size <"$TMP/q")" 512
equal cluster-size "$(json cluster-size <"$TMP/q")" 4096
equal refcount-bits "$($PY -c 'import json, sys
print(json.load(open(sys.argv[1]))["format-specific"]["data"]
      ["refcount-bits"])' "$TMP/q")" 32

# Header bytes 36 to 39: the entries of the active L1 table.
l1_entries () { od -An -tu4 --endian=big -j36 -N4 "$1" | tr -d ' '; }
equal "L1 for 1 TiB" "$(l1_entries "$pool")" $(((1 << 40) / (2 << 20)))
[ "$(stat -c %b "$pool")" -lt $((48 << 11)) ] ||
  die "an empty pool takes $(stat -c %b "$pool") sectors"

say "another longest disk, refcounts and clusters"
tool create --pool --max-disk-size=3G -o refcount-bits=64,cluster-size=64k \
  "$TMP/small.qcow2"
check_clean "$TMP/small.qcow2"
equal "L1 for 3 GiB" "$(l1_entries "$TMP/small.qcow2")" 6

say "QEMU can make the disk as long"
qemu-img resize -q "$pool" 1T
check_clean "$pool"

refused () {
  local words=$1
  shift
  if tool create "$@" "$TMP/none.qcow2" 2>"$TMP/err"; then
    die "create $* worked"
  fi
  grep -qF -e "$words" "$TMP/err" || die "create $*: $(cat "$TMP/err")"
  [ ! -e "$TMP/none.qcow2" ] || die "create $* left a file"
}
say "refusals"
refused 'above the maximum of 8796093022208 bytes' --pool --max-disk-size=9T
refused 'is not a size' --pool --max-disk-size=9Q
refused 'needs refcount-bits=32 or 64' --pool -o refcount-bits=16
refused '--max-disk-size needs --pool' --max-disk-size=1T
refused 'needs one argument' --pool 1G
