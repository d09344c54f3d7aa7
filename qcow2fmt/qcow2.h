/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements the qcow2 format: one open image, its tables in memory, and its
 * clusters.
 *
 * The sources are QEMU's docs/interop/qcow2.txt, and docs/on-disk.md for the
 * anchor and the rules on references.  This room has no threads and knows
 * nothing of deduplication or of the journal.
 *
 * One lock (qcow2_lock) protects everything in memory; functions ending in
 * _locked need it, the others take it themselves.  No I/O happens under it.
 * A _locked function that needs a table which is not in memory returns
 * -EAGAIN and notes the table in the transaction.  So such functions are called
 * from a step, which qcow2_txn_retry repeats once the table has been loaded.
 * Loaded tables stay pinned until qcow2_txn_end, so that these retries come to
 * an end.
 *
 * Tables change in memory only, through qcow2_apply_locked or functions that
 * report each change to the log (struct qcow2_log) as an after-image.  They
 * reach the file through a writeback, once the log is durable (law 3).
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
/* Two bits that extended entries have in memory only.  PARTIAL: the subclusters
 * are not all of one kind (all zero and all allocated look as in standard
 * entries).  INVALID: the entry contradicts the format. */
#define QCOW2_L2_PARTIAL     (UINT64_C (1) << 1)
#define QCOW2_L2_INVALID     (UINT64_C (1) << 2)
#define QCOW2_OFFSET_MASK    UINT64_C (0x00fffffffffffe00)

#define QCOW2_ROOT_ACTIVE 0   /* roots from 1 up are snapshots and disks */

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
  bool has_data_file, data_file_raw;   /* from the feature bits at open;
                                        * a session changes those */
};

/* Selects which files of the host an image may name: its backing file, the
 * files that that one names in turn, and its data file.  The image's author
 * chose the names; see host-file.c. */
enum qcow2_host_files {
  QCOW2_FILES_OFF = 0,    /* none: an image that names one is refused */
  QCOW2_FILES_SAME_DIR,   /* those in its own directory, no symbolic links */
  QCOW2_FILES_ANY,        /* every file that this process may open */
  QCOW2_FILES_IGNORE,     /* open none; reading from them is -EIO */
};
/* Parses "off", "same-dir" or "any"; -EINVAL for anything else. */
int qcow2_host_files_parse (const char *s, enum qcow2_host_files *files)
  MUST_CHECK;

struct qcow2_open_params {
  const char *path;       /* for relative backing names; may be NULL */
  bool writable;
  bool allow_recovery;    /* open it even with bit 48: the caller recovers */
  enum qcow2_host_files host_files;
  size_t cache_bytes;     /* budget of the table cache */
  /* Chooses the budget in place of cache_bytes, once geometry and disks are known; may
   * be NULL. */
  size_t (*choose_cache) (const struct qcow2_image *img);
  const struct log_sink *log;
};

/* Opens the image in IO, which stays the caller's.  Each unsupported feature
 * is refused by name (FAULT_UNSUPPORTED); a header, snapshot table or L1 that
 * cannot be right is FAULT_CORRUPT.  Writes nothing. */
int qcow2_open (struct io_store *io, const struct qcow2_open_params *params,
                struct qcow2_image **out, struct fault *f) MUST_CHECK;

/* Frees the image's memory; writes nothing.  NULL is allowed. */
void qcow2_close (struct qcow2_image *img);

const struct qcow2_geometry *qcow2_geometry (const struct qcow2_image *img);
struct io_store *qcow2_io (struct qcow2_image *img);
struct lock *qcow2_lock (struct qcow2_image *img);
/* Returns the store that holds guest data: the image, or its external data
 * file. */
struct io_store *qcow2_data_io (struct qcow2_image *img);

/* Returns the payload of the store's header extension, or NULL.  An extension
 * of any other size than QCOW2_STORE_EXTENSION_SIZE counts as absent. */
const uint8_t *qcow2_store_extension (const struct qcow2_image *img);

/* The id and name of an anchor: of new ones, and of those that older versions
 * made. */
#define QCOW2_ANCHOR_NAME "do-not-apply-dedup-anchor"
#define QCOW2_OLD_ANCHOR_NAME "dedup"

/* Returns whether the image has an anchor snapshot. */
bool qcow2_has_anchor (const struct qcow2_image *img);

/* Returns whether the anchor was applied as a snapshot, so that the active disk
 * maps what the anchor maps (docs/on-disk.md section 2.1).  Never true while
 * bit 48 is set. */
bool qcow2_anchor_was_applied (const struct qcow2_image *img);

/* Reads all tables of the anchor.  FAULT_CORRUPT: one of them is not an anchor
 * table. */
int qcow2_anchor_load_all (struct qcow2_image *img, struct fault *f)
  MUST_CHECK;

struct qcow2_snapshot {
  const char *id, *name;       /* NUL-terminated copies */
  uint64_t l1_off;
  uint32_t l1_entries;
  uint64_t disk_size;
  uint64_t vm_state_size;
  uint32_t date_sec, date_nsec;  /* when it was made, since 1970 */
  bool is_anchor;
  bool named_anchor;           /* has its id and name, is_anchor or not */
  bool dead;                   /* an unused slot: no such root any more */
  /* Of a disk of this program (docs/on-disk.md section 11), else 0: */
  bool is_disk;
  uint32_t disk_flags;         /* QCOW2_DISK_* */
  uint8_t uuid[16];
  uint8_t origin[16];          /* the uuid of the disk that it is a clone of;
                                * 0: of none */
  uint64_t created;            /* seconds since 1970 */
  uint8_t compress;            /* its new data: QCOW2_COMPRESS_*; other values are kept,
                                * and count as AS_IMAGE */
};
#define QCOW2_MAX_SLOTS 65536u /* of the snapshot table */
#define QCOW2_DISK_WRITABLE 1u /* else it is a snapshot of a disk */
#define QCOW2_DISK_DOOMED   2u /* it was deleted, and its space is being freed */
#define QCOW2_DISK_KNOWN    3u
#define QCOW2_COMPRESS_AS_IMAGE 0u     /* as that of the active disk */
#define QCOW2_COMPRESS_OFF      1u
#define QCOW2_COMPRESS_ON       2u
/* Returns the number of snapshots, and the snapshots themselves in *OUT. */
size_t qcow2_snapshots (const struct qcow2_image *img,
                        const struct qcow2_snapshot **out);

/* --- Roots ------------------------------------------------------------ */

/* A root is the active disk, or a snapshot or disk of the snapshot table, whose
 * number is its slot + 1.  A slot keeps its number while the image is open. */

/* Returns whether records name places of the file, not roots: the image has
 * disks, or had one in this session. */
bool qcow2_has_disks (const struct qcow2_image *img);
/* Makes qcow2_has_disks true from now on.  Before the first disk is made, a
 * checkpoint must be complete that began after this call. */
void qcow2_begin_disks_locked (struct qcow2_image *img);
/* Returns a number above that of each root; some below it may be unused. */
unsigned qcow2_nr_roots_locked (struct qcow2_image *img);
/* Returns the largest size that a disk can have, in bytes: what the L1 table of
 * the active disk has room for, so that stock programs can copy each disk
 * whole. */
uint64_t qcow2_max_disk_size (const struct qcow2_image *img);
/* Returns the size of a root in bytes; 0 if there is no such root. */
uint64_t qcow2_root_size_locked (struct qcow2_image *img, unsigned root);
/* Returns the size in bytes of a root whose data may be moved; 0: there is none, it is the
 * anchor or being deleted, or the image is not written to. */
uint64_t qcow2_movable_size_locked (struct qcow2_image *img, unsigned root);
/* Returns whether a root can be written to: the active disk of an image opened
 * for writing, or a writable disk that is not being deleted, if there is a
 * log. */
bool qcow2_root_writable_locked (struct qcow2_image *img, unsigned root);

/* Returns what the entry of a root says of new data in it: QCOW2_COMPRESS_*. */
unsigned qcow2_root_compress_locked (struct qcow2_image *img, unsigned root);
/* Returns how many disks that can be written to say QCOW2_COMPRESS_ON. */
size_t qcow2_nr_compress_on_locked (struct qcow2_image *img);

/* Tell when a checkpoint begins and when it is complete.  In an image with disks
 * a replay copies tables again, so their bytes are kept until a checkpoint that
 * began later is complete.  The first function is called at the begin, in the
 * hold of the lock that fixes the checkpoint's number, and returns a token; the
 * second one with that token, once the checkpoint is durable. */
uint64_t qcow2_tables_mark_locked (struct qcow2_image *img);
void qcow2_tables_settled_locked (struct qcow2_image *img, uint64_t token);
/* Returns how many clusters of freed tables are kept for that reason. */
uint64_t qcow2_tables_kept_locked (struct qcow2_image *img);

/* --- Create ---------------------------------------------------------- */

struct qcow2_create_params {
  uint64_t virtual_size;
  unsigned cluster_bits;      /* 9 to 21 */
  unsigned refcount_order;    /* 0 to 6, usually 4; 5 for a pool */
  unsigned compression_type;  /* 0 zlib, 1 zstd, which QEMU knows since 5.1 */
  uint64_t max_disk_size;     /* 0, or that of a pool: the active L1 table has
                               * room for so many bytes */
};

/* Writes an empty version 3 image, as qemu-img create would, over the contents
 * of IO, and syncs it.  FAULT_USAGE for sizes that the format cannot hold. */
int qcow2_create (struct io_store *io, const struct qcow2_create_params *p,
                  struct fault *f) MUST_CHECK;

/* Returns 1 if IO holds an image that qcow2_create began to write and did not
 * finish, else 0; -errno. */
int qcow2_is_unfinished (struct io_store *io) MUST_CHECK;
/* Makes IO an unfinished image, whatever it holds, and syncs.  -errno. */
int qcow2_mark_unfinished (struct io_store *io) MUST_CHECK;

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

/* Describes [guest_off, guest_off + len) in at most MAX extents, merged where
 * the kind is the same and host offsets are contiguous.  Returns their number
 * (>= 1 for len > 0); they cover a prefix of the range.  The range must lie
 * inside the disk. */
int qcow2_map (struct qcow2_image *img, unsigned root, uint64_t guest_off,
               uint64_t len, struct qcow2_extent *ext, size_t max) MUST_CHECK;

/* Reads guest bytes, through compressed clusters and the backing chain.  Runs
 * of contiguous host clusters are read side by side.  The caller keeps the
 * range from being rewritten meanwhile (server/range-lock.h). */
int qcow2_read (struct qcow2_image *img, unsigned root, void *buf,
                uint64_t guest_off, size_t len) MUST_CHECK;

/* Whoever relies on an L2 entry, without a hold, after he has released the lock begins as
 * a reader before he looks at it, and ends when he has read the bytes.  Until then they are
 * what they were, also if the entry is changed in place for other roots.  (qcow2_read does
 * that by itself.)  The result of the first is for the second.  Neither waits. */
unsigned qcow2_reader_begin (struct qcow2_image *img) MUST_CHECK;
void qcow2_reader_end (struct qcow2_image *img, unsigned reader);
/* Notes that entries were changed in place. */
void qcow2_note_moved_locked (struct qcow2_image *img);
/* Returns when nobody relies on entries any more that were changed in place before.
 * Returns whether there were any in this session.  Without locks, and not by a
 * reader. */
bool qcow2_readers_settle (struct qcow2_image *img);

/* Begins to read what a later qcow2_read of the range will need: its tables,
 * for which this call waits, and the image's own clusters, for which it does
 * not.  It is advice: it changes nothing, needs no lock on the range and cannot
 * fail.  AROUND is as for io_will_need.  Returns whether something was not in
 * memory. */
bool qcow2_will_need (struct qcow2_image *img, unsigned root,
                      uint64_t guest_off, uint64_t len, bool around);

/* Finds out what the backing chain holds for an extent that is unallocated in
 * this image.  *LEN is cut to a run of one kind, and *KIND is QCOW2_ZERO, also
 * past the backing file's end, QCOW2_DATA, or QCOW2_UNALLOCATED where there is
 * no backing file. */
int qcow2_backing_status (struct qcow2_image *img, uint64_t guest_off,
                          uint64_t *len, enum qcow2_kind *kind) MUST_CHECK;

/* --- Compressed clusters ------------------------------------------------ */

/* Sets *FIRST and *COUNT to the host clusters that the L2 entry ENTRY refers to:
 * one; up to three if it is compressed; or none. */
void qcow2_entry_clusters (const struct qcow2_image *img, uint64_t entry,
                           uint64_t *first, uint64_t *count);

/* Finds the bytes of a compressed entry: offset in the file, and length. */
void qcow2_compressed_extent (const struct qcow2_image *img, uint64_t entry,
                              uint64_t *host_off, uint64_t *len);

/* Reads the bytes of a compressed entry and expands them into OUT (cluster_size
 * bytes).  The caller keeps the entry's clusters from being freed meanwhile.  -EIO:
 * they cannot be read, or do not expand to one cluster. */
int qcow2_compressed_read (struct qcow2_image *img, uint64_t entry,
                           uint8_t *out) MUST_CHECK;

struct qcow2_compressed_part {
  uint64_t entry;
  uint8_t *out;                /* one cluster */
  int result;
};
/* Does so for NR entries, each of which gets a result, also where another one fails.
 * Returns the first that is not 0, or 0. */
int qcow2_compressed_read_many (struct qcow2_image *img,
                                struct qcow2_compressed_part *v,
                                size_t nr) MUST_CHECK;

/* Expands LEN bytes IN, as they were read, to OUT.  -EIO as above; -ENOMEM. */
int qcow2_compressed_expand (struct qcow2_image *img, const uint8_t *in,
                             size_t len, uint8_t *out) MUST_CHECK;

/* Reads LEN bytes of that cluster from byte WITHIN on, and keeps it expanded for a while
 * (expanded.c).  Errors and rules as above. */
int qcow2_expanded_read (struct qcow2_image *img, uint64_t entry, uint8_t *buf,
                         size_t within, size_t len) MUST_CHECK;
/* Forgets what is kept of COUNT clusters, which get other bytes. */
void qcow2_expanded_forget (struct qcow2_image *img, uint64_t host_idx,
                            uint64_t count);

struct qcow2_codec;

/* Makes an encoder for the image's compression type, for one thread at a time.
 * -ENOMEM.  The second frees it; NULL is allowed. */
int qcow2_codec_new (const struct qcow2_image *img, struct qcow2_codec **out)
  MUST_CHECK;
void qcow2_codec_free (struct qcow2_codec *c);
/* Compresses LEN bytes IN, one cluster, to at most MAX bytes OUT.  Returns how many;
 * 0: they do not fit. */
size_t qcow2_codec_compress (struct qcow2_codec *c, const uint8_t *in, size_t len,
                             uint8_t *out, size_t max);
/* Returns the L2 entry for LEN compressed bytes, at least one, at HOST_OFF; 0 if an
 * entry has no room for that. */
uint64_t qcow2_compressed_entry (const struct qcow2_image *img, uint64_t host_off,
                                 uint64_t len);

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
void qcow2_txn_end_locked (struct qcow2_txn *txn);
void qcow2_txn_end (struct qcow2_txn *txn);

/* Looks at tables, and changes them once all that it needs is in memory.  It
 * calls _locked functions, with the lock held, and returns -EAGAIN if one of
 * them did.  It is called again then, so until it succeeds it changes nothing
 * but OPAQUE, where it may note its progress. */
typedef int qcow2_step (struct qcow2_txn *txn, void *opaque);

/* Takes the lock and calls STEP_LOCKED; as long as that returns -EAGAIN, loads
 * the missing table without the lock, or waits for another thread that is
 * loading it, and calls it again.  Returns, without the lock, the last result
 * of the step (which is not -EAGAIN), or the error of loading: -EIO, -ENOMEM,
 * or -ENOSPC where space on the host for a new table was missing.  The step's
 * last call and its result belong to one hold of the lock. */
int qcow2_txn_retry (struct qcow2_txn *txn, qcow2_step *step_locked,
                     void *opaque) MUST_CHECK;
/* Does the same, but is called and returns with the lock, which is released
 * while a table is loaded. */
int qcow2_txn_retry_locked (struct qcow2_txn *txn, qcow2_step *step_locked,
                            void *opaque) MUST_CHECK;
/* Runs one step in a transaction of its own: begin, retry, end. */
int qcow2_txn_run (struct qcow2_image *img, qcow2_step *step_locked,
                   void *opaque) MUST_CHECK;
/* Loads the table that the last -EAGAIN asked for, once; called without the
 * lock, by callers whose loop does more than that. */
int qcow2_txn_load (struct qcow2_txn *txn) MUST_CHECK;

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
  QCOW2_CHANGE_ENTRY,        /* COUNT entries of one table, from byte PLACE of
                              * the file on := ENTRY; IS_L1: of an L1 table */
  QCOW2_CHANGE_TABLE,        /* the table at HOST_OFF becomes a copy of that at
                              * SOURCE_OFF, 0: zero */
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
  bool taken_over;           /* REFCOUNT: a reference of another program's data
                              * passes to the anchor; not in a record */
  uint64_t table_idx;
  uint64_t host_off;
  uint64_t source_off;
  uint64_t place;            /* ENTRY; L2 in an image with disks */
  bool is_l1;
  struct qcow2_header_fields header;
};

/* Receives each change as it is made, with the lock held.  It cannot fail: the
 * caller made room before (see dedup/journal/journal.h). */
struct qcow2_log {
  void (*append_locked) (void *opaque, const struct qcow2_change *change);
  uint64_t (*seq_locked) (void *opaque);  /* sequence number of the last
                                           * append; tags quarantine */
  void *opaque;
  /* Returns 0 if there is room for NR more records and those of the largest
   * operation; -EBUSY: it has to be made; -ENOSPC: it can't be.  May be NULL:
   * there always is room. */
  int (*room_locked) (void *opaque, size_t nr);
};
void qcow2_set_log (struct qcow2_image *img, const struct qcow2_log *log);

/* Applies one change to the tables in memory without reporting it, for replay
 * and for the caller's own records.  -EAGAIN as above; -EINVAL for a change
 * that does not fit this image (replay of a corrupt journal). */
int qcow2_apply_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
  MUST_CHECK;

/* Begin and end a replay, in which records of a journal are applied to tables
 * that a crash may have left unwritten.  In between, a table that L1, refcount
 * table or anchor L1 points to may lie past the end of the file, or hold other
 * bytes, because a later record makes it.  The end returns -EIO if an anchor
 * table was not valid and no record made it. */
void qcow2_replay_begin (struct qcow2_image *img);
int qcow2_replay_end (struct qcow2_image *img) MUST_CHECK;

/* Gets the L2 entry of a guest cluster; 0 where there is no table. */
int qcow2_get_entry_locked (struct qcow2_txn *txn, unsigned root,
                            uint64_t guest_idx, uint64_t *entry) MUST_CHECK;

/* Makes the L2 table of a guest cluster present and private (copied if a
 * snapshot shares it), and pins the entry's slice of it.  May allocate and
 * report changes.  -ENOSPC; -EBUSY: the log has no room for the records of a
 * copy; -EINVAL: this root can't be written to there. */
int qcow2_prepare_entry_locked (struct qcow2_txn *txn, unsigned root,
                                uint64_t guest_idx) MUST_CHECK;

/* Returns the byte offset in the file of the L2 entry of a guest cluster whose
 * table was prepared under the same hold of the lock. */
uint64_t qcow2_entry_place_locked (struct qcow2_txn *txn, unsigned root,
                                   uint64_t guest_idx);

/* Gets the refcount of a host cluster and whether it is anchored; 0 and false
 * where there is no table. */
int qcow2_get_refcount_locked (struct qcow2_txn *txn, uint64_t host_idx,
                               uint64_t *refcount, bool *anchored) MUST_CHECK;

/* Sets *N to how many clusters in a row from HOST_IDX on, at most COUNT, are
 * anchored with that refcount; 0 if the first one is not.  The run ends with a
 * slice of a refcount block at the latest. */
int qcow2_anchored_run_locked (struct qcow2_txn *txn, uint64_t host_idx,
                               uint64_t count, uint64_t refcount,
                               uint64_t *n) MUST_CHECK;

/* Finds those of NR clusters that are certainly not anchored.  A cluster whose
 * table is not in memory counts as possibly anchored. */
void qcow2_find_unanchored_locked (struct qcow2_image *img,
                                   const uint64_t *host_idx, size_t nr,
                                   bool *not_anchored);

/* Makes the refcount blocks and anchor tables of COUNT host clusters present
 * and pinned, so that REFCOUNT changes of them apply at once.  May allocate
 * and report changes.  -ENOSPC. */
int qcow2_prepare_host_locked (struct qcow2_txn *txn, uint64_t host_idx,
                               uint64_t count) MUST_CHECK;

/* Makes everything present that is needed to drop the reference ENTRY (an L2
 * entry's value) and those to the NR - 1 clusters behind it (NR is 1 if it is
 * compressed).  -EINVAL: the entries contradict the refcounts. */
int qcow2_prepare_drop_locked (struct qcow2_txn *txn, uint64_t entry,
                               uint64_t nr) MUST_CHECK;

/* Drops these references, after qcow2_prepare_drop_locked succeeded under the
 * same hold of the lock.  An anchored cluster left to the anchor alone is freed
 * unless held; an unanchored one with refcount above 1 passes to the anchor
 * (docs/on-disk.md section 2).  Freed clusters are put into quarantine, marked
 * TRIMMED if their space is to be given back to the host.  Reports the changes.
 * Returns -EINVAL, and changes nothing, if a refcount is 0 already. */
int qcow2_drop_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t nr,
                       bool trimmed) MUST_CHECK;

/* Paths that are counted of a table that is changed in place, at the most: a sixteenth of
 * the smallest limit for sharing, so that data which is moved finds a cluster. */
#define QCOW2_MOST_COUNTED 2048u
/* Makes the L2 entry of a guest cluster ready to be changed in place for all roots that
 * have its table, to lead to the same bytes elsewhere (in-place.c): its clusters get, and
 * lose, *TIMES references.  *PLACE is that of the entry in the file; 0: ROOT has the table
 * alone, and a change of its entry may name the guest cluster.  Errors as those of
 * qcow2_prepare_entry_locked; -EXDEV: it is not to be changed, or not now. */
int qcow2_prepare_in_place_locked (struct qcow2_txn *txn, unsigned root,
                                   uint64_t guest_idx, uint64_t *place,
                                   uint64_t *times) MUST_CHECK;
/* As qcow2_prepare_drop_locked and qcow2_drop_locked, TIMES references to what an entry
 * leads to.  The first: -EXDEV: there are not as many. */
int qcow2_prepare_drop_times_locked (struct qcow2_txn *txn, uint64_t entry,
                                     uint64_t times) MUST_CHECK;
int qcow2_drop_times_locked (struct qcow2_txn *txn, uint64_t entry, uint64_t times,
                             bool trimmed) MUST_CHECK;
enum qcow2_changeable {
  QCOW2_CHANGE_NEVER,  /* also: there is no table, or it can't be read */
  QCOW2_CHANGE_LATER,  /* when a checkpoint is complete */
  QCOW2_CHANGE_NOW,
};
/* Tells when qcow2_prepare_in_place_locked may succeed for the entries of a guest cluster's
 * table, which is in cluster *HOST_IDX. */
enum qcow2_changeable qcow2_table_changeable (struct qcow2_image *img, unsigned root,
                                              uint64_t guest_idx, uint64_t *host_idx);

/* Keeps a cluster that may be linked from being freed while its bytes are
 * compared.  -ENOENT: not anchored, or no guest refers to it and no other hold
 * keeps it; -ERANGE: refcount at or above LIMIT. */
int qcow2_hold_locked (struct qcow2_txn *txn, uint64_t host_idx,
                       uint64_t limit) MUST_CHECK;
/* Allocates memory for NR more holds, so that they cannot fail with -ENOMEM. */
int qcow2_holds_reserve_locked (struct qcow2_image *img, size_t nr)
  MUST_CHECK;
/* Releases a hold, and frees the cluster if its last guest reference was
 * dropped meanwhile.  Needs no load, because TXN must be the one that took the
 * hold. */
void qcow2_unhold_locked (struct qcow2_txn *txn, uint64_t host_idx);

/* Do the same for all clusters that the L2 entry ENTRY refers to; either all of them
 * become held or none. */
int qcow2_hold_entry_locked (struct qcow2_txn *txn, uint64_t entry,
                             uint64_t limit) MUST_CHECK;
void qcow2_unhold_entry_locked (struct qcow2_txn *txn, uint64_t entry);

bool qcow2_is_held_locked (const struct qcow2_image *img, uint64_t host_idx);

/* --- Lent tables --------------------------------------------------------- */

/* Do a step of the work that clones and deletions leave (debt-steps.c), on the table
 * that entry L1_IDX of ROOT's L1 table names.  A step is one group of the log:
 * its caller makes room for qcow2_step_records and ends the group.  Return 1; 0:
 * there was nothing to do; -EAGAIN, -ENOMEM, -ENOSPC; -EIO: the table and
 * the refcounts contradict each other, which was logged, and will be so again.
 * After an error, nothing is changed but that tables may have been made for the
 * anchor. */
/* Pays the debt of the table: counts all paths to it in the refcounts of what
 * it names. */
int qcow2_pay_table_locked (struct qcow2_txn *txn, unsigned root,
                            uint64_t l1_idx) MUST_CHECK;
/* Sets the L1 entry of a root that is being deleted to 0, and drops what only
 * this path to the table kept. */
int qcow2_drop_path_locked (struct qcow2_txn *txn, unsigned root,
                            uint64_t l1_idx) MUST_CHECK;
/* Sets *HOST_IDX to the cluster of the table and *DEBT to its debt, and returns 1; 0:
 * there is no table.  Errors as above, but -EIO is not logged. */
int qcow2_path_debt_locked (struct qcow2_txn *txn, unsigned root, uint64_t l1_idx,
                            uint64_t *host_idx, uint64_t *debt) MUST_CHECK;
/* Returns how many records a step makes at most. */
uint64_t qcow2_step_records (const struct qcow2_image *img);

/* --- Allocation --------------------------------------------------------- */

struct qcow2_run {
  uint64_t host_idx;
  uint64_t count;
  bool trimmed;
  bool emptied;    /* when it is released: its space was given back */
};

/* Reserves up to WANTED contiguous free clusters (at least 1), in memory only:
 * nothing is reported, and a crash forgets the reservation.  The caller either
 * uses them, by a REFCOUNT change, or returns them by qcow2_unreserve_locked.
 * -ENOSPC: no free cluster is known and the file may not grow. */
int qcow2_reserve_locked (struct qcow2_image *img, uint64_t wanted,
                          struct qcow2_run *run) MUST_CHECK;
void qcow2_unreserve_locked (struct qcow2_image *img,
                             const struct qcow2_run *run);
/* Returns a run that the host had no space for: other clusters are tried before
 * it is reserved again. */
void qcow2_unreserve_unbacked_locked (struct qcow2_image *img,
                                      const struct qcow2_run *run);

/* Returns whether the host ever failed to read a table.  If not, an -EIO was
 * caused by the image's contents. */
bool qcow2_read_failed_locked (struct qcow2_image *img);

/* Makes the next reservation skip clusters, the more the larger FAILED is, the
 * number of clusters that the host had no space for one by one: most likely it
 * has none for their neighbours either. */
void qcow2_skip_locked (struct qcow2_image *img, unsigned failed);

/* Reserves this cluster if it is known to be free. */
bool qcow2_reserve_one_locked (struct qcow2_image *img, uint64_t host_idx);
/* Gets real space on the host for a reserved run; releases the lock meanwhile.
 * -ENOSPC. */
int qcow2_back_locked (struct qcow2_image *img, const struct qcow2_run *run)
  MUST_CHECK;

/* Reserves as qcow2_reserve_locked, but exactly COUNT clusters in one run. */
int qcow2_reserve_area_locked (struct qcow2_image *img, uint64_t count,
                               uint64_t *host_idx) MUST_CHECK;

/* Reserves COUNT clusters in one run for data that is moved, and may as well stay
 * where it is: looks at some of the free clusters, moves the frontier to END at
 * the most, and leaves at least KEEP clusters free.  -ENOSPC. */
int qcow2_reserve_run_locked (struct qcow2_image *img, uint64_t count,
                              uint64_t end, uint64_t keep, uint64_t *host_idx)
  MUST_CHECK;

/* Puts clusters that were freed already (refcount 0) into quarantine, with the
 * sequence number of the record that freed them. */
void qcow2_quarantine_locked (struct qcow2_image *img,
                              const struct qcow2_run *run, uint64_t seq);

/* Takes clusters that were freed by records up to SEQ out of quarantine, into
 * at most MAX of RUNS (a few thousand, as the lock is held meanwhile); returns
 * how many runs.  They can't be allocated until qcow2_release_locked. */
size_t qcow2_quarantine_take_locked (struct qcow2_image *img, uint64_t seq,
                                     struct qcow2_run *runs, size_t max);
/* Sorts RUNS by host index and joins neighbours, but not trimmed with untrimmed
 * ones; returns how many are left.  Needs no lock. */
size_t qcow2_coalesce (struct qcow2_run *runs, size_t nr);
void qcow2_release_locked (struct qcow2_image *img,
                           const struct qcow2_run *runs, size_t nr);
uint64_t qcow2_quarantined_locked (struct qcow2_image *img);  /* clusters */
/* Returns whether a table was moved and the header in the file lacks its new place: then
 * nothing leaves quarantine until a writeback has written the header. */
bool qcow2_quarantine_shut_locked (struct qcow2_image *img);
/* Returns whether clusters were freed that could not be quarantined because
 * memory was short.  They are not used until the next open. */
bool qcow2_frees_lost_locked (struct qcow2_image *img);

/* Enters header and tables into the guard (guard.c), for an image opened for
 * writing, once its tables are as they should be, and again after they moved.
 * FAULT_CORRUPT, with nothing changed, if two of them overlap, or one lies past
 * the end or is misaligned.  From then on new tables enter themselves. */
int qcow2_guard_begin (struct qcow2_image *img, struct fault *f) MUST_CHECK;
/* Enters clusters of a store into the guard, or removes them. */
void qcow2_guard_put_locked (struct qcow2_image *img, uint64_t host_idx,
                             uint64_t count, bool guarded);
/* Returns whether any of these clusters is guarded: no data may be written
 * there. */
bool qcow2_guarded_locked (struct qcow2_image *img, uint64_t host_idx,
                           uint64_t count) MUST_CHECK;
/* Returns whether header, disk, store or snapshots have any of these clusters:
 * qcow2_guarded_locked without persistent bitmaps. */
bool qcow2_guard_has_tables_locked (struct qcow2_image *img,
                                    uint64_t host_idx, uint64_t count)
  MUST_CHECK;
/* Returns the first guarded cluster from HOST_IDX on; UINT64_MAX: none. */
uint64_t qcow2_next_guarded_locked (struct qcow2_image *img,
                                    uint64_t host_idx);

/* Return the number of stale clusters, free ones for which the host may hold
 * data (stale.c): that of now, and the smallest since the last call of
 * qcow2_stale_low_locked, which were not needed meanwhile. */
uint64_t qcow2_stale_locked (struct qcow2_image *img);
uint64_t qcow2_stale_low_locked (struct qcow2_image *img);
/* Takes up to CLUSTERS stale clusters at or after *FROM, in at most MAX runs;
 * returns how many runs, and advances *FROM (0 again at the end).  They can't
 * be allocated until qcow2_put_emptied_locked returns them, as free and empty
 * ones. */
size_t qcow2_take_stale_locked (struct qcow2_image *img, uint64_t *from,
                                uint64_t clusters, struct qcow2_run *runs,
                                size_t max);
void qcow2_put_emptied_locked (struct qcow2_image *img,
                               const struct qcow2_run *runs, size_t nr);
/* Does one step of verifying what the scan found.  A cluster that was free at
 * open becomes stale if the host holds data there, and no entry of any L2 table
 * names it after all.  A candidate for garbage becomes garbage if no entry names
 * it.  A step takes some milliseconds of reading; they begin once the scan is
 * done, and read no table if there is nothing to verify.  One thread at a time.
 * 1 while there is more, 0 at the end, -errno. */
int qcow2_verify_step (struct qcow2_image *img) MUST_CHECK;
bool qcow2_verify_due_locked (struct qcow2_image *img);
/* Returns whether there are candidates for garbage that are not verified yet. */
bool qcow2_garbage_waits_locked (struct qcow2_image *img);
/* Finds a cluster that is garbage: anchored, with refcount 1, and named by no
 * entry.  Areas of the store that are not guarded may be found, too.  Returns
 * false if there is none.  It is found again until its refcount changes, or
 * qcow2_garbage_clear_locked leaves it to the next session. */
bool qcow2_garbage_locked (struct qcow2_image *img, uint64_t *host_idx);
void qcow2_garbage_clear_locked (struct qcow2_image *img, uint64_t host_idx);
/* Returns how many clusters are in use: neither known to be free nor in
 * quarantine. */
uint64_t qcow2_in_use_locked (struct qcow2_image *img);
/* Returns how many clusters just before the frontier are free and no
 * suspects. */
uint64_t qcow2_free_tail_locked (struct qcow2_image *img);
/* Frees the clusters of the table reserve: those set aside for new tables. */
void qcow2_table_reserve_give_back_locked (struct qcow2_image *img);

/* Returns the first cluster past everything allocated or reserved. */
uint64_t qcow2_frontier_locked (struct qcow2_image *img);

/* Looks for free clusters, and candidates for garbage, in the part of the file
 * that was there at open, a slice of a refcount block a call.  Returns 1 while
 * there is more, 0 at the end, -errno. */
int qcow2_scan_step (struct qcow2_image *img) MUST_CHECK;
bool qcow2_scan_done_locked (struct qcow2_image *img);

/* Return the bytes of tables that are changed in memory, and of all memory for
 * tables and for bits of clusters. */
uint64_t qcow2_dirty_bytes_locked (struct qcow2_image *img);
uint64_t qcow2_memory_bytes_locked (struct qcow2_image *img);

/* --- Writeback ------------------------------------------------------------ */

struct qcow2_writeback;

/* Copies every changed table.  They count as clean from here on, but can't be
 * evicted until qcow2_writeback_end_locked.  With a log it may release the
 * lock meanwhile: the copies hold all changes from before the call, and maybe
 * some that were made during it. */
int qcow2_writeback_begin_locked (struct qcow2_image *img,
                                  struct qcow2_writeback **wb) MUST_CHECK;
/* Writes the copies in place, sorted by host offset, neighbours together.
 * Grows the file to the frontier.  Does not sync. */
int qcow2_writeback_write (struct qcow2_writeback *wb) MUST_CHECK;
/* Ends a writeback and frees WB.  If OK is false, the tables count as changed
 * again. */
void qcow2_writeback_end_locked (struct qcow2_writeback *wb, bool ok);

/* Sets or clears incompatible bit 48 in the file, then syncs.  Before setting
 * it, does what qcow2_begin_session does. */
int qcow2_set_recovery_bit (struct qcow2_image *img, bool on) MUST_CHECK;

/* Gets real space for tables that lie in holes of the file, so that writing
 * them in place needs none.  For the first 16384 tables, at open, before there
 * are other threads.  -ENOSPC: only some of them got space. */
int qcow2_back_tables (struct qcow2_image *img) MUST_CHECK;

/* --- Without a log --------------------------------------------------------- */

/* Images that can't hold a store are changed without one, in QEMU's order:
 * refcounts grow first, then entries change, then refcounts shrink.  So dropped
 * references are remembered, and subtracted once the tables without them are
 * durable; a crash leaks clusters, and does no other damage. */

/* Switches IMG, open for writing, to this mode.  An anchor is an ordinary
 * snapshot from here on. */
void qcow2_unlogged_begin (struct qcow2_image *img);
/* Makes changes from before the call durable, and frees the clusters that were
 * dropped.  One call at a time, beside any number of writers. */
int qcow2_unlogged_flush (struct qcow2_image *img) MUST_CHECK;
/* Prepares the file for the first change of a session: marks bitmaps as in use,
 * clears autoclear features that this program does not keep up, and syncs. */
int qcow2_begin_session (struct qcow2_image *img) MUST_CHECK;
/* Returns whether qcow2_unlogged_flush has anything to do. */
bool qcow2_unlogged_pending_locked (struct qcow2_image *img);

/* Returns how many clusters the refcount table can count. */
uint64_t qcow2_countable_clusters (const struct qcow2_image *img);

/* --- Persistent bitmaps ------------------------------------------------------ */

/* Notes a range that is about to be written, in memory.  Bitmaps are marked in
 * use in the file when bit 48 is set, or by qcow2_begin_session. */
void qcow2_bitmaps_note (struct qcow2_image *img, uint64_t guest_off,
                         uint64_t len);
/* Makes the entry of a bitmap's table at host offset ENTRY_OFF point to
 * HOST_IDX, which is reserved and written.  The callback calls
 * qcow2_bitmap_attach_locked. */
typedef int (*qcow2_attach_cb) (void *opaque, uint64_t entry_off,
                                uint64_t host_idx);
int qcow2_bitmap_attach_locked (struct qcow2_txn *txn, uint64_t entry_off,
                                uint64_t host_idx) MUST_CHECK;
/* Returns whether bitmaps were marked in use and can still be saved. */
bool qcow2_bitmaps_to_save (const struct qcow2_image *img);
/* Checks that the clusters of the bitmap directory hold nothing else, once
 * refcounts are right: the directory is written in place.  If not, the bitmaps
 * can't be right.  -ENOMEM, -EIO: refcounts could not be read. */
int qcow2_bitmaps_check_place (struct qcow2_image *img) MUST_CHECK;
/* Returns whether there are bitmaps that can't be right.  They are dropped with
 * the first change, or by qcow2_rebuild_refcounts, which frees their
 * clusters. */
bool qcow2_bitmaps_given_up (const struct qcow2_image *img);
/* Adds the noted ranges to the bitmaps in the file; does not sync.  A bitmap
 * that can't be saved stays marked in use, with a line in the log. */
int qcow2_bitmaps_save (struct qcow2_image *img, qcow2_attach_cb attach,
                        void *opaque) MUST_CHECK;
/* Marks the saved bitmaps as not in use, and syncs.  To be called when they are
 * durable and nothing changes any more. */
int qcow2_bitmaps_end (struct qcow2_image *img) MUST_CHECK;

/* --- Growth and the store's place ------------------------------------------ */

/* A plan lays out new areas behind the end of the file, together with the
 * tables that they and the growth of the file need (docs/on-disk.md section
 * 6). */
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

/* Returns the disk size that belongs into the header: that of the active disk,
 * or of the longest disk if that is longer and the active L1 table has room for
 * it.  Stock QEMU cuts a disk that it reads off to the size in the header.
 * Called with the lock once there are other threads. */
uint64_t qcow2_size_for_header (const struct qcow2_image *img);

/* Returns how many host clusters this image may grow to: the refcount table and
 * the anchor's L1 are made for that many. */
uint64_t qcow2_growth_bound (struct qcow2_image *img);

/* Plans NR_AREAS areas of AREA_SIZE[i] bytes each (multiples of the cluster
 * size), and a refcount table and anchor L1 for MAX_CLUSTERS host clusters
 * where those are too small or absent.  Neither writes nor changes anything. */
int qcow2_plan_new (struct qcow2_image *img, const uint64_t *area_size,
                    size_t nr_areas, uint64_t max_clusters,
                    struct qcow2_plan **plan, struct fault *f) MUST_CHECK;
/* Writes the tables that the plan's HEADER change points to.  Does not sync. */
int qcow2_plan_write (struct qcow2_image *img, struct qcow2_plan *plan)
  MUST_CHECK;
/* Checks that the first cluster has room for what qcow2_plan_commit_header
 * writes; else -ENOSPC.  To be called before anything is written. */
int qcow2_plan_check_header (struct qcow2_image *img,
                             struct qcow2_plan *plan, const uint8_t *ext,
                             struct fault *f) MUST_CHECK;
/* Writes the plan's header fields, the store's extension EXT (32 bytes), bit 48
 * and its name, in one write of the first cluster, and syncs. */
int qcow2_plan_commit_header (struct qcow2_image *img,
                              struct qcow2_plan *plan, const uint8_t *ext,
                              struct fault *f) MUST_CHECK;
void qcow2_plan_free (struct qcow2_plan *plan);

/* --- Changes of the set of roots ----------------------------------------------- */

/* A switch makes, changes and ends disks: it replaces the snapshot table by
 * another one.  It is made in these steps, one switch at a time:
 *
 *   qcow2_switch_new; qcow2_switch_write; the caller syncs; then, under one hold
 *   of the lock, qcow2_switch_prepare_locked (which is called again after it
 *   returned -EAGAIN, or the lock was released), room for the records in the
 *   journal, qcow2_switch_commit_locked; qcow2_switch_free. */

enum qcow2_l1_from {           /* what L1 table a root has afterwards */
  QCOW2_L1_KEEP,               /* its present one */
  QCOW2_L1_EMPTY,              /* a new one without tables */
  QCOW2_L1_LEND,               /* a copy of that of root `source`, which lends
                                * its tables */
  QCOW2_L1_GROW,               /* its own entries, with room for `size` */
  QCOW2_L1_TAKE,               /* the present one of root `source`, which gets
                                * another one in the same switch */
};

struct qcow2_root_edit {
  unsigned root;               /* a disk (slot + 1), or 0: a new one */
  bool remove;                 /* the disk ends, and its L1 table is freed; no
                                * entry of it names a table any more */
  const char *name;            /* NULL: keeps it.  The caller keeps it until
                                * qcow2_switch_new returns */
  uint64_t size;               /* bytes */
  uint32_t flags;              /* QCOW2_DISK_* */
  uint8_t uuid[16], origin[16];
  uint64_t created;            /* seconds since 1970 */
  uint8_t compress;            /* QCOW2_COMPRESS_* */
  enum qcow2_l1_from l1;
  unsigned source;             /* root, may be the active disk if it lends */
};

struct qcow2_switch;

/* Builds a switch of NR edits, which refer to the roots as they are before it.
 * Reserves clusters and copies L1 tables.  FAULT_USAGE: -EINVAL for edits that
 * are not possible, -EMLINK for too many disks, -EROFS; -ENOSPC, -ENOMEM. */
int qcow2_switch_new (struct qcow2_image *img,
                      const struct qcow2_root_edit *edits, size_t nr,
                      struct qcow2_switch **sw, struct fault *f) MUST_CHECK;
/* Writes the new tables to their places; does not sync. */
int qcow2_switch_write (struct qcow2_switch *sw) MUST_CHECK;
/* Pins everything that the commit needs.  May make refcount blocks, and report
 * that.  -EAGAIN, -ENOSPC; -EMLINK: a table would have too many paths;
 * -ENOTSUP: refcounts do not have 32 bits and tables are to be lent; -EBUSY:
 * a root that ends has tables; -EIO: an L1 table names what is no table. */
int qcow2_switch_prepare_locked (struct qcow2_txn *txn,
                                 struct qcow2_switch *sw) MUST_CHECK;
/* Returns how many records the commit makes at most.  Before the first prepare
 * that succeeded this is an estimate: entries that change later add to it. */
uint64_t qcow2_switch_records_locked (struct qcow2_txn *txn,
                                      struct qcow2_switch *sw);
/* Makes and reports the change, in the hold of the lock in which the prepare
 * succeeded; it cannot fail.  *NEW_ROOT, unless NULL, becomes the root of the
 * first edit that makes one. */
void qcow2_switch_commit_locked (struct qcow2_txn *txn,
                                 struct qcow2_switch *sw, unsigned *new_root);
/* Frees SW, and the clusters that it reserved unless it was committed.  NULL is
 * allowed. */
void qcow2_switch_free (struct qcow2_switch *sw);

/* --- Areas ------------------------------------------------------------------- */

struct qcow2_area {
  uint64_t host_off, size;   /* bytes, whole clusters */
};

/* Begins to read the tables that tell of the refcounts of NR areas, in the order of the
 * file, and whether they are anchored; they will be needed soon.  Stops when they are MOST
 * parts of the file or a few more.  It is advice, for an image that is being opened by one
 * thread.  Returns how many areas it has come to. */
size_t qcow2_announce_tables (struct qcow2_image *img, const struct qcow2_area *areas,
                              size_t nr, size_t most);

#endif
