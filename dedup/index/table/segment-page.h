/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the bytes of a segment (docs/on-disk.md 3.4), for the files that
 * write and read them: segment-write.c, segment.c, segment-read.c. */
#ifndef DEDUP_SEGMENT_PAGE_H
#define DEDUP_SEGMENT_PAGE_H

#include "checked.h"
#include "index-limits.h"
#include "page.h"
#include "segment.h"
#include "wire.h"

#define SEG_HEAD_MAGIC UINT64_C (0x4444555053454748)   /* "DDUPSEGH" */
#define SEG_PAGE_MAGIC UINT64_C (0x4444555053454750)   /* "DDUPSEGP" */

#define SEG_PAGE_ENTRIES DEDUP_PAGE_ENTRIES   /* (4096 - 32) / 40 */

struct seg_wire_head {         /* page 0 */
  be64 magic;
  be64 store_id;
  be64 id;
  be32 lo;
  be32 hi;
  be32 nr_entries;
  be32 nr_deleted;
  be32 bits;
  be32 nr_shards;
  be64 nr_words;
  be64 meta_checksum;
  be64 checksum;
  uint8_t zero[DEDUP_PAGE_SIZE - 72];
};

struct seg_wire_entry {
  struct dedup_hash hash;
  be64 value;
};

struct seg_wire_page {
  be64 magic;
  be64 id;
  be32 number;
  be32 nr_entries;
  be64 checksum;
  struct seg_wire_entry entries[SEG_PAGE_ENTRIES];
  uint8_t zero[DEDUP_PAGE_SIZE - 32 - SEG_PAGE_ENTRIES * 40];
};

WIRE_FIELD_AT (struct seg_wire_head, store_id, 8);
WIRE_FIELD_AT (struct seg_wire_head, id, 16);
WIRE_FIELD_AT (struct seg_wire_head, lo, 24);
WIRE_FIELD_AT (struct seg_wire_head, hi, 28);
WIRE_FIELD_AT (struct seg_wire_head, nr_entries, 32);
WIRE_FIELD_AT (struct seg_wire_head, nr_deleted, 36);
WIRE_FIELD_AT (struct seg_wire_head, bits, 40);
WIRE_FIELD_AT (struct seg_wire_head, nr_shards, 44);
WIRE_FIELD_AT (struct seg_wire_head, nr_words, 48);
WIRE_FIELD_AT (struct seg_wire_head, meta_checksum, 56);
WIRE_FIELD_AT (struct seg_wire_head, checksum, 64);
WIRE_FIELD_AT (struct seg_wire_page, id, 8);
WIRE_FIELD_AT (struct seg_wire_page, number, 16);
WIRE_FIELD_AT (struct seg_wire_page, nr_entries, 20);
WIRE_FIELD_AT (struct seg_wire_page, checksum, 24);
WIRE_FIELD_AT (struct seg_wire_page, entries, 32);
_Static_assert (sizeof (struct seg_wire_entry) == 40, "entry");
_Static_assert (sizeof (struct seg_wire_head) == DEDUP_PAGE_SIZE, "page 0");
_Static_assert (sizeof (struct seg_wire_page) == DEDUP_PAGE_SIZE, "page");

/* Returns the number of pages of entries; all but the last are full. */
static inline uint64_t
seg_pages (uint64_t nr_entries)
{
  return div_round_up (nr_entries, SEG_PAGE_ENTRIES);
}

/* Returns the offset of a page of entries in the byte store. */
static inline uint64_t
seg_page_off (const struct dedup_segment_desc *d, uint64_t page)
{
  return d->host_off + (1 + page) * DEDUP_PAGE_SIZE;
}

/* Returns the bytes of what follows the pages: the fences, the shards of the
 * filter and one more, and its words. */
static inline uint64_t
seg_meta_bytes (uint64_t nr_pages, uint64_t nr_shards, uint64_t nr_words)
{
  return nr_pages * 4 + (nr_shards ? (nr_shards + 1) * 8 : 0) + nr_words * 8;
}

static inline uint64_t
seg_meta_pages (uint64_t nr_pages, uint64_t nr_shards, uint64_t nr_words)
{
  return div_round_up (seg_meta_bytes (nr_pages, nr_shards, nr_words),
                       DEDUP_PAGE_SIZE);
}

/* --- Between segment.c and segment-read.c -------------------------------- */

struct io_store *seg_io (struct dedup_segment *s);
/* Returns NULL, or what is wrong with page NUMBER. */
const char *seg_page_fault (const struct dedup_segment *s, uint64_t number,
                            struct seg_wire_page *page);
/* Notes that a page of S was found damaged. */
void seg_mark_damaged (struct dedup_segment *s);
/* Returns the first page that may have entries with this prefix. */
uint64_t seg_first_page (struct dedup_segment *s, uint32_t prefix);

#endif
