/* SPDX-License-Identifier: BSD-3-Clause */
/* Marks scattered parts of a disk that are read in sequence: see scattered.h.
 *
 * A sequential reader (read-ahead.c) that passes a unit whose clusters lie in
 * many places marks it.  Nothing else is marked, because the order of clusters
 * matters to sequential readers only.  Marks are in memory, and a restart
 * forgets them.
 *
 * Threads: any.  Marks are atomic, and need no order among themselves, because
 * they are advice.
 */
#include "scattered.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "clock.h"

#define WORD_BITS 64

int
srv_scattered_init (struct srv_scattered *g, struct dedup_pool *pool)
{
  const struct qcow2_geometry *geo = qcow2_geometry (dedup_image (pool));

  memset (g, 0, sizeof *g);
  g->pool = pool;
  g->cluster_bits = geo->cluster_bits;
  g->nr_clusters = geo->nr_clusters;
  g->unit_bits = MAX_OF (SRV_SCATTERED_UNIT_BITS, geo->cluster_bits);
  while (geo->virtual_size >> g->unit_bits >= SRV_SCATTERED_MAX_UNITS)
    g->unit_bits++;
  g->nr_units = div_round_up (geo->virtual_size, UINT64_C (1) << g->unit_bits);
  g->marks = calloc (g->nr_units / WORD_BITS + 1, sizeof *g->marks);
  return g->marks ? 0 : -ENOMEM;
}

void
srv_scattered_destroy (struct srv_scattered *g)
{
  free (g->marks);
  g->marks = NULL;
}

/* --- Marks -------------------------------------------------------------- */

static uint64_t
bit_of (uint64_t unit)
{
  return UINT64_C (1) << unit % WORD_BITS;
}

bool
srv_scattered_is_marked (const struct srv_scattered *g, uint64_t unit)
{
  return __atomic_load_n (&g->marks[unit / WORD_BITS], __ATOMIC_RELAXED) &
    bit_of (unit);
}

void
srv_scattered_mark (struct srv_scattered *g, uint64_t unit)
{
  uint64_t before;

  if (unit >= g->nr_units)
    return;
  before = __atomic_fetch_or (&g->marks[unit / WORD_BITS], bit_of (unit),
                              __ATOMIC_RELAXED);
  if (!(before & bit_of (unit)))
    __atomic_add_fetch (&g->nr_marked, 1, __ATOMIC_RELAXED);
}

/* Returns the first marked unit from FROM on, or nr_units. */
static uint64_t
find_mark (const struct srv_scattered *g, uint64_t from)
{
  uint64_t unit, word;

  for (unit = from; unit < g->nr_units;
       unit = round_down_pow2 (unit, WORD_BITS) + WORD_BITS) {
    word = __atomic_load_n (&g->marks[unit / WORD_BITS], __ATOMIC_RELAXED) >>
      unit % WORD_BITS;
    if (word)
      return unit + (unsigned) __builtin_ctzll (word);
  }
  return g->nr_units;
}

bool
srv_scattered_take (struct srv_scattered *g, uint64_t *unit)
{
  *unit = find_mark (g, g->next_unit);
  if (*unit == g->nr_units)
    *unit = find_mark (g, 0);
  if (*unit == g->nr_units)
    return false;
  __atomic_fetch_and (&g->marks[*unit / WORD_BITS], ~bit_of (*unit),
                      __ATOMIC_RELAXED);
  __atomic_sub_fetch (&g->nr_marked, 1, __ATOMIC_RELAXED);
  g->next_unit = *unit + 1;
  return true;
}

/* --- Readers ------------------------------------------------------------ */

/* Marks UNIT if it is scattered and not marked already. */
static void
look_at (struct srv_scattered *g, uint64_t unit)
{
  const unsigned bits = g->unit_bits - g->cluster_bits;
  const uint64_t first = unit << bits;

  if (!srv_scattered_is_marked (g, unit) &&
      dedup_is_scattered (g->pool, first,
                          MIN_OF (UINT64_C (1) << bits,
                                  g->nr_clusters - first)))
    srv_scattered_mark (g, unit);
}

void
srv_scattered_note (struct srv_scattered *g, const struct srv_ahead *a)
{
  uint64_t now, unit;

  if (g->marks == NULL)
    return;
  now = clock_now_ns ();
  __atomic_store_n (&g->read_ns, now, __ATOMIC_RELAXED);
  if (a == NULL)
    return;
  if (a->from < a->to || a->passed_from < a->passed_to)
    __atomic_store_n (&g->sequential_ns, now, __ATOMIC_RELAXED);
  for (unit = a->passed_from >> g->unit_bits;
       unit < a->passed_to >> g->unit_bits; unit++)
    look_at (g, unit);
}
