/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads an incarnation on disk, with its filter in RAM (docs/on-disk.md 3.3).
 *
 * A lookup returns the value that was written for exactly this hash, or
 * misses.  Whatever happened to the bytes on disk, it never returns another
 * value, because every page that is used was verified as a whole.  A miss may
 * be false where pages are damaged: the index is advice.  That may uncover an
 * entry of an older table, so dedup_incarnation_damaged warns those who would
 * trust hits without comparing bytes.
 *
 * Threads: everything is constant after open, except the filter, which is
 * published by one compare-and-exchange (release) and read with acquire, and
 * except counters and marks, which are atomic.  No locks.
 *
 * incarnation-write.c writes incarnations.
 *
 * Left out: keeping pages in memory.  The filter lets about one in 4000 lookups
 * that miss reach the disk, and a hit is followed by a read of the data anyway.
 */
#include "aligned.h"
#include "incarnation-page.h"

#include <assert.h>
#include <inttypes.h>

#include "page-hole.h"

struct dedup_incarnation {
  /* Constant after open: */
  struct io_store *io;
  uint64_t store_id;
  struct dedup_incarnation_desc desc;
  struct inc_layout layout;

  /* Atomic: */
  int refs;
  uint16_t *filter;           /* tags, in the CPU's byte order; NULL until
                               * loaded */
  bool useless;               /* page 0 or the filter is wrong */
  bool damaged;               /* a page can't be read or is wrong */
  uint64_t page_reads, false_positives;
};

/* --- Lifetime ------------------------------------------------------------ */

int
dedup_incarnation_open (struct io_store *io, uint64_t store_id,
                        const struct dedup_incarnation_desc *desc,
                        struct dedup_incarnation **out)
{
  struct dedup_incarnation *inc;
  int r;

  r = inc_check_area (desc, desc->order);
  if (r < 0)
    return r;
  inc = calloc (1, sizeof *inc);
  if (inc == NULL)
    return -ENOMEM;
  inc->io = io;
  inc->store_id = store_id;
  inc->desc = *desc;
  inc->layout = inc_layout_of (desc->order);
  inc->refs = 1;
  *out = inc;
  return 0;
}

struct dedup_incarnation *
dedup_incarnation_get (struct dedup_incarnation *inc)
{
  /* Relaxed: the caller has a reference already. */
  __atomic_add_fetch (&inc->refs, 1, __ATOMIC_RELAXED);
  return inc;
}

void
dedup_incarnation_put (struct dedup_incarnation *inc)
{
  int refs;

  if (inc == NULL)
    return;
  refs = __atomic_sub_fetch (&inc->refs, 1, __ATOMIC_ACQ_REL);
  assert (refs >= 0);
  if (refs > 0)
    return;
  free (inc->filter);
  free (inc);
}

unsigned
dedup_incarnation_users (struct dedup_incarnation *inc)
{
  return (unsigned) __atomic_load_n (&inc->refs, __ATOMIC_ACQUIRE);
}

const struct dedup_incarnation_desc *
dedup_incarnation_desc (const struct dedup_incarnation *inc)
{
  return &inc->desc;
}

static uint16_t *
filter_of (struct dedup_incarnation *inc)
{
  return __atomic_load_n (&inc->filter, __ATOMIC_ACQUIRE);
}

bool
dedup_incarnation_loaded (struct dedup_incarnation *inc)
{
  return filter_of (inc) != NULL;
}

bool
dedup_incarnation_damaged (struct dedup_incarnation *inc)
{
  return __atomic_load_n (&inc->damaged, __ATOMIC_RELAXED);
}

static void
mark_damaged (struct dedup_incarnation *inc)
{
  __atomic_store_n (&inc->damaged, true, __ATOMIC_RELAXED);
}

size_t
dedup_incarnation_memory (struct dedup_incarnation *inc)
{
  return sizeof *inc + (filter_of (inc) ?
                        inc->layout.filter_pages * DEDUP_PAGE_SIZE : 0);
}

void
dedup_incarnation_reads (struct dedup_incarnation *inc, uint64_t *page_reads,
                         uint64_t *false_positives)
{
  *page_reads = __atomic_load_n (&inc->page_reads, __ATOMIC_RELAXED);
  *false_positives = __atomic_load_n (&inc->false_positives,
                                      __ATOMIC_RELAXED);
}

/* --- Page 0 and the filter ----------------------------------------------- */

/* Returns NULL, or what is wrong with page 0. */
static const char *
head_fault (const struct dedup_incarnation *inc, struct inc_wire_head *head)
{
  const struct dedup_incarnation_desc *d = &inc->desc;

  if (be64_load (head->magic) != INC_HEAD_MAGIC)
    return "magic";
  if (be64_load (head->checksum) != dedup_page_checksum (head, &head->checksum))
    return "checksum";
  if (be64_load (head->store_id) != inc->store_id)
    return "store id";
  if (be64_load (head->id) != d->id)
    return "incarnation id";
  if (be32_load (head->order) != d->order ||
      be32_load (head->filter_pages) != inc->layout.filter_pages ||
      be64_load (head->table_pages) != inc->layout.table_pages)
    return "size";
  if (be32_load (head->nr_entries) != d->nr_entries ||
      be32_load (head->nr_deleted) != d->nr_deleted)
    return "number of entries";
  return NULL;
}

/* Reads and verifies page 0 and the filter.  The caller frees *TAGS, which are
 * in the CPU's byte order; *WHY is set with -EBADMSG. */
static int
read_filter (struct dedup_incarnation *inc, uint16_t **tags,
             const char **why)
{
  const size_t len = inc->layout.filter_pages * DEDUP_PAGE_SIZE;
  CLEANUP_FREE uint16_t *buf = NULL;
  struct inc_wire_head head;
  be16 tag;
  size_t i;
  int r;

  r = io_pread (inc->io, &head, sizeof head, inc->desc.host_off);
  if (r < 0)
    return r;
  *why = head_fault (inc, &head);
  if (*why == NULL &&
      dedup_page_in_hole (inc->io, inc_table_off (&inc->desc, &inc->layout, 0),
                          inc->layout.table_pages))
    *why = "size: pages of it are a hole";
  if (*why)
    return -EBADMSG;
  buf = aligned_new (len);           /* 8 MiB at most */
  if (buf == NULL)
    return -ENOMEM;
  r = io_pread (inc->io, buf, len, inc->desc.host_off + sizeof head);
  if (r < 0)
    return r;
  *why = "filter checksum";
  if (dedup_checksum (buf, len) != be64_load (head.filter_checksum))
    return -EBADMSG;
  for (i = 0; i < len / sizeof tag; ++i) {
    memcpy (&tag, &buf[i], sizeof tag);
    buf[i] = be16_load (tag);
  }
  *tags = buf;
  buf = NULL;
  return 0;
}

int
dedup_incarnation_load (struct dedup_incarnation *inc)
{
  CLEANUP_FREE uint16_t *tags = NULL;
  uint16_t *none = NULL;
  const char *why;
  int r;

  if (dedup_incarnation_loaded (inc))
    return 0;
  r = read_filter (inc, &tags, &why);
  if (r == -EBADMSG) {
    mark_damaged (inc);
    __atomic_store_n (&inc->useless, true, __ATOMIC_RELAXED);
  }
  if (r < 0)
    return r;
  /* If another thread was faster, its filter is the same: free this one. */
  if (__atomic_compare_exchange_n (&inc->filter, &none, tags, false,
                                   __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    tags = NULL;
  return 0;
}

/* --- Lookup -------------------------------------------------------------- */

/* Returns NULL, or what is wrong with table page NUMBER. */
static const char *
page_fault (const struct dedup_incarnation *inc, uint64_t number,
            struct inc_wire_page *page)
{
  if (be64_load (page->magic) != INC_PAGE_MAGIC)
    return "magic";
  if (be64_load (page->checksum) != dedup_page_checksum (page, &page->checksum))
    return "checksum";
  if (be64_load (page->id) != inc->desc.id)
    return "incarnation id";
  if (be64_load (page->number) != number)
    return "page number";
  return NULL;
}

/* Reads and verifies a table page.  Returns 1, 0 if it is wrong, or -errno. */
static int
read_page (struct dedup_incarnation *inc, uint64_t number,
           struct inc_wire_page *page)
{
  int r;

  __atomic_add_fetch (&inc->page_reads, 1, __ATOMIC_RELAXED);
  r = io_pread (inc->io, page, sizeof *page,
                inc_table_off (&inc->desc, &inc->layout, number));
  if (r == 0 && page_fault (inc, number, page) == NULL)
    return 1;
  mark_damaged (inc);
  return r;
}

static bool
find_in_bucket (const struct inc_wire_page *page, uint64_t bucket,
                const struct dedup_hash *hash, uint64_t *value)
{
  const struct inc_wire_slot *s = page->slots[bucket % INC_PAGE_BUCKETS];
  unsigned i;

  for (i = 0; i < DEDUP_BUCKET_SLOTS; ++i) {
    const uint64_t v = be64_load (s[i].value);

    if (v != 0 && dedup_hash_equal (&s[i].hash, hash)) {
      *value = v;
      return true;
    }
  }
  return false;
}

/* Returns true if the bucket may have a hash with this tag. */
static bool
tag_in_bucket (const uint16_t *filter, uint64_t bucket, uint16_t tag)
{
  const uint16_t *t = filter + bucket * DEDUP_BUCKET_SLOTS;

  return t[0] == tag || t[1] == tag || t[2] == tag || t[3] == tag;
}

/* Looks HASH up in page NUMBER, in the buckets that MAY_HAVE it and lie there.
 * Returns 1 if found, 0 if not, or -errno. */
static int
lookup_in_page (struct dedup_incarnation *inc, uint64_t number,
                const uint64_t bucket[2], const bool may_have[2],
                const struct dedup_hash *hash, uint64_t *value,
                unsigned *reads)
{
  CACHE_ALIGNED struct inc_wire_page page;
  unsigned i;
  int r;

  if (reads)
    ++*reads;
  r = read_page (inc, number, &page);
  if (r <= 0)
    return r;
  for (i = 0; i < 2; ++i)
    if (may_have[i] && bucket[i] / INC_PAGE_BUCKETS == number &&
        find_in_bucket (&page, bucket[i], hash, value))
      return 1;
  if (dedup_incarnation_loaded (inc))
    __atomic_add_fetch (&inc->false_positives, 1, __ATOMIC_RELAXED);
  return 0;
}

int
dedup_incarnation_lookup (struct dedup_incarnation *inc,
                          const struct dedup_hash *hash, uint64_t *value,
                          unsigned *reads)
{
  const uint16_t *filter = filter_of (inc);
  const uint16_t tag = inc_tag_of (hash);
  uint64_t bucket[2];
  bool may_have[2];
  unsigned i;
  int r;

  if (__atomic_load_n (&inc->useless, __ATOMIC_RELAXED))
    return 0;
  dedup_buckets (hash, inc->desc.order, bucket);
  for (i = 0; i < 2; ++i)
    may_have[i] = filter == NULL || tag_in_bucket (filter, bucket[i], tag);
  for (i = 0; i < 2; ++i) {
    const uint64_t number = bucket[i] / INC_PAGE_BUCKETS;

    /* If both buckets are in one page, it was read for the first. */
    if (!may_have[i] ||
        (i == 1 && may_have[0] && number == bucket[0] / INC_PAGE_BUCKETS))
      continue;
    r = lookup_in_page (inc, number, bucket, may_have, hash, value, reads);
    if (r != 0)
      return r;
  }
  return 0;
}

uint64_t
dedup_incarnation_pages (const struct dedup_incarnation *inc)
{
  return inc->layout.table_pages;
}

int
dedup_incarnation_read (struct dedup_incarnation *inc, uint64_t page,
                        struct dedup_entry *v, size_t *nr)
{
  struct inc_wire_page buf;
  size_t i;
  int r = read_page (inc, page, &buf);

  if (r <= 0)
    return r < 0 ? r : -EBADMSG;
  *nr = 0;
  for (i = 0; i < INC_PAGE_BUCKETS * DEDUP_BUCKET_SLOTS; i++) {
    const struct inc_wire_slot *s = &buf.slots[0][0] + i;

    if (be64_load (s->value) != 0)
      v[(*nr)++] = (struct dedup_entry) { s->hash, be64_load (s->value) };
  }
  return 0;
}

/* --- Check --------------------------------------------------------------- */

struct counts {
  uint32_t entries, deleted;
};

/* Returns NULL, or what is wrong with a slot of BUCKET; TAG is its tag in the
 * filter.  Counts its entry in N. */
static const char *
slot_fault (const struct dedup_incarnation *inc, uint64_t bucket,
            uint16_t tag, const struct inc_wire_slot *s, struct counts *n)
{
  static const struct dedup_hash zero;
  const uint64_t v = be64_load (s->value);
  uint64_t b[2];

  if (v == 0)
    return tag == 0 && dedup_hash_equal (&s->hash, &zero) ?
      NULL : "empty slot is not empty";
  if (tag != inc_tag_of (&s->hash))
    return "tag differs from the hash";
  dedup_buckets (&s->hash, inc->desc.order, b);
  if (bucket != b[0] && bucket != b[1])
    return "hash is in a wrong bucket";
  n->entries++;
  n->deleted += v == DEDUP_DELETED;
  return NULL;
}

static int
check_page (struct dedup_incarnation *inc, const uint16_t *tags,
            uint64_t number, struct counts *n, struct fault *f)
{
  const uint64_t off = inc_table_off (&inc->desc, &inc->layout, number);
  const uint64_t first = number * INC_PAGE_BUCKETS * DEDUP_BUCKET_SLOTS;
  CACHE_ALIGNED struct inc_wire_page page;
  const char *why;
  uint64_t i;
  int r;

  r = io_pread (inc->io, &page, sizeof page, off);
  if (r < 0)
    return fault_io (f, -r, off, "reading incarnation %" PRIu64,
                     inc->desc.id);
  why = page_fault (inc, number, &page);
  for (i = 0; why == NULL && i < INC_PAGE_BUCKETS * DEDUP_BUCKET_SLOTS &&
         first + i < inc->layout.nr_slots; ++i)
    why = slot_fault (inc, (first + i) / DEDUP_BUCKET_SLOTS, tags[first + i],
                      &page.slots[0][0] + i, n);
  if (why)
    return fault_corrupt (f, off, "incarnation %" PRIu64 ", table page %"
                          PRIu64 ": %s", inc->desc.id, number, why);
  return 0;
}

static int
check_filter (struct dedup_incarnation *inc, uint16_t **tags, struct fault *f)
{
  const char *why = NULL;
  int r;

  r = read_filter (inc, tags, &why);
  if (r == -EBADMSG)
    return fault_corrupt (f, inc->desc.host_off, "incarnation %" PRIu64
                          ", first page: wrong %s", inc->desc.id, why);
  if (r < 0)
    return fault_io (f, -r, inc->desc.host_off, "reading incarnation %"
                     PRIu64, inc->desc.id);
  return 0;
}

int
dedup_incarnation_check (struct dedup_incarnation *inc, struct fault *f)
{
  CLEANUP_FREE uint16_t *tags = NULL;
  struct counts n = { 0, 0 };
  uint64_t i;
  int r;

  r = check_filter (inc, &tags, f);
  for (i = 0; r == 0 && i < inc->layout.table_pages; ++i)
    r = check_page (inc, tags, i, &n, f);
  if (r < 0)
    return r;
  if (n.entries != inc->desc.nr_entries || n.deleted != inc->desc.nr_deleted)
    return fault_corrupt (f, inc->desc.host_off, "incarnation %" PRIu64
                          ": wrong number of entries", inc->desc.id);
  return 0;
}
