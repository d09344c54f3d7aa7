#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# While an image is served for writing, neither QEMU nor a second server can
# open it; while QEMU has it open, the plugin cannot.  After each of them ends,
# it can be opened again.
# Breaks if: the locks are missing, at other bytes, or not held to the end.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
start_server "$disk" size=16M
for cmd in "qemu-io -f qcow2 -c read:0:512" "qemu-io -f qcow2 -r" \
           "qemu-img info" "qemu-img check" "qemu-img snapshot -c x" \
           "qemu-img resize -q"; do
  say "$cmd"
  case $cmd in
    qemu-io*-c*) refused qemu-io -f qcow2 -c 'write 0 512' "$disk" ;;
    qemu-io*) refused qemu-io -r -f qcow2 -c 'read 0 512' "$disk" ;;
    *resize*) refused qemu-img resize -q "$disk" 32M ;;
    *) refused $cmd "$disk" ;;
  esac
  grep -qi 'lock' "$TMP/refused" || die "not for the lock: $(cat "$TMP/refused")"
done
say "a second server, writing or reading"
refused try_plugin "$disk"
one_error_line "$disk"
refused try_plugin -r "$disk"
refused tool recover "$disk"
refused tool check "$disk"
stop_server
check_clean "$disk"

say "QEMU has it open"
need qemu-nbd
qemu-nbd -f qcow2 -k "$TMP/qemu.sock" -t "$disk" & qemu=$!
at_exit "kill $qemu 2>/dev/null"
for i in $(seq 100); do [ -S "$TMP/qemu.sock" ] && break; sleep 0.05; done
sum=$(sha256sum <"$disk")
refused try_plugin "$disk"
one_error_line "$disk"
refused try_plugin -r "$disk"
refused tool recover "$disk"
equal "image after refusals" "$(sha256sum <"$disk")" "$sum"
kill $qemu
wait $qemu || true

say "readers share"
start_server -r "$disk"
first=$SRV_PID
qemu-img info "$disk" >/dev/null
qemu-io -r -f qcow2 -c 'read 0 512' "$disk" >/dev/null
try_plugin -r "$disk"
refused try_plugin "$disk"
refused qemu-io -f qcow2 -c 'write 0 512' "$disk"
stop_server
try_plugin "$disk"
check_clean "$disk"
