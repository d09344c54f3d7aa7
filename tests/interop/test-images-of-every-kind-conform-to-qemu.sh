#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images over the cross product of what qemu-img can make are read and written
# as QEMU sees them, byte for byte (conform.py says how).  CONFORM_SEED chooses
# a sample of them; CONFORM_ALL=1 runs all.
# Breaks if: a combination of features is read or written wrong.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

export CONFORM_PRELOAD=$preload
$PY "$HERE/conform.py" "$PLUGIN" "$TOOL" "$TMP"
