/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests compressed clusters that another program wrote: they are indexed by their
 * expanded bytes, and writes of the same bytes link them (docs/on-disk.md section
 * 14).  Compressed data lies anywhere in host clusters, several in one and some
 * across two, so references are counted for host clusters.
 *
 * On a byte store in memory.  The tests put compressed data there themselves, as
 * another program does: without anchor and index entry.
 *
 * Breaks if: compressed data is not found, or other data is taken for it; a host
 * cluster is counted once too often or too seldom, or is freed while something in it
 * is in use; a descriptor that contradicts the image is followed; or a scrub misses rot
 * of compressed data, or calls something bad that is not.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <zlib.h>

#include "checked.h"
#include "image.h"
#include "op.h"
#include "entries.h"
#include "pool.h"
#include "splitmix.h"
#include "third-random.h"
#include "value.h"

#define CLUSTER 4096u
#define NR 1024u                /* guest clusters: two L2 tables */
#define SECTORS_AT 58           /* bit of the number of sectors in a descriptor */
#define MAX_PACKED 64u

struct world {
  struct io_store *memory, *io; /* io counts reads of memory */
  uint64_t reads;
  uint64_t fail_at;             /* reads of that host cluster fail; 0: none */
  struct dedup_pool *pool;
  bool verify;
  uint64_t ids[NR];             /* contents; 0: zeroes */
};

static int
count_reads (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;

  w->reads += call == IO_PREAD;
  return call == IO_PREAD && w->fail_at != 0 &&
    host_off / CLUSTER <= w->fail_at &&
    w->fail_at < div_round_up (host_off + len, CLUSTER) ? -EIO : 0;
}

/* --- The image ---------------------------------------------------------------- */

static int
try_open (struct world *w, bool writable, struct fault *f)
{
  const struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = w->verify,
    .max_incarnations = -1, .cache_bytes = 1 << 20,
  };

  return dedup_open (w->io, &p, &w->pool, f);
}

static void
open_image (struct world *w)
{
  struct fault f = { 0 };

  if (try_open (w, true, &f) < 0)
    fail_msg ("open: %s", f.msg);
}

static struct world *
new_world_at (unsigned refcount_order, bool verify)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = refcount_order },
    .order = 6, .journal_areas = 4,
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  w->verify = verify;
  assert_int_equal (io_memory_new (0, &w->memory), 0);
  assert_int_equal (io_faulty_new (w->memory, count_reads, w, &w->io), 0);
  assert_int_equal (dedup_create (w->io, &p, &f), 0);
  open_image (w);
  return w;
}

static struct world *
new_world (void)
{
  return new_world_at (4, true);
}

static void
close_image (struct world *w)
{
  assert_int_equal (dedup_finish (w->pool), 0);
  dedup_free (w->pool);
}

static void
assert_contents (struct world *w)
{
  uint8_t got[CLUSTER], want[CLUSTER];
  unsigned g;

  for (g = 0; g < NR; g++) {
    fill_third_random (want, CLUSTER, w->ids[g]);
    assert_int_equal (dedup_read (w->pool, 0, got, g * CLUSTER, CLUSTER), 0);
    if (memcmp (got, want, CLUSTER) != 0)
      fail_msg ("guest cluster %u is not as it was written", g);
  }
}

/* Closes the image, and checks refcounts and flags. */
static void
check_closed (struct world *w)
{
  struct qcow2_check_params q = { 0 };
  struct dedup_check_result r;
  struct fault f = { 0 };

  close_image (w);
  assert_int_equal (try_open (w, false, &f), 0);
  assert_int_equal (dedup_check (w->pool, &q, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  assert_int_equal (r.store_errors, 0);
  dedup_free (w->pool);
}

static void
reopen (struct world *w)
{
  check_closed (w);
  open_image (w);
}

static void
free_world (struct world *w)
{
  assert_contents (w);
  check_closed (w);
  io_close (w->io);
  free (w);
}

/* Checks that a crash now keeps all that was flushed. */
static void
crash (struct world *w)
{
  assert_int_equal (dedup_flush (w->pool), 0);
  dedup_free (w->pool);
  open_image (w);
  assert_contents (w);
}

static void
write_id (struct world *w, unsigned g, uint64_t id)
{
  uint8_t buf[CLUSTER];

  fill_third_random (buf, CLUSTER, id);
  assert_int_equal (dedup_write (w->pool, 0, buf, g, 1), 0);
  w->ids[g] = id;
}

static void
unmap (struct world *w, unsigned g, unsigned nr)
{
  assert_int_equal (dedup_unmap (w->pool, 0, g, nr, DEDUP_TRIM), 0);
  memset (w->ids + g, 0, nr * sizeof w->ids[0]);
}

/* --- Looking -------------------------------------------------------------------- */

/* Counts the references of guest clusters to a host cluster. */
static uint64_t
count_references (struct world *w, uint64_t host_idx)
{
  uint64_t n = 0, first, count;
  unsigned g;

  for (g = 0; g < NR; g++) {
    qcow2_entry_clusters (w->pool->base.img, get_entry (w->pool, g), &first, &count);
    n += host_idx - first < count;
  }
  return n;
}

/* Checks that a host cluster has the anchor's reference and those of guests. */
static void
assert_counted (struct world *w, uint64_t host_idx)
{
  bool anchored;

  assert_int_equal (get_refcount (w->pool, host_idx, &anchored),
                    1 + count_references (w, host_idx));
  assert_true (anchored);
}

/* --- Compressed data of another program ------------------------------------------ */

struct packed {
  unsigned nr;
  uint64_t ids[MAX_PACKED], entries[MAX_PACKED];
  uint64_t first, count;        /* host clusters */
  unsigned crossing;            /* how many touch two */
};

static size_t
deflate_id (uint8_t *out, size_t max, uint64_t id)
{
  uint8_t in[CLUSTER];
  z_stream s = { 0 };

  fill_third_random (in, CLUSTER, id);
  assert_int_equal (deflateInit2 (&s, 6, Z_DEFLATED, -12, 9,
                                  Z_DEFAULT_STRATEGY), Z_OK);
  s.next_in = in;
  s.avail_in = sizeof in;
  s.next_out = out;
  s.avail_out = (unsigned) max;
  assert_int_equal (deflate (&s, Z_FINISH), Z_STREAM_END);
  deflateEnd (&s);
  return max - s.avail_out;
}

static uint64_t
descriptor (uint64_t off, uint64_t len)
{
  return QCOW2_L2_COMPRESSED |
    ((off + len - 1) / 512 - off / 512) << SECTORS_AT | off;
}

/* Writes the contents FIRST_ID and up one behind the other to host clusters that are
 * reserved for them, or to those from AT on. */
static void
pack_at (struct world *w, struct packed *p, uint64_t first_id, unsigned nr,
         uint64_t at)
{
  uint8_t *buf = calloc (nr + 1, CLUSTER);
  size_t len, pos = 0;
  unsigned i;

  *p = (struct packed) { .nr = nr, .count = nr, .first = at };
  if (at == 0) {
    lock_acquire (w->pool->base.lock);
    assert_int_equal (qcow2_reserve_area_locked (w->pool->base.img, nr,
                                                 &p->first), 0);
    lock_release (w->pool->base.lock);
  }
  for (i = 0; i < nr; i++) {
    len = deflate_id (buf + pos, CLUSTER, first_id + i);
    p->ids[i] = first_id + i;
    p->entries[i] = descriptor (p->first * CLUSTER + pos, len);
    p->crossing += pos / CLUSTER != (pos + len - 1) / CLUSTER;
    pos += len;
  }
  assert_true (p->crossing > 0 || nr < 4);
  p->count = div_round_up (pos, CLUSTER);
  assert_int_equal (io_pwrite (w->io, buf, p->count * CLUSTER,
                               p->first * CLUSTER), 0);
  free (buf);
}

static void
pack (struct world *w, struct packed *p, uint64_t first_id, unsigned nr)
{
  pack_at (w, p, first_id, nr, 0);
}

struct put {
  struct world *w;
  unsigned g;
  uint64_t entry;               /* the new one */
  uint64_t counted;             /* an entry whose references are counted, or 0 */
  int by;                       /* ... so many times */
};

static void
change (struct put *u, struct qcow2_txn *txn, const struct qcow2_change *c)
{
  dedup_change_locked (&u->w->pool->store, txn, c);
}

static int
put_locked (struct qcow2_txn *txn, void *opaque)
{
  struct put *u = opaque;
  struct qcow2_change l2 = { .type = QCOW2_CHANGE_L2, .count = 1,
                             .guest_idx = u->g, .entry = u->entry };
  struct qcow2_change ref = { .type = QCOW2_CHANGE_REFCOUNT, .count = 1 };
  uint64_t first, count, i;
  bool anchored;
  int r = qcow2_prepare_entry_locked (txn, 0, u->g);

  qcow2_entry_clusters (txn->img, u->counted, &first, &count);
  for (i = 0; i < count && r == 0; i++)
    r = qcow2_prepare_host_locked (txn, first + i, 1);
  if (r < 0)
    return r;
  change (u, txn, &l2);
  for (i = 0; i < count; i++) {
    assert_int_equal (qcow2_get_refcount_locked (txn, first + i, &ref.refcount,
                                                 &anchored), 0);
    ref.host_idx = first + i;
    ref.refcount += (uint64_t) u->by;
    ref.anchored = anchored;
    change (u, txn, &ref);
  }
  dedup_journal_end_locked (u->w->pool->store.journal);
  return 0;
}

static void
put_as (struct world *w, struct put u)
{
  u.w = w;
  assert_int_equal (dedup_enter (&w->pool->store.gate), 0);
  assert_int_equal (qcow2_txn_run (w->pool->base.img, put_locked, &u), 0);
  dedup_leave (&w->pool->store.gate);
}

/* Makes ENTRY that of guest cluster G, which has none. */
static void
put (struct world *w, unsigned g, uint64_t entry)
{
  assert_int_equal (get_entry (w->pool, g), 0);
  put_as (w, (struct put) { .g = g, .entry = entry, .counted = entry, .by = 1 });
}

/* Makes the packed data that of guest clusters from G on. */
static void
put_all (struct world *w, unsigned g, const struct packed *p)
{
  unsigned i;

  for (i = 0; i < p->nr; i++) {
    put (w, g + i, p->entries[i]);
    w->ids[g + i] = p->ids[i];
  }
}

/* Indexes all data, in steps of at most MAX clusters. */
static struct dedup_existing
index_in_steps (struct world *w, size_t max)
{
  struct dedup_existing res = { 0 };
  uint64_t g = 0;
  size_t nr;
  int r;

  while ((r = dedup_existing_next (w->pool, &g, &nr, &res)) == 1) {
    nr = MIN_OF (nr, max);
    assert_int_equal (dedup_existing_index (w->pool, g, nr, false, &res), 0);
    g += nr;
  }
  assert_int_equal (r, 0);
  return res;
}

static struct dedup_existing
index_all (struct world *w)
{
  return index_in_steps (w, NR);
}

/* --- Linking -------------------------------------------------------------------- */

static void
equal_data_links_compressed_data (void **state)
{
  struct world *w = new_world ();
  struct dedup_existing res;
  struct packed p;
  uint64_t before;
  unsigned i;

  pack (w, &p, 1, 20);
  put_all (w, 0, &p);
  res = index_all (w);
  assert_int_equal (res.indexed, p.nr);
  assert_int_equal (res.bad, 0);
  for (i = 0; i < p.count; i++)
    assert_counted (w, p.first + i);
  assert_contents (w);
  for (i = 0; i < p.nr; i++) {
    write_id (w, 600 + i, p.ids[i]);
    assert_int_equal (get_entry (w->pool, 600 + i), p.entries[i]);
  }
  for (i = 0; i < p.count; i++)
    assert_counted (w, p.first + i);
  crash (w);
  for (i = 0; i < p.count; i++)
    assert_counted (w, p.first + i);
  reopen (w);
  write_id (w, 900, p.ids[7]);
  assert_int_equal (get_entry (w->pool, 900), p.entries[7]);
  before = w->reads;
  res = index_all (w);          /* finds nothing to do, and expands nothing */
  assert_int_equal (res.indexed + res.linked + res.read, 0);
  assert_true (res.known >= p.nr + 20);
  assert_true (w->reads - before < p.nr);
  free_world (w);
}

/* A step meets clusters that the step before has anchored. */
static void
indexing_in_small_steps_misses_nothing (void **state)
{
  struct world *w = new_world ();
  struct dedup_existing res;
  struct packed p;

  pack (w, &p, 1, 20);
  put_all (w, 0, &p);
  res = index_in_steps (w, 1);
  assert_int_equal (res.indexed, p.nr);
  free_world (w);
}

static void
equal_compressed_data_is_shared (void **state)
{
  struct world *w = new_world ();
  struct dedup_existing res;
  struct packed p, q;
  unsigned i;

  pack (w, &p, 1, 10);
  pack (w, &q, 6, 10);          /* 6 to 10 twice */
  put_all (w, 0, &p);
  put_all (w, 10, &q);
  write_id (w, 30, 15);         /* plain, and compressed */
  res = index_all (w);
  assert_int_equal (res.indexed, 14);
  assert_int_equal (res.linked, 6);
  for (i = 0; i < 5; i++)
    assert_int_equal (get_entry (w->pool, 10 + i), p.entries[5 + i]);
  assert_int_equal (get_entry (w->pool, 19), get_entry (w->pool, 30));
  free_world (w);
}

/* Returns whether no guest cluster refers to the packed data, and its clusters are
 * free. */
static bool
is_gone (struct world *w, const struct packed *p)
{
  unsigned i;

  for (i = 0; i < p->count; i++)
    if (get_refcount (w->pool, p->first + i, NULL) != 0)
      return false;
  return true;
}

static void
a_host_cluster_is_freed_with_the_last_data_in_it (void **state)
{
  struct world *w = new_world ();
  struct packed p;
  unsigned i;

  pack (w, &p, 1, 16);
  put_all (w, 0, &p);
  index_all (w);
  for (i = 0; i < p.nr; i++)
    write_id (w, 100 + i, p.ids[i]);
  for (i = 0; i < p.nr; i++) {
    unmap (w, i, 1);
    assert_contents (w);
  }
  for (i = 0; i < p.count; i++)
    assert_counted (w, p.first + i);
  for (i = 0; i < p.nr; i++) {
    assert_false (is_gone (w, &p));
    write_id (w, 100 + i, 1000 + i);
    assert_contents (w);
  }
  assert_true (is_gone (w, &p));
  crash (w);
  assert_true (is_gone (w, &p));
  free_world (w);
}

/* --- Entries that are out of date ------------------------------------------------- */

static void
dead_data_in_a_live_cluster_is_used_again (void **state)
{
  struct world *w = new_world ();
  struct packed p;

  pack (w, &p, 1, 3);
  assert_int_equal (p.count, 2);
  put_all (w, 0, &p);
  index_all (w);
  unmap (w, 0, 1);
  write_id (w, 5, 1);           /* its bytes are still there */
  assert_int_equal (get_entry (w->pool, 5), p.entries[0]);
  assert_counted (w, p.first);
  free_world (w);
}

/* Drops the packed data, and makes its clusters usable. */
static void
drop_all (struct world *w, unsigned g, const struct packed *p)
{
  unmap (w, g, p->nr);
  assert_true (is_gone (w, p));
  reopen (w);
}

static void
freed_data_is_stored_again (void **state)
{
  struct world *w = new_world ();
  struct packed p;
  unsigned i;

  pack (w, &p, 1, 12);
  put_all (w, 0, &p);
  index_all (w);
  drop_all (w, 0, &p);
  for (i = 0; i < p.nr; i++) {
    write_id (w, i, p.ids[i]);
    assert_false (get_entry (w->pool, i) & QCOW2_L2_COMPRESSED);
  }
  free_world (w);
}

/* Finds a content whose compressed bytes have the length in sectors of those of ID. */
static uint64_t
as_long_as (uint64_t id)
{
  uint8_t buf[CLUSTER];
  const size_t sectors = (deflate_id (buf, CLUSTER, id) - 1) / 512;
  uint64_t other = id;

  do
    other += 1000;
  while ((deflate_id (buf, CLUSTER, other) - 1) / 512 != sectors);
  return other;
}

/* Another program uses the clusters again, with descriptors that the index has for
 * other data.  If VERIFY is off the index is exact. */
static void
used_again (bool verify)
{
  struct world *w = new_world_at (4, verify);
  struct packed p, q;

  pack (w, &p, 1, 1);
  put_all (w, 0, &p);
  index_all (w);
  drop_all (w, 0, &p);
  pack_at (w, &q, as_long_as (1), 1, p.first);
  assert_int_equal (q.entries[0], p.entries[0]);
  put_all (w, 0, &q);
  index_all (w);
  lock_acquire (w->pool->base.lock);
  assert_true (verify || dedup_index_exact_locked (w->pool->store.index));
  lock_release (w->pool->base.lock);
  write_id (w, 200, p.ids[0]);
  assert_false (get_entry (w->pool, 200) & QCOW2_L2_COMPRESSED);
  write_id (w, 300, q.ids[0]);
  assert_int_equal (get_entry (w->pool, 300), q.entries[0]);
  free_world (w);
}

static void
data_of_a_descriptor_that_was_used_again_is_compared (void **state)
{
  used_again (true);
  used_again (false);
}

/* --- Merges ---------------------------------------------------------------------- */

/* Writes new data to guest clusters from 500 on, freezes and merges. */
static void
churn (struct world *w, unsigned nr_writes)
{
  static uint64_t last_id = 100000;
  const unsigned jobs = DEDUP_JOB_COMMIT | DEDUP_JOB_CHECKPOINT |
    DEDUP_JOB_FREEZE | DEDUP_JOB_JOURNAL | DEDUP_JOB_FILTERS |
    DEDUP_JOB_MERGE | DEDUP_JOB_MERGE_IDLE;
  unsigned due, i;

  for (i = 0; i < nr_writes; i++) {
    write_id (w, 500 + i % 400, ++last_id);
    if (i % 64 != 0 && i != nr_writes - 1)
      continue;
    assert_int_equal (dedup_flush (w->pool), 0);
    while ((due = dedup_due (w->pool, NULL) &
            (jobs & ~DEDUP_JOB_COMMIT)) != 0)
      assert_int_equal (dedup_run (w->pool, due & -due), 0);
    assert_int_equal (dedup_run (w->pool, DEDUP_JOB_COMMIT), 0);
  }
}

static uint64_t
named_for (struct world *w, uint64_t id)
{
  uint8_t buf[CLUSTER];
  struct dedup_hash h;

  fill_third_random (buf, CLUSTER, id);
  assert_int_equal (dedup_hash_compute (&w->pool->base.hasher, buf, CLUSTER, &h),
                    0);
  return dedup_named_for (&w->pool->writer, &h);
}

/* Data whose entry was replaced by one that leads elsewhere is looked at again. */
static void
replaced_entries_do_not_make_data_known (void **state)
{
  struct world *w = new_world ();
  struct dedup_existing res;
  struct dedup_hash h;
  struct packed p;
  uint8_t buf[CLUSTER];
  uint64_t other;

  pack (w, &p, 1, 20);
  put_all (w, 0, &p);
  (void) index_all (w);
  churn (w, 300);               /* its entries are in a table */
  write_id (w, 450, 9999);
  reopen (w);
  fill_third_random (buf, CLUSTER, p.ids[3]);
  assert_int_equal (dedup_hash_compute (&w->pool->base.hasher, buf, CLUSTER, &h), 0);
  other = (get_entry (w->pool, 450) & QCOW2_OFFSET_MASK) / CLUSTER;
  lock_acquire (w->pool->base.lock);
  dedup_index_insert_locked (w->pool->store.index, &h, other);
  lock_release (w->pool->base.lock);
  res = index_all (w);
  assert_int_equal (res.read, 1);
  assert_int_equal (res.indexed, 1);
  free_world (w);
}

/* The second half is entered long after the first, for the same host clusters. */
static void
merges_keep_live_entries_and_drop_dead_ones (void **state)
{
  struct world *w = new_world ();
  struct packed p;
  unsigned i;

  pack (w, &p, 1, 8);
  for (i = 0; i < 4; i++) {
    put (w, i * 2, p.entries[i * 2]);
    w->ids[i * 2] = p.ids[i * 2];
  }
  index_all (w);
  churn (w, 3000);
  for (i = 0; i < 4; i++) {
    put (w, i * 2 + 1, p.entries[i * 2 + 1]);
    w->ids[i * 2 + 1] = p.ids[i * 2 + 1];
  }
  index_all (w);
  churn (w, 3000);
  for (i = 0; i < p.nr; i++)
    assert_int_equal (named_for (w, p.ids[i]), p.entries[i]);
  drop_all (w, 0, &p);
  churn (w, 3000);
  for (i = 0; i < p.nr; i++)
    assert_int_equal (named_for (w, p.ids[i]), 0);
  free_world (w);
}

/* --- Rot ------------------------------------------------------------------------- */

static void
rotten_data_is_not_linked (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_memory m;
  struct packed p;
  uint8_t zero[64] = { 0 }, bad[64];
  uint64_t off;
  unsigned i;

  pack (w, &p, 1, 8);
  put_all (w, 0, &p);
  index_all (w);
  off = p.entries[5] & ((UINT64_C (1) << SECTORS_AT) - 1);
  assert_int_equal (io_pwrite (w->io, zero, sizeof zero,
                               p.first * CLUSTER + 100), 0);
  memset (bad, 0xff, sizeof bad);               /* no deflate stream */
  assert_int_equal (io_pwrite (w->io, bad, sizeof bad, off), 0);
  for (i = 0; i < 2; i++) {
    write_id (w, 50 + i, p.ids[i * 5]);
    assert_false (get_entry (w->pool, 50 + i) & QCOW2_L2_COMPRESSED);
  }
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.bad, 0);
  unmap (w, 0, 1);
  unmap (w, 5, 1);
  free_world (w);
}

/* It could be healed with other bytes than those that were compared. */
static void
a_bad_cluster_gets_no_links (void **state)
{
  struct world *w = new_world ();
  struct dedup_bad_cluster c = { .flags = DEDUP_BAD_SURE };
  struct packed p;
  unsigned i;

  pack (w, &p, 1, 8);
  put_all (w, 0, &p);
  index_all (w);
  c.host_idx = p.first + 1;
  lock_acquire (w->pool->base.lock);
  assert_true (dedup_bad_add_locked (&w->pool->store.bad, &c));
  lock_release (w->pool->base.lock);
  for (i = 0; i < p.nr; i++) {
    uint64_t first, count;

    write_id (w, 50 + i, p.ids[i]);
    qcow2_entry_clusters (w->pool->base.img, p.entries[i], &first, &count);
    assert_int_equal (get_entry (w->pool, 50 + i) == p.entries[i],
                      p.first + 1 - first >= count);
  }
  lock_acquire (w->pool->base.lock);
  (void) dedup_bad_remove_locked (&w->pool->store.bad, c.host_idx, 1);
  lock_release (w->pool->base.lock);
  free_world (w);
}

struct found {
  bool places[NR];              /* guest clusters */
  unsigned nr, twice, nowhere;
};

static void
found_cb (void *opaque, const struct dedup_scrub_finding *f)
{
  struct found *x = opaque;
  const uint64_t g = f->guest_off / CLUSTER;

  x->nowhere += f->disk == NULL;
  if (f->disk == NULL)
    return;
  assert_true (g < NR && f->guest_off % CLUSTER == 0);
  assert_int_equal (f->len, CLUSTER);
  x->twice += x->places[g];
  x->places[g] = true;
  x->nr++;
}

static struct dedup_scrub *
begin_scrub (struct world *w, struct found *x, unsigned window)
{
  const struct dedup_scrub_params p = {
    .restart = true, .found = found_cb, .opaque = x, .window_clusters = window,
    .max_packed = window,
  };
  struct dedup_scrub *sc;

  memset (x, 0, sizeof *x);
  assert_int_equal (dedup_flush (w->pool), 0);
  assert_int_equal (dedup_scrub_begin (w->pool, &p, &sc), 0);
  return sc;
}

/* Scrubs in windows of WINDOW clusters, or a large one; returns how much was called
 * bad. */
static uint64_t
scrub_places (struct world *w, struct dedup_scrub_figures *f, struct found *x,
              unsigned window)
{
  struct dedup_scrub *sc = begin_scrub (w, x, window);
  int r;

  while ((r = dedup_scrub_step (sc)) == 1)
    ;
  assert_int_equal (r, 0);
  dedup_scrub_figures (sc, f);
  dedup_scrub_end (sc);
  return f->different + f->unreadable + f->doubtful;
}

static uint64_t
scrub (struct world *w, struct dedup_scrub_figures *f)
{
  struct found x;

  return scrub_places (w, f, &x, 0);
}

/* The index names the clusters for plain data that they had before. */
static void
a_scrub_does_not_judge_clusters_of_compressed_data (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  struct packed p;
  uint64_t first;
  unsigned i;

  for (i = 0; i < 12; i++)
    write_id (w, i, 500 + i);
  first = get_entry (w->pool, 4) / CLUSTER;
  assert_int_equal (get_entry (w->pool, 11) / CLUSTER, first + 7);
  unmap (w, 0, 12);
  reopen (w);
  pack_at (w, &p, 1, 8, first);
  put_all (w, 0, &p);
  index_all (w);
  assert_int_equal (scrub (w, &f), 0);
  assert_true (f.unknown >= p.count);
  free_world (w);
}

/* Fills guest clusters from 0 on with packed data, some of it twice, and plain data. */
static void
fill_disk (struct world *w, struct packed *p)
{
  unsigned i;

  pack (w, p, 1, 40);
  put_all (w, 0, p);
  index_all (w);
  for (i = 0; i < 10; i++)
    write_id (w, 50 + i, p->ids[4 * i]);
  for (i = 0; i < 20; i++)
    write_id (w, 70 + i, 9000 + i);
}

static void
a_scrub_expands_compressed_data (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  struct packed p, q;
  struct found x;
  unsigned window;

  fill_disk (w, &p);
  pack (w, &q, 500, 5);         /* nobody indexes it */
  put_all (w, 200, &q);
  for (window = 0; window < 12; window++) {
    assert_int_equal (scrub_places (w, &f, &x, window), 0);
    assert_int_equal (f.packed_good, p.nr);
    assert_int_equal (f.packed_unknown, q.nr);
    assert_int_equal (f.changed, 0);
    assert_int_equal (f.good, 20);
  }
  free_world (w);
}

/* Kinds of rot. */
enum rot { ROT_BIT, ROT_ZEROES, ROT_ONES, ROT_OTHER_DATA, ROT_SECTOR, NR_ROTS };

static uint64_t
offset_of (uint64_t entry)
{
  return entry & ((UINT64_C (1) << SECTORS_AT) - 1);
}

/* Lets piece I of the packed data rot; the result need not differ. */
static void
let_rot (struct world *w, const struct packed *p, unsigned i, enum rot kind,
         uint64_t *rng)
{
  uint8_t old[CLUSTER], buf[CLUSTER];
  const uint64_t off = offset_of (p->entries[i]);
  const size_t len = deflate_id (buf, CLUSTER, p->ids[i]);
  size_t at = splitmix64 (rng) % len, n;

  assert_int_equal (io_pread (w->memory, old, len, off), 0);
  memcpy (buf, old, len);
  switch (kind) {
  case ROT_BIT: buf[at] ^= 1 << (*rng & 7); break;
  case ROT_ZEROES: memset (buf + at, 0, len - at); break;
  case ROT_ONES: memset (buf, 0xff, len); break;
  case ROT_OTHER_DATA:          /* it expands */
    n = deflate_id (buf, CLUSTER, p->ids[i] + 7000);
    memcpy (buf + MIN_OF (n, len), old + MIN_OF (n, len),
            len - MIN_OF (n, len));
    break;
  case ROT_SECTOR:
    n = (off + at) / 512 * 512;
    n = MAX_OF (n, off) - off;
    memset (buf + n, 0x55, MIN_OF (512, len - n));
    break;
  case NR_ROTS: break;
  }
  assert_int_equal (io_pwrite (w->memory, buf, len, off), 0);
}

/* Returns whether an entry leads to the content ID, by zlib alone. */
static bool
expands_to (struct world *w, uint64_t entry, uint64_t id)
{
  uint8_t in[2 * CLUSTER], got[CLUSTER], want[CLUSTER];
  const uint64_t off = offset_of (entry);
  z_stream s = { 0 };

  assert_int_equal (io_pread (w->memory, in, sizeof in, off), 0);
  assert_int_equal (inflateInit2 (&s, -15), Z_OK);
  s.next_in = in;
  s.avail_in = (unsigned) (((entry >> SECTORS_AT & 15) + 1) * 512 - off % 512);
  s.next_out = got;
  s.avail_out = CLUSTER;
  (void) inflate (&s, Z_FINISH);
  inflateEnd (&s);
  fill_third_random (want, CLUSTER, id);
  return s.avail_out == 0 && memcmp (got, want, CLUSTER) == 0;
}

static void
check_places (struct world *w, const struct packed *p, const struct found *x,
              const struct dedup_scrub_figures *f)
{
  unsigned g, i, nr = 0;
  uint64_t different = 0;
  bool bad;

  for (i = 0; i < p->nr; i++)
    different += !expands_to (w, p->entries[i], p->ids[i]);
  for (g = 0; g < NR; g++) {
    bad = (get_entry (w->pool, g) & QCOW2_L2_COMPRESSED) &&
      !expands_to (w, get_entry (w->pool, g), w->ids[g]);
    nr += bad;
    if (x->places[g] != bad)
      fail_msg ("guest cluster %u is %s", g, bad ? "bad" : "good");
  }
  assert_int_equal (x->nr, nr);
  assert_int_equal (x->twice + x->nowhere, 0);
  assert_int_equal (f->different, different);
  assert_int_equal (f->packed_good, p->nr - different);
}

static void
a_scrub_finds_all_rot_of_compressed_data (void **state)
{
  struct dedup_scrub_figures f;
  uint64_t rng = 1, round, found = 0;
  struct packed p;
  struct found x;
  struct world *w;
  unsigned i;

  for (round = 0; round < 40; round++) {
    w = new_world ();
    fill_disk (w, &p);
    for (i = 0; i < 4; i++)
      let_rot (w, &p, splitmix64 (&rng) % p.nr, round % NR_ROTS, &rng);
    (void) scrub_places (w, &f, &x, round % 4 == 0 ? 0 : 1 + round % 9);
    check_places (w, &p, &x, &f);
    assert_int_equal (f.doubtful + f.changed + f.unreadable, 0);
    found += f.different;
    if (round % 3 == 0) {       /* as after a crash, too */
      dedup_free (w->pool);
      open_image (w);
      (void) scrub_places (w, &f, &x, 0);
      check_places (w, &p, &x, &f);
    }
    unmap (w, 0, 70);
    free_world (w);
  }
  assert_true (found > 100);
}

/* A medium that fails is found as before, with each guest cluster that needs it. */
static void
a_cluster_of_compressed_data_that_cannot_be_read (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  uint64_t first, count;
  struct packed p;
  struct found x;
  unsigned g;

  fill_disk (w, &p);
  w->fail_at = p.first + 2;
  assert_int_equal (scrub_places (w, &f, &x, 0), 1);
  assert_int_equal (f.unreadable, 1);
  for (g = 0; g < NR; g++) {
    qcow2_entry_clusters (w->pool->base.img, get_entry (w->pool, g), &first, &count);
    assert_int_equal (x.places[g], w->fail_at - first < count);
  }
  assert_int_equal (x.twice + x.nowhere, 0);
  assert_true (x.nr >= 3);
  w->fail_at = 0;
  free_world (w);
}

/* What is bad gets no new links, and neither does what touches its clusters; it stays
 * known, and is so no longer when its clusters are free. */
static void
bad_compressed_data_gets_no_links (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  struct dedup_scrub_memory m;
  uint64_t rng = 1, bad_first, bad_count, first, count;
  struct packed p;
  struct found x;
  unsigned i;

  pack (w, &p, 1, 12);
  put_all (w, 0, &p);
  index_all (w);
  let_rot (w, &p, 5, ROT_OTHER_DATA, &rng);
  assert_int_equal (scrub_places (w, &f, &x, 0), 1);
  qcow2_entry_clusters (w->pool->base.img, p.entries[5], &bad_first, &bad_count);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.bad, bad_count);
  close_image (w);
  open_image (w);
  assert_int_equal (scrub_places (w, &f, &x, 0), 1);
  for (i = 0; i < p.nr; i++) {
    write_id (w, 50 + i, p.ids[i]);
    qcow2_entry_clusters (w->pool->base.img, p.entries[i], &first, &count);
    assert_int_equal (get_entry (w->pool, 50 + i) == p.entries[i],
                      first >= bad_first + bad_count ||
                      first + count <= bad_first);
  }
  unmap (w, 0, p.nr);
  for (i = 0; i < 3; i++)       /* the first makes the drops durable */
    assert_int_equal (dedup_run (w->pool, DEDUP_JOB_COMMIT), 0);
  dedup_scrub_remembered (w->pool, &m);
  assert_int_equal (m.bad, 0);
  free_world (w);
}

/* Nobody reads the data of a descriptor that no disk has. */
static void
dead_data_may_rot (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  uint64_t rng = 1;
  struct packed p;
  struct found x;

  fill_disk (w, &p);
  unmap (w, 7, 1);              /* 7 is there once */
  let_rot (w, &p, 7, ROT_OTHER_DATA, &rng);
  assert_int_equal (scrub_places (w, &f, &x, 0), 0);
  assert_int_equal (f.packed_good, p.nr - 1);
  free_world (w);
}

/* Another program has used the clusters again, with the same descriptors and other
 * data, of which one piece only is indexed: the entry of the other one is out of
 * date. */
static void
an_entry_of_an_earlier_life_accuses_nobody (void **state)
{
  struct world *w = new_world ();
  struct dedup_existing res = { 0 };
  struct dedup_scrub_figures f;
  const uint64_t ids[4] = { 1, 2, as_long_as (1), as_long_as (2) };
  uint64_t at, entries[2];
  uint8_t buf[CLUSTER];
  struct found x;
  unsigned i;
  size_t len;

  lock_acquire (w->pool->base.lock);
  assert_int_equal (qcow2_reserve_area_locked (w->pool->base.img, 1, &at), 0);
  lock_release (w->pool->base.lock);
  for (i = 0; i < 4; i++) {
    if (i == 2) {
      index_all (w);
      assert_int_equal (scrub_places (w, &f, &x, 0), 0);
      assert_int_equal (f.packed_good, 2);
      unmap (w, 0, 2);
      reopen (w);
    }
    len = deflate_id (buf, CLUSTER, ids[i]);
    assert_int_equal (io_pwrite (w->io, buf, len,
                                 at * CLUSTER + i % 2 * 2048), 0);
    entries[i % 2] = descriptor (at * CLUSTER + i % 2 * 2048, len);
    put (w, i % 2, entries[i % 2]);
    w->ids[i % 2] = ids[i];
  }
  assert_int_equal (scrub_places (w, &f, &x, 0), 0);
  assert_int_equal (f.packed_good, 0);          /* nothing is known of it */
  assert_int_equal (f.packed_unknown, 2);
  assert_int_equal (dedup_existing_index (w->pool, 0, 1, false, &res), 0);
  assert_int_equal (res.indexed, 1);
  assert_int_equal (scrub_places (w, &f, &x, 0), 0);
  assert_int_equal (f.packed_good, 1);
  assert_int_equal (f.packed_unknown, 1);
  index_all (w);
  assert_int_equal (scrub_places (w, &f, &x, 0), 0);
  assert_int_equal (f.packed_good, 2);
  free_world (w);
}

/* Lets the clusters of the packed data, one piece, be freed and filled again, with
 * other data and the same descriptor. */
static void
use_again (struct world *w, const struct packed *p)
{
  struct packed q;
  unsigned i;

  for (i = 0; i < 3; i++)
    assert_int_equal (dedup_run (w->pool, DEDUP_JOB_COMMIT), 0);
  assert_true (is_gone (w, p));
  pack_at (w, &q, as_long_as (p->ids[0]), 1, p->first);
  assert_int_equal (q.entries[0], p->entries[0]);
  put_all (w, 0, &q);
  index_all (w);
}

/* Scrubs rotten data that is dropped, and perhaps used again, after STOP steps.
 * Returns whether the scrub was over before. */
static bool
scrub_and_drop (unsigned stop, bool again)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  struct dedup_scrub *sc;
  uint64_t rng = 1;
  unsigned i, nr;
  struct packed p;
  struct found x;
  bool over;
  int r = 1;

  pack (w, &p, 1, 1);
  put_all (w, 0, &p);
  index_all (w);
  let_rot (w, &p, 0, ROT_OTHER_DATA, &rng);
  sc = begin_scrub (w, &x, 0);
  for (i = 0; i < stop && r == 1; i++)
    r = dedup_scrub_step (sc);
  over = r == 0;
  nr = x.nr;
  unmap (w, 0, 1);
  if (again)
    use_again (w, &p);
  while (r == 1)
    r = dedup_scrub_step (sc);
  assert_int_equal (r, 0);
  dedup_scrub_figures (sc, &f);
  dedup_scrub_end (sc);
  assert_int_equal (x.nr, nr);
  assert_int_equal (f.different, nr);
  assert_int_equal (x.nowhere + f.unreadable + f.doubtful, 0);
  free_world (w);
  return over;
}

static void
what_was_dropped_meanwhile_is_not_bad (void **state)
{
  unsigned stop;

  for (stop = 0; !scrub_and_drop (stop, false); stop++)
    ;
  assert_true (stop > 10);
  for (stop = 0; !scrub_and_drop (stop, true); stop++)
    ;
}

/* Without a complete index a difference proves nothing; that data does not expand
 * does. */
static void
an_index_that_lost_entries_leaves_doubts (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  uint64_t rng = 1;
  struct packed p;
  struct found x;

  fill_disk (w, &p);
  let_rot (w, &p, 3, ROT_OTHER_DATA, &rng);
  let_rot (w, &p, 9, ROT_ONES, &rng);
  lock_acquire (w->pool->base.lock);
  dedup_index_incomplete_locked (w->pool->store.index);
  lock_release (w->pool->base.lock);
  (void) scrub_places (w, &f, &x, 0);
  assert_int_equal (f.doubtful, 1);
  assert_int_equal (f.different, 1);
  assert_true (x.places[9] && x.nr == 1);
  unmap (w, 0, 70);
  free_world (w);
}

/* Clients drop, link and overwrite data between the steps of scrubs. */
static void
a_scrub_beside_clients_finds_nothing (void **state)
{
  struct world *w = new_world ();
  struct dedup_scrub_figures f;
  uint64_t rng = 5, id = 200000, good = 0;
  struct dedup_scrub *sc;
  unsigned round, g, k;
  struct packed p;
  struct found x;
  int r;

  fill_disk (w, &p);
  for (round = 0; round < 12; round++) {
    sc = begin_scrub (w, &x, round % 3 ? 60 + 20 * round : 0);
    do {
      r = dedup_scrub_step (sc);
      for (k = 0; k < 3; k++) {
        g = splitmix64 (&rng) % 120;
        switch (splitmix64 (&rng) % 4) {
        case 0: unmap (w, g, 1); break;
        case 1: write_id (w, g, ++id); break;
        default: write_id (w, g, p.ids[splitmix64 (&rng) % p.nr]);
        }
      }
    } while (r == 1);
    assert_int_equal (r, 0);
    dedup_scrub_figures (sc, &f);
    dedup_scrub_end (sc);
    assert_int_equal (x.nr + x.nowhere, 0);
    assert_int_equal (f.different + f.unreadable + f.doubtful, 0);
    good += f.packed_good;
  }
  assert_true (good > 30);
  free_world (w);
}

/* --- Limits ---------------------------------------------------------------------- */

/* The refcounts have 4 bits, so a cluster is full at 7. */
static void
a_full_host_cluster_gets_no_more_references (void **state)
{
  struct world *w = new_world_at (2, true);
  struct packed p;
  unsigned i, k;

  pack (w, &p, 1, 10);
  put_all (w, 0, &p);
  index_all (w);
  for (k = 0; k < 6; k++)
    for (i = 0; i < p.nr; i++) {
      write_id (w, 100 + k * 20 + i, p.ids[i]);
      assert_true (get_refcount (w->pool, p.first, NULL) <= 8);
    }
  for (i = 0; i < p.count; i++)
    assert_counted (w, p.first + i);
  assert_int_equal (get_entry (w->pool, 100), p.entries[0]);
  assert_false (get_entry (w->pool, 200) & QCOW2_L2_COMPRESSED);
  free_world (w);
}

/* Returns the number of a content that lies in one host cluster, that behind FIRST
 * by N; or, with CROSSING, in two, from that on. */
static unsigned
some_packed (const struct packed *p, struct world *w, uint64_t n, bool crossing)
{
  uint64_t first, count;
  unsigned i;

  for (i = 0; i < p->nr; i++) {
    qcow2_entry_clusters (w->pool->base.img, p->entries[i], &first, &count);
    if (first == p->first + n && count == (crossing ? 2 : 1))
      return i;
  }
  fail ();
  return 0;
}

/* Only the second of the two clusters that some data touches is full. */
static void
the_second_of_two_clusters_may_be_the_full_one (void **state)
{
  struct world *w = new_world_at (2, true);
  uint8_t buf[5 * CLUSTER];
  unsigned i, whole, crossing;
  struct packed p;

  pack (w, &p, 1, 6);
  whole = some_packed (&p, w, 1, false);
  crossing = some_packed (&p, w, 0, true);
  put (w, 0, p.entries[whole]);
  put (w, 1, p.entries[crossing]);
  w->ids[0] = p.ids[whole];
  w->ids[1] = p.ids[crossing];
  index_all (w);
  for (i = 0; i < 3; i++)
    write_id (w, 100 + i, p.ids[whole]);
  assert_int_equal (get_refcount (w->pool, p.first + 1, NULL), 6);
  for (i = 0; i < 5; i++) {     /* two links would be too many */
    fill_third_random (buf + i * CLUSTER, CLUSTER, p.ids[crossing]);
    w->ids[300 + i] = p.ids[crossing];
  }
  assert_int_equal (dedup_write (w->pool, 0, buf, 300, 5), 0);
  assert_true (get_refcount (w->pool, p.first + 1, NULL) <= 7);
  unmap (w, 300, 5);
  for (i = 0; i < 10; i++)
    write_id (w, 100 + i, p.ids[whole]);
  assert_int_equal (get_refcount (w->pool, p.first + 1, NULL), 7);
  assert_int_equal (get_refcount (w->pool, p.first, NULL), 2);
  write_id (w, 200, p.ids[crossing]);
  assert_false (get_entry (w->pool, 200) & QCOW2_L2_COMPRESSED);
  assert_int_equal (get_refcount (w->pool, p.first + 1, NULL), 7);
  free_world (w);
}

/* One operation with many links to data in one host cluster. */
static void
links_of_one_operation_are_counted_together (void **state)
{
  struct world *w = new_world_at (2, true);
  uint8_t *buf = calloc (60, CLUSTER);
  struct packed p;
  unsigned i;

  pack (w, &p, 1, 3);
  put_all (w, 0, &p);
  index_all (w);
  for (i = 0; i < 60; i++) {
    w->ids[100 + i] = p.ids[i % 3];
    fill_third_random (buf + i * CLUSTER, CLUSTER, p.ids[i % 3]);
  }
  assert_int_equal (dedup_write (w->pool, 0, buf, 100, 60), 0);
  for (i = 0; i < p.count; i++)
    assert_counted (w, p.first + i);
  assert_true (get_refcount (w->pool, p.first, NULL) <= 8);
  free (buf);
  free_world (w);
}

/* --- Descriptors that contradict the image --------------------------------------- */

static void
wrong_descriptors_are_left_alone (void **state)
{
  struct world *w = new_world ();
  struct dedup_existing res;
  struct qcow2_extent e;
  uint64_t frontier, table, refcount, wrong[7];
  unsigned i, nr = 0;
  struct packed p;

  write_id (w, 0, 77);
  pack (w, &p, 1, 4);
  put_all (w, 4, &p);
  assert_int_equal (qcow2_map (w->pool->base.img, 0, 0, CLUSTER, &e, 1), 1);
  lock_acquire (w->pool->base.lock);
  frontier = qcow2_frontier_locked (w->pool->base.img);
  table = qcow2_next_guarded_locked (w->pool->base.img, 1);
  lock_release (w->pool->base.lock);
  refcount = get_refcount (w->pool, table, NULL);
  wrong[nr++] = descriptor (table * CLUSTER + 8, 100);          /* a table */
  wrong[nr++] = descriptor (table * CLUSTER - 200, 400);        /* into it */
  wrong[nr++] = descriptor ((frontier + 3) * CLUSTER, 100);     /* past the end */
  wrong[nr++] = descriptor (frontier * CLUSTER - 200, 400);     /* across it */
  wrong[nr++] = p.entries[3] | UINT64_C (15) << SECTORS_AT;     /* overlong: to
                                                                 * what is free */
  for (i = 0; i < nr; i++)
    put_as (w, (struct put) { .g = 20 + i, .entry = wrong[i] });
  res = index_all (w);
  assert_int_equal (res.bad, nr);
  assert_int_equal (res.indexed, p.nr);
  for (i = 0; i < nr; i++)
    assert_int_equal (get_entry (w->pool, 20 + i), wrong[i]);
  assert_int_equal (get_refcount (w->pool, table, NULL), refcount);
  assert_int_equal (get_refcount (w->pool, frontier, NULL), 0);
  for (i = 0; i < nr; i++)      /* a check would find them */
    put_as (w, (struct put) { .g = 20 + i });
  free_world (w);
}

/* A compressed entry that leads to the store, where there are bytes that expand, and
 * which is counted. */
static void
the_store_is_not_taken_for_data (void **state)
{
  struct world *w = new_world ();
  const struct dedup_journal_area *a = &w->pool->store.config->areas[0];
  const uint64_t off = a->host_off + (a->nr_blocks - 1) * UINT64_C (4096);
  uint8_t in[CLUSTER];
  const size_t len = deflate_id (in, CLUSTER, 9);
  const uint64_t entry = descriptor (off, len);
  struct dedup_existing res;

  assert_int_equal (io_pwrite (w->io, in, len, off), 0);
  put (w, 7, entry);
  w->ids[7] = 9;
  assert_contents (w);
  res = index_all (w);
  assert_int_equal (res.bad, 1);
  assert_int_equal (res.indexed, 0);
  write_id (w, 8, 9);
  assert_false (get_entry (w->pool, 8) & QCOW2_L2_COMPRESSED);
  put_as (w, (struct put) { .g = 7, .counted = entry, .by = -1 });
  w->ids[7] = 0;
  free_world (w);
}

/* A stream that expands to far more than a cluster counts as its first cluster. */
static void
an_expansion_ends_with_the_cluster (void **state)
{
  struct world *w = new_world ();
  const size_t plain = 16 << 20;
  uint8_t *in = malloc (plain), *out = calloc (1, 8 * CLUSTER);
  struct dedup_existing res;
  uint64_t at, entry;
  z_stream s = { 0 };
  size_t i;

  for (i = 0; i < plain; i += CLUSTER)
    fill_third_random (in + i, CLUSTER, 5);
  assert_int_equal (deflateInit2 (&s, 9, Z_DEFLATED, -15, 9,
                                  Z_DEFAULT_STRATEGY), Z_OK);
  s.next_in = in;
  s.avail_in = (unsigned) plain;
  s.next_out = out;
  s.avail_out = 2 * CLUSTER;
  (void) deflate (&s, Z_FINISH);
  deflateEnd (&s);
  lock_acquire (w->pool->base.lock);
  assert_int_equal (qcow2_reserve_area_locked (w->pool->base.img, 2, &at), 0);
  lock_release (w->pool->base.lock);
  assert_int_equal (io_pwrite (w->io, out, 2 * CLUSTER, at * CLUSTER), 0);
  entry = descriptor (at * CLUSTER, 2 * CLUSTER);
  put (w, 3, entry);
  w->ids[3] = 5;
  res = index_all (w);
  assert_int_equal (res.indexed, 1);
  write_id (w, 8, 5);
  assert_int_equal (get_entry (w->pool, 8), entry);
  assert_counted (w, at);
  assert_counted (w, at + 1);
  free (in);
  free (out);
  free_world (w);
}

/* --- What is kept expanded --------------------------------------------------------- */

/* Reads 16 pieces of a guest cluster; returns how often the file was read. */
static uint64_t
read_pieces (struct world *w, unsigned g)
{
  uint8_t got[CLUSTER], want[CLUSTER];
  const uint64_t before = w->reads;
  unsigned i;

  for (i = 0; i < 16; i++) {
    const unsigned at = (i + 5) % 16 * 256;

    assert_int_equal (dedup_read (w->pool, 0, got + at, g * CLUSTER + at, 256),
                      0);
  }
  fill_third_random (want, CLUSTER, w->ids[g]);
  assert_memory_equal (got, want, CLUSTER);
  return w->reads - before;
}

static void
pieces_of_a_cluster_expand_it_once (void **state)
{
  struct world *w = new_world ();
  struct packed p;
  uint64_t before;
  unsigned i;

  pack (w, &p, 1, 60);
  put_all (w, 0, &p);
  for (i = 0; i < p.nr; i++) {
    before = w->reads;
    assert_int_equal (read_pieces (w, i), 1);
    assert_int_equal (read_pieces (w, i), 0);
    assert_int_equal (w->reads - before, 1);
  }
  index_all (w);
  before = w->reads;
  for (i = 0; i < 20; i++)      /* a write compares with what is kept */
    write_id (w, 300 + i, p.ids[40]);
  assert_true (w->reads - before <= 1);
  free_world (w);
}

/* Other data comes to the same descriptors: what is kept must not be shown for it, nor
 * for the rest of a cluster that crosses into a freed one. */
static void
what_is_kept_goes_with_its_clusters (void **state)
{
  struct world *w = new_world ();
  struct packed p, q;
  unsigned round;

  pack (w, &p, 1, 1);
  for (round = 0; round < 5; round++) {
    put_all (w, 0, &p);
    read_pieces (w, 0);
    unmap (w, 0, 1);
    assert_true (is_gone (w, &p));
    pack_at (w, &q, as_long_as (p.ids[0]), 1, p.first);
    assert_int_equal (q.entries[0], p.entries[0]);
    p = q;
  }
  put_all (w, 0, &p);
  assert_int_equal (read_pieces (w, 0), 1);
  /* Written in place, as a bad cluster is when it is healed. */
  pack_at (w, &q, as_long_as (p.ids[0]), 1, p.first);
  w->ids[0] = q.ids[0];
  qcow2_expanded_forget (w->pool->base.img, p.first + 1, 1000);
  qcow2_expanded_forget (w->pool->base.img, p.first - 1, 1);
  qcow2_expanded_forget (w->pool->base.img, p.first, 1);
  assert_int_equal (read_pieces (w, 0), 1);
  free_world (w);
}

static void
what_is_kept_is_bounded (void **state)
{
  struct world *w = new_world ();
  struct packed p;
  unsigned k, i;

  for (k = 0; k < 4; k++) {
    pack (w, &p, 1 + k * 60, 60);
    put_all (w, k * 60, &p);
  }
  assert_int_equal (qcow2_expanded_bytes (w->pool->base.img), 0);
  for (i = 0; i < 240; i++)
    read_pieces (w, i);
  assert_int_equal (qcow2_expanded_bytes (w->pool->base.img),
                    QCOW2_MAX_EXPANDED * CLUSTER);
  for (i = 239; i >= 240 - QCOW2_MAX_EXPANDED; i--)    /* the youngest */
    assert_int_equal (read_pieces (w, i), 0);
  assert_int_equal (read_pieces (w, 0), 1);
  free_world (w);
}

/* --- Several at once ---------------------------------------------------------------- */

static void
assert_contents_at (struct world *w, unsigned g, unsigned nr, uint64_t most_reads)
{
  uint8_t *got = malloc (nr * CLUSTER), want[CLUSTER];
  const uint64_t before = w->reads;
  unsigned i;

  assert_int_equal (dedup_read (w->pool, 0, got, g * CLUSTER, nr * CLUSTER), 0);
  assert_in_range (w->reads - before, 1, most_reads);
  for (i = 0; i < nr; i++) {
    fill_third_random (want, CLUSTER, w->ids[g + i]);
    assert_memory_equal (got + i * CLUSTER, want, CLUSTER);
  }
  free (got);
}

/* Neighbours in the file are read with one call, for a client and for a comparison. */
static void
neighbours_are_read_together (void **state)
{
  struct world *w = new_world ();
  struct packed p;
  uint8_t *buf = malloc (60 * CLUSTER);
  uint64_t before;
  unsigned k, i;

  pack (w, &p, 1, 60);
  put_all (w, 0, &p);
  assert_contents_at (w, 0, 60, 1);
  index_all (w);
  before = w->reads;
  for (i = 0; i < 60; i++) {
    w->ids[400 + i] = p.ids[i];
    fill_third_random (buf + i * CLUSTER, CLUSTER, p.ids[i]);
  }
  assert_int_equal (dedup_write (w->pool, 0, buf, 400, 60), 0);
  assert_true (w->reads - before <= 4);
  for (i = 0; i < 60; i++)
    assert_int_equal (get_entry (w->pool, 400 + i), p.entries[i]);
  for (i = 0; i < 60; i++) {             /* in another order */
    put (w, 300 + i, p.entries[i * 17 % 60]);
    w->ids[300 + i] = p.ids[i * 17 % 60];
  }
  assert_contents_at (w, 300, 60, 60);
  for (k = 1; k < 4; k++) {
    pack (w, &p, 1 + k * 60, 60);
    put_all (w, k * 60, &p);
  }
  assert_contents_at (w, 0, 240, 12);    /* more than are read at a time */
  free (buf);
  free_world (w);
}

/* A bad sector between others harms only what lies in it. */
static void
a_bad_neighbour_harms_no_other (void **state)
{
  struct world *w = new_world ();
  struct qcow2_compressed_part v[60];
  struct packed p;
  uint8_t *got = malloc (60 * CLUSTER), want[CLUSTER];
  uint64_t first, count;
  unsigned i, bad = 0;

  pack (w, &p, 1, 60);
  put_all (w, 0, &p);
  for (i = 0; i < 60; i++)
    v[i] = (struct qcow2_compressed_part) { .entry = p.entries[i],
                                            .out = got + i * CLUSTER };
  w->fail_at = p.first + 3;
  assert_int_equal (qcow2_compressed_read_many (w->pool->base.img, v, 60), -EIO);
  w->fail_at = 0;
  for (i = 0; i < 60; i++) {
    qcow2_entry_clusters (w->pool->base.img, p.entries[i], &first, &count);
    if (p.first + 3 - first < count) {
      assert_int_equal (v[i].result, -EIO);
      bad++;
      continue;
    }
    assert_int_equal (v[i].result, 0);
    fill_third_random (want, CLUSTER, p.ids[i]);
    assert_memory_equal (v[i].out, want, CLUSTER);
  }
  assert_in_range (bad, 1, 10);
  free (got);
  free_world (w);
}

/* --- Holds ------------------------------------------------------------------------ */

static int
hold_locked (struct qcow2_txn *txn, void *opaque)
{
  const uint64_t *entry = opaque;

  return qcow2_hold_entry_locked (txn, *entry, UINT64_MAX);
}

static void
held_data_is_freed_with_its_hold (void **state)
{
  struct world *w = new_world ();
  struct dedup_gate *gate = &w->pool->store.gate;
  struct qcow2_txn txn;
  struct packed p;
  bool anchored;
  unsigned i;

  pack (w, &p, 1, 4);
  put_all (w, 0, &p);
  index_all (w);
  assert_int_equal (dedup_enter (gate), 0);
  qcow2_txn_begin (w->pool->base.img, &txn);
  for (i = 0; i < p.nr; i++)
    assert_int_equal (qcow2_txn_retry (&txn, hold_locked, &p.entries[i]), 0);
  unmap (w, 0, p.nr);
  for (i = 0; i < p.count; i++) {
    assert_int_equal (get_refcount (w->pool, p.first + i, &anchored), 1);
    assert_true (anchored);
  }
  write_id (w, 40, p.ids[0]);   /* links what is held */
  assert_int_equal (get_entry (w->pool, 40), p.entries[0]);
  unmap (w, 40, 1);
  lock_acquire (w->pool->base.lock);
  for (i = 0; i < p.nr; i++)
    qcow2_unhold_entry_locked (&txn, p.entries[i]);
  dedup_journal_end_locked (w->pool->store.journal);
  qcow2_txn_end_locked (&txn);
  lock_release (w->pool->base.lock);
  dedup_leave (gate);
  assert_true (is_gone (w, &p));
  free_world (w);
}

/* Of an entry that touches a cluster which can't be held, none is held. */
static void
an_entry_is_held_as_a_whole_or_not_at_all (void **state)
{
  struct world *w = new_world ();
  struct qcow2_txn txn;
  struct packed p;
  uint64_t wrong;
  unsigned i;

  pack (w, &p, 1, 6);
  put_all (w, 0, &p);
  index_all (w);
  wrong = descriptor ((p.first + p.count) * CLUSTER - 100, 200);
  qcow2_txn_begin (w->pool->base.img, &txn);
  assert_int_equal (qcow2_txn_retry (&txn, hold_locked, &wrong), -ENOENT);
  lock_acquire (w->pool->base.lock);
  for (i = 0; i <= p.count; i++)
    assert_false (qcow2_is_held_locked (w->pool->base.img, p.first + i));
  qcow2_txn_end_locked (&txn);
  lock_release (w->pool->base.lock);
  free_world (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (equal_data_links_compressed_data),
    cmocka_unit_test (replaced_entries_do_not_make_data_known),
    cmocka_unit_test (indexing_in_small_steps_misses_nothing),
    cmocka_unit_test (equal_compressed_data_is_shared),
    cmocka_unit_test (a_host_cluster_is_freed_with_the_last_data_in_it),
    cmocka_unit_test (dead_data_in_a_live_cluster_is_used_again),
    cmocka_unit_test (freed_data_is_stored_again),
    cmocka_unit_test (data_of_a_descriptor_that_was_used_again_is_compared),
    cmocka_unit_test (merges_keep_live_entries_and_drop_dead_ones),
    cmocka_unit_test (rotten_data_is_not_linked),
    cmocka_unit_test (a_bad_cluster_gets_no_links),
    cmocka_unit_test (a_scrub_does_not_judge_clusters_of_compressed_data),
    cmocka_unit_test (a_scrub_expands_compressed_data),
    cmocka_unit_test (a_scrub_finds_all_rot_of_compressed_data),
    cmocka_unit_test (a_cluster_of_compressed_data_that_cannot_be_read),
    cmocka_unit_test (bad_compressed_data_gets_no_links),
    cmocka_unit_test (dead_data_may_rot),
    cmocka_unit_test (an_entry_of_an_earlier_life_accuses_nobody),
    cmocka_unit_test (what_was_dropped_meanwhile_is_not_bad),
    cmocka_unit_test (an_index_that_lost_entries_leaves_doubts),
    cmocka_unit_test (a_scrub_beside_clients_finds_nothing),
    cmocka_unit_test (a_full_host_cluster_gets_no_more_references),
    cmocka_unit_test (the_second_of_two_clusters_may_be_the_full_one),
    cmocka_unit_test (links_of_one_operation_are_counted_together),
    cmocka_unit_test (wrong_descriptors_are_left_alone),
    cmocka_unit_test (the_store_is_not_taken_for_data),
    cmocka_unit_test (an_expansion_ends_with_the_cluster),
    cmocka_unit_test (pieces_of_a_cluster_expand_it_once),
    cmocka_unit_test (what_is_kept_goes_with_its_clusters),
    cmocka_unit_test (what_is_kept_is_bounded),
    cmocka_unit_test (neighbours_are_read_together),
    cmocka_unit_test (a_bad_neighbour_harms_no_other),
    cmocka_unit_test (held_data_is_freed_with_its_hold),
    cmocka_unit_test (an_entry_is_held_as_a_whole_or_not_at_all),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
