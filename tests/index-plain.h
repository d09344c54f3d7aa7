/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements the plainest storage for an index (dedup/index/storage.h): one
 * byte store that has nothing but tables, and a manifest in memory.  Areas are
 * taken from the first gap that is large enough.
 */
#ifndef INDEX_PLAIN_H
#define INDEX_PLAIN_H

#include <assert.h>
#include <errno.h>

#include "index.h"

struct plain {
  struct io_store *io;
  struct dedup_index_manifest manifest;   /* the durable one */
  uint64_t mark;
  size_t nr_areas;
  struct plain_area { uint64_t off, size; } areas[2048];
};

#define PLAIN_UNIT 4096u        /* areas are multiples of it */

static inline int
plain_alloc (void *opaque, uint64_t size, uint64_t *off)
{
  struct plain *p = opaque;
  uint64_t at = PLAIN_UNIT;
  size_t i;

  if (p->nr_areas == sizeof p->areas / sizeof p->areas[0])
    return -ENOSPC;
  for (i = 0; i < p->nr_areas; i++)
    if (at < p->areas[i].off + p->areas[i].size && p->areas[i].off < at + size) {
      at = p->areas[i].off + p->areas[i].size;
      i = SIZE_MAX;             /* looks at all of them again */
    }
  p->areas[p->nr_areas++] = (struct plain_area) { at, size };
  *off = at;
  return 0;
}

static inline int
plain_free (void *opaque, uint64_t off, uint64_t size)
{
  struct plain *p = opaque;
  size_t i;

  for (i = 0; i < p->nr_areas; i++) {
    struct plain_area *a = &p->areas[i];

    if (off < a->off || off + size != a->off + a->size)
      continue;
    a->size -= size;            /* all of it, or its end */
    if (a->size == 0)
      *a = p->areas[--p->nr_areas];
    return 0;
  }
  assert (!"an area is freed that is not in use");
  return -EINVAL;
}

static inline int
plain_sync (void *opaque, uint64_t off)
{
  struct plain *p = opaque;

  return io_sync (p->io);
}

static inline bool
plain_file_failed (void *opaque, uint64_t off)
{
  return false;
}

static inline bool
plain_same_file_as_new (void *opaque, uint64_t off)
{
  return true;
}

static inline int
plain_commit (void *opaque, const struct dedup_index_manifest *m, uint64_t mark)
{
  struct plain *p = opaque;

  p->manifest = *m;
  p->mark = mark;
  return 0;
}

static inline struct dedup_index_storage
plain_storage (struct plain *p)
{
  return (struct dedup_index_storage) {
    .io = p->io, .alloc = plain_alloc, .free = plain_free,
    .sync = plain_sync, .file_failed = plain_file_failed,
    .same_file_as_new = plain_same_file_as_new,
    .commit = plain_commit, .opaque = p };
}

/* After a restart the areas in use are those that the manifest lists. */
static inline void
plain_restart (struct plain *p)
{
  const struct dedup_index_manifest *m = &p->manifest;
  size_t i;

  p->nr_areas = 0;
  for (i = 0; i < m->nr_incarnations; i++)
    p->areas[p->nr_areas++] = (struct plain_area) {
      m->incarnations[i].host_off, m->incarnations[i].size_bytes };
  for (i = 0; i < m->nr_segments; i++)
    p->areas[p->nr_areas++] = (struct plain_area) {
      m->segments[i].host_off, m->segments[i].size_bytes };
  for (i = 0; i < m->nr_limbo; i++)
    p->areas[p->nr_areas++] = (struct plain_area) {
      m->limbo[i].host_off, m->limbo[i].size_bytes };
}

#endif
