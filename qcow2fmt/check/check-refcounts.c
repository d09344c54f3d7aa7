/* SPDX-License-Identifier: BSD-3-Clause */
/* Compares the refcounts in the file with the references that the checker
 * counted.
 *
 * The first of two passes over the refcount blocks counts the blocks
 * themselves and marks the clusters with refcount 1; the last one, when all
 * else is counted, compares.  Reading the blocks twice saves a second array of
 * counters.  A block that is misplaced or unreadable is reported in the first
 * pass and skipped in the last: its contents are never guessed.  One thread,
 * no lock; it repairs nothing (rebuild.c does).
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "check.h"

#define REFTABLE_RESERVED UINT64_C (0x1ff)

/* Returns entry I, BITS wide, of the refcount block in TABLE.  Where a byte
 * holds several entries, the first is in its low bits; wider entries are
 * big-endian. */
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

/* Returns whether the refcount table's offset of block I can be read from. */
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

/* Reads block I into BUF; reports a failure and returns false. */
static bool
read_block (struct check *c, uint64_t i, uint8_t *buf)
{
  uint64_t host_off = c->img->reftable.v[i];
  int r = io_pread (c->img->io, buf, c->geo->cluster_size, host_off);

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
    if (count_block (c, i) && read_block (c, i, c->table))
      mark_ones (c, i);
  }
}

bool
check_refcount_stored (struct check *c, uint64_t host_idx, uint64_t *v)
{
  const uint64_t b = host_idx / c->geo->refblock_entries;
  const struct qcow2_flat *t = &c->img->reftable;

  *v = 0;
  if (b >= t->nr || t->v[b] == 0)
    return true;
  if (b != c->block_idx) {
    c->block_idx = b;
    c->block_read = block_usable (c, b) && read_block (c, b, c->block);
  }
  if (!c->block_read)
    return false;
  *v = refcount_at (c->block, c->geo->refcount_bits,
                    host_idx % c->geo->refblock_entries);
  return true;
}

static void
compare_one (struct check *c, uint64_t host_idx, uint64_t stored)
{
  uint64_t counted = host_idx < c->nr ? check_count_get (c, host_idx) : 0;
  uint64_t host_off = host_idx * c->geo->cluster_size;

  if (host_idx < c->nr && (c->marks[host_idx] & CHECK_DECODED))
    return;                    /* check-paths.c has compared it */
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

/* Compares clusters [first, end), which have no refcount block: their refcount
 * is 0. */
static void
compare_absent (struct check *c, uint64_t first, uint64_t end)
{
  uint64_t i;

  for (i = first; i < MIN_OF (end, c->nr); i++)
    compare_one (c, i, 0);
}

/* Compares the clusters of one block.  A misplaced or unreadable block is
 * skipped; the first pass reported it. */
static void
compare_part (struct check *c, uint64_t block_idx)
{
  uint64_t first = block_idx * c->geo->refblock_entries;

  if (c->img->reftable.v[block_idx] == 0)
    compare_absent (c, first, first + c->geo->refblock_entries);
  else if (block_usable (c, block_idx) && read_block (c, block_idx, c->table))
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
