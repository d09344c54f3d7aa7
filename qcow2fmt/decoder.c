/* SPDX-License-Identifier: BSD-3-Clause */
/* Expands compressed clusters, in the form that the image's compression type names.
 *
 * The descriptor counts sectors, not bytes: the bytes that are read may end in
 * the middle of the next compressed cluster.  So both decoders stop after one
 * cluster's worth of output and ignore the rest of the input.  Any other amount
 * of output than exactly one cluster is -EIO.
 *
 * A decoder's state is kept for the next cluster, because making one costs more than
 * expanding a cluster of 4 KiB: libzstd asks the processor what it can (CPUID), and a
 * virtual machine has to stop for the answer.  Each cluster begins with a reset, so that
 * nothing of one can get into another.
 *
 * Any thread.  A decoder belongs to one call at a time; the lock covers the list of those
 * that nobody uses, and nothing is expanded or allocated under it.
 */
#include <errno.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>

#include "image.h"

/* Selects raw deflate (by the sign) with the largest window.  QEMU compresses
 * with a window of 2^12; the largest one reads that and the output of all other
 * tools. */
#define INFLATE_WINDOW_BITS (-15)

/* What zlib allocates for its state and the largest window, rounded up. */
#define INFLATE_BYTES (UINT64_C (44) << 10)

/* Decoders that are kept: one for each thread that nbdkit has by default.  With more
 * threads, those above that are made again. */
#define MAX_UNUSED 16

struct qcow2_decoder {
  ZSTD_DCtx *zstd;             /* NULL: deflate */
  z_stream inflate;
  struct qcow2_decoder *next;
};

void
qcow2_decoders_init (struct qcow2_image *img)
{
  lock_init (&img->decoders.lock);
}

static void
free_decoder (struct qcow2_decoder *d)
{
  if (d->zstd)
    ZSTD_freeDCtx (d->zstd);
  else
    inflateEnd (&d->inflate);
  free (d);
}

void
qcow2_decoders_free (struct qcow2_image *img)
{
  struct qcow2_decoder *d;

  while ((d = img->decoders.unused) != NULL) {
    img->decoders.unused = d->next;
    free_decoder (d);
  }
  lock_destroy (&img->decoders.lock);
}

uint64_t
qcow2_decoders_bytes (struct qcow2_image *img)
{
  LOCK_FOR_SCOPE (&img->decoders.lock);
  return img->decoders.bytes;
}

static struct qcow2_decoder *
new_decoder (const struct qcow2_image *img)
{
  struct qcow2_decoder *d = calloc (1, sizeof *d);
  bool ok = false;

  if (d && img->header.geo.compression_type == 0)
    ok = inflateInit2 (&d->inflate, INFLATE_WINDOW_BITS) == Z_OK;
  else if (d)
    ok = (d->zstd = ZSTD_createDCtx ()) != NULL;
  if (ok)
    return d;
  free (d);
  return NULL;
}

static uint64_t
decoder_bytes (const struct qcow2_decoder *d)
{
  return sizeof *d + (d->zstd ? ZSTD_sizeof_DCtx (d->zstd) : INFLATE_BYTES);
}

struct qcow2_decoder *
qcow2_decoder_get (struct qcow2_image *img)
{
  struct qcow2_decoders *ds = &img->decoders;
  struct qcow2_decoder *d;

  lock_acquire (&ds->lock);
  d = ds->unused;
  if (d) {
    ds->unused = d->next;
    ds->nr--;
    ds->bytes -= decoder_bytes (d);
  }
  lock_release (&ds->lock);
  return d ? d : new_decoder (img);
}

/* The decoder that was used last is used first, as it is in the core's cache. */
void
qcow2_decoder_put (struct qcow2_image *img, struct qcow2_decoder *d)
{
  struct qcow2_decoders *ds = &img->decoders;
  bool keep;

  lock_acquire (&ds->lock);
  keep = ds->nr < MAX_UNUSED;
  if (keep) {
    d->next = ds->unused;
    ds->unused = d;
    ds->nr++;
    ds->bytes += decoder_bytes (d);
  }
  lock_release (&ds->lock);
  if (!keep)
    free_decoder (d);
}

static int
expand_zlib (z_stream *s, const uint8_t *in, size_t in_len, uint8_t *out,
             size_t out_len)
{
  int r;

  if (inflateReset (s) != Z_OK)
    return -EIO;
  s->next_in = (uint8_t *) in;
  s->avail_in = in_len;
  s->next_out = out;
  s->avail_out = out_len;
  r = inflate (s, Z_FINISH);
  /* Z_BUF_ERROR: the output is full before the end of the stream, or the
   * input ended too soon; avail_out tells them apart. */
  if ((r == Z_STREAM_END || r == Z_BUF_ERROR) && s->avail_out == 0)
    return 0;
  return r == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

/* Decompresses a zstd frame in one call, which, unlike streaming, allocates no
 * window of the size that the frame asks for. */
static int
expand_zstd (ZSTD_DCtx *ctx, const uint8_t *in, size_t in_len, uint8_t *out,
             size_t out_len)
{
  const size_t frame = ZSTD_findFrameCompressedSize (in, in_len);
  size_t n;

  if (ZSTD_isError (frame))
    return -EIO;
  n = ZSTD_decompressDCtx (ctx, out, out_len, in, frame);
  if (ZSTD_isError (n) || n != out_len)
    return -EIO;
  return 0;
}

int
qcow2_decoder_expand (const struct qcow2_image *img, struct qcow2_decoder *d,
                      const uint8_t *in, size_t len, uint8_t *out)
{
  const size_t size = img->header.geo.cluster_size;

  return d->zstd ? expand_zstd (d->zstd, in, len, out, size)
    : expand_zlib (&d->inflate, in, len, out, size);
}
