#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A byte of L1, L2, refcount table or refcounts flips: check reports it; a
# server of that image does not crash, and no other cluster's contents change
# however much is written.
# Breaks if: a damaged pointer or count leads to a cluster that is in use.
. "$(dirname "$0")/fault.sh"
export PLUGIN TOOL NBDKIT_PRELOAD=$preload
$PY "$FAULT/rot.py" tables "$TMP" $((70 * SCALE)) "$SEED"
