#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The image lies on an NBD server that keeps writes in a cache until a flush (nbdkit's
# cache filter).  In the middle of a load of three connections kill -9 ends that server,
# with all that was not flushed; another one takes its place, and the load goes on without
# an error and ends with a flush.  Then kill -9 ends our server; the next one has all that
# was flushed, which is everything.  So it is with fenced=on, and with fenced=off, where
# the places of lost writes are avoided.
# Breaks if: a write that was lost with the cache is not written again before a flush
# is answered, or the load meets an error.
# DEDUP_TEST_SCALE=20 is 80 rounds.
. "$(dirname "$0")/lib.sh"
need nbdkit
export PYTHONUNBUFFERED=1
seed=${SEED:-$RANDOM}
RANDOM=$seed
say "seed $seed (SEED=$seed $0)"
region=$((2 << 20))
out=$TMP/out

truncate -s 512M "$TMP/place"
remote_pid=
at_exit 'kill $remote_pid 2>/dev/null'
start_remote ()
{
  local i
  rm -f "$TMP/remote"
  nbdkit -f -U "$TMP/remote" --filter=cache file "$TMP/place" cache-min-block-size=4K \
    >"$TMP/remote.log" 2>&1 &
  remote_pid=$!
  for ((i = 0; i < 400; i++)); do
    [ ! -S "$TMP/remote" ] || return 0
    sleep 0.02
  done
  die "the remote server does not listen"
}
kill_remote ()
{
  kill -9 $remote_pid
  wait $remote_pid 2>/dev/null || true
}

start_remote
REMOTE="nbd+unix:///?socket=$TMP/remote"
tool create -o log-store-order=6,journal-areas=3 "$REMOTE" 16M
lost=0
for ((round = 1; round <= 4 * SCALE; round++)); do
  fenced=$([ $((round % 2)) = 0 ] && echo on || echo off)
  operations=$((RANDOM % 2000 + 1000))
  say "round $round: $operations operations, fenced=$fenced"
  rm -rf "$out"
  mkdir "$out"
  start_server uri="$REMOTE" commit-interval=$((RANDOM % 3)) fenced=$fenced
  $PY "$HERE/nbdrun.py" "$URI" 'h.zero(16 << 20, 0); h.flush()'
  $PY "$HERE/crashload.py" run "$URI" 0 $operations $((seed + round)) 3 $region "$out" \
    >"$TMP/load.out" 2>&1 &
  loading=$!
  sleep "0.$((RANDOM % 10))"
  kill_remote
  start_remote
  wait $loading || die "round $round: $(tail -n 3 "$TMP/load.out")"
  ! has 'connected again' "$SRV_LOG" || lost=$((lost + 1))
  kill_server
  start_server uri="$REMOTE"
  $PY "$HERE/crashload.py" verify "$URI" $region "$out" >"$out/verify" ||
    die "round $round: $(cat "$out/verify")"
  stop_server
done
at_least 'rounds in which the connection was lost under the load' $lost $SCALE
kill_remote
check_clean "$TMP/place"
