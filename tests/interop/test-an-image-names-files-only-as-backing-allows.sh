#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The files that an image names are opened only as backing= allows: none by
# default, with same-dir those beside the image and no symbolic link, through
# the whole chain; the refusal names the line to add.  Names of protocols are
# no files.  The program qcow2-dedup opens none.
# Breaks if: the author of an image reads what only the server may read.
. "$(dirname "$0")/lib.sh"

mkdir "$TMP/images" "$TMP/images/sub" "$TMP/elsewhere"
cd "$TMP/images"
echo 'the secret of somebody else' >"$TMP/elsewhere/secret"
truncate -s 1M "$TMP/elsewhere/secret" base.raw sub/base.raw
printf 'base' | dd of=base.raw conv=notrunc status=none
qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2
ln -s ../elsewhere/secret link.raw
ln base.raw json:x
ln base.raw nbd:x
ln -s "$TMP/images" "$TMP/alias"

overlay () # NAME BACKING [FORMAT]
{
  qemu-img create -q -u -f qcow2 -b "$2" -F "${3:-raw}" "$1" 1M
}

served () # IMAGE FIRST_BYTES [KEY...]
{
  local image=$1 first=$2
  shift 2
  start_server -r "$image" "$@"
  $PY "$HERE/nbdrun.py" "$URI" "
got = h.pread(4, 0)
assert got == b'$first', got"
  stop_server
}

not_served () # IMAGE PATTERN [KEY...]
{
  local image=$1 pattern=$2 sum
  shift 2
  sum=$(sha256sum <"$image")
  refused try_plugin "$image" "$@"
  one_error_line "$image" "$pattern"
  refused try_plugin -r "$image" "$@"
  one_error_line "$image" "$pattern"
  equal "$image after the refusal" "$(sha256sum <"$image")" "$sum"
}

say "beside the image"
for name in base.raw ./base.raw "$TMP/images/base.raw" file:base.raw; do
  overlay a.qcow2 "$name"
  not_served a.qcow2 'backing file .*add backing=same-dir'
  not_served a.qcow2 'add backing=same-dir' backing=off
  served a.qcow2 base backing=same-dir
  served a.qcow2 base backing=any
done
served "$TMP/alias/a.qcow2" base backing=same-dir
overlay a.qcow2 mid.qcow2 qcow2
served a.qcow2 base backing=same-dir

say "elsewhere"
for name in ../elsewhere/secret "$TMP/elsewhere/secret" sub/../base.raw \
            sub/base.raw "$TMP/images/sub/../base.raw" .. /etc/passwd \
            "$TMP/images//base.raw" file:../elsewhere/secret; do
  overlay b.qcow2 "$name"
  not_served b.qcow2 'add backing=any'
  not_served b.qcow2 "not in the image's directory.*backing=any" \
    backing=same-dir
done
overlay b.qcow2 ../elsewhere/secret
served b.qcow2 'the ' backing=any

say "a symbolic link"
overlay c.qcow2 link.raw
not_served c.qcow2 'symbolic link.*backing=any' backing=same-dir
served c.qcow2 'the ' backing=any

say "further down the chain"
overlay d1.qcow2 ../elsewhere/secret
overlay d2.qcow2 d1.qcow2 qcow2
overlay d3.qcow2 link.raw
overlay d4.qcow2 d3.qcow2 qcow2
not_served d2.qcow2 'd1.qcow2: backing file .*secret: is not in' \
  backing=same-dir
not_served d4.qcow2 'd3.qcow2: backing file link.raw: is a symbolic' \
  backing=same-dir

say "no files"
for name in json:x nbd:x 'json:{"driver":"file","filename":"base.raw"}' \
            nbd://localhost/x fat:sub ssh://host/x; do
  overlay e.qcow2 "$name"
  for policy in off same-dir any; do
    not_served e.qcow2 'only files in the file system' backing=$policy
  done
done
mkfifo fifo
for name in fifo sub; do
  overlay e.qcow2 "$name"
  not_served e.qcow2 'regular file|is a directory' backing=same-dir
done

say "control characters in a name stay in the image"
overlay f.qcow2 XXXXXXXX
$PY - f.qcow2 <<'END'
import sys
b = bytearray(open(sys.argv[1], 'rb').read())
i = b.index(b'XXXXXXXX')
b[i:i + 8] = b'a\nb\x1b[31m'
open(sys.argv[1], 'wb').write(b)
END
not_served f.qcow2 'backing file a\?b\?\[31m'

say "the tool"
overlay g.qcow2 "$TMP/elsewhere/no-such-file"
tool info g.qcow2 >"$TMP/out"
tool check g.qcow2 >"$TMP/out"
overlay g.qcow2 base.raw
start_server g.qcow2 backing=same-dir
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(b"x" * 5000, 70000); h.flush()'
kill_server
mv base.raw gone.raw
tool recover g.qcow2
mv gone.raw base.raw
check_clean g.qcow2
served g.qcow2 base backing=same-dir

refused try_plugin a.qcow2 backing=some
one_error_line a.qcow2 'backing=some: must be off, same-dir or any'
