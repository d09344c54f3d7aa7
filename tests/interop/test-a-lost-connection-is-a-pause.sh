#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The server of an image on an NBD export is killed and started again while clients
# write: they see a pause, no error, and all data is there.  If it stays away for
# longer than reconnect-delay, clients get EIO, the log says so, the server still
# ends, and the next one recovers all that was flushed.
# Breaks if: a request fails or is lost in a pause, the lease is lost by it, or a
# connection that does not come back hangs a client or the close.

. "$(dirname "$0")/lib.sh"
need nbdkit nbdsh

truncate -s 600M "$TMP/place"
start_remote ()
{
  local i
  rm -f "$TMP/remote"
  nbdkit -f -U "$TMP/remote" --filter=delay file "$TMP/place" \
    rdelay=2ms wdelay=2ms >"$TMP/remote.log" 2>&1 &
  remote_pid=$!
  at_exit "kill $remote_pid 2>/dev/null"
  for ((i = 0; i < 400; i++)); do
    [ ! -S "$TMP/remote" ] || return 0
    sleep 0.05
  done
  die "the remote server does not listen"
}

kill_remote ()
{
  kill -9 "$remote_pid"
  wait "$remote_pid" 2>/dev/null || true
}

# load SECONDS SEED: writes, reads, trims and flushes of one client against a model,
# and then everything is compared.
load ()
{
  $PY - "$URI" "$1" "$2" <<'PY'
import random
import sys
import time

import nbd

CLUSTER, NR = 4096, 8000
uri, seconds, seed = sys.argv[1], float (sys.argv[2]), int (sys.argv[3])
rng = random.Random (seed)
h = nbd.NBD ()
h.connect_uri (uri)
model = {}
end = time.monotonic () + seconds
while time.monotonic () < end:
    c, kind = rng.randrange (NR), rng.random ()
    if kind < 0.7:
        data = rng.randbytes (64) * 64
        h.pwrite (data, c * CLUSTER)
        model[c] = data
    elif kind < 0.8:
        h.trim (CLUSTER, c * CLUSTER, nbd.CMD_FLAG_FUA)
        model[c] = bytes (CLUSTER)
    elif kind < 0.95 and model:
        c = rng.choice (list (model))
        assert h.pread (CLUSTER, c * CLUSTER) == model[c], c
    else:
        h.flush ()
h.flush ()
for c, data in model.items ():
    assert h.pread (CLUSTER, c * CLUSTER) == data, c
print (len (model), "clusters compared")
PY
}

say "three pauses"
start_remote
REMOTE="nbd+unix:///?socket=$TMP/remote"
start_server "uri=$REMOTE" size=1G commit-interval=1
load 9 1 >"$TMP/load" 2>&1 &
load_pid=$!
for i in 1 2 3; do
  sleep 2
  kill_remote
  sleep 0.5
  start_remote
done
wait "$load_pid" || { cat "$TMP/load" >&2; die "a client failed"; }
at_least "clusters compared" "$(cut -d' ' -f1 "$TMP/load")" 100
has 'connection is lost' "$SRV_LOG" || die "the log does not tell of the loss"
stop_server
check_clean "$TMP/place"

say "it stays away"
start_server "uri=$REMOTE" reconnect-delay=3 commit-interval=1
nbdsh -u "$URI" -c 'h.pwrite (b"a" * 65536, 0)' -c 'h.flush ()'
kill_remote
before=$SECONDS
refused nbdsh -u "$URI" -c 'h.pwrite (b"b" * 65536, 0)' -c 'h.flush ()'
at_most "seconds until the client had its error" $((SECONDS - before)) 20
refused nbdsh -u "$URI" -c 'h.pwrite (b"c" * 65536, 1 << 20)'
before=$SECONDS
kill -TERM "$SRV_PID"
wait "$SRV_PID" || true
forget_server "$SRV_PID"
at_most "seconds until the server ended" $((SECONDS - before)) 20
no_crash_in "$SRV_LOG"

say "recovered"
start_remote
start_server "uri=$REMOTE"
equal "what was flushed" \
  "$(nbdsh -u "$URI" -c 'd = h.pread (65536, 0)' \
       -c 'print (d in (b"a" * 65536, b"b" * 65536))')" True
stop_server
check_clean "$TMP/place"
