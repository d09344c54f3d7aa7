/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements the rehearsal of preview.h: a store that notes what is read, and a thread.
 *
 * Promises that nothing is written through the store, and that its reads end within a
 * round trip after io_preview_stop.
 *
 * Threads: that of the rehearsal reads; the one that started it stops and ends it. */
#include "preview.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "checked.h"
#include "clock.h"
#include "lease.h"

/* What is noted at the most: nbd-ahead.c keeps so much, and somewhat more. */
#define MAX_BYTES (UINT64_C (12) << 20)
#define MAX_PARTS 200u

/* A place that answers a read sooner is not far away, and nothing would be gained. */
#ifndef FAR_NS
#define FAR_NS UINT64_C (500000)
#endif

struct io_preview {
  struct io_store store;

  /* Constant after the start: */
  struct io_store *below;
  void (*rehearse) (void *opaque, struct io_store *s);
  void *opaque;
  pthread_t thread;

  bool started;               /* the thread was not joined yet; of its starter */
  bool stop;                  /* atomic */

  /* Protected by lock: */
  pthread_mutex_t lock;
  struct io_part parts[MAX_PARTS];
  size_t nr;
  uint64_t bytes;
};

/* --- Reading ---------------------------------------------------------------- */

/* Returns whether LEN more bytes may be read. */
static bool
may_read (struct io_preview *v, uint64_t len)
{
  bool may;

  pthread_mutex_lock (&v->lock);
  may = v->nr < MAX_PARTS && len <= MAX_BYTES - v->bytes;
  pthread_mutex_unlock (&v->lock);
  return may && !__atomic_load_n (&v->stop, __ATOMIC_RELAXED);
}

static void
note (struct io_preview *v, uint64_t host_off, uint64_t len)
{
  pthread_mutex_lock (&v->lock);
  if (len > 0 && v->nr < MAX_PARTS && len <= MAX_BYTES - v->bytes) {
    v->parts[v->nr++] = (struct io_part) { .host_off = host_off, .len = len };
    v->bytes += len;
  }
  pthread_mutex_unlock (&v->lock);
}

static void
note_time (struct io_preview *v, uint64_t start_ns)
{
  if (clock_now_ns () - start_ns < FAR_NS)
    __atomic_store_n (&v->stop, true, __ATOMIC_RELAXED);
}

static int
preview_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t host_off)
{
  struct io_preview *v = (struct io_preview *) s;
  const uint64_t start = clock_now_ns ();
  uint64_t len = 0;
  int i, r;

  for (i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  if (!may_read (v, len))
    return -ECANCELED;
  r = io_preadv (v->below, iov, iovcnt, host_off);
  note_time (v, start);
  note (v, host_off, len);
  return r;
}

static void
preview_read_many (struct io_store *s, struct io_part *parts, size_t nr)
{
  struct io_preview *v = (struct io_preview *) s;
  const uint64_t start = clock_now_ns ();
  uint64_t len = 0;
  size_t i;

  for (i = 0; i < nr; i++)
    len += parts[i].len;
  if (!may_read (v, len)) {
    for (i = 0; i < nr; i++)
      parts[i].result = -ECANCELED;
    return;
  }
  (void) !io_read_many (v->below, parts, nr);
  note_time (v, start);
  for (i = 0; i < nr; i++)
    note (v, parts[i].host_off, parts[i].len);
}

/* --- All else --------------------------------------------------------------- */

static int
preview_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                 uint64_t host_off)
{
  return -EROFS;
}

static int
preview_sync (struct io_store *s)
{
  return -EROFS;
}

static int
preview_range (struct io_store *s, uint64_t host_off, uint64_t len)
{
  return -EROFS;
}

static int
preview_truncate (struct io_store *s, uint64_t size)
{
  return -EROFS;
}

/* The image ends before the lease, which is at the end of the place. */
static int64_t
preview_size (struct io_store *s)
{
  const int64_t size = io_size (((struct io_preview *) s)->below);

  return size < (int64_t) IO_LEASE_BYTES ? size : size - (int64_t) IO_LEASE_BYTES;
}

static uint64_t
preview_max_size (struct io_store *s)
{
  return io_max_size (((struct io_preview *) s)->below);
}

static unsigned
preview_block_size (struct io_store *s)
{
  return io_block_size (((struct io_preview *) s)->below);
}

static void
preview_close (struct io_store *s)
{
}

static const struct io_ops preview_ops = {
  .preadv = preview_preadv,
  .pwritev = preview_pwritev,
  .sync = preview_sync,
  .discard = preview_range,
  .allocate = preview_range,
  .truncate = preview_truncate,
  .read_many = preview_read_many,
  .size = preview_size,
  .max_size = preview_max_size,
  .block_size = preview_block_size,
  .close = preview_close,
};

/* --- The thread ------------------------------------------------------------- */

static void *
preview_thread (void *opaque)
{
  struct io_preview *v = opaque;

  v->rehearse (v->opaque, &v->store);
  return NULL;
}

struct io_preview *
io_preview_start (struct io_store *below,
                  void (*rehearse) (void *opaque, struct io_store *s), void *opaque)
{
  struct io_preview *v = calloc (1, sizeof *v);

  if (v == NULL)
    return NULL;
  v->store.ops = &preview_ops;
  v->below = below;
  v->rehearse = rehearse;
  v->opaque = opaque;
  pthread_mutex_init (&v->lock, NULL);
  v->started = pthread_create (&v->thread, NULL, preview_thread, v) == 0;
  if (v->started)
    return v;
  pthread_mutex_destroy (&v->lock);
  free (v);
  return NULL;
}

void
io_preview_stop (void *preview)
{
  struct io_preview *v = preview;

  if (v == NULL || !v->started)
    return;
  __atomic_store_n (&v->stop, true, __ATOMIC_RELAXED);
  pthread_join (v->thread, NULL);
  v->started = false;
}

static void
announce (struct io_preview *v, struct io_store *s)
{
  pthread_mutex_lock (&v->lock);
  (void) io_will_need (s, v->parts, v->nr, true);
  pthread_mutex_unlock (&v->lock);
}

void
io_preview_end (struct io_preview *v, struct io_store *s)
{
  if (v == NULL)
    return;
  if (s)
    announce (v, s);
  io_preview_stop (v);
  pthread_mutex_destroy (&v->lock);
  free (v);
}
