#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# "qcow2-dedup status" and "metrics" end with one line of error, soon and within bounded
# memory, whatever is at the other end of the socket: no QMP, an NBD server, half a line, a
# line without end, values of wrong types, an error, silence, or nobody.
# Breaks if: a reply is believed, or waited for without a limit.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
cat >fake.py <<'PYTHON'
"""Serves one client, as MODE says, on the socket PATH."""
import json
import os
import socket
import sys
path, mode = sys.argv[1:3]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
print('ready', flush=True)
s = server.accept()[0]
f = s.makefile('rb')
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'

def send(b):
    try:
        s.sendall(b)
    except OSError:
        sys.exit()

def serve(replies, greeting=GREETING):
    send(greeting)
    for line in f:
        o = json.loads(line)
        reply = replies.get(o['execute'], {'return': {}})
        if callable(reply):
            reply = reply(o)
        send(json.dumps({**reply, 'id': o['id']}).encode() + b'\r\n')

if mode == 'ends':
    s.close()
elif mode == 'http':
    send(b'HTTP/1.1 400 Bad Request\r\n\r\n')
elif mode == 'json':
    send(b'{"hello": 1}\n')
    f.readline()
elif mode == 'bytes':
    send(os.urandom(100000) + b'\n')
elif mode == 'nbd':
    send(b'NBDMAGICIHAVEOPT\0\3')
    f.readline()
elif mode == 'endless':
    send(b'{')
    while True:
        send(b'x' * 65536)
elif mode == 'half':
    send(b'{"QMP": {}}\n{"return": {}, "id"')
    f.readline()
    s.shutdown(socket.SHUT_WR)
    f.readline()
elif mode == 'refuses':
    serve({'query-stats': {'error': {'class': 'GenericError', 'desc': 'not today'}}})
elif mode == 'foreign':
    serve({'query-stats': {'error': {'class': 'CommandNotFound', 'desc': 'what'}}})
elif mode == 'types':
    serve({'query-stats': {'return': {'requests': [1, {'type': 5, 'latency': 'x'}],
                                      'space': [], 'clients': -3, 'index': {},
                                      'dedup': None, 'read-only-reason': {}}},
           'query-jobs': {'return': [{}, 3, {'id': 1, 'total-progress': -1}]},
           'query-disk-stats': lambda o: {'return': [] if 'arguments' in o else
                                          [{}, 7, {'name': 'x\n\033[31m'}]}})
elif mode == 'events':
    send(GREETING)
    for line in f:
        o = json.loads(line)
        send(b'{"event": "X", "timestamp": {}}\r\n' * 2000 +
             b'{"return": {}, "id": "other"}\r\n')
        ret = [] if o['execute'] != 'query-stats' else {'clients': 4711}
        send(json.dumps({'return': ret, 'id': o['id']}).encode() + b'\n')
elif mode == 'young':
    serve({'query-stats': {'return': {'journal': {'left-bytes': 1}}}})
elif mode == 'pages':
    serve({'query-stats': {'return': {}},
           'query-disk-lines': {'return': ['1 2 3 - the same'] * 100},
           'query-disk-stats': {'return': [{'name': 'the same'}] * 100}})
elif mode == 'lines':
    serve({'query-stats': {'return': {}},
           'query-disk-lines': lambda o: {'return': [] if 'arguments' in o else [
               '', ' ', '-', '1', '1 2 3', '1 2 3 ', '1 2 3 write', '1 2 3 write:1:2 x',
               '1 2 3 write:1:2:3, x', '1 2 3 %s:1:2:3 x' % ('w' * 99), 'x 2 3 - x', 7,
               '1 2 3 %s x' % ','.join(['write:1:2:3'] * 9), {}, None,
               '4711 - 1 read:1:0:512,write:2:1:1024 with  spaces ']}})
elif mode == 'older':
    serve({'query-stats': {'return': {}},
           'query-disk-lines': {'error': {'class': 'CommandNotFound', 'desc': 'what'}},
           'query-disk-stats': lambda o: {'return': [] if 'arguments' in o else [
               {'name': 'x', 'size': 4711, 'clients': 1, 'requests': [
                   {'type': 'write', 'requests': 2, 'errors': 1, 'bytes': 1024}] * 9}]}})
elif mode == 'silent':
    f.readline()
PYTHON

# fake MODE COMMAND...: runs COMMAND with a socket that such a server has.
fake ()
{
  local mode=$1 line pid
  shift
  rm -f sock
  coproc server { exec $PY fake.py sock "$mode"; }
  pid=$!
  read -r line <&"${server[0]}"
  rc=0
  (ulimit -v 1000000; "$@" --control=sock) >"$TMP/out" 2>"$TMP/refused" </dev/null || rc=$?
  kill "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  no_crash_in "$TMP/refused"
}

fails () # MODE PATTERN
{
  say "$1"
  for command in status metrics; do
    fake "$1" "$TOOL" $command
    equal "status of $command" $rc 1
    one_error_line sock "$2"
    [ ! -s out ] || die "$command printed something"
  done
}

[ -z "$preload" ] || skip "not with a sanitizer, which takes too much address space"
fails ends 'ended the connection'
fails http 'does not speak QMP'
fails json 'does not speak QMP'
fails bytes 'does not speak QMP'
fails nbd 'does not speak QMP'
fails endless 'a line of more than'
fails half 'ended the connection'
fails refuses 'query-stats: not today'
fails foreign 'does not know the command query-stats'

say "values of wrong types"
fake types "$TOOL" status
equal "status" $rc 0
grep -q $'\033' out && die "an escape sequence of the server was passed on"
fake types "$TOOL" metrics
equal "status of metrics" $rc 0

say "lines that are none, and a server without lines"
fake lines "$TOOL" metrics
equal "status of metrics" $rc 0
equal "disks" "$(grep '^[^#].*disk_size' out)" \
  'nbdkit_dedup_disk_size_bytes{disk="with  spaces "} 4711'
equal "requests" "$(grep -c '^[^#].*disk_request' out)" 6
grep -q '^[^#].*disk_mapped' out && die "a figure was printed that is not known"
fake older "$TOOL" metrics
equal "status of metrics" $rc 0
equal "disks" "$(grep '^[^#].*disk_size' out)" \
  'nbdkit_dedup_disk_size_bytes{disk="x"} 4711'
grep -qx 'nbdkit_dedup_disk_request_bytes_total{disk="x",type="write"} 1024' out ||
  die "the requests are missing"

say "events and replies to others"
fake events "$TOOL" status
equal "status" $rc 0
grep -q 'clients 4711' out || die "another reply was taken: $(cat out)"

say "a server that does not know its index yet, and one that has none"
fake young "$TOOL" status
has '^index    not known yet' out || die "the index is said to be: $(cat out)"
fake older "$TOOL" status
has '^index    none' out || die "the index is said to be: $(cat out)"

say "pages without end"
for command in status metrics; do
  fake pages timeout 60 "$TOOL" $command
  equal "status of $command" $rc 0
done

say "silence"
start=$SECONDS
fake silent "$TOOL" status
equal "status" $rc 1
one_error_line sock 'did not answer'
at_most "seconds" $((SECONDS - start)) 20

say "nobody, and no socket at all"
rm -f sock
refused "$TOOL" status --control=sock
one_error_line sock 'no server listens'
touch file
refused "$TOOL" status --control=file
one_error_line file 'no server listens'
long=$(printf 'x%.0s' {1..200})
refused "$TOOL" status --control="$long"
one_error_line "$long" 'at most'
