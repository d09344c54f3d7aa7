#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A file of a room that includes a header of a room above it, or beside it, is
# refused by the compiler: each room has include directories of its own.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(cd "${BUILD_DIR:-build}" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

die () { echo "FAIL: $*" >&2; exit 1; }

# The arguments that the room's own build gives to FILE, a line each.
arguments () # FILE
{
  python3 - "$build" "$top/$1" <<'PYTHON'
import json, os, shlex, sys
build, path = sys.argv[1:]
for entry in json.load(open(os.path.join(build, 'compile_commands.json'))):
    full = os.path.join(entry['directory'], entry['file'])
    if os.path.realpath(full) != os.path.realpath(path):
        continue
    args = shlex.split(entry['command'])
    keep = [a for a in args[1:] if a.startswith(('-I', '-D', '-std', '-f'))]
    print('\n'.join(keep))
    break
PYTHON
}

# Does FILE, with HEADER included before it, compile as a part of its room?
compiles () # FILE HEADER
{
  local args
  mapfile -t args < <(arguments "$1")
  [ ${#args[@]} -gt 0 ] || die "$1 is not built"
  printf '#include "%s"\n#include "%s"\n' "$2" "$top/$1" >"$tmp/breach.c"
  (cd "$build" &&
   cc "${args[@]}" -I"$top/$(dirname "$1")" -w -fsyntax-only "$tmp/breach.c") \
    >"$tmp/log" 2>&1
}

while read -r file allowed forbidden; do
  compiles "$file" "$allowed" ||
    { cat "$tmp/log"; die "$file does not compile with $allowed"; }
  for header in ${forbidden//,/ }; do
    [ -n "$(find "$top" -name "$header" -not -path '*/build*/*')" ] ||
      die "there is no $header any more"
    ! compiles "$file" "$header" || die "$file may include $header"
    grep -q "$header: No such file" "$tmp/log" ||
      { cat "$tmp/log"; die "$file with $header is refused for another reason"; }
  done
done <<'ROOMS'
common/fault.c fault.h io.h,hash.h
io/file.c io.h qcow2.h,hash.h,dedup.h
qcow2fmt/alloc.c io.h dedup.h,hash.h,index.h,export.h
dedup/hash/hash.c checked.h io.h,index.h,dedup.h,qcow2.h
dedup/index/table/segment.c hash.h index.h,dedup.h,config.h,journal.h,qcow2.h
dedup/index/young.c segment.h dedup.h,config.h,journal.h,disk.h,qcow2.h,export.h
dedup/journal/journal.c qcow2.h index.h,config.h,dedup.h,disk.h,export.h
dedup/write.c index.h export.h,loop.h
server/request.c dedup.h index.h,incarnation.h,segment.h
ROOMS
