/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines the types and limits of dedup.h that the rooms below it use as well.
 * Users include dedup.h.
 */
#ifndef DEDUP_TYPES_H
#define DEDUP_TYPES_H

#include <stdbool.h>
#include <stdint.h>

/* The largest request that is applied as one operation, in bytes and clusters;
 * larger ones must be cut.  It holds 512 clusters of 4 KiB, or one cluster of
 * the largest size. */
#define DEDUP_CHUNK_BYTES (2u << 20)
#define DEDUP_CHUNK_CLUSTERS 512u

enum dedup_unmap {
  DEDUP_TRIM,       /* reads as zero, space given back */
  DEDUP_ZERO,       /* reads as zero, stays marked as written */
};

/* What is asked for new data.  An image has one compression type, so only that can be
 * asked for. */
enum dedup_compress {
  DEDUP_COMPRESS_KEEP,        /* as before */
  DEDUP_COMPRESS_OFF,
  DEDUP_COMPRESS_ZLIB,
  DEDUP_COMPRESS_ZSTD,
};

/* Returns whether data is not to stay where the L2 entry ENTRY, which has no flags,
 * leads to: see dedup_rewrite. */
typedef bool dedup_avoids (const void *opaque, uint64_t entry);

/* What became of guest clusters that had data already.  Calls add to it. */
struct dedup_existing {
  uint64_t indexed;              /* new to the index; data left in place */
  uint64_t linked;               /* shared now with an equal one */
  uint64_t zeroed;               /* held zeroes: unmapped */
  uint64_t dropped;              /* of linked and zeroed, those that had a cluster of
                                  * their own: compressed data had only a part */
  uint64_t known;                /* were in the index, or are taken to be */
  uint64_t bad;                  /* unreadable, or with wrong tables: left */
  uint64_t read;                 /* of all these, those whose data was read */
};

/* Background jobs, as bits of a set (dedup_due). */
enum dedup_job {
  DEDUP_JOB_COMMIT = 1,       /* pending records, quarantine to release */
  DEDUP_JOB_CHECKPOINT = 2,   /* many changed tables, or a long journal */
  DEDUP_JOB_FREEZE = 4,       /* a frozen log store waits */
  DEDUP_JOB_JOURNAL = 8,      /* areas to add, recycle or pack */
  DEDUP_JOB_FILTERS = 16,     /* to load */
  DEDUP_JOB_SCAN = 32,        /* free clusters to find, garbage to free */
  DEDUP_JOB_CLEAN = 64,       /* changed since bit 48 was last clear */
  DEDUP_JOB_MERGE = 128,      /* runs of the index to be joined */
  DEDUP_JOB_MERGE_IDLE = 256, /* more runs than there should be at rest */
  DEDUP_JOB_GIVE_BACK = 512,  /* what was found to verify, space to return */
  DEDUP_JOB_DISKS = 1024,     /* lent tables to pay for, deleted disks */
};

/* What lookups found, counted. */
struct dedup_lookups {
  uint64_t guessed;              /* found by a hint, without the index */
  uint64_t lookups, hits;        /* lookups in the index; hits name a cluster */
  uint64_t hit_reads, miss_reads;  /* pages of the index that either read */
  uint64_t false_positives;      /* a filter made a lookup read a table that
                                  * does not have the hash */
};

/* What the image held at some time, for people who want to see how it grew. */
struct dedup_sample {
  uint64_t time;                 /* seconds since 1970 */
  uint64_t logical_bytes;        /* mapped in all disks */
  uint64_t stored_bytes;         /* clusters that hold data */
  uint64_t free_bytes;           /* available for new data; UINT64_MAX: unknown */
};

#endif
