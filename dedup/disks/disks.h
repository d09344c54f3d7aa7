/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes the set of disks of an image, and does the work that such changes leave
 * (docs/on-disk.md section 11).
 *
 * A change is a switch of qcow2fmt to another snapshot table: what it needs is
 * written and made durable first, then one group of records makes it.  A clone
 * lends its source's tables; the references in lent tables are counted later,
 * and those of deleted disks dropped, by dedup_disks_step, one table a group, so
 * that neither writers nor the changes themselves wait for it.
 *
 * A root that *owes* is one whose tables may be lent.  Each table with a debt is
 * named by at least as many roots that owe, or are doomed, as its debt; so when
 * none is left, there is no debt.
 */
#ifndef DEDUP_DISKS_H
#define DEDUP_DISKS_H

#include "dedup-disks.h"
#include "upkeep.h"

struct dedup_lent;

struct dedup_disks {
  const struct dedup_base *b;
  struct dedup_store *s;
  struct dedup_upkeep *u;
  /* One change of the set of roots at a time.  Taken before the maintenance
   * mutex and the image lock, and held over I/O. */
  pthread_mutex_t changing;
  /* Protected by the image lock: */
  struct {
    uint8_t *state;                  /* enum root_work, by number of root */
    size_t nr;                       /* roots with work left */
    size_t nr_doomed;                /* of these, doomed ones */
    unsigned root;                   /* that is worked on; 0: none yet */
    uint64_t l1_idx;                 /* its next L1 entry */
    bool stuck;                      /* a damaged table keeps work from ending */
    unsigned told;                   /* lines on such tables */
  } work;
  /* What clients do meanwhile (pace.c): */
  struct {
    bool used;                       /* atomic: a request came */
    uint64_t used_ns;                /* when one was seen last; 0: never.  Of the
                                      * thread that works */
  } pace;
  /* How much of it there is (progress.c).  Protected by the image lock: */
  struct {
    uint8_t *uncounted;              /* whether its work is to be counted, by
                                      * number of root */
    size_t nr_uncounted;
    unsigned root;                   /* that is being counted */
    uint64_t l1_idx;                 /* its next L1 entry */
    /* Written under the lock, read without it; bytes: */
    uint64_t done, total;
    struct dedup_lent *lent;         /* what was counted of lent tables; NULL: nothing.
                                      * Of the thread that works */
  } progress;
};

/* Initializes D, all zero before.  -ENOMEM. */
int dedup_disks_init (struct dedup_disks *d, const struct dedup_base *b,
                      struct dedup_store *s, struct dedup_upkeep *u)
  MUST_CHECK;
void dedup_disks_destroy (struct dedup_disks *d);
/* Finds the work that an earlier session left; at open.  CLEAN: bit 48 was
 * clear, so no table is lent; a disk that is marked as doomed all the same, by
 * whatever program, is freed. */
void dedup_disks_begin (struct dedup_disks *d, bool clean);

/* Return whether there is work left, and whether dedup_disks_step would do some:
 * a damaged table is work that is left, but that cannot be done. */
bool dedup_disks_left_locked (const struct dedup_disks *d);
bool dedup_disks_due_locked (const struct dedup_disks *d);
/* Sets how much of the work was done since there was none, and how much there is,
 * in bytes of the disks; *TOTAL changes while it is counted.  Any thread, without
 * locks. */
void dedup_disks_get_progress (struct dedup_disks *d, uint64_t *done,
                               uint64_t *total);
/* Pays for lent tables and drops those of deleted disks, for some milliseconds.
 * Returns 1 while there is more to do, 0 at the end, or -errno.  Called by one
 * thread at a time, without locks. */
int dedup_disks_step (struct dedup_disks *d) MUST_CHECK;

/* Notes that a client uses the image, so that the work goes slowly for a while.  Any
 * thread, without locks. */
void dedup_disks_note_request (struct dedup_disks *d);

/* Do what the functions dedup_disk_... of dedup-disks.h promise. */
int dedup_disks_create (struct dedup_disks *d, const char *name, uint64_t size,
                        unsigned *root, struct fault *f) MUST_CHECK;
int dedup_disks_clone (struct dedup_disks *d, unsigned source,
                       const char *name, bool writable, unsigned *root,
                       struct fault *f) MUST_CHECK;
int dedup_disks_reset (struct dedup_disks *d, unsigned root, unsigned source,
                       struct fault *f) MUST_CHECK;
int dedup_disks_rename (struct dedup_disks *d, unsigned root, const char *name,
                        struct fault *f) MUST_CHECK;
int dedup_disks_resize (struct dedup_disks *d, unsigned root, uint64_t size,
                        struct fault *f) MUST_CHECK;
int dedup_disks_delete (struct dedup_disks *d, unsigned root, struct fault *f)
  MUST_CHECK;
/* Records what a disk says of its new data: QCOW2_COMPRESS_*. */
int dedup_disks_set_compress (struct dedup_disks *d, unsigned root, uint8_t compress,
                              struct fault *f) MUST_CHECK;
/* As dedup_compress_said. */
enum dedup_compress dedup_disks_compress (const struct dedup_disks *d, unsigned says,
                                          bool *own);
int dedup_disks_list (struct dedup_disks *d, struct dedup_disk_info **v,
                      size_t *nr) MUST_CHECK;
int dedup_disks_find (struct dedup_disks *d, const char *name, unsigned *root,
                      struct fault *f) MUST_CHECK;

#endif
