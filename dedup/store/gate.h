/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the open image as all parts of the engine see it, and the gate,
 * which keeps bit 48 of the header true and remembers the first failure.
 */
#ifndef DEDUP_GATE_H
#define DEDUP_GATE_H

#include <pthread.h>

#include "checked.h"
#include "hash.h"
#include "lock.h"
#include "log.h"
#include "qcow2.h"

/* The open image.  Constant after open. */
struct dedup_base {
  struct io_store *io;
  struct qcow2_image *img;
  struct lock *lock;                 /* the image lock */
  char *path;                        /* for messages */
  const struct log_sink *log;
  bool writable;
  bool has_backing;
  unsigned cluster_bits;
  uint64_t cluster_size;             /* bytes */
  uint64_t ref_limit;                /* no new reference at or above it */
  struct dedup_hasher hasher;
  void (*wake) (void *opaque);       /* NULL, or: something became due */
  void *wake_opaque;
};

/* Bounds ref_limit in an image with disks, and so what paying debts can add: with
 * at most 65,000 paths to a table, a refcount stays below 2^32. */
#define DEDUP_REF_LIMIT_WITH_DISKS 32768u

/* Returns the refcount from which on a cluster gets no new reference. */
static inline uint64_t
dedup_ref_limit (const struct dedup_base *b)
{
  return qcow2_has_disks (b->img) ?
    MIN_OF (b->ref_limit, DEDUP_REF_LIMIT_WITH_DISKS) : b->ref_limit;
}

/* Counts the operations that may append records: each runs between dedup_enter
 * and dedup_leave, and bit 48 is set and durable all the while (law 1). */
struct dedup_gate {
  const struct dedup_base *b;
  bool contradicts;                  /* atomic: dedup_contradiction logged */
  bool no_space;                     /* atomic: the last commit found none */
  /* Protected by the image lock: */
  int failed;                        /* 0, or the sticky negative errno */
  int failed_by;                     /* the errno of the first failure, and */
  const char *failed_what;           /* what failed then; a constant */
  bool recovery_bit;                 /* bit 48 is set in the file */
  bool bit_raised;                   /* this session has set it once */
  bool closed;                       /* bit 48 is being set or cleared */
  bool commit_asked;                 /* the owner knows that a commit is due */
  unsigned changing;                 /* operations inside */
  pthread_cond_t opened;             /* the gate was opened */
};

/* Enters the gate.  Waits while it is closed, and sets bit 48 first where it is
 * clear.  -EROFS: the image is not written to; else the sticky error. */
int dedup_enter (struct dedup_gate *g) MUST_CHECK;
void dedup_leave (struct dedup_gate *g);
void dedup_leave_locked (struct dedup_gate *g);
/* Closes the gate.  False: it is closed already, or an operation is inside. */
bool dedup_gate_close_locked (struct dedup_gate *g);
/* Opens the gate again; CLEAN: bit 48 was cleared meanwhile. */
void dedup_gate_open (struct dedup_gate *g, bool clean);

/* Refuses all writes from now on, and logs WHAT failed with ERR (negative) if
 * it is the first failure.  WHAT is a constant string.  Returns ERR. */
int dedup_fail (struct dedup_gate *g, int err, const char *what);
/* Returns 0, or the errno that writes get since the first failure. */
int dedup_gate_failed (struct dedup_gate *g);
/* Logs, once, that a table entry contradicts the refcounts.  Writes go on: only
 * the request that met the entry fails, with EIO, if it can't be done. */
void dedup_contradiction (struct dedup_gate *g);

/* Tells the owner that a job became due.  Any thread, with any lock. */
void dedup_wake (const struct dedup_base *b);
/* Tells the owner that a commit is due; once until the next commit, because
 * waking it for each operation would make it contend for the image lock. */
void dedup_ask_for_commit_locked (struct dedup_gate *g);

#endif
