#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Programs that speak QMP use the control socket as if it were QEMU's: socat with a
# script; go-qemu (package golang-github-digitalocean-go-qemu-dev) and Python's qemu.qmp
# where they are installed; and a client that reads lines of 64 KiB at most, as
# Go's and older Python's do.  The test says which of them it used.
# Breaks if: greeting, negotiation, ids, events or the length of lines are not what
# those libraries accept.
. "$(dirname "$0")/lib.sh"
need socat

cd "$TMP"
tool create image.qcow2 16M
start_server image.qcow2 control="$TMP/control"

say "socat"
{ echo '{"execute":"qmp_capabilities"}'
  echo '{"execute":"query-status","id":"s"}'
  echo "{'execute':'query-jobs','id':['j']}"
} | socat -t10 - UNIX-CONNECT:"$TMP/control" >socat.out
equal "lines" "$(wc -l <socat.out)" 4
equal "lines that end with CRLF" "$(grep -c $'\r$' socat.out)" 4
sed -n 1p socat.out | grep '^{"QMP": {"version": {"qemu": {' >/dev/null
equal "the second line" "$(sed -n 2p socat.out)" '{"return": {}}'$'\r'
sed -n 3p socat.out | grep '"id": "s"}' >/dev/null
equal "the fourth line" "$(sed -n 4p socat.out)" '{"return": [], "id": ["j"]}'$'\r'

say "lines of 64 KiB at most"
$PY - "$TMP/control" <<'PYTHON'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
f = s.makefile('rb')
def line():
    b = f.readline(65536)
    assert b.endswith(b'\r\n') and b.isascii(), b[-100:]
    return json.loads(b)
assert list(line()) == ['QMP']
def ask(command, **arguments):
    s.sendall(json.dumps({'execute': command, 'arguments': arguments,
                          'id': command}).encode())
    reply = line()
    assert reply['id'] == command and 'return' in reply, reply
    return reply['return']
ask('qmp_capabilities')
names = {c['name'] for c in ask('query-commands')}
described, first = {}, 0
while first is not None:
    page = ask('query-schema', first=first)
    for e in page['entries']:
        assert (e['kind'], e['name']) not in described, e
        described[e['kind'], e['name']] = e
    first = page.get('next')
assert names == {n for k, n in described if k == 'command'}, names
types = {n for k, n in described if k in ('object', 'enum')}
types |= {'str', 'int', 'size', 'bool', 'number', 'any'}
for e in described.values():
    for m in e.get('members', []) + [{'type': e.get('returns', 'any')}]:
        assert m['type'].strip('[]') in types, e
print(len(names), 'commands,', len(described), 'entries in the schema')
PYTHON

expected='capabilities []
query-version true
query-schema true
query-commands true
query-jobs true
JOB_STATUS_CHANGE index-existing created
JOB_STATUS_CHANGE index-existing running'

if command -v go >/dev/null &&
   [ -d /usr/share/gocode/src/github.com/digitalocean/go-qemu ]; then
  say "go-qemu"
  HOME=$TMP GO111MODULE=off GOPATH=$TMP/go:/usr/share/gocode \
    go build -o goqmp "$HERE/goqmp.go"
  ./goqmp "$TMP/control" >go.out
  grep 'no-such-command false The command no-such-command has not been found' \
    go.out >/dev/null
  equal "what go-qemu got" \
    "$(grep -v no-such go.out | sed 's/ <nil>$//')" "$expected"
else
  say "go-qemu is not installed"
fi

status=0
$PY "$HERE/pyqmp.py" "$TMP/control" >py.out || status=$?
if [ $status = 77 ]; then
  say "qemu.qmp is not installed"
else
  say "qemu.qmp"
  equal "exit status" $status 0
  grep -i 'no-such-command has not been found' py.out >/dev/null
  equal "what qemu.qmp got" \
    "$(grep -v no-such py.out | sed 's/ True$/ true/')" "$expected"
fi
stop_server
