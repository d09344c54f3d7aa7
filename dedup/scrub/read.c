/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads clusters from the medium and sets their prints.
 *
 * A cluster of data is anchored and has a guest reference; only such clusters
 * are named by the index.  All others that are in use are read as well, so that a
 * medium that fails there is noticed: tables, the store, garbage, and data of
 * other programs.  Free clusters are not read.
 *
 * Any number of threads, without locks.
 */
#include "scrub-private.h"

#include <errno.h>
#include <stdlib.h>

enum kind { FREE, DATA, OTHER_DATA, TABLE };

struct batch {
  struct dedup_scrub *sc;
  uint64_t first;
  size_t nr, next;
  uint8_t kinds[BATCH_CLUSTERS];
};

/* --- What the clusters are ------------------------------------------------- */

static int
classify_locked (struct qcow2_txn *txn, void *opaque)
{
  struct batch *bt = opaque;
  struct qcow2_image *img = txn->img;
  uint64_t refcount;
  bool anchored;
  int r;

  assert (lock_held (qcow2_lock (img)));
  for (; bt->next < bt->nr; bt->next++) {
    const uint64_t host_idx = bt->first + bt->next;

    r = qcow2_get_refcount_locked (txn, host_idx, &refcount, &anchored);
    if (r == -EIO)
      refcount = 1, anchored = false;   /* not known: it is read only */
    else if (r < 0)
      return r;
    bt->kinds[bt->next] = refcount == 0 ? FREE
      : qcow2_guarded_locked (img, host_idx, 1) ? TABLE
      : anchored && refcount >= 2 ? DATA : OTHER_DATA;
  }
  return 0;
}

/* --- Bytes ------------------------------------------------------------------ */

/* Sets the print of a cluster that could be read. */
static int
take_in (struct batch *bt, size_t i, const uint8_t *bytes)
{
  struct dedup_scrub *sc = bt->sc;
  uint32_t p = PRINT_OTHER;
  struct dedup_hash h;
  int r = 0;

  if (bt->kinds[i] == DATA && sc->s->has_store) {
    r = dedup_hash_compute (&sc->b->hasher, bytes, sc->b->cluster_size, &h);
    p = scrub_print (&h);
  }
  if (r == 0)
    (void) print_set (sc, bt->first + i - sc->from, PRINT_NONE, p);
  return r;
}

static int
take_in_all (struct batch *bt, size_t i, size_t n, const uint8_t *bytes)
{
  size_t k;
  int r = 0;

  for (k = 0; k < n && r == 0; k++)
    r = take_in (bt, i + k, bytes + k * bt->sc->b->cluster_size);
  return r;
}

/* Reads N clusters from number I of the batch on; one by one if that fails. */
static int
read_run (struct batch *bt, size_t i, size_t n, uint8_t *bytes)
{
  const struct dedup_base *b = bt->sc->b;
  size_t k;
  int r = io_pread_medium (b->io, bytes, n * b->cluster_size,
                           (bt->first + i) << b->cluster_bits);

  if (r == 0)
    return take_in_all (bt, i, n, bytes);
  if (r == -ENOMEM)
    return r;
  if (n == 1) {
    (void) print_set (bt->sc, bt->first + i - bt->sc->from, PRINT_NONE,
                      PRINT_UNREADABLE);
    return 0;
  }
  for (k = 0, r = 0; k < n && r == 0; k++)
    r = read_run (bt, i + k, 1, bytes);
  return r;
}

static int
read_all (struct batch *bt, uint8_t *bytes)
{
  size_t i, n;
  int r = 0;

  for (i = 0; i < bt->nr && r == 0; i += n) {
    for (n = 0; i + n < bt->nr && bt->kinds[i + n] != FREE; n++)
      ;
    if (n > 0)
      r = read_run (bt, i, n, bytes);
    n += n == 0;
  }
  return r;
}

/* Counts what was read and will not be judged. */
static void
count_batch (const struct batch *bt)
{
  struct dedup_scrub *sc = bt->sc;
  uint64_t tables = 0, others = 0, in_use = 0;
  size_t i;

  for (i = 0; i < bt->nr; i++) {
    in_use += bt->kinds[i] != FREE;
    if (print_load (sc, bt->first + i - sc->from) != PRINT_OTHER)
      continue;
    tables += bt->kinds[i] == TABLE;
    others += bt->kinds[i] != TABLE;
  }
  pthread_mutex_lock (&sc->lock);
  sc->figures.tables += tables;
  sc->figures.unknown += others;
  sc->figures.bytes_read += in_use << sc->b->cluster_bits;
  pthread_mutex_unlock (&sc->lock);
}

/* --- Buffers ----------------------------------------------------------------- */

/* Returns a buffer for any batch, or NULL.  Buffers are kept, because fresh memory
 * costs a page fault for each page. */
static uint8_t *
get_buffer (struct dedup_scrub *sc)
{
  uint8_t *p = NULL;

  pthread_mutex_lock (&sc->lock);
  if (sc->nr_buffers > 0)
    p = sc->buffers[--sc->nr_buffers];
  pthread_mutex_unlock (&sc->lock);
  return p ? p : aligned_alloc (IO_MEDIUM_ALIGN, MAX_OF (BATCH_BYTES,
                                                         sc->b->cluster_size));
}

static void
put_buffer (struct dedup_scrub *sc, uint8_t *p)
{
  bool kept;

  pthread_mutex_lock (&sc->lock);
  kept = sc->nr_buffers < MAX_BUFFERS;
  if (kept)
    sc->buffers[sc->nr_buffers++] = p;
  pthread_mutex_unlock (&sc->lock);
  if (!kept)
    free (p);
}

int
scrub_read (struct dedup_scrub *sc, uint64_t first, size_t nr)
{
  struct batch bt = { .sc = sc, .first = first, .nr = nr };
  uint8_t *bytes;
  int r;

  assert (nr <= BATCH_CLUSTERS);
  r = qcow2_txn_run (sc->b->img, classify_locked, &bt);
  if (r < 0)
    return r;
  bytes = get_buffer (sc);
  if (bytes == NULL)
    return -ENOMEM;
  r = read_all (&bt, bytes);
  put_buffer (sc, bytes);
  if (r == 0)
    count_batch (&bt);
  return r;
}
