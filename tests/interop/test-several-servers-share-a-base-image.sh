#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Below the cow filter, and with readonly=on, an image is opened as -r opens it:
# several servers and QEMU readers share it, no byte of it changes, and one that
# crashed is replayed in memory.
# Breaks if: the filter or the key is overlooked, the lock is a writer's, or
# what is opened read-only is recovered or given a store.
. "$(dirname "$0")/lib.sh"
need qemu-io qemu-img

stock=$TMP/stock.qcow2
qemu-img create -q -f qcow2 "$stock" 16M
qemu-io -f qcow2 -c 'write -P 3 0 1M' "$stock" >/dev/null
qemu-img convert -O raw "$stock" "$TMP/stock.raw"
crashed=$TMP/crashed.qcow2
start_server "$crashed" size=16M commit-interval=0
$PY "$HERE/nbdrun.py" "$URI" '
h.pwrite(pat(1, 1 << 20), 0)
h.pwrite(pat(1, 1 << 20), 8 << 20)
h.flush()'
nbdcopy "$URI" "$TMP/crashed.raw"
kill_server
equal "bit 48" "$(bit48 "$crashed")" 1

state () { sha256sum <"$1"; stat -c '%s %Y %b' "$1"; }
writable () { nbdinfo --no-content "$1" | has 'is_read_only: false'; }

for base in stock crashed; do
  disk=$TMP/$base.qcow2
  state "$disk" >"$TMP/before"
  say "$base: two servers with overlays, one read-only, and QEMU"
  start_server "$disk" --filter=cow
  first=$URI
  start_server "$disk" --filter=cow
  second=$URI
  start_server "$disk" readonly=on
  third=$URI
  writable "$first" || die "the overlay cannot be written"
  if writable "$third"; then die "readonly=on can be written"; fi
  for uri in "$first" "$second"; do
    $PY "$HERE/nbdrun.py" "$uri" '
h.pwrite(b"z" * 4096, 12 << 20)
h.flush()
assert h.pread(4096, 12 << 20) == b"z" * 4096'
  done
  URI=$third
  served_as_raw "$TMP/$base.raw"
  if [ "$base" = stock ]; then
    qemu-io -r -f qcow2 -c 'read -P 3 0 1M' "$disk" >/dev/null
    qemu-img create -q -f qcow2 -b "$disk" -F qcow2 "$TMP/overlay.qcow2"
    qemu-io -f qcow2 -c 'write -P 9 0 4k' "$TMP/overlay.qcow2" >/dev/null
    same_as_raw "$TMP/stock.raw" "$disk"
  fi
  say "$base: nobody may write it meanwhile"
  refused try_plugin "$disk"
  one_error_line "$disk" 'in use'
  for pid in "${server_pids[@]}"; do
    SRV_PID=$pid
    stop_server
  done
  state "$disk" | diff "$TMP/before" - || die "$disk changed"
done

say "how it is asked for, and what wins"
opened () # EXPECTED ARGS...
{
  local want=$1
  shift
  try_plugin "$stock" -v "$@" >"$TMP/log" 2>&1 ||
    { cat "$TMP/log" >&2; die "did not start: $*"; }
  grep -qF "stock.qcow2: opened $want" "$TMP/log" ||
    die "$*: $(grep -F 'qcow2: opened' "$TMP/log"), not $want"
}
filters=$(nbdkit --dump-config | sed -n 's/^filterdir=//p')
opened 'read-only (--filter=cow)' --filter=cow
opened 'read-only (--filter=cow)' --filter cow
opened 'read-only (--filter=cow)' --filt=cow
opened 'read-only (--filter=cow)' "--filter=$filters/nbdkit-cow-filter.so"
opened 'read-only (--filter=cow)' --filter=cow --filter=log "logfile=$TMP/l"
opened 'read-only (--filter=cow)' --filter=log --filter=cow "logfile=$TMP/l"
opened 'read-only (--filter=checkwrite)' --filter=checkwrite
opened 'read-only (readonly=on)' readonly=on
opened 'read-only (readonly=on)' read-only=true
opened 'read-only (readonly=on)' --filter=cow readonly=on
opened 'read-only (-r)' -r
opened 'read-only (-r)' -r readonly=off
opened 'for writing' --filter=cow readonly=off
opened 'for writing' --filter=log "logfile=$TMP/l"
opened 'for writing' -e --filter=cow
opened 'for writing' readonly=auto
# ext2 asks for write access below it.
if [ -e "$filters/nbdkit-ext2-filter.so" ]; then
  opened 'for writing' --filter=cow --filter=ext2 ext2file=/none
fi

say "a file that is missing"
for how in -r readonly=on --filter=cow; do
  refused try_plugin "$TMP/new.qcow2" size=16M "$how"
  one_error_line new.qcow2 \
    "no such file, and size= creates none, .*read-only because of $how"
  [ ! -e "$TMP/new.qcow2" ] || die "$how made a file"
  : >"$TMP/empty"
  refused try_plugin "$TMP/empty" size=16M "$how"
  one_error_line empty "is an empty file, and size= creates none, .*of $how"
  [ ! -s "$TMP/empty" ] || die "$how wrote to an empty file"
  try_plugin "$stock" "$how" 2>&1 |
    grep -q "stock.qcow2: serving .*, read-only because of $how$" ||
    die "does not say why it is read-only"
done
