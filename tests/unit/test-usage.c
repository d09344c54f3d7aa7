/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests qcow2_root_usage and qcow2_pool_usage: what they call exclusive is
 * exactly what deleting the root frees, also where tables are lent; and the bytes of
 * compressed data that are in use are exactly those that some entry covers.
 *
 * Images come from a model (pool-image.h).  There are two oracles, which know
 * nothing of each other: which clusters no other root can reach, and which ones
 * are left without a reference when the root's paths are dropped by the rules of
 * lent tables, one after the other.
 */
#include "pool-image.h"
#include "checked.h"
#include "pool-random.h"
#include "qcow2-packed.h"
#include "qcow2-usage.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#define RECOVERY QCOW2_INCOMPAT_RECOVERY
/* --- Images ---------------------------------------------------------------- */

struct opened {
  struct io_store *io;
  struct qcow2_image *img;
};

static struct opened
open_io (struct io_store *io)
{
  const struct qcow2_open_params op = { .path = "pool", .cache_bytes = 65536,
                                        .allow_recovery = true };
  struct opened o = { .io = io };
  struct fault f = { 0 };

  if (qcow2_open (io, &op, &o.img, &f) < 0)
    fail_msg ("open: %s", f.msg);
  return o;
}

static struct opened
open_model (struct pi *p)
{
  struct io_store *io;

  assert_int_equal (io_memory_new (0, &io), 0);
  pi_write (p, io, RECOVERY);
  return open_io (io);
}

static void
close_model (struct opened *o, struct pi *p)
{
  qcow2_close (o->img);
  io_close (o->io);
  pi_end (p);
}

/* --- First oracle: reach ----------------------------------------------------- */

struct reach {
  bool data[PI_MAX], table[PI_MAX];
  uint64_t mapped;             /* clusters of the disk */
};

static void
reach_table (const struct pi *p, unsigned r, unsigned i, struct reach *x)
{
  const struct pi_table *t = p->t[p->r[r].l1[i]];
  unsigned k, c, j, nr;

  x->table[p->r[r].l1[i]] = true;
  for (k = 0; k < PI_L2; k++) {
    c = pi_names (t->e[k], &nr);
    for (j = 0; j < nr; j++)
      x->data[c + j] = true;
    if (nr > 0 &&
        ((t->e[k] & QCOW2_L2_COMPRESSED) || !(t->e[k] & QCOW2_L2_ZERO)) &&
        (uint64_t) (i * PI_L2 + k) * PI_CS < p->r[r].size)
      x->mapped++;
  }
}

/* Adds what root R reaches to X. */
static void
reach (const struct pi *p, unsigned r, struct reach *x)
{
  unsigned i;

  for (i = 0; p->r[r].used && i < PI_L1; i++)
    if (p->r[r].l1[i])
      reach_table (p, r, i, x);
}

static struct qcow2_root_usage
by_reach (const struct pi *p, unsigned r)
{
  static struct reach own, others;
  struct qcow2_root_usage u = { .virtual_bytes = p->r[r].size };
  unsigned c, k;

  memset (&own, 0, sizeof own);
  memset (&others, 0, sizeof others);
  reach (p, r, &own);
  for (k = 0; k < PI_ROOTS; k++)
    if (k != r)
      reach (p, k, &others);
  u.mapped_bytes = own.mapped * PI_CS;
  u.table_bytes = r > 0 ? PI_CS : 0;
  for (c = 0; c < PI_MAX; c++) {
    u.exclusive_bytes += own.data[c] && !others.data[c] ? PI_CS : 0;
    u.shared_bytes += own.data[c] && others.data[c] ? PI_CS : 0;
    u.table_bytes += own.table[c] && !others.table[c] ? PI_CS : 0;
  }
  return u;
}

/* --- Second oracle: dropping paths ------------------------------------------ */

static void
drop_path (const struct pi *p, unsigned table, uint64_t *ref)
{
  const uint64_t d = ref[table] >> 16, n = ref[table] & 0xffff;

  if (d > 0) {
    ref[table] -= 65537;
    return;
  }
  pi_add (p->t[table], -1, ref);
  ref[table]--;
  assert_true (n > 1 || ref[table] == 0);
}

/* Returns how many bytes are freed if root R is deleted. */
static uint64_t
by_dropping (const struct pi *p, unsigned r)
{
  static uint64_t ref[PI_MAX];
  uint64_t freed = 1;          /* its L1 table */
  unsigned i, c;

  memcpy (ref, p->ref, sizeof ref);
  for (i = 0; i < PI_L1; i++)
    if (p->r[r].l1[i])
      drop_path (p, p->r[r].l1[i], ref);
  for (c = 0; c < PI_MAX; c++)
    freed += p->ref[c] > p->anchored[c] && ref[c] == p->anchored[c];
  return freed * PI_CS;
}

/* --- Compressed data ---------------------------------------------------------- */

#define MAX_PACKED 65536u

struct packed {
  uint64_t v[MAX_PACKED];      /* with repetitions */
  size_t nr;
  bool live[PI_MAX * PI_CS];   /* each byte of the file */
  bool touched[PI_MAX], kept[PI_MAX];
};

/* KEPT: the entry's table is not changed in place. */
static void
add_packed (struct packed *x, uint64_t entry, bool kept)
{
  uint64_t off = entry & ((UINT64_C (1) << 61) - 1), b;
  unsigned c, nr;

  c = pi_names (entry, &nr);
  assert_true (x->nr < MAX_PACKED);
  x->v[x->nr++] = entry;
  for (b = off; b < (off / 512 + nr) * 512; b++)
    x->live[b] = true;
  for (; nr > 0; nr--) {
    x->touched[c + nr - 1] = true;
    x->kept[c + nr - 1] |= kept;
  }
}

static unsigned crowded;        /* a table that 2,049 counted paths are said to name */

static bool
is_kept (const struct pi *p, unsigned root, unsigned table)
{
  return table == crowded ||
    (pi_paths (p, table) == 1 && (p->r[root].flags & QCOW2_DISK_DOOMED));
}

static int
compare_u64 (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* Finds what the roots have, entry by entry, and counts it byte by byte. */
static void
by_bytes (const struct pi *p, struct qcow2_pool_usage *u)
{
  static struct packed x;
  unsigned r, i, k;
  size_t n;

  memset (&x, 0, sizeof x);
  for (r = 0; r < PI_ROOTS; r++)
    for (i = 0; p->r[r].used && i < PI_L1; i++)
      for (k = 0; p->r[r].l1[i] && k < PI_L2; k++)
        if (p->t[p->r[r].l1[i]]->e[k] & QCOW2_L2_COMPRESSED)
          add_packed (&x, p->t[p->r[r].l1[i]]->e[k], is_kept (p, r, p->r[r].l1[i]));
  qsort (x.v, x.nr, sizeof x.v[0], compare_u64);
  for (n = 0; n < x.nr; n++)
    u->packed += n == 0 || x.v[n] != x.v[n - 1];
  for (n = 0; n < PI_MAX * PI_CS; n++) {
    u->packed_live_bytes += x.live[n];
    u->packed_kept_dead_bytes += x.kept[n / PI_CS] && !x.live[n];
  }
  for (n = 0; n < PI_MAX; n++)
    u->packed_bytes += x.touched[n] ? PI_CS : 0;
}

static uint64_t most_packed, most_dead, most_kept;

/* Counts with memory for all of it, and for a few at a time. */
static void
compare_packed (const struct pi *p, struct qcow2_image *img)
{
  struct qcow2_usage_params params = { .max_packed = 0 };
  struct qcow2_pool_usage u, want = { 0 };
  unsigned k;

  by_bytes (p, &want);
  for (k = 0; k < 3; k++) {
    assert_int_equal (qcow2_pool_usage (img, &params, &u), 0);
    assert_int_equal (u.packed, want.packed);
    assert_int_equal (u.packed_bytes, want.packed_bytes);
    assert_int_equal (u.packed_live_bytes, want.packed_live_bytes);
    assert_int_equal (qcow2_usage_dead (&u), want.packed_bytes -
                      want.packed_live_bytes);
    assert_int_equal (u.packed_kept_dead_bytes, want.packed_kept_dead_bytes);
    params.max_packed = 16 + rnd (30);
  }
  most_packed = MAX_OF (most_packed, u.packed);
  most_dead = MAX_OF (most_dead, qcow2_usage_dead (&u));
  most_kept = MAX_OF (most_kept, u.packed_kept_dead_bytes);
}

/* --- Comparing --------------------------------------------------------------- */

static void
compare_root (const struct pi *p, struct qcow2_image *img, unsigned r,
              unsigned root)
{
  struct qcow2_root_usage u, want = by_reach (p, r);

  assert_int_equal (qcow2_root_usage (img, root, NULL, &u), 0);
  if (memcmp (&u, &want, sizeof u) != 0)
    fail_msg ("root %u: virtual %" PRIu64 ", mapped %" PRIu64 ", exclusive %"
              PRIu64 ", tables %" PRIu64 ", shared %" PRIu64 "; expected %"
              PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64, r,
              u.virtual_bytes, u.mapped_bytes, u.exclusive_bytes,
              u.table_bytes, u.shared_bytes, want.virtual_bytes,
              want.mapped_bytes, want.exclusive_bytes, want.table_bytes,
              want.shared_bytes);
  if (r > 0)
    assert_int_equal (u.exclusive_bytes + u.table_bytes, by_dropping (p, r));
}

static void
compare_pool (const struct pi *p, struct qcow2_image *img)
{
  static struct reach all, one;
  struct qcow2_pool_usage u, want = { 0 };
  unsigned r, c;

  memset (&all, 0, sizeof all);
  for (r = 0; r < PI_ROOTS; r++) {
    memset (&one, 0, sizeof one);
    reach (p, r, &one);
    reach (p, r, &all);
    if (!p->r[r].used || (p->r[r].flags & QCOW2_DISK_DOOMED))
      continue;
    want.nr_roots++;
    want.root_bytes += one.mapped * PI_CS;
    if (r == 0 || (p->r[r].flags & WRITABLE)) {
      want.nr_disks++;
      want.disk_bytes += one.mapped * PI_CS;
    }
  }
  for (c = 0; c < PI_MAX; c++)
    want.stored_bytes += all.data[c] ? PI_CS : 0;
  assert_int_equal (qcow2_pool_usage (img, NULL, &u), 0);
  assert_int_equal (u.nr_disks, want.nr_disks);
  assert_int_equal (u.nr_roots, want.nr_roots);
  assert_int_equal (u.disk_bytes, want.disk_bytes);
  assert_int_equal (u.root_bytes, want.root_bytes);
  assert_int_equal (u.stored_bytes, want.stored_bytes);
}

/* Compares every root of the model, and the pool.  In the file, roots are numbered
 * without gaps. */
static void
compare (struct pi *p)
{
  struct opened o = open_model (p);
  unsigned r, root = 0;

  for (r = 0; r < PI_ROOTS; r++)
    if (p->r[r].used)
      compare_root (p, o.img, r, root++);
  compare_pool (p, o.img);
  compare_packed (p, o.img);
  close_model (&o, p);
}

/* --- Random pools -------------------------------------------------------------- */

static void
test_random_pools (void **state)
{
  unsigned round, step, steps, nr_debts = 0, c;
  struct pi p;

  for (round = 0; round < 150; round++) {
    pi_begin (&p);
    steps = 20 + rnd (300);
    for (step = 0; step < steps && p.next < PI_MAX - 120; step++)
      some_step (&p);
    for (c = 0; c < PI_MAX; c++)
      nr_debts += p.t[c] && pi_paths (&p, c) > 0 && p.t[c]->d > 0;
    compare (&p);
  }
  assert_true (nr_debts > 200);
  assert_true (most_packed > 20);
  assert_true (most_dead > 4 * PI_CS);
  assert_true (most_kept > PI_CS);
}

/* A table that too many disks and snapshots have keeps what is dead beside its data.  One
 * fewer, and it does not. */
static void
test_what_too_many_have_is_kept (void **state)
{
  struct qcow2_pool_usage u;
  struct opened o;
  struct pi p;
  unsigned disk, c, many;

  for (many = 0; many < 2; many++) {
    pi_begin (&p);
    disk = pi_disk (&p, "one", WRITABLE);
    c = pi_new (&p);
    pi_set (&p, disk, 0, QCOW2_L2_COMPRESSED | ((uint64_t) c * PI_CS + 100));
    c = pi_new (&p);
    pi_set (&p, disk, PI_L2, QCOW2_L2_COMPRESSED | ((uint64_t) c * PI_CS + 50));
    o = open_model (&p);
    pi_put (o.io, pi_refcount_at (p.r[disk].l1[0]), 4, QCOW2_MOST_COUNTED + many);
    crowded = many ? p.r[disk].l1[0] : 0;
    compare_packed (&p, o.img);
    assert_int_equal (qcow2_pool_usage (o.img, NULL, &u), 0);
    assert_int_equal (qcow2_usage_dead (&u), 150);
    assert_int_equal (u.packed_kept_dead_bytes, many ? 100 : 0);
    crowded = 0;
    close_model (&o, &p);
  }
}

/* More descriptors begin in one cluster than the walk has room for: the others are
 * left out, and the walk ends. */
static void
test_one_cluster_with_too_many (void **state)
{
  struct qcow2_packed_window w;
  struct qcow2_packed *walk;
  struct opened o;
  struct pi p;
  unsigned k, c, nr = 0, windows = 0;
  bool left_out = false;
  int r;

  pi_begin (&p);
  c = pi_new (&p);
  pi_new (&p);
  for (k = 0; k < 50; k++)
    pi_set (&p, 0, k, QCOW2_L2_COMPRESSED | (c * PI_CS + 3 * k));
  pi_set (&p, 0, 60, QCOW2_L2_COMPRESSED | ((c + 1) * PI_CS));
  o = open_model (&p);
  assert_int_equal (qcow2_packed_begin (o.img, 10, false, &walk), 0);
  do {
    while ((r = qcow2_packed_step (walk)) == 1)
      ;
    assert_int_equal (r, 0);
    qcow2_packed_get (walk, &w);
    nr += w.nr;
    windows++;
    left_out |= w.left_out;
    assert_true (w.nr <= 10);
  } while (qcow2_packed_next (walk));
  qcow2_packed_end (walk);
  assert_true (left_out);
  assert_int_equal (nr, 11);
  assert_true (windows <= 3);
  close_model (&o, &p);
}

/* --- Single cases ---------------------------------------------------------------- */

/* A table of the disk alone and one that is lent name the same cluster: it is not
 * exclusive, although the debt hides one of its references. */
static void
test_debt_hides_no_reference (void **state)
{
  struct qcow2_root_usage u;
  struct opened o;
  struct pi p;
  unsigned one, two, c;

  pi_begin (&p);
  one = pi_disk (&p, "one", WRITABLE);
  c = pi_new (&p);
  pi_set (&p, one, 0, (uint64_t) c * PI_CS);
  two = pi_disk (&p, "two", WRITABLE);
  pi_lend (&p, one, two);
  pi_set (&p, one, PI_L2, (uint64_t) c * PI_CS);
  o = open_model (&p);
  assert_int_equal (p.ref[c], 2);        /* of three paths */
  assert_int_equal (qcow2_root_usage (o.img, one, NULL, &u), 0);
  assert_int_equal (u.exclusive_bytes, 0);
  assert_int_equal (u.shared_bytes, PI_CS);
  assert_int_equal (u.mapped_bytes, 2 * PI_CS);
  assert_int_equal (u.table_bytes, 2 * PI_CS);
  close_model (&o, &p);
}

static unsigned stop_after;

static bool
stop (void *opaque)
{
  return stop_after-- == 0;
}

static void
test_no_such_root_and_stop (void **state)
{
  const struct qcow2_usage_params params = { .stop = stop };
  struct qcow2_root_usage u;
  struct qcow2_pool_usage all;
  struct opened o;
  struct pi p;
  unsigned disk;

  pi_begin (&p);
  disk = pi_disk (&p, "one", WRITABLE);
  pi_set (&p, disk, 0, (uint64_t) pi_new (&p) * PI_CS);
  pi_set (&p, disk, PI_L2, (uint64_t) pi_new (&p) * PI_CS);
  o = open_model (&p);
  assert_int_equal (qcow2_root_usage (o.img, 2, NULL, &u), -ENOENT); /* anchor */
  assert_int_equal (qcow2_root_usage (o.img, 3, NULL, &u), -ENOENT);
  assert_int_equal (qcow2_root_usage (o.img, 70000, NULL, &u), -ENOENT);
  stop_after = 1;
  assert_int_equal (qcow2_root_usage (o.img, disk, &params, &u), -EINTR);
  stop_after = 1;
  assert_int_equal (qcow2_pool_usage (o.img, &params, &all), -EINTR);
  stop_after = 1000;
  assert_int_equal (qcow2_pool_usage (o.img, &params, &all), 0);
  assert_int_equal (all.disk_bytes, 2 * PI_CS);
  assert_true (qcow2_usage_ratio (&all) == 1);
  close_model (&o, &p);
}

/* Tables whose entries and places are anything end in an error or in figures, and
 * touch no memory past the counters. */
static void
test_hostile_entries (void **state)
{
  struct qcow2_root_usage u;
  struct qcow2_pool_usage all;
  struct opened o;
  struct pi p;
  unsigned round, disk, i;
  uint64_t at;

  for (round = 0; round < 300; round++) {
    pi_begin (&p);
    disk = pi_disk (&p, "one", WRITABLE);
    pi_set (&p, disk, 0, (uint64_t) pi_new (&p) * PI_CS);
    o = open_model (&p);
    qcow2_close (o.img);
    at = (uint64_t) (rnd (2) ? p.r[disk].l1[0] : p.r[disk].l1_at) * PI_CS;
    for (i = 0; i < PI_L1; i++)
      pi_put (o.io, at + i * 8, 8, splitmix64 (&seed) >> rnd (64));
    o = open_io (o.io);
    i = qcow2_root_usage (o.img, disk, NULL, &u) == 0;
    i += qcow2_pool_usage (o.img, NULL, &all) == 0;
    assert_true (i == 0 || u.virtual_bytes == PI_DISK);
    close_model (&o, &p);
  }
}

/* Each read in turn fails, and each pass says so or needed none of it. */
static int64_t nth;

static int
fail_nth (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == IO_PREAD && nth-- == 0 ? -EIO : 0;
}

static void
test_each_read_failing (void **state)
{
  struct qcow2_root_usage u;
  struct qcow2_pool_usage all;
  struct opened o;
  struct io_store *io;
  struct pi p;
  unsigned disk, k;
  int64_t i;
  int r;

  pi_begin (&p);
  disk = pi_disk (&p, "one", WRITABLE);
  for (k = 0; k < PI_L1; k++)
    pi_set (&p, disk, k * PI_L2, (uint64_t) pi_new (&p) * PI_CS);
  o = open_model (&p);
  qcow2_close (o.img);
  nth = INT64_MAX;
  assert_int_equal (io_faulty_new (o.io, fail_nth, NULL, &io), 0);
  for (k = 0; k < 2; k++)
    for (i = 0; ; i++) {
      nth = INT64_MAX;
      o = open_io (io);
      nth = i;
      r = k ? qcow2_root_usage (o.img, disk, NULL, &u) :
        qcow2_pool_usage (o.img, NULL, &all);
      qcow2_close (o.img);
      if (nth >= 0)
        break;
      assert_int_equal (r, -EIO);
    }
  assert_int_equal (r, 0);
  assert_true (i > 4);
  io_close (io);
  pi_end (&p);
}

int
main (void)
{
  const char *s = getenv ("TEST_SEED");
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_random_pools),
    cmocka_unit_test (test_one_cluster_with_too_many),
    cmocka_unit_test (test_what_too_many_have_is_kept),
    cmocka_unit_test (test_debt_hides_no_reference),
    cmocka_unit_test (test_no_such_root_and_stop),
    cmocka_unit_test (test_hostile_entries),
    cmocka_unit_test (test_each_read_failing),
  };

  seed = s ? strtoull (s, NULL, 0) : (uint64_t) getpid ();
  print_message ("TEST_SEED=%" PRIu64 "\n", seed);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
