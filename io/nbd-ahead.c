/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads ahead from an NBD server that is far away, and keeps what was read until somebody
 * asks for it.
 *
 * A local file is read ahead by the kernel; here nobody else does it, so a reader with one
 * request under way would wait a round trip for each.  io_will_need announces ranges;
 * they are cut into *pieces*, which some threads of their own read, many at once.  A read
 * that lies in pieces wholly is copied from them, or waits for those that were asked
 * for; if it comes before some were, its thread asks for these itself.  A piece is dropped
 * when it was read to its end, or when others need its memory: MAX_BYTES in all.
 *
 * A piece never shows older bytes than the server has.  Whoever changes bytes drops the
 * pieces that overlap them after the server has answered and before the caller is told
 * (io_nbd_ahead_drop).  A piece whose read was begun before that is dropped with the
 * others, though its read is not over; one that is begun later reads what was written.
 *
 * It costs a copy, so nothing is announced where a read has ever been answered within
 * FAR_NS: such a server is not far away.
 *
 * Threads: any.  The lock is held for moments, and never while bytes are copied or the
 * server is asked.
 */
#include "nbd-private.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "aligned.h"
#include "checked.h"
#include "mutation.h"

/* Tests of lost connections have all servers far away. */
#ifndef FAR_NS
#define FAR_NS UINT64_C (500000)
#endif
#define PIECE (UINT64_C (256) << 10)
#define MAX_BYTES (UINT64_C (16) << 20)
/* Pieces that a thread reads at once, and that one read is copied from. */
#define AT_ONCE 64
#define BATCH (UINT64_C (1) << 20)

/* --- Pieces ------------------------------------------------------------- */

static struct nbd_piece *
find (struct nbd_ahead *a, uint64_t off)
{
  struct nbd_piece *p;

  for (p = a->pieces; p < a->pieces + NBD_AHEAD_PIECES; p++)
    if (p->state != NBD_PIECE_FREE && p->state != NBD_PIECE_STALE &&
        off >= p->off && off - p->off < p->len)
      return p;
  return NULL;
}

/* Frees a piece once nobody copies from it.  A thread that reads it counts as a user. */
static void
drop_piece (struct nbd_ahead *a, struct nbd_piece *p)
{
  p->state = NBD_PIECE_STALE;
  if (p->users > 0)
    return;
  free (p->buf);
  a->bytes -= p->len;
  *p = (struct nbd_piece) { .state = NBD_PIECE_FREE };
}

static void
release (struct nbd_ahead *a, struct nbd_piece *p)
{
  if (--p->users == 0 && p->state == NBD_PIECE_STALE)
    drop_piece (a, p);
}

/* Returns a free place, for which the oldest piece may be dropped that has been read, or
 * NULL.  LEN more bytes fit then. */
static struct nbd_piece *
new_piece (struct nbd_ahead *a, uint64_t len)
{
  struct nbd_piece *p, *unused, *oldest;

  for (;;) {
    unused = oldest = NULL;
    for (p = a->pieces; p < a->pieces + NBD_AHEAD_PIECES; p++) {
      if (p->state == NBD_PIECE_FREE)
        unused = p;
      if (p->state == NBD_PIECE_READY && p->users == 0 &&
          (oldest == NULL || p->age < oldest->age))
        oldest = p;
    }
    if (unused && a->bytes + len <= MAX_BYTES)
      return unused;
    if (oldest == NULL)
      return NULL;
    drop_piece (a, oldest);
  }
}

/* --- Announcing --------------------------------------------------------- */

/* Queues what is not there yet of FROM to TO; *LAST is the piece that was queued last by
 * the same call.  Returns false if there is no room. */
static bool
queue (struct nbd_ahead *a, uint64_t from, uint64_t to, struct nbd_piece **last)
{
  struct nbd_piece *p;
  uint64_t len;

  while (from < to) {
    if ((p = find (a, from)) != NULL) {
      from = p->off + p->len;
      continue;
    }
    len = MIN_OF (PIECE, to - from);
    p = *last;
    if (p && p->off + p->len == from && p->len + len <= PIECE &&
        a->bytes + len <= MAX_BYTES)
      p->len += len;
    else if ((p = new_piece (a, len)) != NULL)
      *p = (struct nbd_piece) { .state = NBD_PIECE_QUEUED, .off = from, .len = len,
                                .age = ++a->clock };
    else
      return false;
    a->bytes += len;
    *last = p;
    from += len;
  }
  return true;
}

static void *ahead_thread (void *opaque);

/* Returns whether there is a thread that reads. */
static bool
start_threads (struct io_nbd *n)
{
  struct nbd_ahead *a = &n->ahead;

  while (a->nr_threads < NBD_AHEAD_THREADS &&
         pthread_create (&a->threads[a->nr_threads], NULL, ahead_thread, n) == 0)
    a->nr_threads++;
  return a->nr_threads > 0;
}

bool
io_nbd_will_need (struct io_store *s, const struct io_part *v, size_t nr, bool around)
{
  struct io_nbd *n = (struct io_nbd *) s;
  struct nbd_ahead *a = &n->ahead;
  const uint64_t block = n->export.min_block;
  struct nbd_piece *last = NULL;
  size_t i;

  if (__atomic_load_n (&a->least_ns, __ATOMIC_RELAXED) < FAR_NS ||
      io_nbd_link_is_mine (n))
    return false;
  pthread_mutex_lock (&a->lock);
  if (start_threads (n))
    for (i = 0; i < nr; i++)
      if (v[i].host_off < n->export.size &&
          !queue (a, round_down_pow2 (v[i].host_off, block),
                  MIN_OF (n->export.size,
                          round_up_pow2 (v[i].host_off + v[i].len, block)), &last))
        break;
  pthread_cond_broadcast (&a->changed);
  pthread_mutex_unlock (&a->lock);
  return true;                  /* it is asked again for what comes next */
}

/* --- Reading ahead ------------------------------------------------------ */

/* Takes the oldest pieces that are queued, up to AT_ONCE or BATCH bytes; returns how many.
 * The first of them is there only when all are. */
static size_t
take_queued (struct nbd_ahead *a, struct nbd_piece *v[AT_ONCE])
{
  struct nbd_piece *p, *oldest;
  uint64_t bytes = 0;
  size_t nr = 0;

  do {
    oldest = NULL;
    for (p = a->pieces; p < a->pieces + NBD_AHEAD_PIECES; p++)
      if (p->state == NBD_PIECE_QUEUED && (oldest == NULL || p->age < oldest->age))
        oldest = p;
    if (oldest == NULL)
      break;
    oldest->state = NBD_PIECE_READING;
    oldest->users++;
    v[nr++] = oldest;
    bytes += oldest->len;
  } while (nr < AT_ONCE && bytes < BATCH);
  return nr;
}

/* Reads pieces that this thread has taken: nobody else changes their ranges. */
static void
read_pieces (struct io_nbd *n, struct nbd_piece *v[], size_t nr)
{
  struct io_part parts[AT_ONCE];
  size_t i, k = 0;

  for (i = 0; i < nr; i++)
    if ((v[i]->buf = aligned_new (v[i]->len)) != NULL)
      parts[k++] = (struct io_part) { .buf = v[i]->buf, .len = v[i]->len,
                                      .host_off = v[i]->off };
  n->ahead.read (n, parts, k);
  for (i = 0, k = 0; i < nr; i++)
    v[i]->failed = v[i]->buf == NULL || parts[k++].result < 0;
}

/* Reads pieces that this thread has taken, and is a user of; releases the lock meanwhile. */
static void
read_taken (struct io_nbd *n, struct nbd_piece *v[], size_t nr)
{
  struct nbd_ahead *a = &n->ahead;
  size_t i;

  pthread_mutex_unlock (&a->lock);
  read_pieces (n, v, nr);
  pthread_mutex_lock (&a->lock);
  for (i = 0; i < nr; i++) {
    if (v[i]->failed)
      v[i]->state = NBD_PIECE_STALE;
    else if (v[i]->state == NBD_PIECE_READING)
      v[i]->state = NBD_PIECE_READY;
    release (a, v[i]);
  }
  pthread_cond_broadcast (&a->changed);
}

static void *
ahead_thread (void *opaque)
{
  struct io_nbd *n = opaque;
  struct nbd_ahead *a = &n->ahead;
  struct nbd_piece *v[AT_ONCE];
  size_t nr;

  pthread_mutex_lock (&a->lock);
  while (!a->stop) {
    nr = take_queued (a, v);
    if (nr == 0) {
      pthread_cond_wait (&a->changed, &a->lock);
      continue;
    }
    read_taken (n, v, nr);
  }
  pthread_mutex_unlock (&a->lock);
  return NULL;
}

/* --- Reads -------------------------------------------------------------- */

/* Drops what is queued and overlaps OFF to TO: its reader has come first. */
static void
drop_queued (struct nbd_ahead *a, uint64_t off, uint64_t to)
{
  struct nbd_piece *p;

  for (p = a->pieces; p < a->pieces + NBD_AHEAD_PIECES; p++)
    if (p->state == NBD_PIECE_QUEUED && off < p->off + p->len && p->off < to)
      drop_piece (a, p);
}

/* Takes the pieces that hold OFF to TO, all of it; returns how many, 0: not all of it is
 * there. */
static size_t
take_pieces (struct nbd_ahead *a, uint64_t off, uint64_t to, struct nbd_piece *v[AT_ONCE])
{
  const uint64_t from = off;
  struct nbd_piece *p;
  size_t nr = 0;

  while (off < to && nr < AT_ONCE && (p = find (a, off)) != NULL) {
    p->users++;
    v[nr++] = p;
    off = p->off + p->len;
  }
  if (off >= to)
    return nr;
  while (nr > 0)
    release (a, v[--nr]);
  drop_queued (a, from, to);
  return 0;
}

/* Reads those of the pieces that are still queued. */
static void
read_queued (struct io_nbd *n, struct nbd_piece *v[], size_t nr)
{
  struct nbd_piece *queued[AT_ONCE];
  size_t i, k = 0;

  for (i = 0; i < nr; i++)
    if (v[i]->state == NBD_PIECE_QUEUED) {
      v[i]->state = NBD_PIECE_READING;
      v[i]->users++;
      queued[k++] = v[i];
    }
  if (k > 0)
    read_taken (n, queued, k);
}

/* Waits until all pieces have been read; false: one is not valid. */
static bool
wait_for_pieces (struct io_nbd *n, struct nbd_piece *v[], size_t nr)
{
  struct nbd_ahead *a = &n->ahead;
  size_t i;

  read_queued (n, v, nr);

  for (i = 0; i < nr; i++) {
    while (v[i]->state == NBD_PIECE_READING)
      pthread_cond_wait (&a->changed, &a->lock);
    if (v[i]->state != NBD_PIECE_READY)
      return false;
  }
  return true;
}

static void
copy_out (const struct io_part *part, struct nbd_piece *v[], size_t nr)
{
  const uint64_t to = part->host_off + part->len;
  uint64_t from, end;
  size_t i;

  for (i = 0; i < nr; i++) {
    from = MAX_OF (part->host_off, v[i]->off);
    end = MIN_OF (to, v[i]->off + v[i]->len);
    memcpy ((char *) part->buf + (from - part->host_off), v[i]->buf + (from - v[i]->off),
            end - from);
  }
}

bool
io_nbd_ahead_read (struct io_nbd *n, const struct io_part *part)
{
  struct nbd_ahead *a = &n->ahead;
  const uint64_t to = part->host_off + part->len;
  struct nbd_piece *v[AT_ONCE];
  size_t nr, i;
  bool valid;

  if (part->len == 0 || io_nbd_link_is_mine (n))
    return false;
  pthread_mutex_lock (&a->lock);
  nr = a->bytes > 0 ? take_pieces (a, part->host_off, to, v) : 0;
  valid = nr > 0 && wait_for_pieces (n, v, nr);
  pthread_mutex_unlock (&a->lock);
  if (nr == 0)
    return false;
  if (valid)
    copy_out (part, v, nr);
  pthread_mutex_lock (&a->lock);
  for (i = 0; i < nr; i++) {
    if (valid && v[i]->off + v[i]->len <= to)   /* it was read to its end */
      v[i]->state = NBD_PIECE_STALE;
    release (a, v[i]);
  }
  pthread_mutex_unlock (&a->lock);
  return valid;
}

void
io_nbd_ahead_drop (struct io_nbd *n, uint64_t off, uint64_t len)
{
  struct nbd_ahead *a = &n->ahead;
  struct nbd_piece *p;

  if (mutation (MUTATION_NBD_AHEAD_KEPT))
    return;
  pthread_mutex_lock (&a->lock);
  for (p = a->pieces; a->bytes > 0 && p < a->pieces + NBD_AHEAD_PIECES; p++)
    if (p->state != NBD_PIECE_FREE && off < p->off + p->len && p->off < off + len)
      drop_piece (a, p);
  pthread_cond_broadcast (&a->changed);
  pthread_mutex_unlock (&a->lock);
}

void
io_nbd_ahead_time (struct io_nbd *n, uint64_t ns)
{
  uint64_t least = __atomic_load_n (&n->ahead.least_ns, __ATOMIC_RELAXED);

  while (ns < least &&
         !__atomic_compare_exchange_n (&n->ahead.least_ns, &least, ns, true,
                                       __ATOMIC_RELAXED, __ATOMIC_RELAXED))
    ;
}

/* --- Beginning and end -------------------------------------------------- */

void
io_nbd_ahead_init (struct io_nbd *n,
                   void (*read) (struct io_nbd *n, struct io_part *v, size_t nr))
{
  n->ahead.read = read;
  pthread_mutex_init (&n->ahead.lock, NULL);
  pthread_cond_init (&n->ahead.changed, NULL);
  n->ahead.least_ns = UINT64_MAX;
}

void
io_nbd_ahead_stop (struct io_nbd *n)
{
  struct nbd_ahead *a = &n->ahead;
  struct nbd_piece *p;

  pthread_mutex_lock (&a->lock);
  a->stop = true;
  pthread_cond_broadcast (&a->changed);
  pthread_mutex_unlock (&a->lock);
  while (a->nr_threads > 0)
    pthread_join (a->threads[--a->nr_threads], NULL);
  for (p = a->pieces; p < a->pieces + NBD_AHEAD_PIECES; p++)
    if (p->state != NBD_PIECE_FREE)
      drop_piece (a, p);
  a->stop = false;
}

void
io_nbd_ahead_destroy (struct io_nbd *n)
{
  io_nbd_ahead_stop (n);
  pthread_cond_destroy (&n->ahead.changed);
  pthread_mutex_destroy (&n->ahead.lock);
}
