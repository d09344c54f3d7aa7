/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds out which suspects and which candidates for garbage are in use after
 * all, because an L2 entry names them.
 *
 * A walk reads every L2 table of every root, the active disk and each snapshot,
 * once.  The anchor's tables are left out: they name garbage, but do not use
 * it, and a cluster that they name is no suspect.  What an entry names leaves
 * its set: it is in use, and its refcount is too low.  What is left in the two
 * sets after a whole walk is named by no entry.
 *
 * Tables change during the walk, in memory and later in the file.  It is right
 * all the same, because no entry comes to name what is in these sets: a suspect
 * leaves its set when it is used, and nothing links to an anchored cluster
 * with refcount 1.  So an entry that names one has done so since before the
 * scan.  Such an entry is
 *
 *   in the file, as long as its table is not copied.  It may be read after it
 *   was changed in memory, or from bytes that were in the place of a new table
 *   before, so the entry in memory is looked at too.  Where the two differ, the
 *   cluster is left alone, because a crash may bring the old entry back;
 *
 *   or in a copy of its table that this session made, and which may be in
 *   memory only.  So slices that are younger than the file are looked at
 *   before the table is read: whatever is not among them is in the file.
 *
 * L1 entries are looked up as they are in memory when the walk comes to them.  If a
 * root was added or removed during the walk, it begins again, because a table may
 * have passed from a root that it had yet to see to one that it has seen.  Lent
 * tables, which several roots have, are read once.
 *
 * One thread at a time takes a step; the image's lock protects the sets, and
 * I/O happens without it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "bitset.h"
#include "checked.h"
#include "image.h"

/* These limit the bytes of tables in one step, and the entries in one hold of
 * the lock. */
#define STEP_BYTES (UINT64_C (2) << 20)
#define ENTRIES_PER_HOLD 4096

/* Tables that are read side by side, so that a store that is far away takes one
 * round trip for all of them. */
#define TABLES_AT_ONCE 64u
#define BYTES_AT_ONCE (UINT64_C (1) << 20)

/* --- Sets ------------------------------------------------------------------- */

/* Finds the clusters that the L2 entry E names: *FIRST to *LAST.  Returns false
 * if it names none. */
static bool
named_by (const struct qcow2_image *img, uint64_t e, uint64_t *first,
          uint64_t *last)
{
  const unsigned bits = img->header.geo.cluster_bits;
  uint64_t host_off = e & QCOW2_OFFSET_MASK, len = 1, end;

  if (e & QCOW2_L2_COMPRESSED)
    qcow2_compressed_extent (img, e, &host_off, &len);
  else if (host_off == 0)
    return false;
  if (!add_u64 (host_off, len, &end) || end == 0)
    return false;
  *first = host_off >> bits;
  *last = (end - 1) >> bits;
  return true;
}

/* Returns whether E names a cluster of the two sets. */
static bool
is_hit (const struct qcow2_image *img, uint64_t e)
{
  const struct qcow2_alloc *a = &img->alloc;
  uint64_t first, last;

  return named_by (img, e, &first, &last) &&
    (qcow2_bitset_next (a->suspect, first) <= last ||
     qcow2_bitset_next (a->garbage, first) <= last);
}

/* Removes from the two sets what E names, which is in use. */
static void
in_use (struct qcow2_image *img, struct qcow2_walk *w, uint64_t e)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t first, last;

  if (!named_by (img, e, &first, &last))
    return;
  for (uint64_t i = first; i <= last; ++i) {
    if (qcow2_bitset_test (a->suspect, i)) {
      qcow2_bitset_clear (a->free, i, 1);
      qcow2_stale_clear (a, i, 1);
      w->nr_in_use++;
    }
    if (qcow2_bitset_test (a->garbage, i)) {
      qcow2_bitset_clear (a->garbage, i, 1);
      w->nr_in_use++;
    }
  }
}

/* Removes from the two sets what E names, because it is not known whether that
 * is in use: it is not emptied, cut off or freed in this session. */
static void
leave_alone (struct qcow2_image *img, uint64_t e)
{
  struct qcow2_alloc *a = &img->alloc;
  uint64_t first, last;

  if (!named_by (img, e, &first, &last))
    return;
  a->suspects_lost |= qcow2_bitset_next (a->suspect, first) <= last;
  qcow2_bitset_clear (a->suspect, first, last - first + 1);
  qcow2_bitset_clear (a->garbage, first, last - first + 1);
}

/* --- Entries ---------------------------------------------------------------- */

static uint64_t
entry_at (const struct qcow2_image *img, const uint8_t *table, uint64_t i)
{
  return be64_load (*(const be64 *)
                    (table + i * img->header.geo.l2_entry_size));
}

/* Handles the entries of a slice that is younger than the file, if the one at
 * HOST_OFF is. */
static void
look_at_memory (struct qcow2_image *img, struct qcow2_walk *w,
                uint64_t host_off)
{
  LOCK_FOR_SCOPE (&img->lock);
  const struct qcow2_slice *t = qcow2_cache_unwritten_locked (img, host_off);

  for (uint64_t i = 0; t && i < qcow2_l2_slice (&img->header.geo); ++i)
    in_use (img, w, entry_at (img, t->data, i));
}

/* Returns the first entry from I on that is a hit, or l2_entries if there is
 * none. */
static uint64_t
next_hit (struct qcow2_image *img, const uint8_t *table, uint64_t i)
{
  const uint64_t end = img->header.geo.l2_entries;

  while (i < end) {
    LOCK_FOR_SCOPE (&img->lock);
    for (unsigned n = 0; n < ENTRIES_PER_HOLD && i < end; ++n, ++i)
      if (is_hit (img, entry_at (img, table, i)))
        return i;
  }
  return end;
}

struct current {               /* an entry of a root */
  unsigned root;
  uint64_t guest_idx, entry;
};

static int
get_current_locked (struct qcow2_txn *txn, void *opaque)
{
  struct current *c = opaque;

  return qcow2_get_entry_locked (txn, c->root, c->guest_idx, &c->entry);
}

/* Handles a hit, E in the file: the entry of GUEST_IDX in the walk's root. */
static void
hit (struct qcow2_image *img, struct qcow2_walk *w, uint64_t guest_idx,
     uint64_t e)
{
  struct current now = { .root = w->root, .guest_idx = guest_idx };

  if (qcow2_txn_run (img, get_current_locked, &now) < 0)
    now.entry = e;
  LOCK_FOR_SCOPE (&img->lock);
  in_use (img, w, now.entry);
  if (now.entry != e)
    leave_alone (img, e);
}

/* --- Tables ----------------------------------------------------------------- */

struct l1_search {             /* in the L1 table of a root */
  unsigned root;
  uint64_t idx, end;           /* entries that were not looked at yet */
  uint64_t entry;              /* the one before IDX */
};

/* Looks for the next entry that names a table, in one slice of the L1 table: in
 * one with room for large disks most are empty. */
static int
search_l1_locked (struct qcow2_txn *txn, void *opaque)
{
  const uint64_t per = qcow2_slice_size (&txn->img->header.geo) /
    sizeof (be64);
  struct l1_search *s = opaque;
  const uint64_t end = MIN_OF (s->end, (s->idx / per + 1) * per);
  int r = 0;

  for (s->entry = 0; s->idx < end && r == 0 && s->entry == 0; s->idx += r == 0) {
    r = qcow2_l1_entry_locked (txn, s->root, s->idx, &s->entry);
    s->entry &= QCOW2_OFFSET_MASK;
  }
  return r;
}

/* Returns how many L1 entries the walk's root has; none if it is the anchor, or
 * does not exist any more. */
static uint64_t
nr_l1_entries (struct qcow2_image *img, const struct qcow2_walk *w)
{
  LOCK_FOR_SCOPE (&img->lock);
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, w->root);

  if (w->root == QCOW2_ROOT_ACTIVE)
    return img->l1.nr;
  return s && !s->is_anchor ? s->l1_entries : 0;
}

static uint64_t
frontier (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_frontier_locked (img);
}

/* Returns whether a table was looked at before; notes it.  Without memory it is
 * looked at once more. */
static bool
was_seen (struct qcow2_image *img, struct qcow2_walk *w, uint64_t host_off)
{
  const uint64_t idx = host_off >> img->header.geo.cluster_bits;

  if (w->seen == NULL)
    w->seen = qcow2_bitset_new ();
  if (w->seen == NULL || idx >= frontier (img))
    return false;
  if (qcow2_bitset_test (w->seen, idx))
    return true;
  return qcow2_bitset_set (w->seen, idx, 1) > 0;   /* never above 0 */
}

/* Finds the offset of the next L2 table of the walk's root, 0 if the next L1
 * entries have none.  Returns 0 if the root has no more entries, how many were
 * looked at, or -errno. */
static ssize_t
next_table (struct qcow2_image *img, struct qcow2_walk *w, uint64_t *host_off)
{
  struct l1_search s = { .root = w->root, .idx = w->next,
                         .end = nr_l1_entries (img, w) };
  const uint64_t begin = w->next;
  int r;

  if (s.idx >= s.end)
    return 0;
  r = qcow2_txn_run (img, search_l1_locked, &s);
  if (r < 0)
    return r == -ENOMEM ? r : -EIO;
  w->next = s.idx;
  *host_off = s.entry;
  return (ssize_t) (s.idx - begin);
}

/* Continues with the next root; from the start if the set of roots has changed.
 * Returns 0 if there is none. */
static int
next_root (struct qcow2_image *img, struct qcow2_walk *w)
{
  LOCK_FOR_SCOPE (&img->lock);

  w->next = 0;
  if (w->changes == img->disks.changes)
    return ++w->root < qcow2_nr_roots_locked (img);
  w->changes = img->disks.changes;
  w->root = QCOW2_ROOT_ACTIVE;
  return 1;
}

struct tables {                /* to be looked at together */
  uint64_t next[TABLES_AT_ONCE];     /* the walk's position behind each */
  struct io_part parts[TABLES_AT_ONCE];
  size_t nr;
};

/* Handles each hit in table number K, which was read. */
static void
look_at_file (struct qcow2_image *img, struct qcow2_walk *w,
              const struct tables *t, size_t k)
{
  const struct qcow2_geometry *g = &img->header.geo;
  const uint64_t guest_idx = (t->next[k] - 1) * g->l2_entries;
  const uint8_t *table = t->parts[k].buf;
  uint64_t i;

  for (i = 0; (i = next_hit (img, table, i)) < g->l2_entries; ++i)
    hit (img, w, guest_idx + i, entry_at (img, table, i));
}

/* Looks at tables of the walk's root, which are read side by side. */
static int
look_at_tables (struct qcow2_image *img, struct qcow2_walk *w,
                struct tables *t)
{
  const struct qcow2_geometry *g = &img->header.geo;
  size_t k;

  for (k = 0; k < t->nr; k++)
    for (uint64_t at = 0; at < g->cluster_size; at += qcow2_slice_size (g))
      look_at_memory (img, w, t->parts[k].host_off + at);
  if (t->nr > 0 && io_read_many (img->io, t->parts, t->nr) < 0)
    return -EIO;
  for (k = 0; k < t->nr; k++)
    look_at_file (img, w, t, k);
  return 0;
}

/* Finds the next tables of the walk's root, at most MAX, that were not looked at,
 * and gives them room in BUF; adds the bytes that this takes to *BYTES.  Returns 1,
 * 0 if the root has no more, or -errno. */
static int
collect_tables (struct qcow2_image *img, struct qcow2_walk *w, size_t max,
                uint8_t *buf, struct tables *t, uint64_t *bytes)
{
  const uint64_t size = img->header.geo.cluster_size;
  uint64_t host_off;
  ssize_t r = 1;

  for (t->nr = 0; t->nr < max && *bytes < STEP_BYTES && r > 0; ) {
    r = next_table (img, w, &host_off);
    if (r <= 0)
      break;
    *bytes += (uint64_t) r * sizeof (be64);
    if (host_off == 0 || was_seen (img, w, host_off))
      continue;
    *bytes += size;
    t->next[t->nr] = w->next;
    t->parts[t->nr] = (struct io_part) { .buf = buf + t->nr * size, .len = size,
                                         .host_off = host_off };
    t->nr++;
  }
  return r < 0 ? (int) r : r > 0;
}

int
qcow2_walk_step (struct qcow2_image *img, struct qcow2_walk *w)
{
  const uint64_t size = img->header.geo.cluster_size;
  const size_t max = MIN_OF (TABLES_AT_ONCE, MAX_OF (1, BYTES_AT_ONCE / size));
  CLEANUP_FREE uint8_t *buf = aligned_new (max * size);
  struct tables t;
  int more, r;

  if (!buf)
    return -ENOMEM;
  for (uint64_t bytes = 0; bytes < STEP_BYTES; ) {
    more = collect_tables (img, w, max, buf, &t, &bytes);
    r = look_at_tables (img, w, &t);    /* they count as seen, whatever MORE is */
    if (r < 0 || more < 0)
      return r < 0 ? r : more;
    if (more == 0 && next_root (img, w) == 0)
      return 0;
  }
  return 1;
}

void
qcow2_walk_free (struct qcow2_walk *w)
{
  qcow2_bitset_free (w->seen);
}
