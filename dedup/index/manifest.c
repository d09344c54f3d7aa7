/* SPDX-License-Identifier: BSD-3-Clause */
/* Edits a list of tables, in memory only.  manifest.h explains what the list
 * means, publish.c when it becomes durable.
 *
 * It keeps the order that manifest.h promises, and moves entries to close gaps,
 * so that positions change with each edit.
 *
 * Functions of their arguments: no locks, no I/O.
 */
#include "manifest.h"

#include <errno.h>
#include <string.h>

uint64_t
dedup_manifest_entries (const struct dedup_index_manifest *m)
{
  uint64_t n = 0;
  size_t i;

  for (i = 0; i < m->nr_incarnations; i++)
    n += m->incarnations[i].nr_entries;
  for (i = 0; i < m->nr_segments; i++)
    n += m->segments[i].nr_entries;
  return n;
}

size_t
dedup_manifest_runs (const struct dedup_index_manifest *m)
{
  size_t i, nr = 0;

  for (i = 0; i < m->nr_segments; i++)
    nr += i == 0 || !dedup_same_run (&m->segments[i - 1], &m->segments[i]);
  return nr;
}

static bool
stands_before (const struct dedup_segment_desc *a,
               const struct dedup_segment_desc *b)
{
  if (a->age != b->age)
    return a->age < b->age;
  if (a->level != b->level)
    return a->level < b->level;
  return a->lo < b->lo;
}

int
dedup_manifest_add_segment (struct dedup_index_manifest *m,
                            const struct dedup_segment_desc *desc)
{
  size_t i = m->nr_segments;

  if (m->nr_segments == DEDUP_MAX_SEGMENTS)
    return -ENOSPC;
  for (; i > 0 && stands_before (desc, &m->segments[i - 1]); i--)
    m->segments[i] = m->segments[i - 1];
  m->segments[i] = *desc;
  m->nr_segments++;
  return 0;
}

void
dedup_manifest_remove_segment (struct dedup_index_manifest *m, size_t i)
{
  m->nr_segments--;
  memmove (&m->segments[i], &m->segments[i + 1],
           (m->nr_segments - i) * sizeof m->segments[0]);
}

void
dedup_manifest_remove_incarnation (struct dedup_index_manifest *m, size_t i)
{
  m->nr_incarnations--;
  memmove (&m->incarnations[i], &m->incarnations[i + 1],
           (m->nr_incarnations - i) * sizeof m->incarnations[0]);
}

static bool
has_input (const struct dedup_index_manifest *m, uint32_t merge)
{
  size_t i;

  for (i = 0; i < m->nr_segments; i++)
    if (m->segments[i].merge == merge && !m->segments[i].output)
      return true;
  return false;
}

void
dedup_manifest_settle (struct dedup_index_manifest *m)
{
  size_t i;

  for (i = 0; i < m->nr_segments; i++)
    if (m->segments[i].output && !has_input (m, m->segments[i].merge)) {
      m->segments[i].merge = 0;
      m->segments[i].output = false;
    }
}

bool
dedup_manifest_full (const struct dedup_index_manifest *m)
{
  return m->nr_segments >= DEDUP_MAX_SEGMENTS - DEDUP_SPARE_SEGMENTS;
}

size_t
dedup_manifest_find_incarnation (const struct dedup_index_manifest *m,
                                 uint64_t id)
{
  size_t i = 0;

  while (i < m->nr_incarnations && m->incarnations[i].id != id)
    i++;
  return i;
}

size_t
dedup_manifest_find_segment (const struct dedup_index_manifest *m, uint64_t id)
{
  size_t i = 0;

  while (i < m->nr_segments && m->segments[i].id != id)
    i++;
  return i;
}
