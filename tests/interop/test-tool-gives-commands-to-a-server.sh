#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup control gives a command to a server and prints what it returns.  Text
# and JSON arguments arrive as they were written.  What cannot be done gives one line
# and status 1: wrong arguments, a command that the server refuses or does not know,
# nobody who listens, a peer that is no such server, one that never answers.
# Breaks if: a value is taken for another type, or the tool waits for ever.
. "$(dirname "$0")/lib.sh"
need socat

tool create --pool "$TMP/pool.qcow2"
start_server "$TMP/pool.qcow2" control="$TMP/control"
order () { tool control "$TMP/control" "$@"; }

say 'arguments and results'
equal 'what disk-create prints' "$(order disk-create name=vm1 size:=1048576)" ''
order disk-create name=10 size:=512
order disk-create 'name=ein Wört: "x" \=y' size:=512
order disk-snapshot name=vm1 snapshot=a
order query-disks >"$TMP/disks"
equal 'the disks' "$($PY -c 'import json, sys
print(" / ".join(sorted(d["name"] for d in json.load(open(sys.argv[1]))
                        if d["kind"] != "active")))' "$TMP/disks" |
  $PY -c 'import sys; sys.stdout.write(sys.stdin.read())')" \
  '10 / ein Wört: "x" \=y / vm1 / vm1@a'
order query-disks limit:=1 after=10 | has '"ein W'
order disk-delete name=10
order query-status | has running

say 'refusals'
refused () # PATTERN COMMAND...
{
  local pattern=$1 rc=0
  shift
  timeout 30 "$@" >"$TMP/out" 2>"$TMP/err" || rc=$?
  equal "status of $*" $rc 1
  [ ! -s "$TMP/out" ] || die "$* printed $(cat "$TMP/out")"
  equal "lines of $*" "$(wc -l <"$TMP/err")" 1
  grep -qE -- "$pattern" "$TMP/err" || die "$*: $(cat "$TMP/err")"
}
c=$TMP/control
refused 'SOCKET and COMMAND' "$TOOL" control "$c"
refused 'not an argument' "$TOOL" control "$c" disk-create name
refused 'not an argument' "$TOOL" control "$c" disk-create =vm2
refused 'not an argument' "$TOOL" control "$c" disk-create name:vm2
refused 'not valid JSON' "$TOOL" control "$c" disk-create name=x 'size:=1M'
refused 'not valid UTF-8' "$TOOL" control "$c" disk-create $'name=\xff'
refused 'twice' "$TOOL" control "$c" disk-create name=x name=y size:=512
refused 'timeout' "$TOOL" control --timeout=0 "$c" query-status
refused 'not a valid option' "$TOOL" control --wrong "$c" query-status
refused 'there is a disk' "$TOOL" control "$c" disk-create name=vm1 size:=512
refused "size" "$TOOL" control "$c" disk-create name=x size=512
refused "missing" "$TOOL" control "$c" disk-create name=x
refused "colour" "$TOOL" control "$c" disk-create name=x size:=512 colour=red
refused 'nothing-of-the-kind' "$TOOL" control "$c" nothing-of-the-kind
refused "$TMP/none" "$TOOL" control "$TMP/none" query-status
refused "$SOCK" "$TOOL" control --timeout=5 "$SOCK" query-status
socat "UNIX-LISTEN:$TMP/mute,fork" EXEC:'sleep 60' &
mute=$!
at_exit "kill $mute 2>/dev/null"
for ((i = 0; i < 100; i++)); do [ ! -S "$TMP/mute" ] || break; sleep 0.05; done
from=$SECONDS
refused "$TMP/mute" "$TOOL" control --timeout=1 "$TMP/mute" query-status
at_most 'seconds for a peer that is mute' $((SECONDS - from)) 10
equal 'the disks that are there' \
  "$(order query-disks | grep -c '"kind": "disk"')" 2

say 'quit'
order quit
rc=0
wait "$SRV_PID" || rc=$?
forget_server "$SRV_PID"
equal 'status of the server' $rc 0
check_clean "$TMP/pool.qcow2"
refused "$TMP/control" "$TOOL" control "$c" query-status
