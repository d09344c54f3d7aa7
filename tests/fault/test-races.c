/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests races: many threads write, trim, zero, read and flush the same and
 * neighbouring clusters through the server's request path, with contents that
 * are mostly equal, on log stores that hold next to nothing and refcounts that
 * overflow at once, while other threads freeze, checkpoint, clean, scan,
 * defragment and commit, and I/O is delayed at random.
 *
 * Every request notes when it began and ended.  A unit (a cluster, or a quarter
 * of one) must read as some write left it which no other write had certainly
 * replaced: it must not have ended before another write began that itself ended
 * before the read began.  At the end the image must check clean, map what is
 * not zero, and store each content as often as the refcounts ask.
 *
 * In "clones", data is compressed, when it is written or later.  Clones of the disk
 * share tables with it and with each other; they are read all the time, without a lock of
 * any range, and must read as when they were made, while a compaction and the job that
 * compresses move what they refer to.
 *
 * Nobody may do I/O, hash, or compare clusters while holding the image's lock:
 * the byte store and the wrapped functions (meson.build) look.
 *
 * Fit for -Db_sanitize=thread.  FAULT_SCALE scales, FAULT_SEED seeds (threads
 * add randomness of their own).
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "defragment.h"
#include "index-existing.h"

#define NR 96u                  /* guest clusters */
#define WORKERS 8
#define MAX_CLUSTERS 12         /* of a request */
#define OPS_PER_WORKER 200      /* the check of histories is cubic */
#define SECONDS 300
#define MAX_CLONES 4

struct config {
  const char *name;
  unsigned cluster_bits, refcount_order, order, max_incarnations;
  unsigned parts;               /* units to a cluster: 1, or 4 for partial */
  bool verify;
  bool distinct;                /* most contents differ, so that clusters are moved */
  bool clones;               /* of compressed data */
};

static const struct config configs[] = {
  { "plain", 12, 4, 4, 3, 1, true },
  { "partial", 12, 4, 4, 3, 4, true },
  { "ceiling", 12, 2, 4, 0, 1, true },
  { "ceiling-partial", 12, 2, 4, 3, 4, true },
  { "no-sharing", 12, 1, 5, 0, 1, true },
  { "exact", 12, 2, 4, 0, 1, false },
  { "tiny-clusters", 9, 4, 4, 2, 1, true },
  { "distinct", 12, 4, 4, 3, 1, true, true },
  { "distinct-exact", 12, 4, 4, 0, 4, false, true },
  { "clones", 12, 5, 4, 0, 1, true, true, true },
};

struct event { uint64_t id, start, end; };

struct history { struct event *v; size_t nr, max; };

static const struct config *cfg;
static struct srv_disk served;
static struct srv_space space;          /* writes no lines */
static struct dedup_pool *disk;
static size_t unit;             /* bytes */
static unsigned nr_units;
static uint64_t seed;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct history *writes, *reads;    /* by unit; protected by mutex */
static uint64_t ticks;                    /* atomic */
static bool stop;                         /* atomic */
static uint64_t nr_moved;                 /* atomic: clusters defragmented, or bytes
                                           * stored again */
static unsigned clones[MAX_CLONES]; /* roots, constant while threads run */
static unsigned nr_clones;
static uint64_t clone_ids[MAX_CLONES][NR];
static __thread uint64_t rng;

static void __attribute__ ((__noreturn__, __format__ (__printf__, 1, 2)))
die (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  fprintf (stderr, "%s, FAULT_SEED=%" PRIu64 ": ", cfg->name, seed);
  vfprintf (stderr, fmt, ap);
  fprintf (stderr, "\n");
  va_end (ap);
  abort ();
}

static uint64_t
rnd (uint64_t n)
{
  if (rng == 0)                 /* a thread that did not say who it is */
    rng = seed ^ (uint64_t) (uintptr_t) &rng;
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return (rng >> 11) % n;
}

static uint64_t
tick (void)
{
  return __atomic_add_fetch (&ticks, 1, __ATOMIC_SEQ_CST);
}

static void
must (int r, const char *what)
{
  if (r < 0)
    die ("%s: %s", what, strerror (-r));
}

/* --- contents ------------------------------------------------------------ */

static void
fill (uint8_t *p, uint64_t id)
{
  size_t i;
  uint64_t v;

  for (i = 0; i < unit / 8; i++) {
    v = id ? id * 0x100000001b3u + i * (id | 1) : 0;
    if (i == 0)
      v = id;
    memcpy (p + 8 * i, &v, 8);
  }
}

static uint64_t
identify (const uint8_t *p, unsigned u)
{
  uint8_t want[4096];
  uint64_t id;

  memcpy (&id, p, 8);
  fill (want, id);
  if (memcmp (p, want, unit) != 0)
    die ("unit %u is a mix", u);
  return id;
}

/* --- history ------------------------------------------------------------- */

static void
note (struct history *h, struct event e)
{
  if (h->nr == h->max) {
    h->max = h->max ? 2 * h->max : 32;
    h->v = realloc (h->v, h->max * sizeof *h->v);
  }
  h->v[h->nr++] = e;
}

/* IDS: one for each unit. */
static void
note_all (struct history *h, unsigned first, unsigned nr, const uint64_t *ids,
          uint64_t start)
{
  uint64_t end = tick ();
  unsigned i;

  pthread_mutex_lock (&mutex);
  for (i = 0; i < nr; i++)
    note (&h[first + i], (struct event) { ids[i], start, end });
  pthread_mutex_unlock (&mutex);
}

/* Was W replaced for certain before READ began? */
static bool
is_replaced (const struct history *w, const struct event *by,
             const struct event *read)
{
  size_t i;

  for (i = 0; i < w->nr; i++)
    if (w->v[i].start > by->end && w->v[i].end < read->start)
      return true;
  return false;
}

static void
check_read (unsigned u, const struct event *read)
{
  const struct history *w = &writes[u];
  size_t i;

  for (i = 0; i < w->nr; i++)
    if (w->v[i].id == read->id && w->v[i].start < read->end &&
        !is_replaced (w, &w->v[i], read))
      return;
  die ("unit %u read %" PRIu64 " from %" PRIu64 " to %" PRIu64 ": no order of "
       "the writes explains it", u, read->id, read->start, read->end);
}

static void
check_history (void)
{
  unsigned u;
  size_t i;

  for (u = 0; u < nr_units; u++) {
    for (i = 0; i < reads[u].nr; i++)
      check_read (u, &reads[u].v[i]);
    reads[u].nr = 0;
  }
}

/* --- requests ------------------------------------------------------------ */

/* Zeroes, one of a few that all have, or one that few have. */
static uint64_t
random_id (void)
{
  if (cfg->distinct && rnd (8))
    return 1000 + rnd (100000);
  switch (rnd (8)) {
  case 0: return 0;
  case 1: return 1000 + rnd (2000);
  default: return 1 + rnd (12);
  }
}

static void
do_write (unsigned first, unsigned nr)
{
  uint8_t *buf = malloc (nr * unit);
  uint64_t ids[MAX_CLUSTERS * 4], start;
  unsigned i;

  for (i = 0; i < nr; i++) {
    /* Whole clusters of one content, so that there are duplicates. */
    ids[i] = i % cfg->parts && rnd (16) ? ids[i - 1] : random_id ();
    fill (buf + i * unit, ids[i]);
  }
  start = tick ();
  must (srv_pwrite (&served, buf, first * unit, (uint32_t) (nr * unit),
                    rnd (40) == 0), "write");
  note_all (writes, first, nr, ids, start);
  free (buf);
}

static void
do_read (unsigned first, unsigned nr)
{
  uint8_t *buf = malloc (nr * unit);
  uint64_t ids[MAX_CLUSTERS * 4], start = tick ();
  unsigned i;

  must (srv_pread (&served, buf, first * unit, (uint32_t) (nr * unit)),
        "read");
  for (i = 0; i < nr; i++)
    ids[i] = identify (buf + i * unit, first + i);
  note_all (reads, first, nr, ids, start);
  free (buf);
}

/* Trims leave partial clusters as they are: so whole ones. */
static void
do_unmap (unsigned first, unsigned nr)
{
  static const uint64_t zeroes[MAX_CLUSTERS * 4];
  uint64_t start;

  if (rnd (2)) {
    first = first / cfg->parts * cfg->parts;
    nr = (nr + cfg->parts - 1) / cfg->parts * cfg->parts;
    start = tick ();
    must (srv_trim (&served, first * unit, (uint32_t) (nr * unit), false),
          "trim");
  }
  else {
    start = tick ();
    must (srv_zero (&served, first * unit, (uint32_t) (nr * unit),
                    rnd (2), false, false), "zero");
  }
  note_all (writes, first, nr, zeroes, start);
}

static void *
worker (void *arg)
{
  unsigned n, first, nr, max = MAX_CLUSTERS * cfg->parts;

  rng = (seed + 77 * (uintptr_t) arg) | 1;
  for (n = 0; n < OPS_PER_WORKER; n++) {
    nr = 1 + (unsigned) rnd (max);
    /* Starts at a unit; kept a cluster away from the end for do_unmap. */
    first = (unsigned) rnd (nr_units - nr - cfg->parts + 1);
    if (cfg->parts > 1 && rnd (3))
      first = first / cfg->parts * cfg->parts;
    switch (rnd (10)) {
    case 0: case 1: do_unmap (first, nr); break;
    case 2: case 3: do_read (first, nr); break;
    default: do_write (first, nr); break;
    }
    if (rnd (30) == 0)
      must (srv_flush (&served), "flush");
  }
  return NULL;
}

/* --- jobs ---------------------------------------------------------------- */

static void *
run_jobs (void *arg)
{
  struct dedup_stats s;
  int r;

  rng = (seed + 991) | 1;
  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    r = dedup_run (disk, 1u << (1 + rnd (9)));
    must (r, "a job");
    if (rnd (10) == 0) {
      r = dedup_finish (disk);  /* somebody is always changing, or not */
      if (r != -EBUSY)
        must (r, "finish");
    }
    dedup_get_stats (disk, &s);
    usleep ((useconds_t) rnd (1500));
  }
  return NULL;
}

static void *
run_indexing (void *arg)
{
  struct srv_index_existing x = { .disk = &served };
  int r;

  rng = (seed + 424242) | 1;
  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    r = srv_index_existing_step (&x, true);
    if (r == 0)
      x.guest_idx = 0;
    if (r != -ENOTSUP)
      must (MIN_OF (r, 0), "indexing");
    usleep ((useconds_t) rnd (1500));
  }
  return NULL;
}

/* Defragments any clusters, while clients change and share them. */
static void *
run_moves (void *arg)
{
  unsigned nr;
  int r;

  rng = (seed + 515151) | 1;
  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    nr = 2 + (unsigned) rnd (NR / 2);
    r = srv_defragment_piece (&served, rnd (NR - nr), nr);
    must (MIN_OF (r, 0), "defragmentation");
    if (r > 0)
      __atomic_add_fetch (&nr_moved, (uint64_t) r, __ATOMIC_RELAXED);
    usleep ((useconds_t) rnd (800));
  }
  return NULL;
}

/* --- clones ------------------------------------------------------------ */

static void
check_clone (unsigned i, unsigned first, unsigned nr)
{
  uint8_t *buf = malloc (nr * unit);
  unsigned u;

  must (dedup_read (disk, clones[i], buf, first * unit, nr * unit), "read");
  for (u = 0; u < nr; u++)
    if (identify (buf + u * unit, first + u) != clone_ids[i][first + u])
      die ("unit %u of clone %u has changed", first + u, i);
  free (buf);
}

static void *
read_clones (void *arg)
{
  unsigned nr;

  rng = (seed + 616161) | 1;
  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    nr = 1 + (unsigned) rnd (MAX_CLUSTERS);
    check_clone ((unsigned) rnd (nr_clones), (unsigned) rnd (NR - nr), nr);
  }
  return NULL;
}

struct moving {
  struct srv_range range;
  bool locked;
};

/* Nobody writes to clones, or deletes them. */
static int
lock_range (void *opaque, unsigned root, uint64_t guest_idx, size_t nr)
{
  struct moving *m = opaque;

  m->locked = root == QCOW2_ROOT_ACTIVE;
  return m->locked ? srv_range_acquire (&served.ranges, &m->range, guest_idx,
                                        guest_idx + nr - 1, true) : 0;
}

static void
unlock_range (void *opaque)
{
  struct moving *m = opaque;

  if (m->locked)
    srv_range_release (&served.ranges, &m->range);
}

static void *
run_compactions (void *arg)
{
  struct moving m;
  const struct dedup_compact_params p = {
    .percent = 1, .lock = lock_range, .unlock = unlock_range, .opaque = &m,
  };
  struct dedup_compact_figures f;
  struct dedup_compact *c;
  int r = 1;

  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    must (dedup_compact_begin (disk, &p, &c), "a compaction");
    do
      r = dedup_compact_step (c);
    while (r == 1 && !__atomic_load_n (&stop, __ATOMIC_RELAXED));
    must (MIN_OF (r, 0), "a step of a compaction");
    dedup_compact_figures (c, &f);
    __atomic_add_fetch (&nr_moved, f.moved_bytes, __ATOMIC_RELAXED);
    dedup_compact_end (c);
  }
  return NULL;
}

static void *
run_compressing (void *arg)
{
  struct moving m;
  const struct dedup_compress_params p = {
    .all = true, .lock = lock_range, .unlock = unlock_range, .opaque = &m,
  };
  struct dedup_compress_work *c;
  int r = 1;

  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    must (dedup_compress_begin (disk, &p, &c), "compressing");
    do
      r = dedup_compress_step (c);
    while (r == 1 && !__atomic_load_n (&stop, __ATOMIC_RELAXED));
    must (MIN_OF (r, 0), "a step of compressing");
    dedup_compress_end (c);
    must (dedup_run (disk, DEDUP_JOB_DISKS), "paying");
  }
  return NULL;
}

static void
make_clone (const uint64_t *ids, const char *name)
{
  struct fault f = { 0 };
  unsigned i = nr_clones++;

  if (dedup_disk_clone (disk, QCOW2_ROOT_ACTIVE, name, true, &clones[i], &f) < 0)
    die ("%s: %s", name, f.msg);
  memcpy (clone_ids[i], ids, NR * sizeof *ids);
}

/* Makes two, which share all tables until the disk is written. */
static void
begin_clones (const uint64_t *ids, unsigned round)
{
  char name[16];

  snprintf (name, sizeof name, "s%u", round);
  make_clone (ids, name);
  snprintf (name, sizeof name, "t%u", round);
  make_clone (ids, name);
}

static void
end_clones (void)
{
  struct fault f = { 0 };
  unsigned i;

  for (i = 0; i < nr_clones; i++) {
    check_clone (i, 0, NR);
    if (i % 2 == 0 && dedup_disk_delete (disk, clones[i], &f) < 0)
      die ("delete: %s", f.msg);
  }
  must (dedup_disks_settle (disk), "paying");
  nr_clones = 0;
}

static void *
run_commits (void *arg)
{
  rng = (seed + 1234567) | 1;
  while (!__atomic_load_n (&stop, __ATOMIC_RELAXED)) {
    must (dedup_run (disk, DEDUP_JOB_COMMIT), "a commit");
    usleep ((useconds_t) rnd (3000));
  }
  return NULL;
}

/* --- what nobody does with a lock ----------------------------------------- */

static struct lock *image_lock;           /* atomic; NULL: no session */

static void
hold_no_lock (const char *what)
{
  struct lock *l = __atomic_load_n (&image_lock, __ATOMIC_ACQUIRE);

  if (l && lock_held (l))
    die ("%s under the image lock", what);
}

int __real_dedup_hash_compute (const struct dedup_hasher *h, const void *data,
                               size_t len, struct dedup_hash *out);
int __wrap_dedup_hash_compute (const struct dedup_hasher *h, const void *data,
                               size_t len, struct dedup_hash *out);
uint64_t __real_dedup_checksum (const void *data, size_t len);
uint64_t __wrap_dedup_checksum (const void *data, size_t len);
int __real_memcmp (const void *a, const void *b, size_t n);
int __wrap_memcmp (const void *a, const void *b, size_t n);

int
__wrap_dedup_hash_compute (const struct dedup_hasher *h, const void *data,
                           size_t len, struct dedup_hash *out)
{
  hold_no_lock ("hashing");
  return __real_dedup_hash_compute (h, data, len, out);
}

/* The checksum of journal blocks and of the configuration too. */
uint64_t
__wrap_dedup_checksum (const void *data, size_t len)
{
  hold_no_lock ("a checksum");
  return __real_dedup_checksum (data, len);
}

int
__wrap_memcmp (const void *a, const void *b, size_t n)
{
  if (n >= 256)
    hold_no_lock ("comparing");
  return __real_memcmp (a, b, n);
}

static int
delay (void *opaque, enum io_call call, uint64_t off, uint64_t len)
{
  hold_no_lock ("I/O");
  if (rnd (6) == 0)
    usleep ((useconds_t) rnd (150));
  else if (rnd (4) == 0)
    sched_yield ();
  return 0;
}

/* --- a session ----------------------------------------------------------- */

static void
open_session (struct io_store *io, bool writable)
{
  struct dedup_open_params p = {
    .path = "races", .writable = writable, .dedup = true,
    .verify = cfg->verify, .max_incarnations = cfg->max_incarnations,
    .cache_bytes = 1 << 16, .order = cfg->order, .journal_areas = 4,
    .compress = cfg->clones ? DEDUP_COMPRESS_ZLIB : DEDUP_COMPRESS_KEEP,
  };
  struct fault f = { 0 };

  if (dedup_open (io, &p, &disk, &f) < 0)
    die ("open: %s", f.msg);
  srv_disk_init (&served, disk, QCOW2_ROOT_ACTIVE, writable, &space);
  __atomic_store_n (&image_lock, qcow2_lock (dedup_image (disk)),
                    __ATOMIC_RELEASE);
}

static void
close_session (void)
{
  __atomic_store_n (&image_lock, NULL, __ATOMIC_RELEASE);
  srv_disk_destroy (&served);
  dedup_free (disk);
}

static void
run_threads (void *(*work) (void *), unsigned round)
{
  static void *(*const on_clones[]) (void *) = { read_clones, read_clones,
                                                    run_compactions, run_compressing };
  pthread_t t[WORKERS], more[4], jobs, commits, indexing, moves;
  bool index = work == worker;  /* the other one counts what is linked */
  uintptr_t i;

  stop = false;
  pthread_create (&jobs, NULL, run_jobs, NULL);
  pthread_create (&commits, NULL, run_commits, NULL);
  if (index) {
    pthread_create (&indexing, NULL, run_indexing, NULL);
    pthread_create (&moves, NULL, run_moves, NULL);
  }
  for (i = 0; i < 4 && nr_clones > 0; i++)
    pthread_create (&more[i], NULL, on_clones[i], NULL);
  for (i = 0; i < WORKERS; i++)
    pthread_create (&t[i], NULL, work, (void *) (i + 10 * round));
  for (i = 0; i < WORKERS; i++)
    pthread_join (t[i], NULL);
  __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  pthread_join (jobs, NULL);
  pthread_join (commits, NULL);
  for (i = 0; i < 4 && nr_clones > 0; i++)
    pthread_join (more[i], NULL);
  if (index) {
    pthread_join (indexing, NULL);
    pthread_join (moves, NULL);
  }
}

static void
print_problem (void *opaque, bool is_leak, const char *line)
{
  fprintf (stderr, "%s: %s\n", is_leak ? "leak" : "problem", line);
}

static void
check_image (struct io_store *io, struct dedup_check_result *r)
{
  struct qcow2_check_params p = { .problem = print_problem };
  struct fault f = { 0 };

  open_session (io, false);
  if (dedup_check (disk, &p, r, &f) < 0)
    die ("check: %s", f.msg);
  if (r->image.corruptions || r->image.leaks || r->image.errors ||
      r->store_errors)
    die ("not clean");
  close_session ();
}

/* Read all of it: what the threads left, and how it is mapped. */
static void
read_all (uint64_t *ids)
{
  unsigned u;
  uint8_t *buf = malloc (unit * nr_units);

  must (srv_pread (&served, buf, 0, (uint32_t) (unit * nr_units)), "read");
  for (u = 0; u < nr_units; u++)
    ids[u] = identify (buf + u * unit, u);
  free (buf);
}

static void
check_end (const uint64_t *ids, const struct dedup_check_result *r)
{
  unsigned c, u, mapped = 0;

  for (c = 0; c < NR; c++) {
    bool data = false;

    for (u = c * cfg->parts; u < (c + 1) * cfg->parts; u++)
      data |= ids[u] != 0;
    mapped += data;
  }
  if (r->image.mapped_clusters != mapped)
    die ("%u clusters are not zero, but %" PRIu64 " are mapped", mapped,
         r->image.mapped_clusters);
  if (r->image.data_clusters > mapped)
    die ("%u clusters have data, and %" PRIu64 " are stored", mapped,
         r->image.data_clusters);
}

static struct io_store *
new_image (void)
{
  struct qcow2_create_params p = { (uint64_t) NR << cfg->cluster_bits,
                                   cfg->cluster_bits, cfg->refcount_order };
  struct io_store *mem, *io;
  struct fault f = { 0 };

  must (io_memory_new (0, &mem), "memory");
  if (qcow2_create (mem, &p, &f) < 0)
    die ("create: %s", f.msg);
  must (io_faulty_new (mem, delay, NULL, &io), "faulty");
  return io;
}

/* --- everything at once -------------------------------------------------- */

static void
free_histories (void)
{
  unsigned u;

  for (u = 0; u < nr_units; u++) {
    free (writes[u].v);
    free (reads[u].v);
  }
  free (writes);
  free (reads);
}

static void
race_everything (void)
{
  struct io_store *io = new_image ();
  uint64_t *ids = calloc (nr_units, sizeof *ids), start = tick ();
  struct dedup_check_result r;
  unsigned round;

  writes = calloc (nr_units, sizeof *writes);
  reads = calloc (nr_units, sizeof *reads);
  note_all (writes, 0, nr_units, ids, start);
  for (round = 0; round < 3; round++) {
    open_session (io, true);
    start = tick ();
    read_all (ids);             /* what the last session left */
    note_all (reads, 0, nr_units, ids, start);
    if (cfg->clones)
      begin_clones (ids, round);
    run_threads (worker, round);
    if (cfg->clones)
      end_clones ();
    start = tick ();
    read_all (ids);
    note_all (reads, 0, nr_units, ids, start);
    check_history ();
    must (dedup_finish (disk), "finish");
    close_session ();
    check_image (io, &r);
    if (!cfg->clones)
      check_end (ids, &r);
  }
  free (ids);
  free_histories ();
  io_close (io);
}

/* --- equal data for the first time --------------------------------------- */

#define CONTENTS (NR / WORKERS)

/* Each worker writes all contents to a part of its own, in runs cut
 * differently. */
static void *
write_same (void *arg)
{
  uintptr_t who = (uintptr_t) arg % 10;
  uint8_t *buf = malloc ((size_t) CONTENTS << cfg->cluster_bits);
  unsigned i, n, done;

  rng = (seed + 77 * (uintptr_t) arg) | 1;
  for (i = 0; i < CONTENTS * cfg->parts; i++)
    fill (buf + i * unit, 1 + i / cfg->parts);
  for (done = 0; done < CONTENTS; done += n) {
    n = 1 + (unsigned) rnd (5);
    n = MIN_OF (n, CONTENTS - done);
    must (srv_pwrite (&served, buf + ((size_t) done << cfg->cluster_bits),
                      (who * CONTENTS + done) << cfg->cluster_bits,
                      n << cfg->cluster_bits, false), "write");
  }
  free (buf);
  return NULL;
}

/* The most guest references that a cluster takes, beside the anchor's.  Who
 * stored it may come one too late, when others have brought it to the limit
 * already. */
static unsigned
most_links (void)
{
  uint64_t max = UINT64_C (1) << ((1u << cfg->refcount_order) - 1);

  /* Half of the width's maximum, 2 at least (dedup/open.c). */
  return cfg->refcount_order > 3 ? NR
    : (unsigned) MAX_OF ((2 * max - 1) / 2, 2);
}

/* Every content is stored as often as refcounts ask.  At a ceiling, each of
 * the writers that come upon it may begin a cluster: no more. */
static void
race_equal_data (void)
{
  struct io_store *io = new_image ();
  struct dedup_check_result r;
  struct dedup_stats s;
  unsigned least = (WORKERS + most_links () - 1) / most_links ();
  unsigned most = most_links () >= WORKERS ? least : WORKERS;

  open_session (io, true);
  run_threads (write_same, 0);
  dedup_get_stats (disk, &s);
  if (s.stored + s.linked != NR)
    die ("%" PRIu64 " stored and %" PRIu64 " linked of %u", s.stored,
         s.linked, NR);
  must (dedup_finish (disk), "finish");
  close_session ();
  check_image (io, &r);
  if (r.image.mapped_clusters != NR || r.image.data_clusters != s.stored ||
      r.image.data_clusters < least * CONTENTS ||
      r.image.data_clusters > most * CONTENTS)
    die ("%u contents of %u clusters are stored in %" PRIu64 ", counted as "
         "%" PRIu64, CONTENTS, NR, r.image.data_clusters, s.stored);
  io_close (io);
}

int
main (void)
{
  const char *scale = getenv ("FAULT_SCALE"), *s = getenv ("FAULT_SEED");
  const char *only = getenv ("FAULT_RACE");
  double factor = scale ? strcmp (scale, "all") ? atof (scale) : 50 : 1;
  unsigned i, k;

  seed = s ? strtoull (s, NULL, 0) : (uint64_t) getpid () * 0x9e3779b9u;
  printf ("FAULT_SEED=%" PRIu64 "\n", seed);
  for (i = 0; i < sizeof configs / sizeof configs[0]; i++) {
    if (only && strcmp (only, configs[i].name) != 0)
      continue;
    cfg = &configs[i];
    unit = ((size_t) 1 << cfg->cluster_bits) / cfg->parts;
    nr_units = NR * cfg->parts;
    nr_moved = 0;
    for (k = 0; k < MAX_OF (1, factor); k++) {
      alarm (SECONDS);
      race_everything ();
    }
    if (cfg->distinct && nr_moved == 0)
      die ("nothing was ever moved");
    for (k = 0; k < MAX_OF (2, 4 * factor) && !cfg->clones; k++)
      race_equal_data ();
    printf ("%-16s OK\n", cfg->name);
    fflush (stdout);
  }
  return 0;
}
