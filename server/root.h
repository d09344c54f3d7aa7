/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells what a root of an image is at the moment (root.c). */
#ifndef DEDUP_ROOT_H
#define DEDUP_ROOT_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

struct srv_root {
  bool exists;                  /* and is neither the anchor nor being deleted */
  uint64_t size;                /* bytes; 0 if it does not exist */
  bool is_disk;                 /* a disk or snapshot made by this program */
  bool is_snapshot;             /* nobody may ever write */
  bool writable;                /* it can be written to in this session */
  uint8_t uuid[16], origin[16]; /* 0: none */
  uint64_t created;             /* seconds since 1970; 0: not known */
  unsigned compress;            /* QCOW2_COMPRESS_*: what it says of new data */
};

/* Fills *OUT.  Takes the image lock; any thread. */
void srv_root_look (struct qcow2_image *img, unsigned root,
                    struct srv_root *out);
/* Returns whether the active disk is the empty one of a pool: it has refcounts
 * of 32 bits, as clones need, no backing file, and maps nothing.  Reads tables,
 * and takes the image lock; false where they cannot be read. */
bool srv_root_active_is_empty (struct qcow2_image *img);

#endif
