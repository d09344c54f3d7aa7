/* SPDX-License-Identifier: BSD-3-Clause */
/* Moves what is in memory to its place in the file, and makes room.  Upkeep is
 * flushes, checkpoints, freezes and merges of the index, areas of the journal,
 * the quarantine, and space that is given back to the host.
 *
 * Long work is done a step at a time by dedup_upkeep_run, which the owner calls
 * when dedup_upkeep_due says so.  Most steps hold the maintenance mutex.  A
 * writer that lacks room calls dedup_make_room or dedup_find_space, and does
 * the work itself or waits for the thread that is doing it: so nothing depends
 * on a loop that runs the jobs.
 *
 * "Maintenance" below means that the caller holds the maintenance mutex, which
 * is taken before the image lock.  Functions ending in _locked need the image
 * lock; all others are called without it.  Results: 0 or -errno.
 */
#ifndef DEDUP_UPKEEP_H
#define DEDUP_UPKEEP_H

#include "dedup-types.h"
#include "store.h"

/* Free clusters with space on the host, set aside for overwriting data when the
 * host is full (overwrite-reserve.c). */
struct dedup_overwrite_reserve {     /* protected by the image lock */
  const struct dedup_base *b;
  struct dedup_store *s;
  uint64_t v[DEDUP_CHUNK_CLUSTERS];  /* host indices, reserved */
  unsigned nr;
  bool wanted;                       /* this session has asked for some */
  bool filling;
};

/* Clusters that zeroes were written to, for small synced writes
 * (prewrite.c). */
struct dedup_prewrite {              /* protected by the image lock */
  const struct dedup_base *b;
  struct dedup_store *s;
  struct qcow2_run run[2];           /* reserved; used in this order */
  unsigned flushes;                  /* recent ones count more */
  uint64_t clusters;                 /* stored between these flushes */
  bool filling;
};

/* Space that is given back to the host (freeing.c, give-back.c). */
struct dedup_give_back {
  const struct dedup_base *b;
  uint64_t from;                     /* the one job, or close: cluster */
  /* Protected by the image lock: */
  uint64_t left;                     /* clusters found unneeded, not emptied */
  bool unable;                       /* the host can't take anything back */
  unsigned freeing, waiting;         /* threads: see dedup_freeing_begin */
  uint64_t freed;                    /* times that one of them ended */
  pthread_cond_t changed;            /* waits with lock: FREED grew */
};

struct dedup_upkeep {
  const struct dedup_base *b;
  struct dedup_store *s;
  size_t dirty_high, dirty_max;      /* bytes of changed tables; constant */
  bool stop;                         /* atomic: jobs must return soon */
  /* One maintenance job at a time; taken before the image lock. */
  pthread_mutex_t maintenance;
  bool merging;                      /* a merge step works without the mutex */
  pthread_cond_t merged;             /* waits with maintenance: it ended */
  /* Protected by the image lock: */
  uint64_t uncommitted_bytes;        /* of data written since a commit */
  uint64_t releases;                 /* times that clusters became free */
  struct dedup_overwrite_reserve reserve;
  struct dedup_prewrite prewrite;
  struct dedup_give_back give;
};

/* Initializes U, all zero before.  B and S stay the caller's. */
void dedup_upkeep_init (struct dedup_upkeep *u, const struct dedup_base *b,
                        struct dedup_store *s);
/* Destroys what init made; no thread may use U any more. */
void dedup_upkeep_destroy (struct dedup_upkeep *u);

/* --- Jobs (jobs.c, flush.c) ---------------------------------------------- */

/* These three are dedup_due, dedup_run and dedup_stop_jobs of dedup.h. */
unsigned dedup_upkeep_due (struct dedup_upkeep *u, unsigned *urgent);
int dedup_upkeep_run (struct dedup_upkeep *u, enum dedup_job job) MUST_CHECK;
void dedup_upkeep_stop (struct dedup_upkeep *u);

/* Makes everything that was completed before the call durable.  -ENOSPC: it is
 * not, but nothing is lost, and another call tries again. */
int dedup_upkeep_flush (struct dedup_upkeep *u) MUST_CHECK;

/* --- Room for an operation (room.c, make-room.c) ------------------------- */

/* Returns true if journal, index and table cache have room for an operation on
 * NR clusters that enters NR_INSERTS hashes.  May append a FREEZE record, so it
 * is called between groups. */
bool dedup_room_locked (struct dedup_upkeep *u, size_t nr, size_t nr_inserts);
/* Makes that room, or waits while another thread does; for a writer, after
 * dedup_room_locked returned false. */
int dedup_make_room (struct dedup_upkeep *u) MUST_CHECK;

/* Makes the index forget all descriptors that touch clusters which are not anchored
 * (forget-descriptors.c).  It reads the whole index once, and calls KEEP for each entry of
 * a descriptor that stays; older ones for the same hash are among them.  Without locks, and
 * not inside the gate. */
int dedup_forget_descriptors (struct dedup_upkeep *u,
                              void (*keep) (void *opaque, const struct dedup_entry *e),
                              void *opaque) MUST_CHECK;
/* Finds the space that there is, by scan, quarantine and clusters that are
 * about to be free; for a writer, after -ENOSPC. */
int dedup_find_space (struct dedup_upkeep *u) MUST_CHECK;
/* The same two for one group of NR_RECORDS records, REFCOUNT and ENTRY but for a
 * few, which may be very many, and no hashes (large-room.c).  The second returns 0
 * if another try may succeed, and -EFBIG for more records than a group can have:
 * it waits in memory as a whole. */
#define DEDUP_LARGE_GROUP_RECORDS 300000u
bool dedup_large_room_locked (struct dedup_upkeep *u, uint64_t nr_records);
int dedup_make_large_room (struct dedup_upkeep *u, uint64_t nr_records)
  MUST_CHECK;

/* Gets what a change lacked that ended with WHY: -EAGAIN: the table that TXN misses;
 * -EBUSY, -ENOBUFS: room in the journal, the latter for NR_RECORDS records; -ENOSPC:
 * space, which is searched for once (*SEARCHED, false at first).  0: the change may be
 * tried again; else the error that ends it. */
int dedup_get_ready (struct dedup_upkeep *u, struct qcow2_txn *txn, int why,
                     uint64_t nr_records, bool *searched) MUST_CHECK;
/* Returns true if more tables are changed than the cache may hold. */
bool dedup_too_dirty (struct dedup_upkeep *u);

/* --- End of a session, and steps of recovery; maintenance ---------------- */

/* Takes the maintenance mutex for something that may freeze.  Waits before that
 * for a merge step, if one is under way that a freeze would need to end. */
void dedup_maintenance_begin (struct dedup_upkeep *u);
void dedup_maintenance_end (struct dedup_upkeep *u);

/* Writes all changed tables and advances the checkpoint (checkpoint.c). */
int dedup_checkpoint (struct dedup_store *s) MUST_CHECK;
/* Writes a checkpoint and clears bit 48 (clean.c), unless there is work left
 * (store.h).  Returns 1, with the bit still set, if a thread is inside the
 * gate. */
int dedup_clean (struct dedup_upkeep *u) MUST_CHECK;
/* Does the same at the end of a session.  If there is work left, the
 * configuration says so. */
int dedup_clean_at_close (struct dedup_upkeep *u) MUST_CHECK;
/* Makes records name places, as they must before tables are lent.  Returns 0
 * when the configuration says so and no older record will be replayed
 * (begin-disks.c).  -ENOSPC: tried again by another call. */
int dedup_begin_disks (struct dedup_upkeep *u) MUST_CHECK;
/* Logs the entries of the log stores again (repack.c).  At open, before there
 * are other threads. */
int dedup_relog_index (struct dedup_upkeep *u) MUST_CHECK;

/* --- Quarantine (quarantine.c) ------------------------------------------- */

/* Commits and releases clusters if writers free them faster than commits make
 * them usable; for a writer, before it enters the gate. */
int dedup_wait_for_quarantine (struct dedup_upkeep *u) MUST_CHECK;
/* Commits until no cluster is in quarantine: three times at most. */
int dedup_drain_quarantine (struct dedup_upkeep *u) MUST_CHECK;

/* --- Space given back to the host (give-back.c, freeing.c) --------------- */

/* Does one step of the job GIVE_BACK: looks at clusters that an earlier session
 * left, or empties a slice of what no writer needed since the last step. */
int dedup_give_back (struct dedup_upkeep *u) MUST_CHECK;
/* Returns true if the job has work; busy: if it is in the middle of it. */
bool dedup_give_back_due_locked (struct dedup_give_back *gb);
bool dedup_give_back_busy_locked (struct dedup_give_back *gb);
/* Waits for threads that are about to free clusters, where none is free. */
void dedup_wait_for_freeing (struct dedup_give_back *gb);
/* Empties all free clusters and cuts the file's end off, for 3 seconds at most;
 * at close, when the image is clean. */
void dedup_upkeep_give_back_all (struct dedup_upkeep *u);

/* --- Clusters set aside (overwrite-reserve.c, prewrite.c) ---------------- */

/* Takes a cluster of the reserve; returns false if there is none. */
bool dedup_reserve_take_locked (struct dedup_overwrite_reserve *res,
                                uint64_t *host_idx);
/* Puts a reserved cluster into the reserve; returns false if it is full, and
 * the cluster stays the caller's. */
bool dedup_reserve_put_locked (struct dedup_overwrite_reserve *res,
                               uint64_t host_idx);
/* Takes a run of up to NR prewritten clusters; returns false if there are none,
 * or if NR is no small write. */
bool dedup_prewrite_take_locked (struct dedup_prewrite *pw, uint64_t nr,
                                 struct qcow2_run *run);
/* Counts NR clusters that were stored. */
void dedup_prewrite_count_locked (struct dedup_prewrite *pw, uint64_t nr);

#endif
