/* SPDX-License-Identifier: BSD-3-Clause */
/* A segment of a run: index entries of one range of hashes, in hash order,
 * immutable on disk (docs/on-disk.md 3.4).  Source: the sorted store of SILT
 * (SOSP 2011) section 4.3; here a page is found by 32 bits of hash for each,
 * in RAM, since hashes are uniform.
 *
 * Immutable after open but for fences and filter, which appear once; lookups
 * need no lock.  Reference counted, so that a dropped one dies after its last
 * reader.
 */
#ifndef DEDUP_SEGMENT_H
#define DEDUP_SEGMENT_H

#include "fault.h"
#include "filter.h"
#include "io.h"
#include "log-store.h"

struct dedup_segment;

struct dedup_segment_desc {       /* as in the configuration */
  uint64_t id;                    /* of its pages; never used twice */
  uint64_t age;                   /* of its run: the higher, the younger */
  uint64_t host_off;
  uint64_t size_bytes;            /* of its area; may exceed the need */
  uint32_t lo, hi;                /* prefixes (first 32 bits of a hash) that it
                                   * answers for; lo grows while it is merged */
  uint32_t nr_entries, nr_deleted;   /* in its pages */
  uint32_t merge;                 /* the merge it takes part in, or 0 */
  uint8_t level;
  uint8_t bits;                   /* of its filter; 0: it has none */
  bool output;                    /* of that merge, else an input */
};

/* Of one run (docs/on-disk.md 3.1)? */
static inline bool
dedup_same_run (const struct dedup_segment_desc *a,
                const struct dedup_segment_desc *b)
{
  return a->age == b->age && a->level == b->level;
}

static inline uint32_t
dedup_hash_prefix (const struct dedup_hash *h)
{
  return (uint32_t) (dedup_hash_word (h, 0) >> 32);
}

/* Bytes that NR entries take at the most, in whole pages. */
uint64_t dedup_segment_size (uint64_t nr_entries, unsigned bits);

/* The same, of such a filter exactly. */
uint64_t dedup_segment_used (uint64_t nr_entries, uint64_t nr_shards,
                             uint64_t nr_words);

/* Memory that such a segment takes, loaded; rarely some percent more. */
uint64_t dedup_segment_likely_memory (uint64_t nr_entries, unsigned bits);

/* --- Reading -------------------------------------------------------------- */

/* Fences and filter; read from the file or left by the writer. */
struct dedup_segment_meta {
  uint32_t nr_pages;
  uint32_t *fences;               /* prefix of each page's first entry */
  struct dedup_filter filter;     /* bits 0: none */
};
void dedup_segment_meta_free (struct dedup_segment_meta *m);

/* Reads nothing.  One reference is the caller's. */
int dedup_segment_open (struct io_store *io, uint64_t store_id,
                        const struct dedup_segment_desc *desc,
                        struct dedup_segment **out) MUST_CHECK;
struct dedup_segment *dedup_segment_get (struct dedup_segment *s);
void dedup_segment_put (struct dedup_segment *s);
unsigned dedup_segment_users (struct dedup_segment *s);
const struct dedup_segment_desc *
dedup_segment_desc (const struct dedup_segment *s);

/* Read and verify the first page, fences and filter, and publish them.
 * -EBADMSG: wrong; the segment is then useless, and lookups miss. */
int dedup_segment_load (struct dedup_segment *s) MUST_CHECK;
/* The same with what its writer left; META is the segment's now. */
void dedup_segment_adopt (struct dedup_segment *s,
                          struct dedup_segment_meta *meta);
/* NULL until loaded. */
const struct dedup_segment_meta *
dedup_segment_meta (struct dedup_segment *s);
/* Was anything of it ever unreadable or wrong, and is nothing of it of any
 * use? */
bool dedup_segment_damaged (struct dedup_segment *s);
bool dedup_segment_useless (struct dedup_segment *s);

/* Where the filter says if KEY is in, to be tested later: see filter.h. */
void dedup_segment_place (struct dedup_segment *s,
                          const struct dedup_filter_key *key,
                          struct dedup_filter_place *p);

/* 1 and *VALUE (perhaps DEDUP_DELETED) if the pages have it; 0 if not.
 * Never fails: a page that can't be read or is wrong is a miss.  Asks no
 * filter.  One page is read, rarely two; before the fences are loaded about
 * three.  The number of pages is added to *READS (may be NULL). */
int dedup_segment_lookup (struct dedup_segment *s,
                          const struct dedup_hash *hash, uint64_t *value,
                          unsigned *reads);

/* Its pages of entries, and those of one of them (DEDUP_PAGE_ENTRIES at the
 * most).  -EBADMSG: the page is wrong. */
uint64_t dedup_segment_pages (const struct dedup_segment *s);
int dedup_segment_read (struct dedup_segment *s, uint64_t page,
                        struct dedup_entry *v, size_t *nr) MUST_CHECK;

/* Read everything and verify it; the fault says what is wrong. */
int dedup_segment_check (struct dedup_segment *s, struct fault *f)
  MUST_CHECK;

/* How many entries have prefixes from FROM to TO?  An upper bound, two pages
 * too high at the most where it is loaded. */
uint64_t dedup_segment_bound (struct dedup_segment *s, uint32_t from,
                              uint32_t to);

size_t dedup_segment_memory (struct dedup_segment *s);
void dedup_segment_reads (struct dedup_segment *s, uint64_t *page_reads,
                          uint64_t *false_positives);

/* --- All of it, in order -------------------------------------------------- */

struct dedup_cursor;              /* one thread's */

/* Entries with prefix FROM and above. */
int dedup_cursor_open (struct dedup_segment *s, uint32_t from,
                       struct dedup_cursor **out) MUST_CHECK;
void dedup_cursor_free (struct dedup_cursor *c);
/* The next entry: 1; 0 at the end; -errno.  *HASH is valid until the next
 * call.  *ORDINAL counts entries from the start of the segment.  Pages that
 * are damaged are passed over, and mark the segment. */
int dedup_cursor_next (struct dedup_cursor *c, const struct dedup_hash **hash,
                       uint64_t *value, uint64_t *ordinal) MUST_CHECK;

/* --- Writing -------------------------------------------------------------- */

struct dedup_segment_writer;

/* Write a segment to DESC's area; id, host_off, size_bytes, lo, hi (the widest
 * range) and bits are set.  About NR_ENTRIES will come.  STOP (may be NULL)
 * is polled: -EINTR when it turns true. */
int dedup_segment_writer_new (struct io_store *io, uint64_t store_id,
                              const struct dedup_segment_desc *desc,
                              uint64_t nr_entries, const bool *stop,
                              struct dedup_segment_writer **out) MUST_CHECK;
/* In hash order, no hash twice.  -ENOSPC: the area is full. */
int dedup_segment_writer_add (struct dedup_segment_writer *w,
                              const struct dedup_hash *hash,
                              uint64_t value) MUST_CHECK;
/* Without sync.  Sets the counts in *DESC, and bits; *META is the caller's. */
int dedup_segment_writer_finish (struct dedup_segment_writer *w,
                                 struct dedup_segment_desc *desc,
                                 struct dedup_segment_meta **meta) MUST_CHECK;
void dedup_segment_writer_free (struct dedup_segment_writer *w);

#endif
