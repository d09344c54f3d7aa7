/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that the journal keeps to its maximum of areas while much is logged and few
 * entries are made, so that a log store which is nearly full is logged again and again.
 *
 * Breaks if: it is logged again only when there is no room left for that, which adds
 * areas each time, up to the limit of the format; there the newest entries of the index
 * are dropped, and a line says that there is no space.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "checked.h"
#include "pool.h"

#define CLUSTER 512u
#define PER_WRITE 64u
#define NR_CLUSTERS 32768u
/* A log store of this order holds 15,237 entries, which take 158 blocks of the journal
 * when they are logged again.  An area has 128. */
#define ORDER 12u
#define NR_UNIQUE 14000u
#define MAX_AREAS 8u
/* How often what is logged fills all areas that the journal may have. */
#define NR_TURNS 4u

static uint8_t buf[PER_WRITE * CLUSTER];
static uint64_t nr_written;

/* Runs what the loop of a server would run at once. */
static void
run_upkeep (struct dedup_pool *d)
{
  static const enum dedup_job jobs[] = {
    DEDUP_JOB_COMMIT, DEDUP_JOB_JOURNAL, DEDUP_JOB_CHECKPOINT, DEDUP_JOB_FREEZE,
    DEDUP_JOB_FILTERS, DEDUP_JOB_SCAN, DEDUP_JOB_MERGE,
  };
  unsigned urgent;

  (void) dedup_due (d, &urgent);
  for (size_t i = 0; i < sizeof jobs / sizeof jobs[0]; i++)
    if (urgent & jobs[i])
      assert_int_equal (dedup_run (d, jobs[i]), 0);
}

/* Writes contents that are new until there are NR_UNIQUE, and then known ones. */
static void
write_some (struct dedup_pool *d)
{
  uint64_t id;

  for (unsigned i = 0; i < PER_WRITE; i++, nr_written++) {
    id = nr_written < NR_UNIQUE ? nr_written : nr_written * 7919 % NR_UNIQUE;
    id++;                       /* not a cluster of zeroes */
    memcpy (buf + i * CLUSTER, &id, sizeof id);
  }
  assert_int_equal (dedup_write (d, QCOW2_ROOT_ACTIVE, buf, nr_written * 13 %
                                 (NR_CLUSTERS - PER_WRITE), PER_WRITE), 0);
}

static uint64_t
journal_seq (struct dedup_pool *d)
{
  LOCK_FOR_SCOPE (d->base.lock);

  return dedup_journal_seq_locked (d->store.journal);
}

static void
test_packing_adds_no_areas (void **state)
{
  struct dedup_create_params c = {
    .image = { .virtual_size = NR_CLUSTERS * CLUSTER, .cluster_bits = 9,
               .refcount_order = 5 },
    .order = ORDER, .journal_areas = MAX_AREAS,
  };
  struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 16 << 20,
  };
  struct fault f = { 0 };
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t blocks;

  (void) state;
  assert_int_equal (io_memory_new (0, &io), 0);
  if (dedup_create (io, &c, &f) < 0 || dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("%s", f.msg);
  blocks = MAX_AREAS * dedup_area_blocks (&d->store);
  while (journal_seq (d) < NR_TURNS * blocks) {
    write_some (d);
    run_upkeep (d);
    assert_in_range (d->store.config->nr_areas, 1, MAX_AREAS);
  }
  assert_int_equal (d->store.config->index.nr_segments, 0);     /* none was frozen */
  assert_int_equal (dedup_finish (d), 0);
  dedup_free (d);
  io_close (io);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_packing_adds_no_areas),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
