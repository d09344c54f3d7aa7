#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# size= and cluster-size= given for an existing image are accepted silently
# where they are what the image has (services give them at each start). Where
# they are not, one line names the file, the key and both values; the image
# stays as it is and is served.  The same is true of jobs and compression where nothing can
# be written, or there is no dedup store, and of keys for NBD exports where there is none.
# Breaks if: a difference is not reported, or is an error.
. "$(dirname "$0")/lib.sh"

disk=$TMP/disk.qcow2
# What is said of serving and closing is left out.
serve () # ARGS...
{
  try_plugin "$disk" "$@" >"$TMP/all" 2>&1 || die "not served with $*"
  sed '/: serving a disk of /d; /: closed cleanly/d' "$TMP/all" >"$TMP/out"
}

silent () # ARGS...
{
  serve "$@"
  equal "words for $*" "$(cat "$TMP/out")" ""
}

told () # PATTERN ARGS...
{
  local pattern=$1
  shift
  serve "$@"
  cat "$TMP/out"
  equal "lines for $*" "$(grep -c . "$TMP/out")" 1
  grep -qE "disk.qcow2: $pattern" "$TMP/out" || die "does not say '$pattern'"
}

silent size=10M cluster-size=8k # makes it
silent
silent size=10M
silent size=$(((10 << 20) - 1)) # rounded up
silent size=10240k cluster-size=8192
silent cluster-size=8k
told 'size=20M is not used: .* size of 10M' size=20M
told 'size=0 is not used: .* size of 10M' size=0
told 'cluster-size=4k is not used: .* clusters of 8k' size=10M cluster-size=4k
told 'index-existing=on is not used: .*read-only$' \
  readonly=on index-existing=on
told 'defragment=idle is not used: .*read-only$' \
  readonly=on defragment=idle
told 'compress=zlib is not used: .*read-only$' readonly=on compress=zlib
told 'compact=auto is not used: .*read-only$' readonly=on compact=auto
told 'reconnect-delay= is not used: .*not on an NBD export' reconnect-delay=10
told 'connections= is not used: .*not on an NBD export' connections=2
told 'fenced=on is not used: .*not on an NBD export' fenced=on
told 'size=20M is not used: ' -r size=20M
equal "size" "$(info_field "$disk" virtual-size)" $((10 << 20))
equal "cluster size" "$(info_field "$disk" cluster-size)" 8192

say "after a resize"
qemu-img resize -q "$disk" 20M
silent size=20M
told 'size=10M is not used: .* size of 20M' size=10M

say "hash= is no such key: another hash is refused"
refused try_plugin "$disk" hash=sha3-256
one_error_line "$disk" 'hash=sha3-256: .*hash=sha256'
silent hash=sha256
check_clean "$disk"

say "an image that can hold no store"
rm "$disk"
qemu-img create -q -f qcow2 -o compat=0.10 "$disk" 10M
silent dedup=off
told 'defragment=idle is not used: .*no dedup store$' dedup=off defragment=idle
told 'compress=off is not used: .*no dedup store$' dedup=off compress=off
