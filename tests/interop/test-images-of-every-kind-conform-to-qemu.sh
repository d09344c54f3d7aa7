#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images over the cross product of what qemu-img can make: every byte as QEMU
# sees it, read and written (conform.py says how).  A slice of them chosen by
# CONFORM_SEED; CONFORM_ALL=1 for all.
# Breaks if: a combination of features is read or written wrong.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io

export CONFORM_PRELOAD=$preload
$PY "$HERE/conform.py" "$PLUGIN" "$TOOL" "$TMP"
