#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Several starts with size= race on one missing file, and starts are killed
# while they make it: one serves, and every later start works.
# Breaks if: the file has its name before it is complete and locked.

. "$(dirname "$0")/lib.sh"
need nbdkit qemu-img timeout

img=$TMP/i.qcow2
store=$TMP/i.store

say "three starts at once"
for ((round = 0; round < 5 * SCALE; round++)); do
  rm -f "$img" "$store" "$TMP"/race.*
  pids=()
  for k in 1 2 3; do
    nbdkit_cmd -f -U "$TMP/race.$k" "$PLUGIN" "$img" size=64M store="$store" \
      2>"$TMP/race.log.$k" &
    pids+=($!)
    server_pids+=($!)
  done
  for ((i = 0; i < 500; i++)); do
    serving=0 alive=0
    for k in 1 2 3; do
      [ ! -S "$TMP/race.$k" ] || serving=$((serving + 1))
      ! kill -0 "${pids[k - 1]}" 2>/dev/null || alive=$((alive + 1))
    done
    [ $alive != $serving ] || break
    sleep 0.02
  done
  at_most "servers of one file" "$serving" 1
  for k in 1 2 3; do
    kill "${pids[k - 1]}" 2>/dev/null || true
    wait "${pids[k - 1]}" || true
    forget_server "${pids[k - 1]}"
    no_crash_in "$TMP/race.log.$k"
    # The one that serves says so, on the same stream.
    if grep 'error:' "$TMP/race.log.$k" |
       grep -v 'in use by another process'; then
      cat "$TMP/race.log.$k"
      die "a start was refused for another reason than the lock"
    fi
  done
  try_plugin "$img" size=64M store="$store" || die "round $round: refused"
done
check_clean "$img"

# A kill anywhere in the tenths of a second that a start takes.
say "killed starts"
for ((round = 0; round < 10 * SCALE; round++)); do
  rm -f "$img" "$store"
  nbdkit_cmd -f -U "$TMP/k" "$PLUGIN" "$img" size=4T store="$store" \
    >/dev/null 2>&1 &
  pid=$!
  sleep 0.$(printf %03d $((round * 150 / (10 * SCALE))))
  { kill -9 $pid && wait $pid; } 2>/dev/null || true
  rm -f "$TMP/k"
  if [ -e "$img" ]; then
    equal "magic of the file" "$(head -c 3 "$img")" QFI
  fi
  try_plugin "$img" size=4T store="$store" || die "refused after a kill"
done
for ((round = 0; round < 10 * SCALE; round++)); do
  rm -f "$img"
  "$TOOL" create "$img" 4T &
  pid=$!
  sleep 0.0$(printf %02d $((round * 30 / (10 * SCALE))))
  { kill -9 $pid && wait $pid; } 2>/dev/null || true
  [ -e "$img" ] || "$TOOL" create "$img" 4T
  try_plugin "$img" || die "refused after a kill of create"
done
rm -f "$img"
equal "files left over" "$(find "$TMP" -name '*.birth' | wc -l)" 0

say "what an earlier version left, and what is not ours"
: >"$img"
try_plugin "$img" size=64M
check_clean "$img"
truncate -s 0 "$img"
truncate -s 1M "$img"
tool create "$img" 64M
check_clean "$img"
echo 'not an image' >"$img"
refused try_plugin "$img" size=64M
one_error_line "$img" 'not a qcow2 image'
refused tool create "$img" 64M
one_error_line "$img" 'exists already'
equal "what the file holds" "$(cat "$img")" 'not an image'
rm "$img"
ln -s "$TMP/nowhere" "$img"
refused try_plugin "$img" size=64M
one_error_line "$img" 'symbolic link to a file that does not exist'
refused try_plugin "$TMP/nodir/x" size=64M
one_error_line x 'its directory does not exist'
