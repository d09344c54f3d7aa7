#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# make.sh OLD_BUILD: make the images in this directory anew with OLD_BUILD, a build
# directory of an earlier version, and write to expected.json what that version
# finds in them.  Run it by hand, and seldom: kept images prove that bytes of
# the version that made them are understood.
#
# Those that are here were made by version 1f9acb7.
set -euo pipefail
[ $# = 1 ] || { echo "usage: ${0##*/} OLD_BUILD" >&2; exit 2; }
old=$(cd "$1" && pwd)
export BUILD_DIR=$old
. "$(dirname "${BASH_SOURCE[0]}")/images.sh"

cd "$TMP"
for name in "${NAMES[@]}"; do
  say "$name"
  make_image "$name" "$TMP"
  count=$(recovered_count "$name")
  described "$name" "$count" >>entries
  for file in "$name"*; do
    gzip -9nc "$file" >"$IMAGES/$file.gz"
  done
  understands "$name" "$count"
  rm "$name"*
done
$PY -c '
import json, sys
json.dump(dict(map(json.loads, sys.stdin)), sys.stdout, indent=1)
print()' <entries >"$IMAGES/expected.json"
