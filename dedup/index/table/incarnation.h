/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares an incarnation: an immutable hash table on disk with a filter of
 * tags in RAM (docs/on-disk.md 3.3).  Source: BufferHash (NSDI 2010) for
 * incarnations, SILT (SOSP 2011) section 4.2 for the filter.
 *
 * An incarnation does not change after open, except that its filter is
 * published once: so lookups need no lock.  It is reference counted, so that a
 * dropped one is freed by its last reader.
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

/* Returns the bytes that an incarnation of this order takes, in whole pages. */
uint64_t dedup_incarnation_size (unsigned order);

/* Writes LS as an incarnation to DESC's area, page by page, without sync, and
 * fills in DESC's order and counts.  -EINTR: *STOP, which is polled (NULL: it
 * is not), became true.  LS must not change meanwhile; lookups in it are
 * fine. */
int dedup_incarnation_write (struct io_store *io, uint64_t store_id,
                             const struct dedup_log_store *ls,
                             struct dedup_incarnation_desc *desc,
                             const bool *stop) MUST_CHECK;

/* Opens an incarnation, without its filter; reads nothing.  The caller gets one
 * reference. */
int dedup_incarnation_open (struct io_store *io, uint64_t store_id,
                            const struct dedup_incarnation_desc *desc,
                            struct dedup_incarnation **out) MUST_CHECK;
/* Takes a reference, and returns INC. */
struct dedup_incarnation *
dedup_incarnation_get (struct dedup_incarnation *inc);
/* Gives a reference back; the last one frees INC.  NULL is fine. */
void dedup_incarnation_put (struct dedup_incarnation *inc);
/* Returns the number of references. */
unsigned dedup_incarnation_users (struct dedup_incarnation *inc);
const struct dedup_incarnation_desc *
dedup_incarnation_desc (const struct dedup_incarnation *inc);

/* Reads and verifies page 0 and the filter, and publishes the filter.
 * -EBADMSG: magic, ids, sizes or a checksum are wrong; the incarnation is then
 * useless, and lookups miss without I/O. */
int dedup_incarnation_load (struct dedup_incarnation *inc) MUST_CHECK;
bool dedup_incarnation_loaded (struct dedup_incarnation *inc);

/* Looks HASH up.  Returns 1 and *VALUE (perhaps DEDUP_DELETED) if it is there;
 * 0 if not; -errno.  A page that fails its checksum counts as a miss (the
 * index is advice).  Before the filter is loaded, the pages of both buckets
 * are read.  The number of pages read is added to *READS (may be NULL). */
int dedup_incarnation_lookup (struct dedup_incarnation *inc,
                              const struct dedup_hash *hash,
                              uint64_t *value, unsigned *reads) MUST_CHECK;

/* Returns the number of table pages. */
uint64_t dedup_incarnation_pages (const struct dedup_incarnation *inc);
/* Reads the entries of one table page to V: *NR of them, at most
 * DEDUP_PAGE_ENTRIES.  -EBADMSG: the page is wrong. */
int dedup_incarnation_read (struct dedup_incarnation *inc, uint64_t page,
                            struct dedup_entry *v, size_t *nr) MUST_CHECK;

/* Reads and verifies every page; F says what is wrong. */
int dedup_incarnation_check (struct dedup_incarnation *inc, struct fault *f)
  MUST_CHECK;

/* Returns true if a table page, the filter or page 0 was ever unreadable or
 * wrong.  A miss may then be false, and a hit in an older table out of date, so
 * that the owner must compare the bytes of such a hit. */
bool dedup_incarnation_damaged (struct dedup_incarnation *inc);

/* Returns the bytes of memory that INC takes. */
size_t dedup_incarnation_memory (struct dedup_incarnation *inc);

/* Counts the table pages that lookups read since open, and how many of those
 * reads were false positives of the loaded filter. */
void dedup_incarnation_reads (struct dedup_incarnation *inc,
                              uint64_t *page_reads,
                              uint64_t *false_positives);

#endif
