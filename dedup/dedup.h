/* SPDX-License-Identifier: BSD-3-Clause */
/* A deduplicating disk: an open qcow2 image with its store, written through
 * the pipeline of docs/ARCHITECTURE.md and recovered by docs/on-disk.md.
 *
 * Calls are safe from any number of threads.  The caller (server/) keeps
 * requests that touch the same guest cluster apart, unless both read, and
 * runs the background jobs that dedup_due names.
 */
#ifndef DEDUP_DEDUP_H
#define DEDUP_DEDUP_H

#include "hash.h"
#include "qcow2.h"

struct dedup_disk;

/* A request is applied as one operation up to this size; larger ones must be
 * cut.  256 clusters of 4 KiB, and one cluster of the largest size fits. */
#define DEDUP_CHUNK_BYTES (2u << 20)
#define DEDUP_CHUNK_CLUSTERS 512u

struct dedup_open_params {
  const char *path;              /* for messages and relative names */
  bool writable;
  bool dedup;                    /* false: nothing is hashed or linked */
  bool verify;                   /* compare bytes before linking */
  enum dedup_hash_alg hash;      /* must be the store's, if it has one */
  bool hash_given;               /* else whatever the store has */
  bool no_disk_ok;               /* for tools that look: open an image whose
                                  * anchor was applied, which has no disk */
  enum qcow2_host_files host_files;
  int64_t max_incarnations;      /* -1: as stored */
  uint64_t index_memory;         /* bytes of RAM for the index; 0: no bound */
  size_t cache_bytes;
  unsigned order;                /* of a new store; 0: by image size */
  unsigned journal_areas;        /* of a new store; 0: by order */
  struct io_store *store;        /* the store file, the caller's; NULL: none */
  const char *store_path;        /* for messages */
  const struct log_sink *log;
  void (*wake) (void *opaque);   /* something became due; any thread */
  void *opaque;
};

/* Open the disk in IO (which stays the caller's), recovering it if it was
 * not closed; make a store if there is none and WRITABLE.  Read-only: writes
 * nothing, replays in memory. */
int dedup_open (struct io_store *io, const struct dedup_open_params *p,
                struct dedup_disk **out, struct fault *f) MUST_CHECK;

/* The store file at PATH, for dedup_open_params; WRITABLE makes it where it is
 * missing (*CREATED); else *OUT is NULL then. */
int dedup_store_file_open (const char *path, bool writable,
                           struct io_store **out, bool *created,
                           struct fault *f) MUST_CHECK;

/* Commit, checkpoint, clear bit 48.  The disk stays open, unused. */
int dedup_finish (struct dedup_disk *d) MUST_CHECK;
/* After dedup_finish has returned 0, when nobody else uses the disk any more: give
 * the space of free clusters back to the host, as far as that takes no longer
 * than a few seconds, and cut the file off behind the last one in use.  What the
 * host cannot do is left. */
void dedup_give_back_all (struct dedup_disk *d);
/* Free memory, writing nothing: after dedup_finish, or as a crash would. */
void dedup_free (struct dedup_disk *d);

struct qcow2_image *dedup_image (struct dedup_disk *d);

/* Was it opened for writing after all?  An image that is marked corrupt is
 * not. */
bool dedup_writable (const struct dedup_disk *d);

/* What is wrong with an image for which qcow2_anchor_was_applied is true. */
#define DEDUP_ANCHOR_APPLIED \
  "the deduplication's own snapshot, the anchor, was applied to the disk " \
  "(qemu-img snapshot -a), and the disk's tables are lost"

struct dedup_create_params {
  struct qcow2_create_params image;
  enum dedup_hash_alg hash;
  uint32_t max_incarnations;
  unsigned order;                /* 0: by image size */
  unsigned journal_areas;        /* 0: by order */
};
/* An empty image with a store, clean, in the empty store IO. */
int dedup_create (struct io_store *io, const struct dedup_create_params *p,
                  struct fault *f) MUST_CHECK;

struct dedup_measure {
  uint64_t required;             /* bytes: of the image that is empty */
  uint64_t fully_allocated;      /* of one that holds all it ever can */
};
/* How large does an image made with P get, at the most?  FAULT_USAGE as with
 * dedup_create. */
int dedup_measure (const struct dedup_create_params *p,
                   struct dedup_measure *m, struct fault *f) MUST_CHECK;

/* Makes an image at PATH as dedup_create does, and opens it for writing, locked:
 * *IO, the caller's.  What was made appears under PATH only when it is complete
 * (*NAMED: PATH is new, so a caller who gives up may remove it); or it fills
 * what was there: an empty file, an empty device, or one that was not finished
 * (make.c).  With OVERWRITE_DEVICE a device may hold anything.
 *
 * -EEXIST without a fault: PATH is there and holds something; open it. */
int dedup_make (const char *path, const struct dedup_create_params *p,
                bool overwrite_device, struct io_store **io, bool *named,
                struct fault *f) MUST_CHECK;

/* --- Requests ---------------------------------------------------------- */

/* Any range inside the disk. */
int dedup_read (struct dedup_disk *d, unsigned root, void *buf,
                uint64_t guest_off, size_t len) MUST_CHECK;
/* Begin to read what a dedup_read of the range will ask for: qcow2_will_need. */
bool dedup_will_need (struct dedup_disk *d, unsigned root, uint64_t guest_off,
                      uint64_t len, bool around);

/* NR whole clusters from guest cluster GUEST_IDX; BUF holds them all (zeroes
 * past the end of the disk).  At most DEDUP_CHUNK_*.  Errors: ENOSPC (may go
 * the next time), ENOMEM, EIO, EROFS (see dedup_failed). */
int dedup_write (struct dedup_disk *d, unsigned root, const void *buf,
                 uint64_t guest_idx, size_t nr) MUST_CHECK;

enum dedup_unmap {
  DEDUP_TRIM,       /* reads as zero, space given back */
  DEDUP_ZERO,       /* reads as zero, stays marked as written */
};
int dedup_unmap (struct dedup_disk *d, unsigned root, uint64_t guest_idx,
                 uint64_t nr, enum dedup_unmap how) MUST_CHECK;

/* Everything completed before the call is durable afterwards.  -ENOSPC: it is
 * not, but nothing is lost, and another call tries again. */
int dedup_flush (struct dedup_disk *d) MUST_CHECK;

/* 0, or why writes are refused from now on (first failed sync, failed
 * metadata write, corruption found). */
int dedup_failed (struct dedup_disk *d);

/* --- What is there already ------------------------------------------------ */

struct dedup_existing {          /* counts of guest clusters, added to */
  uint64_t indexed;              /* new to the index, where they are */
  uint64_t linked;               /* shared now with an equal one */
  uint64_t zeroed;               /* held zeroes: unmapped */
  uint64_t known;                /* were in the index, or are taken to be */
  uint64_t bad;                  /* unreadable, or with wrong tables: as is */
};

/* The next guest clusters of the active disk, from *GUEST_IDX on, that hold
 * data: 1, *GUEST_IDX and *NR (for one call of dedup_existing_index); 0 at the
 * end of the disk.  -ENOTSUP: this disk is not deduplicated. */
int dedup_existing_next (struct dedup_disk *d, uint64_t *guest_idx,
                         size_t *nr, struct dedup_existing *res) MUST_CHECK;
/* Index them, and share what is there twice (docs/on-disk.md section 8).
 * The caller keeps them from requests, as for dedup_write.  ALL: also those
 * that are anchored, and so taken to be in the index.  Errors as for
 * dedup_write, with nothing changed. */
int dedup_existing_index (struct dedup_disk *d, uint64_t guest_idx, size_t nr,
                          bool all, struct dedup_existing *res) MUST_CHECK;

/* --- Background ---------------------------------------------------------- */

enum dedup_job {
  DEDUP_JOB_COMMIT = 1,       /* pending records, quarantine to release */
  DEDUP_JOB_CHECKPOINT = 2,   /* many changed tables, or a long journal */
  DEDUP_JOB_FREEZE = 4,       /* a frozen log store waits */
  DEDUP_JOB_JOURNAL = 8,      /* areas to add, recycle or pack */
  DEDUP_JOB_FILTERS = 16,     /* to load */
  DEDUP_JOB_SCAN = 32,        /* free clusters and garbage to find */
  DEDUP_JOB_CLEAN = 64,       /* changed since bit 48 was last clear */
  DEDUP_JOB_MERGE = 128,      /* runs of the index to be joined */
  DEDUP_JOB_MERGE_IDLE = 256, /* more of them than shall be at rest */
  DEDUP_JOB_GIVE_BACK = 512,  /* free clusters for which the host keeps data */
};

/* Which jobs have something to do.  COMMIT, CLEAN, MERGE_IDLE and GIVE_BACK are
 * due when there is anything at all; the caller chooses the moment.  What
 * GIVE_BACK gives back has not been needed since it ran before.  *URGENT (may be
 * NULL): those that should run now. */
unsigned dedup_due (struct dedup_disk *d, unsigned *urgent);

/* Run one job, or a slice of it (then it is still due).  COMMIT and
 * MERGE may run at any time, GIVE_BACK beside all but itself; of the others only one at a time, from any
 * thread. */
int dedup_run (struct dedup_disk *d, enum dedup_job job) MUST_CHECK;
/* Make a running freeze, pack, load or scan return soon. */
void dedup_stop_jobs (struct dedup_disk *d);

/* --- Looking ---------------------------------------------------------------- */

struct dedup_lookups {
  uint64_t guessed;              /* found by a hint, without the index */
  uint64_t lookups, hits;        /* in the index; that named a cluster */
  uint64_t hit_reads, miss_reads;  /* index pages read by lookups */
  uint64_t false_positives;      /* tables that a filter had read in vain */
};

struct dedup_stats {
  bool has_store, needs_recovery, exact;
  enum dedup_hash_alg hash;
  unsigned order;
  uint64_t index_entries;        /* log stores and incarnations, without
                                  * tombstones; superseded ones count */
  uint64_t log_store_entries, incarnation_entries, run_entries; /* of them */
  uint64_t tombstones;           /* beside them */
  uint64_t nr_incarnations, max_incarnations, nr_runs;
  uint64_t index_memory_bytes, index_disk_bytes;
  uint64_t index_memory_bound;   /* 0: none */
  uint64_t journal_bytes;        /* of all areas */
  /* Since open: */
  uint64_t stored, linked;       /* clusters written; shared instead */
  struct dedup_lookups lookups;
  uint64_t mismatches;           /* named clusters with other bytes */
  uint64_t renewed, forgotten;   /* entries, under a bound */
  /* Of all sessions of this store: */
  struct dedup_lookups all_lookups;
};
void dedup_get_stats (struct dedup_disk *d, struct dedup_stats *s);

struct dedup_census {            /* of index entries, without tombstones */
  uint64_t live;                 /* a lookup leads to data with this hash that
                                  * a guest has */
  uint64_t dead;                 /* the others */
  uint64_t looked_at;            /* fewer than all: the others are estimates */
};
/* Tell live entries from dead ones in a disk that nobody changes meanwhile.
 * Reads at most DEDUP_CENSUS_BYTES of data, so of a large index it is a
 * sample. */
int dedup_take_census (struct dedup_disk *d, struct dedup_census *c)
  MUST_CHECK;
/* Two lines on what the index is and did since open, for the debug log. */
void dedup_log_stats (struct dedup_disk *d);

/* Areas of the store, for qcow2_check.  *AREAS is the caller's. */
int dedup_areas (struct dedup_disk *d, struct qcow2_area **areas, size_t *nr)
  MUST_CHECK;

struct dedup_check_result {
  uint64_t store_errors;         /* journal, configuration, incarnations */
  struct qcow2_check_result image;
};
/* Check image and store of a disk opened read-only with nothing replayed. */
int dedup_check (struct dedup_disk *d,
                 const struct qcow2_check_params *p,
                 struct dedup_check_result *r, struct fault *f) MUST_CHECK;

#endif
