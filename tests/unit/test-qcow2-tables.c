/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the tables of an image as they change: L2, refcounts, anchor; cache,
 * writeback and replay.
 *
 * Most tests run over images in memory with clusters of 512 bytes, so that few
 * operations cross many tables.  The oracles are a plain model of who points
 * where, the same changes replayed on the image as it was before, and
 * qemu-img check on the result (left out where qemu-img is missing).
 */
#include "qcow2-env.h"

/* --- The model ----------------------------------------------------------- */

#define MAX_HOST 65536

struct model {
  uint64_t nr;                 /* guest clusters */
  uint64_t *host;              /* of each; 0: none */
  uint32_t refs[MAX_HOST];
};

static struct model *
model_new (uint64_t nr)
{
  struct model *m = calloc (1, sizeof *m);

  m->nr = nr;
  m->host = calloc (nr, sizeof *m->host);
  return m;
}

static void
model_free (struct model *m)
{
  free (m->host);
  free (m);
}

static void
model_point (struct model *m, uint64_t guest_idx, uint64_t host_idx)
{
  assert_true (host_idx < MAX_HOST);
  if (host_idx)
    m->refs[host_idx]++;
  if (m->host[guest_idx])
    m->refs[m->host[guest_idx]]--;
  m->host[guest_idx] = host_idx;
}

static void
random_op (struct env *e, struct model *m)
{
  uint64_t g = rnd (m->nr), other = rnd (m->nr), h;
  const uint64_t op = rnd (16);

  if (op <= 6) {
    h = write_new (e->img, g);
    assert_int_not_equal (h, 0);
    assert_int_equal (m->refs[h], 0);
    model_point (m, g, h);
  }
  else if (op <= 11) {
    h = m->host[other];
    if (h && link_to (e->img, g, h) == 0)
      model_point (m, g, h);
  }
  else if (op <= 14) {
    unmap (e->img, g);
    model_point (m, g, 0);
  }
  else {
    if (rnd (4) == 0)
      release_all (e->img);
    if (rnd (16) == 0)
      writeback (e->img);
  }
}

static void
compare_with_model (struct qcow2_image *img, const struct model *m)
{
  const uint64_t size = img->header.geo.cluster_size;
  bool anchored;

  for (uint64_t g = 0; g < m->nr; ++g)
    assert_int_equal (entry_of (img, 0, g), m->host[g] * size);
  for (uint64_t h = 0; h < MAX_HOST; ++h)
    if (m->refs[h]) {
      assert_int_equal (refcount_of (img, h, &anchored), m->refs[h] + 1);
      assert_true (anchored);
    }
}

static void
compare_images (struct qcow2_image *a, struct qcow2_image *b)
{
  bool anchored_a, anchored_b;
  uint64_t end = MAX_OF (a->alloc.frontier, b->alloc.frontier);

  for (uint64_t g = 0; g < a->header.geo.nr_clusters; ++g)
    assert_int_equal (entry_of (a, 0, g), entry_of (b, 0, g));
  for (uint64_t h = 0; h < end; ++h) {
    assert_int_equal (refcount_of (a, h, &anchored_a),
                      refcount_of (b, h, &anchored_b));
    assert_int_equal (anchored_a, anchored_b);
  }
}

/* Replay LOG twice on the image in IO, write it, compare with A. */
static void
replay_on (struct io_store *io, const struct env *e, struct qcow2_image *a)
{
  struct qcow2_image *b = open_image (io, true);

  apply_all (b, e->log, e->nr_log);
  compare_images (a, b);
  apply_all (b, e->log, e->nr_log);
  compare_images (a, b);
  writeback (b);
  qcow2_close (b);
  b = open_image (io, true);
  compare_images (a, b);
  qcow2_close (b);
  check_with_qemu (io);
  io_close (io);
}

static void
run_model (unsigned cluster_bits, unsigned refcount_order, uint64_t nr,
           unsigned ops)
{
  struct model *m = model_new (nr);
  struct io_store *base, *after;
  struct env e;

  env_new (&e, cluster_bits, refcount_order, nr);
  base = clone_store (e.io);
  while (ops-- > 0)
    random_op (&e, m);
  compare_with_model (e.img, m);
  writeback (e.img);
  assert_int_equal (e.img->cache.nr_dirty, 0);
  compare_with_model (e.img, m);
  qcow2_close (e.img);
  check_with_qemu (e.io);
  e.img = open_image (e.io, true);
  compare_with_model (e.img, m);
  after = clone_store (e.io);
  replay_on (base, &e, e.img);
  replay_on (after, &e, e.img);
  env_free (&e);
  model_free (m);
}

static void
test_random_changes_match_model (void **state)
{
  run_model (9, 4, 4096, 6000);
  run_model (12, 4, 2000, 3000);
}

static void
test_all_refcount_widths (void **state)
{
  for (unsigned order = 1; order <= 6; ++order)
    run_model (9, order, 1024, 1500);
}

/* --- Drops and holds ----------------------------------------------------- */

static void
test_drop_passes_unanchored_references_to_the_anchor (void **state)
{
  struct env e;
  uint64_t h;
  bool anchored;

  env_new (&e, 9, 4, 64);
  h = reserve_one (e.img);
  set_refcount (e.img, h, 3, false);
  ok (drop (e.img, h << 9, 1));
  assert_int_equal (refcount_of (e.img, h, &anchored), 3);
  assert_true (anchored);
  ok (drop (e.img, h << 9, 1));
  assert_int_equal (refcount_of (e.img, h, &anchored), 2);
  ok (drop (e.img, h << 9 | QCOW2_L2_ZERO, 1));
  assert_int_equal (refcount_of (e.img, h, &anchored), 0);
  assert_false (anchored);
  assert_int_equal (quarantined (e.img), 1);
  assert_int_equal (drop (e.img, h << 9, 1), -EINVAL);

  /* All in one go, prepared once: the third reference is one too many, as
   * the last belongs to the anchor. */
  h = reserve_one (e.img);
  set_refcount (e.img, h, 3, false);
  ok (drop (e.img, h << 9, 3));
  assert_int_equal (refcount_of (e.img, h, NULL), 0);
  h = reserve_one (e.img);
  set_refcount (e.img, h, 3, false);
  assert_int_equal (drop (e.img, h << 9, 4), -EINVAL);
  assert_int_equal (refcount_of (e.img, h, NULL), 0);

  h = reserve_one (e.img);                 /* the anchor's own reference */
  set_refcount (e.img, h, 1, true);
  assert_int_equal (drop (e.img, h << 9, 1), -EINVAL);
  assert_int_equal (refcount_of (e.img, h, NULL), 1);
  h = reserve_one (e.img);
  set_refcount (e.img, h, 1, false);
  ok (drop (e.img, h << 9 | QCOW2_L2_COPIED, 1));
  assert_int_equal (refcount_of (e.img, h, NULL), 0);
  ok (drop (e.img, QCOW2_L2_ZERO, 5));
  ok (drop (e.img, 0, 5));
  env_free (&e);
}

static void
test_drop_of_compressed_cluster_counts_down (void **state)
{
  struct env e;
  struct qcow2_run run = { 0 };
  uint64_t entry;
  bool anchored;

  env_new (&e, 12, 4, 64);
  lock_acquire (&e.img->lock);
  ok (qcow2_reserve_area_locked (e.img, 2, &run.host_idx));
  lock_release (&e.img->lock);
  set_refcount (e.img, run.host_idx, 2, false);
  set_refcount (e.img, run.host_idx + 1, 1, false);
  /* The last 512 bytes of the one and the first of the other. */
  entry = QCOW2_L2_COMPRESSED | UINT64_C (1) << (62 - 4) |
    ((run.host_idx + 1) * 4096 - 512);
  ok (drop (e.img, entry, 1));
  assert_int_equal (refcount_of (e.img, run.host_idx, &anchored), 1);
  assert_false (anchored);
  assert_int_equal (refcount_of (e.img, run.host_idx + 1, NULL), 0);
  assert_int_equal (quarantined (e.img), 1);
  /* The second cluster is free: nothing changes. */
  assert_int_equal (drop (e.img, entry, 1), -EINVAL);
  assert_int_equal (refcount_of (e.img, run.host_idx, NULL), 1);
  env_free (&e);
}

/* Left with the anchor's reference, a cluster of compressed data is freed like one of
 * plain data; and a record that names clusters which nothing can count is refused. */
static void
test_anchored_compressed_data_is_freed (void **state)
{
  struct qcow2_change c = { QCOW2_CHANGE_L2, .count = 1 };
  struct qcow2_run run = { 0 };
  struct env e;
  uint64_t entry;

  env_new (&e, 12, 4, 64);
  lock_acquire (&e.img->lock);
  ok (qcow2_reserve_area_locked (e.img, 2, &run.host_idx));
  lock_release (&e.img->lock);
  set_refcount (e.img, run.host_idx, 3, true);
  set_refcount (e.img, run.host_idx + 1, 2, true);
  entry = QCOW2_L2_COMPRESSED | UINT64_C (1) << (62 - 4) |
    ((run.host_idx + 1) * 4096 - 512);
  ok (drop (e.img, entry, 1));
  assert_int_equal (refcount_of (e.img, run.host_idx, NULL), 2);
  assert_int_equal (refcount_of (e.img, run.host_idx + 1, NULL), 0);
  assert_int_equal (quarantined (e.img), 1);
  assert_int_equal (drop (e.img, entry, 1), -EINVAL);
  assert_int_equal (refcount_of (e.img, run.host_idx, NULL), 2);
  write_new (e.img, 1);        /* makes the table */
  c.entry = QCOW2_L2_COMPRESSED | 100;                 /* the header */
  assert_int_equal (apply_one (e.img, c), -EINVAL);
  c.entry = QCOW2_L2_COMPRESSED | UINT64_C (1) << 56;  /* past all refcounts */
  assert_int_equal (apply_one (e.img, c), -EINVAL);
  c.entry = entry | QCOW2_L2_COPIED;
  assert_int_equal (apply_one (e.img, c), -EINVAL);
  c.entry = entry;
  ok (apply_one (e.img, c));
  env_free (&e);
}

/* One range that needs many refcount blocks and anchor tables at once. */
static void
test_an_area_gets_all_its_tables (void **state)
{
  struct qcow2_change c = { QCOW2_CHANGE_REFCOUNT, .refcount = 1,
                            .anchored = true, .count = 3000 };
  struct qcow2_txn txn;
  struct env e;

  env_new (&e, 9, 6, 64);
  lock_acquire (&e.img->lock);
  ok (qcow2_reserve_area_locked (e.img, c.count, &c.host_idx));
  qcow2_txn_begin (e.img, &txn);
  ok (RETRY (&txn, qcow2_prepare_host_locked (&txn, c.host_idx, c.count)));
  ok (qcow2_change_locked (&txn, &c));
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  writeback (e.img);
  check_with_qemu (e.io);
  env_free (&e);
}

/* --- Shared tables ------------------------------------------------------- */

static int
run_cmd (const char *fmt, const char *path)
{
  char cmd[400];

  snprintf (cmd, sizeof cmd, fmt, path, path);
  return system (cmd);
}

static void
test_tables_shared_with_a_snapshot_are_copied (void **state)
{
  char path[] = "/tmp/test-qcow2-XXXXXX";
  struct fault f = { 0 };
  struct io_store *base;
  struct env e = { 0 };
  uint64_t shared, before[64];

  if (system ("command -v qemu-io >/dev/null") != 0)
    skip ();
  close (mkstemp (path));
  assert_int_equal (run_cmd ("qemu-img create -q -f qcow2 -o "
                             "cluster_size=4096 %s 4M && qemu-io -f qcow2 "
                             "-c 'write -q -P 7 0 256k' %s", path), 0);
  assert_int_equal (run_cmd ("qemu-img snapshot -c s1 %s", path), 0);
  ok (io_file_open (path, IO_FILE_WRITE, IO_LOCK_NONE, &e.io, &f));
  adopt (e.io, 32768);
  base = clone_store (e.io);
  env_open (&e);
  shared = e.img->l1.v[0];
  assert_false (shared & QCOW2_L2_COPIED);
  for (unsigned i = 0; i < 64; ++i)
    before[i] = entry_of (e.img, 0, i);

  assert_int_equal (apply_one (e.img, (struct qcow2_change)
                               { QCOW2_CHANGE_L2, .count = 1 }), -EINVAL);
  unmap (e.img, 0);
  write_new (e.img, 1);
  ok (link_to (e.img, 2, before[0] / 4096));  /* the anchor has it now */
  assert_true (e.img->l1.v[0] & QCOW2_L2_COPIED);
  assert_int_equal (refcount_of (e.img, shared / 4096, NULL), 1);
  assert_int_equal (refcount_of (e.img, before[9] / 4096, NULL), 2);
  for (unsigned i = 0; i < 64; ++i)
    assert_int_equal (entry_of (e.img, 1, i), before[i]);
  assert_int_equal (entry_of (e.img, 0, 9), before[9]);
  writeback (e.img);
  assert_int_equal (run_cmd ("qemu-img check -q -f qcow2 -U %s", path), 0);
  replay_on (base, &e, e.img);
  qcow2_close (e.img);
  io_close (e.io);
  free (e.log);
  assert_int_equal (run_cmd ("qemu-img snapshot -a s1 %s && qemu-io -f qcow2 "
                             "-c 'read -q -P 7 0 256k' %s", path), 0);
  assert_int_equal (run_cmd ("qemu-img check -q -f qcow2 %s", path), 0);
  unlink (path);
}

/* --- Bad changes --------------------------------------------------------- */

#define refused(...)                                                    \
  assert_int_equal (apply_one (e.img, (struct qcow2_change)             \
                               { __VA_ARGS__ }), -EINVAL)

static void
test_changes_that_do_not_fit_are_refused (void **state)
{
  struct env e;
  struct qcow2_header_fields h;
  uint64_t dirty;

  env_new (&e, 9, 4, 4096);
  write_new (e.img, 0);
  h = e.img->fields;
  lock_acquire (&e.img->lock);
  dirty = qcow2_dirty_bytes_locked (e.img);
  lock_release (&e.img->lock);
  refused (QCOW2_CHANGE_L2, .count = 1, .guest_idx = 4096);
  refused (QCOW2_CHANGE_L2, .count = 2, .guest_idx = 4095);
  refused (QCOW2_CHANGE_L2, .count = 1, .guest_idx = UINT64_MAX);
  refused (QCOW2_CHANGE_L2, .count = 0);
  refused (QCOW2_CHANGE_L2, .count = 1, .root = 1);
  refused (QCOW2_CHANGE_L2, .count = 1, .entry = 2);
  refused (QCOW2_CHANGE_L2, .count = 1, .entry = UINT64_C (1) << 50);
  refused (QCOW2_CHANGE_L2, .count = 1, .guest_idx = 1000, .entry = 512);
  refused (QCOW2_CHANGE_REFCOUNT, .count = 1, .refcount = 1);
  refused (QCOW2_CHANGE_REFCOUNT, .count = 1, .host_idx = UINT64_MAX,
           .refcount = 1);
  refused (QCOW2_CHANGE_REFCOUNT, .count = 1, .host_idx = 9,
           .refcount = 65536);
  refused (QCOW2_CHANGE_REFCOUNT, .count = 1, .host_idx = 9,
           .anchored = true);
  refused (QCOW2_CHANGE_REFCOUNT, .count = 1, .host_idx = 30000,
           .refcount = 1);
  refused (QCOW2_CHANGE_L2_TABLE, .table_idx = 1 << 20, .host_off = 512);
  refused (QCOW2_CHANGE_L2_TABLE, .table_idx = 5, .host_off = 513);
  refused (QCOW2_CHANGE_L2_TABLE, .table_idx = 5, .host_off = 0);
  refused (QCOW2_CHANGE_L2_TABLE, .table_idx = 0, .host_off = 512);
  refused (QCOW2_CHANGE_REFBLOCK, .table_idx = 0, .host_off = 51200);
  refused (QCOW2_CHANGE_REFBLOCK, .table_idx = 1 << 20, .host_off = 51200);
  refused (QCOW2_CHANGE_ANCHOR_TABLE, .table_idx = 1 << 20,
           .host_off = 51200);
  h.reftable_clusters--;
  refused (QCOW2_CHANGE_HEADER, .header = h);
  h = e.img->fields;
  h.anchor_l1_off++;
  refused (QCOW2_CHANGE_HEADER, .header = h);
  refused (99);
  ok (apply_one (e.img, (struct qcow2_change) { QCOW2_CHANGE_L2,
                 .count = 4000, .guest_idx = 96 }));
  lock_acquire (&e.img->lock);
  assert_int_equal (qcow2_dirty_bytes_locked (e.img), dirty);
  lock_release (&e.img->lock);
  env_free (&e);
}

static void
test_corrupt_pointers_give_eio (void **state)
{
  struct env e;
  struct qcow2_txn txn;
  uint64_t entry;

  env_new (&e, 9, 4, 4096);
  e.img->l1.v[3] = UINT64_C (0x8000000000000000) | 1 << 30;
  e.img->reftable.v[3] = 513;
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  assert_int_equal (qcow2_get_entry_locked (&txn, 0, 3 * 64, &entry), -EIO);
  assert_int_equal (qcow2_prepare_entry_locked (&txn, 0, 3 * 64), -EIO);
  assert_int_equal (qcow2_prepare_host_locked (&txn, 3 * 256, 1), -EIO);
  assert_int_equal (qcow2_get_entry_locked (&txn, 1, 0, &entry), -EINVAL);
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  env_free (&e);
}

/* --- Failing I/O --------------------------------------------------------- */

struct failing {
  enum io_call call;
  int err;
};

static int
fail_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct failing *f = opaque;

  return call == f->call ? f->err : 0;
}

static void
test_failed_reads_and_writebacks_can_be_tried_again (void **state)
{
  struct failing failing = { 0 };
  struct qcow2_writeback *wb;
  struct qcow2_txn txn;
  uint64_t entry, dirty;
  struct env e;

  env_new (&e, 9, 4, 64);
  qcow2_close (e.img);
  ok (io_faulty_new (e.io, fail_cb, &failing, &e.io));
  env_open (&e);
  write_new (e.img, 0);
  write_new (e.img, 9);
  lock_acquire (&e.img->lock);
  dirty = qcow2_dirty_bytes_locked (e.img);
  ok (qcow2_writeback_begin_locked (e.img, &wb));
  assert_int_equal (qcow2_dirty_bytes_locked (e.img), 0);
  lock_release (&e.img->lock);
  failing = (struct failing) { IO_PWRITE, -ENOSPC };
  assert_int_equal (qcow2_writeback_write (wb), -ENOSPC);
  lock_acquire (&e.img->lock);
  qcow2_writeback_end_locked (wb, false);
  assert_int_equal (qcow2_dirty_bytes_locked (e.img), dirty);
  lock_release (&e.img->lock);
  failing.err = 0;
  writeback (e.img);
  check_with_qemu (e.io);
  env_reopen (&e);

  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  failing = (struct failing) { IO_PREAD, -EIO };
  assert_int_equal (qcow2_get_entry_locked (&txn, 0, 9, &entry), -EAGAIN);
  lock_release (&e.img->lock);
  assert_int_equal (qcow2_txn_load (&txn), -EIO);
  failing.err = 0;
  lock_acquire (&e.img->lock);
  assert_int_equal (e.img->cache.nr_slices, 0);
  ok (RETRY (&txn, qcow2_get_entry_locked (&txn, 0, 9, &entry)));
  assert_int_not_equal (entry, 0);
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  env_free (&e);
}

/* --- Loading against creating -------------------------------------------- */

/* While a table is being read, the same place becomes a new table. */
struct race {
  struct qcow2_image *img;
  struct qcow2_change change;
  uint64_t host_off;
  bool done;
};

static int
race_cb (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  struct race *race = opaque;
  struct qcow2_txn txn;

  if (call != IO_PREAD || !race->img || host_off != race->host_off ||
      race->done)
    return 0;
  race->done = true;
  qcow2_txn_begin (race->img, &txn);
  lock_acquire (&race->img->lock);
  ok (qcow2_apply_locked (&txn, &race->change));
  if (race->change.type == QCOW2_CHANGE_L2_TABLE)
    change_l2 (&txn, 0, race->host_off);
  qcow2_txn_end_locked (&txn);
  lock_release (&race->img->lock);
  return 0;
}

static void
test_a_table_created_while_it_is_read_is_kept (void **state)
{
  struct race race = { 0 };
  struct qcow2_txn txn;
  struct env e;
  bool anchored;

  env_new (&e, 9, 4, 64);
  write_new (e.img, 5);
  writeback (e.img);
  qcow2_close (e.img);
  ok (io_faulty_new (e.io, race_cb, &race, &e.io));
  env_open (&e);
  race.host_off = e.img->l1.v[0] & QCOW2_OFFSET_MASK;
  race.change = (struct qcow2_change) { QCOW2_CHANGE_L2_TABLE,
                                        .host_off = race.host_off };
  race.img = e.img;
  assert_int_equal (entry_of (e.img, 0, 5), 0);
  assert_true (race.done);
  assert_int_equal (entry_of (e.img, 0, 0), race.host_off);
  assert_int_equal (e.img->cache.nr_dirty,
                    512 / qcow2_slice_size (&e.img->header.geo));
  assert_int_equal (e.img->cache.dirty->pins, 0);
  qcow2_txn_begin (e.img, &txn);
  lock_acquire (&e.img->lock);
  ok (qcow2_apply_locked (&txn, &race.change));
  ok (qcow2_apply_locked (&txn, &race.change));
  qcow2_txn_end_locked (&txn);
  lock_release (&e.img->lock);
  assert_int_equal (e.img->cache.dirty->pins, 0);

  race.host_off = e.img->anchor.l1.v[1] & QCOW2_OFFSET_MASK;
  race.change = (struct qcow2_change) { QCOW2_CHANGE_ANCHOR_TABLE,
                                        .table_idx = 1,
                                        .host_off = race.host_off };
  race.done = false;
  refcount_of (e.img, 64, &anchored);      /* of the area, says the file */
  assert_true (race.done);
  assert_false (anchored);
  env_free (&e);
}

/* A copy that is not written yet must not be read from the file. */
static void
test_tables_being_written_stay_in_the_cache (void **state)
{
  struct qcow2_writeback *wb;
  struct env e;
  uint64_t h;

  env_new (&e, 9, 4, 8192);
  for (uint64_t g = 0; g < 8192; g += 64)
    write_new (e.img, g);
  writeback (e.img);
  h = write_new (e.img, 64);
  lock_acquire (&e.img->lock);
  ok (qcow2_writeback_begin_locked (e.img, &wb));
  lock_release (&e.img->lock);
  for (uint64_t g = 128; g < 8192; g += 64)
    assert_int_not_equal (entry_of (e.img, 0, g), 0);
  assert_int_equal (entry_of (e.img, 0, 64), h << 9);
  ok (qcow2_writeback_write (wb));
  lock_acquire (&e.img->lock);
  qcow2_writeback_end_locked (wb, true);
  lock_release (&e.img->lock);
  for (uint64_t g = 128; g < 8192; g += 64)
    assert_int_not_equal (entry_of (e.img, 0, g), 0);
  assert_true (e.img->cache.nr_slices <= e.img->cache.budget + 1);
  assert_int_equal (entry_of (e.img, 0, 64), h << 9);
  env_free (&e);
}

/* --- Threads ------------------------------------------------------------- */

#define NR_THREADS 3
#define PER_THREAD 1024

struct worker {
  struct qcow2_image *img;
  unsigned id;
  uint64_t seed;
  uint64_t host[PER_THREAD];
};

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  uint64_t first = w->id * PER_THREAD, g;

  for (int i = 0; i < 1200; ++i) {
    g = rnd_of (&w->seed, PER_THREAD);
    switch (rnd_of (&w->seed, 6)) {
    case 0: case 1:
      w->host[g] = write_new (w->img, first + g);
      break;
    case 2:
      unmap (w->img, first + g);
      w->host[g] = 0;
      break;
    case 3:
      if (w->host[0] && g != 0) {
        ok (link_to (w->img, first + g, w->host[0]));
        w->host[g] = w->host[0];
      }
      break;
    case 4:
      entry_of (w->img, 0, rnd_of (&w->seed, NR_THREADS * PER_THREAD));
      break;
    default:
      assert_int_equal (entry_of (w->img, 0, first + g), w->host[g] << 9);
      if (w->id == 0 && i % 50 == 0)
        writeback (w->img);
      if (i % 20 == 0)
        release_all (w->img);
    }
  }
  return NULL;
}

/* The cache has room for 16 tables: loads and evictions all the time. */
static void
test_threads_share_a_small_cache (void **state)
{
  struct worker w[NR_THREADS];
  pthread_t t[NR_THREADS];
  struct env e;

  env_new (&e, 9, 4, NR_THREADS * PER_THREAD);
  assert_int_equal (e.img->cache.budget, 16);
  for (unsigned i = 0; i < NR_THREADS; ++i) {
    w[i] = (struct worker) { .img = e.img, .id = i, .seed = rnd (1 << 30) };
    assert_int_equal (pthread_create (&t[i], NULL, work, &w[i]), 0);
  }
  for (unsigned i = 0; i < NR_THREADS; ++i)
    pthread_join (t[i], NULL);
  for (unsigned i = 0; i < NR_THREADS; ++i)
    for (unsigned g = 0; g < PER_THREAD; ++g)
      assert_int_equal (entry_of (e.img, 0, i * PER_THREAD + g),
                        w[i].host[g] << 9);
  writeback (e.img);
  for (unsigned g = 0; g < NR_THREADS * PER_THREAD; g += 64)
    entry_of (e.img, 0, g);
  assert_true (e.img->cache.nr_slices < 200);
  check_with_qemu (e.io);
  env_free (&e);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_random_changes_match_model),
    cmocka_unit_test (test_all_refcount_widths),
    cmocka_unit_test (test_drop_passes_unanchored_references_to_the_anchor),
    cmocka_unit_test (test_drop_of_compressed_cluster_counts_down),
    cmocka_unit_test (test_anchored_compressed_data_is_freed),
    cmocka_unit_test (test_an_area_gets_all_its_tables),
    cmocka_unit_test (test_tables_shared_with_a_snapshot_are_copied),
    cmocka_unit_test (test_changes_that_do_not_fit_are_refused),
    cmocka_unit_test (test_corrupt_pointers_give_eio),
    cmocka_unit_test (test_failed_reads_and_writebacks_can_be_tried_again),
    cmocka_unit_test (test_a_table_created_while_it_is_read_is_kept),
    cmocka_unit_test (test_tables_being_written_stay_in_the_cache),
    cmocka_unit_test (test_threads_share_a_small_cache),
  };

  seed_from_environment ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
