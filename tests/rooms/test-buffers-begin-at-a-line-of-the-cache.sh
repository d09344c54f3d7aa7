#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Buffers of the engine come from aligned_new (common/aligned.h), because copies by the
# kernel into memory that begins elsewhere run at half the speed or less on some
# processors (bench/README.md, "Copies").  This looks at the source: a variable that is
# called as buffers are here does not get its memory from malloc, calloc or realloc, and
# bytes at the end of a structure are CACHE_ALIGNED.  What
# is never copied in or out is left out: entries of the snapshot table (raw, anchor), and
# io/recording.c, which is for tests.
# Breaks if: somebody writes malloc for a buffer that data is read into.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

names='buf|bytes|in|all|cluster|clusters|block|bounce|scratch|zero'
found=$(grep -nE "\b($names) = (malloc|calloc) \(" io/*.c qcow2fmt/*.c dedup/*.c dedup/*/*.c \
             dedup/*/*/*.c server/*.c |
        grep -vE 'sizeof|raw->bytes|anchor\.bytes' || true)
found+=$(grep -nE "^ +(char|uint8_t) [a-z]+\[\];" io/*.[ch] qcow2fmt/*.[ch] dedup/*.[ch] \
              dedup/*/*.[ch] server/*.[ch] || true)
if [ -n "$found" ]; then
  printf '%s\n' "$found" >&2
  echo 'FAIL: these buffers may begin anywhere; use aligned_new' >&2
  exit 1
fi
