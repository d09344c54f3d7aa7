#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What was written longer ago than the commit interval survives kill -9
# without any flush by the client.
# Breaks if: the timer does not commit.
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
