/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the disks and snapshots, and the byte ranges of them, that show the clusters
 * which scrubs found bad.
 *
 * There is no map from clusters to disks, so the tables of all roots are read once
 * more, but only if there is such a cluster.  Ranges that follow each other on the
 * disk and in the file are joined.  An entry that is corrupt is passed over.  One
 * thread.
 */
#include "report.h"

#include <errno.h>
#include <stdlib.h>

#include "checked.h"

/* What is looked at in one call of qcow2_map. */
#define EXTENTS 64
#define MAP_BYTES (UINT64_C (4) << 30)

/* Returns the number of the first bad cluster that is not before HOST_OFF. */
static size_t
first_bad (const struct pool_report *rep, uint64_t host_off)
{
  size_t lo = 0, hi = rep->nr_bad, mid;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (rep->bad[mid] < host_off)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

/* Returns whether the cluster continues the last place. */
static bool
continues (const struct report_place *p, size_t i, uint64_t guest_off,
           uint64_t host_off)
{
  return p->root_nr == i && p->guest_off + p->len == guest_off &&
    p->host_off + p->len == host_off;
}

/* Adds a cluster of the root with number I. */
static void
add (struct pool_report *rep, size_t i, uint64_t guest_off, uint64_t host_off)
{
  struct report_place *last = rep->places + rep->nr_places - 1;

  if (rep->nr_places > 0 && continues (last, i, guest_off, host_off))
    last->len += rep->s.cluster_size;
  else if (rep->nr_places == REPORT_PLACES)
    rep->nr_more_places++;
  else
    rep->places[rep->nr_places++] = (struct report_place) {
      .root_nr = i, .guest_off = guest_off, .host_off = host_off,
      .len = rep->s.cluster_size,
    };
}

/* Adds a guest cluster whose compressed data touches bad clusters, at the first of
 * these. */
static void
look_at_compressed (struct disk_pool *p, struct pool_report *rep, size_t i,
                    const struct qcow2_extent *e)
{
  const uint64_t cs = rep->s.cluster_size;
  uint64_t first, count;
  size_t k;

  qcow2_entry_clusters (dedup_image (p->d), e->entry, &first, &count);
  k = first_bad (rep, first * cs);
  if (k < rep->nr_bad && rep->bad[k] < (first + count) * cs)
    add (rep, i, e->guest_off, rep->bad[k]);
}

static void
look_at_extent (struct pool_report *rep, size_t i, const struct qcow2_extent *e)
{
  const uint64_t into = e->host_off & (rep->s.cluster_size - 1);
  const uint64_t begin = e->host_off - into;
  size_t k;

  for (k = first_bad (rep, begin);
       k < rep->nr_bad && rep->bad[k] < e->host_off + e->len; k++)
    add (rep, i, e->guest_off - into + (rep->bad[k] - begin), rep->bad[k]);
}

/* Looks at all of the root with number I. */
static int
look_at_root (struct disk_pool *p, struct pool_report *rep, size_t i)
{
  const struct qcow2_survey_root *root = &rep->s.roots[i];
  struct qcow2_extent ext[EXTENTS];
  uint64_t off = 0;
  int n;

  while (off < root->u.virtual_bytes) {
    if (tool_interrupted ())
      return -EINTR;
    n = qcow2_map (dedup_image (p->d), root->root, off,
                   MIN_OF (MAP_BYTES, root->u.virtual_bytes - off), ext, EXTENTS);
    if (n == -EIO)
      off = (off | (rep->s.cluster_size - 1)) + 1;
    else if (n < 0)
      return n;
    for (int k = 0; k < n; k++) {
      if (ext[k].kind == QCOW2_DATA)
        look_at_extent (rep, i, &ext[k]);
      else if (ext[k].kind == QCOW2_COMPRESSED)
        look_at_compressed (p, rep, i, &ext[k]);
      off = ext[k].guest_off + ext[k].len;
    }
  }
  return 0;
}

int
report_find_places (struct disk_pool *p, struct pool_report *rep)
{
  int r = 0;

  if (rep->nr_bad == 0)
    return 0;
  rep->places = calloc (REPORT_PLACES, sizeof *rep->places);
  if (rep->places == NULL)
    return -ENOMEM;
  for (size_t i = 0; i < rep->s.nr_roots && r == 0; i++)
    if (!rep->s.roots[i].doomed)
      r = look_at_root (p, rep, i);
  return r;
}
