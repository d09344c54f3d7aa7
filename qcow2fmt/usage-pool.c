/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what all roots map, and how many clusters of the file hold their data.
 *
 * Roots are read one after the other.  An L2 table is read where it is named
 * first; what it maps is kept in a set, so that a thousand clones of a disk cost
 * one look at their L1 entries each.  Only a table across the end of a disk is
 * read again, since disks of different sizes may share it.
 *
 * The set grows with the number of different tables, none of which lies past the
 * end of the file: so it is bounded by the file, as is the bit that each cluster
 * has.  Debts do not matter here, as no refcount is read.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "qcow2-packed.h"
#include "usage.h"

#define FIRST_SLOTS 256        /* power of two */

struct slot {                  /* of a hash table with open addressing */
  uint64_t host_idx;           /* of an L2 table; 0: empty */
  uint64_t mapped;             /* clusters that it maps */
};

struct pool_pass {
  struct usage_walk w;         /* first, see pass_of */
  struct qcow2_pool_usage *u;
  uint64_t nr_clusters;        /* of the file */
  uint64_t *stored;            /* bits of these: they hold data */
  uint64_t nr_stored;
  struct slot *slots;
  size_t nr_slots, nr_tables;
  uint64_t mapped;             /* clusters of the table being read, */
  uint64_t mapped_inside;      /* of them inside the disk, */
  uint64_t root_mapped;        /* and those of the root so far */
  bool any_packed;             /* there is compressed data */
};

static struct pool_pass *
pass_of (struct usage_walk *w)
{
  return (struct pool_pass *) w;
}

/* --- The set of tables ---------------------------------------------------- */

/* Returns the slot of a table, or the empty one where it belongs. */
static struct slot *
find_slot (struct slot *slots, size_t nr_slots, uint64_t host_idx)
{
  size_t i = (size_t) (host_idx * UINT64_C (0x9e3779b97f4a7c15) >> 20);

  while (slots[i &= nr_slots - 1].host_idx != 0 &&
         slots[i].host_idx != host_idx)
    i++;
  return &slots[i];
}

/* Makes room for one more table. */
static int
make_room (struct pool_pass *p)
{
  size_t nr = p->nr_slots ? 2 * p->nr_slots : FIRST_SLOTS, i;
  struct slot *slots;

  if (p->nr_tables < p->nr_slots / 2)
    return 0;
  slots = calloc (nr, sizeof *slots);
  if (slots == NULL)
    return -ENOMEM;
  for (i = 0; i < p->nr_slots; i++)
    if (p->slots[i].host_idx)
      *find_slot (slots, nr, p->slots[i].host_idx) = p->slots[i];
  free (p->slots);
  p->slots = slots;
  p->nr_slots = nr;
  return 0;
}

/* --- Tables --------------------------------------------------------------- */

static void
count_cluster (struct pool_pass *p, uint64_t host_idx)
{
  uint64_t *word, bit = UINT64_C (1) << host_idx % 64;

  if (host_idx >= p->nr_clusters)
    return;
  word = &p->stored[host_idx / 64];
  p->nr_stored += !(*word & bit);
  *word |= bit;
}

static void
count_entry (struct usage_walk *w, const struct usage_entry *e)
{
  struct pool_pass *p = pass_of (w);
  uint64_t i;

  p->any_packed |= e->packed != 0;
  p->mapped += e->mapped;
  p->mapped_inside += e->mapped && e->guest_idx < w->root.nr_clusters;
  for (i = 0; i < e->nr; i++)
    count_cluster (p, e->host_idx + i);
}

static int
read_table (struct pool_pass *p, const struct usage_table *t)
{
  struct slot *s;
  int r = make_room (p);

  p->mapped = p->mapped_inside = 0;
  if (r == 0)
    r = usage_walk_table (&p->w, t);
  if (r < 0)
    return r;
  p->root_mapped += p->mapped_inside;
  s = find_slot (p->slots, p->nr_slots, t->host_idx);
  p->nr_tables += s->host_idx == 0;
  *s = (struct slot) { .host_idx = t->host_idx, .mapped = p->mapped };
  return 0;
}

static int
count_table (struct usage_walk *w, const struct usage_table *t)
{
  struct pool_pass *p = pass_of (w);
  const uint64_t per = w->img->header.geo.l2_entries;
  const uint64_t first = t->l1_idx * per;
  const struct slot *s = NULL;

  if (p->nr_slots)
    s = find_slot (p->slots, p->nr_slots, t->host_idx);
  if (s == NULL || s->host_idx == 0 ||
      (first < w->root.nr_clusters && first + per > w->root.nr_clusters))
    return read_table (p, t);
  if (first < w->root.nr_clusters)
    p->root_mapped += s->mapped;
  return 0;
}

/* --- Roots ---------------------------------------------------------------- */

static int
count_root (struct pool_pass *p)
{
  const struct usage_root *root = &p->w.root;
  const uint64_t cluster_size = p->w.img->header.geo.cluster_size;
  int r;

  p->root_mapped = 0;
  r = usage_walk_root (&p->w);
  if (r == -ENOENT)            /* it was removed meanwhile */
    return 0;
  if (r < 0 || root->doomed)
    return r;
  if (p->w.p && p->w.p->root)
    p->w.p->root (p->w.p->opaque, root->root, p->root_mapped * cluster_size);
  p->u->nr_roots++;
  p->u->root_bytes += p->root_mapped * cluster_size;
  if (root->writable) {
    p->u->nr_disks++;
    p->u->disk_bytes += p->root_mapped * cluster_size;
  }
  return 0;
}

static int
count_roots (struct pool_pass *p)
{
  unsigned root;
  int r = 0;

  for (root = 0; root < usage_nr_roots (p->w.img) && r == 0; root++)
    if (usage_look (p->w.img, root, &p->w.root))
      r = count_root (p);
  return r;
}

/* --- Compressed data ------------------------------------------------------- */

/* Adds up the descriptors of all windows. */
static int
add_windows (struct qcow2_image *img, const struct qcow2_usage_params *p,
             struct qcow2_packed *walk, struct qcow2_packed_sum *sum)
{
  struct qcow2_packed_window w;
  int r;

  do {
    while ((r = qcow2_packed_step (walk)) == 1)
      if (p && p->stop && p->stop (p->opaque))
        return -EINTR;
    if (r < 0)
      return r;
    qcow2_packed_get (walk, &w);
    qcow2_packed_add (sum, img, w.v, w.nr);
  } while (qcow2_packed_next (walk));
  return 0;
}

int
qcow2_packed_usage (struct qcow2_image *img,
                    const struct qcow2_usage_params *p,
                    struct qcow2_pool_usage *u)
{
  struct qcow2_packed_sum sum = { 0 };
  struct qcow2_packed *walk;
  int r = qcow2_packed_begin (img, p ? p->max_packed : 0, false, &walk);

  if (r < 0)
    return r;
  qcow2_packed_tell_stays (walk);
  r = add_windows (img, p, walk, &sum);
  qcow2_packed_end (walk);
  qcow2_packed_add_end (&sum, img);
  u->packed = sum.descriptors;
  u->packed_bytes = sum.clusters * img->header.geo.cluster_size;
  u->packed_live_bytes = sum.live_bytes;
  u->packed_kept_dead_bytes = sum.kept_dead_bytes;
  return r;
}

static int
run (struct pool_pass *p)
{
  int r = usage_file_clusters (p->w.img, &p->nr_clusters);

  if (r < 0)
    return r;
  p->stored = calloc (p->nr_clusters / 64 + 1, sizeof *p->stored);
  if (p->stored == NULL)
    return -ENOMEM;
  r = count_roots (p);
  p->u->stored_bytes = p->nr_stored * p->w.img->header.geo.cluster_size;
  return r == 0 && p->any_packed ? qcow2_packed_usage (p->w.img, p->w.p, p->u)
    : r;
}

int
qcow2_pool_usage (struct qcow2_image *img,
                  const struct qcow2_usage_params *params,
                  struct qcow2_pool_usage *u)
{
  struct pool_pass p = {
    .w = { .table = count_table, .entry = count_entry }, .u = u,
  };
  int r;

  memset (u, 0, sizeof *u);
  r = usage_walk_init (&p.w, img, params);
  if (r == 0)
    r = run (&p);
  usage_walk_free (&p.w);
  free (p.stored);
  free (p.slots);
  return r;
}
