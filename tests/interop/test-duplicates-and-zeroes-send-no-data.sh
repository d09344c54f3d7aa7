#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The image lies on another NBD server, and what goes there is counted on the way.  New
# data is sent once.  The same 64 MiB written again, zero bytes and requests to write
# zeroes send nothing but changes of tables and the reads for comparing; zeroes with
# dedup=off, too.
# Breaks if: a block that the image has is sent again, zeroes are sent as bytes, or
# tables and journal take more than they should.
. "$(dirname "$0")/lib.sh"
need nbdkit nbdsh

SIZE=$((64 << 20))              # 16384 clusters
# Without data a session may send, for 16384 clusters that are linked or dropped:
#    770 KiB  in the journal: records REFCOUNT (23 bytes) and L2 (24), 2 % for blocks
#    480 KiB  three checkpoints, each with 8 bytes of L2 tables and 2 of refcounts
#    448 KiB  for comparing: a request of 28 bytes for each cluster, if none are joined
#    640 KiB  a run of the index, with 40 bytes for each cluster that was stored before
#    690 KiB  these entries again in the journal, 42 bytes each, if it is packed
#    256 KiB  for the lease (4 KiB, less than one in 5 s), the configuration, open, close
# which makes 3.2 MiB, if all of that is due in the same session.
LIMIT=$((4 << 20))

truncate -s 400M "$TMP/place"
nbdkit -f -U "$TMP/remote" file "$TMP/place" >"$TMP/remote.log" 2>&1 &
at_exit "kill $! 2>/dev/null"
wait_for_socket () # FILE
{
  local i
  for ((i = 0; i < 400; i++)); do
    [ ! -S "$1" ] || return 0
    sleep 0.05
  done
  die "nobody listens at $1"
}
wait_for_socket "$TMP/remote"
tool create "nbd+unix:///?socket=$TMP/remote" 256M

# Serves the image with a program that counts in between.
begin () # [KEY=VALUE]...
{
  rm -f "$TMP/line"
  "$BUILD_DIR/bench/dedup-relay" "$TMP/line" "$TMP/remote" 0 >"$TMP/count" 2>&1 &
  relay_pid=$!
  at_exit "kill $relay_pid 2>/dev/null"
  wait_for_socket "$TMP/line"
  start_server uri="nbd+unix:///?socket=$TMP/line" "$@"
}

# Ends both; sets SENT to the bytes that went to the other server, of which the image's
# own connections are all.
end ()
{
  local back
  stop_server
  kill -TERM $relay_pid
  wait $relay_pid || die "dedup-relay: $(cat "$TMP/count")"
  read -r SENT back <"$TMP/count"
  say "$SENT bytes sent, $back received"
}

random_file "$TMP/data" 64

say "new data"
begin
$PY "$HERE/put.py" "$URI" "$TMP/data" 0
end
at_least "bytes sent for new data" "$SENT" $SIZE
at_most "bytes sent for new data" "$SENT" $((SIZE + SIZE / 10))

say "the same again, in another place"
begin
$PY "$HERE/put.py" "$URI" "$TMP/data" $SIZE
end
at_most "bytes sent for duplicates" "$SENT" $LIMIT

say "zeroes over half of the data"
begin
$PY "$HERE/nbdrun.py" "$URI" "for i in range(32):
  h.pwrite(bytes(1 << 20), $SIZE + (i << 20))
h.zero(16 << 20, $SIZE + (32 << 20))
h.zero(16 << 20, $SIZE + (48 << 20), nbd.CMD_FLAG_NO_HOLE)
h.flush()"
end
at_most "bytes sent for zeroes" "$SENT" $LIMIT

say "zeroes over the rest and where nothing was written, with dedup=off"
begin dedup=off
$PY "$HERE/nbdrun.py" "$URI" "for i in range(32):
  h.pwrite(bytes(1 << 20), i << 20)
h.zero(16 << 20, 32 << 20)
h.zero(16 << 20, 48 << 20, nbd.CMD_FLAG_NO_HOLE)
for i in range(64):
  h.pwrite(bytes(1 << 20), (128 + i) << 20)
h.flush()
for i in range(256):
  assert h.pread(1 << 20, i << 20) == bytes(1 << 20), i"
end
at_most "bytes sent for zeroes with dedup=off" "$SENT" $LIMIT
check_clean "$TMP/place"
