#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Writes of 4 KiB all over a disk of 20 GiB fill the host: half of what they
# need is L2 tables, which reach the file long after the answer.  The idle
# server must still be able to write them, and a closing one, and trims must
# make room.
# Breaks if: tables get no space on the host when they are made.
. "$(dirname "$0")/fault.sh"
small_disk "$TMP/small" 64
disk=$TMP/small/disk.qcow2

start_server "$disk" size=20G commit-interval=1
$PY "$FAULT/full.py" fill "$URI" "$TMP" "$SEED"
at_most "kB free on the full disk" "$(free_kb "$TMP/small")" 300
$PY "$FAULT/full.py" verify "$URI" "$TMP"
wait_until_clean "$disk" 8
$PY "$FAULT/full.py" churn "$URI" "$TMP" $((SEED + 1)) $((3000 * SCALE))
$PY "$FAULT/full.py" verify "$URI" "$TMP"

say "trims make room"
before=$(disk_usage "$disk")
$PY "$FAULT/full.py" trim "$URI" "$TMP" $((SEED + 2)) 50
sleep 2.5                       # two commits: one to free, one to say so
at_most "bytes after a trim of half" "$(disk_usage "$disk")" \
  $((before - (8 << 20)))
$PY "$FAULT/full.py" fill "$URI" "$TMP" $((SEED + 3)) | tee "$TMP/fill.out"
at_least "writes taken after the trim" \
  "$(grep -o "'written': [0-9]*" "$TMP/fill.out" |
     awk '{ n += $2 } END { print n + 0 }')" 2000
$PY "$FAULT/full.py" churn "$URI" "$TMP" $((SEED + 4)) 1000
stop_server
equal "messages about a failed close" \
  "$(grep -c 'not closed cleanly' "$SRV_LOG" || true)" 0
check_clean "$disk"

start_server "$disk"
$PY "$FAULT/full.py" verify "$URI" "$TMP"
stop_server
check_clean "$disk"
