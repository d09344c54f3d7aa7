/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes a segment of a run: a good one gets patches, with checksums made
 * right, and so does the configuration's entry for it; it is looked up in,
 * loaded, counted, walked through, and checked.
 *
 * Input: number of entries (2 bytes), bits of the filter, changes to the
 * configuration's entry, then patches of 3 bytes for the pages and 4 for what
 * is in front of and behind them.
 */
#include "fuzz.h"

#include "../../dedup/index/table/segment-page.h"

#define MAX_ENTRIES 350u
#define STORE 77
#define HOST_OFF (1u << 16)

/* In hash order. */
static void
hash_of (unsigned i, struct dedup_hash *h)
{
  uint32_t prefix = i * (UINT32_MAX / MAX_ENTRIES / 2) + i % 3;

  memset (h, (int) (i * 29), sizeof *h);
  for (unsigned k = 0; k < 4; k++)
    h->b[k] = (uint8_t) (prefix >> (24 - 8 * k));
}

static void
make_good (struct io_store *io, struct dedup_segment_desc *desc, unsigned nr)
{
  struct dedup_segment_writer *w;
  struct dedup_segment_meta *meta;
  struct dedup_hash h;

  MUST (dedup_segment_writer_new (io, STORE, desc, nr, NULL, &w) == 0);
  for (unsigned i = 0; i < nr; i++) {
    hash_of (2 * i, &h);
    MUST (dedup_segment_writer_add (w, &h, i % 50 == 49 ? DEDUP_DELETED
                                    : i + 10) == 0);
  }
  MUST (dedup_segment_writer_finish (w, desc, &meta) == 0);
  dedup_segment_writer_free (w);
  dedup_segment_meta_free (meta);
}

/* Counts and ranges as the configuration may have them (config-check.c). */
static void
change_desc (struct input *in, struct dedup_segment_desc *d)
{
  unsigned how = (unsigned) take (in, 1);

  if (how & 1)
    d->nr_entries = (uint32_t) take (in, 2) % MAX_ENTRIES;
  if (how & 2)
    d->lo = (uint32_t) take (in, 4);
  if (how & 4)
    d->hi = (uint32_t) take (in, 4);
  if (how & 8)
    d->bits = (uint8_t) (take (in, 1) % (DEDUP_FILTER_MAX_BITS + 1));
}

static void
patch (struct io_store *io, struct input *in,
       const struct dedup_segment_desc *d)
{
  struct place head = {
    .kind = PLACE_SEG_HEAD, .head_off = d->host_off,
    .meta_off = seg_page_off (d, seg_pages (d->nr_entries)),
    .area_end = d->host_off + d->size_bytes,
  };
  struct place page = { .kind = PLACE_SEG_PAGE };

  while (in->left > 2) {
    unsigned how = (unsigned) take (in, 1);
    uint64_t off = take (in, 2);
    uint8_t byte = (uint8_t) take (in, 1);

    if (how & 1)
      off = off % 72 + d->host_off;
    else if (how & 2)
      off = head.meta_off + off % 512;
    else
      off = d->host_off + off % d->size_bytes;
    if (off < head.area_end)
      MUST (io_pwrite (io, &byte, 1, off) == 0);
  }
  for (page.host_off = d->host_off + 4096; page.host_off < head.meta_off;
       page.host_off += 4096)
    fix_checksum (io, &page);
  fix_checksum (io, &head);
}

static void
ask (struct dedup_segment *s)
{
  struct dedup_filter_key key;
  struct dedup_filter_place place;
  struct dedup_hash h;
  uint64_t host_idx;
  uint16_t maybe;
  int r;

  for (unsigned i = 0; i < 2 * MAX_ENTRIES; i += 7) {
    hash_of (i, &h);
    r = dedup_segment_lookup (s, &h, &host_idx, NULL);
    MUST (r == 0 || (r == 1 && host_idx != 0));
    dedup_filter_key (&h, &key);
    dedup_segment_place (s, &key, &place);
    if (place.head)
      MUST (dedup_filter_test (&place, 1, &maybe) <= 1);
  }
}

static void
walk (struct dedup_segment *s, uint32_t from)
{
  const struct dedup_hash *h;
  struct dedup_cursor *c;
  uint64_t host_idx, ordinal, nr = 0;

  MUST (dedup_cursor_open (s, from, &c) == 0);
  while (dedup_cursor_next (c, &h, &host_idx, &ordinal) == 1) {
    MUST (ordinal < dedup_segment_desc (s)->nr_entries);
    nr++;
  }
  dedup_cursor_free (c);
  MUST (nr <= dedup_segment_desc (s)->nr_entries);
}

static void
count (struct dedup_segment *s)
{
  static const uint32_t at[] = { 0, 1, 1u << 20, 1u << 31, UINT32_MAX };
  const uint32_t nr = dedup_segment_desc (s)->nr_entries;

  for (size_t i = 0; i < 5; i++)
    for (size_t k = i; k < 5; k++)
      MUST (dedup_segment_bound (s, at[i], at[k]) <= nr);
}

static void
use (struct dedup_segment *s)
{
  ask (s);
  count (s);
  walk (s, 0);
  walk (s, 1u << 30);
  walk (s, UINT32_MAX);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct input in = { data, len };
  unsigned nr = (unsigned) take (&in, 2) % MAX_ENTRIES;
  struct dedup_segment_desc desc = {
    .id = 5, .host_off = HOST_OFF, .hi = UINT32_MAX,
    .bits = (uint8_t) (take (&in, 1) % (DEDUP_FILTER_MAX_BITS + 1)),
  };
  struct dedup_segment *s;
  struct fault f = { 0 };
  struct io_store *io;
  int r;

  if (len > 4096)
    return -1;
  desc.size_bytes = dedup_segment_size (nr, desc.bits);
  MUST (io_memory_new (1 << 20, &io) == 0);
  make_good (io, &desc, nr);
  change_desc (&in, &desc);
  if (dedup_segment_open (io, STORE, &desc, &s) == 0) {
    patch (io, &in, &desc);
    use (s);
    r = dedup_segment_load (s);
    MUST (r == 0 || dedup_segment_damaged (s));
    use (s);
    r = dedup_segment_check (s, &f);
    MUST (r == 0 || f.msg[0]);
    dedup_segment_put (s);
  }
  io_close (io);
  return 0;
}
