/* SPDX-License-Identifier: BSD-3-Clause */
/* Models a disk: content ids, the operations that were done, and the oracle
 * that says which contents a crash may leave.
 *
 * Every unit of the disk belongs to one client, so each client's part must be
 * the result of a prefix of that client's operations; and the prefixes must fit
 * together: with an operation, everything that had completed before it started
 * must be there, of whatever client.  Everything that was complete before a
 * completed flush started must be there; operations that started after the
 * crash cannot be.
 */
#include "crash.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

/* --- random numbers -------------------------------------------------------- */

uint64_t
rnd (struct rng *r, uint64_t n)
{
  r->s ^= r->s << 13;
  r->s ^= r->s >> 7;
  r->s ^= r->s << 17;
  return (r->s >> 11) % n;
}

struct rng
rng_of (uint64_t seed, uint64_t salt)
{
  uint64_t z = seed + salt * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;

  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return (struct rng) { z ? z : 1 };
}

/* --- content ------------------------------------------------------------------ */

/* The bit that is wrong in a unit with ID_ROTTEN is in its last byte. */
#define WRONG_BIT 0x40

static uint64_t
word_of (uint64_t id, size_t i)
{
  return id == 0 ? 0 : i == 0 ? id : id * 0x100000001b3u + i * (id | 1);
}

void
fill_unit (uint8_t *p, size_t len, uint64_t id)
{
  uint64_t v;
  size_t i;

  for (i = 0; i < len / 8; i++) {
    v = word_of (id & ~ID_ROTTEN, i);
    memcpy (p + 8 * i, &v, 8);
  }
  if (id & ID_ROTTEN)
    p[len - 1] ^= WRONG_BIT;
}

bool
recognize_unit (const uint8_t *p, size_t len, uint64_t *id)
{
  const size_t last = len / 8 - 1;
  uint64_t v, want;
  size_t i;

  memcpy (id, p, 8);
  for (i = 1; i < last; i++) {
    want = word_of (*id, i);
    memcpy (&v, p + 8 * i, 8);
    if (v != want)
      return false;
  }
  want = word_of (*id, last);
  if (memcmp (p + 8 * last, &want, 8) == 0)
    return true;
  ((uint8_t *) &want)[7] ^= WRONG_BIT;
  *id |= ID_ROTTEN;
  return memcmp (p + 8 * last, &want, 8) == 0;
}

/* --- worlds --------------------------------------------------------------------- */

void
world_init (struct world *w, const struct cfg *cfg, uint64_t seed)
{
  memset (w, 0, sizeof *w);
  w->cfg = *cfg;
  w->seed = seed;
  w->unit = ((size_t) 1 << cfg->cluster_bits) / UNITS_PER_CLUSTER;
  w->nr_units = (size_t) cfg->nr_clusters * UNITS_PER_CLUSTER;
  w->slot_units = w->nr_units / MAX_OF (cfg->disks, 1);
  w->data_units = w->slot_units - (cfg->disks ? UNITS_PER_CLUSTER : 0);
  w->base_ids = calloc (w->nr_units, sizeof *w->base_ids);
  for (size_t u = w->data_units; u < w->nr_units; u++)
    w->base_ids[u] = ID_ABSENT;
  w->created = cfg->base == BASE_CREATED;
  /* A client may link a cluster that is just being moved elsewhere; and of equal data
   * a part may be stored again. */
  w->twice = (cfg->move_one_in > 0 && cfg->clients > 1) || cfg->rewrite_one_in > 0 ||
    cfg->compact_one_in > 0 || cfg->compress_one_in > 0;
  w->next_id = ID_UNIQUE + (seed & 0xffff) * 0x10000;
  w->fault_from = w->fault_to = NEVER;
  pthread_mutex_init (&w->mutex, NULL);
  pthread_mutex_init (&w->changing, NULL);
}

void
world_free (struct world *w)
{
  size_t i;

  for (i = 0; i < w->nr_ops; i++)
    free (w->ops[i].ids);
  free (w->ops);
  free (w->flushes);
  free (w->base_ids);
  if (w->rec)
    io_close (w->rec);
  else {
    for (i = 0; i < w->nr_log; i++)
      free (w->log[i].data);
    free ((void *) w->log);
  }
  pthread_mutex_destroy (&w->mutex);
  pthread_mutex_destroy (&w->changing);
}

void
world_error (struct world *w, const char *fmt, ...)
{
  va_list ap;

  pthread_mutex_lock (&w->mutex);
  if (!w->error[0]) {
    va_start (ap, fmt);
    vsnprintf (w->error, sizeof w->error, fmt, ap);
    va_end (ap);
  }
  pthread_mutex_unlock (&w->mutex);
}

uint64_t
disk_bytes (const struct world *w)
{
  return w->nr_units * w->unit - (w->cfg.partial_end ? w->unit / 2 : 0);
}

uint64_t
slot_bytes (const struct world *w)
{
  return w->cfg.disks ? w->data_units * w->unit : disk_bytes (w);
}

size_t
unit_bytes (const struct world *w, size_t u)
{
  return MIN_OF (w->unit, disk_bytes (w) - u * w->unit);
}

/* --- the oracle -------------------------------------------------------------------- */

struct view {                  /* of one client */
  size_t *idx;                 /* its operations, in order */
  size_t nr;
  size_t least, most;          /* prefixes that time allows */
  bool *fits;                  /* prefix p gives what was found */
};

static void
collect_client (const struct world *w, unsigned client, struct view *v)
{
  size_t i;

  memset (v, 0, sizeof *v);
  v->idx = calloc (w->nr_ops + 1, sizeof *v->idx);
  for (i = 0; i < w->nr_ops; i++)
    if (w->ops[i].client == client)
      v->idx[v->nr++] = i;
  v->fits = calloc (v->nr + 1, sizeof *v->fits);
}

static void
bound_prefixes (const struct world *w, size_t pos, bool only_flushed,
                struct view *v)
{
  uint64_t flushed = 0;
  size_t i;

  for (i = 0; i < w->nr_flushes && only_flushed; i++)
    if (w->flushes[i].done_pos <= pos)
      flushed = MAX_OF (flushed, w->flushes[i].start_tick);
  for (i = 0; i < v->nr; i++) {
    const struct mop *op = &w->ops[v->idx[i]];

    if (op->done_tick < flushed || (only_flushed && op->durable_pos <= pos))
      v->least = i + 1;
    if (op->start_pos < pos)
      v->most = i + 1;
  }
  v->most = MAX_OF (v->most, v->least);
}

static void
apply_mop (uint64_t *model, const struct mop *op)
{
  memcpy (model + op->first, op->ids, op->nr * sizeof op->ids[0]);
}

/* Mark the prefixes of V that agree with GOT in the units it ever wrote. */
static void
fit_prefixes (const struct world *w, const uint64_t *got, struct view *v)
{
  uint64_t *model = malloc (w->nr_units * sizeof *model);
  bool *touched = calloc (w->nr_units, 1);
  size_t p, u, i, wrong = 0;

  memcpy (model, w->base_ids, w->nr_units * sizeof *model);
  for (i = 0; i < v->nr; i++)
    memset (touched + w->ops[v->idx[i]].first, 1, w->ops[v->idx[i]].nr);
  for (u = 0; u < w->nr_units; u++)
    wrong += touched[u] && !is_as_modelled (got[u], model[u]);
  for (p = 0; p <= v->most; p++) {
    if (p > 0) {
      const struct mop *op = &w->ops[v->idx[p - 1]];

      for (u = op->first; u < op->first + op->nr; u++)
        wrong -= !is_as_modelled (got[u], model[u]);
      apply_mop (model, op);
      for (u = op->first; u < op->first + op->nr; u++)
        wrong += !is_as_modelled (got[u], model[u]);
    }
    v->fits[p] = p >= v->least && wrong == 0;
  }
  free (model);
  free (touched);
}

/* With prefix P of A there, how many operations of B must be? */
static size_t
needs (const struct world *w, const struct view *a, size_t p,
       const struct view *b)
{
  size_t n = 0;
  uint64_t start;

  if (p == 0)
    return 0;
  start = w->ops[a->idx[p - 1]].start_tick;
  while (n < b->nr && w->ops[b->idx[n]].done_tick < start)
    n++;
  return n;
}

static bool
raise (struct view *v, size_t *p, size_t least)
{
  while (*p <= v->most && (*p < least || !v->fits[*p]))
    ++*p;
  return *p <= v->most;
}

/* The smallest prefixes that fit, raised until they fit together. */
static bool
fit_together (const struct world *w, struct view *v, unsigned nr,
              size_t p[MAX_CLIENTS])
{
  bool changed = true;
  unsigned i, k;
  size_t least, old;

  for (i = 0; i < nr; i++)
    if (!raise (&v[i], &p[i], 0))
      return false;
  while (changed) {
    changed = false;
    for (i = 0; i < nr; i++)
      for (k = 0; k < nr; k++) {
        least = i == k ? 0 : needs (w, &v[k], p[k], &v[i]);
        old = p[i];
        if (!raise (&v[i], &p[i], least))
          return false;
        changed = changed || p[i] != old;
      }
  }
  return true;
}

/* Units that nobody ever wrote keep what they had. */
static bool
rest_is_untouched (const struct world *w, const uint64_t *got, char *why,
                   size_t len)
{
  bool *touched = calloc (w->nr_units, 1), ok = true;
  size_t i, u;

  for (i = 0; i < w->nr_ops; i++)
    memset (touched + w->ops[i].first, 1, w->ops[i].nr);
  for (u = 0; u < w->nr_units && ok; u++)
    if (!touched[u] && !is_as_modelled (got[u], w->base_ids[u])) {
      snprintf (why, len, "unit %zu, which nobody wrote, is %llx", u,
                (unsigned long long) got[u]);
      ok = false;
    }
  free (touched);
  return ok;
}

bool
oracle_accepts (const struct world *w, const uint64_t *got, size_t pos,
                bool flushed, char *why, size_t len)
{
  struct view v[MAX_CLIENTS];
  size_t p[MAX_CLIENTS] = { 0 }, n = 0;
  unsigned i, nr = w->cfg.clients;
  bool ok;

  if (!rest_is_untouched (w, got, why, len))
    return false;
  for (i = 0; i < nr; i++) {
    collect_client (w, i, &v[i]);
    bound_prefixes (w, pos, flushed, &v[i]);
    fit_prefixes (w, got, &v[i]);
  }
  ok = fit_together (w, v, nr, p);
  if (!ok) {
    n = (size_t) snprintf (why, len, "no prefix:");
    for (i = 0; i < nr && n < len; i++)
      n += (size_t) snprintf (why + n, len - n, " client %u %zu..%zu of %zu "
                              "reached %zu", i, v[i].least, v[i].most,
                              v[i].nr, p[i]);
  }
  for (i = 0; i < nr; i++) {
    free (v[i].idx);
    free (v[i].fits);
  }
  return ok;
}
