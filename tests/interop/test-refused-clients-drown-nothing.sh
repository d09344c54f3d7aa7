#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A client of NBD that asks for exports that do not exist, thousands of times and with long
# names, neither fills the log nor the queue of those who listen on the control socket: a
# few lines and events tell of it, with the number of the others, and what matters still
# arrives.
# Breaks if: who may connect can hide something from the administrator, or cut off
# clients of the control socket, which are dropped when they are a MiB behind.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
tool create --pool pool.qcow2
tool disk create pool.qcow2 vm1 1M
start_server pool.qcow2 control="$TMP/control"
cat >flood.py <<'PYTHON'
import socket
import struct
import sys
import time
sys.path.insert(0, sys.argv[1])
from controlclient import Client
control, sock = sys.argv[2:4]
NAME = b'x' + b'\x7f' * 1000    # each of these bytes takes six in an event
ROUNDS, OPTIONS = 100, 20


def ask_for_nothing():
    """Asks by NBD_OPT_INFO, again and again on one connection."""
    s = socket.socket(socket.AF_UNIX)
    s.connect(sock)
    f = s.makefile('rb')
    f.read(18)
    s.sendall(struct.pack('>I', 3))
    data = struct.pack('>I', len(NAME)) + NAME + struct.pack('>H', 0)
    for _ in range(OPTIONS):
        s.sendall(b'IHAVEOPT' + struct.pack('>II', 6, len(data)) + data)
        reply = struct.unpack('>QIII', f.read(20))
        assert reply[2] >= 1 << 31, reply       # an error
        f.read(reply[3])
    s.close()


listener = Client(control)      # which reads nothing for now
begin = time.monotonic()
for _ in range(ROUNDS):
    ask_for_nothing()
seconds = time.monotonic() - begin
Client(control).ok('disk-delete', name='vm1')
listener.ok('query-status')     # it was not dropped
told = listener.take_events('CLIENT_REFUSED')
assert 1 <= len(told) <= seconds + 2, (len(told), seconds)
if len(told) > 1:
    assert 'were refused before' in told[-1]['reason'], told[-1]['reason']
assert listener.take_events('BLOCK_EXPORT_DELETED') == [{'id': 'vm1'}]
print('%d refusals in %.1f s: %d events' % (ROUNDS * OPTIONS, seconds, len(told)))
PYTHON
begin=$SECONDS
$PY flood.py "$HERE" "$TMP/control" "$SOCK"
at_least "lines on refused clients" "$(grep -c 'there is no export' "$SRV_LOG")" 1
at_most "lines on refused clients" "$(grep -c 'there is no export' "$SRV_LOG")" \
  $((10 * ((SECONDS - begin) / 60 + 1)))
stop_server
