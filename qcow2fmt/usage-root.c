/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what one root maps, and which clusters of the file only it has.
 *
 * A cluster of data is exclusive if all of its references come from this root,
 * so that it is freed with the root.  References come by L2 tables:
 *
 *  - a table to which one path leads (an L1 entry, of this root) is freed with
 *    the root, and each of its entries is one reference.  It has no debt, since a
 *    debt is smaller than the number of paths;
 *  - a table to which other roots have paths, too, stays, and at least one
 *    reference of each of its entries is counted, whatever its debt.
 *
 * So a cluster is exclusive if and only if its refcount, less the anchor's
 * reference, is the number of entries of tables of the first kind that name it:
 * debts need no correction.  The refcount of a table of the first kind is 1.
 *
 * There is a counter for each cluster of a window of the file; a larger file is
 * counted window by window, and its tables are read again for each.  Memory is
 * thus bounded whatever the image says.  What lies past the end of the file is
 * not counted.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "usage.h"

/* A counter: bit 0 is set if the root refers to the cluster at all, and the others
 * count entries of tables that only it has; they stop at the maximum, which no
 * refcount of 32 bits equals. */
#define REFERENCED 1u
#define OWN_ENTRY 2u

struct root_pass {
  struct usage_walk w;         /* first, see pass_of */
  struct qcow2_root_usage *u;
  uint64_t start, nr;          /* the window: clusters of the file */
  uint32_t *counters;
  bool first;                  /* the first window */
  bool own;                    /* nobody else has the table being read */
};

static struct root_pass *
pass_of (struct usage_walk *w)
{
  return (struct root_pass *) w;
}

/* --- Counting entries ----------------------------------------------------- */

static void
count_cluster (struct root_pass *p, uint64_t host_idx)
{
  uint32_t *counter;

  if (host_idx < p->start || host_idx - p->start >= p->nr)
    return;
  counter = &p->counters[host_idx - p->start];
  *counter |= REFERENCED;
  if (p->own && *counter <= UINT32_MAX - OWN_ENTRY)
    *counter += OWN_ENTRY;
}

static void
count_entry (struct usage_walk *w, const struct usage_entry *e)
{
  struct root_pass *p = pass_of (w);
  uint64_t i;

  if (p->first && e->mapped && e->guest_idx < w->root.nr_clusters)
    p->u->mapped_bytes += w->img->header.geo.cluster_size;
  for (i = 0; i < e->nr; i++)
    count_cluster (p, e->host_idx + i);
}

static int
count_table (struct usage_walk *w, const struct usage_table *t)
{
  struct root_pass *p = pass_of (w);
  uint64_t paths;
  int r = usage_references (w->img, t->host_idx, &paths);

  if (r < 0)
    return r;
  p->own = paths == 1;
  if (p->first && p->own)
    p->u->table_bytes += w->img->header.geo.cluster_size;
  return usage_walk_table (w, t);
}

/* --- Judging clusters ------------------------------------------------------ */

static int
judge_cluster (struct root_pass *p, uint64_t host_idx, uint32_t counter)
{
  const uint64_t cluster_size = p->w.img->header.geo.cluster_size;
  uint64_t n;
  int r;

  if (counter == 0)
    return 0;
  if (counter / OWN_ENTRY == 0) {
    p->u->shared_bytes += cluster_size;
    return 0;
  }
  r = usage_references (p->w.img, host_idx, &n);
  if (r == 0 && n == counter / OWN_ENTRY)
    p->u->exclusive_bytes += cluster_size;
  else if (r == 0)
    p->u->shared_bytes += cluster_size;
  return r;
}

static int
count_window (struct root_pass *p)
{
  uint64_t i;
  int r = usage_walk_root (&p->w);

  for (i = 0; i < p->nr && r == 0; i++)
    r = judge_cluster (p, p->start + i, p->counters[i]);
  return r;
}

/* --- The whole ------------------------------------------------------------ */

static int
count_windows (struct root_pass *p, uint64_t nr_clusters)
{
  int r = 0;

  p->first = true;
  do {
    p->nr = MIN_OF (QCOW2_USAGE_WINDOW, nr_clusters - p->start);
    memset (p->counters, 0, p->nr * sizeof *p->counters);
    r = count_window (p);
    p->start += p->nr;
    p->first = false;
  } while (r == 0 && p->start < nr_clusters);
  return r;
}

static int
run (struct root_pass *p)
{
  uint64_t nr_clusters;
  int r = usage_file_clusters (p->w.img, &nr_clusters);

  if (r < 0)
    return r;
  p->counters = calloc (MIN_OF (QCOW2_USAGE_WINDOW, nr_clusters + 1),
                        sizeof *p->counters);
  return p->counters ? count_windows (p, nr_clusters) : -ENOMEM;
}

int
qcow2_root_usage (struct qcow2_image *img, unsigned root,
                  const struct qcow2_usage_params *params,
                  struct qcow2_root_usage *u)
{
  const uint64_t cluster_size = img->header.geo.cluster_size;
  struct root_pass p = {
    .w = { .table = count_table, .entry = count_entry }, .u = u,
  };
  int r;

  memset (u, 0, sizeof *u);
  if (!usage_look (img, root, &p.w.root))
    return -ENOENT;
  u->virtual_bytes = p.w.root.size_bytes;
  if (root != QCOW2_ROOT_ACTIVE)
    u->table_bytes = round_up_pow2 (p.w.root.l1_entries * sizeof (be64),
                                    cluster_size);
  r = usage_walk_init (&p.w, img, params);
  if (r == 0)
    r = run (&p);
  usage_walk_free (&p.w);
  free (p.counters);
  return r;
}
