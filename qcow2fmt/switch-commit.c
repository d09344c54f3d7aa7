/* SPDX-License-Identifier: BSD-3-Clause */
/* Prepares and makes a change of the set of roots that roots.c has built and
 * written.
 *
 * The changes of a commit are one group of records, in this order: refcounts of
 * the new tables; refcounts of the L2 tables that are lent; L1 entries that
 * changed since they were copied, and COPIED flags of the active disk's L1
 * table that no longer hold; the header fields; refcounts of the tables that
 * are replaced.  The instant of the change is the hold of the lock in which it
 * is made.  Slots and their strings change last.
 *
 * A replaced table whose refcount is not 1 has another owner as well (a damaged
 * image): it stays as it is, because a leak is the safe choice.
 *
 * It has no threads; the image's lock protects it.
 */
#include <errno.h>
#include <string.h>

#include "checked.h"
#include "switch.h"

/* --- Prepare -------------------------------------------------------------- */

/* Makes the refcounts of COUNT new clusters changeable, and waits for threads
 * that read there what was there before. */
static int
prepare_new (struct qcow2_txn *txn, uint64_t host_idx, uint64_t count)
{
  const unsigned bits = txn->img->header.geo.cluster_bits;
  int r = 0;

  for (uint64_t i = 0; i < count && r == 0; ++i)
    r = qcow2_prepare_meta_locked (txn, host_idx + i);
  if (r == 0)
    r = qcow2_cache_settle_locked (txn, host_idx << bits, count << bits);
  return r;
}

/* Returns the byte offset of entry TI of a new L1 table. */
static uint64_t
place_of (const struct qcow2_image *img, const struct qcow2_new_l1 *l1,
          uint64_t ti)
{
  return (l1->host_idx << img->header.geo.cluster_bits) + ti * sizeof (be64);
}

/* Pins the slice of the new table that has entry TI. */
static int
pin_entry (struct qcow2_txn *txn, const struct qcow2_new_l1 *l1, uint64_t ti)
{
  const uint64_t size = txn->img->header.geo.cluster_size;
  const uint64_t place = place_of (txn->img, l1, ti);
  int r;

  (void) qcow2_cache_get_locked (txn, round_down_pow2 (place, size),
                                 place % size, &r);
  return r;
}

/* Looks at the entries SPAN of the source, which begin with TI: adds the tables
 * to those that are lent, and pins the slices of entries that changed. */
static int
look_at_span (struct qcow2_txn *txn, struct qcow2_switch *sw,
              struct qcow2_new_l1 *l1, uint64_t ti,
              const struct qcow2_l1_span *span)
{
  const unsigned bits = txn->img->header.geo.cluster_bits;
  uint64_t e;
  int r = 0;

  for (uint64_t i = 0; i < span->nr && r == 0; ++i) {
    e = qcow2_l1_span_get (span, i) & QCOW2_OFFSET_MASK;
    if (e != 0 && l1->lends)
      qcow2_lending_add (&sw->lending, e >> bits);
    if (e != be64_load (l1->buf[ti + i])) {
      l1->nr_changed++;
      r = pin_entry (txn, l1, ti + i);
    }
  }
  return r;
}

static int
look_at_source (struct qcow2_txn *txn, struct qcow2_switch *sw,
                struct qcow2_new_l1 *l1)
{
  struct qcow2_l1_span span;
  int r = 0;

  l1->nr_changed = 0;
  for (uint64_t ti = 0; ti < l1->copied && r == 0; ti += span.nr) {
    r = qcow2_l1_span_locked (txn, l1->source, ti, l1->copied - ti, &span);
    if (r == 0)
      r = look_at_span (txn, sw, l1, ti, &span);
  }
  return r;
}

static int
prepare_freed (struct qcow2_txn *txn, const struct qcow2_clusters *c)
{
  uint64_t refcount;
  bool anchored;
  int r = 0;

  for (uint64_t i = 0; i < c->count && r == 0; ++i)
    r = qcow2_get_refcount_locked (txn, c->host_idx + i, &refcount, &anchored);
  return r;
}

/* Checks that no entry of the L1 table of a root that ends names a table. */
static int
check_empty (struct qcow2_txn *txn, const struct qcow2_switch_edit *edit)
{
  const uint64_t nr = txn->img->snapshots.v[edit->slot].l1_entries;
  struct qcow2_l1_span span;
  int r = 0;

  for (uint64_t ti = 0; ti < nr && r == 0; ti += span.nr) {
    r = qcow2_l1_span_locked (txn, edit->e.root, ti, nr - ti, &span);
    for (uint64_t i = 0; r == 0 && i < span.nr; ++i)
      if (qcow2_l1_span_get (&span, i) & QCOW2_OFFSET_MASK)
        r = -EBUSY;
  }
  return r;
}

static int
prepare_edit (struct qcow2_txn *txn, struct qcow2_switch *sw,
              struct qcow2_switch_edit *edit)
{
  int r = prepare_new (txn, edit->l1.host_idx, edit->l1.clusters);

  if (r == 0)
    r = prepare_freed (txn, &edit->freed);
  if (r == 0 && edit->e.remove)
    r = check_empty (txn, edit);
  return r < 0 ? r : look_at_source (txn, sw, &edit->l1);
}

/* Returns the clusters of the present snapshot table. */
static struct qcow2_clusters
old_table (const struct qcow2_image *img)
{
  const struct qcow2_snapshot_table *t = &img->snapshots;

  return (struct qcow2_clusters) {
    t->host_off >> img->header.geo.cluster_bits,
    div_round_up (t->raw_len, img->header.geo.cluster_size),
  };
}

/* Returns how many records the commit of EDIT makes at most, without those of
 * the tables that are lent. */
static uint64_t
count_records (const struct qcow2_image *img,
               const struct qcow2_switch_edit *edit)
{
  const struct qcow2_new_l1 *l1 = &edit->l1;
  uint64_t n = 1 + edit->freed.count + l1->nr_changed;

  if (l1->lends && l1->source == QCOW2_ROOT_ACTIVE)
    for (uint64_t i = 0; i < l1->copied; ++i)
      n += (img->l1.v[i] & QCOW2_L2_COPIED) != 0;
  return n;
}

int
qcow2_switch_prepare_locked (struct qcow2_txn *txn, struct qcow2_switch *sw)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_clusters old = old_table (img);
  uint64_t nr = 2 + old.count;             /* table, header, the old table */
  int r;

  assert (lock_held (&img->lock));
  assert (!sw->committed);
  sw->nr_records = 0;
  sw->lending.nr = 0;
  sw->lending.sorted = true;
  r = prepare_new (txn, sw->place.host_idx, sw->place.count);
  if (r == 0)
    r = prepare_freed (txn, &old);
  for (size_t i = 0; i < sw->nr && r == 0; ++i) {
    r = prepare_edit (txn, sw, &sw->v[i]);
    nr += count_records (img, &sw->v[i]);
  }
  if (r == 0)
    r = qcow2_lend_prepare_locked (txn, &sw->lending);
  if (r == 0)
    sw->nr_records = nr + sw->lending.nr_runs;
  return r;
}

uint64_t
qcow2_switch_records_locked (struct qcow2_txn *txn, struct qcow2_switch *sw)
{
  const struct qcow2_clusters old = old_table (txn->img);
  uint64_t n = 16 + old.count + 2 * sw->nr_nonzero;

  assert (lock_held (&txn->img->lock));
  if (sw->nr_records > 0)
    return sw->nr_records;
  for (size_t i = 0; i < sw->nr; ++i)
    n += 8 + sw->v[i].freed.count;
  return n;
}

/* --- Commit: changes ---------------------------------------------------------- */

static void
change (struct qcow2_txn *txn, const struct qcow2_change *c)
{
  int r = qcow2_change_locked (txn, c);

  assert (r == 0);             /* prepared */
  (void) r;
}

/* Makes COUNT reserved clusters tables, with refcount 1. */
static void
use_clusters (struct qcow2_txn *txn, uint64_t host_idx, uint64_t count)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_REFCOUNT, .host_idx = host_idx, .refcount = 1,
  };

  if (count == 0)
    return;
  c.count = (uint32_t) count;  /* at most 64 MiB in clusters of 512 bytes */
  change (txn, &c);
  qcow2_guard_put_locked (txn->img, host_idx, count, true);
}

static void
set_entry (struct qcow2_txn *txn, uint64_t place, uint64_t entry)
{
  const struct qcow2_change c = {
    .type = QCOW2_CHANGE_ENTRY, .place = place, .count = 1, .entry = entry,
    .is_l1 = true,
  };

  change (txn, &c);
}

/* Gives the new table the entries of its source that changed since they were
 * copied. */
static void
update_entries (struct qcow2_txn *txn, const struct qcow2_new_l1 *l1)
{
  uint64_t left = l1->nr_changed, e;
  struct qcow2_l1_span span;
  int r;

  for (uint64_t ti = 0; ti < l1->copied && left > 0; ti += span.nr) {
    r = qcow2_l1_span_locked (txn, l1->source, ti, l1->copied - ti, &span);
    assert (r == 0);           /* prepared */
    (void) r;
    for (uint64_t i = 0; i < span.nr; ++i) {
      e = qcow2_l1_span_get (&span, i) & QCOW2_OFFSET_MASK;
      if (e == be64_load (l1->buf[ti + i]))
        continue;
      set_entry (txn, place_of (txn->img, l1, ti + i), e);
      left--;
    }
  }
}

/* Removes COPIED from the entries of the active disk's L1 table whose tables
 * are lent. */
static void
clear_copied (struct qcow2_txn *txn, const struct qcow2_new_l1 *l1)
{
  struct qcow2_image *img = txn->img;

  if (!l1->lends || l1->source != QCOW2_ROOT_ACTIVE)
    return;
  for (uint64_t i = 0; i < l1->copied; ++i)
    if (img->l1.v[i] & QCOW2_L2_COPIED)
      set_entry (txn, qcow2_l1_place_locked (img, QCOW2_ROOT_ACTIVE, i),
                 img->l1.v[i] & QCOW2_OFFSET_MASK);
}

static void
set_header (struct qcow2_txn *txn, const struct qcow2_switch *sw)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_HEADER, .header = txn->img->fields,
  };

  c.header.nr_snapshots = sw->nr_snapshots;
  c.header.snapshots_off =
    sw->place.host_idx << txn->img->header.geo.cluster_bits;
  change (txn, &c);
}

/* Returns whether a cluster of a replaced table has no other owner. */
static bool
is_alone (struct qcow2_txn *txn, uint64_t host_idx)
{
  uint64_t refcount;
  bool anchored;
  int r = qcow2_get_refcount_locked (txn, host_idx, &refcount, &anchored);

  assert (r == 0);             /* prepared */
  (void) r;
  return refcount == 1 && !anchored;
}

static void
free_clusters (struct qcow2_txn *txn, const struct qcow2_clusters *f)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_REFCOUNT };
  uint64_t i, end;

  for (i = 0; i < f->count; i = end + 1) {
    for (end = i; end < f->count && is_alone (txn, f->host_idx + end); ++end)
      ;
    if (end == i)
      continue;
    c.host_idx = f->host_idx + i;
    c.count = (uint32_t) (end - i);
    change (txn, &c);
    qcow2_free_table_locked (txn->img, c.host_idx, c.count);
  }
}

/* --- Commit: slots ------------------------------------------------------------- */

static void
free_slot (struct qcow2_snapshot_table *t, size_t slot)
{
  free ((char *) t->v[slot].id);
  free ((char *) t->v[slot].name);
  free (t->raw[slot].bytes);
}

/* Marks a slot as unused.  Its strings stay until it is used again. */
static void
end_slot (struct qcow2_snapshot_table *t, size_t slot)
{
  free (t->raw[slot].bytes);
  t->raw[slot] = (struct qcow2_snapshot_raw) { 0 };
  t->nr_compress_on -= qcow2_says_compress_on (&t->v[slot]);
  t->v[slot].dead = true;
}

/* Gives the slot of EDIT what the edit has built. */
static void
fill_slot (struct qcow2_snapshot_table *t, struct qcow2_switch_edit *edit)
{
  if (edit->slot < t->nr) {
    t->nr_compress_on -= qcow2_says_compress_on (&t->v[edit->slot]);
    free_slot (t, edit->slot);
  }
  t->v[edit->slot] = edit->s;
  t->nr_compress_on += qcow2_says_compress_on (&edit->s);
  t->raw[edit->slot] = edit->raw;
  t->nr = MAX_OF (t->nr, edit->slot + 1);
  edit->s.id = edit->s.name = NULL;
  edit->raw.bytes = NULL;
}

static void
change_slots (struct qcow2_switch *sw, unsigned *new_root)
{
  struct qcow2_snapshot_table *t = &sw->img->snapshots;

  for (size_t i = 0; i < sw->nr; ++i) {
    if (sw->v[i].e.remove)
      end_slot (t, sw->v[i].slot);
    else
      fill_slot (t, &sw->v[i]);
    if (sw->v[i].is_new && new_root) {
      *new_root = (unsigned) sw->v[i].slot + 1;
      new_root = NULL;
    }
  }
  t->host_off = sw->img->fields.snapshots_off;
  t->raw_len = sw->table_len;
}

void
qcow2_switch_commit_locked (struct qcow2_txn *txn, struct qcow2_switch *sw,
                            unsigned *new_root)
{
  const struct qcow2_clusters old = old_table (txn->img);
  const unsigned bits = txn->img->header.geo.cluster_bits;

  assert (lock_held (&txn->img->lock));
  assert (sw->nr_records > 0 && !sw->committed);
  use_clusters (txn, sw->place.host_idx, sw->place.count);
  for (size_t i = 0; i < sw->nr; ++i) {
    const struct qcow2_new_l1 *l1 = &sw->v[i].l1;

    use_clusters (txn, l1->host_idx, l1->clusters);
    qcow2_cache_overwrite_locked (txn->img, l1->host_idx << bits,
                                  (const uint8_t *) l1->buf,
                                  l1->clusters << bits);
  }
  qcow2_lend_commit_locked (txn, &sw->lending);
  for (size_t i = 0; i < sw->nr; ++i) {
    update_entries (txn, &sw->v[i].l1);
    clear_copied (txn, &sw->v[i].l1);
  }
  set_header (txn, sw);
  free_clusters (txn, &old);
  for (size_t i = 0; i < sw->nr; ++i)
    free_clusters (txn, &sw->v[i].freed);
  change_slots (sw, new_root);
  txn->img->disks.changes++;
  sw->committed = true;
}
