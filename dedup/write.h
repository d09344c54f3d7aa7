/* SPDX-License-Identifier: BSD-3-Clause */
/* Inside the pipeline: one write operation, shared by write.c and link.c. */
#ifndef DEDUP_WRITE_H
#define DEDUP_WRITE_H

#include "disk.h"

enum slot_kind {
  SLOT_NEW,          /* gets a cluster of its own; initially: unknown */
  SLOT_ZERO,         /* all zero: nothing is stored */
  SLOT_GUESS,        /* host_idx may hold these bytes: a hint, not hashed */
  SLOT_PROBE,        /* incarnations are still to be asked */
  SLOT_CANDIDATE,    /* host_idx may hold these bytes, or does */
  SLOT_JOIN,         /* somebody else brings these bytes: see claim */
  SLOT_FOLLOW,       /* the same bytes as LEADER, a new slot before this */
  SLOT_KEEP,         /* stays as it is */
};

struct slot {        /* one guest cluster of the operation */
  enum slot_kind kind;
  bool hashed;
  bool owner;        /* of claim */
  bool held;         /* this slot holds host_idx */
  bool same;         /* compared equal */
  bool spare;        /* host_idx was a spare cluster */
  bool aging;        /* the index would soon forget it: to be entered anew */
  bool stored;       /* host_idx was reserved and written by this slot */
  bool linked;       /* and an L2 entry points to it */
  bool skip;         /* the entry is as wanted already */
  uint64_t old;      /* L2 entry before; valid while the lock is held */
  struct dedup_hash hash;
  uint64_t checksum; /* of data that is not all zero */
  uint64_t host_idx;
  struct slot *leader;
  size_t followers;  /* of a leader */
  uint64_t at;       /* the cluster that holds these bytes already, which is
                      * the slot's until it is linked elsewhere (existing.c);
                      * 0: they are to be written */
  bool anchored;     /* AT is, as it was looked at first */
  uint64_t full_idx; /* the cluster that had no room for this slot, or 0 */
  struct dedup_claim *claim;
};

#define DEDUP_FEW_SLOTS 2     /* small requests allocate nothing */

struct op {
  struct dedup_disk *d;
  unsigned root;
  const uint8_t *buf;
  uint64_t guest_idx;
  size_t nr;
  uint64_t zero_entry;   /* of SLOT_ZERO */
  bool trimmed;          /* freed clusters go back to the host */
  struct slot *slots;
  size_t *idx;           /* one each: scratch of whatever step runs */
  struct qcow2_txn txn;
  struct dedup_index_view *view;
  bool guesses, probes;  /* there are slots of that kind */
  uint64_t releases;     /* of the disk, when they were looked up */
  struct dedup_lookups counted;   /* not in the disk's figures yet */
  bool short_of_space;   /* the host was found to be full */
  bool corrupt;          /* a refcount was found to be 0 */

  struct slot few[DEDUP_FEW_SLOTS];
  size_t few_idx[DEDUP_FEW_SLOTS];
};

static inline const uint8_t *
slot_data (const struct op *op, size_t i)
{
  return op->buf + i * op->d->cluster_size;
}

/* Memory for the slots, all zero.  Free it also after -ENOMEM. */
int dedup_op_alloc (struct op *op) MUST_CHECK;
void dedup_op_free (struct op *op);
size_t dedup_count_slots (const struct op *op, enum slot_kind kind);

static inline bool
is_zero (const uint8_t *p, size_t len)
{
  return p[0] == 0 && memcmp (p, p + 1, len - 1) == 0;
}

/* Ask the incarnations about the slots of SLOT_PROBE, which become
 * SLOT_CANDIDATE or SLOT_NEW. */
void dedup_probe (struct op *op);
/* What the log stores say of slot S, which may become SLOT_CANDIDATE or
 * SLOT_PROBE. */
void dedup_look_up_locked (struct op *op, struct slot *s);

/* Hash the data of slot I. */
int dedup_hash_slot (struct op *op, size_t i) MUST_CHECK;
/* Hold the candidates of all slots of KIND; one that cannot be linked becomes
 * SLOT_NEW. */
int dedup_hold_candidates (struct op *op, enum slot_kind kind) MUST_CHECK;
/* Slots of KIND whose candidate has other bytes become SLOT_NEW; OTHERS: how
 * many. */
int dedup_compare_candidates (struct op *op, enum slot_kind kind,
                              size_t *others) MUST_CHECK;

/* Let go of the slot's cluster, if it is held; may append a record. */
void dedup_unhold_slot_locked (struct op *op, struct slot *s);

/* Change tables and append records as one group.  -ERANGE: nothing changed;
 * some slots turned SLOT_NEW because their candidate is full. */
int dedup_link (struct op *op) MUST_CHECK;

/* The L2 entry that makes a cluster read as zero and holds no space. */
uint64_t dedup_zero_entry (const struct dedup_disk *d);

#endif
