#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A build directory that is set up as in README.md's "Build and install" has the
# plugin and the tool, and nothing of tests/ or bench/, even where everything
# that those need is installed.
# Breaks if: a user who only wants to serve has to compile the tests, which are
# most of the tree.
. "$(dirname "$0")/lib.sh"
need meson ninja
top=$(cd "$HERE/../.." && pwd)

meson setup "$TMP/build" "$top" >"$TMP/log" 2>&1 ||
  { tail -n 20 "$TMP/log" >&2; die "meson setup"; }
meson introspect "$TMP/build" --targets |
  $PY -c 'import json, sys
for t in json.load(sys.stdin): print(t["name"], t["defined_in"])' >"$TMP/targets"
for wanted in nbdkit-dedup-plugin qcow2-dedup; do
  grep -q "^$wanted " "$TMP/targets" || die "$wanted is not built"
done
if grep -E '/(tests|bench)/meson\.build$' "$TMP/targets" >&2; then
  die "tests or benchmarks are built"
fi
equal "tests" "$(meson introspect "$TMP/build" --tests)" '[]'
