/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the places of disks and snapshots that show bad clusters, by a walk over
 * the tables of all roots, and reports them.
 *
 * There is no map from clusters to disks, so this takes as long as reading all
 * tables, and is done only for windows with findings.  Disks may change
 * meanwhile: a place is one that showed the cluster at some moment.  Disks that are
 * made meanwhile are not looked at, so that the walk ends.
 *
 * One thread, without locks.
 */
#include "scrub-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What is looked at in one call of qcow2_map, and calls in one step. */
#define EXTENTS 64
#define MAP_BYTES (UINT64_C (4) << 30)
#define PER_STEP 64

static bool
any_bad (const struct dedup_scrub *sc)
{
  size_t i;

  for (i = 0; i < sc->nr_suspects; i++)
    if (sc->suspects[i].bad)
      return true;
  return false;
}

/* --- Reports ------------------------------------------------------------------ */

/* Sets NAME to a copy of a root's name, "" for the active disk; to NULL if it is none
 * that users see. */
static int
name_of (const struct dedup_base *b, unsigned root, char **name)
{
  const struct qcow2_snapshot *v;
  size_t nr;
  LOCK_FOR_SCOPE (b->lock);

  *name = NULL;
  nr = qcow2_snapshots (b->img, &v);
  if (root != QCOW2_ROOT_ACTIVE &&
      (root > nr || v[root - 1].dead || v[root - 1].named_anchor ||
       (v[root - 1].disk_flags & QCOW2_DISK_DOOMED)))
    return 0;
  *name = strdup (root == QCOW2_ROOT_ACTIVE ? "" : v[root - 1].name);
  return *name ? 0 : -ENOMEM;
}

/* Returns whether a suspect got new data since its window began. */
static bool
has_changed (const struct dedup_scrub *sc, const struct suspect *s)
{
  uint64_t first = s->host_idx, count = 1, k;
  bool changed = false;

  if (s->packed)
    qcow2_entry_clusters (sc->b->img, s->packed, &first, &count);
  for (k = first; k < first + count; k++)
    changed |= print_load (sc, k - sc->from) == PRINT_CHANGED;
  return changed;
}

static void
report (struct dedup_scrub *sc, size_t i, const char *disk, uint64_t guest_off)
{
  const struct suspect *s = &sc->suspects[i];
  struct dedup_scrub_finding f = {
    .why = s->unreadable ? DEDUP_SCRUB_UNREADABLE : DEDUP_SCRUB_DIFFERENT,
    .host_off = s->host_idx << sc->b->cluster_bits,
    .len = sc->b->cluster_size, .healable = s->healable,
    .disk = disk, .root = sc->root, .guest_off = guest_off,
  };
  uint64_t len;

  if (s->packed)
    qcow2_compressed_extent (sc->b->img, s->packed, &f.host_off, &len);

  if (has_changed (sc, s))      /* it was used again */
    return;
  sc->located[i] = true;
  if (sc->p.found)
    sc->p.found (sc->p.opaque, &f);
}

/* Reports the clusters that no disk shows.  Compressed data that no disk has is no
 * finding. */
static void
report_rest (struct dedup_scrub *sc)
{
  size_t i;

  for (i = 0; i < sc->nr_suspects; i++)
    if (sc->suspects[i].bad && !sc->located[i] &&
        sc->suspects[i].packed == 0)
      report (sc, i, NULL, 0);
}

/* --- The walk ------------------------------------------------------------------ */

/* Returns the first suspect that is not below HOST_IDX. */
static size_t
first_suspect (const struct dedup_scrub *sc, uint64_t host_idx)
{
  size_t lo = 0, hi = sc->nr_suspects, mid;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (sc->suspects[mid].host_idx < host_idx)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

static void
look_at_data (struct dedup_scrub *sc, const char *disk,
              const struct qcow2_extent *e)
{
  const unsigned bits = sc->b->cluster_bits;
  const uint64_t first = e->host_off >> bits;
  const uint64_t end = div_round_up (e->host_off + e->len,
                                     sc->b->cluster_size);
  size_t i;

  for (i = first_suspect (sc, first); i < sc->nr_suspects &&
         sc->suspects[i].host_idx < end; i++)
    if (sc->suspects[i].bad && sc->suspects[i].packed == 0)
      report (sc, i, disk, e->guest_off +
              ((sc->suspects[i].host_idx - first) << bits));
}

/* Reports a guest cluster whose compressed data is a suspect, or touches a cluster
 * that is one. */
static void
look_at_compressed (struct dedup_scrub *sc, const char *disk,
                    const struct qcow2_extent *e)
{
  const uint64_t entry = e->entry & ~QCOW2_L2_COPIED;
  uint64_t first, count;
  size_t i;

  qcow2_entry_clusters (sc->b->img, entry, &first, &count);
  for (i = first_suspect (sc, first); i < sc->nr_suspects &&
         sc->suspects[i].host_idx < first + count; i++)
    if (sc->suspects[i].bad && (sc->suspects[i].packed == 0 ||
                                sc->suspects[i].packed == entry))
      report (sc, i, disk, e->guest_off);
}

static void
look_at_extent (struct dedup_scrub *sc, const char *disk,
                const struct qcow2_extent *e)
{
  if (e->kind == QCOW2_DATA)
    look_at_data (sc, disk, e);
  else if (e->kind == QCOW2_COMPRESSED)
    look_at_compressed (sc, disk, e);
}

static uint64_t
root_size (const struct dedup_base *b, unsigned root)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_root_size_locked (b->img, root);
}

static unsigned
count_roots (const struct dedup_base *b)
{
  LOCK_FOR_SCOPE (b->lock);
  return qcow2_nr_roots_locked (b->img);
}

/* Looks at the next extents of a disk of SIZE bytes.  An entry that is corrupt is
 * passed over; it was logged.  Returns 0, or -errno. */
static int
look_at_some (struct dedup_scrub *sc, const char *disk, uint64_t size)
{
  struct qcow2_extent ext[EXTENTS];
  int i, n;

  n = qcow2_map (sc->b->img, sc->root, sc->guest_off,
                 MIN_OF (MAP_BYTES, size - sc->guest_off), ext, EXTENTS);
  if (n == -EIO)
    sc->guest_off = (sc->guest_off | (sc->b->cluster_size - 1)) + 1;
  else if (n == -EINVAL)        /* it is smaller or gone by now */
    sc->guest_off = size;
  else if (n < 0)
    return n;
  for (i = 0; i < n; i++) {
    look_at_extent (sc, disk, &ext[i]);
    sc->guest_off = ext[i].guest_off + ext[i].len;
  }
  return 0;
}

/* Looks at the next part of the disks.  0: all were looked at. */
static int
look_on (struct dedup_scrub *sc)
{
  CLEANUP_FREE char *disk = NULL;
  const uint64_t size = root_size (sc->b, sc->root);
  unsigned n;
  int r = name_of (sc->b, sc->root, &disk);

  for (n = 0; n < PER_STEP && r == 0 && disk && sc->guest_off < size; n++)
    r = look_at_some (sc, disk, size);
  if (r < 0 || (disk && sc->guest_off < size))
    return r < 0 ? r : 1;
  sc->root++;
  sc->guest_off = 0;
  return sc->root < sc->nr_roots;
}

int
scrub_locate (struct dedup_scrub *sc)
{
  int r;

  if (sc->nr_roots == 0)
    sc->nr_roots = count_roots (sc->b);
  r = any_bad (sc) ? look_on (sc) : 0;
  if (r != 0)
    return r;
  report_rest (sc);
  sc->root = sc->nr_roots = 0;
  sc->guest_off = 0;
  return 0;
}
