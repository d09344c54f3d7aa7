#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Of servers of one NBD export one writes: a second one is refused by name, one that
# was killed is followed at once, and one that was stopped for longer than its term
# writes nothing once another one has its lease.
# A server behind a link with 300 ms of delay starts, too, though it cannot claim the
# lease as fast as others must.
# Breaks if: the lease is not taken, not renewed from the background process, not
# given back, or not looked at before each write; or unlock takes it away without
# --force, or leaves the server that had it writing.

. "$(dirname "$0")/lib.sh"
need nbdkit nbdcopy nbdsh

truncate -s 200M "$TMP/place"
nbdkit -f -U "$TMP/remote" file "$TMP/place" >"$TMP/remote.log" 2>&1 &
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

say "a server that is stopped for longer than its term"
kill -STOP "$first_pid"
at_exit "kill -CONT $first_pid 2>/dev/null"
before=$SECONDS
start_server "uri=$REMOTE"
at_least "seconds until the next one serves" $((SECONDS - before)) 29
nbdcopy --flush "$TMP/b" "$URI"
kill -CONT "$first_pid"
refused nbdsh -u "$first_uri" -c 'h.pwrite (b"x" * 65536, 0)' -c 'h.flush ()'
refused nbdsh -u "$first_uri" -c 'h.pread (4096, 0)'
has 'the lease was lost to the server on' "$first_log" ||
  die "the first server does not tell"
nbdsh -u "$URI" -c 'h.pwrite (b"y" * 4096, 20 << 20)' -c 'h.flush ()'
stop_server
sum=$(sha256sum <"$TMP/place")
kill -TERM "$first_pid"
wait "$first_pid" || true
forget_server "$first_pid"
equal "checksum of the export" "$(sha256sum <"$TMP/place")" "$sum"

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
