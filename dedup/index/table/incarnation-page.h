/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the bytes of an incarnation (docs/on-disk.md 3.3), for the files
 * that write and read them: incarnation-write.c and incarnation.c. */
#ifndef DEDUP_INCARNATION_PAGE_H
#define DEDUP_INCARNATION_PAGE_H

#include <errno.h>

#include "checked.h"
#include "incarnation.h"
#include "index-limits.h"
#include "page.h"
#include "wire.h"

#define INC_HEAD_MAGIC UINT64_C (0x44445550494e4341)   /* "DDUPINCA" */
#define INC_PAGE_MAGIC UINT64_C (0x444455505441424c)   /* "DDUPTABL" */

#define INC_PAGE_BUCKETS 25   /* (4096 - 32) / 160 */

struct inc_wire_head {        /* page 0 */
  be64 magic;
  be64 store_id;
  be64 id;
  be32 order;
  be32 nr_entries;
  be32 nr_deleted;
  be32 filter_pages;
  be64 table_pages;
  be64 filter_checksum;
  be64 checksum;
  uint8_t zero[DEDUP_PAGE_SIZE - 64];
};

struct inc_wire_slot {
  struct dedup_hash hash;
  be64 value;
};

struct inc_wire_page {
  be64 magic;
  be64 id;
  be64 number;
  be64 checksum;
  struct inc_wire_slot slots[INC_PAGE_BUCKETS][DEDUP_BUCKET_SLOTS];
  uint8_t zero[DEDUP_PAGE_SIZE - 32 - INC_PAGE_BUCKETS * 160];
};

WIRE_FIELD_AT (struct inc_wire_head, store_id, 8);
WIRE_FIELD_AT (struct inc_wire_head, id, 16);
WIRE_FIELD_AT (struct inc_wire_head, order, 24);
WIRE_FIELD_AT (struct inc_wire_head, nr_entries, 28);
WIRE_FIELD_AT (struct inc_wire_head, nr_deleted, 32);
WIRE_FIELD_AT (struct inc_wire_head, filter_pages, 36);
WIRE_FIELD_AT (struct inc_wire_head, table_pages, 40);
WIRE_FIELD_AT (struct inc_wire_head, filter_checksum, 48);
WIRE_FIELD_AT (struct inc_wire_head, checksum, 56);
WIRE_FIELD_AT (struct inc_wire_page, id, 8);
WIRE_FIELD_AT (struct inc_wire_page, number, 16);
WIRE_FIELD_AT (struct inc_wire_page, checksum, 24);
WIRE_FIELD_AT (struct inc_wire_page, slots, 32);
_Static_assert (sizeof (struct inc_wire_slot) == 40, "slot");
_Static_assert (sizeof (struct inc_wire_head) == DEDUP_PAGE_SIZE, "page 0");
_Static_assert (sizeof (struct inc_wire_page) == DEDUP_PAGE_SIZE, "table page");

struct inc_layout {           /* the order alone determines it */
  uint64_t nr_buckets, nr_slots, filter_pages, table_pages;
};

/* Returns the layout of an incarnation; ORDER is at most DEDUP_MAX_ORDER. */
static inline struct inc_layout
inc_layout_of (unsigned order)
{
  struct inc_layout l;

  l.nr_buckets = UINT64_C (1) << order;
  l.nr_slots = l.nr_buckets * DEDUP_BUCKET_SLOTS;
  l.filter_pages = div_round_up (l.nr_slots * 2, DEDUP_PAGE_SIZE);
  l.table_pages = div_round_up (l.nr_buckets, INC_PAGE_BUCKETS);
  return l;
}

/* Returns the size in bytes: at most 173 MiB, for DEDUP_MAX_ORDER, so it can't
 * overflow. */
static inline uint64_t
inc_layout_size (const struct inc_layout *l)
{
  return (1 + l->filter_pages + l->table_pages) * DEDUP_PAGE_SIZE;
}

/* Returns the offset of table page PAGE in the byte store. */
static inline uint64_t
inc_table_off (const struct dedup_incarnation_desc *desc,
               const struct inc_layout *l, uint64_t page)
{
  return desc->host_off + (1 + l->filter_pages + page) * DEDUP_PAGE_SIZE;
}

/* Returns the tag that the filter has for HASH; never 0, which means empty. */
static inline uint16_t
inc_tag_of (const struct dedup_hash *hash)
{
  return 0x8000 | (dedup_hash_word (hash, 2) >> 48 & 0x7fff);
}

/* Checks that an incarnation of this order fits DESC's area.  -EINVAL: it does
 * not, or the order is out of range. */
static inline int MUST_CHECK
inc_check_area (const struct dedup_incarnation_desc *desc, unsigned order)
{
  uint64_t end;

  if (order < DEDUP_MIN_ORDER || order > DEDUP_MAX_ORDER ||
      desc->size_bytes < dedup_incarnation_size (order) ||
      !add_u64 (desc->host_off, desc->size_bytes, &end))
    return -EINVAL;
  return 0;
}

#endif
