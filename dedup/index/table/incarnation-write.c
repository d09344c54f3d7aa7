/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a frozen log store out as an incarnation (docs/on-disk.md 3.3).
 *
 * Slots keep their places, so nothing is sorted: page 0 and the filter are
 * written from one buffer, then the table, batch by batch.  Nothing is synced:
 * the caller does that before it lists the incarnation (law 8), and until then
 * nobody reads these pages, so the order of writes does not matter.
 *
 * One editing thread, beside lookups in the same log store.
 */
#include "aligned.h"
#include "incarnation-page.h"

#include <assert.h>

#define BATCH_PAGES 256u      /* 1 MiB a write */

uint64_t
dedup_incarnation_size (unsigned order)
{
  struct inc_layout l;

  assert (order <= DEDUP_MAX_ORDER);
  l = inc_layout_of (order);
  return inc_layout_size (&l);
}

struct writer {
  struct io_store *io;
  const struct dedup_log_store *ls;
  struct dedup_incarnation_desc *desc;
  struct inc_layout layout;
  const bool *stop;
};

static int
write_batch (const struct writer *w, const void *buf, uint64_t nr_pages,
             uint64_t host_off)
{
  if (w->stop && __atomic_load_n (w->stop, __ATOMIC_RELAXED))
    return -EINTR;
  return io_pwrite (w->io, buf, nr_pages * DEDUP_PAGE_SIZE, host_off);
}

static int
write_pages (const struct writer *w, const uint8_t *buf, uint64_t nr_pages,
             uint64_t host_off)
{
  uint64_t done, n;
  int r;

  for (done = 0; done < nr_pages; done += n) {
    n = MIN_OF (nr_pages - done, BATCH_PAGES);
    r = write_batch (w, buf + done * DEDUP_PAGE_SIZE, n,
                     host_off + done * DEDUP_PAGE_SIZE);
    if (r < 0)
      return r;
  }
  return 0;
}

static void
fill_head (const struct writer *w, uint64_t store_id,
           uint64_t filter_checksum, struct inc_wire_head *head)
{
  memset (head, 0, sizeof *head);
  head->magic = be64_make (INC_HEAD_MAGIC);
  head->store_id = be64_make (store_id);
  head->id = be64_make (w->desc->id);
  head->order = be32_make (w->desc->order);
  head->nr_entries = be32_make (w->desc->nr_entries);
  head->nr_deleted = be32_make (w->desc->nr_deleted);
  head->filter_pages = be32_make ((uint32_t) w->layout.filter_pages);
  head->table_pages = be64_make (w->layout.table_pages);
  head->filter_checksum = be64_make (filter_checksum);
  head->checksum = be64_make (dedup_page_checksum (head, &head->checksum));
}

/* Writes page 0 and the filter.  The buffer takes 8 MiB at most. */
static int
write_filter (const struct writer *w, uint64_t store_id)
{
  const size_t len = w->layout.filter_pages * DEDUP_PAGE_SIZE;
  CLEANUP_FREE uint8_t *buf = aligned_zero_new (DEDUP_PAGE_SIZE + len);
  struct dedup_hash hash;
  uint64_t value;
  size_t i;
  be16 *tags;

  if (buf == NULL)
    return -ENOMEM;
  tags = (be16 *) (buf + DEDUP_PAGE_SIZE);
  for (i = 0; i < w->layout.nr_slots; ++i)
    if (dedup_log_store_slot (w->ls, i, &hash, &value))
      tags[i] = be16_make (inc_tag_of (&hash));
  fill_head (w, store_id, dedup_checksum (tags, len),
             (struct inc_wire_head *) buf);
  return write_pages (w, buf, 1 + w->layout.filter_pages,
                      w->desc->host_off);
}

static void
fill_bucket (const struct writer *w, uint64_t bucket,
             struct inc_wire_slot slots[DEDUP_BUCKET_SLOTS])
{
  uint64_t value;
  unsigned i;

  for (i = 0; i < DEDUP_BUCKET_SLOTS; ++i)
    if (dedup_log_store_slot (w->ls, bucket * DEDUP_BUCKET_SLOTS + i,
                              &slots[i].hash, &value))
      slots[i].value = be64_make (value);
}

static void
fill_page (const struct writer *w, uint64_t number, struct inc_wire_page *page)
{
  const uint64_t first = number * INC_PAGE_BUCKETS;
  const uint64_t nr = MIN_OF (w->layout.nr_buckets - first, INC_PAGE_BUCKETS);
  uint64_t i;

  memset (page, 0, sizeof *page);
  page->magic = be64_make (INC_PAGE_MAGIC);
  page->id = be64_make (w->desc->id);
  page->number = be64_make (number);
  for (i = 0; i < nr; ++i)
    fill_bucket (w, first + i, page->slots[i]);
  page->checksum = be64_make (dedup_page_checksum (page, &page->checksum));
}

static int
write_table (const struct writer *w)
{
  const uint64_t total = w->layout.table_pages;
  const uint64_t batch = MIN_OF (total, BATCH_PAGES);
  CLEANUP_FREE struct inc_wire_page *buf = aligned_new (batch * sizeof *buf);
  uint64_t done, n, i;
  int r;

  if (buf == NULL)
    return -ENOMEM;
  for (done = 0; done < total; done += n) {
    n = MIN_OF (total - done, batch);
    for (i = 0; i < n; ++i)
      fill_page (w, done + i, &buf[i]);
    r = write_batch (w, buf, n, inc_table_off (w->desc, &w->layout, done));
    if (r < 0)
      return r;
  }
  return 0;
}

int
dedup_incarnation_write (struct io_store *io, uint64_t store_id,
                         const struct dedup_log_store *ls,
                         struct dedup_incarnation_desc *desc,
                         const bool *stop)
{
  const unsigned order = dedup_log_store_order (ls);
  const struct writer w = { io, ls, desc, inc_layout_of (order), stop };
  int r;

  r = inc_check_area (desc, order);
  if (r < 0)
    return r;
  desc->order = order;
  desc->nr_entries = (uint32_t) dedup_log_store_count (ls);
  desc->nr_deleted = (uint32_t) dedup_log_store_deleted (ls);
  r = write_filter (&w, store_id);
  if (r < 0)
    return r;
  return write_table (&w);
}
