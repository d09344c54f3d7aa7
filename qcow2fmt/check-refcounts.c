/* SPDX-License-Identifier: BSD-3-Clause */
/* The checker's view of the stored refcounts: a first pass over the refcount
 * blocks counts them and notes which clusters have refcount 1, a last one
 * compares them with what was counted in between.  Reading them twice saves
 * a second array of counters.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "check.h"

#define REFTABLE_RESERVED UINT64_C (0x1ff)

/* Entry I of the refcount block in TABLE, BITS wide: the first of several in
 * a byte is in its low bits, wider ones are big-endian. */
static uint64_t
refcount_at (const uint8_t *table, unsigned bits, uint64_t i)
{
  uint64_t v = 0, at;
  unsigned k;

  if (bits < 8) {
    at = i * bits;
    return table[at / 8] >> (at % 8) & ((1u << bits) - 1);
  }
  for (k = 0; k < bits / 8; k++)
    v = v << 8 | table[i * (bits / 8) + k];
  return v;
}

/* Is what the refcount table says of block I fit to be read? */
static bool
block_usable (const struct check *c, uint64_t i)
{
  uint64_t host_off = c->img->reftable.v[i];

  return host_off != 0 && host_off % c->geo->cluster_size == 0 &&
    host_off < c->file_size;
}

static bool
count_block (struct check *c, uint64_t i)
{
  const struct check_site site = { .what = "refcount block" };
  uint64_t entry = c->img->reftable.v[i];

  if (entry == 0)
    return false;
  if (entry & REFTABLE_RESERVED) {
    check_corrupt (c, "refcount table entry %" PRIu64 ": reserved bits are "
                   "set, 0x%016" PRIx64, i, entry);
    return false;
  }
  return check_count_table (c, &site, entry, c->geo->cluster_size,
                            CHECK_OWNED);
}

/* Into c->table. */
static bool
read_block (struct check *c, uint64_t i)
{
  uint64_t host_off = c->img->reftable.v[i];
  int r = io_pread (c->img->io, c->table, c->geo->cluster_size, host_off);

  if (r < 0)
    check_error (c, -r, "refcount block at 0x%" PRIx64 ": cannot read: %s",
                 host_off, strerror (-r));
  return r == 0;
}

static void
mark_ones (struct check *c, uint64_t block_idx)
{
  uint64_t first = block_idx * c->geo->refblock_entries, i;

  for (i = 0; i < c->geo->refblock_entries && first + i < c->nr; i++)
    if (refcount_at (c->table, c->geo->refcount_bits, i) == 1)
      c->marks[first + i] |= CHECK_STORED_ONE;
}

void
check_refcounts_mark (struct check *c)
{
  const struct check_site site = { .what = "refcount table" };
  const struct qcow2_flat *t = &c->img->reftable;
  uint64_t i;

  (void) check_count_table (c, &site, t->host_off, t->nr * 8, CHECK_OWNED);
  for (i = 0; i < t->nr; i++) {
    check_step (c);
    if (count_block (c, i) && read_block (c, i))
      mark_ones (c, i);
  }
}

static void
compare_one (struct check *c, uint64_t host_idx, uint64_t stored)
{
  uint64_t counted = host_idx < c->nr ? check_count_get (c, host_idx) : 0;
  uint64_t host_off = host_idx * c->geo->cluster_size;

  if (stored < counted)
    check_corrupt (c, "cluster at 0x%" PRIx64 ": refcount %" PRIu64 ", but %"
                   PRIu64 " references", host_off, stored, counted);
  else if (stored > counted)
    check_leak (c, "leaked cluster at 0x%" PRIx64 ": refcount %" PRIu64
                ", %" PRIu64 " references", host_off, stored, counted);
}

static void
compare_block (struct check *c, uint64_t block_idx)
{
  uint64_t first = block_idx * c->geo->refblock_entries, i;

  for (i = 0; i < c->geo->refblock_entries; i++)
    compare_one (c, first + i,
                 refcount_at (c->table, c->geo->refcount_bits, i));
}

/* Clusters without a refcount block, up to END: their refcount is 0. */
static void
compare_absent (struct check *c, uint64_t first, uint64_t end)
{
  uint64_t i;

  for (i = first; i < MIN_OF (end, c->nr); i++)
    compare_one (c, i, 0);
}

/* A block that is in a bad place was told of in the first pass, and so was
 * one that can't be read: what they would say is not guessed. */
static void
compare_part (struct check *c, uint64_t block_idx)
{
  uint64_t first = block_idx * c->geo->refblock_entries;

  if (c->img->reftable.v[block_idx] == 0)
    compare_absent (c, first, first + c->geo->refblock_entries);
  else if (block_usable (c, block_idx) && read_block (c, block_idx))
    compare_block (c, block_idx);
}

void
check_refcounts_compare (struct check *c)
{
  const struct qcow2_flat *t = &c->img->reftable;
  uint64_t i;

  for (i = 0; i < t->nr; i++) {
    check_step (c);
    compare_part (c, i);
  }
  compare_absent (c, t->nr * c->geo->refblock_entries, c->nr);
}
