/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the pool for a command of qcow2-dedup disk, finds disks in it by their
 * names, and closes it.
 *
 * A command that changes disks ends with the work that the change left: lent
 * tables are paid for, and deleted disks are freed.  Only then can the image be
 * closed in a state that stock programs read.  One thread.
 */
#include "disk.h"

#include <errno.h>
#include <string.h>

int
disk_fault (const struct disk_pool *p, int r, const struct fault *f)
{
  return tool_fault (p->args->path, r, f);
}

int
disk_parse_size (const struct disk_args *a, const char *s, uint64_t *size)
{
  if (!tool_parse_size (s, size))
    return tool_usage_error (a->command, "'%s' is not a size", s);
  if (*size == 0 || *size % 512 != 0)
    return tool_usage_error (a->command, "the size of a disk must be a multiple "
                             "of 512 bytes and not 0, not '%s'", s);
  return -1;
}

/* --- Find ---------------------------------------------------------------- */

static int
active_disk (struct disk_pool *p, struct dedup_disk_info *info)
{
  *info = (struct dedup_disk_info) {
    .root = QCOW2_ROOT_ACTIVE, .name = strdup (""), .writable = true,
    .size = qcow2_geometry (dedup_image (p->d))->virtual_size,
    .compress = dedup_disk_compress (p->d, QCOW2_ROOT_ACTIVE, NULL),
  };
  return info->name ? 0 : -ENOMEM;
}

int
disk_find (struct disk_pool *p, const char *name, struct dedup_disk_info *info,
           struct fault *f)
{
  struct dedup_disk_info *v;
  size_t nr, i;
  unsigned root;
  int r;

  if (*name == '\0')
    return active_disk (p, info);
  r = dedup_disk_find (p->d, name, &root, f);
  if (r == 0)
    r = dedup_disk_list (p->d, &v, &nr);
  if (r < 0)
    return r;
  for (i = 0; i < nr && v[i].root != root; i++)
    ;
  r = -ENOENT;
  if (i < nr) {
    *info = v[i];
    v[i].name = NULL;           /* the caller's now */
    r = 0;
  }
  dedup_disk_list_free (v, nr);
  return r;
}

/* --- Open and close ------------------------------------------------------ */

static int
open_pool (struct disk_pool *p, bool writable, struct fault *f)
{
  const struct disk_args *a = p->args;
  struct dedup_open_params o = {
    .path = a->path, .writable = writable, .dedup = true, .verify = true,
    .max_incarnations = -1, .cache_bytes = TOOL_CACHE_BYTES,
    .log = &tool_log_errors, .host_files = QCOW2_FILES_IGNORE,
    .store_path = a->store_path,
  };
  int r;

  r = io_place_open (a->path, writable ? IO_FILE_WRITE : 0,
                    writable ? IO_LOCK_WRITE : IO_LOCK_READ, &p->io, f);
  if (r == 0)
    r = tool_open_store (a->store_path, writable, &p->store, f);
  o.store = p->store;
  return r < 0 ? r : dedup_open (p->io, &o, &p->d, f);
}

/* Does the work that changes left, and closes the image. */
static int
finish (struct disk_pool *p)
{
  int r = 0;

  if (!p->args->no_wait && dedup_disks_pending (p->d))
    r = dedup_disks_settle (p->d);
  if (r == 0)
    r = dedup_finish (p->d);
  if (r == 0)
    dedup_give_back_all (p->d);
  return r;
}

int
disk_with_pool (const struct disk_args *a, bool writable,
                int (*run) (struct disk_pool *p))
{
  struct disk_pool p = { .args = a };
  struct fault f = { 0 };
  int code, r;

  r = open_pool (&p, writable, &f);
  if (r < 0)
    code = tool_fault (a->path, r, &f);
  else {
    code = run (&p);
    r = writable ? finish (&p) : 0;
    if (r < 0)
      code = tool_error (a->path, "the image could not be closed cleanly: %s; it "
                         "is recovered when it is opened next", strerror (-r));
    dedup_free (p.d);
  }
  io_close (p.store);
  io_close (p.io);
  return tool_finish_stdout (code);
}
