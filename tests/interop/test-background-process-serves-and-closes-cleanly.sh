#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# nbdkit without -f forks after the image was opened, and then serves and closes
# cleanly: threads and locks are those of the child.
# Breaks if: threads start before the fork, or the locks stay with the parent.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
run () { (nbdkit_cmd "$@"); }
run -U "$TMP/sock" --pidfile "$TMP/pid" "$PLUGIN" "$disk" size=32M
for i in $(seq 200); do         # it is the child that writes it
  [ ! -s "$TMP/pid" ] || break
  sleep 0.05
done
SRV_PID=$(cat "$TMP/pid")
at_exit "kill -9 $SRV_PID 2>/dev/null"
URI="nbd+unix:///?socket=$TMP/sock"
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(pat(1, 1 << 20), 4096); h.flush()'
refused qemu-io -f qcow2 -c 'read 0 512' "$disk"
grep -q lock "$TMP/refused" || die "not refused by the lock"
kill -TERM "$SRV_PID"
for i in $(seq 200); do
  kill -0 "$SRV_PID" 2>/dev/null || break
  sleep 0.05
done
! kill -0 "$SRV_PID" 2>/dev/null || die "server does not end"
check_clean "$disk"
qemu-io -f qcow2 -c 'read 4096 1M' "$disk" >/dev/null
