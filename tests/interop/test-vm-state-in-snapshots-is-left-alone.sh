#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine that was saved into the image (savevm) loads again after the image
# was served and written; the snapshot's disk is as it was.
# Breaks if: what lies past the end of the disk in L2 tables, the VM state, is
# written over, freed or counted wrong.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64

machine () # MONITOR COMMAND...
{
  printf '%s\n' "$@" quit |
    with_timeout 120 qemu-system-x86_64 -M q35 -accel tcg -m 16 -nographic \
      -serial none -monitor stdio -S \
      -drive file=vm.qcow2,format=qcow2,if=virtio >machine.log 2>&1 ||
    { cat machine.log >&2; die "qemu ended badly: $*"; }
  if grep -i 'error' machine.log >&2; then die "qemu: $*"; fi
}

cd "$TMP"
random_file a.raw 4 1
random_file b.raw 4 2
for extended in off on; do
  say "extended_l2=$extended"
  rm -f vm.qcow2
  qemu-img create -q -f qcow2 -o extended_l2=$extended vm.qcow2 64M
  qemu-io -c "write -s a.raw 1M 4M" vm.qcow2 >/dev/null
  machine 'savevm vm1'
  qemu-img convert -O raw -l vm1 vm.qcow2 before.raw
  start_server vm.qcow2
  $PY "$HERE/put.py" "$URI" b.raw $((1 << 20))
  $PY "$HERE/put.py" "$URI" a.raw $((60 << 20))
  stop_server
  check_clean vm.qcow2
  qemu-img convert -O raw -l vm1 vm.qcow2 after.raw
  cmp before.raw after.raw || die 'the snapshot changed'
  machine 'loadvm vm1'
  check_clean vm.qcow2
  same_as_raw before.raw vm.qcow2
done
