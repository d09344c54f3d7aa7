/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the exports of an image: which root each name leads to, and the disks that
 * clients have open (exports.c).
 */
#ifndef DEDUP_EXPORTS_H
#define DEDUP_EXPORTS_H

#include <pthread.h>

#include "disk-internal.h"
#include "fault.h"
#include "lock.h"
#include "names.h"
#include "root.h"

/* What is kept for a root for as long as it exists. */
struct srv_root_account {
  struct srv_disk *disk;        /* that new clients get, or NULL */
  struct srv_counters past;     /* of disks that clients had before */
  uint64_t mapped_bytes;        /* as of the last count */
  bool mapped_is_known;
};

struct srv_exports {
  /* Constant after init: */
  struct dedup_pool *pool;
  bool writable;                /* by clients, unless a root is not */
  struct srv_space *space;
  struct srv_disk *active;
  struct srv_accounts *accounts;        /* set before init; or NULL */

  /* Atomic: */
  uint64_t last_change_ns;      /* of all disks: srv_disk_note_change */
  uint64_t nr_changes;          /* of the set of disks */

  /* Held during a change of the set of disks.  Taken before all others: */
  pthread_mutex_t operation;

  struct lock lock;
  pthread_cond_t settled;       /* is_changing became false */

  /* Protected by lock: */
  struct srv_names names;
  struct srv_disk *open;        /* list of all disks but the active one */
  struct srv_root_account *roots;       /* by number of the root */
  size_t nr_roots;
  bool is_changing;             /* clients of this root wait: */
  unsigned changing;
  bool active_is_unused;        /* the empty one of a pool, when the first disk
                                 * was made or the image opened */
};

/* Fills X, all zero before, with the roots of POOL; before there are other
 * threads.  WRITABLE: clients may write.  -ENOMEM.  srv_exports_destroy is called
 * in any case. */
int srv_exports_init (struct srv_exports *x, struct dedup_pool *pool,
                      bool writable, struct srv_space *space) MUST_CHECK;
/* Frees all disks, when no request uses them. */
void srv_exports_destroy (struct srv_exports *x);

/* Finds or makes the disk with the export name NAME, for one more client.
 * -ENOENT, -ENOMEM. */
int srv_exports_get (struct srv_exports *x, const char *name,
                     struct srv_disk **out, struct fault *f) MUST_CHECK;
/* Takes a client off D, and frees it after the last one. */
void srv_exports_put (struct srv_exports *x, struct srv_disk *d);

/* Returns whether a client has changed something within the last second, and so competes
 * with jobs. */
bool srv_exports_changed_lately (const struct srv_exports *x);

/* Returns whether the active disk has the export name "". */
bool srv_exports_active_is_served_locked (struct srv_exports *x);
/* Copies the export name of ROOT to BUF, as much as there is room for; "" if it has
 * none.  Takes the lock. */
void srv_exports_name (struct srv_exports *x, unsigned root, char *buf,
                       size_t len);
/* Adds up what all clients of a root did so far. */
void srv_exports_counters_locked (struct srv_exports *x, unsigned root,
                                  struct srv_counters *sum);
/* Notes that a root maps so many bytes.  Takes the lock. */
void srv_exports_note_mapped (struct srv_exports *x, unsigned root,
                              uint64_t mapped_bytes);
/* Returns what a root maps; UINT64_MAX: that is not known. */
uint64_t srv_exports_mapped_locked (const struct srv_exports *x, unsigned root);
/* Returns how many clients a root has. */
unsigned srv_exports_nr_clients_locked (struct srv_exports *x, unsigned root);

/* --- For changes of the set of disks (disks.c), under OPERATION ------------- */

/* Finds the root with the export name NAME.  -ENOENT. */
int srv_exports_find (struct srv_exports *x, const char *name, unsigned *root,
                      struct fault *f) MUST_CHECK;
/* Begins a change that ends the contents of ROOT, not the active disk.  If it has
 * clients, -EBUSY, or with FORCE all their requests fail from now on.  When it
 * has returned 0, no request uses the root, and new clients wait for
 * srv_exports_end_change. */
int srv_exports_begin_change (struct srv_exports *x, const char *name,
                              unsigned root, bool force, struct fault *f)
  MUST_CHECK;
void srv_exports_end_change (struct srv_exports *x);
/* Makes the disks of ROOT as large as it is now. */
void srv_exports_grow (struct srv_exports *x, unsigned root);

/* Change the names as srv_names_prepare, srv_names_add and srv_names_remove do
 * (names.h), and take the lock for that. */
int srv_exports_prepare_name (struct srv_exports *x, const char *name,
                              char **copy, struct fault *f) MUST_CHECK;
void srv_exports_add_name (struct srv_exports *x, char *copy, unsigned root);
void srv_exports_remove_name (struct srv_exports *x, unsigned root);
/* Gives ROOT the name COPY instead of the one that it has. */
void srv_exports_rename (struct srv_exports *x, char *copy, unsigned root);

#endif
