/* SPDX-License-Identifier: BSD-3-Clause */
/* Maps export names to roots of an image (names.c). */
#ifndef DEDUP_NAMES_H
#define DEDUP_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#include "cleanup.h"
#include "qcow2.h"

struct srv_name {
  char *s;                      /* owned; NULL: the root has none */
  unsigned root;
  bool is_id;                   /* the snapshot's id, not its name */
  bool is_disk;                 /* made by this program */
};

struct srv_names {              /* all zero: no names; the owner locks it */
  struct srv_name *v;           /* sorted; of equal ones the first counts */
  size_t nr, max;
  size_t nr_disks;              /* with is_disk */
  uint64_t edits;               /* names that were added or removed */
};

/* Gives names to the NR snapshots of an image.  -ENOMEM. */
int srv_names_init (struct srv_names *names,
                    const struct qcow2_snapshot *snapshots, size_t nr)
  MUST_CHECK;
void srv_names_destroy (struct srv_names *names);

/* Finds the root that has the export name NAME; "" is the active disk.
 * -ENOENT. */
int srv_names_find (const struct srv_names *names, const char *name,
                    unsigned *root) MUST_CHECK;
/* Returns the index of the first name behind NAME, in the order of the list. */
size_t srv_names_after (const struct srv_names *names, const char *name);
/* Returns whether the name with this index leads to its root, and not to that of
 * an equal name before it. */
bool srv_names_counts (const struct srv_names *names, size_t i);

/* Makes room for NAME, and copies it to *COPY for one call of srv_names_add; it
 * is freed by free if that is not called.  -ENOMEM. */
int srv_names_prepare (struct srv_names *names, const char *name, char **copy)
  MUST_CHECK;
/* Adds the name COPY of a disk or snapshot that this program made. */
void srv_names_add (struct srv_names *names, char *copy, unsigned root);
void srv_names_remove (struct srv_names *names, unsigned root);

#endif
