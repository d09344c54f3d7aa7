/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a segment of a run (docs/on-disk.md 3.4): page after page as the
 * entries come, in large writes; then fences and filter, which are also
 * returned to the caller; then the first page.
 *
 * The host is asked to write out each batch at once (io_write_out), so that
 * a sync of the file has little left to do.  Nothing is synced: the caller
 * does that before it lists the segment (law 8), and until then nobody reads
 * these pages.
 *
 * One thread.  Memory: one batch of pages, a shard of the filter being built,
 * and the fences and filter themselves.
 */
#include "aligned.h"
#include "segment-page.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define BATCH_PAGES 256u       /* 1 MiB a write */

struct dedup_segment_writer {
  struct io_store *io;
  uint64_t store_id;
  struct dedup_segment_desc desc;
  const bool *stop;
  uint64_t max_pages;            /* in the area, with nothing behind them */
  uint64_t nr_entries, nr_deleted;
  struct dedup_hash last;

  struct dedup_filter_builder *filter;
  uint32_t *fences;
  size_t nr_fences, max_fences;
  struct seg_wire_page *batch;
  uint32_t max_batch;            /* pages; more than expected may come */
  uint64_t first_page;           /* of the batch */
  uint32_t in_batch;             /* pages begun */
  uint32_t in_page;              /* entries of the last */
};

int
dedup_segment_writer_new (struct io_store *io, uint64_t store_id,
                          const struct dedup_segment_desc *desc,
                          uint64_t nr_entries, const bool *stop,
                          struct dedup_segment_writer **out)
{
  struct dedup_segment_writer *w = calloc (1, sizeof *w);
  int r = 0;

  if (w == NULL)
    return -ENOMEM;
  w->io = io;
  w->store_id = store_id;
  w->desc = *desc;
  w->stop = stop;
  w->max_pages = desc->size_bytes / DEDUP_PAGE_SIZE - 1;
  w->in_page = SEG_PAGE_ENTRIES;
  w->max_batch = (uint32_t) MIN_OF (BATCH_PAGES, seg_pages (nr_entries) + 1);
  w->batch = calloc (w->max_batch, sizeof *w->batch);
  if (w->batch == NULL)
    r = -ENOMEM;
  if (r == 0 && desc->bits)
    r = dedup_filter_builder_new (desc->lo, desc->hi, nr_entries, desc->bits,
                                  &w->filter);
  if (r < 0) {
    dedup_segment_writer_free (w);
    return r;
  }
  *out = w;
  return 0;
}

void
dedup_segment_writer_free (struct dedup_segment_writer *w)
{
  if (w == NULL)
    return;
  dedup_filter_builder_free (w->filter);
  free (w->fences);
  free (w->batch);
  free (w);
}

static bool
stopped (const struct dedup_segment_writer *w)
{
  return w->stop && __atomic_load_n (w->stop, __ATOMIC_RELAXED);
}

/* --- Pages --------------------------------------------------------------- */

/* Completes a page whose entries are in place. */
static void
seal_page (struct dedup_segment_writer *w, struct seg_wire_page *p,
           uint64_t number, uint32_t nr_entries)
{
  p->magic = be64_make (SEG_PAGE_MAGIC);
  p->id = be64_make (w->desc.id);
  p->number = be32_make ((uint32_t) number);
  p->nr_entries = be32_make (nr_entries);
  p->checksum = be64_make (dedup_page_checksum (p, &p->checksum));
}

static int
write_batch (struct dedup_segment_writer *w)
{
  const uint64_t host_off = seg_page_off (&w->desc, w->first_page);
  const size_t nr = w->in_batch;
  int r;

  if (nr == 0)
    return 0;
  if (stopped (w))
    return -EINTR;
  seal_page (w, &w->batch[nr - 1], w->first_page + nr - 1, w->in_page);
  r = io_pwrite (w->io, w->batch, nr * sizeof *w->batch, host_off);
  if (r == 0)
    io_write_out (w->io, host_off, nr * sizeof *w->batch);
  memset (w->batch, 0, nr * sizeof *w->batch);
  w->first_page += nr;
  w->in_batch = 0;
  w->in_page = SEG_PAGE_ENTRIES;
  return r;
}

static int
add_fence (struct dedup_segment_writer *w, uint32_t prefix)
{
  if (w->nr_fences == w->max_fences) {
    const size_t max = MAX_OF (256, w->max_fences * 3 / 2);
    uint32_t *v = realloc (w->fences, max * sizeof *v);

    if (v == NULL)
      return -ENOMEM;
    w->fences = v;
    w->max_fences = max;
  }
  w->fences[w->nr_fences++] = prefix;
  return 0;
}

/* Starts the page that begins with HASH; completes the one before.  -ENOSPC:
 * the area is full. */
static int
begin_page (struct dedup_segment_writer *w, const struct dedup_hash *hash)
{
  int r;

  if (w->in_batch == w->max_batch) {
    r = write_batch (w);
    if (r < 0)
      return r;
  }
  else if (w->in_batch > 0)
    seal_page (w, &w->batch[w->in_batch - 1],
               w->first_page + w->in_batch - 1, w->in_page);
  if (w->first_page + w->in_batch == w->max_pages)
    return -ENOSPC;
  r = add_fence (w, dedup_hash_prefix (hash));
  if (r < 0)
    return r;
  w->in_batch++;
  w->in_page = 0;
  return 0;
}

int
dedup_segment_writer_add (struct dedup_segment_writer *w,
                          const struct dedup_hash *hash, uint64_t value)
{
  struct seg_wire_entry *e;
  int r;

  assert (w->nr_entries == 0 || memcmp (&w->last, hash, sizeof *hash) < 0);
  if (w->in_page == SEG_PAGE_ENTRIES) {
    r = begin_page (w, hash);
    if (r < 0)
      return r;
  }
  if (w->filter) {
    r = dedup_filter_builder_add (w->filter, hash);
    if (r == -EINVAL) {          /* the segment gets no filter */
      dedup_filter_builder_free (w->filter);
      w->filter = NULL;
    }
    else if (r < 0)
      return r;
  }
  e = &w->batch[w->in_batch - 1].entries[w->in_page++];
  e->hash = w->last = *hash;
  e->value = be64_make (value);
  w->nr_entries++;
  w->nr_deleted += value == DEDUP_DELETED;
  return 0;
}

/* --- Fences and filter --------------------------------------------------- */

/* Takes the fences, and the filter if the area has room for it, to M. */
static int
make_meta (struct dedup_segment_writer *w, struct dedup_segment_meta *m)
{
  int r = 0;

  if (w->filter)
    r = dedup_filter_builder_finish (w->filter, &m->filter);
  if (r < 0 && r != -EINVAL)
    return r;
  m->nr_pages = (uint32_t) w->nr_fences;
  if (m->filter.bits &&
      1 + m->nr_pages + seg_meta_pages (m->nr_pages, m->filter.nr_shards,
                                        dedup_filter_words (&m->filter)) >
      w->desc.size_bytes / DEDUP_PAGE_SIZE)
    dedup_filter_free (&m->filter);
  m->fences = realloc (w->fences, MAX_OF (1, w->nr_fences) * sizeof *m->fences);
  if (m->fences == NULL)
    return -ENOMEM;
  w->fences = NULL;
  return 0;
}

static void
encode_meta (const struct dedup_segment_meta *m, uint8_t *p)
{
  const struct dedup_filter *f = &m->filter;
  uint64_t i;

  for (i = 0; i < m->nr_pages; i++, p += 4) {
    be32 v = be32_make (m->fences[i]);

    memcpy (p, &v, sizeof v);
  }
  for (i = 0; f->bits && i <= f->nr_shards; i++, p += 8) {
    be32 v[2] = { be32_make (f->shards[i].first_block),
                  be32_make (f->shards[i].seed) };

    memcpy (p, v, sizeof v);
  }
  for (i = 0; f->bits && i < f->shards[f->nr_shards].first_block; i++) {
    uint64_t words[DEDUP_FILTER_MAX_BITS];
    unsigned c;

    dedup_filter_get (f, i, words);
    for (c = 0; c < f->bits; c++, p += 8) {
      be64 v = be64_make (words[c]);

      memcpy (p, &v, sizeof v);
    }
  }
}

static int
write_pieces (struct dedup_segment_writer *w, const uint8_t *buf, size_t len,
              uint64_t host_off)
{
  size_t done, n;
  int r;

  for (done = 0; done < len; done += n) {
    n = MIN_OF (len - done, BATCH_PAGES * DEDUP_PAGE_SIZE);
    if (stopped (w))
      return -EINTR;
    r = io_pwrite (w->io, buf + done, n, host_off + done);
    if (r < 0)
      return r;
    io_write_out (w->io, host_off + done, n);
  }
  return 0;
}

static int
write_meta (struct dedup_segment_writer *w, const struct dedup_segment_meta *m,
            uint64_t *checksum)
{
  const uint64_t nr_words = m->filter.bits ? dedup_filter_words (&m->filter)
    : 0;
  const size_t len = seg_meta_pages (m->nr_pages, m->filter.nr_shards,
                                     nr_words) * DEDUP_PAGE_SIZE;
  CLEANUP_FREE uint8_t *buf = aligned_zero_new (len);

  if (buf == NULL)
    return -ENOMEM;
  if (1 + m->nr_pages + len / DEDUP_PAGE_SIZE >
      w->desc.size_bytes / DEDUP_PAGE_SIZE)
    return -ENOSPC;
  encode_meta (m, buf);
  *checksum = dedup_checksum (buf, len);
  return write_pieces (w, buf, len, seg_page_off (&w->desc, m->nr_pages));
}

static int
write_head (struct dedup_segment_writer *w, const struct dedup_segment_meta *m,
            uint64_t meta_checksum)
{
  CLEANUP_FREE struct seg_wire_head *h = calloc (1, sizeof *h);

  if (h == NULL)
    return -ENOMEM;
  h->magic = be64_make (SEG_HEAD_MAGIC);
  h->store_id = be64_make (w->store_id);
  h->id = be64_make (w->desc.id);
  h->lo = be32_make (w->desc.lo);
  h->hi = be32_make (w->desc.hi);
  h->nr_entries = be32_make ((uint32_t) w->nr_entries);
  h->nr_deleted = be32_make ((uint32_t) w->nr_deleted);
  h->bits = be32_make (m->filter.bits);
  h->nr_shards = be32_make (m->filter.nr_shards);
  h->nr_words = be64_make (m->filter.bits ? dedup_filter_words (&m->filter)
                           : 0);
  h->meta_checksum = be64_make (meta_checksum);
  h->checksum = be64_make (dedup_page_checksum (h, &h->checksum));
  return io_pwrite (w->io, h, sizeof *h, w->desc.host_off);
}

int
dedup_segment_writer_finish (struct dedup_segment_writer *w,
                             struct dedup_segment_desc *desc,
                             struct dedup_segment_meta **meta)
{
  struct dedup_segment_meta *m = calloc (1, sizeof *m);
  uint64_t checksum = 0;
  int r;

  if (m == NULL)
    return -ENOMEM;
  if ((r = write_batch (w)) < 0 ||
      (r = make_meta (w, m)) < 0 ||
      (r = write_meta (w, m, &checksum)) < 0 ||
      (r = write_head (w, m, checksum)) < 0) {
    dedup_segment_meta_free (m);
    return r;
  }
  desc->nr_entries = (uint32_t) w->nr_entries;
  desc->nr_deleted = (uint32_t) w->nr_deleted;
  desc->bits = (uint8_t) m->filter.bits;
  *meta = m;
  return 0;
}
