/* SPDX-License-Identifier: BSD-3-Clause */
/* Conversions: incarnations from a time when there was a limit on them become
 * runs, the oldest first, one a step.
 *
 * The run has the incarnation's age and its entries, tombstones too, so it
 * answers as that did, and stands where it stood.  It is a run of level 0,
 * which merges take from there.  It is written and made durable, then one
 * configuration lists it and no longer the incarnation (law 8); the
 * incarnation's space is freed when nobody reads it any more (law 9).
 * Interrupted at any point, the incarnation is there as before, and what was
 * written is an area that nothing lists.
 *
 * A page that is damaged costs its entries, as it did before; its tombstones
 * may be among them, so the index is not exact any more.  If the first page is,
 * nothing says that the others are this store's: the incarnation is dropped.
 * Its bytes may be anybody's: more entries than the configuration says, or
 * hashes that come twice, are left out.
 *
 * A kind of merge step: the bulk of the work is done without the maintenance
 * mutex (merge.c).  Memory: the entries, 40 bytes each, and 16 to sort them;
 * a log store of the incarnation's order has as many at the most.
 */
#include "merge.h"

#include <errno.h>

struct conversion {
  struct dedup_incarnation *inc;
  uint64_t store_id;
  struct dedup_segment_desc out;       /* its area; 0 bytes: no entries */
  size_t nr_max;                       /* as the configuration says */

  /* What came of it: */
  struct dedup_segment_meta *meta;     /* NULL: nothing to list */
};

bool
conversion_possible (const struct dedup_disk *d)
{
  const struct dedup_config *c = d->config;

  return c->max_incarnations == 0 && c->nr_incarnations > 0 &&
    !dedup_runs_full (c);
}

/* --- Its beginning ------------------------------------------------------- */

static struct dedup_incarnation *
find_incarnation (const struct dedup_disk *d, uint64_t id)
{
  const struct dedup_incarnations *set = d->index.set;
  size_t i;

  for (i = 0; i < set->nr; i++)
    if (dedup_incarnation_desc (set->v[i])->id == id)
      return dedup_incarnation_get (set->v[i]);
  return NULL;
}

static int
alloc_run (struct dedup_disk *d, struct conversion *c)
{
  c->out.bits = (uint8_t) dedup_run_bits (0, dedup_config_entries (d->config),
                                          c->nr_max);
  c->out.size_bytes = round_up_pow2 (dedup_segment_size (c->nr_max,
                                                         c->out.bits),
                                     d->cluster_size);
  return dedup_index_area_alloc (d, c->out.size_bytes, &c->out.host_off);
}

int
conversion_new (struct dedup_disk *d, struct conversion **out)
{
  const struct dedup_incarnation_desc *oldest = &d->config->incarnations[0];
  struct conversion *c = calloc (1, sizeof *c);
  int r = 0;

  if (c == NULL)
    return -ENOMEM;
  c->store_id = d->config->store_id;
  c->nr_max = oldest->nr_entries;
  c->out = (struct dedup_segment_desc) {
    .id = d->config->next_incarnation_id++,   /* pages have it from now */
    .age = oldest->id, .hi = UINT32_MAX };
  c->inc = find_incarnation (d, oldest->id);
  assert (c->inc != NULL);                    /* the set is the list's */
  if (c->nr_max > 0)
    r = alloc_run (d, c);
  if (r < 0) {
    conversion_free (c);
    return r;
  }
  *out = c;
  return 0;
}

void
conversion_free (struct conversion *c)
{
  if (c == NULL)
    return;
  dedup_incarnation_put (c->inc);
  dedup_segment_meta_free (c->meta);
  free (c);
}

/* --- The work, without locks --------------------------------------------- */

static bool
stopping (struct dedup_disk *d)
{
  return __atomic_load_n (&d->stop, __ATOMIC_RELAXED);
}

/* Is page 0 right?  What can't be read is as bad as what is wrong. */
static int
verify_head (struct dedup_incarnation *inc)
{
  int r = dedup_incarnation_load (inc);

  return r == 0 || r == -ENOMEM ? r : -EBADMSG;
}

/* Whatever can be read of up to C->nr_max entries. */
static int
read_entries (struct dedup_disk *d, const struct conversion *c,
              struct dedup_entry *v, size_t *nr)
{
  const uint64_t nr_pages = dedup_incarnation_pages (c->inc);
  struct dedup_entry page[DEDUP_PAGE_ENTRIES];
  uint64_t i;
  size_t n;

  *nr = 0;
  for (i = 0; i < nr_pages && *nr < c->nr_max; i++) {
    if (stopping (d))
      return -EINTR;
    if (dedup_incarnation_read (c->inc, i, page, &n) < 0)
      continue;                        /* that has marked it */
    n = MIN_OF (n, c->nr_max - *nr);
    memcpy (v + *nr, page, n * sizeof *v);
    *nr += n;
  }
  return 0;
}

static int
compare_hashes (const void *a, const void *b)
{
  const struct dedup_entry *x = a, *y = b;

  return memcmp (&x->hash, &y->hash, sizeof x->hash);
}

static int
write_entries (struct dedup_disk *d, struct conversion *c,
               const struct dedup_entry *v, size_t nr)
{
  struct merge_pace pace = { .resting = true };
  struct dedup_segment_writer *w;
  size_t i;
  int r;

  r = dedup_segment_writer_new (dedup_index_io (d), c->store_id, &c->out, nr,
                                &d->stop, &w);
  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++) {
    if (i == 0 || compare_hashes (&v[i - 1], &v[i]) != 0)
      r = dedup_segment_writer_add (w, &v[i].hash, v[i].host_idx);
    merge_rest (&pace);
  }
  if (r == 0)
    r = dedup_segment_writer_finish (w, &c->out, &c->meta);
  dedup_segment_writer_free (w);
  return r;
}

int
conversion_run (struct dedup_disk *d, struct conversion *c)
{
  CLEANUP_FREE struct dedup_entry *v = NULL;
  size_t nr;
  int r;

  if (c->nr_max == 0)
    return 0;
  r = verify_head (c->inc);
  if (r < 0)
    return r;
  v = malloc (c->nr_max * sizeof *v);  /* 168 MB at the most: config-check.c */
  if (v == NULL)
    return -ENOMEM;
  r = read_entries (d, c, v, &nr);
  if (r < 0 || nr == 0)
    return r;
  qsort (v, nr, sizeof *v, compare_hashes);
  return write_entries (d, c, v, nr);
}

/* --- Its end ------------------------------------------------------------- */

static void
distrust_damaged (struct dedup_disk *d, const struct conversion *c)
{
  if (!dedup_incarnation_damaged (c->inc))
    return;
  log_line (d->log, LOG_ERROR, "%s: incarnation %llu of the index is damaged: "
            "some of its entries are lost, and no data", d->path,
            (unsigned long long) c->out.age);
  LOCK_FOR_SCOPE (d->lock);
  d->exact = false;                    /* tombstones may be lost with them */
}

/* Its place in the list; its length, if it was dropped meanwhile. */
static size_t
place_of (const struct dedup_config *conf, const struct conversion *c)
{
  size_t i = 0;

  while (i < conf->nr_incarnations && conf->incarnations[i].id != c->out.age)
    i++;
  return i;
}

/* *COMMITTED: the configuration lists what was made, though it may be owed. */
static int
replace (struct dedup_disk *d, struct conversion *c, size_t i,
         bool *committed)
{
  CLEANUP_FREE struct dedup_config *before = malloc (sizeof *before);
  struct dedup_segment_meta *meta = c->meta;
  int r;

  if (before == NULL)
    return -ENOMEM;
  *before = *d->config;
  dedup_incarnation_unlist (d, i);
  if (meta != NULL && !mutation (MUTATION_CONVERSION_NOT_LISTED)) {
    if (mutation (MUTATION_CONVERSION_AGE))
      c->out.age = c->out.id;
    r = dedup_runs_list (d->config, &c->out);
    assert (r == 0);                   /* conversion_possible saw to it */
  }
  c->meta = NULL;
  r = dedup_runs_commit (d, before, meta ? &c->out : NULL, meta, false);
  *committed = r == 0 || r == -ENOSPC;
  return r;
}

static int
sync_run (struct dedup_disk *d, const struct conversion *c)
{
  if (c->meta == NULL || mutation (MUTATION_CONVERSION_NO_SYNC))
    return 0;
  return dedup_index_sync (d, c->out.host_off);   /* law 8 */
}

static int
list_run (struct dedup_disk *d, struct conversion *c)
{
  const size_t i = place_of (d->config, c);
  const bool any = c->meta != NULL;
  bool committed = false;
  int r;

  distrust_damaged (d, c);
  r = i < d->config->nr_incarnations ? sync_run (d, c) : -EAGAIN;
  if (r == 0)
    r = dedup_config_settle (d);
  if (r == 0)
    r = replace (d, c, i, &committed);
  if (!committed || !any)
    dedup_index_area_give_up (d, c->out.host_off, c->out.size_bytes);
  if (r == 0 && d->index_memory)       /* it may be larger by a little */
    r = dedup_window_trim (d);
  return r < 0 ? r : dedup_runs_reap (d);
}

int
conversion_finish (struct dedup_disk *d, struct conversion *c, int r)
{
  if (r == 0)
    r = list_run (d, c);
  else
    dedup_index_area_give_up (d, c->out.host_off, c->out.size_bytes);
  if (r == -EBADMSG)
    return place_of (d->config, c) < d->config->nr_incarnations ?
      dedup_drop_damaged (d, c->out.age) : 0;
  if (r == -EINTR || r == -EAGAIN)
    return 0;
  /* The next one goes to the image. */
  return r < 0 && dedup_store_file_lost (d, c->out.host_off) ? 0 : r;
}
