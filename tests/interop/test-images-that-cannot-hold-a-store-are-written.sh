#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# An image that cannot be deduplicated is served with one line that says so, and
# written without a store: version 2 with dedup=off (otherwise the line says how
# to upgrade it), refcounts of 1 bit, external data files of both kinds. An
# image with refcounts of 2 bits gets a store in which nothing is shared.  A
# dirty image gets its refcounts rebuilt, a corrupt one is read-only.
# Breaks if: an image is refused that could be served, or a line is missing.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
random_file "$TMP/a.raw" 2 1
random_file "$TMP/a2.raw" 1 2
head -c 65536 "$TMP/a2.raw" >"$TMP/b.raw"
written_twice () # IMAGE
{
  start_server "$@"
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((1 << 20))
  $PY "$HERE/put.py" "$URI" "$TMP/a.raw" $((5 << 20))
  # The place of the first cluster is 0 in a data file.
  $PY "$HERE/put.py" "$URI" "$TMP/b.raw" 0
  stop_server
  qemu-img check -q "$1"
  tool_check_clean "$1"
  dd if=/dev/zero bs=1M count=16 of=want.raw status=none
  dd if=a.raw bs=1M seek=1 conv=notrunc of=want.raw status=none
  dd if=a.raw bs=1M seek=5 conv=notrunc of=want.raw status=none
  dd if=b.raw conv=notrunc of=want.raw status=none
  same_as_raw want.raw "$1"
}

say 'version 2'
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 16M
refused try_plugin v2.qcow2
one_error_line v2.qcow2 "qemu-img amend -o compat=1.1 .*v2.qcow2"
written_twice v2.qcow2 dedup=off
equal 'snapshots' "$(qemu-img snapshot -l v2.qcow2)" ''
qemu-img amend -q -f qcow2 -o compat=1.1 v2.qcow2
try_plugin v2.qcow2 || die 'the advice does not help'

say '1 bit'
qemu-img create -q -f qcow2 -o refcount_bits=1 one.qcow2 16M
written_twice one.qcow2
grep -q 'without deduplication.*refcount_bits=16' "$SRV_LOG" ||
  die "does not say why: $(cat "$SRV_LOG")"
equal 'snapshots' "$(qemu-img snapshot -l one.qcow2)" ''

say '2 bits'
qemu-img create -q -f qcow2 -o refcount_bits=2 two.qcow2 16M
written_twice two.qcow2
grep -q 'without deduplication.*refcount_bits=16' "$SRV_LOG" ||
  die "does not say why: $(cat "$SRV_LOG")"

say 'external data file'
for raw in off on; do
  rm -f data.raw
  qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=$raw \
    data.qcow2 16M
  refused try_plugin data.qcow2
  one_error_line data.qcow2 'data file data.raw: .*add backing=any'
  refused try_plugin data.qcow2 backing=same-dir
  one_error_line data.qcow2 'data file data.raw: would be written'
  try_plugin -r data.qcow2 backing=same-dir || die "not served read-only"
  written_twice data.qcow2 backing=any
  grep -q 'external file: served without deduplication' "$SRV_LOG" ||
    die "does not say why: $(cat "$SRV_LOG")"
done
cmp want.raw data.raw || die 'the raw data file is not the disk'
ln -s data.raw link.raw
qemu-img create -q -f qcow2 -o data_file=link.raw link.qcow2 16M
refused try_plugin -r link.qcow2 backing=same-dir
one_error_line link.qcow2 'symbolic link'

say 'dirty'
qemu-img create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 16M
qemu-io -c 'write -P 7 0 1M' -c flush -c 'sigraise 9' dirty.qcow2 \
  >/dev/null 2>&1 || true
equal 'dirty bit' "$(od -An -tu1 -j79 -N1 dirty.qcow2 | tr -d ' ')" 1
sum=$(sha256sum <dirty.qcow2)
start_server dirty.qcow2 -r
stop_server
equal 'the dirty image, served read-only' "$(sha256sum <dirty.qcow2)" "$sum"
rm dirty.qcow2
qemu-img create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 16M
qemu-io -c 'write -P 0 9M 1M' -c flush -c 'sigraise 9' dirty.qcow2 \
  >/dev/null 2>&1 || true
written_twice dirty.qcow2
grep -q 'rebuilt' "$SRV_LOG" || die "does not say: $(cat "$SRV_LOG")"

say 'corrupt'
qemu-img create -q -f qcow2 corrupt.qcow2 16M
printf '\002' | dd of=corrupt.qcow2 bs=1 seek=79 conv=notrunc status=none
sum=$(sha256sum <corrupt.qcow2)
start_server corrupt.qcow2
nbdinfo --json "$URI" | has '"is_read_only": true' || die 'is writable'
stop_server
grep -q 'marked corrupt.*read-only' "$SRV_LOG" || die 'does not say why'
equal 'the corrupt image' "$(sha256sum <corrupt.qcow2)" "$sum"
