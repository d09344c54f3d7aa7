/* SPDX-License-Identifier: BSD-3-Clause */
/* Wraps the byte store of a host, and notes which of its calls failed.
 *
 * A call may find a place that it must not write to, or that the lease is lost
 * (-ESTALE), or the storage answers with an error.  Nothing else may fail while
 * connections are made again: that is an error of the workload.
 *
 * Calls for the store file (IN_STORE_FILE) go to the recording of the storage, which has
 * both, and not through NBD: it is a file of this host.
 * No state but that of the host; any thread.
 */
#include "remote.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Bytes that are announced with each read. */
#define AROUND UINT64_C (65536)

struct noting {
  struct io_store store;
  struct io_store *below;      /* constant */
  struct host *host;
};

static int
note (struct io_store *s, const char *what, int r)
{
  struct host *h = ((struct noting *) s)->host;

  if (r == -ESTALE)
    __atomic_store_n (&h->refused, true, __ATOMIC_RELAXED);
  else if (r < 0 && r != -ENOSPC && r != -EOPNOTSUPP && !host_has_failed (h) &&
           !(r == -EIO && h->storage->cfg->error_one_in))
    world_error (h->world, "a %s of the NBD store failed: %s", what,
                 strerror (-r));
  return r;
}

static struct io_store *
below (struct io_store *s)
{
  return ((struct noting *) s)->below;
}

/* --- The store file ------------------------------------------------------- */

static struct io_store *
begin_local (struct noting *n)
{
  pthread_mutex_lock (&n->host->storage->lock);
  return n->host->storage->rec;
}

static int
end_local (struct noting *n, int r)
{
  pthread_mutex_unlock (&n->host->storage->lock);
  return r;
}

/* --- Calls ---------------------------------------------------------------- */

static int
noting_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t off)
{
  struct noting *n = (struct noting *) s;
  const struct io_part around = { .host_off = off & ~(AROUND - 1), .len = AROUND };

  if (off & IN_STORE_FILE)
    return end_local (n, io_preadv (begin_local (n), iov, iovcnt, off));
  if (n->host->storage->cfg->announced)
    (void) io_will_need (n->below, &around, 1, true);
  return note (s, "read", io_preadv (n->below, iov, iovcnt, off));
}

static bool
noting_will_need (struct io_store *s, const struct io_part *v, size_t nr, bool around)
{
  return io_will_need (below (s), v, nr, around);
}

static void
noting_read_many (struct io_store *s, struct io_part *v, size_t nr)
{
  int r = io_read_many (below (s), v, nr);      /* each part has its result */

  (void) note (s, "read", r);
}

static int
noting_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t off)
{
  struct noting *n = (struct noting *) s;

  if (off & IN_STORE_FILE)
    return end_local (n, io_pwritev (begin_local (n), iov, iovcnt, off));
  return note (s, "write", io_pwritev (below (s), iov, iovcnt, off));
}

static int
noting_sync (struct io_store *s)
{
  return note (s, "flush", io_sync (below (s)));
}

static int
noting_pwritev_sync (struct io_store *s, const struct iovec *iov, int iovcnt,
                     uint64_t off)
{
  return note (s, "durable write", io_pwritev_sync (below (s), iov, iovcnt, off));
}

static int
noting_discard (struct io_store *s, uint64_t off, uint64_t len)
{
  struct noting *n = (struct noting *) s;

  if (off & IN_STORE_FILE)
    return end_local (n, io_discard (begin_local (n), off, len));
  return note (s, "trim", io_discard (below (s), off, len));
}

static int
noting_allocate (struct io_store *s, uint64_t off, uint64_t len)
{
  return note (s, "reservation", io_allocate (below (s), off, len));
}

static int
noting_truncate (struct io_store *s, uint64_t size)
{
  return note (s, "change of size", io_truncate (below (s), size));
}

static int64_t
noting_size (struct io_store *s)
{
  return io_size (below (s));
}

static uint64_t
noting_max_size (struct io_store *s)
{
  return io_max_size (below (s));
}

static unsigned
noting_block_size (struct io_store *s)
{
  return io_block_size (below (s));
}

static uint64_t
noting_next_hole (struct io_store *s, uint64_t off)
{
  return io_next_hole (below (s), off);
}

static int
noting_next_data (struct io_store *s, uint64_t off, uint64_t *data)
{
  return io_next_data (below (s), off, data);
}

static bool
noting_tainted (struct io_store *s, uint64_t off, uint64_t len)
{
  return io_tainted (below (s), off, len);
}

static int
noting_forget_taint (struct io_store *s, uint64_t off, uint64_t len)
{
  return io_forget_taint (below (s), off, len);
}

static void
noting_close (struct io_store *s)
{
  io_close (below (s));
  free (s);
}

static const struct io_ops noting_ops = {
  .preadv = noting_preadv, .pwritev = noting_pwritev, .sync = noting_sync,
  .pwritev_sync = noting_pwritev_sync, .discard = noting_discard,
  .allocate = noting_allocate, .truncate = noting_truncate,
  .read_many = noting_read_many, .will_need = noting_will_need, .size = noting_size,
  .max_size = noting_max_size, .block_size = noting_block_size,
  .next_hole = noting_next_hole,
  .next_data = noting_next_data, .tainted = noting_tainted,
  .forget_taint = noting_forget_taint, .close = noting_close,
};

struct io_store *
noting_new (struct host *h, struct io_store *store)
{
  struct noting *n = calloc (1, sizeof *n);

  n->store.ops = &noting_ops;
  n->below = store;
  n->host = h;
  return &n->store;
}
