/* SPDX-License-Identifier: BSD-3-Clause */
/* For tests of the changing side of qcow2fmt: an image in memory with an
 * anchor and a log that keeps all changes, and the small operations that
 * tests are made of. */
#ifndef TEST_QCOW2_ENV_H
#define TEST_QCOW2_ENV_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bitset.h"
#include "checked.h"
#include "image.h"
#include "splitmix.h"

#define UNUSED __attribute__ ((__unused__))
#define ok(call) assert_int_equal ((call), 0)

/* --- Random -------------------------------------------------------------- */

static uint64_t seed;   /* of random runs: TEST_SEED repeats one */

static UNUSED uint64_t
rnd_of (uint64_t *state, uint64_t n)
{
  return splitmix64 (state) % n;
}

static UNUSED uint64_t
rnd (uint64_t n)
{
  return rnd_of (&seed, n);
}

/* --- An image with a log ------------------------------------------------- */

struct env {
  struct io_store *io;
  struct qcow2_image *img;
  struct qcow2_change *log;
  size_t nr_log, max_log;
};

static UNUSED void
record_locked (void *opaque, const struct qcow2_change *c)
{
  struct env *e = opaque;

  if (e->nr_log == e->max_log) {
    e->max_log = e->max_log ? e->max_log * 2 : 1024;
    e->log = realloc (e->log, e->max_log * sizeof *e->log);
    assert_non_null (e->log);
  }
  e->log[e->nr_log++] = *c;
}

static UNUSED uint64_t
seq_locked (void *opaque)
{
  return ((struct env *) opaque)->nr_log;
}

static size_t env_cache_bytes;   /* the least that is possible */

static UNUSED struct qcow2_image *
open_image (struct io_store *io, bool writable)
{
  struct qcow2_open_params p = { .writable = writable,
                                 .cache_bytes = env_cache_bytes,
                                 .allow_recovery = true };
  struct qcow2_image *img;
  struct fault f = { 0 };

  if (qcow2_open (io, &p, &img, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return img;
}

static UNUSED void
env_open (struct env *e)
{
  struct qcow2_log log = { record_locked, seq_locked, e };

  e->img = open_image (e->io, true);
  qcow2_set_log (e->img, &log);
}

static UNUSED void
env_reopen (struct env *e)
{
  qcow2_close (e->img);
  env_open (e);
}

/* Retry CALL, which returns -EAGAIN with the lock held. */
#define RETRY(txn, call)                                        \
  __extension__ ({                                              \
    int r_;                                                     \
    while ((r_ = (call)) == -EAGAIN) {                          \
      lock_release (&(txn)->img->lock);                         \
      ok (qcow2_txn_load (txn));                                \
      lock_acquire (&(txn)->img->lock);                         \
    }                                                           \
    r_;                                                         \
  })

static UNUSED void
writeback (struct qcow2_image *img)
{
  struct qcow2_writeback *wb;

  lock_acquire (&img->lock);
  ok (qcow2_writeback_begin_locked (img, &wb));
  lock_release (&img->lock);
  ok (qcow2_writeback_write (wb));
  lock_acquire (&img->lock);
  qcow2_writeback_end_locked (wb, true);
  lock_release (&img->lock);
}

static UNUSED void
apply_all (struct qcow2_image *img, const struct qcow2_change *c, size_t nr)
{
  struct qcow2_txn txn;

  for (size_t i = 0; i < nr; ++i) {
    qcow2_txn_begin (img, &txn);
    lock_acquire (&img->lock);
    ok (RETRY (&txn, qcow2_apply_locked (&txn, &c[i])));
    qcow2_txn_end_locked (&txn);
    lock_release (&img->lock);
  }
}

/* Give the image in IO an anchor for MAX_CLUSTERS host clusters. */
static UNUSED void
adopt (struct io_store *io, uint64_t max_clusters)
{
  struct qcow2_image *img = open_image (io, true), *again;
  uint64_t area = MAX_OF (img->header.geo.cluster_size, 65536);
  uint8_t ext[QCOW2_STORE_EXTENSION_SIZE] = { 0 };
  struct qcow2_plan *plan;
  struct fault f = { 0 };

  if (qcow2_plan_new (img, &area, 1, max_clusters, &plan, &f) < 0)
    fail_msg ("plan: %s", f.msg);
  ok (qcow2_plan_write (img, plan));
  ok (qcow2_plan_commit_header (img, plan, ext, &f));
  again = open_image (io, true);
  apply_all (again, plan->changes, plan->nr_changes);
  writeback (again);
  ok (qcow2_set_recovery_bit (again, false));
  qcow2_plan_free (plan);
  qcow2_close (img);
  qcow2_close (again);
}

static UNUSED void
env_new_for (struct env *e, unsigned cluster_bits, unsigned refcount_order,
             uint64_t guest_clusters, uint64_t max_clusters)
{
  struct qcow2_create_params p = {
    .virtual_size = guest_clusters << cluster_bits,
    .cluster_bits = cluster_bits, .refcount_order = refcount_order,
  };
  struct fault f = { 0 };

  memset (e, 0, sizeof *e);
  ok (io_memory_new (0, &e->io));
  if (qcow2_create (e->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  adopt (e->io, max_clusters);
  env_open (e);
}

static UNUSED void
env_new (struct env *e, unsigned cluster_bits, unsigned refcount_order,
         uint64_t guest_clusters)
{
  env_new_for (e, cluster_bits, refcount_order, guest_clusters, 32768);
}

static UNUSED void
env_free (struct env *e)
{
  qcow2_close (e->img);
  io_close (e->io);
  free (e->log);
}

static UNUSED struct io_store *
clone_store (struct io_store *io)
{
  int64_t size = io_size (io);
  uint8_t *buf = malloc (size);
  struct io_store *copy;

  ok (io_pread (io, buf, size, 0));
  ok (io_memory_new (0, &copy));
  ok (io_pwrite (copy, buf, size, 0));
  free (buf);
  return copy;
}

/* qemu-img's opinion of what is in IO. */
static UNUSED void
check_with_qemu (struct io_store *io)
{
  char path[] = "/tmp/test-qcow2-XXXXXX", cmd[200];
  int64_t size = io_size (io);
  uint8_t *buf = malloc (size);
  int fd = mkstemp (path), r;

  if (system ("command -v qemu-img >/dev/null") == 0) {
    ok (io_pread (io, buf, size, 0));
    assert_int_equal (pwrite (fd, buf, size, 0), size);
    snprintf (cmd, sizeof cmd, "qemu-img check -q -f qcow2 %s", path);
    r = system (cmd);
    if (r != 0)
      fail_msg ("qemu-img check: status %d", r);
  }
  free (buf);
  close (fd);
  unlink (path);
}

/* --- Looking ------------------------------------------------------------- */

static UNUSED uint64_t
refcount_of (struct qcow2_image *img, uint64_t host_idx, bool *anchored)
{
  struct qcow2_txn txn;
  uint64_t n;
  bool dummy;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, qcow2_get_refcount_locked (&txn, host_idx, &n,
                                              anchored ? anchored : &dummy)));
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return n;
}

static UNUSED uint64_t
entry_of (struct qcow2_image *img, unsigned root, uint64_t guest_idx)
{
  struct qcow2_txn txn;
  uint64_t entry;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, qcow2_get_entry_locked (&txn, root, guest_idx, &entry)));
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return entry;
}

/* --- Changing ------------------------------------------------------------ */

static UNUSED void
change_l2 (struct qcow2_txn *txn, uint64_t guest_idx, uint64_t entry)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_L2, .guest_idx = guest_idx,
                            .count = 1, .entry = entry };

  ok (qcow2_change_locked (txn, &c));
}

/* Everything for changing GUEST_IDX, and HOST_IDX if not 0; *OLD is its
 * entry.  May return -EAGAIN. */
static UNUSED int
prepare (struct qcow2_txn *txn, uint64_t guest_idx, uint64_t host_idx,
         uint64_t *old)
{
  int r;

  if ((r = qcow2_prepare_entry_locked (txn, 0, guest_idx)) < 0 ||
      (r = qcow2_get_entry_locked (txn, 0, guest_idx, old)) < 0 ||
      (host_idx && (r = qcow2_prepare_host_locked (txn, host_idx, 1)) < 0))
    return r;
  return qcow2_prepare_drop_locked (txn, *old, 1);
}

static UNUSED void
change_refcount (struct qcow2_txn *txn, uint64_t host_idx, uint64_t refcount,
                 bool anchored)
{
  struct qcow2_change c = { .type = QCOW2_CHANGE_REFCOUNT, .count = 1,
                            .host_idx = host_idx, .refcount = refcount,
                            .anchored = anchored };

  ok (qcow2_change_locked (txn, &c));
}

/* GUEST_IDX := HOST_IDX (0: nothing), which gets REFCOUNT. */
static UNUSED void
point_locked (struct qcow2_txn *txn, uint64_t guest_idx, uint64_t host_idx,
              uint64_t refcount, uint64_t old)
{
  if (host_idx)
    change_refcount (txn, host_idx, refcount, true);
  change_l2 (txn, guest_idx, host_idx * txn->img->header.geo.cluster_size);
  ok (qcow2_drop_locked (txn, old, 1, true));
}

/* A new cluster at GUEST_IDX; returns its host index, 0: no space. */
static UNUSED uint64_t
write_new (struct qcow2_image *img, uint64_t guest_idx)
{
  struct qcow2_run run = { 0 };
  struct qcow2_txn txn;
  uint64_t old;
  int r;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  r = qcow2_reserve_locked (img, 1, &run);
  if (r == 0) {
    r = RETRY (&txn, prepare (&txn, guest_idx, run.host_idx, &old));
    if (r < 0)
      qcow2_unreserve_locked (img, &run);
    else
      point_locked (&txn, guest_idx, run.host_idx, 2, old);
  }
  assert_true (r == 0 || r == -ENOSPC);
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return r == 0 ? run.host_idx : 0;
}

/* Link GUEST_IDX to HOST_IDX: 0, -ERANGE, -ENOENT. */
static UNUSED int
link_to (struct qcow2_image *img, uint64_t guest_idx, uint64_t host_idx)
{
  struct qcow2_txn txn;
  uint64_t old, refcount;
  bool anchored;
  int r;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  r = RETRY (&txn, qcow2_hold_locked (&txn, host_idx,
                                      img->header.geo.refcount_max));
  if (r == 0) {
    ok (RETRY (&txn, prepare (&txn, guest_idx, host_idx, &old)));
    ok (qcow2_get_refcount_locked (&txn, host_idx, &refcount, &anchored));
    point_locked (&txn, guest_idx, host_idx, refcount + 1, old);
    qcow2_unhold_locked (&txn, host_idx);
  }
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return r;
}

static UNUSED void
unmap (struct qcow2_image *img, uint64_t guest_idx)
{
  struct qcow2_txn txn;
  uint64_t old;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, prepare (&txn, guest_idx, 0, &old)));
  point_locked (&txn, guest_idx, 0, 0, old);
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
}

static UNUSED void
release_all (struct qcow2_image *img)
{
  struct qcow2_run runs[16];
  size_t nr;

  lock_acquire (&img->lock);
  while ((nr = qcow2_quarantine_take_locked (img, UINT64_MAX, runs, 16)) > 0)
    qcow2_release_locked (img, runs, nr);
  lock_release (&img->lock);
}

static UNUSED void
set_refcount (struct qcow2_image *img, uint64_t host_idx, uint64_t refcount,
              bool anchored)
{
  struct qcow2_txn txn;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, qcow2_prepare_host_locked (&txn, host_idx, 1)));
  change_refcount (&txn, host_idx, refcount, anchored);
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
}

static UNUSED int
drop (struct qcow2_image *img, uint64_t entry, unsigned times)
{
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  r = RETRY (&txn, qcow2_prepare_drop_locked (&txn, entry, 1));
  while (r == 0 && times-- > 0)
    r = qcow2_drop_locked (&txn, entry, 1, true);
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return r;
}

static UNUSED uint64_t
quarantined (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->lock);
  return qcow2_quarantined_locked (img);
}

static UNUSED uint64_t
reserve_one (struct qcow2_image *img)
{
  struct qcow2_run run;
  LOCK_FOR_SCOPE (&img->lock);

  ok (qcow2_reserve_locked (img, 1, &run));
  return run.host_idx;
}

static UNUSED int
apply_one (struct qcow2_image *img, struct qcow2_change c)
{
  struct qcow2_txn txn;
  int r;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  r = RETRY (&txn, qcow2_apply_locked (&txn, &c));
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return r;
}

static UNUSED void
seed_from_environment (void)
{
  const char *s = getenv ("TEST_SEED");

  seed = s ? strtoull (s, NULL, 0) : (uint64_t) getpid ();
  print_message ("TEST_SEED=%llu\n", (unsigned long long) seed);
}

#endif
