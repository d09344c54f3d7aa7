#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdinfo sees the right flags and block sizes of the export.
# Breaks if: a callback or the block-size hint is missing.
. "$(dirname "$0")/lib.sh"
need nbdinfo

expect () # KEY VALUE
{
  equal "$1" "$($PY -c 'import json, sys
e = json.load(open(sys.argv[1]))["exports"][0]
print(json.dumps(e.get(sys.argv[2])))' "$TMP/info" "$1")" "$2"
}

start_server "$TMP/disk.qcow2" size=100M cluster-size=16k
nbdinfo --no-content --json "$URI" >"$TMP/info"
for can in multi_conn fua trim zero fast_zero cache flush df; do
  expect can_$can true
done
expect is_read_only false
expect is_rotational false
expect export-size $((100 << 20))
expect block_size_minimum 1
expect block_size_preferred 16384
stop_server

start_server -r "$TMP/disk.qcow2"
nbdinfo --no-content --json "$URI" >"$TMP/info"
expect is_read_only true
expect can_multi_conn true
stop_server
check_clean "$TMP/disk.qcow2"
