/* SPDX-License-Identifier: BSD-3-Clause */
/* Holds an index on plain storage against a plain model of it, which knows each
 * key's value.  The caller gives numbers by MODEL->choose, a random generator
 * or the input of a fuzzer.
 *
 * The owner's log is an array of all entries that were ever made, and of the
 * places where log stores were set aside (frozen).  A crash keeps the log (the
 * owner is responsible for it), and of the storage what was synced, and of each
 * page written since then either the old or the new bytes; of a manifest that
 * was owed, the old or the new one.  A freed area is overwritten at once, also
 * in what a crash leaves: so freeing a listed area is noticed.
 *
 * Slots are used again as soon as nothing has them any more, so that entries of
 * equal slots come about as they do with clusters.
 */
#ifndef INDEX_MODEL_H
#define INDEX_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "index-plain.h"

#define MODEL_KEYS 600u
#define MODEL_SLOTS 2048u

struct model_record {
  uint32_t key;                 /* MODEL_KEYS: the log store is set aside */
  uint64_t value;
};

struct model {
  uint64_t (*choose) (void *opaque, uint64_t n);   /* below N */
  void *opaque;
  struct plain plain;
  struct io_store *durable;     /* what a crash leaves for sure */
  struct lock lock;
  struct dedup_index *x;
  struct dedup_index_step *step;   /* under way; NULL: none */
  int worked;                   /* what its work returned */
  bool has_worked;
  bool no_space;                /* for a manifest: it is owed */
  bool owed;
  struct dedup_index_manifest owed_manifest;
  uint64_t owed_mark;
  uint64_t memory;              /* bound; 0: none */
  bool may_lose;                /* entries were given up, or are forgotten */
  uint64_t values[MODEL_KEYS];  /* 0: none */
  uint8_t used[MODEL_SLOTS];    /* by a key */
  struct model_record *log;
  size_t nr_log, max_log;
  unsigned long done[32];       /* of each kind of work, for the test */
};

#define MODEL_MUST(cond) \
  do { \
    if (!(cond)) { \
      fprintf (stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
      abort (); \
    } \
  } while (0)

static inline uint64_t
model_choose (struct model *m, uint64_t n)
{
  return n < 2 ? 0 : m->choose (m->opaque, n);
}

static inline struct dedup_hash
model_hash (uint32_t key)
{
  struct dedup_hash h;
  unsigned i;

  for (i = 0; i < 4; i++) {
    uint64_t w[2] = { key, i }, v = dedup_checksum (w, sizeof w);

    memcpy (h.b + 8 * i, &v, sizeof v);
  }
  return h;
}

/* Gives TO the bytes of FROM. */
static inline void
model_copy (struct io_store *from, struct io_store *to)
{
  const size_t size = (size_t) io_size (from);
  uint8_t *buf = malloc (size + 1);

  MODEL_MUST (buf != NULL && io_pread (from, buf, size, 0) == 0 &&
              io_pwrite (to, buf, size, 0) == 0);
  free (buf);
}

/* --- What the owner gives ----------------------------------------------------- */

/* Law 9: it may be anybody's from now on. */
static inline int
model_free_area (void *opaque, uint64_t off, uint64_t size)
{
  struct model *m = opaque;
  uint8_t *junk = malloc (size);

  MODEL_MUST (junk != NULL);
  memset (junk, 0xa5, size);
  MODEL_MUST (io_pwrite (m->plain.io, junk, size, off) == 0);
  MODEL_MUST (io_pwrite (m->durable, junk, size, off) == 0);
  free (junk);
  return plain_free (&m->plain, off, size);
}

static inline int
model_alloc (void *opaque, uint64_t size, uint64_t *off)
{
  struct model *m = opaque;

  return plain_alloc (&m->plain, size, off);
}

static inline int
model_sync (void *opaque, uint64_t off)
{
  struct model *m = opaque;

  model_copy (m->plain.io, m->durable);
  return 0;
}

static inline int
model_commit (void *opaque, const struct dedup_index_manifest *manifest,
              uint64_t mark)
{
  struct model *m = opaque;

  MODEL_MUST (mark >= m->plain.mark && mark <= m->nr_log);
  m->owed = m->no_space;
  if (!m->owed)
    return plain_commit (&m->plain, manifest, mark);
  m->owed_manifest = *manifest;
  m->owed_mark = mark;
  return -ENOSPC;
}

/* As an owner does that commits something else: what is owed goes along. */
static inline void
model_pay (struct model *m)
{
  m->no_space = false;
  if (!m->owed)
    return;
  m->owed = false;
  MODEL_MUST (plain_commit (&m->plain, &m->owed_manifest, m->owed_mark) == 0);
  dedup_index_committed (m->x);
}

/* What may lack space. */
static inline int
model_may_fail (struct model *m, int r)
{
  MODEL_MUST (r >= 0 || (r == -ENOSPC && m->no_space));
  return r;
}

static inline uint64_t
model_end (void *opaque)
{
  return MODEL_SLOTS;
}

static inline uint64_t
model_slot (void *opaque, uint64_t value)
{
  return value;
}

static inline void
model_find_dead (void *opaque, const uint64_t *values, size_t nr, bool *dead)
{
  struct model *m = opaque;
  size_t i;

  for (i = 0; i < nr; i++)
    dead[i] = values[i] < MODEL_SLOTS && !m->used[values[i]];
}

/* --- Open, close, crash ------------------------------------------------------- */

static inline void
model_open_index (struct model *m)
{
  struct dedup_index_params p = {
    .lock = &m->lock, .name = "model", .store_id = 7,
    .area_unit = PLAIN_UNIT, .mark = m->plain.mark,
    .storage = { .io = m->plain.io, .alloc = model_alloc,
                 .free = model_free_area, .sync = model_sync,
                 .file_failed = plain_file_failed,
                 .same_file_as_new = plain_same_file_as_new,
                 .commit = model_commit, .opaque = m },
    .values = { .end = model_end, .slot = model_slot,
                .find_dead = model_find_dead, .opaque = m },
  };

  MODEL_MUST (dedup_index_open (&p, &m->plain.manifest, &m->x) == 0);
}

/* Enters again what the log has from the mark on, as a recovery does. */
static inline void
model_replay (struct model *m)
{
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  size_t i, k, nr;
  LOCK_FOR_SCOPE (&m->lock);

  for (i = (size_t) m->plain.mark; i < m->nr_log; i++) {
    const struct dedup_hash h = model_hash (m->log[i].key);

    if (m->log[i].key < MODEL_KEYS) {
      dedup_index_insert_locked (m->x, &h, m->log[i].value);
      continue;
    }
    if (dedup_index_frozen_locked (m->x) ||
        dedup_index_nr_current_locked (m->x) == 0)
      continue;
    MODEL_MUST (dedup_index_set_aside_locked (m->x, i, spilled, &nr) == 0);
    for (k = 0; k < nr; k++)
      dedup_index_insert_locked (m->x, &spilled[k].hash, spilled[k].value);
  }
}

static inline void
model_open (struct model *m)
{
  plain_restart (&m->plain);
  model_open_index (m);
  model_replay (m);
  model_may_fail (m, dedup_index_set_memory (m->x, m->memory));
  dedup_index_look (m->x, false);
}

static inline void
model_end_step (struct model *m)
{
  int r;

  if (m->step == NULL)
    return;
  r = m->has_worked ? m->worked : dedup_index_step_work (m->step);
  MODEL_MUST (r == 0);
  r = model_may_fail (m, dedup_index_step_finish (m->step, r));
  m->step = NULL;
  if (r == 0)                   /* nobody reads what the step replaced */
    MODEL_MUST (m->plain.nr_areas == m->plain.manifest.nr_incarnations +
                m->plain.manifest.nr_segments + m->plain.manifest.nr_limbo);
}

static inline void
model_close (struct model *m)
{
  model_end_step (m);
  model_pay (m);
  MODEL_MUST (dedup_index_reap (m->x) == 0);
  dedup_index_close (m->x);
  m->x = NULL;
}

/* Of each page that was not synced, the old or the new bytes. */
static inline void
model_tear (struct model *m)
{
  const int64_t size = io_size (m->plain.io);
  uint8_t now[4096], then[4096];
  int64_t off;

  for (off = 0; off < size; off += 4096) {
    MODEL_MUST (io_pread (m->plain.io, now, 4096, (uint64_t) off) == 0);
    MODEL_MUST (io_pread (m->durable, then, 4096, (uint64_t) off) == 0);
    if (memcmp (now, then, 4096) != 0 && model_choose (m, 2) == 0)
      MODEL_MUST (io_pwrite (m->plain.io, then, 4096, (uint64_t) off) == 0);
  }
}

static inline void
model_crash (struct model *m)
{
  if (m->step) {                /* its memory is freed, nothing is listed */
    dedup_index_stop (m->x);
    (void) !dedup_index_step_finish (m->step, -EINTR);
    m->step = NULL;
  }
  dedup_index_close (m->x);
  m->no_space = false;
  if (m->owed && model_choose (m, 2) == 0)   /* one slot may be durable */
    MODEL_MUST (plain_commit (&m->plain, &m->owed_manifest, m->owed_mark) == 0);
  m->owed = false;
  model_tear (m);
  model_copy (m->plain.io, m->durable);
  model_open (m);
}

static inline void
model_init (struct model *m, unsigned order, uint32_t max_incarnations)
{
  memset (m, 0, sizeof *m);
  lock_init (&m->lock);
  MODEL_MUST (io_memory_new (PLAIN_UNIT, &m->plain.io) == 0);
  MODEL_MUST (io_memory_new (PLAIN_UNIT, &m->durable) == 0);
  m->plain.manifest.order = order;
  m->plain.manifest.max_incarnations = max_incarnations;
  m->plain.manifest.next_id = 1;
  m->used[0] = 1;               /* 0 is no value */
  model_open (m);
}

static inline void
model_free (struct model *m)
{
  if (m->x)
    model_close (m);
  io_close (m->plain.io);
  io_close (m->durable);
  lock_destroy (&m->lock);
  free (m->log);
}

/* --- Entries ------------------------------------------------------------------ */

static inline void
model_log (struct model *m, uint32_t key, uint64_t value)
{
  if (m->nr_log == m->max_log) {
    m->max_log = m->max_log ? 2 * m->max_log : 1024;
    m->log = realloc (m->log, m->max_log * sizeof *m->log);
    MODEL_MUST (m->log != NULL);
  }
  m->log[m->nr_log++] = (struct model_record) { key, value };
}

static inline uint32_t
model_key_of (const struct dedup_hash *h)
{
  uint32_t key;

  for (key = 0; key < MODEL_KEYS; key++) {
    const struct dedup_hash g = model_hash (key);

    if (dedup_hash_equal (&g, h))
      return key;
  }
  MODEL_MUST (!"a hash that nobody made");
  return 0;
}

/* Freezes until there is room for one entry, as an owner does. */
static inline void
model_make_room (struct model *m)
{
  struct dedup_entry spilled[DEDUP_MAX_SPILLED];
  enum dedup_fit fit;
  size_t i, nr;

  for (;;) {
    lock_acquire (&m->lock);
    fit = dedup_index_fit_locked (m->x, 1);
    if (fit == DEDUP_SET_ASIDE_FIRST) {
      MODEL_MUST (dedup_index_set_aside_locked (m->x, m->nr_log, spilled, &nr)
                  == 0);
      model_log (m, MODEL_KEYS, 0);
      for (i = 0; i < nr; i++) {
        model_log (m, model_key_of (&spilled[i].hash), spilled[i].value);
        dedup_index_insert_locked (m->x, &spilled[i].hash, spilled[i].value);
      }
    }
    lock_release (&m->lock);
    if (fit == DEDUP_FITS)
      return;
    if (fit == DEDUP_FULL) {
      if (dedup_index_must_merge (m->x))
        model_end_step (m);
      if (model_may_fail (m, dedup_index_freeze (m->x)) < 0)
        model_pay (m);
    }
  }
}

static inline void
model_enter (struct model *m, uint32_t key, uint64_t value)
{
  const struct dedup_hash h = model_hash (key);

  model_make_room (m);
  lock_acquire (&m->lock);
  model_log (m, key, value);
  dedup_index_insert_locked (m->x, &h, value);
  lock_release (&m->lock);
}

static inline void
model_put (struct model *m, uint32_t key)
{
  uint64_t slot = 1 + model_choose (m, MODEL_SLOTS - 1);

  while (m->used[slot])
    slot = slot + 1 < MODEL_SLOTS ? slot + 1 : 1;
  model_enter (m, key, slot);
  m->used[m->values[key]] = m->values[key] == 0;
  m->values[key] = slot;
  m->used[slot] = 1;
}

static inline void
model_delete (struct model *m, uint32_t key)
{
  model_enter (m, key, DEDUP_DELETED);
  m->used[m->values[key]] = m->values[key] == 0;
  m->values[key] = 0;
}

/* --- The verdict -------------------------------------------------------------- */

static inline void
model_check_key (struct model *m, uint32_t key)
{
  struct dedup_probe p = { .hash = model_hash (key) };
  const uint64_t expected = m->values[key];
  struct dedup_index_view *v;

  lock_acquire (&m->lock);
  p.found = dedup_index_lookup_locked (m->x, &p.hash, &p.value);
  v = dedup_index_view_locked (m->x);
  lock_release (&m->lock);
  if (p.found == DEDUP_PROBE)
    dedup_index_probe (v, &p, 1);
  dedup_index_view_put (m->x, v);
  if (p.found == DEDUP_HIT ? p.value == expected
      : expected == 0 || m->may_lose)
    return;
  fprintf (stderr, "key %u: found %d, %llu, expected %llu\n", key, p.found,
           (unsigned long long) p.value, (unsigned long long) expected);
  abort ();
}

static inline void
model_problem (void *opaque, const char *line)
{
  fprintf (stderr, "%s\n", line);
  abort ();
}

static inline void
model_count_hidden (void *opaque, const struct dedup_entry *e, bool hidden)
{
  struct model *m = opaque;
  const uint32_t key = model_key_of (&e->hash);

  if (!hidden && e->value != DEDUP_DELETED)
    MODEL_MUST (e->value == m->values[key]);
}

static inline void
model_check_all (struct model *m)
{
  uint32_t key;
  bool exact;

  for (key = 0; key < MODEL_KEYS; key++)
    model_check_key (m, key);
  dedup_index_check (m->x, model_problem, NULL);
  lock_acquire (&m->lock);
  exact = dedup_index_exact_locked (m->x);
  lock_release (&m->lock);
  if (exact)
    MODEL_MUST (dedup_index_sample (m->x, 1, model_count_hidden, m) == 0);
}

/* --- One thing to do ------------------------------------------------------------ */

enum model_work { MODEL_PUT, MODEL_DELETE, MODEL_FREEZE, MODEL_STEP_START,
                  MODEL_STEP_WORK, MODEL_STEP_FINISH, MODEL_IDLE, MODEL_LOAD,
                  MODEL_REOPEN, MODEL_CRASH, MODEL_CHECK, MODEL_MEMORY,
                  MODEL_DOUBT, MODEL_LIMIT, MODEL_NO_SPACE, MODEL_SPACE, MODEL_REAP,
                  MODEL_NR_WORKS };

static inline void
model_start_step (struct model *m, unsigned flags)
{
  int r;

  if (m->step)
    return;
  r = dedup_index_step_start (m->x, flags, &m->step);
  model_may_fail (m, r);
  if (r != 1)
    m->step = NULL;
  m->has_worked = false;
}

/* Begins another session, with a bound on memory if this one has none; it finds
 * the host with or without space, as it is now.  An owner sets the bound when it
 * opens the index, before any filter is loaded. */
static inline void
model_set_memory (struct model *m)
{
  const bool no_space = m->no_space;

  model_close (m);
  model_copy (m->plain.io, m->durable);
  m->memory = m->memory ? 0 : dedup_index_least_memory
    (m->plain.manifest.order, m->plain.manifest.max_incarnations > 0, 0);
  m->may_lose = true;
  m->no_space = no_space;
  model_open (m);
}

static inline void
model_do (struct model *m, enum model_work work)
{
  m->done[work]++;
  switch (work) {
  case MODEL_PUT:
    model_put (m, (uint32_t) model_choose (m, MODEL_KEYS));
    break;
  case MODEL_DELETE:
    model_delete (m, (uint32_t) model_choose (m, MODEL_KEYS));
    break;
  case MODEL_FREEZE:
    if (dedup_index_must_merge (m->x))
      model_end_step (m);
    model_may_fail (m, dedup_index_freeze (m->x));
    break;
  case MODEL_STEP_START:
    model_start_step (m, 0);
    break;
  case MODEL_STEP_WORK:
    if (m->step && !m->has_worked) {
      m->worked = dedup_index_step_work (m->step);
      m->has_worked = true;
    }
    break;
  case MODEL_STEP_FINISH:
    model_end_step (m);
    break;
  case MODEL_IDLE:
    model_start_step (m, DEDUP_STEP_IDLE);
    model_end_step (m);
    break;
  case MODEL_LOAD:
    model_may_fail (m, dedup_index_load_next (m->x));
    break;
  case MODEL_REOPEN:
    model_close (m);
    model_copy (m->plain.io, m->durable);
    model_open (m);
    break;
  case MODEL_CRASH:
    model_crash (m);
    break;
  case MODEL_CHECK:
    model_check_key (m, (uint32_t) model_choose (m, MODEL_KEYS));
    break;
  case MODEL_MEMORY:            /* another session, with a bound or without */
    model_set_memory (m);
    break;
  case MODEL_DOUBT:
    lock_acquire (&m->lock);
    dedup_index_doubt_locked (m->x);
    lock_release (&m->lock);
    break;
  case MODEL_LIMIT:             /* another session, with a limit or without */
    model_close (m);
    model_copy (m->plain.io, m->durable);
    m->plain.manifest.max_incarnations =
      m->plain.manifest.max_incarnations ? 0 : 1000;
    model_open (m);
    break;
  case MODEL_NO_SPACE:
    m->no_space = true;
    break;
  case MODEL_SPACE:
    model_pay (m);
    break;
  case MODEL_REAP:
    model_may_fail (m, dedup_index_reap (m->x));
    break;
  case MODEL_NR_WORKS:
    break;
  }
}

#endif
