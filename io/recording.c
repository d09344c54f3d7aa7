/* SPDX-License-Identifier: BSD-3-Clause */
/* Wraps a byte store and records every change to it, for crash tests.
 *
 * Owns the log and the store below.  Promises that replaying the whole log
 * onto the first contents of the store below gives its present contents, and
 * that all records before an IO_SYNC were complete when that sync began.  Both
 * follow from one lock that is held while the call below runs: calls enter
 * the log in the order in which they took effect.  (Reads do not take the
 * lock.)
 *
 * A call that failed is not recorded: the store below, which is RAM or fails
 * before it does anything, has not changed.  A reservation of space changes
 * no bytes; if it makes the store larger, it is recorded as the truncate
 * that would have done the same.
 */
#include "io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "lock.h"

#define FIRST_CAPACITY 256

struct io_recording {
  struct io_store store;
  struct io_store *below;    /* constant after open */
  struct lock lock;

  /* Protected by lock: */
  struct io_record *log;
  size_t nr, capacity;
};

/* Makes room for one more record, so that nothing can fail once the store below
 * has changed. */
static int
reserve_locked (struct io_recording *rs)
{
  size_t capacity = rs->capacity ? rs->capacity * 2 : FIRST_CAPACITY;
  struct io_record *log;

  assert (lock_held (&rs->lock));
  if (rs->nr < rs->capacity)
    return 0;
  log = reallocarray (rs->log, capacity, sizeof *log);
  if (log == NULL)
    return -ENOMEM;
  rs->log = log;
  rs->capacity = capacity;
  return 0;
}

static void
append_locked (struct io_recording *rs, enum io_call call, uint64_t host_off,
               uint64_t len, unsigned char *data)
{
  assert (lock_held (&rs->lock));
  assert (rs->nr < rs->capacity);
  rs->log[rs->nr++] = (struct io_record) {
    .call = call, .host_off = host_off, .len = len, .data = data,
  };
}

static int
recording_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
                  uint64_t host_off)
{
  struct io_recording *rs = (struct io_recording *) s;

  return io_preadv (rs->below, iov, iovcnt, host_off);
}

/* Returns one buffer with all bytes of IOV; NULL: out of memory. */
static unsigned char *
flatten (const struct iovec *iov, int iovcnt, uint64_t *len)
{
  unsigned char *data;
  int i;

  *len = 0;
  for (i = 0; i < iovcnt; i++)
    *len += iov[i].iov_len;
  data = malloc (*len);
  if (data == NULL)
    return NULL;
  *len = 0;
  for (i = 0; i < iovcnt; i++) {
    if (iov[i].iov_len > 0)
      memcpy (data + *len, iov[i].iov_base, iov[i].iov_len);
    *len += iov[i].iov_len;
  }
  return data;
}

static int
recording_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                   uint64_t host_off)
{
  struct io_recording *rs = (struct io_recording *) s;
  CLEANUP_FREE unsigned char *data = NULL;
  uint64_t len;
  int r;

  data = flatten (iov, iovcnt, &len);
  if (data == NULL)
    return -ENOMEM;

  LOCK_FOR_SCOPE (&rs->lock);
  r = reserve_locked (rs);
  if (r == 0) /* writes the copy: the caller's buffer may change meanwhile */
    r = io_pwrite (rs->below, data, len, host_off);
  if (r == 0) {
    append_locked (rs, IO_PWRITE, host_off, len, data);
    data = NULL;
  }
  return r;
}

static int
recording_sync (struct io_store *s)
{
  struct io_recording *rs = (struct io_recording *) s;
  int r;

  LOCK_FOR_SCOPE (&rs->lock);
  r = reserve_locked (rs);
  if (r == 0)
    r = io_sync (rs->below);
  if (r == 0)
    append_locked (rs, IO_SYNC, 0, 0, NULL);
  return r;
}

static int
recording_discard (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_recording *rs = (struct io_recording *) s;
  int r;

  LOCK_FOR_SCOPE (&rs->lock);
  r = reserve_locked (rs);
  if (r == 0)
    r = io_discard (rs->below, host_off, len);
  if (r == 0)
    append_locked (rs, IO_DISCARD, host_off, len, NULL);
  return r;
}

static int
recording_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_recording *rs = (struct io_recording *) s;
  int64_t size;
  int r;

  LOCK_FOR_SCOPE (&rs->lock);
  size = io_size (rs->below);
  if (size < 0)
    return size;
  r = reserve_locked (rs);
  if (r == 0)
    r = io_allocate (rs->below, host_off, len);
  if (r == 0 && host_off + len > (uint64_t) size)
    append_locked (rs, IO_TRUNCATE, host_off + len, 0, NULL);
  return r;
}

static int
recording_truncate (struct io_store *s, uint64_t size)
{
  struct io_recording *rs = (struct io_recording *) s;
  int r;

  LOCK_FOR_SCOPE (&rs->lock);
  r = reserve_locked (rs);
  if (r == 0)
    r = io_truncate (rs->below, size);
  if (r == 0)
    append_locked (rs, IO_TRUNCATE, size, 0, NULL);
  return r;
}

static uint64_t
recording_max_size (struct io_store *s)
{
  return io_max_size (((struct io_recording *) s)->below);
}

static unsigned
recording_block_size (struct io_store *s)
{
  return io_block_size (((struct io_recording *) s)->below);
}

static int64_t
recording_size (struct io_store *s)
{
  return io_size (((struct io_recording *) s)->below);
}

static int
recording_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
{
  return io_next_data (((struct io_recording *) s)->below, host_off, data);
}

static void
recording_close (struct io_store *s)
{
  struct io_recording *rs = (struct io_recording *) s;
  size_t i;

  for (i = 0; i < rs->nr; i++)
    free (rs->log[i].data);
  free (rs->log);
  io_close (rs->below);
  lock_destroy (&rs->lock);
  free (rs);
}

static const struct io_ops recording_ops = {
  .preadv = recording_preadv,
  .pwritev = recording_pwritev,
  .sync = recording_sync,
  .discard = recording_discard,
  .allocate = recording_allocate,
  .truncate = recording_truncate,
  .size = recording_size,
  .max_size = recording_max_size,
  .block_size = recording_block_size,
  .next_data = recording_next_data,
  .close = recording_close,
};

int
io_recording_new (struct io_store *below, struct io_store **out)
{
  struct io_recording *rs = calloc (1, sizeof *rs);

  if (rs == NULL)
    return -ENOMEM;
  rs->store.ops = &recording_ops;
  rs->below = below;
  lock_init (&rs->lock);
  *out = &rs->store;
  return 0;
}

size_t
io_recording_log (struct io_store *s, const struct io_record **log)
{
  struct io_recording *rs = (struct io_recording *) s;

  assert (s->ops == &recording_ops);
  LOCK_FOR_SCOPE (&rs->lock);
  *log = rs->log;
  return rs->nr;
}
