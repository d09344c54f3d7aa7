/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the crash test share (see crash-states.c).
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

#include "hash.h"
#include "io.h"

#define UNITS_PER_CLUSTER 4
#define MAX_CLIENTS 4
#define MAX_OP_UNITS 128
#define ID_ADOPTED (UINT64_C (1) << 62)   /* content that was there before */
#define ID_UNIQUE (UINT64_C (1) << 32)
#define NEVER SIZE_MAX

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
  bool store_file;             /* the index lies in a second file */
  bool fail_store;             /* which fails some time */
  bool deep_merges;            /* merges catch up: all levels are there */
  bool stale;                  /* bytes of an earlier use behind the image */
  bool no_space;               /* the host is full for a while, now and then */
  bool limited;                /* most sessions, by a limit that drops nothing */
};

extern const struct cfg crash_configs[];
extern const size_t nr_crash_configs;

/* --- a workload that ran ------------------------------------------------------ */

struct mop {                   /* one atomic change of the model */
  unsigned client;
  uint64_t start_tick, done_tick;   /* UINT64_MAX: not completed */
  size_t start_pos;            /* length of the log when it started */
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
  uint64_t *base_ids;          /* before the first operation */
  bool created;                /* there was a store from the start */
  bool paced;                  /* clients rest, and go on while a sync lasts */
  bool recovered;              /* it starts with a recovery */
  bool index_lost;             /* so did some of the index */
  bool has_space;              /* no_space: not now */
  bool ended;                  /* ... and a close found none */
  unsigned session_limit;      /* of incarnations, now; 0: as configured */

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
  char error[300];             /* set: the workload itself failed */
};

void world_init (struct world *w, const struct cfg *cfg, uint64_t seed);
void world_free (struct world *w);
void world_error (struct world *w, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
size_t unit_bytes (const struct world *w, size_t u);  /* the last may be less */
uint64_t disk_bytes (const struct world *w);

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
/* Two files as one; they are closed with it. */
struct io_store *pair_new (struct io_store *image, struct io_store *store);
/* With an empty one in memory. */
struct io_store *pair_of (struct io_store *image);
/* One of them; NULL: it is no pair. */
struct io_store *pair_file (struct io_store *io, unsigned file);

struct bytes {                 /* zero padded to pages */
  uint8_t *p;
  size_t size;
  uint8_t *p2;                 /* the store file; may be NULL */
  size_t size2;
};
void bytes_free (struct bytes *b);
void bytes_copy (const struct bytes *from, struct bytes *to);

int bytes_of_store (struct io_store *io, struct bytes *b);
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
/* In one thread, on an open disk: NR operations; ends with the disk open. */
struct srv_export;
void run_single (struct world *w, struct srv_export *e, struct rng *r,
                 unsigned nr);
struct dedup_disk;
struct fault;
int open_disk (const struct world *w, struct io_store *io, bool writable,
               struct dedup_disk **d, struct fault *f);
void export_init (struct world *w, struct dedup_disk *d,
                  struct srv_export *e);
void export_end (struct srv_export *e);
/* One operation of CLIENT, recorded.  IDS has NR units; NULL: trim/zero. */
int do_write (struct world *w, struct srv_export *e, unsigned client,
              size_t first, size_t nr, const uint64_t *ids, bool fua);
int do_flush (struct world *w, struct srv_export *e);
void note_flushed (struct world *w, uint64_t start_tick);

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
