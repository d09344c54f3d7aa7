/* SPDX-License-Identifier: BSD-3-Clause */
/* Freezes a log store: sorts its entries and writes them as a run of one
 * segment, which is listed and replaces the log store.
 *
 * If a freeze is interrupted at any point, it leaves an area that no manifest
 * lists; the owner's log still has the entries, so the next session freezes
 * them again.
 *
 * Editing functions only.  The frozen log store does not change meanwhile.
 */
#include "publish.h"

#include <errno.h>

/* --- Sorting ------------------------------------------------------------- */

/* An entry to be sorted: its slot in the log store, and its hash's first
 * word. */
struct key {
  uint64_t word0;
  uint32_t slot;
};

#define RADIX_BITS 11
#define RADIX (1u << RADIX_BITS)
#define PREFIX_SHIFT 31          /* 3 digits of 11 bits: the upper 33 bits */

/* Sorts FROM by the digit at SHIFT into TO; entries with equal digits keep
 * their order. */
static void
sort_by_digit (const struct key *from, struct key *to, size_t nr,
               unsigned shift)
{
  size_t start[RADIX] = { 0 }, i, sum = 0, n;

  for (i = 0; i < nr; i++)
    start[from[i].word0 >> shift & (RADIX - 1)]++;
  for (i = 0; i < RADIX; i++) {
    n = start[i];
    start[i] = sum;
    sum += n;
  }
  for (i = 0; i < nr; i++)
    to[start[from[i].word0 >> shift & (RADIX - 1)]++] = from[i];
}

static bool
hash_below (const struct dedup_log_store *ls, const struct key *a,
            const struct key *b)
{
  struct dedup_hash x, y;
  uint64_t v;

  if (a->word0 != b->word0)
    return a->word0 < b->word0;
  dedup_log_store_slot (ls, a->slot, &x, &v);
  dedup_log_store_slot (ls, b->slot, &y, &v);
  return memcmp (&x, &y, sizeof x) < 0;
}

/* Sorts V by whole hashes, by insertion: after the sorts by digits few
 * neighbours are out of order. */
static void
sort_rest (const struct dedup_log_store *ls, struct key *v, size_t nr)
{
  size_t i, k;

  for (i = 1; i < nr; i++)
    for (k = i; k > 0 && hash_below (ls, &v[k], &v[k - 1]); k--) {
      const struct key t = v[k];

      v[k] = v[k - 1];
      v[k - 1] = t;
    }
}

/* Lists the entries of LS in hash order; the caller frees *KEYS. */
static int
sort_log_store (const struct dedup_log_store *ls, struct key **keys,
                size_t *nr)
{
  const size_t slots = (size_t) DEDUP_BUCKET_SLOTS <<
    dedup_log_store_order (ls);
  const size_t max = dedup_log_store_count (ls);
  CLEANUP_FREE struct key *a = calloc (max + 1, sizeof *a);
  CLEANUP_FREE struct key *b = calloc (max + 1, sizeof *b);
  struct dedup_hash h;
  uint64_t at;
  size_t i, n = 0;

  if (a == NULL || b == NULL)
    return -ENOMEM;
  for (i = 0; i < slots; i++)
    if (dedup_log_store_slot (ls, i, &h, &at))
      a[n++] = (struct key) { dedup_hash_word (&h, 0), (uint32_t) i };
  assert (n == max);
  sort_by_digit (a, b, n, PREFIX_SHIFT);
  sort_by_digit (b, a, n, PREFIX_SHIFT + RADIX_BITS);
  sort_by_digit (a, b, n, PREFIX_SHIFT + 2 * RADIX_BITS);
  sort_rest (ls, b, n);
  *keys = b;
  *nr = n;
  b = NULL;
  return 0;
}

/* --- Writing ------------------------------------------------------------- */

static int
write_entries (struct dedup_index *x, const struct dedup_log_store *ls,
               struct dedup_segment_desc *desc,
               struct dedup_segment_meta **meta)
{
  CLEANUP_FREE struct key *keys = NULL;
  struct dedup_segment_writer *w;
  struct dedup_hash h;
  uint64_t value;
  size_t i, nr;
  int r;

  r = sort_log_store (ls, &keys, &nr);
  if (r < 0)
    return r;
  r = dedup_segment_writer_new (x->storage.io, x->store_id, desc, nr, &x->stop,
                                &w);
  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++) {
    dedup_log_store_slot (ls, keys[i].slot, &h, &value);
    r = dedup_segment_writer_add (w, &h, value);
  }
  if (r == 0)
    r = dedup_segment_writer_finish (w, desc, meta);
  dedup_segment_writer_free (w);
  return r;
}

static int
write_run (struct dedup_index *x, const struct dedup_log_store *ls,
           struct dedup_segment_desc *desc, struct dedup_segment_meta **meta)
{
  const struct dedup_index_storage *s = &x->storage;
  const size_t nr = dedup_log_store_count (ls);
  int r;

  desc->bits = (uint8_t) index_run_bits (0, nr + dedup_manifest_entries
                                         (x->manifest), nr);
  desc->size_bytes = round_up_pow2 (dedup_segment_size (nr, desc->bits),
                                    x->area_unit);
  r = s->alloc (s->opaque, desc->size_bytes, &desc->host_off);
  if (r < 0)
    return r;
  r = write_entries (x, ls, desc, meta);
  if (r == 0 && !mutation (MUTATION_LAW_8_NO_SYNC)) {
    r = s->sync (s->opaque, desc->host_off);
    if (r < 0)
      dedup_segment_meta_free (*meta);
  }
  if (r < 0)
    index_give_up_area (x, desc->host_off, desc->size_bytes);
  return r;
}

/* Writes the run; if its file has failed, writes it again to another.  Pages
 * carry the table's id, so each attempt has an id of its own. */
static int
place_run (struct dedup_index *x, const struct dedup_log_store *ls,
           struct dedup_segment_desc *desc, struct dedup_segment_meta **meta)
{
  int r;

  do {
    desc->id = desc->age = x->manifest->next_id++;
    desc->host_off = 0;
    r = write_run (x, ls, desc, meta);
  } while (r < 0 && r != -EINTR &&
           x->storage.file_failed (x->storage.opaque, desc->host_off));
  return r;
}

/* --- Listing ------------------------------------------------------------- */

/* Lists the run, and publishes it; DESC is NULL where the log store was
 * empty. */
static int
list_run (struct dedup_index *x, const struct dedup_segment_desc *desc,
          struct dedup_segment_meta *meta)
{
  struct index_news news = { .segment = desc, .meta = meta,
                             .frozen_done = true };
  struct index_edit e;
  int r = index_edit_begin (x, &e);

  if (r < 0) {
    dedup_segment_meta_free (meta);
    if (desc)
      index_give_up_area (x, desc->host_off, desc->size_bytes);
    return r;
  }
  if (desc) {
    r = dedup_manifest_add_segment (e.m, desc);
    assert (r == 0);             /* shorten_list: the list is not full */
    index_limit_edit (&e);
    news.new_off = desc->host_off;
    news.new_size = desc->size_bytes;
  }
  return index_edit_commit (&e, &news);
}

/* Merges, or forgets under a bound on memory, until the list has room for
 * another segment: merges could not keep up with freezes. */
static int
shorten_list (struct dedup_index *x)
{
  int r = 0;

  while (r == 0 && dedup_manifest_full (x->manifest)) {
    r = index_merge_now (x);
    if (r == -ENOSPC && x->memory_bound)
      r = index_limit_drop_oldest (x);
  }
  return r;
}

static int
freeze_as_run (struct dedup_index *x, const struct dedup_log_store *ls)
{
  struct dedup_segment_desc desc = { .hi = UINT32_MAX };
  struct dedup_segment_meta *meta = NULL;
  int r;

  if (dedup_log_store_count (ls) == 0)
    return list_run (x, NULL, NULL);
  r = shorten_list (x);
  if (r == 0)
    r = place_run (x, ls, &desc, &meta);
  if (r == 0)
    r = list_run (x, &desc, meta);
  if (r < 0)
    return r;
  index_limit_note_freeze (x);
  return dedup_index_reap (x);
}

bool
dedup_index_must_merge (const struct dedup_index *x)
{
  return x->manifest->max_incarnations == 0 &&
    dedup_manifest_full (x->manifest);
}

int
dedup_index_freeze (struct dedup_index *x)
{
  const struct dedup_log_store *ls;
  int r;

  r = index_settle (x);          /* that may complete an earlier freeze */
  if (r < 0)
    return r;
  lock_acquire (x->lock);
  ls = x->frozen;
  lock_release (x->lock);
  if (ls == NULL)
    return 0;
  r = x->manifest->max_incarnations == 0 ? freeze_as_run (x, ls)
    : index_freeze_limited (x, ls);
  if (r == 0)
    dedup_index_look (x, false);
  return r;
}
