/* SPDX-License-Identifier: BSD-3-Clause */
/* Wraps a byte store and asks a test's callback before each call whether it may
 * pass.  Holds no lock and no state that changes: the callback counts for
 * itself, and must be safe to call from any thread.  It is asked about every
 * call but those for the size and for the next data, and advice.
 */
#include "io.h"

#include <errno.h>
#include <stdlib.h>

#include "checked.h"

struct io_faulty {
  struct io_store store;

  /* Constant after open: */
  struct io_store *below;
  io_faulty_cb cb;
  void *opaque;
};

static int
ask (struct io_faulty *fs, enum io_call call, uint64_t host_off, uint64_t len)
{
  return fs->cb (fs->opaque, call, host_off, len);
}

static uint64_t
iov_len (const struct iovec *iov, int iovcnt)
{
  uint64_t len = 0;
  int i;

  for (i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  return len;
}

static int
faulty_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t host_off)
{
  struct io_faulty *fs = (struct io_faulty *) s;
  int r = ask (fs, IO_PREAD, host_off, iov_len (iov, iovcnt));

  return r < 0 ? r : io_preadv (fs->below, iov, iovcnt, host_off);
}

static int
faulty_pread_medium (struct io_store *s, void *buf, size_t len,
                     uint64_t host_off)
{
  struct io_faulty *fs = (struct io_faulty *) s;
  int r = ask (fs, IO_PREAD, host_off, len);

  return r < 0 ? r : io_pread_medium (fs->below, buf, len, host_off);
}

/* Writes the first LEFT bytes and returns -ENOSPC, as a host that is full after
 * them. */
static int
write_part (struct io_store *below, const struct iovec *iov, int iovcnt,
            uint64_t host_off, uint64_t left)
{
  uint64_t n;
  int i, r = 0;

  for (i = 0; i < iovcnt && left > 0 && r == 0; i++) {
    n = MIN_OF (left, iov[i].iov_len);
    r = io_pwrite (below, iov[i].iov_base, n, host_off);
    host_off += n;
    left -= n;
  }
  return r < 0 ? r : -ENOSPC;
}

static int
faulty_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t host_off)
{
  struct io_faulty *fs = (struct io_faulty *) s;
  int r = ask (fs, IO_PWRITE, host_off, iov_len (iov, iovcnt));

  if (r > 0)
    return write_part (fs->below, iov, iovcnt, host_off, (uint64_t) r);
  return r < 0 ? r : io_pwritev (fs->below, iov, iovcnt, host_off);
}

static int
faulty_sync (struct io_store *s)
{
  struct io_faulty *fs = (struct io_faulty *) s;
  int r = ask (fs, IO_SYNC, 0, 0);

  return r < 0 ? r : io_sync (fs->below);
}

static int
faulty_discard (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_faulty *fs = (struct io_faulty *) s;
  int r = ask (fs, IO_DISCARD, host_off, len);

  return r < 0 ? r : io_discard (fs->below, host_off, len);
}

static int
faulty_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_faulty *fs = (struct io_faulty *) s;
  int r = ask (fs, IO_ALLOCATE, host_off, len);

  return r < 0 ? r : io_allocate (fs->below, host_off, len);
}

static int
faulty_truncate (struct io_store *s, uint64_t size)
{
  struct io_faulty *fs = (struct io_faulty *) s;
  int r = ask (fs, IO_TRUNCATE, size, 0);

  return r < 0 ? r : io_truncate (fs->below, size);
}

/* Passes advice on without asking. */
static void
faulty_write_out (struct io_store *s, uint64_t host_off, uint64_t len)
{
  io_write_out (((struct io_faulty *) s)->below, host_off, len);
}

static uint64_t
faulty_max_size (struct io_store *s)
{
  return io_max_size (((struct io_faulty *) s)->below);
}

static unsigned
faulty_block_size (struct io_store *s)
{
  return io_block_size (((struct io_faulty *) s)->below);
}

static bool
faulty_host_space (struct io_store *s, uint64_t *bytes_left, uint64_t *bytes)
{
  return io_host_space (((struct io_faulty *) s)->below, bytes_left, bytes);
}

/* Passes advice on without asking.  A scattered read is asked about part by
 * part, as io.c reads them one by one. */
static bool
faulty_will_need (struct io_store *s, const struct io_part *v, size_t nr,
                  bool around)
{
  return io_will_need (((struct io_faulty *) s)->below, v, nr, around);
}

static int64_t
faulty_size (struct io_store *s)
{
  return io_size (((struct io_faulty *) s)->below);
}

static int
faulty_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
{
  return io_next_data (((struct io_faulty *) s)->below, host_off, data);
}

static void
faulty_close (struct io_store *s)
{
  struct io_faulty *fs = (struct io_faulty *) s;

  io_close (fs->below);
  free (fs);
}

static const struct io_ops faulty_ops = {
  .preadv = faulty_preadv,
  .pread_medium = faulty_pread_medium,
  .pwritev = faulty_pwritev,
  .sync = faulty_sync,
  .discard = faulty_discard,
  .allocate = faulty_allocate,
  .truncate = faulty_truncate,
  .write_out = faulty_write_out,
  .will_need = faulty_will_need,
  .size = faulty_size,
  .max_size = faulty_max_size,
  .block_size = faulty_block_size,
  .host_space = faulty_host_space,
  .next_data = faulty_next_data,
  .close = faulty_close,
};

int
io_faulty_new (struct io_store *below, io_faulty_cb cb, void *opaque,
               struct io_store **out)
{
  struct io_faulty *fs = calloc (1, sizeof *fs);

  if (fs == NULL)
    return -ENOMEM;
  fs->store.ops = &faulty_ops;
  fs->below = below;
  fs->cb = cb;
  fs->opaque = opaque;
  *out = &fs->store;
  return 0;
}
