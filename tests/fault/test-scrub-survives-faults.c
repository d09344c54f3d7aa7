/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes each allocation, and each read, write and sync of the image fail, once and
 * from then on, while rot is found, healed, or met by a writer.
 *
 * Breaks if: a scrub crashes, ends early, calls a good cluster bad or misses a bad
 * one because memory was short; a cluster that cannot be read at the moment, or a
 * page of the index, makes others bad; or if anything is wrong afterwards, also
 * after another open.
 *
 * An image with two disks is made once and copied for each play.  Two contents of it
 * rot, and the cluster of a third cannot be read.
 */
#include "fault-malloc.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include "checked.h"
#include "dedup.h"
#include "../unit/splitmix.h"

#define CLUSTER 4096u
#define NR 192u                   /* guest clusters of the active disk */
#define SPARE 180u                /* from here on they are never written */
#define BAD 3u
#define MAX_HOST 16384u
#define WINDOW 900u               /* clusters; the image has two or three windows */
#define MAX_PLACES 256u           /* of bad clusters */
#define MOST_PLAYS 4000u

enum bad { FLIPPED, ZEROED, FAILING };

struct base {
  uint8_t *bytes;
  uint64_t size;
  uint64_t ids[NR];
  uint64_t last_id;
  uint64_t guest[BAD], host[BAD];
  bool is_data[MAX_HOST];         /* by host cluster */
};

static struct base base;

/* What fails; one play has one of these. */
enum fail { FAIL_NOTHING, FAIL_MALLOC, FAIL_PREAD, FAIL_PWRITE, FAIL_SYNC };

static struct {
  enum fail what;
  bool ever;                      /* from then on */
  unsigned long number, count;    /* the call that fails; calls so far */
  bool armed;
  bool happened;
  bool in_data;                   /* ... in a read of data only */
  bool unreadable[MAX_HOST];      /* clusters of failed reads */
} fault;

struct play {
  struct io_store *memory, *io;
  struct dedup_pool *pool;
  unsigned copy;                  /* root of the second disk */
  uint64_t nr_places;
  bool found[BAD];
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

/* --- Faults -------------------------------------------------------------------- */

static void
arm (enum fail what, bool ever, unsigned long number)
{
  memset (&fault, 0, sizeof fault);
  fault.what = what;
  fault.ever = ever;
  fault.number = number;
}

static bool
fails_now (enum fail what)
{
  if (!fault.armed || fault.what != what)
    return false;
  fault.count++;
  if (fault.count != fault.number && !(fault.ever && fault.happened))
    return false;
  fault.happened = true;
  return true;
}

static bool
malloc_fails (size_t size)
{
  return fails_now (FAIL_MALLOC);
}

static void
note_failed_read (uint64_t host_off, uint64_t len)
{
  const uint64_t end = div_round_up (host_off + len, CLUSTER);
  uint64_t i;

  fault.in_data = true;
  for (i = host_off / CLUSTER; i < MIN_OF (end, MAX_HOST); i++) {
    fault.unreadable[i] = true;
    fault.in_data = fault.in_data && base.is_data[i];
  }
}

static int
io_fails (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  const uint64_t bad = base.host[FAILING] * CLUSTER;

  if (call == IO_PREAD && base.host[FAILING] > 0 && host_off < bad + CLUSTER &&
      host_off + len > bad)
    return -EIO;
  if (call == IO_PREAD && fails_now (FAIL_PREAD)) {
    note_failed_read (host_off, len);
    return -EIO;
  }
  if (call == IO_PWRITE && fails_now (FAIL_PWRITE))
    return fault.number % 2 ? -EIO : -ENOSPC;
  return call == IO_SYNC && fails_now (FAIL_SYNC) ? -EIO : 0;
}

/* --- The image ------------------------------------------------------------------ */

static void
print_line (void *opaque, enum log_level level, const char *line)
{
  if (getenv ("FAULT_VERBOSE"))
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { print_line, NULL };

static void
open_image (struct play *p)
{
  const struct dedup_open_params params = {
    .path = "test", .writable = true, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = 1 << 20, .log = &sink,
  };
  struct fault f = { 0 };

  if (dedup_open (p->io, &params, &p->pool, &f) < 0)
    fail_msg ("open: %s", f.msg);
  if (dedup_disk_find (p->pool, "copy", &p->copy, &f) < 0)
    p->copy = 0;
}

/* Closes the image, and leaves its bytes. */
static void
close_image (struct play *p)
{
  assert_int_equal (dedup_disks_settle (p->pool), 0);
  assert_int_equal (dedup_finish (p->pool), 0);
  dedup_free (p->pool);
}

static int
write_id (struct play *p, uint64_t guest_idx, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill (buf, id);
  return dedup_write (p->pool, QCOW2_ROOT_ACTIVE, buf, guest_idx, 1);
}

static bool
reads_as (struct play *p, unsigned root, uint64_t guest_idx, uint64_t id)
{
  uint8_t got[CLUSTER], want[CLUSTER];

  fill (want, id);
  return dedup_read (p->pool, root, got, guest_idx * CLUSTER, CLUSTER) == 0 &&
    memcmp (got, want, CLUSTER) == 0;
}

static void
run_jobs (struct play *p)
{
  const unsigned jobs = DEDUP_JOB_COMMIT | DEDUP_JOB_JOURNAL |
    DEDUP_JOB_FREEZE | DEDUP_JOB_FILTERS | DEDUP_JOB_MERGE | DEDUP_JOB_SCAN |
    DEDUP_JOB_CHECKPOINT;
  unsigned due, i;

  assert_int_equal (dedup_flush (p->pool), 0);
  for (i = 0; i < 8 && (due = dedup_due (p->pool, NULL) & jobs) != 0; i++)
    assert_int_equal (dedup_run (p->pool, due & -due), 0);
}

static uint64_t
host_of (struct play *p, uint64_t guest_idx)
{
  struct qcow2_extent e;

  assert_int_equal (qcow2_map (dedup_image (p->pool), QCOW2_ROOT_ACTIVE,
                               guest_idx * CLUSTER, CLUSTER, &e, 1), 1);
  return e.kind == QCOW2_DATA ? e.host_off / CLUSTER : 0;
}

/* Lets the last write to each guest cluster be one of many: the index has entries for
 * clusters that were used again. */
static void
age (struct play *p)
{
  uint64_t rng = 7, i, g;

  for (i = 0; i < 900; i++) {
    g = i < SPARE ? i : splitmix64 (&rng) % SPARE;
    base.ids[g] = ++base.last_id;
    assert_int_equal (write_id (p, g, base.last_id), 0);
    if (i % 48 == 0)
      run_jobs (p);
  }
  run_jobs (p);
}

static void
let_rot (struct play *p)
{
  uint8_t buf[CLUSTER];
  unsigned i;

  for (i = 0; i < BAD; i++) {
    base.guest[i] = 20 + 50 * i;
    base.host[i] = host_of (p, base.guest[i]);
    assert_true (base.host[i] > 0);
    if (i == FAILING)
      continue;
    assert_int_equal (io_pread (p->memory, buf, CLUSTER, base.host[i] * CLUSTER),
                      0);
    buf[100] ^= 1;
    if (i == ZEROED)
      memset (buf, 0, CLUSTER);
    assert_int_equal (io_pwrite (p->memory, buf, CLUSTER,
                                 base.host[i] * CLUSTER), 0);
  }
}

static int
make_base (void **state)
{
  const struct dedup_create_params params = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = 5 },
    .order = 5, .journal_areas = 4,
  };
  struct play p = { 0 };
  struct fault f = { 0 };
  uint64_t g;

  assert_int_equal (io_memory_new (0, &p.memory), 0);
  assert_int_equal (io_faulty_new (p.memory, io_fails, NULL, &p.io), 0);
  assert_int_equal (dedup_create (p.io, &params, &f), 0);
  open_image (&p);
  age (&p);
  assert_int_equal (dedup_disk_clone (p.pool, QCOW2_ROOT_ACTIVE, "copy", true,
                                      &p.copy, &f), 0);
  for (g = 0; g < SPARE; g++)
    base.is_data[host_of (&p, g)] = true;
  let_rot (&p);
  close_image (&p);
  base.size = (uint64_t) io_size (p.memory);
  base.bytes = malloc (base.size);
  assert_int_equal (io_pread (p.memory, base.bytes, base.size, 0), 0);
  io_close (p.io);
  fault_malloc_fails = malloc_fails;
  return 0;
}

static int
free_base (void **state)
{
  fault_malloc_fails = NULL;
  free (base.bytes);
  return 0;
}

static void
begin_play (struct play *p)
{
  memset (p, 0, sizeof *p);
  assert_int_equal (io_memory_new (0, &p->memory), 0);
  assert_int_equal (io_pwrite (p->memory, base.bytes, base.size, 0), 0);
  assert_int_equal (io_faulty_new (p->memory, io_fails, NULL, &p->io), 0);
  open_image (p);
}

/* --- Scrubs ----------------------------------------------------------------------- */

static unsigned
bad_number (uint64_t host_idx)
{
  unsigned i;

  for (i = 0; i < BAD && base.host[i] != host_idx; i++)
    ;
  return i;
}

/* Judges one finding: it is rotten, or was read in vain. */
static void
found_cb (void *opaque, const struct dedup_scrub_finding *f)
{
  struct play *p = opaque;
  const uint64_t host_idx = f->host_off / CLUSTER;
  const unsigned i = bad_number (host_idx);

  if (i == BAD) {
    if (f->why != DEDUP_SCRUB_UNREADABLE || host_idx >= MAX_HOST ||
        !fault.unreadable[host_idx] || !fault.ever)
      fail_msg ("cluster %llu was called bad", (unsigned long long) host_idx);
    return;
  }
  p->found[i] = true;
  p->nr_places += f->disk != NULL;
  assert_true (!f->disk || f->guest_off == base.guest[i] * CLUSTER);
  assert_true (f->why == DEDUP_SCRUB_DIFFERENT ? i != FAILING
               : i == FAILING || fault.unreadable[host_idx]);
}

/* Calls WHAT of the scrub, and again without the fault if memory is short; memory
 * that was short once is there at the second call. */
static int
again_for_memory (struct play *p, struct dedup_scrub **sc,
                  int (*what) (struct play *p, struct dedup_scrub **sc))
{
  int r = what (p, sc), tries;

  for (tries = 0; r == -ENOMEM && fault.ever && tries < 3; tries++)
    r = what (p, sc);
  if (r == -ENOMEM) {
    assert_true (fault.what == FAIL_MALLOC && fault.happened);
    fault.armed = false;
    r = what (p, sc);
    assert_int_not_equal (r, -ENOMEM);
  }
  return r;
}

static int
begin_cb (struct play *p, struct dedup_scrub **sc)
{
  const struct dedup_scrub_params params = {
    .restart = true, .found = found_cb, .opaque = p,
    .window_clusters = WINDOW,
  };

  return dedup_scrub_begin (p->pool, &params, sc);
}

static int
step_cb (struct play *p, struct dedup_scrub **sc)
{
  return dedup_scrub_step (*sc);
}

/* Scrubs the image with the fault; returns 0 or -errno. */
static int
scrub (struct play *p, struct dedup_scrub_figures *f)
{
  struct dedup_scrub *sc = NULL;
  int r;

  memset (p->found, 0, sizeof p->found);
  memset (f, 0, sizeof *f);
  p->nr_places = 0;
  fault.armed = true;
  r = again_for_memory (p, &sc, begin_cb);
  if (r < 0) {
    fault.armed = false;
    return r;
  }
  do
    r = again_for_memory (p, &sc, step_cb);
  while (r == 1);
  fault.armed = false;
  dedup_scrub_figures (sc, f);
  dedup_scrub_end (sc);
  return r;
}

static void
assert_all_found (struct play *p, const struct dedup_scrub_figures *f)
{
  assert_true (p->found[FLIPPED] && p->found[ZEROED] && p->found[FAILING]);
  assert_int_equal (p->nr_places, 2 * BAD);
  assert_int_equal (f->different + f->unreadable, BAD);
  if (fault.what != FAIL_PREAD)   /* then another one may be unreadable */
    assert_int_equal (f->unreadable, 1);
  assert_int_equal (f->doubtful, 0);
}

/* Asserts that both disks have their contents, but for what is rotten. */
static void
assert_contents (struct play *p)
{
  uint64_t g;

  for (g = 0; g < SPARE; g++)
    if (bad_number (host_of (p, g)) == BAD) {
      assert_true (reads_as (p, QCOW2_ROOT_ACTIVE, g, base.ids[g]));
      assert_true (reads_as (p, p->copy, g, base.ids[g]));
    }
}

/* Opens the image again, and scrubs it without faults. */
static void
assert_sound_after (struct play *p)
{
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;

  if (dedup_failed (p->pool))
    dedup_free (p->pool);
  else
    close_image (p);
  arm (FAIL_NOTHING, false, 0);
  open_image (p);
  assert_contents (p);
  assert_int_equal (scrub (p, &f), 0);
  dedup_scrub_remembered (p->pool, &m);
  if (m.complete)
    assert_all_found (p, &f);
  assert_int_equal (f.different + f.unreadable, m.bad);
  dedup_free (p->pool);
  io_close (p->io);
}

/* --- Plays ------------------------------------------------------------------------ */

/* Plays a scrub in which call NUMBER fails; returns whether there was one. */
static bool
play_scrub (enum fail what, bool ever, unsigned long number)
{
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;
  struct play p;
  bool happened;
  int r;

  begin_play (&p);
  arm (what, ever, number);
  r = scrub (&p, &f);
  happened = fault.happened;
  dedup_scrub_remembered (p.pool, &m);
  if (what == FAIL_MALLOC) {      /* it was as if nothing had happened */
    assert_int_equal (r, 0);
    assert_true (m.complete);
    assert_all_found (&p, &f);
  }
  else if (what == FAIL_PREAD) {
    assert_true (r == 0 || r == -EIO);
    if (!ever && fault.in_data)
      assert_all_found (&p, &f);
  }
  else {                          /* it may fail, but not without a reason */
    assert_true (r == 0 || dedup_failed (p.pool));
    if (r == 0)
      assert_all_found (&p, &f);
  }
  assert_sound_after (&p);
  return happened;
}

/* Plays the healing of two contents, and a write of the third one. */
static bool
play_healing (enum fail what, bool ever, unsigned long number)
{
  struct dedup_scrub_figures f;
  struct play p;
  bool happened;
  unsigned i;
  int r;

  begin_play (&p);
  arm (FAIL_NOTHING, false, 0);
  assert_int_equal (scrub (&p, &f), 0);
  assert_all_found (&p, &f);
  arm (what, ever, number);
  for (i = 0; i < BAD; i++) {
    const uint64_t id = base.ids[base.guest[i]];

    fault.armed = true;
    r = write_id (&p, SPARE + i, id);
    fault.armed = false;
    if (r == 0)
      assert_true (reads_as (&p, QCOW2_ROOT_ACTIVE, SPARE + i, id));
    else
      assert_true (fault.happened);
  }
  happened = fault.happened;
  if (!dedup_failed (p.pool))
    close_image (&p);
  else
    dedup_free (p.pool);
  arm (FAIL_NOTHING, false, 0);
  open_image (&p);
  assert_contents (&p);
  assert_int_equal (scrub (&p, &f), 0);
  assert_true (f.different + f.unreadable <= BAD);
  dedup_free (p.pool);
  io_close (p.io);
  return happened;
}

/* Plays writes of contents that are stored no longer, and of what is rotten, each of
 * which the index still has: a writer compares them with other bytes. */
static bool
play_old_contents (enum fail what, bool ever, unsigned long number)
{
  uint64_t places[MAX_PLACES], id;
  struct play p;
  bool happened;
  size_t nr, i;
  int r;

  begin_play (&p);
  arm (what, ever, number);
  for (id = 1; id <= base.last_id; id += 5) {
    fault.armed = true;
    r = write_id (&p, SPARE + id % (NR - SPARE), id);
    fault.armed = false;
    if (r == 0)
      assert_true (reads_as (&p, QCOW2_ROOT_ACTIVE, SPARE + id % (NR - SPARE),
                             id));
    else
      assert_true (fault.happened);
  }
  happened = fault.happened;
  nr = dedup_scrub_bad_places (p.pool, places, MAX_PLACES);
  for (i = 0; i < nr; i++)
    assert_int_not_equal (bad_number (places[i] / CLUSTER), BAD);
  assert_contents (&p);
  dedup_free (p.pool);
  io_close (p.io);
  return happened;
}

static void
play_each (bool (*play) (enum fail what, bool ever, unsigned long number),
           enum fail what)
{
  const char *s = getenv ("FAULT_SCALE");
  const unsigned long step = s ? 1 : what == FAIL_PREAD ? 5 : 2;
  unsigned long n, all = 0;
  bool ever;

  for (ever = false; ; ever = true) {
    for (n = 1; play (what, ever, n); n += n < 40 ? 1 : step)
      assert_true (++all < MOST_PLAYS);
    assert_true (n > 1);
    if (ever)
      break;
  }
  print_message ("%lu plays\n", all);
}

static void
test_scrub_without_memory (void **state)
{
  play_each (play_scrub, FAIL_MALLOC);
}

static void
test_scrub_and_reads (void **state)
{
  play_each (play_scrub, FAIL_PREAD);
}

static void
test_scrub_and_writes (void **state)
{
  play_each (play_scrub, FAIL_PWRITE);
  play_each (play_scrub, FAIL_SYNC);
}

static void
test_healing_without_memory (void **state)
{
  play_each (play_healing, FAIL_MALLOC);
}

static void
test_healing_and_reads (void **state)
{
  play_each (play_healing, FAIL_PREAD);
}

static void
test_old_contents (void **state)
{
  play_each (play_old_contents, FAIL_MALLOC);
  play_each (play_old_contents, FAIL_PREAD);
}

/* --- Threads ---------------------------------------------------------------------- */

#define BATCH (256u * CLUSTER)    /* the memory of one read */

static unsigned nr_large;         /* atomic: such pieces that were asked for */

/* Lets two threads that have taken a batch each find no memory for it.  The first one
 * waits for the second one, for some seconds at most. */
static bool
two_large_fail (size_t size)
{
  const unsigned nr = size == BATCH ?
    __atomic_add_fetch (&nr_large, 1, __ATOMIC_SEQ_CST) : UINT_MAX;

  for (unsigned i = 0; i < 5000 && nr == 1 &&
         __atomic_load_n (&nr_large, __ATOMIC_SEQ_CST) < 2; i++)
    usleep (1000);
  return nr <= 2;
}

static void *
scrub_to_the_end (void *opaque)
{
  int r;

  do
    r = dedup_scrub_step (opaque);
  while (r == 1 || r == -ENOMEM);
  return r == 0 ? opaque : NULL;
}

static void
test_threads_without_memory (void **state)
{
  struct dedup_scrub_figures f;
  struct dedup_scrub *sc;
  pthread_t thread;
  struct play p;
  void *beside;

  begin_play (&p);
  arm (FAIL_NOTHING, false, 0);
  nr_large = 0;
  fault_malloc_fails = two_large_fail;
  assert_int_equal (begin_cb (&p, &sc), 0);
  assert_int_equal (pthread_create (&thread, NULL, scrub_to_the_end, sc), 0);
  assert_ptr_equal (scrub_to_the_end (sc), sc);
  pthread_join (thread, &beside);
  assert_ptr_equal (beside, sc);
  fault_malloc_fails = malloc_fails;
  assert_true (nr_large > 2);
  dedup_scrub_figures (sc, &f);
  dedup_scrub_end (sc);
  assert_all_found (&p, &f);
  assert_sound_after (&p);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_scrub_without_memory),
    cmocka_unit_test (test_scrub_and_reads),
    cmocka_unit_test (test_scrub_and_writes),
    cmocka_unit_test (test_healing_without_memory),
    cmocka_unit_test (test_healing_and_reads),
    cmocka_unit_test (test_old_contents),
    cmocka_unit_test (test_threads_without_memory),
  };

  return cmocka_run_group_tests (tests, make_base, free_base);
}
