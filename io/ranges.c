/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps ranges in one sorted array (ranges.h).
 *
 * A range is found by bisection.  Adding one moves those behind it, which is cheap, as its
 * users have some ten thousand at the most.  Ranges that touch or overlap become one.
 *
 * The caller locks.
 */
#include "ranges.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

#define FIRST_CAPACITY 16

/* Returns the index of the first range that ends at or after OFF. */
static size_t
first_to (const struct io_ranges *r, uint64_t off)
{
  size_t low = 0, high = r->nr, mid;

  while (low < high) {
    mid = low + (high - low) / 2;
    if (r->v[mid].to < off)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

static int
grow (struct io_ranges *r)
{
  const size_t capacity = r->capacity ? r->capacity * 2 : FIRST_CAPACITY;
  struct io_range *v;

  if (r->nr < r->capacity)
    return 0;
  v = realloc (r->v, capacity * sizeof *v);
  if (v == NULL)
    return -ENOMEM;
  r->v = v;
  r->capacity = capacity;
  return 0;
}

/* Replaces the ranges that FROM..TO overlaps or touches by one. */
int
io_ranges_add (struct io_ranges *r, uint64_t from, uint64_t to)
{
  size_t i, end;

  if (grow (r) < 0)
    return -ENOMEM;
  i = first_to (r, from);
  for (end = i; end < r->nr && r->v[end].from <= to; end++) {
    from = MIN_OF (from, r->v[end].from);
    to = MAX_OF (to, r->v[end].to);
  }
  memmove (r->v + i + 1, r->v + end, (r->nr - end) * sizeof *r->v);
  r->nr = r->nr - (end - i) + 1;
  r->v[i] = (struct io_range) { from, to };
  return 0;
}

/* Puts what is left of the first and the last range that FROM..TO overlaps in the place of
 * all of these: two ranges at the most. */
int
io_ranges_remove (struct io_ranges *r, uint64_t from, uint64_t to)
{
  struct io_range left[2];
  size_t i = first_to (r, from + 1), end, nr = 0;

  if (grow (r) < 0)
    return -ENOMEM;
  for (end = i; end < r->nr && r->v[end].from < to; end++)
    ;
  if (i == end)
    return 0;
  if (r->v[i].from < from)
    left[nr++] = (struct io_range) { r->v[i].from, from };
  if (r->v[end - 1].to > to)
    left[nr++] = (struct io_range) { to, r->v[end - 1].to };
  memmove (r->v + i + nr, r->v + end, (r->nr - end) * sizeof *r->v);
  memcpy (r->v + i, left, nr * sizeof *left);
  r->nr = r->nr - (end - i) + nr;
  return 0;
}

bool
io_ranges_overlap (const struct io_ranges *r, uint64_t from, uint64_t to)
{
  const size_t i = first_to (r, from + 1);

  return i < r->nr && r->v[i].from < to;
}

bool
io_ranges_gap (const struct io_ranges *r, uint64_t from, uint64_t to,
               struct io_range *gap)
{
  size_t i = first_to (r, from + 1);

  if (i < r->nr && r->v[i].from <= from)
    from = r->v[i++].to;
  *gap = (struct io_range) { from, to };
  if (i < r->nr)
    gap->to = MIN_OF (to, r->v[i].from);
  return gap->from < gap->to;
}

void
io_ranges_free (struct io_ranges *r)
{
  free (r->v);
  *r = (struct io_ranges) { 0 };
}
