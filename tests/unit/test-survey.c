/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests qcow2_survey against a plain model, and its figures of roots against
 * qcow2_root_usage.
 *
 * Images come from a model (pool-image.h).  The oracle asks, for each cluster, by
 * which entries of which roots it is reached, one root and one path after the
 * other; it knows no set of tables, no groups of tables, and no windows.
 */
#include "pool-image.h"
#include "pool-random.h"
#include "qcow2-survey.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#define RECOVERY QCOW2_INCOMPAT_RECOVERY
#define CELLS 7u

/* --- Images -------------------------------------------------------------- */

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

/* --- The oracle ---------------------------------------------------------- */

/* How often each root of the model refers to each cluster. */
static uint64_t names[PI_ROOTS][PI_MAX];
static uint64_t runs[PI_ROOTS];

/* Counts the runs that the entries of one table make of the disk of root R. */
static void
count_runs (const struct pi *p, unsigned r, unsigned i)
{
  const struct pi_table *t = p->t[p->r[r].l1[i]];
  unsigned k, c, nr, before = UINT32_MAX, end = 0;

  for (k = 0; k < PI_L2; k++) {
    c = pi_names (t->e[k], &nr);
    if (nr == 0 || (!(t->e[k] & QCOW2_L2_COMPRESSED) &&
                    (t->e[k] & QCOW2_L2_ZERO)))
      continue;
    if (before + 1 != k || (c != end && c != end + 1))
      runs[r] += (uint64_t) (i * PI_L2 + k) * PI_CS < p->r[r].size;
    before = k;
    end = c + nr - 1;
  }
}

static void
count_names (const struct pi *p)
{
  unsigned r, i, k, j, c, nr;

  memset (names, 0, sizeof names);
  memset (runs, 0, sizeof runs);
  for (r = 0; r < PI_ROOTS; r++)
    for (i = 0; p->r[r].used && i < PI_L1; i++) {
      if (p->r[r].l1[i] == 0)
        continue;
      count_runs (p, r, i);
      for (k = 0; k < PI_L2; k++) {
        c = pi_names (p->t[p->r[r].l1[i]]->e[k], &nr);
        for (j = 0; j < nr; j++)
          names[r][c + j]++;
      }
    }
}

static unsigned
bucket (uint64_t n)
{
  unsigned k = 0;

  while (UINT64_C (1) << k < n)
    k++;
  return k;
}

/* Returns which root of the model a root of the image is: these are numbered
 * without gaps. */
static unsigned
of_model (const struct pi *p, unsigned root)
{
  unsigned r;

  for (r = 0; !p->r[r].used || root-- > 0; r++)
    ;
  return r;
}

static uint64_t
all_names (unsigned c)
{
  uint64_t n = 0;
  unsigned r;

  for (r = 0; r < PI_ROOTS; r++)
    n += names[r][c];
  return n;
}

/* --- Comparing ----------------------------------------------------------- */

static void
compare_references (const struct qcow2_survey *s)
{
  uint64_t clusters[QCOW2_SURVEY_BUCKETS] = { 0 }, n;
  uint64_t references[QCOW2_SURVEY_BUCKETS] = { 0 };
  unsigned c, k;

  for (c = 0; c < PI_MAX; c++)
    if ((n = all_names (c)) > 0) {
      clusters[bucket (n)]++;
      references[bucket (n)] += n;
    }
  for (k = 0; k < QCOW2_SURVEY_BUCKETS; k++) {
    assert_int_equal (s->references[k].clusters, clusters[k]);
    assert_int_equal (s->references[k].references, references[k]);
  }
}

/* Sets V to the clusters to which roots of a group refer. */
static void
reach_group (const struct pi *p, const struct qcow2_survey *s, unsigned group,
             bool v[PI_MAX])
{
  unsigned i, c, r;

  memset (v, 0, PI_MAX * sizeof *v);
  for (i = 0; i < s->nr_roots; i++) {
    r = of_model (p, s->roots[i].root);
    for (c = 0; s->roots[i].group == group && c < PI_MAX; c++)
      v[c] |= names[r][c] > 0;
  }
}

static void
compare_pair (const struct pi *p, const struct qcow2_survey *s, unsigned a,
              unsigned b)
{
  static bool x[PI_MAX], y[PI_MAX];
  uint64_t n = 0;
  unsigned c;

  reach_group (p, s, a, x);
  reach_group (p, s, b, y);
  for (c = 0; c < PI_MAX; c++)
    n += x[c] && y[c];
  if (s->pair[a][b] != n)
    fail_msg ("groups %u and %u share %" PRIu64 ", expected %" PRIu64, a, b,
              s->pair[a][b], n);
}

/* Returns what a cluster holds. */
static enum qcow2_survey_kind
kind_of (const struct pi *p, const struct qcow2_area area[2], unsigned c)
{
  unsigned i;

  if (all_names (c))
    return QCOW2_SURVEY_DATA;
  for (i = 0; i < 2; i++)
    if (c >= area[i].host_off / PI_CS &&
        c < (area[i].host_off + area[i].size) / PI_CS)
      return QCOW2_SURVEY_STORE;
  if (p->ref[c] == 0)
    return QCOW2_SURVEY_FREE;
  return p->anchored[c] ? QCOW2_SURVEY_UNUSED : QCOW2_SURVEY_TABLE;
}

static void
compare_map (const struct pi *p, const struct qcow2_survey *s,
             const struct qcow2_area area[2])
{
  uint64_t nr[CELLS][QCOW2_SURVEY_KINDS] = { { 0 } }, all = 0, free_runs = 0;
  enum qcow2_survey_kind kind, before = QCOW2_SURVEY_DATA;
  unsigned c, i, k;

  assert_int_equal (s->nr_clusters, p->next);
  assert_in_range (s->nr_cells, 1, CELLS);
  for (c = 0; c < p->next; c++) {
    kind = kind_of (p, area, c);
    nr[c / s->cell_clusters][kind]++;
    free_runs += kind == QCOW2_SURVEY_FREE && before != kind;
    before = kind;
  }
  for (i = 0; i < s->nr_cells; i++)
    for (k = 0; k < QCOW2_SURVEY_KINDS; k++)
      assert_int_equal (s->cells[i].nr[k], nr[i][k]);
  for (k = 0; k < QCOW2_SURVEY_KINDS; k++)
    all += s->nr[k];
  assert_int_equal (all, p->next);
  assert_int_equal (s->free_runs, free_runs);
  assert_false (s->holes_known);
}

static void
compare_root (const struct pi *p, struct qcow2_image *img,
              const struct qcow2_survey_root *root)
{
  struct qcow2_root_usage u;

  assert_int_equal (qcow2_root_usage (img, root->root, NULL, &u), 0);
  if (!root->shared_known)
    u.shared_bytes = 0;
  if (memcmp (&u, &root->u, sizeof u) != 0)
    fail_msg ("root %u: exclusive %" PRIu64 ", tables %" PRIu64 ", shared %"
              PRIu64 ", mapped %" PRIu64 "; expected %" PRIu64 " %" PRIu64 " %"
              PRIu64 " %" PRIu64, root->root, root->u.exclusive_bytes,
              root->u.table_bytes, root->u.shared_bytes, root->u.mapped_bytes,
              u.exclusive_bytes, u.table_bytes, u.shared_bytes,
              u.mapped_bytes);
  assert_int_equal (root->runs, runs[of_model (p, root->root)]);
}

/* Counts some references too many, of data and of tables: such a cluster stays
 * when the only root that names it is deleted. */
static void
leak (struct pi *p, struct io_store *io)
{
  unsigned n = rnd (4), c;

  for (; n > 0; n--) {
    c = PI_FIRST + rnd (p->next - PI_FIRST);
    if (p->ref[c])
      pi_put (io, pi_refcount_at (c), 4, ++p->ref[c]);
  }
}

static void
compare (struct pi *p)
{
  struct opened o = open_model (p);
  const unsigned half = p->next / 2;
  const struct qcow2_area area[] = {
    { (uint64_t) (half + rnd (half)) * PI_CS, (uint64_t) rnd (40) * PI_CS },
    { (uint64_t) rnd (half / 2) * PI_CS, (uint64_t) rnd (half / 4) * PI_CS },
  };
  const struct qcow2_survey_params params = {
    .areas = area, .nr_areas = 2, .max_cells = CELLS,
  };
  struct qcow2_survey s;
  struct fault f = { 0 };
  unsigned a, b;

  leak (p, o.io);
  count_names (p);
  if (qcow2_survey (o.img, &params, &s, &f) < 0)
    fail_msg ("%s", f.msg);
  assert_int_equal (s.nr_groups, s.nr_roots < QCOW2_SURVEY_GROUPS ? s.nr_roots
                    : QCOW2_SURVEY_GROUPS);
  for (a = 0; a < s.nr_roots; a++) {
    compare_root (p, o.img, &s.roots[a]);
    assert_true (s.roots[a].group == a || s.roots[a].group + 1 ==
                 s.nr_groups);
    assert_int_equal (s.roots[a].shared_known, a + 1 < QCOW2_SURVEY_GROUPS ||
                      s.nr_roots == QCOW2_SURVEY_GROUPS);
  }
  for (a = 0; a < s.nr_groups; a++)
    for (b = 0; b < s.nr_groups; b++)
      compare_pair (p, &s, a, b);
  compare_references (&s);
  compare_map (p, &s, area);
  qcow2_survey_free (&s);
  close_model (&o, p);
}

static void
test_random_pools (void **state)
{
  unsigned round, step, steps;
  struct pi p;

  for (round = 0; round < 100; round++) {
    pi_begin (&p);
    steps = 20 + rnd (300);
    for (step = 0; step < steps && p.next < PI_MAX - 120; step++)
      some_step (&p);
    compare (&p);
  }
}

/* --- Order --------------------------------------------------------------- */

static void
test_disks_come_first (void **state)
{
  const struct qcow2_survey_params params = { .max_cells = 1 };
  static const unsigned order[] = { 3, 1, 0, 2, 4 };
  struct qcow2_survey s;
  struct opened o;
  struct pi p;
  unsigned r, k;

  pi_begin (&p);
  pi_disk (&p, "small", WRITABLE);
  pi_disk (&p, "snap", 0);
  pi_disk (&p, "large", WRITABLE);
  pi_disk (&p, "doomed", WRITABLE | QCOW2_DISK_DOOMED);
  for (r = 1; r < 5; r++)
    for (k = 0; k < (r == 1 ? 1 : 2 * r); k++)
      pi_set (&p, r, k, (uint64_t) pi_new (&p) * PI_CS);
  o = open_model (&p);
  assert_int_equal (qcow2_survey (o.img, &params, &s, NULL), 0);
  assert_int_equal (s.nr_roots, 5);
  for (k = 0; k < 5; k++)
    assert_int_equal (s.roots[k].root, order[k]);
  assert_int_equal (s.nr_cells, 1);
  assert_int_equal (s.l2_tables, 4);
  qcow2_survey_free (&s);
  close_model (&o, &p);
}

/* The file goes on behind the last cluster in use, where the host has given it no
 * space. */
static void
test_free_tail_and_holes (void **state)
{
  const uint64_t size = UINT64_C (4) << 30, used = UINT64_C (1) << 20;
  const struct qcow2_survey_params params = { .max_cells = 64 };
  char path[] = "/tmp/test-survey-XXXXXX";
  struct io_store *file;
  struct qcow2_survey s;
  struct opened o;
  struct pi p;
  unsigned disk, i;

  pi_begin (&p);
  disk = pi_disk (&p, "one", WRITABLE);
  pi_set (&p, disk, 0, (uint64_t) pi_new (&p) * PI_CS);
  close (mkstemp (path));
  assert_int_equal (io_file_open (path, IO_FILE_WRITE, IO_LOCK_NONE, &file,
                                  NULL), 0);
  pi_write (&p, file, RECOVERY);
  assert_int_equal (io_pwrite_zeroes (file, (uint64_t) p.next * PI_CS,
                                      used - (uint64_t) p.next * PI_CS), 0);
  assert_int_equal (io_truncate (file, size), 0);
  o = open_io (file);
  assert_int_equal (qcow2_survey (o.img, &params, &s, NULL), 0);
  unlink (path);
  assert_int_equal (s.nr_clusters, size / PI_CS);
  assert_int_equal (s.nr_cells, 64);
  for (i = 1; i < 64; i++) {
    assert_int_equal (s.cells[i].nr[QCOW2_SURVEY_FREE], s.cell_clusters);
    if (s.holes_known)
      assert_int_equal (s.cells[i].hole_bytes, size / 64);
  }
  assert_int_equal (s.largest_free_run, size / PI_CS - p.next);
  if (s.holes_known)
    assert_int_equal (s.hole_bytes - s.cells[0].hole_bytes, size / 64 * 63);
  qcow2_survey_free (&s);
  close_model (&o, &p);
}

/* --- Errors -------------------------------------------------------------- */

static unsigned stop_after;

static bool
stop (void *opaque)
{
  return stop_after-- == 0;
}

static uint64_t last_done;

static void
progress (void *opaque, uint64_t done, uint64_t total)
{
  assert_true (done >= last_done && done <= total);
  last_done = done;
}

static void
test_stop_and_progress (void **state)
{
  const struct qcow2_survey_params params = {
    .usage.stop = stop, .progress = progress, .max_cells = 10,
  };
  struct qcow2_survey s;
  struct opened o;
  struct pi p;
  unsigned disk, i, k;
  int r;

  pi_begin (&p);
  disk = pi_disk (&p, "one", WRITABLE);
  for (k = 0; k < PI_L1; k++)
    pi_set (&p, disk, k * PI_L2, (uint64_t) pi_new (&p) * PI_CS);
  o = open_model (&p);
  for (i = 0, r = -EINTR; r == -EINTR; i++) {
    stop_after = i;
    last_done = 0;
    r = qcow2_survey (o.img, &params, &s, NULL);
    qcow2_survey_free (&s);
  }
  assert_int_equal (r, 0);
  assert_true (i > 3 * PI_L1);           /* two looks at L1, one at L2 */
  assert_true (last_done >= 500);
  close_model (&o, &p);
}

/* An image can name one L1 table many times, but not more of them than the file
 * has room for. */
static void
test_overlapping_l1_tables (void **state)
{
  const struct qcow2_survey_params params = { .max_cells = 10 };
  struct qcow2_survey s;
  struct fault f = { 0 };
  struct opened o;
  struct pi p;
  uint64_t at;

  pi_begin (&p);
  pi_disk (&p, "one", WRITABLE);
  o = open_model (&p);
  qcow2_close (o.img);
  at = pi_get (o.io, 64, 8);             /* the first snapshot's entry */
  pi_put (o.io, at, 8, 0);
  pi_put (o.io, at + 8, 4, 60000);
  o = open_io (o.io);
  assert_true (qcow2_survey (o.img, &params, &s, &f) < 0);
  assert_int_equal (f.kind, FAULT_CORRUPT);
  qcow2_survey_free (&s);
  close_model (&o, &p);
}

/* Tables whose entries and places are anything end in an error or in figures, and
 * touch no memory past the counters. */
static void
test_hostile_entries (void **state)
{
  const struct qcow2_area areas[] = { { UINT64_MAX - 5, 10 }, { 7, 3 },
                                      { 0, UINT64_MAX } };
  struct qcow2_survey_params params = { .areas = areas, .max_cells = 3 };
  struct qcow2_survey s;
  struct opened o;
  struct pi p;
  unsigned round, disk, i;
  uint64_t at;
  int r;

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
    params.nr_areas = rnd (4);
    r = qcow2_survey (o.img, &params, &s, NULL);
    assert_true (r < 0 || s.nr_roots == 2);
    qcow2_survey_free (&s);
    close_model (&o, &p);
  }
}

/* Each read in turn fails, and the survey says so. */
static int64_t nth;

static int
fail_nth (void *opaque, enum io_call call, uint64_t host_off, uint64_t len)
{
  return call == IO_PREAD && nth-- == 0 ? -EIO : 0;
}

static void
test_each_read_failing (void **state)
{
  const struct qcow2_survey_params params = { .max_cells = 10 };
  struct qcow2_survey s;
  struct opened o;
  struct io_store *io;
  struct fault f;
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
  for (i = 0; ; i++) {
    nth = INT64_MAX;
    o = open_io (io);
    nth = i;
    f = (struct fault) { 0 };
    r = qcow2_survey (o.img, &params, &s, &f);
    qcow2_survey_free (&s);
    qcow2_close (o.img);
    if (nth >= 0)
      break;
    assert_int_equal (r, -EIO);
    assert_int_equal (f.kind, FAULT_IO);
  }
  assert_int_equal (r, 0);
  assert_true (i > 10);
  io_close (io);
  pi_end (&p);
}

int
main (void)
{
  const char *s = getenv ("TEST_SEED");
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_random_pools),
    cmocka_unit_test (test_disks_come_first),
    cmocka_unit_test (test_free_tail_and_holes),
    cmocka_unit_test (test_stop_and_progress),
    cmocka_unit_test (test_overlapping_l1_tables),
    cmocka_unit_test (test_hostile_entries),
    cmocka_unit_test (test_each_read_failing),
  };

  seed = s ? strtoull (s, NULL, 0) : (uint64_t) getpid ();
  print_message ("TEST_SEED=%" PRIu64 "\n", seed);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
