/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 format: one open image, its tables in memory, its clusters.
 *
 * Source: QEMU docs/interop/qcow2.txt; docs/on-disk.md for the anchor and
 * the rules on references.  This room has no threads and knows nothing of
 * deduplication or of the journal.
 *
 * One lock (qcow2_lock) protects everything in memory; functions ending in
 * _locked need it, the others take it themselves.  No I/O happens under it.
 * A _locked function that needs a table which is not in memory returns
 * -EAGAIN and notes it in the transaction: release the lock, call
 * qcow2_txn_load, take the lock, ask again.  What was loaded stays pinned
 * until qcow2_txn_end, so that this ends.
 *
 * Tables change in memory only, through qcow2_apply_locked or functions that
 * report each change to the log (struct qcow2_log) as an after-image.  They
 * reach the file through a writeback (law 3: once the log is durable).
 *
 * Results: 0, a count, or -errno; faults as in fault.h.
 */
#ifndef DEDUP_QCOW2_H
#define DEDUP_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"
#include "io.h"
#include "lock.h"
#include "log.h"

struct qcow2_image;

#define QCOW2_INCOMPAT_DIRTY        (UINT64_C (1) << 0)
#define QCOW2_INCOMPAT_CORRUPT      (UINT64_C (1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE    (UINT64_C (1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION  (UINT64_C (1) << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2  (UINT64_C (1) << 4)
#define QCOW2_INCOMPAT_RECOVERY     (UINT64_C (1) << 48)
#define QCOW2_RECOVERY_NAME "dedup journal, needs recovery"

#define QCOW2_AUTOCLEAR_BITMAPS     (UINT64_C (1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA    (UINT64_C (1) << 1)

#define QCOW2_L2_COPIED      (UINT64_C (1) << 63)
#define QCOW2_L2_COMPRESSED  (UINT64_C (1) << 62)
#define QCOW2_L2_ZERO        (UINT64_C (1) << 0)
/* In memory only, for extended entries: the subclusters are not all of one
 * kind (QCOW2_L2_ZERO and an allocated cluster are said as in standard ones);
 * and: it can't be what it says. */
#define QCOW2_L2_PARTIAL     (UINT64_C (1) << 1)
#define QCOW2_L2_INVALID     (UINT64_C (1) << 2)
#define QCOW2_OFFSET_MASK    UINT64_C (0x00fffffffffffe00)

#define QCOW2_ROOT_ACTIVE 0   /* roots from 1 up: snapshots, read only */

#define QCOW2_STORE_EXTENSION_SIZE 32

/* --- Open ----------------------------------------------------------- */

struct qcow2_geometry {
  unsigned version;
  unsigned cluster_bits;
  uint64_t cluster_size;
  uint64_t virtual_size;      /* bytes */
  uint64_t nr_clusters;       /* guest clusters, the last may be partial */
  unsigned l2_entries;        /* per table */
  unsigned l2_entry_size;     /* bytes: 8, extended 16 */
  unsigned refcount_bits;
  uint64_t refcount_max;
  uint64_t refblock_entries;  /* per refcount block */
  unsigned compression_type;  /* 0 zlib, 1 zstd */
  uint64_t incompatible;      /* feature bits */
  uint64_t compatible;
  uint64_t autoclear;
  bool has_backing;
  bool has_data_file, data_file_raw;   /* by the feature bits at open, which
                                        * a session changes */
};

/* Which files of the host may an image name (its backing file, and what that
 * names)?  The author of the image chose the names; see host-file.c. */
enum qcow2_host_files {
  QCOW2_FILES_OFF = 0,    /* none: an image that names one is refused */
  QCOW2_FILES_SAME_DIR,   /* those in its own directory, no symbolic links */
  QCOW2_FILES_ANY,        /* whatever this process may open */
  QCOW2_FILES_IGNORE,     /* open none; what would come from them is -EIO */
};
/* "off", "same-dir" or "any"; -EINVAL for anything else. */
int qcow2_host_files_parse (const char *s, enum qcow2_host_files *files)
  MUST_CHECK;

struct qcow2_open_params {
  const char *path;       /* for relative backing names; may be NULL */
  bool writable;
  bool allow_recovery;    /* the caller copes with bit 48 */
  enum qcow2_host_files host_files;
  size_t cache_bytes;     /* budget of the table cache */
  const struct log_sink *log;
};

/* Open the image in IO (which stays the caller's).  Each unsupported feature
 * is refused by name (FAULT_UNSUPPORTED); a header, snapshot table or L1 that
 * cannot be right is FAULT_CORRUPT.  Writes nothing. */
int qcow2_open (struct io_store *io, const struct qcow2_open_params *params,
                struct qcow2_image **out, struct fault *f) MUST_CHECK;

/* Free memory; writes nothing.  NULL is fine. */
void qcow2_close (struct qcow2_image *img);

const struct qcow2_geometry *qcow2_geometry (const struct qcow2_image *img);
struct io_store *qcow2_io (struct qcow2_image *img);
struct lock *qcow2_lock (struct qcow2_image *img);
/* Where guest data is: the image, or its external data file. */
struct io_store *qcow2_data_io (struct qcow2_image *img);

/* The payload of the store's header extension, or NULL.  An extension of
 * any other size than QCOW2_STORE_EXTENSION_SIZE counts as absent. */
const uint8_t *qcow2_store_extension (const struct qcow2_image *img);

/* Id and name of the anchor: those that it gets, and those it had before. */
#define QCOW2_ANCHOR_NAME "do-not-apply-dedup-anchor"
#define QCOW2_OLD_ANCHOR_NAME "dedup"

/* Is there an anchor snapshot? */
bool qcow2_has_anchor (const struct qcow2_image *img);

/* Has somebody applied the anchor as a snapshot, and the active disk is what
 * the anchor maps (docs/on-disk.md section 2.1)?  Never while bit 48 is set. */
bool qcow2_anchor_was_applied (const struct qcow2_image *img);

/* Read all tables of the anchor.  FAULT_CORRUPT: one of them is none. */
int qcow2_anchor_load_all (struct qcow2_image *img, struct fault *f)
  MUST_CHECK;

struct qcow2_snapshot {
  const char *id, *name;       /* NUL-terminated copies */
  uint64_t l1_off;
  uint32_t l1_entries;
  uint64_t disk_size;
  uint64_t vm_state_size;
  bool is_anchor;
  bool named_anchor;           /* by id and name; also where it serves as none */
};
size_t qcow2_snapshots (const struct qcow2_image *img,
                        const struct qcow2_snapshot **out);

/* --- Create ---------------------------------------------------------- */

struct qcow2_create_params {
  uint64_t virtual_size;
  unsigned cluster_bits;      /* 9 to 21 */
  unsigned refcount_order;    /* 0 to 6, usually 4 */
};

/* Write an empty version 3 image, as qemu-img create would, into the store IO,
 * whatever it holds, and sync it.  FAULT_USAGE for sizes that the format cannot hold. */
int qcow2_create (struct io_store *io, const struct qcow2_create_params *p,
                  struct fault *f) MUST_CHECK;

/* Did qcow2_create begin to write an image there, and not finish?  1: yes. */
int qcow2_is_unfinished (struct io_store *io) MUST_CHECK;

/* --- Read ------------------------------------------------------------ */

enum qcow2_kind {
  QCOW2_UNALLOCATED,   /* reads from the backing file, else zero */
  QCOW2_ZERO,
  QCOW2_DATA,
  QCOW2_COMPRESSED,
};

struct qcow2_extent {
  enum qcow2_kind kind;
  uint64_t guest_off;
  uint64_t len;
  uint64_t host_off;   /* QCOW2_DATA: of guest_off; contiguous for len */
  uint64_t entry;      /* QCOW2_COMPRESSED: the L2 entry; len <= a cluster */
};

/* Describe [guest_off, guest_off + len) in at most MAX extents, merged where
 * kind and host offset run on.  Returns their number (>= 1 for len > 0); they
 * cover a prefix of the range.  The range must lie inside the disk. */
int qcow2_map (struct qcow2_image *img, unsigned root, uint64_t guest_off,
               uint64_t len, struct qcow2_extent *ext, size_t max) MUST_CHECK;

/* Read guest bytes, through compressed clusters and the backing chain; runs
 * of contiguous host clusters side by side.  The caller keeps the range from
 * being rewritten meanwhile (server/range-lock.h). */
int qcow2_read (struct qcow2_image *img, unsigned root, void *buf,
                uint64_t guest_off, size_t len) MUST_CHECK;

/* Begin to read what a later qcow2_read of the range will ask for: its tables,
 * which this call waits for, and the image's own clusters, for which it does
 * not.  Advice: changes nothing, needs no lock on the range, cannot fail.
 * AROUND: as for io_will_need.  Returns whether something was not in memory. */
bool qcow2_will_need (struct qcow2_image *img, unsigned root,
                      uint64_t guest_off, uint64_t len, bool around);

/* For extents that are unallocated here: what the backing chain says.
 * *LEN is cut to a run of one kind; only QCOW2_ZERO and QCOW2_DATA come back
 * (host_off is not set).  Past the backing file's end: QCOW2_ZERO; with no
 * backing file: QCOW2_UNALLOCATED. */
int qcow2_backing_status (struct qcow2_image *img, uint64_t guest_off,
                          uint64_t *len, enum qcow2_kind *kind) MUST_CHECK;

/* --- Transactions ----------------------------------------------------- */

struct qcow2_pin;   /* internal: one pinned slice of a table */

struct qcow2_txn {
  struct qcow2_image *img;
  struct qcow2_slice *few[8];  /* pinned, while there are few */
  struct qcow2_pin *pins;      /* NULL while there are few; owned, array */
  size_t nr_pins, max_pins;
  struct qcow2_slice *last[2]; /* found last; pinned */
  int missing_kind;            /* what the last -EAGAIN asked for */
  uint64_t missing_off;
};

void qcow2_txn_begin (struct qcow2_image *img, struct qcow2_txn *txn);
/* Load what is missing; waits if another thread is loading it.  What may be
 * missing is also space on the host for new tables: -ENOSPC. */
int qcow2_txn_load (struct qcow2_txn *txn) MUST_CHECK;
void qcow2_txn_end_locked (struct qcow2_txn *txn);
void qcow2_txn_end (struct qcow2_txn *txn);

/* --- Changes ----------------------------------------------------------- */

enum qcow2_change_type {
  QCOW2_CHANGE_L2,           /* COUNT L2 entries from GUEST_IDX := ENTRY */
  QCOW2_CHANGE_REFCOUNT,     /* COUNT clusters from HOST_IDX := REFCOUNT,
                              * ANCHORED */
  QCOW2_CHANGE_L2_TABLE,     /* L1[TABLE_IDX] := HOST_OFF | COPIED; the table
                              * is a copy of that at SOURCE_OFF, 0: zero */
  QCOW2_CHANGE_REFBLOCK,     /* refcount table[TABLE_IDX] := HOST_OFF; zero */
  QCOW2_CHANGE_ANCHOR_TABLE, /* anchor L1[TABLE_IDX] := HOST_OFF; zero */
  QCOW2_CHANGE_HEADER,       /* header fields := HEADER */
  QCOW2_CHANGE_BITMAP,       /* the entry of a bitmap's table at host offset
                              * TABLE_IDX := HOST_OFF */
};

struct qcow2_header_fields {
  uint64_t reftable_off;
  uint32_t reftable_clusters;
  uint32_t nr_snapshots;
  uint64_t snapshots_off;
  uint64_t anchor_l1_off;
  uint32_t anchor_l1_entries;
};

struct qcow2_change {
  enum qcow2_change_type type;
  uint16_t root;
  uint32_t count;
  uint64_t guest_idx;
  uint64_t host_idx;
  uint64_t entry;
  uint64_t refcount;
  bool anchored;
  uint64_t table_idx;
  uint64_t host_off;
  uint64_t source_off;
  struct qcow2_header_fields header;
};

/* Told of each change as it is made, with the lock held.  Cannot fail: the
 * caller made room before (see dedup/journal/journal.h). */
struct qcow2_log {
  void (*append_locked) (void *opaque, const struct qcow2_change *change);
  uint64_t (*seq_locked) (void *opaque);  /* sequence number of the last
                                           * append; tags quarantine */
  void *opaque;
};
void qcow2_set_log (struct qcow2_image *img, const struct qcow2_log *log);

/* Apply one change to the tables in memory without reporting it: for replay
 * and for the caller's own records.  -EAGAIN as above; -EINVAL for a change
 * that does not fit this image (replay of a corrupt journal). */
int qcow2_apply_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
  MUST_CHECK;

/* Between these two, records of a journal are applied to tables of which a
 * crash may have left some unwritten: what L1, refcount table and anchor L1
 * name may lie past the end of the file, or hold other bytes still, and a
 * record to come makes it anew.  The end: -EIO if an anchor table was not a
 * table, and no record made it one. */
void qcow2_replay_begin (struct qcow2_image *img);
int qcow2_replay_end (struct qcow2_image *img) MUST_CHECK;

/* The L2 entry of a guest cluster; 0 where there is no table. */
int qcow2_get_entry_locked (struct qcow2_txn *txn, unsigned root,
                            uint64_t guest_idx, uint64_t *entry) MUST_CHECK;

/* Make the L2 table of a guest cluster present and private (copied if a
 * snapshot shares it), and pin the entry's slice of it.  May allocate and
 * report changes.  -ENOSPC. */
int qcow2_prepare_entry_locked (struct qcow2_txn *txn, unsigned root,
                                uint64_t guest_idx) MUST_CHECK;

/* Refcount and anchor state of a host cluster.  0 and false where there is
 * no table. */
int qcow2_get_refcount_locked (struct qcow2_txn *txn, uint64_t host_idx,
                               uint64_t *refcount, bool *anchored) MUST_CHECK;

/* How many clusters from HOST_IDX on, at most COUNT, are anchored with that
 * refcount?  *N: 0 if the first one is not; it ends with a slice of a refcount
 * block at the latest. */
int qcow2_anchored_run_locked (struct qcow2_txn *txn, uint64_t host_idx,
                               uint64_t count, uint64_t refcount,
                               uint64_t *n) MUST_CHECK;

/* Which of NR clusters are surely not anchored?  What is not in memory may
 * be. */
void qcow2_find_unanchored_locked (struct qcow2_image *img,
                                   const uint64_t *host_idx, size_t nr,
                                   bool *not_anchored);

/* Make the refcount block and anchor table of COUNT host clusters present
 * and pinned, so that REFCOUNT changes of them apply at once.  May allocate
 * and report changes.  -ENOSPC. */
int qcow2_prepare_host_locked (struct qcow2_txn *txn, uint64_t host_idx,
                               uint64_t count) MUST_CHECK;

/* Make everything present that dropping the reference ENTRY (an L2 entry's
 * value) needs, and those of the NR - 1 clusters behind it (1 if it is
 * compressed).  -EINVAL: the entries contradict the refcounts. */
int qcow2_prepare_drop_locked (struct qcow2_txn *txn, uint64_t entry,
                               uint64_t nr) MUST_CHECK;

/* Drop them, after qcow2_prepare_drop_locked succeeded under the same hold of
 * the lock.  An anchored cluster left to the anchor alone is freed unless
 * held; an unanchored one with refcount above 1 passes to the anchor
 * (docs/on-disk.md section 2); freed clusters go to quarantine, marked
 * TRIMMED if their space shall go back to the host.  Reports the changes.
 * Returns -EINVAL, and changes nothing, if a refcount is 0 already. */
int qcow2_drop_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t nr,
                       bool trimmed) MUST_CHECK;

/* Keep a cluster that may be linked from being freed while its bytes are
 * compared.  -ENOENT: not anchored, or no guest refers to it and no other hold
 * keeps it; -ERANGE: refcount at or above LIMIT. */
int qcow2_hold_locked (struct qcow2_txn *txn, uint64_t host_idx,
                       uint64_t limit) MUST_CHECK;
/* Memory for NR more holds, so that they cannot fail for want of it. */
int qcow2_holds_reserve_locked (struct qcow2_image *img, size_t nr)
  MUST_CHECK;
/* Let go; frees it if the last guest reference went meanwhile.  Needs no
 * load: TXN must be the one that holds. */
void qcow2_unhold_locked (struct qcow2_txn *txn, uint64_t host_idx);

bool qcow2_is_held_locked (const struct qcow2_image *img, uint64_t host_idx);

/* --- Allocation --------------------------------------------------------- */

struct qcow2_run {
  uint64_t host_idx;
  uint64_t count;
  bool trimmed;
  bool emptied;    /* when it is released: its space was given back */
};

/* Set aside up to WANTED contiguous free clusters (at least 1), in memory
 * only: nothing is reported, and a crash forgets it.  They are to become
 * used by a REFCOUNT change or go back by qcow2_unreserve_locked.  -ENOSPC:
 * no free cluster is known and the file may not grow. */
int qcow2_reserve_locked (struct qcow2_image *img, uint64_t wanted,
                          struct qcow2_run *run) MUST_CHECK;
void qcow2_unreserve_locked (struct qcow2_image *img,
                             const struct qcow2_run *run);
/* The same, for a run that the host had no space for: others are tried before
 * it comes round again. */
void qcow2_unreserve_unbacked_locked (struct qcow2_image *img,
                                      const struct qcow2_run *run);

/* Did the host fail to read a table, ever?  Else an -EIO came of what the
 * image says. */
bool qcow2_read_failed_locked (struct qcow2_image *img);

/* Let the next reservation pass over so many clusters: where there was no
 * space for FAILED clusters one by one, their neighbours have none either,
 * most likely, so go in growing steps. */
void qcow2_skip_locked (struct qcow2_image *img, unsigned failed);

/* Set aside this cluster, if it is known to be free. */
bool qcow2_reserve_one_locked (struct qcow2_image *img, uint64_t host_idx);
/* Get real space on the host for a reserved run; gives up the lock meanwhile.
 * -ENOSPC. */
int qcow2_back_locked (struct qcow2_image *img, const struct qcow2_run *run)
  MUST_CHECK;

/* As qcow2_reserve_locked, for exactly COUNT clusters in one run. */
int qcow2_reserve_area_locked (struct qcow2_image *img, uint64_t count,
                               uint64_t *host_idx) MUST_CHECK;

/* Put freed clusters (refcount 0 already) into quarantine by hand, with the
 * sequence number of the record that freed them. */
void qcow2_quarantine_locked (struct qcow2_image *img,
                              const struct qcow2_run *run, uint64_t seq);

/* Take from quarantine what was freed by records up to SEQ, into RUNS, at most
 * MAX of them (a few thousand: nobody else gets on meanwhile); how many.  They
 * can't be allocated until qcow2_release_locked. */
size_t qcow2_quarantine_take_locked (struct qcow2_image *img, uint64_t seq,
                                     struct qcow2_run *runs, size_t max);
/* Sort RUNS by host index and join neighbours, but not trimmed with other
 * ones; how many are left.  Without the lock. */
size_t qcow2_coalesce (struct qcow2_run *runs, size_t nr);
void qcow2_release_locked (struct qcow2_image *img,
                           const struct qcow2_run *runs, size_t nr);
uint64_t qcow2_quarantined_locked (struct qcow2_image *img);  /* clusters */
/* Did any come free without being quarantined, for want of memory?  They are
 * left alone until the next open. */
bool qcow2_frees_lost_locked (struct qcow2_image *img);

/* Enter header and tables into the guard (guard.c), for an image opened for
 * writing, once its tables are as they should be; and again after they moved.
 * FAULT_CORRUPT, and nothing changed: two of them overlap, lie past the end or
 * are misaligned.  From then on new tables enter themselves. */
int qcow2_guard_begin (struct qcow2_image *img, struct fault *f) MUST_CHECK;
/* The same for, or no longer for, clusters of a store. */
void qcow2_guard_put_locked (struct qcow2_image *img, uint64_t host_idx,
                             uint64_t count, bool guarded);
/* Is any of these clusters guarded?  No data may go there. */
bool qcow2_guarded_locked (struct qcow2_image *img, uint64_t host_idx,
                           uint64_t count) MUST_CHECK;
/* The first that is, from HOST_IDX on; UINT64_MAX: none. */
uint64_t qcow2_next_guarded_locked (struct qcow2_image *img,
                                    uint64_t host_idx);

/* Stale clusters: free ones for which the host may hold data (stale.c).  How
 * many are there?  How few were there at the least since the last call of
 * qcow2_stale_low_locked?  So many were not needed meanwhile. */
uint64_t qcow2_stale_locked (struct qcow2_image *img);
uint64_t qcow2_stale_low_locked (struct qcow2_image *img);
/* Take up to CLUSTERS of them at or after *FROM (0 again at the end), in at most
 * MAX runs: nobody can allocate them until they are given to
 * qcow2_put_emptied_locked, as free and empty ones.  How many runs. */
size_t qcow2_take_stale_locked (struct qcow2_image *img, uint64_t *from,
                                uint64_t clusters, struct qcow2_run *runs,
                                size_t max);
void qcow2_put_emptied_locked (struct qcow2_image *img,
                               const struct qcow2_run *runs, size_t nr);
/* Clusters that were free at open may become stale when two questions were
 * answered: does the host hold data there, and does really no entry of any L1
 * and L2 table point there?  One step of asking, some milliseconds of reading,
 * once the scan is done.  1 while there is more, 0 at the end, -errno. */
int qcow2_suspect_step (struct qcow2_image *img) MUST_CHECK;
bool qcow2_suspects_due_locked (struct qcow2_image *img);
/* Clusters that hold something: neither known free nor in quarantine. */
uint64_t qcow2_in_use_locked (struct qcow2_image *img);
/* How many clusters at the frontier's end are free, and no suspects? */
uint64_t qcow2_free_tail_locked (struct qcow2_image *img);
/* Free again what the pool of clusters for tables holds. */
void qcow2_pool_give_back_locked (struct qcow2_image *img);

/* First cluster past everything allocated or reserved. */
uint64_t qcow2_frontier_locked (struct qcow2_image *img);

/* Look for free clusters and garbage in the part of the file that was there
 * at open, a slice of a refcount block a call.  GARBAGE (called with the lock held)
 * is told of anchored clusters with refcount 1.  Returns 1 while there is
 * more, 0 at the end, -errno. */
int qcow2_scan_step (struct qcow2_image *img,
                     void (*garbage) (void *opaque, uint64_t host_idx),
                     void *opaque) MUST_CHECK;
bool qcow2_scan_done_locked (struct qcow2_image *img);

/* Is any table changed in memory?  How many bytes of them? */
uint64_t qcow2_dirty_bytes_locked (struct qcow2_image *img);
uint64_t qcow2_memory_bytes_locked (struct qcow2_image *img);

/* --- Writeback ------------------------------------------------------------ */

struct qcow2_writeback;

/* Copy every changed table; they count as clean from here on, but can't be
 * evicted until qcow2_writeback_end_locked.  With a log it may give up the
 * lock meanwhile: the copies hold all changes of before the call, and maybe
 * some that were made during it. */
int qcow2_writeback_begin_locked (struct qcow2_image *img,
                                  struct qcow2_writeback **wb) MUST_CHECK;
/* Write the copies in place, sorted by host offset, neighbours together.
 * Grows the file to the frontier.  No sync. */
int qcow2_writeback_write (struct qcow2_writeback *wb) MUST_CHECK;
/* OK false: the tables count as changed again.  Frees WB. */
void qcow2_writeback_end_locked (struct qcow2_writeback *wb, bool ok);

/* Set or clear incompatible bit 48 in the file, then sync; before it is set as
 * qcow2_begin_session. */
int qcow2_set_recovery_bit (struct qcow2_image *img, bool on) MUST_CHECK;

/* Real space for the tables that are in the file, where it has holes, so that
 * writing them in place needs none: at open, before there are other threads, of
 * the first 16384.  -ENOSPC: as far as there was some. */
int qcow2_back_tables (struct qcow2_image *img) MUST_CHECK;

/* --- Without a log --------------------------------------------------------- */

/* Images that can't hold a store are changed without one, in the order of
 * QEMU: refcounts grow first, then entries change, then refcounts shrink.
 * So references that are dropped are remembered, and counted down once the
 * tables without them are durable; a crash leaks clusters, and no more. */

/* Make IMG, open for writing, one that is changed so.  An anchor is an
 * ordinary snapshot from here on. */
void qcow2_direct_begin (struct qcow2_image *img);
/* Make durable what was changed before the call, and free what was dropped.
 * One at a time, beside any number of writers. */
int qcow2_direct_flush (struct qcow2_image *img) MUST_CHECK;
/* Before the first change of a session: bitmaps are marked in use, and
 * autoclear features that this program does not keep up cleared; synced. */
int qcow2_begin_session (struct qcow2_image *img) MUST_CHECK;
/* Is there anything for it to do? */
bool qcow2_direct_pending_locked (struct qcow2_image *img);

/* Make all refcounts anew, in a table for MIN_CLUSTERS or more, clear the dirty
 * bit, and give up bitmaps that can't be right: one write of the header switches to them.  IMG, open for
 * writing, must be closed and opened again afterwards. */
int qcow2_rebuild_refcounts (struct qcow2_image *img, uint64_t min_clusters,
                             struct fault *f) MUST_CHECK;
/* How many clusters the refcount table can count. */
uint64_t qcow2_countable_clusters (const struct qcow2_image *img);

/* --- Persistent bitmaps ------------------------------------------------------ */

/* They are marked in use when bit 48 is set, or by qcow2_begin_session.  Note
 * what is written; before the change. */
void qcow2_bitmaps_note (struct qcow2_image *img, uint64_t guest_off,
                         uint64_t len);
/* Make HOST_IDX, reserved and written, what the table entry of a bitmap at
 * host offset ENTRY_OFF points to: by qcow2_bitmap_attach_locked. */
typedef int (*qcow2_attach_cb) (void *opaque, uint64_t entry_off,
                                uint64_t host_idx);
int qcow2_bitmap_attach_locked (struct qcow2_txn *txn, uint64_t entry_off,
                                uint64_t host_idx) MUST_CHECK;
/* Were any marked, and are they kept up to date? */
bool qcow2_bitmaps_to_save (const struct qcow2_image *img);
/* Once refcounts are right: is their directory the only thing in its clusters?  It
 * is written in place; if not, they can't be right.  -ENOMEM. */
int qcow2_bitmaps_check_place (struct qcow2_image *img) MUST_CHECK;
/* Are there some that can't be right?  They are given up with the first change,
 * or by qcow2_rebuild_refcounts, which frees what they have. */
bool qcow2_bitmaps_given_up (const struct qcow2_image *img);
/* Add to the bitmaps in the file what was noted; no sync.  What can't be saved
 * stays marked, with a line in the log. */
int qcow2_bitmaps_save (struct qcow2_image *img, qcow2_attach_cb attach,
                        void *opaque) MUST_CHECK;
/* Once that is durable, and nothing changes any more: they are not in use;
 * sync. */
int qcow2_bitmaps_end (struct qcow2_image *img) MUST_CHECK;

/* --- Growth and the store's place ------------------------------------------ */

/* A plan lays out new areas behind the end of the file, together with the
 * tables that they and the file's growth need (docs/on-disk.md section 6). */
#define QCOW2_PLAN_WRITES 3   /* snapshots, refcount table, anchor L1 */

struct qcow2_plan {
  uint64_t *area_host_off;          /* of each area asked for */
  struct qcow2_change *changes;     /* to be journalled, then applied; the
                                     * HEADER change, if any, is first: it
                                     * makes room for what the rest adds */
  size_t nr_changes;
  bool new_header;                  /* there is a HEADER change */
  /* internal */
  uint64_t end_idx;
  uint64_t write_off[QCOW2_PLAN_WRITES];
  uint8_t *write_buf[QCOW2_PLAN_WRITES];
  size_t write_len[QCOW2_PLAN_WRITES];
};

/* How many host clusters may this image come to have at the most: the bound
 * that the refcount table and anchor L1 are made for. */
uint64_t qcow2_growth_bound (struct qcow2_image *img);

/* Plan NR_AREAS areas of AREA_SIZE[i] bytes each (multiples of the cluster
 * size), and a refcount table and anchor L1 for MAX_CLUSTERS host clusters
 * where those are too small or absent.  Neither writes nor changes. */
int qcow2_plan_new (struct qcow2_image *img, const uint64_t *area_size,
                    size_t nr_areas, uint64_t max_clusters,
                    struct qcow2_plan **plan, struct fault *f) MUST_CHECK;
/* Write the tables that the plan's HEADER change points to.  No sync. */
int qcow2_plan_write (struct qcow2_image *img, struct qcow2_plan *plan)
  MUST_CHECK;
/* Would the first cluster hold what qcow2_plan_commit_header writes?  -ENOSPC;
 * to be asked before anything is written. */
int qcow2_plan_check_header (struct qcow2_image *img,
                             struct qcow2_plan *plan, const uint8_t *ext,
                             struct fault *f) MUST_CHECK;
/* One write of the first cluster: the plan's header fields, the store's
 * extension EXT (32 bytes), bit 48 and its name; then sync. */
int qcow2_plan_commit_header (struct qcow2_image *img,
                              struct qcow2_plan *plan, const uint8_t *ext,
                              struct fault *f) MUST_CHECK;
void qcow2_plan_free (struct qcow2_plan *plan);

/* --- Check and count ----------------------------------------------------------- */

struct qcow2_area {
  uint64_t host_off, size;   /* bytes, whole clusters */
};

struct qcow2_check_params {
  const struct qcow2_area *areas;   /* of the store */
  size_t nr_areas;
  void (*problem) (void *opaque, bool is_leak, const char *line);
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

struct qcow2_check_result {
  uint64_t corruptions, leaks, garbage, errors;
  uint64_t guest_clusters;         /* of the active disk */
  uint64_t mapped_clusters;        /* with data of their own here */
  uint64_t zero_clusters, compressed_clusters;
  uint64_t data_clusters;          /* host clusters of guest data, all roots */
  uint64_t anchored_clusters;      /* of them indexed or once indexed */
  uint64_t meta_clusters;          /* tables */
  uint64_t store_clusters;         /* areas */
};

/* Recompute every refcount from header, tables, snapshots, anchor and areas
 * and compare; check the flags, alignment and range of every entry.  Reads
 * the file, not the cache: nothing may be changed in memory. */
int qcow2_check (struct qcow2_image *img, const struct qcow2_check_params *p,
                 struct qcow2_check_result *r, struct fault *f) MUST_CHECK;

#endif
