#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Between our sessions stock QEMU deletes disks of a pool, makes one the active disk,
# snapshots, resizes and writes the active disk, amends and repairs the image; and
# reads each disk.  We go on: clones, resets, writes, deletions.  In random order,
# against a model of every disk; after each step qemu-img check, qcow2-dedup check
# and an independent count of references find nothing.
# Breaks if: a disk loses or changes data because of what another program did to
# the image, a deleted disk comes back or takes a clone's data with it, or debts
# are left where a stock program may look.
# SEED and STEPS repeat a run.
. "$(dirname "$0")/lib.sh"
need qemu-nbd nbdcopy

export TOOL PLUGIN PRELOAD=$preload
cd "$TMP"
if [ -n "${SEED-}" ]; then
  $PY "$HERE/poolstock.py" "$TMP/pool.qcow2" "$SEED" "${STEPS:-25}"
  exit 0
fi
first=$RANDOM
for ((i = 0; i < 4 * SCALE; i++)); do
  $PY "$HERE/poolstock.py" "$TMP/pool$i.qcow2" $((first + i)) "${STEPS:-25}" >out ||
    { cat out; die "seed $((first + i))"; }
  tail -n 1 out
  rm -f "$TMP/pool$i.qcow2"*
done
