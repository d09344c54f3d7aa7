/* SPDX-License-Identifier: BSD-3-Clause */
/* Enumerates crash states: the real engine works on a recording byte store;
 * from the recording, images are made as a power cut may leave them, and each
 * must recover (judge.c says what that means; docs/testing.md how to use
 * this).
 *
 *   crash-states                      CRASH_STATES states (20000)
 *   crash-states --mutations          each broken rule must be caught
 *   crash-states --replay FILE        a state that failed, again
 *   crash-states --list               configurations and mutations
 *
 * CRASH_SEED (printed at the start) gives the same workloads again; those
 * with several clients depend on timing as well, so a failing state is saved
 * whole, with as few lost writes as it takes.
 */
#include "crash.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "mutation.h"

enum mutation dedup_mutation;

/* --- mutations ----------------------------------------------------------------- */

static const struct {
  enum mutation m;
  const char *name;
  /* What it breaks, then up to three configurations in which that shows; none:
   * in any. */
  const char *texts[4];
} mutations[] = {
#define M(x, ...) { MUTATION_ ## x, #x, { __VA_ARGS__ } }
  M (LAW_1_NO_BIT, "bit 48 is never set"),
  M (LAW_1_NO_SYNC, "bit 48 is set without a sync", "torn sessions"),
  M (LAW_2, "data is written after its record", "three clients",
     "four clients", "adopted, clients"),
  M (DEFRAGMENT_TOO_LATE, "moved data is written after its record",
     "moved, clients"),
  M (LAW_3, "tables are written before the journal"),
  M (LAW_3_NOT_RECORDED, "tables are written before a block says they may"),
  M (LAW_4, "the checkpoint moves before the tables are safe"),
  M (LAW_4_OPEN_BLOCK, "the checkpoint passes a block that clients fill",
     "busy jobs, clients", "four clients", "merges, clients"),
  M (LAW_5, "bit 48 is cleared before the checkpoint", "many closes"),
  M (LAW_5_NO_SYNC, "bit 48 is cleared before the checkpoint is safe",
     "many closes"),
  M (LAW_6_NO_QUARANTINE, "freed clusters are reused at once"),
  M (LAW_6_NOT_RECORDED, "freed clusters are reused when durably freed"),
  M (LAW_6_GIVE_BACK, "the space of freed clusters is given back at once"),
  M (LAW_6_SAID_ONCE, "freed clusters are reused when one block says so",
     "reused soon"),
  M (LAW_7, "journal areas are written again before a configuration",
     "long journal"),
  M (LAW_8_NO_SYNC, "an incarnation is listed before it is durable",
     "small log stores", "one incarnation"),
  M (LAW_8_INDEX_START, "the index start passes the frozen log store",
     "many closes", "four clients"),
  M (LAW_9, "an incarnation is overwritten while listed",
     "small log stores", "one incarnation"),
  M (LAW_9_RUN, "a segment of a run is overwritten while listed", "merges",
     "merges, clients"),
  M (MERGE_NO_SYNC, "a merge's output is listed before it is durable",
     "merges", "merges, clients"),
  M (CONVERSION_NO_SYNC, "an incarnation's run is listed before it is durable",
     "limit removed, no verify", "limit removed, clients"),
  M (CONVERSION_NOT_LISTED, "an incarnation goes, and its run is not listed",
     "limit removed"),
  M (CONVERSION_AGE, "an incarnation's run is as young as it is new",
     "limit removed"),
  M (LAW_10, "a failed sync is tried again", "failed sync",
     "failed sync, clients"),
  M (NO_SPACE_DURABLE, "blocks that found no space count as durable",
     "no space", "no space, clients"),
  M (NO_SPACE_LOST, "blocks that found no space are not written again",
     "no space", "no space, clients"),
  M (LAW_11, "mapping is replayed while bit 48 is clear"),
  M (SAME_EPOCH, "a recovery starts no new epoch", "torn batches"),
  M (TRUST_ALL, "data past the durable number is not compared"),
  M (NO_LOOK_BEHIND, "a rotten block ends the journal"),
  M (NO_CUT, "refused groups get into the index", "torn batches",
     "torn sessions"),
  M (OLD_EPOCH, "an older configuration goes on with its epoch"),
  M (STORE_FILE_NO_SYNC, "the store file is not synced before it is listed",
     "store file", "store file, clients"),
  M (STORE_FILE_ANY_SESSION, "a store file counts that is older or newer than the image",
     "remote, store, no verify"),
  M (PAID_TWICE, "debts are paid twice", "disks"),
  M (DEBT_FORGOTTEN, "debts are set to 0 and not paid", "disks"),
  M (COPY_NOT_COUNTED, "a copy of a lent table does not count its references",
     "disks"),
  M (DROP_UNCOUNTED, "a path under debt is dropped as if it were counted",
     "disks"),
  M (LAW_12, "recent sources are written in place", "disks"),
  M (LAW_12_TOO_EARLY, "a checkpoint settles sources from after its begin",
     "disks, jobs beside", "disks, changes beside"),
  M (LAW_13, "freed tables are not kept until a checkpoint",
     "disks, changes beside"),
  M (LAW_13_FORGOTTEN, "changes in tables are forgotten when they are freed",
     "disks, jobs beside", "disks, changes beside"),
  M (LAW_14_NO_CHECKPOINT, "the first disk needs no checkpoint",
     "disks, closes"),
  M (LAW_14_TWO_GROUPS, "a path changes in another group than refcounts",
     "disks"),
  M (SWITCH_NO_SYNC, "new tables are named before they are durable", "disks"),
  M (FIRST_TABLE, "a replay takes the first snapshot table", "disks"),
  M (NO_RELOAD, "a replay keeps the snapshot table that the header names",
     "disks"),
  M (WORK_NO_BIT, "bit 48 is cleared while debts or doomed disks are left",
     "disks, closes"),
  M (SAMPLES_NO_SYNC, "samples are written, and the other copy is not durable",
     "sampled"),
  M (NBD_NO_RESEND, "nothing is written again after a lost connection",
     "remote", "remote, seldom flushed"),
  M (NBD_RESEND_ORDER, "older writes are repeated over younger ones",
     "remote, given back"),
  M (NBD_RESEND_ONCE, "what was repeated is forgotten before it is flushed",
     "remote, seldom flushed", "remote, cut often"),
  M (NBD_RESUME_FLUSHES, "the flush of a renewal counts for lost writes",
     "remote", "remote, seldom flushed"),
  M (NBD_NO_TAINT, "places where late writes may land are used",
     "remote, late writes", "remote, late, given back"),
  M (NBD_TAINT_UNANSWERED, "... those of writes that were answered",
     "remote, late writes", "remote, late, no dedup"),
  M (NBD_TWO_VERSIONS, "what was trimmed is written again before a flush",
     "remote, late, given back"),
  M (NBD_AHEAD_KEPT, "what was read ahead is read after it was written over",
     "remote, read ahead", "remote, read ahead, clients"),
  M (NBD_ZERO_DELAY, "a store that keeps nothing is connected again",
     "remote, no delay"),
  M (NBD_FLUSH_ERROR, "a flush that failed counts as one", "remote, errors",
     "remote, errors, disks"),
  M (LEASE_PAST_TERM, "a server writes after its term", "remote, taken over",
     "remote, taken over, disks"),
  M (LEASE_NO_RESUME, "... what it had under way", "remote, taken over"),
  M (CROSSING_COUNTED_ONCE, "a link is counted in one of two clusters",
     "indexed, compressed, small", "indexed, compressed, tiny"),
  M (SHARED_FREED, "a cluster is freed with the first compressed data in it",
     "indexed, compressed, small", "packed", "packed, closes"),
  M (PACKED_COUNTED_ONCE, "new compressed data is counted in one of two clusters",
     "packed", "packed, closes"),
  M (LAW_16, "compressed data is appended within a sector", "packed, torn", "packed"),
  M (LAW_16_SECTOR, "... within a block of 4096 bytes", "packed, blocks, torn",
     "packed, blocks"),
  M (LAW_17, "values are linked that reach bytes which are still to be written",
     "packed, reused soon", "packed, large, reused"),
  M (REWRITE_TWO_GROUPS, "what is stored again is dropped before it is linked",
     "packed, compacted, torn", "packed, again, torn"),
  M (SHARED_COUNTED_ONCE, "an entry that several disks share is moved, and counted once",
     "packed, compacted, disks", "packed, later, disks"),
  M (HEAL_NO_SYNC, "healed data is linked before it is durable",
     "healed, torn"),
  M (HEAL_USED_AGAIN, "bad clusters with new data are healed", "healed"),
#undef M
};
#define NR_MUTATION_TESTS (sizeof mutations / sizeof mutations[0])

/* --- a run --------------------------------------------------------------------- */

struct run {
  uint64_t seed, states;
  double until;                /* 0: as long as it takes */
  const char *const *only;     /* names of configurations; NULL: all */
  size_t nr_only;
  bool save;
  uint64_t next;               /* atomic: workload */
  bool failed;                 /* atomic */
  struct counts counts;
  pthread_mutex_t print;
};

#define STATES_PER_WORKLOAD 150
/* Of each server whose image lies behind NBD: there a workload can go wrong in more
 * ways than where it is crashed. */
#define STATES_PER_SERVER 24

static double
seconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

/* What this thread judges: for the one who finds it dead. */
static __thread struct {
  const struct world *w;
  const struct bytes *base;
  const struct state *st;
} now;
static struct run *the_run;    /* of the handler */

static void
save_as (const struct world *w, const struct bytes *base,
         const struct state *st)
{
  char path[100];

  snprintf (path, sizeof path, "crash-state-%d.bin", (int) getpid ());
  if (save_state (path, w, base, st) == 0)
    fprintf (stderr, "crash-states: saved; again with: --replay %s\n", path);
}

static void
died (int sig)
{
  fprintf (stderr, "crash-states: FAILED: signal %d\n", sig);
  if (now.w && now.st) {
    fprintf (stderr, "crash-states: %s, crash at record %zu of %zu\n",
             now.w->cfg.name, now.st->pos, now.w->nr_log);
    if (!the_run || the_run->save)
      save_as (now.w, now.base, now.st);
  }
  _exit (1);
}

static bool
judge_flat (const struct world *w, const struct bytes *flat,
            const struct state *st, unsigned flags, struct verdict *v,
            struct counts *n)
{
  struct io_store *io = cow_new (flat, NULL);

  memset (v, 0, sizeof *v);
  state_apply (w, st, io);
  judge (w, io, st, flags, v, n);
  io_close (io);
  return v->bad;
}

/* --- minimizing ------------------------------------------------------------------ */

struct shrink {
  const struct world *w;
  struct bytes flat;           /* with everything before the window */
  unsigned flags;
  struct counts n;
  unsigned tries;
};

#define MAX_TRIES 200

static bool
still_fails (struct shrink *s, const struct state *st)
{
  struct verdict v;
  bool bad;

  if (s->tries++ >= MAX_TRIES)
    return false;
  bad = judge_flat (s->w, &s->flat, st, s->flags, &v, &s->n);
  verdict_free (&v);
  return bad;
}

/* Keep the records [A, B) of the window, if it fails without losing them. */
static void
keep_records (struct shrink *s, struct state *st, size_t a, size_t b)
{
  struct state t;
  size_t i;

  for (i = a; i < b && st->fate[i] == FATE_KEPT; i++)
    ;
  if (i == b)
    return;
  state_copy (st, &t);
  memset (t.fate + a, FATE_KEPT, b - a);
  if (still_fails (s, &t))
    memcpy (st->fate, t.fate, st->nr);
  else if (b - a > 1) {
    keep_records (s, st, a, a + (b - a) / 2);
    keep_records (s, st, a + (b - a) / 2, b);
  }
  state_free (&t);
}

static void
restore_order (struct shrink *s, struct state *st)
{
  struct state t;
  size_t i;

  state_copy (st, &t);
  for (i = 0; i < t.nr; i++)
    t.order[i] = (uint32_t) i;
  if (still_fails (s, &t))
    memcpy (st->order, t.order, st->nr * sizeof *st->order);
  state_free (&t);
}

static void
shorten (struct shrink *s, struct state *st)
{
  struct state t;

  for (size_t i = 0; i < st->nr; i++)
    if (st->order[i] != i)
      return;
  while (st->nr > 0) {
    state_copy (st, &t);
    t.nr--;
    t.pos--;
    if (!still_fails (s, &t)) {
      state_free (&t);
      return;
    }
    state_free (st);
    *st = t;
  }
}

static void
minimize (const struct world *w, const struct bytes *base, struct state *st,
          unsigned flags)
{
  struct shrink s = { .w = w, .flags = flags };

  bytes_copy (base, &s.flat);
  bytes_play (w, 0, st->from, &s.flat);
  restore_order (&s, st);
  keep_records (&s, st, 0, st->nr);
  shorten (&s, st);
  bytes_free (&s.flat);
}

/* --- failing ----------------------------------------------------------------------- */

static void
describe (const struct world *w, const struct state *st)
{
  static const char *const calls[] = { "read", "write", "sync", "discard",
                                       "allocate", "truncate" };
  static const char *const fates[] = { "kept", "lost", "torn at 512",
                                       "torn at 4096" };
  size_t i, shown = 0;

  fprintf (stderr, "crash-states: crash at record %zu of %zu, all before %zu "
           "durable; store file: %d\n", st->pos, w->nr_log, st->from,
           (int) st->store_fate);
  for (i = 0; i < st->nr && shown < 20; i++)
    if (st->fate[i] != FATE_KEPT) {
      const struct io_record *r = &w->log[st->from + i];

      fprintf (stderr, "crash-states:   %s: %s of %" PRIu64 " bytes at 0x%"
               PRIx64 "\n", fates[st->fate[i]], calls[r->call], r->len,
               r->host_off);
      shown++;
    }
}

static void
fail (struct run *run, const struct world *w, const struct bytes *base,
      const struct state *st, unsigned flags, struct verdict *v)
{
  struct state small;

  pthread_mutex_lock (&run->print);
  if (__atomic_exchange_n (&run->failed, true, __ATOMIC_RELAXED)) {
    pthread_mutex_unlock (&run->print);
    return;
  }
  fprintf (stderr, "crash-states: FAILED: %s (seed %" PRIu64 "): %s%s\n",
           w->cfg.name, w->seed, v->inner ? "crashed again: " : "", v->msg);
  if (run->save) {
    state_copy (v->inner ? &v->inner_state : st, &small);
    if (v->inner) {
      w = v->inner;
      base = &v->inner_base;
      flags = 0;
    }
    minimize (w, base, &small, flags);
    describe (w, &small);
    save_as (w, base, &small);
    state_free (&small);
  }
  pthread_mutex_unlock (&run->print);
}

/* --- one workload -------------------------------------------------------------------- */

static int
by_value (const void *a, const void *b)
{
  size_t x = *(const size_t *) a, y = *(const size_t *) b;

  return (x > y) - (x < y);
}

/* Where to crash: everywhere in the long run; often just before a sync,
 * where most is open, and just behind it. */
static void
choose_positions (const struct world *w, struct rng *r, size_t *pos, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++) {
    pos[i] = rnd (r, w->nr_log + 1);
    if (chance (r, 2))
      while (pos[i] < w->nr_log && w->log[pos[i]].call != IO_SYNC)
        pos[i]++;
    if (chance (r, 8))
      pos[i] = MIN_OF (pos[i] + 1, w->nr_log);
  }
  qsort (pos, nr, sizeof *pos, by_value);
}

/* Where a world begins with a recovery, rot in what that reads may also leave a
 * prefix of what an earlier world did. */
static unsigned
choose_flags (const struct world *w, struct rng *r)
{
  return (chance (r, w->cfg.deep ? 2 : 8) ? JUDGE_DEEP : 0) |
    (chance (r, 400) ? JUDGE_QEMU : 0) |
    (chance (r, w->cfg.rot ? 2 : 12) && !w->recovered ? JUDGE_ROT : 0);
}

static bool
enough (struct run *run)
{
  return (run->until > 0 && seconds () >= run->until) ||
    __atomic_load_n (&run->failed, __ATOMIC_RELAXED) ||
    __atomic_load_n (&run->counts.states, __ATOMIC_RELAXED) >= run->states;
}

static void
judge_workload (struct run *run, struct world *w, const struct bytes *base)
{
  struct rng r = rng_of (w->seed, 2);
  const size_t nr = w->cfg.cut_one_in ? STATES_PER_SERVER : STATES_PER_WORKLOAD;
  size_t pos[STATES_PER_WORKLOAD], i, played = 0;
  struct bytes flat;
  struct verdict v;
  struct state st;
  unsigned flags;

  bytes_copy (base, &flat);
  choose_positions (w, &r, pos, nr);
  for (i = 0; i < nr && !enough (run); i++) {
    state_random (w, pos[i], rnd (&r, UINT32_MAX), &st);
    bytes_play (w, played, st.from, &flat);
    played = MAX_OF (played, st.from);
    flags = choose_flags (w, &r);
    now.w = w;
    now.base = base;
    now.st = &st;
    if (judge_flat (w, &flat, &st, flags, &v, &run->counts))
      fail (run, w, base, &st, flags, &v);
    now.st = NULL;
    verdict_free (&v);
    state_free (&st);
  }
  bytes_free (&flat);
}

/* In turn, from one on that the seed says: a short run does not reach all. */
static const struct cfg *
choose_config (const struct run *run, uint64_t i)
{
  size_t k;

  if (run->nr_only == 0)
    return &crash_configs[(run->seed + i) % nr_crash_configs];
  for (k = 0; k < nr_crash_configs; k++)
    if (strcmp (crash_configs[k].name, run->only[i % run->nr_only]) == 0)
      return &crash_configs[k];
  fprintf (stderr, "crash-states: no configuration \"%s\"\n",
           run->only[i % run->nr_only]);
  exit (2);
}

static void
fail_whole (struct run *run, const struct world *w, const struct bytes *base)
{
  struct verdict v = { 0 };
  struct state st = { 0 };

  snprintf (v.msg, sizeof v.msg, "the workload itself: %s", w->error);
  st.fate = calloc (1, 1);
  st.order = calloc (1, sizeof *st.order);
  fail (run, w, base, &st, 0, &v);
  state_free (&st);
}

/* Judges the worlds of all servers. */
static void
judge_worlds (struct run *run, struct world *w, const struct bytes *base)
{
  for (; w; base = w->next_base, w = w->next) {
    now.w = w;
    if (w->error[0])
      fail_whole (run, w, base);
    else
      judge_workload (run, w, base);
    now.w = NULL;
  }
}

static void
free_next (struct world *w)
{
  struct world *next = w->next;

  if (next == NULL)
    return;
  free_next (next);
  world_free (next);
  free (next);
  bytes_free (w->next_base);
  free (w->next_base);
}

static void
one_workload (struct run *run, uint64_t i)
{
  struct rng r = rng_of (run->seed, i + 1);
  struct bytes base = { 0 };
  struct world w;

  world_init (&w, choose_config (run, i), rnd (&r, UINT32_MAX) + 1);
  if (make_base (&w, &base) == 0) {
    now.w = &w;
    if (w.cfg.cut_one_in)
      run_servers (&w, &base);
    else
      run_workload (&w, w.cfg.store_file || w.cfg.block ?
                    pair_of (store_of_bytes (&base), w.cfg.block)
                    : store_of_bytes (&base));
  }
  judge_worlds (run, &w, &base);
  free_next (&w);
  bytes_free (&base);
  world_free (&w);
}

static void *
worker (void *opaque)
{
  struct run *run = opaque;

  while (!enough (run))
    one_workload (run, __atomic_fetch_add (&run->next, 1, __ATOMIC_RELAXED));
  return NULL;
}

/* A run that lost no connection tested nothing of that. */
static void
print_remote (const struct remote_counts *n)
{
  if (n->requests == 0)
    return;
  printf ("behind NBD: %" PRIu64 " requests, %" PRIu64 " lost connections, %"
          PRIu64 " lost caches, %" PRIu64 " late writes, %" PRIu64
          " kills, %" PRIu64 " ends as a call failed, %" PRIu64
          " errors, %" PRIu64 " hangs, %" PRIu64 " servers cut off, %" PRIu64
          " found media of different ages; %" PRIu64 " writes over trims, %" PRIu64
          " over other bytes\n", n->requests, n->cuts, n->losses, n->strays, n->kills,
          n->ends, n->errors, n->hangs, n->cut_off, n->mixed, n->over_trims,
          n->over_writes);
}

static bool
run_states (struct run *run, unsigned threads)
{
  pthread_t t[16];
  double start = seconds ();
  unsigned i;

  the_run = run;
  pthread_mutex_init (&run->print, NULL);
  for (i = 0; i < threads; i++)
    pthread_create (&t[i], NULL, worker, run);
  for (i = 0; i < threads; i++)
    pthread_join (t[i], NULL);
  printf ("%" PRIu64 " states (%" PRIu64 " of them after a second crash) of "
          "%" PRIu64 " workloads, %" PRIu64 " checked by qemu-img, in %.1f "
          "s: %s\n", run->counts.states, run->counts.inner, run->next,
          run->counts.qemu, seconds () - start,
          run->failed ? "FAILED" : "all good");
  print_remote (&remote_counts);
  fflush (stdout);
  return !run->failed;
}

/* --- mutations -------------------------------------------------------------------------- */

/* In a process of its own: it may well die. */
static bool
is_caught (size_t i, uint64_t seed, uint64_t states, unsigned threads)
{
  struct run run = { .seed = seed, .states = states };
  pid_t pid;
  int status;

  fflush (stdout);
  pid = fork ();
  if (pid == 0) {
    dedup_mutation = mutations[i].m;
    while (run.nr_only < 3 && mutations[i].texts[1 + run.nr_only])
      run.nr_only++;
    run.only = mutations[i].texts + 1;
    alarm (300);
    _exit (run_states (&run, threads) ? 0 : 1);
  }
  if (pid < 0 || waitpid (pid, &status, 0) != pid)
    return false;
  return WIFEXITED (status) && WEXITSTATUS (status) == 1;
}

static int
test_mutations (uint64_t seed, uint64_t states, unsigned threads,
                const char *only)
{
  size_t i, missed = 0, nr = 0;

  for (i = 0; i < NR_MUTATION_TESTS; i++) {
    if (only && strcmp (only, mutations[i].name) != 0)
      continue;
    nr++;
    printf ("%s: %s\n", mutations[i].name, mutations[i].texts[0]);
    if (is_caught (i, seed, states, threads))
      printf ("  caught\n");
    else {
      printf ("  NOT CAUGHT\n");
      missed++;
    }
  }
  printf ("%zu mutations, %zu not caught\n", nr, missed);
  return missed || nr == 0;
}

/* --- replay ------------------------------------------------------------------------------- */

static int
replay (const char *path)
{
  struct counts n = { 0 };
  struct bytes base;
  struct verdict v;
  struct state st;
  struct world w;

  if (load_state (path, &w, &base, &st) < 0) {
    fprintf (stderr, "crash-states: %s: not a saved state\n", path);
    return 2;
  }
  now.w = &w;
  now.base = &base;
  now.st = &st;
  describe (&w, &st);
  bytes_play (&w, 0, st.from, &base);
  if (judge_flat (&w, &base, &st, JUDGE_DEEP | JUDGE_ROT | JUDGE_QEMU, &v,
                  &n)) {
    printf ("%s: FAILED: %s%s\n", w.cfg.name,
            v.inner ? "crashed again: " : "", v.msg);
    return 1;
  }
  printf ("%s: good\n", w.cfg.name);
  return 0;
}

static int
list (void)
{
  size_t i;

  for (i = 0; i < nr_crash_configs; i++)
    printf ("configuration \"%s\"\n", crash_configs[i].name);
  for (i = 0; i < NR_MUTATION_TESTS; i++)
    printf ("mutation %s: %s\n", mutations[i].name, mutations[i].texts[0]);
  return 0;
}

/* Takes the configurations of this name, or that begin so if it ends with "*". */
static void
choose_only (struct run *run, const char *name)
{
  static const char *names[200];
  const size_t len = strlen (name);
  const bool prefix = len > 0 && name[len - 1] == '*';
  size_t i;

  run->only = names;
  for (i = 0; prefix && i < nr_crash_configs && run->nr_only < 200; i++)
    if (strncmp (crash_configs[i].name, name, len - 1) == 0)
      names[run->nr_only++] = crash_configs[i].name;
  if (run->nr_only == 0)
    names[run->nr_only++] = name;
}

static uint64_t
number (const char *name, uint64_t otherwise)
{
  const char *s = getenv (name);

  return s && *s ? strtoull (s, NULL, 0) : otherwise;
}

int
main (int argc, char *argv[])
{
  uint64_t seed = number ("CRASH_SEED", 0), states;
  unsigned threads = (unsigned) MIN_OF (number ("CRASH_THREADS", 2), 16);
  const char *config = getenv ("CRASH_CONFIG");
  struct run run = { .save = true };

  signal (SIGABRT, died);
  signal (SIGSEGV, died);
  if (argc == 3 && strcmp (argv[1], "--replay") == 0)
    return replay (argv[2]);
  if (argc == 2 && strcmp (argv[1], "--list") == 0)
    return list ();
  if (argc >= 2 && strcmp (argv[1], "--mutations") == 0) {
    /* The same every time: it is the harness that is tested. */
    seed = seed ? seed : 1;
    states = number ("CRASH_STATES", 20000);
    return test_mutations (seed, states, threads, argc > 2 ? argv[2] : NULL);
  }
  if (seed == 0)
    seed = ((uint64_t) time (NULL) << 20 ^ (uint64_t) getpid ()) & UINT32_MAX;
  if (argc > 1) {
    fprintf (stderr, "usage: crash-states [--mutations [NAME] | "
             "--replay FILE | --list]\n");
    return 2;
  }
  printf ("CRASH_SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  run.seed = seed;
  run.states = number ("CRASH_STATES", 20000);
  if (number ("CRASH_SECONDS", 0) > 0)
    run.until = seconds () + (double) number ("CRASH_SECONDS", 0);
  if (config)
    choose_only (&run, config);
  return !run_states (&run, threads);
}
