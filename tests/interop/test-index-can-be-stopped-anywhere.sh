#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qcow2-dedup index can be interrupted: SIGINT and SIGTERM leave a clean image
# and status 130; kill -9 leaves one that the next run, or the server, recovers.
# Each time the content is the same, and a run that reaches the end has shared
# everything.  A full disk stops it with one line, and the image is clean.
# Breaks if: an operation is not whole, or a later run skips what an interrupted
# one did not do.
. "$(dirname "$0")/lib.sh"
need qemu-img

$PY "$HERE/dupfile.py" "$TMP/a.raw" $((10000 * SCALE))
want=$(distinct_blocks "$TMP/a.raw")
qemu-img create -q -f qcow2 -o cluster_size=4k "$TMP/new.qcow2" \
  "$(stat -c %s "$TMP/a.raw")"
qemu-img convert -q -n -S 0 -f raw -O qcow2 "$TMP/a.raw" "$TMP/new.qcow2"
disk=$TMP/disk.qcow2

# Run it, and some milliseconds after its first change send SIG; rc is its
# status.
index_and_send () # SIG MS
{
  rc=0
  $PY "$HERE/signalled.py" "$1" "$2" "$disk" "$TOOL" index "$disk" \
    >"$TMP/out" 2>"$TMP/err" || rc=$?
  no_crash_in "$TMP/err"
}

is_done ()
{
  equal "$(basename "$disk"): stored clusters" "$(data_clusters "$disk")" "$want"
  check_clean "$disk"
  same_as_raw "$TMP/a.raw" "$disk"
}

say "SIGINT and SIGTERM"
interrupted=0
for sig in INT TERM; do
  for ms in 0 5 50; do
    cp "$TMP/new.qcow2" "$disk"
    index_and_send $sig $ms
    [ $rc != 0 ] || continue
    if [ $rc = 130 ]; then
      interrupted=$((interrupted + 1))
      cp "$TMP/err" "$TMP/refused"
      one_error_line "$disk" 'interrupted; run the command again'
      check_clean "$disk"
      same_as_raw "$TMP/a.raw" "$disk"
    else
      # The signal came before it was caught: nothing was done yet.
      [ $rc = $((128 + $(kill -l $sig))) ] || die "status $rc: $(cat "$TMP/err")"
    fi
    tool index "$disk" >/dev/null
    is_done
  done
done
at_least "runs that were interrupted" $interrupted 1

say "kill -9, again and again on one image"
cp "$TMP/new.qcow2" "$disk"
seed=${SEED:-$RANDOM}
echo "seed $seed"
RANDOM=$seed
killed=0
for ((i = 0; i < 8 * SCALE; i++)); do
  index_and_send KILL $((RANDOM % (2 << i % 8)))
  if [ $rc = 0 ]; then          # nothing is left to be done
    cp "$TMP/new.qcow2" "$disk"
    continue
  fi
  killed=$((killed + 1))
  case $((RANDOM % 3)) in
    0) tool recover "$disk" >/dev/null; check_clean "$disk" ;;
    1) start_server "$disk"; served_as_raw "$TMP/a.raw"; stop_server ;;
  esac
done
at_least "runs that were killed" $killed 2
tool index "$disk" >/dev/null
is_done

say "a full disk"
if [ "$(id -u)" = 0 ] && mkdir "$TMP/fs" &&
   mount -t tmpfs -o size=$((44 * SCALE))m tmpfs "$TMP/fs" 2>/dev/null; then
  at_exit "umount '$TMP/fs'"
  disk=$TMP/fs/disk.qcow2
  cp --sparse=always "$TMP/new.qcow2" "$disk"
  try_plugin "$disk"            # makes the store, for which there is room
  free=$(df --output=avail -k "$TMP/fs" | tail -1)
  head -c $(((free - 8) * 1024)) /dev/zero >"$TMP/fs/fill"
  refused tool index "$disk"
  grep -q 'indexing stopped: No space left' "$TMP/refused" ||
    die "$(cat "$TMP/refused")"
  rm "$TMP/fs/fill"
  [ "$(bit48 "$disk")" = 0 ] || die "not closed cleanly: $(cat "$TMP/refused")"
  check_clean "$disk"
  same_as_raw "$TMP/a.raw" "$disk"
  # Where there was no space, some of the index may have been given up.
  tool index --all "$disk" >/dev/null
  is_done
else
  say "no tmpfs to be had: not tried"
fi
