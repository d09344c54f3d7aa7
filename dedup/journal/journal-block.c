/* SPDX-License-Identifier: BSD-3-Clause */
/* Encodes and decodes single blocks of the journal (docs/on-disk.md 3.2), and
 * composes the first blocks of a new store in memory.
 *
 * Owns the byte layout of a block's header.  A block that decodes has the
 * right magic and checksum, names a known durable number below its own (a
 * block can only tell of earlier ones), and holds nothing but whole records of
 * known types.  The checksum covers the used bytes only, with its own field
 * taken as 0.
 *
 * Functions of their arguments: any thread may call them, each with a block of
 * its own.
 *
 * Left out: whether a block belongs to this journal.  Store id, number and
 * epoch mean something only to the reader (journal-read.c), which knows the
 * place that the block was read from.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "hash.h"
#include "journal-block.h"
#include "journal.h"
#include "wire.h"

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

/* Returns true if LEN bytes at P are whole records of known types. */
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

/* The number of records of any type that fit into a block for certain. */
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
  cm.buf = aligned_new (max);
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
