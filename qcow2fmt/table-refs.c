/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the host clusters that the entries of one L2 table refer to, and adds
 * to the refcounts of all of them.
 *
 * The entries of a table are taken together, because the paths to a lent table
 * (debt.c) are counted in the refcounts of everything that the table names, or
 * of nothing.  First qcow2_table_refs_get_locked pins the table and all
 * refcounts and collects the references, in order of host index; then
 * qcow2_table_refs_check_locked tells whether all refcounts may grow; after
 * that qcow2_table_refs_add_locked and qcow2_uncopy_locked cannot fail.  Until
 * then nothing is changed, so a damaged table is refused as a whole.
 *
 * A cluster that K entries name has K references.  A compressed entry has one
 * to each cluster that it touches.  An entry that is preallocated (it names a
 * cluster, and reads as zeroes) has one, too.
 *
 * Clusters in a row with equal refcounts make one change, and one record of the
 * journal, so a table whose data lies in one piece is changed by a few of them.
 *
 * COPIED.  QEMU sets it in an entry whose cluster has refcount 1.  When the
 * refcount grows, COPIED is cleared in the table, in place, even if the table
 * is lent or is the source of a copy that a replay would make again.  That is
 * harmless.  A replay may then copy the table without the flag, but the flag
 * does not survive in the copy anyway: if the table had a debt when it was
 * copied, the same group raised the refcounts of its entries and cleared COPIED
 * in both tables; if it had none, two or more paths were counted, so all of its
 * entries had refcount 2 or more, and no COPIED.  This program never acts on
 * the flag and never sets it; it is for QEMU.
 *
 * A table whose data is scattered over the file needs as many slices of
 * refcount blocks as it has entries.  They are looked up once, and kept with
 * the references.
 *
 * It has no threads; the image's lock protects it.  The references of a table
 * take 16 bytes each: 8 KiB for a table of 4 KiB, and 12 MiB at most, for one
 * of 2 MiB with compressed entries that touch three clusters each.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "image.h"

/* Bits of a standard L2 entry that must be 0. */
#define L2_RESERVED UINT64_C (0x3f000000000001fe)

/* Added to twice a host index, if the entry is compressed. */
#define COMPRESSED_REF UINT64_C (1)

uint64_t
qcow2_table_entry_locked (struct qcow2_txn *txn, uint64_t table_off, unsigned i)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  const uint64_t per = qcow2_l2_slice (g);
  const struct qcow2_slice *t =
    qcow2_txn_find_locked (txn, table_off + i / per * qcow2_slice_size (g));
  uint64_t bitmap;

  assert (t);
  return qcow2_l2_load (g, t->data, i % per, &bitmap);
}

/* Goes over the entries of a table whose slices are pinned. */
struct entries {
  struct qcow2_txn *txn;
  uint64_t table_off;
  const struct qcow2_slice *slice;   /* with the entry that was read last */
};

/* Returns entry I.  The caller reads all entries in order, beginning with 0. */
static uint64_t
next_entry (struct entries *e, unsigned i)
{
  const struct qcow2_geometry *g = &e->txn->img->header.geo;
  const unsigned within = i & (qcow2_l2_slice (g) - 1);
  uint64_t bitmap;

  if (within == 0)
    e->slice = qcow2_txn_find_locked (e->txn, e->table_off +
                                      (uint64_t) i * g->l2_entry_size);
  return qcow2_l2_load (g, e->slice->data, within, &bitmap);
}

/* Sets *FIRST and *COUNT to the host clusters that ENTRY refers to; *COUNT is 0
 * if it refers to none.  Returns -EIO if the entry contradicts the format. */
static int
clusters_of (const struct qcow2_image *img, uint64_t entry, uint64_t *first,
             uint64_t *count)
{
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t off = entry & QCOW2_OFFSET_MASK, len;

  *count = 0;
  if (entry & QCOW2_L2_COMPRESSED) {
    /* Both below 2^62: no overflow. */
    qcow2_compressed_extent (img, entry, &off, &len);
    *first = off >> g->cluster_bits;
    *count = ((off + len - 1) >> g->cluster_bits) - *first + 1;
    return *first == 0 ? -EIO : 0;
  }
  if (qcow2_extended_l2 (g))
    entry &= ~QCOW2_L2_PARTIAL;
  if ((entry & L2_RESERVED) || (off & (g->cluster_size - 1)))
    return -EIO;
  *first = off >> g->cluster_bits;
  *count = off != 0;
  return 0;
}

/* --- Collecting ----------------------------------------------------------- */

/* Counts the references of the table, whose slices are pinned, in *NR. */
static int
count_refs (struct qcow2_txn *txn, uint64_t table_off, size_t *nr)
{
  struct entries e = { .txn = txn, .table_off = table_off };
  uint64_t first, count;
  int r = 0;

  for (unsigned i = 0; i < txn->img->header.geo.l2_entries && r == 0; ++i) {
    r = clusters_of (txn->img, next_entry (&e, i), &first, &count);
    *nr += count;
  }
  return r;
}

/* Has the processor fetch a refcount that check_run will read: those of a
 * scattered table are as many waits for memory, if they come one by one. */
static void
fetch (const struct qcow2_geometry *g, const struct qcow2_slice *block,
       uint64_t host_idx)
{
  __builtin_prefetch (block->data + host_idx % qcow2_refcount_slice (g) *
                      g->refcount_bits / 8);
}

/* The slice of a refcount block with the refcount that was looked up last: the
 * data of most tables lie beside each other. */
struct last_block {
  struct qcow2_slice *block;    /* NULL: none yet */
  uint64_t from, nr;            /* clusters that it counts, and whose anchor bits
                                 * are in memory */
};

/* Pins the refcount of a cluster and loads its anchor bit, unless that was done for
 * a cluster of the same slice and the same part of the anchor.  -EIO if there is no
 * refcount block. */
static int
need_block (struct qcow2_txn *txn, uint64_t host_idx, struct last_block *last)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  const uint64_t per = MIN_OF (qcow2_refcount_slice (g), g->l2_entries);
  struct qcow2_slice *block;
  int r;

  if (last->block && host_idx - last->from < last->nr)
    return 0;
  last->block = NULL;
  r = qcow2_refblock_locked (txn, host_idx, &block);
  if (r == 0 && !block)
    r = -EIO;
  if (r == 0)
    r = qcow2_anchor_need_range_locked (txn, host_idx, 1);
  if (r == 0)
    *last = (struct last_block) { block, host_idx / per * per, per };
  return r;
}

/* Adds the references of one entry to COUNT clusters. */
static int
add_refs (struct qcow2_txn *txn, struct qcow2_table_refs *refs,
          uint64_t host_idx, uint64_t count, bool compressed,
          struct last_block *last)
{
  int r;

  for (uint64_t i = host_idx; i < host_idx + count; ++i) {
    r = need_block (txn, i, last);
    if (r < 0)
      return r;
    fetch (&txn->img->header.geo, last->block, i);
    refs->v[refs->nr++] = (struct qcow2_table_ref) {
      i << 1 | (compressed ? COMPRESSED_REF : 0), last->block
    };
  }
  refs->nr_compressed += compressed ? count : 0;
  return 0;
}

/* Fills in the references, of which there is room for all. */
static int
collect (struct qcow2_txn *txn, struct qcow2_table_refs *refs)
{
  struct entries e = { .txn = txn, .table_off = refs->table_off };
  struct last_block last = { 0 };
  uint64_t entry, first, count;
  int r = 0;

  for (unsigned i = 0; i < txn->img->header.geo.l2_entries && r == 0; ++i) {
    entry = next_entry (&e, i);
    r = clusters_of (txn->img, entry, &first, &count);
    if (r == 0)
      r = add_refs (txn, refs, first, count, entry & QCOW2_L2_COMPRESSED,
                    &last);
  }
  return r;
}

static int
by_value (const void *a, const void *b)
{
  const struct qcow2_table_ref *ra = a, *rb = b;

  return (ra->v > rb->v) - (ra->v < rb->v);
}

/* Sorts the references; the data of most tables is in order already. */
static void
sort (struct qcow2_table_refs *refs)
{
  for (size_t i = 1; i < refs->nr; ++i)
    if (refs->v[i].v < refs->v[i - 1].v) {
      qsort (refs->v, refs->nr, sizeof *refs->v, by_value);
      return;
    }
}

int
qcow2_table_refs_get_locked (struct qcow2_txn *txn, uint64_t table_off,
                             struct qcow2_table_refs *refs)
{
  size_t nr = 0;
  int r;

  assert (lock_held (&txn->img->lock));
  *refs = (struct qcow2_table_refs) { .table_off = table_off };
  r = qcow2_cache_get_whole_locked (txn, table_off);
  if (r == 0)
    r = count_refs (txn, table_off, &nr);
  if (r < 0)
    return r;
  refs->v = malloc ((nr + 1) * sizeof *refs->v);
  if (!refs->v)
    return -ENOMEM;
  r = collect (txn, refs);
  if (r < 0)
    qcow2_table_refs_free (refs);
  else
    sort (refs);
  return r;
}

void
qcow2_table_refs_free (struct qcow2_table_refs *refs)
{
  free (refs->v);
  refs->v = NULL;
  refs->nr = 0;
}

void
qcow2_table_refs_drop_compressed (struct qcow2_table_refs *refs)
{
  size_t nr = 0;

  for (size_t i = 0; i < refs->nr; ++i)
    if (!(refs->v[i].v & COMPRESSED_REF))
      refs->v[nr++] = refs->v[i];
  refs->nr = nr;
}

/* Returns how many references from *I on are to one cluster, which becomes
 * *HOST_IDX, and moves *I behind them. */
static uint64_t
same_cluster (const struct qcow2_table_refs *refs, size_t *i,
              uint64_t *host_idx)
{
  const size_t first = *i;

  *host_idx = refs->v[first].v >> 1;
  while (*i < refs->nr && refs->v[*i].v >> 1 == *host_idx)
    ++*i;
  return *i - first;
}

bool
qcow2_table_refs_next (const struct qcow2_table_refs *refs, size_t *i,
                       struct qcow2_ref_run *run)
{
  uint64_t host_idx, times;
  size_t next = *i;

  if (next == refs->nr)
    return false;
  run->refs = refs->v + next;
  run->times = same_cluster (refs, &next, &run->host_idx);
  run->count = 1;
  *i = next;
  while (next < refs->nr) {
    times = same_cluster (refs, &next, &host_idx);
    if (times != run->times || host_idx != run->host_idx + run->count)
      break;
    run->count++;
    *i = next;
  }
  return true;
}

/* --- Checking ------------------------------------------------------------- */

/* Tells which clusters of an ascending sequence are guarded. */
struct guarded {
  struct qcow2_image *img;
  uint64_t next;               /* the first one from the last that was asked */
};

static bool
is_guarded (struct guarded *g, uint64_t host_idx)
{
  if (g->next < host_idx)
    g->next = qcow2_next_guarded_locked (g->img, host_idx);
  return g->next == host_idx;
}

/* Returns whether a cluster may get MORE references.  A refcount that is a
 * table's as well (GUARDED; in an image that qemu-img check -r all repaired,
 * guest data may be in the same cluster) may not grow into the table's debt. */
static bool
may_grow (const struct qcow2_image *img, uint64_t refcount, bool guarded,
          uint64_t more)
{
  uint64_t max = img->header.geo.refcount_max;

  if (guarded)
    max = MIN_OF (max, QCOW2_PATHS_MASK);
  return refcount <= max && more <= max - refcount;
}

/* Returns the slice with the refcount of the cluster that is I behind the first
 * one of RUN. */
static struct qcow2_slice *
block_of (const struct qcow2_ref_run *run, uint64_t i)
{
  return run->refs[i * run->times].block;
}

/* Checks one run for qcow2_table_refs_check_locked. */
static int
check_run (struct qcow2_image *img, const struct qcow2_ref_run *run,
           struct guarded *g, uint64_t n)
{
  uint64_t refcount, more, host_idx;

  if (!mul_u64 (run->times, n, &more))
    return -EIO;
  for (uint64_t i = 0; i < run->count; ++i) {
    host_idx = run->host_idx + i;
    refcount = qcow2_refblock_get_locked (img, block_of (run, i), host_idx);
    if (refcount < run->times + qcow2_anchor_test_locked (img, host_idx) ||
        !may_grow (img, refcount, is_guarded (g, host_idx), more))
      return -EIO;
  }
  return 0;
}

int
qcow2_table_refs_check_locked (struct qcow2_txn *txn,
                               const struct qcow2_table_refs *refs, uint64_t n)
{
  struct guarded g = { .img = txn->img };
  const uint64_t own = refs->table_off >> txn->img->header.geo.cluster_bits;
  struct qcow2_ref_run run;
  size_t i = 0;
  int r = 0;

  assert (lock_held (&txn->img->lock));
  while (r == 0 && qcow2_table_refs_next (refs, &i, &run))
    r = own - run.host_idx < run.count ? -EIO :
      check_run (txn->img, &run, &g, n);
  return r;
}

/* --- Changing ------------------------------------------------------------- */

/* Returns how many clusters of RUN, from the one on that is I behind its first,
 * are alike: they have the refcount and anchor bit of that one, *REFCOUNT and
 * *ANCHORED, and their refcounts are in the same slice. */
static uint64_t
alike (const struct qcow2_image *img, const struct qcow2_ref_run *run,
       uint64_t i, uint64_t *refcount, bool *anchored)
{
  const struct qcow2_slice *t = block_of (run, i);
  const uint64_t host_idx = run->host_idx + i;
  uint64_t n = 1;

  *refcount = qcow2_refblock_get_locked (img, t, host_idx);
  *anchored = qcow2_anchor_test_locked (img, host_idx);
  while (i + n < run->count && block_of (run, i + n) == t &&
         qcow2_refblock_get_locked (img, t, host_idx + n) == *refcount &&
         qcow2_anchor_test_locked (img, host_idx + n) == *anchored)
    n++;
  return n;
}

static void
add_to_run (struct qcow2_image *img, const struct qcow2_ref_run *run,
            uint64_t n)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_REFCOUNT };

  for (uint64_t i = 0; i < run->count; i += c.count) {
    c.host_idx = run->host_idx + i;
    c.count = (uint32_t) alike (img, run, i, &c.refcount, &c.anchored);
    c.refcount += run->times * n;
    qcow2_refblock_change_locked (img, block_of (run, i), c.host_idx, c.count,
                                  c.refcount, c.anchored);
    qcow2_report_locked (img, &c);
  }
}

void
qcow2_table_refs_add_locked (struct qcow2_txn *txn,
                             const struct qcow2_table_refs *refs, uint64_t n)
{
  struct qcow2_ref_run run;
  size_t i = 0;

  assert (lock_held (&txn->img->lock));
  while (n > 0 && qcow2_table_refs_next (refs, &i, &run))
    add_to_run (txn->img, &run, n);
}

/* Clears COPIED in entry I, which is ENTRY. */
static void
uncopy (struct qcow2_txn *txn, uint64_t table_off, unsigned i, uint64_t entry)
{
  const struct qcow2_geometry *g = &txn->img->header.geo;
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_ENTRY, .count = 1, .entry = entry & ~QCOW2_L2_COPIED,
    .place = table_off + (uint64_t) i * g->l2_entry_size,
  };
  int r;

  /* Of an extended entry only the first 8 bytes change, as if it were one of an
   * L1 table; its bitmap stays. */
  if (qcow2_extended_l2 (g)) {
    c.is_l1 = true;
    c.entry &= QCOW2_OFFSET_MASK;
  }
  r = qcow2_change_locked (txn, &c);
  assert (r == 0);             /* pinned, and valid */
  (void) r;
}

void
qcow2_uncopy_locked (struct qcow2_txn *txn, uint64_t table_off)
{
  struct entries e = { .txn = txn, .table_off = table_off };
  uint64_t entry;

  assert (lock_held (&txn->img->lock));
  for (unsigned i = 0; i < txn->img->header.geo.l2_entries; ++i) {
    entry = next_entry (&e, i);
    if ((entry & QCOW2_L2_COPIED) && !(entry & QCOW2_L2_COMPRESSED))
      uncopy (txn, table_off, i, entry);
  }
}
