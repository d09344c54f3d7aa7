/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes each call to the store's implementation.  Promises it a range that
 * fits in off_t and is never empty, so that no implementation checks that
 * again. Holds no state and takes no lock: each implementation makes itself
 * safe for threads.
 */
#include "io.h"

#include <assert.h>
#include <errno.h>

#include "aligned.h"
#include "checked.h"
#include "lock.h"
#include "zero.h"

static int
check_range (uint64_t host_off, uint64_t len)
{
  uint64_t end;

  if (!add_u64 (host_off, len, &end) || end > INT64_MAX)
    return -EINVAL;
  return 0;
}

static bool
iov_total (const struct iovec *iov, int iovcnt, uint64_t *total)
{
  int i;

  assert (iovcnt >= 0);
  *total = 0;
  for (i = 0; i < iovcnt; i++)
    if (!add_u64 (*total, iov[i].iov_len, total))
      return false;
  return true;
}

int
io_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
           uint64_t host_off)
{
  uint64_t total;

  if (!iov_total (iov, iovcnt, &total) || check_range (host_off, total) < 0)
    return -EINVAL;
  if (total == 0)
    return 0;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->preadv (s, iov, iovcnt, host_off);
}

int
io_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
            uint64_t host_off)
{
  uint64_t total;

  if (!iov_total (iov, iovcnt, &total) || check_range (host_off, total) < 0)
    return -EINVAL;
  if (total == 0)
    return 0;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->pwritev (s, iov, iovcnt, host_off);
}

int
io_pread (struct io_store *s, void *buf, size_t len, uint64_t host_off)
{
  const struct iovec iov = { .iov_base = buf, .iov_len = len };

  return io_preadv (s, &iov, 1, host_off);
}

int
io_pread_medium (struct io_store *s, void *buf, size_t len, uint64_t host_off)
{
  if (s->ops->pread_medium == NULL || len == 0)
    return io_pread (s, buf, len, host_off);
  if (check_range (host_off, len) < 0)
    return -EINVAL;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->pread_medium (s, buf, len, host_off);
}

int
io_pwrite (struct io_store *s, const void *buf, size_t len, uint64_t host_off)
{
  /* An iovec has no const form; pwritev only reads from it. */
  const struct iovec iov = { .iov_base = (void *) buf, .iov_len = len };

  return io_pwritev (s, &iov, 1, host_off);
}

static void
read_one_by_one (struct io_store *s, struct io_part *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    v[i].result = io_pread (s, v[i].buf, v[i].len, v[i].host_off);
}

/* Returns whether every part is a valid range of at least one byte. */
static bool
parts_are_good (const struct io_part *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (v[i].len == 0 || check_range (v[i].host_off, v[i].len) < 0)
      return false;
  return true;
}

int
io_read_many (struct io_store *s, struct io_part *v, size_t nr)
{
  size_t i;

  if (nr > 1 && s->ops->read_many && parts_are_good (v, nr)) {
    WORK_WITHOUT_LOCK (IO);
    s->ops->read_many (s, v, nr);
  }
  else
    read_one_by_one (s, v, nr);
  for (i = 0; i < nr; i++)
    if (v[i].result < 0)
      return v[i].result;
  return 0;
}

bool
io_will_need (struct io_store *s, const struct io_part *v, size_t nr,
              bool around)
{
  if (s->ops->will_need == NULL || nr == 0 || !parts_are_good (v, nr))
    return false;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->will_need (s, v, nr, around);
}

#define ZEROES (UINT64_C (1) << 20)

int
io_pwrite_zeroes (struct io_store *s, uint64_t host_off, uint64_t len)
{
  CLEANUP_FREE uint8_t *zero = aligned_zero_new (MIN_OF (len, ZEROES));
  uint64_t n;
  int r = zero || len == 0 ? 0 : -ENOMEM;

  for (; len > 0 && r == 0; host_off += n, len -= n) {
    n = MIN_OF (len, ZEROES);
    r = io_pwrite (s, zero, n, host_off);
  }
  return r;
}

/* Turns -ENOSPC into -EIO.  After -ENOSPC from a write the same write may be
 * tried again.  From a sync it means that data is lost, as any other error
 * does: no caller must take the one for the other. */
int
io_sync (struct io_store *s)
{
  int r;

  WORK_WITHOUT_LOCK (IO);
  r = s->ops->sync (s);
  return r == -ENOSPC ? -EIO : r;
}

int
io_pwritev_sync (struct io_store *s, const struct iovec *iov, int iovcnt,
                 uint64_t host_off)
{
  uint64_t total;
  int r;

  if (s->ops->pwritev_sync == NULL) {
    r = io_pwritev (s, iov, iovcnt, host_off);
    return r < 0 ? r : io_sync (s);
  }
  if (!iov_total (iov, iovcnt, &total) || check_range (host_off, total) < 0)
    return -EINVAL;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->pwritev_sync (s, iov, iovcnt, host_off);
}

void
io_write_out (struct io_store *s, uint64_t host_off, uint64_t len)
{
  if (s->ops->write_out == NULL || len == 0 || check_range (host_off, len) < 0)
    return;
  WORK_WITHOUT_LOCK (IO);
  s->ops->write_out (s, host_off, len);
}

int
io_discard (struct io_store *s, uint64_t host_off, uint64_t len)
{
  int r = check_range (host_off, len);

  if (r < 0 || len == 0)
    return r;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->discard (s, host_off, len);
}

int
io_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
{
  int r = check_range (host_off, len);

  if (r < 0 || len == 0)
    return r;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->allocate (s, host_off, len);
}

int
io_truncate (struct io_store *s, uint64_t size)
{
  int r = check_range (size, 0);

  if (r < 0)
    return r;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->truncate (s, size);
}

int64_t
io_size (struct io_store *s)
{
  return s->ops->size (s);
}

uint64_t
io_max_size (struct io_store *s)
{
  return s->ops->max_size ? s->ops->max_size (s) : UINT64_MAX;
}

unsigned
io_block_size (struct io_store *s)
{
  const unsigned block = s->ops->block_size ? s->ops->block_size (s) : 1;

  return MIN_OF (MAX_OF (block, IO_SECTOR), IO_MAX_BLOCK);
}

bool
io_host_space (struct io_store *s, uint64_t *bytes_left, uint64_t *bytes)
{
  WORK_WITHOUT_LOCK (IO);
  return s->ops->host_space && s->ops->host_space (s, bytes_left, bytes);
}

uint64_t
io_next_hole (struct io_store *s, uint64_t host_off)
{
  if (host_off > INT64_MAX)
    return host_off;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->next_hole ? s->ops->next_hole (s, host_off) : UINT64_MAX;
}

int
io_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
{
  *data = UINT64_MAX;
  if (s->ops->next_data == NULL)
    return -EOPNOTSUPP;
  if (host_off > INT64_MAX)
    return 0;
  WORK_WITHOUT_LOCK (IO);
  return s->ops->next_data (s, host_off, data);
}

#define HOLE_PIECE UINT64_C (4096)

/* Overwrites a range with zeroes if it holds zeroes, so that it gets space. */
static int
zero_again (struct io_store *s, uint64_t host_off, uint64_t len)
{
  uint8_t buf[HOLE_PIECE];
  int r = io_pread (s, buf, len, host_off);

  return r < 0 || !all_zero (buf, len) ? r : io_pwrite (s, buf, len, host_off);
}

int
io_fill_holes (struct io_store *s, uint64_t host_off, uint64_t len)
{
  uint64_t end, at, n;
  int r;

  if (!add_u64 (host_off, len, &end))
    return -EINVAL;
  if (s->ops->lacks_space && s->ops->lacks_space (s))
    return 0;
  at = io_next_hole (s, host_off);
  if (at >= end)
    return 0;
  r = io_allocate (s, host_off, len);
  if (r != -EOPNOTSUPP)
    return r;
  for (r = 0; r == 0 && at < end; at = io_next_hole (s, at + n)) {
    n = MIN_OF (HOLE_PIECE - at % HOLE_PIECE, end - at);
    r = zero_again (s, at, n);
  }
  return r;
}

bool
io_tainted (struct io_store *s, uint64_t host_off, uint64_t len)
{
  return s->ops->tainted != NULL && len > 0 &&
    check_range (host_off, len) == 0 && s->ops->tainted (s, host_off, len);
}

int
io_forget_taint (struct io_store *s, uint64_t host_off, uint64_t len)
{
  return s->ops->forget_taint != NULL && len > 0 && check_range (host_off, len) == 0
    ? s->ops->forget_taint (s, host_off, len) : 0;
}

void
io_before_fork (struct io_store *s)
{
  if (s->ops->before_fork)
    s->ops->before_fork (s);
}

int
io_after_fork (struct io_store *s)
{
  return s->ops->after_fork ? s->ops->after_fork (s) : 0;
}

void
io_close (struct io_store *s)
{
  if (s)
    s->ops->close (s);
}
