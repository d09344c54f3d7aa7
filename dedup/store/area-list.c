/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists the areas that are in use, and checks and guards them.
 *
 * The list is what the configuration in memory says: the configuration's own
 * area, the journal's, and those of the index.  Areas in the store file are
 * left out.
 *
 * Maintenance only: one caller at a time.
 */
#include "area.h"

#include <errno.h>
#include <stdlib.h>

/* --- the list ----------------------------------------------------------- */

static uint64_t
journal_area_bytes (const struct dedup_journal_area *a)
{
  return (uint64_t) a->nr_blocks * DEDUP_BLOCK_SIZE;
}

/* Returns area I of all that the configuration lists, its own area first. */
static struct qcow2_area
area_at (const struct dedup_store *s, size_t i)
{
  const struct dedup_config *c = s->config;

  if (i == 0)
    return (struct qcow2_area) { s->ext.config_off, s->ext.config_size };
  if (--i < c->nr_areas)
    return (struct qcow2_area) { c->areas[i].host_off,
                                 journal_area_bytes (&c->areas[i]) };
  i -= c->nr_areas;
  if (i < c->index.nr_incarnations)
    return (struct qcow2_area) { c->index.incarnations[i].host_off,
                                 c->index.incarnations[i].size_bytes };
  i -= c->index.nr_incarnations;
  if (i < c->index.nr_segments)
    return (struct qcow2_area) { c->index.segments[i].host_off,
                                 c->index.segments[i].size_bytes };
  i -= c->index.nr_segments;
  return (struct qcow2_area) { c->index.limbo[i].host_off,
                               c->index.limbo[i].size_bytes };
}

/* Gets area I of all.  False: it lies in the store file. */
static bool
image_area_at (const struct dedup_store *s, size_t i, struct qcow2_area *a)
{
  *a = area_at (s, i);
  return !dedup_in_store_file (a->host_off);
}

static size_t
count_areas (const struct dedup_store *s)
{
  return 1 + s->config->nr_areas + s->config->index.nr_incarnations +
    s->config->index.nr_limbo + s->config->index.nr_segments;
}

int
dedup_area_list (struct dedup_store *s, struct qcow2_area **areas, size_t *nr)
{
  size_t i, all = s->has_store ? count_areas (s) : 0;

  *nr = 0;
  *areas = calloc (all + 1, sizeof **areas);
  if (*areas == NULL)
    return -ENOMEM;
  for (i = 0; i < all; i++)
    if (image_area_at (s, i, &(*areas)[*nr]))
      ++*nr;
  return 0;
}

bool
dedup_area_contains (const struct dedup_store *s, uint64_t host_idx)
{
  uint64_t off = host_idx << s->b->cluster_bits;
  size_t i, nr = count_areas (s);

  for (i = 0; i < nr; i++) {
    struct qcow2_area a;

    if (image_area_at (s, i, &a) &&
        off >= a.host_off && off - a.host_off < a.size)
      return true;
  }
  return s->index != NULL && dedup_index_will_free (s->index, off);
}

/* --- checking and guarding ---------------------------------------------- */

struct checked_part {
  uint64_t host_idx, count;      /* clusters to look at, and how many */
  uint64_t nr_valid;             /* of them, in a row from the first one on */
};

/* A qcow2_step: counts the clusters of the struct checked_part OPAQUE that are
 * anchored with refcount 1. */
static int
check_part_locked (struct qcow2_txn *txn, void *opaque)
{
  struct checked_part *x = opaque;

  return qcow2_anchored_run_locked (txn, x->host_idx, x->count, 1,
                                    &x->nr_valid);
}

/* Checks every cluster of an area, since what is freed or written over later
 * must not be a guest's.  That takes some nanoseconds for each cluster, and one
 * read of a table for a few hundred. */
static int
check_area (const struct dedup_base *b, struct qcow2_area a, bool *ok)
{
  uint64_t idx = a.host_off >> b->cluster_bits;
  uint64_t end = (a.host_off + a.size) >> b->cluster_bits;
  int r = 0;

  while (idx < end && *ok && r == 0) {
    struct checked_part x = {
      .host_idx = idx, .count = MIN_OF (end - idx, DEDUP_CLUSTERS_PER_HOLD),
    };

    r = qcow2_txn_run (b->img, check_part_locked, &x);
    *ok = r < 0 || x.nr_valid > 0;
    idx += x.nr_valid;
  }
  return r;
}

/* How many parts of tables are announced at once, and two times: a store that is far away
 * keeps some hundred of them until they are loaded. */
#define TABLES_AHEAD 100

/* Checks areas in the order of the file, which have tables in common then. */
static int
check_areas (const struct dedup_base *b, const struct qcow2_area *v, size_t nr, bool *ok)
{
  size_t i, next = 0, announced = 0;
  int r = 0;

  for (i = 0; i < nr && *ok && r == 0; i++) {
    while (i == next && announced < nr) {
      next = announced;
      announced += qcow2_announce_tables (b->img, v + announced, nr - announced,
                                          TABLES_AHEAD);
    }
    r = check_area (b, v[i], ok);
  }
  return r;
}

static int
by_offset (const void *a, const void *b)
{
  const struct qcow2_area *va = a, *vb = b;

  return (va->host_off > vb->host_off) - (va->host_off < vb->host_off);
}

int
dedup_area_check (struct dedup_store *s, bool *ok)
{
  const size_t all = count_areas (s);
  CLEANUP_FREE struct qcow2_area *v = calloc (all, sizeof *v);
  size_t i, nr = 0;

  *ok = true;
  if (v == NULL)
    return -ENOMEM;
  for (i = 0; i < all; i++)
    if (image_area_at (s, i, &v[nr]))
      nr++;
  qsort (v, nr, sizeof *v, by_offset);
  return check_areas (s->b, v, nr, ok);
}

static int
guard_areas (struct dedup_store *s, struct fault *f)
{
  size_t i, nr = count_areas (s);

  LOCK_FOR_SCOPE (s->b->lock);
  for (i = 0; i < nr; i++) {
    struct qcow2_area a;
    uint64_t idx, count;

    if (!image_area_at (s, i, &a))
      continue;
    idx = a.host_off >> s->b->cluster_bits;
    count = a.size >> s->b->cluster_bits;
    /* A bitmap that claims a free cluster gets none of it (dirty-bitmaps.c). */
    if (qcow2_guard_has_tables_locked (s->b->img, idx, count))
      return fault_corrupt (f, a.host_off, "an area of the store overlaps "
                            "the image's tables");
    qcow2_guard_put_locked (s->b->img, idx, count, true);
  }
  return 0;
}

/* While bit 48 is set, the tables are right only after the replay, so their
 * part of the guard waits for it. */
int
dedup_guard (struct dedup_store *s, bool tables, struct fault *f)
{
  int r = 0;

  if (!s->b->writable)
    return 0;
  if (tables)
    r = qcow2_guard_begin (s->b->img, f);
  return r < 0 ? r : guard_areas (s, f);
}

void
dedup_area_fill_holes (struct dedup_store *s)
{
  const struct dedup_config *c = s->config;
  int r = io_fill_holes (s->b->io, s->ext.config_off, s->ext.config_size);
  size_t i;

  for (i = 0; i < c->nr_areas && r == 0; i++)
    r = io_fill_holes (s->b->io, c->areas[i].host_off,
                       journal_area_bytes (&c->areas[i]));
  if (r == 0)
    r = qcow2_back_tables (s->b->img);
  if (r < 0)
    log_line (s->b->log, LOG_DEBUG, "%s: space for what is overwritten: %s",
              s->b->path, strerror (-r));
}
