/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads a segment of a run on disk, with its fences and its filter in RAM
 * (docs/on-disk.md 3.4).
 *
 * It promises what an incarnation does (incarnation.c): a lookup returns the
 * value that was written for exactly this hash, or misses.  Whatever happened
 * to the bytes on disk, it never returns another value, because each page that
 * is used was verified as a whole.  A miss may be false where pages are
 * damaged.
 *
 * A lookup reads the last page whose first entry's prefix is not above the
 * key's. The page before is read as well only where that prefix equals the
 * key's and that entry's hash is above the key's.  Before the fences are
 * loaded, pages are read at interpolated places until the right one is found.
 *
 * Threads: as in incarnation.c.  segment-write.c writes segments,
 * segment-read.c reads them in order.
 */
#include "aligned.h"
#include "segment-page.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "page-hole.h"

struct dedup_segment {
  /* Constant after open: */
  struct io_store *io;
  uint64_t store_id;
  struct dedup_segment_desc desc;
  uint64_t nr_pages;

  /* Atomic: */
  unsigned refs;
  struct dedup_segment_meta *meta;   /* NULL until loaded */
  bool useless, damaged;
  uint64_t page_reads, false_positives;
};

_Static_assert (sizeof (struct dedup_segment) <= 128, "likely_memory counts so");

/* --- Lifetime ------------------------------------------------------------ */

int
dedup_segment_open (struct io_store *io, uint64_t store_id,
                    const struct dedup_segment_desc *desc,
                    struct dedup_segment **out)
{
  struct dedup_segment *s;

  if (desc->size_bytes < dedup_segment_size (desc->nr_entries, 0) ||
      desc->lo > desc->hi || desc->bits > DEDUP_FILTER_MAX_BITS)
    return -EINVAL;
  s = calloc (1, sizeof *s);
  if (s == NULL)
    return -ENOMEM;
  s->io = io;
  s->store_id = store_id;
  s->desc = *desc;
  s->nr_pages = seg_pages (desc->nr_entries);
  s->refs = 1;
  *out = s;
  return 0;
}

struct dedup_segment *
dedup_segment_get (struct dedup_segment *s)
{
  __atomic_add_fetch (&s->refs, 1, __ATOMIC_RELAXED);
  return s;
}

void
dedup_segment_put (struct dedup_segment *s)
{
  if (s == NULL || __atomic_sub_fetch (&s->refs, 1, __ATOMIC_ACQ_REL) > 0)
    return;
  dedup_segment_meta_free (s->meta);
  free (s);
}

unsigned
dedup_segment_users (struct dedup_segment *s)
{
  return __atomic_load_n (&s->refs, __ATOMIC_ACQUIRE);
}

const struct dedup_segment_desc *
dedup_segment_desc (const struct dedup_segment *s)
{
  return &s->desc;
}

struct io_store *
seg_io (struct dedup_segment *s)
{
  return s->io;
}

static inline const struct dedup_segment_meta *
meta_of (const struct dedup_segment *s)
{
  return __atomic_load_n (&s->meta, __ATOMIC_ACQUIRE);
}

const struct dedup_segment_meta *
dedup_segment_meta (struct dedup_segment *s)
{
  return meta_of (s);
}

bool
dedup_segment_damaged (struct dedup_segment *s)
{
  return __atomic_load_n (&s->damaged, __ATOMIC_RELAXED);
}

bool
dedup_segment_useless (struct dedup_segment *s)
{
  return __atomic_load_n (&s->useless, __ATOMIC_RELAXED);
}

void
seg_mark_damaged (struct dedup_segment *s)
{
  __atomic_store_n (&s->damaged, true, __ATOMIC_RELAXED);
}

size_t
dedup_segment_memory (struct dedup_segment *s)
{
  const struct dedup_segment_meta *m = dedup_segment_meta (s);
  size_t size = sizeof *s;

  if (m)
    size += sizeof *m + m->nr_pages * sizeof m->fences[0] +
      (m->filter.bits ? dedup_filter_memory (&m->filter) : 0);
  return size;
}

void
dedup_segment_reads (struct dedup_segment *s, uint64_t *page_reads,
                     uint64_t *false_positives)
{
  *page_reads = __atomic_load_n (&s->page_reads, __ATOMIC_RELAXED);
  *false_positives = __atomic_load_n (&s->false_positives, __ATOMIC_RELAXED);
}

/* --- First page, fences, filter ------------------------------------------ */

/* Returns NULL, or what is wrong with the first page.  A filter may have twice
 * as many slots as entries, and four blocks for each shard that has entries,
 * but not more; filter-build.c makes fewer. */
static const char *
head_fault (const struct dedup_segment *s, struct seg_wire_head *h)
{
  const struct dedup_segment_desc *d = &s->desc;
  const uint32_t bits = be32_load (h->bits);
  const uint64_t nr_shards = be32_load (h->nr_shards);
  const uint64_t nr_words = be64_load (h->nr_words);

  if (be64_load (h->magic) != SEG_HEAD_MAGIC)
    return "magic";
  if (be64_load (h->checksum) != dedup_page_checksum (h, &h->checksum))
    return "checksum";
  if (be64_load (h->store_id) != s->store_id)
    return "store id";
  if (be64_load (h->id) != d->id)
    return "segment id";
  if (be32_load (h->nr_entries) != d->nr_entries ||
      be32_load (h->nr_deleted) != d->nr_deleted)
    return "number of entries";
  if (be32_load (h->lo) > d->lo || be32_load (h->hi) < d->hi)
    return "range";
  if (bits != d->bits || (bits == 0) != (nr_shards == 0) ||
      (bits == 0 && nr_words != 0) || nr_words >> 40 != 0 ||
      nr_shards > DEDUP_MAX_SHARDS ||
      nr_words > bits * (d->nr_entries / 32 +
                         4 * MIN_OF (nr_shards, d->nr_entries)))
    return "filter";
  if (1 + s->nr_pages + seg_meta_pages (s->nr_pages, nr_shards, nr_words) >
      d->size_bytes / DEDUP_PAGE_SIZE)
    return "size";
  return NULL;
}

/* Returns true if the blocks of all shards lie inside the words, which a test
 * of the filter relies on. */
static bool
shards_fit (const struct dedup_filter *f, uint64_t nr_words)
{
  uint32_t i;

  for (i = 0; i < f->nr_shards; i++) {
    const uint32_t first = f->shards[i].first_block;
    const uint32_t next = f->shards[i + 1].first_block;

    if (next < first || (next > first && next - first < 2))
      return false;
  }
  return f->shards[0].first_block == 0 &&
    dedup_filter_words (f) == nr_words;
}

/* Decodes the filter at P; *WHY is set with -EBADMSG. */
static int
decode_filter (const struct seg_wire_head *h, const uint8_t *p,
               struct dedup_filter *f, const char **why)
{
  const uint64_t nr_words = be64_load (h->nr_words);
  uint64_t i;
  int r;

  f->lo = be32_load (h->lo);
  f->hi = be32_load (h->hi);
  f->bits = be32_load (h->bits);
  f->nr_shards = be32_load (h->nr_shards);
  dedup_filter_init (f);
  for (i = 0; i <= f->nr_shards; i++, p += 8) {
    be32 v[2];

    memcpy (v, p, sizeof v);
    f->shards[i].first_block = be32_load (v[0]);
    f->shards[i].seed = be32_load (v[1]);
  }
  *why = "filter";
  if (!shards_fit (f, nr_words))
    return -EBADMSG;
  r = dedup_filter_alloc (f);
  if (r < 0)
    return r;
  for (i = 0; i < f->shards[f->nr_shards].first_block; i++) {
    uint64_t words[DEDUP_FILTER_MAX_BITS];
    unsigned c;

    for (c = 0; c < f->bits; c++, p += 8) {
      be64 v;

      memcpy (&v, p, sizeof v);
      words[c] = be64_load (v);
    }
    dedup_filter_put (f, i, words);
  }
  return 0;
}

/* Decodes the fences at P.  Returns NULL, or what is wrong: they must be in
 * order, so that they can be searched by halves. */
static const char *
decode_fences (const uint8_t *p, struct dedup_segment_meta *m)
{
  uint32_t i;

  for (i = 0; i < m->nr_pages; i++, p += 4) {
    be32 v;

    memcpy (&v, p, sizeof v);
    m->fences[i] = be32_load (v);
    if (i > 0 && m->fences[i] < m->fences[i - 1])
      return "order of fences";
  }
  return NULL;
}

static int
alloc_meta (const struct dedup_segment *s, const struct seg_wire_head *h,
            struct dedup_segment_meta *m)
{
  const uint64_t nr_shards = be32_load (h->nr_shards);

  m->nr_pages = (uint32_t) s->nr_pages;
  /* 4 bytes for each page that the file has. */
  m->fences = malloc (MAX_OF (1, s->nr_pages) * sizeof *m->fences);
  if (m->fences == NULL)
    return -ENOMEM;
  if (nr_shards == 0)
    return 0;
  /* At most DEDUP_MAX_SHARDS + 1, 32 KiB. */
  m->filter.shards = calloc (nr_shards + 1, sizeof *m->filter.shards);
  return m->filter.shards ? 0 : -ENOMEM;
}

/* Reads and decodes fences and filter; *WHY is set with -EBADMSG. */
static int
fill_meta (struct dedup_segment *s, const struct seg_wire_head *h,
           struct dedup_segment_meta *m, const char **why)
{
  const size_t len = seg_meta_pages (s->nr_pages, be32_load (h->nr_shards),
                                     be64_load (h->nr_words)) *
    DEDUP_PAGE_SIZE;
  /* At most 4.1 bytes for each entry that the file has, and 2.1 MiB. */
  CLEANUP_FREE uint8_t *buf = aligned_new (len);
  int r;

  if (buf == NULL)
    return -ENOMEM;
  r = io_pread (s->io, buf, len, seg_page_off (&s->desc, s->nr_pages));
  if (r < 0)
    return r;
  *why = "checksum of the filter";
  if (dedup_checksum (buf, len) != be64_load (h->meta_checksum))
    return -EBADMSG;
  r = alloc_meta (s, h, m);
  if (r < 0)
    return r;
  *why = decode_fences (buf, m);
  if (*why)
    return -EBADMSG;
  return be32_load (h->nr_shards) == 0 ? 0
    : decode_filter (h, buf + s->nr_pages * 4, &m->filter, why);
}

/* Reads and verifies the first page, fences and filter.  The caller frees *OUT;
 * *WHY is set with -EBADMSG. */
static int
read_meta (struct dedup_segment *s, struct dedup_segment_meta **out,
           const char **why)
{
  CLEANUP_FREE struct seg_wire_head *h = malloc (sizeof *h);
  struct dedup_segment_meta *m;
  int r;

  if (h == NULL)
    return -ENOMEM;
  r = io_pread (s->io, h, sizeof *h, s->desc.host_off);
  if (r < 0)
    return r;
  *why = head_fault (s, h);
  if (*why == NULL && dedup_page_in_hole (s->io, seg_page_off (&s->desc, 0),
                                          s->nr_pages))
    *why = "number of entries: pages of them are a hole";
  if (*why)
    return -EBADMSG;
  m = calloc (1, sizeof *m);
  if (m == NULL)
    return -ENOMEM;
  r = fill_meta (s, h, m, why);
  if (r < 0) {
    dedup_segment_meta_free (m);
    return r;
  }
  *out = m;
  return 0;
}

void
dedup_segment_adopt (struct dedup_segment *s, struct dedup_segment_meta *meta)
{
  struct dedup_segment_meta *none = NULL;

  if (!__atomic_compare_exchange_n (&s->meta, &none, meta, false,
                                    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    dedup_segment_meta_free (meta);
}

int
dedup_segment_load (struct dedup_segment *s)
{
  struct dedup_segment_meta *m = NULL;
  const char *why = NULL;
  int r;

  if (dedup_segment_meta (s))
    return 0;
  r = read_meta (s, &m, &why);
  if (r == -EBADMSG) {
    seg_mark_damaged (s);
    __atomic_store_n (&s->useless, true, __ATOMIC_RELAXED);
  }
  if (r == 0)
    dedup_segment_adopt (s, m);
  return r;
}

/* --- Pages --------------------------------------------------------------- */

static uint64_t
entries_in_page (const struct dedup_segment *s, uint64_t number)
{
  return MIN_OF (SEG_PAGE_ENTRIES,
                 s->desc.nr_entries - number * SEG_PAGE_ENTRIES);
}

const char *
seg_page_fault (const struct dedup_segment *s, uint64_t number,
                struct seg_wire_page *page)
{
  if (be64_load (page->magic) != SEG_PAGE_MAGIC)
    return "magic";
  if (be64_load (page->checksum) != dedup_page_checksum (page, &page->checksum))
    return "checksum";
  if (be64_load (page->id) != s->desc.id)
    return "segment id";
  if (be32_load (page->number) != number)
    return "page number";
  if (be32_load (page->nr_entries) != entries_in_page (s, number))
    return "number of entries";
  return NULL;
}

/* Reads and verifies a page.  Returns false if that fails, and marks S. */
static bool
read_page (struct dedup_segment *s, uint64_t number,
           struct seg_wire_page *page, unsigned *reads)
{
  __atomic_add_fetch (&s->page_reads, 1, __ATOMIC_RELAXED);
  if (reads)
    ++*reads;
  if (io_pread (s->io, page, sizeof *page, seg_page_off (&s->desc, number))
      == 0 && seg_page_fault (s, number, page) == NULL)
    return true;
  seg_mark_damaged (s);
  return false;
}

/* Returns -1, 0 or 1 if H is below, among or above the page's entries. */
static int
side_of_page (const struct dedup_segment *s, uint64_t number,
              const struct seg_wire_page *page, const struct dedup_hash *h)
{
  const uint64_t nr = entries_in_page (s, number);

  if (memcmp (h, &page->entries[0].hash, sizeof *h) < 0)
    return -1;
  return memcmp (h, &page->entries[nr - 1].hash, sizeof *h) > 0;
}

static bool
find_in_page (const struct dedup_segment *s, uint64_t number,
              const struct seg_wire_page *page, const struct dedup_hash *h,
              uint64_t *value)
{
  uint64_t lo = 0, hi = entries_in_page (s, number), mid;
  int c;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    c = memcmp (h, &page->entries[mid].hash, sizeof *h);
    if (c == 0) {
      *value = be64_load (page->entries[mid].value);
      return *value != 0;
    }
    if (c < 0)
      hi = mid;
    else
      lo = mid + 1;
  }
  return false;
}

/* --- Lookup -------------------------------------------------------------- */

/* Returns the place of PREFIX among NR pages that are spread evenly over the
 * prefixes from LO to HI. */
static uint64_t
interpolate (uint32_t prefix, uint32_t lo, uint32_t hi, uint64_t nr)
{
  __extension__ unsigned __int128 product;

  if (prefix <= lo)
    return 0;
  if (prefix >= hi)
    return nr - 1;
  product = prefix - lo;
  product *= nr;
  return (uint64_t) (product / ((uint64_t) hi - lo + 1));
}

/* Returns the number of fences at or below PREFIX (below it, if STRICTLY).
 * Searches from the interpolated place outwards, then by halves. */
static uint64_t
count_fences (const struct dedup_segment *s, const struct dedup_segment_meta *m,
              uint32_t prefix, bool strictly)
{
  const uint32_t *v = m->fences;
  const uint32_t limit = prefix - strictly;      /* fences up to this count */
  uint64_t guess, lo, hi, mid, step = 4;

  if ((strictly && prefix == 0) || m->nr_pages == 0)
    return 0;
  guess = interpolate (prefix, m->filter.bits ? m->filter.lo : s->desc.lo,
                       m->filter.bits ? m->filter.hi : s->desc.hi,
                       m->nr_pages);
  lo = hi = guess;
  while (lo > 0 && v[lo - 1] > limit) {          /* v[0 .. lo) count */
    hi = lo;
    lo = lo > step ? lo - step : 0;
    step *= 2;
  }
  step = 4;
  if (hi == guess)
    while (hi < m->nr_pages && v[hi] <= limit) {
      lo = hi;
      hi = MIN_OF (hi + step, m->nr_pages);
      step *= 2;
    }
  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (v[mid] <= limit)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

static int
lookup_by_fences (struct dedup_segment *s, const struct dedup_segment_meta *m,
                  const struct dedup_hash *hash, uint64_t *value,
                  unsigned *reads)
{
  const uint32_t prefix = dedup_hash_prefix (hash);
  uint64_t page = count_fences (s, m, prefix, false);
  struct seg_wire_page buf;

  while (page-- > 0) {
    if (!read_page (s, page, &buf, reads))
      return 0;
    if (find_in_page (s, page, &buf, hash, value))
      return 1;
    if (m->fences[page] != prefix ||
        side_of_page (s, page, &buf, hash) >= 0)
      break;
  }
  if (m->filter.bits)
    __atomic_add_fetch (&s->false_positives, 1, __ATOMIC_RELAXED);
  return 0;
}

/* Interpolated guesses before the search continues by halves. */
#define GUESSES 6

static int
lookup_by_guessing (struct dedup_segment *s, const struct dedup_hash *hash,
                    uint64_t *value, unsigned *reads)
{
  const uint32_t prefix = dedup_hash_prefix (hash);
  uint32_t lo_prefix = s->desc.lo, hi_prefix = s->desc.hi;
  uint64_t lo = 0, hi = s->nr_pages, page;
  struct seg_wire_page buf;
  unsigned tries;
  int side;

  for (tries = 0; lo < hi; tries++) {
    page = tries >= GUESSES ? lo + (hi - lo) / 2
      : lo + interpolate (prefix, lo_prefix, hi_prefix, hi - lo);
    if (!read_page (s, page, &buf, reads))
      return 0;
    side = side_of_page (s, page, &buf, hash);
    if (side == 0)
      return find_in_page (s, page, &buf, hash, value);
    if (side < 0) {
      hi = page;
      hi_prefix = dedup_hash_prefix (&buf.entries[0].hash);
    }
    else {
      lo = page + 1;
      lo_prefix = dedup_hash_prefix
        (&buf.entries[entries_in_page (s, page) - 1].hash);
    }
  }
  return 0;
}

int
dedup_segment_lookup (struct dedup_segment *s, const struct dedup_hash *hash,
                      uint64_t *value, unsigned *reads)
{
  const struct dedup_segment_meta *m = dedup_segment_meta (s);

  if (dedup_segment_useless (s) || s->nr_pages == 0)
    return 0;
  return m ? lookup_by_fences (s, m, hash, value, reads)
    : lookup_by_guessing (s, hash, value, reads);
}

void
dedup_segment_place (struct dedup_segment *s,
                     const struct dedup_filter_key *key,
                     struct dedup_filter_place *p)
{
  static const uint64_t any_word;
  const struct dedup_segment_meta *m = meta_of (s);

  if (m && m->filter.bits)
    dedup_filter_find (&m->filter, key, p);
  else {
    p->head = dedup_segment_useless (s) || s->nr_pages == 0 ? NULL : &any_word;
    p->bits = 0;
  }
}

uint64_t
dedup_segment_bound (struct dedup_segment *s, uint32_t from, uint32_t to)
{
  const struct dedup_segment_meta *m = dedup_segment_meta (s);
  uint64_t first, end;

  if (m == NULL)
    return s->desc.nr_entries;
  first = count_fences (s, m, from, true);
  end = count_fences (s, m, to, false);
  return MIN_OF ((end - first + 1) * SEG_PAGE_ENTRIES, s->desc.nr_entries);
}

uint64_t
seg_first_page (struct dedup_segment *s, uint32_t prefix)
{
  const struct dedup_segment_meta *m = dedup_segment_meta (s);
  uint64_t lo = 0, hi = s->nr_pages, mid;
  struct seg_wire_page buf;

  if (m) {
    lo = count_fences (s, m, prefix, true);
    return lo > 0 ? lo - 1 : 0;
  }
  while (lo < hi) {              /* pages before LO begin below PREFIX */
    mid = (lo + hi) / 2;
    if (!read_page (s, mid, &buf, NULL))
      return 0;                  /* the cursor starts at the first page */
    if (dedup_hash_prefix (&buf.entries[0].hash) < prefix)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo > 0 ? lo - 1 : 0;
}

uint64_t
dedup_segment_pages (const struct dedup_segment *s)
{
  return s->nr_pages;
}

int
dedup_segment_read (struct dedup_segment *s, uint64_t page,
                    struct dedup_entry *v, size_t *nr)
{
  struct seg_wire_page buf;
  size_t i;

  if (!read_page (s, page, &buf, NULL))
    return -EBADMSG;
  *nr = entries_in_page (s, page);
  for (i = 0; i < *nr; i++)
    v[i] = (struct dedup_entry) { buf.entries[i].hash,
                                  be64_load (buf.entries[i].value) };
  return 0;
}

/* --- Check --------------------------------------------------------------- */

struct checked {
  struct dedup_hash last;
  uint64_t entries, deleted;
};

static const char *
entry_fault (const struct dedup_segment_meta *m, const struct seg_wire_entry *e,
             struct checked *c)
{
  const struct dedup_filter *f = &m->filter;
  struct dedup_filter_key key;
  struct dedup_filter_place place;
  uint16_t maybe;

  if (be64_load (e->value) == 0)
    return "an entry without a value";
  if (c->entries > 0 && memcmp (&c->last, &e->hash, sizeof c->last) >= 0)
    return "entries out of order";
  dedup_filter_key (&e->hash, &key);
  if (f->bits) {
    dedup_filter_find (f, &key, &place);
    if (dedup_filter_test (&place, 1, &maybe) != 1)
      return "an entry that the filter denies";
  }
  c->last = e->hash;
  c->entries++;
  c->deleted += be64_load (e->value) == DEDUP_DELETED;
  return NULL;
}

static int
check_page (struct dedup_segment *s, const struct dedup_segment_meta *m,
            uint64_t number, struct checked *c, struct fault *f)
{
  const uint64_t off = seg_page_off (&s->desc, number);
  CACHE_ALIGNED struct seg_wire_page page;
  const char *why;
  uint64_t i;
  int r;

  r = io_pread (s->io, &page, sizeof page, off);
  if (r < 0)
    return fault_io (f, -r, off, "reading segment %" PRIu64, s->desc.id);
  why = seg_page_fault (s, number, &page);
  if (why == NULL &&
      dedup_hash_prefix (&page.entries[0].hash) != m->fences[number])
    why = "its fence differs";
  for (i = 0; why == NULL && i < entries_in_page (s, number); i++)
    why = entry_fault (m, &page.entries[i], c);
  if (why)
    return fault_corrupt (f, off, "segment %" PRIu64 ", page %" PRIu64 ": %s",
                          s->desc.id, number, why);
  return 0;
}

int
dedup_segment_check (struct dedup_segment *s, struct fault *f)
{
  struct dedup_segment_meta *m = NULL;
  struct checked c = { .entries = 0 };
  const char *why = NULL;
  uint64_t i;
  int r;

  r = read_meta (s, &m, &why);
  if (r == -EBADMSG)
    return fault_corrupt (f, s->desc.host_off, "segment %" PRIu64
                          ", first page: wrong %s", s->desc.id, why);
  if (r < 0)
    return fault_io (f, -r, s->desc.host_off, "reading segment %" PRIu64,
                     s->desc.id);
  for (i = 0; r == 0 && i < s->nr_pages; i++)
    r = check_page (s, m, i, &c, f);
  if (r == 0 && c.deleted != s->desc.nr_deleted)
    r = fault_corrupt (f, s->desc.host_off, "segment %" PRIu64 ": wrong "
                       "number of tombstones", s->desc.id);
  dedup_segment_meta_free (m);
  return r;
}
