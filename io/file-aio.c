/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads a file directly without holding up those who write to it.
 *
 * File systems like ext4 and XFS lock a file for as long as a direct read takes, and a
 * write through the page cache waits for that lock: for the medium, that is, though it
 * need not touch it.  Of an asynchronous read only the submission is locked.  So a read is
 * submitted with Linux's native AIO here, and its end is awaited at once, without the lock.
 *
 * Dirty pages of the range are written out before it is read, and the file system would do
 * that under the same lock.  So they are written before the submission; what becomes dirty
 * in between it writes itself.
 *
 * A context of the kernel belongs to one read at a time, as it would give the end of one
 * read to whoever waits for another.  There are as many as reads that ran side by side.
 * The kernel takes some 30 ms to free one, so the first reads of a store do without: many
 * programs that open an image read a few blocks of the medium.  If the host has no more
 * contexts (fs.aio-max-nr), or a sandbox forbids the calls, the caller has to read in the
 * ordinary way.
 *
 * A child has no context of its parent, which may have read before it forked.
 *
 * Threads: any number.
 */
#include "file-aio.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>
#include <linux/aio_abi.h>
#include <sys/syscall.h>

#define FIRST_READS 32u         /* that do without a context */

struct io_aio_context {
  aio_context_t kernel;
  pid_t owner;                  /* the process that made it */
  struct io_aio_context *next;
};

void
io_aio_init (struct io_aio *a)
{
  pthread_mutex_init (&a->lock, NULL);
  a->idle = NULL;
  a->nr_reads = 0;
}

static void
free_context (struct io_aio_context *c)
{
  if (c->owner == getpid ())
    syscall (SYS_io_destroy, c->kernel);
  free (c);
}

void
io_aio_destroy (struct io_aio *a)
{
  struct io_aio_context *c;

  while ((c = a->idle) != NULL) {
    a->idle = c->next;
    free_context (c);
  }
  pthread_mutex_destroy (&a->lock);
}

static struct io_aio_context *
new_context (void)
{
  struct io_aio_context *c = calloc (1, sizeof *c);

  if (c && syscall (SYS_io_setup, 1, &c->kernel) == 0) {
    c->owner = getpid ();
    return c;
  }
  free (c);
  return NULL;
}

/* Returns NULL if the read is to do without a context, or the host gives none. */
static struct io_aio_context *
get_context (struct io_aio *a)
{
  struct io_aio_context *c;
  bool may_make;

  pthread_mutex_lock (&a->lock);
  c = a->idle;
  if (c)
    a->idle = c->next;
  may_make = a->nr_reads >= FIRST_READS;
  a->nr_reads += !may_make;
  pthread_mutex_unlock (&a->lock);
  if (c && c->owner != getpid ()) {
    free_context (c);
    c = NULL;
  }
  return c ? c : may_make ? new_context () : NULL;
}

static void
put_context (struct io_aio *a, struct io_aio_context *c)
{
  pthread_mutex_lock (&a->lock);
  c->next = a->idle;
  a->idle = c;
  pthread_mutex_unlock (&a->lock);
}

/* Waits for the end of the one read that was submitted.  It cannot be left before: the
 * kernel writes to its buffer. */
static ssize_t
await (struct io_aio_context *c)
{
  struct io_event e;
  long n;

  do
    n = syscall (SYS_io_getevents, c->kernel, 1, 1, &e, NULL);
  while (n == 0 || (n == -1 && errno == EINTR));
  assert (n == 1);
  return (ssize_t) e.res;
}

ssize_t
io_aio_pread (struct io_aio *a, int fd, void *buf, size_t len, uint64_t host_off)
{
  struct iocb cb = {
    .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t) fd,
    .aio_buf = (uint64_t) (uintptr_t) buf, .aio_nbytes = len,
    .aio_offset = (int64_t) host_off,
  };
  struct iocb *list[] = { &cb };
  struct io_aio_context *c = get_context (a);
  ssize_t r = -ENOSYS;

  if (c == NULL)
    return -ENOSYS;
  (void) sync_file_range (fd, (off64_t) host_off, (off64_t) len,
                          SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                          SYNC_FILE_RANGE_WAIT_AFTER);
  if (syscall (SYS_io_submit, c->kernel, 1, list) == 1)
    r = await (c);
  put_context (a, c);
  return r;
}
