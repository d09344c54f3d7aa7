/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests scrubs on a byte store in memory: rot of every kind that is put below an
 * open image is found, each place of it and nothing else, at rest, while clients
 * write, and after a restart or crash; and clusters that the index does not know
 * are never called bad.
 *
 * The seed of the random parts is printed; SCRUB_TEST_SEED takes it back.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "checked.h"
#include "dedup.h"
#include "splitmix.h"

#define CLUSTER 4096u
#define NR 2048u          /* guest clusters */
#define ROTS 24u          /* of each kind */
#define MAX_HOST 65536u

static uint64_t rng;

static uint64_t
rnd (uint64_t n)
{
  return splitmix64 (&rng) % n;
}

struct world {
  struct io_store *memory, *io;     /* IO fails where FAILING says */
  struct dedup_pool *pool;
  uint64_t ids[NR];                 /* the model; 0: zeroes */
  uint64_t next_id;
  bool failing[MAX_HOST];           /* by host cluster */
  bool rotten[MAX_HOST];            /* injected, and not found yet */
  bool freed[MAX_HOST];             /* ... and is in use no longer */
  bool found[MAX_HOST];
  uint64_t nr_rotten, nr_found, nr_places, nr_healable;
  bool no_verify, no_dedup;
  uint64_t fail_change;             /* the write or sync that fails; 0: none */
};

/* --- Bytes ------------------------------------------------------------------- */

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

static int
may_fail (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;
  uint64_t i;

  if (call == IO_PWRITE || call == IO_SYNC)
    return w->fail_change > 0 && --w->fail_change == 0 ? -EIO : 0;
  if (call != IO_PREAD)
    return 0;
  for (i = host_off / CLUSTER; i * CLUSTER < host_off + len; i++)
    if (i < MAX_HOST && w->failing[i])
      return -EIO;
  return 0;
}

/* --- The image --------------------------------------------------------------- */

static void
print_line (void *opaque, enum log_level level, const char *line)
{
  if (getenv ("SCRUB_TEST_VERBOSE"))
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { print_line, NULL };

static void
open_image (struct world *w, bool writable)
{
  struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = !w->no_dedup,
    .verify = !w->no_verify, .max_incarnations = -1, .cache_bytes = 1 << 20,
    .log = &sink,
  };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->pool, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static struct world *
new_world (unsigned refcount_order, bool no_verify)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = refcount_order },
    .order = 5, .journal_areas = 4,
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  w->no_verify = no_verify;
  w->next_id = 1;
  assert_int_equal (io_memory_new (0, &w->memory), 0);
  assert_int_equal (io_faulty_new (w->memory, may_fail, w, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_image (w, true);
  return w;
}

static void
close_image (struct world *w)
{
  assert_int_equal (dedup_finish (w->pool), 0);
  dedup_free (w->pool);
  w->pool = NULL;
}

static void
free_world (struct world *w)
{
  if (w->pool)
    close_image (w);
  io_close (w->io);
  free (w);
}

static void
run_jobs (struct world *w)
{
  unsigned due, i;

  for (i = 0; i < 200; i++) {
    due = dedup_due (w->pool, NULL) & ~(DEDUP_JOB_CLEAN |
                                        DEDUP_JOB_MERGE_IDLE |
                                        DEDUP_JOB_GIVE_BACK);
    if (due == 0)
      return;
    assert_int_equal (dedup_run (w->pool, due & -due), 0);
    if (due == DEDUP_JOB_COMMIT && i > 4)
      return;
  }
}

static void
write_id (struct world *w, uint64_t guest_idx, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill (buf, id);
  assert_int_equal (dedup_write (w->pool, QCOW2_ROOT_ACTIVE, buf, guest_idx, 1),
                    0);
  w->ids[guest_idx] = id;
}

/* Writes new data, data that exists, or zeroes to a random cluster. */
static void
random_write (struct world *w)
{
  const uint64_t g = rnd (NR), kind = rnd (10);

  if (kind == 0) {
    assert_int_equal (dedup_unmap (w->pool, QCOW2_ROOT_ACTIVE, g, 1,
                                   DEDUP_TRIM), 0);
    w->ids[g] = 0;
  }
  else if (kind < 4)
    write_id (w, g, 1 + rnd (w->next_id));
  else
    write_id (w, g, w->next_id++);
}

static void
age (struct world *w, unsigned nr)
{
  unsigned i;

  for (i = 0; i < nr; i++) {
    random_write (w);
    if (i % 64 == 0) {
      assert_int_equal (dedup_flush (w->pool), 0);
      run_jobs (w);
    }
  }
  assert_int_equal (dedup_flush (w->pool), 0);
}

/* Returns the host cluster of a guest cluster; 0: none. */
static uint64_t
host_of (struct world *w, uint64_t guest_idx)
{
  struct qcow2_extent e;

  assert_int_equal (qcow2_map (dedup_image (w->pool), QCOW2_ROOT_ACTIVE,
                               guest_idx * CLUSTER, CLUSTER, &e, 1), 1);
  return e.kind == QCOW2_DATA ? e.host_off / CLUSTER : 0;
}

/* --- Rot --------------------------------------------------------------------- */

static void
read_raw (struct world *w, uint64_t host_idx, uint8_t *buf)
{
  assert_int_equal (io_pread (w->memory, buf, CLUSTER, host_idx * CLUSTER), 0);
}

static void
write_raw (struct world *w, uint64_t host_idx, const uint8_t *buf)
{
  assert_int_equal (io_pwrite (w->memory, buf, CLUSTER, host_idx * CLUSTER),
                    0);
}

static void
mark_rotten (struct world *w, uint64_t host_idx)
{
  w->rotten[host_idx] = true;
  w->nr_rotten++;
}

/* Returns a cluster of data that is not rotten. */
static uint64_t
some_cluster (struct world *w)
{
  uint64_t h;

  do
    h = host_of (w, rnd (NR));
  while (h == 0 || w->rotten[h]);
  return h;
}

enum rot { FLIP, ZERO, OTHER, SWAP, FAIL, NR_KINDS };

static void
let_rot (struct world *w, enum rot kind)
{
  uint8_t a[CLUSTER], b[CLUSTER];
  const uint64_t h = some_cluster (w);
  uint64_t h2;

  mark_rotten (w, h);
  read_raw (w, h, a);
  switch (kind) {
  case FLIP:
    a[rnd (CLUSTER)] ^= (uint8_t) (1u << rnd (8));
    break;
  case ZERO:
    memset (a, 0, CLUSTER);
    break;
  case OTHER:                   /* a write that went astray */
    read_raw (w, some_cluster (w), a);
    break;
  case SWAP:
    h2 = some_cluster (w);
    mark_rotten (w, h2);
    read_raw (w, h2, b);
    write_raw (w, h2, a);
    memcpy (a, b, CLUSTER);
    break;
  case FAIL:
    w->failing[h] = true;
    return;
  case NR_KINDS:
    abort ();
  }
  write_raw (w, h, a);
}

/* --- Scrubs ------------------------------------------------------------------ */

static void
note_found (void *opaque, const struct dedup_scrub_finding *f)
{
  struct world *w = opaque;
  const uint64_t h = f->host_off / CLUSTER;

  assert_true (h < MAX_HOST);
  if (w->freed[h] && f->disk == NULL)
    return;                     /* it was in use when it was read */
  if (!w->rotten[h])
    fail_msg ("cluster %llu was called bad", (unsigned long long) h);
  assert_int_equal (f->why == DEDUP_SCRUB_UNREADABLE, w->failing[h]);
  assert_int_equal (f->len, CLUSTER);
  assert_non_null (f->disk);
  assert_string_equal (f->disk, "");
  assert_int_equal (host_of (w, f->guest_off / CLUSTER), h);
  w->nr_places++;
  w->nr_healable += f->healable;
  w->nr_found += !w->found[h];
  w->found[h] = true;
}

static struct dedup_scrub *
begin_scrub (struct world *w, uint64_t window, bool restart)
{
  const struct dedup_scrub_params p = {
    .restart = restart, .found = note_found, .opaque = w,
    .window_clusters = window,
  };
  struct dedup_scrub *sc;

  memset (w->found, 0, sizeof w->found);
  w->nr_found = w->nr_places = w->nr_healable = 0;
  assert_int_equal (dedup_scrub_begin (w->pool, &p, &sc), 0);
  return sc;
}

static void
end_scrub (struct dedup_scrub *sc, struct dedup_scrub_figures *f)
{
  dedup_scrub_figures (sc, f);
  dedup_scrub_end (sc);
}

static void
scrub (struct world *w, uint64_t window, struct dedup_scrub_figures *f)
{
  struct dedup_scrub *sc = begin_scrub (w, window, true);
  int r;

  while ((r = dedup_scrub_step (sc)) == 1)
    ;
  assert_int_equal (r, 0);
  end_scrub (sc, f);
}

/* Returns how many guest clusters refer to rotten clusters. */
static uint64_t
nr_rotten_places (struct world *w)
{
  uint64_t g, n = 0;

  for (g = 0; g < NR; g++)
    n += w->rotten[host_of (w, g)];
  return n;
}

static uint64_t
nr_stored (struct world *w)
{
  CLEANUP_FREE bool *seen = calloc (MAX_HOST, 1);
  uint64_t g, h, n = 0;

  for (g = 0; g < NR; g++) {
    h = host_of (w, g);
    n += h != 0 && !seen[h];
    seen[h] = true;
  }
  return n;
}

static void
assert_all_good (struct world *w, const struct dedup_scrub_figures *f)
{
  assert_int_equal (f->different, 0);
  assert_int_equal (f->unreadable, 0);
  assert_int_equal (f->doubtful, 0);
  assert_int_equal (f->good, nr_stored (w));
}

static void
assert_all_found (struct world *w, const struct dedup_scrub_figures *f)
{
  assert_int_equal (w->nr_found, w->nr_rotten);
  assert_int_equal (w->nr_places, nr_rotten_places (w));
  assert_int_equal (f->different + f->unreadable, w->nr_rotten);
  assert_int_equal (f->good + w->nr_rotten, nr_stored (w));
}

/* --- Tests ------------------------------------------------------------------- */

/* Would break if stale entries of an aged index were taken for rot. */
static void
test_sound_image (void **state)
{
  struct dedup_scrub_figures f;
  bool no_verify;
  int i;

  for (no_verify = false; ; no_verify = true) {
    struct world *w = new_world (4, no_verify);

    for (i = 0; i < 3; i++) {
      age (w, 3000);
      scrub (w, i == 1 ? 100 : 0, &f);
      assert_all_good (w, &f);
      assert_true (f.tables > 0 && f.bytes_read > 0);
      assert_int_equal (f.bytes_done, f.bytes_total);
      close_image (w);
      open_image (w, true);
    }
    free_world (w);
    if (no_verify)
      break;
  }
}

static void
test_each_kind_of_rot (void **state)
{
  struct dedup_scrub_figures f;
  unsigned i, kind;
  struct world *w;

  for (kind = 0; kind < 2 * NR_KINDS; kind++) {
    w = new_world (4, kind >= NR_KINDS);
    age (w, 4000);
    for (i = 0; i < ROTS; i++)
      let_rot (w, kind % NR_KINDS);
    scrub (w, 0, &f);
    assert_all_found (w, &f);
    scrub (w, 64, &f);          /* in windows */
    assert_all_found (w, &f);
    close_image (w);
    open_image (w, true);
    scrub (w, 0, &f);
    assert_all_found (w, &f);
    free_world (w);
  }
}

/* Small steps, as beside clients, read no more than 32 KiB each, and find the same: here
 * two indexed clusters that have changed places on the medium. */
static void
test_small_steps (void **state)
{
  struct world *w = new_world (4, false);
  uint8_t a_bytes[CLUSTER], b_bytes[CLUSTER];
  struct dedup_scrub_figures f;
  struct dedup_scrub *sc;
  uint64_t a, b, before = 0;
  int r;

  age (w, 3000);
  assert_int_equal (dedup_flush (w->pool), 0);
  a = some_cluster (w);
  do
    b = some_cluster (w);
  while (b == a);
  read_raw (w, a, a_bytes);
  read_raw (w, b, b_bytes);
  write_raw (w, a, b_bytes);
  write_raw (w, b, a_bytes);
  mark_rotten (w, a);
  mark_rotten (w, b);
  sc = begin_scrub (w, 100, true);
  do {
    r = dedup_scrub_small_step (sc);
    dedup_scrub_figures (sc, &f);
    assert_true (f.bytes_read - before <= 32768);
    before = f.bytes_read;
  } while (r == 1);
  assert_int_equal (r, 0);
  end_scrub (sc, &f);
  assert_true (f.bytes_read > 10 * 32768);
  assert_all_found (w, &f);
  free_world (w);
}

static int
forget_log (struct world *w)
{
  unsigned i;

  for (i = 0; i < 400; i++) {   /* so that the log store is set aside */
    write_id (w, NR - 1, w->next_id++);
    if (i % 64 == 0)
      run_jobs (w);
  }
  assert_int_equal (dedup_flush (w->pool), 0);
  run_jobs (w);
  return 0;
}

/* A cluster that holds again what it held before, because a write was lost, would
 * pass if older entries counted. */
static void
test_stale_cluster (void **state)
{
  bool no_verify;

  for (no_verify = false; ; no_verify = true) {
    struct world *w = new_world (4, no_verify);
    struct dedup_scrub_figures f;
    uint8_t before[CLUSTER];
    uint64_t h, i, g = NR;

    write_id (w, 0, w->next_id++);
    h = host_of (w, 0);
    read_raw (w, h, before);
    forget_log (w);
    write_id (w, 0, w->next_id++);
    for (i = 1; g == NR && i < NR - 1; i++) {
      write_id (w, i, w->next_id++);
      if (host_of (w, i) == h)
        g = i;
      if (i % 16 == 0) {
        assert_int_equal (dedup_flush (w->pool), 0);
        run_jobs (w);
      }
    }
    assert_true (g < NR);       /* the cluster was used again */
    assert_int_equal (dedup_flush (w->pool), 0);
    scrub (w, 0, &f);
    assert_all_good (w, &f);
    mark_rotten (w, h);
    write_raw (w, h, before);
    scrub (w, 0, &f);
    assert_all_found (w, &f);
    free_world (w);
    if (no_verify)
      break;
  }
}

/* Clients write between any two steps.  Rot of clusters that keep their data is
 * found; nothing else is called bad, and those that were overwritten are not. */
static void
test_load (void **state)
{
  unsigned round, i, k;

  for (round = 0; round < 6; round++) {
    struct world *w = new_world (4, round % 2);
    struct dedup_scrub_figures f;
    struct dedup_scrub *sc;
    uint64_t h, g, missed = 0;
    bool *kept = calloc (MAX_HOST, 1);

    age (w, 4000);
    for (i = 0; i < ROTS; i++)
      let_rot (w, FLIP);
    sc = begin_scrub (w, 300, true);
    while (dedup_scrub_step (sc) == 1) {
      for (k = rnd (8); k > 0; k--)
        random_write (w);
      if (rnd (2)) {
        assert_int_equal (dedup_flush (w->pool), 0);
        run_jobs (w);
      }
      for (h = 0; h < MAX_HOST; h++)
        if (w->rotten[h] && !w->found[h]) {   /* overwritten, and used again? */
          kept[h] = false;
          for (g = 0; g < NR; g++)
            kept[h] = kept[h] || host_of (w, g) == h;
          if (!kept[h]) {
            w->rotten[h] = false;
            w->freed[h] = true;
          }
        }
    }
    end_scrub (sc, &f);
    for (h = 0; h < MAX_HOST; h++)
      missed += w->rotten[h] && !w->found[h];
    assert_int_equal (missed, 0);
    free (kept);
    free_world (w);
  }
}

struct worker {
  struct world *w;
  uint64_t from, rng;
  bool *stop;
  pthread_t thread;
};

static void *
write_on (void *opaque)
{
  struct worker *k = opaque;
  uint8_t buf[CLUSTER];
  uint64_t n;
  int r = 0;

  for (n = 0; !__atomic_load_n (k->stop, __ATOMIC_RELAXED) && r == 0; n++) {
    const uint64_t x = splitmix64 (&k->rng);

    fill (buf, x % 3 ? x : x % 512);
    r = dedup_write (k->w->pool, QCOW2_ROOT_ACTIVE, buf,
                     k->from + x % (NR / 4), 1);
    if (r == 0 && n % 32 == 0)
      r = dedup_flush (k->w->pool);
  }
  return (void *) (intptr_t) r;
}

static void *
scrub_on (void *opaque)
{
  int r;

  while ((r = dedup_scrub_step (opaque)) == 1)
    ;
  return (void *) (intptr_t) r;
}

/* Threads write, threads scrub, one runs jobs: nothing is called bad. */
static void
test_threads (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  struct worker k[2];
  bool stop = false;
  pthread_t helper;
  unsigned i, n;
  void *r;

  age (w, 3000);
  for (i = 0; i < 2; i++) {
    k[i] = (struct worker) { w, i * (NR / 2), rnd (UINT64_MAX), &stop, 0 };
    assert_int_equal (pthread_create (&k[i].thread, NULL, write_on, &k[i]), 0);
  }
  for (n = 0; n < 6; n++) {
    struct dedup_scrub *sc = begin_scrub (w, 500, true);

    assert_int_equal (pthread_create (&helper, NULL, scrub_on, sc), 0);
    while (dedup_scrub_step (sc) == 1)
      run_jobs (w);
    pthread_join (helper, &r);
    assert_null (r);
    end_scrub (sc, &f);
    assert_true (f.good > 0);
    assert_int_equal (f.different + f.unreadable + f.doubtful, 0);
  }
  __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  for (i = 0; i < 2; i++) {
    pthread_join (k[i].thread, &r);
    assert_null (r);
  }
  free_world (w);
}

/* Crashes: what is in memory is lost, and the journal is replayed. */
static void
test_after_a_crash (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  unsigned i;

  for (i = 0; i < 5; i++) {
    age (w, 900);
    dedup_free (w->pool);
    open_image (w, true);
    scrub (w, 0, &f);
    assert_all_good (w, &f);
  }
  for (i = 0; i < ROTS; i++)
    let_rot (w, ZERO);
  scrub (w, 0, &f);
  assert_all_found (w, &f);
  free_world (w);
}

/* A session with dedup=off gives clusters data that the index does not know.  Old
 * entries for them are no proof. */
static void
test_without_dedup (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;

  age (w, 4000);
  dedup_scrub_remembered (w->pool, &m);
  assert_true (m.complete);
  close_image (w);
  w->no_dedup = true;
  open_image (w, true);
  age (w, 4000);
  close_image (w);
  w->no_dedup = false;
  open_image (w, true);
  dedup_scrub_remembered (w->pool, &m);
  assert_false (m.complete);
  scrub (w, 0, &f);
  assert_int_equal (f.different + f.unreadable, 0);
  assert_true (f.doubtful > 0 && f.unknown > 0);
  let_rot (w, FAIL);
  scrub (w, 0, &f);             /* this needs no index */
  assert_int_equal (f.unreadable, 1);
  free_world (w);
}

/* ... also if that session crashes before it writes another configuration. */
static void
test_crash_without_dedup (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_memory m;

  age (w, 500);
  close_image (w);
  w->no_dedup = true;
  open_image (w, true);
  write_id (w, 0, w->next_id++);
  assert_int_equal (dedup_flush (w->pool), 0);
  dedup_free (w->pool);
  w->no_dedup = false;
  open_image (w, true);
  dedup_scrub_remembered (w->pool, &m);
  assert_false (m.complete);
  free_world (w);
}

/* A cluster that can take no more references leaves its entry to another one.  An
 * older entry that names it is no proof. */
static void
test_full_clusters (void **state)
{
  struct world *w = new_world (3, false);     /* at most 127 references */
  struct dedup_scrub_figures f;
  uint64_t g;
  unsigned round;

  for (round = 0; round < 4; round++) {
    age (w, 2500);
    for (g = 0; g < NR; g++) {
      write_id (w, g, 1000000 + round * 4 + g % 4);
      if (g % 64 == 0) {
        assert_int_equal (dedup_flush (w->pool), 0);
        run_jobs (w);
      }
    }
    scrub (w, 0, &f);
    assert_int_equal (f.different + f.unreadable + f.doubtful, 0);
    assert_true (f.unknown >= 8);
  }
  free_world (w);
}

/* A scrub that ended early continues at its last whole window. */
static void
test_position (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;
  struct dedup_scrub *sc;
  uint64_t position;

  age (w, 4000);
  sc = begin_scrub (w, 256, true);
  do {
    assert_int_equal (dedup_scrub_step (sc), 1);
    dedup_scrub_remembered (w->pool, &m);
  } while (m.position < 1024 * CLUSTER);
  assert_int_equal (dedup_scrub_begin (w->pool, &(struct dedup_scrub_params) {
        .restart = true }, &(struct dedup_scrub *) { NULL }), -EBUSY);
  end_scrub (sc, &f);
  position = m.position;
  assert_int_equal (position, 1024 * CLUSTER);
  dedup_free (w->pool);         /* a crash */
  open_image (w, true);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.position, position);
  sc = begin_scrub (w, 256, false);
  dedup_scrub_figures (sc, &f);
  assert_int_equal (f.bytes_done, position);
  while (dedup_scrub_step (sc) == 1)
    ;
  end_scrub (sc, &f);
  assert_true (f.bytes_read < f.bytes_total - position + 1);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.position, 0);
  close_image (w);
  open_image (w, true);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.position, 0);
  free_world (w);
}

/* A scrub ends although clients add more to the file than it reads. */
static void
test_a_file_that_grows (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  struct dedup_scrub *sc;
  unsigned steps = 0, k;
  uint64_t total;
  int r;

  age (w, 2000);
  sc = begin_scrub (w, 16, true);
  dedup_scrub_figures (sc, &f);
  total = f.bytes_total;
  while ((r = dedup_scrub_step (sc)) == 1 && steps++ < 1000)
    for (k = 0; k < 20; k++)
      write_id (w, rnd (NR), w->next_id++);
  assert_int_equal (r, 0);
  end_scrub (sc, &f);
  assert_int_equal (f.bytes_done, total);
  assert_int_equal (f.bytes_total, total);
  free_world (w);
}

/* --- Bad clusters -------------------------------------------------------------- */

/* Returns a guest cluster whose data is stored once, is not rotten, and has not
 * been written lately; its host cluster rots. */
static uint64_t
rotten_guest (struct world *w)
{
  uint64_t g, k, others;

  do {
    g = rnd (NR);
    for (k = 0, others = 0; k < NR; k++)
      others += w->ids[k] == w->ids[g];
  } while (w->ids[g] == 0 || others != 1 || w->rotten[host_of (w, g)]);
  mark_rotten (w, host_of (w, g));
  return g;
}

static void
flip (struct world *w, uint64_t host_idx)
{
  uint8_t buf[CLUSTER];

  read_raw (w, host_idx, buf);
  buf[rnd (CLUSTER)] ^= 1;
  write_raw (w, host_idx, buf);
}

static bool
reads_as (struct world *w, uint64_t guest_idx, uint64_t id)
{
  uint8_t got[CLUSTER], want[CLUSTER];

  fill (want, id);
  return dedup_read (w->pool, QCOW2_ROOT_ACTIVE, got, guest_idx * CLUSTER,
                     CLUSTER) == 0 && memcmp (got, want, CLUSTER) == 0;
}

/* After a crash it is not sure what a bad cluster had: it is not healed, but gets no
 * new links either, whether bytes are compared or not. */
static void
test_no_new_links (void **state)
{
  bool no_verify;

  for (no_verify = false; ; no_verify = true) {
    struct world *w = new_world (4, no_verify);
    struct dedup_scrub_figures f;
    struct dedup_scrub_memory m;
    uint64_t g, h, other;

    age (w, 2000);
    g = rotten_guest (w);
    h = host_of (w, g);
    flip (w, h);
    scrub (w, 0, &f);
    assert_int_equal (f.different, 1);
    write_id (w, (g + 1) % NR, w->next_id++);
    assert_int_equal (dedup_flush (w->pool), 0);
    dedup_free (w->pool);       /* a crash */
    open_image (w, true);
    dedup_scrub_remembered (w->pool, &m);
    assert_int_equal (m.bad, 1);
    other = (g + 2) % NR;
    write_id (w, other, w->ids[g]);
    assert_int_not_equal (host_of (w, other), h);
    assert_true (reads_as (w, other, w->ids[g]));
    assert_false (reads_as (w, g, w->ids[g]));
    write_id (w, g, w->ids[g]); /* the guest's own cluster, too */
    assert_true (reads_as (w, g, w->ids[g]));
    free_world (w);
    if (no_verify)
      break;
  }
}

/* A write of the lost bytes puts them back, for all that refer to the cluster. */
static void
test_healing (void **state)
{
  bool no_verify;

  for (no_verify = false; ; no_verify = true) {
    struct world *w = new_world (4, no_verify);
    struct dedup_scrub_figures f;
    struct dedup_scrub_memory m;
    uint64_t g, h, other, healed = 0;
    unsigned round;

    for (round = 0; round < 8; round++) {
      age (w, 1500);
      g = rotten_guest (w);
      h = host_of (w, g);
      flip (w, h);
      scrub (w, 0, &f);
      assert_int_equal (f.different, 1);
      if (w->nr_healable == 0) {       /* the index has two hashes for it */
        write_id (w, g, w->next_id++);
        w->rotten[h] = false;
        continue;
      }
      if (round % 2) {          /* it is remembered */
        close_image (w);
        open_image (w, true);
      }
      assert_false (reads_as (w, g, w->ids[g]));
      other = (g + 1) % NR;
      write_id (w, other, w->ids[g]);
      assert_true (reads_as (w, g, w->ids[g]));
      assert_int_equal (host_of (w, other), h);
      dedup_scrub_remembered (w->pool, &m);
      assert_int_equal (m.bad, 0);
      healed++;
      w->rotten[h] = false;
      scrub (w, 0, &f);
      assert_int_equal (f.different + f.unreadable + f.doubtful, 0);
      close_image (w);
      open_image (w, true);
      dedup_scrub_remembered (w->pool, &m);
      assert_int_equal (m.bad, 0);
    }
    assert_true (healed >= 3);
    free_world (w);
    if (no_verify)
      break;
  }
}

/* Makes a cluster bad that the index has one hash for. */
static uint64_t
healable_guest (struct world *w, bool fail)
{
  struct dedup_scrub_figures f;
  uint64_t g;

  for (;;) {
    g = rotten_guest (w);
    if (fail)
      w->failing[host_of (w, g)] = true;
    else
      flip (w, host_of (w, g));
    scrub (w, 0, &f);
    assert_int_equal (f.different + f.unreadable, 1);
    if (w->nr_healable > 0)
      return g;
    w->failing[host_of (w, g)] = w->rotten[host_of (w, g)] = false;
    write_id (w, g, w->next_id++);
  }
}

/* A cluster that cannot be healed stays bad and is found again, although the index
 * names another one for its data by now. */
static void
test_healing_that_fails (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;
  uint64_t g, h, others;

  age (w, 2000);
  g = healable_guest (w, true);
  h = host_of (w, g);
  dedup_scrub_remembered (w->pool, &m);
  others = m.bad - 1;
  write_id (w, (g + 1) % NR, w->ids[g]);
  assert_int_not_equal (host_of (w, (g + 1) % NR), h);
  scrub (w, 0, &f);
  assert_int_equal (f.unreadable, 1);
  w->failing[h] = false;
  flip (w, h);                  /* it holds what was written to heal it */
  scrub (w, 0, &f);
  assert_int_equal (f.different, 1);
  close_image (w);
  open_image (w, true);
  write_id (w, (g + 2) % NR, w->ids[g]);
  assert_true (reads_as (w, g, w->ids[g]));
  w->rotten[h] = false;
  scrub (w, 0, &f);
  assert_int_equal (f.different + f.unreadable + f.doubtful, 0);
  dedup_scrub_remembered (w->pool, &m);
  assert_in_range (m.bad, 0, others);
  free_world (w);
}

/* A bad cluster that is freed, and has other data by now, is left alone. */
static void
test_used_again (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;
  uint64_t id[ROTS], i, g;

  age (w, 3000);
  for (i = 0; i < ROTS; i++) {
    g = rotten_guest (w);
    id[i] = w->ids[g];
    flip (w, host_of (w, g));
    w->found[i] = false;
  }
  scrub (w, 0, &f);
  assert_int_equal (f.different, ROTS);
  memset (w->rotten, 0, sizeof w->rotten);
  for (g = 0; g < NR; g++)
    write_id (w, g, w->next_id++);
  age (w, 3000);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.bad, 0);
  for (i = 0; i < ROTS; i++)
    write_id (w, rnd (NR), id[i]);
  for (g = 0; g < NR; g++)
    assert_true (reads_as (w, g, w->ids[g]));
  scrub (w, 0, &f);
  assert_int_equal (f.different + f.unreadable + f.doubtful, 0);
  free_world (w);
}

/* Each write and sync of a session that heals fails once: whatever was read back
 * before and after another open is right, or is the bad cluster. */
static void
test_each_change_fails (void **state)
{
  uint64_t n, g, other, k;
  bool reached = true;

  for (n = 1; reached; n++) {
    struct world *w = new_world (4, false);
    struct dedup_scrub_figures f;
    uint8_t buf[CLUSTER];
    int r;

    for (k = 0; k < 40; k++)
      write_id (w, k, w->next_id++);
    g = 7;
    other = 100;
    mark_rotten (w, host_of (w, g));
    flip (w, host_of (w, g));
    scrub (w, 0, &f);
    assert_int_equal (f.different, 1);
    fill (buf, w->ids[g]);
    w->fail_change = n;
    r = dedup_write (w->pool, QCOW2_ROOT_ACTIVE, buf, other, 1);
    if (r == 0)
      assert_true (reads_as (w, other, w->ids[g]));
    if (r == 0)
      r = dedup_flush (w->pool);
    reached = w->fail_change == 0;
    w->fail_change = 0;
    dedup_free (w->pool);
    open_image (w, true);
    assert_true (reads_as (w, other, w->ids[g]) ||
                 (r < 0 && reads_as (w, other, 0)));
    for (k = 0; k < 40; k++)
      assert_true (k == g || reads_as (w, k, w->ids[k]));
    free_world (w);
  }
  assert_true (n > 5);
}

/* One read that fails once makes nothing bad. */
static void
test_a_read_that_fails_once (void **state)
{
  struct world *w = new_world (4, false);
  struct dedup_scrub_figures f;
  struct dedup_scrub *sc;
  uint64_t h, i;

  age (w, 2000);
  for (i = 0; i < 20; i++) {
    h = some_cluster (w);
    sc = begin_scrub (w, 0, true);
    w->failing[h] = true;
    do {
      assert_int_equal (dedup_scrub_step (sc), 1);
      dedup_scrub_figures (sc, &f);
    } while (f.bytes_done < f.bytes_total);
    w->failing[h] = false;
    while (dedup_scrub_step (sc) == 1)
      ;
    end_scrub (sc, &f);
    assert_all_good (w, &f);
  }
  free_world (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_sound_image),
    cmocka_unit_test (test_each_kind_of_rot),
    cmocka_unit_test (test_small_steps),
    cmocka_unit_test (test_stale_cluster),
    cmocka_unit_test (test_load),
    cmocka_unit_test (test_threads),
    cmocka_unit_test (test_after_a_crash),
    cmocka_unit_test (test_without_dedup),
    cmocka_unit_test (test_crash_without_dedup),
    cmocka_unit_test (test_full_clusters),
    cmocka_unit_test (test_position),
    cmocka_unit_test (test_a_file_that_grows),
    cmocka_unit_test (test_no_new_links),
    cmocka_unit_test (test_healing),
    cmocka_unit_test (test_healing_that_fails),
    cmocka_unit_test (test_used_again),
    cmocka_unit_test (test_each_change_fails),
    cmocka_unit_test (test_a_read_that_fails_once),
  };
  const char *s = getenv ("SCRUB_TEST_SEED");

  rng = s ? strtoull (s, NULL, 0) : 0x5c20b;
  print_message ("seed: 0x%llx\n", (unsigned long long) rng);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
