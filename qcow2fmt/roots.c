/* SPDX-License-Identifier: BSD-3-Clause */
/* Builds a change of the set of roots ("switch"): a new snapshot table, and the
 * new L1 tables that it names.
 *
 * A switch has one edit or several, which take effect together.  It is built in
 * these steps:
 *
 *   new      reserves clusters, and fills buffers with the new tables
 *   write    writes the buffers where nothing refers to them; the caller syncs
 *   prepare  pins what the commit needs      } switch-commit.c,
 *   commit   makes the change, in one group  } under one hold of the lock
 *
 * Writers go on meanwhile.  An L1 table is copied without its flags, and the
 * entries that change before the commit are changed again by it.
 *
 * Slots change in a commit only, and the caller makes one switch at a time.  So
 * slots are read here without the lock.  The buffers take at most 32 MiB for an
 * L1 table, and 64 MiB for the snapshot table.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "switch.h"

/* The most roots that an image gets: each may have a path to one table, and 16 bits
 * of the table's refcount count paths. */
#define MAX_ROOTS 65000u

struct builder {
  struct qcow2_switch *sw;
  struct qcow2_image *img;
  struct fault *f;
  size_t nr_slots;             /* with those of new roots */
  uint64_t next_id;
};

static int
no_memory (struct builder *b)
{
  return fault_io (b->f, ENOMEM, UINT64_MAX, "out of memory");
}

static int
too_many (struct builder *b)
{
  return fault_set (b->f, FAULT_USAGE, EMLINK, UINT64_MAX, "the image has the "
                    "maximum number of disks and snapshots");
}

/* --- Edits -------------------------------------------------------------- */

/* Returns the slot of ROOT if it is a disk, else NULL. */
static const struct qcow2_snapshot *
disk_of (const struct qcow2_image *img, unsigned root)
{
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, root);

  return s && s->is_disk && !s->is_anchor ? s : NULL;
}

static bool
is_source (const struct qcow2_image *img, unsigned root)
{
  const struct qcow2_snapshot *s = qcow2_root_slot_locked (img, root);

  return root == QCOW2_ROOT_ACTIVE || (s && !s->is_anchor);
}

/* Returns how many edits take over the L1 table of ROOT. */
static unsigned
takers_of (const struct qcow2_switch *sw, unsigned root)
{
  unsigned n = 0;

  for (size_t i = 0; i < sw->nr; ++i)
    n += sw->v[i].e.l1 == QCOW2_L1_TAKE && sw->v[i].e.source == root &&
      !sw->v[i].e.remove;
  return n;
}

/* Returns whether an edit gives another L1 table to ROOT. */
static bool
gets_another (const struct qcow2_switch *sw, unsigned root)
{
  for (size_t i = 0; i < sw->nr; ++i)
    if (sw->v[i].e.root == root && !sw->v[i].e.remove &&
        (sw->v[i].e.l1 == QCOW2_L1_EMPTY || sw->v[i].e.l1 == QCOW2_L1_LEND))
      return true;
  return false;
}

/* Returns whether the L1 table that E asks for can be made.  That of a root
 * which gets another one is taken by exactly one other edit. */
static bool
l1_ok (const struct builder *b, const struct qcow2_root_edit *e)
{
  switch (e->l1) {
  case QCOW2_L1_KEEP:
  case QCOW2_L1_GROW:
    return e->root != 0;
  case QCOW2_L1_EMPTY:
    return e->root == 0 || takers_of (b->sw, e->root) == 1;
  case QCOW2_L1_LEND:
    return is_source (b->img, e->source) &&
      (e->root == 0 || takers_of (b->sw, e->root) == 1);
  case QCOW2_L1_TAKE:
    return e->root == 0 && disk_of (b->img, e->source) &&
      takers_of (b->sw, e->source) == 1 && gets_another (b->sw, e->source);
  }
  return false;
}

static bool
edit_ok (const struct builder *b, const struct qcow2_root_edit *e)
{
  if (e->root != 0 && !disk_of (b->img, e->root))
    return false;
  if (e->remove)
    return e->root != 0;
  return (e->root != 0 || e->name) && e->size > 0 && e->size <= INT64_MAX &&
    l1_ok (b, e);
}

/* --- Slots -------------------------------------------------------------- */

/* Finds a slot for a new root: one that is not in use, and that no edit before
 * EDIT has got. */
static int
find_slot (struct builder *b, struct qcow2_switch_edit *edit)
{
  const struct qcow2_snapshot_table *t = &b->img->snapshots;
  size_t slot = 0;

  for (const struct qcow2_switch_edit *o = b->sw->v; o < edit; ++o)
    if (o->is_new)
      slot = MAX_OF (slot, o->slot + 1);
  while (slot < t->nr && !t->v[slot].dead)
    slot++;
  if (slot >= t->max)
    return too_many (b);
  edit->slot = slot;
  b->nr_slots = MAX_OF (b->nr_slots, slot + 1);
  return 0;
}

/* Returns a decimal id that is above all others that are in use.  Ids that are
 * no plain numbers are never equal to it. */
static uint64_t
find_next_id (const struct qcow2_snapshot_table *t)
{
  uint64_t max = 0, id;
  char *end;

  for (size_t i = 0; i < t->nr; ++i) {
    if (t->v[i].dead)
      continue;
    errno = 0;
    id = strtoull (t->v[i].id, &end, 10);
    if (errno == 0 && *end == '\0' && id < UINT64_MAX / 2)
      max = MAX_OF (max, id);
  }
  return max + 1;
}

static size_t
count_live (const struct qcow2_snapshot_table *t)
{
  size_t n = 0;

  for (size_t i = 0; i < t->nr; ++i)
    n += !t->v[i].dead;
  return n;
}

/* Sets the strings of a root that stays.  The old strings stay with the old
 * root until the commit. */
static int
set_strings (struct builder *b, struct qcow2_switch_edit *edit,
             const struct qcow2_snapshot *old)
{
  struct qcow2_snapshot *s = &edit->s;
  char id[24];

  snprintf (id, sizeof id, "%llu", (unsigned long long) b->next_id);
  b->next_id += edit->is_new;
  s->id = strdup (old ? old->id : id);
  s->name = strdup (edit->e.name ? edit->e.name : old->name);
  return s->id && s->name ? 0 : no_memory (b);
}

/* Sets the fields of a root that stays, but for its L1 table. */
static int
set_fields (struct builder *b, struct qcow2_switch_edit *edit)
{
  const struct qcow2_snapshot *old = edit->is_new ? NULL
    : &b->img->snapshots.v[edit->slot];
  const struct qcow2_root_edit *e = &edit->e;
  struct qcow2_snapshot *s = &edit->s;

  if (old)
    *s = *old;
  else
    *s = (struct qcow2_snapshot) { .date_sec = (uint32_t) e->created };
  s->id = s->name = NULL;
  s->is_disk = true;
  s->disk_size = e->size;
  /* A disk with flags that this version does not know stays as it is. */
  s->disk_flags = old && (old->disk_flags & ~QCOW2_DISK_KNOWN) ?
    old->disk_flags | (e->flags & QCOW2_DISK_DOOMED) : e->flags;
  memcpy (s->uuid, e->uuid, sizeof s->uuid);
  memcpy (s->origin, e->origin, sizeof s->origin);
  s->created = e->created;
  s->compress = e->compress;
  return set_strings (b, edit, old);
}

/* --- L1 tables ---------------------------------------------------------- */

static uint64_t
l1_entries_of_root (const struct qcow2_image *img, unsigned root)
{
  return root == QCOW2_ROOT_ACTIVE ? img->l1.nr
    : img->snapshots.v[root - 1].l1_entries;
}

static uint64_t
bytes_to_clusters (const struct qcow2_image *img, uint64_t bytes)
{
  return div_round_up (bytes, img->header.geo.cluster_size);
}

/* Notes that the present L1 table of the edit's root is freed. */
static void
free_old_l1 (struct builder *b, struct qcow2_switch_edit *edit)
{
  const struct qcow2_snapshot *s = &b->img->snapshots.v[edit->slot];

  edit->freed = (struct qcow2_clusters) {
    s->l1_off >> b->img->header.geo.cluster_bits,
    bytes_to_clusters (b->img, s->l1_entries * sizeof (be64)),
  };
}

static int
reserve (struct builder *b, uint64_t count, uint64_t *host_idx)
{
  int r;
  LOCK_FOR_SCOPE (&b->img->lock);

  r = qcow2_reserve_area_locked (b->img, count, host_idx);
  return r < 0 ? fault_io (b->f, -r, UINT64_MAX, "no room for the tables of a "
                           "disk: %s", strerror (-r)) : 0;
}

/* Reserves clusters and a zeroed buffer for an L1 table that maps the size of
 * the edit's root, and has at least MIN entries. */
static int
new_l1 (struct builder *b, struct qcow2_switch_edit *edit, uint64_t min)
{
  const struct qcow2_geometry *g = &b->img->header.geo;
  struct qcow2_new_l1 *l1 = &edit->l1;
  uint64_t clusters;
  int r;

  l1->nr = div_round_up (div_round_up (edit->e.size, g->cluster_size),
                         g->l2_entries);
  l1->nr = MAX_OF (l1->nr, min);
  if (l1->nr > QCOW2_MAX_L1_BYTES / sizeof (be64))
    return fault_usage (b->f, "the disk is too large for clusters of %llu "
                        "bytes", (unsigned long long) g->cluster_size);
  clusters = bytes_to_clusters (b->img, l1->nr * sizeof (be64));
  l1->buf = aligned_zero_new (clusters * g->cluster_size);
  if (!l1->buf)
    return no_memory (b);
  r = reserve (b, clusters, &l1->host_idx);
  if (r < 0)
    return r;
  l1->clusters = clusters;
  edit->s.l1_off = l1->host_idx << g->cluster_bits;
  edit->s.l1_entries = (uint32_t) l1->nr;
  return 0;
}

/* Notes that the new L1 table of EDIT has the entries of SOURCE. */
static void
copies (struct builder *b, struct qcow2_switch_edit *edit, unsigned source)
{
  struct qcow2_new_l1 *l1 = &edit->l1;

  l1->source = source;
  l1->copied = MIN_OF (l1->nr, l1_entries_of_root (b->img, source));
}

static int
make_l1 (struct builder *b, struct qcow2_switch_edit *edit)
{
  const struct qcow2_snapshot *source;
  int r;

  switch (edit->e.l1) {
  case QCOW2_L1_KEEP:
    return 0;
  case QCOW2_L1_EMPTY:
    return new_l1 (b, edit, 1);
  case QCOW2_L1_LEND:
    r = new_l1 (b, edit, 1);
    copies (b, edit, edit->e.source);
    edit->l1.lends = true;
    return r;
  case QCOW2_L1_GROW:
    r = new_l1 (b, edit, edit->s.l1_entries);
    copies (b, edit, edit->e.root);
    free_old_l1 (b, edit);
    return r;
  case QCOW2_L1_TAKE:
    source = &b->img->snapshots.v[edit->e.source - 1];
    edit->s.l1_off = source->l1_off;
    edit->s.l1_entries = source->l1_entries;
    return 0;
  }
  return -EINVAL;
}

int
qcow2_l1_span_locked (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                      uint64_t max, struct qcow2_l1_span *out)
{
  struct qcow2_image *img = txn->img;
  const struct qcow2_geometry *g = &img->header.geo;
  const unsigned size = qcow2_slice_size (g);
  const uint64_t place = qcow2_l1_place_locked (img, root, ti);
  const struct qcow2_slice *t;
  int r;

  *out = (struct qcow2_l1_span) { .nr = max };
  if (root == QCOW2_ROOT_ACTIVE) {
    out->host = img->l1.v + ti;
    return 0;
  }
  t = qcow2_cache_get_locked (txn, round_down_pow2 (place, g->cluster_size),
                              place % g->cluster_size, &r);
  if (!t)
    return r;
  out->wire = (const be64 *) (t->data + place % size);
  out->nr = MIN_OF (max, (size - place % size) / sizeof (be64));
  return 0;
}

/* Limits how many entries are copied under one hold of the lock. */
#define COPY_ENTRIES 4096

struct copying {
  struct qcow2_switch *sw;
  struct qcow2_new_l1 *l1;
  uint64_t done;
};

/* A qcow2_step: copies some entries, from a->done on. */
static int
copy_step (struct qcow2_txn *txn, void *opaque)
{
  struct copying *a = opaque;
  struct qcow2_new_l1 *l1 = a->l1;
  struct qcow2_l1_span span;
  uint64_t e;
  int r = qcow2_l1_span_locked (txn, l1->source, a->done,
                                MIN_OF (l1->copied - a->done, COPY_ENTRIES),
                                &span);

  if (r < 0)
    return r;
  for (uint64_t i = 0; i < span.nr; ++i) {
    e = qcow2_l1_span_get (&span, i) & QCOW2_OFFSET_MASK;
    l1->buf[a->done + i] = be64_make (e);
    a->sw->nr_nonzero += e != 0;
  }
  a->done += span.nr;
  return 0;
}

static int
copy_l1 (struct builder *b, struct qcow2_new_l1 *l1)
{
  struct copying a = { .sw = b->sw, .l1 = l1 };
  int r = 0;

  while (a.done < l1->copied && r == 0)
    r = qcow2_txn_run (b->img, copy_step, &a);
  return r < 0 ? fault_io (b->f, -r, UINT64_MAX, "reading an L1 table: %s",
                           strerror (-r)) : 0;
}

/* --- The snapshot table --------------------------------------------------- */

static int
encode_edit (struct builder *b, struct qcow2_switch_edit *edit)
{
  int r;

  if (edit->e.remove)
    return 0;
  r = qcow2_snapshot_encode_disk (&edit->s, edit->is_new ? NULL :
                                  &b->img->snapshots.raw[edit->slot],
                                  &edit->raw);
  if (r == -EINVAL)
    return fault_usage (b->f, "the name of the disk is too long");
  return r < 0 ? no_memory (b) : 0;
}

/* Makes the new table in a buffer of whole clusters, from its entries. */
static int
join_table (struct builder *b, const struct qcow2_snapshot_raw *raw)
{
  const struct qcow2_geometry *g = &b->img->header.geo;
  struct qcow2_switch *sw = b->sw;
  CLEANUP_FREE uint8_t *buf = NULL;
  uint64_t clusters;
  int r = qcow2_snapshot_join (raw, b->nr_slots, &buf, &sw->table_len,
                               &sw->nr_snapshots);

  if (r == -ENOSPC)
    return fault_set (b->f, FAULT_USAGE, EMLINK, UINT64_MAX, "the snapshot "
                      "table has no room for another disk");
  if (r < 0)
    return no_memory (b);
  clusters = bytes_to_clusters (b->img, sw->table_len);
  if (clusters == 0)
    return 0;
  sw->table = aligned_zero_new (clusters * g->cluster_size);
  if (!sw->table)
    return no_memory (b);
  memcpy (sw->table, buf, sw->table_len);
  r = reserve (b, clusters, &sw->place.host_idx);
  if (r == 0)
    sw->place.count = clusters;
  return r;
}

static int
make_table (struct builder *b)
{
  const struct qcow2_snapshot_table *t = &b->img->snapshots;
  CLEANUP_FREE struct qcow2_snapshot_raw *raw =
    calloc (b->nr_slots + 1, sizeof *raw);

  if (!raw)
    return no_memory (b);
  if (t->nr > 0)
    memcpy (raw, t->raw, t->nr * sizeof *raw);
  for (size_t i = 0; i < b->sw->nr; ++i)
    raw[b->sw->v[i].slot] = b->sw->v[i].raw;
  return join_table (b, raw);
}

/* --- Switches ------------------------------------------------------------- */

static int
build_edit (struct builder *b, struct qcow2_switch_edit *edit)
{
  int r = 0;

  edit->is_new = edit->e.root == 0;
  if (edit->is_new)
    r = find_slot (b, edit);
  else
    edit->slot = edit->e.root - 1;
  if (r == 0 && edit->e.remove) {
    free_old_l1 (b, edit);
    return 0;
  }
  if (r == 0)
    r = set_fields (b, edit);
  if (r == 0)
    r = make_l1 (b, edit);
  if (r == 0)
    r = copy_l1 (b, &edit->l1);
  return r < 0 ? r : encode_edit (b, edit);
}

/* Returns how many paths the switch lends at most. */
static size_t
count_lent (const struct qcow2_switch *sw)
{
  size_t n = 0;

  for (size_t i = 0; i < sw->nr; ++i)
    if (sw->v[i].l1.lends)
      n += sw->v[i].l1.copied;
  return n;
}

static int
check_edits (struct builder *b)
{
  const struct qcow2_switch *sw = b->sw;
  size_t nr_new = 0;
  LOCK_FOR_SCOPE (&b->img->lock);

  for (size_t i = 0; i < sw->nr; ++i) {
    if (!edit_ok (b, &sw->v[i].e))
      return fault_usage (b->f, "such a change of the disks is not possible");
    nr_new += sw->v[i].e.root == 0;
  }
  if (nr_new > 0 && count_live (&b->img->snapshots) + nr_new > MAX_ROOTS)
    return too_many (b);
  return 0;
}

static int
build (struct builder *b)
{
  struct qcow2_switch *sw = b->sw;
  int r = check_edits (b);

  for (size_t i = 0; i < sw->nr && r == 0; ++i)
    r = build_edit (b, &sw->v[i]);
  if (r == 0)
    r = make_table (b);
  if (r == 0 && qcow2_lending_init (&sw->lending, count_lent (sw)) < 0)
    r = no_memory (b);
  return r;
}

/* Checks that IMG is one whose roots can change now. */
static int
check_image (const struct qcow2_image *img, struct fault *f)
{
  if (!img->writable)
    return fault_set (f, FAULT_USAGE, EROFS, UINT64_MAX, "is open for reading "
                      "only");
  if (img->unlogged.on)
    return fault_unsupported (f, "has no dedup store, so its disks cannot be "
                              "changed");
  /* The slots must agree with the table that is replaced. */
  if (img->fields.snapshots_off != img->snapshots.host_off)
    return fault_io (f, EIO, img->fields.snapshots_off, "the snapshot table "
                     "has moved");
  return 0;
}

int
qcow2_switch_new (struct qcow2_image *img, const struct qcow2_root_edit *edits,
                  size_t nr, struct qcow2_switch **out, struct fault *f)
{
  struct qcow2_switch *sw;
  struct builder b = {
    .img = img, .f = f, .nr_slots = img->snapshots.nr,
    .next_id = find_next_id (&img->snapshots),
  };
  int r = check_image (img, f);

  if (r < 0)
    return r;
  b.sw = sw = calloc (1, sizeof *sw);
  if (sw)
    sw->v = calloc (nr, sizeof *sw->v);
  if (!sw || !sw->v) {
    free (sw);
    return no_memory (&b);
  }
  sw->img = img;
  sw->nr = nr;
  for (size_t i = 0; i < nr; ++i)
    sw->v[i].e = edits[i];
  r = build (&b);
  if (r < 0)
    qcow2_switch_free (sw);
  else
    *out = sw;
  return r;
}

int
qcow2_switch_write (struct qcow2_switch *sw)
{
  const struct qcow2_geometry *g = &sw->img->header.geo;
  int r = 0;

  for (size_t i = 0; i < sw->nr && r == 0; ++i)
    if (sw->v[i].l1.clusters > 0)
      r = io_pwrite (sw->img->io, sw->v[i].l1.buf,
                     sw->v[i].l1.clusters << g->cluster_bits,
                     sw->v[i].l1.host_idx << g->cluster_bits);
  if (r == 0 && sw->place.count > 0)
    r = io_pwrite (sw->img->io, sw->table, sw->place.count << g->cluster_bits,
                   sw->place.host_idx << g->cluster_bits);
  return r;
}

static void
unreserve (struct qcow2_image *img, uint64_t host_idx, uint64_t count)
{
  const struct qcow2_run run = { .host_idx = host_idx, .count = count };
  LOCK_FOR_SCOPE (&img->lock);

  if (count > 0)
    qcow2_unreserve_locked (img, &run);
}

static void
free_edit (struct qcow2_switch_edit *edit)
{
  free ((char *) edit->s.id);
  free ((char *) edit->s.name);
  free (edit->raw.bytes);
  free (edit->l1.buf);
}

void
qcow2_switch_free (struct qcow2_switch *sw)
{
  if (!sw)
    return;
  for (size_t i = 0; i < sw->nr; ++i) {
    if (!sw->committed)
      unreserve (sw->img, sw->v[i].l1.host_idx, sw->v[i].l1.clusters);
    free_edit (&sw->v[i]);
  }
  if (!sw->committed)
    unreserve (sw->img, sw->place.host_idx, sw->place.count);
  qcow2_lending_free (&sw->lending);
  free (sw->table);
  free (sw->v);
  free (sw);
}
