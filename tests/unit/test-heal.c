/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that bad clusters are healed by a write of the bytes that they lost, and
 * what a crash leaves of that.
 *
 * An image gets rot below it and a scrub.  Then a recorded session writes the lost
 * bytes elsewhere, overwrites bad clusters so that they are used again, and so on.
 * From the recording, crash states are made: any prefix of the calls, of which any
 * of the writes behind the last sync are lost.  Each state is opened, and must
 * have the contents after some prefix of the operations, from the last flush on:
 * a guest cluster that showed a bad cluster shows the bad or the good bytes, and
 * any other one never shows bad bytes.
 *
 * Then the code is broken in two ways (common/mutation.h), and some state must be
 * wrong.  The seed is printed; HEAL_TEST_SEED takes it back.
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
#include "mutation.h"
#include "splitmix.h"

#define CLUSTER 4096u
#define NR 2048u           /* guest clusters */
#define OLD 64u            /* contents 1 to OLD are at 0 .. and at 100 .. */
#define COPY 100u
#define BAD 8u             /* ids 1, 1 + OLD / BAD, ... rot */
#define NEW 200u           /* the session's writes */
#define MAX_OPS 4096u
#define MOST 1500u         /* writes until a freed cluster is used again */
#define STATES 6           /* of each number of calls */

enum mutation dedup_mutation;

static uint64_t rng;

struct op { uint64_t guest_idx, id; };

struct world {
  struct io_store *memory;
  struct dedup_pool *pool;
  uint64_t size;
  uint8_t *base;           /* the bytes before the session */
  struct io_store *recording;
  struct op ops[MAX_OPS];
  size_t nr_ops;
  size_t calls[MAX_OPS];   /* that the recording had when the op ended */
  size_t flushed[MAX_OPS]; /* ops that were flushed when it had FLUSHED_AT */
  size_t flushed_at[MAX_OPS], nr_flushes;
  uint8_t rotten[BAD][CLUSTER];
  unsigned wrong;          /* states */
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

static uint64_t
bad_id (unsigned i)
{
  return 1 + i * (OLD / BAD);
}

/* --- The image ----------------------------------------------------------------- */

static void
print_line (void *opaque, enum log_level level, const char *line)
{
  if (getenv ("HEAL_TEST_VERBOSE"))
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { print_line, NULL };

static int
open_image (struct io_store *io, struct dedup_pool **pool)
{
  struct dedup_open_params p = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20, .log = &sink,
  };
  struct fault f = { 0 };
  int r = dedup_open (io, &p, pool, &f);

  if (r < 0)
    print_message ("open: %s\n", f.msg);
  return r;
}

static void
write_id (struct dedup_pool *pool, uint64_t guest_idx, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill (buf, id);
  assert_int_equal (dedup_write (pool, QCOW2_ROOT_ACTIVE, buf, guest_idx, 1),
                    0);
}

static void
run_jobs (struct dedup_pool *pool)
{
  const unsigned jobs = DEDUP_JOB_COMMIT | DEDUP_JOB_JOURNAL |
    DEDUP_JOB_FREEZE | DEDUP_JOB_SCAN | DEDUP_JOB_CHECKPOINT;
  const unsigned due = dedup_due (pool, NULL) & jobs;
  unsigned job;

  for (job = 1; job <= due; job <<= 1)
    if (due & job)
      assert_int_equal (dedup_run (pool, job), 0);
}

static uint64_t
host_of (struct dedup_pool *pool, uint64_t guest_idx)
{
  struct qcow2_extent e;

  assert_int_equal (qcow2_map (dedup_image (pool), QCOW2_ROOT_ACTIVE,
                               guest_idx * CLUSTER, CLUSTER, &e, 1), 1);
  return e.kind == QCOW2_DATA ? e.host_off / CLUSTER : 0;
}

static void
let_rot (struct world *w)
{
  uint64_t host_off;
  unsigned i;

  for (i = 0; i < BAD; i++) {
    host_off = host_of (w->pool, bad_id (i) - 1) * CLUSTER;
    assert_int_equal (io_pread (w->memory, w->rotten[i], CLUSTER, host_off),
                      0);
    w->rotten[i][splitmix64 (&rng) % CLUSTER] ^= 0x40;
    assert_int_equal (io_pwrite (w->memory, w->rotten[i], CLUSTER, host_off),
                      0);
  }
}

static void
scrub (struct dedup_pool *pool, struct dedup_scrub_figures *f)
{
  const struct dedup_scrub_params p = { .restart = true };
  struct dedup_scrub *sc;
  int r;

  assert_int_equal (dedup_scrub_begin (pool, &p, &sc), 0);
  while ((r = dedup_scrub_step (sc)) == 1)
    ;
  assert_int_equal (r, 0);
  dedup_scrub_figures (sc, f);
  dedup_scrub_end (sc);
}

/* Makes an image with bad clusters, which remembers them. */
static void
new_image (struct world *w)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = 6, .journal_areas = 4,
  };
  struct dedup_scrub_figures figures;
  struct fault f = { 0 };
  uint64_t id;

  assert_int_equal (io_memory_new (0, &w->memory), 0);
  assert_int_equal (dedup_create (w->memory, &p, &f), 0);
  assert_int_equal (open_image (w->memory, &w->pool), 0);
  for (id = 1; id <= OLD; id++) {
    write_id (w->pool, id - 1, id);
    write_id (w->pool, COPY + id - 1, id);
  }
  assert_int_equal (dedup_flush (w->pool), 0);
  let_rot (w);
  scrub (w->pool, &figures);
  assert_int_equal (figures.different, BAD);
  assert_int_equal (dedup_finish (w->pool), 0);
  dedup_free (w->pool);
  w->size = (uint64_t) io_size (w->memory);
  w->base = malloc (w->size);
  assert_int_equal (io_pread (w->memory, w->base, w->size, 0), 0);
}

/* --- The session ---------------------------------------------------------------- */

static size_t
nr_calls (const struct world *w)
{
  const struct io_record *log;

  return io_recording_log (w->recording, &log);
}

static void
do_op (struct world *w, uint64_t guest_idx, uint64_t id)
{
  assert_true (w->nr_ops < MAX_OPS);
  write_id (w->pool, guest_idx, id);
  w->ops[w->nr_ops] = (struct op) { guest_idx, id };
  w->calls[w->nr_ops++] = nr_calls (w);
}

static void
do_flush (struct world *w)
{
  assert_int_equal (dedup_flush (w->pool), 0);
  w->flushed[w->nr_flushes] = w->nr_ops;
  w->flushed_at[w->nr_flushes++] = nr_calls (w);
}

/* Overwrites the guest clusters of a bad one, and writes new data until that is
 * used again.  Then its former bytes are written: they must not go there. */
static void
use_again (struct world *w, unsigned i)
{
  const uint64_t id = bad_id (i), host_idx = host_of (w->pool, id - 1);
  uint64_t new = 100000 + 1000 * i, g = NEW + 40;
  unsigned n;

  do_op (w, id - 1, new++);
  do_op (w, COPY + id - 1, new++);
  for (n = 0; n < MOST; n++) {
    do_op (w, g, new++);
    if (host_of (w->pool, g) == host_idx)
      break;
    g++;
    if (n % 64 == 0) {          /* fewer would go to prewritten clusters */
      do_flush (w);
      run_jobs (w->pool);
    }
  }
  assert_true (n < MOST);
  do_op (w, NEW + 30, id);
}

static void
run_session (struct world *w)
{
  struct dedup_scrub_memory m;
  unsigned i;

  assert_int_equal (io_recording_new (w->memory, &w->recording), 0);
  assert_int_equal (open_image (w->recording, &w->pool), 0);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.bad, BAD);
  for (i = 0; i < BAD / 2; i++) {
    do_op (w, NEW + 2 * i, 1000 + i);
    do_op (w, NEW + 2 * i + 1, bad_id (i));
    do_flush (w);
  }
  do_op (w, COPY + bad_id (2) - 1, bad_id (2));   /* good by now */
  use_again (w, i);
  do_flush (w);
  dedup_scrub_remembered (w->pool, &m);
  if (dedup_mutation == MUTATION_NONE) {
    assert_int_equal (m.healed, BAD / 2);
    assert_int_equal (m.bad, BAD - BAD / 2 - 1);
  }
  dedup_free (w->pool);
}

/* --- Crash states ---------------------------------------------------------------- */

static void
apply (struct io_store *io, const struct io_record *rec)
{
  int r = 0;

  switch (rec->call) {
  case IO_PWRITE: r = io_pwrite (io, rec->data, rec->len, rec->host_off); break;
  case IO_DISCARD: r = io_discard (io, rec->host_off, rec->len); break;
  case IO_TRUNCATE: r = io_truncate (io, rec->host_off); break;
  default: break;
  }
  assert_int_equal (r, 0);
}

/* Makes the state after N calls, of which each behind the last sync is lost with
 * probability 1/2. */
static struct io_store *
make_state (const struct world *w, size_t n)
{
  const struct io_record *log;
  struct io_store *io;
  size_t i, synced = 0;

  io_recording_log (w->recording, &log);
  for (i = 0; i < n; i++)
    if (log[i].call == IO_SYNC)
      synced = i;
  assert_int_equal (io_memory_new (0, &io), 0);
  assert_int_equal (io_pwrite (io, w->base, w->size, 0), 0);
  for (i = 0; i < n; i++)
    if (i < synced || log[i].call == IO_TRUNCATE || splitmix64 (&rng) % 2)
      apply (io, &log[i]);
  return io;
}

/* Returns whether guest cluster G, with the bytes P, may have content ID after OPS
 * operations. */
static bool
may_have (const struct world *w, const uint8_t *p, uint64_t g, uint64_t id,
          bool written)
{
  uint8_t want[CLUSTER];
  unsigned i;

  fill (want, id);
  if (memcmp (p, want, CLUSTER) == 0)
    return true;
  for (i = 0; i < BAD && !written; i++)
    if (bad_id (i) == id && memcmp (p, w->rotten[i], CLUSTER) == 0)
      return true;
  return false;
}

/* Returns whether the disk's contents are those after NR operations. */
static bool
is_prefix (const struct world *w, const uint8_t *disk, size_t nr)
{
  uint64_t ids[NR] = { 0 }, i;
  bool written[NR] = { false };

  for (i = 0; i < OLD; i++)
    ids[i] = ids[COPY + i] = i + 1;
  for (i = 0; i < nr; i++) {
    ids[w->ops[i].guest_idx] = w->ops[i].id;
    written[w->ops[i].guest_idx] = true;
  }
  for (i = 0; i < NR; i++)
    if (!may_have (w, disk + i * CLUSTER, i, ids[i], written[i]))
      return false;
  return true;
}

static bool
is_right (const struct world *w, const uint8_t *disk, size_t calls)
{
  size_t from = 0, to, i;

  for (i = 0; i < w->nr_flushes; i++)
    if (w->flushed_at[i] <= calls)
      from = w->flushed[i];
  for (to = 0; to < w->nr_ops && w->calls[to] <= calls; to++)
    ;
  for (i = from; i <= MIN_OF (to + 1, w->nr_ops); i++)
    if (is_prefix (w, disk, i))
      return true;
  return false;
}

static void
judge (struct world *w, size_t calls)
{
  CLEANUP_FREE uint8_t *disk = malloc (NR * CLUSTER);
  struct io_store *io = make_state (w, calls);
  struct dedup_scrub_figures f;
  struct dedup_pool *pool;

  assert_int_equal (open_image (io, &pool), 0);
  assert_int_equal (dedup_read (pool, QCOW2_ROOT_ACTIVE, disk, 0,
                                NR * CLUSTER), 0);
  if (!is_right (w, disk, calls)) {
    w->wrong++;
    if (dedup_mutation == MUTATION_NONE)
      print_message ("wrong after %zu calls\n", calls);
  }
  else if (calls % 16 == 0) {   /* and what is bad still is found */
    scrub (pool, &f);
    if (f.different > BAD || f.doubtful > 0)
      w->wrong++;
  }
  dedup_free (pool);
  io_close (io);
}

/* Returns how many states are wrong. */
static unsigned
run (enum mutation m)
{
  struct world *w = calloc (1, sizeof *w);
  unsigned wrong, k;
  size_t n, i;

  dedup_mutation = m;
  new_image (w);
  run_session (w);
  n = nr_calls (w);
  for (i = 0; i <= n; i++)
    for (k = 0; k < STATES; k++)
      judge (w, i);
  print_message ("%zu calls, %zu operations, %u wrong states\n", n, w->nr_ops,
                 w->wrong);
  wrong = w->wrong;
  io_close (w->recording);
  free (w->base);
  free (w);
  return wrong;
}

static void
test_crashes (void **state)
{
  assert_int_equal (run (MUTATION_NONE), 0);
}

static void
test_no_sync_is_caught (void **state)
{
  assert_true (run (MUTATION_HEAL_NO_SYNC) > 0);
}

static void
test_used_again_is_caught (void **state)
{
  assert_true (run (MUTATION_HEAL_USED_AGAIN) > 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_crashes),
    cmocka_unit_test (test_no_sync_is_caught),
    cmocka_unit_test (test_used_again_is_caught),
  };
  const char *s = getenv ("HEAL_TEST_SEED");

  rng = s ? strtoull (s, NULL, 0) : 0x4ea1;
  print_message ("seed: 0x%llx\n", (unsigned long long) rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
