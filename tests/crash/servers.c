/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs workloads on an image behind NBD, by servers that follow each other.
 *
 * A server runs sessions, each with a connection and the lease, until its operations
 * are done, or it ends in another way:
 *
 *  - it is killed, or writing ends because a table would have to be written to a
 *    place where a lost write may still land: another server follows;
 *  - it stops before it looks at the clock, or nothing of it reaches the storage any
 *    more, and another server takes over.  The first one continues when the other one
 *    has ended.
 *
 * Each server has a world of its own: its records begin with the bytes that it found,
 * and its model with what they hold.  That must be what some prefix of the operations
 * before it left.  So records that a server adds after another one took over are among
 * those of the latter, in which nothing explains them.
 */
#include "remote.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "dedup.h"
#include "disk-internal.h"

#define ROOM (UINT64_C (12) << 20)
#define MAX_SERVERS 4
#define TERM_NS (UINT64_C (31) * 1000000000)

/* A server: its host, and its turn among them. */
struct turn {
  struct host host;
  struct world *world;
  unsigned nr;                 /* servers before it */
};

void
make_export (struct bytes *b)
{
  const size_t size = (size_t) round_up_pow2 (b->size + ROOM, 65536) +
    IO_LEASE_BYTES;

  b->p = realloc (b->p, size + 4096);
  memset (b->p + b->size, 0, size + 4096 - b->size);
  b->size = size;
}

bool
may_fail (const struct world *w, const char *what, int r)
{
  struct host *h = w->host;

  if (getenv ("CRASH_VERBOSE"))
    fprintf (stderr, "  %s: %s: %s\n", h->name, what, strerror (-r));
  return host_has_failed (h) || __atomic_load_n (&h->refused, __ATOMIC_RELAXED);
}

/* --- One server after another --------------------------------------------- */

static void run_turn (struct storage *s, struct world *w,
                      const struct bytes *base, unsigned nr);

/* Reads what the next server finds, and judges that: what the server of OF left.
 * FLUSHED: nothing that was flushed may be missing.  Errors are those of W. */
static bool
find_ids (struct world *w, struct world *of, const struct bytes *base, bool flushed,
          uint64_t *ids)
{
  struct io_store *io = cow_new (base, NULL);
  struct dedup_pool *d;
  struct fault f;
  char why[250];
  size_t unit = 0;
  int r = open_disk (w, io, false, &d, &f);

  if (r < 0)
    world_error (w, "what the next server finds: open: %s", f.msg);
  else {
    r = read_slots (w, d, ids, &unit);
    dedup_free (d);
    if (r < 0)
      world_error (w, "what the next server finds: unit %zu: %s", unit,
                   strerror (-r));
  }
  if (r == 0 && !oracle_accepts (of, ids, io_recording_log (of->rec, &of->log),
                                 flushed, why, sizeof why))
    world_error (w, "what the next server finds: %s", why);
  io_close (io);
  return !w->error[0];
}

static struct world *
next_world (const struct world *w, unsigned nr)
{
  struct world *next = malloc (sizeof *next);

  world_init (next, &w->cfg, w->seed + nr);
  next->cfg.nr_ops = MAX_OF (w->cfg.nr_ops / 2, 40);
  next->next_id = w->next_id + 0x100000;
  next->created = w->created;
  next->twice = w->twice;
  next->recovered = true;
  return next;
}

/* Lets another server follow that of W. */
static void
follow (struct storage *s, struct world *w, unsigned nr)
{
  struct world *of = w;
  bool back = false;

  storage_lose (s);
  storage_settle (s);
  w->next = next_world (w, nr);
  w->next_base = calloc (1, sizeof *w->next_base);
  storage_copy (s, w->next_base);
  if (w->cfg.store_file)
    of = media_mix (s, w, w->next, w->next_base, &back);
  if (find_ids (w, of, w->next_base, !back, w->next->base_ids))
    run_turn (s, w->next, w->next_base, nr);
}

static void
take_over (struct host *h)
{
  struct turn *t = (struct turn *) h;

  __atomic_store_n (&h->over, true, __ATOMIC_RELAXED);
  follow (h->storage, t->world, t->nr + 1);
}

/* --- Sessions ------------------------------------------------------------- */

/* A server that is killed does not give its lease back. */
static void
end_session (struct turn *t, struct io_store *io)
{
  if (t->world->killed || t->world->faulted)
    pass_time (t->host.storage, TERM_NS);
  io_close (io);
  t->host.nbd = NULL;
  __atomic_store_n (&t->host.holds, false, __ATOMIC_RELAXED);
  if (!__atomic_load_n (&t->host.over, __ATOMIC_RELAXED))
    storage_settle (t->host.storage);
}

static void
one_session (struct turn *t, struct rng *r, unsigned nr)
{
  struct world *w = t->world;
  struct fault f = { 0 };
  struct io_store *io;

  int n = host_open (&t->host, &io, &f);

  if (n < 0 && !may_fail (w, "taking the lease", n))
    world_error (w, "taking the lease: %s", f.msg);
  w->faulted = n < 0;
  if (n < 0)
    return;
  w->killed = w->cfg.kill_one_in && chance (r, w->cfg.kill_one_in);
  run_session (w, io, r, nr);
  end_session (t, io);
}

static void
choose_take_over (struct turn *t, struct rng *r)
{
  const uint64_t at = 1 + rnd (r, 12 * t->world->cfg.nr_ops);

  t->host.taken_over = take_over;
  if (!t->world->cfg.taken_over || t->nr + 1 >= MAX_SERVERS || t->nr > rnd (r, 3))
    return;
  if (chance (r, 2))
    t->host.hangs_at = at;
  else
    t->host.leaves_at = at / 4 + 1;
}

static void
run_sessions (struct turn *t, struct rng *r)
{
  struct world *w = t->world;
  unsigned left = w->cfg.nr_ops, n;

  while (left > 0 && !w->error[0] && !w->faulted && !w->killed && !t->host.over) {
    n = w->cfg.reopen_one_in
      ? 1 + (unsigned) rnd (r, 2 * w->cfg.reopen_one_in) : left;
    n = MIN_OF (n, left);
    one_session (t, r, n);
    left -= n;
  }
}

static void
run_turn (struct storage *s, struct world *w, const struct bytes *base,
          unsigned nr)
{
  struct turn t = { .world = w, .nr = nr };
  struct rng r = rng_of (w->seed, 1);
  char name[16] = { 'h', (char) ('0' + (nr + 1) / 2), 0 };

  w->paced = w->cfg.clients > 1 && chance (&r, 2);
  storage_begin (s, base, &w->rec);
  host_begin (&t.host, s, w, name);
  w->host = &t.host;
  choose_take_over (&t, &r);
  run_sessions (&t, &r);
  if (!t.host.over && !w->error[0] && nr + 1 < MAX_SERVERS &&
      (w->killed || w->faulted)) {
    if (w->faulted)
      COUNT (ends);
    else
      COUNT (kills);
    follow (s, w, nr + 1);
  }
  host_end (&t.host);
  w->host = NULL;
}

void
run_servers (struct world *w, const struct bytes *base)
{
  struct storage s;

  storage_init (&s, &w->cfg, w->seed);
  run_turn (&s, w, base, 0);
  for (; w; w = w->next)
    if (w->rec)
      w->nr_log = io_recording_log (w->rec, &w->log);
  storage_destroy (&s);
}
