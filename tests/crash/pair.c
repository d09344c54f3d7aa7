/* SPDX-License-Identifier: BSD-3-Clause */
/* Presents image and store file as one byte store, so that one recording holds
 * what happened to both, in order.  Offsets of the store file have
 * IN_STORE_FILE set.  Its sync is recorded as a discard of one byte that it
 * can't have.
 *
 * As safe for threads as the two files are.
 */
#include "crash.h"

#include <errno.h>
#include <stdlib.h>

struct pair {
  struct io_store store;
  struct io_store *file[2];
  unsigned block;              /* of io_block_size */
};

/* The store file's size is read here; its sync is a discard of this byte. */
#define ASIDE (IN_STORE_FILE | UINT64_C (1) << 61)

unsigned
file_of (const struct io_record *r)
{
  return (r->host_off & IN_STORE_FILE) != 0;
}

bool
is_sync (const struct io_record *r, unsigned *file)
{
  *file = file_of (r);
  return r->call == IO_SYNC || (r->call == IO_DISCARD && r->host_off == ASIDE);
}

static struct io_store *
side (struct io_store *s, uint64_t *off)
{
  const unsigned file = (*off & IN_STORE_FILE) != 0;

  *off &= ~IN_STORE_FILE;
  return ((struct pair *) s)->file[file];
}

static int
pair_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
             uint64_t off)
{
  struct io_store *io;

  if (off == ASIDE) {
    *(int64_t *) iov[0].iov_base = io_size (((struct pair *) s)->file[1]);
    return 0;
  }
  io = side (s, &off);
  return io_preadv (io, iov, iovcnt, off);
}

static int
pair_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
              uint64_t off)
{
  struct io_store *io = side (s, &off);

  return io_pwritev (io, iov, iovcnt, off);
}

static int
pair_sync (struct io_store *s)
{
  return io_sync (((struct pair *) s)->file[0]);
}

static int
pair_discard (struct io_store *s, uint64_t off, uint64_t len)
{
  struct io_store *io;

  if (off == ASIDE)
    return io_sync (((struct pair *) s)->file[1]);
  io = side (s, &off);
  return io_discard (io, off, len);
}

static int
pair_allocate (struct io_store *s, uint64_t off, uint64_t len)
{
  struct io_store *io = side (s, &off);

  return io_allocate (io, off, len);
}

static int
pair_truncate (struct io_store *s, uint64_t size)
{
  struct io_store *io = side (s, &size);

  return io_truncate (io, size);
}

static int64_t
pair_size (struct io_store *s)
{
  return io_size (((struct pair *) s)->file[0]);
}

static unsigned
pair_block_size (struct io_store *s)
{
  return ((struct pair *) s)->block;
}

static void
pair_close (struct io_store *s)
{
  io_close (((struct pair *) s)->file[0]);
  io_close (((struct pair *) s)->file[1]);
  free (s);
}

static const struct io_ops pair_ops = {
  .preadv = pair_preadv, .pwritev = pair_pwritev, .sync = pair_sync,
  .discard = pair_discard, .allocate = pair_allocate,
  .truncate = pair_truncate, .size = pair_size, .block_size = pair_block_size,
  .close = pair_close,
};

struct io_store *
pair_file (struct io_store *io, unsigned file)
{
  return io->ops == &pair_ops ? ((struct pair *) io)->file[file] : NULL;
}

struct io_store *
pair_new (struct io_store *a, struct io_store *b, unsigned block)
{
  struct pair *p = calloc (1, sizeof *p);

  p->store.ops = &pair_ops;
  p->file[0] = a;
  p->file[1] = b;
  p->block = block;
  return &p->store;
}

struct io_store *
pair_of (struct io_store *image, unsigned block)
{
  struct io_store *second;

  if (io_memory_new (0, &second) < 0)
    abort ();
  return pair_new (image, second, block);
}

/* Offsets with the bit, for the store below, whatever wraps the pair. */
struct second {
  struct io_store store;
  struct io_store *below;
};

static struct io_store *
below_of (struct io_store *s)
{
  return ((struct second *) s)->below;
}

static int
second_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t off)
{
  return io_preadv (below_of (s), iov, iovcnt, off | IN_STORE_FILE);
}

static int
second_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t off)
{
  return io_pwritev (below_of (s), iov, iovcnt, off | IN_STORE_FILE);
}

static int
second_sync (struct io_store *s)
{
  return io_discard (below_of (s), ASIDE, 1);
}

static int
second_discard (struct io_store *s, uint64_t off, uint64_t len)
{
  return io_discard (below_of (s), off | IN_STORE_FILE, len);
}

/* Not to be had, so that what is written makes the file grow: the recording
 * below notes growth of the image only. */
static int
second_allocate (struct io_store *s, uint64_t off, uint64_t len)
{
  return -EOPNOTSUPP;
}

static int64_t
second_size (struct io_store *s)
{
  int64_t size;
  int r = io_pread (below_of (s), &size, sizeof size, ASIDE);

  return r < 0 ? r : size;
}

static const struct io_ops second_ops = {
  .preadv = second_preadv, .pwritev = second_pwritev, .sync = second_sync,
  .discard = second_discard, .allocate = second_allocate,
  .size = second_size,
};

struct io_store *
store_file_of (struct io_store *io)
{
  static __thread struct second v[4];
  static __thread unsigned n;
  struct second *s = &v[n++ % 4];

  *s = (struct second) { { &second_ops }, io };
  return &s->store;
}
