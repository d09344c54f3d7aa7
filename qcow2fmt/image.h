/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the format room: the open image and what its files offer each
 * other.  Everybody else includes qcow2.h only. */
#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include <pthread.h>

#include "qcow2-limits.h"
#include "mutation.h"
#include "qcow2.h"
#include "wire.h"

/* --- flat.c: a table that is contiguous in the file and whole in RAM:
 * L1, anchor L1, refcount table ------------------------------------- */
struct qcow2_flat {
  uint64_t host_off;
  uint64_t nr;                 /* entries */
  uint64_t *v;                 /* owned; host byte order */
  uint8_t *dirty;              /* one byte per 512 entries (4096 bytes) */
  uint64_t nr_dirty;           /* how many of those are set */
};

/* Read NR entries at HOST_OFF. */
int qcow2_flat_load (struct io_store *io, struct qcow2_flat *t,
                     uint64_t host_off, uint64_t nr) MUST_CHECK;
/* The same entries at another place and of another size, into OUT: new ones 0,
 * all dirty.  T stays. */
int qcow2_flat_copy (const struct qcow2_flat *t, uint64_t host_off,
                     uint64_t nr, struct qcow2_flat *out) MUST_CHECK;
void qcow2_flat_set (struct qcow2_flat *t, uint64_t i, uint64_t value);
void qcow2_flat_free (struct qcow2_flat *t);

#define QCOW2_FLAT_PAGE_ENTRIES UINT64_C (512)
#define QCOW2_FLAT_PAGE_BYTES (QCOW2_FLAT_PAGE_ENTRIES * 8)
uint64_t qcow2_flat_pages (const struct qcow2_flat *t);
void qcow2_flat_dirty_page (struct qcow2_flat *t, uint64_t page);
/* Encode a page for the file; it counts as clean then.  Returns its length
 * in bytes: the last page may be short. */
size_t qcow2_flat_take_page (struct qcow2_flat *t, uint64_t page,
                             uint8_t *out);

/* --- snapshot.c ---------------------------------------------------------- */
struct qcow2_snapshot_table {
  struct qcow2_snapshot *v;    /* owned, with its strings */
  size_t nr;
  int anchor;                  /* index of the anchor, -1: none */
  uint8_t *raw;                /* the table as on disk */
  size_t raw_len;
  size_t *raw_off;             /* of each entry in raw, nr + 1 of them */
};

int qcow2_snapshot_load (struct qcow2_image *img, struct fault *f) MUST_CHECK;
void qcow2_snapshot_free (struct qcow2_snapshot_table *t);
/* Encode the table with the anchor's L1 at L1_OFF (L1_ENTRIES of them),
 * added at the end if there is none.  *BUF is the caller's. */
int qcow2_snapshot_encode (struct qcow2_image *img, uint64_t anchor_l1_off,
                           uint32_t anchor_l1_entries, uint8_t **buf,
                           size_t *len, uint32_t *nr) MUST_CHECK;
/* Write into the entry of an anchor that QEMU would apply what makes it refuse
 * (docs/on-disk.md section 2): 8 aligned bytes, in place.  No sync.  Left as it is
 * where guest data or another table is in the same cluster. */
int qcow2_anchor_deter (struct qcow2_image *img) MUST_CHECK;

/* --- cache.c: L2 tables and refcount blocks, in slices ------------------- */

/* A table is read, kept and written in slices of so many bytes (a power of
 * two), or whole where clusters are no larger: of a large table usually a few
 * entries are asked for.  Tests have smaller ones, for their clusters are. */
#ifndef QCOW2_SLICE_BYTES
#define QCOW2_SLICE_BYTES 4096u
#endif

static inline unsigned
qcow2_slice_size (const struct qcow2_geometry *g)
{
  return g->cluster_size < QCOW2_SLICE_BYTES ? (unsigned) g->cluster_size :
    QCOW2_SLICE_BYTES;
}

static inline uint64_t
qcow2_l2_slice (const struct qcow2_geometry *g)     /* entries */
{
  return qcow2_slice_size (g) / g->l2_entry_size;
}

static inline uint64_t
qcow2_refcount_slice (const struct qcow2_geometry *g)     /* refcounts */
{
  return (uint64_t) qcow2_slice_size (g) * 8 / g->refcount_bits;
}

struct qcow2_slice {           /* of a cached table */
  uint64_t host_off;           /* its own */
  uint8_t *data;               /* qcow2_slice_size bytes, as on disk; NULL
                                * while somebody reads them */
  unsigned pins;               /* transactions, and the thread that loads */
  bool loading, dirty, writing;
  bool is_refblock;            /* set when it is changed as part of one */
  bool recently_used;
  bool forgotten;              /* its cluster was freed while it was in use */
  struct qcow2_slice *next;    /* in its hash chain */
  struct qcow2_slice *dirty_prev, *dirty_next;
  size_t slot;                 /* in the clock */
};

struct qcow2_cache {
  struct qcow2_slice **chains;
  size_t nr_chains;            /* power of two */
  struct qcow2_slice **clock;
  size_t nr_slices, max_clock, hand;
  size_t budget;               /* slices; pinned or dirty ones may exceed it */
  struct qcow2_slice *dirty, *dirty_last;    /* a list of the changed ones,
                                              * the newest first */
  size_t nr_dirty;
};

int qcow2_cache_init (struct qcow2_image *img, size_t budget_bytes)
  MUST_CHECK;
void qcow2_cache_free (struct qcow2_image *img);

/* The frontier, for those who don't hold the lock. */
uint64_t qcow2_host_frontier (struct qcow2_image *img);

/* First cluster where nothing of the image can be: behind the frontier and the
 * end of the file, whichever is later. */
uint64_t qcow2_host_end (const struct qcow2_image *img);

/* First cluster where no table can be: that, but while replaying
 * what the refcount table covers. */
uint64_t qcow2_tables_end_locked (const struct qcow2_image *img);

/* The slice with byte WITHIN (below cluster_size) of the table at HOST_OFF, if
 * it is in memory and loaded, pinned in TXN (once).  Otherwise NULL and *ERR:
 * -EAGAIN with what is missing noted in TXN, -ENOMEM, or -EIO for an offset
 * where no table can be (corrupt). */
struct qcow2_slice *qcow2_cache_get_locked (struct qcow2_txn *txn,
                                            uint64_t host_off, size_t within,
                                            int *err);
/* Pin all slices of the table at HOST_OFF: 0 or as above. */
int qcow2_cache_get_whole_locked (struct qcow2_txn *txn, uint64_t host_off)
  MUST_CHECK;
/* A new table at HOST_OFF, all zero or, if SOURCE_OFF is not 0, a copy of the
 * table there, dirty, its slices pinned in TXN.  A table that is there already
 * is overwritten (replay), even while it is being loaded.  -ENOMEM, and as
 * above for the source: nothing is changed then. */
int qcow2_cache_create_locked (struct qcow2_txn *txn, uint64_t host_off,
                               uint64_t source_off, bool is_refblock)
  MUST_CHECK;
/* Forget the tables in COUNT clusters from HOST_IDX on: they were freed. */
void qcow2_cache_forget_locked (struct qcow2_image *img, uint64_t host_idx,
                                uint64_t count);
void qcow2_cache_dirty_locked (struct qcow2_image *img,
                               struct qcow2_slice *t);
void qcow2_cache_clean_locked (struct qcow2_image *img,
                               struct qcow2_slice *t);
/* Evict a few slices if there are more than the budget allows. */
void qcow2_cache_trim_locked (struct qcow2_image *img);
/* The I/O half of qcow2_txn_load, for LEN bytes of a table at HOST_OFF, both
 * multiples of a slice; called, and returns, with the lock. */
int qcow2_cache_load_locked (struct qcow2_txn *txn, uint64_t host_off,
                             size_t len)
  MUST_CHECK;
size_t qcow2_cache_memory (const struct qcow2_image *img);

/* --- txn.c --------------------------------------------------------------- */

/* What a transaction can miss. */
enum { QCOW2_MISSING_NONE, QCOW2_MISSING_SLICE, QCOW2_MISSING_TABLE,
       QCOW2_MISSING_ANCHOR, QCOW2_MISSING_SPACE };

struct qcow2_pin {             /* a slot of a hash table by host offset */
  struct qcow2_slice *slice;   /* NULL: empty */
};

struct qcow2_slice *qcow2_txn_find_locked (struct qcow2_txn *txn,
                                           uint64_t host_off);
/* Room for NR more pins: that many pins will not fail. */
int qcow2_txn_reserve_locked (struct qcow2_txn *txn, size_t nr) MUST_CHECK;
/* Pin T, once. */
int qcow2_txn_pin_locked (struct qcow2_txn *txn, struct qcow2_slice *t)
  MUST_CHECK;
/* Note what is missing; returns -EAGAIN. */
int qcow2_txn_missing_locked (struct qcow2_txn *txn, int kind, uint64_t off);

/* --- l2.c: entries of L2 tables, standard and extended ------------------- */

/* An extended entry's second half: a bit for each subcluster that is
 * allocated, and above them one for each that reads as zero. */
#define QCOW2_BITMAP_ALLOCATED UINT64_C (0x00000000ffffffff)
#define QCOW2_BITMAP_ZERO      UINT64_C (0xffffffff00000000)

static inline bool
qcow2_extended_l2 (const struct qcow2_geometry *g)
{
  return g->l2_entry_size == QCOW2_EXTENDED_L2_ENTRY;
}

/* Entry I of TABLE, as it would be in a standard table where it can be said
 * so (QCOW2_L2_PARTIAL).  *BITMAP: of an extended one. */
uint64_t qcow2_l2_load (const struct qcow2_geometry *g, const uint8_t *table,
                        uint64_t i, uint64_t *bitmap);
/* Store ENTRY, a standard one: a cluster with all of its subclusters. */
void qcow2_l2_store (const struct qcow2_geometry *g, uint8_t *table,
                     uint64_t i, uint64_t entry);
/* As qcow2_get_entry_locked.  *NR: how many entries from there on, at most as
 * many as it was, in this table name data clusters that lie one behind the
 * other; 1 if the first does not.  Only the first was judged. */
int qcow2_get_l2_locked (struct qcow2_txn *txn, unsigned root,
                         uint64_t guest_idx, uint64_t *entry,
                         uint64_t *bitmap, uint64_t *nr) MUST_CHECK;

/* --- anchor.c: one bit per host cluster, loaded per anchor L2 table ------ */
struct qcow2_anchor_part {     /* what one anchor L2 table says */
  uint64_t *bits;              /* l2_entries bits; NULL: not loaded */
  bool dirty, loading;
  bool doubtful;               /* was no table, while replaying: see anchor.c */
};

struct qcow2_anchor {
  struct qcow2_flat l1;        /* nr 0: no anchor */
  struct qcow2_anchor_part *parts;   /* one per L1 entry */
  uint64_t *dirty_list;        /* indices of changed parts; room for all */
  uint64_t nr_parts, nr_loaded, nr_dirty;
};

/* Make room for the parts of img->anchor.l1 (or NR of them, if more);
 * keeps those that are there.  Called by qcow2_alloc_init. */
int qcow2_anchor_resize (struct qcow2_image *img, uint64_t nr) MUST_CHECK;
/* Free all of img->anchor.  Called by qcow2_alloc_free. */
void qcow2_anchor_free (struct qcow2_image *img);

/* Which part covers a cluster; is there a table for it? */
uint64_t qcow2_anchor_part_of (const struct qcow2_image *img,
                               uint64_t host_idx);
bool qcow2_anchor_has_part (const struct qcow2_image *img, uint64_t part);
/* 0 if the part is in memory or has no table, else -EAGAIN or -EIO. */
int qcow2_anchor_need_locked (struct qcow2_txn *txn, uint64_t part)
  MUST_CHECK;
/* All parts of a range of clusters. */
int qcow2_anchor_need_range_locked (struct qcow2_txn *txn, uint64_t host_idx,
                                    uint64_t count) MUST_CHECK;
/* These need the part in memory, or without table. */
bool qcow2_anchor_test_locked (const struct qcow2_image *img,
                               uint64_t host_idx);
void qcow2_anchor_put_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count, bool anchored);
/* Part PART gets a table at HOST_OFF that says nothing is anchored. */
int qcow2_anchor_create_locked (struct qcow2_image *img, uint64_t part,
                                uint64_t host_off) MUST_CHECK;
void qcow2_anchor_dirty_locked (struct qcow2_image *img, uint64_t part);
/* Write out the table of the part as it belongs in the file. */
void qcow2_anchor_encode_locked (const struct qcow2_image *img, uint64_t part,
                                 uint8_t *out);
/* The I/O half of qcow2_txn_load, as qcow2_cache_load_locked. */
int qcow2_anchor_load_locked (struct qcow2_txn *txn, uint64_t part)
  MUST_CHECK;
size_t qcow2_anchor_memory (const struct qcow2_image *img);

/* --- refcount.c ---------------------------------------------------------- */
uint64_t qcow2_refcount_get (unsigned bits, const uint8_t *block, uint64_t i);
void qcow2_refcount_put (unsigned bits, uint8_t *block, uint64_t i,
                         uint64_t value);
/* How many clusters the refcount table can count. */
uint64_t qcow2_refcount_coverage (const struct qcow2_image *img);
/* What the pinned slice T of a refcount block says about a cluster in it. */
uint64_t qcow2_refblock_get_locked (const struct qcow2_image *img,
                                    const struct qcow2_slice *t,
                                    uint64_t host_idx);
/* The slice of a refcount block that has a cluster; *OUT is NULL where there is
 * none. */
int qcow2_refblock_locked (struct qcow2_txn *txn, uint64_t host_idx,
                           struct qcow2_slice **out) MUST_CHECK;
/* As qcow2_prepare_host_locked for one cluster that will not be anchored: a
 * table of this program. */
int qcow2_prepare_meta_locked (struct qcow2_txn *txn, uint64_t host_idx)
  MUST_CHECK;

/* --- change.c ------------------------------------------------------------ */
/* The last step of a REFCOUNT change of COUNT clusters that all lie in the
 * pinned slice T, and whose anchor parts are in memory. */
void qcow2_refblock_change_locked (struct qcow2_image *img,
                                   struct qcow2_slice *t, uint64_t host_idx,
                                   uint64_t count, uint64_t refcount,
                                   bool anchored);
/* Apply C, then report it. */
int qcow2_change_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
  MUST_CHECK;
/* A REFCOUNT change of one cluster whose tables are pinned: cannot fail. */
void qcow2_set_refcount_locked (struct qcow2_txn *txn, uint64_t host_idx,
                                uint64_t refcount, bool anchored);

/* --- alloc.c ------------------------------------------------------------- */
struct qcow2_bitmap;           /* bitmap.c: sparse, one bit per cluster */

struct qcow2_quarantined {
  uint64_t seq;
  struct qcow2_run run;
};

struct qcow2_alloc {
  struct qcow2_bitmap *free;         /* known free */
  struct qcow2_bitmap *busy;         /* refcount 0 but not free: quarantined,
                                      * or kept until the next open */
  struct qcow2_bitmap *stale;        /* of `free`: the host may hold data; */
  struct qcow2_bitmap *suspect;      /* ... and an entry may name it: stale.c */
  bool suspects_lost;                /* some are none, and no stale ones */
  struct qcow2_bitmap *released;     /* left quarantine before the scan came to
                                      * them */
  uint64_t stale_low;                /* fewest in `stale` lately */
  struct qcow2_suspects *suspects;   /* the look at them: suspect.c */
  uint64_t cursor;                   /* next-fit */
  uint64_t frontier;                 /* first cluster past all used ones */
  uint64_t bound;                    /* the frontier may not pass this */
  uint64_t scan_next, scan_end;      /* clusters; [scan_next, scan_end) of
                                      * the file is not scanned yet.  The end
                                      * is UINT64_MAX until it is known */
  struct qcow2_quarantined *q;       /* a ring, in order of seq */
  size_t q_head, q_len, q_max;
  uint64_t nr_quarantined;
  bool frees_lost;             /* some never were, for want of memory */
};

/* After the flats (L1, refcount table, anchor L1) were loaded.  Also sets up
 * the anchor's parts; the other frees them, anchor.l1 and the holds. */
int qcow2_alloc_init (struct qcow2_image *img) MUST_CHECK;
void qcow2_alloc_free (struct qcow2_image *img);
/* After the refcount table or the anchor's L1 changed size. */
void qcow2_alloc_set_bound_locked (struct qcow2_image *img);
/* These clusters have a refcount above 0 now. */
void qcow2_alloc_used_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count);
/* These are free. */
void qcow2_alloc_found_free_locked (struct qcow2_image *img,
                                    uint64_t host_idx, uint64_t count);
/* The scan found these free. */
void qcow2_alloc_scanned_free_locked (struct qcow2_image *img,
                                      uint64_t host_idx, uint64_t count);
/* These have refcount 0 but must not be used before the next open. */
void qcow2_alloc_keep_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count);
/* The part of the file to be scanned ends at the frontier of this moment, if
 * that was not decided before. */
void qcow2_alloc_fix_scan_locked (struct qcow2_image *img);
size_t qcow2_alloc_memory (const struct qcow2_image *img);

/* --- stale.c: free clusters for which the host may hold data -------------- */
void qcow2_stale_free (struct qcow2_image *img);
/* These are free; with data of which this session knows that nothing refers to
 * it, or not.  All with the lock. */
void qcow2_stale_put (struct qcow2_alloc *a, uint64_t host_idx,
                      uint64_t count);
void qcow2_suspect_put (struct qcow2_alloc *a, uint64_t host_idx,
                        uint64_t count);
/* They are in use, or empty. */
void qcow2_stale_clear (struct qcow2_alloc *a, uint64_t host_idx,
                        uint64_t count);

/* --- pool.c: clusters for tables, with space on the host ----------------- */
#define QCOW2_POOL_MAX 512u

struct qcow2_pool {
  uint64_t v[QCOW2_POOL_MAX];  /* host indices, reserved; the last is next */
  unsigned nr;
  bool filling;                /* by one thread, without the lock */
  bool flats_backed;           /* L1, refcount table, anchor L1 have space */
};

/* Reserve a cluster for a table; -EAGAIN as in qcow2.h. */
int qcow2_pool_take_locked (struct qcow2_txn *txn, struct qcow2_run *run)
  MUST_CHECK;
/* Give one back that is not used after all. */
void qcow2_pool_put_locked (struct qcow2_image *img,
                            const struct qcow2_run *run);
/* The I/O half of qcow2_txn_load, as qcow2_cache_load_locked.  -ENOSPC. */
int qcow2_pool_fill_locked (struct qcow2_image *img) MUST_CHECK;

/* --- direct.c: changes without a log ------------------------------------- */

/* Drops that an operation may make after one call of reserve: those of its
 * clusters, and of the L2 tables that it copies. */
#define QCOW2_DIRECT_DROPS 2048u

struct qcow2_direct {
  bool on;
  struct qcow2_run *drops;     /* references to be counted down */
  size_t nr, max;
};

/* Memory for QCOW2_DIRECT_DROPS more drops. */
int qcow2_direct_reserve_locked (struct qcow2_image *img) MUST_CHECK;
void qcow2_direct_drop_locked (struct qcow2_image *img,
                               const struct qcow2_run *run);
void qcow2_direct_free (struct qcow2_image *img);
/* fdatasync, after which a failure is final: 0 or -EIO. */
int qcow2_final_sync (struct io_store *io) MUST_CHECK;

/* --- dirty-bitmaps.c: persistent bitmaps ---------------------------------- */
struct qcow2_dirty_bitmap;

struct qcow2_dirty_bitmaps {
  /* Constant after open: */
  struct qcow2_dirty_bitmap *v;      /* owned; notes: protected by lock */
  size_t nr, nr_tracked;
  uint64_t directory_off, directory_len;   /* bytes, if valid */
  bool valid;                  /* there are some, and they can be right */
  bool in_use;                 /* marked so; who begins and ends a session */
};

int qcow2_bitmaps_load (struct qcow2_image *img, struct fault *f) MUST_CHECK;
void qcow2_bitmaps_free (struct qcow2_image *img);
/* Mark those in use that a change would make wrong, and sync. */
int qcow2_bitmaps_begin (struct qcow2_image *img) MUST_CHECK;
/* *ONCE: has each cluster of a range one reference, which is not the anchor's?
 * Then what lies there may be written in place: nothing else refers to it.
 * Called without the lock. */
int qcow2_used_once (struct qcow2_image *img, uint64_t host_off, uint64_t len,
                     bool *once) MUST_CHECK;
/* Call CB with each range of bytes that bitmaps use in the file: 0 or
 * -errno. */
int qcow2_bitmaps_each (struct qcow2_image *img,
                        void (*cb) (void *opaque, uint64_t host_off,
                                    uint64_t len), void *opaque) MUST_CHECK;
/* Say so if they are given up by what is written next. */
void qcow2_bitmaps_warn (struct qcow2_image *img);
/* The autoclear bits of the file that stay true when it is written. */
uint64_t qcow2_kept_autoclear (const struct qcow2_image *img);
/* The rest of qcow2_apply_locked. */
int qcow2_bitmap_apply_locked (struct qcow2_txn *txn,
                               const struct qcow2_change *c) MUST_CHECK;

/* --- guard.c --------------------------------------------------------------- */
struct qcow2_guard {           /* a bit a cluster; all NULL: not opened for
                                * writing */
  struct qcow2_bitmap *disk;   /* header, active disk, anchor, store */
  struct qcow2_bitmap *snapshots;
  struct qcow2_bitmap *bitmaps;
  struct qcow2_bitmap *left;   /* of disk: no table any more, but its bytes
                                * must stay until the next open */
  bool not_whole;              /* snapshots lacks some */
};

void qcow2_guard_free (struct qcow2_image *img);
/* Do header, disk, store or snapshots have any of these clusters?  As
 * qcow2_guarded_locked, but for persistent bitmaps. */
bool qcow2_guard_has_tables_locked (struct qcow2_image *img,
                                    uint64_t host_idx, uint64_t count)
  MUST_CHECK;
/* May a snapshot have a table in this cluster? */
bool qcow2_guard_has_snapshot_locked (struct qcow2_image *img,
                                      uint64_t host_idx) MUST_CHECK;
/* Do two L1 tables, or two entries of the disk's, surely name this one? */
bool qcow2_guard_is_shared_locked (struct qcow2_image *img, uint64_t host_idx)
  MUST_CHECK;
/* An L1 entry that named HOST_IDX names a copy now.  If no other names it, it is
 * no table any more.  Its bytes are kept until the next open: a replay makes the
 * copy again. */
void qcow2_guard_leave_locked (struct qcow2_image *img, uint64_t host_idx);
/* Is it one that was left so? */
bool qcow2_guard_left_locked (struct qcow2_image *img, uint64_t host_idx)
  MUST_CHECK;
/* Is there a table, or what a bitmap or the store uses?  It stays whatever
 * refcounts say. */
bool qcow2_guard_stays_locked (struct qcow2_image *img, uint64_t host_idx)
  MUST_CHECK;

/* --- hold.c -------------------------------------------------------------- */
struct qcow2_hold {
  uint64_t host_idx;           /* 0: empty slot (cluster 0 is the header) */
  uint64_t count;
  struct qcow2_slice *block;   /* with its refcount, pinned by the hold */
};

struct qcow2_holds {           /* hash table, open addressing */
  struct qcow2_hold *v;
  size_t nr, max;              /* max is a power of two, or 0 */
};

void qcow2_holds_free (struct qcow2_image *img);

/* --- host-file.c --------------------------------------------------------- */
/* Open the file NAME that IMG names, if its policy lets it; the only place
 * that opens what an image names.  FLAGS as for io_file_open.  *PATH (the
 * caller's, also on failure) is where it is. */
int qcow2_host_file_open (const struct qcow2_image *img, const char *name,
                          int flags, enum io_file_lock lock, char **path,
                          struct io_store **io, struct fault *f) MUST_CHECK;

/* --- data-file.c --------------------------------------------------------- */
static inline bool
qcow2_has_data_file (const struct qcow2_geometry *g)
{
  return g->has_data_file;
}

/* Is there data where ENTRY, no compressed one, points to?  With an external
 * data file offset 0 is a place like others. */
static inline bool
qcow2_has_place (const struct qcow2_geometry *g, uint64_t entry)
{
  return (entry & QCOW2_OFFSET_MASK) ||
    (qcow2_has_data_file (g) && (entry & QCOW2_L2_COPIED));
}

/* Open the external data file, if the header names one. */
int qcow2_data_file_open (struct qcow2_image *img, struct fault *f)
  MUST_CHECK;

/* --- backing.c ----------------------------------------------------------- */
struct qcow2_backing;          /* raw file or another qcow2_image */

/* Open the chain that the header names; depth counts from 0. */
int qcow2_backing_open (struct qcow2_image *img, const char *name,
                        const char *format, unsigned depth,
                        struct fault *f) MUST_CHECK;
void qcow2_backing_close (struct qcow2_backing *b);
/* Read; zeroes past its end. */
int qcow2_backing_read (struct qcow2_backing *b, void *buf,
                        uint64_t guest_off, size_t len) MUST_CHECK;

/* --- compressed.c -------------------------------------------------------- */
/* Where the compressed bytes of an L2 entry lie: offset and length in bytes. */
void qcow2_compressed_extent (const struct qcow2_image *img, uint64_t entry,
                              uint64_t *host_off, uint64_t *len);
/* Read and expand one cluster into OUT (cluster_size bytes). */
int qcow2_compressed_read (struct qcow2_image *img, uint64_t entry,
                           uint8_t *out) MUST_CHECK;

/* --- header.c ------------------------------------------------------------ */
struct qcow2_header {          /* decoded, valid by construction */
  struct qcow2_geometry geo;
  uint64_t backing_off;
  uint32_t backing_len;
  uint32_t crypt_method;
  uint32_t l1_entries;
  uint64_t l1_off;
  struct qcow2_header_fields fields;   /* anchor_l1_* filled by snapshot.c */
  uint32_t header_length;
  char backing_name[QCOW2_MAX_BACKING_NAME + 1];
  char backing_format[64];
  char data_file_name[QCOW2_MAX_BACKING_NAME + 1];
  uint8_t bitmaps_ext[24];     /* payload, bitmaps_ext_len of it; 0: none */
  uint32_t bitmaps_ext_len;
  bool has_store_ext;
  uint8_t store_ext[QCOW2_STORE_EXTENSION_SIZE];
};

/* Decode the first cluster (LEN bytes of it, at least 512).  Refuses what
 * is not served, by name. */
int qcow2_header_decode (const uint8_t *buf, size_t len,
                         struct qcow2_header *h, struct fault *f) MUST_CHECK;
/* Rebuild the first cluster BUF (as read, cluster_size bytes) in place: new
 * header fields, autoclear bits as in H, bit 48 ON, the store's extension, its feature name; other
 * extensions and the backing name are kept.  -ENOSPC if it does not fit. */
int qcow2_header_rebuild (uint8_t *buf, const struct qcow2_header *h,
                          const struct qcow2_header_fields *fields,
                          const uint8_t *ext, struct fault *f) MUST_CHECK;

/* The cluster size that the first 512 bytes BUF name; checks nothing else. */
int qcow2_header_cluster_size (const uint8_t *buf, uint64_t *cluster_size,
                               struct fault *f) MUST_CHECK;
/* header-build.c: the first cluster BUF (cluster_size bytes) of a new image
 * without snapshots, extensions or backing file. */
void qcow2_header_create (uint8_t *buf, const struct qcow2_header *h);

/* --- the image ----------------------------------------------------------- */
struct qcow2_image {
  /* Constant after open: */
  struct io_store *io;
  char *path;                  /* may be NULL */
  const struct log_sink *log_sink;
  bool writable;
  enum qcow2_host_files host_files;
  unsigned depth;              /* in a backing chain */
  struct qcow2_header header;  /* but for fields, see below */
  uint64_t file_size;          /* at open */
  struct qcow2_backing *backing;
  struct io_store *data;       /* external data file, NULL: none */

  unsigned bad_entries_told;   /* atomic: lines of map.c */

  struct lock lock;

  /* Protected by lock: */
  struct qcow2_header_fields fields;   /* as in memory; header_dirty: not yet
                                        * in the file */
  bool header_dirty;
  bool header_writing;         /* in a writeback that has not ended */
  bool writing_back;           /* there is a writeback */
  bool read_failed;            /* a table, or part of the anchor */
  bool replaying;              /* see qcow2_replay_begin */
  struct qcow2_flat l1;
  struct qcow2_flat reftable;
  struct qcow2_snapshot_table snapshots;
  struct qcow2_cache cache;
  struct qcow2_anchor anchor;
  struct qcow2_alloc alloc;
  struct qcow2_guard guard;    /* guard.c */
  struct qcow2_pool pool;
  struct qcow2_holds holds;
  struct qcow2_dirty_bitmaps bitmaps;
  struct qcow2_direct direct;  /* .on: constant once writing starts */
  struct qcow2_log log;
  pthread_cond_t loaded;       /* a table or anchor part finished loading */
};

/* open.c: as qcow2_open, for an image DEPTH steps down a backing chain. */
int qcow2_open_at_depth (struct io_store *io,
                         const struct qcow2_open_params *params,
                         unsigned depth, struct qcow2_image **out,
                         struct fault *f) MUST_CHECK;

/* Report CHANGE to the log, if there is one.  The log is part of "live"
 * changes only; replay does not call this. */
static inline void
qcow2_report_locked (struct qcow2_image *img, const struct qcow2_change *c)
{
  assert (lock_held (&img->lock));
  if (img->log.append_locked)
    img->log.append_locked (img->log.opaque, c);
}

#endif
