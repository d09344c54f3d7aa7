/* SPDX-License-Identifier: BSD-3-Clause */
/* Converts incarnations, from a time when their number was limited, to runs: the
 * oldest first, one a step.
 *
 * The run has the incarnation's age and its entries, tombstones too, so it answers
 * as that did, and takes its position.  It is a run of level 0, which merges take
 * from there.  It is written and made durable, then one manifest lists it and no
 * longer the incarnation (law 8); the incarnation's space is freed when nobody
 * reads it any more (law 9).  Interrupted at any point, the incarnation is there as
 * before, and what was written is an area that nothing lists.
 *
 * A damaged page costs its entries, as it did before; tombstones may be among
 * them, so the index is not exact any more.  If the first page is damaged, nothing
 * says that the others are this store's: the incarnation is dropped.  Its bytes may
 * come from anybody: more entries than the manifest says, or hashes that come
 * twice, are left out.
 *
 * Memory: the entries, 40 bytes each, and 16 to sort them; a log store of the
 * incarnation's order has as many at the most.
 */
#include "merge.h"

#include <errno.h>
#include <string.h>

#include "pace.h"
#include "publish.h"

struct conversion {
  struct dedup_incarnation *inc;
  struct dedup_segment_desc out;       /* its area; 0 bytes: no entries */
  size_t nr_max;                       /* as the configuration says */

  /* What came of it: */
  struct dedup_segment_meta *meta;     /* NULL: nothing to list */
};

bool
conversion_possible (const struct dedup_index *x)
{
  const struct dedup_index_manifest *m = x->manifest;

  return m->max_incarnations == 0 && m->nr_incarnations > 0 &&
    !dedup_manifest_full (m);
}

/* --- Its beginning ------------------------------------------------------- */

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
    .id = x->manifest->next_id++,   /* pages have it from now */
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

/* --- The work, without locks --------------------------------------------- */

/* Is page 0 right?  What can't be read is as bad as what is wrong. */
static int
verify_head (struct dedup_incarnation *inc)
{
  int r = dedup_incarnation_load (inc);

  return r == 0 || r == -ENOMEM ? r : -EBADMSG;
}

/* Whatever can be read of up to C->nr_max entries. */
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
  v = malloc (c->nr_max * sizeof *v);  /* 168 MB at the most: config-check.c */
  if (v == NULL)
    return -ENOMEM;
  r = read_entries (x, c, v, &nr);
  if (r < 0 || nr == 0)
    return r;
  qsort (v, nr, sizeof *v, compare_hashes);
  return write_entries (x, c, v, nr);
}

/* --- Its end ------------------------------------------------------------- */

static void
doubt_if_damaged (struct dedup_index *x, const struct conversion *c)
{
  if (!dedup_incarnation_damaged (c->inc))
    return;
  log_line (x->log, LOG_ERROR, "%s: incarnation %llu of the index is damaged: "
            "some of its entries are lost, and no data", x->name,
            (unsigned long long) c->out.age);
  LOCK_FOR_SCOPE (x->lock);
  x->exact = false;                    /* tombstones may be lost with them */
}

/* Its place in the list; nr_incarnations, if it was dropped meanwhile. */
static size_t
place_of (const struct dedup_index *x, const struct conversion *c)
{
  return dedup_manifest_find_incarnation (x->manifest, c->out.age);
}

/* Lists the run in the place of incarnation I.  The area is the list's then, or
 * retired. */
static int
replace (struct dedup_index *x, struct conversion *c, size_t i)
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
    assert (r == 0);                   /* conversion_possible saw to it */
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
  const size_t i = place_of (x, c);
  int r;

  doubt_if_damaged (x, c);
  r = i < x->manifest->nr_incarnations ? sync_run (x, c) : -EAGAIN;
  if (r == 0)
    r = index_settle (x);
  if (r == 0)
    r = replace (x, c, i);
  index_give_up_area (x, c->out.host_off, c->out.size_bytes);
  if (r == 0 && x->memory_bound)       /* it may be larger by a little */
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
    return place_of (x, c) < x->manifest->nr_incarnations ?
      index_drop_incarnation (x, c->out.age) : 0;
  if (r == -EINTR || r == -EAGAIN)
    return 0;
  /* The next run goes elsewhere. */
  return r < 0 && x->storage.moved (x->storage.opaque, host_off) ? 0 : r;
}
