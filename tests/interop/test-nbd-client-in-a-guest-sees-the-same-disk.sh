#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A Debian kernel in QEMU attaches an export with nbd-client, makes a file
# system on it, writes, syncs and trims, attaches it again over TLS, with certificates
# of contrib/tls/nbd-tls, and reads back.  QEMU then finds in the image what the guest
# saw.
# Breaks if: what a kernel asks of an NBD server is answered wrong, or nbd-client does not
# take the certificates.
#
# Kernel and nbd-client are Debian packages, fetched by apt-get; skipped where
# they are not available.  GUEST_PACKAGES=DIR: take the .deb files from there.
. "$(dirname "$0")/lib.sh"
need qemu-system-x86_64 qemu-img mke2fs e2fsck debugfs dpkg-deb apt-get ldd certtool

size=$((64 << 20))

say 'a kernel'
mkdir "$TMP/debs" "$TMP/x" "$TMP/root"
if [ -n "${GUEST_PACKAGES:-}" ]; then
  cp "$GUEST_PACKAGES"/*.deb "$TMP/debs"
else
  kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
             sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | tail -n 1)
  [ -n "$kernel" ] || skip 'apt knows no linux-image-cloud-amd64'
  (cd "$TMP/debs" &&
     timeout 60 apt-get download "$kernel" nbd-client busybox-static \
       libnl-genl-3-200 libnl-3-200 >/dev/null 2>"$TMP/apt.log") ||
    skip "apt-get download: $(tail -n 1 "$TMP/apt.log")"
fi
for deb in "$TMP"/debs/*.deb; do
  dpkg-deb -x "$deb" "$TMP/x"
done
# Up to Debian 12 packages have /bin, /sbin and /lib, later ones /usr/bin...
unpacked () # PATTERN: the file of a package whose path ends so
{
  find "$TMP/x" -path "*/$1" -type f | grep . ||
    die "the packages have no $1"
}
vmlinuz=$(unpacked 'boot/vmlinuz-*')
busybox=$(unpacked bin/busybox)

say 'its initramfs'
root=$TMP/root
mkdir -p "$root"/{bin,prog,dev,proc,sys,mnt,lib,lib64,etc,modules,run}
cp "$busybox" "$root/bin/"
ln -s busybox "$root/bin/sh"
add_program () # FILE: with its libraries
{
  cp "$1" "$root/prog/"
  LD_LIBRARY_PATH=$(find "$TMP/x" -name 'libnl*.so*' -printf '%h:' ) \
    ldd "$1" | grep -o '/[^ ]*' | while read -r lib; do
    mkdir -p "$root/$(dirname "${lib#"$TMP/x"}")"
    cp -L "$lib" "$root/${lib#"$TMP/x"}"
  done
}
add_program "$(unpacked sbin/nbd-client)"
add_program "$(command -v mke2fs)"
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev \
         virtio_pci failover net_failover virtio_net nbd; do
  # A module may be built in, or compressed (Debian 13).
  found=$(find "$TMP/x" -name "$m.ko*")
  case $found in
    '') ;;
    *.ko) cp "$found" "$root/modules/$m.ko" ;;
    *.xz) "$busybox" xzcat "$found" >"$root/modules/$m.ko" ;;
    *) die "$found is compressed in another way" ;;
  esac
done
tls=$TMP/tls
for args in "ca $tls" "server $tls storage" "client $tls guest"; do
  "$HERE/../../contrib/tls/nbd-tls" $args >"$TMP/tls.log" 2>&1 ||
    die "nbd-tls $args: $(cat "$TMP/tls.log")"
done
cp -r "$tls/guest" "$root/tls"
cat > "$root/init" <<'EOF'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
export LD_LIBRARY_PATH=$(find /lib /usr /lib64 -name '*.so*' 2>/dev/null |
  sed 's,/[^/]*$,,' | sort -u | tr '\n' ':')
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev \
         virtio_pci failover net_failover virtio_net nbd; do
  [ ! -f /modules/$m.ko ] || insmod /modules/$m.ko
done
port=$(sed -n 's/.*port=\([0-9]*\).*/\1/p' /proc/cmdline)
run () { "$@" || { echo "GUEST-FAILED $*"; poweroff -f; sleep 60; }; }
run ip link set lo up
run ip addr add 10.0.2.15/24 dev eth0
run ip link set eth0 up
attach () { run /prog/nbd-client 10.0.2.2 $port /dev/nbd0 "$@"; }
detach () { run /prog/nbd-client -d /dev/nbd0; }
sum () { sha256sum "$1" | cut -d' ' -f1; }
attach -persist
echo "GUEST-SIZE $(cat /sys/block/nbd0/size)"
echo "GUEST-FLUSHES $(cat /sys/block/nbd0/queue/write_cache)"
echo "GUEST-TRIMS $(cat /sys/block/nbd0/queue/discard_max_bytes)"
run /prog/mke2fs -q -F -t ext4 -b 4096 /dev/nbd0
run mount -t ext4 /dev/nbd0 /mnt
run dd if=/dev/urandom of=/mnt/a bs=64k count=160 2>/dev/null
run cp /mnt/a /mnt/b
run dd if=/dev/urandom of=/mnt/gone bs=64k count=100 2>/dev/null
run sync
run rm /mnt/gone
run sync                        # what is not committed is not trimmed
run fstrim /mnt
want=$(sum /mnt/a)
run umount /mnt
detach
# Without TLS nbd-client would end here.
attach -cacertfile /tls/ca-cert.pem -certfile /tls/client-cert.pem \
  -keyfile /tls/client-key.pem -tlshostname storage
echo GUEST-TLS
run mount -t ext4 -o ro /dev/nbd0 /mnt
[ "$want" = "$(sum /mnt/a)" ] || echo GUEST-FAILED a
[ "$want" = "$(sum /mnt/b)" ] || echo GUEST-FAILED b
run umount /mnt
echo "GUEST-FILE $want"
echo "GUEST-DISK $(sum /dev/nbd0)"
detach
echo GUEST-DONE
poweroff -f
EOF
chmod +x "$root/init"
(cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) \
  >"$TMP/initramfs"

say 'guest'
disk=$TMP/g.qcow2
tool create -o cluster-size=4k "$disk" $((size >> 20))M
# The kernel's client speaks TCP; QEMU's 10.0.2.2 is this host's loopback.
port=$($PY -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
SRV_LOG=$TMP/server.log
nbdkit_cmd -f -i 127.0.0.1 -p "$port" --tls=on --tls-certificates="$tls/storage" \
  --tls-verify-peer --pidfile "$TMP/pid" "$PLUGIN" "$disk" \
  >"$SRV_LOG" 2>&1 &
SRV_PID=$!
server_pids+=("$SRV_PID")
for ((i = 0; i < 600; i++)); do
  [ -s "$TMP/pid" ] && break
  kill -0 "$SRV_PID" || die 'server did not start'
  sleep 0.05
done
timeout -k 5 500 qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 256 \
  -display none -serial stdio -monitor none -no-reboot \
  -netdev user,id=n -device virtio-net-pci,netdev=n,romfile= \
  -kernel "$vmlinuz" -initrd "$TMP/initramfs" \
  -append "console=ttyS0 quiet panic=-1 port=$port" \
  </dev/null >"$TMP/guest.log" 2>&1 || die "guest: $(tail -n 5 "$TMP/guest.log")"
tr -d '\r' <"$TMP/guest.log" >"$TMP/guest.txt"
guest () { sed -n "s/.*GUEST-$1 \(.*\)/\1/p" "$TMP/guest.txt" | head -n 1; }
if grep GUEST-FAILED "$TMP/guest.txt" || ! grep -q GUEST-TLS "$TMP/guest.txt" ||
   ! grep -q GUEST-DONE "$TMP/guest.txt"
then
  tail -n 20 "$TMP/guest.txt" >&2
  die 'the guest failed'
fi
equal 'size, in 512 bytes' "$(guest SIZE)" $((size / 512))
equal 'flushes' "$(guest FLUSHES)" 'write back'
[ "$(guest TRIMS)" -gt 0 ] || die 'it offers no trims'
stop_server

say 'what is in the image'
check_clean "$disk"
qemu-img convert -f qcow2 -O raw "$disk" "$TMP/raw"
equal 'the disk' "$(sha256sum <"$TMP/raw" | cut -d' ' -f1)" "$(guest DISK)"
e2fsck -fn "$TMP/raw" >"$TMP/fsck.log" 2>&1 || die "$(cat "$TMP/fsck.log")"
for f in a b; do
  equal "file $f" "$(debugfs -R "cat /$f" "$TMP/raw" 2>/dev/null |
                       sha256sum | cut -d' ' -f1)" "$(guest FILE)"
done
# Two files of 10 MiB with the same contents; one of 6.25 MiB that was trimmed.
at_most 'clusters in use' "$(data_clusters "$disk")" $(((10 << 20) / 4096 + 800))
