/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements the byte store that is an NBD export (nbd.h says what it
 * promises).
 *
 * This file turns each call into parts that lie inside the export and on its
 * blocks, and runs them (nbd-batch.c).  A read that does not begin and end on a
 * block of the server reads whole blocks; a write completes its first and last
 * block with the bytes that are there.  Such writes are made one at a time, so
 * that two of them in one block do not undo each other.
 *
 * A call on one buffer copies nothing.  Several small buffers are gathered in
 * one, as each command costs more than the copy.
 *
 * A flush covers all writes that were answered before it, on any connection:
 * there is more than one only if the server promises that (multi-conn).
 *
 * A call knows nothing of lost connections: the commands of its batch wait, or
 * fail with -EIO in the end (nbd-link.c).
 */
#include "nbd-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "mutation.h"

/* How many connections are made where the caller does not say. */
#define DEFAULT_CONNECTIONS 4u

/* Buffers of at least so many bytes are passed on as they are. */
#define LARGE_BUFFER (UINT64_C (64) << 10)

static bool
on_blocks (const struct io_nbd *n, uint64_t host_off, uint64_t len)
{
  return ((host_off | len) & (n->export.min_block - 1)) == 0;
}

static uint64_t
total_of (const struct iovec *iov, int iovcnt)
{
  uint64_t total = 0;
  int i;

  for (i = 0; i < iovcnt; i++)
    total += iov[i].iov_len;
  return total;
}

static int
run_part (struct io_nbd *n, enum nbd_type type, void *buf, uint64_t len,
          uint64_t host_off)
{
  struct io_part part = { .buf = buf, .len = len, .host_off = host_off };

  io_nbd_run_parts (n, type, &part, 1);
  return part.result;
}

/* --- Reading ------------------------------------------------------------ */

static void
read_parts (struct io_nbd *n, struct io_part *v, size_t nr)
{
  io_nbd_run_parts (n, NBD_READ, v, nr);
}

/* Cuts P at the end of the export, and zeroes the rest. */
static void
clip (const struct io_nbd *n, struct io_part *p)
{
  const uint64_t inside = p->host_off < n->export.size
    ? MIN_OF (p->len, n->export.size - p->host_off) : 0;

  memset ((char *) p->buf + inside, 0, p->len - inside);
  p->len = inside;
}

/* Reads a range inside the export that is not on blocks. */
static int
read_around (struct io_nbd *n, struct io_part *p)
{
  const uint64_t from = round_down_pow2 (p->host_off, n->export.min_block);
  const uint64_t to = round_up_pow2 (p->host_off + p->len,
                                     n->export.min_block);
  CLEANUP_FREE char *all = aligned_new (to - from);
  int r;

  if (all == NULL)
    return -ENOMEM;
  r = run_part (n, NBD_READ, all, to - from, from);
  if (r == 0)
    memcpy (p->buf, all + (p->host_off - from), p->len);
  return r;
}

/* Reads parts on blocks; those that reach past the end of the export become
 * shorter, and those that were read ahead empty. */
static void
nbd_read_parts (struct io_nbd *n, struct io_part *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++) {
    clip (n, &v[i]);
    if (io_nbd_ahead_read (n, &v[i]))
      v[i].len = 0;
  }
  io_nbd_run_parts (n, NBD_READ, v, nr);
}

static bool
all_on_blocks (const struct io_nbd *n, const struct io_part *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (!on_blocks (n, v[i].host_off, v[i].len))
      return false;
  return true;
}

static int
read_one (struct io_nbd *n, void *buf, uint64_t len, uint64_t host_off)
{
  struct io_part p = { .buf = buf, .len = len, .host_off = host_off };

  clip (n, &p);
  if (p.len == 0 || io_nbd_ahead_read (n, &p))
    return 0;
  return on_blocks (n, host_off, p.len)
    ? run_part (n, NBD_READ, buf, p.len, host_off) : read_around (n, &p);
}

/* Reads from the server itself. */
static int
nbd_pread_medium (struct io_store *s, void *buf, size_t len, uint64_t host_off)
{
  struct io_nbd *n = (struct io_nbd *) s;
  struct io_part p = { .buf = buf, .len = len, .host_off = host_off };

  clip (n, &p);
  if (p.len == 0)
    return 0;
  return on_blocks (n, host_off, p.len)
    ? run_part (n, NBD_READ, buf, p.len, host_off) : read_around (n, &p);
}

/* Works on a copy of the parts, as their lengths belong to the caller. */
static void
nbd_read_many (struct io_store *s, struct io_part *v, size_t nr)
{
  struct io_nbd *n = (struct io_nbd *) s;
  CLEANUP_FREE struct io_part *copy =
    all_on_blocks (n, v, nr) ? malloc (nr * sizeof *copy) : NULL;
  size_t i;

  if (copy == NULL) {
    for (i = 0; i < nr; i++)
      v[i].result = read_one (n, v[i].buf, v[i].len, v[i].host_off);
    return;
  }
  memcpy (copy, v, nr * sizeof *copy);
  nbd_read_parts (n, copy, nr);
  for (i = 0; i < nr; i++)
    v[i].result = copy[i].result;
}

static void
scatter (const struct iovec *iov, int iovcnt, const char *from)
{
  int i;

  for (i = 0; i < iovcnt; from += iov[i].iov_len, i++)
    if (iov[i].iov_len > 0)
      memcpy (iov[i].iov_base, from, iov[i].iov_len);
}

static int
read_scattered (struct io_nbd *n, const struct iovec *iov, int iovcnt,
                uint64_t total, uint64_t host_off)
{
  CLEANUP_FREE char *all = aligned_new (total);
  int r;

  if (all == NULL)
    return -ENOMEM;
  r = read_one (n, all, total, host_off);
  if (r == 0)
    scatter (iov, iovcnt, all);
  return r;
}

/* Makes parts of buffers; returns false, with *V NULL, if they are better
 * gathered. */
static bool
parts_of (const struct io_nbd *n, const struct iovec *iov, int iovcnt,
          uint64_t host_off, struct io_part **v)
{
  int i;

  *v = NULL;
  for (i = 0; i < iovcnt; i++)
    if (iov[i].iov_len < LARGE_BUFFER || !on_blocks (n, 0, iov[i].iov_len))
      return false;
  if (!on_blocks (n, host_off, 0))
    return false;
  *v = calloc ((size_t) iovcnt, sizeof **v);
  for (i = 0; *v && i < iovcnt; host_off += iov[i].iov_len, i++)
    (*v)[i] = (struct io_part) { .buf = iov[i].iov_base,
                                 .len = iov[i].iov_len, .host_off = host_off };
  return *v != NULL;
}

static int
first_failure (const struct io_part *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (v[i].result < 0)
      return v[i].result;
  return 0;
}

static int
nbd_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
            uint64_t host_off)
{
  struct io_nbd *n = (struct io_nbd *) s;
  const uint64_t total = total_of (iov, iovcnt);
  CLEANUP_FREE struct io_part *v = NULL;

  if (iovcnt == 1)
    return read_one (n, iov->iov_base, total, host_off);
  if (!parts_of (n, iov, iovcnt, host_off, &v))
    return read_scattered (n, iov, iovcnt, total, host_off);
  nbd_read_parts (n, v, (size_t) iovcnt);
  return first_failure (v, (size_t) iovcnt);
}

/* --- Writing ------------------------------------------------------------ */

/* Completes a write with the bytes around it, block by block at both ends. */
static int
write_around (struct io_nbd *n, const void *buf, uint64_t len,
              uint64_t host_off)
{
  const uint64_t block = n->export.min_block;
  const uint64_t from = round_down_pow2 (host_off, block);
  const uint64_t to = round_up_pow2 (host_off + len, block);
  CLEANUP_FREE char *all = aligned_new (to - from);
  int r;

  if (all == NULL)
    return -ENOMEM;
  pthread_mutex_lock (&n->edges);
  r = run_part (n, NBD_READ, all, block, from);
  if (r == 0 && to - from > block)
    r = run_part (n, NBD_READ, all + (to - from - block), block, to - block);
  if (r == 0) {
    memcpy (all + (host_off - from), buf, len);
    r = run_part (n, NBD_WRITE, all, to - from, from);
  }
  pthread_mutex_unlock (&n->edges);
  return r;
}

/* The buffer is not changed: a command has one pointer for all types. */
static int
write_one (struct io_nbd *n, const void *buf, uint64_t len, uint64_t host_off)
{
  return on_blocks (n, host_off, len)
    ? run_part (n, NBD_WRITE, (void *) buf, len, host_off)
    : write_around (n, buf, len, host_off);
}

/* Returns the bytes of all buffers in one, NULL: out of memory. */
static char *
gather (const struct iovec *iov, int iovcnt, uint64_t total)
{
  char *all = aligned_new (total);
  char *to = all;
  int i;

  for (i = 0; all && i < iovcnt; to += iov[i].iov_len, i++)
    if (iov[i].iov_len > 0)
      memcpy (to, iov[i].iov_base, iov[i].iov_len);
  return all;
}

static int
write_gathered (struct io_nbd *n, const struct iovec *iov, int iovcnt,
                uint64_t total, uint64_t host_off)
{
  CLEANUP_FREE char *all = gather (iov, iovcnt, total);

  return all ? write_one (n, all, total, host_off) : -ENOMEM;
}

static bool
is_outside (const struct io_nbd *n, uint64_t host_off, uint64_t len)
{
  return len > n->export.size || host_off > n->export.size - len;
}

static int
nbd_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
             uint64_t host_off)
{
  struct io_nbd *n = (struct io_nbd *) s;
  const uint64_t total = total_of (iov, iovcnt);
  CLEANUP_FREE struct io_part *v = NULL;

  if (!n->writable)
    return -EROFS;
  if (is_outside (n, host_off, total))
    return -ENOSPC;
  if (iovcnt == 1)
    return write_one (n, iov->iov_base, total, host_off);
  if (!parts_of (n, iov, iovcnt, host_off, &v))
    return write_gathered (n, iov, iovcnt, total, host_off);
  io_nbd_run_parts (n, NBD_WRITE, v, (size_t) iovcnt);
  return first_failure (v, (size_t) iovcnt);
}

/* A store that was opened for reading wrote nothing. */
static int
nbd_sync (struct io_store *s)
{
  struct io_nbd *n = (struct io_nbd *) s;
  int before = __atomic_exchange_n (&n->sync_error, 0, __ATOMIC_RELAXED);
  int r = n->writable ? io_nbd_flush (n) : 0;

  return before < 0 ? before : r;
}

/* Returns whether a write can be one durable command. */
static bool
may_be_durable (const struct io_nbd *n, uint64_t host_off, uint64_t len)
{
  return n->writable && n->export.can_fua && len > 0 &&
    len <= n->export.max_request && on_blocks (n, host_off, len) &&
    !is_outside (n, host_off, len);
}

static int
nbd_pwritev_sync (struct io_store *s, const struct iovec *iov, int iovcnt,
                  uint64_t host_off)
{
  struct io_nbd *n = (struct io_nbd *) s;
  const uint64_t total = total_of (iov, iovcnt);
  CLEANUP_FREE char *all = NULL;
  int before, r;

  if (!may_be_durable (n, host_off, total)) {
    r = total > 0 ? nbd_pwritev (s, iov, iovcnt, host_off) : 0;
    return r < 0 ? r : nbd_sync (s);
  }
  if (iovcnt > 1 && (all = gather (iov, iovcnt, total)) == NULL)
    return -ENOMEM;
  before = __atomic_exchange_n (&n->sync_error, 0, __ATOMIC_RELAXED);
  r = io_nbd_write_and_flush (n, all ? all : iov->iov_base, total, host_off);
  return before < 0 ? before : r;
}

/* Trims the whole blocks of the range. */
static int
nbd_discard (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_nbd *n = (struct io_nbd *) s;
  const uint64_t block = n->export.min_block;
  const uint64_t from = round_up_pow2 (host_off, block);
  const uint64_t to = MIN_OF (round_down_pow2 (host_off + len, block),
                              n->export.size);
  int r;

  if (!n->writable)
    return -EROFS;
  if (!n->export.can_trim)
    return -EOPNOTSUPP;
  if (from >= to)
    return 0;
  r = run_part (n, NBD_TRIM, NULL, to - from, from);
  io_nbd_forget_dense (n);
  return r;
}

/* --- The size, which does not change ------------------------------------ */

/* The space is the server's affair.  Zeroes would get it from some servers, but they
 * cost as much as data, and would have to be flushed before the place is used. */
static int
nbd_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
{
  const struct io_nbd *n = (struct io_nbd *) s;

  if (!n->writable)
    return -EROFS;
  return host_off <= n->export.size && len <= n->export.size - host_off ? 0
    : -ENOSPC;
}

static bool
nbd_lacks_space (struct io_store *s)
{
  return true;
}

static int
nbd_truncate (struct io_store *s, uint64_t size)
{
  const struct io_nbd *n = (struct io_nbd *) s;

  if (!n->writable)
    return -EROFS;
  return size <= n->export.size ? 0 : -ENOSPC;
}

static int64_t
nbd_size (struct io_store *s)
{
  return (int64_t) ((struct io_nbd *) s)->export.size;
}

static uint64_t
nbd_max_size (struct io_store *s)
{
  return ((struct io_nbd *) s)->export.size;
}

static unsigned
nbd_block_size (struct io_store *s)
{
  return ((struct io_nbd *) s)->export.min_block;
}

/* --- Opening and closing ------------------------------------------------ */

static void
nbd_close_store (struct io_store *s)
{
  struct io_nbd *n = (struct io_nbd *) s;

  io_nbd_link_close (n);
  io_nbd_ahead_destroy (n);
  io_nbd_link_destroy (n);
  io_nbd_log_destroy (&n->written);
  io_nbd_bells_destroy (&n->bells);
  pthread_mutex_destroy (&n->edges);
  pthread_mutex_destroy (&n->dense.lock);
  free (n->uri);
  free (n);
}

static void
nbd_before_fork (struct io_store *s)
{
  struct io_nbd *n = (struct io_nbd *) s;

  io_nbd_ahead_stop (n);
  io_nbd_link_pause (n);
}

static int
nbd_after_fork (struct io_store *s)
{
  return io_nbd_link_resume ((struct io_nbd *) s);
}

static const struct io_ops nbd_ops = {
  .preadv = nbd_preadv,
  .pwritev = nbd_pwritev,
  .sync = nbd_sync,
  .pwritev_sync = nbd_pwritev_sync,
  .discard = nbd_discard,
  .allocate = nbd_allocate,
  .truncate = nbd_truncate,
  .pread_medium = nbd_pread_medium,
  .read_many = nbd_read_many,
  .will_need = io_nbd_will_need,
  .size = nbd_size,
  .max_size = nbd_max_size,
  .block_size = nbd_block_size,
  .next_hole = io_nbd_next_hole,
  .next_data = io_nbd_next_data,
  .lacks_space = nbd_lacks_space,
  .before_fork = nbd_before_fork,
  .after_fork = nbd_after_fork,
  .tainted = io_nbd_tainted,
  .forget_taint = io_nbd_forget_taint,
  .close = nbd_close_store,
};

int
io_nbd_open (const struct io_nbd_params *params, struct io_store **out,
             struct fault *f)
{
  struct io_nbd *n = calloc (1, sizeof *n);
  int r;

  if (n)
    n->uri = strdup (params->uri);
  if (n == NULL || n->uri == NULL) {
    free (n);
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  }
  n->store.ops = &nbd_ops;
  n->writable = params->writable;
  n->delay_ms = (int64_t) params->reconnect_delay * 1000;
  if (mutation (MUTATION_NBD_ZERO_DELAY))
    n->delay_ms = 60000;
  n->fenced = params->fenced;
  n->may_resume = params->may_resume;
  n->opaque = params->opaque;
  n->sink = params->log;
  n->link.max_conns = MIN_OF (params->connections ? params->connections
                              : DEFAULT_CONNECTIONS, NBD_MAX_CONNECTIONS);
  pthread_mutex_init (&n->edges, NULL);
  pthread_mutex_init (&n->dense.lock, NULL);
  io_nbd_log_init (&n->written);
  io_nbd_bells_init (&n->bells);
  io_nbd_ahead_init (n, read_parts);
  r = io_nbd_link_open (n, io_nbd_log_taint, io_nbd_replay, f);
  if (r < 0)
    nbd_close_store (&n->store);
  else
    *out = &n->store;
  return r;
}
