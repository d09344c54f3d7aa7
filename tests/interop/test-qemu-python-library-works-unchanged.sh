#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The Python library of QEMU's source tree (python/qemu/qmp, as Debian's source package
# has it) and its qmp-shell work with the control socket as with QEMU: capabilities,
# queries, errors, a job with its events, many commands at once, clients that connect
# again, and the end of the server.  The source is fetched with apt-get into the directory
# of the test; QEMU_TARBALL=FILE gives it, so that nothing is fetched.  Skipped where it
# cannot be had.
# Breaks if: greeting, ids, order of events and replies, or the end of a connection are
# not what that library accepts.
. "$(dirname "$0")/lib.sh"
need tar xz

cd "$TMP"
fetch () # sets QEMU_TARBALL
{
  local options=(-q -o Dir::Etc::sourcelist="$TMP/apt/list"
                 -o Dir::Etc::sourceparts=- -o Dir::State::lists="$TMP/apt/lists"
                 -o Dir::Cache="$TMP/apt" -o APT::Sandbox::User="$(id -un)")
  local codename
  command -v apt-get >/dev/null || return 1
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
  mkdir -p apt/lists/partial
  echo "deb-src http://deb.debian.org/debian ${codename:-stable} main" >apt/list
  timeout 120 apt-get "${options[@]}" update >apt.log 2>&1 &&
    timeout 240 apt-get "${options[@]}" source --download-only --tar-only qemu \
      >>apt.log 2>&1 || return 1
  QEMU_TARBALL=$(echo "$TMP"/qemu_*.orig.tar.*)
  [ -f "$QEMU_TARBALL" ]
}
[ -n "${QEMU_TARBALL-}" ] || fetch || skip "the source of QEMU cannot be fetched"
mkdir source
tar -xf "$QEMU_TARBALL" -C source --strip-components=1 --wildcards \
  '*/python/qemu/qmp/*' || skip "the source of QEMU has no python/qemu/qmp"
export PYTHONPATH=$TMP/source/python HOME=$TMP
$PY -c 'import qemu.qmp.qmp_shell' || skip "the library does not run here"

qemu-img create -q -f qcow2 image.qcow2 16M
qemu-io -c 'write -q -P 1 0 8M' image.qcow2
start_server image.qcow2 control="$TMP/control"

say "the library"
timeout 60 $PY "$HERE/pyqmplib.py" "$TMP/control" first

say "qmp-shell"
timeout 60 $PY -m qemu.qmp.qmp_shell -p "$TMP/control" >shell.out 2>&1 <<'COMMANDS'
query-status
job-cancel id=no-such-job
set log-level=error
no-such-command
query-disks limit=1
COMMANDS
has '"running": true' shell.out || die "query-status: $(cat shell.out)"
has 'Job not found' shell.out || die "job-cancel: $(cat shell.out)"
has 'no-such-command has not been found' shell.out ||
  die "no-such-command: $(cat shell.out)"
has '"kind": "active"' shell.out || die "query-disks: $(cat shell.out)"
equal "replies that succeeded" "$(grep -c '"return"' shell.out)" 3

say "clients that connect again, and the end of the server"
timeout 60 $PY "$HERE/pyqmplib.py" "$TMP/control" again >again.out 2>&1 &
client=$!
for ((i = 0; i < 400; i++)); do
  has -s connected again.out && break
  kill -0 $client 2>/dev/null || break
  sleep 0.05
done
stop_server
wait $client || die "the client failed: $(cat again.out)"
