/* SPDX-License-Identifier: BSD-3-Clause */
/* Creates a file that gets its name only when it is complete.
 *
 * Owns the descriptor of the directory, and the temporary name where there is
 * one.  Promises that no process ever finds a half-written file under the name
 * asked for, and that an existing file of that name is never replaced: of two
 * births at once one gets the name, the other -EEXIST.
 *
 * The file has no name at first (O_TMPFILE), so that a killed process leaves
 * nothing.  Where the file system has no such files, or /proc is missing,
 * through which they are named, it is called ".NAME.<16 digits>.birth" until it
 * is complete.  Creating another one removes those that killed processes left:
 * nobody holds their lock, and they are older than a minute (a new one is
 * unlocked for a moment).
 *
 * The order is: data durable, then the name, then the directory durable.  One
 * thread at a time.
 */
#include "io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "file-lock.h"
#include "file-store.h"

#define TEMP_SUFFIX ".birth"
#define TEMP_DIGITS 16
#define LEFTOVER_SECONDS 60

struct io_birth {
  int dirfd;                   /* the directory, O_PATH if it can't be read */
  int fd;                      /* the store's, which outlives the birth */
  char *name;                  /* in the directory */
  char *temp;                  /* its name until then, or NULL */
};

/* --- The place -------------------------------------------------------- */

static int
out_of_memory (struct fault *f)
{
  return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
}

/* Opens the directory.  One that may be entered but not read is enough to
 * create a file in. */
static int
open_dir (const char *dir)
{
  int fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  return fd == -1 && errno == EACCES
    ? open (dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : fd;
}

static int
find_place (struct io_birth *b, const char *path, struct fault *f)
{
  const char *slash = strrchr (path, '/');
  CLEANUP_FREE char *dir = slash == NULL ? strdup (".") :
    slash == path ? strdup ("/") : strndup (path, (size_t) (slash - path));

  b->name = strdup (slash ? slash + 1 : path);
  if (dir == NULL || b->name == NULL)
    return out_of_memory (f);
  if (b->name[0] == '\0')
    return io_open_failed (EISDIR, f);
  b->dirfd = open_dir (dir);
  if (b->dirfd >= 0)
    return 0;
  if (errno == ENOENT)
    return fault_io (f, ENOTDIR, UINT64_MAX, "its directory does not exist");
  return io_open_failed (errno, f);
}

/* --- Leftovers -------------------------------------------------------- */

static bool
is_temp_name (const struct io_birth *b, const char *s)
{
  size_t len = strlen (b->name);

  if (s[0] != '.' || strncmp (s + 1, b->name, len) != 0 || s[1 + len] != '.')
    return false;
  s += len + 2;
  return strspn (s, "0123456789abcdef") == TEMP_DIGITS &&
    strcmp (s + TEMP_DIGITS, TEMP_SUFFIX) == 0;
}

/* Returns whether the file is old and locked by nobody. */
static bool
is_leftover (int fd)
{
  struct timespec now;
  struct stat st;

  return fstat (fd, &st) == 0 && S_ISREG (st.st_mode) &&
    clock_gettime (CLOCK_REALTIME, &now) == 0 &&
    now.tv_sec - st.st_mtim.tv_sec > LEFTOVER_SECONDS &&
    io_file_lock_take (fd, IO_LOCK_WRITE, NULL) == 0;
}

static void
remove_leftover (const struct io_birth *b, const char *name)
{
  int fd = openat (b->dirfd, name,
                   O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

  if (fd == -1)
    return;
  if (is_leftover (fd))
    (void) unlinkat (b->dirfd, name, 0);
  close (fd);
}

static void
remove_leftovers (const struct io_birth *b)
{
  int fd = openat (b->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = fd == -1 ? NULL : fdopendir (fd);
  const struct dirent *e;

  if (dir == NULL) {
    if (fd != -1)
      close (fd);
    return;
  }
  while ((e = readdir (dir)) != NULL)
    if (is_temp_name (b, e->d_name))
      remove_leftover (b, e->d_name);
  closedir (dir);
}

/* --- Begin ------------------------------------------------------------ */

static void
proc_path (int fd, char buf[64])
{
  snprintf (buf, 64, "/proc/self/fd/%d", fd);
}

/* Opens a file without a name that can get one later.  Returns a descriptor, or
 * -1 where that is not possible. */
static int
open_unnamed (const struct io_birth *b)
{
  int fd = openat (b->dirfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
  char proc[64];

  if (fd == -1)
    return -1;
  proc_path (fd, proc);
  if (faccessat (AT_FDCWD, proc, F_OK, 0) == 0)
    return fd;
  close (fd);
  return -1;
}

static int
open_named (struct io_birth *b)
{
  uint64_t id;
  int fd;

  remove_leftovers (b);
  if (getrandom (&id, sizeof id, 0) != sizeof id)
    return -1;
  if (asprintf (&b->temp, ".%s.%016" PRIx64 TEMP_SUFFIX, b->name, id) < 0) {
    b->temp = NULL;
    errno = ENOMEM;
    return -1;
  }
  fd = openat (b->dirfd, b->temp,
               O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0666);
  if (fd == -1) {
    free (b->temp);
    b->temp = NULL;
  }
  return fd;
}

static int
open_file (struct io_birth *b, int flags, struct io_store **out,
           struct fault *f)
{
  b->fd = flags & IO_BIRTH_NAMED ? -1 : open_unnamed (b);
  if (b->fd == -1)
    b->fd = open_named (b);
  if (b->fd == -1)
    return io_open_failed (errno, f);
  return io_file_wrap (b->fd, true, IO_LOCK_WRITE, out, f);
}

int
io_birth_begin (const char *path, int flags, struct io_birth **out,
                struct io_store **store, struct fault *f)
{
  struct io_birth *b = calloc (1, sizeof *b);
  int r;

  if (b == NULL)
    return out_of_memory (f);
  b->dirfd = -1;
  r = find_place (b, path, f);
  if (r == 0)
    r = open_file (b, flags, store, f);
  if (r < 0) {
    io_birth_cancel (b);
    return r;
  }
  *out = b;
  return 0;
}

/* --- Finish ----------------------------------------------------------- */

/* Renames the temporary file, on a file system without hard links.  (One that
 * can neither link nor rename without replacing gives an error: replacing a
 * file that another process is serving would be worse.) */
static int
rename_temp (struct io_birth *b)
{
  if (renameat2 (b->dirfd, b->temp, b->dirfd, b->name, RENAME_NOREPLACE) == -1)
    return -errno;
  free (b->temp);
  b->temp = NULL;
  return 0;
}

static int
give_name (struct io_birth *b)
{
  char proc[64];

  if (b->temp == NULL) {
    proc_path (b->fd, proc);
    return linkat (AT_FDCWD, proc, b->dirfd, b->name, AT_SYMLINK_FOLLOW) == -1
      ? -errno : 0;
  }
  if (linkat (b->dirfd, b->temp, b->dirfd, b->name, 0) == 0)
    return 0;                   /* io_birth_cancel removes the other name */
  return errno == EEXIST ? -EEXIST : rename_temp (b);
}

/* Makes the new name durable.  A directory that may not be read cannot be
 * synced; then the whole file system is. */
static int
sync_dir (const struct io_birth *b)
{
  if (fsync (b->dirfd) == 0 || errno == EINVAL)
    return 0;
  if (errno == EBADF)
    return syncfs (b->fd) == 0 ? 0 : -errno;
  return -errno;
}

int
io_birth_finish (struct io_birth *b, struct fault *f)
{
  int r = fsync (b->fd) == -1 ? -errno : give_name (b);

  if (r == 0 && (r = sync_dir (b)) < 0)
    (void) unlinkat (b->dirfd, b->name, 0);
  io_birth_cancel (b);
  if (r == 0 || r == -EEXIST)
    return r;
  errno = -r;
  return fault_io (f, -io_host_error (-r), UINT64_MAX, "cannot be given its "
                   "name: %m");
}

void
io_birth_cancel (struct io_birth *b)
{
  if (b == NULL)
    return;
  if (b->temp)
    (void) unlinkat (b->dirfd, b->temp, 0);
  if (b->dirfd >= 0)
    close (b->dirfd);
  free (b->temp);
  free (b->name);
  free (b);
}
