/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the files of the host that an image names, its backing file and its
 * external data file.  No other file opens them.
 *
 * The author of the image chose the name, and the server may be allowed to read
 * more than the author is: a file that is opened becomes part of an exported
 * disk.  So the administrator chooses the policy, which holds for the whole
 * chain:
 *
 *   off        opens nothing, and refuses the image
 *   same-dir   opens names without a directory, or with exactly that of the
 *              image, in that directory and without following a symbolic link.
 *              A name that leads elsewhere is not even looked up, so that it
 *              can't make the host mount something, or reveal by the error
 *              which files exist.
 *              It opens for reading only: an image could name another image
 *              beside it as its external data file, and have it overwritten.
 *   any        opens any name
 *
 * With same-dir every image of the chain lies in the directory of the first
 * one, whose path the administrator gave and which may lead through links.
 *
 * A relative name starts at the directory of the image that names it.  Names
 * that QEMU would not take for a file ("nbd://...", "json:...") are refused
 * under each policy, not tried as files.
 *
 * Runs at open only, single-threaded; takes no lock.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

int
qcow2_host_files_parse (const char *s, enum qcow2_host_files *files)
{
  if (strcmp (s, "off") == 0)
    *files = QCOW2_FILES_OFF;
  else if (strcmp (s, "same-dir") == 0)
    *files = QCOW2_FILES_SAME_DIR;
  else if (strcmp (s, "any") == 0)
    *files = QCOW2_FILES_ANY;
  else
    return -EINVAL;
  return 0;
}

/* --- Names ---------------------------------------------------------- */

/* Returns whether QEMU would take the start of NAME for a protocol. */
static bool
has_protocol (const char *name)
{
  return name[strcspn (name, ":/")] == ':';
}

/* Returns the directory of the image that names files, "." if it has no path;
 * the caller frees it.  NULL: out of memory. */
static char *
directory_of (const struct qcow2_image *img)
{
  const char *slash = img->path ? strrchr (img->path, '/') : NULL;

  if (slash == NULL)
    return strdup (".");
  return slash == img->path ? strdup ("/")
    : strndup (img->path, (size_t) (slash - img->path));
}

/* Returns whether the first LEN bytes of NAME are the directory DIR, as given
 * or with its links resolved. */
static bool
names_directory (const char *name, size_t len, const char *dir)
{
  CLEANUP_FREE char *real = NULL;

  if (strlen (dir) == len && memcmp (name, dir, len) == 0)
    return true;
  real = realpath (dir, NULL);
  return real && strlen (real) == len && memcmp (name, real, len) == 0;
}

/* Returns the last component of NAME if NAME is a file directly in DIR, else
 * NULL. */
static const char *
name_in_directory (const char *name, const char *dir)
{
  const char *slash = strrchr (name, '/'), *base = slash ? slash + 1 : name;
  size_t len;

  if (slash) {
    len = slash == name ? 1 : (size_t) (slash - name);
    if (!(len == 1 && name[0] == '.') &&
        (name[0] != '/' || !names_directory (name, len, dir)))
      return NULL;
  }
  if (base[0] == '\0' || strcmp (base, ".") == 0 || strcmp (base, "..") == 0)
    return NULL;
  return base;
}

/* --- Opening -------------------------------------------------------- */

static int
open_off (const char *base, int flags, struct fault *f)
{
  return fault_set (f, FAULT_UNSUPPORTED, EPERM, UINT64_MAX, "images may not "
                    "name files unless you allow it: add backing=%s if you "
                    "trust this one", base && !(flags & IO_FILE_WRITE) ? "same-dir" : "any");
}

static int
open_same_dir (const char *dir, const char *base, int flags,
               enum io_file_lock lock, struct io_store **io, struct fault *f)
{
  struct fault why = { 0 };
  int r;

  if (base == NULL)
    return fault_set (f, FAULT_UNSUPPORTED, EPERM, UINT64_MAX, "is not in the "
                      "image's directory: add backing=any if you trust it "
                      "with every file that this server can read");
  if (flags & IO_FILE_WRITE)
    return fault_set (f, FAULT_UNSUPPORTED, EPERM, UINT64_MAX, "would be "
                      "written: add backing=any if you trust the image with "
                      "every file that this server can write, or serve it "
                      "with readonly=on");
  r = io_file_open_in (dir, base, 0, lock, io, &why);
  if (r == -ELOOP)
    return fault_set (f, FAULT_UNSUPPORTED, EPERM, UINT64_MAX, "is a symbolic "
                      "link: add backing=any if you trust the image with "
                      "every file that this server can read");
  return r < 0 ? fault_set (f, why.kind, -r, why.off, "%s", why.msg) : 0;
}

/* Sets *PATH to the path that NAME means; the caller frees it.  -ENOMEM. */
static int
locate (const char *dir, const char *name, const char *base,
        enum qcow2_host_files files, char **path)
{
  int r;

  if (files == QCOW2_FILES_SAME_DIR && base)
    r = asprintf (path, "%s/%s", dir, base);
  else if (name[0] == '/')
    r = asprintf (path, "%s", name);
  else
    r = asprintf (path, "%s/%s", dir, name);
  if (r >= 0)
    return 0;
  *path = NULL;
  return -ENOMEM;
}

int
qcow2_host_file_open (const struct qcow2_image *img, const char *name,
                      int flags, enum io_file_lock lock, char **path,
                      struct io_store **io, struct fault *f)
{
  CLEANUP_FREE char *dir = directory_of (img);
  const char *base;

  *path = NULL;
  if (strncmp (name, "file:", 5) == 0)
    name += 5;
  else if (has_protocol (name))
    return fault_unsupported (f, "only files in the file system are "
                              "supported");
  if (dir == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  if (name[0] != '/' && img->path && io_is_uri (img->path))
    return fault_unsupported (f, "is named relative to the image, which is no "
                              "file in a directory");
  base = name_in_directory (name, dir);
  if (locate (dir, name, base, img->host_files, path) < 0)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  switch (img->host_files) {
  case QCOW2_FILES_SAME_DIR:
    return open_same_dir (dir, base, flags, lock, io, f);
  case QCOW2_FILES_ANY:
    return io_file_open (*path, flags, lock, io, f);
  case QCOW2_FILES_OFF:
  case QCOW2_FILES_IGNORE:      /* handled before (open.c) */
    break;
  }
  return open_off (base, flags, f);
}
