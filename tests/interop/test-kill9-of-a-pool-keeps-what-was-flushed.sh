#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A server of a pool is killed 30 times while clients write to several disks, and
# between that the tool clones, snapshots, resets, renames and deletes disks, also
# leaving the work to later sessions, and is killed, too.  Each disk holds what was
# flushed and a prefix of what was not; a command happened as a whole or not at all.
# Breaks if: recovery of lent tables mixes disks up, loses or adds writes, or
# leaves wrong refcounts.
# SEED and ROUNDS repeat a run.
. "$(dirname "$0")/lib.sh"
need qemu-nbd nbdcopy

export TOOL PLUGIN PRELOAD=$preload
cd "$TMP"
seed=${SEED:-$RANDOM}
$PY "$HERE/poolkill.py" "$TMP/pool.qcow2" "$seed" "${ROUNDS:-$((30 * SCALE))}" \
  >out || { cat out; die "seed $seed"; }
tail -n 1 out
