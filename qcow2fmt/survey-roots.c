/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts, for a survey, what each root maps, and finds out who names each L2
 * table.
 *
 * Roots are read one after the other.  An L2 table is read where it is named
 * first; how much it maps, in how many runs, is kept in the set of tables.  Only a
 * table across the end of a disk is read again, since disks of different sizes
 * may share it.
 *
 * Then the roots are sorted, and the largest get groups of their own.  Only now
 * a set of groups can be made for each table with several users, so the L1
 * tables, not the L2 tables, are read a second time.
 *
 * All L1 tables together are no larger than the file, or some overlap: then the
 * image is refused, as it could name one table 65,536 times and keep the survey
 * busy for hours.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "checked.h"
#include "survey.h"

/* --- The set of roots ---------------------------------------------------- */

static void
add_root (struct survey *v, unsigned root)
{
  const uint64_t cs = v->s->cluster_size;
  struct usage_root u;
  struct qcow2_survey_root *r;

  if (!usage_look (v->w.img, root, &u))
    return;
  r = &v->s->roots[v->s->nr_roots++];
  *r = (struct qcow2_survey_root) {
    .root = root, .writable = u.writable, .doomed = u.doomed,
    .u.virtual_bytes = u.size_bytes,
  };
  if (root != QCOW2_ROOT_ACTIVE)
    r->u.table_bytes = round_up_pow2 (u.l1_entries * sizeof (be64), cs);
  v->l1_all += u.l1_entries;
}

static int
find_roots (struct survey *v, struct fault *f)
{
  const unsigned nr = usage_nr_roots (v->w.img);
  unsigned root;

  v->s->roots = calloc (nr, sizeof *v->s->roots);
  v->position = calloc (nr, sizeof *v->position);
  v->busy = calloc (v->nr_clusters / QCOW2_USAGE_WINDOW + 1, sizeof *v->busy);
  if (v->s->roots == NULL || v->position == NULL || v->busy == NULL)
    return -ENOMEM;
  for (root = 0; root < nr; root++)
    add_root (v, root);
  if (v->l1_all * sizeof (be64) <= v->s->nr_clusters * v->s->cluster_size)
    return 0;
  return fault_corrupt (f, UINT64_MAX, "the L1 tables of all disks and "
                        "snapshots have %" PRIu64 " entries, and would be larger "
                        "than the file", v->l1_all);
}

/* --- Reading tables ------------------------------------------------------ */

static void
count_entry (struct usage_walk *w, const struct usage_entry *e)
{
  struct survey *v = survey_of (w);
  const bool inside = e->guest_idx < w->root.nr_clusters;
  uint64_t i;

  for (i = 0; i < e->nr; i++)
    if (e->host_idx + i < v->nr_clusters)
      v->busy[(e->host_idx + i) / QCOW2_USAGE_WINDOW] = true;
  v->s->any_packed |= e->packed != 0;
  v->mapped += e->mapped;
  v->mapped_inside += e->mapped && inside;
  if (!e->mapped || e->nr == 0)
    return;
  if (e->guest_idx != v->last_guest + 1 || e->host_idx - v->last_host > 1) {
    v->runs++;
    v->runs_inside += inside;
  }
  v->last_guest = e->guest_idx;
  v->last_host = e->host_idx + e->nr - 1;
}

/* Reads a table for the root that is being read, and adds what the disk has of
 * it. */
static int
read_table (struct survey *v, const struct usage_table *t)
{
  int r;

  v->mapped = v->mapped_inside = v->runs = v->runs_inside = 0;
  v->last_guest = UINT64_MAX - 1;
  v->last_host = 0;
  r = usage_walk_table (&v->w, t);
  v->root->u.mapped_bytes += v->mapped_inside * v->s->cluster_size;
  v->root->runs += v->runs_inside;
  return r;
}

/* Adds a table to the set when it is met first. */
static int
meet_table (struct survey *v, const struct usage_table *t)
{
  struct survey_table *slot = survey_tables_add (&v->tables, t->host_idx);
  uint64_t paths;
  int r;

  if (slot == NULL)
    return -ENOMEM;
  r = usage_references (v->w.img, t->host_idx, &paths);
  if (r == 0)
    r = read_table (v, t);
  slot->own = paths == 1;
  slot->mapped = (uint32_t) v->mapped;
  slot->runs = (uint32_t) v->runs;
  slot->who = v->root->root + 1;
  slot->paths = 1;
  return r;
}

/* Adds a table that was read already to the present root. */
static int
meet_again (struct survey *v, const struct usage_table *t,
            struct survey_table *slot)
{
  const uint64_t per = v->w.img->header.geo.l2_entries;
  const uint64_t first = t->l1_idx * per, end = v->w.root.nr_clusters;

  slot->paths++;
  if (slot->who != v->root->root + 1)
    slot->who = SURVEY_MANY;
  if (first < end && first + per > end)
    return read_table (v, t);
  if (first < end) {
    v->root->u.mapped_bytes += slot->mapped * v->s->cluster_size;
    v->root->runs += slot->runs;
  }
  return 0;
}

static int
count_table (struct usage_walk *w, const struct usage_table *t)
{
  struct survey *v = survey_of (w);
  struct survey_table *slot = survey_tables_find (&v->tables, t->host_idx);

  survey_progress (v, 0, v->l1_done + t->l1_idx, v->l1_all);
  return slot ? meet_again (v, t, slot) : meet_table (v, t);
}

/* Notes the groups of the present root for a table that several roots name. */
static int
note_groups (struct usage_walk *w, const struct usage_table *t)
{
  struct survey *v = survey_of (w);
  struct survey_table *slot = survey_tables_find (&v->tables, t->host_idx);

  if (slot && (slot->who & SURVEY_MANY))
    slot->who |= UINT32_C (1) << v->root->group;
  return 0;
}

/* Reads the L1 tables of all roots. */
static int
walk_roots (struct survey *v,
            int (*table) (struct usage_walk *w, const struct usage_table *t))
{
  size_t i;
  int r = 0;

  v->w.table = table;
  v->w.entry = count_entry;
  for (i = 0; i < v->s->nr_roots && r == 0; i++) {
    v->root = &v->s->roots[i];
    if (!usage_look (v->w.img, v->root->root, &v->w.root))
      continue;                /* it was removed meanwhile */
    r = usage_walk_root (&v->w);
    if (r == -ENOENT)
      r = 0;
    v->l1_done += v->w.root.l1_entries;
  }
  return r;
}

/* --- Order --------------------------------------------------------------- */

/* Returns 0 for disks, 1 for snapshots, 2 for roots that are being deleted. */
static int
class_of (const struct qcow2_survey_root *r)
{
  return r->doomed ? 2 : !r->writable;
}

static int
compare (const void *a, const void *b)
{
  const struct qcow2_survey_root *x = a, *y = b;

  if (class_of (x) != class_of (y))
    return class_of (x) - class_of (y);
  if (x->u.mapped_bytes != y->u.mapped_bytes)
    return x->u.mapped_bytes > y->u.mapped_bytes ? -1 : 1;
  return x->root < y->root ? -1 : x->root > y->root;
}

static void
sort_roots (struct survey *v)
{
  struct qcow2_survey *s = v->s;
  const size_t last = QCOW2_SURVEY_GROUPS - 1;
  size_t i;

  qsort (s->roots, s->nr_roots, sizeof *s->roots, compare);
  s->nr_groups = (unsigned) MIN_OF (s->nr_roots, last + 1);
  for (i = 0; i < s->nr_roots; i++) {
    s->roots[i].group = (unsigned) MIN_OF (i, last);
    s->roots[i].shared_known = i < last || s->nr_roots == last + 1;
    v->position[s->roots[i].root] = (uint32_t) i;
  }
}

/* Counts tables as those of the root that alone has them. */
static void
count_tables (struct survey *v)
{
  size_t i;

  for (i = 0; i < v->tables.nr_slots; i++) {
    const struct survey_table *t = &v->tables.v[i];

    if (t->host_idx && t->own && !(t->who & SURVEY_MANY))
      v->s->roots[v->position[t->who - 1]].u.table_bytes +=
        v->s->cluster_size;
  }
  v->s->l2_tables = v->tables.nr;
}

int
survey_roots (struct survey *v, struct fault *f)
{
  int r = find_roots (v, f);

  if (r == 0)
    r = walk_roots (v, count_table);
  if (r < 0)
    return r;
  sort_roots (v);
  count_tables (v);
  return walk_roots (v, note_groups);
}
