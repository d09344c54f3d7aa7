/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads a file from its medium instead of the page cache.
 *
 * The file is opened a second time, through /proc, with O_DIRECT.  Linux writes
 * dirty pages of a range out before it reads the range directly, and keeps what
 * is cached, so clients lose no cached data.  Where the file system has no
 * O_DIRECT, or /proc is missing, the range is dropped from the page cache and
 * read in the ordinary way; pages that are dirty or mapped stay cached then.
 * Direct reads do not hold up writers (file-aio.c).
 *
 * Direct reads need aligned ranges and buffers.  A read of other ones goes
 * through a buffer of its own.
 *
 * Threads: any number.  Closing the second descriptor keeps the locks of the
 * first one, because these belong to the open file description.
 */
#include "file-medium.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "io.h"

void
io_medium_init (struct io_medium *m)
{
  pthread_mutex_init (&m->lock, NULL);
  io_aio_init (&m->aio);
  m->tried = false;
  m->fd = -1;
}

void
io_medium_destroy (struct io_medium *m)
{
  if (m->fd != -1)
    close (m->fd);
  io_aio_destroy (&m->aio);
  pthread_mutex_destroy (&m->lock);
}

/* Returns the descriptor for direct reads, or -1. */
static int
direct_fd (struct io_medium *m, int fd)
{
  char path[64];

  if (__atomic_load_n (&m->tried, __ATOMIC_ACQUIRE))
    return __atomic_load_n (&m->fd, __ATOMIC_RELAXED);
  pthread_mutex_lock (&m->lock);
  if (!m->tried) {
    snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
    __atomic_store_n (&m->fd, open (path, O_RDONLY | O_DIRECT | O_CLOEXEC),
                      __ATOMIC_RELAXED);
    __atomic_store_n (&m->tried, true, __ATOMIC_RELEASE);
  }
  fd = m->fd;
  pthread_mutex_unlock (&m->lock);
  return fd;
}

/* Returns how many bytes were read, or -errno. */
static ssize_t
read_some (struct io_medium *m, uint8_t *buf, size_t len, uint64_t host_off)
{
  ssize_t n = io_aio_pread (&m->aio, m->fd, buf, len, host_off);

  if (n != -ENOSYS)
    return n;
  n = pread (m->fd, buf, len, (off_t) host_off);
  return n == -1 ? -errno : n;
}

/* Reads until LEN bytes or the end of the file, and makes the rest zero. */
static int
read_all (struct io_medium *m, uint8_t *buf, size_t len, uint64_t host_off)
{
  size_t done = 0;
  ssize_t n;

  while (done < len) {
    n = read_some (m, buf + done, len - done, host_off + done);
    if (n == -EINTR)
      continue;
    if (n < 0)
      return (int) n;
    done += (size_t) n;
    if (n == 0 || done % IO_MEDIUM_ALIGN != 0)
      break;                    /* the end of the file */
  }
  memset (buf + done, 0, len - done);
  return 0;
}

/* Reads an unaligned range through an aligned one. */
static int
read_around (struct io_medium *m, void *buf, size_t len, uint64_t host_off)
{
  const uint64_t from = host_off & ~(uint64_t) (IO_MEDIUM_ALIGN - 1);
  const uint64_t to = round_up_pow2 (host_off + len, IO_MEDIUM_ALIGN);
  CLEANUP_FREE uint8_t *all = aligned_alloc (IO_MEDIUM_ALIGN,
                                             (size_t) (to - from));
  int r;

  if (all == NULL)
    return -ENOMEM;
  r = read_all (m, all, (size_t) (to - from), from);
  if (r == 0)
    memcpy (buf, all + (host_off - from), len);
  return r;
}

static int
read_direct (struct io_medium *m, void *buf, size_t len, uint64_t host_off)
{
  const bool aligned = ((uintptr_t) buf | len | host_off) % IO_MEDIUM_ALIGN
    == 0;

  return aligned ? read_all (m, buf, len, host_off)
    : read_around (m, buf, len, host_off);
}

/* Reads in the ordinary way, after the page cache was asked to forget. */
static int
read_uncached (int fd, uint8_t *buf, size_t len, uint64_t host_off)
{
  size_t done = 0;
  ssize_t n;

  (void) posix_fadvise (fd, (off_t) host_off, (off_t) len,
                        POSIX_FADV_DONTNEED);
  while (done < len) {
    n = pread (fd, buf + done, len - done, (off_t) (host_off + done));
    if (n == -1 && errno != EINTR)
      return -errno;
    if (n == 0)
      break;
    if (n > 0)
      done += (size_t) n;
  }
  memset (buf + done, 0, len - done);
  return 0;
}

/* A file system may accept O_DIRECT and refuse the reads (EINVAL). */
int
io_medium_read (struct io_medium *m, int fd, void *buf, size_t len,
                uint64_t host_off)
{
  const int direct = direct_fd (m, fd);
  int r = direct == -1 ? -EINVAL : read_direct (m, buf, len, host_off);

  return r == -EINVAL ? read_uncached (fd, buf, len, host_off) : r;
}
