#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The NBD server that the image lies on is stopped with writes under way, and the
# connection to it is lost.  Another one serves the same bytes, and a client writes the
# whole disk again, several times.  Then the first one wakes and writes what it had.
# The disk has what was written last, also after kill -9 of our server.
# In the first round fenced=on says that nothing lands late, which is a lie: there the late
# writes must destroy the clusters that lie where they land.
# Breaks if: a place where a write may land late is used for other bytes.
# DEDUP_TEST_SCALE=20 is 20 rounds with fenced=off.
. "$(dirname "$0")/lib.sh"
need nbdkit qemu-img
seed=${SEED:-$RANDOM}
say "seed $seed (SEED=$seed $0)"
RANDOM=$seed

nr=2048                         # clusters of the disk, 8 MiB
REMOTE="nbd+unix:///?socket=$TMP/front"
place=$TMP/place
tool measure --output=json $((nr * 4))k >"$TMP/measure"
# 64 KiB for the lease, and 8 MiB for what is not used any more: one request of up to 127
# clusters, twice, and blocks of the journal, with much to spare: nothing is tried on a full
# disk here.
room=$(($(json fully-allocated <"$TMP/measure") + (64 << 10) + (8 << 20)))

late () { $PY "$HERE/latewrite.py" "$@"; }

# wait_for COMMAND: until it succeeds.  came COMMAND SECONDS: returns whether it does so in
# that time.
came ()
{
  local end=$((SECONDS + $2))
  while [ $SECONDS -lt $end ]; do
    ! eval "$1" || return 0
    sleep 0.05
  done
  return 1
}
wait_for () { came "$1" 60 || die "after 60 s there is still not: $1"; }

first_pid='' first_relay_pid='' storage_pid='' relay_pid='' last_pid=''
at_exit 'kill -9 $first_pid $first_relay_pid $storage_pid $relay_pid $last_pid 2>/dev/null'

# An nbdkit and a relay to it, to which REMOTE leads from now on.  Sets storage_pid and
# relay_pid.
start_storage () # NAME
{
  rm -f "$TMP/$1" "$TMP/$1.front"
  nbdkit -f -U "$TMP/$1" --filter=log --filter=pause file "$place" \
    logfile="$TMP/$1.requests" pause-control="$TMP/$1.control" >"$TMP/$1.log" 2>&1 &
  storage_pid=$!
  wait_for "late greet '$TMP/$1' 2>/dev/null"     # or the relay ends
  "$BUILD_DIR/bench/dedup-relay" "$TMP/$1.front" "$TMP/$1" 0 >"$TMP/$1.relay" 2>&1 &
  relay_pid=$!
  wait_for "late greet '$TMP/$1.front' 2>/dev/null"
  ln -sfn "$1.front" "$TMP/front"
}

end_process () # VARIABLE [SIGNAL]
{
  kill "${2:--TERM}" "${!1}"
  wait "${!1}" 2>/dev/null || true
  printf -v "$1" %s ''
}

# The data of the last request is one write of 256 KiB and more; tables of a disk of 8 MiB
# do not take 128 KiB.  Blocks of the journal, and renewals of the lease, are durable (FUA).
has_data () { awk '$1 == "Write" && $3 >= 131072 { n++ } END { exit !n }'; }
has_tables () { awk '$1 == "Write" && $3 < 131072 { n++ } END { exit !n }'; }

# Our server loses the first storage, which is stopped with writes under way, and goes on
# with the second one.  Sets lost to whether it does.  It does not where it happened to be
# idle: then clients wait for tables that are being written, and these must not be written
# once more before the image is opened again.
lose_the_storage () # FENCED
{
  lost=no
  rm -f "$place"
  truncate -s $room "$place"
  start_storage first
  first_pid=$storage_pid first_relay_pid=$relay_pid
  storage_pid='' relay_pid=''
  tool create "$REMOTE" $((nr * 4))k
  start_server uri="$REMOTE" fenced=$1 commit-interval=0 compact=off
  late whole "$URI" $seed 0 $nr
  late last "$URI" $seed $((RANDOM % (nr - 256) + 16)) $((RANDOM % 64 + 64)) \
    "$TMP/first.control" >"$TMP/last" 2>&1 &
  last_pid=$!
  came "late under-way '$TMP/first.requests' | has_data" 20 || return 0
  start_storage second
  kill -STOP $first_pid
  end_process first_relay_pid
  late under-way "$TMP/first.requests" >"$TMP/requests"
  if wait $last_pid; then
    last_pid=''
    ! has_tables <"$TMP/requests" || return 0
    wait_for "has 'connected again' '$SRV_LOG'"
    lost=yes
  else
    last_pid=''
    sleep 1                     # the line may come a moment later
    has 'writes are refused from now on' "$SRV_LOG" || die "$(cat "$TMP/last")"
  fi
}

wake_the_first ()
{
  kill -CONT $first_pid
  late resume "$TMP/first.control"
  wait_for "[ -z \"\$(late under-way '$TMP/first.requests')\" ]"
  end_process first_pid -KILL
}

end_the_second ()
{
  end_process storage_pid
  end_process relay_pid
}

begin_round () # FENCED
{
  local try p
  for try in 1 2 3 4 5; do
    lose_the_storage $1
    [ $lost = no ] || return 0
    say "try $try: the server was idle"
    kill_server
    for p in last_pid first_pid first_relay_pid storage_pid relay_pid; do
      [ -z "${!p}" ] || end_process $p -KILL
    done
  done
  die 'the server was idle each time'
}

say 'fenced=on, which is a lie'
begin_round on
taken=''
for ((pass = 2; pass < 12; pass++)); do
  taken=$(late whole "$URI" $seed $pass $nr "$place" "$TMP/requests")
  [ -z "$taken" ] || break
done
[ -n "$taken" ] || die 'no place of a late write was used again'
wake_the_first
lost=" $(late wrong "$URI" $seed $pass $nr) "
for c in $taken; do
  [[ $lost = *" $c "* ]] || die "cluster $c is not lost: the writes did not land late"
done
say "$(wc -w <<<"$lost") clusters are lost in pass $pass"
kill_server
end_the_second

for ((i = 1; i <= SCALE; i++)); do
  say "fenced=off, round $i"
  begin_round off
  for ((p = 2; p <= pass + 1; p++)); do
    taken=$(late whole "$URI" $seed $p $nr "$place" "$TMP/requests")
    equal 'what lies where writes may land late' "$taken" ''
  done
  wake_the_first
  lost=$(late wrong "$URI" $seed $((p - 1)) $nr)
  equal 'what is lost' "$lost" ''
  kill_server
  start_server uri="$REMOTE"
  lost=$(late wrong "$URI" $seed $((p - 1)) $nr)
  equal 'what is lost after kill -9' "$lost" ''
  stop_server
  end_the_second
  check_clean "$place"
done
