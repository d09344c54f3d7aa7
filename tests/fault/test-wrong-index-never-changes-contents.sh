#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The index rots: configuration, journal and incarnations are deleted,
# overwritten with garbage, flipped byte after byte (a sample;
# DEDUP_TEST_SCALE), or replaced by those of another image or by older ones.
# With verify=on contents are right all the same, old data and new, and the
# image is closed clean.
# Breaks if: anything the index says is taken on trust.
. "$(dirname "$0")/fault.sh"
export PLUGIN TOOL NBDKIT_PRELOAD=$preload
$PY "$FAULT/rot.py" index "$TMP" $((30 * SCALE)) "$SEED"
