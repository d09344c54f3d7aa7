/* SPDX-License-Identifier: BSD-3-Clause */
/* Locates and reads compressed clusters; decoder.c expands them.
 *
 * Of several clusters, those whose compressed bytes follow each other in the file are
 * read with one call.  Where that fails each is read alone, so that a bad sector harms
 * only the clusters that touch it.
 *
 * It changes nothing and may run in any thread, without a lock.  A call takes
 * memory for the compressed bytes (two clusters at the most, by the width of
 * the sector count; for several clusters BATCH_BYTES if that is more) and the
 * decoder's state.  expanded.c keeps some, and codec.c compresses.
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

/* --- Several clusters -------------------------------------------------------- */

/* Compressed bytes and clusters that are read at a time: little enough for the second
 * level of a core's cache. */
#define BATCH_BYTES (UINT64_C (128) << 10)
#define BATCH_CLUSTERS 64

struct batch {
  size_t nr, nr_runs;
  uint64_t bytes;                         /* of all runs */
  struct io_part runs[BATCH_CLUSTERS];
  struct {
    uint64_t len;
    uint64_t at;                          /* in the bytes of all runs */
    unsigned run;
  } in[BATCH_CLUSTERS];
};

/* Adds LEN bytes at HOST_OFF to the last run, if they begin in it or where it ends, or
 * as a run of their own.  False: the batch is full. */
static bool
add_to_batch (struct batch *b, uint64_t host_off, uint64_t len)
{
  struct io_part *last = b->nr_runs > 0 ? &b->runs[b->nr_runs - 1] : NULL;
  uint64_t within = 0, more = len;

  if (last && host_off >= last->host_off && host_off <= last->host_off + last->len) {
    within = host_off - last->host_off;
    more = within + len > last->len ? within + len - last->len : 0;
  }
  else
    last = NULL;
  if (b->nr == BATCH_CLUSTERS || (b->nr > 0 && b->bytes + more > BATCH_BYTES))
    return false;
  if (!last) {
    last = &b->runs[b->nr_runs++];
    *last = (struct io_part) { .host_off = host_off };
  }
  b->in[b->nr].len = len;
  b->in[b->nr].at = b->bytes - last->len + within;
  b->in[b->nr++].run = (unsigned) (last - b->runs);
  last->len += more;
  b->bytes += more;
  return true;
}

/* Reads the runs of a batch to BUF.  Each run has a result of its own. */
static void
read_batch (struct qcow2_image *img, struct batch *b, uint8_t *buf)
{
  uint64_t at = 0;
  size_t i;
  int r;

  for (i = 0; i < b->nr_runs; i++) {
    b->runs[i].buf = buf + at;
    at += b->runs[i].len;
  }
  r = io_read_many (img->io, b->runs, b->nr_runs);
  (void) r;
}

static void
expand_batch (struct qcow2_image *img, const struct batch *b, const uint8_t *buf,
              struct qcow2_compressed_part *v)
{
  struct qcow2_decoder *d = qcow2_decoder_get (img);
  size_t i;

  for (i = 0; i < b->nr; i++) {
    if (b->runs[b->in[i].run].result < 0)
      v[i].result = qcow2_compressed_read (img, v[i].entry, v[i].out);
    else
      v[i].result = d == NULL ? -ENOMEM
        : qcow2_decoder_expand (img, d, buf + b->in[i].at, b->in[i].len, v[i].out);
  }
  if (d)
    qcow2_decoder_put (img, d);
}

/* Reads some of the NR parts V; returns how many, at least one. */
static size_t
read_some (struct qcow2_image *img, struct qcow2_compressed_part *v, size_t nr)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  uint64_t host_off, len;
  struct batch b;
  size_t i;

  b.nr = b.nr_runs = 0;
  b.bytes = 0;
  for (i = 0; i < nr; i++) {
    qcow2_compressed_extent (img, v[i].entry, &host_off, &len);
    if (!add_to_batch (&b, host_off, len))
      break;
  }
  buf = aligned_new (b.bytes);
  if (buf == NULL) {
    for (i = 0; i < b.nr; i++)
      v[i].result = -ENOMEM;
    return b.nr;
  }
  read_batch (img, &b, buf);
  expand_batch (img, &b, buf, v);
  return b.nr;
}

int
qcow2_compressed_read_many (struct qcow2_image *img,
                            struct qcow2_compressed_part *v, size_t nr)
{
  size_t i, done;
  int r = 0;

  for (done = 0; done < nr; )
    done += read_some (img, v + done, nr - done);
  for (i = 0; i < nr && r == 0; i++)
    r = v[i].result;
  return r;
}
