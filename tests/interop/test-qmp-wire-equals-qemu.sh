#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The control socket answers byte by byte what qemu-storage-daemon answers: more than
# 500 inputs from tables (tests/interop/qmpcases.py) and random ones, many of them
# malformed, go to both; errors, their order, ids and events of a job are compared.
# The differences that are meant are in the table MEANT, with reasons.  The
# commands that both have are first those of tests/control/fake-commands.c, then
# those of a server of an image.
# QMP_SEED repeats a run; QMP_COUNT sets how many inputs are random (2000).
# Breaks if: a client of QEMU's finds another text, order or byte here.
. "$(dirname "$0")/lib.sh"

QSD=qemu-storage-daemon
need $QSD

wait_for () # CMD...
{
  local i
  for ((i = 0; i < 200; i++)); do
    "$@" && return
    sleep 0.1
  done
  die "not in 20 seconds: $*"
}

seed=${QMP_SEED:-$RANDOM$RANDOM}
say "seed $seed (QMP_SEED)"

$QSD --chardev socket,id=c,path="$TMP/qemu",server=on,wait=off \
  --monitor chardev=c >"$TMP/qemu.log" 2>&1 &
server_pids+=($!)
wait_for test -S "$TMP/qemu"

# Debian's QEMU has its version as the package in the greeting.
package=$($PY - "$TMP/qemu" <<'PYTHON'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
print(json.loads(s.makefile().readline())['QMP']['version']['package'])
PYTHON
)
version=$($QSD --version | sed -n '1s/.* version \([0-9.]*\).*/\1/p')
"$BUILD_DIR/tests/control/qmp-server" "$TMP/ours" "$package" "$version" \
  >"$TMP/ours.out" 2>"$TMP/ours.log" &
server_pids+=($!)
SRV_LOG=$TMP/ours.log
wait_for grep -qs ready "$TMP/ours.out"

count=${QMP_COUNT:-2000}

say "the test's table"
$PY "$HERE/qmpdiff.py" "$TMP/qemu" "$TMP/ours" "$seed" "$count" "$TMP"

say "a server"
tool create "$TMP/image.qcow2" 1M
start_server "$TMP/image.qcow2" control="$TMP/control"
$PY "$HERE/qmpdiff.py" --server "$TMP/qemu" "$TMP/control" "$seed" "$count" "$TMP"
stop_server
