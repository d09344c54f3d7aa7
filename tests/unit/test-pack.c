/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that new data is compressed and packed into host clusters (docs/on-disk.md
 * 14.3): the encoder, the places that data gets, references to host clusters, the
 * records after a crash, and what becomes of clusters that are still appended to.
 *
 * On a byte store in memory.
 *
 * Breaks if: data does not read back; a host cluster is counted wrong, freed while data
 * in it is in use, or never; a block of the medium is written twice; stale data in a
 * cluster that is appended to is linked; or a crash loses what was flushed.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "checked.h"
#include "image.h"
#include "op.h"
#include "entries.h"
#include "pool.h"
#include "third-random.h"
#include "value.h"

#define CLUSTER 4096u
#define NR 1024u                /* guest clusters */
#define SECTOR 512u
#define MAX_SECTORS 65536u

struct world {
  struct io_store *memory, *io;
  struct dedup_pool *pool;
  enum dedup_compress compress;
  uint64_t ids[NR];             /* contents; 0: zeroes */
  bool watch;                   /* count writes of sectors in the open run, which are of
                                 * whole blocks */
  unsigned block;               /* bytes; 0: a sector */
  uint8_t writes[MAX_SECTORS];
  uint64_t fail_from;           /* writes from this byte of the file on find no space;
                                 * 0: none */
  uint64_t fail_until;          /* and before this one; 0: to the end */
  bool fail_reads;              /* behind the next write */
  void (*between) (struct world *w);    /* is called before such a read, once */
  unsigned written, syncs;      /* behind it: how many calls */
};

static int
see_call (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct world *w = opaque;
  const struct dedup_pack_run *run;
  uint64_t i;

  if (call == IO_PWRITE && w->fail_from && host_off >= w->fail_from &&
      (!w->fail_until || host_off < w->fail_until))
    return -ENOSPC;
  if (w->between && w->written && call == IO_PREAD) {
    void (*between) (struct world *w) = w->between;

    w->between = NULL;
    between (w);
  }
  if (w->fail_reads && w->written && call == IO_PREAD)
    return -EIO;
  w->written += call == IO_PWRITE;
  w->syncs += call == IO_SYNC;
  if (call != IO_PWRITE || !w->watch)
    return 0;
  run = w->pool->writer.pack.open;
  if (run == NULL || host_off < run->first * CLUSTER ||
      host_off >= (run->first + run->count) * CLUSTER)
    return 0;
  assert_int_equal (host_off % MAX_OF (w->block, SECTOR), 0);
  assert_int_equal (len % MAX_OF (w->block, SECTOR), 0);
  for (i = host_off / SECTOR; i < (host_off + len) / SECTOR; i++) {
    assert_true (i < MAX_SECTORS);
    w->writes[i]++;
  }
  return 0;
}

static int
try_open (struct world *w, bool writable, struct fault *f)
{
  const struct dedup_open_params p = {
    .path = "test", .writable = writable, .dedup = true, .verify = true,
    .compress = w->compress, .max_incarnations = -1, .cache_bytes = 1 << 20,
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
new_world_at (unsigned refcount_order, enum dedup_compress compress)
{
  struct dedup_create_params p = {
    .image = { .virtual_size = NR * CLUSTER, .cluster_bits = 12,
               .refcount_order = refcount_order },
    .order = 6, .journal_areas = 4, .compress = compress,
  };
  struct world *w = calloc (1, sizeof *w);
  struct fault f = { 0 };

  assert_non_null (w);
  assert_int_equal (io_memory_new (0, &w->memory), 0);
  assert_int_equal (io_faulty_new (w->memory, see_call, w, &w->io), 0);
  if (dedup_create (w->io, &p, &f) < 0)
    fail_msg ("create: %s", f.msg);
  open_image (w);
  return w;
}

static struct world *
new_world (void)
{
  return new_world_at (4, DEDUP_COMPRESS_ZSTD);
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

  w->watch = false;
  assert_int_equal (dedup_finish (w->pool), 0);
  dedup_free (w->pool);
  assert_int_equal (try_open (w, false, &f), 0);
  assert_int_equal (dedup_check (w->pool, &q, &r, &f), 0);
  assert_int_equal (r.image.corruptions, 0);
  assert_int_equal (r.image.leaks, 0);
  assert_int_equal (r.store_errors, 0);
  assert_contents (w);
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

static void
crash (struct world *w)
{
  dedup_free (w->pool);
  open_image (w);
}

static void
write_ids (struct world *w, unsigned g, const uint64_t *ids, unsigned nr)
{
  uint8_t *buf = malloc (nr * CLUSTER);
  unsigned i;

  for (i = 0; i < nr; i++)
    fill_third_random (buf + i * CLUSTER, CLUSTER, ids[i]);
  assert_int_equal (dedup_write (w->pool, 0, buf, g, nr), 0);
  memcpy (w->ids + g, ids, nr * sizeof *ids);
  free (buf);
}

/* Writes NR contents from FIRST_ID on. */
static void
write_new (struct world *w, unsigned g, uint64_t first_id, unsigned nr)
{
  uint64_t ids[NR];
  unsigned i;

  for (i = 0; i < nr; i++)
    ids[i] = first_id + i;
  write_ids (w, g, ids, nr);
}

static void
unmap (struct world *w, unsigned g, unsigned nr)
{
  assert_int_equal (dedup_unmap (w->pool, 0, g, nr, DEDUP_TRIM), 0);
  memset (w->ids + g, 0, nr * sizeof w->ids[0]);
}

/* --- Looking -------------------------------------------------------------------- */

static bool
is_packed (struct world *w, unsigned g)
{
  return (get_entry (w->pool, g) & (QCOW2_L2_COMPRESSED | QCOW2_L2_COPIED)) ==
    QCOW2_L2_COMPRESSED;
}

static uint64_t
first_cluster (struct world *w, unsigned g)
{
  uint64_t first, count;

  qcow2_entry_clusters (w->pool->base.img, get_entry (w->pool, g), &first, &count);
  return first;
}

/* --- The encoder ------------------------------------------------------------------ */

static void
the_encoder_makes_what_the_decoder_reads (void **state)
{
  uint8_t in[CLUSTER], packed[CLUSTER], out[CLUSTER];
  unsigned type;
  uint64_t id;
  size_t n;

  for (type = 0; type < 2; type++) {
    struct world *w = new_world_at (4, type ? DEDUP_COMPRESS_ZSTD
                                    : DEDUP_COMPRESS_ZLIB);
    struct qcow2_image *img = w->pool->base.img;
    struct qcow2_codec *c;

    assert_int_equal (qcow2_geometry (img)->compression_type, type);
    assert_int_equal (qcow2_codec_new (img, &c), 0);
    for (id = 1; id < 50; id++) {
      fill_third_random (in, CLUSTER, id);
      n = qcow2_codec_compress (c, in, CLUSTER, packed, CLUSTER - SECTOR);
      assert_in_range (n, CLUSTER / 3, CLUSTER / 2);
      memset (packed + n, 0xa5, sizeof packed - n);   /* other data follows */
      memset (out, 0, sizeof out);
      assert_int_equal (qcow2_compressed_expand (img, packed, sizeof packed, out), 0);
      assert_memory_equal (in, out, CLUSTER);
      assert_int_equal (qcow2_codec_compress (c, in, CLUSTER, packed, n - 1), 0);
    }
    fill_third_random (in, CLUSTER, UINT64_C (1) << 40);
    assert_int_equal (qcow2_codec_compress (c, in, CLUSTER, packed,
                                            CLUSTER - SECTOR), 0);
    qcow2_codec_free (c);
    free_world (w);
  }
}

static void
an_entry_says_where_the_bytes_are (void **state)
{
  struct world *w = new_world ();
  const struct qcow2_image *img = w->pool->base.img;
  uint64_t off, len, host_off, n, entry;

  for (host_off = 1 << 20; host_off < (1 << 20) + 3 * SECTOR; host_off += 37)
    for (len = 1; len <= CLUSTER; len += 101) {
      entry = qcow2_compressed_entry (img, host_off, len);
      assert_true (dedup_value_is_compressed (entry));
      qcow2_compressed_extent (img, entry, &off, &n);
      assert_int_equal (off, host_off);
      assert_int_equal (off + n, round_up_pow2 (host_off + len, SECTOR));
    }
  assert_int_equal (qcow2_compressed_entry (img, UINT64_C (1) << 58, 1), 0);
  assert_int_equal (qcow2_compressed_entry (img, 0, 3 * CLUSTER), 0);
  free_world (w);
}

/* --- Places and references ------------------------------------------------------ */

static void
data_that_shrinks_is_packed_and_counted (void **state)
{
  unsigned type, g;

  for (type = 0; type < 2; type++) {
    struct world *w = new_world_at (4, type ? DEDUP_COMPRESS_ZSTD
                                    : DEDUP_COMPRESS_ZLIB);
    uint64_t first, count, crossing = 0;

    write_new (w, 0, 1, 100);
    write_new (w, 100, UINT64_C (1) << 33, 10);    /* does not shrink */
    for (g = 0; g < 110; g++)
      assert_int_equal (is_packed (w, g), g < 100);
    for (g = 0; g < 100; g++) {
      qcow2_entry_clusters (w->pool->base.img, get_entry (w->pool, g), &first, &count);
      crossing += count > 1;
    }
    assert_true (crossing > 10);
    assert_true (first_cluster (w, 99) - first_cluster (w, 0) < 50);
    assert_contents (w);
    reopen (w);
    assert_contents (w);
    unmap (w, 0, 50);
    reopen (w);
    free_world (w);
  }
}

/* Operations of 1 to 30 clusters fill several runs, and none goes past the end of its
 * run, where other data lies. */
static void
runs_are_filled_to_their_ends (void **state)
{
  struct world *w = new_world ();
  const struct dedup_pack_run *run = NULL;
  unsigned g = 0, nr, ops = 0, runs = 0;
  uint64_t bytes = 0, off, len, end = 0;

  while (g < 900) {
    nr = 1 + g % 30;
    write_new (w, g, 1 + g, nr);
    runs += w->pool->writer.pack.open != run;
    run = w->pool->writer.pack.open;
    assert_true (run->fill <= (run->first + run->count) * CLUSTER);
    g += nr;
    ops++;
  }
  assert_true (runs >= 4);
  for (g = 0; g < 900; g++) {
    assert_true (is_packed (w, g));
    qcow2_compressed_extent (w->pool->base.img, get_entry (w->pool, g), &off, &len);
    end = MAX_OF (end, off + len);
    bytes += len;               /* whole sectors: more than the data */
  }
  assert_true (end > 900 * CLUSTER / 3);
  assert_true (w->pool->writer.pack.stored_bytes < bytes + ops * SECTOR);
  free_world (w);
}

static void
equal_data_is_linked_at_once (void **state)
{
  struct world *w = new_world ();
  const uint64_t same[] = { 7, 7, 8, 7 };
  uint64_t first;

  write_ids (w, 0, same, 4);
  assert_int_equal (w->pool->writer.counts.stored, 2);
  assert_int_equal (w->pool->writer.counts.linked, 2);
  write_new (w, 10, 7, 2);      /* the run is still open */
  assert_int_equal (w->pool->writer.counts.stored, 2);
  assert_int_equal (get_entry (w->pool, 10), get_entry (w->pool, 0));
  assert_int_equal (get_entry (w->pool, 11), get_entry (w->pool, 2));
  first = first_cluster (w, 0);
  assert_int_equal (first_cluster (w, 2), first);
  assert_int_equal (get_refcount (w->pool, first, NULL), 1 + 6);
  reopen (w);
  write_new (w, 20, 8, 1);
  assert_int_equal (get_entry (w->pool, 20), get_entry (w->pool, 2));
  assert_int_equal (get_refcount (w->pool, first, NULL), 1 + 7);
  free_world (w);
}

/* Each operation begins at a new sector, whether or not the one before is durable. */
static void
no_sector_is_written_twice (void **state)
{
  struct world *w = new_world ();
  unsigned g, i, nr = 0;

  write_new (w, 0, 1, 1);       /* opens a run */
  w->watch = true;
  for (g = 1; g < 60; g++) {
    write_new (w, g, 1 + g, 1);
    if (g % 3 == 0)
      assert_int_equal (dedup_flush (w->pool), 0);
  }
  for (i = 0; i < MAX_SECTORS; i++) {
    assert_true (w->writes[i] <= 1);
    nr += w->writes[i];
  }
  assert_true (nr >= 59 * 3);
  free_world (w);
}

/* Sets what the medium writes as a whole. */
static void
set_block (struct world *w, unsigned block)
{
  w->block = MIN_OF (block, CLUSTER);
  io_memory_set_block (w->memory, block);
}

/* Where the medium writes larger blocks as a whole, each operation begins at a new one of
 * those; but at a new cluster where they are larger than that. */
static void
no_block_of_the_medium_is_written_twice (void **state)
{
  unsigned block, g, i, nr;

  for (block = 1024; block <= 4 * CLUSTER; block *= 2) {
    struct world *w = new_world ();

    set_block (w, block);
    write_new (w, 0, 1, 6);     /* opens a run */
    w->watch = true;
    for (g = 6; g < 120; g += 6) {
      write_new (w, g, 1 + g, 6);
      assert_true (is_packed (w, g) && is_packed (w, g + 5));
      if (g % 4 == 0)
        assert_int_equal (dedup_flush (w->pool), 0);
    }
    for (i = nr = 0; i < MAX_SECTORS; i++) {
      assert_true (w->writes[i] <= 1);
      nr += w->writes[i];
    }
    assert_true (nr >= 19 * 3 * w->block / SECTOR);
    w->watch = false;
    assert_int_equal (dedup_flush (w->pool), 0);
    crash (w);                  /* the next session may lie elsewhere */
    set_block (w, 0);
    write_new (w, 200, 500, 6);
    assert_int_equal (dedup_flush (w->pool), 0);
    crash (w);
    free_world (w);
  }
}

/* Data that saves too little because its operation takes whole blocks is plain. */
static void
what_saves_no_block_is_plain (void **state)
{
  struct world *w = new_world ();
  unsigned g;

  set_block (w, CLUSTER);
  write_new (w, 0, 1, 1);
  assert_false (is_packed (w, 0));
  write_ids (w, 1, (const uint64_t[]) { 2, UINT64_C (1) << 33 }, 2);
  assert_false (is_packed (w, 1));
  write_new (w, 3, 4, 8);
  for (g = 3; g < 11; g++)
    assert_true (is_packed (w, g));
  set_block (w, CLUSTER / 2);
  write_new (w, 20, 20, 1);
  assert_true (is_packed (w, 20));
  free_world (w);
}

/* A cluster stays while data is appended to it, although nothing in it is in use. */
static void
a_dropped_cluster_stays_until_the_run_is_closed (void **state)
{
  struct world *w = new_world ();
  uint64_t first;

  write_new (w, 0, 1, 1);
  first = first_cluster (w, 0);
  assert_int_equal (get_refcount (w->pool, first, NULL), 2);
  unmap (w, 0, 1);
  assert_int_equal (get_refcount (w->pool, first, NULL), 1);
  write_new (w, 1, 2, 1);
  assert_int_equal (first_cluster (w, 1), first);
  assert_int_equal (get_refcount (w->pool, first, NULL), 2);
  unmap (w, 1, 1);
  dedup_pack_end (&w->pool->writer);
  assert_int_equal (get_refcount (w->pool, first, NULL), 0);
  write_new (w, 0, 1, 1);
  assert_contents (w);
  free_world (w);
}

/* At a clean close nothing can be freed: the next session finds it. */
static void
a_clean_image_is_closed_without_a_record (void **state)
{
  struct world *w = new_world ();
  uint64_t first;

  write_new (w, 0, 1, 1);
  first = first_cluster (w, 0);
  unmap (w, 0, 1);
  assert_int_equal (dedup_run (w->pool, DEDUP_JOB_CLEAN), 0);
  assert_int_equal (get_refcount (w->pool, first, NULL), 1);
  reopen (w);
  assert_int_equal (get_refcount (w->pool, first, NULL), 1);
  free_world (w);
}

/* --- Crashes ---------------------------------------------------------------------- */

static void
a_crash_keeps_what_was_flushed (void **state)
{
  struct world *w = new_world ();

  write_new (w, 0, 1, 40);
  write_new (w, 50, 20, 10);
  assert_int_equal (dedup_flush (w->pool), 0);
  crash (w);
  assert_true (is_packed (w, 0));
  assert_contents (w);
  write_new (w, 100, 1, 40);    /* the index is there, too */
  assert_int_equal (w->pool->writer.counts.stored, 0);
  assert_int_equal (get_entry (w->pool, 139), get_entry (w->pool, 39));
  free_world (w);
}

/* A block past the durable one counts only if its data is there. */
static void
a_replay_compares_expanded_data (void **state)
{
  uint8_t zero[8] = { 0 };
  unsigned lost;

  for (lost = 0; lost < 2; lost++) {
    struct world *w = new_world ();
    uint64_t off, len;

    write_new (w, 0, 1, 8);
    assert_int_equal (dedup_flush (w->pool), 0);
    write_new (w, 0, 101, 8);
    qcow2_compressed_extent (w->pool->base.img, get_entry (w->pool, 5), &off, &len);
    assert_int_equal (dedup_flush (w->pool), 0);
    dedup_free (w->pool);
    if (lost) {                 /* the block says that the one before is durable */
      assert_int_equal (io_pwrite (w->memory, zero, sizeof zero, off + 100), 0);
      for (unsigned g = 0; g < 8; g++)
        w->ids[g] = 1 + g;
    }
    open_image (w);
    assert_contents (w);
    free_world (w);
  }
}

/* --- Law 17 ---------------------------------------------------------------------- */

/* An entry may name bytes of a cluster that was freed and is appended to now, and they
 * may even be there still. */
static void
stale_data_in_the_open_run_is_not_linked (void **state)
{
  struct world *w = new_world ();
  struct dedup_pack *p = &w->pool->writer.pack;
  uint64_t stale, plain;

  write_new (w, 0, 1, 2);
  stale = get_entry (w->pool, 1);
  plain = first_cluster (w, 0);
  lock_acquire (w->pool->base.lock);
  assert_false (dedup_pack_unfinished_locked (p, stale));
  assert_true (dedup_pack_unfinished_locked (p, plain));
  assert_true (dedup_pack_unfinished_locked (p, p->open->first + p->open->count - 1));
  assert_false (dedup_pack_unfinished_locked (p, p->open->first + p->open->count));
  assert_false (dedup_pack_unfinished_locked (p, p->open->first - 1));
  p->open->fill = p->open->first * CLUSTER;     /* as if it were another run */
  assert_true (dedup_pack_unfinished_locked (p, stale));
  lock_release (w->pool->base.lock);

  write_new (w, 10, 2, 1);      /* the index leads to STALE */
  assert_true (get_entry (w->pool, 10) != stale);
  w->ids[0] = w->ids[1] = 0;    /* what was there is overwritten */
  assert_int_equal (dedup_unmap (w->pool, 0, 0, 2, DEDUP_TRIM), 0);
  assert_contents (w);
  free_world (w);
}

static bool
is_unfinished (struct world *w, uint64_t value)
{
  LOCK_FOR_SCOPE (w->pool->base.lock);
  return dedup_pack_unfinished_locked (&w->pool->writer.pack, value);
}

/* Writes the bytes of the first cluster of the run to guest cluster 10, when the index has
 * an entry from when that cluster had them as plain data. */
static void
write_what_the_run_has (struct world *w)
{
  const uint64_t first = w->pool->writer.pack.open->first;
  uint8_t buf[CLUSTER];
  struct dedup_hash h;

  assert_true (w->pool->writer.pack.open->fill >= (first + 1) * CLUSTER);
  assert_true (is_unfinished (w, first));
  assert_int_equal (io_pread (w->memory, buf, CLUSTER, first * CLUSTER), 0);
  assert_int_equal (dedup_hash_compute (&w->pool->base.hasher, buf, CLUSTER, &h), 0);
  lock_acquire (w->pool->base.lock);
  dedup_index_insert_locked (w->pool->store.index, &h, first);
  lock_release (w->pool->base.lock);
  assert_int_equal (dedup_write (w->pool, 0, buf, 10, 1), 0);
}

/* Of data that its operation has written and not linked, nobody knows whether a crash
 * keeps it: a link by a stale entry would have no record that tells. */
static void
written_data_is_not_linked_by_others_before_its_operation_does (void **state)
{
  unsigned fails;

  for (fails = 0; fails < 2; fails++) {
    struct world *w = new_world ();
    uint8_t buf[6 * CLUSTER];
    uint64_t first;
    unsigned i;

    write_new (w, 600, 1, 1);
    reopen (w);
    write_new (w, 0, 2, 1);     /* links the first data of the run */
    first = w->pool->writer.pack.open->first;
    for (i = 0; i < 6; i++)
      fill_third_random (buf + i * CLUSTER, CLUSTER, 3 + i);
    w->written = 0;
    w->between = write_what_the_run_has;        /* before the L2 table is read */
    w->fail_reads = fails;
    assert_int_equal (dedup_write (w->pool, 0, buf, 601, 6), fails ? -EIO : 0);
    w->fail_reads = false;
    assert_null (w->between);
    assert_true (get_entry (w->pool, 10) != 0);
    assert_true ((get_entry (w->pool, 10) & QCOW2_OFFSET_MASK) != first * CLUSTER);
    assert_false (is_unfinished (w, first));
    assert_int_equal (dedup_unmap (w->pool, 0, 10, 1, DEDUP_TRIM), 0);
    for (i = 0; i < 6 && !fails; i++)
      w->ids[601 + i] = 3 + i;
    assert_contents (w);
    free_world (w);
  }
}

/* --- The index ------------------------------------------------------------------ */

static void
run_jobs (struct world *w)
{
  const unsigned jobs = DEDUP_JOB_CHECKPOINT | DEDUP_JOB_FREEZE | DEDUP_JOB_JOURNAL |
    DEDUP_JOB_FILTERS | DEDUP_JOB_MERGE | DEDUP_JOB_MERGE_IDLE;
  unsigned due;

  assert_int_equal (dedup_flush (w->pool), 0);
  while ((due = dedup_due (w->pool, NULL) & jobs) != 0)
    assert_int_equal (dedup_run (w->pool, due & -due), 0);
  assert_int_equal (dedup_run (w->pool, DEDUP_JOB_COMMIT), 0);
}

/* Writes new data that does not shrink to guest clusters from 500 on, and merges. */
static void
churn (struct world *w, unsigned nr_writes)
{
  static uint64_t last_id = UINT64_C (1) << 40;
  unsigned i;

  for (i = 0; i < nr_writes; i++) {
    write_ids (w, 500 + i % 400, &(uint64_t) { ++last_id }, 1);
    if (i % 64 == 0 || i == nr_writes - 1)
      run_jobs (w);
  }
}

static uint64_t
named_for (struct world *w, uint64_t id)
{
  uint8_t buf[CLUSTER];
  struct dedup_hash h;

  fill_third_random (buf, CLUSTER, id);
  assert_int_equal (dedup_hash_compute (&w->pool->base.hasher, buf, CLUSTER, &h), 0);
  return dedup_named_for (&w->pool->writer, &h);
}

/* Entries of plain data that the clusters had before are found to be wrong later, which
 * makes marks for the clusters.  These are younger than the entries of what is there
 * now. */
static void
marks_of_its_clusters_do_not_end_entries (void **state)
{
  const uint64_t plain = UINT64_C (1) << 33;
  struct world *w = new_world ();
  uint64_t lo = UINT64_MAX, hi = 0;
  unsigned g, nr = 0;

  write_new (w, 0, plain, 64);
  for (g = 0; g < 64; g++) {
    lo = MIN_OF (lo, first_cluster (w, g));
    hi = MAX_OF (hi, first_cluster (w, g));
  }
  unmap (w, 0, 64);
  for (g = 0; g < 4; g++)
    run_jobs (w);               /* they may be used again */
  write_new (w, 100, 1, 100);
  for (g = 100; g < 200; g++)
    nr += first_cluster (w, g) >= lo && first_cluster (w, g) <= hi;
  assert_true (nr > 50);
  churn (w, 1500);
  write_new (w, 0, plain, 64);
  churn (w, 3000);
  for (g = 100; g < 200; g++)
    assert_int_equal (named_for (w, w->ids[g]), get_entry (w->pool, g));
  free_world (w);
}

/* --- Storing data again -------------------------------------------------------- */

static bool
is_plain (const void *opaque, uint64_t entry)
{
  return !(entry & QCOW2_L2_COMPRESSED);
}

static void
plain_data_is_compressed_later (void **state)
{
  struct world *w = new_world_at (4, DEDUP_COMPRESS_KEEP);
  uint64_t before;

  write_new (w, 0, 1, 40);
  write_new (w, 40, 1, 10);     /* shared */
  write_new (w, 50, UINT64_C (1) << 33, 2);
  assert_int_equal (dedup_rewrite (w->pool, 0, 0, 60, is_plain, NULL), -ENOTSUP);
  w->compress = DEDUP_COMPRESS_ZLIB;
  reopen (w);
  before = first_cluster (w, 5);
  assert_int_equal (dedup_rewrite (w->pool, 9, 0, 45, is_plain, NULL), -EINVAL);
  assert_int_equal (dedup_rewrite (w->pool, 0, 0, 45, is_plain, NULL), 45);
  assert_int_equal (get_refcount (w->pool, before, NULL), 2);     /* of guest cluster 45 */
  assert_int_equal (dedup_rewrite (w->pool, 0, 45, 20, is_plain, NULL), 5);
  assert_int_equal (get_refcount (w->pool, before, NULL), 0);
  assert_contents (w);
  assert_int_equal (get_entry (w->pool, 45), get_entry (w->pool, 5));
  for (unsigned g = 0; g < 52; g++)
    assert_int_equal (is_packed (w, g), g < 50);
  assert_int_equal (dedup_rewrite (w->pool, 0, 0, 60, is_plain, NULL), 0);
  write_new (w, 100, 1, 40);    /* the index leads to the new places */
  assert_int_equal (get_entry (w->pool, 139), get_entry (w->pool, 39));
  assert_int_equal (dedup_flush (w->pool), 0);
  crash (w);
  assert_contents (w);
  free_world (w);
}

/* --- Settings of disks ---------------------------------------------------------- */

static unsigned
find_disk (struct world *w, const char *name)
{
  struct fault f = { 0 };
  unsigned root;

  assert_int_equal (dedup_disk_find (w->pool, name, &root, &f), 0);
  return root;
}

static unsigned
new_disk (struct world *w, const char *name)
{
  struct fault f = { 0 };
  unsigned root;

  if (dedup_disk_create (w->pool, name, NR * CLUSTER, &root, &f) < 0)
    fail_msg ("create: %s", f.msg);
  return root;
}

/* Returns a new clone of a disk; a snapshot, if its name has '@'. */
static unsigned
copy_disk (struct world *w, unsigned source, const char *name)
{
  struct fault f = { 0 };
  unsigned root;

  assert_int_equal (dedup_disk_clone (w->pool, source, name, !strchr (name, '@'), &root,
                                      &f), 0);
  assert_int_equal (dedup_disks_settle (w->pool), 0);
  return root;
}

static void
set_compress (struct world *w, const char *name, enum dedup_compress c)
{
  struct fault f = { 0 };

  if (dedup_disk_set_compress (w->pool, find_disk (w, name), c, &f) < 0)
    fail_msg ("set: %s", f.msg);
}

/* Writes new data to a disk, and checks whether it is compressed. */
static void
assert_packs (struct world *w, unsigned root, bool packs)
{
  static uint64_t id = UINT64_C (1) << 20;
  static unsigned g;
  struct qcow2_extent ext;
  uint8_t buf[CLUSTER], got[CLUSTER];

  g = (g + 1) % NR;
  fill_third_random (buf, CLUSTER, ++id);
  assert_int_equal (dedup_write (w->pool, root, buf, g, 1), 0);
  if (root == QCOW2_ROOT_ACTIVE)
    w->ids[g] = id;
  assert_int_equal (qcow2_map (w->pool->base.img, root, g * CLUSTER, CLUSTER, &ext, 1), 1);
  assert_int_equal (ext.kind, packs ? QCOW2_COMPRESSED : QCOW2_DATA);
  assert_int_equal (dedup_read (w->pool, root, got, g * CLUSTER, CLUSTER), 0);
  assert_memory_equal (buf, got, CLUSTER);
}

static void
assert_setting (struct world *w, const char *name, enum dedup_compress want, bool want_own)
{
  bool own;

  assert_int_equal (dedup_disk_compress (w->pool, find_disk (w, name), &own), want);
  assert_int_equal (own, want_own);
}

/* The setting of the pool is on, or not. */
static void
try_disks (struct world *w, bool on)
{
  const enum dedup_compress packed =
    qcow2_geometry (w->pool->base.img)->compression_type ? DEDUP_COMPRESS_ZSTD
    : DEDUP_COMPRESS_ZLIB, whole = on ? packed : DEDUP_COMPRESS_OFF;
  struct fault f = { 0 };
  unsigned a = new_disk (w, "a"), b = new_disk (w, "b"), c, r;

  assert_packs (w, a, on);
  assert_setting (w, "a", whole, false);
  set_compress (w, "a", packed);
  set_compress (w, "b", DEDUP_COMPRESS_OFF);
  assert_packs (w, a, true);
  assert_packs (w, b, false);
  assert_packs (w, 0, on);
  c = copy_disk (w, a, "c");
  copy_disk (w, b, "b@s");
  assert_packs (w, c, true);
  assert_setting (w, "b@s", DEDUP_COMPRESS_OFF, true);
  assert_packs (w, copy_disk (w, find_disk (w, "b@s"), "d"), false);
  assert_packs (w, copy_disk (w, 0, "e"), on);
  assert_int_equal (dedup_disk_reset (w->pool, b, a, &f), 0);
  assert_int_equal (dedup_disks_settle (w->pool), 0);
  assert_packs (w, b, false);
  assert_int_equal (dedup_disk_rename (w->pool, b, "new", &f), 0);
  assert_int_equal (dedup_disk_resize (w->pool, a, NR / 2 * CLUSTER, &f), 0);
  assert_int_equal (dedup_disk_resize (w->pool, a, NR * CLUSTER, &f), 0);
  assert_int_equal (dedup_flush (w->pool), 0);
  crash (w);
  assert_packs (w, find_disk (w, "a"), true);
  assert_packs (w, find_disk (w, "new"), false);
  set_compress (w, "new", DEDUP_COMPRESS_KEEP);
  assert_packs (w, find_disk (w, "new"), on);
  reopen (w);
  assert_setting (w, "a", packed, true);
  assert_setting (w, "new", whole, false);
  assert_setting (w, "c", packed, true);
  assert_packs (w, find_disk (w, "c"), true);

  /* What is refused leaves all as it is. */
  r = find_disk (w, "a");
  assert_int_equal (dedup_disk_set_compress (w->pool, r, packed == DEDUP_COMPRESS_ZLIB
                                             ? DEDUP_COMPRESS_ZSTD : DEDUP_COMPRESS_ZLIB,
                                             &f), -EINVAL);
  assert_non_null (strstr (f.msg, "its compression type is"));
  assert_int_equal (dedup_disk_set_compress (w->pool, find_disk (w, "b@s"), packed, &f),
                    -EINVAL);
  assert_int_equal (dedup_disk_set_compress (w->pool, 0, packed, &f), -EINVAL);
  assert_setting (w, "a", packed, true);
  assert_setting (w, "b@s", DEDUP_COMPRESS_OFF, true);
}

static void
each_disk_has_a_setting_of_its_own (void **state)
{
  struct world *w = new_world_at (5, DEDUP_COMPRESS_ZSTD);

  try_disks (w, true);
  free_world (w);
  w = new_world_at (5, DEDUP_COMPRESS_KEEP);
  assert_int_equal (dedup_rewrite (w->pool, 0, 0, 1, is_plain, NULL), -ENOTSUP);
  try_disks (w, false);
  assert_int_equal (dedup_rewrite (w->pool, 0, 0, 1, is_plain, NULL), 0);

  /* With the last disk that says so the image can be compacted no more. */
  set_compress (w, "a", DEDUP_COMPRESS_KEEP);
  set_compress (w, "c", DEDUP_COMPRESS_OFF);
  assert_int_equal (dedup_rewrite (w->pool, 0, 0, 1, is_plain, NULL), -ENOTSUP);
  free_world (w);
}

struct cluster {
  const struct dedup_base *b;
  uint64_t host_idx;
};

static bool
touches (const void *opaque, uint64_t entry)
{
  const struct cluster *c = opaque;
  uint64_t first, count;

  qcow2_entry_clusters (c->b->img, entry, &first, &count);
  return c->host_idx - first < count;
}

static void
a_cluster_is_emptied_by_storing_its_data_again (void **state)
{
  struct world *w = new_world ();
  struct cluster c = { .b = &w->pool->base };
  unsigned g, nr = 0, moved;

  write_new (w, 0, 1, 20);
  write_new (w, 20, 1, 20);
  dedup_pack_end (&w->pool->writer);
  c.host_idx = first_cluster (w, 10);
  for (g = 0; g < 40; g++)
    nr += touches (&c, get_entry (w->pool, g));
  assert_true (nr >= 4);
  assert_int_equal (get_refcount (w->pool, c.host_idx, NULL), 1 + nr);
  moved = dedup_rewrite (w->pool, 0, 0, 40, touches, &c);
  assert_int_equal (moved, nr);
  assert_int_equal (get_refcount (w->pool, c.host_idx, NULL), 0);
  for (g = 0; g < 20; g++)
    assert_int_equal (get_entry (w->pool, g), get_entry (w->pool, 20 + g));
  assert_int_equal (w->pool->writer.counts.stored, 20 + nr / 2);
  free_world (w);
}

/* --- Settings ---------------------------------------------------------------------- */

static void
the_image_remembers_whether_to_compress (void **state)
{
  struct world *w = new_world_at (4, DEDUP_COMPRESS_KEEP);

  write_new (w, 0, 1, 1);
  assert_false (is_packed (w, 0));
  assert_false (w->pool->store.config->may_pack);
  w->compress = DEDUP_COMPRESS_ZLIB;
  reopen (w);
  w->compress = DEDUP_COMPRESS_KEEP;
  reopen (w);
  write_new (w, 1, 2, 1);
  assert_true (is_packed (w, 1));
  w->compress = DEDUP_COMPRESS_OFF;
  reopen (w);
  w->compress = DEDUP_COMPRESS_KEEP;
  reopen (w);
  write_new (w, 2, 3, 1);
  assert_false (is_packed (w, 2));
  assert_true (w->pool->store.config->may_pack);
  free_world (w);
}

/* Where the host has no space for the configuration, data is compressed from the moment
 * on at which it could be written. */
static void
a_full_host_delays_compression (void **state)
{
  struct world *w = new_world_at (4, DEDUP_COMPRESS_KEEP);

  write_new (w, 0, 1, 1);
  check_closed (w);
  w->compress = DEDUP_COMPRESS_ZLIB;
  w->fail_from = 1;
  open_image (w);
  assert_true (dedup_config_owed (&w->pool->store));
  w->fail_from = 0;
  write_new (w, 1, 2, 1);
  assert_false (is_packed (w, 1));
  assert_int_equal (dedup_run (w->pool, DEDUP_JOB_CHECKPOINT), 0);
  assert_false (dedup_config_owed (&w->pool->store));
  write_new (w, 2, 3, 1);
  assert_true (is_packed (w, 2));
  free_world (w);
}

/* A commit that is under way, or owed, delays compression only if it is the one that
 * allows it. */
static void
data_is_compressed_while_a_configuration_is_owed (void **state)
{
  struct world *w = new_world ();

  write_new (w, 0, 1, 1);
  w->fail_from = w->pool->store.ext.config_off;
  w->fail_until = w->fail_from + 2 * DEDUP_CONFIG_SLOT;
  assert_int_equal (dedup_run (w->pool, DEDUP_JOB_CHECKPOINT), -ENOSPC);
  w->fail_from = 0;
  assert_true (dedup_config_owed (&w->pool->store));
  write_new (w, 1, 2, 1);
  assert_true (is_packed (w, 1));
  assert_true (dedup_config_owed (&w->pool->store));
  free_world (w);
}

static void
narrow_refcounts_are_refused (void **state)
{
  struct world *w = new_world_at (3, DEDUP_COMPRESS_KEEP);
  struct fault f = { 0 };

  check_closed (w);
  w->compress = DEDUP_COMPRESS_ZLIB;
  assert_true (try_open (w, true, &f) < 0);
  assert_int_equal (f.kind, FAULT_USAGE);
  w->compress = DEDUP_COMPRESS_KEEP;
  open_image (w);
  free_world (w);
}

static void
another_compression_type_is_refused (void **state)
{
  struct world *w = new_world ();
  struct fault f = { 0 };

  check_closed (w);
  w->compress = DEDUP_COMPRESS_ZLIB;
  assert_true (try_open (w, true, &f) < 0);
  assert_int_equal (f.kind, FAULT_USAGE);
  assert_non_null (strstr (f.msg, "zstd"));
  w->compress = DEDUP_COMPRESS_ZSTD;
  open_image (w);
  free_world (w);
}

/* Where the host has no space for a run, data is stored as plain data is. */
static void
a_write_that_finds_no_space_leaves_nothing (void **state)
{
  struct world *w = new_world ();
  uint8_t buf[CLUSTER];

  write_new (w, 0, 1, 1);
  w->fail_from = 1;
  fill_third_random (buf, CLUSTER, 2);
  assert_int_equal (dedup_write (w->pool, 0, buf, 1, 1), -ENOSPC);
  assert_null (w->pool->writer.pack.open);
  assert_null (w->pool->writer.pack.unsettled);
  w->fail_from = 0;
  assert_contents (w);
  write_new (w, 1, 2, 1);
  assert_true (is_packed (w, 1));
  free_world (w);
}

/* An older entry of the index may lead to exactly these bytes, and a link by it has no
 * hash in its record. */
static void
data_of_an_operation_that_fails_is_durable (void **state)
{
  struct world *w = new_world ();
  uint8_t buf[CLUSTER];

  write_new (w, 600, 1, 1);
  reopen (w);
  write_new (w, 0, 2, 1);       /* opens a run, and makes the image dirty */
  w->fail_reads = true;         /* of the L2 table, behind the write of the data */
  w->written = w->syncs = 0;
  fill_third_random (buf, CLUSTER, 3);
  assert_int_equal (dedup_write (w->pool, 0, buf, 601, 1), -EIO);
  w->fail_reads = false;
  assert_int_equal (w->written, 1);
  assert_int_equal (w->syncs, 1);
  assert_contents (w);
  w->syncs = 0;
  write_new (w, 601, 3, 1);
  assert_int_equal (w->syncs, 0);
  free_world (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (the_encoder_makes_what_the_decoder_reads),
    cmocka_unit_test (an_entry_says_where_the_bytes_are),
    cmocka_unit_test (data_that_shrinks_is_packed_and_counted),
    cmocka_unit_test (runs_are_filled_to_their_ends),
    cmocka_unit_test (equal_data_is_linked_at_once),
    cmocka_unit_test (no_sector_is_written_twice),
    cmocka_unit_test (no_block_of_the_medium_is_written_twice),
    cmocka_unit_test (what_saves_no_block_is_plain),
    cmocka_unit_test (a_dropped_cluster_stays_until_the_run_is_closed),
    cmocka_unit_test (a_clean_image_is_closed_without_a_record),
    cmocka_unit_test (a_crash_keeps_what_was_flushed),
    cmocka_unit_test (a_replay_compares_expanded_data),
    cmocka_unit_test (stale_data_in_the_open_run_is_not_linked),
    cmocka_unit_test (written_data_is_not_linked_by_others_before_its_operation_does),
    cmocka_unit_test (marks_of_its_clusters_do_not_end_entries),
    cmocka_unit_test (plain_data_is_compressed_later),
    cmocka_unit_test (each_disk_has_a_setting_of_its_own),
    cmocka_unit_test (a_cluster_is_emptied_by_storing_its_data_again),
    cmocka_unit_test (the_image_remembers_whether_to_compress),
    cmocka_unit_test (a_full_host_delays_compression),
    cmocka_unit_test (data_is_compressed_while_a_configuration_is_owed),
    cmocka_unit_test (narrow_refcounts_are_refused),
    cmocka_unit_test (another_compression_type_is_refused),
    cmocka_unit_test (a_write_that_finds_no_space_leaves_nothing),
    cmocka_unit_test (data_of_an_operation_that_fails_is_durable),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
