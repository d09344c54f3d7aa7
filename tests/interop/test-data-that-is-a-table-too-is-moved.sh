#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# In a damaged image guest data and a table, or two L2 tables, are one cluster,
# and qemu-img check finds no error once its -r all has counted both. Writes
# move the data and copy the table: every write succeeds, no table, snapshot or
# other cluster changes, and the image is clean afterwards. Without that repair
# it is refused in one line, or at most the request that meets the bad entry
# fails.
# Breaks if: one such entry ends service, or a table is written or freed through
# it.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
crosslink () { $PY "$HERE/crosslink.py" "$@"; }

# writes ORDER: "first" begins with the cluster that is a table, "last" ends with
# it, "trim" ends with a trim of it and its neighbours, "not" leaves it alone, and
# all of one table. "F OFFSET": that write failed. The same goes to want.raw.
writes () # ORDER
{
  $PY - "$SOCK" "$1" <<'END'
import nbd
import sys
h = nbd.NBD()
h.connect_unix(sys.argv[1])
M, order = 1 << 20, sys.argv[2]
others = [0, 5 << 12, 2 * M, 2 * M + (9 << 12), 4 * M, 6 * M, 8 * M, 10 * M]
bad = 3 << 12
offsets = [bad] + others if order == 'first' else others + [bad]
if order == 'not':
    offsets = others[2:]
with open('want.raw', 'r+b') as f:
    for n, at in enumerate(offsets):
        data = bytes([0x40 + n]) * 4096
        try:
            if order == 'trim' and at == bad:
                at, data = bad - 4096, bytes(3 * 4096)
                h.trim(len(data), at)
            else:
                h.pwrite(data, at)
        except nbd.Error:
            print('F', at)
            continue
        f.seek(at)
        f.write(data)
        if order != 'first' and n == 4:
            h.flush()
h.flush()
h.shutdown()
END
}

snapshot_is_whole () # CASE
{
  qemu-img convert -O raw -l snapshot.name=foo d.qcow2 got.raw
  cmp foo.raw got.raw || die "$1: the snapshot changed"
}

# Serve d.qcow2 and write; what was freed is used again; and after a crash.
survives () # CASE ORDER [KEY]...
{
  local case=$1 order=$2 failed
  say "$case, $order"
  shift 2
  start_server d.qcow2 "$@"
  failed=$(writes "$order")
  equal "failed writes of $case, $order" "$failed" ""
  if [ "$order" = trim ]; then
    kill_server
    start_server d.qcow2 "$@"
    served_as_raw want.raw
    $PY "$HERE/put.py" "$URI" noise.raw $((12 << 20))
    dd if=noise.raw of=want.raw bs=1M seek=12 conv=notrunc status=none
    served_as_raw want.raw
  fi
  stop_server
}

random_file noise.raw 1 1
cases=$(crosslink list)

say "counted by qemu-img check -r all"
for case in $cases; do
  rm -f made.qcow2
  crosslink make made.qcow2 "$case"
  case $case in
    *bitmap*) ;;                # these are counted already
    *) qemu-img check -q -r all made.qcow2 >/dev/null 2>&1 || true ;;
  esac
  # Of a table that is written in place, and another one, it makes no image.
  qemu-img check -q made.qcow2 >out 2>&1 || continue
  qemu-img convert -O raw -l snapshot.name=foo made.qcow2 foo.raw
  for order in first not trim; do
    cp made.qcow2 d.qcow2
    qemu-img convert -O raw d.qcow2 want.raw
    survives "$case" $order
    # Where it is left alone our check still says that a table is data, too.
    if [ $order = not ]; then
      qemu-img check -q d.qcow2 || die "$case: not clean"
      not_compared=(-i $((16 << 10)))
    else
      check_clean d.qcow2
      not_compared=()
    fi
    qemu-img convert -O raw d.qcow2 got.raw
    cmp "${not_compared[@]}" want.raw got.raw || die "$case: the disk differs"
    snapshot_is_whole "$case"
  done
  # QEMU can delete the snapshot, and we go on.
  qemu-img snapshot -d foo d.qcow2
  qemu-img check -q d.qcow2 || die "$case: without the snapshot"
  start_server d.qcow2
  served_as_raw want.raw
  stop_server
  check_clean d.qcow2
done

say "the same in version 2, written in place"
for case in $cases; do
  case $case in *bitmap*) continue ;; esac
  rm -f d.qcow2
  crosslink make d.qcow2 "$case" 0.10
  qemu-img check -q -r all d.qcow2 >/dev/null 2>&1 || true
  qemu-img check -q d.qcow2 >out 2>&1 || continue
  qemu-img convert -O raw -l snapshot.name=foo d.qcow2 foo.raw
  qemu-img convert -O raw d.qcow2 want.raw
  survives "$case" first dedup=off
  # As stock QEMU, it leaves entries without COPIED that are alone now.
  qemu-img check d.qcow2 >out 2>&1 || true
  if grep -E '^ERROR|^Leaked' out | grep -v OFLAG_COPIED; then
    die "$case: $(cat out)"
  fi
  same_as_raw want.raw d.qcow2
  snapshot_is_whole "$case"
done

say "not repaired"
for case in $cases; do
  rm -f d.qcow2
  crosslink make d.qcow2 "$case"
  if ! try_plugin d.qcow2 >refused 2>&1; then
    no_crash_in refused
    one_error_line d.qcow2 'qemu-img check'
    continue
  fi
  rm -f d.qcow2
  crosslink make d.qcow2 "$case"
  qemu-img convert -O raw d.qcow2 want.raw 2>/dev/null || die "$case: no disk"
  qemu-img convert -O raw -l snapshot.name=foo d.qcow2 foo.raw
  start_server d.qcow2
  bad="F $((3 << 12))"
  # Of a table that is counted once and named twice nothing can be told.
  [ "$case" = l2-of-two-roots ] && bad="F (2097152|2134016)"
  failed=$(writes last | grep -vE "^$bad$" || true)
  equal "failed writes to good clusters, $case" "$failed" ""
  served_as_raw want.raw
  stop_server
  snapshot_is_whole "$case"
  case $case in
    *bitmap*) ;;
    *) qemu-img check -q -r all d.qcow2 >/dev/null 2>&1 || true ;;
  esac
  same_as_raw want.raw d.qcow2
  snapshot_is_whole "$case"
done

say "not repaired: a trim of neighbours, the second of which is a table"
for keys in '' dedup=off; do
  for compat in 1.1 0.10; do
    [ "$compat$keys" = 0.10 ] && continue
    rm -f d.qcow2
    crosslink make d.qcow2 table-behind-data $compat
    qemu-img convert -O raw d.qcow2 want.raw
    start_server d.qcow2 $keys
    $PY "$HERE/nbdrun.py" "$URI" 'fails(h.trim, 8192, 15 << 12); h.flush()'
    $PY "$HERE/put.py" "$URI" noise.raw $((12 << 20))
    dd if=noise.raw of=want.raw bs=1M seek=12 conv=notrunc status=none
    stop_server
    qemu-img convert -O raw d.qcow2 got.raw
    cmp -i $((1 << 20)) want.raw got.raw ||
      die "compat=$compat $keys: a table was freed by a trim"
  done
done
