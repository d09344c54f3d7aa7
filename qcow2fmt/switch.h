/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares a change of the set of roots that is being made, for the files that
 * make it: roots.c, switch-commit.c and lend.c. */
#ifndef QCOW2_SWITCH_H
#define QCOW2_SWITCH_H

#include "image.h"

/* --- lend.c ---------------------------------------------------------------- */
struct qcow2_lending {
  uint64_t *idx;               /* owned; host indices of L2 tables */
  uint64_t *v;                 /* owned; what their refcounts become */
  size_t nr, max;
  bool sorted;                 /* IDX is in ascending order so far */
  uint64_t nr_runs;            /* records that the change makes */
};

/* Allocates memory for MAX tables. */
int qcow2_lending_init (struct qcow2_lending *l, size_t max) MUST_CHECK;
void qcow2_lending_free (struct qcow2_lending *l);

/* Adds a path to the table at HOST_IDX; there is memory for it. */
static inline void
qcow2_lending_add (struct qcow2_lending *l, uint64_t host_idx)
{
  assert (l->nr < l->max);
  l->sorted = l->sorted && (l->nr == 0 || l->idx[l->nr - 1] <= host_idx);
  l->idx[l->nr++] = host_idx;
}

/* Sorts the tables, and computes their refcounts with one more lent path for
 * each time that a table was added.  Pins what the change needs.  -EAGAIN;
 * -EMLINK: too many paths; -ENOTSUP: refcounts do not have 32 bits; -EIO: one is no
 * table, or has a refcount that no table can have. */
int qcow2_lend_prepare_locked (struct qcow2_txn *txn, struct qcow2_lending *l)
  MUST_CHECK;
/* Makes and reports the change, under the same hold of the lock. */
void qcow2_lend_commit_locked (struct qcow2_txn *txn,
                               const struct qcow2_lending *l);

/* --- roots.c ---------------------------------------------------------------- */
struct qcow2_new_l1 {          /* an L1 table that a switch makes */
  uint64_t host_idx, clusters; /* reserved; 0 clusters: there is none */
  uint64_t nr;                 /* entries */
  be64 *buf;                   /* owned; whole clusters */
  unsigned source;             /* root whose first entries it has, */
  uint64_t copied;             /* so many of them, without flags */
  bool lends;                  /* else the old table ends */
  uint64_t nr_changed;         /* entries that changed since they were copied */
};

struct qcow2_clusters {
  uint64_t host_idx, count;
};

struct qcow2_switch_edit {
  struct qcow2_root_edit e;
  size_t slot;
  bool is_new;
  struct qcow2_snapshot s;     /* as it becomes; strings owned */
  struct qcow2_snapshot_raw raw;     /* its entry; owned; none: removed */
  struct qcow2_new_l1 l1;
  struct qcow2_clusters freed; /* the old L1 table, if it ends */
};

struct qcow2_switch {
  struct qcow2_image *img;
  struct qcow2_switch_edit *v; /* owned */
  size_t nr;
  struct qcow2_clusters place; /* reserved, for the new snapshot table */
  uint8_t *table;              /* owned; whole clusters */
  size_t table_len;            /* bytes of it that count */
  uint32_t nr_snapshots;
  struct qcow2_lending lending;
  uint64_t nr_nonzero;         /* entries of buffers that name a table */
  uint64_t nr_records;         /* known once it is prepared; else 0 */
  bool committed;
};

/* Some entries of an L1 table that are contiguous in memory: in the form of the
 * file, or of a flat table. */
struct qcow2_l1_span {
  const be64 *wire;            /* NULL: they are in HOST */
  const uint64_t *host;
  uint64_t nr;
};

/* Finds entries of ROOT from TI on, at most MAX, which lie inside its table.
 * -EAGAIN as everywhere. */
int qcow2_l1_span_locked (struct qcow2_txn *txn, unsigned root, uint64_t ti,
                          uint64_t max, struct qcow2_l1_span *out) MUST_CHECK;

static inline uint64_t
qcow2_l1_span_get (const struct qcow2_l1_span *s, uint64_t i)
{
  return s->wire ? be64_load (s->wire[i]) : s->host[i];
}

#endif
