/* SPDX-License-Identifier: BSD-3-Clause */
/* Counts what a root takes in the file, and what deleting it would free.
 *
 * A pass reads the tables of the roots concerned.  It may be called from any
 * thread, beside writers; it takes the image's lock for one slice of a table
 * (4 KiB) at a time and reads the others without it, past the cache, which
 * keeps what requests need.  It writes nothing, and needs no journal.
 *
 * While nobody changes the image, all figures are exact, also where tables are
 * lent and have debts.  If the image is changed meanwhile, each table and each
 * refcount is counted as it was at some moment of the pass.  Then a figure may be
 * wrong by what changed during it: by the clusters that were written or
 * unmapped, and by whole tables that were lent, copied or freed.
 */
#ifndef QCOW2_USAGE_H
#define QCOW2_USAGE_H

#include "qcow2.h"

struct qcow2_usage_params {
  /* Asked about every table; the pass returns -EINTR when it says yes.  May be
   * NULL. */
  bool (*stop) (void *opaque);
  /* Told by qcow2_pool_usage what each root maps, once it is counted.  May be
   * NULL. */
  void (*root) (void *opaque, unsigned root, uint64_t mapped_bytes);
  void *opaque;
  size_t max_packed;           /* descriptors of compressed data that qcow2_pool_usage
                                * has in memory, 8 bytes each; 0: the default of
                                * qcow2-packed.h */
};

struct qcow2_root_usage {
  uint64_t virtual_bytes;      /* the size of the disk */
  uint64_t mapped_bytes;       /* guest clusters that hold data here: not in the
                                * backing file, and not those that read as
                                * zero; compressed ones count in full */
  /* In the file, whole clusters.  The first two are freed if the root is
   * deleted, nothing else is: */
  uint64_t exclusive_bytes;    /* data to which no other root refers */
  uint64_t table_bytes;        /* its L1 table, and the L2 tables of no other
                                * root.  The L1 table of the active disk, which
                                * cannot be deleted, is not counted */
  uint64_t shared_bytes;       /* data to which other roots refer, too */
};

/* Counts ROOT.  A disk that was deleted counts as a root until its space is
 * freed.  It takes at most 128 MiB of memory, and reads the root's L2 tables once
 * for every 2^25 clusters of the file.  -ENOENT: there is no such root, or it is
 * the anchor; -EIO: a table cannot be read or be where it is said to be; -ENOMEM;
 * -EINTR. */
int qcow2_root_usage (struct qcow2_image *img, unsigned root,
                      const struct qcow2_usage_params *p,
                      struct qcow2_root_usage *u) MUST_CHECK;

struct qcow2_pool_usage {
  uint64_t nr_disks;           /* the active one and the writable disks */
  uint64_t nr_roots;           /* these, their snapshots and those of others */
  uint64_t disk_bytes;         /* mapped_bytes, the sum over the disks */
  uint64_t root_bytes;         /* mapped_bytes, the sum over all roots */
  uint64_t stored_bytes;       /* clusters of the file that hold data of any root,
                                * also of disks that are being deleted; these
                                * count nowhere else */
  /* Of them, what is compressed; all 0 if nothing is: */
  uint64_t packed;             /* different descriptors: pieces of compressed data of
                                * one guest cluster each */
  uint64_t packed_bytes;       /* clusters that have some */
  uint64_t packed_live_bytes;  /* of these, what a descriptor covers (its last sector
                                * as a whole); the others are dead */
  uint64_t packed_kept_dead_bytes;     /* of the dead ones, those in clusters with data
                                * that no compaction moves: it is being deleted, or too
                                * many disks and snapshots have it */
};

/* Counts all roots but the anchor, and reads each L2 table once, however many
 * roots share it; where there is compressed data, once more for each max_packed
 * descriptors (qcow2-packed.h).  It takes a bit of memory for each cluster of the
 * file, 32 bytes for each L2 table, and then 8 for each of these descriptors.
 * Errors as above. */
int qcow2_pool_usage (struct qcow2_image *img,
                      const struct qcow2_usage_params *p,
                      struct qcow2_pool_usage *u) MUST_CHECK;
/* Sets only what is compressed. */
int qcow2_packed_usage (struct qcow2_image *img,
                        const struct qcow2_usage_params *p,
                        struct qcow2_pool_usage *u) MUST_CHECK;

/* Returns how many bytes of the disks one stored byte stands for; 0 if nothing is
 * stored. */
static inline double
qcow2_usage_ratio (const struct qcow2_pool_usage *u)
{
  return u->stored_bytes ? (double) u->disk_bytes / (double) u->stored_bytes
    : 0;
}

/* Returns what would be stored without compression: what deduplication alone
 * leaves. */
static inline uint64_t
qcow2_usage_unpacked (const struct qcow2_pool_usage *u, uint64_t cluster_size)
{
  return u->stored_bytes - (u->packed_bytes < u->stored_bytes ? u->packed_bytes
                            : u->stored_bytes) + u->packed * cluster_size;
}

/* Returns A by B; 0 if B is 0. */
static inline double
qcow2_usage_quotient (uint64_t a, uint64_t b)
{
  return b ? (double) a / (double) b : 0;
}

/* Returns how many of the stored bytes are dead: no data is there any more, but the
 * cluster has other data. */
static inline uint64_t
qcow2_usage_dead (const struct qcow2_pool_usage *u)
{
  return u->packed_bytes - u->packed_live_bytes;
}

/* --- Figures that are kept all the time ------------------------------------ */

struct qcow2_figures {
  /* Clusters of the file, before the frontier: */
  uint64_t in_use;             /* neither free nor in quarantine */
  uint64_t free;               /* known to be free */
  uint64_t stale;              /* of them, the host may hold data for these */
  uint64_t quarantined;        /* freed, and free after the next checkpoint */
  uint64_t frontier;           /* the first cluster that was never used */
  /* The cache of tables: */
  uint64_t cache_bytes, cache_max_bytes;
  uint64_t cache_dirty_bytes;  /* changed, and not written yet */
  uint64_t tables_read;        /* pieces of tables read since the image was opened
                                * because the cache did not have them */
};

/* Copies the figures of an open image.  It reads no table, so it takes less than a
 * microsecond, under the image's lock. */
void qcow2_get_figures_locked (struct qcow2_image *img,
                               struct qcow2_figures *f);

#endif
