#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A write that is older than the commit interval survives kill -9 without any
# flush by the client; so does one that is older than an interval that was set while the
# server runs, also if it ran without one before.
# Breaks if: the timer does not commit, or keeps its first interval.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
start_server "$disk" size=64M commit-interval=1
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(pat(1, 1 << 20), 12345)'
sleep 1.8
kill_server
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" 'assert h.pread(1 << 20, 12345) == pat(1, 1 << 20)'
stop_server
check_clean "$disk"

# The first write of a session and a flush cause commits of their own for a while.
start_server "$disk" commit-interval=0 control="$TMP/control"
$PY - "$TMP/control" "$HERE" <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[2])
from controlclient import Client
c = Client(sys.argv[1])
assert c.ok('query-settings')['commit-interval'] == 0
c.ok('set', commit_interval=100)
PYTHON
$PY "$HERE/nbdrun.py" "$URI" '
import time
h.pwrite(pat(2, 4096), 1 << 21)
h.flush()
time.sleep(0.5)
h.pwrite(pat(3, 4096), 8192)'
sleep 0.7
kill_server
start_server "$disk"
$PY "$HERE/nbdrun.py" "$URI" 'assert h.pread(4096, 8192) == pat(3, 4096)'
stop_server
check_clean "$disk"
