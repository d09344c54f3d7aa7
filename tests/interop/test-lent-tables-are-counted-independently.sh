#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# The model of refcounts in poolimg.py, which other tests rely on, calls images
# of QEMU and of ours right, and the same ones with a debt; and every damaged
# one wrong, as `qcow2-dedup check` does where there is no debt.
# Breaks if: the model overlooks a wrong path, debt, refcount or flag.
. "$(dirname "$0")/lib.sh"

cd "$TMP"
model () { $PY "$HERE/poolimg.py" check "$1"; }

# Copies image $1 to x.qcow2, and changes it by Python code that sees its image
# as "img", and put (offset, size, value).
damage () # IMAGE CODE
{
  cp "$1" x.qcow2
  PYTHONPATH=$HERE $PY - "$2" <<'END'
import sys
import poolimg
img = poolimg.Image('x.qcow2')
f = open('x.qcow2', 'r+b')
counts, _ = img.refcounts()
blocks = img.words(img.reftable_off, img.reftable_clusters * img.cluster // 8)

def put(off, size, value):
    f.seek(off)
    f.write(value.to_bytes(size, 'big'))

def refcount(c, value):
    per = img.cluster // 4
    put(blocks[c // per] + c % per * 4, 4, value)

def tables(root):
    v = img.words(img.roots[root].l1_off, img.roots[root].l1_entries)
    return [(e & poolimg.OFFSETS) >> img.bits for e in v if e]

# A table that the active disk and a snapshot share, and what it names.
shared = [t for t in tables(0) if counts[t] == 2][0]
names = img.table(shared)
some = list(names)[7]

def lend(forget=0):
    """As if the snapshot had been lent the table: a debt of 1."""
    for c, times in list(names.items())[forget:]:
        counts[c] -= times
        refcount(c, counts[c])
    refcount(shared, 1 << 16 | 2)
    v = img.words(shared << img.bits, img.cluster // 8)
    for i, e in enumerate(v):
        if e and counts[(e & poolimg.OFFSETS) >> img.bits] == 1:
            put((shared << img.bits) + 8 * i, 8, e | poolimg.COPIED)
    put(72, 8, img.incompatible | poolimg.RECOVERY)

exec(sys.argv[1])
f.close()
END
}

right () # NAME CODE
{
  damage $image "$2"
  model x.qcow2 || die "$image: $1: the model finds faults"
}

wrong () # NAME CODE [debt]
{
  damage $image "$2"
  if model x.qcow2 >out; then die "$image: $1: the model finds nothing"; fi
  [ $# = 3 ] && return
  if "$TOOL" check x.qcow2 >/dev/null 2>&1; then
    die "$image: $1: qcow2-dedup check finds nothing"
  fi
}

random_file a.raw 4 1
qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=32 qemu.qcow2 32M
qemu-io -f qcow2 -c 'write -s a.raw 0 4M' qemu.qcow2 >/dev/null
qemu-img snapshot -c one qemu.qcow2
qemu-io -f qcow2 -c 'write -s a.raw 2M 4M' -c 'discard 0 64k' qemu.qcow2 >/dev/null
qemu-img snapshot -c two qemu.qcow2
cp qemu.qcow2 ours.qcow2
start_server ours.qcow2
$PY "$HERE/put.py" "$URI" a.raw $((12 << 20))
$PY "$HERE/nbdrun.py" "$URI" 'h.pwrite(pat(5, 100000), 1 << 20); h.flush()'
stop_server
for image in qemu.qcow2 ours.qcow2; do
  say "$image"
  "$TOOL" check $image >/dev/null
  right 'as it is' ''
  wrong 'one path too many' 'refcount(shared, 3)'
  wrong 'a path that is not counted' 'refcount(shared, 1)'
  wrong 'a refcount too high' 'refcount(some, counts[some] + 1)'
  wrong 'a refcount too low' 'refcount(some, counts[some] - 1)'
  wrong 'a leak' 'refcount(img.size // img.cluster - 1, 9)'
  right 'a debt' 'lend()'
  wrong 'a debt that one entry has paid' 'lend(1)' debt
  wrong 'a debt without bit 48' 'lend(); put(72, 8, img.incompatible)' debt
  wrong 'as many debts as paths' 'lend(); refcount(shared, 2 << 16 | 2)' debt
  wrong 'a debt forgotten' 'lend(); refcount(shared, 2)' debt
done
