/* SPDX-License-Identifier: BSD-3-Clause */
/* For test-index-worlds: a world of the index whose disk, store file and memory
 * fail when they are told to, and which entries may be lost because of that.
 *
 * A store holds one world, so there is one here, which callbacks find.
 */
#ifndef INDEX_FAULTS_H
#define INDEX_FAULTS_H

#include "fault-malloc.h"
#include "index-world.h"

/* What came up. */
enum seen {
  SEEN_CRASHES, SEEN_FAILED, SEEN_READ_FAULTS, SEEN_WRITE_FAULTS,
  SEEN_MEMORY_FAULTS, SEEN_FLIPPED, SEEN_PACKS, SEEN_MERGES, SEEN_IDLE_MERGES,
  SEEN_CONVERSIONS, SEEN_MEANWHILE, SEEN_LIMITS, SEEN_BOUNDS, SEEN_STORE_FILES,
  SEEN_STORE_FILES_LOST, SEEN_SPILLED, SEEN_SPILLED_AT_OPEN, SEEN_EXACT,
  SEEN_GONE, SEEN_STALE, NR_SEEN
};

static const char *const seen_names[NR_SEEN] = {
  "crashes", "failed disks", "read faults", "write faults", "memory faults",
  "bytes flipped", "packs", "steps of merges", "of these at rest",
  "conversions", "times of work in a merge", "sessions with limits",
  "sessions with bounds", "store files", "store files lost",
  "operations that spill", "replays that spill",
  "right answers while exact", "entries gone for a reason",
  "stale answers while not exact",
};

struct file {
  struct io_store *io, *memory;  /* IO, which fails, is above; NULL: none */
  uint64_t base;                 /* where the configuration has its bytes */
};

static struct {
  struct world w;                /* w.d: NULL while it is opened or closed */
  struct file image, store_file;
  uint64_t bound;                /* index_memory */
  uint64_t store_id;
  unsigned read_faults, write_faults, memory_faults;   /* 1 of so many */

  /* Entries may be gone that were made before a time, or in this session: */
  uint64_t now, gone_before;
  bool losing;
  uint64_t *made;                /* of each key: when */

  /* Called within calls of a merge that let others work: */
  void (*meanwhile) (void);      /* NULL: nothing is done */
  bool in_meanwhile;
  bool merged;                   /* a step of one was seen */
  uint64_t seen[NR_SEEN];        /* in all worlds */
} x;

/* --- What may be gone ----------------------------------------------------- */

/* There is a reason: whatever was made up to now. */
static void
lose (void)
{
  x.gone_before = ++x.now;
}

static bool
may_be_gone (uint64_t key)
{
  return x.losing || x.made[key] < x.gone_before;
}

/* --- Tables of the index -------------------------------------------------- */

struct area {
  uint64_t host_off, size_bytes;
};

static uint64_t
nr_tables (const struct dedup_index_manifest *c)
{
  return c->nr_segments + c->nr_incarnations;
}

static struct area
table (const struct dedup_index_manifest *c, uint64_t i)
{
  if (i < c->nr_segments)
    return (struct area) { c->segments[i].host_off,
                           c->segments[i].size_bytes };
  i -= c->nr_segments;
  return (struct area) { c->incarnations[i].host_off,
                         c->incarnations[i].size_bytes };
}

static bool
in_tables (const struct dedup_index_manifest *c, uint64_t host_off)
{
  uint64_t i;

  for (i = 0; i < nr_tables (c); i++) {
    const struct area a = table (c, i);

    if (host_off >= a.host_off && host_off - a.host_off < a.size_bytes)
      return true;
  }
  return false;
}

static void
flip_a_byte (void)
{
  const struct dedup_index_manifest *c = x.w.d->store.index->manifest;
  struct io_store *memory = x.image.memory;
  struct area a;
  uint8_t b;

  if (nr_tables (c) == 0)
    return;
  a = table (c, rnd (nr_tables (c)));
  if (dedup_in_store_file (a.host_off)) {
    memory = x.store_file.memory;
    a.host_off &= ~DEDUP_IN_STORE_FILE;
  }
  a.host_off += rnd (a.size_bytes);
  if (io_pread (memory, &b, 1, a.host_off) < 0)
    return;
  b ^= (uint8_t) (1 << rnd (8));
  assert_int_equal (io_pwrite (memory, &b, 1, a.host_off), 0);
  x.seen[SEEN_FLIPPED]++;
  lose ();
}

/* --- Faults --------------------------------------------------------------- */

static bool
one_of (unsigned n)
{
  return n != 0 && rnd (n) == 0;
}

static bool
memory_fails (size_t size)
{
  if (x.w.d == NULL || !one_of (x.memory_faults))
    return false;
  x.seen[SEEN_MEMORY_FAULTS]++;
  lose ();
  return true;
}

static bool
read_fails (uint64_t host_off)
{
  if (!x.read_faults || !in_tables (x.w.d->store.index->manifest, host_off) ||
      !one_of (x.read_faults))
    return false;
  x.seen[SEEN_READ_FAULTS]++;
  lose ();
  return true;
}

static bool
write_fails (void)
{
  if (!one_of (x.write_faults))
    return false;
  x.seen[SEEN_WRITE_FAULTS]++;
  return true;
}

static bool
any_faults (void)
{
  return x.read_faults || x.write_faults || x.memory_faults;
}

static void
end_faults (void)
{
  x.read_faults = x.write_faults = x.memory_faults = 0;
}

/* Does a merge go on that others do not have to wait for? */
static bool
merge_lets_work (void)
{
  if (!x.w.d->upkeep.merging || pthread_mutex_trylock (&x.w.d->upkeep.maintenance) != 0)
    return false;
  pthread_mutex_unlock (&x.w.d->upkeep.maintenance);
  return true;
}

static int
file_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  const struct file *f = opaque;

  if (x.w.d == NULL)
    return 0;
  x.merged = x.merged || x.w.d->upkeep.merging;
  if (call == IO_PREAD ? read_fails (host_off | f->base) : write_fails ())
    return -EIO;
  if (x.meanwhile && !x.in_meanwhile && rnd (4) == 0 && merge_lets_work ()) {
    x.in_meanwhile = true;
    x.meanwhile ();
    x.in_meanwhile = false;
  }
  return 0;
}

/* --- Opening and closing -------------------------------------------------- */

static void
make_file (struct file *f, struct io_store *memory, uint64_t base)
{
  f->memory = memory;
  f->base = base;
  assert_int_equal (io_faulty_new (memory, file_cb, f, &f->io), 0);
}

static void
make_store_file (void)
{
  struct io_store *memory;

  assert_int_equal (io_memory_new (0, &memory), 0);
  make_file (&x.store_file, memory, DEDUP_IN_STORE_FILE);
  x.seen[SEEN_STORE_FILES]++;
}

static void
lose_store_file (void)
{
  io_close (x.store_file.io);
  x.store_file.io = NULL;
  x.seen[SEEN_STORE_FILES_LOST]++;
  lose ();
}

/* The index is this world's, not a new one. */
static void
open_disk (void)
{
  struct dedup_open_params p = {
    .path = "memory", .writable = true, .dedup = true,
    .verify = !x.w.no_verify, .max_incarnations = x.w.limit,
    .index_memory = x.bound, .store = x.store_file.io,
    .store_path = "store file", .cache_bytes = 8 << 20 };
  struct fault f = { 0 };
  struct dedup_pool *d;

  if (dedup_open (x.image.io, &p, &d, &f) < 0)
    fail_msg ("open: %s", f.msg);
  d->store.index->values.find_dead = NULL;
  if (x.store_id == 0)
    x.store_id = d->store.config->store_id;
  if (d->store.config->store_id != x.store_id)
    fail_msg ("the index was void");
  x.w.d = d;
  x.seen[SEEN_SPILLED_AT_OPEN] +=
    d->store.index->nr_spilled > 0 || d->store.index_damaged;
}

/* CRASH: what is not durable would be lost, so everything is.  If the disk has
 * failed, it is. */
static void
close_disk (bool crash)
{
  struct dedup_pool *d = x.w.d;

  end_faults ();
  if (dedup_failed (d) < 0) {
    x.seen[SEEN_FAILED]++;
    lose ();
  }
  else if (crash) {
    x.seen[SEEN_CRASHES]++;
    assert_int_equal (dedup_flush (d), 0);
  }
  else
    assert_int_equal (dedup_finish (d), 0);
  x.w.d = NULL;
  dedup_free (d);
}

static void
make_disk (unsigned order, uint64_t nr_keys, bool no_verify)
{
  struct dedup_pool *d;

  make_world_of (&x.w, order, nr_keys, no_verify);
  d = x.w.d;
  assert_int_equal (dedup_finish (d), 0);
  x.w.d = NULL;
  dedup_free (d);
  make_file (&x.image, x.w.io, 0);
  x.store_file.io = NULL;
  x.made = calloc (nr_keys, sizeof *x.made);
  assert_non_null (x.made);
  x.bound = x.store_id = x.now = x.gone_before = 0;
  x.losing = x.in_meanwhile = false;
  x.meanwhile = NULL;
  end_faults ();
  open_disk ();
}

static void
end_disk (void)
{
  close_disk (false);
  io_close (x.image.io);
  if (x.store_file.io)
    io_close (x.store_file.io);
  free (x.made);
  free (x.w.values);
}

#endif
