/* SPDX-License-Identifier: BSD-3-Clause */
/* Locates and reads compressed clusters; decoder.c expands them.
 *
 * It changes nothing and may run in any thread, without a lock.  A call takes
 * memory for the compressed bytes (two clusters at the most, by the width of
 * the sector count) and the decoder's state.  expanded.c keeps some, and codec.c
 * compresses.
 */
#include <errno.h>

#include "aligned.h"
#include "image.h"

void
qcow2_compressed_extent (const struct qcow2_image *img, uint64_t entry,
                         uint64_t *host_off, uint64_t *len)
{
  const unsigned bits = img->header.geo.cluster_bits;
  const unsigned x = 62 - (bits - 8);   /* specification: "x" */
  uint64_t more = entry >> x & ((UINT64_C (1) << (bits - 8)) - 1);

  *host_off = entry & ((UINT64_C (1) << x) - 1);
  *len = (more + 1) * 512 - *host_off % 512;
}

void
qcow2_entry_clusters (const struct qcow2_image *img, uint64_t entry,
                      uint64_t *first, uint64_t *count)
{
  const unsigned bits = img->header.geo.cluster_bits;
  uint64_t off, len;

  if (entry & QCOW2_L2_COMPRESSED) {
    /* Both below 2^62: no overflow. */
    qcow2_compressed_extent (img, entry, &off, &len);
    *first = off >> bits;
    *count = ((off + len - 1) >> bits) - *first + 1;
    return;
  }
  *first = (entry & QCOW2_OFFSET_MASK) >> bits;
  *count = *first != 0;
}

int
qcow2_compressed_expand (struct qcow2_image *img, const uint8_t *in,
                         size_t len, uint8_t *out)
{
  struct qcow2_decoder *d = qcow2_decoder_get (img);
  int r;

  if (d == NULL)
    return -ENOMEM;
  r = qcow2_decoder_expand (img, d, in, len, out);
  qcow2_decoder_put (img, d);
  return r;
}

int
qcow2_compressed_read (struct qcow2_image *img, uint64_t entry, uint8_t *out)
{
  CLEANUP_FREE uint8_t *in = NULL;
  uint64_t host_off, len;
  int r;

  qcow2_compressed_extent (img, entry, &host_off, &len);
  in = aligned_new (len);                    /* at most 4 MiB */
  if (in == NULL)
    return -ENOMEM;
  r = io_pread (img->io, in, len, host_off);
  return r < 0 ? r : qcow2_compressed_expand (img, in, len, out);
}
