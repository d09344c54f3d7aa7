/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that the space of free clusters is returned to the host: of clusters
 * that were overwritten, trimmed, or left by an earlier session; but not of
 * those that writers need, that an entry names whatever its refcount says, or
 * that a crash might bring back.
 */
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>

#include "checked.h"
#include "pool.h"

#define CLUSTER 4096
#define NR 1024            /* guest clusters */
#define FEW 64
#define AT_ONCE 256

struct world {
  struct io_store *below, *io;
  struct dedup_pool *d;
  uint64_t next;           /* number of the next content */
  unsigned discards;
  int discard_result;
  bool unreadable;
  bool no_config;          /* there is no space for a configuration */
  uint64_t full_from;      /* the host is: there is no space from here; 0: no */
  unsigned syncs;
  struct log_sink sink;
  unsigned nr_lines;       /* of errors, in the log */
  bool writes_meanwhile;   /* a thread writes while the first discard is done */
  pthread_t writer;
  int writer_result;
};

static void *write_one (void *opaque);

static int
on_call (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;

  if (call == IO_PREAD && w->unreadable)
    return -EIO;
  if (call == IO_PWRITE && w->no_config &&
      host_off - w->d->store.ext.config_off < w->d->store.ext.config_size)
    return -ENOSPC;
  if ((call == IO_PWRITE || call == IO_ALLOCATE) && w->full_from > 0 &&
      host_off + len > w->full_from)
    return -ENOSPC;
  w->syncs += call == IO_SYNC;
  if (call != IO_DISCARD)
    return 0;
  if (w->writes_meanwhile) {
    w->writes_meanwhile = false;
    assert_int_equal (pthread_create (&w->writer, NULL, write_one, w), 0);
    usleep (200000);             /* it waits by then, or has failed */
  }
  w->discards++;
  return w->discard_result;
}

static void
count_line (void *opaque, enum log_level level, const char *line)
{
  struct world *w = opaque;

  w->nr_lines += level == LOG_ERROR;
}

static void
open_disk (struct world *w, bool writable)
{
  const struct log_sink sink = { count_line, w };
  struct dedup_open_params p = {
    .path = "test", .log = &w->sink, .writable = writable, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 4 << 20,
  };
  struct fault f = { 0 };

  w->sink = sink;
  if (dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static int
setup (void **state)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 5 },
    .order = 16,             /* a journal of some MiB */
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  assert_int_equal (io_memory_new (0, &w->below), 0);
  assert_int_equal (io_faulty_new (w->below, on_call, w, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_disk (w, true);
  *state = w;
  return 0;
}

static void
close_disk (struct world *w)
{
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_give_back_all (w->d);
  dedup_free (w->d);
  w->d = NULL;
}

/* Closed and checked: neither leaks nor anything worse. */
static int
teardown (void **state)
{
  struct qcow2_check_params p = { 0 };
  struct dedup_check_result r;
  struct world *w = *state;
  struct fault f = { 0 };

  if (w->d)
    close_disk (w);
  open_disk (w, false);
  assert_int_equal (dedup_check (w->d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  dedup_free (w->d);
  io_close (w->io);
  free (w);
  return 0;
}

/* New data in NR clusters from FIRST on. */
static void
write_new (struct world *w, uint64_t first, size_t nr)
{
  uint8_t *buf = malloc (nr * CLUSTER);
  size_t i;

  assert_non_null (buf);
  for (i = 0; i < nr; i++) {
    memset (buf + i * CLUSTER, 0x5a, CLUSTER);
    memcpy (buf + i * CLUSTER, &(uint64_t) { ++w->next }, 8);
  }
  for (i = 0; i < nr; i += AT_ONCE)
    assert_int_equal (dedup_write (w->d, 0, buf + i * CLUSTER, first + i,
                                   MIN_OF (nr - i, AT_ONCE)), 0);
  free (buf);
}

/* How many blocks of the file hold such data? */
static unsigned
blocks_with_data (struct world *w)
{
  uint8_t buf[CLUSTER];
  uint64_t size = (uint64_t) io_size (w->below), off;
  unsigned n = 0, i;

  for (off = 0; off < size; off += CLUSTER) {
    assert_int_equal (io_pread (w->below, buf, CLUSTER, off), 0);
    for (i = 8; i < CLUSTER && buf[i] == 0x5a; i++)
      ;
    n += i == CLUSTER;
  }
  return n;
}

static void
run_due (struct world *w, unsigned jobs, unsigned times)
{
  unsigned job;

  while (times-- > 0)
    for (job = 1; job <= DEDUP_JOB_GIVE_BACK; job <<= 1)
      if (dedup_due (w->d, NULL) & jobs & job)
        assert_int_equal (dedup_run (w->d, job), 0);
}

/* As a server does that has nothing to do. */
static void
rest (struct world *w)
{
  run_due (w, ~0u, 12);
}

static void
test_what_was_overwritten_goes_back_at_rest (void **state)
{
  struct world *w = *state;

  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_flush (w->d), 0);
  assert_int_equal (blocks_with_data (w), 2 * FEW);
  rest (w);
  assert_int_equal (blocks_with_data (w), FEW);
  assert_false (dedup_due (w->d, NULL) & DEDUP_JOB_GIVE_BACK);
}

/* The records that freed them are not known durable. */
static void
test_nothing_goes_back_before_law_6_permits (void **state)
{
  struct world *w = *state;

  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  run_due (w, DEDUP_JOB_GIVE_BACK | DEDUP_JOB_SCAN, 4);
  assert_int_equal (dedup_flush (w->d), 0);
  run_due (w, DEDUP_JOB_GIVE_BACK | DEDUP_JOB_SCAN, 4);
  assert_int_equal (blocks_with_data (w), 2 * FEW);
}

/* Clusters that were freed and are taken again between two runs of the job are
 * needed; those that lie there all the time are not. */
static void
test_what_writers_use_again_stays (void **state)
{
  struct world *w = *state;
  unsigned discards, i;

  write_new (w, 0, NR / 2);
  for (i = 0; i < 6; i++) {
    write_new (w, 0, FEW);
    assert_int_equal (dedup_flush (w->d), 0);
    run_due (w, DEDUP_JOB_COMMIT, 4);
  }
  run_due (w, DEDUP_JOB_SCAN, 40);
  run_due (w, DEDUP_JOB_GIVE_BACK, 6);
  discards = w->discards;
  for (i = 0; i < 20; i++) {
    run_due (w, DEDUP_JOB_GIVE_BACK, 1);
    write_new (w, 0, FEW);       /* takes what the round before freed */
    assert_int_equal (dedup_flush (w->d), 0);
    run_due (w, DEDUP_JOB_COMMIT, 4);
  }
  assert_true (w->discards <= discards + 2);
}

/* Trimmed, and closed at once. */
static void
test_a_close_gives_back_what_was_freed (void **state)
{
  struct world *w = *state;
  int64_t size;

  write_new (w, 0, NR);
  assert_int_equal (dedup_flush (w->d), 0);
  size = io_size (w->below);
  assert_int_equal (dedup_unmap (w->d, 0, FEW, NR - FEW, DEDUP_TRIM), 0);
  dedup_stop_jobs (w->d);
  close_disk (w);
  assert_int_equal (blocks_with_data (w), FEW);
  assert_true (io_size (w->below) < size - NR / 2 * CLUSTER);
}

/* A session ends without a close: the next one finds what was forgotten. */
static void
test_what_a_crash_forgot_is_found (void **state)
{
  struct world *w = *state;

  write_new (w, 0, NR / 2);
  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_flush (w->d), 0);
  dedup_free (w->d);
  open_disk (w, true);
  assert_true (blocks_with_data (w) >= NR / 2 + FEW);
  rest (w);
  assert_int_equal (blocks_with_data (w), NR / 2);
}

/* --- Full devices, full hosts ------------------------------------------------ */

static void *
write_one (void *opaque)
{
  struct world *w = opaque;
  uint8_t buf[CLUSTER];

  memset (buf, 0x77, sizeof buf);
  w->writer_result = dedup_write (w->d, 0, buf, NR - 1, 1);
  return NULL;
}

#define MAX_RUNS 256

/* All that is free in the file; how many runs. */
static size_t
reserve_all (struct world *w, struct qcow2_run *runs)
{
  LOCK_FOR_SCOPE (w->d->base.lock);
  const uint64_t end = qcow2_frontier_locked (w->d->base.img);
  size_t n = 0;

  do
    assert_int_equal (qcow2_reserve_locked (w->d->base.img, FEW, &runs[n]), 0);
  while (runs[n].host_idx < end && ++n < MAX_RUNS);
  assert_true (n < MAX_RUNS);
  qcow2_unreserve_locked (w->d->base.img, &runs[n]);
  return n;
}

static void
unreserve_all (struct world *w, const struct qcow2_run *runs, size_t nr)
{
  LOCK_FOR_SCOPE (w->d->base.lock);

  while (nr-- > 0)
    qcow2_unreserve_locked (w->d->base.img, &runs[nr]);
}

/* The only clusters with space that are not in use are in quarantine.  When they
 * leave it or, if JOB, by the job, their space is given back, and while the host is
 * at it a thread writes: it waits for them. */
static void
write_while_all_is_given_back (struct world *w, bool job)
{
  struct qcow2_run runs[MAX_RUNS];
  size_t nr;

  run_due (w, DEDUP_JOB_SCAN, 40);
  nr = reserve_all (w, runs);
  w->full_from = (uint64_t) io_size (w->below);
  w->writes_meanwhile = !job;
  assert_int_equal (dedup_drain_quarantine (&w->d->upkeep), 0);
  if (job) {
    w->writes_meanwhile = true;
    run_due (w, DEDUP_JOB_GIVE_BACK, 12);
  }
  assert_false (w->writes_meanwhile);
  assert_int_equal (pthread_join (w->writer, NULL), 0);
  assert_int_equal (w->writer_result, 0);
  w->full_from = 0;
  unreserve_all (w, runs, nr);
}

static void
test_a_writer_waits_for_stale_clusters_that_are_emptied (void **state)
{
  struct world *w = *state;

  write_new (w, NR - 2, 1);      /* the tables are there */
  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  write_while_all_is_given_back (w, true);
}

static void
test_a_writer_waits_for_trimmed_clusters_that_are_emptied (void **state)
{
  struct world *w = *state;

  write_new (w, NR - 2, 1);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_unmap (w->d, 0, 0, FEW, DEDUP_TRIM), 0);
  write_while_all_is_given_back (w, false);
}

/* Nothing leaves quarantine while a configuration is owed.  So no commit is due
 * for it, and no writer makes one for each write. */
static void
test_quarantine_makes_no_commits_while_a_configuration_is_owed (void **state)
{
  struct world *w = *state;
  unsigned i, urgent, syncs;

  write_new (w, 0, NR);
  w->no_config = true;
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_CHECKPOINT), -ENOSPC);
  for (i = 0; i < 16; i++) {
    write_new (w, 0, NR);
    assert_int_equal (dedup_flush (w->d), 0);
  }
  syncs = w->syncs;
  write_new (w, 0, 8);
  assert_int_equal (w->syncs, syncs);
  assert_int_equal (dedup_flush (w->d), 0);
  assert_false (dedup_due (w->d, &urgent) & DEDUP_JOB_COMMIT);
  w->no_config = false;
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_CHECKPOINT), 0);
  assert_true (dedup_due (w->d, &urgent) & DEDUP_JOB_COMMIT);
  rest (w);
  assert_int_equal (blocks_with_data (w), NR);
}

/* A new disk moves the snapshot table.  Nothing leaves quarantine until a checkpoint has
 * written the new place into the header; so that is due, and no commit. */
static void
test_quarantine_asks_for_a_checkpoint_while_the_header_lacks_a_place (void **state)
{
  struct world *w = *state;
  struct fault f = { 0 };
  unsigned i, urgent, root, syncs;

  write_new (w, 0, NR);
  assert_int_equal (dedup_disk_create (w->d, "a", CLUSTER, &root, &f), 0);
  assert_int_equal (dedup_flush (w->d), 0);
  dedup_due (w->d, &urgent);
  assert_false (urgent & DEDUP_JOB_CHECKPOINT);
  for (i = 0; i < 16; i++) {
    write_new (w, 0, NR);
    assert_int_equal (dedup_flush (w->d), 0);
  }
  syncs = w->syncs;
  write_new (w, 0, 8);
  assert_int_equal (w->syncs, syncs);
  assert_int_equal (dedup_flush (w->d), 0);
  assert_false (dedup_due (w->d, &urgent) & DEDUP_JOB_COMMIT);
  assert_true (urgent & DEDUP_JOB_CHECKPOINT);
  assert_int_equal (dedup_run (w->d, DEDUP_JOB_CHECKPOINT), 0);
  assert_true (dedup_due (w->d, &urgent) & DEDUP_JOB_COMMIT);
  rest (w);
  assert_int_equal (blocks_with_data (w), NR);
}

/* --- Refcounts that are wrong ----------------------------------------------- */

/* Let the file say that the cluster of guest cluster GUEST_IDX is free: refcount
 * 0, not anchored.  Where it lies. */
static uint64_t
spoil_refcount (struct world *w, uint64_t guest_idx)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_REFCOUNT, .count = 1 };
  struct qcow2_writeback *wb;
  struct qcow2_extent ext;
  struct qcow2_txn txn;
  int r;

  assert_int_equal (qcow2_map (w->d->base.img, 0, guest_idx * CLUSTER, CLUSTER, &ext,
                               1), 1);
  c.host_idx = ext.host_off / CLUSTER;
  qcow2_txn_begin (w->d->base.img, &txn);
  lock_acquire (w->d->base.lock);
  while ((r = qcow2_apply_locked (&txn, &c)) == -EAGAIN) {
    lock_release (w->d->base.lock);
    assert_int_equal (qcow2_txn_load (&txn), 0);
    lock_acquire (w->d->base.lock);
  }
  assert_int_equal (r, 0);
  assert_int_equal (qcow2_writeback_begin_locked (w->d->base.img, &wb), 0);
  lock_release (w->d->base.lock);
  assert_int_equal (qcow2_writeback_write (wb), 0);
  lock_acquire (w->d->base.lock);
  qcow2_writeback_end_locked (wb, true);
  qcow2_txn_end_locked (&txn);
  lock_release (w->d->base.lock);
  return c.host_idx;
}

/* Freed clusters are left behind with their data, and one that is in use has
 * refcount 0: those go back, and that stays, and is not handed out. */
static void
test_what_an_entry_names_is_not_emptied (void **state)
{
  struct world *w = *state;
  struct qcow2_run run;
  uint64_t host_idx, id;
  uint8_t buf[CLUSTER];

  write_new (w, 0, NR / 2);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_finish (w->d), 0);
  host_idx = spoil_refcount (w, 100);
  dedup_free (w->d);
  open_disk (w, true);
  assert_int_equal (blocks_with_data (w), NR / 2 + FEW);
  rest (w);
  assert_int_equal (blocks_with_data (w), NR / 2);
  assert_int_equal (dedup_read (w->d, 0, buf, 100 * CLUSTER, CLUSTER), 0);
  memcpy (&id, buf, sizeof id);
  assert_int_equal (id, 101);
  lock_acquire (w->d->base.lock);
  while (qcow2_reserve_locked (w->d->base.img, 1, &run) == 0 &&
         run.host_idx < 4 * NR)
    assert_int_not_equal (run.host_idx, host_idx);
  lock_release (w->d->base.lock);
  dedup_free (w->d);

  /* So that it checks clean in the end: as it was. */
  open_disk (w, true);
  assert_int_equal (dedup_unmap (w->d, 0, 0, 100, DEDUP_TRIM), 0);
  dedup_free (w->d);
  w->d = NULL;
  io_close (w->io);
  setup (state);
  free (w);
}

/* Clears COPIED in the first entry of the disk's L1 table, in the file. */
static void
clear_copied (struct world *w)
{
  uint64_t off, e;

  assert_int_equal (io_pread (w->below, &off, 8, 40), 0);
  off = be64toh (off);
  assert_int_equal (io_pread (w->below, &e, 8, off), 0);
  e &= ~htobe64 (QCOW2_L2_COPIED);
  assert_int_equal (io_pwrite (w->below, &e, 8, off), 0);
}

/* A cluster in use has refcount 0, and the only table that names it is copied by
 * a write, because its L1 entry has no COPIED.  The copy is in memory only. */
static void
test_what_a_copied_table_names_is_not_emptied (void **state)
{
  struct world *w = *state;
  uint8_t buf[CLUSTER];
  uint64_t id;

  write_new (w, 0, NR / 2);
  assert_int_equal (dedup_finish (w->d), 0);
  spoil_refcount (w, 100);
  dedup_free (w->d);
  clear_copied (w);
  w->nr_lines = 0;
  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  write_new (w, 20, 1);
  run_due (w, DEDUP_JOB_GIVE_BACK, 12);
  assert_int_equal (w->nr_lines, 1);
  rest (w);
  assert_int_equal (dedup_read (w->d, 0, buf, 100 * CLUSTER, CLUSTER), 0);
  memcpy (&id, buf, sizeof id);
  assert_int_equal (id, 101);

  /* The refcount is wrong still: this image is done with. */
  dedup_free (w->d);
  w->d = NULL;
  io_close (w->io);
  setup (state);
  free (w);
}

/* The same for all clusters, up to the end of the file, where nobody finds out
 * that entries name them: IN_VAIN, the tables can't be read; else, the session
 * ends before that.  The file is not cut off. */
static void
close_with_a_tail_of_suspects (void **state, bool in_vain)
{
  struct world *w = *state;
  uint64_t i, id;
  uint8_t buf[CLUSTER];
  int64_t size;

  write_new (w, 0, NR / 2);
  close_disk (w);
  open_disk (w, true);
  size = io_size (w->below);
  for (i = 0; i < NR / 2; i++)
    spoil_refcount (w, i);
  dedup_free (w->d);
  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  if (in_vain) {
    w->unreadable = true;
    run_due (w, DEDUP_JOB_GIVE_BACK, 12);
    w->unreadable = false;
  }
  close_disk (w);
  assert_int_equal (io_size (w->below), size);
  open_disk (w, false);
  for (i = 0; i < NR / 2; i++) {
    assert_int_equal (dedup_read (w->d, 0, buf, i * CLUSTER, CLUSTER), 0);
    memcpy (&id, buf, sizeof id);
    assert_int_equal (id, i + 1);
  }
  dedup_free (w->d);

  /* The refcounts are wrong still: this image is done with. */
  w->d = NULL;
  io_close (w->io);
  setup (state);
  free (w);
}

/* What was freed before the scan came to it is named by the tables in the file
 * until they are written: that is no wrong refcount. */
static void
test_tables_in_the_file_may_be_old (void **state)
{
  struct world *w = *state;

  write_new (w, 0, NR / 2);
  close_disk (w);
  w->nr_lines = 0;
  open_disk (w, true);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_drain_quarantine (&w->d->upkeep), 0);
  assert_true (dedup_due (w->d, NULL) & DEDUP_JOB_SCAN);
  run_due (w, DEDUP_JOB_SCAN, 40);
  run_due (w, DEDUP_JOB_GIVE_BACK, 12);
  assert_int_equal (w->nr_lines, 0);
  assert_int_equal (blocks_with_data (w), NR / 2);
}

/* What is free holds tables from before, which name what is free.  One of them
 * becomes a new table, and the file has the old one until that is written. */
static void
test_tables_may_not_be_in_the_file_yet (void **state)
{
  struct world *w = *state;
  struct qcow2_run runs[MAX_RUNS];
  uint64_t table[CLUSTER / 8], idx;
  size_t nr, i, k = 0;

  write_new (w, 0, NR / 2);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  nr = reserve_all (w, runs);
  assert_true (nr > 0);
  for (i = 0; i < CLUSTER / 8; i++) {
    idx = runs[i % nr].host_idx + i / nr % runs[i % nr].count;
    table[i] = htobe64 (QCOW2_L2_COPIED | idx * CLUSTER);
  }
  for (i = 0; i < nr; i++)
    for (k = 0; k < runs[i].count; k++)
      assert_int_equal (io_pwrite (w->below, table, CLUSTER,
                                   (runs[i].host_idx + k) * CLUSTER), 0);
  dedup_free (w->d);
  w->nr_lines = 0;
  open_disk (w, true);
  run_due (w, DEDUP_JOB_SCAN, 40);
  write_new (w, NR - 1, 1);
  run_due (w, DEDUP_JOB_GIVE_BACK, 12);
  assert_int_equal (w->nr_lines, 0);
}

static void
test_a_tail_that_was_not_looked_at_is_not_cut_off (void **state)
{
  close_with_a_tail_of_suspects (state, false);
}

static void
test_a_tail_that_nobody_can_tell_of_is_not_cut_off (void **state)
{
  close_with_a_tail_of_suspects (state, true);
}

/* --- Hosts ------------------------------------------------------------------ */

static void
test_a_host_that_cannot_is_asked_once (void **state)
{
  struct world *w = *state;

  w->discard_result = -EOPNOTSUPP;
  write_new (w, 0, FEW);
  write_new (w, 0, FEW);
  assert_int_equal (dedup_flush (w->d), 0);
  rest (w);
  assert_int_equal (w->discards, 1);
  assert_false (dedup_due (w->d, NULL) & DEDUP_JOB_GIVE_BACK);
  assert_int_equal (dedup_unmap (w->d, 0, 0, FEW, DEDUP_TRIM), 0);
  rest (w);
  close_disk (w);
  assert_int_equal (w->discards, 1);
  w->discard_result = 0;
}

/* The space for overwriting on a full host is kept while the disk is in use. */
static void
test_spare_clusters_stay_until_the_close (void **state)
{
  struct world *w = *state;
  unsigned spare;

  write_new (w, 0, FEW);
  rest (w);
  write_new (w, 0, FEW);
  rest (w);
  lock_acquire (w->d->base.lock);
  spare = w->d->upkeep.reserve.nr;
  lock_release (w->d->base.lock);
  assert_true (spare > 0);
  rest (w);
  assert_int_equal (w->d->upkeep.reserve.nr, spare);
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_what_was_overwritten_goes_back_at_rest),
    TEST (test_nothing_goes_back_before_law_6_permits),
    TEST (test_what_writers_use_again_stays),
    TEST (test_a_close_gives_back_what_was_freed),
    TEST (test_what_a_crash_forgot_is_found),
    TEST (test_a_writer_waits_for_stale_clusters_that_are_emptied),
    TEST (test_a_writer_waits_for_trimmed_clusters_that_are_emptied),
    TEST (test_quarantine_makes_no_commits_while_a_configuration_is_owed),
    TEST (test_quarantine_asks_for_a_checkpoint_while_the_header_lacks_a_place),
    TEST (test_what_an_entry_names_is_not_emptied),
    TEST (test_what_a_copied_table_names_is_not_emptied),
    TEST (test_tables_in_the_file_may_be_old),
    TEST (test_tables_may_not_be_in_the_file_yet),
    TEST (test_a_tail_that_was_not_looked_at_is_not_cut_off),
    TEST (test_a_tail_that_nobody_can_tell_of_is_not_cut_off),
    TEST (test_a_host_that_cannot_is_asked_once),
    TEST (test_spare_clusters_stay_until_the_close),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
