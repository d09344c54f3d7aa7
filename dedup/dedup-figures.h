/* SPDX-License-Identifier: BSD-3-Clause */
/* A part of dedup.h, which includes it: figures and checks of an open image.
 * What a disk takes, and what deleting it would free, are figures of the format:
 * see qcow2-usage.h.
 */
#ifndef DEDUP_DEDUP_FIGURES_H
#define DEDUP_DEDUP_FIGURES_H

#include "dedup-types.h"
#include "hash.h"
#include "qcow2-check.h"
#include "qcow2-usage.h"
#include "qcow2.h"

struct dedup_pool;

struct dedup_stats {
  bool has_store, needs_recovery, exact;
  bool closed_with_work;           /* at open bit 48 was set only because debts
                                    * or deleted disks were left (section 11.5
                                    * of docs/on-disk.md): nothing is replayed */
  enum dedup_hash_alg hash;
  unsigned order;
  uint64_t index_entries;          /* superseded ones too, no tombstones */
  uint64_t log_store_entries, incarnation_entries, run_entries; /* of them */
  uint64_t tombstones;             /* beside them */
  uint64_t nr_incarnations, max_incarnations, nr_runs;
  uint64_t index_memory_bytes, index_disk_bytes;
  uint64_t index_memory_bound;     /* 0: none */
  uint64_t journal_bytes;          /* of all areas */
  /* Since open: */
  uint64_t stored, linked;         /* clusters written; shared instead */
  uint64_t pieces_moved, clusters_moved;   /* by dedup_defragment */
  struct dedup_lookups lookups;
  uint64_t mismatches;             /* candidates with other bytes */
  uint64_t renewed, forgotten;     /* entries, under a memory limit */
  /* Of all sessions of this store: */
  struct dedup_lookups all_lookups;
};
void dedup_get_stats (struct dedup_pool *pool, struct dedup_stats *s);
/* Logs two lines on what the index is and did since open, for debugging. */
void dedup_log_stats (struct dedup_pool *pool);

/* The same as struct dedup_stats, where that is a counter, and what else is known
 * without waiting for a job that holds the maintenance mutex. */
struct dedup_now {
  /* Since open: */
  uint64_t stored, linked, mismatches, renewed, pieces_moved, clusters_moved;
  struct dedup_lookups lookups;
  /* At this moment: */
  bool has_store, needs_recovery;
  bool work_left;                  /* see dedup_disks_pending */
  bool contradicts;                /* a table entry contradicts the refcounts */
  int failed_by;                   /* errno of what ended all writes; 0: nothing */
  const char *failed_what;         /* what that was; a constant */
  uint64_t journal_left_bytes;     /* free in the areas that the journal has */
  struct qcow2_figures image;
};
/* Copies counters under the image lock, in a microsecond or so.  Any thread. */
void dedup_get_now (struct dedup_pool *pool, struct dedup_now *now);
/* Does as dedup_get_stats does, if no job holds the maintenance mutex.  Otherwise
 * it returns false, at once. */
bool dedup_try_get_stats (struct dedup_pool *pool, struct dedup_stats *s)
  MUST_CHECK;

struct dedup_live_entries {        /* of the index, without tombstones */
  uint64_t live;                   /* a lookup leads to data with this hash that
                                    * a guest has */
  uint64_t dead;                   /* the others */
  uint64_t looked_at;              /* fewer than all: LIVE and DEAD are
                                    * estimates */
};
/* Counts live and dead entries of the index, while nobody changes the image.
 * Of a large index it takes a sample, reading about 256 MiB of data. */
int dedup_count_live_entries (struct dedup_pool *pool,
                              struct dedup_live_entries *out) MUST_CHECK;

/* A table of the index on disk. */
struct dedup_index_table {
  bool is_run;                     /* else an incarnation */
  bool merging;                    /* it is read or written by a merge */
  unsigned level;                  /* of a run: merges move entries up */
  uint64_t segments;               /* of a run, else 1 */
  uint64_t entries, tombstones;    /* superseded entries are counted, too */
  uint64_t disk_bytes;
};
/* Lists the tables: incarnations first, then runs, the oldest of each first.  *V
 * is the caller's.  *NR is 0 where there is no store.  -ENOMEM. */
int dedup_index_tables (struct dedup_pool *pool, struct dedup_index_table **v,
                        size_t *nr) MUST_CHECK;

/* Calls CB for samples of the past, oldest first, until it returns non-zero, which is the
 * result then.  There are at most 510, at distances that grow with their age.  There are
 * none where there is no store, or where nothing was served for long; what was lost in
 * a crash or written over is no error.  -EIO, -ENOMEM. */
int dedup_samples (struct dedup_pool *pool,
                   int (*cb) (void *opaque, const struct dedup_sample *s),
                   void *opaque) MUST_CHECK;
/* Adds a sample, later than all before (-EINVAL).  It is in the file with a later sync
 * of anything; until then a crash loses it.  It may sync the file, so that a crash loses
 * no more than this sample.  Never waits for a job: -EAGAIN, try again
 * later.  -EBUSY: the store has no room for samples at the moment; they are kept in
 * memory.  -ENOTSUP: there is no store; -EROFS, -ENOSPC, -ENOMEM, -EIO. */
int dedup_sample_add (struct dedup_pool *pool,
                      const struct dedup_sample *sample) MUST_CHECK;

/* Returns the areas of the store, for qcow2_check and qcow2_survey.  *AREAS is the caller's. */
int dedup_areas (struct dedup_pool *pool, struct qcow2_area **areas,
                 size_t *nr) MUST_CHECK;

struct dedup_check_result {
  uint64_t store_errors;           /* journal, configuration, incarnations */
  struct qcow2_check_result image;
};
/* Checks image and store, opened read-only with nothing replayed. */
int dedup_check (struct dedup_pool *pool,
                 const struct qcow2_check_params *p,
                 struct dedup_check_result *r, struct fault *f) MUST_CHECK;

#endif
