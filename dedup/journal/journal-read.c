/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the blocks of a journal back.
 *
 * Nothing is trusted: a block counts only if it is valid exactly as
 * docs/on-disk.md 3.2 says, and the first invalid block ends the journal.
 * Such an end is normal (a torn block, a block of an earlier lap of the area,
 * zeroes) and no error; only failed I/O and a start outside the areas are
 * errors.
 *
 * One thread at a time calls this, before or without a struct dedup_journal.
 * What groups mean, and which records to apply, is left to recovery.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "journal-block.h"
#include "journal.h"

/* Bytes that are read at once, which bounds the memory, and those of each of the
 * parts that are read side by side: a store that is far away answers all of them
 * within one round trip. */
#define READ_BATCH (4u << 20)
#define READ_PART (256u << 10)
#define MAX_PARTS (READ_BATCH / READ_PART)

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

/* Passes BLOCK on to the callback if it is the journal's next one.  Returns 0
 * to continue, 1 at the end of the journal or if the callback stops, -errno. */
static int
pass_on (struct reader *rd, uint8_t *block)
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

/* Cuts LEN bytes at HOST_OFF, up to a batch, to parts, for BUF; returns how many. */
static size_t
cut (uint64_t host_off, uint64_t len, uint8_t *buf, struct io_part v[MAX_PARTS])
{
  size_t nr = 0;

  for (uint64_t at = 0; at < len; at += READ_PART)
    v[nr++] = (struct io_part) { .buf = buf + at, .host_off = host_off + at,
                                 .len = MIN_OF (len - at, READ_PART) };
  return nr;
}

/* Blocks that follow each other in an area, and are read at once. */
struct batch {
  uint64_t host_off, count;
};

/* Finds the batch that begins with block SEQ.  Returns 1, 0 if SEQ is behind all that is
 * to be read, or -errno. */
static int
find_batch (const struct reader *rd, uint64_t seq, struct batch *b)
{
  const struct dedup_journal_area *a;
  uint64_t end;

  *b = (struct batch) { 0 };
  for (uint32_t i = 0; i < rd->c->nr_areas; i++) {
    a = &rd->c->areas[i];
    end = MIN_OF (a->first_seq + a->nr_blocks, rd->to);
    if (seq < a->first_seq || seq >= end)
      continue;
    b->count = MIN_OF (end - seq, READ_BATCH / DEDUP_BLOCK_SIZE);
    return add_u64 (a->host_off, (seq - a->first_seq) * DEDUP_BLOCK_SIZE,
                    &b->host_off) ? 1 : -EINVAL;
  }
  return 0;
}

/* Reads a batch, and passes it on, while NEXT is read ahead.  Returns as pass_on. */
static int
read_batch (struct reader *rd, const struct batch *b, const struct batch *next)
{
  struct io_part v[MAX_PARTS];
  size_t nr = cut (next->host_off, next->count * DEDUP_BLOCK_SIZE, rd->buf, v);
  int r = 0;

  (void) io_will_need (rd->io, v, nr, false);
  nr = cut (b->host_off, b->count * DEDUP_BLOCK_SIZE, rd->buf, v);
  if (io_read_many (rd->io, v, nr) < 0)
    return -EIO;
  for (uint64_t i = 0; i < b->count && r == 0; i++)
    r = pass_on (rd, rd->buf + i * DEDUP_BLOCK_SIZE);
  return r;
}

/* Reads from rd->next on.  Returns as pass_on. */
static int
read_all (struct reader *rd)
{
  struct batch b, next;
  int r = 0;

  while (r == 0 && (r = find_batch (rd, rd->next, &b)) == 1) {
    r = find_batch (rd, rd->next + b.count, &next);
    if (r >= 0)
      r = read_batch (rd, &b, &next);
  }
  return r;
}

/* Returns true if the areas follow each other, and FROM lies in them or at
 * their end. */
static bool
is_in_areas (const struct dedup_journal_place *c, uint64_t from)
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
  int r;

  *next = from;
  if (!is_in_areas (c, from))
    return -EINVAL;
  buf = aligned_new (READ_BATCH);
  if (buf == NULL)
    return -ENOMEM;
  rd.buf = buf;

  r = read_all (&rd);
  *next = rd.next;
  return r < 0 ? r : 0;
}

/* --- Blocks behind the end ----------------------------------------------- */

/* Returns true if H, found where C says that block SEQ lies, proves that a
 * later configuration than C was durable.  A higher number or a later epoch
 * proves it: numbers and epochs only grow, and no block is written before the
 * configuration that gives it its place is durable (law 7). */
static bool
is_newer (const struct dedup_journal_place *c, const struct dedup_block_head *h,
          uint64_t seq)
{
  return h->epoch > c->epoch ? h->seq >= seq
    : h->epoch == c->epoch && h->seq > seq;
}

/* Takes note in REST of BLOCK, which was read from the place of number SEQ. */
static void
note_block (const struct dedup_journal_place *c, uint8_t *block, uint64_t seq,
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

/* Takes note in REST of all blocks of AREA from number SEQ on.  -EIO. */
static int
scan_area (struct io_store *io, const struct dedup_journal_place *c,
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
      note_block (c, buf + i * DEDUP_BLOCK_SIZE, seq + i, rest);
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
    r = scan_area (io, c, &c->areas[i], MAX_OF (from, c->areas[i].first_seq),
                   buf, rest);
  return r;
}

/* Where the areas are full, the next block is written to the start of an area
 * that is recycled, or of a new one: then the first block of each is
 * examined. */
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
