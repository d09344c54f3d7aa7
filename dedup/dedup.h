/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens, serves, checks and closes a deduplicating image: a qcow2 file with its
 * store, written through the pipeline of docs/ARCHITECTURE.md and recovered as
 * docs/on-disk.md says.
 *
 * Calls are safe from any number of threads.  The caller (server/) keeps
 * requests that touch the same guest cluster apart, unless both read, and
 * runs the background jobs that dedup_due names.
 *
 * dedup-compact.h, dedup-compress.h, dedup-create.h, dedup-disks.h, dedup-figures.h and
 * dedup-scrub.h belong to this header: space of dead compressed data, compressing what is
 * stored plain, new images, disks beside the active one, figures and checks, and comparing
 * all data with the index.
 */
#ifndef DEDUP_DEDUP_H
#define DEDUP_DEDUP_H

#include "dedup-compact.h"
#include "dedup-compress.h"
#include "dedup-create.h"
#include "dedup-disks.h"
#include "dedup-figures.h"
#include "dedup-scrub.h"
#include "dedup-types.h"
#include "hash.h"
#include "qcow2-check.h"
#include "qcow2.h"

struct dedup_pool;                 /* an open image */

/* --- Open and close ----------------------------------------------------- */

struct dedup_open_params {
  const char *path;                /* for messages and relative names */
  bool writable;
  bool dedup;                      /* false: nothing is hashed or linked */
  bool no_store;                   /* write it as an image that cannot hold a
                                    * store; for one that has none */
  bool verify;                     /* compare bytes before linking */
  enum dedup_compress compress;    /* whether new data is compressed, from now on */
  bool compress_later;             /* ... not when it is written, but by
                                    * dedup-compress.h */
  enum dedup_hash_alg hash;        /* must be the store's, if it has one */
  bool hash_given;                 /* else HASH is for a new store only */
  bool no_disk_ok;                 /* open also an image whose anchor was
                                    * applied, which has no disk (for tools) */
  enum qcow2_host_files host_files;
  int64_t max_incarnations;        /* -1: as stored */
  uint64_t index_memory;           /* bytes of RAM for the index; 0: no limit */
  size_t cache_bytes;
  /* Chooses it once the image's size is known, as in qcow2_open_params; or NULL. */
  size_t (*choose_cache) (const struct qcow2_image *img);
  unsigned order;                  /* of a new store; 0: by image size */
  unsigned journal_areas;          /* of a new store; 0: by order */
  struct io_store *store;          /* the store file, the caller's; or NULL */
  const char *store_path;          /* for messages */
  const struct log_sink *log;
  void (*wake) (void *opaque);     /* something became due; any thread */
  void *opaque;
};

/* Parses "off", "zlib" or "zstd"; -EINVAL for anything else. */
int dedup_compress_parse (const char *name, enum dedup_compress *c) MUST_CHECK;
/* Returns that name of OFF, ZLIB or ZSTD. */
const char *dedup_compress_name (enum dedup_compress c);

/* Opens the image in IO (which stays the caller's), and recovers it if it was
 * not closed.  If it is WRITABLE and has no store, makes one.  Read-only:
 * writes nothing, and replays the journal in memory. */
int dedup_open (struct io_store *io, const struct dedup_open_params *p,
                struct dedup_pool **out, struct fault *f) MUST_CHECK;

/* Opens the store file at PATH, for dedup_open_params.  Where it is missing it
 * is made if WRITABLE (*CREATED), else *OUT is NULL. */
int dedup_store_file_open (const char *path, bool writable,
                           struct io_store **out, bool *created,
                           struct fault *f) MUST_CHECK;

/* Commits, checkpoints, and clears bit 48.  The image stays open, unused. */
int dedup_finish (struct dedup_pool *pool) MUST_CHECK;
/* Gives the space of free clusters back to the host, as far as the host can and
 * for a few seconds at most, and cuts the file off behind the last cluster in
 * use.  Called when dedup_finish has returned 0 and nobody else uses the
 * pool. */
void dedup_give_back_all (struct dedup_pool *pool);
/* Frees memory and writes nothing: after dedup_finish, or as a crash would. */
void dedup_free (struct dedup_pool *pool);

struct qcow2_image *dedup_image (struct dedup_pool *pool);
/* Returns whether it is open for writing; an image marked corrupt never is. */
bool dedup_writable (const struct dedup_pool *pool);

/* Says what is wrong with an image for which qcow2_anchor_was_applied is
 * true. */
#define DEDUP_ANCHOR_APPLIED \
  "the deduplication's own snapshot, the anchor, was applied to the disk " \
  "(qemu-img snapshot -a), and the disk's tables are lost"

/* --- Requests ----------------------------------------------------------- */

/* Reads any range inside the disk. */
int dedup_read (struct dedup_pool *pool, unsigned root, void *buf,
                uint64_t guest_off, size_t len) MUST_CHECK;
/* Begins to read what a dedup_read of the range will need: qcow2_will_need. */
bool dedup_will_need (struct dedup_pool *pool, unsigned root,
                      uint64_t guest_off, uint64_t len, bool around);

/* Writes NR whole clusters from guest cluster GUEST_IDX on, at most
 * DEDUP_CHUNK_*; BUF holds them all (zeroes past the end of the disk).
 * -ENOSPC, -ENOMEM: another try may succeed; -EIO; -EROFS: see dedup_failed. */
int dedup_write (struct dedup_pool *pool, unsigned root, const void *buf,
                 uint64_t guest_idx, size_t nr) MUST_CHECK;
/* Unmaps NR whole clusters; errors as dedup_write. */
int dedup_unmap (struct dedup_pool *pool, unsigned root, uint64_t guest_idx,
                 uint64_t nr, enum dedup_unmap how) MUST_CHECK;

/* Makes everything durable that was completed before the call.  -ENOSPC: it is
 * not durable, but nothing is lost, and another call tries again. */
int dedup_flush (struct dedup_pool *pool) MUST_CHECK;

/* Returns 0, or the errno that writes get since the first failed sync, failed
 * write of metadata, or corruption. */
int dedup_failed (struct dedup_pool *pool);

/* --- Indexing existing data (docs/on-disk.md section 8) ----------------- */

/* Finds the next guest clusters of the active disk, from *GUEST_IDX on, that
 * hold data.  1: they are *NR from *GUEST_IDX on, for one call of
 * dedup_existing_index; 0: there are no more.  -ENOTSUP: the image is not
 * deduplicated. */
int dedup_existing_next (struct dedup_pool *pool, uint64_t *guest_idx,
                         size_t *nr, struct dedup_existing *res) MUST_CHECK;
/* Indexes them, and shares those with equal contents.  The caller keeps them
 * from requests, as for dedup_write.  ALL: also those that are anchored, and so
 * are taken to be in the index.  Errors as dedup_write, with nothing
 * changed. */
int dedup_existing_index (struct dedup_pool *pool, uint64_t guest_idx,
                          size_t nr, bool all,
                          struct dedup_existing *res) MUST_CHECK;

/* Counts clusters that dedup_existing_index would read without ALL: goes on at guest
 * cluster *GUEST_IDX, for some thousand clusters with data, and adds to *NR.  Reads
 * tables only.  1: there may be more; 0: all are counted.  -ENOTSUP as above. */
int dedup_existing_count (struct dedup_pool *pool, uint64_t *guest_idx,
                          uint64_t *nr) MUST_CHECK;
/* Returns whether existing data can be indexed: else -ENOTSUP is what the calls
 * above return. */
bool dedup_can_index (const struct dedup_pool *pool);

/* Notes in the image that existing data is being indexed, or no longer; durable when
 * it returns 0, unless the host has no space for that. */
int dedup_note_indexing (struct dedup_pool *pool, bool on) MUST_CHECK;
/* Returns whether that was noted, in this session or an earlier one. */
bool dedup_was_indexing (struct dedup_pool *pool);

/* --- Defragmentation ----------------------------------------------------- */

/* Returns true if NR guest clusters of the active disk from GUEST_IDX on lie in so
 * many places of the file that reading them in sequence is slow.  Reads tables
 * only; false where they cannot be read. */
bool dedup_is_scattered (struct dedup_pool *pool, uint64_t guest_idx,
                         uint64_t nr);
/* Moves those of NR guest clusters (at most DEDUP_CHUNK_*) that are not shared to
 * one run of free clusters, if they are scattered and that makes at most half as
 * many runs.  The caller keeps requests off them, as for dedup_write.  Their
 * contents and the dirty bitmaps do not change.  Returns how many clusters moved, 0
 * if none should, or -errno, with nothing changed.  -ENOTSUP: there is no store. */
int dedup_defragment (struct dedup_pool *pool, uint64_t guest_idx,
                      size_t nr) MUST_CHECK;

/* Stores the data of those of NR guest clusters (at most DEDUP_CHUNK_*) again whose L2
 * entries AVOIDS names, compressed, and elsewhere, as one operation.  What does not
 * shrink, or finds no space, stays.  Equal data that is stored again later finds the
 * new place.  AVOIDS is called with the image lock, and does little.  The caller keeps
 * requests off the guest clusters, whose contents do not change.  Returns how many lead
 * to another place now, or -errno as dedup_write; -ENOTSUP: new data is not compressed;
 * -EINVAL: the root cannot be written. */
int dedup_rewrite (struct dedup_pool *pool, unsigned root, uint64_t guest_idx,
                   size_t nr, dedup_avoids *avoids, const void *opaque) MUST_CHECK;

/* --- Background jobs ---------------------------------------------------- */

/* Returns the set of jobs that have something to do, and in *URGENT (may be
 * NULL) those of them that should run now.  COMMIT, CLEAN, MERGE_IDLE and
 * GIVE_BACK are due when there is anything at all: the caller chooses the
 * moment.  GIVE_BACK gives back what was not needed since it ran before. */
unsigned dedup_due (struct dedup_pool *pool, unsigned *urgent);
/* Runs one job, or a slice of it (then it is still due), on any thread.  COMMIT
 * and MERGE may run at any time, GIVE_BACK and DISKS beside all but themselves,
 * and of the others one at a time. */
int dedup_run (struct dedup_pool *pool, enum dedup_job job) MUST_CHECK;
/* Asks a running freeze, pack, load or scan to return soon. */
void dedup_stop_jobs (struct dedup_pool *pool);

#endif
