/* SPDX-License-Identifier: BSD-3-Clause */
/* Helpers of the regression tests: a world (fault-world.h) without a play,
 * with an open disk that is written one cluster at a time.
 */
#ifndef FAULT_REGRESS_H
#define FAULT_REGRESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <cmocka.h>

#include "pool.h"
#include "index-private.h"
#include "merge.h"
#include "fault-world.h"

static inline struct dedup_pool *
must_open (const struct shape *s, struct io_store *io, bool writable)
{
  struct dedup_open_params p;
  struct fault f = { 0 };
  struct dedup_pool *d = NULL;

  open_params (s, &p);
  p.writable = writable;
  if (dedup_open (io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return d;
}

static inline struct world *
world_open (const struct shape *s)
{
  struct plan none = { 0 };
  struct world *w;

  stage_init (s);
  w = world_new (s, &none);
  w->d = must_open (s, w->image.io, true);
  w->armed = true;
  return w;
}

/* Let the N-th call of KIND from now on fail with ERR. */
static inline void
fail_call (struct world *w, unsigned kind, unsigned long n, int err)
{
  w->plan = (struct plan) { .kind = kind, .err = err,
                            .k = w->calls[kind] + n };
  w->hit = false;
}

static inline int
write_id (struct dedup_pool *d, uint64_t idx, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill_cluster (buf, id);
  return dedup_write (d, 0, buf, idx, 1);
}

static inline uint64_t
read_id (struct dedup_pool *d, uint64_t idx)
{
  uint8_t buf[CLUSTER];
  uint64_t id;

  assert_int_equal (dedup_read (d, 0, buf, idx * CLUSTER, CLUSTER), 0);
  assert_true (identify_cluster (buf, &id));
  return id;
}

/* Where is guest cluster IDX?  In host clusters. */
static inline uint64_t
host_idx_of (struct dedup_pool *d, uint64_t idx)
{
  struct qcow2_extent e;

  assert_int_equal (qcow2_map (dedup_image (d), 0, idx * CLUSTER, CLUSTER, &e,
                               1), 1);
  return e.host_off / CLUSTER;
}

/* All that is free in the file may be used then. */
static inline void
scan_all (struct dedup_pool *d)
{
  while (dedup_due (d, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (d, DEDUP_JOB_SCAN), 0);
}

/* New contents for NR guest clusters from IDX on; does one of them come to lie
 * in HOST_IDX? */
static inline bool
reuses (struct dedup_pool *d, uint64_t host_idx, uint64_t idx, uint64_t nr)
{
  bool reused = false;
  uint64_t i;

  scan_all (d);
  for (i = idx; i < idx + nr; i++) {
    assert_int_equal (write_id (d, i, 5000 + i), 0);
    reused = reused || host_idx_of (d, i) == host_idx;
  }
  return reused;
}

static inline void
print_problem (void *opaque, bool is_leak, const char *line)
{
  print_message ("%s: %s\n", is_leak ? "leak" : "problem", line);
}

static inline void
assert_clean (const struct shape *s, struct io_store *io)
{
  struct dedup_pool *d = must_open (s, io, false);
  struct qcow2_check_params p = { .problem = print_problem };
  struct dedup_check_result r;
  struct fault f = { 0 };

  assert_int_equal (dedup_check (d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.leaks + r.image.errors +
                    r.store_errors, 0);
  dedup_free (d);
}

/* Close for good, and check. */
static inline void
finish_clean (struct world *w)
{
  w->armed = false;
  assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  w->d = NULL;
  assert_clean (w->shape, w->image.mem);
  world_free (w);
}

#endif
