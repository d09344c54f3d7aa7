/* SPDX-License-Identifier: BSD-3-Clause */
/* Computes how large an image can get, for a user who must make a device for
 * it.
 *
 * The result is a bound, not an estimate: every guest cluster holds data that
 * nothing shares, all of it was overwritten, and index and journal are at their
 * largest.  Tables count clusters and take clusters themselves, so the sum is
 * repeated until it no longer grows; each round adds a fraction of the one
 * before.
 *
 * No threads; an empty image is made in memory.
 */
#include "pool.h"

#include <errno.h>

#include "wire.h"

/* Entries of the index for each cluster: a merge is due at twice as many at the
 * latest (merge-plan.c), and may write as many again meanwhile. */
#define INDEX_PER_CLUSTER (2 * 2)

#define INDEX_LOG_STORES (2 * 8 + 2)

/* An entry takes 40 bytes in pages of 101, and at most 4.1 of fences and
 * filter (docs/on-disk.md 3.4). */
#define INDEX_ENTRY_BYTES 45

/* Journal areas over the limit, while checkpoints are late. */
#define MORE_AREAS 2

/* Clusters that are not in use: the overwrite reserve, those written ahead, the
 * reserve for tables, and freed ones that can't be used yet. */
#define RESERVED_BYTES (UINT64_C (16) << 20)

#define RESERVED_CLUSTERS 2048

struct sum {
  uint64_t fixed;              /* clusters */
  uint64_t cluster_size, refblock_entries, l2_entries;
  uint64_t log_store;          /* entries */
};

static uint64_t
clusters_of (const struct sum *s, uint64_t bytes)
{
  return div_round_up (bytes, s->cluster_size);
}

/* Returns how many clusters it takes to count, map and index NR clusters. */
static uint64_t
tables_for (const struct sum *s, uint64_t nr)
{
  const uint64_t refblocks = div_round_up (nr, s->refblock_entries) + 2;
  const uint64_t anchor = div_round_up (nr, s->l2_entries) + 2;
  const uint64_t entries = INDEX_PER_CLUSTER * nr +
    INDEX_LOG_STORES * s->log_store;

  return refblocks + anchor +
    clusters_of (s, refblocks * sizeof (be64)) +
    clusters_of (s, anchor * sizeof (be64)) +
    clusters_of (s, entries * INDEX_ENTRY_BYTES);
}

/* Returns the number of clusters of the whole image, tables included. */
static uint64_t
all_clusters (const struct sum *s)
{
  uint64_t nr = s->fixed, before;

  do {
    before = nr;
    nr = s->fixed + tables_for (s, nr);
  } while (nr != before);
  return nr;
}

/* Makes an empty image in memory.  Returns its size in *BYTES, and its geometry
 * in S. */
static int
make_empty (const struct dedup_create_params *p, uint64_t *bytes,
            struct sum *s, struct fault *f)
{
  struct qcow2_open_params q = { .allow_recovery = true,
                                 .cache_bytes = 1 << 20 };
  struct qcow2_image *img;
  struct io_store *io;
  int r = io_memory_new (0, &io);

  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  r = dedup_create (io, p, f);
  if (r == 0)
    r = qcow2_open (io, &q, &img, f);
  if (r == 0) {
    const struct qcow2_geometry *g = qcow2_geometry (img);

    *bytes = (uint64_t) io_size (io);
    s->cluster_size = g->cluster_size;
    s->refblock_entries = g->refblock_entries;
    s->l2_entries = g->l2_entries;
    s->fixed = g->nr_clusters + div_round_up (g->nr_clusters, g->l2_entries);
    qcow2_close (img);
  }
  io_close (io);
  return r;
}

int
dedup_measure (const struct dedup_create_params *p,
               struct dedup_measure *m, struct fault *f)
{
  struct sum s = { 0 };
  unsigned order, areas;
  uint32_t area;
  int r = make_empty (p, &m->required, &s, f);

  if (r < 0)
    return r;
  order = p->order ? p->order : dedup_default_order
    (div_round_up (p->image.virtual_size, s.cluster_size));
  area = dedup_default_area_size (order, s.cluster_size);
  areas = MORE_AREAS + (p->journal_areas ? p->journal_areas :
                        dedup_default_areas (order, area));
  s.log_store = (uint64_t) DEDUP_BUCKET_SLOTS << order;
  s.fixed += clusters_of (&s, m->required) + RESERVED_CLUSTERS +
    clusters_of (&s, RESERVED_BYTES) +
    areas * clusters_of (&s, area);
  m->fully_allocated = round_up_pow2 (all_clusters (&s) * s.cluster_size,
                                      1 << 20);
  return 0;
}
