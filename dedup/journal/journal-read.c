/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the blocks of a journal back.
 *
 * Nothing is trusted: a block counts only if it is valid exactly as
 * docs/on-disk.md 3.2 says, and the first one that is not ends the journal.  That
 * end is the normal case (a torn block, one of an earlier lap of the area,
 * zeroes), so it is no error; only failing I/O and a start outside the areas are.
 *
 * One thread at a time, before or without a struct dedup_journal.  What groups
 * mean, and which blocks to trust, is left to recovery.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "journal-block.h"
#include "journal.h"

#define READ_BATCH (256u << 10)   /* bytes; bounds the memory of a read */

/* --- Reading ------------------------------------------------------------- */

struct reader {
  struct io_store *io;
  const struct dedup_journal_place *c;
  int (*cb) (void *opaque, const struct dedup_journal_block *b);
  void *opaque;
  uint8_t *buf;         /* READ_BATCH bytes */
  uint64_t next;        /* first block not handed over */
  uint64_t to;          /* not to be read */
};

/* Returns 0 to go on, 1 at the end of the journal or if CB stops, -errno. */
static int
hand_over (struct reader *rd, uint8_t *block)
{
  const struct dedup_journal_place *c = rd->c;
  struct dedup_block_head h;
  struct dedup_journal_block b;

  if (!dedup_block_decode (block, &h) ||
      h.store_id != c->store_id || h.seq != rd->next ||
      (h.seq >= c->epoch_start && h.epoch != c->epoch))
    return 1;

  b = (struct dedup_journal_block) {
    .seq = h.seq,
    .known_durable = h.known_durable,
    .epoch = h.epoch,
    .records = block + DEDUP_BLOCK_HEADER,
    .len = h.len - DEDUP_BLOCK_HEADER,
  };
  rd->next++;
  return rd->cb (rd->opaque, &b);
}

/* Read up to COUNT blocks at HOST_OFF. */
static int
read_batch (struct reader *rd, uint64_t host_off, uint64_t count)
{
  int r;

  if (io_pread (rd->io, rd->buf, count * DEDUP_BLOCK_SIZE, host_off) < 0)
    return -EIO;
  for (uint64_t i = 0; i < count; i++) {
    r = hand_over (rd, rd->buf + i * DEDUP_BLOCK_SIZE);
    if (r != 0)
      return r;
  }
  return 0;
}

/* Read what AREA holds from rd->next on, which lies in it or behind it. */
static int
read_area (struct reader *rd, const struct dedup_journal_area *area)
{
  uint64_t end = MIN_OF (area->first_seq + area->nr_blocks, rd->to);
  int r = 0;

  while (r == 0 && rd->next < end) {
    uint64_t skip = (rd->next - area->first_seq) * DEDUP_BLOCK_SIZE;
    uint64_t count = MIN_OF (end - rd->next, READ_BATCH / DEDUP_BLOCK_SIZE);
    uint64_t host_off;

    if (!add_u64 (area->host_off, skip, &host_off))
      return -EINVAL;
    r = read_batch (rd, host_off, count);
  }
  return r;
}

/* Do the areas follow each other, and is FROM in them or at their end? */
static bool
areas_hold (const struct dedup_journal_place *c, uint64_t from)
{
  uint64_t end;

  if (c->nr_areas == 0 || from < c->areas[0].first_seq)
    return false;
  end = c->areas[0].first_seq;
  for (uint32_t i = 0; i < c->nr_areas; i++)
    if (c->areas[i].first_seq != end ||
        !add_u64 (end, c->areas[i].nr_blocks, &end))
      return false;
  return from <= end;
}

int
dedup_journal_read (struct io_store *io, const struct dedup_journal_place *c,
                    uint64_t from, uint64_t to,
                    int (*cb) (void *opaque,
                               const struct dedup_journal_block *b),
                    void *opaque, uint64_t *next)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct reader rd = { .io = io, .c = c, .cb = cb, .opaque = opaque,
                       .next = from, .to = to };
  int r = 0;

  *next = from;
  if (!areas_hold (c, from))
    return -EINVAL;
  buf = aligned_new (READ_BATCH);
  if (buf == NULL)
    return -ENOMEM;
  rd.buf = buf;

  for (uint32_t i = 0; r == 0 && i < c->nr_areas; i++)
    r = read_area (&rd, &c->areas[i]);
  *next = rd.next;
  return r < 0 ? r : 0;
}

/* --- What is there besides ----------------------------------------------- */

/* The configuration says that number SEQ is at the place of block H.  It was
 * not the last one if the block has a higher number, or belongs to a later
 * epoch: numbers and epochs only grow, and none is written before the
 * configuration that gives it its place is durable (law 7). */
static bool
is_newer (const struct dedup_journal_place *c, const struct dedup_block_head *h,
          uint64_t seq)
{
  return h->epoch > c->epoch ? h->seq >= seq
    : h->epoch == c->epoch && h->seq > seq;
}

static void
see_rest (const struct dedup_journal_place *c, uint8_t *block, uint64_t seq,
          struct dedup_journal_rest *rest)
{
  struct dedup_block_head h;

  if (!dedup_block_decode (block, &h) || h.store_id != c->store_id)
    return;
  rest->epoch = MAX_OF (rest->epoch, h.epoch);
  if (is_newer (c, &h, seq))
    rest->newer = true;
  if (h.seq == seq && (seq < c->epoch_start || h.epoch == c->epoch))
    rest->durable = MAX_OF (rest->durable, h.known_durable);
}

static int
see_area (struct io_store *io, const struct dedup_journal_place *c,
          const struct dedup_journal_area *area, uint64_t seq, uint8_t *buf,
          struct dedup_journal_rest *rest)
{
  uint64_t end = area->first_seq + area->nr_blocks, count, i;

  for (; seq < end; seq += count) {
    count = MIN_OF (end - seq, READ_BATCH / DEDUP_BLOCK_SIZE);
    if (io_pread (io, buf, count * DEDUP_BLOCK_SIZE, area->host_off +
                  (seq - area->first_seq) * DEDUP_BLOCK_SIZE) < 0)
      return -EIO;
    for (i = 0; i < count; i++)
      see_rest (c, buf + i * DEDUP_BLOCK_SIZE, seq + i, rest);
  }
  return 0;
}

int
dedup_journal_rest (struct io_store *io, const struct dedup_journal_place *c,
                    uint64_t from, struct dedup_journal_rest *rest)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (READ_BATCH);
  int r = buf ? 0 : -ENOMEM;

  *rest = (struct dedup_journal_rest) { .epoch = c->epoch };
  for (uint32_t i = 0; r == 0 && i < c->nr_areas; i++)
    r = see_area (io, c, &c->areas[i], MAX_OF (from, c->areas[i].first_seq),
                  buf, rest);
  return r;
}

/* Where the areas are full, the next block goes to one that is recycled, or to
 * a new one: then the first block of each would be newer. */
int
dedup_journal_newer (struct io_store *io, const struct dedup_journal_place *c,
                     uint64_t next, bool *newer)
{
  const struct dedup_journal_area *last = &c->areas[c->nr_areas - 1];
  bool full = next == last->first_seq + last->nr_blocks;
  CACHE_ALIGNED uint8_t buf[DEDUP_BLOCK_SIZE];
  struct dedup_block_head h;

  *newer = false;
  for (uint32_t i = 0; i < c->nr_areas; i++) {
    const struct dedup_journal_area *a = &c->areas[i];
    uint64_t at = full ? 0 : next - a->first_seq;

    if (!full && (next < a->first_seq || at >= a->nr_blocks))
      continue;
    if (io_pread (io, buf, sizeof buf,
                  a->host_off + at * DEDUP_BLOCK_SIZE) < 0)
      return -EIO;
    if (dedup_block_decode (buf, &h) && h.store_id == c->store_id &&
        h.seq >= next && h.epoch >= c->epoch)
      *newer = true;
  }
  return 0;
}
