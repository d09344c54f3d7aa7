/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that an index must have the bytes that it claims: segments and
 * incarnations whose pages are holes of the file are damaged, and take no
 * memory, however much they claim.  No page with contents is taken for a hole.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "pool.h"
#include "index-private.h"
#include "page-hole.h"
#include "incarnation-page.h"
#include "segment-page.h"
#include "splitmix.h"

#define STORE UINT64_C (0x1234)
#define HOST_OFF 8192

static uint64_t seed = 1;

static struct dedup_hash
random_hash (void)
{
  struct dedup_hash h;
  unsigned i;

  for (i = 0; i < 4; i++) {
    uint64_t w = splitmix64 (&seed);

    memcpy (h.b + 8 * i, &w, sizeof w);
  }
  return h;
}

/* --- A store that says what holes it has ---------------------------------- */

struct holey {
  struct io_store store;
  struct io_store *below;
  uint64_t from, to;             /* the hole; TO is never a hole */
  bool lies;                     /* there are bytes all the same */
};

static int
holey_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
              uint64_t host_off)
{
  struct holey *h = (struct holey *) s;
  int i, r = 0;

  for (i = 0; i < iovcnt && r == 0; host_off += iov[i++].iov_len) {
    uint8_t *p = iov[i].iov_base;
    uint64_t k;

    r = io_pread (h->below, p, iov[i].iov_len, host_off);
    for (k = 0; k < iov[i].iov_len; k++)
      if (!h->lies && host_off + k >= h->from && host_off + k < h->to)
        p[k] = 0;
  }
  return r;
}

static int
holey_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t host_off)
{
  return io_pwritev (((struct holey *) s)->below, iov, iovcnt, host_off);
}

static uint64_t
holey_next_hole (struct io_store *s, uint64_t host_off)
{
  const struct holey *h = (const struct holey *) s;

  return host_off < h->to ? MAX_OF (host_off, h->from) : UINT64_MAX - 1;
}

static const struct io_ops holey_ops = {
  .preadv = holey_preadv, .pwritev = holey_pwritev,
  .next_hole = holey_next_hole,
};

static void
holey_open (struct holey *h)
{
  *h = (struct holey) { .store.ops = &holey_ops };
  assert_int_equal (io_memory_new (0, &h->below), 0);
}

/* --- Claims ----------------------------------------------------------------- */

/* A first page that is right, for NR_SHARDS of which the last has all words,
 * which are zeroes, as fences are. */
static void
write_claim (struct io_store *io, uint64_t store_id,
             const struct dedup_segment_desc *desc, uint32_t nr_shards,
             uint64_t nr_words)
{
  const uint64_t nr_pages = seg_pages (desc->nr_entries);
  const uint64_t len = seg_meta_pages (nr_pages, nr_shards, nr_words) * 4096;
  const uint64_t end = nr_pages * 4 + nr_shards * UINT64_C (8);
  CLEANUP_FREE uint8_t *meta = calloc (1, len);
  const be32 blocks = be32_make ((uint32_t) (nr_words / desc->bits));
  struct seg_wire_head h = {
    .magic = be64_make (SEG_HEAD_MAGIC), .store_id = be64_make (store_id),
    .id = be64_make (desc->id), .hi = be32_make (UINT32_MAX),
    .nr_entries = be32_make (desc->nr_entries), .bits = be32_make (desc->bits),
    .nr_shards = be32_make (nr_shards), .nr_words = be64_make (nr_words),
  };

  assert_non_null (meta);
  memcpy (meta + end, &blocks, sizeof blocks);
  h.meta_checksum = be64_make (dedup_checksum (meta, len));
  h.checksum = be64_make (dedup_page_checksum (&h, &h.checksum));
  assert_int_equal (io_pwrite (io, &h, sizeof h, desc->host_off), 0);
  assert_int_equal (io_pwrite (io, &blocks, sizeof blocks,
                               seg_page_off (desc, nr_pages) + end), 0);
}

/* --- Segments and incarnations -------------------------------------------- */

static int
compare (const void *a, const void *b)
{
  return memcmp (a, b, sizeof (struct dedup_hash));
}

/* The last page has one entry, and zeroes. */
#define ENTRIES (9 * SEG_PAGE_ENTRIES + 1)

static struct dedup_segment_desc
write_segment (struct holey *h)
{
  struct dedup_segment_desc desc = { .id = 7, .host_off = HOST_OFF,
    .hi = UINT32_MAX, .bits = 8,
    .size_bytes = dedup_segment_size (ENTRIES, 8) };
  struct dedup_segment_meta *meta;
  struct dedup_segment_writer *w;
  struct dedup_hash v[ENTRIES];
  size_t i;

  for (i = 0; i < ENTRIES; i++)
    v[i] = random_hash ();
  qsort (v, ENTRIES, sizeof v[0], compare);
  assert_int_equal (dedup_segment_writer_new (&h->store, STORE, &desc, ENTRIES,
                                              NULL, &w), 0);
  for (i = 0; i < ENTRIES; i++)
    assert_int_equal (dedup_segment_writer_add (w, &v[i], 1 + i), 0);
  assert_int_equal (dedup_segment_writer_finish (w, &desc, &meta), 0);
  dedup_segment_writer_free (w);
  dedup_segment_meta_free (meta);
  return desc;
}

static int
load_segment (struct holey *h, const struct dedup_segment_desc *desc,
              uint64_t from, uint64_t len)
{
  struct dedup_segment *s;
  int r;

  h->from = from;
  h->to = from + len;
  assert_int_equal (dedup_segment_open (&h->store, STORE, desc, &s), 0);
  r = dedup_segment_load (s);
  assert_int_equal (dedup_segment_damaged (s), r < 0);
  dedup_segment_put (s);
  return r;
}

static void
test_segment_with_a_page_in_a_hole_is_damaged (void **state)
{
  struct dedup_segment_desc desc;
  struct holey h;
  uint64_t page;

  holey_open (&h);
  desc = write_segment (&h);
  for (page = 0; page < 10; page++) {
    const uint64_t off = seg_page_off (&desc, page);

    assert_int_equal (load_segment (&h, &desc, off, 4096), -EBADMSG);
    assert_int_equal (load_segment (&h, &desc, off, 1 << 20), -EBADMSG);
  }
  io_close (h.below);
}

static void
test_right_segment_is_loaded_whatever_holes_there_are (void **state)
{
  struct dedup_segment_desc desc;
  uint64_t end, last;
  struct holey h;

  holey_open (&h);
  desc = write_segment (&h);
  last = seg_page_off (&desc, 9);
  end = HOST_OFF + desc.size_bytes;
  assert_int_equal (load_segment (&h, &desc, 0, 0), 0);
  assert_int_equal (load_segment (&h, &desc, 0, HOST_OFF), 0);
  assert_int_equal (load_segment (&h, &desc, end, 1 << 20), 0);
  assert_int_equal (load_segment (&h, &desc, last + 512, 3584), 0);
  h.lies = true;                 /* as some file systems have done */
  assert_int_equal (load_segment (&h, &desc, 0, 1 << 20), 0);
  io_close (h.below);
}

/* A hole that begins in a right page's zeroes goes on in the next. */
static void
test_pages_behind_a_hole_in_a_right_page_are_looked_at (void **state)
{
  struct holey h;
  uint8_t page[4096] = { 1 };

  holey_open (&h);
  assert_int_equal (io_pwrite (h.below, page, sizeof page, HOST_OFF), 0);
  h.from = HOST_OFF + 512;
  h.to = HOST_OFF + 8192;
  assert_true (dedup_page_in_hole (&h.store, HOST_OFF, 2));
  assert_false (dedup_page_in_hole (&h.store, HOST_OFF, 1));
  io_close (h.below);
}

static int
load_claim (uint32_t nr_shards, uint64_t nr_words)
{
  struct dedup_segment_desc desc = { .id = 7, .host_off = HOST_OFF,
    .hi = UINT32_MAX, .bits = 8, .nr_entries = 900, .size_bytes = 4 << 20 };
  struct holey h;
  int r;

  holey_open (&h);
  write_claim (&h.store, STORE, &desc, nr_shards, nr_words);
  r = load_segment (&h, &desc, 0, 0);
  io_close (h.below);
  return r;
}

/* Each word stands for entries that are there, or for a shard with some. */
static void
test_filter_is_no_larger_than_its_entries_allow (void **state)
{
  assert_int_equal (load_claim (100, 8 * (28 + 4 * 100)), 0);
  assert_int_equal (load_claim (100, 8 * (28 + 4 * 100 + 1)), -EBADMSG);
  assert_int_equal (load_claim (2000, 8 * (28 + 4 * 900)), 0);
  assert_int_equal (load_claim (2000, 8 * (28 + 4 * 900 + 1)), -EBADMSG);
  assert_int_equal (load_claim (DEDUP_MAX_SHARDS, 8 * 4), 0);
  assert_int_equal (load_claim (DEDUP_MAX_SHARDS + 1, 8 * 4), -EBADMSG);
}

static void
test_incarnation_with_a_page_in_a_hole_is_damaged (void **state)
{
  struct dedup_incarnation_desc desc = { .id = 5, .host_off = HOST_OFF,
    .size_bytes = dedup_incarnation_size (8) };
  const struct inc_layout l = inc_layout_of (8);
  const struct dedup_hash one = random_hash ();
  struct dedup_incarnation *inc;
  struct dedup_log_store *ls;
  struct holey h;
  uint64_t page;

  holey_open (&h);
  assert_int_equal (dedup_log_store_new (8, &ls), 0);
  assert_int_equal (dedup_log_store_insert (ls, &one, 1), 0);
  assert_int_equal (dedup_incarnation_write (&h.store, STORE, ls, &desc, NULL),
                    0);
  dedup_log_store_free (ls);
  /* Its filter is zeroes but for one page, and may be a hole. */
  for (page = 0; page <= l.table_pages; page++) {
    h.from = inc_table_off (&desc, &l, page);
    h.to = h.from + 4096;
    assert_int_equal (dedup_incarnation_open (&h.store, STORE, &desc, &inc),
                      0);
    assert_int_equal (dedup_incarnation_load (inc),
                      page < l.table_pages ? -EBADMSG : 0);
    dedup_incarnation_put (inc);
  }
  io_close (h.below);
}

/* --- A whole image --------------------------------------------------------- */

/* 4 million entries of 170 MB, which nobody wrote, and a filter of 17 MB. */
#define CLAIMED (UINT32_C (1) << 22)
#define SHARDS 128u
#define CLAIMED_WORDS (UINT64_C (16) * (CLAIMED / 32 + 4 * SHARDS))

static unsigned nr_damaged;

static void
note_line (void *opaque, enum log_level level, const char *line)
{
  nr_damaged += strstr (line, "of the index is damaged") != NULL;
}

struct files {
  struct io_store *image, *store_file;   /* NULL: none */
};

static void
open_disk (const struct files *x, struct dedup_pool **d)
{
  static const struct log_sink sink = { .write = note_line };
  struct dedup_open_params p = { .path = "image", .writable = true,
    .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = 1 << 20, .log = &sink, .store = x->store_file,
    .store_path = "store" };
  struct fault f = { 0 };

  if (dedup_open (x->image, &p, d, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static void
claim_much (const struct files *x)
{
  struct dedup_segment_desc desc = { .hi = UINT32_MAX, .bits = 16,
    .nr_entries = CLAIMED };
  struct dedup_pool *d;

  open_disk (x, &d);
  desc.id = desc.age = d->store.index->manifest->next_id++;
  desc.size_bytes = dedup_segment_used (CLAIMED, SHARDS, CLAIMED_WORDS);
  assert_int_equal (dedup_index_area_alloc (&d->store, desc.size_bytes,
                                            &desc.host_off), 0);
  assert_int_equal (dedup_in_store_file (desc.host_off), x->store_file != NULL);
  assert_int_equal (io_discard (x->store_file ? x->store_file : x->image,
                                desc.host_off & ~DEDUP_IN_STORE_FILE,
                                desc.size_bytes), 0);
  write_claim (dedup_index_io (&d->store), d->store.config->store_id, &desc, SHARDS,
               CLAIMED_WORDS);
  assert_int_equal (dedup_manifest_add_segment (&d->store.config->index, &desc), 0);
  assert_int_equal (dedup_config_commit (&d->store), 0);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
}

static void
assert_claim_is_dropped (const struct files *x)
{
  struct dedup_stats s;
  struct dedup_pool *d;
  unsigned n;

  nr_damaged = 0;
  open_disk (x, &d);
  assert_int_equal (d->store.index->manifest->nr_segments, 1);
  for (n = 0; n < 100 && dedup_due (d, NULL) & DEDUP_JOB_FILTERS; n++)
    assert_int_equal (dedup_run (d, DEDUP_JOB_FILTERS), 0);
  dedup_get_stats (d, &s);
  assert_int_equal (d->store.index->manifest->nr_segments, 0);
  assert_int_equal (nr_damaged, 1);
  assert_true (s.index_memory_bytes < 1 << 20);
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
}

static struct io_store *
scratch_file (void)
{
  const char *tmp = getenv ("TMPDIR");
  struct fault f = { 0 };
  struct io_store *io;
  char path[4096];
  int fd;

  snprintf (path, sizeof path, "%s/test-sparse-index-XXXXXX",
            tmp ? tmp : "/tmp");
  fd = mkstemp (path);
  assert_true (fd >= 0);
  close (fd);
  assert_int_equal (io_file_open (path, IO_FILE_WRITE, IO_LOCK_NONE, &io, &f),
                    0);
  unlink (path);
  return io;
}

static void
test_entries_that_nobody_wrote_take_no_memory (void **state)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = 64 << 20, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 4, .journal_areas = 3,
  };
  struct fault f = { 0 };
  unsigned i;

  for (i = 0; i < 2; i++) {
    struct files x = { scratch_file (), i ? scratch_file () : NULL };

    assert_int_equal (dedup_create (x.image, &p, &f), 0);
    claim_much (&x);
    assert_claim_is_dropped (&x);
    io_close (x.image);
    io_close (x.store_file);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_segment_with_a_page_in_a_hole_is_damaged),
    cmocka_unit_test (test_right_segment_is_loaded_whatever_holes_there_are),
    cmocka_unit_test (test_pages_behind_a_hole_in_a_right_page_are_looked_at),
    cmocka_unit_test (test_filter_is_no_larger_than_its_entries_allow),
    cmocka_unit_test (test_incarnation_with_a_page_in_a_hole_is_damaged),
    cmocka_unit_test (test_entries_that_nobody_wrote_take_no_memory),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
