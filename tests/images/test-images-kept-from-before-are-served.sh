#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Images that an earlier version made and left, closed or crashed, are understood
# to the byte: recovery finds what the earlier version's recovery found in them,
# the index finds all that the disk holds, checks find no errors, and they can be
# written again.  make.sh made them; expected.json says what is in them.
# Breaks if: a magic number, a record, a table page, the configuration, the store
# file or a checksum is coded in another way, or recovery stops elsewhere.
. "$(dirname "$0")/images.sh"

names=$($PY -c 'import json, sys; print(*json.load(open(sys.argv[1])))' \
          "$IMAGES/expected.json")
equal "the images" "$names" "${NAMES[*]}"
# Each field that the earlier version's info has is the same in ours, of IMAGE.
# Prints how many unflushed operations that version found.
same_info () # IMAGE
{
  described "$1" 0 >described
  $PY - "$IMAGES/expected.json" described <<'PYTHON'
import json, sys
name, now = json.load(open(sys.argv[2]))
was = json.load(open(sys.argv[1]))[name]
for key, value in was['info'].items():
    if now['info'].get(key) != value:
        sys.exit('%s of %s is %r, was %r' %
                 (key, name, now['info'].get(key), value))
print(was['unflushed'])
PYTHON
}

cd "$TMP"
for name in $names; do
  say "$name"
  for packed in "$IMAGES/$name".gz "$IMAGES/$name".*.gz; do
    if [ -f "$packed" ]; then
      file=${packed##*/}
      gzip -dc "$packed" | cp --sparse=always /dev/stdin "${file%.gz}"
    fi
  done
  count=$(same_info "$name")
  equal "unflushed operations in $name" "$(recovered_count "$name")" "$count"
  understands "$name" "$count"
  rm "$name"*
done
