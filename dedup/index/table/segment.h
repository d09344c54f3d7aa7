/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares a segment of a run: the index entries of one range of hashes, in
 * hash order, immutable on disk (docs/on-disk.md 3.4).  Source: the sorted
 * store of SILT (SOSP 2011) section 4.3; here a page is found by its fence, 32
 * bits of hash in RAM for each page, since hashes are uniform.
 *
 * A segment does not change after open, except that fences and filter are
 * published once: so lookups need no lock.  It is reference counted, so that a
 * dropped one is freed by its last reader.
 */
#ifndef DEDUP_SEGMENT_H
#define DEDUP_SEGMENT_H

#include "fault.h"
#include "filter.h"
#include "io.h"
#include "log-store.h"

struct dedup_segment;

struct dedup_segment_desc {       /* as in the manifest */
  uint64_t id;                    /* of its pages; no id is used twice */
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

/* Returns true if A and B belong to one run (docs/on-disk.md 3.1). */
static inline bool
dedup_same_run (const struct dedup_segment_desc *a,
                const struct dedup_segment_desc *b)
{
  return a->age == b->age && a->level == b->level;
}

/* Returns the first 32 bits of H. */
static inline uint32_t
dedup_hash_prefix (const struct dedup_hash *h)
{
  return (uint32_t) (dedup_hash_word (h, 0) >> 32);
}

/* Returns the bytes to allocate for NR_ENTRIES entries and a filter of BITS
 * bits an entry (0: none), in whole pages. */
uint64_t dedup_segment_size (uint64_t nr_entries, unsigned bits);

/* Returns the bytes that a segment with exactly such a filter takes, in whole
 * pages. */
uint64_t dedup_segment_used (uint64_t nr_entries, uint64_t nr_shards,
                             uint64_t nr_words);

/* Returns the bytes of memory that such a segment takes when it is loaded;
 * rarely it takes some percent more. */
uint64_t dedup_segment_likely_memory (uint64_t nr_entries, unsigned bits);

/* --- Reading ------------------------------------------------------------- */

/* Fences and filter, read from the file or left by the writer. */
struct dedup_segment_meta {
  uint32_t nr_pages;
  uint32_t *fences;               /* prefix of each page's first entry */
  struct dedup_filter filter;     /* bits 0: none */
};
void dedup_segment_meta_free (struct dedup_segment_meta *m);

/* Opens a segment, without fences and filter; reads nothing.  The caller gets
 * one reference. */
int dedup_segment_open (struct io_store *io, uint64_t store_id,
                        const struct dedup_segment_desc *desc,
                        struct dedup_segment **out) MUST_CHECK;
/* Takes a reference, and returns S. */
struct dedup_segment *dedup_segment_get (struct dedup_segment *s);
/* Gives a reference back; the last one frees S.  NULL is fine. */
void dedup_segment_put (struct dedup_segment *s);
/* Returns the number of references. */
unsigned dedup_segment_users (struct dedup_segment *s);
const struct dedup_segment_desc *
dedup_segment_desc (const struct dedup_segment *s);

/* Reads and verifies the first page, fences and filter, and publishes the
 * latter two.  -EBADMSG: something is wrong; the segment is then useless, and
 * lookups miss. */
int dedup_segment_load (struct dedup_segment *s) MUST_CHECK;
/* Publishes the fences and filter that the segment's writer left.  META is the
 * segment's from now on. */
void dedup_segment_adopt (struct dedup_segment *s,
                          struct dedup_segment_meta *meta);
/* Returns fences and filter, or NULL before they are loaded. */
const struct dedup_segment_meta *
dedup_segment_meta (struct dedup_segment *s);
/* Returns true if anything of S was ever unreadable or wrong. */
bool dedup_segment_damaged (struct dedup_segment *s);
/* Returns true if the first page, fences or filter are wrong, so that lookups
 * miss without I/O. */
bool dedup_segment_useless (struct dedup_segment *s);

/* Computes the place in the filter where KEY is to be tested later: see
 * filter.h. Without a filter the test will tell that KEY may be in S. */
void dedup_segment_place (struct dedup_segment *s,
                          const struct dedup_filter_key *key,
                          struct dedup_filter_place *p);

/* Looks HASH up in the pages, without asking the filter.  Returns 1 and *VALUE
 * (perhaps DEDUP_DELETED) if they have it; 0 if not.  Never fails: a page that
 * can't be read or is wrong is a miss.  One page is read, rarely two; before
 * the fences are loaded about three.  The number of pages is added to *READS
 * (may be NULL). */
int dedup_segment_lookup (struct dedup_segment *s,
                          const struct dedup_hash *hash, uint64_t *value,
                          unsigned *reads);

/* Returns the number of pages of entries. */
uint64_t dedup_segment_pages (const struct dedup_segment *s);
/* Reads the entries of one page to V: *NR of them, at most DEDUP_PAGE_ENTRIES.
 * -EBADMSG: the page is wrong. */
int dedup_segment_read (struct dedup_segment *s, uint64_t page,
                        struct dedup_entry *v, size_t *nr) MUST_CHECK;

/* Reads and verifies every page; F says what is wrong. */
int dedup_segment_check (struct dedup_segment *s, struct fault *f)
  MUST_CHECK;

/* Returns an upper bound on the number of entries with prefixes from FROM to
 * TO: too high by two pages at most where S is loaded, all entries where it is
 * not. */
uint64_t dedup_segment_bound (struct dedup_segment *s, uint32_t from,
                              uint32_t to);

/* Returns the bytes of memory that S takes. */
size_t dedup_segment_memory (struct dedup_segment *s);
/* Counts the pages that were read since open, and how many of those reads were
 * false positives of the filter. */
void dedup_segment_reads (struct dedup_segment *s, uint64_t *page_reads,
                          uint64_t *false_positives);

/* --- All of it, in order ------------------------------------------------- */

/* Reads a segment's entries in order; used by one thread. */
struct dedup_cursor;

/* Opens a cursor before the first entry with prefix FROM or above. */
int dedup_cursor_open (struct dedup_segment *s, uint32_t from,
                       struct dedup_cursor **out) MUST_CHECK;
void dedup_cursor_free (struct dedup_cursor *c);
/* Returns 1 and the next entry, 0 at the end, or -errno.  *HASH is valid until
 * the next call.  *ORDINAL is the entry's number in the segment, from 0.
 * Damaged pages are skipped, and the segment is marked as damaged. */
int dedup_cursor_next (struct dedup_cursor *c, const struct dedup_hash **hash,
                       uint64_t *value, uint64_t *ordinal) MUST_CHECK;

/* --- Writing ------------------------------------------------------------- */

struct dedup_segment_writer;

/* Starts to write a segment to DESC's area.  Of DESC, id, host_off, size_bytes,
 * lo, hi (the widest range) and bits are set.  About NR_ENTRIES entries will be
 * added.  *STOP is polled by the functions below, unless STOP is NULL: when it
 * becomes true, they return -EINTR. */
int dedup_segment_writer_new (struct io_store *io, uint64_t store_id,
                              const struct dedup_segment_desc *desc,
                              uint64_t nr_entries, const bool *stop,
                              struct dedup_segment_writer **out) MUST_CHECK;
/* Adds an entry.  Hashes come in order, each once.  -ENOSPC: the area is
 * full. */
int dedup_segment_writer_add (struct dedup_segment_writer *w,
                              const struct dedup_hash *hash,
                              uint64_t value) MUST_CHECK;
/* Writes what is left, without sync.  Sets the counts and bits in *DESC; the
 * caller frees *META, or gives it to dedup_segment_adopt. */
int dedup_segment_writer_finish (struct dedup_segment_writer *w,
                                 struct dedup_segment_desc *desc,
                                 struct dedup_segment_meta **meta) MUST_CHECK;
void dedup_segment_writer_free (struct dedup_segment_writer *w);

#endif
