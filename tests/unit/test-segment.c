/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests filters and segments of runs: entries that were written are found, by
 * every kind of lookup; others are misses; filters give as many false positives
 * as the formula says; and no damaged byte causes a wrong answer.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "checked.h"
#include "dedup-limits.h"
#include "merge.h"
#include "segment-page.h"
#include "splitmix.h"

#define STORE UINT64_C (0x1234)
#define HOST_OFF 8192

static uint64_t seed = 1;

static uint64_t
random_word (void)
{
  return splitmix64 (&seed);
}

static struct dedup_hash
random_hash (void)
{
  struct dedup_hash h;
  unsigned i;

  for (i = 0; i < 4; i++) {
    uint64_t w = random_word ();

    memcpy (h.b + 8 * i, &w, sizeof w);
  }
  return h;
}

static int
compare (const void *a, const void *b)
{
  return memcmp (a, b, sizeof (struct dedup_hash));
}

/* NR sorted hashes, no two equal. */
static struct dedup_hash *
random_hashes (size_t nr)
{
  struct dedup_hash *h = malloc ((nr + 1) * sizeof *h);
  size_t i;

  assert_non_null (h);
  for (i = 0; i < nr; i++)
    h[i] = random_hash ();
  qsort (h, nr, sizeof *h, compare);
  return h;
}

/* Values tell which entry it was; each 50th is a tombstone. */
static uint64_t
value_of (size_t i)
{
  return i % 50 == 49 ? DEDUP_DELETED : i + 1;
}

struct world {
  struct io_store *io;
  struct dedup_segment_desc desc;
  struct dedup_segment_meta *meta;
  struct dedup_hash *hashes;
  size_t nr;
};

static void
write_segment (struct world *w, struct dedup_hash *hashes, size_t nr,
               unsigned bits)
{
  struct dedup_segment_writer *sw;
  size_t i;

  memset (w, 0, sizeof *w);
  w->hashes = hashes;
  w->nr = nr;
  w->desc = (struct dedup_segment_desc) {
    .id = 7, .host_off = HOST_OFF, .hi = UINT32_MAX, .bits = (uint8_t) bits,
    .size_bytes = dedup_segment_size (nr, bits),
  };
  assert_int_equal (io_memory_new (HOST_OFF + w->desc.size_bytes, &w->io), 0);
  assert_int_equal (dedup_segment_writer_new (w->io, STORE, &w->desc, nr, NULL,
                                              &sw), 0);
  for (i = 0; i < nr; i++)
    assert_int_equal (dedup_segment_writer_add (sw, &hashes[i], value_of (i)),
                      0);
  assert_int_equal (dedup_segment_writer_finish (sw, &w->desc, &w->meta), 0);
  dedup_segment_writer_free (sw);
  assert_int_equal (w->desc.nr_entries, nr);
  assert_int_equal (w->desc.nr_deleted, nr / 50);
}

static struct dedup_segment *
open_segment (struct world *w)
{
  struct dedup_segment *s;

  assert_int_equal (dedup_segment_open (w->io, STORE, &w->desc, &s), 0);
  return s;
}

static void
end (struct world *w)
{
  dedup_segment_meta_free (w->meta);
  io_close (w->io);
  free (w->hashes);
}

/* Reads a lookup takes, in hundredths. */
static unsigned
assert_all_found (struct world *w, struct dedup_segment *s)
{
  uint64_t before, after, fp, at;
  size_t i;

  dedup_segment_reads (s, &before, &fp);
  for (i = 0; i < w->nr; i++) {
    assert_int_equal (dedup_segment_lookup (s, &w->hashes[i], &at, NULL), 1);
    assert_int_equal (at, value_of (i));
  }
  dedup_segment_reads (s, &after, &fp);
  assert_int_equal (fp, 0);
  return w->nr ? (unsigned) ((after - before) * 100 / w->nr) : 0;
}

static void
assert_others_missed (struct dedup_segment *s)
{
  uint64_t at;
  unsigned i;

  for (i = 0; i < 2000; i++) {
    struct dedup_hash h = random_hash ();

    assert_int_equal (dedup_segment_lookup (s, &h, &at, NULL), 0);
  }
}

/* Loaded, as its writer left it, and not loaded at all. */
static void
assert_right (struct world *w)
{
  struct dedup_segment *s = open_segment (w);
  struct fault f = { 0 };

  assert_true (assert_all_found (w, s) <= 400);      /* by guessing */
  assert_others_missed (s);
  assert_int_equal (dedup_segment_load (s), 0);
  assert_true (assert_all_found (w, s) <= 101);
  assert_others_missed (s);
  assert_int_equal (dedup_segment_check (s, &f), 0);
  assert_false (dedup_segment_damaged (s));
  dedup_segment_put (s);
  s = open_segment (w);
  dedup_segment_adopt (s, w->meta);
  w->meta = NULL;
  assert_true (assert_all_found (w, s) <= 101);
  dedup_segment_put (s);
}

static void
test_every_entry_is_found (void **state)
{
  static const size_t sizes[] = { 0, 1, 2, 100, 101, 102, 202, 203, 5000,
                                  40000, 100000 };
  size_t i;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    struct world w;

    write_segment (&w, random_hashes (sizes[i]), sizes[i], i % 3 ? 8 : 13);
    assert_int_equal (w.desc.bits, i % 3 ? 8 : 13);
    assert_right (&w);
    end (&w);
  }
}

/* Hashes that agree in their first 32 bits, over several pages; and many in a
 * small part of the range.  No filter can be made of them: it goes without. */
static void
test_hashes_need_not_be_spread (void **state)
{
  static const uint8_t same[4] = { 0x80, 0, 0, 0 };
  struct dedup_hash *h = random_hashes (3000);
  struct dedup_segment *s;
  struct world w;
  size_t i;

  for (i = 1000; i < 1500; i++)
    memcpy (h[i].b, same, sizeof same);
  for (i = 2000; i < 3000; i++)
    h[i].b[0] = 0xff, h[i].b[1] = 0xff;
  qsort (h, 3000, sizeof *h, compare);
  write_segment (&w, h, 3000, 12);
  assert_int_equal (w.desc.bits, 0);
  s = open_segment (&w);
  assert_all_found (&w, s);
  assert_others_missed (s);
  assert_int_equal (dedup_segment_load (s), 0);
  assert_all_found (&w, s);
  assert_others_missed (s);
  dedup_segment_put (s);
  end (&w);
}

static void
test_cursor_gives_all_in_order (void **state)
{
  const uint32_t from[] = { 0, 1, 0x12345678, 0x80000000, UINT32_MAX };
  size_t i, k;
  struct world w;

  write_segment (&w, random_hashes (20000), 20000, 8);
  for (k = 0; k < 2 * sizeof from / sizeof from[0]; k++) {
    struct dedup_segment *s = open_segment (&w);
    uint32_t start = from[k / 2];
    const struct dedup_hash *h;
    struct dedup_cursor *c;
    uint64_t at, ordinal;

    if (k % 2)
      assert_int_equal (dedup_segment_load (s), 0);
    assert_int_equal (dedup_cursor_open (s, start, &c), 0);
    for (i = 0; i < w.nr && dedup_hash_prefix (&w.hashes[i]) < start; i++)
      ;
    for (; i < w.nr; i++) {
      assert_int_equal (dedup_cursor_next (c, &h, &at, &ordinal), 1);
      assert_memory_equal (h, &w.hashes[i], sizeof *h);
      assert_int_equal (at, value_of (i));
      assert_int_equal (ordinal, i);
    }
    assert_int_equal (dedup_cursor_next (c, &h, &at, &ordinal), 0);
    dedup_cursor_free (c);
    dedup_segment_put (s);
  }
  end (&w);
}

/* False positives: within 6 standard deviations of 2^-bits, for every width,
 * and the space is what docs/ARCHITECTURE.md reckons with. */
static void
test_filters_say_yes_in_vain_as_often_as_the_formula_says (void **state)
{
  const size_t nr = 70000, tries = 400000;
  unsigned bits;

  for (bits = 1; bits <= DEDUP_FILTER_MAX_BITS; bits++) {
    struct dedup_hash *hashes = random_hashes (nr);
    struct dedup_filter_builder *b;
    double p = 1.0 / (1u << bits), expected = p * tries, d;
    struct dedup_filter_place place;
    struct dedup_filter_key key;
    struct dedup_filter f;
    size_t i, yes = 0;
    uint16_t maybe;

    assert_int_equal (dedup_filter_builder_new (0, UINT32_MAX, nr, bits, &b),
                      0);
    for (i = 0; i < nr; i++)
      assert_int_equal (dedup_filter_builder_add (b, &hashes[i]), 0);
    assert_int_equal (dedup_filter_builder_finish (b, &f), 0);
    dedup_filter_builder_free (b);
    for (i = 0; i < nr; i++) {
      dedup_filter_key (&hashes[i], &key);
      dedup_filter_find (&f, &key, &place);
      assert_int_equal (dedup_filter_test (&place, 1, &maybe), 1);
    }
    for (i = 0; i < tries; i++) {
      struct dedup_hash h = random_hash ();

      dedup_filter_key (&h, &key);
      dedup_filter_find (&f, &key, &place);
      yes += dedup_filter_test (&place, 1, &maybe);
    }
    d = (double) yes - expected;
    if (d * d > 36 * expected + 36)
      fail_msg ("%u bits: %zu false positives of %zu, %.1f expected", bits,
                yes, tries, expected);
    if (dedup_filter_memory (&f) * 8.0 / (double) nr > bits * 1.05 + 0.01)
      fail_msg ("%u bits take %.3f", bits, (double)
                dedup_filter_memory (&f) * 8.0 / (double) nr);
    dedup_filter_free (&f);
    free (hashes);
  }
}

/* Any byte: what is found is right, and damage in pages that are read, or in
 * what is loaded, is noticed. */
static void
test_damage_is_a_miss_and_never_wrong (void **state)
{
  const size_t nr = 500;
  uint64_t off, at, found_less = 0;
  struct world w;
  size_t i;

  write_segment (&w, random_hashes (nr), nr, 8);
  for (off = 0; off < w.desc.size_bytes; off += 37) {
    struct dedup_segment *s = open_segment (&w);
    struct fault f = { 0 };
    size_t found = 0;
    uint8_t b, flipped;
    bool loaded;

    assert_int_equal (io_pread (w.io, &b, 1, HOST_OFF + off), 0);
    flipped = b ^ 0x10;
    assert_int_equal (io_pwrite (w.io, &flipped, 1, HOST_OFF + off), 0);
    loaded = dedup_segment_load (s) == 0;
    for (i = 0; i < nr; i++)
      if (dedup_segment_lookup (s, &w.hashes[i], &at, NULL)) {
        assert_int_equal (at, value_of (i));
        found++;
      }
    if (loaded && found == nr)   /* a byte that nothing says anything with */
      assert_int_equal (dedup_segment_check (s, &f), 0);
    else {
      assert_true (dedup_segment_damaged (s));
      assert_int_not_equal (dedup_segment_check (s, &f), 0);
      found_less++;
    }
    assert_int_equal (dedup_segment_useless (s), !loaded);
    assert_int_equal (io_pwrite (w.io, &b, 1, HOST_OFF + off), 0);
    dedup_segment_put (s);
  }
  assert_true (found_less > w.desc.size_bytes / 37 * 9 / 10);
  end (&w);
}

static int
fail_some (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  unsigned *left = opaque;

  return call == IO_PWRITE && (*left)-- == 0 ? -EIO : 0;
}

static void
test_failed_write_and_full_area_are_errors (void **state)
{
  struct dedup_hash *hashes = random_hashes (2000);
  struct dedup_segment_meta *meta;
  struct dedup_segment_writer *sw;
  unsigned nth;

  for (nth = 0; nth < 4; nth++) {
    struct dedup_segment_desc d = { .id = 3, .host_off = 4096,
      .hi = UINT32_MAX, .bits = 8, .size_bytes = nth == 3 ? 5 * 4096 :
      dedup_segment_size (2000, 8) };
    struct io_store *mem, *io;
    unsigned left = nth;
    size_t i;
    int r = 0;

    assert_int_equal (io_memory_new (1 << 20, &mem), 0);
    assert_int_equal (io_faulty_new (mem, fail_some, &left, &io), 0);
    assert_int_equal (dedup_segment_writer_new (io, STORE, &d, 2000, NULL,
                                                &sw), 0);
    for (i = 0; i < 2000 && r == 0; i++)
      r = dedup_segment_writer_add (sw, &hashes[i], 1);
    if (r == 0)
      r = dedup_segment_writer_finish (sw, &d, &meta);
    assert_int_equal (r, nth == 3 ? -ENOSPC : -EIO);
    dedup_segment_writer_free (sw);
    io_close (io);
  }
  free (hashes);
}

/* More entries may come than were counted, if fences lie. */
static void
test_writer_takes_more_entries_than_expected (void **state)
{
  const size_t nr = 3000;
  struct dedup_segment_writer *sw;
  struct dedup_segment *s;
  struct world w = { .hashes = random_hashes (nr), .nr = nr };
  size_t i;

  w.desc = (struct dedup_segment_desc) {
    .id = 7, .host_off = HOST_OFF, .hi = UINT32_MAX, .bits = 8,
    .size_bytes = dedup_segment_size (nr, 8),
  };
  assert_int_equal (io_memory_new (HOST_OFF + w.desc.size_bytes, &w.io), 0);
  assert_int_equal (dedup_segment_writer_new (w.io, STORE, &w.desc, 1, NULL,
                                              &sw), 0);
  for (i = 0; i < nr; i++)
    assert_int_equal (dedup_segment_writer_add (sw, &w.hashes[i],
                                                value_of (i)), 0);
  assert_int_equal (dedup_segment_writer_finish (sw, &w.desc, &w.meta), 0);
  dedup_segment_writer_free (sw);
  s = open_segment (&w);
  assert_all_found (&w, s);
  dedup_segment_put (s);
  end (&w);
}

/* Swap entries A and B of the first page, and make its checksum right. */
static void
swap_entries (struct world *w, unsigned a, unsigned b)
{
  struct seg_wire_page p;
  struct seg_wire_entry e;

  assert_int_equal (io_pread (w->io, &p, sizeof p, HOST_OFF + 4096), 0);
  e = p.entries[a];
  p.entries[a] = p.entries[b];
  p.entries[b] = e;
  p.checksum = be64_make (dedup_page_checksum (&p, &p.checksum));
  assert_int_equal (io_pwrite (w->io, &p, sizeof p, HOST_OFF + 4096), 0);
}

/* The writer once met an assertion; entries that are lost cost ratio. */
static void
test_merge_passes_over_entries_out_of_order (void **state)
{
  struct world w;
  struct dedup_segment *s;
  struct merge_source source = { .nr = 1, .v = &s };
  struct merge_plan p = { .out = { .hi = UINT32_MAX }, .nr_sources = 1,
                          .sources = &source };
  struct merge_inputs *in;
  const struct dedup_hash *h;
  struct dedup_hash last = { { 0 } };
  uint64_t at;
  bool oldest;
  size_t n = 0;

  write_segment (&w, random_hashes (90), 90, 8);
  swap_entries (&w, 10, 11);
  swap_entries (&w, 40, 60);
  s = open_segment (&w);
  assert_int_equal (merge_inputs_open (&p, &in), 0);
  for (; merge_inputs_next (in, &h, &at, &oldest) == 1; n++) {
    assert_true (memcmp (&last, h, sizeof last) < 0);
    last = *h;
  }
  assert_in_range (n, 60, 88);
  merge_inputs_close (in);
  dedup_segment_put (s);
  end (&w);
}

/* A configuration may list a segment with no entries. */
static void
test_segment_without_entries_is_empty (void **state)
{
  struct world w;
  struct dedup_segment *s;
  struct dedup_cursor *c;
  const struct dedup_hash *h;
  struct dedup_hash any = random_hash ();
  uint64_t at, ordinal;

  write_segment (&w, random_hashes (0), 0, 0);
  s = open_segment (&w);
  assert_int_equal (dedup_segment_load (s), 0);
  assert_int_equal (dedup_segment_bound (s, 0, UINT32_MAX), 0);
  assert_int_equal (dedup_segment_bound (s, UINT32_MAX, UINT32_MAX), 0);
  assert_int_equal (dedup_segment_lookup (s, &any, &at, NULL), 0);
  assert_int_equal (dedup_cursor_open (s, UINT32_MAX, &c), 0);
  assert_int_equal (dedup_cursor_next (c, &h, &at, &ordinal), 0);
  dedup_cursor_free (c);
  dedup_segment_put (s);
  end (&w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_every_entry_is_found),
    cmocka_unit_test (test_hashes_need_not_be_spread),
    cmocka_unit_test (test_cursor_gives_all_in_order),
    cmocka_unit_test
      (test_filters_say_yes_in_vain_as_often_as_the_formula_says),
    cmocka_unit_test (test_damage_is_a_miss_and_never_wrong),
    cmocka_unit_test (test_failed_write_and_full_area_are_errors),
    cmocka_unit_test (test_writer_takes_more_entries_than_expected),
    cmocka_unit_test (test_merge_passes_over_entries_out_of_order),
    cmocka_unit_test (test_segment_without_entries_is_empty),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
