/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests lent tables: clones, writes, payments and deletions in any order.
 *
 * Each of several disks has a plain array of the entries that it should have.
 * After each operation, every disk has these entries; the refcount of each L2
 * table says how many L1 entries name it, and a debt below that; and the
 * refcount of each cluster of data is the number of its references over all
 * counted paths, plus the anchor's.  What breaks a rule of debt.c or
 * debt-steps.c loses data, or leaks it, and is found by one of these.
 *
 * Damaged tables are to be refused: nothing changes, and one line says why.
 *
 * The log is also replayed, on the image as it was at the last checkpoint and
 * on one that a writeback has overwritten since, and must make the same image
 * of both.  At the end everything is paid, and the image must pass the checks
 * of this program and of qemu-img.
 */
#include "qcow2-check.h"
#include "qcow2-disks.h"

#define ROOTS 7                /* with the active disk */
#define NR_L1 4
#define PER_TABLE 64           /* entries, with clusters of 512 bytes */
#define NR_GUEST (NR_L1 * PER_TABLE)
#define MAX_HOST 32768
#define MAX_HELD 8

struct world {
  struct env e;
  uint64_t want[ROOTS][NR_GUEST];     /* entries without COPIED */
  bool doomed[ROOTS];
  uint64_t held[MAX_HELD];     /* host indices */
  size_t nr_held;
  bool other[MAX_HOST];        /* in use before there was data */
  uint32_t paths[MAX_HOST];    /* L1 entries that name a table */
  uint32_t counted[MAX_HOST];  /* references to data by counted paths */
  struct io_store *base;       /* the image at the last checkpoint */
  size_t base_log;             /* length of the log then */
};

/* --- Checking the world ---------------------------------------------------- */

/* Finds the clusters that an entry refers to; returns how many. */
static uint64_t
clusters_of (const struct qcow2_image *img, uint64_t entry, uint64_t *first)
{
  uint64_t off = entry & QCOW2_OFFSET_MASK, len = off != 0;

  if (entry & QCOW2_L2_COMPRESSED)
    qcow2_compressed_extent (img, entry, &off, &len);
  *first = off / 512;
  return len == 0 ? 0 : (off + len - 1) / 512 - *first + 1;
}

/* Counts the references of a table, over NR counted paths. */
static void
count_table (struct world *w, unsigned root, uint64_t ti, uint64_t nr)
{
  uint64_t entry, first, count;
  bool anchored;

  for (uint64_t g = ti * PER_TABLE; g < (ti + 1) * PER_TABLE; ++g) {
    entry = entry_of (w->e.img, root, g);
    count = clusters_of (w->e.img, entry, &first);
    assert_true (first + count <= MAX_HOST);
    for (uint64_t i = 0; i < count; ++i)
      w->counted[first + i] += nr;
    if (entry & QCOW2_L2_COPIED) {
      assert_int_equal (refcount_of (w->e.img, first, &anchored), 1);
      assert_false (anchored);
    }
  }
}

static void
count_paths (struct world *w)
{
  uint64_t host_idx;

  memset (w->paths, 0, sizeof w->paths);
  for (unsigned root = 0; root < ROOTS; ++root)
    for (uint64_t ti = 0; ti < NR_L1; ++ti) {
      host_idx = (l1_of (w->e.img, root, ti) & QCOW2_OFFSET_MASK) / 512;
      assert_true (host_idx < MAX_HOST);
      w->paths[host_idx]++;
    }
  w->paths[0] = 0;
}

/* Checks the refcounts of tables, and counts what they name. */
static void
check_tables (struct world *w)
{
  static bool done[MAX_HOST];
  uint64_t host_idx, v;

  memset (done, 0, sizeof done);
  memset (w->counted, 0, sizeof w->counted);
  for (unsigned root = 0; root < ROOTS; ++root)
    for (uint64_t ti = 0; ti < NR_L1; ++ti) {
      host_idx = (l1_of (w->e.img, root, ti) & QCOW2_OFFSET_MASK) / 512;
      if (host_idx == 0 || done[host_idx])
        continue;
      done[host_idx] = true;
      v = refcount_of (w->e.img, host_idx, NULL);
      assert_int_equal (qcow2_paths_of (v), w->paths[host_idx]);
      assert_true (qcow2_debt_of (v) < qcow2_paths_of (v));
      count_table (w, root, ti, qcow2_paths_of (v) - qcow2_debt_of (v));
    }
}

static bool
is_own_table (const struct qcow2_image *img, uint64_t host_idx)
{
  for (uint64_t i = 0; i < img->reftable.nr; ++i)
    if (img->reftable.v[i] / 512 == host_idx)
      return true;
  for (uint64_t i = 0; i < img->anchor.l1.nr; ++i)
    if ((img->anchor.l1.v[i] & QCOW2_OFFSET_MASK) / 512 == host_idx)
      return true;
  return false;
}

static void
check_data (struct world *w, uint64_t host_idx)
{
  struct qcow2_image *img = w->e.img;
  bool anchored;
  uint64_t n = refcount_of (img, host_idx, &anchored);
  bool held = qcow2_is_held_locked (img, host_idx);

  if (n != w->counted[host_idx] + anchored)
    fail_msg ("cluster %d: refcount %d, %d counted", (int) host_idx, (int) n,
              w->counted[host_idx]);
  /* The anchor's own reference keeps data for a holder only. */
  if (w->counted[host_idx] == 0 && n != 0 && !held)
    fail_msg ("cluster %d leaks", (int) host_idx);
}

static void
check_world (struct world *w)
{
  struct qcow2_image *img = w->e.img;

  for (unsigned root = 0; root < ROOTS; ++root)
    for (uint64_t g = 0; g < NR_GUEST; ++g)
      assert_int_equal (entry_of (img, root, g) & ~QCOW2_L2_COPIED,
                        w->want[root][g]);
  count_paths (w);
  check_tables (w);
  assert_true (img->alloc.frontier <= MAX_HOST);
  for (uint64_t i = 1; i < img->alloc.frontier; ++i)
    if (w->paths[i] > 0)
      assert_int_equal (w->counted[i], 0);
    else if (w->other[i] || (w->counted[i] == 0 && is_own_table (img, i)))
      assert_int_equal (w->counted[i], 0);
    else
      check_data (w, i);
}

/* --- Replay ---------------------------------------------------------------- */

static void
compare (struct qcow2_image *a, struct qcow2_image *b)
{
  bool anchored_a, anchored_b;

  for (unsigned root = 0; root < ROOTS; ++root) {
    for (uint64_t ti = 0; ti < NR_L1; ++ti)
      assert_int_equal (l1_of (a, root, ti), l1_of (b, root, ti));
    for (uint64_t g = 0; g < NR_GUEST; ++g)
      assert_int_equal (entry_of (a, root, g), entry_of (b, root, g));
  }
  for (uint64_t h = 0; h < MAX_OF (a->alloc.frontier, b->alloc.frontier); ++h) {
    assert_int_equal (refcount_of (a, h, &anchored_a),
                      refcount_of (b, h, &anchored_b));
    assert_int_equal (anchored_a, anchored_b);
  }
}

/* Replays what came since the last checkpoint on a copy of IO. */
static void
replay (struct world *w, struct io_store *io)
{
  struct io_store *copy = clone_store (io);
  struct qcow2_image *b = open_image (copy, true);

  begin_disks (b);
  qcow2_replay_begin (b);
  apply_all (b, w->e.log + w->base_log, w->e.nr_log - w->base_log);
  ok (qcow2_replay_end (b));
  compare (w->e.img, b);
  qcow2_close (b);
  io_close (copy);
}

static void
crash (struct world *w)
{
  replay (w, w->base);
  writeback (w->e.img);        /* of a checkpoint that is not completed */
  replay (w, w->e.io);
}

static void
checkpoint (struct world *w)
{
  uint64_t token;

  lock_acquire (&w->e.img->lock);
  token = qcow2_tables_mark_locked (w->e.img);
  lock_release (&w->e.img->lock);
  writeback (w->e.img);
  lock_acquire (&w->e.img->lock);
  qcow2_tables_settled_locked (w->e.img, token);
  lock_release (&w->e.img->lock);
  io_close (w->base);
  w->base = clone_store (w->e.io);
  w->base_log = w->e.nr_log;
}

/* --- Operations ------------------------------------------------------------- */

static uint64_t
reserve (struct qcow2_image *img, uint64_t count)
{
  uint64_t idx;
  LOCK_FOR_SCOPE (&img->lock);

  ok (qcow2_reserve_area_locked (img, count, &idx));
  return idx;
}

static void
put_want (struct world *w, struct put p)
{
  ok (put (w->e.img, p));
  w->want[p.root][p.guest_idx] = p.entry & ~QCOW2_L2_COPIED;
}

/* New data of this program, or data as QEMU writes it. */
static void
op_write (struct world *w, unsigned root, uint64_t g)
{
  struct put p = { root, g, .count = 1, .anchored = rnd (4) > 0 };

  p.first = reserve (w->e.img, 1);
  p.entry = p.first * 512 | (p.anchored ? 0 : QCOW2_L2_COPIED);
  if (rnd (8) == 0)
    p.entry |= QCOW2_L2_ZERO;  /* preallocated */
  put_want (w, p);
}

static void
op_compressed (struct world *w, unsigned root, uint64_t g)
{
  struct put p = { root, g, .count = 1 + rnd (2) };

  p.first = reserve (w->e.img, p.count);
  p.entry = QCOW2_L2_COMPRESSED | (p.count - 1) << 61 |
    (p.first * 512 + rnd (512));
  put_want (w, p);
}

/* Gives guest cluster G what another one, maybe of the same table, has. */
static void
op_link (struct world *w, unsigned root, uint64_t g)
{
  struct qcow2_image *img = w->e.img;
  uint64_t other = rnd (3) ? g / PER_TABLE * PER_TABLE + rnd (PER_TABLE) :
    rnd (NR_GUEST);
  struct put p = { root, g, w->want[rnd (2) ? root : rnd (ROOTS)][other] };
  bool anchored;

  p.entry &= ~QCOW2_L2_ZERO;
  p.count = clusters_of (img, p.entry, &p.first);
  if (p.count == 0 ||
      refcount_of (img, p.first, &anchored) < 1 + (uint64_t) anchored ||
      (!(p.entry & QCOW2_L2_COMPRESSED) && !anchored))
    return;                    /* such clusters are not linked */
  put_want (w, p);
}

static void
op_unmap (struct world *w, unsigned root, uint64_t g)
{
  struct put p = { root, g, rnd (2) ? QCOW2_L2_ZERO : 0 };

  put_want (w, p);
}

static bool
is_empty (const struct world *w, unsigned root)
{
  for (uint64_t ti = 0; ti < NR_L1; ++ti)
    if (l1_of (w->e.img, root, ti) != 0)
      return false;
  return true;
}

static void
op_clone (struct world *w, unsigned from)
{
  unsigned to = 1 + rnd (ROOTS - 1);

  if (to == from || w->doomed[to] || !is_empty (w, to))
    return;
  lend (w->e.img, from, to);
  memcpy (w->want[to], w->want[from], sizeof w->want[to]);
}

static void
op_doom (struct world *w, unsigned root)
{
  LOCK_FOR_SCOPE (&w->e.img->lock);

  if (root == 0)
    return;
  w->doomed[root] = true;
  w->e.img->snapshots.v[root - 1].disk_flags |= QCOW2_DISK_DOOMED;
}

/* Checks that a step made no more records than it may. */
static void
check_records (struct world *w, size_t before)
{
  assert_true (w->e.nr_log - before <= qcow2_step_records (w->e.img));
}

static void
op_drop (struct world *w, unsigned root, uint64_t ti)
{
  const bool table = l1_of (w->e.img, root, ti) != 0;
  const size_t before = w->e.nr_log;

  assert_int_equal (drop_path (w->e.img, root, ti), table);
  assert_int_equal (l1_of (w->e.img, root, ti), 0);
  check_records (w, before);
  memset (w->want[root] + ti * PER_TABLE, 0,
          PER_TABLE * sizeof w->want[root][0]);
  if (is_empty (w, root)) {
    w->doomed[root] = false;
    w->e.img->snapshots.v[root - 1].disk_flags = QCOW2_DISK_WRITABLE;
  }
}

static void
op_pay (struct world *w, unsigned root, uint64_t ti)
{
  const uint64_t table = (l1_of (w->e.img, root, ti) & QCOW2_OFFSET_MASK) / 512;
  const uint64_t v = table ? refcount_of (w->e.img, table, NULL) : 0;
  const size_t before = w->e.nr_log;

  assert_int_equal (pay (w->e.img, root, ti), qcow2_debt_of (v) > 0);
  check_records (w, before);
  if (table)
    assert_int_equal (refcount_of (w->e.img, table, NULL), qcow2_paths_of (v));
}

static int
hold_step (struct qcow2_txn *txn, void *opaque)
{
  return qcow2_hold_locked (txn, *(uint64_t *) opaque, UINT64_MAX);
}

static void
op_hold (struct world *w, uint64_t entry)
{
  uint64_t host_idx = (entry & QCOW2_OFFSET_MASK) / 512;

  if (w->nr_held == MAX_HELD || (entry & QCOW2_L2_COMPRESSED) || host_idx == 0)
    return;
  if (qcow2_txn_run (w->e.img, hold_step, &host_idx) == 0)
    w->held[w->nr_held++] = host_idx;
}

static void
op_unhold (struct world *w)
{
  struct qcow2_txn txn;

  if (w->nr_held == 0)
    return;
  qcow2_txn_begin (w->e.img, &txn);
  lock_acquire (&w->e.img->lock);
  qcow2_unhold_locked (&txn, w->held[--w->nr_held]);
  qcow2_txn_end_locked (&txn);
  lock_release (&w->e.img->lock);
}

static void
op_change (struct world *w, unsigned root, uint64_t g)
{
  const uint64_t op = rnd (16);

  if (w->doomed[root])
    op_drop (w, root, g / PER_TABLE);
  else if (op < 5)
    op_write (w, root, g);
  else if (op < 7)
    op_compressed (w, root, g);
  else if (op < 14)
    op_link (w, root, g);
  else
    op_unmap (w, root, g);
}

/* Drops a path of a deleted disk, if there is one. */
static void
op_drop_some (struct world *w)
{
  const unsigned first = rnd (ROOTS);
  unsigned root;

  for (unsigned i = 0; i < ROOTS; ++i) {
    root = (first + i) % ROOTS;
    for (uint64_t ti = rnd (NR_L1); w->doomed[root] && ti < NR_L1; ++ti)
      if (l1_of (w->e.img, root, ti) != 0 || is_empty (w, root)) {
        op_drop (w, root, ti);
        return;
      }
  }
}

static void
random_op (struct world *w)
{
  const unsigned root = rnd (ROOTS);
  const uint64_t g = rnd (NR_GUEST), op = rnd (100);

  if (op < 48)
    op_change (w, root, g);
  else if (op < 60)
    op_drop_some (w);
  else if (op < 64)
    op_pay (w, root, g / PER_TABLE);
  else if (op < 78 && !w->doomed[root])
    op_clone (w, root);
  else if (op < 84)
    op_doom (w, root);
  else if (op < 89)
    op_hold (w, w->want[root][g]);
  else if (op < 95)
    op_unhold (w);
  else if (op < 98)
    release_all (w->e.img);
  else if (rnd (3) == 0)
    checkpoint (w);
}

/* --- A run ------------------------------------------------------------------ */

static void
world_new (struct world *w)
{
  memset (w, 0, sizeof *w);
  disks_new (&w->e, 9, NR_GUEST, ROOTS - 1, MAX_HOST);
  for (uint64_t i = 0; i < w->e.img->alloc.frontier; ++i)
    w->other[i] = refcount_of (w->e.img, i, NULL) > 0;
  w->base = clone_store (w->e.io);
}

static void
world_free (struct world *w)
{
  io_close (w->base);
  env_free (&w->e);
}

static void
print_problem (void *opaque, bool is_leak, const char *line)
{
  print_message ("check: %s\n", line);
}

/* Checks the image as one without debts. */
static void
check_file (struct io_store *io)
{
  struct qcow2_image *img = open_image (io, false);
  struct qcow2_check_params p = { .problem = print_problem };
  struct qcow2_check_result r;
  struct fault f = { 0 };

  ok (qcow2_check (img, &p, &r, &f));
  assert_int_equal (r.corruptions, 0);
  assert_int_equal (r.leaks, 0);
  assert_int_equal (r.errors, 0);
  qcow2_close (img);
  check_with_qemu (io);
}

static void
settle (struct world *w)
{
  while (w->nr_held > 0)
    op_unhold (w);
  for (unsigned root = 0; root < ROOTS; ++root)
    for (uint64_t ti = 0; ti < NR_L1; ++ti)
      if (w->doomed[root])
        op_drop (w, root, ti);
      else
        op_pay (w, root, ti);
  for (unsigned root = 0; root < ROOTS; ++root)
    for (uint64_t ti = 0; ti < NR_L1; ++ti)
      assert_int_equal (pay (w->e.img, root, ti), 0);
}

static void
random_operations (void **state)
{
  static struct world w;

  for (unsigned run = 0; run < 12; ++run) {
    world_new (&w);
    for (unsigned i = 0; i < 1500; ++i) {
      random_op (&w);
      check_world (&w);
      if (rnd (150) == 0)
        crash (&w);
    }
    settle (&w);
    check_world (&w);
    crash (&w);
    checkpoint (&w);
    check_file (w.e.io);
    world_free (&w);
  }
}

/* --- Damage ---------------------------------------------------------------- */

static unsigned nr_lines;      /* logged */

static void
count_line (void *opaque, enum log_level level, const char *line)
{
  assert_int_equal (level, LOG_ERROR);
  assert_non_null (strstr (line, "the L2 table at offset 0x"));
  nr_lines++;
}

static const struct log_sink counting_sink = { count_line, NULL };

/* Makes a table whose first three entries name data of this program, the first
 * and the third the same, and that two disks have: lent, or paid for. */
static uint64_t
shared_table (struct env *e, bool lent)
{
  uint64_t a, b;

  disks_new (e, 9, NR_GUEST, 2, MAX_HOST);
  e->img->log_sink = &counting_sink;
  a = reserve (e->img, 1);
  b = reserve (e->img, 1);
  ok (put (e->img, (struct put) { 1, 0, a * 512, a, 1, true }));
  ok (put (e->img, (struct put) { 1, 1, b * 512, b, 1, true }));
  ok (put (e->img, (struct put) { 1, 2, a * 512, a, 1, true }));
  lend (e->img, 1, 2);
  if (!lent)
    assert_int_equal (pay (e->img, 1, 0), 1);
  return l1_of (e->img, 1, 0) & QCOW2_OFFSET_MASK;
}

static void
assert_refused (struct env *e, bool lent)
{
  const size_t nr_log = e->nr_log;
  const unsigned lines = nr_lines;

  assert_int_equal (lent ? pay (e->img, 2, 0) : drop_path (e->img, 2, 0), -EIO);
  assert_int_equal (e->nr_log, nr_log);
  assert_int_equal (nr_lines, lines + 1);
}

/* Sets 8 bytes of the file, which need not make a valid entry. */
static void
poke (struct env *e, uint64_t place, uint64_t entry)
{
  ok (apply_one (e->img, (struct qcow2_change) {
        .type = QCOW2_CHANGE_ENTRY, .place = place, .count = 1, .entry = entry,
        .is_l1 = true }));
}

static void
damaged_entries (bool lent)
{
  struct env e;
  uint64_t table = shared_table (&e, lent);
  uint64_t entry = entry_of (e.img, 1, 1);
  const uint64_t bad[] = {
    entry | 1 << 8,                           /* a reserved bit */
    entry | UINT64_C (1) << 60,
    entry + (UINT64_C (1) << 50),             /* past the end */
    table,                                    /* the table itself */
    QCOW2_L2_COMPRESSED | UINT64_C (1) << 55, /* compressed, past the end */
    QCOW2_L2_COMPRESSED | 100,                /* the header */
    (e.img->alloc.frontier + 5) * 512,        /* a free cluster */
  };

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
    poke (&e, table + 8, bad[i]);
    e.img->bad_tables_told = 0;
    assert_refused (&e, lent);
  }
  poke (&e, table + 8, entry);
  assert_int_equal (lent ? pay (e.img, 2, 0) : drop_path (e.img, 2, 0), 1);
  env_free (&e);
}

static void
damaged_refcounts (bool lent)
{
  struct env e;
  uint64_t table = shared_table (&e, lent);
  uint64_t data = entry_of (e.img, 1, 0) / 512;
  uint64_t v = refcount_of (e.img, table / 512, NULL);
  uint64_t n = refcount_of (e.img, data, NULL);

  set_refcount (e.img, data, 2, true);      /* the entries are two */
  assert_refused (&e, lent);
  set_refcount (e.img, data, 0, false);
  assert_refused (&e, lent);
  set_refcount (e.img, data, UINT32_MAX - 1, true);
  if (lent)
    assert_refused (&e, true);
  set_refcount (e.img, data, n, true);
  set_refcount (e.img, table / 512, v | 2 << 16, false);   /* all are owed */
  assert_refused (&e, lent);
  set_refcount (e.img, table / 512, 0, false);
  assert_refused (&e, lent);
  set_refcount (e.img, table / 512, v, false);
  assert_int_equal (lent ? pay (e.img, 2, 0) : drop_path (e.img, 2, 0), 1);
  env_free (&e);
}

static void
damaged_tables_stay (void **state)
{
  damaged_entries (true);
  damaged_entries (false);
  damaged_refcounts (true);
  damaged_refcounts (false);
}

static void
no_table_is_nothing_to_do (void **state)
{
  struct env e;

  disks_new (&e, 9, NR_GUEST, 2, MAX_HOST);
  assert_int_equal (pay (e.img, 1, 0), 0);
  assert_int_equal (drop_path (e.img, 1, 0), 0);
  assert_int_equal (pay (e.img, 1, NR_L1), 0);          /* past the L1 table */
  assert_int_equal (drop_path (e.img, 1, NR_L1), 0);
  assert_int_equal (pay (e.img, 9, 0), -EINVAL);        /* no such root */
  assert_int_equal (drop_path (e.img, 9, 0), -EINVAL);
  assert_int_equal (e.nr_log, 0);
  env_free (&e);
}

/* A table of several slices, with an entry in each of them. */
static void
large_table (void **state)
{
  struct env e;
  uint64_t data[4], per;

  disks_new (&e, 14, 4096, 2, 4096);
  per = e.img->header.geo.l2_entries / 4;
  for (unsigned i = 0; i < 4; ++i) {
    data[i] = reserve (e.img, 1);
    ok (put (e.img, (struct put) { 1, i * per + i, data[i] << 14, data[i], 1,
                                   true }));
  }
  lend (e.img, 1, 2);
  assert_int_equal (pay (e.img, 1, 0), 1);
  for (unsigned i = 0; i < 4; ++i)
    assert_int_equal (refcount_of (e.img, data[i], NULL), 3);
  assert_int_equal (drop_path (e.img, 1, 0), 1);
  for (unsigned i = 0; i < 4; ++i) {
    assert_int_equal (refcount_of (e.img, data[i], NULL), 2);
    assert_int_equal (entry_of (e.img, 2, i * per + i), data[i] << 14);
  }
  assert_int_equal (drop_path (e.img, 2, 0), 1);
  for (unsigned i = 0; i < 4; ++i)
    assert_int_equal (refcount_of (e.img, data[i], NULL), 0);
  assert_int_equal (quarantined (e.img), 4);
  env_free (&e);
}

static int
plain_cluster (struct qcow2_txn *txn, void *opaque)
{
  const uint64_t host_idx = *(uint64_t *) opaque;
  int r = qcow2_prepare_meta_locked (txn, host_idx);

  if (r == 0)
    change_refcount (txn, host_idx, 1, false);
  return r;
}

/* QEMU's data, where nothing is anchored, so that the anchor has no table
 * there: a reference that is dropped while another one is left passes to the
 * anchor, for which the table is made. */
static void
dropped_reference_passes_to_the_anchor (void **state)
{
  struct env e;
  uint64_t table, data, part;
  bool anchored;

  disks_new (&e, 9, NR_GUEST, 2, MAX_HOST);
  data = reserve (e.img, 1000) + 999;
  part = qcow2_anchor_part_of (e.img, data);
  ok (put (e.img, (struct put) { 1, 0, QCOW2_L2_ZERO }));
  table = l1_of (e.img, 1, 0) & QCOW2_OFFSET_MASK;
  ok (qcow2_txn_run (e.img, plain_cluster, &data));
  poke (&e, table + 5 * 8, data * 512 | QCOW2_L2_COPIED);
  lend (e.img, 1, 2);
  assert_int_equal (pay (e.img, 1, 0), 1);
  assert_int_equal (entry_of (e.img, 2, 5), data * 512);
  assert_int_equal (refcount_of (e.img, data, &anchored), 2);
  assert_false (anchored);
  assert_false (qcow2_anchor_has_part (e.img, part));
  assert_int_equal (drop_path (e.img, 1, 0), 1);
  assert_int_equal (refcount_of (e.img, data, &anchored), 2);
  assert_true (anchored);
  assert_int_equal (drop_path (e.img, 2, 0), 1);
  assert_int_equal (refcount_of (e.img, data, &anchored), 0);
  assert_false (anchored);
  env_free (&e);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (no_table_is_nothing_to_do),
    cmocka_unit_test (damaged_tables_stay),
    cmocka_unit_test (large_table),
    cmocka_unit_test (dropped_reference_passes_to_the_anchor),
    cmocka_unit_test (random_operations),
  };

  seed_from_environment ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
