/* SPDX-License-Identifier: BSD-3-Clause */
/* Changes the disks of an image while it is served.
 *
 * Each change finds its roots by their export names, keeps clients off a root
 * whose contents end, lets the pool make the change (dedup-disks.h), which is
 * durable then, and notes it in the exports.  What may fail for lack of memory is
 * done before.
 *
 * An image's header has the size of its longest disk, so that stock programs read
 * all of them.  So the active disk may get larger with any change.
 *
 * Threads: any; one change at a time, under the operation mutex.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "image-internal.h"

/* The most bytes of one request that cuts a disk. */
#define CUT_BYTES (UINT64_C (1) << 30)

static void
begin (struct srv_image *m)
{
  pthread_mutex_lock (&m->exports.operation);
}

/* Ends a change that had the result R. */
static int
end (struct srv_image *m, int r)
{
  if (r >= 0) {
    __atomic_fetch_add (&m->exports.nr_changes, 1, __ATOMIC_RELAXED);
    srv_exports_grow (&m->exports, QCOW2_ROOT_ACTIVE);
  }
  pthread_mutex_unlock (&m->exports.operation);
  return r;
}

/* Finds a root that is not the active disk. */
static int MUST_CHECK
find_other (struct srv_image *m, const char *name, unsigned *root,
            struct fault *f)
{
  if (name[0] == '\0')
    return fault_usage (f, "the active disk cannot be changed in this way");
  return srv_exports_find (&m->exports, name, root, f);
}

/* --- New ones --------------------------------------------------------------- */

static int MUST_CHECK
create_root (struct srv_image *m, const char *name, uint64_t size,
             struct fault *f)
{
  unsigned root;
  char *copy;
  int r = srv_exports_prepare_name (&m->exports, name, &copy, f);

  if (r < 0)
    return r;
  r = dedup_disk_create (m->pool, name, size, &root, f);
  if (r < 0)
    free (copy);
  else
    srv_exports_add_name (&m->exports, copy, root);
  return r;
}

static int MUST_CHECK
clone_root (struct srv_image *m, const char *source, const char *name,
            bool writable, struct fault *f)
{
  unsigned from, root;
  char *copy;
  int r;

  if ((r = srv_exports_find (&m->exports, source, &from, f)) < 0 ||
      (r = srv_exports_prepare_name (&m->exports, name, &copy, f)) < 0)
    return r;
  r = dedup_disk_clone (m->pool, from, name, writable, &root, f);
  if (r < 0)
    free (copy);
  else
    srv_exports_add_name (&m->exports, copy, root);
  return r;
}

int
srv_disk_create (struct srv_image *m, const char *name, uint64_t size,
                 struct fault *f)
{
  begin (m);
  return end (m, create_root (m, name, size, f));
}

int
srv_disk_clone (struct srv_image *m, const char *source, const char *name,
                struct fault *f)
{
  begin (m);
  return end (m, clone_root (m, source, name, true, f));
}

int
srv_disk_snapshot (struct srv_image *m, const char *source, const char *name,
                   struct fault *f)
{
  begin (m);
  return end (m, clone_root (m, source, name, false, f));
}

/* --- Other contents --------------------------------------------------------- */

static int MUST_CHECK
reset_root (struct srv_image *m, const char *name, const char *source,
            bool force, struct fault *f)
{
  unsigned root, from;
  int r;

  if ((r = find_other (m, name, &root, f)) < 0 ||
      (r = srv_exports_find (&m->exports, source, &from, f)) < 0)
    return r;
  if (root == from)
    return fault_usage (f, "'%s' cannot be reset to itself", name);
  r = srv_exports_begin_change (&m->exports, name, root, force, f);
  if (r < 0)
    return r;
  r = dedup_disk_reset (m->pool, root, from, f);
  srv_exports_end_change (&m->exports);
  return r;
}

int
srv_disk_reset (struct srv_image *m, const char *name, const char *source,
                bool force, struct fault *f)
{
  begin (m);
  return end (m, reset_root (m, name, source, force, f));
}

/* --- Size ------------------------------------------------------------------- */

/* Frees what disk D holds from byte SIZE on. */
static int MUST_CHECK
cut_off (struct srv_disk *d, uint64_t size)
{
  const uint64_t end = srv_disk_size (d);
  uint64_t len;
  int r = 0;

  for (; size < end && r == 0; size += len) {
    len = MIN_OF (end - size, CUT_BYTES);
    r = srv_zero (d, size, (uint32_t) len, true, false, false);
  }
  return r;
}

/* Makes ROOT smaller, which no client uses. */
static int MUST_CHECK
shrink (struct srv_image *m, unsigned root, uint64_t size, struct fault *f)
{
  struct srv_disk d;
  int r;

  srv_disk_init (&d, m->pool, root, m->exports.writable, &m->space);
  d.last_change_ns = &m->exports.last_change_ns;
  r = cut_off (&d, size);
  srv_disk_destroy (&d);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "freeing what is cut off: %s",
                     strerror (-r));
  return dedup_disk_resize (m->pool, root, size, f);
}

static int MUST_CHECK
grow (struct srv_image *m, unsigned root, uint64_t size, struct fault *f)
{
  int r = dedup_disk_resize (m->pool, root, size, f);

  if (r >= 0)
    srv_exports_grow (&m->exports, root);
  return r;
}

static int MUST_CHECK
check_new_size (const char *name, const struct srv_root *now, uint64_t size,
                struct fault *f)
{
  if (now->is_snapshot)
    return fault_usage (f, "'%s' is a snapshot, which cannot be changed",
                        name);
  if (size == 0 || size % 512 != 0)
    return fault_usage (f, "the size of a disk must be a multiple of 512 bytes, "
                        "and not 0");
  return 0;
}

static int MUST_CHECK
resize (struct srv_image *m, const char *name, uint64_t size, bool force,
        struct fault *f)
{
  struct srv_root now;
  unsigned root;
  int r = find_other (m, name, &root, f);

  if (r < 0)
    return r;
  srv_root_look (dedup_image (m->pool), root, &now);
  r = check_new_size (name, &now, size, f);
  if (r < 0)
    return r;
  if (size >= now.size)
    return grow (m, root, size, f);
  r = srv_exports_begin_change (&m->exports, name, root, force, f);
  if (r < 0)
    return r;
  r = shrink (m, root, size, f);
  srv_exports_end_change (&m->exports);
  return r;
}

int
srv_disk_resize (struct srv_image *m, const char *name, uint64_t size,
                 bool force, struct fault *f)
{
  begin (m);
  return end (m, resize (m, name, size, force, f));
}

/* --- Names ------------------------------------------------------------------ */

/* Gives ROOT, which is not the active disk, the name NEW_NAME. */
static int MUST_CHECK
rename_root (struct srv_image *m, unsigned root, const char *new_name,
             struct fault *f)
{
  char *copy;
  int r = srv_exports_prepare_name (&m->exports, new_name, &copy, f);

  if (r < 0)
    return r;
  r = dedup_disk_rename (m->pool, root, new_name, f);
  if (r < 0)
    free (copy);
  else
    srv_exports_rename (&m->exports, copy, root);
  return r;
}

/* Gives INFO, if it is a snapshot of the disk NAME, the name that it has when the disk
 * is NEW_NAME; or with CHECK only tests that this name is free. */
static int MUST_CHECK
rename_snapshot (struct srv_image *m, const struct dedup_disk_info *info,
                 const char *name, const char *new_name, bool check,
                 struct fault *f)
{
  CLEANUP_FREE char *s = NULL;
  const size_t len = strlen (name);
  unsigned root;

  if (!info->is_disk || info->writable || strncmp (info->name, name, len) != 0 ||
      info->name[len] != '@')
    return 0;
  if (asprintf (&s, "%s%s", new_name, info->name + len) < 0) {
    s = NULL;
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  }
  if (!check)
    return rename_root (m, info->root, s, f);
  if (dedup_disk_find (m->pool, s, &root, NULL) < 0)
    return 0;
  return fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX, "there is a disk or "
                    "snapshot \"%s\" already", s);
}

/* Renames ROOT and its snapshots, of those in V. */
static int MUST_CHECK
rename_family (struct srv_image *m, const struct dedup_disk_info *v, size_t nr,
               unsigned root, const char *name, const char *new_name,
               struct fault *f)
{
  int r = 0;

  for (size_t i = 0; i < nr && r == 0; i++)
    r = rename_snapshot (m, &v[i], name, new_name, true, f);
  if (r == 0)
    r = rename_root (m, root, new_name, f);
  for (size_t i = 0; i < nr && r == 0; i++)
    r = rename_snapshot (m, &v[i], name, new_name, false, f);
  return r;
}

static int MUST_CHECK
rename_disk (struct srv_image *m, const char *name, const char *new_name,
             struct fault *f)
{
  struct dedup_disk_info *v = NULL;
  unsigned root;
  size_t nr = 0;
  int r;

  if ((r = find_other (m, name, &root, f)) < 0)
    return r;
  r = dedup_disk_list (m->pool, &v, &nr);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  r = rename_family (m, v, nr, root, name, new_name, f);
  dedup_disk_list_free (v, nr);
  return r;
}

int
srv_disk_rename (struct srv_image *m, const char *name, const char *new_name,
                 struct fault *f)
{
  begin (m);
  return end (m, rename_disk (m, name, new_name, f));
}

/* --- Compression ------------------------------------------------------------ */

static int MUST_CHECK
set_compress (struct srv_image *m, const char *name, const char *compress,
              struct fault *f)
{
  enum dedup_compress c = DEDUP_COMPRESS_KEEP;
  unsigned root;
  int r;

  if (strcmp (compress, "pool") != 0 && dedup_compress_parse (compress, &c) < 0)
    return fault_usage (f, "compress=%s: must be zstd, zlib, off or pool", compress);
  r = find_other (m, name, &root, f);
  return r < 0 ? r : dedup_disk_set_compress (m->pool, root, c, f);
}

int
srv_disk_set_compress (struct srv_image *m, const char *name, const char *compress,
                       struct fault *f)
{
  begin (m);
  return end (m, set_compress (m, name, compress, f));
}

/* --- Delete ----------------------------------------------------------------- */

static int MUST_CHECK
delete_root (struct srv_image *m, const char *name, bool force,
             struct fault *f)
{
  unsigned root;
  int r = find_other (m, name, &root, f);

  if (r < 0)
    return r;
  r = srv_exports_begin_change (&m->exports, name, root, force, f);
  if (r < 0)
    return r;
  r = dedup_disk_delete (m->pool, root, f);
  if (r >= 0) {
    srv_exports_remove_name (&m->exports, root);
    srv_emit (m, &(struct srv_event) { .kind = SRV_EVENT_EXPORT_DELETED,
                                       .name = name });
  }
  srv_exports_end_change (&m->exports);
  return r;
}

int
srv_disk_delete (struct srv_image *m, const char *name, bool force,
                 struct fault *f)
{
  begin (m);
  return end (m, delete_root (m, name, force, f));
}
