/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests writes to several roots of one image, whose L2 tables are lent (debt.c):
 * random operations against a model that knows what each guest cluster holds,
 * and that counts all paths by itself.
 *
 * If this broke, a write to one disk would show up in its clone, a cluster that
 * a disk refers to would be freed and used for other data, or a recovery would
 * give a disk the tables of another moment.
 */
#include "qcow2-env.h"

#include "header-format.h"

#define CB 9                   /* 64 entries a table, 128 refcounts a block */
#define ROOTS 5                /* the active disk, and disks */
#define MAX_GUEST 400
#define MAX_HOST 32768

/* --- An image with disks ---------------------------------------------------- */

static uint64_t
guest_clusters (unsigned root)
{
  static const uint64_t nr[ROOTS] = { 400, 400, 130, 400, 65 };

  return nr[root];
}

static uint32_t
l1_entries (unsigned root)
{
  return (uint32_t) div_round_up (guest_clusters (root), 64);
}

/* Reserves COUNT clusters, which get refcount 1.  Returns their offset. */
static uint64_t
take_clusters (struct qcow2_image *img, uint64_t count)
{
  uint64_t idx;

  lock_acquire (&img->lock);
  ok (qcow2_reserve_area_locked (img, count, &idx));
  lock_release (&img->lock);
  for (uint64_t i = 0; i < count; ++i)
    set_refcount (img, idx + i, 1, false);
  return idx << CB;
}

/* Encodes a disk that is to be root ROOT. */
static void
encode_disk (struct qcow2_image *img, unsigned root,
             struct qcow2_snapshot_raw *raw)
{
  char id[8], name[8];
  struct qcow2_snapshot s = {
    .id = id, .name = name, .l1_off = take_clusters (img, 1),
    .l1_entries = l1_entries (root), .disk_size = guest_clusters (root) << CB,
    .is_disk = true, .disk_flags = QCOW2_DISK_WRITABLE,
  };
  uint8_t zeroes[1 << CB] = { 0 };

  snprintf (id, sizeof id, "%u", root);
  snprintf (name, sizeof name, "vm%u", root);
  s.uuid[0] = (uint8_t) root;
  ok (io_pwrite (img->io, zeroes, sizeof zeroes, s.l1_off));
  ok (qcow2_snapshot_encode_disk (&s, NULL, raw));
}

/* Adds disks to the image in E, as roots 2 to ROOTS (root 1 is the anchor). */
static void
add_disks (struct env *e)
{
  struct qcow2_image *img = e->img;
  struct qcow2_snapshot_raw raw[ROOTS] = { img->snapshots.raw[0] };
  uint8_t *table;
  size_t len;
  uint32_t nr;
  uint64_t at;
  be64 wire_at;
  be32 wire_nr;

  assert_int_equal (img->snapshots.nr, 1);
  for (unsigned i = 1; i < ROOTS; ++i)
    encode_disk (img, i, &raw[i]);
  ok (qcow2_snapshot_join (raw, ROOTS, &table, &len, &nr));
  at = take_clusters (img, div_round_up (len, 1 << CB));
  ok (io_pwrite (img->io, table, len, at));
  set_refcount (img, img->fields.snapshots_off >> CB, 0, false);
  writeback (img);
  wire_at = be64_make (at);
  wire_nr = be32_make (nr);
  ok (io_pwrite (img->io, &wire_nr, 4,
                 offsetof (struct qcow2_wire_header, nr_snapshots)));
  ok (io_pwrite (img->io, &wire_at, 8,
                 offsetof (struct qcow2_wire_header, snapshots_off)));
  for (unsigned i = 1; i < ROOTS; ++i)
    free (raw[i].bytes);
  free (table);
  env_reopen (e);
  e->nr_log = 0;
}

/* Roots are numbered by the model without the anchor. */
static unsigned
root_of (unsigned r)
{
  return r == 0 ? 0 : r + 1;
}

/* --- The model -------------------------------------------------------------- */

struct world {
  struct env e;
  uint64_t content[ROOTS][MAX_GUEST];   /* 0: none */
  uint64_t stamp[MAX_HOST];             /* the content of each host cluster */
  uint64_t next_stamp;
};

static void
assert_contents (struct world *w, struct qcow2_image *img)
{
  uint64_t entry, want;

  for (unsigned r = 0; r < ROOTS; ++r)
    for (uint64_t g = 0; g < guest_clusters (r); ++g) {
      entry = entry_of (img, root_of (r), g) & QCOW2_OFFSET_MASK;
      want = w->content[r][g];
      if ((entry == 0) != (want == 0) ||
          (want && w->stamp[entry >> CB] != want))
        fail_msg ("root %u cluster %llu: content %llu, not %llu", r,
                  (unsigned long long) g,
                  (unsigned long long) w->stamp[entry >> CB],
                  (unsigned long long) want);
    }
}

static uint64_t
l1_entry_of (struct qcow2_image *img, unsigned r, uint64_t ti)
{
  struct qcow2_txn txn;
  uint64_t e;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, qcow2_l1_entry_locked (&txn, root_of (r), ti, &e)));
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  return e;
}

/* What the model counts. */
struct counts {
  uint64_t paths[MAX_HOST];    /* of tables */
  uint64_t refs[MAX_HOST];     /* of data */
};

static void
count_paths (struct qcow2_image *img, struct counts *c)
{
  for (unsigned r = 0; r < ROOTS; ++r)
    for (uint64_t ti = 0; ti < l1_entries (r); ++ti)
      c->paths[(l1_entry_of (img, r, ti) & QCOW2_OFFSET_MASK) >> CB]++;
  c->paths[0] = 0;
}

/* Adds the counted paths of each table to what it names. */
static void
count_refs (struct qcow2_image *img, struct counts *c)
{
  static bool seen[MAX_HOST];
  uint64_t t, v, g, end;

  memset (seen, 0, sizeof seen);
  for (unsigned r = 0; r < ROOTS; ++r)
    for (uint64_t ti = 0; ti < l1_entries (r); ++ti) {
      t = (l1_entry_of (img, r, ti) & QCOW2_OFFSET_MASK) >> CB;
      if (t == 0 || seen[t])
        continue;
      seen[t] = true;
      v = refcount_of (img, t, NULL);
      assert_int_equal (qcow2_paths_of (v), c->paths[t]);
      assert_true (qcow2_debt_of (v) < c->paths[t]);
      end = MIN_OF ((ti + 1) * 64, guest_clusters (r));
      for (g = ti * 64; g < end; ++g)
        c->refs[(entry_of (img, root_of (r), g) & QCOW2_OFFSET_MASK) >> CB] +=
          c->paths[t] - qcow2_debt_of (v);
    }
  c->refs[0] = 0;
}

/* Compares all refcounts of clusters that the test allocated with what it
 * counts. */
static void
assert_counts (struct world *w, struct qcow2_image *img)
{
  struct counts *c = calloc (1, sizeof *c);
  bool anchored;
  uint64_t n;

  count_paths (img, c);
  count_refs (img, c);
  for (uint64_t i = 1; i < MAX_HOST; ++i) {
    assert_false (c->paths[i] && c->refs[i]);
    if (!c->refs[i] && !w->stamp[i])
      continue;
    n = refcount_of (img, i, &anchored);
    if (c->paths[i])
      continue;
    if (n != c->refs[i] + anchored)
      fail_msg ("cluster %llu: refcount %llu, %llu are counted%s",
                (unsigned long long) i, (unsigned long long) n,
                (unsigned long long) c->refs[i], anchored ? " + anchor" : "");
    if (n == 0 || c->refs[i] == 0)
      w->stamp[i] = 0;         /* freed */
  }
  free (c);
}

/* --- Operations -------------------------------------------------------------- */

/* Prepares guest cluster G of a root to be changed to HOST_IDX, if not 0. */
static int
prepare_root (struct qcow2_txn *txn, unsigned root, uint64_t g,
              uint64_t host_idx, uint64_t *old)
{
  int r;

  if ((r = qcow2_prepare_entry_locked (txn, root, g)) < 0 ||
      (r = qcow2_get_entry_locked (txn, root, g, old)) < 0 ||
      (host_idx && (r = qcow2_prepare_host_locked (txn, host_idx, 1)) < 0))
    return r;
  return qcow2_prepare_drop_locked (txn, *old, 1);
}

static void
point_root (struct qcow2_txn *txn, unsigned root, uint64_t g,
            uint64_t host_idx, uint64_t refcount, uint64_t old)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_L2, .root = (uint16_t) root, .guest_idx = g,
    .count = 1, .entry = host_idx << CB,
    .place = qcow2_entry_place_locked (txn, root, g),
  };

  if (host_idx)
    change_refcount (txn, host_idx, refcount, true);
  ok (qcow2_change_locked (txn, &c));
  ok (qcow2_drop_locked (txn, old, 1, true));
}

static void
write_root (struct world *w, unsigned r, uint64_t g)
{
  struct qcow2_image *img = w->e.img;
  struct qcow2_txn txn;
  struct qcow2_run run;
  uint64_t old;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (qcow2_reserve_locked (img, 1, &run));
  ok (RETRY (&txn, prepare_root (&txn, root_of (r), g, run.host_idx, &old)));
  point_root (&txn, root_of (r), g, run.host_idx, 2, old);
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  w->stamp[run.host_idx] = w->content[r][g] = ++w->next_stamp;
}

/* Makes cluster G of R what cluster H of Q is, without a copy. */
static void
link_root (struct world *w, unsigned r, uint64_t g, unsigned q, uint64_t h)
{
  struct qcow2_image *img = w->e.img;
  uint64_t idx = (entry_of (img, root_of (q), h) & QCOW2_OFFSET_MASK) >> CB;
  struct qcow2_txn txn;
  uint64_t old, refcount;
  bool anchored;

  if (idx == 0)
    return;
  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  if (RETRY (&txn, qcow2_hold_locked (&txn, idx, 32768)) == 0) {
    ok (RETRY (&txn, prepare_root (&txn, root_of (r), g, idx, &old)));
    ok (qcow2_get_refcount_locked (&txn, idx, &refcount, &anchored));
    point_root (&txn, root_of (r), g, idx, refcount + 1, old);
    qcow2_unhold_locked (&txn, idx);
    w->content[r][g] = w->content[q][h];
  }
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
}

static void
unmap_root (struct world *w, unsigned r, uint64_t g)
{
  struct qcow2_image *img = w->e.img;
  struct qcow2_txn txn;
  uint64_t old;

  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  ok (RETRY (&txn, prepare_root (&txn, root_of (r), g, 0, &old)));
  point_root (&txn, root_of (r), g, 0, 0, old);
  qcow2_txn_end_locked (&txn);
  lock_release (&img->lock);
  w->content[r][g] = 0;
}

static void
set_l1 (struct qcow2_txn *txn, unsigned r, uint64_t ti, uint64_t entry)
{
  struct qcow2_change c = {
    .type = QCOW2_CHANGE_ENTRY, .is_l1 = true, .count = 1, .entry = entry,
    .place = qcow2_l1_place_locked (txn->img, root_of (r), ti),
  };

  ok (RETRY (txn, qcow2_change_locked (txn, &c)));
}

/* Empties a root: its clusters, and then its tables. */
static void
empty_root (struct world *w, unsigned r)
{
  struct qcow2_image *img = w->e.img;
  struct qcow2_txn txn;
  uint64_t t;

  for (uint64_t g = 0; g < guest_clusters (r); ++g)
    if (w->content[r][g] || (l1_entry_of (img, r, g / 64) && g % 64 == 0))
      unmap_root (w, r, g);
  for (uint64_t ti = 0; ti < l1_entries (r); ++ti) {
    t = (l1_entry_of (img, r, ti) & QCOW2_OFFSET_MASK) >> CB;
    if (t == 0)
      continue;
    assert_int_equal (refcount_of (img, t, NULL), 1);
    qcow2_txn_begin (img, &txn);
    lock_acquire (&img->lock);
    set_l1 (&txn, r, ti, 0);
    lock_release (&img->lock);
    qcow2_txn_end (&txn);
    set_refcount (img, t, 0, false);
    lock_acquire (&img->lock);
    qcow2_free_table_locked (img, t, 1);
    lock_release (&img->lock);
  }
}

/* Makes R, which is empty, what Q is. */
static void
lend (struct world *w, unsigned r, unsigned q)
{
  struct qcow2_image *img = w->e.img;
  struct qcow2_txn txn;
  uint64_t e, off;

  for (uint64_t ti = 0; ti < MIN_OF (l1_entries (r), l1_entries (q)); ++ti) {
    e = l1_entry_of (img, q, ti);
    off = e & QCOW2_OFFSET_MASK;
    if (off == 0)
      continue;
    set_refcount (img, off >> CB,
                  refcount_of (img, off >> CB, NULL) + QCOW2_ONE_LENT, false);
    qcow2_txn_begin (img, &txn);
    lock_acquire (&img->lock);
    if (e & QCOW2_L2_COPIED)
      set_l1 (&txn, q, ti, off);
    set_l1 (&txn, r, ti, off);
    lock_release (&img->lock);
    qcow2_txn_end (&txn);
    for (uint64_t g = ti * 64; g < (ti + 1) * 64 && g < guest_clusters (r);
         ++g)
      w->content[r][g] = g < guest_clusters (q) ? w->content[q][g] : 0;
  }
}

/* A disk may end inside a table.  Then the clusters behind its end are not in
 * its table, and it can be lent to a larger disk. */
static bool
can_lend (unsigned r, unsigned q)
{
  return guest_clusters (r) >= guest_clusters (q);
}

struct paying {
  uint64_t table_off;
  struct qcow2_table_refs refs;
};

static int
pay_locked (struct qcow2_txn *txn, void *opaque)
{
  struct paying *p = opaque;
  uint64_t v;
  bool anchored;
  int r = qcow2_get_refcount_locked (txn, p->table_off >> CB, &v, &anchored);

  if (r < 0 || qcow2_debt_of (v) == 0)
    return r;
  r = qcow2_table_refs_get_locked (txn, p->table_off, &p->refs);
  if (r == 0)
    r = qcow2_table_refs_check_locked (txn, &p->refs, qcow2_debt_of (v));
  if (r == 0) {
    qcow2_table_refs_add_locked (txn, &p->refs, qcow2_debt_of (v));
    qcow2_uncopy_locked (txn, p->table_off);
    qcow2_set_refcount_locked (txn, p->table_off >> CB, qcow2_paths_of (v),
                               false);
  }
  qcow2_table_refs_free (&p->refs);
  return r;
}

static void
pay (struct world *w, unsigned r, uint64_t ti)
{
  struct paying p = {
    .table_off = l1_entry_of (w->e.img, r, ti) & QCOW2_OFFSET_MASK,
  };

  if (p.table_off != 0)
    ok (qcow2_txn_run (w->e.img, pay_locked, &p));
}

static void
random_step (struct world *w)
{
  unsigned r = rnd (ROOTS), q = rnd (ROOTS);
  uint64_t g = rnd (guest_clusters (r)), k = rnd (1000);

  if (k < 420)
    write_root (w, r, g);
  else if (k < 700)
    link_root (w, r, g, q, rnd (guest_clusters (q)));
  else if (k < 850)
    unmap_root (w, r, g);
  else if (k < 930)
    pay (w, r, g / 64);
  else if (k < 960)
    release_all (w->e.img);
  else if (r != q && can_lend (r, q)) {
    empty_root (w, r);
    lend (w, r, q);
  }
}

/* --- Checkpoints and replays ---------------------------------------------------- */

static uint64_t
begin_checkpoint (struct world *w)
{
  uint64_t token;

  lock_acquire (&w->e.img->lock);
  token = qcow2_tables_mark_locked (w->e.img);
  lock_release (&w->e.img->lock);
  writeback (w->e.img);
  return token;
}

static void
end_checkpoint (struct world *w, uint64_t token)
{
  lock_acquire (&w->e.img->lock);
  qcow2_tables_settled_locked (w->e.img, token);
  lock_release (&w->e.img->lock);
  w->e.nr_log = 0;             /* a replay begins here */
}

/* Applies the log to a copy of the file as it is, and compares all roots and
 * refcounts. */
static void
replay (struct world *w)
{
  struct io_store *io = clone_store (w->e.io);
  struct qcow2_image *img = open_image (io, true);
  struct qcow2_change c;

  assert_true (qcow2_has_disks (img));
  lock_acquire (&img->lock);
  lock_release (&img->lock);
  qcow2_replay_begin (img);
  for (size_t i = 0; i < w->e.nr_log; ++i) {
    c = w->e.log[i];
    if (c.type == QCOW2_CHANGE_L2)
      c.type = QCOW2_CHANGE_ENTRY;
    apply_all (img, &c, 1);
  }
  ok (qcow2_replay_end (img));
  assert_contents (w, img);
  assert_counts (w, img);
  qcow2_close (img);
  io_close (io);
}

static struct world *
new_world (void)
{
  struct world *w = calloc (1, sizeof *w);

  env_new (&w->e, CB, 5, guest_clusters (0));
  add_disks (&w->e);
  return w;
}

static void
free_world (struct world *w)
{
  env_free (&w->e);
  free (w);
}

/* --- Tests ------------------------------------------------------------------------ */

static void
test_small_functions (void **state)
{
  struct world *w = new_world ();
  struct qcow2_image *img = w->e.img;

  assert_true (qcow2_has_disks (img));
  lock_acquire (&img->lock);
  assert_int_equal (qcow2_nr_roots_locked (img), ROOTS + 1);
  for (unsigned r = 0; r < ROOTS; ++r) {
    assert_int_equal (qcow2_root_size_locked (img, root_of (r)),
                      guest_clusters (r) << CB);
    assert_true (qcow2_root_writable_locked (img, root_of (r)));
  }
  assert_false (qcow2_root_writable_locked (img, 1));      /* the anchor */
  assert_false (qcow2_root_writable_locked (img, ROOTS + 1));
  assert_int_equal (qcow2_root_size_locked (img, ROOTS + 1), 0);
  img->snapshots.v[2].disk_flags = 0;
  assert_false (qcow2_root_writable_locked (img, 3));
  img->snapshots.v[2].disk_flags = QCOW2_DISK_WRITABLE | QCOW2_DISK_DOOMED;
  assert_false (qcow2_root_writable_locked (img, 3));
  img->snapshots.v[2].disk_flags = QCOW2_DISK_WRITABLE;
  img->snapshots.v[2].dead = true;
  assert_false (qcow2_root_writable_locked (img, 3));
  assert_int_equal (qcow2_root_size_locked (img, 3), 0);
  img->snapshots.v[2].dead = false;
  lock_release (&img->lock);
  free_world (w);
}

static void
test_bounds (void **state)
{
  struct world *w = new_world ();
  struct qcow2_image *img = w->e.img;
  struct qcow2_extent ext[4];
  struct qcow2_txn txn;
  uint64_t entry;

  write_root (w, 2, 129);
  assert_int_equal (qcow2_map (img, 3, 129 << CB, 1 << CB, ext, 4), 1);
  assert_int_equal (ext[0].kind, QCOW2_DATA);
  assert_int_equal (qcow2_map (img, 3, 130 << CB, 1 << CB, ext, 4), -EINVAL);
  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  assert_int_equal (qcow2_prepare_entry_locked (&txn, 3, 130), -EINVAL);
  assert_int_equal (qcow2_prepare_entry_locked (&txn, 1, 0), -EINVAL);
  img->snapshots.v[2].dead = true;
  assert_int_equal (qcow2_prepare_entry_locked (&txn, 3, 0), -EINVAL);
  assert_int_equal (qcow2_get_entry_locked (&txn, 3, 0, &entry), -EINVAL);
  lock_release (&img->lock);
  assert_int_equal (qcow2_map (img, 3, 0, 1 << CB, ext, 4), -EINVAL);
  lock_acquire (&img->lock);
  img->snapshots.v[2].dead = false;
  lock_release (&img->lock);
  qcow2_txn_end (&txn);
  free_world (w);
}

static int
no_room_locked (void *opaque, size_t nr)
{
  size_t *asked = opaque;

  *asked = nr;
  return -EBUSY;
}

/* A copy that needs many records asks for room, and changes nothing without. */
static void
test_room_is_asked_for_first (void **state)
{
  struct world *w = new_world ();
  struct qcow2_image *img = w->e.img;
  struct qcow2_log log = { record_locked, seq_locked, &w->e };
  struct qcow2_txn txn;
  size_t asked = 0, nr_log;

  for (uint64_t g = 0; g < 64; ++g)
    write_root (w, 1, g);
  lend (w, 3, 1);
  nr_log = w->e.nr_log;
  log.room_locked = no_room_locked;
  log.opaque = &asked;
  log.append_locked = NULL;
  qcow2_set_log (img, &log);
  qcow2_txn_begin (img, &txn);
  lock_acquire (&img->lock);
  assert_int_equal (RETRY (&txn, qcow2_prepare_entry_locked (&txn, 4, 7)),
                    -EBUSY);
  lock_release (&img->lock);
  qcow2_txn_end (&txn);
  assert_true (asked >= 64 && asked < 128);
  assert_int_equal (w->e.nr_log, nr_log);
  assert_counts (w, img);
  log = (struct qcow2_log) { record_locked, seq_locked, &w->e };
  qcow2_set_log (img, &log);
  write_root (w, 3, 7);
  assert_true (w->e.nr_log - nr_log <= asked + 3);
  assert_contents (w, img);
  assert_counts (w, img);
  free_world (w);
}

static void
assert_guard_refuses (struct world *w, const char *words)
{
  struct fault f = { 0 };
  int r;

  env_reopen (&w->e);
  r = qcow2_guard_begin (w->e.img, &f);
  assert_true (r < 0);
  if (f.kind != FAULT_CORRUPT || !strstr (f.msg, words))
    fail_msg ("\"%s\" does not say \"%s\"", f.msg, words);
}

/* Two disks name one table, whose refcount says that there is one path. */
static void
test_tables_with_too_low_refcounts_are_refused (void **state)
{
  struct world *w = new_world ();
  struct fault f = { 0 };
  uint64_t t;

  write_root (w, 1, 5);
  lend (w, 3, 1);
  t = (l1_entry_of (w->e.img, 1, 0) & QCOW2_OFFSET_MASK) >> CB;
  writeback (w->e.img);
  env_reopen (&w->e);
  ok (qcow2_guard_begin (w->e.img, &f));
  lock_acquire (&w->e.img->lock);
  assert_true (qcow2_guarded_locked (w->e.img, t, 1));
  lock_release (&w->e.img->lock);
  set_refcount (w->e.img, t, 1, false);
  writeback (w->e.img);
  assert_guard_refuses (w, "named by more L1 entries");
  free_world (w);
}

/* A disk's L1 table is another disk's, or an L2 table. */
static void
test_l1_tables_that_overlap_are_refused (void **state)
{
  struct world *w = new_world ();
  struct qcow2_txn txn;

  write_root (w, 1, 5);
  qcow2_txn_begin (w->e.img, &txn);
  lock_acquire (&w->e.img->lock);
  set_l1 (&txn, 1, 1, w->e.img->snapshots.v[3].l1_off);
  lock_release (&w->e.img->lock);
  qcow2_txn_end (&txn);
  writeback (w->e.img);
  assert_guard_refuses (w, "a disk's L2 table");
  w->e.img->snapshots.v[3].l1_off = w->e.img->snapshots.v[1].l1_off;
  {
    struct fault f = { 0 };

    assert_true (qcow2_guard_begin (w->e.img, &f) < 0);
    assert_non_null (strstr (f.msg, "a disk's L1 table"));
  }
  free_world (w);
}

/* COPIED of the active disk's L1 entry is right whenever QEMU could look. */
static void
test_the_active_disk_has_copied_again (void **state)
{
  struct world *w = new_world ();

  write_root (w, 0, 5);
  assert_true (l1_entry_of (w->e.img, 0, 0) & QCOW2_L2_COPIED);
  lend (w, 1, 0);
  assert_false (l1_entry_of (w->e.img, 0, 0) & QCOW2_L2_COPIED);
  write_root (w, 1, 6);
  assert_true (l1_entry_of (w->e.img, 0, 0) & QCOW2_L2_COPIED);
  assert_false (l1_entry_of (w->e.img, 1, 0) & QCOW2_L2_COPIED);
  assert_contents (w, w->e.img);
  writeback (w->e.img);
  check_with_qemu (w->e.io);
  free_world (w);
}

/* Pays all debts, and lets QEMU judge what is in the file. */
static void
pay_all_and_check (struct world *w)
{
  for (unsigned r = 0; r < ROOTS; ++r)
    for (uint64_t ti = 0; ti < l1_entries (r); ++ti)
      pay (w, r, ti);
  assert_contents (w, w->e.img);
  assert_counts (w, w->e.img);
  end_checkpoint (w, begin_checkpoint (w));
  release_all (w->e.img);
  check_with_qemu (w->e.io);
}

static void
test_random (void **state)
{
  struct world *w = new_world ();
  struct fault f;

  for (int i = 0; i < 12000; ++i) {
    random_step (w);
    if (i % 200 == 0)
      end_checkpoint (w, begin_checkpoint (w));
    if (i % 400 == 0) {
      assert_contents (w, w->e.img);
      assert_counts (w, w->e.img);
    }
    if (i % 3000 == 2999) {
      pay_all_and_check (w);
      env_reopen (&w->e);
      if (qcow2_guard_begin (w->e.img, &f) < 0)
        fail_msg ("guard: %s", f.msg);
    }
  }
  free_world (w);
}

/* A checkpoint that is not complete leaves younger tables in the file than those
 * where the replay begins. */
static void
test_replay (void **state)
{
  struct world *w = new_world ();
  uint64_t token;

  for (int i = 0; i < 100; ++i) {
    token = begin_checkpoint (w);
    end_checkpoint (w, token);
    for (int k = 0; k < 60; ++k)
      random_step (w);
    (void) begin_checkpoint (w);
    for (int k = 0; k < 60; ++k)
      random_step (w);
    if (i % 2)
      (void) begin_checkpoint (w);
    release_all (w->e.img);
    replay (w);
  }
  assert_contents (w, w->e.img);
  assert_counts (w, w->e.img);
  free_world (w);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_small_functions),
    cmocka_unit_test (test_bounds),
    cmocka_unit_test (test_room_is_asked_for_first),
    cmocka_unit_test (test_tables_with_too_low_refcounts_are_refused),
    cmocka_unit_test (test_l1_tables_that_overlap_are_refused),
    cmocka_unit_test (test_the_active_disk_has_copied_again),
    cmocka_unit_test (test_random),
    cmocka_unit_test (test_replay),
  };

  seed_from_environment ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
