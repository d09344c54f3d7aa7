#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The appliance of guestfish (libguestfs) partitions an export, makes ext4 on
# it, writes, trims and checks it; a second appliance reads it back, and QEMU
# finds the same in the image.
# Breaks if: what the appliance's QEMU asks of an NBD server is answered wrong.
#
# Only with GUESTFISH=1: an appliance boots for half a minute without KVM, and
# needs Debian's libguestfs-tools and a kernel (linux-image-cloud-amd64) that
# root or its group may read in /boot.
. "$(dirname "$0")/lib.sh"
[ "${GUESTFISH:-0}" = 1 ] || skip 'only with GUESTFISH=1'
need guestfish qemu-img

export LIBGUESTFS_BACKEND=direct LIBGUESTFS_CACHEDIR=$TMP
[ -w /dev/kvm ] && [ "${GUESTFISH_KVM:-0}" = 1 ] ||
  export LIBGUESTFS_BACKEND_SETTINGS=force_tcg
cd "$TMP"
qemu-img create -q -f qcow2 a.qcow2 256M
random_file noise 8 1

fish () # [FLAG]: commands on standard input
{
  timeout 300 guestfish "$@" --format=raw -a "nbd://?socket=$SOCK" >out 2>err ||
    die "guestfish: $(tail -n 3 err)"
}

say 'a file system'
start_server a.qcow2
fish <<'END'
run
part-disk /dev/sda mbr
mkfs ext4 /dev/sda1
mount-options discard /dev/sda1 /
upload noise /one
cp /one /two
upload noise /gone
sync
rm /gone
fstrim /
write /hello greetings
umount-all
fsck ext4 /dev/sda1
END
equal 'status of fsck' "$(tail -n 1 out)" 0
stop_server
check_clean a.qcow2

say 'read back by another appliance'
start_server -r a.qcow2
fish --ro <<'END'
run
mount-ro /dev/sda1 /
cat /hello
checksum sha256 /one
checksum sha256 /two
exists /gone
END
stop_server
want=$(sha256sum noise | cut -d ' ' -f 1)
equal 'what was written' "$(paste -sd ' ' out)" \
  "greetings $want $want false"

say 'and by guestfish without us'
(timeout 300 guestfish --ro --format=qcow2 -a a.qcow2 run : \
   mount-ro /dev/sda1 / : checksum sha256 /two) >out 2>err ||
  die "guestfish: $(tail -n 3 err)"
equal 'the file in the image' "$(cat out)" "$want"
