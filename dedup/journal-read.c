/* SPDX-License-Identifier: BSD-3-Clause */
/* The journal at rest: the coding of blocks, reading them back, composing
 * the first ones of a new store.
 *
 * Reading trusts nothing: a block counts only if it is valid exactly as
 * docs/on-disk.md 3.2 says, and the first that does not ends the journal.
 * That end is the normal case (a torn block, one of an earlier lap of the
 * area, zeroes), so it is no error; only failing I/O and a start outside the
 * areas are.
 *
 * One thread at a time, before or without a struct dedup_journal.  What
 * groups mean, and which blocks to trust, is recovery's business.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "journal-block.h"
#include "journal.h"
#include "wire.h"

#define READ_BATCH (256u << 10)   /* bytes; bounds the memory of a read */

static const char block_magic[8] = { 'D', 'D', 'U', 'P', 'J', 'R', 'N', 'L' };

struct wire_block {
  char magic[8];
  be64 store_id;
  be64 seq;
  be64 known_durable;
  be32 epoch;
  be32 length;
  be64 checksum;
};
WIRE_FIELD_AT (struct wire_block, magic, 0);
WIRE_FIELD_AT (struct wire_block, store_id, 8);
WIRE_FIELD_AT (struct wire_block, seq, 16);
WIRE_FIELD_AT (struct wire_block, known_durable, 24);
WIRE_FIELD_AT (struct wire_block, epoch, 32);
WIRE_FIELD_AT (struct wire_block, length, 36);
WIRE_FIELD_AT (struct wire_block, checksum, 40);
_Static_assert (sizeof (struct wire_block) == DEDUP_BLOCK_HEADER,
                "the header of a block has 48 bytes");

/* --- One block ----------------------------------------------------------- */

void
dedup_block_encode (const struct dedup_block_head *h, uint8_t *block)
{
  struct wire_block *w = (struct wire_block *) block;

  assert (h->len >= DEDUP_BLOCK_HEADER && h->len <= DEDUP_BLOCK_SIZE);
  memcpy (w->magic, block_magic, sizeof w->magic);
  w->store_id = be64_make (h->store_id);
  w->seq = be64_make (h->seq);
  w->known_durable = be64_make (h->known_durable);
  w->epoch = be32_make (h->epoch);
  w->length = be32_make (h->len);
  w->checksum = be64_make (0);
  memset (block + h->len, 0, DEDUP_BLOCK_SIZE - h->len);
  w->checksum = be64_make (dedup_checksum (block, h->len));
}

static bool
checksum_is_right (uint8_t *block, size_t len)
{
  struct wire_block *w = (struct wire_block *) block;
  be64 saved = w->checksum;
  uint64_t sum;

  w->checksum = be64_make (0);
  sum = dedup_checksum (block, len);
  w->checksum = saved;
  return sum == be64_load (saved);
}

static bool
records_parse (const uint8_t *p, size_t len)
{
  while (len > 0) {
    int size = dedup_record_check (p, len);

    if (size < 0)
      return false;
    p += size;
    len -= (size_t) size;
  }
  return true;
}

bool
dedup_block_decode (uint8_t *block, struct dedup_block_head *h)
{
  const struct wire_block *w = (const struct wire_block *) block;

  if (memcmp (w->magic, block_magic, sizeof w->magic) != 0)
    return false;
  *h = (struct dedup_block_head) {
    .store_id = be64_load (w->store_id),
    .seq = be64_load (w->seq),
    .known_durable = be64_load (w->known_durable),
    .epoch = be32_load (w->epoch),
    .len = be32_load (w->length),
  };
  return h->len >= DEDUP_BLOCK_HEADER && h->len <= DEDUP_BLOCK_SIZE &&
    h->known_durable < h->seq &&
    checksum_is_right (block, h->len) &&
    records_parse (block + DEDUP_BLOCK_HEADER, h->len - DEDUP_BLOCK_HEADER);
}

/* --- Reading ------------------------------------------------------------- */

struct reader {
  struct io_store *io;
  const struct dedup_config *c;
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
  const struct dedup_config *c = rd->c;
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
areas_hold (const struct dedup_config *c, uint64_t from)
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
dedup_journal_read (struct io_store *io, const struct dedup_config *c,
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
is_newer (const struct dedup_config *c, const struct dedup_block_head *h,
          uint64_t seq)
{
  return h->epoch > c->epoch ? h->seq >= seq
    : h->epoch == c->epoch && h->seq > seq;
}

static void
see_rest (const struct dedup_config *c, uint8_t *block, uint64_t seq,
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
see_area (struct io_store *io, const struct dedup_config *c,
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
dedup_journal_rest (struct io_store *io, const struct dedup_config *c,
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
dedup_journal_newer (struct io_store *io, const struct dedup_config *c,
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

/* --- Composing ----------------------------------------------------------- */

struct composer {
  struct dedup_block_head head;
  uint8_t *buf;
  size_t done;          /* bytes of finished blocks */
};

static void
finish_block (struct composer *cm)
{
  dedup_block_encode (&cm->head, cm->buf + cm->done);
  cm->done += DEDUP_BLOCK_SIZE;
  cm->head.seq++;
  cm->head.len = DEDUP_BLOCK_HEADER;
}

static void
compose_record (struct composer *cm, const struct dedup_record *r)
{
  uint8_t rec[DEDUP_REC_MAX];
  size_t size = dedup_record_encode (r, rec);

  if (cm->head.len + size > DEDUP_BLOCK_SIZE)
    finish_block (cm);
  memcpy (cm->buf + cm->done + cm->head.len, rec, size);
  cm->head.len += (uint32_t) size;
}

/* A block takes at least so many records, whatever they are. */
#define RECORDS_PER_BLOCK \
  ((DEDUP_BLOCK_SIZE - DEDUP_BLOCK_HEADER) / DEDUP_REC_MAX)

int
dedup_journal_compose (uint64_t store_id, uint32_t epoch, uint64_t first_seq,
                       const struct dedup_record *records, size_t nr,
                       uint8_t **buf, size_t *len)
{
  static const struct dedup_record end = { .type = DEDUP_REC_END };
  struct composer cm = { .head = {
      .store_id = store_id, .seq = first_seq,
      .known_durable = first_seq - 1, .epoch = epoch,
      .len = DEDUP_BLOCK_HEADER } };
  uint64_t max;

  assert (first_seq >= 1);
  /* One more for END, in a block of its own at worst. */
  if (!mul_u64 (nr / RECORDS_PER_BLOCK + 2, DEDUP_BLOCK_SIZE, &max) ||
      max > SIZE_MAX)
    return -ENOMEM;
  cm.buf = malloc (max);
  if (cm.buf == NULL)
    return -ENOMEM;

  for (size_t i = 0; i < nr; i++)
    compose_record (&cm, &records[i]);
  if (nr > 0 && records[nr - 1].type != DEDUP_REC_END)
    compose_record (&cm, &end);
  if (cm.head.len > DEDUP_BLOCK_HEADER)
    finish_block (&cm);
  *buf = cm.buf;
  *len = cm.done;
  return 0;
}
