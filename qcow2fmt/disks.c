/* SPDX-License-Identifier: BSD-3-Clause */
/* Answers questions about the roots of an image, and keeps sets of tables: those
 * that a replay still needs as they are, and those of the active disk that may
 * have to get COPIED.
 *
 * A root is the active disk (0) or a slot of the snapshot table (slot + 1).  In
 * an image with disks, L2 tables of all roots may be lent (debt.c), and the
 * records of a journal name places of the file.  A record TABLE says that a
 * table becomes a copy of another one.  A replay makes that copy again, from
 * what the file has at the source, until a checkpoint that began after the copy
 * is complete.  Until then:
 *
 *   - the source does not change in place.  It is a *recent source*, and counts
 *     as shared;
 *   - the cluster of a table that was freed is not used for anything else
 *     (*table quarantine*), and if the table was changed before, that checkpoint
 *     still writes it: the changes may be older than what a replay reads.
 *
 * Both sets have two parts: what came since the begin of the last checkpoint,
 * and what came before it.  The second is emptied when that checkpoint is
 * complete.  If there is no memory for a recent source, no copy is made; if
 * there is none to move it to the second part, it stays in the first one, and
 * waits for one checkpoint more.  If there is none for a freed cluster, it is
 * lost until the next open.
 *
 * A replay adds to both sets what its records say, because the file has none of
 * that before the checkpoint of the recovery, for which there may be no space.
 *
 * A table that the active disk's L1 table names without COPIED must get it when
 * no other path is left (debt.c).  The third set says which tables these are,
 * and maybe others: so the L1 table is searched for these only.
 *
 * It has no threads; the image's lock protects it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"

/* --- Roots ---------------------------------------------------------------- */

bool
qcow2_has_disks (const struct qcow2_image *img)
{
  return __atomic_load_n (&img->disks.on, __ATOMIC_RELAXED);
}

/* Returns the slot of ROOT, which is not the active disk; NULL if there is no
 * such root any more. */
const struct qcow2_snapshot *
qcow2_root_slot_locked (const struct qcow2_image *img, unsigned root)
{
  if (root == QCOW2_ROOT_ACTIVE || root > img->snapshots.nr ||
      img->snapshots.v[root - 1].dead)
    return NULL;
  return &img->snapshots.v[root - 1];
}

unsigned
qcow2_nr_roots_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return (unsigned) img->snapshots.nr + 1;
}

uint64_t
qcow2_root_size_locked (struct qcow2_image *img, unsigned root)
{
  const struct qcow2_snapshot *s;

  assert (lock_held (&img->lock));
  if (root == QCOW2_ROOT_ACTIVE)
    return img->header.geo.virtual_size;
  s = qcow2_root_slot_locked (img, root);
  /* The size was not checked against anything; the limit keeps sums within 64
   * bits. */
  return s ? MIN_OF (s->disk_size, INT64_MAX) : 0;
}

uint64_t
qcow2_max_disk_size (const struct qcow2_image *img)
{
  const struct qcow2_geometry *g = &img->header.geo;
  uint64_t bytes;

  if (!mul_u64 (img->l1.nr, g->l2_entries * g->cluster_size, &bytes))
    return INT64_MAX;
  return MIN_OF (bytes, INT64_MAX);
}

bool
qcow2_root_writable_locked (struct qcow2_image *img, unsigned root)
{
  const struct qcow2_snapshot *s;

  assert (lock_held (&img->lock));
  if (!img->writable)
    return false;
  if (root == QCOW2_ROOT_ACTIVE)
    return true;
  s = qcow2_root_slot_locked (img, root);
  return s && s->is_disk && !s->is_anchor && !img->unlogged.on &&
    (s->disk_flags & (QCOW2_DISK_WRITABLE | QCOW2_DISK_DOOMED)) ==
    QCOW2_DISK_WRITABLE;
}

unsigned
qcow2_root_compress_locked (struct qcow2_image *img, unsigned root)
{
  const struct qcow2_snapshot_table *t = &img->snapshots;

  assert (lock_held (&img->lock));
  if (root == QCOW2_ROOT_ACTIVE || root > t->nr || t->v[root - 1].dead)
    return QCOW2_COMPRESS_AS_IMAGE;
  return t->v[root - 1].compress;
}

size_t
qcow2_nr_compress_on_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->snapshots.nr_compress_on;
}

uint64_t
qcow2_movable_size_locked (struct qcow2_image *img, unsigned root)
{
  const struct qcow2_snapshot *s;

  assert (lock_held (&img->lock));
  if (!img->writable || img->unlogged.on)
    return 0;
  s = qcow2_root_slot_locked (img, root);
  if (root != QCOW2_ROOT_ACTIVE &&
      (!s || s->is_anchor || s->named_anchor || (s->disk_flags & QCOW2_DISK_DOOMED)))
    return 0;
  return qcow2_root_size_locked (img, root);
}

/* --- COPIED of the active disk -------------------------------------------- */

static void
note_entry (struct qcow2_image *img, uint64_t entry)
{
  struct qcow2_disks *d = &img->disks;
  uint64_t idx = (entry & QCOW2_OFFSET_MASK) >> img->header.geo.cluster_bits;

  if (idx != 0 && !(entry & QCOW2_L2_COPIED) &&
      qcow2_bitset_set (d->uncopied, idx, 1) < 0)
    d->uncopied_lost = true;
}

static void
note_all (struct qcow2_image *img)
{
  for (uint64_t i = 0; i < img->l1.nr; ++i)
    note_entry (img, img->l1.v[i]);
}

void
qcow2_note_active_l1_locked (struct qcow2_image *img, uint64_t entry)
{
  assert (lock_held (&img->lock));
  if (img->disks.on)
    note_entry (img, entry);
}

bool
qcow2_may_lack_copied_locked (struct qcow2_image *img, uint64_t host_idx)
{
  assert (lock_held (&img->lock));
  return img->disks.uncopied_lost ||
    qcow2_bitset_test (img->disks.uncopied, host_idx);
}

/* --- Begin and end ---------------------------------------------------------- */

int
qcow2_disks_init (struct qcow2_image *img)
{
  struct qcow2_disks *d = &img->disks;

  for (unsigned i = 0; i < 2; ++i)
    d->source[i] = qcow2_bitset_new ();
  d->uncopied = qcow2_bitset_new ();
  d->replayed = qcow2_bitset_new ();
  if (!d->source[0] || !d->source[1] || !d->uncopied || !d->replayed)
    return -ENOMEM;
  for (size_t i = 0; i < img->snapshots.nr; ++i)
    if (img->snapshots.v[i].is_disk && !img->snapshots.v[i].dead)
      d->on = true;
  if (d->on)
    note_all (img);
  return 0;
}

void
qcow2_disks_free (struct qcow2_image *img)
{
  struct qcow2_disks *d = &img->disks;

  for (unsigned i = 0; i < 2; ++i) {
    qcow2_bitset_free (d->source[i]);
    free (d->freed[i].v);
  }
  qcow2_bitset_free (d->uncopied);
  qcow2_bitset_free (d->replayed);
  memset (d, 0, sizeof *d);
}

void
qcow2_begin_disks_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  if (img->disks.on)
    return;
  __atomic_store_n (&img->disks.on, true, __ATOMIC_RELAXED);
  note_all (img);
}

/* --- Recent sources ---------------------------------------------------------- */

int
qcow2_note_source_locked (struct qcow2_image *img, uint64_t host_idx)
{
  assert (lock_held (&img->lock));
  return qcow2_bitset_set (img->disks.source[0], host_idx, 1);
}

bool
qcow2_is_source_locked (struct qcow2_image *img, uint64_t host_idx)
{
  const struct qcow2_disks *d = &img->disks;

  assert (lock_held (&img->lock));
  if (mutation (MUTATION_LAW_12))
    return false;
  return qcow2_bitset_test (d->source[0], host_idx) ||
    qcow2_bitset_test (d->source[1], host_idx);
}

bool
qcow2_is_exclusive_locked (struct qcow2_image *img, uint64_t host_idx,
                           uint64_t refcount)
{
  return refcount == 1 && !qcow2_is_source_locked (img, host_idx);
}

/* Adds the sources since the last mark to those before it, as far as there is
 * memory. */
static void
age_sources (struct qcow2_disks *d)
{
  struct qcow2_bitset *young = d->source[0];
  uint64_t idx = 0, n;

  for (; (idx = qcow2_bitset_next (young, idx)) != QCOW2_BITSET_NONE;
       idx += n) {
    n = qcow2_bitset_run (young, idx, UINT64_MAX);
    if (qcow2_bitset_set (d->source[1], idx, n) == 0)
      qcow2_bitset_clear (young, idx, n);
  }
}

static void
forget_sources (struct qcow2_disks *d)
{
  uint64_t idx = 0, n;

  while ((idx = qcow2_bitset_next (d->source[1], idx)) != QCOW2_BITSET_NONE) {
    n = qcow2_bitset_run (d->source[1], idx, UINT64_MAX);
    qcow2_bitset_clear (d->source[1], idx, n);
  }
}

/* --- Table quarantine --------------------------------------------------------- */

/* Makes room for NR more runs.  Returns false if there is no memory. */
static bool
grow_freed (struct qcow2_freed *f, size_t nr)
{
  size_t max = f->max ? f->max : 64;
  struct qcow2_run *v;

  while (max < f->nr + nr)
    max *= 2;
  if (max == f->max)
    return true;
  v = realloc (f->v, max * sizeof *v);
  if (!v)
    return false;
  f->v = v;
  f->max = max;
  return true;
}

static void
keep_freed (struct qcow2_image *img, const struct qcow2_run *run)
{
  struct qcow2_freed *f = &img->disks.freed[0];

  if (grow_freed (f, 1)) {
    f->v[f->nr++] = *run;
    f->clusters += run->count;
  }
  else
    img->alloc.frees_lost = true;
}

/* Puts clusters that no replay reads any more into the ordinary quarantine. */
static void
release_freed (struct qcow2_image *img, struct qcow2_freed *f)
{
  for (size_t i = 0; i < f->nr; ++i) {
    qcow2_cache_forget_locked (img, f->v[i].host_idx, f->v[i].count);
    qcow2_quarantine_locked (img, &f->v[i], img->log.seq_locked ?
                             img->log.seq_locked (img->log.opaque) : 0);
  }
  f->nr = 0;
  f->clusters = 0;
}

void
qcow2_free_table_locked (struct qcow2_image *img, uint64_t host_idx,
                         uint64_t count)
{
  const struct qcow2_run run = { .host_idx = host_idx, .count = count };

  assert (lock_held (&img->lock));
  qcow2_guard_freed_locked (img, host_idx, count);
  qcow2_bitset_clear (img->disks.uncopied, host_idx, count);
  qcow2_alloc_keep_locked (img, host_idx, count);
  keep_freed (img, &run);
  if (mutation (MUTATION_LAW_13))
    release_freed (img, &img->disks.freed[0]);
}

static void
age_freed (struct qcow2_image *img)
{
  struct qcow2_freed *young = &img->disks.freed[0];
  struct qcow2_freed *old = &img->disks.freed[1];

  if (grow_freed (old, young->nr)) {
    if (young->nr > 0)
      memcpy (old->v + old->nr, young->v, young->nr * sizeof *old->v);
    old->nr += young->nr;
    old->clusters += young->clusters;
  }
  else
    img->alloc.frees_lost = true;
  young->nr = 0;
  young->clusters = 0;
}

uint64_t
qcow2_tables_kept_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  return img->disks.freed[0].clusters + img->disks.freed[1].clusters;
}

/* --- Replay ------------------------------------------------------------------- */

int
qcow2_replay_refcount_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count, bool freed)
{
  assert (lock_held (&img->lock));
  if (freed)
    return qcow2_bitset_set (img->disks.replayed, host_idx, count);
  qcow2_bitset_clear (img->disks.replayed, host_idx, count);
  return 0;
}

/* Nothing says which of them were tables. */
void
qcow2_replay_freed_locked (struct qcow2_image *img)
{
  struct qcow2_disks *d = &img->disks;
  struct qcow2_run run = { .host_idx = 0 };

  assert (lock_held (&img->lock));
  while (d->on && (run.host_idx = qcow2_bitset_next (d->replayed, run.host_idx))
         != QCOW2_BITSET_NONE) {
    run.count = qcow2_bitset_run (d->replayed, run.host_idx, UINT64_MAX);
    qcow2_alloc_keep_locked (img, run.host_idx, run.count);
    keep_freed (img, &run);
    run.host_idx += run.count;
  }
  qcow2_bitset_free (d->replayed);
  d->replayed = NULL;
}

/* --- Checkpoints ---------------------------------------------------------------- */

uint64_t
qcow2_tables_mark_locked (struct qcow2_image *img)
{
  assert (lock_held (&img->lock));
  age_sources (&img->disks);
  age_freed (img);
  return ++img->disks.token;
}

void
qcow2_tables_settled_locked (struct qcow2_image *img, uint64_t token)
{
  assert (lock_held (&img->lock));
  if (token != img->disks.token)
    return;                    /* a later one began: it will do */
  if (mutation (MUTATION_LAW_12_TOO_EARLY))
    age_sources (&img->disks);
  if (mutation (MUTATION_LAW_13_TOO_EARLY))
    age_freed (img);
  forget_sources (&img->disks);
  release_freed (img, &img->disks.freed[1]);
}
