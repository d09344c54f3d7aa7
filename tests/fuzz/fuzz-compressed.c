/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes a compressed cluster: the first bytes choose cluster size, compression
 * and the place and length that the L2 entry claims; the rest is the stream.
 */
#include "fuzz.h"

#include "image.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct input in = { data, len };
  struct qcow2_image img = { 0 };
  struct qcow2_geometry *g = &img.header.geo;
  CLEANUP_FREE uint8_t *out = NULL;
  uint64_t entry;
  int r;

  if (len < 16 || len > 1 << 16)
    return -1;
  g->cluster_bits = 9 + (unsigned) take (&in, 1) % 13;
  g->cluster_size = UINT64_C (1) << g->cluster_bits;
  g->compression_type = (unsigned) take (&in, 1) % 2;
  entry = take (&in, 8);
  if (take (&in, 1) & 1)        /* near: where the stream is */
    entry = (entry & ~((UINT64_C (1) << (62 - (g->cluster_bits - 8))) - 1)) |
      entry % 512;
  img.io = store_of (in.p, in.left);
  qcow2_decoders_init (&img);
  out = malloc (g->cluster_size);
  MUST (out);
  r = qcow2_compressed_read (&img, entry | QCOW2_L2_COMPRESSED, out);
  (void) r;
  qcow2_decoders_free (&img);
  io_close (img.io);
  return 0;
}
