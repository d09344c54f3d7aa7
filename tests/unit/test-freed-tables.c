/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that a table which is freed while a checkpoint is being written is kept until
 * the next one (law 13, docs/on-disk.md section 11.4).
 *
 * The active disk and a clone of it share an L2 table.  Each is written to while the
 * checkpoint writes tables: the first write copies the table, and the second one copies
 * it again and frees it.  A replay from that checkpoint on makes both copies once more,
 * so the table's cluster must not hold anything else by then.  Much new data is written
 * and flushed behind the checkpoint, and its place is looked for at that cluster first.
 * Then the process ends without a close, and both disks must be as they were.
 *
 * The code is also broken (common/mutation.h), so that the cluster is used again: then
 * they are not.  In random workloads all of that rarely comes together.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "checked.h"
#include "dedup.h"
#include "image.h"
#include "mutation.h"
#include "splitmix.h"

#define CLUSTER 4096u
#define NR 2048u               /* guest clusters */
#define OLD 40u                /* have data that both disks share */
#define FIRST_NEW 512u         /* another L2 table from here on */
#define PART 64u               /* clusters of new data for each flush: as many as do
                                * not go to prewritten clusters */
#define PARTS 20u

enum mutation dedup_mutation;

struct world {
  struct io_store *memory, *io;
  struct dedup_pool *pool;
  unsigned clone;              /* root */
  uint64_t active[NR], other[OLD];     /* contents of the active disk and the clone */
  uint64_t last_id;
  bool in_checkpoint;          /* both disks are written to at its first write, */
  uint64_t host_idx;           /* which frees the table in this cluster */
};

static void
fill (uint8_t *p, uint64_t id)
{
  uint64_t x = id, v;
  size_t i;

  for (i = 0; i < CLUSTER / 8; i++) {
    v = id ? splitmix64 (&x) : 0;
    memcpy (p + 8 * i, &v, 8);
  }
}

static void
write_new (struct world *w, unsigned root, uint64_t *contents, uint64_t guest_idx,
           size_t nr)
{
  CLEANUP_FREE uint8_t *buf = malloc (nr * CLUSTER);

  for (size_t i = 0; i < nr; i++) {
    contents[guest_idx + i] = ++w->last_id;
    fill (buf + i * CLUSTER, w->last_id);
  }
  assert_int_equal (dedup_write (w->pool, root, buf, guest_idx, nr), 0);
}

static int
io_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;
  const struct qcow2_freed *f;

  if (call == IO_PWRITE && w->in_checkpoint) {
    w->in_checkpoint = false;
    write_new (w, QCOW2_ROOT_ACTIVE, w->active, 1, 1);
    write_new (w, w->clone, w->other, 2, 1);
    f = &dedup_image (w->pool)->disks.freed[0];
    assert_int_equal (f->nr, 1);
    assert_int_equal (f->v[0].count, 1);
    w->host_idx = f->v[0].host_idx;
  }
  return 0;
}

static void
open_image (struct world *w)
{
  struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20,
  };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->pool, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static void
run_jobs (struct world *w, unsigned jobs)
{
  const unsigned due = dedup_due (w->pool, NULL) & jobs;

  for (unsigned job = 1; job <= jobs; job <<= 1)
    if ((due & job) || ((job & jobs) == DEDUP_JOB_COMMIT))
      assert_int_equal (dedup_run (w->pool, job), 0);
}

static void
make_disks (struct world *w)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 5 },
    .order = 8, .journal_areas = 4,
  };
  struct fault f = { 0 };

  assert_int_equal (io_memory_new (0, &w->memory), 0);
  assert_int_equal (io_faulty_new (w->memory, io_cb, w, &w->io), 0);
  assert_int_equal (dedup_create (w->io, &p, &f), 0);
  open_image (w);
  while (dedup_due (w->pool, NULL) & DEDUP_JOB_SCAN)
    run_jobs (w, DEDUP_JOB_SCAN);
  write_new (w, QCOW2_ROOT_ACTIVE, w->active, 0, OLD);
  memcpy (w->other, w->active, sizeof w->other);
  assert_int_equal (dedup_flush (w->pool), 0);
  run_jobs (w, DEDUP_JOB_COMMIT);       /* fills the overwrite reserve */
  assert_int_equal (dedup_disk_clone (w->pool, QCOW2_ROOT_ACTIVE, "clone", true,
                                      &w->clone, &f), 0);
}

/* Writes new data, for which the cluster of the freed table is looked at first; returns
 * whether that was taken. */
static bool
write_on (struct world *w)
{
  struct qcow2_image *img = dedup_image (w->pool);
  const uint64_t host_idx = w->host_idx;
  struct qcow2_extent e[PART];
  uint64_t g;
  int nr;

  for (g = FIRST_NEW; g < FIRST_NEW + PARTS * PART; g += PART) {
    lock_acquire (qcow2_lock (img));
    img->alloc.cursor = host_idx;
    lock_release (qcow2_lock (img));
    write_new (w, QCOW2_ROOT_ACTIVE, w->active, g, PART);
    assert_int_equal (dedup_flush (w->pool), 0);
    run_jobs (w, DEDUP_JOB_COMMIT | DEDUP_JOB_JOURNAL | DEDUP_JOB_FREEZE);
    nr = qcow2_map (img, QCOW2_ROOT_ACTIVE, g * CLUSTER, PART * CLUSTER, e, PART);
    for (int i = 0; i < nr; i++)
      if (e[i].kind == QCOW2_DATA && e[i].host_off / CLUSTER <= host_idx &&
          host_idx < (e[i].host_off + e[i].len) / CLUSTER)
        return true;
  }
  return false;
}

/* Returns how many clusters of a disk cannot be read, or hold something else. */
static unsigned
count_wrong (struct world *w, unsigned root, const uint64_t *contents, size_t nr)
{
  uint8_t got[CLUSTER], want[CLUSTER];
  unsigned wrong = 0;

  for (size_t g = 0; g < nr; g++) {
    fill (want, contents[g]);
    wrong += dedup_read (w->pool, root, got, g * CLUSTER, CLUSTER) < 0 ||
      memcmp (got, want, CLUSTER) != 0;
  }
  return wrong;
}

/* Returns how many clusters are wrong after the crash.  *REUSED: the table's cluster got
 * data before. */
static unsigned
run (enum mutation m, bool *reused)
{
  struct world w = { .memory = NULL };
  unsigned wrong;

  dedup_mutation = m;
  make_disks (&w);
  w.in_checkpoint = true;
  assert_int_equal (dedup_run (w.pool, DEDUP_JOB_CHECKPOINT), 0);
  assert_false (w.in_checkpoint);
  *reused = write_on (&w);
  dedup_free (w.pool);
  dedup_mutation = MUTATION_NONE;
  open_image (&w);
  wrong = count_wrong (&w, QCOW2_ROOT_ACTIVE, w.active, NR) +
    count_wrong (&w, w.clone, w.other, OLD);
  print_message ("%u clusters are wrong\n", wrong);
  dedup_free (w.pool);
  io_close (w.io);
  return wrong;
}

static void
test_a_freed_table_is_kept (void **state)
{
  bool reused;

  assert_int_equal (run (MUTATION_NONE, &reused), 0);
  assert_false (reused);
}

static void
test_too_early_is_caught (void **state)
{
  bool reused;

  assert_int_not_equal (run (MUTATION_LAW_13_TOO_EARLY, &reused), 0);
  assert_true (reused);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_freed_table_is_kept),
    cmocka_unit_test (test_too_early_is_caught),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
