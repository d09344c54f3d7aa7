#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Of servers of one NBD export one writes: a second one is refused by name, one that
# was killed is followed at once, and one that was stopped for longer than its term
# sends no change once another one has its lease: neither what was to become durable, nor
# what clients sent meanwhile, who get errors.
# A server behind a link with 300 ms of delay starts, too, though it cannot claim the
# lease as fast as others must.
# Breaks if: the lease is not taken, not renewed from the background process, not
# given back, or not looked at before each write; or unlock takes it away without
# --force, or leaves the server that had it writing.

. "$(dirname "$0")/lib.sh"
need nbdkit nbdcopy nbdsh

truncate -s 200M "$TMP/place"
requests=$TMP/requests
nbdkit -f -U "$TMP/remote" --filter=log file "$TMP/place" logfile="$requests" \
  >"$TMP/remote.log" 2>&1 &
remote_pid=$!
at_exit "kill $remote_pid 2>/dev/null"
REMOTE="nbd+unix:///?socket=$TMP/remote"
for ((i = 0; i < 400; i++)); do
  [ ! -S "$TMP/remote" ] || break
  sleep 0.05
done
tool create "$REMOTE" 48M
random_file "$TMP/a" 20 1
random_file "$TMP/b" 20 2

say "a server behind a slow link starts meanwhile"
truncate -s 200M "$TMP/far-place"
nbdkit -f -U "$TMP/far-remote" file "$TMP/far-place" >"$TMP/far-remote.log" 2>&1 &
at_exit "kill $! 2>/dev/null"
"$BUILD_DIR/bench/dedup-relay" "$TMP/far" "$TMP/far-remote" 300 >"$TMP/relay.log" 2>&1 &
at_exit "kill $! 2>/dev/null"
for ((i = 0; i < 400; i++)); do
  [ ! -S "$TMP/far" ] || [ ! -S "$TMP/far-remote" ] || break
  sleep 0.05
done
tool create "nbd+unix:///?socket=$TMP/far-remote" 48M
nbdkit -f -U "$TMP/far-server" "$PLUGIN" "uri=nbd+unix:///?socket=$TMP/far" \
  >"$TMP/far-server.log" 2>&1 &
far_pid=$!
at_exit "kill $far_pid 2>/dev/null"

say "a second server is refused by name"
start_server "uri=$REMOTE"
nbdcopy --flush "$TMP/a" "$URI"
busy="is in use by the server on .*, process $SRV_PID, since 20.* UTC"
refused try_plugin "uri=$REMOTE"
one_error_line "$REMOTE" "$busy"
refused try_plugin "uri=$REMOTE" readonly=on
one_error_line "$REMOTE" "$busy"
refused tool index "$REMOTE"
one_error_line "$REMOTE" "$busy"

say "a server that was killed is followed at once"
kill_server
before=$SECONDS
start_server "uri=$REMOTE"
at_most "seconds until it serves" $((SECONDS - before)) 10
stop_server
before=$SECONDS
start_server "uri=$REMOTE"
at_most "seconds until the next one serves" $((SECONDS - before)) 10
first_pid=$SRV_PID first_uri=$URI first_log=$SRV_LOG

# A write that has an answer, and is to become durable when the server wakes; then
# requests that come while it is stopped.  The writes must fail.  A trim, or a flush where
# nothing is left to be made durable, may be answered without any request to the storage.
client_of_the_first ()
{
  $PY - "$first_uri" "$TMP" <<'PY'
import os
import sys
import time

import nbd

h = nbd.NBD ()
h.connect_uri (sys.argv[1])
h.pwrite (b"u" * 65536, 24 << 20)
open (sys.argv[2] + "/written", "w").close ()
while not os.path.exists (sys.argv[2] + "/stopped"):
    time.sleep (0.01)
writes = {h.aio_pwrite (b"x" * 65536, 0), h.aio_pwrite (b"x" * 65536, 24 << 20)}
h.aio_trim (65536, 4 << 20)
h.aio_flush ()
open (sys.argv[2] + "/sent", "w").close ()
while writes:
    h.poll (-1)
    for cookie in list (writes):
        try:
            done = h.aio_command_completed (cookie)
            assert not done, "a write was done"
        except nbd.Error as e:
            print (e)
            writes.remove (cookie)
PY
}

wait_for_file ()
{
  for ((i = 0; i < 1200; i++)); do
    [ ! -e "$1" ] || return 0
    kill -0 "$client_pid" 2>/dev/null || die "the client ended: $(cat "$TMP/client")"
    sleep 0.05
  done
  die "there is no ${1##*/} after 60 s"
}

say "a server that is stopped for longer than its term"
client_of_the_first >"$TMP/client" 2>&1 &
client_pid=$!
wait_for_file "$TMP/written"
kill -STOP "$first_pid"
at_exit "kill -CONT $first_pid 2>/dev/null"
stopped_at=$(wc -l <"$requests")
touch "$TMP/stopped"
wait_for_file "$TMP/sent"
before=$SECONDS
start_server "uri=$REMOTE"
at_least "seconds until the next one serves" $((SECONDS - before)) 29
nbdcopy --flush "$TMP/b" "$URI"
woken_at=$(wc -l <"$requests")
kill -CONT "$first_pid"
wait "$client_pid" || die "the client of the first server: $(cat "$TMP/client")"
refused nbdsh -u "$first_uri" -c 'h.pwrite (b"x" * 65536, 0)' -c 'h.flush ()'
refused nbdsh -u "$first_uri" -c 'h.pread (4096, 0)'
equal "number of lines on the lost lease" \
  "$(grep -c 'the lease was lost to the server on' "$first_log")" 1
nbdsh -u "$URI" -c 'h.pwrite (b"y" * 4096, 20 << 20)' -c 'h.flush ()'
stop_server
sum=$(sha256sum <"$TMP/place")
kill -TERM "$first_pid"
wait "$first_pid" || true
forget_server "$first_pid"
equal "checksum of the export" "$(sha256sum <"$TMP/place")" "$sum"
# Since the first server woke, all changes came on connections of the second one, but for
# records of the lease (the last 64 KiB of 200 MiB): one may have been on its way.
awk -v from="$stopped_at" -v woken="$woken_at" '
  match ($0, /connection=[0-9]+/) { c = substr ($0, RSTART, RLENGTH) }
  NR > from && NR <= woken && / Connect / { second[c] = 1 }
  /offset=0xc7f[0-9a-f][0-9a-f][0-9a-f][0-9a-f] / { next }
  NR > woken && / (Write|Trim|Zero) id=/ { if (c in second) ok++; else print }
  END { if (!ok) print "no change of the second server is there" }
' "$requests" >"$TMP/changes"
equal "what the first server changed" "$(cat "$TMP/changes")" ""

say "what the last one wrote is there"
start_server "uri=$REMOTE" readonly=on
nbdcopy "$URI" "$TMP/read"
cmp -n 20971520 "$TMP/read" "$TMP/b"
equal "the block behind" \
  "$(nbdsh -u "$URI" -c 'print (h.pread (4096, 20 << 20) == b"y" * 4096)')" True
stop_server

say "somebody takes the lease away"
tool unlock "$REMOTE" >"$TMP/unlock"
has 'no server has the lease' "$TMP/unlock" || die "unlock of a free lease"
start_server "uri=$REMOTE"
refused tool unlock "$REMOTE"
one_error_line "$REMOTE" "server on .*, process $SRV_PID, since .* has the lease"
nbdsh -u "$URI" -c 'h.pwrite (b"z" * 4096, 0)' -c 'h.flush ()'
tool unlock --force "$REMOTE" >"$TMP/unlock"
has "the server on .*, process $SRV_PID, since .* had it" "$TMP/unlock" ||
  die "unlock --force does not tell who had it"
nbdsh -u "$URI" -c '
import time
end = time.monotonic () + 30
while True:
    try:
        h.pwrite (b"w" * 4096, 0)
        h.flush ()
    except nbd.Error:
        break
    assert time.monotonic () < end, "it still writes"
    time.sleep (0.2)'
first_pid=$SRV_PID
before=$SECONDS
start_server "uri=$REMOTE"
at_most "seconds until the next one serves" $((SECONDS - before)) 10
kill -TERM "$first_pid"
wait "$first_pid" || true
forget_server "$first_pid"
nbdsh -u "$URI" -c 'h.pwrite (b"v" * 4096, 0)' -c 'h.flush ()'
stop_server
tool_check_clean "$REMOTE"

say "the server behind the slow link serves"
for ((i = 0; i < 1200; i++)); do
  [ ! -S "$TMP/far-server" ] || break
  kill -0 "$far_pid" 2>/dev/null || die "it ended: $(cat "$TMP/far-server.log")"
  sleep 0.1
done
nbdsh -u "nbd+unix:///?socket=$TMP/far-server" -c 'h.pwrite (b"f" * 4096, 0)' \
  -c 'h.flush ()' -c 'assert h.pread (4096, 0) == b"f" * 4096'
kill -TERM "$far_pid"
wait "$far_pid" || die "it did not end cleanly: $(cat "$TMP/far-server.log")"
tool_check_clean "nbd+unix:///?socket=$TMP/far-remote"
