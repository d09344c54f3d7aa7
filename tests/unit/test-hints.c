/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the hints.
 *
 * Breaks if: the table forgets what it has room for, answers with another
 * checksum's cluster, or grows past its limit.
 */
#include "hints.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "dedup-limits.h"
#include "hash.h"

static uint64_t
checksum_of (uint64_t i)
{
  return dedup_checksum (&i, sizeof i);
}

static struct dedup_hints *
make (uint64_t nr_clusters)
{
  struct dedup_hints *h;

  assert_int_equal (dedup_hints_new (nr_clusters, &h), 0);
  return h;
}

static void
finds_what_was_put_last (void **state)
{
  struct dedup_hints *h = make (1000);

  assert_int_equal (dedup_hints_find (h, checksum_of (1)), 0);
  dedup_hints_put (h, checksum_of (1), 11);
  dedup_hints_put (h, checksum_of (2), 22);
  dedup_hints_put (h, checksum_of (1), 33);
  assert_int_equal (dedup_hints_find (h, checksum_of (1)), 33);
  assert_int_equal (dedup_hints_find (h, checksum_of (2)), 22);
  assert_int_equal (dedup_hints_find (h, checksum_of (3)), 0);
  dedup_hints_free (h);
}

static void
keeps_most_of_as_many_as_it_is_made_for (void **state)
{
  const uint64_t nr = 1 << 16;
  struct dedup_hints *h = make (nr);
  uint64_t i, found = 0, v;

  for (i = 1; i <= nr; i++)
    dedup_hints_put (h, checksum_of (i), i);
  for (i = 1; i <= nr; i++) {
    v = dedup_hints_find (h, checksum_of (i));
    assert_true (v == i || v == 0);
    found += v == i;
  }
  /* Poisson of mean 8 in sets of 8: 86 % stay. */
  assert_in_range (found, nr * 84 / 100, nr * 88 / 100);
  dedup_hints_free (h);
}

static void
the_young_push_out_the_old (void **state)
{
  struct dedup_hints *h = make (1 << 12);
  uint64_t i, found = 0;

  for (i = 1; i <= 1 << 16; i++)
    dedup_hints_put (h, checksum_of (i), i);
  for (i = (1 << 16) - 1023; i <= 1 << 16; i++)
    found += dedup_hints_find (h, checksum_of (i)) == i;
  assert_in_range (found, 850, 1024);
  dedup_hints_free (h);
}

static void
a_cluster_that_does_not_fit_is_left_out (void **state)
{
  struct dedup_hints *h = make (1);

  dedup_hints_put (h, checksum_of (1), (UINT64_C (1) << 40) - 1);
  dedup_hints_put (h, checksum_of (2), UINT64_C (1) << 40);
  assert_int_equal (dedup_hints_find (h, checksum_of (1)),
                    (UINT64_C (1) << 40) - 1);
  assert_int_equal (dedup_hints_find (h, checksum_of (2)), 0);
  dedup_hints_free (h);
}

static void
memory_is_bounded (void **state)
{
  struct dedup_hints *h = make (UINT64_MAX);

  assert_in_range (dedup_hints_memory (h), DEDUP_MAX_HINTS * 8,
                   DEDUP_MAX_HINTS * 8 + 4096);
  dedup_hints_free (h);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (finds_what_was_put_last),
    cmocka_unit_test (keeps_most_of_as_many_as_it_is_made_for),
    cmocka_unit_test (the_young_push_out_the_old),
    cmocka_unit_test (a_cluster_that_does_not_fit_is_left_out),
    cmocka_unit_test (memory_is_bounded),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
