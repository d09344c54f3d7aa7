#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Pools with entries of disks that no program of ours writes: names and ids twice,
# unknown versions and flags, sizes and L1 tables that cannot be, tables that are
# several things, refcounts of lent tables that are wrong, 65,536 snapshots.  The
# server and each command of the tool refuse them by one line, or treat the disks
# as read-only; in bounded time and memory; and no other disk is changed.
# Breaks if: one of them crashes, hangs, or trusts a number in the file.
. "$(dirname "$0")/lib.sh"

export TOOL PLUGIN PRELOAD=$preload
cd "$TMP"
$PY "$HERE/hostilepool.py" "$TMP" "$@"
