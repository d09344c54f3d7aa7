#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# qemu-img snapshot -a refuses the anchor and changes no byte. After the server
# has written, the same is true of the anchor of an older image, called "dedup",
# which keeps its name and can be deleted. Where an anchor was applied before,
# the plugin and the tool say in one line that the disk is lost, and a snapshot
# of the user's brings it back. Where the snapshot table shares its cluster with
# guest data, the data stays.
# Breaks if: QEMU would apply an anchor, or such an image is taken for a disk.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
random_file a.raw 8 1
random_file b.raw 2 2
tool create -o cluster-size=4k,log-store-order=5,journal-areas=2 disk.qcow2 32M
start_server disk.qcow2
$PY "$HERE/put.py" "$URI" a.raw 0
stop_server

# -a NAME FILE is refused, and FILE stays as it is.
not_applied () # NAME FILE
{
  cp "$2" before
  refused qemu-img snapshot -a "$1" "$2"
  cmp before "$2" || die "a refused snapshot -a changed $2"
  grep -q 'multiple of 512' refused || die "refused otherwise: $(cat refused)"
}

# What an old program made of it.
as_before () # FILE
{
  cp "$1" old.qcow2
  $PY "$HERE/oldanchor.py" old.qcow2 >out
  grep -q 'disk size' out || die "no anchor to make an old one of"
  qemu-img snapshot -l old.qcow2 | has '^dedup  *dedup ' ||
    die "the anchor has no old name"
  check_clean old.qcow2
}

say "a new image"
not_applied $ANCHOR disk.qcow2
check_clean disk.qcow2
qemu-img convert -O raw -l $ANCHOR disk.qcow2 out.raw
check_clean disk.qcow2
qemu-img convert -O raw disk.qcow2 want.raw
qemu-img snapshot -c mine disk.qcow2
qemu-img snapshot -c $ANCHOR disk.qcow2     # not the anchor: it has another id
start_server disk.qcow2
nbdinfo --list "$URI" | grep -c '^export=' >out
equal "number of exports" "$(cat out)" 3
served_as_raw want.raw
$PY "$HERE/put.py" "$URI" b.raw $((1 << 20))
stop_server
not_applied $ANCHOR disk.qcow2
qemu-img snapshot -a mine disk.qcow2
check_clean disk.qcow2
same_as_raw want.raw disk.qcow2
start_server disk.qcow2
served_as_raw want.raw
stop_server
check_clean disk.qcow2

say "an older image"
as_before disk.qcow2
start_server -r old.qcow2
nbdinfo --list "$URI" | grep -c '^export=' >out
equal "number of exports" "$(cat out)" 3
served_as_raw want.raw
stop_server
cp old.qcow2 unsafe.qcow2
start_server old.qcow2
$PY "$HERE/put.py" "$URI" b.raw $((20 << 20))
nbdcopy "$URI" more.raw
kill_server
start_server old.qcow2
served_as_raw more.raw
stop_server
check_clean old.qcow2
not_applied dedup old.qcow2
qemu-img snapshot -d dedup old.qcow2
qemu-img check old.qcow2 >out
same_as_raw more.raw old.qcow2
start_server old.qcow2
served_as_raw more.raw
stop_server
qemu-img snapshot -l old.qcow2 | has "^$ANCHOR  *$ANCHOR " ||
  die "no new anchor"
check_clean old.qcow2

say "an older image whose anchor was applied"
qemu-img snapshot -a dedup unsafe.qcow2
qemu-img check unsafe.qcow2 >out
grep -q 'No errors' out || die "qemu-img finds errors: $(cat out)"
cp unsafe.qcow2 applied.qcow2
for flags in '' -r; do
  refused run_nbdkit $flags "$PLUGIN" unsafe.qcow2 --run true
  one_error_line unsafe.qcow2 'anchor, was applied.*qcow2-dedup-recover'
done
for cmd in recover index; do
  refused tool $cmd unsafe.qcow2
  one_error_line unsafe.qcow2 'anchor, was applied.*qcow2-dedup-recover'
done
rc=0
tool check unsafe.qcow2 >out 2>&1 || rc=$?
equal "status of check" $rc 2
grep -q 'ERROR.*was applied.*lost' out || die "check does not say it"
if grep -q 'not affected' out; then die "check says that data is well"; fi
tool info unsafe.qcow2 | has '^state: .*the disk is lost' ||
  die "info does not say it"
# Nor is it a base for other images.
qemu-img create -q -f qcow2 -b unsafe.qcow2 -F qcow2 over.qcow2 32M
refused run_nbdkit "$PLUGIN" over.qcow2 backing=same-dir --run true
one_error_line over.qcow2 'anchor snapshot was applied'
cmp unsafe.qcow2 applied.qcow2 || die "looking at it changed it"

say "written by qemu, and then the user's snapshot"
qemu-io -f qcow2 -c 'write -P 7 1M 64k' unsafe.qcow2 >/dev/null
refused run_nbdkit "$PLUGIN" unsafe.qcow2 --run true
one_error_line unsafe.qcow2 'anchor, was applied'
qemu-img convert -O raw -l mine unsafe.qcow2 out.raw
cmp -n $((32 << 20)) out.raw want.raw || die "the snapshot is not whole"
qemu-img snapshot -a mine unsafe.qcow2
check_clean unsafe.qcow2
start_server unsafe.qcow2
served_as_raw want.raw
$PY "$HERE/put.py" "$URI" b.raw $((1 << 20))
stop_server
check_clean unsafe.qcow2
not_applied dedup unsafe.qcow2

say "an older image, and guest data is one cluster with the snapshot table"
tool create shared.qcow2 16M
qemu-io -f qcow2 -c 'write -P 5 0 64k' shared.qcow2 >/dev/null
$PY "$HERE/oldanchor.py" shared.qcow2 >out
PYTHONPATH=$HERE $PY -c 'if True:
  import crosslink
  image = crosslink.Image("shared.qcow2")
  image.counted_guest(image.snapshots)'
qemu-img check -q shared.qcow2 || die "qemu-img finds errors before"
qemu-img convert -O raw shared.qcow2 want.raw
start_server shared.qcow2
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(b"x" * 65536, 1 << 20); h.flush()'
stop_server
qemu-img convert -O raw shared.qcow2 out.raw
cmp -n 65536 want.raw out.raw || die "guest data changed that nobody wrote"
qemu-img check -q shared.qcow2 || die "qemu-img finds errors afterwards"
