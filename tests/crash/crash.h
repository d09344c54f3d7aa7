/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of the crash test share (see crash-states.c).
 *
 * The disk's content is a row of units of a quarter cluster.  Each is filled
 * from one number, its content id (0: zeroes), so a whole disk is an array of
 * ids and yet compared byte for byte.
 */
#ifndef CRASH_H
#define CRASH_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dedup-types.h"
#include "hash.h"
#include "io.h"
#include "range-lock.h"

#define UNITS_PER_CLUSTER 4
#define MAX_CLIENTS 4
#define MAX_OP_UNITS 128
#define ID_ADOPTED (UINT64_C (1) << 62)   /* content that was there before */
#define ID_ROTTEN (UINT64_C (1) << 61)    /* ... and has one wrong bit; in a model:
                                           * it has, unless it was healed */
#define ID_UNIQUE (UINT64_C (1) << 32)
#define ID_ABSENT (UINT64_C (1) << 63)    /* of a disk that does not exist */
#define NEVER SIZE_MAX
#define MAX_SLOTS 6

/* --- random numbers ------------------------------------------------------ */

struct rng { uint64_t s; };

uint64_t rnd (struct rng *r, uint64_t n);       /* 0 .. n-1 */
static inline bool
chance (struct rng *r, uint64_t one_in)
{
  return rnd (r, one_in) == 0;
}
struct rng rng_of (uint64_t seed, uint64_t salt);

/* --- configurations -------------------------------------------------------- */

enum base_kind {
  BASE_CREATED,       /* by dedup_create */
  BASE_PLAIN,         /* stock image with data, adopted in the workload */
  BASE_COMPRESSED,    /* the same, compressed */
  BASE_SNAPSHOT,      /* the same, with an internal snapshot */
  BASE_EXTENDED,      /* the same as SNAPSHOT, with extended L2 entries */
  BASE_DUPLICATES,    /* stock image, most of it there twice, zeroes stored;
                       * an internal snapshot shares half of it */
  BASE_BITMAPS,       /* the same as PLAIN, with persistent bitmaps */
  BASE_GROWN,         /* made small, its virtual size raised afterwards */
};

struct cfg {
  char name[32];
  unsigned cluster_bits, refcount_order;
  unsigned order, max_incarnations, journal_areas;
  unsigned nr_clusters;        /* that the workload uses */
  unsigned clients;            /* 1: everything in one thread */
  unsigned nr_ops;             /* in all */
  unsigned flush_one_in, reopen_one_in, job_one_in, zero_one_in;
  enum base_kind base;
  bool partial_end, no_verify, no_dedup, fail_sync;
  bool deep;                   /* crash again more often */
  enum dedup_hash_alg hash;
  bool rot;                    /* bytes rot more often */
  uint64_t index_memory;       /* bound, bytes; 0: none */
  unsigned index_one_in;       /* after an operation: a step of indexing */
  unsigned base_one_in;        /* of the clusters that are written: content that
                                * some cluster of the base had */
  unsigned move_one_in;        /* ... a move of some clusters (dedup_defragment) */
  bool store_file;             /* the index lies in a second file */
  bool fail_store;             /* which fails some time */
  bool deep_merges;            /* merges catch up: all levels are there */
  bool stale;                  /* bytes of an earlier use behind the image */
  bool no_space;               /* the host is full for a while, now and then */
  bool limited;                /* most sessions, by a limit that drops nothing */
  unsigned disks;              /* slots for disks that share the clusters, the
                                * first is the active one; 0: only that */
  unsigned disk_one_in;        /* ... an operation on the set of disks */
  bool jobs_beside;            /* jobs have a thread of their own */
  bool slow_checkpoints;       /* ... and clients do much during each of its
                                * checkpoints */
  bool write_twins;            /* a clone and its source are written at once */
  unsigned scrub_one_in;       /* after an operation: a step of a scrub, which
                                * must find nothing bad */
  unsigned compact_one_in;     /* ... a step of a compaction */
  unsigned compress_one_in;    /* ... of compressing what was written plain; 0: new data
                                * is compressed at once, if it is */
  unsigned sample_one_in;      /* ... a sample of the past */
  unsigned rotten_one_in;      /* contents of the base (rotten.c) that were lost,
                                * and found bad; 0: there is no such base */
  unsigned rest_one_in;        /* jobs: all that is due, as at idle; 0: 20 */
  unsigned rewrite_one_in;     /* ... some data of the active disk is stored again; for
                                * one client */
  enum dedup_compress compress;   /* new data; the image's compression type */
  bool set_compress;           /* ... and disks get settings of their own */
  unsigned block;              /* what the medium writes as a whole; 0: a sector */
  unsigned cut_one_in;         /* the image is behind NBD, and a request may lose
                                * its connection; 0: it is not */
  unsigned connections;        /* ... so many at a time */
  unsigned min_block;          /* ... its smallest block; 0: a byte */
  bool strays;                 /* ... and lost writes may land later */
  unsigned kill_one_in;        /* ... sessions end by kill -9 */
  bool announced;              /* ... and what is around each read is read ahead */
  bool no_delay;               /* ... and a lost connection is not made again */
  unsigned error_one_in;       /* ... requests that are refused with an error */
  bool taken_over;             /* ... another server takes over from one that
                                * hangs, which continues then */
};

extern const struct cfg crash_configs[];
extern const size_t nr_crash_configs;

/* --- a workload that ran ------------------------------------------------------ */

struct mop {                   /* one atomic change of the model */
  unsigned client;
  uint64_t start_tick, done_tick;   /* UINT64_MAX: not completed */
  size_t start_pos;            /* length of the log when it started */
  size_t durable_pos;          /* ... when it was known to be durable */
  size_t first, nr;            /* units */
  uint64_t *ids;
};

struct mflush {
  uint64_t start_tick;
  size_t done_pos;
};

struct world {
  struct cfg cfg;
  uint64_t seed;
  size_t unit;                 /* bytes */
  size_t nr_units;
  size_t slot_units;           /* of each disk; all of them, if it is one */
  size_t data_units;           /* the first of these, without the label */
  struct srv_disk *slots[MAX_SLOTS];   /* disks but the active one, if open and
                                        * there */
  uint64_t *base_ids;          /* before the first operation */
  bool created;                /* there was a store from the start */
  bool paced;                  /* clients rest, and go on while a sync lasts */
  bool recovered;              /* it starts with a recovery */
  bool killed;                 /* its session ends without a close */
  bool index_lost;             /* so did some of the index */
  bool twice;                  /* some contents may be stored twice, and the
                                * index then knows one of the places */
  bool has_space;              /* no_space: not now */
  bool ended;                  /* ... and a close found none */
  unsigned session_limit;      /* of incarnations, now; 0: as configured */

  pthread_mutex_t changing;    /* of SLOTS, while clients run */
  pthread_mutex_t mutex;       /* of what follows, while clients run */
  unsigned full_left;          /* writes that find no space */
  struct mop *ops;
  size_t nr_ops, max_ops;
  struct mflush *flushes;
  size_t nr_flushes, max_flushes;
  uint64_t tick;
  uint64_t next_id;

  struct io_store *rec;        /* the recording; NULL: LOG is owned */
  const struct io_record *log;
  size_t nr_log;
  size_t fault_from, fault_to; /* records that a failed sync left open */
  bool faulted;
  struct host *host;           /* of an image behind NBD; NULL: it is not */
  struct world *next;          /* what a later server did, from other bytes */
  struct bytes *next_base;     /* ... these; both are owned */
  char error[300];             /* set: the workload itself failed */
};

void world_init (struct world *w, const struct cfg *cfg, uint64_t seed);
void world_free (struct world *w);
void world_error (struct world *w, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
size_t unit_bytes (const struct world *w, size_t u);  /* the last may be less */
uint64_t disk_bytes (const struct world *w);          /* of all disks */
uint64_t slot_bytes (const struct world *w);          /* of one of them */

/* Fill or recognize one unit. */
void fill_unit (uint8_t *p, size_t len, uint64_t id);
bool recognize_unit (const uint8_t *p, size_t len, uint64_t *id);

/* --- images and byte stores ----------------------------------------------------- */

/* Byte stores here are one or two files: bytes of the store file have
 * IN_STORE_FILE set in their offset.  Size and sync are those of the image. */
#define IN_STORE_FILE (UINT64_C (1) << 62)

/* The store file in IO as a byte store of its own; until the fourth call from
 * now in this thread. */
struct io_store *store_file_of (struct io_store *io);
/* Is it a sync?  Then of which file: 0 or 1. */
bool is_sync (const struct io_record *r, unsigned *file);
unsigned file_of (const struct io_record *r);
/* Two files as one, on a medium that writes blocks of BLOCK bytes; they are closed with
 * it. */
struct io_store *pair_new (struct io_store *image, struct io_store *store, unsigned block);
/* With an empty one in memory. */
struct io_store *pair_of (struct io_store *image, unsigned block);
/* One of them; NULL: it is no pair. */
struct io_store *pair_file (struct io_store *io, unsigned file);

struct bytes {                 /* zero padded to pages */
  uint8_t *p;
  size_t size;
  uint8_t *p2;                 /* the store file; may be NULL */
  size_t size2;
  unsigned block;              /* what the medium writes as a whole; 0: a sector */
};
void bytes_free (struct bytes *b);
void bytes_copy (const struct bytes *from, struct bytes *to);

int bytes_of_store (struct io_store *io, struct bytes *b);
/* Adds the store file in IO, which may be a wrapper of a pair. */
int bytes_of_store_file (struct io_store *io, struct bytes *b);
struct io_store *store_of_bytes (const struct bytes *b);

/* The image before the workload, and what it holds. */
int make_base (struct world *w, struct bytes *out);

/* A store over a base that does not change: FLAT, or another one. */
struct io_store *cow_new (const struct bytes *flat, struct io_store *parent);
uint64_t cow_changes (struct io_store *s);   /* calls that changed it */

/* What a crash made of one record of the log. */
enum fate { FATE_KEPT, FATE_LOST, FATE_TORN_512, FATE_TORN_4096 };

/* What became of the store file besides. */
enum store_fate { STORE_KEPT, STORE_LOST, STORE_CUT, STORE_OLDER, STORE_HEADER,
                  NR_STORE_FATES };

struct state {
  enum store_fate store_fate;
  size_t store_pos;            /* OLDER: as of this record */
  size_t pos;                  /* the crash: records before it were called */
  size_t from;                 /* those before are all on disk */
  size_t nr;                   /* pos - from */
  uint8_t *fate;
  uint32_t *order;             /* applied in this order */
  uint64_t seed;               /* of the torn ones, and of the judge */
};

/* The first record that may be lost when the crash is at POS. */
size_t state_window (const struct world *w, size_t pos);
void state_random (const struct world *w, size_t pos, uint64_t seed,
                   struct state *st);
void state_free (struct state *st);
void state_copy (const struct state *a, struct state *out);
void state_apply (const struct world *w, const struct state *st,
                  struct io_store *to);
/* Play the records [FROM, TO) into a flat image. */
void bytes_play (const struct world *w, size_t from, size_t to,
                 struct bytes *b);

/* --- running ------------------------------------------------------------------------ */

/* Run the workload of W on BELOW, which W->rec owns from then on. */
void run_workload (struct world *w, struct io_store *below);
/* One session of it on IO, of NR operations. */
void run_session (struct world *w, struct io_store *io, struct rng *r,
                  unsigned nr);
/* In one thread, on an open disk: NR operations; ends with the disk open. */
struct srv_disk;
void run_single (struct world *w, struct srv_disk *disk, struct rng *r,
                 unsigned nr);
struct dedup_pool;
struct fault;
int open_disk (const struct world *w, struct io_store *io, bool writable,
               struct dedup_pool **d, struct fault *f);
void disk_begin (struct dedup_pool *d, struct srv_disk *disk);
void disk_end (struct srv_disk *disk);
/* One operation of CLIENT, recorded.  IDS has NR units; NULL: trim/zero. */
int do_write (struct world *w, struct srv_disk *disk, unsigned client,
              size_t first, size_t nr, const uint64_t *ids, bool fua);
int do_flush (struct world *w, struct srv_disk *disk);
/* What it zeroes is several operations, if its ends are no whole clusters. */
int do_unmap (struct world *w, struct srv_disk *disk, unsigned client,
              size_t first, size_t nr, bool trim, bool may_trim);
void note_flushed (struct world *w, uint64_t start_tick);

/* --- behind NBD (remote.c, servers.c) -------------------------------------------- */

/* Makes an image as large as its export is to be. */
void make_export (struct bytes *b);
/* Runs the workload of W on an export with these bytes; sets W->next as well. */
void run_servers (struct world *w, const struct bytes *base);
/* Returns whether WHAT may fail, with R, by now: something could not be written where
 * a lost write may land, or the server has lost its lease. */
bool may_fail (const struct world *w, const char *what, int r);

/* --- several disks (disks.c) ---------------------------------------------------- */

/* Opens and closes the disks of slots beside the active one, by their names. */
void slots_begin (struct world *w, struct dedup_pool *d);
void slots_end (struct world *w);
/* Returns the disk that has a unit, and in *OFF the byte there; DISK is the
 * active one.  NULL: there is none, or it is a snapshot. */
struct srv_disk *slot_disk (const struct world *w, struct srv_disk *disk,
                            size_t unit, uint64_t *off);
/* Returns whether a slot is one that this client writes to. */
bool slot_is_of (const struct world *w, size_t slot, unsigned client);
/* Returns how many units of data the disk of a slot has; 0: it cannot be
 * written. */
size_t slot_length (const struct world *w, size_t slot);
/* Creates, clones, resets, resizes, renames or deletes a disk of CLIENT.  SLOTS
 * become those of a disk that got the contents of another one, and of that one;
 * or NEVER. */
int disk_op (struct world *w, struct srv_disk *disk, unsigned client,
             struct rng *r, size_t slots[2]);
/* Reads the units of all disks; -errno, or -EILSEQ with *UNIT: it has no content
 * that was ever written. */
int read_slots (const struct world *w, struct dedup_pool *d, uint64_t *ids,
                size_t *unit);
/* The disks after all operations of the world. */
void final_ids (const struct world *w, uint64_t *ids);
size_t note_start (struct world *w, unsigned client, size_t first, size_t nr,
                   const uint64_t *ids);
void note_done (struct world *w, size_t i);
void note_void (struct world *w, size_t i);
void note_durable (struct world *w, size_t i);
uint64_t next_tick (struct world *w);
int result (struct world *w, const char *what, int r);

/* --- scrubs and samples (scrubs.c) ---------------------------------------------- */

struct dedup_scrub;

/* Makes a step of a scrub, if it is its turn: *SC is the one that runs, or NULL. */
int scrub_some (struct world *w, struct dedup_pool *d, struct rng *r,
                struct dedup_scrub **sc);
/* Makes a step of a compaction likewise, or of compressing what is plain; DISK is the only
 * one that clients write to meanwhile. */
struct srv_disk;
struct compacting {
  unsigned clients;            /* of the workload */
  bool locked;                 /* a range of disk */
  struct dedup_compact *c;     /* NULL: none runs */
  struct dedup_compress_work *z;        /* likewise */
  struct srv_disk *disk;
  struct srv_range range;      /* held while clusters are moved */
};
int compact_some (struct world *w, struct rng *r, struct compacting *k);
int compress_some (struct world *w, struct rng *r, struct compacting *k);
void end_compacting (struct compacting *k);
/* Adds a sample, if it is its turn. */
int sample_some (struct world *w, struct dedup_pool *d, struct rng *r);
/* Scrubs all of an image.  Returns how many clusters look bad, or -errno. */
int scrub_all (struct dedup_pool *d);

/* --- rot in the base (rotten.c) ------------------------------------------------- */

/* Fills the image B, lets some clusters rot, and scrubs it. */
int let_rot (struct world *w, struct bytes *b);
/* Returns whether a unit that has GOT is as a model says that has WANT there. */
static inline bool
is_as_modelled (uint64_t got, uint64_t want)
{
  return got == want || ((want & ID_ROTTEN) && got == (want & ~ID_ROTTEN));
}
/* Returns how many clusters rot. */
int nr_lost (const struct world *w);
/* Returns whether data with this id was lost, so that the index may not lead to it. */
bool may_be_lost (const struct world *w, uint64_t id);

/* --- judging -------------------------------------------------------------------------- */

/* Is GOT what some acceptable serial order left after a crash at POS?
 * FLUSHED: with all that was flushed. */
bool oracle_accepts (const struct world *w, const uint64_t *got, size_t pos,
                     bool flushed, char *why, size_t len);

struct verdict {
  bool bad;
  char msg[500];
  /* Where it happened, if inside a state of a state: owned copies. */
  struct world *inner;
  struct bytes inner_base;
  struct state inner_state;
};

struct counts { uint64_t states, inner, qemu; };   /* atomic */

/* What happened behind NBD, in all workloads; atomic. */
extern struct remote_counts {
  uint64_t requests, cuts;
  uint64_t losses;             /* caches of which something was lost */
  uint64_t strays;             /* lost writes that landed later */
  uint64_t kills;
  uint64_t ends;               /* of writing, as a call failed */
  uint64_t over_trims;         /* writes to what was trimmed and not flushed */
  uint64_t over_writes;        /* ... written, with other bytes, and not flushed */
  uint64_t errors;             /* requests that were refused */
  uint64_t hangs, cut_off;     /* servers from which another one took over */
  uint64_t mixed;              /* image and store file that differ in age */
} remote_counts;
#define COUNT(what) \
  __atomic_add_fetch (&remote_counts.what, 1, __ATOMIC_RELAXED)

#define JUDGE_DEEP 1u      /* also crash again */
#define JUDGE_QEMU 2u      /* also ask qemu-img */
#define JUDGE_ROT 4u       /* also damage journal and configuration */

void judge (const struct world *w, struct io_store *disk,
            const struct state *st, unsigned flags, struct verdict *v,
            struct counts *n);
void verdict_free (struct verdict *v);

/* --- saving ------------------------------------------------------------------------------ */

int save_state (const char *path, const struct world *w,
                const struct bytes *base, const struct state *st);
int load_state (const char *path, struct world *w, struct bytes *base,
                struct state *st);

#endif
