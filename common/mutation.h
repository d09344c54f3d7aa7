/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares switches that each break one rule of docs/on-disk.md, to prove that
 * the crash tests (tests/crash) notice it.  Only those tests are built with
 * DEDUP_MUTATIONS; everywhere else a switch is the constant false.
 */
#ifndef DEDUP_MUTATION_H
#define DEDUP_MUTATION_H

#include <stdbool.h>

enum mutation {
  MUTATION_NONE,
  MUTATION_LAW_1_NO_BIT,          /* bit 48 is not set */
  MUTATION_LAW_1_NO_SYNC,         /* it is set, but not made durable */
  MUTATION_LAW_2,                 /* data is written after its record */
  MUTATION_LAW_3,                 /* tables are written before the journal */
  MUTATION_LAW_3_NOT_RECORDED,    /* ... before a block records it as durable */
  MUTATION_LAW_4,                 /* checkpoint moves before tables are safe */
  MUTATION_LAW_4_OPEN_BLOCK,      /* ... past a block that clients fill */
  MUTATION_LAW_5,                 /* bit 48 is cleared before the checkpoint */
  MUTATION_LAW_5_NO_SYNC,         /* ... before the checkpoint is durable */
  MUTATION_LAW_6_NO_QUARANTINE,   /* freed clusters are reused at once */
  MUTATION_LAW_6_NOT_RECORDED,    /* ... once the record is durable */
  MUTATION_LAW_6_SAID_ONCE,       /* ... once one block records that */
  MUTATION_LAW_6_GIVE_BACK,       /* their space is given back at any time */
  MUTATION_LAW_7,                 /* journal areas are written again too early */
  MUTATION_LAW_8_NO_SYNC,         /* incarnation listed, but not durable */
  MUTATION_MERGE_NO_SYNC,         /* a merge's output listed, not durable */
  MUTATION_CONVERSION_NO_SYNC,    /* ... an incarnation's run */
  MUTATION_CONVERSION_NOT_LISTED, /* ... nor is that listed */
  MUTATION_CONVERSION_AGE,        /* it is listed with another age */
  MUTATION_LAW_8_INDEX_START,     /* index start passes unwritten entries */
  MUTATION_LAW_9,                 /* a listed incarnation is written over */
  MUTATION_LAW_9_RUN,             /* ... a listed segment of a run */
  MUTATION_LAW_10,                /* a failed sync is tried again */
  MUTATION_LAW_11,                /* mapping is replayed with bit 48 clear */
  MUTATION_SAME_EPOCH,            /* recovery starts no new epoch */
  MUTATION_TRUST_ALL,             /* data past D is not compared */
  MUTATION_NO_LOOK_BEHIND,        /* recovery stops at a rotten block */
  MUTATION_NO_CUT,                /* refused groups get into the index */
  MUTATION_OLD_EPOCH,             /* an older configuration keeps its epoch */
  MUTATION_NO_SPACE_DURABLE,      /* blocks without space count as durable */
  MUTATION_NO_SPACE_LOST,         /* ... and are not written again */
  MUTATION_STORE_FILE_NO_SYNC,    /* its areas are listed, not durable */
  MUTATION_STORE_FILE_ANY_SESSION, /* it counts, whatever its session */
  MUTATION_DEFRAGMENT_TOO_LATE,   /* moved data is written after its record */
  MUTATION_PAID_TWICE,            /* a debt is paid twice */
  MUTATION_DEBT_FORGOTTEN,        /* ... is 0, and nothing was paid */
  MUTATION_COPY_NOT_COUNTED,      /* ... ends with the copy, not counted there */
  MUTATION_DROP_UNCOUNTED,        /* a path under debt is dropped as counted */
  MUTATION_LAW_12,                /* recent sources are written in place */
  MUTATION_LAW_12_TOO_EARLY,      /* any checkpoint settles all sources */
  MUTATION_LAW_13,                /* freed tables are in plain quarantine */
  MUTATION_LAW_13_TOO_EARLY,      /* any checkpoint lets go of all of them; of
                                   * tests/unit/test-freed-tables.c */
  MUTATION_LAW_13_FORGOTTEN,      /* what changed in them is not written */
  MUTATION_LAW_14_NO_CHECKPOINT,  /* there is none before the first disk */
  MUTATION_LAW_14_TWO_GROUPS,     /* a group ends behind a path */
  MUTATION_SWITCH_NO_SYNC,        /* new tables are named before their sync */
  MUTATION_FIRST_TABLE,           /* a replay takes the first snapshot table */
  MUTATION_NO_RELOAD,             /* ... the one in the header */
  MUTATION_WORK_NO_BIT,           /* bit 48 is cleared with work left */
  MUTATION_SAMPLES_NO_SYNC,       /* a copy is written, the other not durable */
  MUTATION_NBD_NO_RESEND,         /* nothing is sent again on a new connection */
  MUTATION_NBD_RESEND_ORDER,      /* the oldest of several writes of a place is */
  MUTATION_NBD_RESEND_ONCE,       /* ... and forgotten before the next flush */
  MUTATION_NBD_RESUME_FLUSHES,    /* a flush before that counts as one of them */
  MUTATION_NBD_NO_TAINT,          /* places where late writes may land are used */
  MUTATION_NBD_TWO_VERSIONS,      /* a place is written twice without a flush */
  MUTATION_NBD_TAINT_UNANSWERED,  /* ... those of writes that had an answer */
  MUTATION_NBD_AHEAD_KEPT,        /* what was read ahead is read after a write */
  MUTATION_NBD_ZERO_DELAY,        /* a store that keeps nothing connects again */
  MUTATION_NBD_FLUSH_ERROR,       /* a flush that failed counts as one */
  MUTATION_LEASE_PAST_TERM,       /* a server writes after its term */
  MUTATION_LEASE_NO_RESUME,       /* ... what it had under way */
  MUTATION_CROSSING_COUNTED_ONCE, /* a link of compressed data that touches two
                                   * clusters is counted in the first only */
  MUTATION_SHARED_FREED,          /* a cluster is freed with the first of the
                                   * compressed data in it */
  MUTATION_PACKED_COUNTED_ONCE,   /* ... when it is new, too */
  MUTATION_LAW_16,                /* compressed data is appended within a sector */
  MUTATION_LAW_16_SECTOR,         /* ... of a medium with larger blocks than 512 bytes */
  MUTATION_LAW_17,                /* values are linked that reach bytes which are
                                   * still to be written */
  MUTATION_SHARED_COUNTED_ONCE,   /* an entry that is changed in place for several
                                   * roots is counted for one */
  MUTATION_REWRITE_TWO_GROUPS,    /* what is stored again is dropped in a group of its
                                   * own, before it is linked */
  MUTATION_HEAL_NO_SYNC,          /* healed data is linked before it is durable */
  MUTATION_HEAL_USED_AGAIN        /* a bad cluster with new data stays bad, and is
                                   * healed without a look at it */
};

#ifdef DEDUP_MUTATIONS
extern enum mutation dedup_mutation;   /* the test's; constant while it runs */

static inline bool
mutation (enum mutation m)
{
  return dedup_mutation == m;
}
#else
static inline bool
mutation (enum mutation m)
{
  return false;
}
#endif

#endif
