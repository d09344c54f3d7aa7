/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements a byte store in a regular file or on a block device of this host.
 *
 * Owns one descriptor, closed on exec.  The fields of struct io_file that
 * transfers use are constant after open, and each transfer names its position,
 * so any number of threads may use the store at once.  A write is ordered
 * before a sync only if it returned before the sync was called.  fdatasync is
 * enough where the size changed: it covers all metadata that reading the data
 * back needs.
 *
 * Errors are mapped to those that a client may see (io_host_error).  A write
 * past `ulimit -f` is reported as a full disk, provided that the process
 * ignores SIGXFSZ, which the plugin arranges.
 *
 * Left out on purpose: O_DIRECT (but for file-medium.c), and retrying a failed
 * fdatasync, whose second result would mean nothing.
 */
#include "io.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "around.h"
#include "checked.h"
#include "file-lock.h"
#include "file-medium.h"
#include "file-store.h"

struct io_file {
  struct io_store store;

  /* Constant after open: */
  int fd;
  bool writable;
  bool block_device;
  unsigned block_size;          /* of io_block_size */
  bool no_locks;                /* there are none, where some were asked for */

  /* Protected by lock: the last range that was found to have no hole, since to
   * find its end the host may have to search thousands of extents; and the
   * blocks that were read around small parts. */
  pthread_mutex_t lock;
  uint64_t dense_from, dense_to;
  struct io_around around;

  struct io_medium medium;      /* has a lock of its own */
};

/* Returns the -errno that this room returns for the errno of a host call. */
int
io_host_error (int err)
{
  switch (err) {
  case ENOSPC: case EDQUOT: case EFBIG:
    return -ENOSPC;
  case EACCES: case EPERM:
    return -EPERM;
  case EOPNOTSUPP: case ENOSYS:
    return -EOPNOTSUPP;
  case ENOMEM: case EROFS:
    return -err;
  default:
    return -EIO;
  }
}

/* The part of a transfer that is still to be done. */
struct cursor {
  const struct iovec *iov;
  int iovcnt;
  size_t done;               /* bytes of iov[0] that are done */
  off_t host_off;
};

enum direction { READ, WRITE };

static void
skip_full (struct cursor *c)
{
  while (c->iovcnt > 0 && c->done >= c->iov->iov_len) {
    c->done -= c->iov->iov_len;
    c->iov++;
    c->iovcnt--;
  }
}

static void
advance (struct cursor *c, size_t n)
{
  c->done += n;
  c->host_off += n;
  skip_full (c);
}

/* Makes one system call.  It never starts with an empty iovec (skip_full), so
 * that a result of 0 always means the end of the file.  The rest of an iovec is
 * transferred alone: that is rare, and saves copying the array.  A single
 * buffer is passed without an array, which the kernel would have to copy. */
static ssize_t
transfer_some (int fd, const struct cursor *c, enum direction dir)
{
  char *rest = (char *) c->iov->iov_base + c->done;
  const size_t len = c->iov->iov_len - c->done;
  const int nr = MIN_OF (c->iovcnt, IOV_MAX);

  if (c->done > 0 || nr == 1)
    return dir == READ ? pread (fd, rest, len, c->host_off)
      : pwrite (fd, rest, len, c->host_off);
  return dir == READ ? preadv (fd, c->iov, nr, c->host_off)
    : pwritev (fd, c->iov, nr, c->host_off);
}

/* Repeats until all is transferred or the host transfers no more bytes; C then
 * holds the rest. */
static int
transfer (int fd, struct cursor *c, enum direction dir)
{
  ssize_t n;

  skip_full (c);
  while (c->iovcnt > 0) {
    n = transfer_some (fd, c, dir);
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return io_host_error (errno);
    if (n == 0)
      break;
    advance (c, n);
  }
  return 0;
}

static void
zero_rest (struct cursor *c)
{
  while (c->iovcnt > 0) {
    memset ((char *) c->iov->iov_base + c->done, 0, c->iov->iov_len - c->done);
    advance (c, c->iov->iov_len - c->done);
  }
}

static int
file_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
             uint64_t host_off)
{
  struct io_file *file = (struct io_file *) s;
  struct cursor c = { .iov = iov, .iovcnt = iovcnt, .host_off = host_off };
  int r = transfer (file->fd, &c, READ);

  if (r == 0)
    zero_rest (&c);
  return r;
}

static int
file_pread_medium (struct io_store *s, void *buf, size_t len,
                   uint64_t host_off)
{
  struct io_file *file = (struct io_file *) s;

  int r = io_medium_read (&file->medium, file->fd, buf, len, host_off);

  return r < 0 ? io_host_error (-r) : 0;
}

/* --- Scattered reads ------------------------------------------------------ */

/* Reads one part if all of it is in the page cache.  -EAGAIN means only that a
 * plain read is needed.  Linux also begins to read the missing pages. */
static int
read_cached (int fd, const struct io_part *p)
{
  const struct iovec iov = { .iov_base = p->buf, .iov_len = p->len };

  return preadv2 (fd, &iov, 1, (off_t) p->host_off, RWF_NOWAIT)
    == (ssize_t) p->len ? 0 : -EAGAIN;
}

static void
ask_for (int fd, const struct io_part *p)
{
  (void) posix_fadvise (fd, (off_t) p->host_off, (off_t) p->len,
                        POSIX_FADV_WILLNEED);
}

/* Reads the parts that are in the page cache first, so that warm reads do not
 * pay for advice.  Then it announces all other parts to the host before it
 * waits for any of them. */
static void
file_read_many (struct io_store *s, struct io_part *v, size_t nr)
{
  struct io_file *file = (struct io_file *) s;
  size_t i;

  for (i = 0; i < nr; i++)
    v[i].result = read_cached (file->fd, &v[i]);
  for (i = 0; i < nr; i++)
    if (v[i].result < 0)
      ask_for (file->fd, &v[i]);
  for (i = 0; i < nr; i++)
    if (v[i].result < 0)
      v[i].result = io_pread (s, v[i].buf, v[i].len, v[i].host_off);
}

/* One of so many parts is looked up in the page cache: a look-up costs as much
 * as advice. */
#define PARTS_PER_SAMPLE 16

/* Returns whether the first byte of P is in the page cache. */
static bool
is_cached (int fd, const struct io_part *p)
{
  char byte;
  const struct io_part first = {
    .buf = &byte, .len = 1, .host_off = p->host_off
  };

  return read_cached (fd, &first) == 0;
}

static bool
parts_will_need (int fd, const struct io_part *v, size_t nr)
{
  size_t i;

  for (i = 0; i < nr && is_cached (fd, &v[i]); i += PARTS_PER_SAMPLE)
    ;
  if (i >= nr)
    return false;
  for (i = 0; i < nr; i++)
    ask_for (fd, &v[i]);
  return true;
}

#define BLOCKS 64

/* Adds the blocks around part P that were not read in this period to the *NR
 * blocks in B, until B is full. */
static void
take_blocks (struct io_file *file, const struct io_part *p,
             struct io_part *b, size_t *nr)
{
  uint64_t at = round_down_pow2 (p->host_off, AROUND_BYTES);

  pthread_mutex_lock (&file->lock);
  for (; at < p->host_off + p->len && *nr < BLOCKS; at += AROUND_BYTES)
    if (io_around_take (&file->around, at))
      b[(*nr)++] = (struct io_part) { .len = AROUND_BYTES, .host_off = at };
  pthread_mutex_unlock (&file->lock);
}

static bool
blocks_will_need (struct io_file *file, const struct io_part *v, size_t nr)
{
  struct io_part b[BLOCKS];
  size_t i, n = 0;
  bool asked = false;

  for (i = 0; i < nr; i++) {
    take_blocks (file, &v[i], b, &n);
    if (n < BLOCKS)
      continue;
    asked |= parts_will_need (file->fd, b, n);
    n = 0;
  }
  return (n > 0 && parts_will_need (file->fd, b, n)) || asked;
}

/* Many parts that on average are smaller than this are scattered: reading
 * around them pays. */
#define SMALL_PART (UINT64_C (32) << 10)
#define MANY_PARTS 16

static bool
lie_apart (const struct io_part *v, size_t nr)
{
  uint64_t total = 0;
  size_t i;

  for (i = 0; i < nr; i++)
    total += v[i].len;
  return nr >= MANY_PARTS && total < nr * SMALL_PART;
}

static int64_t file_size (struct io_store *s);

static bool
may_read_around (struct io_file *file)
{
  int64_t size = file_size (&file->store);
  bool may;

  pthread_mutex_lock (&file->lock);
  may = size > 0 && io_around_begin (&file->around, (uint64_t) size);
  pthread_mutex_unlock (&file->lock);
  return may;
}

static bool
file_will_need (struct io_store *s, const struct io_part *v, size_t nr,
                bool around)
{
  struct io_file *file = (struct io_file *) s;

  if (around && lie_apart (v, nr) && may_read_around (file))
    return blocks_will_need (file, v, nr);
  return parts_will_need (file->fd, v, nr);
}

/* --- Writing and the rest ------------------------------------------------- */

static int
file_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
              uint64_t host_off)
{
  struct io_file *file = (struct io_file *) s;
  struct cursor c = { .iov = iov, .iovcnt = iovcnt, .host_off = host_off };
  int r;

  if (!file->writable)
    return -EROFS;
  r = transfer (file->fd, &c, WRITE);
  if (r == 0 && c.iovcnt > 0)
    return -EIO;
  return r;
}

/* Retries EINTR, which comes from a remote file system that was interrupted
 * before it answered; a write-back error is never reported that way. */
static int
file_sync (struct io_store *s)
{
  struct io_file *file = (struct io_file *) s;
  int r;

  do
    r = fdatasync (file->fd);
  while (r == -1 && errno == EINTR);
  return r == -1 ? io_host_error (errno) : 0;
}

/* Uses no flag that waits: such a call would consume the error of a failed
 * write, and the next fdatasync would not report it. */
static void
file_write_out (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_file *file = (struct io_file *) s;

  (void) sync_file_range (file->fd, (off_t) host_off, (off_t) len,
                          SYNC_FILE_RANGE_WRITE);
}

static int
file_fallocate (struct io_file *file, int mode, uint64_t host_off,
                uint64_t len)
{
  int r;

  if (!file->writable)
    return -EROFS;
  do
    r = fallocate (file->fd, mode, host_off, len);
  while (r == -1 && errno == EINTR);
  if (r == 0)
    return 0;
  /* EINVAL: the range is not aligned as the block device needs it. */
  return errno == EINVAL || errno == ENODEV ? -EOPNOTSUPP : io_host_error (errno);
}

static void
set_dense (struct io_file *file, uint64_t from, uint64_t to)
{
  pthread_mutex_lock (&file->lock);
  file->dense_from = from;
  file->dense_to = to;
  pthread_mutex_unlock (&file->lock);
}

static int
file_discard (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_file *file = (struct io_file *) s;
  int r = file_fallocate (file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          host_off, len);

  set_dense (file, 0, 0);
  return r;
}

static int
file_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
{
  return file_fallocate ((struct io_file *) s, 0, host_off, len);
}

static int64_t
file_size (struct io_store *s)
{
  struct io_file *file = (struct io_file *) s;
  struct stat st;
  uint64_t size;

  if (file->block_device) {
    if (ioctl (file->fd, BLKGETSIZE64, &size) == -1)
      return io_host_error (errno);
    return size <= INT64_MAX ? (int64_t) size : -EIO;
  }
  if (fstat (file->fd, &st) == -1)
    return io_host_error (errno);
  return st.st_size;
}

static uint64_t
file_max_size (struct io_store *s)
{
  struct io_file *file = (struct io_file *) s;
  int64_t size = file->block_device ? file_size (s) : -1;

  return size < 0 ? UINT64_MAX : (uint64_t) size;
}

static unsigned
file_block_size (struct io_store *s)
{
  return ((struct io_file *) s)->block_size;
}

/* Asks the file system that the descriptor is on. */
static bool
file_host_space (struct io_store *s, uint64_t *bytes_left, uint64_t *bytes)
{
  struct io_file *file = (struct io_file *) s;
  struct statvfs v;

  if (file->block_device || fstatvfs (file->fd, &v) == -1)
    return false;
  *bytes_left = (uint64_t) v.f_bavail * v.f_frsize;
  *bytes = (uint64_t) v.f_blocks * v.f_frsize;
  return true;
}

/* Accepts any size up to that of the device, which does not change; a larger
 * one is a full disk. */
static int
device_truncate (struct io_store *s, uint64_t size)
{
  int64_t have = file_size (s);

  if (have < 0)
    return have;
  return size <= (uint64_t) have ? 0 : -ENOSPC;
}

static int
file_truncate (struct io_store *s, uint64_t size)
{
  struct io_file *file = (struct io_file *) s;
  int r;

  if (!file->writable)
    return -EROFS;
  if (file->block_device)
    return device_truncate (s, size);
  do
    r = ftruncate (file->fd, size);
  while (r == -1 && errno == EINTR);
  set_dense (file, 0, 0);
  return r == -1 ? io_host_error (errno) : 0;
}

static uint64_t
dense_to (struct io_file *file, uint64_t host_off)
{
  uint64_t end = host_off;

  pthread_mutex_lock (&file->lock);
  if (host_off >= file->dense_from && host_off < file->dense_to)
    end = file->dense_to;
  pthread_mutex_unlock (&file->lock);
  return end;
}

/* Finds the next hole by lseek, which moves the descriptor's own position;
 * nothing else uses that.  Devices and some file systems have no holes
 * (EINVAL). */
static uint64_t
file_next_hole (struct io_store *s, uint64_t host_off)
{
  struct io_file *file = (struct io_file *) s;
  uint64_t hole = dense_to (file, host_off);
  off_t r;

  if (hole > host_off)
    return hole;
  r = lseek (file->fd, (off_t) host_off, SEEK_HOLE);
  if (r == -1)
    return errno == ENXIO ? host_off : UINT64_MAX;
  set_dense (file, host_off, (uint64_t) r);
  return (uint64_t) r;
}

/* Finds the next data by lseek.  Past the last data the host returns ENXIO.  A
 * file system without holes reports all of the file as data; devices do not
 * support the call (EINVAL). */
static int
file_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
{
  struct io_file *file = (struct io_file *) s;
  off_t r = lseek (file->fd, (off_t) host_off, SEEK_DATA);

  if (r == -1 && (errno != ENXIO || file->block_device))
    return -EOPNOTSUPP;
  *data = r == -1 ? UINT64_MAX : (uint64_t) r;
  return 0;
}

static void
file_close (struct io_store *s)
{
  struct io_file *file = (struct io_file *) s;

  close (file->fd);
  io_medium_destroy (&file->medium);
  io_around_free (&file->around);
  pthread_mutex_destroy (&file->lock);
  free (file);
}

static const struct io_ops file_ops = {
  .preadv = file_preadv,
  .pread_medium = file_pread_medium,
  .pwritev = file_pwritev,
  .sync = file_sync,
  .discard = file_discard,
  .allocate = file_allocate,
  .truncate = file_truncate,
  .write_out = file_write_out,
  .read_many = file_read_many,
  .will_need = file_will_need,
  .size = file_size,
  .max_size = file_max_size,
  .block_size = file_block_size,
  .host_space = file_host_space,
  .next_hole = file_next_hole,
  .next_data = file_next_data,
  .close = file_close,
};

/* Fills F with a message for ERR, without the file's name; returns -ERR. */
int
io_open_failed (int err, struct fault *f)
{
  const char *msg;

  switch (err) {
  case ENOENT: msg = "no such file"; break;
  case EACCES: msg = "permission denied"; break;
  case EISDIR: msg = "is a directory"; break;
  case EEXIST: msg = "exists already"; break;
  case EROFS: msg = "is on a read-only file system"; break;
  case ENOTDIR: msg = "a part of the path is not a directory"; break;
  case ELOOP: msg = "is a symbolic link, or a loop of them"; break;
  default:
    errno = err;
    return fault_io (f, err, UINT64_MAX, "cannot be opened: %m");
  }
  return fault_io (f, err, UINT64_MAX, "%s", msg);
}

/* Returns whether the directory of PATH, which is relative to DIRFD, exists. */
static bool
directory_exists (int dirfd, const char *path)
{
  const char *slash = strrchr (path, '/');
  CLEANUP_FREE char *dir = NULL;

  if (slash == NULL || slash == path)
    return true;
  dir = strndup (path, (size_t) (slash - path));
  return dir == NULL || faccessat (dirfd, dir, F_OK, 0) == 0 ||
    errno != ENOENT;
}

/* Reports that PATH does not exist, or (EEXIST) was to be created and exists.
 * If its directory is missing it returns -ENOTDIR, for a link to a missing file
 * -ELOOP, so that -ENOENT means that the file could be created. */
static int
path_failed (int dirfd, const char *path, int err, struct fault *f)
{
  struct stat st;

  if ((err == ENOENT || err == EEXIST) &&
      fstatat (dirfd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      S_ISLNK (st.st_mode) && faccessat (dirfd, path, F_OK, 0) == -1 &&
      errno == ENOENT)
    return fault_io (f, ELOOP, UINT64_MAX,
                     "is a symbolic link to a file that does not exist");
  if (err == ENOENT && !directory_exists (dirfd, path))
    return fault_io (f, ENOTDIR, UINT64_MAX, "its directory does not exist");
  return io_open_failed (err, f);
}

static int
check_type (const struct stat *st, struct fault *f)
{
  if (S_ISLNK (st->st_mode))    /* only where links are not followed */
    return io_open_failed (ELOOP, f);
  if (S_ISREG (st->st_mode) || S_ISBLK (st->st_mode))
    return 0;
  if (S_ISDIR (st->st_mode))
    return io_open_failed (EISDIR, f);
  return fault_io (f, EINVAL, UINT64_MAX,
                   "is neither a regular file nor a block device");
}

/* Checks the type of the file before it is opened: opening a FIFO would hang,
 * and a tape would rewind. */
static int
check_path_type (int dirfd, const char *path, bool follow, struct fault *f)
{
  struct stat st;

  if (fstatat (dirfd, path, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW) == -1)
    return path_failed (dirfd, path, errno, f);
  return check_type (&st, f);
}

static int
open_fd (int dirfd, const char *path, bool follow, int flags,
         struct fault *f)
{
  int mode = flags & IO_FILE_WRITE ? O_RDWR : O_RDONLY;
  int r, fd;

  if (!follow)
    mode |= O_NOFOLLOW;
  if (flags & IO_FILE_CREATE)
    mode |= O_CREAT | O_EXCL;
  else {
    r = check_path_type (dirfd, path, follow, f);
    if (r < 0)
      return r;
  }
  do
    fd = openat (dirfd, path, mode | O_CLOEXEC | O_NOCTTY, 0666);
  while (fd == -1 && errno == EINTR);
  return fd == -1 ? path_failed (dirfd, path, errno, f) : fd;
}

/* Returns the physical block of the device.  Of a regular file it is a sector: its file
 * system writes whole pages whatever is asked for, and answers for what is in them. */
static unsigned
find_block_size (const struct io_file *file)
{
  unsigned size;

  return file->block_device && ioctl (file->fd, BLKPBSZGET, &size) == 0 &&
    is_pow2 (size) ? size : IO_SECTOR;
}

/* Returns whether the file is a device that takes no writes.  It can be opened for writing
 * all the same, and only the first write would fail. */
static bool
is_write_protected (const struct io_file *file)
{
  int read_only = 0;

  return file->block_device && ioctl (file->fd, BLKROGET, &read_only) == 0 &&
    read_only;
}

/* Checks the type of the opened file again, which may no longer be the one that
 * check_path_type saw, and takes the lock. */
static int
finish_open (struct io_file *file, enum io_file_lock lock, struct fault *f)
{
  struct stat st;
  int r;

  if (fstat (file->fd, &st) == -1)
    return io_open_failed (errno, f);
  r = check_type (&st, f);
  if (r < 0)
    return r;
  file->block_device = S_ISBLK (st.st_mode);
  if (file->writable && is_write_protected (file))
    return fault_io (f, EROFS, UINT64_MAX, "is write-protected");
  file->block_size = find_block_size (file);
  r = io_file_lock_take (file->fd, lock, f);
  file->no_locks = r == 1;
  return r < 0 ? r : 0;
}

bool
io_file_lacks_locks (const struct io_store *s)
{
  return s->ops == &file_ops && ((const struct io_file *) s)->no_locks;
}

int
io_file_wrap (int fd, bool writable, enum io_file_lock lock,
              struct io_store **out, struct fault *f)
{
  struct io_file *file = calloc (1, sizeof *file);
  int r;

  if (file == NULL) {
    close (fd);
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  }
  file->store.ops = &file_ops;
  file->fd = fd;
  file->writable = writable;
  pthread_mutex_init (&file->lock, NULL);
  io_medium_init (&file->medium);
  r = finish_open (file, lock, f);
  if (r < 0) {
    io_close (&file->store);
    return r;
  }
  *out = &file->store;
  return 0;
}

static int
file_open_at (int dirfd, const char *path, bool follow, int flags,
              enum io_file_lock lock, struct io_store **out, struct fault *f)
{
  int fd = open_fd (dirfd, path, follow, flags, f);

  return fd < 0 ? fd
    : io_file_wrap (fd, flags & IO_FILE_WRITE, lock, out, f);
}

/* Opens the device with O_EXCL, which fails where the kernel itself uses it. */
bool
io_device_in_use (const char *path)
{
  struct stat st;
  bool busy;
  int fd;

  if (stat (path, &st) == -1 || !S_ISBLK (st.st_mode))
    return false;
  fd = open (path, O_RDONLY | O_EXCL | O_CLOEXEC);
  busy = fd == -1 && errno == EBUSY;
  if (fd != -1)
    close (fd);
  return busy;
}

int
io_file_open (const char *path, int flags, enum io_file_lock lock,
              struct io_store **out, struct fault *f)
{
  return file_open_at (AT_FDCWD, path, true, flags, lock, out, f);
}

int
io_file_open_in (const char *dir, const char *name, int flags,
                 enum io_file_lock lock, struct io_store **out,
                 struct fault *f)
{
  int dirfd, r;

  assert (strchr (name, '/') == NULL);
  dirfd = open (dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dirfd == -1)
    return io_open_failed (errno, f);
  r = file_open_at (dirfd, name, false, flags, lock, out, f);
  close (dirfd);
  return r;
}
