/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads a segment of a run from a prefix to its end, in large reads, for
 * merges.  A page that is wrong or can't be read is skipped: its entries are
 * lost, which costs ratio, and the segment is marked as damaged.
 *
 * One thread for each cursor; the segment may be read by others meanwhile.
 */
#include "aligned.h"
#include "segment-page.h"

#include <errno.h>
#include <stdlib.h>

#define BATCH_PAGES 64u          /* 256 KiB a read */

struct dedup_cursor {
  struct dedup_segment *s;
  uint64_t nr_pages;
  uint64_t next_page;            /* to be read */
  uint32_t from;
  uint64_t first_page, in_batch;
  uint64_t page, entry, nr;      /* in the batch; in the page; of the page */
  CACHE_ALIGNED struct seg_wire_page batch[BATCH_PAGES];
};

int
dedup_cursor_open (struct dedup_segment *s, uint32_t from,
                   struct dedup_cursor **out)
{
  struct dedup_cursor *c = aligned_new (sizeof *c);

  if (c == NULL)
    return -ENOMEM;
  c->s = dedup_segment_get (s);
  c->nr_pages = seg_pages (dedup_segment_desc (s)->nr_entries);
  c->from = from;
  c->next_page = seg_first_page (s, from);
  c->first_page = c->in_batch = c->page = c->entry = c->nr = 0;
  *out = c;
  return 0;
}

void
dedup_cursor_free (struct dedup_cursor *c)
{
  if (c == NULL)
    return;
  dedup_segment_put (c->s);
  free (c);
}

/* Reads the pages of the batch one at a time, after reading all of them
 * together failed.  Those that can't be read become zeroes, which no right
 * page is. */
static void
read_singly (struct dedup_cursor *c)
{
  uint64_t i;

  for (i = 0; i < c->in_batch; i++)
    if (io_pread (seg_io (c->s), &c->batch[i], sizeof c->batch[i],
                  seg_page_off (dedup_segment_desc (c->s),
                                c->first_page + i)) < 0)
      memset (&c->batch[i], 0, sizeof c->batch[i]);
}

/* Reads the next batch of pages.  Returns false at the end of the segment. */
static bool
read_batch (struct dedup_cursor *c)
{
  c->in_batch = MIN_OF (BATCH_PAGES, c->nr_pages - c->next_page);
  if (c->in_batch == 0)
    return false;
  c->first_page = c->next_page;
  c->next_page += c->in_batch;
  if (io_pread (seg_io (c->s), c->batch, c->in_batch * sizeof c->batch[0],
                seg_page_off (dedup_segment_desc (c->s), c->first_page)) < 0)
    read_singly (c);
  c->page = 0;
  return true;
}

/* Moves to the next page that is right.  Returns false at the end. */
static bool
next_page (struct dedup_cursor *c)
{
  if (c->in_batch > 0)
    c->page++;
  for (;;) {
    if (c->page >= c->in_batch && !read_batch (c))
      return false;
    if (seg_page_fault (c->s, c->first_page + c->page, &c->batch[c->page])
        == NULL)
      break;
    seg_mark_damaged (c->s);
    c->page++;
  }
  c->nr = be32_load (c->batch[c->page].nr_entries);
  c->entry = 0;
  return true;
}

int
dedup_cursor_next (struct dedup_cursor *c, const struct dedup_hash **hash,
                   uint64_t *value, uint64_t *ordinal)
{
  const struct seg_wire_entry *e;

  for (;;) {
    if (c->entry == c->nr && !next_page (c))
      return 0;
    e = &c->batch[c->page].entries[c->entry++];
    *hash = &e->hash;
    *value = be64_load (e->value);
    *ordinal = (c->first_page + c->page) * SEG_PAGE_ENTRIES + c->entry - 1;
    if (c->from == 0)
      return 1;
    if (dedup_hash_prefix (&e->hash) >= c->from) {
      c->from = 0;               /* and so are all that follow */
      return 1;
    }
  }
}
