/* SPDX-License-Identifier: BSD-3-Clause */
/* Defines an operation of the pipeline and its slots, one for each guest
 * cluster, and the steps that the files of write/ offer each other.
 *
 * Functions ending in _locked need the image lock, the others take it; results
 * are 0 or -errno.  What a step got before it failed is freed at the end of
 * the operation.
 */
#ifndef DEDUP_OP_H
#define DEDUP_OP_H

#include "mutation.h"
#include "value.h"
#include "write.h"
#include "zero.h"

enum slot_kind {
  SLOT_NEW,          /* gets a cluster of its own; initially: unknown */
  SLOT_ZERO,         /* all zero: nothing is stored */
  SLOT_GUESS,        /* value may hold these bytes: a hint, not hashed */
  SLOT_PROBE,        /* the index's tables are still to be searched */
  SLOT_CANDIDATE,    /* value may hold these bytes, or does */
  SLOT_JOIN,         /* another operation stores these bytes: see claim */
  SLOT_FOLLOW,       /* the same bytes as LEADER, a new slot before this */
  SLOT_KEEP,         /* is not changed */
};

struct slot {        /* one guest cluster of the operation */
  enum slot_kind kind;
  bool hashed;
  bool owner;        /* of claim */
  bool held;         /* this slot holds value */
  bool same;         /* compared equal */
  bool from_reserve; /* value is of the overwrite reserve */
  bool aging;        /* the index is about to forget it: to be renewed */
  bool stored;       /* value was reserved and written by this slot */
  bool linked;       /* the L2 entry leads to value */
  bool skip;         /* the L2 entry is as wanted already */
  uint64_t old;      /* L2 entry before; valid while the lock is held */
  struct dedup_hash hash;
  uint64_t checksum; /* of data that is not all zero */
  uint64_t value;    /* where the bytes are, or may be (value.h) */
  struct slot *leader;
  size_t followers;  /* of a leader */
  uint64_t own;      /* the value that the L2 entry leads to, and which has these
                      * bytes already (take-in.c); 0: they are written */
  bool anchored;     /* all clusters of own were, when the operation began */
  uint64_t replaced; /* the value whose entry that of this slot's cluster
                      * replaces, though it may have the data; or 0 */
  bool marked;       /* value gets a mark, as another entry may replace its own */
  uint64_t moved;    /* the cluster that these bytes are moved from, or 0 */
  uint64_t full;     /* the value that had no room for this slot, or 0 */
  struct dedup_claim *claim;
  uint64_t again;    /* of a rewrite: the value whose data is stored again, or 0 */
  bool left;         /* ... stays after all: its entry has changed, or its table can't be
                      * changed now */
  uint64_t times;    /* the references that go with the entry: paths to its table */
  uint64_t place;    /* of an entry that is changed in place, in the file; or 0 */
  bool plain;        /* its data is not worth compressing */
  struct dedup_pack_run *run;   /* the one with value, of which the slot has a use;
                                 * NULL: value is not of this slot, or plain */
};

#define DEDUP_FEW_SLOTS 2     /* small requests allocate nothing */

struct op {
  struct dedup_writer *w;
  unsigned root;
  const uint8_t *buf;
  uint64_t guest_idx;
  size_t nr;
  uint64_t zero_entry;   /* of SLOT_ZERO */
  bool trimmed;          /* what zeroing frees is given to the host */
  struct slot *slots;
  size_t *idx;           /* NR of them: scratch memory of the current step */
  struct qcow2_txn txn;
  struct dedup_index_view *view;
  bool guesses, probes;  /* there were slots of that kind */
  uint64_t releases;     /* dedup_upkeep.releases before they were looked up */
  struct dedup_lookups counted;   /* not in the store's figures yet */
  bool short_of_space;   /* the host was found to be full */
  bool corrupt;          /* a refcount was found to be 0 */
  struct dedup_pack_piece *pieces;      /* what it has written compressed; a list */
  dedup_avoids *avoids;  /* of a rewrite: what is not linked; else NULL */
  const void *avoids_opaque;

  struct slot few[DEDUP_FEW_SLOTS];
  size_t few_idx[DEDUP_FEW_SLOTS];
};

static inline const uint8_t *
slot_data (const struct op *op, size_t i)
{
  return op->buf + i * op->w->b->cluster_size;
}

/* Returns true if S's own data is entered into the index where it is
 * (docs/on-disk.md section 8). */
static inline bool
slot_takes_over (const struct slot *s)
{
  return s->own != 0 && s->kind == SLOT_NEW;
}

/* Makes a slot stay as it is. */
static inline void
slot_leave (struct slot *s)
{
  s->kind = SLOT_KEEP;
  s->skip = s->left = true;
}

/* --- Memory and slots (op.c) --------------------------------------------- */

/* Allocates OP->nr slots, all zero.  To be freed also after -ENOMEM. */
int dedup_op_alloc (struct op *op) MUST_CHECK;
void dedup_op_free (struct op *op);
/* Returns how many slots are of KIND. */
size_t dedup_count_slots (const struct op *op, enum slot_kind kind);

/* --- The whole operation (write.c) ---------------------------------------- */

/* Runs an operation, whose slots are allocated, from the bytes to the link. */
int dedup_op_run (struct op *op) MUST_CHECK;

/* --- Candidates (candidate.c) -------------------------------------------- */

/* Holds the candidates of all slots of KIND.  A slot whose candidate cannot be
 * linked becomes SLOT_NEW.  -ENOMEM. */
int dedup_hold_candidates (struct op *op, enum slot_kind kind) MUST_CHECK;
/* Releases the slot's hold, if it has one.  May append a record, so the caller
 * ends the group. */
void dedup_unhold_slot_locked (struct op *op, struct slot *s);
/* Compares the slots of KIND with their candidates.  A slot whose candidate has
 * other bytes becomes SLOT_NEW; *OTHERS is how many did.  COMPRESSED_ONLY: plain
 * candidates are trusted.  -ENOMEM. */
int dedup_compare_candidates (struct op *op, enum slot_kind kind,
                              bool compressed_only, size_t *others) MUST_CHECK;

/* --- Finding data (find.c), in the order of a write ---------------------- */

/* Makes slots of zeroes SLOT_ZERO, and the others SLOT_GUESS or SLOT_NEW. */
void dedup_classify (struct op *op);
/* Holds and compares the clusters that hints named, whether VERIFY is on or
 * not. */
int dedup_guess (struct op *op) MUST_CHECK;
/* Hashes the data of slot I, and of all slots of SLOT_NEW. */
int dedup_hash_slot (struct op *op, size_t i) MUST_CHECK;
int dedup_hash_new (struct op *op) MUST_CHECK;
/* Returns whether there are bad clusters that could be healed. */
bool dedup_may_heal (const struct op *op);
/* Returns the value that the index has for a hash; 0: none. */
uint64_t dedup_named_for (struct dedup_writer *w, const struct dedup_hash *h);
/* Notes that slot S, whose data is stored elsewhere, has the hash for which its claim
 * or the index led to its cluster, which may hold data with this hash all the same.
 * The later one of their two entries replaces the other.  That of the slot is the
 * later one if the index led there; a joiner may be linked before the owner of its
 * claim, so both clusters get a mark then. */
void dedup_leave_named (struct slot *s);
/* Looks at a cluster that the index or a claim led to, and that is held and has other
 * bytes than the slot: BYTES.  Notes whether the slot replaces its entry, and whether it is bad
 * (different.c). */
void dedup_look_at_different (struct op *op, struct slot *s,
                              const uint8_t *bytes);
/* Puts the data of new slots back into bad clusters that have lost it (heal.c).
 * Returns 0, also if that fails; -ENOMEM, or the errno of a failed image. */
int dedup_heal (struct op *op) MUST_CHECK;
/* Claims the hashes, and looks up those whose claim the operation owns; the
 * others become SLOT_JOIN. */
int dedup_claim_all (struct op *op) MUST_CHECK;
/* Looks slot S up in the log stores: it may become SLOT_CANDIDATE or
 * SLOT_PROBE. */
void dedup_look_up_locked (struct op *op, struct slot *s);
/* Searches the index's tables for the slots of SLOT_PROBE, which become
 * SLOT_CANDIDATE or SLOT_NEW. */
void dedup_probe (struct op *op);
/* Compares the slots of KIND with what the index or a claim named, unless that
 * may be trusted. */
int dedup_compare_found (struct op *op, enum slot_kind kind) MUST_CHECK;
/* Enters the places of this operation's data into the hints. */
void dedup_leave_hints (struct op *op);

/* --- Storing and linking (place.c, pack.c, link-limit.c, link.c) ---------- */

/* Stores the data of every slot of SLOT_NEW that is not stored yet. */
int dedup_place_all (struct op *op) MUST_CHECK;
/* Does so for data that is worth compressing, if the image is to have such data and
 * there is space for it (pack.c). */
int dedup_pack_all (struct op *op) MUST_CHECK;
/* Makes the compressed data durable that the operation has written and not linked.  Before
 * its claims end; without the lock. */
void dedup_pack_settle (struct op *op);
/* Notes that the compressed data which the operation has written is linked, or durable:
 * values may lead to it from now on. */
void dedup_pack_settled_locked (struct op *op);
/* Makes slots whose candidate would pass the refcount limit leave it; -ERANGE then.  Data
 * that is moved, and that was stored there, stays where it was. */
int dedup_check_limits_locked (struct op *op) MUST_CHECK;
/* Changes tables and appends records, as one group.  -ERANGE: nothing changed;
 * some slots became SLOT_NEW or SLOT_FOLLOW, as their candidate can take no
 * more references. */
int dedup_link (struct op *op) MUST_CHECK;
/* Returns the L2 entry that makes a cluster read as zero and holds no space. */
uint64_t dedup_zero_entry (const struct dedup_base *b);

#endif
