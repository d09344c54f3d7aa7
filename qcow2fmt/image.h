/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the open image, and the functions that the files of the format room
 * offer each other.  Other rooms include qcow2.h only. */
#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include <pthread.h>

#include "qcow2-limits.h"
#include "mutation.h"
#include "qcow2.h"
#include "wire.h"

/* --- flat.c ---------------------------------------------------------------- */
/* A table that is contiguous in the file and whole in memory: L1, anchor L1,
 * refcount table. */
struct qcow2_flat {
  uint64_t host_off;
  uint64_t nr;                 /* entries */
  uint64_t *v;                 /* owned; host byte order */
  uint8_t *dirty;              /* one byte per 512 entries (4096 bytes) */
  uint64_t nr_dirty;           /* number of set bytes in dirty */
};

/* Reads NR entries at HOST_OFF into T, which the caller frees. */
int qcow2_flat_load (struct io_store *io, struct qcow2_flat *t,
                     uint64_t host_off, uint64_t nr) MUST_CHECK;
/* Copies the entries to OUT, for another place and size: added entries are 0,
 * all are dirty.  T is not changed. */
int qcow2_flat_copy (const struct qcow2_flat *t, uint64_t host_off,
                     uint64_t nr, struct qcow2_flat *out) MUST_CHECK;
/* Sets an entry and marks its page as dirty. */
void qcow2_flat_set (struct qcow2_flat *t, uint64_t i, uint64_t value);
void qcow2_flat_free (struct qcow2_flat *t);

#define QCOW2_FLAT_PAGE_ENTRIES UINT64_C (512)
#define QCOW2_FLAT_PAGE_BYTES (QCOW2_FLAT_PAGE_ENTRIES * 8)
uint64_t qcow2_flat_pages (const struct qcow2_flat *t);
void qcow2_flat_dirty_page (struct qcow2_flat *t, uint64_t page);
/* Encodes a page for the file into OUT and marks it as clean.  Returns its
 * length in bytes: the last page may be short. */
size_t qcow2_flat_take_page (struct qcow2_flat *t, uint64_t page,
                             uint8_t *out);

/* --- snapshot-table.c ------------------------------------------------------ */
struct qcow2_snapshot_raw {    /* an entry as it is in the file */
  uint8_t *bytes;              /* with its padding; owned; NULL: a dead slot */
  uint32_t len;                /* a multiple of 8 */
};

/* A snapshot has a slot: an index into V and RAW, by which roots are numbered.
 * It keeps its slot as long as the image is open.  In an image that is open for
 * writing there are always QCOW2_MAX_SNAPSHOTS slots, so that V never moves;
 * memory that was not touched costs nothing. */
struct qcow2_snapshot_table {
  struct qcow2_snapshot *v;    /* owned, with its strings */
  struct qcow2_snapshot_raw *raw;    /* owned, with its bytes */
  size_t nr;                   /* slots that are or were in use */
  size_t max;                  /* slots that are allocated */
  int anchor;                  /* slot of the anchor, -1: none */
  uint64_t host_off;           /* of the table that the slots agree with */
  size_t raw_len;              /* its length in bytes */
  size_t nr_compress_on;       /* slots of which qcow2_says_compress_on */
};
/* Returns whether S is a disk that can be written to, and whose new data is to be
 * compressed whatever the image's setting is. */
static inline bool
qcow2_says_compress_on (const struct qcow2_snapshot *s)
{
  return s->is_disk && !s->dead && s->compress == QCOW2_COMPRESS_ON &&
    (s->disk_flags & (QCOW2_DISK_WRITABLE | QCOW2_DISK_DOOMED)) == QCOW2_DISK_WRITABLE;
}

/* Reads the snapshot table that the header names, and finds the anchor. */
int qcow2_snapshot_load (struct qcow2_image *img, struct fault *f) MUST_CHECK;
/* Reads the snapshot table that img->fields names, if a replay or a plan
 * switched to it since the last one was read.  Slots are numbered anew.
 * FAULT_CORRUPT: that is no such table, or its anchor is not the one of
 * img->fields; the old table stays then.  Called without the lock, before there
 * are other threads. */
int qcow2_snapshot_reload (struct qcow2_image *img, struct fault *f)
  MUST_CHECK;
void qcow2_snapshot_free (struct qcow2_snapshot_table *t);

/* --- snapshot-encode.c ----------------------------------------------------- */
/* Encodes the table, with an anchor whose L1 table has ANCHOR_L1_ENTRIES
 * entries and is at ANCHOR_L1_OFF; adds one at the end if there is none.  *BUF
 * is the caller's; *NR is the number of snapshots.  -ENOMEM, or -ENOSPC if the
 * table becomes too large. */
int qcow2_snapshot_encode (struct qcow2_image *img, uint64_t anchor_l1_off,
                           uint32_t anchor_l1_entries, uint8_t **buf,
                           size_t *len, uint32_t *nr) MUST_CHECK;
/* Encodes the entry of the disk S.  OLD is the entry that it replaces, or NULL:
 * extra data behind what this version knows, flags that it does not know and
 * the other fields of QEMU are kept.  OUT->bytes is the caller's.  -ENOMEM,
 * -EINVAL: the id or the name is too long. */
int qcow2_snapshot_encode_disk (const struct qcow2_snapshot *s,
                                const struct qcow2_snapshot_raw *old,
                                struct qcow2_snapshot_raw *out) MUST_CHECK;
/* Joins the NR_RAW entries of RAW, without those of dead slots, to a table, as
 * qcow2_snapshot_encode does. */
int qcow2_snapshot_join (const struct qcow2_snapshot_raw *raw, size_t nr_raw,
                         uint8_t **buf, size_t *len, uint32_t *nr) MUST_CHECK;
/* Makes QEMU refuse to apply the anchor (docs/on-disk.md section 2), if its
 * entry does not do so already: writes 8 aligned bytes of the entry in place,
 * without a sync.  Does nothing if guest data or another table is in the same
 * cluster. */
int qcow2_anchor_deter (struct qcow2_image *img) MUST_CHECK;

/* --- cache.c --------------------------------------------------------------- */

/* Tables are read, kept and written in slices of this many bytes (a power of
 * two), or as a whole if clusters are no larger: usually only a few entries of
 * a large table are needed.  Tests have smaller slices, as their clusters are
 * smaller. */
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
  uint64_t host_off;           /* of the slice, not of the table */
  uint8_t *data;               /* qcow2_slice_size bytes, as on disk; NULL
                                * while a thread reads them */
  unsigned pins;               /* transactions, and the thread that loads */
  bool loading, dirty, writing;
  bool is_refblock;            /* of a refcount block; set on change */
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
  uint64_t nr_loads;           /* slices read from the file */
};

int qcow2_cache_init (struct qcow2_image *img, size_t budget_bytes)
  MUST_CHECK;
void qcow2_cache_free (struct qcow2_image *img);

/* Returns the slice with byte WITHIN (below cluster_size) of the table at
 * HOST_OFF, if it is in memory and loaded, and pins it in TXN (once).
 * Otherwise returns NULL and sets *ERR: -EAGAIN with what is missing noted in
 * TXN, -ENOMEM, or -EIO for an offset where no table can be (corrupt). */
struct qcow2_slice *qcow2_cache_get_locked (struct qcow2_txn *txn,
                                            uint64_t host_off, size_t within,
                                            int *err);
/* Pins all slices of the table at HOST_OFF.  Returns 0, or an error as
 * qcow2_cache_get_locked does. */
int qcow2_cache_get_whole_locked (struct qcow2_txn *txn, uint64_t host_off)
  MUST_CHECK;
/* Makes a new table at HOST_OFF, all zero or, if SOURCE_OFF is not 0, a copy
 * of the table there.  It is dirty, and its slices are pinned in TXN.  A table
 * that is there already is overwritten (replay), even while it is being
 * loaded.  -ENOMEM, or an error of qcow2_cache_get_locked for the source; then
 * nothing is changed. */
int qcow2_cache_create_locked (struct qcow2_txn *txn, uint64_t host_off,
                               uint64_t source_off, bool is_refblock)
  MUST_CHECK;
/* Forgets the tables in COUNT clusters from HOST_IDX on, which were freed. */
void qcow2_cache_forget_locked (struct qcow2_image *img, uint64_t host_idx,
                                uint64_t count);
/* Returns the slice at HOST_OFF if it is younger than the file, else NULL. */
const struct qcow2_slice *
qcow2_cache_unwritten_locked (struct qcow2_image *img, uint64_t host_off);
void qcow2_cache_dirty_locked (struct qcow2_image *img,
                               struct qcow2_slice *t);
void qcow2_cache_clean_locked (struct qcow2_image *img,
                               struct qcow2_slice *t);
/* Returns -EAGAIN while a thread reads some of LEN bytes at HOST_OFF, which are
 * whole clusters that a caller has reserved and written. */
int qcow2_cache_settle_locked (struct qcow2_txn *txn, uint64_t host_off,
                               uint64_t len) MUST_CHECK;
/* Gives the slices of such clusters, as far as the cache has some (of a table
 * that was there before), the BYTES that are in the file now.  Called after
 * qcow2_cache_settle_locked, under the same hold of the lock. */
void qcow2_cache_overwrite_locked (struct qcow2_image *img, uint64_t host_off,
                                   const uint8_t *bytes, uint64_t len);
/* Evicts up to two slices if there are more than the budget allows. */
void qcow2_cache_trim_locked (struct qcow2_image *img);
/* Loads LEN bytes of a table at HOST_OFF, both multiples of a slice, and pins
 * them: the I/O half of qcow2_txn_load.  It is called and returns with the
 * lock, but releases it during I/O. */
int qcow2_cache_load_locked (struct qcow2_txn *txn, uint64_t host_off,
                             size_t len)
  MUST_CHECK;
size_t qcow2_cache_memory (const struct qcow2_image *img);

/* --- txn.c --------------------------------------------------------------- */

/* The kinds of things that a transaction can miss. */
enum { QCOW2_MISSING_NONE, QCOW2_MISSING_SLICE, QCOW2_MISSING_TABLE,
       QCOW2_MISSING_ANCHOR, QCOW2_MISSING_SPACE };

struct qcow2_pin {             /* a slot of a hash table by host offset */
  struct qcow2_slice *slice;   /* NULL: empty */
};

/* Returns the slice at HOST_OFF if the transaction has pinned it, else NULL. */
struct qcow2_slice *qcow2_txn_find_locked (struct qcow2_txn *txn,
                                           uint64_t host_off);
/* Reserves memory for NR more pins, which then cannot fail. */
int qcow2_txn_reserve_locked (struct qcow2_txn *txn, size_t nr) MUST_CHECK;
/* Pins T, unless the transaction has pinned it already. */
int qcow2_txn_pin_locked (struct qcow2_txn *txn, struct qcow2_slice *t)
  MUST_CHECK;
/* Unpins all slices. */
void qcow2_txn_unpin_locked (struct qcow2_txn *txn);
/* Notes what the transaction misses, and returns -EAGAIN. */
int qcow2_txn_missing_locked (struct qcow2_txn *txn, int kind, uint64_t off);

/* --- l2-entry.c ------------------------------------------------------------ */

/* The second half of an extended entry has a bit for each subcluster that is
 * allocated, and above them one for each that reads as zero. */
#define QCOW2_BITMAP_ALLOCATED UINT64_C (0x00000000ffffffff)
#define QCOW2_BITMAP_ZERO      UINT64_C (0xffffffff00000000)

static inline bool
qcow2_extended_l2 (const struct qcow2_geometry *g)
{
  return g->l2_entry_size == QCOW2_EXTENDED_L2_ENTRY;
}

/* Returns entry I of TABLE in the form of a standard table, if that can
 * express it, else with QCOW2_L2_PARTIAL or QCOW2_L2_INVALID.  *BITMAP becomes
 * the second half of an extended entry, or 0. */
uint64_t qcow2_l2_load (const struct qcow2_geometry *g, const uint8_t *table,
                        uint64_t i, uint64_t *bitmap);
/* Stores ENTRY, a standard one, as entry I: for a cluster with all of its
 * subclusters. */
void qcow2_l2_store (const struct qcow2_geometry *g, uint8_t *table,
                     uint64_t i, uint64_t entry);
/* Returns how many of NR entries from I on name data clusters that are
 * contiguous in the file; 1 if ENTRY, the one at I, names none. */
uint64_t qcow2_l2_run (const struct qcow2_geometry *g, const uint8_t *table,
                       uint64_t i, uint64_t nr, uint64_t entry);

/* --- l2.c ---------------------------------------------------------------- */
/* Gets entry TI of the L1 table of a root, with its flags; 0 past the end of
 * the table.  -EAGAIN; -EINVAL: there is no such root, or it is the anchor. */
int qcow2_l1_entry_locked (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                           uint64_t *entry) MUST_CHECK;
/* Finds the table that L1 entry TI of ROOT names; *TABLE_OFF is 0 if it names
 * none.  -EINVAL if it may not be changed in place; -EAGAIN. */
int qcow2_owned_table_locked (struct qcow2_txn *txn, unsigned root,
                              uint64_t ti, uint64_t *table_off) MUST_CHECK;
/* Returns the byte offset in the file of L1 entry TI. */
uint64_t qcow2_l1_place_locked (const struct qcow2_image *img, unsigned root,
                                uint64_t ti);
/* Reads an entry as qcow2_get_entry_locked does, with the BITMAP of an extended
 * one.  *NR becomes how many entries of this slice from there on name data
 * clusters that are contiguous in the file, at most as many as it was; 1 if the
 * first names none.  Only the first was checked. */
int qcow2_get_l2_locked (struct qcow2_txn *txn, unsigned root,
                         uint64_t guest_idx, uint64_t *entry,
                         uint64_t *bitmap, uint64_t *nr) MUST_CHECK;

/* --- anchor.c -------------------------------------------------------------- */
struct qcow2_anchor_part {     /* the bits of one anchor L2 table */
  uint64_t *bits;              /* l2_entries bits; NULL: not loaded */
  bool dirty, loading;
  bool doubtful;               /* not valid while replaying: see anchor.c */
};

struct qcow2_anchor {
  struct qcow2_flat l1;        /* nr 0: no anchor */
  struct qcow2_anchor_part *parts;   /* one per L1 entry */
  uint64_t *dirty_list;        /* indices of changed parts; room for all */
  uint64_t nr_parts, nr_loaded, nr_dirty;
};

/* Allocates the parts of img->anchor.l1 (or NR of them, if that is more); keeps
 * those that exist. */
int qcow2_anchor_resize (struct qcow2_image *img, uint64_t nr) MUST_CHECK;
/* Frees all of img->anchor. */
void qcow2_anchor_free (struct qcow2_image *img);

/* The first returns which part covers a cluster, the second whether there is a
 * table for a part. */
uint64_t qcow2_anchor_part_of (const struct qcow2_image *img,
                               uint64_t host_idx);
bool qcow2_anchor_has_part (const struct qcow2_image *img, uint64_t part);
/* Returns 0 if the part is in memory or has no table, else -EAGAIN, or -EIO if
 * its table cannot be where the L1 entry says. */
int qcow2_anchor_need_locked (struct qcow2_txn *txn, uint64_t part)
  MUST_CHECK;
/* Calls qcow2_anchor_need_locked for all parts of a range of clusters. */
int qcow2_anchor_need_range_locked (struct qcow2_txn *txn, uint64_t host_idx,
                                    uint64_t count) MUST_CHECK;
/* The first returns whether a cluster is anchored, the second sets that for a
 * range.  Each part must be in memory or have no table; no cluster of a part
 * without a table may become anchored. */
bool qcow2_anchor_test_locked (const struct qcow2_image *img,
                               uint64_t host_idx);
void qcow2_anchor_put_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count, bool anchored);
/* Makes a table for part PART at HOST_OFF, in which nothing is anchored. */
int qcow2_anchor_create_locked (struct qcow2_image *img, uint64_t part,
                                uint64_t host_off) MUST_CHECK;
void qcow2_anchor_dirty_locked (struct qcow2_image *img, uint64_t part);
/* Encodes the table of the part for the file into OUT (cluster_size bytes). */
void qcow2_anchor_encode_locked (const struct qcow2_image *img, uint64_t part,
                                 uint8_t *out);
/* Loads a part: the I/O half of qcow2_txn_load, with the lock as in
 * qcow2_cache_load_locked. */
int qcow2_anchor_load_locked (struct qcow2_txn *txn, uint64_t part)
  MUST_CHECK;
size_t qcow2_anchor_memory (const struct qcow2_image *img);

/* --- refcount-bits.c ------------------------------------------------------ */
/* The first returns refcount I, of BITS bits, of a block; the second sets it. */
uint64_t qcow2_refcount_get (unsigned bits, const uint8_t *block, uint64_t i);
void qcow2_refcount_put (unsigned bits, uint8_t *block, uint64_t i,
                         uint64_t value);

/* --- refcount.c ---------------------------------------------------------- */
/* Returns the refcount of a cluster from the pinned slice T of its block. */
uint64_t qcow2_refblock_get_locked (const struct qcow2_image *img,
                                    const struct qcow2_slice *t,
                                    uint64_t host_idx);
/* Gets the slice of a refcount block that has the refcount of a cluster.  *OUT
 * is NULL if there is no such block.  -EAGAIN, -ENOMEM, or -EIO if no block
 * can be there. */
int qcow2_refblock_locked (struct qcow2_txn *txn, uint64_t host_idx,
                           struct qcow2_slice **out) MUST_CHECK;
/* Sets *ONCE to whether each cluster of a range has one reference, which is not
 * the anchor's.  Then the range may be written in place, because nothing else
 * refers to it.  Called without the lock. */
int qcow2_used_once (struct qcow2_image *img, uint64_t host_off, uint64_t len,
                     bool *once) MUST_CHECK;

/* --- prepare.c ------------------------------------------------------------ */
/* Prepares one cluster as qcow2_prepare_host_locked does, but for a table of
 * this program, which will not be anchored. */
int qcow2_prepare_meta_locked (struct qcow2_txn *txn, uint64_t host_idx)
  MUST_CHECK;

/* --- debt.c -------------------------------------------------------------- */
/* The refcount V of an L2 table in an image with disks is made of two numbers:
 * how many L1 entries name the table, and for how many of these paths the
 * clusters that the table names do not count a reference yet (the debt). */
#define QCOW2_PATHS_BITS 16
#define QCOW2_PATHS_MASK ((UINT64_C (1) << QCOW2_PATHS_BITS) - 1)
/* One path more, which is not counted yet. */
#define QCOW2_ONE_LENT (UINT64_C (1) << QCOW2_PATHS_BITS | 1)

static inline uint64_t
qcow2_paths_of (uint64_t v)
{
  return v & QCOW2_PATHS_MASK;
}

static inline uint64_t
qcow2_debt_of (uint64_t v)
{
  return v >> QCOW2_PATHS_BITS;
}

/* Gives ROOT a table of its own at L1 entry TI, and pins the slice with entry
 * IN_TABLE of it.  May allocate and report changes; the errors are those of
 * qcow2_prepare_entry_locked. */
int qcow2_own_table_locked (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                            unsigned in_table) MUST_CHECK;
/* Sets COPIED in the L1 entry that names the table in HOST_IDX, if it is the active
 * disk's, and reports that.  Called when one path to the table is left. */
void qcow2_one_path_left_locked (struct qcow2_txn *txn, uint64_t host_idx);

/* --- table-refs.c --------------------------------------------------------- */
struct qcow2_table_ref {       /* a reference to one cluster */
  uint64_t v;                  /* twice a host index, and whether the entry is
                                * compressed */
  struct qcow2_slice *block;   /* with the refcount; pinned */
};

/* What the entries of one L2 table refer to; see table-refs.c. */
struct qcow2_table_refs {
  uint64_t table_off;
  struct qcow2_table_ref *v;   /* owned; ascending */
  size_t nr;
  size_t nr_compressed;        /* of compressed entries, when collected */
};

/* COUNT clusters in a row, to each of which the table has TIMES references. */
struct qcow2_ref_run {
  uint64_t host_idx, count, times;
  const struct qcow2_table_ref *refs;    /* COUNT * TIMES of them */
};

/* Pins the table at TABLE_OFF and the refcounts of all clusters that it names,
 * loads their anchor bits, and collects the references in REFS, which the
 * caller frees.  Changes nothing.  -EIO if the table is damaged: an entry
 * contradicts the format, or names a cluster that cannot be in use. */
int qcow2_table_refs_get_locked (struct qcow2_txn *txn, uint64_t table_off,
                                 struct qcow2_table_refs *refs) MUST_CHECK;
void qcow2_table_refs_free (struct qcow2_table_refs *refs);
/* Removes the references of compressed entries from REFS. */
void qcow2_table_refs_drop_compressed (struct qcow2_table_refs *refs);
/* Returns entry I of the table at TABLE_OFF, whose slices are pinned, as
 * qcow2_l2_load does. */
uint64_t qcow2_table_entry_locked (struct qcow2_txn *txn, uint64_t table_off,
                                   unsigned i);
/* Gets the run at *I (0 at the start) and moves *I behind it; false at the
 * end. */
bool qcow2_table_refs_next (const struct qcow2_table_refs *refs, size_t *i,
                            struct qcow2_ref_run *run);
/* Checks that the references of the table are counted, and that N more of each
 * may be.  -EIO if not: the image is damaged. */
int qcow2_table_refs_check_locked (struct qcow2_txn *txn,
                                   const struct qcow2_table_refs *refs,
                                   uint64_t n) MUST_CHECK;
/* Counts each reference of the table N times more, and reports that, after
 * qcow2_table_refs_check_locked returned 0 under the same hold of the lock.
 * Cannot fail. */
void qcow2_table_refs_add_locked (struct qcow2_txn *txn,
                                  const struct qcow2_table_refs *refs,
                                  uint64_t n);
/* Clears COPIED in all entries of a table whose slices are pinned and whose
 * references were checked, and reports that.  Cannot fail. */
void qcow2_uncopy_locked (struct qcow2_txn *txn, uint64_t table_off);

/* --- change.c ------------------------------------------------------------ */
/* Makes a REFCOUNT change of COUNT clusters whose refcounts are all in the
 * pinned slice T, and whose anchor parts are in memory.  Reports nothing. */
void qcow2_refblock_change_locked (struct qcow2_image *img,
                                   struct qcow2_slice *t, uint64_t host_idx,
                                   uint64_t count, uint64_t refcount,
                                   bool anchored);
/* Applies C, then reports it to the log. */
int qcow2_change_locked (struct qcow2_txn *txn, const struct qcow2_change *c)
  MUST_CHECK;
/* Makes and reports a REFCOUNT change of one cluster whose tables are pinned,
 * which cannot fail. */
void qcow2_set_refcount_locked (struct qcow2_txn *txn, uint64_t host_idx,
                                uint64_t refcount, bool anchored);
/* Passes a guest's reference to each cluster of RUN, which is not anchored and has
 * this refcount, to the anchor (drop.c).  All is prepared. */
void qcow2_pass_to_anchor_locked (struct qcow2_txn *txn,
                                  const struct qcow2_run *run,
                                  uint64_t refcount);

/* --- alloc.c ------------------------------------------------------------- */
struct qcow2_bitset;           /* bitset.c: sparse, one bit per cluster */

struct qcow2_quarantined {
  uint64_t seq;
  struct qcow2_run run;
};

struct qcow2_alloc {
  struct qcow2_bitset *free;         /* known free */
  struct qcow2_bitset *busy;         /* refcount 0 but not free: quarantined,
                                      * or kept until the next open */
  struct qcow2_bitset *stale;        /* of `free`: the host may hold data */
  struct qcow2_bitset *suspect;      /* of `free`: and an entry may name it */
  bool suspects_lost;                /* some are in neither of these two */
  struct qcow2_bitset *released;     /* left quarantine before the scan came to
                                      * them */
  uint64_t stale_low;                /* fewest in `stale` lately */
  struct qcow2_bitset *garbage;      /* what the scan took for garbage, and
                                      * whose refcount is the same since */
  struct qcow2_verify *verify;       /* progress of verify.c */
  uint64_t cursor;                   /* next-fit */
  uint64_t run_cursor;               /* that of qcow2_reserve_run_locked */
  uint64_t frontier;                 /* first cluster past all used ones */
  uint64_t bound;                    /* the frontier may not pass this */
  uint64_t scan_next, scan_end;      /* clusters; [scan_next, scan_end) of
                                      * the file is not scanned yet.  The end
                                      * is UINT64_MAX until it is known */
  struct qcow2_quarantined *q;       /* a ring, in order of seq */
  size_t q_head, q_len, q_max;
  uint64_t nr_quarantined;
  bool frees_lost;             /* there was no memory for some */
};

/* Begins the allocator, after the flats (L1, refcount table, anchor L1) were
 * loaded.  Reads refcount blocks. */
int qcow2_alloc_init (struct qcow2_image *img) MUST_CHECK;
void qcow2_alloc_free (struct qcow2_image *img);
/* Computes the bound again, after the refcount table or the anchor's L1 changed
 * size. */
void qcow2_alloc_set_bound_locked (struct qcow2_image *img);
/* Notes that clusters have a refcount above 0 now. */
void qcow2_alloc_used_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count);
/* Notes that clusters are free, and stale. */
void qcow2_alloc_found_free_locked (struct qcow2_image *img,
                                    uint64_t host_idx, uint64_t count);
/* Notes clusters that the scan found free: they are suspects, unless they were
 * freed in this session. */
void qcow2_alloc_scanned_free_locked (struct qcow2_image *img,
                                      uint64_t host_idx, uint64_t count);
/* Notes clusters that have refcount 0 but must not be used before the next
 * open. */
void qcow2_alloc_keep_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count);
/* Returns the frontier; called without the lock. */
uint64_t qcow2_host_frontier (struct qcow2_image *img);
/* Ends the part of the file to be scanned at the present frontier, unless its
 * end was fixed before. */
void qcow2_alloc_fix_scan_locked (struct qcow2_image *img);
size_t qcow2_alloc_memory (const struct qcow2_image *img);

/* --- stale.c --------------------------------------------------------------- */
/* These note free clusters for which the host may hold data: as stale, if this
 * session knows that nothing refers to the data, else as suspects.  They are
 * called with the lock. */
void qcow2_stale_put (struct qcow2_alloc *a, uint64_t host_idx,
                      uint64_t count);
void qcow2_suspect_put (struct qcow2_alloc *a, uint64_t host_idx,
                        uint64_t count);
/* Notes that clusters are neither any more: they are in use, or empty.  Called
 * with the lock. */
void qcow2_stale_clear (struct qcow2_alloc *a, uint64_t host_idx,
                        uint64_t count);

/* --- named.c --------------------------------------------------------------- */
struct qcow2_walk {            /* over all L2 tables but the anchor's */
  unsigned root;               /* as for qcow2_get_entry_locked */
  uint64_t next;               /* entry of its L1 table */
  uint64_t changes;            /* of the set of roots, that it knows of */
  struct qcow2_bitset *seen;   /* tables that were looked at */
  uint64_t nr_in_use;          /* clusters that left their set */
};

/* Reads some more L2 tables, and removes from `suspect` and `garbage` what an
 * entry names.  W is all zero at first.  Returns 1 while there is more, 0 at the
 * end, -EIO if a table cannot be read, -ENOMEM. */
int qcow2_walk_step (struct qcow2_image *img, struct qcow2_walk *w) MUST_CHECK;
void qcow2_walk_free (struct qcow2_walk *w);

/* --- verify.c -------------------------------------------------------------- */
void qcow2_verify_free (struct qcow2_image *img);

/* --- table-reserve.c ------------------------------------------------------- */
#define QCOW2_TABLE_RESERVE_MAX 512u

struct qcow2_table_reserve {
  uint64_t v[QCOW2_TABLE_RESERVE_MAX];   /* host indices; the last is next */
  unsigned nr;
  bool filling;                /* by one thread, without the lock */
  bool flats_backed;           /* L1, refcount table, anchor L1 have space */
};

/* Takes a cluster for a table from the reserve; -EAGAIN as in qcow2.h. */
int qcow2_table_reserve_take_locked (struct qcow2_txn *txn,
                                     struct qcow2_run *run) MUST_CHECK;
/* Puts back a cluster that was not used. */
void qcow2_table_reserve_put_locked (struct qcow2_image *img,
                                     const struct qcow2_run *run);
/* Fills the reserve: the I/O half of qcow2_txn_load, with the lock as in
 * qcow2_cache_load_locked.  -ENOSPC if the host has no space. */
int qcow2_table_reserve_fill_locked (struct qcow2_image *img) MUST_CHECK;

/* --- unlogged.c ------------------------------------------------------------ */

/* Limits the drops that an operation may make after one call of
 * qcow2_unlogged_reserve_locked: those of its clusters, and of the L2 tables
 * that it copies. */
#define QCOW2_UNLOGGED_DROPS 2048u

struct qcow2_unlogged {
  bool on;
  struct qcow2_run *drops;     /* references that are still counted */
  size_t nr, max;
};

/* Reserves memory for QCOW2_UNLOGGED_DROPS more drops. */
int qcow2_unlogged_reserve_locked (struct qcow2_image *img) MUST_CHECK;
/* Notes the drop of a reference to each cluster of RUN; cannot fail. */
void qcow2_unlogged_drop_locked (struct qcow2_image *img,
                               const struct qcow2_run *run);
void qcow2_unlogged_free (struct qcow2_image *img);

/* --- writeback.c --------------------------------------------------------- */
/* Syncs the file.  Returns 0, or -EIO for any failure, which is final. */
int qcow2_final_sync (struct io_store *io) MUST_CHECK;

/* --- dirty-bitmaps.c ------------------------------------------------------- */
struct qcow2_dirty_bitmap {    /* a persistent bitmap */
  uint64_t entry_off;          /* of its directory entry */
  uint64_t table_off;
  uint64_t table_entries;
  uint32_t flags;              /* as in the file */
  unsigned granularity_bits;
  char name[64];               /* cut, for messages */
  bool tracked;
  struct qcow2_bitset *noted;  /* owned; of tracked ones */
};

struct qcow2_dirty_bitmaps {
  /* Constant after open: */
  struct qcow2_dirty_bitmap *v;      /* owned; notes: protected by lock */
  size_t nr, nr_tracked;
  uint64_t directory_off, directory_len;   /* bytes, if valid */
  bool valid;                  /* there is a directory, and it is valid */
  bool in_use;                 /* marked in use; changed at the begin and end of
                                * a session only */
};

/* Reads the directory of bitmaps.  One that is not valid is no error. */
int qcow2_bitmaps_load (struct qcow2_image *img, struct fault *f) MUST_CHECK;
void qcow2_bitmaps_free (struct qcow2_image *img);
/* Marks all enabled bitmaps as in use, because a change may make them wrong,
 * and syncs. */
int qcow2_bitmaps_begin (struct qcow2_image *img) MUST_CHECK;
/* Calls CB with each range of bytes of the file that bitmaps use.  Returns 0 or
 * -errno. */
int qcow2_bitmaps_each (struct qcow2_image *img,
                        void (*cb) (void *opaque, uint64_t host_off,
                                    uint64_t len), void *opaque) MUST_CHECK;
/* Logs a line if the next write of the header gives up the bitmaps. */
void qcow2_bitmaps_warn (struct qcow2_image *img);
/* Returns the autoclear bits of the file that still hold when it is written. */
uint64_t qcow2_kept_autoclear (const struct qcow2_image *img);

/* --- bitmap-entry.c -------------------------------------------------------- */
/* Applies a BITMAP change, with the results of qcow2_apply_locked. */
int qcow2_bitmap_apply_locked (struct qcow2_txn *txn,
                               const struct qcow2_change *c) MUST_CHECK;

/* --- guard.c --------------------------------------------------------------- */
struct qcow2_guard {           /* a bit a cluster; all NULL: not opened for
                                * writing */
  struct qcow2_bitset *disk;   /* header, active disk, anchor, store */
  struct qcow2_bitset *snapshots;
  struct qcow2_bitset *bitmaps;
  struct qcow2_bitset *left;   /* of disk: no table any more, but its bytes
                                * must stay until the next open */
  bool not_whole;              /* some clusters are missing in the sets */
};

void qcow2_guard_free (struct qcow2_guard *g);
/* Returns whether a snapshot may have a table in this cluster. */
bool qcow2_guard_has_snapshot_locked (struct qcow2_image *img,
                                      uint64_t host_idx) MUST_CHECK;
/* Returns whether two L1 tables, or two entries of the disk's, certainly name
 * this cluster. */
bool qcow2_guard_is_shared_locked (struct qcow2_image *img, uint64_t host_idx)
  MUST_CHECK;
/* Notes that an L1 entry which named HOST_IDX names a copy now.  If no other
 * entry names HOST_IDX, it is no table any more, but its bytes are kept until
 * the next open, because a replay makes the copy again. */
void qcow2_guard_leave_locked (struct qcow2_image *img, uint64_t host_idx);
/* Returns whether a cluster is one that was left in this way. */
bool qcow2_guard_left_locked (struct qcow2_image *img, uint64_t host_idx)
  MUST_CHECK;
/* Notes that clusters of tables were freed: they are no tables any more. */
void qcow2_guard_freed_locked (struct qcow2_image *img, uint64_t host_idx,
                               uint64_t count);
/* Returns whether a cluster belongs to a table, a bitmap or the store, and so
 * must stay in use whatever refcounts say. */
bool qcow2_guard_stays_locked (struct qcow2_image *img, uint64_t host_idx)
  MUST_CHECK;

/* --- hold.c -------------------------------------------------------------- */
struct qcow2_hold {
  uint64_t host_idx;           /* 0: empty slot (cluster 0 is the header) */
  uint64_t count;
  struct qcow2_slice *block;   /* with its refcount, pinned by the hold */
};

#define QCOW2_MAX_EXPANDED 128u

struct qcow2_expanded_slot {
  uint64_t entry;              /* compressed; 0: none */
  uint64_t used;               /* when, by the clock */
  unsigned users;              /* that copy it now */
  uint8_t *data;               /* owned, one cluster; or NULL */
};

struct qcow2_expanded {
  struct lock lock;            /* protects the rest */
  uint64_t clock;
  unsigned nr_data;            /* slots with memory; atomic, never less */
  struct qcow2_expanded_slot v[QCOW2_MAX_EXPANDED];
};

struct qcow2_readers {         /* readers.c */
  /* Atomic: */
  unsigned phase;
  uint64_t nr[2];              /* readers that began in an even, an odd phase */
  bool is_awaited;             /* somebody waits for the end of a phase's readers */
  pthread_mutex_t mutex;       /* is held to wait for it, and to tell it: */
  pthread_cond_t ended;
  /* Protected by the image's lock: */
  uint64_t moves;              /* changes of entries that readers may rely on */
  uint64_t settled;            /* ... on which none relies any more */
};

struct qcow2_decoder;

struct qcow2_decoders {        /* decoder.c */
  struct lock lock;            /* protects the rest */
  struct qcow2_decoder *unused;
  unsigned nr;                 /* that are unused */
  uint64_t bytes;              /* of memory in these */
};

struct qcow2_holds {           /* hash table, open addressing */
  struct qcow2_hold *v;
  size_t nr, max;              /* max is a power of two, or 0 */
};

void qcow2_holds_free (struct qcow2_image *img);

/* --- disks.c ------------------------------------------------------------- */
struct qcow2_freed {           /* clusters of tables that were freed */
  struct qcow2_run *v;         /* owned */
  size_t nr, max;
  uint64_t clusters;           /* in the runs of V */
};

/* Of each pair, the first is what came since the last mark (disks.c). */
struct qcow2_disks {
  bool on;                     /* see qcow2_has_disks; atomic */
  uint64_t token;              /* of the last mark */
  uint64_t changes;            /* of the set of roots, since open */
  struct qcow2_bitset *source[2];  /* recent sources */
  struct qcow2_freed freed[2]; /* table quarantine */
  struct qcow2_bitset *uncopied;   /* tables that the active disk's L1 table
                                    * names without COPIED */
  bool uncopied_lost;          /* some are not in it */
  struct qcow2_bitset *replayed;   /* clusters that the replay freed */
};

/* Finds out if the image has disks, once the snapshot table was read. */
int qcow2_disks_init (struct qcow2_image *img) MUST_CHECK;
void qcow2_disks_free (struct qcow2_image *img);
/* Returns the slot of ROOT; NULL for the active disk, and where there is no
 * such root. */
const struct qcow2_snapshot *
qcow2_root_slot_locked (const struct qcow2_image *img, unsigned root);
/* Notes that the table at HOST_IDX is about to be copied: it counts as shared
 * until a checkpoint that begins later is complete.  -ENOMEM: do not copy it. */
int qcow2_note_source_locked (struct qcow2_image *img,
                              uint64_t host_idx) MUST_CHECK;
/* Notes during a replay that clusters became free or used; -ENOMEM. */
int qcow2_replay_refcount_locked (struct qcow2_image *img, uint64_t host_idx,
                                  uint64_t count, bool freed) MUST_CHECK;
/* Ends a replay: what it freed is in table quarantine, if there are disks. */
void qcow2_replay_freed_locked (struct qcow2_image *img);
/* Returns whether a table was copied since then. */
bool qcow2_is_source_locked (struct qcow2_image *img, uint64_t host_idx);
/* Returns whether an L2 table with this refcount may be changed in place,
 * because no other path and no replay needs it as it is. */
bool qcow2_is_exclusive_locked (struct qcow2_image *img, uint64_t host_idx,
                                uint64_t refcount);
/* Notes that the active disk's L1 table has ENTRY now. */
void qcow2_note_active_l1_locked (struct qcow2_image *img, uint64_t entry);
/* Returns whether an entry of it may name this table without COPIED. */
bool qcow2_may_lack_copied_locked (struct qcow2_image *img,
                                   uint64_t host_idx);
/* Frees COUNT clusters of a table (L2, L1 or snapshot table), whose REFCOUNT
 * change to 0 was made: they can be allocated once a checkpoint that begins
 * later is complete.  Without memory for that, they are lost until the next
 * open. */
void qcow2_free_table_locked (struct qcow2_image *img, uint64_t host_idx,
                              uint64_t count);

/* --- host-file.c --------------------------------------------------------- */
/* Opens the file NAME that IMG names, if the policy of IMG allows it.  No other
 * function opens files that an image names.  FLAGS as for io_file_open.  *PATH
 * (the caller's, also after a failure) becomes its path. */
int qcow2_host_file_open (const struct qcow2_image *img, const char *name,
                          int flags, enum io_file_lock lock, char **path,
                          struct io_store **io, struct fault *f) MUST_CHECK;

/* --- data-file.c --------------------------------------------------------- */
static inline bool
qcow2_has_data_file (const struct qcow2_geometry *g)
{
  return g->has_data_file;
}

/* Returns whether ENTRY, which is not compressed, names a cluster.  With an
 * external data file offset 0 is as valid as any other. */
static inline bool
qcow2_has_place (const struct qcow2_geometry *g, uint64_t entry)
{
  return (entry & QCOW2_OFFSET_MASK) ||
    (qcow2_has_data_file (g) && (entry & QCOW2_L2_COPIED));
}

/* Opens the external data file, if the image has one. */
int qcow2_data_file_open (struct qcow2_image *img, struct fault *f)
  MUST_CHECK;

/* --- backing.c ----------------------------------------------------------- */
struct qcow2_backing {         /* the file below an image */
  struct io_store *io;         /* owned */
  struct qcow2_image *img;     /* owned; NULL: the file is raw */
  uint64_t size;               /* guest bytes */
  /* Reads guest bytes; zeroes past the end.  It is a pointer because read.c
   * calls it, while backing.c, which sets it, uses read.c. */
  int (*read) (const struct qcow2_backing *b, void *buf, uint64_t guest_off,
               size_t len);
};

/* Opens the file that the header names as img->backing, which is freed by
 * qcow2_close, also after a failure.  *PATH (the caller's, also then) becomes
 * its path.  If *IS_QCOW2 is set, the caller opens it as an image and sets img
 * and size. */
int qcow2_backing_open (struct qcow2_image *img, char **path, bool *is_qcow2,
                        struct fault *f) MUST_CHECK;

/* --- decoder.c ----------------------------------------------------------- */
void qcow2_decoders_init (struct qcow2_image *img);
void qcow2_decoders_free (struct qcow2_image *img);
/* Returns how many bytes of memory are kept. */
uint64_t qcow2_decoders_bytes (struct qcow2_image *img);
/* Takes a decoder for the image's compression type, which the second gives back.  NULL:
 * out of memory. */
struct qcow2_decoder *qcow2_decoder_get (struct qcow2_image *img);
void qcow2_decoder_put (struct qcow2_image *img, struct qcow2_decoder *d);
/* As qcow2_compressed_expand. */
int qcow2_decoder_expand (const struct qcow2_image *img, struct qcow2_decoder *d,
                          const uint8_t *in, size_t len, uint8_t *out) MUST_CHECK;

/* --- expanded.c ---------------------------------------------------------- */
void qcow2_expanded_init (struct qcow2_image *img);
void qcow2_expanded_free (struct qcow2_image *img);
/* Returns how many bytes of memory are used. */
uint64_t qcow2_expanded_bytes (struct qcow2_image *img);

/* --- readers.c ------------------------------------------------------------ */
void qcow2_readers_init (struct qcow2_image *img);
void qcow2_readers_destroy (struct qcow2_image *img);

/* --- in-place.c ----------------------------------------------------------- */
/* Returns whether entries of an L2 table with this refcount may be changed in place, if
 * it is no recent source, in an image whose records name places. */
bool qcow2_has_few_paths (uint64_t refcount);

/* --- header.c ------------------------------------------------------------ */
struct qcow2_header {          /* decoded, valid by construction */
  struct qcow2_geometry geo;
  uint64_t backing_off;
  uint32_t backing_len;
  uint32_t crypt_method;
  uint32_t l1_entries;
  uint64_t l1_off;
  struct qcow2_header_fields fields;   /* anchor_l1_*: by snapshot-table.c */
  uint32_t header_length;
  char backing_name[QCOW2_MAX_BACKING_NAME + 1];
  char backing_format[64];
  char data_file_name[QCOW2_MAX_BACKING_NAME + 1];
  uint8_t bitmaps_ext[24];     /* payload, bitmaps_ext_len of it; 0: none */
  uint32_t bitmaps_ext_len;
  bool has_store_ext;
  uint8_t store_ext[QCOW2_STORE_EXTENSION_SIZE];
};

/* Decodes the first cluster (LEN bytes of it, at least 512).  Refuses images
 * with features that are not served, and names the feature. */
int qcow2_header_decode (const uint8_t *buf, size_t len,
                         struct qcow2_header *h, struct fault *f) MUST_CHECK;
/* Finds the cluster size that the first 512 bytes BUF name; checks nothing
 * else. */
int qcow2_header_cluster_size (const uint8_t *buf, uint64_t *cluster_size,
                               struct fault *f) MUST_CHECK;

/* --- header-build.c -------------------------------------------------------- */
/* Rebuilds the first cluster BUF (as read, cluster_size bytes) in place, with
 * new header fields, the size and autoclear bits of H, bit 48 set, the store's
 * extension and its feature name.  Other extensions and the backing name are
 * kept.  -ENOSPC if it does not fit. */
int qcow2_header_rebuild (uint8_t *buf, const struct qcow2_header *h,
                          const struct qcow2_header_fields *fields,
                          const uint8_t *ext, struct fault *f) MUST_CHECK;
/* Builds the first cluster BUF (cluster_size bytes) of a new image without
 * snapshots, extensions or backing file. */
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

  unsigned bad_entries_told;   /* atomic: lines that map.c has logged */

  struct lock lock;

  /* Protected by lock: */
  struct qcow2_header_fields fields;   /* as in memory; header_dirty: not yet
                                        * in the file */
  bool header_dirty;
  bool header_writing;         /* in a writeback that has not ended */
  bool writing_back;           /* there is a writeback */
  bool read_failed;            /* of a table, or part of the anchor */
  bool replaying;              /* see qcow2_replay_begin */
  unsigned bad_tables_told;    /* lines that debt-steps.c has logged */
  struct qcow2_flat l1;
  struct qcow2_flat reftable;
  struct qcow2_snapshot_table snapshots;
  struct qcow2_cache cache;
  struct qcow2_anchor anchor;
  struct qcow2_alloc alloc;
  struct qcow2_guard guard;    /* guard.c */
  struct qcow2_table_reserve table_reserve;
  struct qcow2_holds holds;
  struct qcow2_expanded expanded;   /* has a lock of its own */
  struct qcow2_decoders decoders;   /* has a lock of its own */
  struct qcow2_readers readers;
  struct qcow2_disks disks;    /* disks.c */
  struct qcow2_dirty_bitmaps bitmaps;
  struct qcow2_unlogged unlogged;  /* .on: constant once writing starts */
  struct qcow2_log log;
  pthread_cond_t loaded;       /* a table or anchor part finished loading */
};

/* --- image.c -------------------------------------------------------------- */
/* Returns the first cluster from which on nothing of the image can be: behind
 * the frontier and the end of the file, whichever is later. */
uint64_t qcow2_host_end (const struct qcow2_image *img);
/* Returns the first cluster from which on no table can be: qcow2_host_end, but
 * while a journal is replayed at least the end of what the refcount table
 * covers. */
uint64_t qcow2_tables_end_locked (const struct qcow2_image *img);
/* Returns how many clusters the refcount table can count. */
uint64_t qcow2_refcount_coverage (const struct qcow2_image *img);

/* The first returns which refcount block counts a cluster, as an index into the
 * refcount table; the second whether that block exists. */
static inline uint64_t
qcow2_refblock_of (const struct qcow2_image *img, uint64_t host_idx)
{
  return host_idx / img->header.geo.refblock_entries;
}

static inline bool
qcow2_has_refblock (const struct qcow2_image *img, uint64_t b)
{
  return b < img->reftable.nr && img->reftable.v[b] != 0;
}

/* Returns whether L2 tables may be lent: the image has disks, and there is a
 * log. */
static inline bool
qcow2_lends_tables (const struct qcow2_image *img)
{
  return qcow2_has_disks (img) && !img->unlogged.on;
}

/* Reports change C to the log, if there is one.  A replay does not call this,
 * because its changes are in the log already. */
static inline void
qcow2_report_locked (struct qcow2_image *img, const struct qcow2_change *c)
{
  assert (lock_held (&img->lock));
  if (img->log.append_locked)
    img->log.append_locked (img->log.opaque, c);
}

#endif
