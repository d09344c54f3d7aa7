/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements a byte store in RAM, for tests.
 *
 * Owns an anonymous mapping, in which bytes that were never written cost
 * nothing, and grows it by doubling.  Invariant: all bytes of the mapping past
 * the size are zero, so growing has nothing to clear.  A reader-writer lock
 * makes each call atomic; sync has nothing to do.
 */
#include "io.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checked.h"

/* The largest size: a wrong offset in a test must fail, not take all of the
 * machine's memory. */
#define MEMORY_MAX (UINT64_C (16) << 30)
#define MEMORY_MIN (UINT64_C (64) << 10)

struct io_memory {
  struct io_store store;
  pthread_rwlock_t lock;

  /* Protected by lock: */
  unsigned char *bytes;
  uint64_t size;
  uint64_t capacity;      /* of the mapping; a power of two */

  bool device;            /* constant */
  unsigned block_size;    /* constant in use; 0: that of a sector */
};

static uint64_t
capacity_for (uint64_t size)
{
  uint64_t capacity = MEMORY_MIN;

  while (capacity < size)
    capacity *= 2;
  return capacity;
}

/* Makes SIZE bytes addressable; the lock is held for writing. */
static int
grow_capacity (struct io_memory *m, uint64_t size)
{
  uint64_t capacity;
  void *p;

  if (size <= m->capacity)
    return 0;
  if (size > MEMORY_MAX)
    return -ENOSPC;
  capacity = capacity_for (size);
  p = mremap (m->bytes, m->capacity, capacity, MREMAP_MAYMOVE);
  if (p == MAP_FAILED)
    return -ENOMEM;
  m->bytes = p;
  m->capacity = capacity;
  return 0;
}

/* Makes END bytes addressable and extends the store to END; the lock is held
 * for writing. */
static int
reach (struct io_memory *m, uint64_t end)
{
  int r = m->device && end > m->size ? -ENOSPC : grow_capacity (m, end);

  if (r == 0)
    m->size = MAX_OF (m->size, end);
  return r;
}

/* Returns how many of LEN bytes at HOST_OFF lie below the size. */
static uint64_t
inside (const struct io_memory *m, uint64_t host_off, uint64_t len)
{
  return host_off < m->size ? MIN_OF (len, m->size - host_off) : 0;
}

static void
copy_out (const struct io_memory *m, const struct iovec *iov,
          uint64_t host_off)
{
  uint64_t n = inside (m, host_off, iov->iov_len);

  if (n > 0)
    memcpy (iov->iov_base, m->bytes + host_off, n);
  if (n < iov->iov_len)
    memset ((char *) iov->iov_base + n, 0, iov->iov_len - n);
}

static int
memory_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t host_off)
{
  struct io_memory *m = (struct io_memory *) s;
  int i;

  pthread_rwlock_rdlock (&m->lock);
  for (i = 0; i < iovcnt; i++) {
    copy_out (m, &iov[i], host_off);
    host_off += iov[i].iov_len;
  }
  pthread_rwlock_unlock (&m->lock);
  return 0;
}

static uint64_t
end_of (const struct iovec *iov, int iovcnt, uint64_t host_off)
{
  int i;

  for (i = 0; i < iovcnt; i++)
    host_off += iov[i].iov_len;
  return host_off;
}

static void
copy_in (struct io_memory *m, const struct iovec *iov, int iovcnt,
         uint64_t host_off)
{
  int i;

  for (i = 0; i < iovcnt; i++) {
    if (iov[i].iov_len > 0)
      memcpy (m->bytes + host_off, iov[i].iov_base, iov[i].iov_len);
    host_off += iov[i].iov_len;
  }
}

static int
memory_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t host_off)
{
  struct io_memory *m = (struct io_memory *) s;
  int r;

  pthread_rwlock_wrlock (&m->lock);
  r = reach (m, end_of (iov, iovcnt, host_off));
  if (r == 0)
    copy_in (m, iov, iovcnt, host_off);
  pthread_rwlock_unlock (&m->lock);
  return r;
}

static int
memory_sync (struct io_store *s)
{
  return 0;
}

static int
memory_discard (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_memory *m = (struct io_memory *) s;
  uint64_t n;

  if (m->device)
    return -EOPNOTSUPP;
  pthread_rwlock_wrlock (&m->lock);
  n = inside (m, host_off, len);
  if (n > 0)
    memset (m->bytes + host_off, 0, n);
  pthread_rwlock_unlock (&m->lock);
  return 0;
}

static int
memory_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_memory *m = (struct io_memory *) s;
  int r;

  if (m->device)
    return -EOPNOTSUPP;
  pthread_rwlock_wrlock (&m->lock);
  r = reach (m, host_off + len);
  pthread_rwlock_unlock (&m->lock);
  return r;
}

static int
memory_truncate (struct io_store *s, uint64_t size)
{
  struct io_memory *m = (struct io_memory *) s;
  int r;

  if (m->device)
    return size <= m->size ? 0 : -ENOSPC;
  pthread_rwlock_wrlock (&m->lock);
  r = grow_capacity (m, size);
  if (r == 0) {
    if (size < m->size)
      memset (m->bytes + size, 0, m->size - size);
    m->size = size;
  }
  pthread_rwlock_unlock (&m->lock);
  return r;
}

static int64_t
memory_size (struct io_store *s)
{
  struct io_memory *m = (struct io_memory *) s;
  int64_t size;

  pthread_rwlock_rdlock (&m->lock);
  size = m->size;
  pthread_rwlock_unlock (&m->lock);
  return size;
}

static uint64_t
memory_max_size (struct io_store *s)
{
  const struct io_memory *m = (struct io_memory *) s;

  return m->device ? m->size : UINT64_MAX;
}

static unsigned
memory_block_size (struct io_store *s)
{
  return ((struct io_memory *) s)->block_size;
}

void
io_memory_set_block (struct io_store *s, unsigned size)
{
  ((struct io_memory *) s)->block_size = size;
}

/* memory_next_data finds the first block of this size that is not all zero, as
 * a host would that stores no zeroes. */
#define DATA_BLOCK UINT64_C (4096)

static int
memory_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
{
  static const unsigned char zero[DATA_BLOCK];
  struct io_memory *m = (struct io_memory *) s;
  uint64_t off = round_down_pow2 (host_off, DATA_BLOCK);

  if (m->device)
    return -EOPNOTSUPP;
  pthread_rwlock_rdlock (&m->lock);
  while (off < m->size &&
         memcmp (m->bytes + off, zero, inside (m, off, DATA_BLOCK)) == 0)
    off += DATA_BLOCK;
  *data = off < m->size ? MAX_OF (off, host_off) : UINT64_MAX;
  pthread_rwlock_unlock (&m->lock);
  return 0;
}

static void
memory_close (struct io_store *s)
{
  struct io_memory *m = (struct io_memory *) s;

  munmap (m->bytes, m->capacity);
  pthread_rwlock_destroy (&m->lock);
  free (m);
}

static const struct io_ops memory_ops = {
  .preadv = memory_preadv,
  .pwritev = memory_pwritev,
  .sync = memory_sync,
  .discard = memory_discard,
  .allocate = memory_allocate,
  .truncate = memory_truncate,
  .size = memory_size,
  .max_size = memory_max_size,
  .block_size = memory_block_size,
  .next_data = memory_next_data,
  .close = memory_close,
};

int
io_memory_new (uint64_t size, struct io_store **out)
{
  struct io_memory *m;

  if (size > MEMORY_MAX)
    return -ENOSPC;
  m = calloc (1, sizeof *m);
  if (m == NULL)
    return -ENOMEM;
  m->store.ops = &memory_ops;
  m->size = size;
  m->capacity = capacity_for (size);
  m->bytes = mmap (NULL, m->capacity, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m->bytes == MAP_FAILED) {
    free (m);
    return -ENOMEM;
  }
  pthread_rwlock_init (&m->lock, NULL);
  *out = &m->store;
  return 0;
}

int
io_memory_new_device (uint64_t size, uint8_t fill, struct io_store **out)
{
  struct io_memory *m;
  int r = io_memory_new (size, out);

  if (r < 0)
    return r;
  m = (struct io_memory *) *out;
  m->device = true;
  if (fill != 0)
    memset (m->bytes, fill, size);
  return 0;
}
