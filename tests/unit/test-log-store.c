/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the log store and the content hash.
 *
 * Breaks if: an insertion loses, doubles or misplaces an entry, above all where
 * it fails because the table is full.
 */
#include "log-store.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "config.h"    /* brings the limits of this room */

/* A hash that looks random: splitmix64 of the key, four times. */
static struct dedup_hash
hash_of (uint64_t key)
{
  struct dedup_hash h;
  uint64_t x, z;
  unsigned i;

  x = key * 4 + 1;
  for (i = 0; i < 4; ++i) {
    z = (x += UINT64_C (0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
    z ^= z >> 31;
    memcpy (h.b + i * 8, &z, 8);
  }
  return h;
}

/* A hash with given first words. */
static struct dedup_hash
hash_in (uint8_t low0, uint8_t low1, uint8_t id)
{
  struct dedup_hash h = { { 0 } };

  h.b[7] = low0;
  h.b[15] = low1;
  h.b[31] = id;
  return h;
}

static uint64_t
must_find (const struct dedup_log_store *ls, uint64_t key)
{
  const struct dedup_hash h = hash_of (key);
  uint64_t v = 0;

  if (!dedup_log_store_lookup (ls, &h, &v))
    fail_msg ("key %llu is lost", (unsigned long long) key);
  return v;
}

/* Each entry is in one of its buckets, and the counts are right. */
static void
verify_slots (const struct dedup_log_store *ls)
{
  const unsigned order = dedup_log_store_order (ls);
  size_t i, nr = 0, deleted = 0;
  struct dedup_hash h;
  uint64_t v, b[2];

  for (i = 0; i < (size_t) DEDUP_BUCKET_SLOTS << order; ++i) {
    if (!dedup_log_store_slot (ls, i, &h, &v))
      continue;
    nr++;
    deleted += v == DEDUP_DELETED;
    dedup_buckets (&h, order, b);
    assert_int_not_equal (b[0], b[1]);
    assert_true (i / DEDUP_BUCKET_SLOTS == b[0] ||
                 i / DEDUP_BUCKET_SLOTS == b[1]);
  }
  assert_int_equal (nr, dedup_log_store_count (ls));
  assert_int_equal (deleted, dedup_log_store_deleted (ls));
}

static void
test_buckets (void **state)
{
  uint64_t b[2];
  struct dedup_hash h = hash_in (0x25, 0x36, 0);

  dedup_buckets (&h, 4, b);
  assert_int_equal (b[0], 5);
  assert_int_equal (b[1], 6);
  h = hash_in (0x25, 0x35, 0);
  dedup_buckets (&h, 4, b);
  assert_int_equal (b[0], 5);
  assert_int_equal (b[1], 4);
}

static void
test_limits (void **state)
{
  struct dedup_log_store *ls;
  const struct dedup_hash h = hash_of (1);

  assert_int_equal (dedup_log_store_new (DEDUP_MIN_ORDER - 1, &ls), -EINVAL);
  assert_int_equal (dedup_log_store_new (DEDUP_MAX_ORDER + 1, &ls), -EINVAL);
  assert_int_equal (dedup_log_store_new (DEDUP_MIN_ORDER, &ls), 0);
  assert_int_equal (dedup_log_store_insert (ls, &h, 0), -EINVAL);
  assert_int_equal (dedup_log_store_count (ls), 0);
  assert_int_equal (dedup_log_store_capacity (ls), 59);
  dedup_log_store_free (ls);
  dedup_log_store_free (NULL);
}

/* Returns how many entries went in. */
static size_t
fill (struct dedup_log_store *ls, uint64_t base)
{
  size_t i;
  int r;

  for (i = 0;; ++i) {
    const struct dedup_hash h = hash_of (base + i);

    r = dedup_log_store_insert (ls, &h, i + 1);
    if (r < 0) {
      assert_int_equal (r, -ENOSPC);
      return i;
    }
    assert_int_equal (dedup_log_store_count (ls), i + 1);
  }
}

/* The cuckoo table must reach its capacity, but for tiny ones where a few
 * buckets can have too many suitors; and whatever went in is found, also
 * after insertions that failed. */
static void
test_fill_to_capacity (void **state)
{
  unsigned order;

  for (order = 4; order <= 12; ++order) {
    struct dedup_log_store *ls;
    const uint64_t base = (uint64_t) order << 32;
    size_t n, i, cap;

    assert_int_equal (dedup_log_store_new (order, &ls), 0);
    n = fill (ls, base);
    cap = dedup_log_store_capacity (ls);
    assert_true (n <= cap);
    assert_true (n * 100 >= cap * (order < 7 ? 85 : 98));
    for (i = 0; i < 100; ++i) {
      const struct dedup_hash h = hash_of (base + n + 1 + i);

      /* Tables below capacity may still take one. */
      if (dedup_log_store_insert (ls, &h, 1) == 0)
        assert_true (dedup_log_store_count (ls) <= cap);
    }
    for (i = 0; i < n; ++i)
      assert_int_equal (must_find (ls, base + i), i + 1);
    verify_slots (ls);
    dedup_log_store_free (ls);
  }
}

/* Nine entries for two buckets: the ninth fails and all of the others stay
 * where they were, byte by byte. */
static void
test_failed_insert_changes_nothing (void **state)
{
  struct dedup_log_store *ls;
  struct dedup_hash before[64], after[64], h;
  uint64_t v_before[64], v_after[64];
  unsigned i;

  assert_int_equal (dedup_log_store_new (4, &ls), 0);
  for (i = 0; i < 8; ++i) {
    h = hash_in (3, 9, (uint8_t) i);
    assert_int_equal (dedup_log_store_insert (ls, &h, 100 + i), 0);
  }
  memset (before, 0, sizeof before);
  memset (after, 0, sizeof after);
  memset (v_before, 0, sizeof v_before);
  memset (v_after, 0, sizeof v_after);
  for (i = 0; i < 64; ++i)
    dedup_log_store_slot (ls, i, &before[i], &v_before[i]);
  h = hash_in (3, 9, 8);
  assert_int_equal (dedup_log_store_insert (ls, &h, 108), -ENOSPC);
  for (i = 0; i < 64; ++i)
    dedup_log_store_slot (ls, i, &after[i], &v_after[i]);
  assert_memory_equal (before, after, sizeof before);
  assert_memory_equal (v_before, v_after, sizeof v_before);
  assert_int_equal (dedup_log_store_count (ls), 8);

  /* A hash that is there is replaced all the same. */
  h = hash_in (3, 9, 7);
  assert_int_equal (dedup_log_store_insert (ls, &h, DEDUP_DELETED), 0);
  verify_slots (ls);
  dedup_log_store_free (ls);
}

/* Random insertions, replacements and tombstones against a plain array. */
static void
test_model (void **state)
{
  enum { KEYS = 300 };
  static uint64_t model[KEYS];
  struct dedup_log_store *ls;
  uint64_t seed = 12345;
  unsigned i, step;

  memset (model, 0, sizeof model);
  assert_int_equal (dedup_log_store_new (6, &ls), 0);
  for (step = 0; step < 20000; ++step) {
    const uint64_t rnd = dedup_checksum (&seed, sizeof seed);
    const unsigned key = rnd % KEYS;
    const struct dedup_hash h = hash_of (key);
    const uint64_t v = rnd >> 60 == 0 ? DEDUP_DELETED : 1 + (rnd >> 32);
    uint64_t got;
    int r;

    seed++;
    r = dedup_log_store_insert (ls, &h, v);
    if (r == 0)
      model[key] = v;
    else {
      assert_int_equal (r, -ENOSPC);
      assert_int_equal (model[key], 0);
    }
    if (step % 64 != 0)
      continue;
    for (i = 0; i < KEYS; ++i) {
      const struct dedup_hash k = hash_of (i);

      assert_int_equal (dedup_log_store_lookup (ls, &k, &got), model[i] != 0);
      if (model[i] != 0)
        assert_true (got == model[i]);
    }
  }
  assert_true (dedup_log_store_count (ls) > 200);
  assert_true (dedup_log_store_deleted (ls) > 0);
  verify_slots (ls);
  dedup_log_store_free (ls);
}

/* --- Copies --------------------------------------------------------------- */

enum { COPY_KEYS = 1500 };

struct copied {
  uint64_t model[COPY_KEYS];     /* when the copy was started */
  struct dedup_log_copy c;
  uint8_t parts[64];
  size_t nr;
};

static void
take_entry (void *opaque, const struct dedup_entry *e)
{
  struct copied *x = opaque;
  struct dedup_hash h;
  unsigned key;

  for (key = 0; key < COPY_KEYS; key++) {
    h = hash_of (key);
    if (dedup_hash_equal (&h, &e->hash))
      break;
  }
  assert_true (key < COPY_KEYS);
  assert_true (x->model[key] == e->value);      /* and it was not taken yet */
  x->model[key] = 0;
  x->nr++;
}

static void
start_copy (struct copied *x, struct dedup_log_store *ls,
            const uint64_t *model)
{
  memset (x, 0, sizeof *x);
  memcpy (x->model, model, sizeof x->model);
  x->c = (struct dedup_log_copy) { .take = take_entry, .opaque = x,
                                   .copied = x->parts };
  assert_in_range (dedup_log_copy_parts (ls), 2, sizeof x->parts);
  dedup_log_copy_start (&x->c, ls);
}

static void
assert_copied (const struct copied *x)
{
  unsigned key;

  for (key = 0; key < COPY_KEYS; key++)
    assert_true (x->model[key] == 0);
}

/* Copies that are made in parts, while entries are inserted, replaced and moved, have
 * what there was when they were started. */
static void
test_copies (void **state)
{
  static uint64_t model[COPY_KEYS];
  static struct copied a, b;
  struct dedup_log_store *ls;
  uint64_t seed = 99;
  unsigned step, round;

  memset (model, 0, sizeof model);
  assert_int_equal (dedup_log_store_new (9, &ls), 0);
  for (round = 0; round < 12; round++) {
    start_copy (&a, ls, model);
    for (step = 0; step < 400; step++) {
      const uint64_t rnd = dedup_checksum (&seed, sizeof seed);
      const unsigned key = rnd % COPY_KEYS;
      const struct dedup_hash h = hash_of (key);

      seed++;
      if (dedup_log_store_insert (ls, &h, 1 + (rnd >> 32)) == 0)
        model[key] = 1 + (rnd >> 32);
      if (step == 30)
        start_copy (&b, ls, model);
      if (step % 20 == 19)
        (void) dedup_log_copy_some (&a.c, 1);
    }
    while (dedup_log_copy_some (&a.c, 3))
      ;
    assert_copied (&a);
    if (round % 3 == 0)         /* it is given up */
      dedup_log_copy_stop (&b.c);
    while (dedup_log_store_let_copy (ls, 2))
      ;
    assert_false (dedup_log_copy_some (&b.c, 1));
    if (round % 3 != 0)
      assert_copied (&b);
    if (round == 8) {
      dedup_log_store_clear (ls);
      memset (model, 0, sizeof model);
    }
  }
  assert_true (a.nr > 500);
  dedup_log_store_free (ls);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_buckets),
    cmocka_unit_test (test_limits),
    cmocka_unit_test (test_fill_to_capacity),
    cmocka_unit_test (test_failed_insert_changes_nothing),
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_copies),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
