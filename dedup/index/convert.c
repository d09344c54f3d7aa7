/* SPDX-License-Identifier: BSD-3-Clause */
/* Converts incarnations, which are from a time when their number was limited,
 * to runs: the oldest first, one in each step.
 *
 * The run has the incarnation's age and its entries, tombstones included, so
 * it answers lookups as the incarnation did, and takes its position.  It is a
 * run of level 0, which later merges take.  It is written and made durable;
 * then one manifest lists it and no longer the incarnation (law 8); the
 * incarnation's space is freed when nobody reads it any more (law 9).  If a
 * conversion is interrupted at any point, the incarnation is there as before,
 * and no manifest lists the area that was written.
 *
 * A damaged page costs its entries, as it did before; tombstones may be among
 * them, so the index is not exact any more.  If the first page is damaged,
 * nothing proves that the others are this store's: the incarnation is dropped.
 * Its bytes may have been written by an attacker: entries beyond the number in
 * the manifest, and hashes that come twice, are left out.
 *
 * Memory: 40 bytes for each entry, and 16 to sort it; there are at most as many
 * entries as in a log store of the incarnation's order.
 *
 * Threads: conversion_run holds no lock and may run beside anything but another
 * step; all else is editing.
 */
#include "merge.h"

#include <errno.h>
#include <string.h>

#include "pace.h"
#include "publish.h"

struct conversion {
  struct dedup_incarnation *inc;
  struct dedup_segment_desc out;       /* its area; 0 bytes: no entries */
  size_t nr_max;                       /* entries, as the manifest says */

  /* Result: */
  struct dedup_segment_meta *meta;     /* NULL: nothing to list */
};

bool
conversion_possible (const struct dedup_index *x)
{
  const struct dedup_index_manifest *m = x->manifest;

  return m->max_incarnations == 0 && m->nr_incarnations > 0 &&
    !dedup_manifest_full (m);
}

/* --- Start --------------------------------------------------------------- */

static int
alloc_run (struct dedup_index *x, struct conversion *c)
{
  c->out.bits = (uint8_t) index_run_bits (0, dedup_manifest_entries
                                          (x->manifest), c->nr_max);
  c->out.size_bytes = round_up_pow2 (dedup_segment_size (c->nr_max,
                                                         c->out.bits),
                                     x->area_unit);
  return x->storage.alloc (x->storage.opaque, c->out.size_bytes,
                           &c->out.host_off);
}

int
conversion_new (struct dedup_index *x, struct conversion **out)
{
  const struct dedup_incarnation_desc *oldest = &x->manifest->incarnations[0];
  struct conversion *c = calloc (1, sizeof *c);
  int r = 0;

  if (c == NULL)
    return -ENOMEM;
  c->nr_max = oldest->nr_entries;
  c->out = (struct dedup_segment_desc) {
    .id = x->manifest->next_id++,   /* used up, even if this fails */
    .age = oldest->id, .hi = UINT32_MAX };
  c->inc = index_view_incarnation (x->view, oldest->id);
  assert (c->inc != NULL);                    /* the view is the list's */
  dedup_incarnation_get (c->inc);
  if (c->nr_max > 0)
    r = alloc_run (x, c);
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

/* --- Work, without locks ------------------------------------------------- */

/* Returns 0 if page 0 is right, -EBADMSG if it is wrong or can't be read, or
 * -ENOMEM. */
static int
verify_head (struct dedup_incarnation *inc)
{
  int r = dedup_incarnation_load (inc);

  return r == 0 || r == -ENOMEM ? r : -EBADMSG;
}

/* Reads up to C->nr_max entries to V, as far as pages are readable and right.
 * -EINTR. */
static int
read_entries (struct dedup_index *x, const struct conversion *c,
              struct dedup_entry *v, size_t *nr)
{
  const uint64_t nr_pages = dedup_incarnation_pages (c->inc);
  struct dedup_entry page[DEDUP_PAGE_ENTRIES];
  uint64_t i;
  size_t n;

  *nr = 0;
  for (i = 0; i < nr_pages && *nr < c->nr_max; i++) {
    if (index_stopping (x))
      return -EINTR;
    if (dedup_incarnation_read (c->inc, i, page, &n) < 0)
      continue;                        /* the incarnation is marked damaged */
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

/* Writes NR sorted entries as the run; of equal hashes the first one only. */
static int
write_entries (struct dedup_index *x, struct conversion *c,
               const struct dedup_entry *v, size_t nr)
{
  struct index_pace pace = { .resting = true };
  struct dedup_segment_writer *w;
  size_t i;
  int r;

  r = dedup_segment_writer_new (x->storage.io, x->store_id, &c->out, nr,
                                &x->stop, &w);
  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++) {
    if (i == 0 || compare_hashes (&v[i - 1], &v[i]) != 0)
      r = dedup_segment_writer_add (w, &v[i].hash, v[i].value);
    index_pace (&pace);
  }
  if (r == 0)
    r = dedup_segment_writer_finish (w, &c->out, &c->meta);
  dedup_segment_writer_free (w);
  return r;
}

int
conversion_run (struct dedup_index *x, struct conversion *c)
{
  CLEANUP_FREE struct dedup_entry *v = NULL;
  size_t nr;
  int r;

  if (c->nr_max == 0)
    return 0;
  r = verify_head (c->inc);
  if (r < 0)
    return r;
  v = malloc (c->nr_max * sizeof *v);  /* 168 MB at most: DEDUP_MAX_ORDER */
  if (v == NULL)
    return -ENOMEM;
  r = read_entries (x, c, v, &nr);
  if (r < 0 || nr == 0)
    return r;
  qsort (v, nr, sizeof *v, compare_hashes);
  return write_entries (x, c, v, nr);
}

/* --- Finish -------------------------------------------------------------- */

static void
doubt_if_damaged (struct dedup_index *x, const struct conversion *c)
{
  if (!dedup_incarnation_damaged (c->inc))
    return;
  log_line (x->log, LOG_ERROR, "%s: incarnation %llu of the index is damaged: "
            "some of its entries are lost, but no data", x->name,
            (unsigned long long) c->out.age);
  index_doubt (x);
}

/* Returns the incarnation's position in the list, or nr_incarnations if it was
 * dropped meanwhile. */
static size_t
find_position (const struct dedup_index *x, const struct conversion *c)
{
  return dedup_manifest_find_incarnation (x->manifest, c->out.age);
}

/* Lists the run in the place of incarnation I.  Once C has no area left, the
 * list or the retired ones have it. */
static int
replace_incarnation (struct dedup_index *x, struct conversion *c, size_t i)
{
  struct index_news news = { .meta = c->meta };
  struct index_edit e;
  int r = index_edit_begin (x, &e);

  if (r < 0)
    return r;
  index_edit_unlist_incarnation (&e, i);
  if (c->meta != NULL) {
    if (mutation (MUTATION_CONVERSION_AGE))
      c->out.age = c->out.id;
    news.segment = &c->out;
    news.new_off = c->out.host_off;
    news.new_size = c->out.size_bytes;
  }
  if (c->meta != NULL && !mutation (MUTATION_CONVERSION_NOT_LISTED)) {
    r = dedup_manifest_add_segment (e.m, &c->out);
    assert (r == 0);                   /* conversion_possible: it is not full */
  }
  if (c->meta != NULL)
    c->out.size_bytes = 0;
  c->meta = NULL;
  return index_edit_commit (&e, &news);
}

static int
sync_run (struct dedup_index *x, const struct conversion *c)
{
  if (c->meta == NULL || mutation (MUTATION_CONVERSION_NO_SYNC))
    return 0;
  return x->storage.sync (x->storage.opaque, c->out.host_off);   /* law 8 */
}

static int
list_run (struct dedup_index *x, struct conversion *c)
{
  const size_t i = find_position (x, c);
  int r;

  doubt_if_damaged (x, c);
  r = i < x->manifest->nr_incarnations ? sync_run (x, c) : -EAGAIN;
  if (r == 0)
    r = index_settle (x);
  if (r == 0)
    r = replace_incarnation (x, c, i);
  index_give_up_area (x, c->out.host_off, c->out.size_bytes);
  if (r == 0 && x->memory_bound)       /* the run may take a little more */
    r = index_limit_trim (x);
  return r;
}

int
conversion_finish (struct dedup_index *x, struct conversion *c, int r)
{
  const uint64_t host_off = c->out.host_off;

  if (r == 0)
    r = list_run (x, c);
  else
    index_give_up_area (x, host_off, c->out.size_bytes);
  if (r == -EBADMSG)
    return find_position (x, c) < x->manifest->nr_incarnations ?
      index_drop_incarnation (x, c->out.age) : 0;
  if (r == -EINTR || r == -EAGAIN)
    return 0;
  /* If its file has failed, the next run is written to another. */
  return r < 0 && x->storage.file_failed (x->storage.opaque, host_off) ? 0 : r;
}
