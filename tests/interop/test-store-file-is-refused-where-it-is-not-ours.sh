#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# store= with another image's file, with a file that is no store file, or with
# one that is in use is refused in one line, and neither file is changed.
# Breaks if: a file is written before it is known to be ours, or is not locked.
. "$(dirname "$0")/lib.sh"

a=$TMP/a.qcow2
b=$TMP/b.qcow2
random_file "$TMP/r.raw" 2 1
for d in a b; do
  tool create -o log-store-order=4,journal-areas=4 "$TMP/$d.qcow2" 16M
  start_server "$TMP/$d.qcow2" store="$TMP/$d.store"
  $PY "$HERE/put.py" "$URI" "$TMP/r.raw" 0
  stop_server
done

unchanged () # IMAGE FILE PATTERN: refused by plugin and tool
{
  local sums
  sums=$(sha256sum "$1" "$2")
  refused try_plugin "$1" store="$2"
  one_error_line "$1" "$3"
  grep -qF "$2" "$TMP/refused" || die "does not name $2"
  refused tool index --store="$2" "$1"
  one_error_line "$1" "$3"
  if [ "$1" = "$a" ]; then
    refused try_plugin -r "$1" store="$2"
    one_error_line "$1" "$3"
    refused tool check --store="$2" "$1"
    one_error_line "$1" "$3"
  fi
  equal "both files" "$(sha256sum "$1" "$2")" "$sums"
}

unchanged "$a" "$TMP/b.store" 'belongs to another image'
unchanged "$a" "$b" 'not a store file'
unchanged "$a" "$TMP/r.raw" 'not a store file'
truncate -s 1M "$TMP/zeroes"
unchanged "$a" "$TMP/zeroes" 'not a store file'

say "an image without an index: the file of another one is not taken over"
qemu-img create -q -f qcow2 "$TMP/stock.qcow2" 16M
unchanged "$TMP/stock.qcow2" "$TMP/a.store" 'belongs to another image'

say "a directory that is not there; an image that is not there"
refused try_plugin "$a" store="$TMP/none/x"
one_error_line "$a" 'directory does not exist'
refused try_plugin "$TMP/none.qcow2" store="$TMP/new"
one_error_line "$TMP/none.qcow2" 'No such file'
refused try_plugin "$TMP/r.raw" store="$TMP/new"
[ ! -e "$TMP/new" ] || die "left a store file behind"
refused try_plugin "$a" store=

say "in use"
start_server "$a" store="$TMP/a.store"
cp "$a" "$TMP/copy.qcow2"
refused try_plugin "$TMP/copy.qcow2" store="$TMP/a.store"
one_error_line "$TMP/copy.qcow2" 'in use'
stop_server
refused try_plugin "$a" store="$a"
one_error_line "$a" 'is the image itself'
check_clean "$a"
check_clean "$b"

say "two copies of an image take it from each other, and mix nothing"
rm "$TMP/copy.qcow2"
cp "$a" "$TMP/copy.qcow2"
random_file "$TMP/x.raw" 2 2
random_file "$TMP/y.raw" 2 3
for round in 1 2; do
  start_server "$a" store="$TMP/a.store" verify=off
  $PY "$HERE/put.py" "$URI" "$TMP/x.raw" $((round * 4 << 20))
  $PY "$HERE/put.py" "$URI" "$TMP/y.raw" $((8 << 20))
  stop_server
  start_server "$TMP/copy.qcow2" store="$TMP/a.store" verify=off
  $PY "$HERE/put.py" "$URI" "$TMP/y.raw" $((round * 4 << 20))
  $PY "$HERE/put.py" "$URI" "$TMP/x.raw" $((8 << 20))
  stop_server
done
want () # RAW1 RAW2
{
  truncate -s 16M "$TMP/want.raw"
  dd if="$TMP/r.raw" of="$TMP/want.raw" conv=notrunc status=none
  for i in 4 8; do
    dd if="$1" of="$TMP/want.raw" bs=1M seek=$i conv=notrunc status=none
  done
  dd if="$2" of="$TMP/want.raw" bs=1M seek=8 conv=notrunc status=none
}
want "$TMP/x.raw" "$TMP/y.raw"
# Round 2 put x at 8 MiB first, and y over it.
same_as_raw "$TMP/want.raw" "$a"
rm "$TMP/want.raw"
want "$TMP/y.raw" "$TMP/x.raw"
same_as_raw "$TMP/want.raw" "$TMP/copy.qcow2"
check_clean "$a"
check_clean "$TMP/copy.qcow2"
