/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the dedup room: the open disk and what its files offer each other.
 * Everybody else includes dedup.h only.
 */
#ifndef DEDUP_DISK_H
#define DEDUP_DISK_H

#include "checked.h"
#include "config.h"
#include "dedup.h"
#include "hints.h"
#include "index.h"
#include "journal.h"
#include "mutation.h"

/* --- entries.c: an index entry and its record --------------------------------- */

/* Append the record of an entry or tombstone; and enter it. */
void dedup_entry_record_locked (struct dedup_disk *d,
                                const struct dedup_hash *h, uint64_t value);
void dedup_entry_locked (struct dedup_disk *d, const struct dedup_hash *h,
                         uint64_t value);
/* Set the log store aside, at a block that starts with FREEZE.  Between
 * groups. */
int dedup_set_aside_locked (struct dedup_disk *d) MUST_CHECK;
/* Can NR entries be inserted?  Sets a full log store aside if none waits to
 * be frozen; false: one does.  Between groups. */
bool dedup_index_room_locked (struct dedup_disk *d, size_t nr);

/* --- index-storage.c ------------------------------------------------------- */

/* Open the index that the configuration lists. */
int dedup_open_index (struct dedup_disk *d) MUST_CHECK;

/* --- inspect.c ----------------------------------------------------------- */

/* Add what an operation counted to the disk's figures. */
void dedup_count_lookups_locked (struct dedup_disk *d,
                                 const struct dedup_lookups *l);
/* Those of all sessions of the store, so far. */
void dedup_all_lookups_locked (struct dedup_disk *d,
                               struct dedup_lookups *all);

/* --- merge-job.c ------------------------------------------------------------- */

/* One step of one merge: a segment.  Takes the maintenance mutex, but not for
 * the bulk of the work. */
int dedup_merge_step (struct dedup_disk *d, bool idle) MUST_CHECK;
/* Write the frozen log store as a table.  Maintenance; may let go of the mutex,
 * before it begins. */
int dedup_freeze (struct dedup_disk *d) MUST_CHECK;

/* --- give-up.c --------------------------------------------------------------- */

/* Give up the frozen log store, where there is no space for its table and writers
 * cannot wait; the current one, where its records fill the journal.  Costs ratio
 * only.  Maintenance. */
int dedup_drop_frozen (struct dedup_disk *d) MUST_CHECK;
int dedup_drop_current (struct dedup_disk *d) MUST_CHECK;

/* --- claim.c: content that is being written right now ----------------------- */

enum dedup_claim_state {
  DEDUP_CLAIM_BUSY,       /* its owner looks up, compares or writes */
  DEDUP_CLAIM_READY,      /* host_idx holds the bytes */
  DEDUP_CLAIM_ABANDONED,  /* its owner failed: find your own way */
};

struct dedup_claim {
  struct dedup_hash hash;
  enum dedup_claim_state state;
  uint64_t host_idx;
  bool linked;            /* host_idx is anchored and has its HASH record;
                           * else it is reserved, and the claim's to free */
  bool held;              /* the claim holds host_idx (qcow2_hold_locked) */
  unsigned users;
  struct dedup_claim *next;
};

#define DEDUP_CLAIM_CHAINS 4096

/* Kept for reuse: as many as 16 requests of 512 clusters need. */
#define DEDUP_MAX_UNUSED_CLAIMS 8192

struct dedup_claims {
  struct dedup_claim *chains[DEDUP_CLAIM_CHAINS];
  struct dedup_claim *unused;   /* a list */
  size_t nr_unused;
  pthread_cond_t changed;
};

/* Have NR unused ones at hand; may give up the lock meanwhile. */
int dedup_claims_reserve_locked (struct dedup_disk *d, size_t nr) MUST_CHECK;
void dedup_claims_free (struct dedup_disk *d);
/* Join the claim on HASH, or make one (reserved before, under this hold of
 * the lock); *OWNER tells which.  Either way one use is the caller's. */
struct dedup_claim *dedup_claim_get_locked (struct dedup_disk *d,
                                            const struct dedup_hash *hash,
                                            bool *owner);
void dedup_claim_set_locked (struct dedup_disk *d, struct dedup_claim *c,
                             enum dedup_claim_state state);
void dedup_claim_wait_locked (struct dedup_disk *d, struct dedup_claim *c);
/* Give up one use; the last one lets go of the cluster and frees C. */
void dedup_claim_put_locked (struct qcow2_txn *txn, struct dedup_disk *d,
                             struct dedup_claim *c);

/* --- spare.c: clusters with space, for overwriting on a full host ------------- */

struct dedup_spare {                 /* protected by the disk's lock */
  uint64_t v[DEDUP_CHUNK_CLUSTERS];  /* host indices, reserved */
  unsigned nr;
  bool wanted;                       /* this session has asked for some */
  bool filling;
};

/* Use one; false: there is none.  Put back one that is not used after all;
 * false: there are enough. */
bool dedup_spare_take_locked (struct dedup_disk *d, uint64_t *host_idx);
bool dedup_spare_put_locked (struct dedup_disk *d, uint64_t host_idx);
/* RUN was released: take what is wanted of it, if it has space. */
void dedup_spare_keep_locked (struct dedup_disk *d,
                              const struct qcow2_run *run);
/* Free all of them. */
void dedup_spare_give_back_locked (struct dedup_disk *d);
/* Get what is missing, as far as there is space; for the commit job. */
void dedup_spare_fill (struct dedup_disk *d);
/* Should that be now? */
bool dedup_spare_due_locked (struct dedup_disk *d);

/* --- ahead.c: clusters that were written to, for small synced writes ---------- */

struct dedup_ahead {                 /* protected by the disk's lock */
  struct qcow2_run run[2];           /* reserved; used in this order */
  unsigned flushes;                  /* lately, */
  uint64_t clusters;                 /* and stored between them */
  bool filling;
};

/* NR clusters were stored; there was something to flush. */
void dedup_ahead_count_locked (struct dedup_disk *d, uint64_t nr);
void dedup_ahead_flushed_locked (struct dedup_disk *d);
/* Do clients flush after little data? */
bool dedup_ahead_small_locked (const struct dedup_disk *d);
/* Use up to NR; false: there is none, or it is not for so many. */
bool dedup_ahead_take_locked (struct dedup_disk *d, uint64_t nr,
                              struct qcow2_run *run);
void dedup_ahead_give_back_locked (struct dedup_disk *d);
/* Get more; for the commit job.  Should that be now? */
void dedup_ahead_fill (struct dedup_disk *d);
bool dedup_ahead_due_locked (const struct dedup_disk *d);
/* Zeroes in a new journal area of SIZE bytes, before a configuration lists it.
 * There may be blocks of the same store, where an older copy of the image was
 * put on a device over a newer one, and they must not be taken for blocks of
 * this area.  Besides, blocks take longer to write where no data was before. */
int dedup_ahead_area (struct io_store *io, uint64_t host_off, uint64_t size);

/* --- give-back.c: space that nothing needs goes back to the host --------------- */

struct dedup_give_back {
  uint64_t from;                     /* the one job, or close: cluster */
  /* Protected by the disk's lock: */
  uint64_t left;                     /* clusters that were found unneeded */
  bool unable;                       /* the host can't take anything back */
  unsigned freeing, waiting;         /* threads: see dedup_freeing_begin */
  uint64_t freed;                    /* times that one of them ended */
  pthread_cond_t changed;            /* waits with lock: that grew */
};

/* Between these calls the caller takes clusters from the free ones or out of
 * quarantine, and makes them free (again): without the lock they are in neither
 * place.  It waits for I/O, commits and the gate only. */
void dedup_freeing_begin (struct dedup_disk *d);
void dedup_freeing_end (struct dedup_disk *d);
/* Nothing is free: wait for those that are between them. */
void dedup_wait_for_freeing (struct dedup_disk *d);

/* Give the space of the trimmed ones of RUNS back, which may be reused (law 6)
 * but are not free yet; marks them as emptied. */
void dedup_give_back_trimmed (struct dedup_disk *d, struct qcow2_run *runs,
                              size_t nr);
/* One step of the job: look at what an earlier session left, or give back a
 * slice of what no writer has needed since the job ran before. */
int dedup_give_back (struct dedup_disk *d) MUST_CHECK;
/* Is there anything for the job?  Is it in the middle? */
bool dedup_give_back_due_locked (struct dedup_disk *d);
bool dedup_give_back_busy_locked (struct dedup_disk *d);

/* --- the disk ------------------------------------------------------------------ */

/* A configuration that is in memory and maybe in one slot, but not durable in
 * both: the host had no space (config-commit.c). */
struct dedup_owed {
  bool any;                          /* atomic */
  size_t nr_areas;                   /* its last ones are not the journal's yet */
};

struct dedup_disk {
  /* Constant after open: */
  struct io_store *io;
  struct qcow2_image *img;
  struct lock *lock;                 /* the image's */
  char *path;
  const struct log_sink *log;
  bool writable, dedup, verify;      /* as mode.c decided */
  bool direct;                       /* written without a store: direct.c */
  bool has_store, replayed;          /* replayed: read-only, in memory */
  struct dedup_hasher hasher;
  unsigned cluster_bits;
  uint64_t cluster_size;
  uint64_t ref_limit;                /* no new reference at or above it */
  bool has_backing;
  size_t dirty_high, dirty_max;      /* bytes of changed tables */
  struct dedup_ext ext;
  void (*wake) (void *opaque);
  void *wake_opaque;
  struct dedup_index *index;         /* NULL: no store */
  struct dedup_hints *hints;         /* NULL: read-only or dedup=off */

  /* One maintenance job at a time; taken before the lock. */
  pthread_mutex_t maintenance;
  struct dedup_config *config;       /* as last written, but for what is owed */
  struct dedup_owed owed;
  bool session_begun;                /* direct: see qcow2_begin_session */
  bool index_damaged;                /* at open: the journal does not have it
                                      * as it is in memory */
  struct dedup_store_file *store_file;   /* NULL: none */
  bool merging;                      /* a merge step works without the mutex */
  pthread_cond_t merged;             /* it ended */
  bool stop;                         /* atomic: jobs shall return soon */
  bool contradicts;                  /* atomic: dedup_contradiction said so */

  /* Protected by lock: */
  struct dedup_journal *journal;
  struct dedup_claims claims;
  uint64_t checkpoint;               /* as in the durable configuration */
  int failed;                        /* sticky, negative errno */
  bool recovery_bit;                 /* bit 48 is set in the file */
  bool bit_raised;                   /* this session has set it once */
  bool gate_closed;                  /* it is being cleared or set */
  unsigned changing;                 /* operations that may append records */
  pthread_cond_t gate;
  struct dedup_spare spare;
  struct dedup_ahead ahead;
  struct dedup_give_back give;
  uint64_t uncommitted_bytes;        /* of data written since a commit */
  bool commit_asked;                 /* the loop knows that one is due */
  bool no_space;                     /* atomic: the last commit found none */
  uint64_t releases;                 /* times that clusters came free */
  struct dedup_stats stats;
  struct dedup_lookups lookups_before;   /* of the sessions before this one */
};

/* Data written since the last commit that makes one due: bounds what a
 * recovery must verify, 64 MiB of hashing and reading. */
#define DEDUP_UNCOMMITTED_HIGH (UINT64_C (64) << 20)
/* Clusters that commits make usable: none while a configuration is owed, or
 * commits would be due all the time, each with a block of the journal. */
uint64_t dedup_quarantined_locked (struct dedup_disk *d);
/* Are there so many in quarantine that a commit is due?  See quarantine_high in give-back.c. */
bool dedup_quarantine_due_locked (struct dedup_disk *d);
/* Before an operation, without locks: if commits can't keep up with what is
 * being overwritten, make what was freed usable first. */
int dedup_wait_for_quarantine (struct dedup_disk *d) MUST_CHECK;

/* --- disk.c ----------------------------------------------------------------------- */

/* Enter and leave a section that may append records: bit 48 is set and
 * durable in between (law 1).  -EROFS, or the sticky error. */
int dedup_change_begin (struct dedup_disk *d) MUST_CHECK;
void dedup_change_end (struct dedup_disk *d);
void dedup_change_end_locked (struct dedup_disk *d);
/* Make what was appended durable.  -ENOSPC: not now, nothing is lost; any other
 * failure stops the disk. */
int dedup_commit (struct dedup_disk *d) MUST_CHECK;
/* Before a client's change.  While the journal cannot be written nothing new is
 * taken: tries, and returns -ENOSPC if it still cannot. */
int dedup_admit (struct dedup_disk *d) MUST_CHECK;
/* Refuse writes from now on; returns ERR (negative). */
int dedup_fail (struct dedup_disk *d, int err, const char *what);
/* Say, once, that a table entry contradicts the refcounts: a matter of the
 * request that met it, which gets EIO if it could not be done. */
void dedup_contradiction (struct dedup_disk *d);
void dedup_wake (struct dedup_disk *d);
/* The same, once until the next commit. */
void dedup_ask_for_commit_locked (struct dedup_disk *d);
/* Sync the file: every sync but the header's passes here or by the journal,
 * one at a time, so that a failure is known to all before another one could
 * return 0 (law 10). */
int dedup_sync (struct dedup_disk *d) MUST_CHECK;
/* The log that the format room reports to. */
void dedup_attach_log (struct dedup_disk *d);
/* Append the record for a change; and apply it, tables being pinned. */
void dedup_append_change_locked (struct dedup_disk *d,
                                 const struct qcow2_change *c);
void dedup_change_locked (struct dedup_disk *d, struct qcow2_txn *txn,
                          const struct qcow2_change *c);

/* --- config-commit.c -------------------------------------------------------------------- */

/* Write the configuration as memory has it, recycling journal areas that are
 * no longer needed; everything it speaks of is made durable first.  -ENOSPC: it
 * is owed; what was edited stays, and is acted upon when a later call has
 * written it.  Any other failure has stopped the disk.  Maintenance, as are those
 * below. */
int dedup_config_commit (struct dedup_disk *d) MUST_CHECK;
/* The same, with one more area for the journal (first_seq is filled in). */
int dedup_config_add_area (struct dedup_disk *d,
                           const struct dedup_journal_area *area) MUST_CHECK;
/* Write what is owed, if anything is. */
int dedup_config_settle (struct dedup_disk *d) MUST_CHECK;
bool dedup_config_owed (const struct dedup_disk *d);
/* Write both slots, and no more; at open. */
int dedup_config_save (struct dedup_disk *d) MUST_CHECK;

/* --- checkpoint.c -------------------------------------------------------------------- */

/* Write all changed tables and advance the checkpoint.  Maintenance. */
int dedup_checkpoint (struct dedup_disk *d) MUST_CHECK;
/* Checkpoint and clear bit 48, unless somebody is changing: 1 then. */
int dedup_clean (struct dedup_disk *d) MUST_CHECK;
/* Free what may be reused by now; give trimmed space back to the host. */
int dedup_release_quarantine (struct dedup_disk *d) MUST_CHECK;
/* Commit, if need be with an empty block that carries the durable number. */
int dedup_commit_empty (struct dedup_disk *d) MUST_CHECK;
/* Commit until all quarantined clusters are free. */
int dedup_drain_quarantine (struct dedup_disk *d) MUST_CHECK;

/* --- area.c ----------------------------------------------------------------------------- */

/* A new area of SIZE bytes (whole clusters): anchored, recorded, not yet
 * listed by any configuration.  Maintenance. */
int dedup_area_alloc (struct dedup_disk *d, uint64_t size,
                      uint64_t *host_off) MUST_CHECK;
/* Free one that no durable configuration lists.  On failure part of it may be
 * free already: never try again, the next session's sweep finds the rest.
 * Maintenance. */
int dedup_area_free (struct dedup_disk *d, uint64_t host_off, uint64_t size)
  MUST_CHECK;
/* Is a cluster inside an area that the configuration lists, or that the index
 * frees itself when nobody reads it any more? */
bool dedup_area_contains (const struct dedup_disk *d, uint64_t host_idx);
/* Guard every area (qcow2_guard_begin came before).  FAULT_CORRUPT: one of
 * them overlaps a table. */
int dedup_area_guard (struct dedup_disk *d, struct fault *f) MUST_CHECK;
/* Enter header, tables (if TABLES) and store into the guard, so that no data is
 * written there, whatever the image says. */
int dedup_guard (struct dedup_disk *d, bool tables, struct fault *f) MUST_CHECK;
/* Is every area anchored with refcount 1? */
int dedup_area_check (struct dedup_disk *d, bool *ok) MUST_CHECK;
/* Real space for what is written in place: configuration, journal, tables.  A
 * tool that digs holes into files (fallocate -d, cp --sparse) took it away.  As
 * far as there is some; at open. */
void dedup_area_back (struct dedup_disk *d);
/* Make the quotas of an image: order of log stores, journal areas. */
unsigned dedup_default_order (uint64_t nr_clusters);
uint32_t dedup_default_areas (unsigned order, uint32_t area_size);
uint32_t dedup_default_area_size (unsigned order, uint64_t cluster_size);

/* --- store-file.c: areas of the index in a file of their own ---------------------- */

/* Take the store file of P, or none, as what the configuration says of it
 * allows; nothing is written.  FAULT_USAGE: it is not this image's. */
int dedup_store_file_attach (struct dedup_disk *d,
                             const struct dedup_open_params *p,
                             struct fault *f) MUST_CHECK;
/* A new store is made in the place of a void one, whose id was VOID_ID (0: not
 * known): refuse the file of P if it is neither new nor that one's, whose it is
 * no more. */
int dedup_store_file_take_over (const struct dedup_open_params *p,
                                uint64_t void_id, struct fault *f) MUST_CHECK;
void dedup_store_file_free (struct dedup_store_file *sf);
/* Where pages of incarnations and segments are read and written. */
struct io_store *dedup_index_io (struct dedup_disk *d);
/* Do new areas go to the store file?  Makes it this session's first, which
 * writes the configuration.  Maintenance, as are those below. */
bool dedup_store_file_ready (struct dedup_disk *d);
/* Has the file failed that HOST_OFF lies in, or was there no space?  Then the
 * next area lies in the image. */
bool dedup_store_file_lost (struct dedup_disk *d, uint64_t host_off);
/* As dedup_area_alloc and dedup_area_free, in the store file where there is
 * one with space. */
int dedup_index_area_alloc (struct dedup_disk *d, uint64_t size,
                            uint64_t *host_off) MUST_CHECK;
int dedup_index_area_free (struct dedup_disk *d, uint64_t host_off,
                           uint64_t size) MUST_CHECK;
/* Make durable what was written to the area (law 8). */
int dedup_index_sync (struct dedup_disk *d, uint64_t host_off) MUST_CHECK;

/* --- journal-areas.c ------------------------------------------------------------------- */

/* Blocks that a new area has. */
uint64_t dedup_area_blocks (const struct dedup_disk *d);
/* Blocks that empty ones and packing leave for what an unhold appends. */
uint64_t dedup_places_to_leave (const struct dedup_disk *d);
/* Less than an area is left. */
bool dedup_journal_low_locked (struct dedup_disk *d);
/* Make room in the journal: add, recycle, checkpoint, pack.  Maintenance. */
int dedup_journal_extend (struct dedup_disk *d) MUST_CHECK;
/* Log what the log stores hold anew.  Maintenance. */
int dedup_relog_index (struct dedup_disk *d) MUST_CHECK;

/* --- jobs.c ---------------------------------------------------------------------- */

/* Called without locks by a writer that finds no room in journal, log store
 * or table cache: does, or waits for, the maintenance that makes it. */
int dedup_make_room (struct dedup_disk *d) MUST_CHECK;
/* Records that an operation takes at most besides those of its clusters:
 * setting the log store aside closes a block (63 records) and logs FREEZE and
 * what was spilled (DEDUP_MAX_SPILLED). */
#define DEDUP_OPERATION_RECORDS 200
/* Enough of everything for an operation on NR clusters that enters NR_INSERTS
 * hashes?  Between groups. */
bool dedup_room_locked (struct dedup_disk *d, size_t nr, size_t nr_inserts);
/* Called by a writer after ENOSPC: find whatever space there is. */
int dedup_find_space (struct dedup_disk *d) MUST_CHECK;

/* --- recovery.c ------------------------------------------------------------------------------- */

/* Read the journal: fill the log stores, and with REPLAY apply mapping
 * records to the tables in memory.  *NEXT: where the journal goes on. */
int dedup_replay (struct dedup_disk *d, bool replay, uint64_t *next,
                  struct fault *f) MUST_CHECK;
/* A clean image may have got an older configuration back (rot, a copy).  What
 * was written under the later one must not be taken for what is written from
 * NEXT on: begin a new epoch, in memory.  *RENEWED tells. */
int dedup_renew_epoch (struct dedup_disk *d, uint64_t next, bool *renewed,
                       struct fault *f) MUST_CHECK;
/* Forget the cuts of blocks below a number: nobody reads them again. */
void dedup_forget_cuts (struct dedup_config *c, uint64_t below);

/* --- grow.c --------------------------------------------------------------- */

/* Make refcount table and anchor L1 larger if the file may outgrow them. */
int dedup_grow_tables (struct dedup_disk *d, struct fault *f) MUST_CHECK;

/* --- adopt.c ------------------------------------------------------------------------------------ */

/* May data be linked by the hash alone, where VERIFY is off? */
int dedup_check_verify (enum dedup_hash_alg alg, bool verify, struct fault *f)
  MUST_CHECK;
/* Put a store into the image and close it; to be opened and recovered
 * then. */
int dedup_adopt (struct io_store *io, const struct dedup_open_params *p,
                 struct fault *f) MUST_CHECK;

#endif
