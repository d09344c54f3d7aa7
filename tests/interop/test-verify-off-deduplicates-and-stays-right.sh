#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# verify=off: no bytes are compared, so the index must be exact: rewrites,
# frees and reuse of clusters, a session with verify=on and one of stock QEMU
# in between, and a crash, against models.
# Breaks if: an entry outlives the contents of its cluster.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
random_file "$TMP/a.raw" 8 1
# A store begun with verify=off has an exact index, which is what is tested.
qemu-img create -q -f qcow2 -o cluster_size=4k "$disk" 64M
start_server "$disk" verify=off
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" 0
$PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((8 << 20))
$PY "$HERE/odd.py" "$URI" 3 "${SEED:-$RANDOM}" 3 "$TMP/model"
served_as_raw "$TMP/model"
stop_server
check_clean "$disk"
same_as_raw "$TMP/model" "$disk"

qemu-io -f qcow2 -c 'discard 0 4M' -c 'write -P 1 6M 1M' "$disk" >/dev/null
start_server "$disk" verify=off
$PY "$HERE/odd.py" "$URI" 2 "${SEED:-$RANDOM}" 3 "$TMP/model"
served_as_raw "$TMP/model"
stop_server
check_clean "$disk"

start_server "$disk"
$PY "$HERE/odd.py" "$URI" 1 "${SEED:-$RANDOM}" 3 "$TMP/model"
stop_server
start_server "$disk" verify=off
$PY "$HERE/odd.py" "$URI" 2 "${SEED:-$RANDOM}" 3 "$TMP/model"
kill_server
start_server "$disk" verify=off
served_as_raw "$TMP/model"
$PY "$HERE/odd.py" "$URI" 2 "${SEED:-$RANDOM}" 3 "$TMP/model"
stop_server
check_clean "$disk"
same_as_raw "$TMP/model" "$disk"
