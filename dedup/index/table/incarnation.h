/* SPDX-License-Identifier: BSD-3-Clause */
/* An incarnation: an immutable hash table on disk with a filter of tags in
 * RAM (docs/on-disk.md 3.3).  Source: BufferHash (NSDI 2010) for
 * incarnations, SILT (SOSP 2011) section 4.2 for the filter.
 *
 * Immutable after open but for the filter, which appears once; lookups need
 * no lock.  Reference counted, so that a dropped one dies after its last
 * reader.
 */
#ifndef DEDUP_INCARNATION_H
#define DEDUP_INCARNATION_H

#include "fault.h"
#include "io.h"
#include "log-store.h"

struct dedup_incarnation;

struct dedup_incarnation_desc {     /* as in the configuration */
  uint64_t id;
  uint64_t host_off;
  uint64_t size_bytes;              /* of its area; may exceed the need */
  uint32_t order;
  uint32_t nr_entries;
  uint32_t nr_deleted;
};

/* Bytes that an incarnation of this order takes, in whole pages. */
uint64_t dedup_incarnation_size (unsigned order);

/* Write LS as an incarnation to DESC's area, page by page, without sync.
 * Fills in order and counts.  STOP (may be NULL) is polled: when it turns
 * true, -EINTR.  LS must not change meanwhile; lookups in it are fine. */
int dedup_incarnation_write (struct io_store *io, uint64_t store_id,
                             const struct dedup_log_store *ls,
                             struct dedup_incarnation_desc *desc,
                             const bool *stop) MUST_CHECK;

/* An incarnation whose filter is not loaded yet; reads nothing.  One
 * reference is the caller's. */
int dedup_incarnation_open (struct io_store *io, uint64_t store_id,
                            const struct dedup_incarnation_desc *desc,
                            struct dedup_incarnation **out) MUST_CHECK;
struct dedup_incarnation *
dedup_incarnation_get (struct dedup_incarnation *inc);
void dedup_incarnation_put (struct dedup_incarnation *inc);
unsigned dedup_incarnation_users (struct dedup_incarnation *inc);
const struct dedup_incarnation_desc *
dedup_incarnation_desc (const struct dedup_incarnation *inc);

/* Read and verify page 0 and the filter, and publish it.  -EBADMSG: wrong
 * magic, ids or checksum; the incarnation is then useless and lookups miss
 * without I/O. */
int dedup_incarnation_load (struct dedup_incarnation *inc) MUST_CHECK;
bool dedup_incarnation_loaded (struct dedup_incarnation *inc);

/* 1 and *VALUE (perhaps DEDUP_DELETED) if found; 0 if not; -errno.  Before
 * the filter is loaded both bucket pages are read: slower, as exact.  A page
 * that fails its checksum counts as a miss (the index is advice).  The number
 * of pages read is added to *READS (may be NULL). */
int dedup_incarnation_lookup (struct dedup_incarnation *inc,
                              const struct dedup_hash *hash,
                              uint64_t *value, unsigned *reads) MUST_CHECK;

/* Its table pages, and the entries of one of them (DEDUP_PAGE_ENTRIES at the
 * most).  -EBADMSG: the page is wrong. */
uint64_t dedup_incarnation_pages (const struct dedup_incarnation *inc);
int dedup_incarnation_read (struct dedup_incarnation *inc, uint64_t page,
                            struct dedup_entry *v, size_t *nr) MUST_CHECK;

/* Read every page and verify everything; fault says what is wrong. */
int dedup_incarnation_check (struct dedup_incarnation *inc, struct fault *f)
  MUST_CHECK;

/* Was a page, the filter or page 0 ever unreadable or wrong?  A miss may then
 * be false, and what an older incarnation says about the hash out of date:
 * such a hit must be compared even with verify=off. */
bool dedup_incarnation_damaged (struct dedup_incarnation *inc);

size_t dedup_incarnation_memory (struct dedup_incarnation *inc);

/* Table pages read by lookups since open, and how many of those the loaded
 * filter asked for in vain. */
void dedup_incarnation_reads (struct dedup_incarnation *inc,
                              uint64_t *page_reads,
                              uint64_t *false_positives);

#endif
