/* SPDX-License-Identifier: BSD-3-Clause */
/* Compresses clusters, in the form that the image's compression type names: as a
 * zstd frame of level 1, or as raw deflate data with a window of 2^12 bytes.  QEMU
 * expands both: it allocates no larger window for deflate, and reads one frame.
 *
 * Level 1 and the fastest deflate, because a client waits for the result, and what
 * higher levels save of a cluster of 4 KiB is small.
 *
 * A codec is used by one thread at a time.  It keeps the encoder's state, so that a
 * cluster does not have to allocate it: about 130 KiB for deflate, and for zstd as
 * much as clusters of this size need.
 */
#include <errno.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>

#include "image.h"

#define ZSTD_LEVEL 1
#define DEFLATE_LEVEL 1
#define DEFLATE_WINDOW_BITS (-12)  /* the sign: raw data */
#define DEFLATE_MEMORY 8           /* zlib's default */

struct qcow2_codec {
  ZSTD_CCtx *zstd;             /* NULL: deflate */
  z_stream deflate;
};

int
qcow2_codec_new (const struct qcow2_image *img, struct qcow2_codec **out)
{
  struct qcow2_codec *c = calloc (1, sizeof *c);
  bool ok = false;

  if (c && img->header.geo.compression_type == 0)
    ok = deflateInit2 (&c->deflate, DEFLATE_LEVEL, Z_DEFLATED,
                       DEFLATE_WINDOW_BITS, DEFLATE_MEMORY,
                       Z_DEFAULT_STRATEGY) == Z_OK;
  else if (c)
    ok = (c->zstd = ZSTD_createCCtx ()) != NULL;
  if (!ok) {
    free (c);
    return -ENOMEM;
  }
  *out = c;
  return 0;
}

void
qcow2_codec_free (struct qcow2_codec *c)
{
  if (c == NULL)
    return;
  if (c->zstd)
    ZSTD_freeCCtx (c->zstd);
  else
    deflateEnd (&c->deflate);
  free (c);
}

static size_t
compress_deflate (z_stream *s, const uint8_t *in, size_t len, uint8_t *out,
                  size_t max)
{
  if (deflateReset (s) != Z_OK)
    return 0;
  s->next_in = (uint8_t *) in;
  s->avail_in = (uInt) len;
  s->next_out = out;
  s->avail_out = (uInt) max;
  return deflate (s, Z_FINISH) == Z_STREAM_END ? max - s->avail_out : 0;
}

static size_t
compress_zstd (ZSTD_CCtx *ctx, const uint8_t *in, size_t len, uint8_t *out,
               size_t max)
{
  const size_t n = ZSTD_compressCCtx (ctx, out, max, in, len, ZSTD_LEVEL);

  return ZSTD_isError (n) ? 0 : n;
}

size_t
qcow2_codec_compress (struct qcow2_codec *c, const uint8_t *in, size_t len,
                      uint8_t *out, size_t max)
{
  return c->zstd ? compress_zstd (c->zstd, in, len, out, max)
    : compress_deflate (&c->deflate, in, len, out, max);
}

uint64_t
qcow2_compressed_entry (const struct qcow2_image *img, uint64_t host_off,
                        uint64_t len)
{
  const unsigned bits = img->header.geo.cluster_bits;
  const unsigned x = 62 - (bits - 8);   /* specification: "x" */
  const uint64_t sectors = (host_off + len - 1) / 512 - host_off / 512;

  if (host_off >> x != 0 || sectors >> (bits - 8) != 0)
    return 0;
  return QCOW2_L2_COMPRESSED | sectors << x | host_off;
}
