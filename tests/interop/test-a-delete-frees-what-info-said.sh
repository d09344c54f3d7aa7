#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# What `qcow2-dedup disk info` says is freed if a disk is deleted is, to the byte,
# what the file loses when it is deleted: data to which nothing else refers, and
# tables.  Disks, clones and snapshots that share data and tables are deleted in
# random order until nothing is left; an independent count looks at the file each
# time, and at the refcounts of what was freed.  DEDUP_TEST_SEED=n gives it again.
# Breaks if: the pass counts what another root shares, or forgets something that is
# its own; or if a delete leaves something behind.
. "$(dirname "$0")/lib.sh"

export TOOL PLUGIN PRELOAD=$preload
cd "$TMP"
for ((i = 0; i < SCALE; i++)); do
  rm -f pool.qcow2
  $PY "$HERE/freed.py" pool.qcow2 $RANDOM
  check_clean pool.qcow2
done
