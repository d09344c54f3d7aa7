/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares a scrub, and what the files of scrub/ offer each other.
 *
 * The clusters of a window have a print and a rank each.
 */
#ifndef DEDUP_SCRUB_PRIVATE_H
#define DEDUP_SCRUB_PRIVATE_H

#include <pthread.h>

#include "qcow2-packed.h"
#include "scrub.h"

/* A window: its memory is 5 bytes a cluster, 80 MiB at most, and the index, 1/100
 * of the data at 4 KiB, is read once for each 64 GiB. */
#define WINDOW_BYTES (UINT64_C (64) << 30)
#define WINDOW_CLUSTERS (UINT64_C (1) << 24)
/* Clusters and bytes that are read at once: some milliseconds of work. */
#define BATCH_CLUSTERS 256u
#define BATCH_BYTES (1u << 20)
#define SMALL_BATCH_BYTES (32u << 10)
/* Batches that found no memory while others went on, at the most. */
#define MAX_MISSED 16
/* Buffers that are kept for the next batches. */
#define MAX_BUFFERS 4
/* Suspects that are looked at together; more of them take turns. */
#define MAX_SUSPECTS 1024u
/* Pieces of compressed data that are judged together: 13 bytes each. */
#define MAX_PACKED ((size_t) 1 << 22)
/* The host clusters behind a window that compressed data which begins in it may
 * touch. */
#define BEHIND 2u
/* Hashes that are kept of a suspect; few tables name a cluster for several. */
#define MAX_HASHES 8u

/* The print of a cluster: 32 bits of the hash of its bytes, or one of these. */
enum {
  PRINT_NONE,                   /* it was not read yet, or is free */
  PRINT_CHANGED = DEDUP_WATCH_CHANGED,   /* it got new data since */
  PRINT_GOOD,                   /* the index has the hash of its bytes */
  PRINT_UNREADABLE,
  PRINT_OTHER,                  /* it was read; no hash is expected */
  PRINT_DONE,                   /* it was judged */
  PRINT_FIRST = 16,             /* from here on they are prints */
};

/* The rank of a cluster: 1 + that of the youngest table which names it, or one of
 * these. */
enum {
  RANK_NONE = 0,
  RANK_LAST = 250,              /* and all older ones */
  RANK_KNOWN,                   /* an earlier scrub found the cluster bad */
  RANK_UNKNOWN,                 /* the index does not know its data */
};

enum scrub_phase {
  SCRUB_READ,                   /* clusters are read and hashed, by any number of
                                 * threads; the others need one */
  SCRUB_JUDGE,                  /* prints are compared with the index */
  SCRUB_COLLECT,                /* suspects are chosen */
  SCRUB_EXPECT,                 /* their hashes are collected from the index */
  SCRUB_VERIFY,                 /* they are read again */
  SCRUB_LOCATE,                 /* disks that show bad ones are looked for */
  /* The same for compressed data, a part of the window at a time (packed.c): */
  SCRUB_FIND,                   /* the tables are read for what there is */
  SCRUB_EXPAND,
  SCRUB_MATCH,
  SCRUB_CHOOSE,
  SCRUB_EXPECT_PACKED,
  SCRUB_PROVE,
  SCRUB_LOCATE_PACKED,
  SCRUB_NEXT,                   /* the position is saved */
  SCRUB_DONE,
};

struct suspect {
  uint64_t host_idx;            /* of compressed data the first cluster */
  uint64_t packed;              /* the descriptor, or 0: a plain cluster */
  size_t at;                    /* its number in the window; of compressed data that
                                 * among the pieces of the part */
  unsigned rank;                /* of HASHES */
  unsigned nr;                  /* of the hashes that it may have had; above
                                 * MAX_HASHES: there are more */
  bool marked;                  /* ... or others, which the index does not know */
  struct dedup_hash hashes[MAX_HASHES];
  bool known;                   /* the set of bad clusters has its hash */
  bool healable;                /* the first hash is certainly that of its data */
  bool bad;                     /* it was found bad */
  bool unreadable;
  bool torn;                    /* compressed data that does not expand */
  bool anchored;                /* so are all clusters of the compressed data */
};

/* The compressed data of a part of the window. */
struct scrub_packed {
  bool none;                    /* the image has none */
  struct qcow2_packed *walk;    /* NULL: it has not begun in this window */
  bool complete;                /* w is what the walk found; it was looked at */
  struct qcow2_packed_window w;
  uint32_t *prints;             /* of w.v; PRINT_UNREADABLE: it does not expand */
  uint8_t *ranks;               /* RANK_NONE, 1: the index has it, or
                                 * RANK_UNKNOWN */
  size_t room;
  size_t at;                    /* where a phase goes on */
};

/* Clusters that are read together. */
struct scrub_batch {
  uint64_t first;
  size_t nr;
};

struct dedup_scrub {
  /* Constant after begin: */
  const struct dedup_base *b;
  struct dedup_store *s;
  struct dedup_upkeep *u;
  struct dedup_scrub_params p;
  uint64_t window;              /* clusters of a whole window */
  uint64_t end;                 /* cluster where the file ended at begin */
  uint32_t *prints;             /* of WINDOW clusters, and BEHIND; atomic */
  uint8_t *ranks;

  /* Protected by lock: */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  enum scrub_phase phase;
  bool busy;                    /* a thread works on a phase that takes one */
  unsigned readers;             /* threads that read a batch */
  uint64_t next;                /* cluster to be read next */
  struct scrub_batch missed[MAX_MISSED];        /* before it, still to be read */
  unsigned nr_missed;
  uint8_t *buffers[MAX_BUFFERS];        /* of whole batches, not in use */
  unsigned nr_buffers;
  int failed;
  struct dedup_scrub_figures figures;   /* but for bytes_total */

  /* Changed between windows, constant within one: */
  uint64_t from, nr;            /* the window */

  /* Of the thread that is busy: */
  struct dedup_index_walk *walk;
  bool lossy;                   /* a walk missed entries */
  uint64_t at;                  /* where collecting goes on, in the window */
  struct scrub_packed packed;
  struct suspect *suspects;     /* ascending */
  size_t nr_suspects, next_suspect;
  unsigned nr_roots;            /* to be looked at; 0: not known yet */
  unsigned root;                /* where locating goes on */
  uint64_t guest_off;
  bool located[MAX_SUSPECTS];
};

static inline uint32_t
print_load (const struct dedup_scrub *sc, uint64_t i)
{
  return __atomic_load_n (&sc->prints[i], __ATOMIC_ACQUIRE);
}

/* Changes a print from BEFORE, unless the cluster got new data. */
static inline bool
print_set (struct dedup_scrub *sc, uint64_t i, uint32_t before, uint32_t p)
{
  return __atomic_compare_exchange_n (&sc->prints[i], &before, p, false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Returns the print of a hash. */
static inline uint32_t
scrub_print (const struct dedup_hash *h)
{
  const uint32_t p = (uint32_t) dedup_hash_word (h, 1);

  return p < PRINT_FIRST ? p + PRINT_FIRST : p;
}

/* Counts N things in one of the figures. */
static inline void
scrub_count (struct dedup_scrub *sc, uint64_t *figure, uint64_t n)
{
  pthread_mutex_lock (&sc->lock);
  *figure += n;
  pthread_mutex_unlock (&sc->lock);
}

/* --- read.c -------------------------------------------------------------- */

/* Reads NR clusters from FIRST on, as far as they are in use, and sets their
 * prints. */
int scrub_read (struct dedup_scrub *sc, uint64_t first, size_t nr) MUST_CHECK;

/* --- judge.c: each does a slice; 1: there is more, 0: the phase is over --- */

/* Compares prints with entries of the index. */
int scrub_judge (struct dedup_scrub *sc) MUST_CHECK;
/* Chooses the next suspects. */
int scrub_collect (struct dedup_scrub *sc) MUST_CHECK;
/* Finds the hashes that the suspects should have. */
int scrub_expect (struct dedup_scrub *sc) MUST_CHECK;

/* Walks the next pages of the index, and passes each entry whose value is from FROM to
 * below TO to TAKE.  1: there are more. */
int scrub_walk_some (struct dedup_scrub *sc, uint64_t from, uint64_t to,
                     void (*take) (struct dedup_scrub *sc,
                                   const struct dedup_walked *e)) MUST_CHECK;
/* Adds the hash of an entry, which may be a mark, to those that a suspect may have. */
/* Returns the suspect with the number AT, or NULL. */
struct suspect *scrub_find_suspect (struct dedup_scrub *sc, size_t at);
void scrub_add_hash (struct suspect *s, const struct dedup_entry *e);
/* Returns whether H is one of the hashes that the suspect may have. */
bool scrub_has_hash (const struct suspect *s, const struct dedup_hash *h);

/* --- verify.c ------------------------------------------------------------- */

enum verdict { IS_GOOD, IS_UNKNOWN, IS_DOUBTFUL, IS_BAD };

/* Reads the next suspects again, and calls those bad that surely are. */
int scrub_verify (struct dedup_scrub *sc) MUST_CHECK;
/* Judges a suspect with the print P by the hash H of the bytes that were read
 * now. */
enum verdict scrub_compare (const struct suspect *s, uint32_t p,
                            const struct dedup_hash *h);
/* Returns whether a lookup of a hash of the suspect leads to VALUE. */
bool scrub_is_named (struct dedup_scrub *sc, const struct suspect *s,
                     uint64_t value);
/* Logs a line about a suspect that is bad, unless there were many. */
void scrub_log_bad (struct dedup_scrub *sc, const struct suspect *s);

/* --- locate.c ------------------------------------------------------------- */

/* Looks for the disks that show bad clusters or bad compressed data, and reports
 * these. */
int scrub_locate (struct dedup_scrub *sc) MUST_CHECK;

/* --- packed.c: compressed data; the phases from SCRUB_FIND on -------------- */

/* Finds the compressed data of the next part of the window; sc->packed.w.nr is 0 if
 * there is none. */
int scrub_find (struct dedup_scrub *sc) MUST_CHECK;
/* Reads and expands it, and sets its prints. */
int scrub_expand (struct dedup_scrub *sc) MUST_CHECK;
/* Compares these with entries of the index. */
int scrub_match (struct dedup_scrub *sc) MUST_CHECK;
/* Chooses the next suspects. */
int scrub_choose (struct dedup_scrub *sc) MUST_CHECK;
int scrub_expect_packed (struct dedup_scrub *sc) MUST_CHECK;
/* As scrub_verify.  What looks bad is so only if a disk has it. */
int scrub_prove (struct dedup_scrub *sc) MUST_CHECK;
/* Looks for the disks, and calls bad what they have. */
int scrub_locate_packed (struct dedup_scrub *sc) MUST_CHECK;
/* Frees the memory. */
void scrub_packed_free (struct dedup_scrub *sc);

#endif
