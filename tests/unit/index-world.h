/* SPDX-License-Identifier: BSD-3-Clause */
/* For tests of the index: a world whose index is held against a plain map.
 *
 * It is the real store in a byte store in memory, without guest data: entries
 * are logged as a packed journal logs them, and no cluster counts as dead.
 */
#ifndef INDEX_WORLD_H
#define INDEX_WORLD_H

#include "pool.h"
#include "index-private.h"
#include "splitmix.h"
#include "../io-copy.h"

static uint64_t rng;
/* Values are clusters: no two entries have one, but where it was used again. */
static uint64_t next_value __attribute__ ((__unused__)) = 1;

static inline uint64_t
rnd (uint64_t n)
{
  return splitmix64 (&rng) % n;
}

static inline uint64_t
env (const char *name, uint64_t otherwise)
{
  const char *s = getenv (name);

  return s ? strtoull (s, NULL, 0) : otherwise;
}

static inline struct dedup_hash
hash_of (uint64_t key)
{
  struct dedup_hash h;
  unsigned i;

  for (i = 0; i < 4; i++) {
    uint64_t w = dedup_checksum (&key, sizeof key) + i, v;

    v = dedup_checksum (&w, sizeof w);
    memcpy (h.b + 8 * i, &v, sizeof v);
  }
  return h;
}

/* Runs that are merged and what they become are of different levels, as long as
 * there is one above. */
static inline void
assert_outputs_stand_above (const struct dedup_index_manifest *c)
{
  uint32_t i, k;

  for (i = 0; i < c->nr_segments; i++)
    for (k = 0; c->segments[i].output && k < c->nr_segments; k++)
      if (c->segments[k].merge == c->segments[i].merge &&
          !c->segments[k].output && c->segments[i].level < DEDUP_MAX_LEVEL)
        assert_true (c->segments[k].level < c->segments[i].level);
}

/* --- The world -------------------------------------------------------------- */

struct world {
  struct io_store *io;
  struct dedup_pool *d;
  uint64_t nr_keys;
  uint64_t *values;              /* of each key; 0: never made or deleted */
  int64_t limit;                 /* of incarnations; -1: as stored */
  bool no_verify;
};

static inline void
open_world (struct world *w)
{
  struct dedup_open_params p = { .path = "memory", .writable = true,
    .dedup = true, .verify = !w->no_verify, .max_incarnations = w->limit,
    .cache_bytes = 8 << 20 };
  struct fault f = { 0 };

  if (dedup_open (w->io, &p, &w->d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  w->d->store.index->values.find_dead = NULL;
}

/* A limit that drops nothing: freezes make incarnations, merges stop. */
#define WIDE 1000

static inline void
make_world_of (struct world *w, unsigned order, uint64_t nr_keys,
               bool no_verify)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = 64 << 20, .cluster_bits = 12,
               .refcount_order = 4 },
    .order = order, .journal_areas = 4,
  };
  struct fault f = { 0 };

  memset (w, 0, sizeof *w);
  w->nr_keys = nr_keys;
  w->limit = -1;
  w->no_verify = no_verify;
  w->values = calloc (nr_keys, sizeof *w->values);
  assert_non_null (w->values);
  assert_int_equal (io_memory_new (0, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_world (w);
}

static inline void
make_world (struct world *w, unsigned order, uint64_t nr_keys)
{
  make_world_of (w, order, nr_keys, false);
}

static inline void
end_world (struct world *w)
{
  dedup_free (w->d);
  io_close (w->io);
  free (w->values);
}

static inline void
work (struct world *w, bool all)
{
  unsigned urgent, job;
  unsigned due = dedup_due (w->d, &urgent);

  for (job = 1; job <= DEDUP_JOB_MERGE_IDLE; job <<= 1)
    if ((all ? due & ~DEDUP_JOB_CLEAN : urgent) & job)
      assert_int_equal (dedup_run (w->d, job), 0);
  assert_outputs_stand_above (w->d->store.index->manifest);
}

static inline void
set_value (struct world *w, uint64_t key, uint64_t value)
{
  const struct dedup_hash h = hash_of (key);
  struct dedup_pool *d = w->d;

  assert_int_equal (dedup_enter (&d->store.gate), 0);
  lock_acquire (d->base.lock);
  while (!dedup_room_locked (&d->upkeep, 1, 1)) {
    lock_release (d->base.lock);
    assert_int_equal (dedup_make_room (&d->upkeep), 0);
    lock_acquire (d->base.lock);
  }
  dedup_entry_locked (&d->store, &h, value ? value : DEDUP_DELETED);
  dedup_journal_end_locked (d->store.journal);
  lock_release (d->base.lock);
  dedup_leave (&d->store.gate);
  w->values[key] = value;
}

static inline void
check_keys (struct world *w, const uint64_t *keys, size_t nr)
{
  struct dedup_index_view *set;
  struct dedup_probe p[100];
  size_t i;

  lock_acquire (w->d->base.lock);
  set = dedup_index_view_locked (w->d->store.index);
  for (i = 0; i < nr; i++) {
    p[i].hash = hash_of (keys[i]);
    p[i].found = dedup_index_lookup_locked (w->d->store.index, &p[i].hash, &p[i].value);
  }
  lock_release (w->d->base.lock);
  for (i = 0; i < nr; i++) {
    struct dedup_probe q = p[i];
    uint64_t expected = keys[i] < w->nr_keys ? w->values[keys[i]] : 0;

    if (q.found == DEDUP_PROBE)
      dedup_index_probe (set, &q, 1);
    if (q.found != (expected ? DEDUP_HIT : DEDUP_MISS) ||
        (expected && q.value != expected))
      fail_msg ("key %" PRIu64 ": found %d, %" PRIu64 ", expected %" PRIu64,
                keys[i], q.found, q.value, expected);
  }
  dedup_index_probe (set, p, nr);   /* together they say the same */
  for (i = 0; i < nr; i++) {
    struct dedup_probe q = p[i];

    dedup_index_probe (set, &q, 1);
    assert_int_equal (q.found, p[i].found);
    if (q.found == DEDUP_HIT)
      assert_int_equal (q.value, p[i].value);
  }
  dedup_index_view_put (w->d->store.index, set);
}

static inline void
check_some (struct world *w, size_t nr)
{
  uint64_t keys[100];
  size_t i;

  for (i = 0; i < nr; i++)
    keys[i] = rnd (w->nr_keys + w->nr_keys / 4);
  check_keys (w, keys, nr);
}

static inline void
check_all (struct world *w)
{
  uint64_t keys[100], k;
  size_t n = 0;

  for (k = 0; k < w->nr_keys; k++) {
    keys[n++] = k;
    if (n == 100 || k + 1 == w->nr_keys) {
      check_keys (w, keys, n);
      n = 0;
    }
  }
}

static inline void
assert_store_is_right (struct world *w)
{
  struct dedup_index_view *set = w->d->store.index->view;
  struct fault f = { 0 };
  size_t i;

  for (i = 0; i < set->nr_segments; i++)
    if (dedup_segment_check (set->segments[i], &f) < 0)
      fail_msg ("%s", f.msg);
}

static inline void
reopen (struct world *w, bool crash)
{
  if (crash)
    assert_int_equal (dedup_flush (w->d), 0);
  else
    assert_int_equal (dedup_finish (w->d), 0);
  dedup_free (w->d);
  open_world (w);
}

/* Closed, the image is right, with no cluster too many. */
static inline void
assert_clean (struct world *w)
{
  struct qcow2_check_params p = { .problem = NULL };
  struct dedup_check_result r;
  struct fault f = { 0 };

  reopen (w, false);
  while (dedup_due (w->d, NULL) & DEDUP_JOB_SCAN)
    assert_int_equal (dedup_run (w->d, DEDUP_JOB_SCAN), 0);
  assert_int_equal (dedup_finish (w->d), 0);
  assert_int_equal (dedup_check (w->d, &p, &r, &f), 0);
  assert_int_equal (r.image.corruptions + r.image.leaks + r.store_errors, 0);
}

static inline void
damage (struct world *w, uint64_t host_off)
{
  uint8_t b;

  assert_int_equal (io_pread (w->io, &b, 1, host_off), 0);
  b ^= 0x40;
  assert_int_equal (io_pwrite (w->io, &b, 1, host_off), 0);
}

struct breaker {
  uint64_t calls, fail_at;
};

static inline int
break_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct breaker *b = opaque;

  if (call == IO_PREAD)
    return 0;
  return ++b->calls >= b->fail_at ? -EIO : 0;
}

#endif
