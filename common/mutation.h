/* SPDX-License-Identifier: BSD-3-Clause */
/* Switches that break one rule each of docs/on-disk.md, to prove that the
 * crash tests would notice (tests/crash).  Only those tests are built with
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
  MUTATION_LAW_3_NOT_RECORDED,    /* ... when no block says it is durable */
  MUTATION_LAW_4,                 /* checkpoint moves before tables are safe */
  MUTATION_LAW_4_OPEN_BLOCK,      /* ... past a block that clients fill */
  MUTATION_LAW_5,                 /* bit 48 is cleared before the checkpoint */
  MUTATION_LAW_5_NO_SYNC,         /* ... before the checkpoint is durable */
  MUTATION_LAW_6_NO_QUARANTINE,   /* freed clusters are reused at once */
  MUTATION_LAW_6_NOT_RECORDED,    /* ... once the record is durable */
  MUTATION_LAW_6_SAID_ONCE,       /* ... once one block says so */
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
  NR_MUTATIONS
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
