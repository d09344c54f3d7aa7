/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the programs of this directory share: a disk on a byte store in
 * memory that fails on demand, and the model that says what it must hold.
 *
 * A cluster is filled from one number, its content id (0: zeroes), so a whole
 * disk is an array of ids and yet compared byte for byte.  Everything here
 * runs in one thread; a broken promise prints the case, which is what
 * FAULT_CASE takes, and ends the program.
 */
#ifndef FAULT_WORLD_H
#define FAULT_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dedup.h"

#define CLUSTER 4096u
#define NR 192u                 /* guest clusters */
#define MAX_OPS 4000
#define MAX_OP_CLUSTERS 48u
#define ID_ABSENT (UINT64_C (1) << 63)   /* of a disk that has no such cluster */

/* Besides the calls of io.h: an allocation of memory. */
#define FAULT_MALLOC IO_NR_CALLS
#define FAULT_KINDS (IO_NR_CALLS + 1)

enum base { BASE_STORE, BASE_PLAIN, BASE_NOTHING, BASE_QEMU };

struct shape {                  /* a workload */
  const char *name;
  enum base base;
  unsigned order, journal_areas, max_incarnations;
  unsigned nr_ops;
  unsigned unique_in;          /* one in so many contents is new */
  bool flush_always;           /* a block of the journal for every operation */
  bool limit_removed;          /* after the first session */
  bool exact;                  /* verify=off */
  bool no_jobs;                /* writers make room for themselves */
  bool indexes;                /* what is there is indexed again */
  bool whole;                  /* every call fails once, at any scale: short */
  bool compress;               /* new data is compressed */
  bool later;                  /* ... when it is plain already */
  bool direct;                 /* without a store: fault-direct.c */
  unsigned disks;              /* the clusters are those of so many: fault-disks.c */

  /* BASE_QEMU: made by qemu-img, half full if not EMPTY. */
  const char *options;         /* of qemu-img convert */
  bool empty, snapshot, bitmaps, data_file;
  bool dirty;                  /* marked so, and its refcounts are wrong */
};

struct plan {                   /* which call fails, and how */
  unsigned kind;                /* enum io_call or FAULT_MALLOC */
  bool for_ever;
  int err;                      /* positive */
  unsigned long k;              /* the k-th, from 1; 0: none */
  /* From the k-th on the host is full, until it is not any more: */
  bool lifted;                  /* then all must go on */
  bool flaky;                   /* every second write finds space meanwhile */
};

struct op { uint64_t idx, nr, ids[MAX_OP_CLUSTERS]; };

struct fault_file {
  struct world *w;
  struct io_store *mem;         /* what other processes see */
  struct io_store *power;       /* what is left when the power fails */
  struct io_store *io;          /* over mem, failing */
  struct { uint64_t off, len; } *dirty;    /* written since the last sync */
  size_t nr_dirty, max_dirty;
};

struct world {
  const struct shape *shape;
  struct plan plan;

  struct fault_file image, data;    /* data: NULLs where there is none */
  struct dedup_pool *d;         /* NULL: closed */

  /* Faults: */
  bool armed;                   /* count, and fail when it is time */
  bool hit;
  bool healed;                  /* plan.lifted: there is space again */
  bool sync_failed;             /* in this session */
  bool remembers;               /* what was dirty stays so then */
  unsigned long calls[FAULT_KINDS];

  /* The model: */
  uint64_t first_ids[NR];       /* of the base image */
  uint64_t base_ids[NR];        /* when the last process had died */
  struct op ops[MAX_OPS];       /* those that took effect, in order */
  size_t nr_ops, durable;       /* the first DURABLE of them are */
  uint64_t now[NR];
  uint64_t rng, chance, next_id;
  unsigned long jobs_done, sessions;
  int ret;                      /* of the last call by ENGINE */
};

/* --- contents ------------------------------------------------------------ */

void fill_cluster (uint8_t *p, uint64_t id);
/* False: not as fill_cluster left it. */
bool identify_cluster (const uint8_t *p, uint64_t *id);
uint64_t rnd (uint64_t *rng, uint64_t n);

/* --- the stage ----------------------------------------------------------- */

void stage_init (const struct shape *s);   /* make the base image, once */
void open_params (const struct shape *s, struct dedup_open_params *p);
struct world *world_new (const struct shape *s, const struct plan *p);
void world_free (struct world *w);
void die (struct world *w, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3), __noreturn__));

/* Give an open disk its data file in memory, and take it away before the disk
 * is freed. */
void data_attach (struct dedup_pool *d, struct io_store *data);
/* dedup_free and more. */
void world_close (struct world *w);
/* What is dirty survives a power cut: all of it, or what CHANCE takes. */
void world_settle (struct world *w, uint64_t *chance);
const char *plan_mode (const struct plan *p);
/* Ask whether the call now made shall fail: 0 or -errno; with a plan that is
 * lifted, also how many of LEN bytes are written first. */
int fault_ask (struct world *w, unsigned kind, uint64_t len);
/* For the allocator's wrapper: the world whose engine runs, or NULL. */
extern struct world *fault_running;

extern const char *const fault_kind_names[FAULT_KINDS];

/* --- the play ------------------------------------------------------------ */

/* Run the workload with the plan's fault in it, then judge what is left. */
void play (struct world *w);
/* Is GOT what some prefix that has all that is durable left? */
bool is_prefix (const struct world *w, const uint64_t got[NR]);
void judge (struct world *w, struct io_store *io, const char *which);
/* Of a disk without a store. */
bool is_explained (const struct world *w, const uint64_t got[NR]);
void judge_all_direct (struct world *w);
/* A bitmap that says it can be relied on knows what differs in GOT. */
void judge_bitmaps (struct world *w, struct io_store *io,
                    const uint64_t got[NR], const char *which);

/* Takes the result of an operation of the engine into the model: OP took effect,
 * or failed, which may have left all of it or nothing.  Returns R. */
int settle_op (struct world *w, int r, const struct op *op, const char *what);

/* Enter and leave the engine, for the allocator's wrapper. */
#define ENGINE(w, call) \
  (fault_running = (w), (w)->ret = (call), fault_running = NULL, (w)->ret)

/* --- several disks (fault-disks.c) --------------------------------------- */

/* Clusters of each slot: all, if there is one disk. */
uint64_t slot_clusters (const struct world *w);
/* Finds the disk of a slot.  Returns its clusters, of those that the slot has; 0:
 * there is none. */
uint64_t slot_find (struct world *w, struct dedup_pool *d, unsigned slot,
                    unsigned *root, bool *writable);
/* Reads the clusters of all disks; -errno. */
int read_slots (struct world *w, struct dedup_pool *d, uint64_t ids[NR]);
/* Creates, clones, resets, renames, resizes or deletes a disk. */
void change_disks (struct world *w);

/* Steps of judging, in fault-judge.c. */
struct dedup_pool *open_again (struct world *w, struct io_store *io,
                               struct io_store *data, bool writable,
                               const char *which);
void read_disk (struct world *w, struct dedup_pool *d, uint64_t ids[NR],
                const char *which);
void judge_writing (struct world *w, struct dedup_pool *d, uint64_t ids[NR],
                    const char *which);

/* --- the loop ------------------------------------------------------------ */

/* Every plan of KIND with each of the errors, 0-terminated. */
void play_all (const struct shape *s, unsigned kind, const int *errs);
/* Every plan in which the host is full for a while. */
void play_lifted (const struct shape *s);
extern const struct shape fault_shapes[];
extern const size_t nr_fault_shapes;
/* The plan that FAULT_CASE names: false if there is none. */
bool play_one (void);
/* Read FAULT_SCALE and FAULT_SEED; "all" plays every k. */
void scale_init (void);
unsigned long scaled (unsigned long n);

#endif
