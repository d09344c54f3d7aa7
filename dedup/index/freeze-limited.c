/* SPDX-License-Identifier: BSD-3-Clause */
/* Freezes a log store where the number of incarnations is limited: writes it as
 * an incarnation, and drops the oldest table.
 *
 * The pages are written to an area (one from limbo if it fits, else a new one)
 * and made durable before the manifest lists it (law 8).  The same manifest
 * drops the oldest incarnation into limbo, where it is not written again before
 * that manifest is durable (law 9).  Readers of a dropped incarnation may
 * continue: its pages carry its id and a checksum, so what is written over them
 * reads as a miss.
 *
 * If a freeze is interrupted, it leaves an area that no manifest lists, or a
 * limbo area with other bytes; the owner's log still has the entries.
 *
 * Editing functions only.  The frozen log store does not change meanwhile.
 */
#include "publish.h"

#include <errno.h>
#include <string.h>

static void
remove_limbo (struct dedup_index_manifest *m, size_t i)
{
  memmove (&m->limbo[i], &m->limbo[i + 1],
           (m->nr_limbo - i - 1) * sizeof m->limbo[0]);
  m->nr_limbo--;
}

/* Finds the area for the new incarnation; *LIMBO is its place in limbo, or
 * -1. */
static int
find_area (struct dedup_index *x, uint64_t size, uint64_t *host_off,
           uint64_t *area_size, int *limbo)
{
  const struct dedup_index_storage *s = &x->storage;
  const struct dedup_index_manifest *m = x->manifest;
  size_t i;

  for (i = 0; i < m->nr_limbo; i++)
    if (m->limbo[i].size_bytes >= size &&
        s->same_file_as_new (s->opaque, m->limbo[i].host_off)) {
      *host_off = m->limbo[i].host_off;
      *area_size = m->limbo[i].size_bytes;
      *limbo = (int) i;
      return 0;
    }
  *limbo = -1;
  *area_size = round_up_pow2 (size, x->area_unit);
  return s->alloc (s->opaque, *area_size, host_off);
}

static void
unlist_oldest_run (struct index_edit *e)
{
  const struct dedup_segment_desc first = e->m->segments[0];

  while (e->m->nr_segments > 0 &&
         dedup_same_run (&first, &e->m->segments[0]))
    index_edit_unlist_segment (e, 0);
}

/* Removes the oldest tables from the list until one more fits the limit.  A
 * run, from before there was a limit, counts as one table, however large. */
static void
drop_oldest_tables (struct index_edit *e)
{
  struct dedup_index_manifest *m = e->m;
  uint32_t max = m->max_incarnations;

  if (max == 0 || max > DEDUP_MAX_INCARNATIONS)
    max = DEDUP_MAX_INCARNATIONS;
  while (m->nr_incarnations + dedup_manifest_runs (m) >= max)
    if (m->nr_incarnations == 0 ||
        (m->nr_segments > 0 && m->segments[0].age < m->incarnations[0].id))
      unlist_oldest_run (e);
    else
      index_edit_unlist_incarnation (e, 0);
}

static int
write_incarnation (struct dedup_index *x, const struct dedup_log_store *ls,
                   struct dedup_incarnation_desc *desc)
{
  int r;

  r = dedup_incarnation_write (x->storage.io, x->store_id, ls, desc, &x->stop);
  if (r < 0 || mutation (MUTATION_LAW_8_NO_SYNC))
    return r;
  return x->storage.sync (x->storage.opaque, desc->host_off);
}

/* Writes LS to an area; *LIMBO is as of find_area.  Pages carry the table's
 * id, so each attempt has an id of its own. */
static int
place_incarnation (struct dedup_index *x, const struct dedup_log_store *ls,
                   struct dedup_incarnation_desc *desc, int *limbo)
{
  int r;

  r = find_area (x, dedup_incarnation_size (dedup_log_store_order (ls)),
                 &desc->host_off, &desc->size_bytes, limbo);
  if (r < 0)
    return r;
  desc->id = x->manifest->next_id++;
  r = write_incarnation (x, ls, desc);
  if (r < 0 && *limbo < 0)
    index_give_up_area (x, desc->host_off, desc->size_bytes);
  return r;
}

static int
list_incarnation (struct dedup_index *x,
                  const struct dedup_incarnation_desc *desc, int limbo)
{
  const bool is_new = limbo < 0;
  const struct index_news news = {
    .incarnation = true, .frozen_done = true, .new_off = desc->host_off,
    .new_size = is_new ? desc->size_bytes : 0 };
  struct index_edit e;
  int r = index_edit_begin (x, &e);

  if (r < 0) {
    if (is_new)
      index_give_up_area (x, desc->host_off, desc->size_bytes);
    return r;
  }
  if (!is_new)
    remove_limbo (e.m, (size_t) limbo);
  drop_oldest_tables (&e);
  e.m->incarnations[e.m->nr_incarnations++] = *desc;
  index_limit_edit (&e);
  r = index_edit_commit (&e, &news);
  if (r < 0)
    return r;
  index_limit_note_freeze (x);
  return dedup_index_reap (x);
}

/* Breaks law 9, for a test: drops the oldest table, to be written over, while
 * the durable manifest lists it. */
static int
drop_oldest_too_early (struct dedup_index *x)
{
  struct index_edit e;
  int r = index_edit_begin (x, &e);

  if (r < 0)
    return r;
  drop_oldest_tables (&e);
  *x->manifest = *e.m;
  index_edit_drop (&e);
  return 0;
}

int
index_freeze_limited (struct dedup_index *x, const struct dedup_log_store *ls)
{
  struct dedup_incarnation_desc desc = { .id = 0 };
  int r = 0, limbo = -1;

  if (mutation (MUTATION_LAW_9))
    r = drop_oldest_too_early (x);
  if (r < 0)
    return r;
  do {
    desc.host_off = 0;
    r = place_incarnation (x, ls, &desc, &limbo);
  } while (r < 0 && r != -EINTR &&
           x->storage.file_failed (x->storage.opaque, desc.host_off));
  return r < 0 ? r : list_incarnation (x, &desc, limbo);
}
