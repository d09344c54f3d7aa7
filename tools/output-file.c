/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a file that gets its name when it is complete, so that whoever looks at
 * that name, a web server for instance, never sees half of it.
 *
 * The bytes go to a file in the same directory, whose name begins with a dot; it
 * is renamed at the end, and removed after an error.  Where the path is a symbolic
 * link, this is done to the file that it leads to, and the link stays: root must not
 * lose /dev/stdout.  Something that is no regular file, such as /dev/null or a pipe, is
 * written directly, and so is a file that a link leads to and that has no name.  A qcow2
 * image is never replaced.  One thread.
 */
#include "output-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct output_file {
  const char *path;             /* the caller's */
  char *name;                   /* the path behind symbolic links */
  char *part;                   /* the name until it is complete; NULL: none */
  FILE *fp;
  bool is_stdout, durable;
};

static int
failed (const struct output_file *t, const char *what, struct fault *f)
{
  const int err = errno ? errno : EIO;

  return fault_io (f, err, UINT64_MAX, "%.300s: %s: %s", t->path, what,
                   strerror (err));
}

/* Returns the mode of a new file at PATH: that of the one there, or what the user
 * lets new files have. */
static mode_t
mode_for (const struct stat *st, bool exists)
{
  const mode_t mask = umask (0);

  umask (mask);
  return exists ? st->st_mode & 0777 : 0666 & ~mask;
}

static int
open_part (struct output_file *t, mode_t mode, struct fault *f)
{
  const char *slash = strrchr (t->name, '/');
  const size_t dir = slash ? (size_t) (slash + 1 - t->name) : 0;
  const size_t len = strlen (t->name) + 9;
  int fd;

  t->part = malloc (len);
  if (t->part == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  snprintf (t->part, len, "%.*s.%s.XXXXXX", (int) dir, t->name,
            t->name + dir);
  fd = mkostemp (t->part, O_CLOEXEC);
  if (fd < 0) {
    free (t->part);
    t->part = NULL;
    return failed (t, "cannot be written", f);
  }
  if (fchmod (fd, mode) == 0)
    t->fp = fdopen (fd, "w");
  if (t->fp)
    return 0;
  close (fd);
  return failed (t, "cannot be written", f);
}

/* Sets the name, which is another one than the path where that is a link. */
static int
resolve (struct output_file *t, struct fault *f)
{
  struct stat st;

  if (lstat (t->path, &st) == 0 && S_ISLNK (st.st_mode))
    t->name = realpath (t->path, NULL);
  if (t->name == NULL)
    t->name = strdup (t->path);
  return t->name ? 0 : fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
}

/* Returns whether a file that exists, with the status *ST, can be replaced by its name. */
static bool
can_be_replaced (const struct output_file *t, const struct stat *st)
{
  struct stat named;

  return S_ISREG (st->st_mode) && lstat (t->name, &named) == 0 &&
    named.st_dev == st->st_dev && named.st_ino == st->st_ino;
}

/* Returns whether an image would be lost: what the user meant to name is another file. */
static bool
is_image (const struct output_file *t)
{
  static const char magic[] = { 'Q', 'F', 'I', '\xfb' };
  char begin[sizeof magic];
  const int fd = open (t->name, O_RDONLY | O_CLOEXEC);
  const bool is = fd >= 0 && read (fd, begin, sizeof begin) == sizeof begin &&
    memcmp (begin, magic, sizeof magic) == 0;

  if (fd >= 0)
    close (fd);
  return is;
}

static int
open_path (struct output_file *t, struct fault *f)
{
  struct stat st;
  const bool exists = stat (t->path, &st) == 0;
  int r = resolve (t, f);

  if (r < 0)
    return r;
  if (exists && S_ISREG (st.st_mode) && is_image (t))
    return fault_usage (f, "%.300s: is a qcow2 image, which is not replaced", t->path);
  if (!exists || can_be_replaced (t, &st))
    return open_part (t, mode_for (&st, exists), f);
  t->fp = S_ISBLK (st.st_mode) ? NULL : fopen (t->path, "we");
  if (S_ISBLK (st.st_mode))
    errno = ENOTBLK;
  return t->fp ? 0 : failed (t, "cannot be written", f);
}

int
output_file_open (const char *path, bool durable, struct output_file **out,
                  FILE **fp, struct fault *f)
{
  struct output_file *t = calloc (1, sizeof *t);
  int r = 0;

  if (t == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  t->path = path;
  t->durable = durable;
  t->is_stdout = strcmp (path, "-") == 0;
  if (t->is_stdout)
    t->fp = stdout;
  else
    r = open_path (t, f);
  if (r < 0) {
    output_file_cancel (t);
    return r;
  }
  *out = t;
  *fp = t->fp;
  return 0;
}

/* Makes the new name durable, as far as the host can. */
static void
sync_directory (const struct output_file *t)
{
  const char *slash = strrchr (t->name, '/');
  CLEANUP_FREE char *dir = slash ? strndup (t->name, (size_t)
                                            (slash + 1 - t->name))
    : strdup (".");
  int fd = dir ? open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

  if (fd < 0)
    return;
  if (fsync (fd) < 0)
    errno = 0;                  /* the file has its name all the same */
  close (fd);
}

static int
finish (struct output_file *t, struct fault *f)
{
  errno = 0;
  if (fflush (t->fp) != 0 || ferror (t->fp))
    return failed (t, "cannot be written", f);
  if (t->part == NULL)
    return 0;
  if (t->durable && fsync (fileno (t->fp)) < 0)
    return failed (t, "cannot be written", f);
  if (rename (t->part, t->name) < 0)
    return failed (t, "cannot be named so", f);
  free (t->part);
  t->part = NULL;
  if (t->durable)
    sync_directory (t);
  return 0;
}

int
output_file_finish (struct output_file *t, struct fault *f)
{
  int r = finish (t, f);

  output_file_cancel (t);
  return r;
}

void
output_file_cancel (struct output_file *t)
{
  if (t == NULL)
    return;
  if (t->fp && !t->is_stdout)
    fclose (t->fp);
  if (t->part)
    unlink (t->part);
  free (t->part);
  free (t->name);
  free (t);
}
