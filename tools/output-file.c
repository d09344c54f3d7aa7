/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes a file that gets its name when it is complete, so that whoever looks at
 * that name, a web server for instance, never sees half of it.
 *
 * The bytes go to a file in the same directory, whose name begins with a dot; it
 * is renamed at the end, and removed after an error.  Something that is no regular
 * file, such as /dev/null or a pipe, is written directly.  One thread.
 */
#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct report_file {
  const char *path;             /* the caller's */
  char *part;                   /* the name until it is complete; NULL: none */
  FILE *fp;
  bool is_stdout;
};

static int
failed (const struct report_file *t, const char *what, struct fault *f)
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
open_part (struct report_file *t, mode_t mode, struct fault *f)
{
  const char *slash = strrchr (t->path, '/');
  const size_t dir = slash ? (size_t) (slash + 1 - t->path) : 0;
  const size_t len = strlen (t->path) + 9;
  int fd;

  t->part = malloc (len);
  if (t->part == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  snprintf (t->part, len, "%.*s.%s.XXXXXX", (int) dir, t->path,
            t->path + dir);
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

static int
open_path (struct report_file *t, struct fault *f)
{
  struct stat st;
  const bool exists = stat (t->path, &st) == 0;

  if (!exists || S_ISREG (st.st_mode))
    return open_part (t, mode_for (&st, exists), f);
  t->fp = S_ISBLK (st.st_mode) ? NULL : fopen (t->path, "we");
  if (S_ISBLK (st.st_mode))
    errno = ENOTBLK;
  return t->fp ? 0 : failed (t, "cannot be written", f);
}

int
report_file_open (const char *path, struct report_file **out, FILE **fp,
                  struct fault *f)
{
  struct report_file *t = calloc (1, sizeof *t);
  int r = 0;

  if (t == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  t->path = path;
  t->is_stdout = strcmp (path, "-") == 0;
  if (t->is_stdout)
    t->fp = stdout;
  else
    r = open_path (t, f);
  if (r < 0) {
    report_file_cancel (t);
    return r;
  }
  *out = t;
  *fp = t->fp;
  return 0;
}

/* Makes the new name durable, as far as the host can. */
static void
sync_directory (const struct report_file *t)
{
  const char *slash = strrchr (t->path, '/');
  CLEANUP_FREE char *dir = slash ? strndup (t->path, (size_t)
                                            (slash + 1 - t->path))
    : strdup (".");
  int fd = dir ? open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

  if (fd < 0)
    return;
  if (fsync (fd) < 0)
    errno = 0;                  /* the file has its name all the same */
  close (fd);
}

static int
finish (struct report_file *t, struct fault *f)
{
  errno = 0;
  if (fflush (t->fp) != 0 || ferror (t->fp))
    return failed (t, "cannot be written", f);
  if (t->part == NULL)
    return 0;
  if (fsync (fileno (t->fp)) < 0)
    return failed (t, "cannot be written", f);
  if (rename (t->part, t->path) < 0)
    return failed (t, "cannot be named so", f);
  free (t->part);
  t->part = NULL;
  sync_directory (t);
  return 0;
}

int
report_file_finish (struct report_file *t, struct fault *f)
{
  int r = finish (t, f);

  report_file_cancel (t);
  return r;
}

void
report_file_cancel (struct report_file *t)
{
  if (t == NULL)
    return;
  if (t->fp && !t->is_stdout)
    fclose (t->fp);
  if (t->part)
    unlink (t->part);
  free (t->part);
  free (t);
}
