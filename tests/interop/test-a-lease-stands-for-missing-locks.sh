#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# On a file system without locks a file beside the image says who writes to it; on
# a block device lease=on does, and the device is shorter by 64 KiB.
# Breaks if: a second server gets through without locks, or leases are used where
# locks do.

. "$(dirname "$0")/lib.sh"
need nbdkit nbdcopy nbdsh
command -v cc >/dev/null || missing "cc is not installed"
cc -shared -fPIC -x c -o "$TMP/no-locks.so" - -ldl <<'EOC'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
int
fcntl64 (int fd, int cmd, ...)
{
  static int (*real) (int, int, void *);
  va_list ap;
  void *arg;

  va_start (ap, cmd);
  arg = va_arg (ap, void *);
  va_end (ap);
  if (cmd == F_OFD_SETLK || cmd == F_OFD_GETLK) {
    errno = ENOLCK;
    return -1;
  }
  if (real == NULL)
    real = (int (*) (int, int, void *)) dlsym (RTLD_NEXT, "fcntl64");
  return real (fd, cmd, arg);
}
EOC

say "a file that has locks"
tool create "$TMP/disk" 48M
start_server "$TMP/disk"
[ ! -e "$TMP/disk.lease" ] || die "it has a lease file"
stop_server

say "a file without locks"
with=$preload
preload="$preload $TMP/no-locks.so"
start_server "$TMP/disk"
[ -e "$TMP/disk.lease" ] || die "it has no lease file"
refused try_plugin "$TMP/disk"
one_error_line "$TMP/disk" "is in use by the server on .*, process $SRV_PID,"
refused try_plugin "$TMP/disk" readonly=on
one_error_line "$TMP/disk" "is in use by the server on .*, process $SRV_PID,"
nbdsh -u "$URI" -c 'h.pwrite (b"z" * 4096, 0)' -c 'h.flush ()'
kill_server
start_server "$TMP/disk"
equal "the block" \
  "$(nbdsh -u "$URI" -c 'print (h.pread (4096, 0) == b"z" * 4096)')" True
stop_server
preload=$with

say "a block device"
[ "$(id -u)" = 0 ] || { say "(needs root)"; exit 0; }
truncate -s 200M "$TMP/dev"
LOOP=$(losetup -f --show "$TMP/dev" 2>"$TMP/losetup") || {
  say "(no loop devices: $(cat "$TMP/losetup"))"; exit 0; }
records () { tail -c 65536 "$LOOP" | grep -c -a DDUPLEAS || true; }
start_server "$LOOP" size=48M
stop_server
equal "lines with records without lease=on" "$(records)" 0
start_server "$LOOP" lease=on
nbdsh -u "$URI" -c 'h.pwrite (b"z" * 4096, 0)' -c 'h.flush ()'
stop_server
at_least "lines with records" "$(records)" 1
tool check "$LOOP" >/dev/null
