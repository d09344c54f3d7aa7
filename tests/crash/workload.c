/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs workloads: seeded random operations through the server's request path on
 * the real engine, over a recording.
 *
 * With one client everything happens in one thread, jobs included, and a seed
 * gives the same log every time.  With more, each client has a thread and
 * clusters of its own, and shares others with the rest, unit by unit, so that
 * they read, complete and rewrite the same clusters; all of them write the
 * same contents, so that they join and link each other's.  One more thread
 * runs the jobs.  I/O is delayed at random then.
 */
#include "crash.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "dedup.h"
#include "defragment.h"
#include "index-existing.h"

/* --- taking notes ---------------------------------------------------------- */

static size_t
log_length (struct world *w)
{
  const struct io_record *log;

  return io_recording_log (w->rec, &log);
}

static size_t
count_ops (struct world *w)
{
  size_t nr;

  pthread_mutex_lock (&w->mutex);
  nr = w->nr_ops;
  pthread_mutex_unlock (&w->mutex);
  return nr;
}

size_t
note_start (struct world *w, unsigned client, size_t first, size_t nr,
            const uint64_t *ids)
{
  struct mop op = { .client = client, .first = first, .nr = nr,
                    .done_tick = UINT64_MAX, .durable_pos = NEVER };
  size_t i;

  op.ids = calloc (nr, sizeof *op.ids);
  if (ids)
    memcpy (op.ids, ids, nr * sizeof *ids);
  pthread_mutex_lock (&w->mutex);
  if (w->nr_ops == w->max_ops) {
    w->max_ops = w->max_ops ? w->max_ops * 2 : 64;
    w->ops = realloc (w->ops, w->max_ops * sizeof *w->ops);
  }
  op.start_tick = ++w->tick;
  op.start_pos = log_length (w);
  i = w->nr_ops++;
  w->ops[i] = op;
  pthread_mutex_unlock (&w->mutex);
  return i;
}

void
note_done (struct world *w, size_t i)
{
  pthread_mutex_lock (&w->mutex);
  w->ops[i].done_tick = ++w->tick;
  pthread_mutex_unlock (&w->mutex);
}

/* It is durable: whatever it did has been synced. */
void
note_durable (struct world *w, size_t i)
{
  pthread_mutex_lock (&w->mutex);
  w->ops[i].durable_pos = log_length (w);
  pthread_mutex_unlock (&w->mutex);
}

/* It had no effect. */
void
note_void (struct world *w, size_t i)
{
  pthread_mutex_lock (&w->mutex);
  w->ops[i].nr = 0;
  w->ops[i].done_tick = ++w->tick;
  pthread_mutex_unlock (&w->mutex);
}

uint64_t
next_tick (struct world *w)
{
  uint64_t t;

  pthread_mutex_lock (&w->mutex);
  t = ++w->tick;
  pthread_mutex_unlock (&w->mutex);
  return t;
}

void
note_flushed (struct world *w, uint64_t start_tick)
{
  pthread_mutex_lock (&w->mutex);
  if (w->nr_flushes == w->max_flushes) {
    w->max_flushes = w->max_flushes ? w->max_flushes * 2 : 64;
    w->flushes = realloc (w->flushes, w->max_flushes * sizeof *w->flushes);
  }
  w->flushes[w->nr_flushes++] = (struct mflush) { start_tick,
                                                  log_length (w) };
  pthread_mutex_unlock (&w->mutex);
}

/* After a failed sync the disk refuses, and where the host is full it may;
 * anything else is a failure. */
int
result (struct world *w, const char *what, int r)
{
  if (r == -ENOSPC && w->cfg.no_space)
    return 0;
  if (r < 0 && w->host && !w->faulted && may_fail (w, what, r))
    w->faulted = true;
  if (r < 0 && !w->faulted)
    world_error (w, "%s: %s", what, strerror (-r));
  return r;
}

/* --- operations ---------------------------------------------------------------- */

int
do_write (struct world *w, struct srv_disk *disk, unsigned client,
          size_t first, size_t nr, const uint64_t *ids, bool fua)
{
  struct srv_disk *at;
  uint64_t off, len = 0, tick;
  uint8_t *buf = calloc (nr, w->unit);
  size_t op = note_start (w, client, first, nr, ids), i;
  int r;

  for (i = 0; i < nr; i++) {
    fill_unit (buf + len, unit_bytes (w, first + i), ids[i]);
    len += unit_bytes (w, first + i);
  }
  at = slot_disk (w, disk, first, &off);
  r = srv_pwrite (at, buf, off, (uint32_t) len, false);
  free (buf);
  if (r == -ENOSPC)
    note_void (w, op);
  if (r == 0) {
    note_done (w, op);
    if (fua) {
      tick = next_tick (w);
      r = srv_flush (disk);
      if (r == 0)
        note_flushed (w, tick);
    }
  }
  return result (w, "write", r);
}

int
do_flush (struct world *w, struct srv_disk *disk)
{
  uint64_t tick = next_tick (w);
  int r = srv_flush (disk);

  if (r == 0)
    note_flushed (w, tick);
  return result (w, "flush", r);
}

static bool
all_zero (const uint8_t *p, size_t len)
{
  size_t i;

  for (i = 0; i < len && p[i] == 0; i++)
    ;
  return i == len;
}

/* An operation that zeroes, of a request that failed: was it done? */
static bool
reads_zero (struct world *w, struct srv_disk *disk, size_t op)
{
  struct srv_disk *at;
  uint64_t off = w->ops[op].first * w->unit;
  uint64_t len = MIN_OF (w->ops[op].nr * w->unit, disk_bytes (w) - off);
  uint8_t *buf = calloc (1, len);
  bool zero;

  at = slot_disk (w, disk, w->ops[op].first, &off);
  zero = srv_pread (at, buf, off, (uint32_t) len) == 0 && all_zero (buf, len);

  free (buf);
  return zero;
}

/* The operations that a trim or zero request consists of: the ends that are
 * no whole clusters are written, in zeroes. */
int
do_unmap (struct world *w, struct srv_disk *disk, unsigned client,
          size_t first, size_t nr, bool trim, bool may_trim)
{
  size_t end = first + nr, a, b, op[3], n = 0, i;
  struct srv_disk *const active = disk;
  uint64_t off = first * w->unit, stop;
  int r;

  stop = MIN_OF (end * w->unit, disk_bytes (w));
  a = (size_t) round_up_pow2 (first, UNITS_PER_CLUSTER);
  b = end == w->nr_units ? end
    : (size_t) round_down_pow2 (end, UNITS_PER_CLUSTER);
  if (a >= b) {
    if (!trim)
      op[n++] = note_start (w, client, first, nr, NULL);
  }
  else {
    if (!trim && first < a)
      op[n++] = note_start (w, client, first, a - first, NULL);
    op[n++] = note_start (w, client, a, b - a, NULL);
    if (!trim && b < end)
      op[n++] = note_start (w, client, b, end - b, NULL);
  }
  stop -= off;                   /* the length, from here on */
  disk = slot_disk (w, disk, first, &off);
  r = trim ? srv_trim (disk, off, (uint32_t) stop, false)
    : srv_zero (disk, off, (uint32_t) stop, may_trim, false, false);
  for (i = 0; (r == 0 || r == -ENOSPC) && i < n; i++)
    if (r == 0 || reads_zero (w, active, op[i]))
      note_done (w, op[i]);
    else
      note_void (w, op[i]);
  return result (w, trim ? "trim" : "zero", r);
}

/* --- choosing --------------------------------------------------------------------- */

/* Clusters come in groups of 16: with several clients, 14 of one client and
 * 2 shared, of which each client has some units. */
#define GROUP 16
#define OWN 14

/* A range in a disk that can be written; false: the chosen one cannot. */
static bool
choose_slot_range (const struct world *w, unsigned client, struct rng *r,
                   size_t *first, size_t *nr)
{
  const size_t slot = rnd (r, w->cfg.disks);
  const unsigned grain = chance (r, 4) ? 1 : UNITS_PER_CLUSTER;
  const size_t per = slot_is_of (w, slot, client) ? slot_length (w, slot) : 0;

  if (per == 0)
    return false;
  *first = rnd (r, per / grain) * grain;
  *nr = (1 + rnd (r, MIN_OF ((per - *first) / grain, 14))) * grain;
  *first += slot * w->slot_units;
  return true;
}

static bool
choose_range (const struct world *w, unsigned client, struct rng *r,
              size_t *first, size_t *nr)
{
  size_t clusters = w->cfg.nr_clusters, lo = 0, hi = clusters, c;

  if (w->cfg.disks)
    return choose_slot_range (w, client, r, first, nr);
  if (w->cfg.clients > 1) {
    c = rnd (r, div_round_up (clusters, GROUP));
    lo = c * GROUP;
    if (chance (r, 3) && lo + OWN < clusters) {
      c = lo + OWN + rnd (r, MIN_OF (GROUP - OWN, clusters - lo - OWN));
      *first = c * UNITS_PER_CLUSTER + client;
      *nr = 1;
      return client < UNITS_PER_CLUSTER && *first < w->nr_units;
    }
    if (c % w->cfg.clients != client)
      return false;
    hi = MIN_OF (lo + OWN, clusters);
  }
  if (chance (r, 4)) {           /* any units */
    lo *= UNITS_PER_CLUSTER;
    hi = MIN_OF (hi * UNITS_PER_CLUSTER, w->nr_units);
    *first = lo + rnd (r, hi - lo);
    *nr = 1 + rnd (r, MIN_OF (hi - *first, 12));
  }
  else {
    c = lo + rnd (r, hi - lo);
    *first = c * UNITS_PER_CLUSTER;
    *nr = (1 + rnd (r, MIN_OF (hi - c, 16))) * UNITS_PER_CLUSTER;
    *nr = MIN_OF (*nr, w->nr_units - *first);
  }
  return true;
}

static uint64_t
unique_id (struct world *w)
{
  return __atomic_add_fetch (&w->next_id, 1, __ATOMIC_RELAXED);
}

/* The content that a unit of the base had before it rotted. */
static uint64_t
base_id_of (const struct world *w, size_t unit)
{
  const uint64_t id = w->base_ids[unit];

  return id != ID_ABSENT ? id & ~ID_ROTTEN : 0;
}

/* The content of some cluster of the base. */
static uint64_t
some_base_id (const struct world *w, struct rng *r)
{
  return base_id_of (w, rnd (r, w->data_units) / UNITS_PER_CLUSTER *
                     UNITS_PER_CLUSTER);
}

/* Content cluster by cluster: old, new, zero, or units of all sorts. */
static void
choose_ids (struct world *w, struct rng *r, size_t first, size_t nr,
            uint64_t *ids)
{
  unsigned kind = 0;
  uint64_t id = 0;
  size_t i;

  for (i = 0; i < nr; i++) {
    if (i == 0 || (first + i) % UNITS_PER_CLUSTER == 0) {
      kind = (unsigned) rnd (r, 9);
      id = kind < 3 ? 1 + rnd (r, 40) : kind < 7 ? unique_id (w)
        : kind == 7 ? base_id_of (w, first) : 0;
      if (w->cfg.base_one_in && chance (r, w->cfg.base_one_in)) {
        id = some_base_id (w, r);
        kind = 0;
      }
    }
    ids[i] = kind == 8 && chance (r, 2) ? 1 + rnd (r, 40) : id;
  }
}

static int
write_range (struct world *w, struct srv_disk *disk, unsigned client,
             struct rng *r, size_t first, size_t nr)
{
  uint64_t ids[MAX_OP_UNITS];

  choose_ids (w, r, first, nr, ids);
  return do_write (w, disk, client, first, nr, ids, chance (r, 20));
}

/* Makes a change of the disks, and if that lends tables, writes to one of them
 * through both disks. */
static int
change_disks (struct world *w, struct srv_disk *disk, unsigned client,
              struct rng *r)
{
  size_t slots[2], first;
  int res = disk_op (w, disk, client, r, slots);

  if (res < 0 || !w->cfg.write_twins)
    return res;
  first = rnd (r, w->data_units / 2);
  for (unsigned i = 0; i < 2 && res == 0; i++)
    if (slots[i] != NEVER && slot_is_of (w, slots[i], client) &&
        slot_length (w, slots[i]) >= first + 4)
      res = write_range (w, disk, client, r,
                         slots[i] * w->slot_units + first, 4);
  return res;
}

static int
random_op (struct world *w, struct srv_disk *disk, unsigned client,
           struct rng *r)
{
  size_t first, nr;

  if (chance (r, w->cfg.flush_one_in))
    return do_flush (w, disk);
  if (w->cfg.disks && chance (r, w->cfg.disk_one_in))
    return change_disks (w, disk, client, r);
  if (!choose_range (w, client, r, &first, &nr))
    return 0;
  if (chance (r, w->cfg.zero_one_in))
    return do_unmap (w, disk, client, first, nr, chance (r, 2), chance (r, 2));
  return write_range (w, disk, client, r, first, nr);
}

/* --- jobs -------------------------------------------------------------------------- */

static __thread bool in_checkpoint;

static int
run_jobs (struct world *w, struct dedup_pool *d, unsigned jobs)
{
  unsigned job;
  int r = 0;

  for (job = 1; job <= DEDUP_JOB_DISKS && r >= 0; job <<= 1)
    if (jobs & job) {
      in_checkpoint = job == DEDUP_JOB_CHECKPOINT;
      r = dedup_run (d, job);
      in_checkpoint = false;
    }
  return r < 0 ? result (w, "background job", r) : 0;
}

/* Young merges come first: those of old runs, when there is none. */
static int
merge_all (struct world *w, struct dedup_pool *d)
{
  unsigned urgent;
  int r = 0;

  while (r == 0 && (dedup_due (d, &urgent), urgent & DEDUP_JOB_MERGE))
    r = run_jobs (w, d, DEDUP_JOB_MERGE);
  return r;
}

/* As an idle server: everything that is due, until space is given back. */
static int
rest (struct world *w, struct dedup_pool *d)
{
  unsigned due, i;
  int r = 0;

  for (i = 0; i < 8 && r == 0; i++) {
    due = dedup_due (d, NULL);
    if (due & DEDUP_JOB_GIVE_BACK)
      due |= DEDUP_JOB_CLEAN;
    r = due ? run_jobs (w, d, due) : 0;
  }
  return r;
}

static int
some_jobs (struct world *w, struct dedup_pool *d, struct rng *r)
{
  unsigned urgent, due = dedup_due (d, &urgent);

  if (w->cfg.deep_merges && chance (r, 2))
    return merge_all (w, d);
  if (chance (r, w->cfg.rest_one_in ? w->cfg.rest_one_in : 20))
    return rest (w, d);
  if (chance (r, w->paced ? 2 : 6))  /* due or not */
    return run_jobs (w, d, urgent | DEDUP_JOB_CHECKPOINT);
  if (chance (r, 4))
    return run_jobs (w, d, due);
  if (chance (r, 3))
    return run_jobs (w, d, urgent | (due & (unsigned) rnd (r, 2 * DEDUP_JOB_DISKS)));
  return run_jobs (w, d, urgent | (due & DEDUP_JOB_COMMIT));
}

/* The disk over and over: what is written meanwhile is new again. */
static int
index_some (struct world *w, struct rng *r, struct srv_index_existing *x)
{
  int more = srv_index_existing_step (x, chance (r, 4));

  if (more == 0)
    x->guest_idx = 0;
  return more < 0 ? result (w, "indexing", more) : 0;
}

/* Defragments some clusters; those without space stay. */
static int
move_some (struct world *w, struct srv_disk *disk, struct rng *r)
{
  size_t first = rnd (r, w->cfg.nr_clusters);
  size_t nr = 1 + rnd (r, MIN_OF (w->cfg.nr_clusters - first, 64));
  int moved = srv_defragment_piece (disk, first, nr);

  if (moved == -ENOSPC)
    return 0;
  return moved < 0 ? result (w, "defragmentation", moved) : 0;
}

/* Returns whether data is stored again: chance says it for each place. */
static bool
is_stored_again (const void *opaque, uint64_t entry)
{
  struct rng r = rng_of (*(const uint64_t *) opaque, entry);

  return chance (&r, 2);
}

static int
rewrite_some (struct world *w, struct srv_disk *disk, struct rng *r)
{
  const uint64_t salt = rnd (r, UINT32_MAX);
  const size_t clusters = w->slot_units / UNITS_PER_CLUSTER;
  const size_t first = rnd (r, clusters);
  const size_t nr = 1 + rnd (r, MIN_OF (clusters - first, 64));
  int moved = dedup_rewrite (disk->pool, QCOW2_ROOT_ACTIVE, first, nr, is_stored_again,
                             &salt);

  return moved < 0 ? result (w, "storing data again", moved) : 0;
}

void
run_single (struct world *w, struct srv_disk *disk, struct rng *r, unsigned nr)
{
  struct srv_index_existing x = { .disk = disk };
  struct compacting k = { .disk = disk, .clients = w->cfg.clients };
  struct dedup_scrub *sc = NULL;

  while (nr-- > 0 && !w->error[0]) {
    if (random_op (w, disk, 0, r) < 0)
      break;
    if (scrub_some (w, disk->pool, r, &sc) < 0 ||
        sample_some (w, disk->pool, r) < 0)
      break;
    if (w->cfg.index_one_in && chance (r, w->cfg.index_one_in) &&
        index_some (w, r, &x) < 0)
      break;
    if (w->cfg.move_one_in && chance (r, w->cfg.move_one_in) &&
        move_some (w, disk, r) < 0)
      break;
    if (w->cfg.rewrite_one_in && chance (r, w->cfg.rewrite_one_in) &&
        rewrite_some (w, disk, r) < 0)
      break;
    if (compact_some (w, r, &k) < 0 || compress_some (w, r, &k) < 0)
      break;
    if (chance (r, w->cfg.job_one_in) && some_jobs (w, disk->pool, r) < 0)
      break;
  }
  end_compacting (&k);
  dedup_scrub_end (sc);
}

/* --- several clients ---------------------------------------------------------------- */

struct client {
  struct world *w;
  struct srv_disk *disk;
  unsigned id, nr_ops;
  struct rng rng;
  const bool *stop;            /* of the one that runs jobs */
  pthread_t thread;
};

static void *
client_thread (void *opaque)
{
  struct client *c = opaque;
  unsigned i;

  for (i = 0; i < c->nr_ops; i++) {
    if (random_op (c->w, c->disk, c->id, &c->rng) < 0)
      break;
    if (c->w->paced)
      usleep ((useconds_t) rnd (&c->rng, 300));
  }
  return NULL;
}

static void *
jobs_thread (void *opaque)
{
  struct client *c = opaque;
  struct srv_index_existing x = { .disk = c->disk };
  struct compacting k = { .disk = c->disk, .clients = c->w->cfg.clients };
  struct dedup_scrub *sc = NULL;

  while (!__atomic_load_n (c->stop, __ATOMIC_RELAXED)) {
    if (scrub_some (c->w, c->disk->pool, &c->rng, &sc) < 0 ||
        sample_some (c->w, c->disk->pool, &c->rng) < 0)
      break;
    if (c->w->cfg.index_one_in && index_some (c->w, &c->rng, &x) < 0)
      break;
    if (c->w->cfg.move_one_in && move_some (c->w, c->disk, &c->rng) < 0)
      break;
    if (compact_some (c->w, &c->rng, &k) < 0 || compress_some (c->w, &c->rng, &k) < 0)
      break;
    if (some_jobs (c->w, c->disk->pool, &c->rng) < 0)
      break;
    usleep (100 + (useconds_t) rnd (&c->rng, 200 * c->w->cfg.job_one_in));
  }
  end_compacting (&k);
  dedup_scrub_end (sc);
  return NULL;
}

static void
run_clients (struct world *w, struct srv_disk *disk, struct rng *r,
             unsigned nr_ops)
{
  struct client c[MAX_CLIENTS + 1];
  unsigned i, nr = w->cfg.clients;
  bool stop = false;

  for (i = 0; i <= nr; i++) {
    c[i] = (struct client) { .w = w, .disk = disk, .id = i,
                             .nr_ops = nr_ops / nr,
                             .rng = rng_of (rnd (r, UINT32_MAX), i),
                             .stop = &stop };
    pthread_create (&c[i].thread, NULL, i < nr ? client_thread : jobs_thread,
                    &c[i]);
  }
  for (i = 0; i <= nr; i++) {
    pthread_join (c[i].thread, NULL);
    if (i == nr - 1)
      __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  }
}

/* --- the store under it: delays and a failing sync ------------------------------------ */

struct trouble {
  struct world *w;
  uint64_t calls;              /* atomic */
  uint64_t fail_at;            /* the sync that fails; 0: none */
  uint64_t syncs;              /* atomic */
  uint64_t store_calls, store_fails_at;   /* 0: never */
};

/* The store file fails from some call on: space, a write, a sync. */
static bool
store_fails (struct trouble *t, enum io_call call, uint64_t host_off)
{
  return (host_off & IN_STORE_FILE) && call != IO_PREAD &&
    __atomic_add_fetch (&t->store_calls, 1, __ATOMIC_RELAXED) >=
    t->store_fails_at && t->store_fails_at > 0;
}

/* The host is full for some writes, of which it may take a part. */
static int
finds_no_space (struct world *w, enum io_call call, uint64_t len,
                struct rng *r)
{
  bool full;

  if (w->has_space || (call != IO_PWRITE && call != IO_ALLOCATE))
    return 0;
  pthread_mutex_lock (&w->mutex);
  full = w->full_left > 0;
  if (full)
    w->full_left--;
  else if (call == IO_PWRITE && chance (r, 80))
    w->full_left = 1 + (unsigned) rnd (r, 40);
  pthread_mutex_unlock (&w->mutex);
  if (!full)
    return 0;
  if (chance (r, 8))             /* some little thing fits */
    return 0;
  return call == IO_PWRITE && len > 512 && chance (r, 3)
    ? (int) (512 * rnd (r, len / 512)) : -ENOSPC;
}

/* Waits until clients have begun NR operations; some milliseconds at most, as they
 * may wait for the caller. */
static void
let_clients_work (struct world *w, size_t nr)
{
  const size_t until = count_ops (w) + nr;

  for (unsigned i = 0; i < 100 && count_ops (w) < until; i++)
    usleep (100);
}

static int
trouble_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct trouble *t = opaque;
  struct world *w = t->w;
  uint64_t n = __atomic_add_fetch (&t->calls, 1, __ATOMIC_RELAXED);
  struct rng r = rng_of (w->seed, n);

  if (w->cfg.slow_checkpoints && in_checkpoint && call == IO_PWRITE)
    let_clients_work (w, rnd (&r, 8));
  else if (w->paced && call == IO_SYNC)
    usleep ((useconds_t) rnd (&r, 1000));
  else if ((w->cfg.clients > 1 || w->cfg.jobs_beside) && (call == IO_PWRITE || call == IO_SYNC) &&
      chance (&r, 3))
    usleep ((useconds_t) rnd (&r, 150));
  if (store_fails (t, call, host_off))
    return -EIO;
  if (w->cfg.no_space && call != IO_SYNC)
    return finds_no_space (w, call, len, &r);
  if (call != IO_SYNC ||
      __atomic_add_fetch (&t->syncs, 1, __ATOMIC_RELAXED) != t->fail_at)
    return 0;
  w->fault_to = log_length (w);
  w->faulted = true;
  return -EIO;
}

/* --- all of it -------------------------------------------------------------------------- */

static void
close_disk (struct world *w, struct dedup_pool *d)
{
  uint64_t tick = next_tick (w);
  /* Some close with lent tables and deleted disks. */
  int r = tick % 2 && w->cfg.disks ? dedup_disks_settle (d) : 0;

  if (r == 0)
    r = dedup_finish (d);
  /* What waited in memory is lost: no later operation can come behind it. */
  w->ended = r == -ENOSPC;
  if (r == 0) {
    note_flushed (w, tick);
    dedup_give_back_all (d);
  }
  else
    result (w, "close", r);
  dedup_free (d);
}

/* A limit comes and goes, so incarnations become runs. */
#define WIDE_LIMIT 500

void
run_session (struct world *w, struct io_store *io, struct rng *r, unsigned nr)
{
  struct dedup_pool *d;
  struct srv_disk disk;
  struct fault f = { 0 };
  int n;

  w->session_limit = w->cfg.limited && !chance (r, 4) ? WIDE_LIMIT : 0;
  w->has_space = chance (r, 2);
  n = open_disk (w, io, true, &d, &f);
  if (n == -ENOSPC && !w->has_space) {
    w->has_space = true;
    n = open_disk (w, io, true, &d, &f);
  }
  if (n < 0) {
    if (w->host && may_fail (w, "open", n))
      w->faulted = true;
    if (!w->faulted)
      world_error (w, "open: %s", f.msg);
    return;
  }
  w->has_space = false;
  disk_begin (d, &disk);
  slots_begin (w, d);
  if (w->cfg.clients > 1 || w->cfg.jobs_beside)
    run_clients (w, &disk, r, nr);
  else
    run_single (w, &disk, r, nr);
  slots_end (w);
  disk_end (&disk);
  w->has_space = !chance (r, 4);
  if (w->faulted || w->error[0] || w->killed)
    dedup_free (d);
  else
    close_disk (w, d);
}

void
run_workload (struct world *w, struct io_store *below)
{
  struct trouble t = { .w = w };
  struct rng r = rng_of (w->seed, 1);
  struct io_store *io;
  unsigned left = w->cfg.nr_ops, n;
  size_t i;

  w->paced = w->cfg.clients > 1 && chance (&r, 2);

  if (io_recording_new (below, &w->rec) < 0 ||
      io_faulty_new (w->rec, trouble_cb, &t, &io) < 0)
    abort ();
  if (w->cfg.fail_sync)
    t.fail_at = 3 + rnd (&r, w->cfg.nr_ops / w->cfg.flush_one_in);
  if (w->cfg.fail_store)
    t.store_fails_at = 1 + rnd (&r, w->cfg.nr_ops / 4);
  while (left > 0 && !w->error[0] && !w->faulted && !w->ended) {
    n = w->cfg.reopen_one_in ?
      1 + (unsigned) rnd (&r, 2 * w->cfg.reopen_one_in) : left;
    n = MIN_OF (n, left);
    run_session (w, io, &r, n);
    left -= n;
  }
  w->session_limit = 0;        /* whoever recovers has none */
  free (io);                   /* the wrapper alone: see io/faulty.c */
  w->nr_log = io_recording_log (w->rec, &w->log);
  if (w->fault_to != NEVER)
    for (i = w->fault_to, w->fault_from = 0; i > 0; i--)
      if (w->log[i - 1].call == IO_SYNC) {
        w->fault_from = i;
        break;
      }
}
