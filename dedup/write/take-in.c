/* SPDX-License-Identifier: BSD-3-Clause */
/* Indexes data that an image holds already, and shares data that is in it
 * twice (docs/on-disk.md section 8).
 *
 * One operation takes a range of guest clusters and does what a write of their
 * own content would do, except for the writing.  A cluster whose data is new
 * to the index is anchored and entered where it is.  So is compressed data: it is
 * hashed expanded, and all host clusters that it touches are anchored.  A guest
 * cluster whose data the index finds elsewhere is linked to that place, and its own
 * cluster is dropped.  Zeroes are unmapped.  It uses the candidates and the link step
 * of the pipeline, but no claims: a client that writes equal content meanwhile
 * may store it once more, which costs only ratio.
 *
 * The caller keeps requests off the range, so L2 entries lead to the same bytes as long
 * as the operation lasts.  But a snapshot may have the table, too, and by way of that
 * compaction may move them.  So the operation is a reader from the look at the entries
 * until it has read the bytes, and the link step leaves a guest cluster alone whose entry
 * has changed.
 *
 * A cluster that cannot be read, or that the tables contradict, is left as it
 * is, and counted.
 *
 * Any thread, without locks.
 */
#include "aligned.h"
#include "op.h"

#include <errno.h>

/* --- L2 entries ---------------------------------------------------------- */

struct look {
  struct op *op;
  bool all;                    /* also those that are anchored already */
  bool *blocked;               /* set if data must wait for forget_out_of_date */
  struct dedup_existing *res;
  size_t next;                 /* slots below it are done */
};

/* Returns whether an entry is as the format wants it. */
static bool
is_sound (const struct dedup_base *b, uint64_t entry)
{
  if (entry & QCOW2_L2_COMPRESSED)
    return !(entry & QCOW2_L2_COPIED);
  return (entry & ~(QCOW2_OFFSET_MASK | QCOW2_L2_COPIED)) == 0 &&
    (entry & QCOW2_OFFSET_MASK) % b->cluster_size == 0;
}

enum fit { FITS, HAS_NO_ROOM, IS_WRONG };

/* Finds out whether host cluster HOST_IDX holds data that may be indexed;
 * HAS_NO_ROOM: there is none for the anchor's reference.  Clears *ANCHORED if it is
 * not anchored. */
static int
look_at_cluster_locked (struct op *op, uint64_t host_idx, bool *anchored,
                        enum fit *fit)
{
  struct qcow2_image *img = op->w->b->img;
  uint64_t refcount;
  bool is_anchored;
  int r = qcow2_get_refcount_locked (&op->txn, host_idx, &refcount,
                                     &is_anchored);

  assert (lock_held (op->w->b->lock));
  if (r < 0)
    return r;
  *anchored = *anchored && is_anchored;
  if (host_idx == 0 || host_idx >= qcow2_frontier_locked (img) ||
      refcount < (is_anchored ? 2 : 1) ||
      qcow2_guarded_locked (img, host_idx, 1))
    *fit = IS_WRONG;
  else if (!is_anchored && refcount == qcow2_geometry (img)->refcount_max)
    *fit = MAX_OF (*fit, HAS_NO_ROOM);
  return 0;
}

/* Returns whether data in anchored clusters is in the index.  Compressed data may not be:
 * its clusters are anchored by other data in them, too. */
static bool
is_known_locked (const struct dedup_writer *w, uint64_t own)
{
  assert (lock_held (w->b->lock));
  return !dedup_value_is_compressed (own) || dedup_known_has (&w->known, own);
}

/* Decides whether slot I's data is indexed (own) or left alone. */
static int
look_at_slot_locked (const struct look *l, size_t i)
{
  struct op *op = l->op;
  const struct dedup_base *b = op->w->b;
  struct slot *s = &op->slots[i];
  uint64_t entry, own, first, count, k;
  enum fit fit = FITS;
  bool anchored = true;
  int r;

  assert (lock_held (b->lock));
  s->kind = SLOT_KEEP;
  r = qcow2_get_entry_locked (&op->txn, op->root, op->guest_idx + i, &entry);
  own = r == 0 ? dedup_value_of_entry (b, entry) : 0;
  if (own == 0)
    return r;
  dedup_value_clusters (b, own, &first, &count);
  for (k = 0; k < count && r == 0; k++)
    r = look_at_cluster_locked (op, first + k, &anchored, &fit);
  if (r < 0)
    return r;
  if (anchored && !l->all && is_known_locked (op->w, own)) {
    l->res->known++;
    return 0;
  }
  *l->blocked |= dedup_value_is_compressed (own) && !anchored &&
    !op->w->descriptors_current;
  if (fit == IS_WRONG || !is_sound (b, entry))
    l->res->bad++;
  if (fit != FITS || !is_sound (b, entry))
    return 0;
  s->kind = SLOT_NEW;
  s->own = own;
  s->anchored = anchored;
  return 0;
}

/* Decides on all slots from NEXT on; a step of qcow2_txn_retry. */
static int
look_at_rest_locked (struct qcow2_txn *txn, void *opaque)
{
  struct look *l = opaque;
  int r = 0;

  assert (txn == &l->op->txn && lock_held (l->op->w->b->lock));
  while (l->next < l->op->nr && r == 0) {
    r = look_at_slot_locked (l, l->next);
    l->next += r == 0;
  }
  return r;
}

static int
look_at_all (struct op *op, bool all, struct dedup_existing *res, bool *blocked)
{
  struct look l = { .op = op, .all = all, .res = res, .blocked = blocked };

  return qcow2_txn_retry (&op->txn, look_at_rest_locked, &l);
}

/* --- Reading and hashing ------------------------------------------------- */

/* Returns how many slots from I on have own clusters that follow each other; 1 if
 * that of I is compressed. */
static size_t
run_from (const struct op *op, size_t i)
{
  size_t n = 1;

  while (i + n < op->nr && !dedup_value_is_compressed (op->slots[i].own) &&
         op->slots[i + n].own == op->slots[i].own + n)
    n++;
  return n;
}

static bool
read_run (struct op *op, uint8_t *buf, size_t i, size_t n)
{
  const struct dedup_base *b = op->w->b;

  if (dedup_value_is_compressed (op->slots[i].own))
    return qcow2_compressed_read (b->img, op->slots[i].own,
                                  buf + i * b->cluster_size) == 0;
  return io_pread (b->io, buf + i * b->cluster_size, n * b->cluster_size,
                   op->slots[i].own << b->cluster_bits) == 0;
}

/* Reads the run of N slots from I on; one by one if that fails.  A slot that
 * cannot be read is kept as it is. */
static void
read_slots (struct op *op, uint8_t *buf, size_t i, size_t n,
            struct dedup_existing *res)
{
  size_t k;

  if (read_run (op, buf, i, n))
    return;
  for (k = i; k < i + n; k++)
    if (!read_run (op, buf, k, 1)) {
      op->slots[k].kind = SLOT_KEEP;
      op->slots[k].own = 0;
      res->bad++;
    }
}

/* Returns the part of the file that has the run of N slots from I on. */
static struct io_part
part_of (const struct op *op, size_t i, size_t n)
{
  const struct dedup_base *b = op->w->b;
  struct io_part p = { .len = n * b->cluster_size,
                       .host_off = op->slots[i].own << b->cluster_bits };
  uint64_t len;

  if (dedup_value_is_compressed (op->slots[i].own)) {
    qcow2_compressed_extent (b->img, op->slots[i].own, &p.host_off, &len);
    p.len = len;
  }
  return p;
}

/* Begins to read all runs, so that none is waited for before the next is asked
 * for.  It is advice, and is omitted where memory is short. */
static void
announce_all (struct op *op)
{
  struct dedup_writer *w = op->w;
  CLEANUP_FREE struct io_part *v = malloc (op->nr * sizeof *v);
  size_t i, n, nr = 0;

  for (i = 0; i < op->nr && v != NULL; i += n) {
    n = 1;
    if (op->slots[i].own == 0)
      continue;
    n = run_from (op, i);
    v[nr++] = part_of (op, i, n);
  }
  (void) io_will_need (w->b->io, v, nr, true);
}

static void
read_all (struct op *op, uint8_t *buf, struct dedup_existing *res)
{
  size_t i, n;

  announce_all (op);
  for (i = 0; i < op->nr; i += n) {
    n = 1;
    if (op->slots[i].own == 0)
      continue;
    n = run_from (op, i);
    read_slots (op, buf, i, n, res);
  }
}

/* Hashes what was read; slots of zeroes become SLOT_ZERO. */
static int
hash_all (struct op *op)
{
  struct dedup_writer *w = op->w;
  size_t i;
  int r;

  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (s->own == 0)
      continue;
    if (all_zero (slot_data (op, i), w->b->cluster_size)) {
      s->kind = SLOT_ZERO;
      continue;
    }
    r = dedup_hash_slot (op, i);
    if (r < 0)
      return r;
  }
  return 0;
}

/* --- Candidates ---------------------------------------------------------- */

/* Handles a slot for which the index named the slot's own cluster.  If that was
 * anchored there is nothing to do; else the entry is older than the cluster's
 * present use, and it is entered again. */
static void
found_own_cluster (struct slot *s)
{
  s->kind = s->anchored ? SLOT_KEEP : SLOT_NEW;
}

static void
look_up_all (struct op *op)
{
  struct dedup_writer *w = op->w;
  size_t i;

  LOCK_FOR_SCOPE (w->b->lock);
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].hashed)
      dedup_index_prefetch_locked (w->s->index, &op->slots[i].hash);
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (!s->hashed)
      continue;
    dedup_look_up_locked (op, s);
  }
  if (op->probes)
    op->view = dedup_index_view_locked (w->s->index);
}

static int
find_candidates (struct op *op)
{
  size_t i, others;
  int r;

  look_up_all (op);
  dedup_probe (op);
  for (i = 0; i < op->nr; i++)
    if (op->slots[i].kind == SLOT_CANDIDATE &&
        op->slots[i].value == op->slots[i].own)
      found_own_cluster (&op->slots[i]);
  r = dedup_hold_candidates (op, SLOT_CANDIDATE);
  if (r < 0)
    return r;
  return dedup_compare_candidates (op, SLOT_CANDIDATE, false, &others);
}

/* Size of a hash table of slots: a power of two, at most half full. */
#define LEADERS_SIZE (2 * DEDUP_CHUNK_CLUSTERS)

/* Makes all but the first of new slots with equal content follow that one. */
static int
find_leaders (struct op *op)
{
  CLEANUP_FREE struct slot **leaders = calloc (LEADERS_SIZE, sizeof *leaders);
  size_t i, pos, size = op->w->b->cluster_size;

  if (leaders == NULL)
    return -ENOMEM;
  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i], *other;

    if (s->kind != SLOT_NEW)
      continue;
    pos = dedup_hash_word (&s->hash, 0) % LEADERS_SIZE;
    while ((other = leaders[pos]) != NULL &&
           !dedup_hash_equal (&other->hash, &s->hash))
      pos = (pos + 1) % LEADERS_SIZE;
    if (other == NULL)
      leaders[pos] = s;
    else if (memcmp (slot_data (op, (size_t) (other - op->slots)),
                     slot_data (op, i), size) == 0) {
      s->kind = SLOT_FOLLOW;
      s->leader = other;
    }
  }
  return 0;
}

/* --- The operation ------------------------------------------------------- */

/* Sets host_idx of the slots that no candidate was found for. */
static void
assign_places (struct op *op)
{
  size_t i;

  for (i = 0; i < op->nr; i++) {
    struct slot *s = &op->slots[i];

    if (s->kind == SLOT_NEW)
      s->value = s->own;
    else if (s->kind == SLOT_FOLLOW)
      s->value = s->leader->value;
  }
}

static int
link_all (struct op *op)
{
  int r;

  do {
    assign_places (op);
    r = dedup_link (op);
  } while (r == -ERANGE);
  return r;
}

static void
count_result (const struct op *op, struct dedup_existing *res)
{
  size_t i;

  for (i = 0; i < op->nr; i++) {
    const struct slot *s = &op->slots[i];

    if (s->own == 0)
      continue;
    res->read++;
    if (s->kind == SLOT_KEEP || (s->skip && s->kind != SLOT_NEW))
      res->known++;
    else if (s->kind == SLOT_ZERO)
      res->zeroed++;
    else if (s->kind == SLOT_NEW)
      res->indexed++;
    else
      res->linked++;
    res->dropped += (s->kind != SLOT_KEEP && s->kind != SLOT_NEW && !s->skip &&
                     !dedup_value_is_compressed (s->own));
  }
}

/* Frees what the operation has left. */
static void
finish (struct op *op)
{
  size_t i;

  lock_acquire (op->w->b->lock);
  for (i = 0; i < op->nr; i++)
    dedup_unhold_slot_locked (op, &op->slots[i]);
  dedup_journal_end_locked (op->w->s->journal);   /* unhold may have freed */
  qcow2_txn_end_locked (&op->txn);
  dedup_count_lookups_locked (op->w->s, &op->counted);
  lock_release (op->w->b->lock);
  dedup_index_view_put (op->w->s->index, op->view);
}

/* -EDEADLK as below. */
static int
look_and_read (struct op *op, uint8_t *buf, bool all, struct dedup_existing *res)
{
  struct qcow2_image *img = op->w->b->img;
  const unsigned reader = qcow2_reader_begin (img);
  bool blocked = false;
  int r = look_at_all (op, all, res, &blocked);

  if (r == 0 && blocked)
    r = -EDEADLK;
  if (r == 0)
    read_all (op, buf, res);
  qcow2_reader_end (img, reader);
  return r;
}

/* Returns -EDEADLK, and has done nothing, if forget_out_of_date must be called before;
 * that cannot be done inside the gate. */
static int
index_range (struct op *op, uint8_t *buf, bool all,
             struct dedup_existing *res)
{
  struct dedup_existing before = *res;
  int r = look_and_read (op, buf, all, res);

  if (r == -EDEADLK)
    *res = before;
  if (r < 0)
    return r;
  if ((r = hash_all (op)) < 0 ||
      (r = find_candidates (op)) < 0 ||
      (r = find_leaders (op)) < 0 ||
      (r = link_all (op)) < 0)
    return r;
  count_result (op, res);
  return 0;
}

struct keeping {
  struct dedup_writer *w;
  struct dedup_known known;
};

/* Adds a descriptor that a lookup leads to.  A mark says that it has no entry. */
static void
keep_cb (void *opaque, const struct dedup_entry *e)
{
  struct keeping *k = opaque;
  const struct dedup_hash mark = dedup_unknown_mark (e->value);

  if (!dedup_hash_equal (&mark, &e->hash) &&
      dedup_named_value (k->w, &e->hash) == e->value)
    dedup_known_add (&k->known, e->value);
}

/* Makes the index forget the descriptors that are out of date, before compressed data
 * of another program is taken over for the first time in this session.  While its
 * clusters are not anchored, such an entry is known to be out of date.  When they are,
 * it could lead to data that has the same descriptor, and that nobody has indexed:
 * then a scrub would take that for rot.  In later sessions the other program may have
 * written again.  Those that are not out of date are noted as known. */
static int
forget_out_of_date (struct dedup_writer *w)
{
  struct keeping k = { .w = w };
  bool done;
  int r;

  lock_acquire (w->b->lock);
  done = w->descriptors_current;
  lock_release (w->b->lock);
  if (done)
    return 0;
  r = dedup_forget_descriptors (w->u, keep_cb, &k);
  if (r < 0) {
    dedup_known_free (&k.known);
    return r;
  }
  dedup_known_sort (&k.known);
  lock_acquire (w->b->lock);
  dedup_known_free (&w->known);
  w->known = k.known;
  w->descriptors_current = true;
  lock_release (w->b->lock);
  return 0;
}

static int
take_in (struct dedup_writer *w, uint64_t guest_idx, size_t nr, bool all,
         struct dedup_existing *res)
{
  CLEANUP_FREE uint8_t *buf = aligned_new (nr * w->b->cluster_size);
  struct op op = { .w = w, .root = QCOW2_ROOT_ACTIVE, .buf = buf,
                   .guest_idx = guest_idx, .nr = nr,
                   .zero_entry = dedup_zero_entry (w->b), .trimmed = true };
  int r;

  assert (nr > 0 && nr <= DEDUP_CHUNK_CLUSTERS);
  r = dedup_op_alloc (&op);
  if (r == 0)
    r = buf == NULL ? -ENOMEM : dedup_admit (w->s);
  if (r == 0)
    r = dedup_enter (&w->s->gate);
  if (r == 0) {
    qcow2_txn_begin (w->b->img, &op.txn);
    r = index_range (&op, buf, all, res);
    finish (&op);
    dedup_leave (&w->s->gate);
  }
  dedup_op_free (&op);
  return r;
}

int
dedup_take_in (struct dedup_writer *w, uint64_t guest_idx, size_t nr,
               bool all, struct dedup_existing *res)
{
  int r = take_in (w, guest_idx, nr, all, res);

  if (r != -EDEADLK)
    return r;
  r = forget_out_of_date (w);
  return r < 0 ? r : take_in (w, guest_idx, nr, all, res);
}

/* --- The next range ------------------------------------------------------ */

#define EXTENTS 16                       /* of one call of qcow2_map */
#define MAP_BYTES (UINT64_C (1) << 30)   /* looked at by one call */

static size_t
chunk_clusters (const struct dedup_base *b)
{
  return MAX_OF (1, MIN_OF (DEDUP_CHUNK_BYTES >> b->cluster_bits,
                            DEDUP_CHUNK_CLUSTERS));
}

bool
dedup_can_take_in (const struct dedup_writer *w)
{
  return w->s->has_store && w->b->writable && w->dedup;
}

/* Returns the number of the first of N extents that has data, or N. */
static int
first_with_data (const struct qcow2_extent *ext, int n)
{
  int i;

  for (i = 0; i < n && ext[i].kind != QCOW2_DATA &&
         ext[i].kind != QCOW2_COMPRESSED; i++)
    ;
  return i;
}

/* Returns whether one of N extents is compressed. */
static bool
any_compressed (const struct qcow2_extent *ext, int n)
{
  int i;

  for (i = 0; i < n && ext[i].kind != QCOW2_COMPRESSED; i++)
    ;
  return i < n;
}

int
dedup_take_in_next (struct dedup_writer *w, uint64_t *guest_idx, size_t *nr,
                    struct dedup_existing *res)
{
  const struct dedup_base *b = w->b;
  const struct qcow2_geometry *g = qcow2_geometry (b->img);
  struct qcow2_extent ext[EXTENTS];
  uint64_t guest_off;
  int n, i, r;

  if (!dedup_can_take_in (w))
    return -ENOTSUP;
  while (*guest_idx < g->nr_clusters) {
    guest_off = *guest_idx << b->cluster_bits;
    n = qcow2_map (b->img, QCOW2_ROOT_ACTIVE, guest_off,
                   MIN_OF (MAP_BYTES, g->virtual_size - guest_off), ext,
                   EXTENTS);
    if (n == -EIO) {            /* an entry that is corrupt, and was logged */
      res->bad++;
      ++*guest_idx;
      continue;
    }
    if (n < 0)
      return n;
    if (any_compressed (ext, n) && (r = forget_out_of_date (w)) < 0)
      return r;
    i = first_with_data (ext, n);
    if (i < n) {
      *guest_idx = ext[i].guest_off >> b->cluster_bits;
      *nr = (size_t) MIN_OF (chunk_clusters (b), g->nr_clusters - *guest_idx);
      return 1;
    }
    *guest_idx = div_round_up (ext[n - 1].guest_off + ext[n - 1].len,
                               b->cluster_size);
  }
  return 0;
}

/* --- Counting ------------------------------------------------------------ */

#define RANGES_COUNTED 16       /* by one call, of DEDUP_CHUNK_CLUSTERS each */

/* Returns how many of NR clusters dedup_take_in would read; 0 where their tables
 * cannot be read. */
static uint64_t
count_range (struct dedup_writer *w, uint64_t guest_idx, size_t nr)
{
  struct op op = { .w = w, .root = QCOW2_ROOT_ACTIVE, .guest_idx = guest_idx,
                   .nr = nr };
  struct dedup_existing ignored = { 0 };
  bool blocked = false;
  uint64_t found = 0;
  int r = dedup_op_alloc (&op);

  if (r == 0) {
    qcow2_txn_begin (w->b->img, &op.txn);
    r = look_at_all (&op, false, &ignored, &blocked);
    qcow2_txn_end (&op.txn);
  }
  for (size_t i = 0; i < nr && r == 0; i++)
    found += op.slots[i].own != 0;
  dedup_op_free (&op);
  return found;
}

int
dedup_take_in_count (struct dedup_writer *w, uint64_t *guest_idx, uint64_t *nr)
{
  struct dedup_existing ignored = { 0 };
  size_t here;

  for (unsigned i = 0; i < RANGES_COUNTED; i++) {
    int r = dedup_take_in_next (w, guest_idx, &here, &ignored);

    if (r <= 0)
      return r;
    *nr += count_range (w, *guest_idx, here);
    *guest_idx += here;
  }
  return 1;
}
