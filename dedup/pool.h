/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares an open image as a whole, and what the files at the top of dedup/
 * offer each other.  Everybody else includes dedup.h only.
 */
#ifndef DEDUP_POOL_H
#define DEDUP_POOL_H

#include "area.h"
#include "dedup.h"
#include "disks.h"
#include "mutation.h"
#include "store.h"
#include "upkeep.h"
#include "write.h"

struct dedup_ops;
struct dedup_fresh;

struct dedup_pool {
  struct dedup_base base;
  struct dedup_store store;
  struct dedup_upkeep upkeep;
  struct dedup_writer writer;
  struct dedup_disks disks;
  const struct dedup_ops *ops;       /* constant after open: how it is served */
  bool session_begun;                /* storeless.c; maintenance mutex */
  bool compacting;                   /* compact.c; the image lock */
  bool compressing;                  /* compress-idle.c; the image lock */
  struct dedup_fresh *fresh;         /* fresh.h; NULL: clients' writes are compressed at
                                      * once, or not at all; constant after open */
  struct dedup_sample_list *samples; /* NULL: not read; maintenance mutex */
};

/* The requests and jobs of one kind of image: with a store (requests.c) or
 * without one (storeless.c).  They are the functions of dedup.h with the same
 * names. */
struct dedup_ops {
  bool storeless;
  int (*write) (struct dedup_pool *pool, unsigned root, const void *buf,
                uint64_t guest_idx, size_t nr);
  int (*unmap) (struct dedup_pool *pool, unsigned root, uint64_t guest_idx,
                uint64_t nr, enum dedup_unmap how);
  int (*flush) (struct dedup_pool *pool);
  unsigned (*due) (struct dedup_pool *pool, unsigned *urgent);
  int (*run) (struct dedup_pool *pool, enum dedup_job job);
  int (*finish) (struct dedup_pool *pool);
};

extern const struct dedup_ops dedup_store_ops, dedup_storeless_ops;

/* Returns whether the image is written without a store. */
static inline bool
dedup_is_storeless (const struct dedup_pool *pool)
{
  return pool->ops->storeless;
}

/* --- mode.c ------------------------------------------------------------- */

/* Decides how the image, which is open as P asks, is served: sets writable,
 * dedup and ops, and logs what the user would not expect.  Refuses an image
 * that can't be written in the way that P asks for. */
int dedup_choose_mode (struct dedup_pool *pool,
                       const struct dedup_open_params *p,
                       struct fault *f) MUST_CHECK;
/* Returns whether the refcounts must be rebuilt before the image is written.
 * Then *MIN_CLUSTERS is how many clusters the new refcount table must count at
 * least. */
bool dedup_needs_rebuild (const struct dedup_base *b, bool storeless,
                          uint64_t *min_clusters);

/* --- open-store.c ------------------------------------------------------- */

/* Reads header extension and configuration.  1: there is a usable store, and
 * HASHER is set up for it; 0: there is none; -errno with a fault that says why
 * the store is void. */
int dedup_read_config (struct dedup_store *s, struct dedup_hasher *hasher,
                       struct fault *f) MUST_CHECK;
/* Loads the store whose configuration was read: the index from the journal and,
 * after a crash, the tables too.  A store that was ADOPTED just now is loaded
 * like one after a crash, but its index is exact. */
int dedup_load_store (struct dedup_writer *w, bool adopted,
                      struct fault *f) MUST_CHECK;
/* Ends the index's exactness. */
void dedup_doubt_index (struct dedup_store *s);

/* --- compress-setting.c ------------------------------------------------- */

/* Decides at open whether new data is compressed, as ASKED or as the image says, and
 * records that.  LATER: clients' writes are stored plain at first. */
int dedup_set_compress (struct dedup_pool *pool, enum dedup_compress asked, bool later,
                        struct fault *f) MUST_CHECK;

/* --- save-bitmaps.c ----------------------------------------------------- */

/* Writes to the file what was noted in persistent bitmaps.  At close, before
 * the last checkpoint or flush. */
int dedup_save_bitmaps (struct dedup_pool *pool) MUST_CHECK;

/* --- recovery.c --------------------------------------------------------- */

/* Reads the journal: fills the log stores, and with REPLAY applies mapping
 * records to the tables in memory.  *NEXT is the number of the next block to be
 * written. */
int dedup_replay (struct dedup_store *s, bool replay, uint64_t *next,
                  struct fault *f) MUST_CHECK;
/* Begins a new epoch, in memory, if the configuration of a clean image is older
 * than its journal (a slot rotted, or an old copy came back): blocks written
 * under the later configuration must not be taken for those from NEXT on.
 * *RENEWED tells whether it did. */
int dedup_renew_epoch (struct dedup_store *s, uint64_t next, bool *renewed,
                       struct fault *f) MUST_CHECK;

/* --- grow.c ------------------------------------------------------------- */

/* Makes refcount table and anchor L1 larger if the file may outgrow them, and
 * the host has space for that. */
int dedup_grow_tables (struct dedup_upkeep *u, struct fault *f) MUST_CHECK;

/* --- adopt.c ------------------------------------------------------------ */

/* Checks that data may be linked by the hash alone, if VERIFY is off.
 * FAULT_USAGE. */
int dedup_check_verify (enum dedup_hash_alg alg, bool verify, struct fault *f)
  MUST_CHECK;
/* Puts a store into the image in IO, which must be opened and recovered
 * then. */
int dedup_adopt (struct io_store *io, const struct dedup_open_params *p,
                 struct fault *f) MUST_CHECK;

#endif
