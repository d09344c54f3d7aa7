/* SPDX-License-Identifier: BSD-3-Clause */
/* Locates, reads and decompresses compressed clusters.
 *
 * The descriptor counts sectors, not bytes: the bytes that are read may end in
 * the middle of the next compressed cluster.  So both decoders stop after one
 * cluster's worth of output and ignore the rest of the input.  Any other amount
 * of output than exactly one cluster is -EIO.
 *
 * It changes nothing and may run in any thread, without a lock.  A call takes
 * memory for the compressed bytes (two clusters at the most, by the width of
 * the sector count) and the decoder's state.  expanded.c keeps some, and codec.c
 * compresses.
 */
#include <errno.h>

#include <zlib.h>
#include <zstd.h>

#include "aligned.h"
#include "image.h"

/* Selects raw deflate (by the sign) with the largest window.  QEMU compresses
 * with a window of 2^12; the largest one reads that and the output of all other
 * tools. */
#define INFLATE_WINDOW_BITS (-15)

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

static int
expand_zlib (const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  z_stream s = { 0 };
  int r;

  s.next_in = (uint8_t *) in;
  s.avail_in = in_len;
  s.next_out = out;
  s.avail_out = out_len;
  if (inflateInit2 (&s, INFLATE_WINDOW_BITS) != Z_OK)
    return -ENOMEM;
  r = inflate (&s, Z_FINISH);
  inflateEnd (&s);
  /* Z_BUF_ERROR: the output is full before the end of the stream, or the
   * input ended too soon; avail_out tells them apart. */
  if ((r == Z_STREAM_END || r == Z_BUF_ERROR) && s.avail_out == 0)
    return 0;
  return r == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

/* Decompresses a zstd frame in one call, which, unlike streaming, allocates no
 * window of the size that the frame asks for. */
static int
expand_zstd (const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  size_t frame = ZSTD_findFrameCompressedSize (in, in_len);
  size_t n;

  if (ZSTD_isError (frame))
    return -EIO;
  n = ZSTD_decompress (out, out_len, in, frame);
  if (ZSTD_isError (n) || n != out_len)
    return -EIO;
  return 0;
}

int
qcow2_compressed_expand (const struct qcow2_image *img, const uint8_t *in,
                         size_t len, uint8_t *out)
{
  const struct qcow2_geometry *g = &img->header.geo;

  return g->compression_type == 0
    ? expand_zlib (in, len, out, g->cluster_size)
    : expand_zstd (in, len, out, g->cluster_size);
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
