/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes a whole small qcow2 image, byte by byte: header and its extensions,
 * L1, L2 and refcount tables, snapshot table, compressed clusters.  It is
 * opened, every root mapped and read, and checked; then served, and where its
 * length is a multiple of 32 for writing, which gives it a store.  Seeds:
 * images of base.c (plain, with an external data file of either kind), and
 * pieces of the first.
 */
#include "fuzz.h"

#define MAX_IMAGE (1u << 20)

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  static const uint8_t ops[] = "\x01"
    "\x0b\x01\x00\x00\x0f" "\x00\x00\x00\xff\xff"    /* a snapshot */
    "\x00\x04\x00\x0f" "\x10\x30\x00\x02"
    "\x03\x00\x00\x0f" "\x04\x08\x00\x01" "\x05\x0c\x00\x01" "\x1f\x00\x00\x00"
    "\x00\x0c\x00\x02" "\x06\x00\x00\x0f";
  struct input in = { ops, sizeof ops - 1 };
  struct io_store *io;

  if (len > MAX_IMAGE)
    return -1;
  io = store_of (data, len);
  look_at_image (io);
  /* With clusters of 512 bytes a store takes long to make. */
  work_on_disk (io, &in, len % 32 == 0);
  io_close (io);
  return 0;
}
