/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands of qcow2-dedup disk that change the set of disks: create, clone,
 * snapshot, reset, rename, resize, set and delete.
 *
 * Each is one call of dedup/, which checks names and sizes and makes the change
 * durable as a whole.  What takes several calls (a disk and its snapshots renamed,
 * several disks deleted) is checked before the first of them, so that it is done
 * as a whole unless the host fails.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Names are checked before the image is opened for writing, which changes it. */
static int
check_name (const struct disk_args *a, const char *name, bool is_snapshot)
{
  struct fault f = { 0 };
  int r = dedup_disk_check_name (name, is_snapshot, &f);

  return r < 0 ? tool_fault (a->path, r, &f) : -1;
}

/* --- create --------------------------------------------------------------- */

static int
create (struct disk_pool *p)
{
  struct fault f = { 0 };
  uint64_t size;
  unsigned root;
  int r;

  r = disk_parse_size (p->args, p->args->operands[1], &size);
  if (r >= 0)
    return r;
  r = dedup_disk_create (p->d, p->args->operands[0], size, &root, &f);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

int
disk_create (const struct disk_args *a)
{
  uint64_t size;
  int r = disk_parse_size (a, a->operands[1], &size);

  if (r < 0)
    r = check_name (a, a->operands[0], false);
  return r >= 0 ? r : disk_with_pool (a, true, create);
}

/* --- clone and snapshot --------------------------------------------------- */

static int
copy_disk (struct disk_pool *p, const char *source, const char *name,
           bool writable)
{
  struct dedup_disk_info info = { 0 };
  struct fault f = { 0 };
  unsigned root;
  int r = disk_find (p, source, &info, &f);

  if (r == 0)
    r = dedup_disk_clone (p->d, info.root, name, writable, &root, &f);
  free (info.name);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

static int
make_clone (struct disk_pool *p)
{
  return copy_disk (p, p->args->operands[0], p->args->operands[1], true);
}

int
disk_clone (const struct disk_args *a)
{
  int r = check_name (a, a->operands[1], false);

  return r >= 0 ? r : disk_with_pool (a, true, make_clone);
}

/* Returns "DISK@SNAPSHOT", the caller's; NULL: out of memory. */
static char *
snapshot_name (const char *disk, const char *snapshot)
{
  char *name;

  return asprintf (&name, "%s@%s", disk, snapshot) < 0 ? NULL : name;
}

static int
snapshot (struct disk_pool *p)
{
  CLEANUP_FREE char *name = snapshot_name (p->args->operands[0],
                                           p->args->operands[1]);

  return name == NULL ? tool_error (p->args->path, "out of memory")
    : copy_disk (p, p->args->operands[0], name, false);
}

int
disk_snapshot (const struct disk_args *a)
{
  CLEANUP_FREE char *name = snapshot_name (a->operands[0], a->operands[1]);
  int r;

  if (name == NULL)
    return tool_error (a->path, "out of memory");
  if (strchr (a->operands[0], '@'))
    return tool_error (a->path, "\"%s\": a snapshot is made of a disk, not of "
                       "another snapshot", a->operands[0]);
  r = check_name (a, name, true);
  return r >= 0 ? r : disk_with_pool (a, true, snapshot);
}

/* --- reset ---------------------------------------------------------------- */

static int
reset (struct disk_pool *p)
{
  struct dedup_disk_info from = { 0 };
  struct fault f = { 0 };
  unsigned root;
  int r = dedup_disk_find (p->d, p->args->operands[0], &root, &f);

  if (r == 0)
    r = disk_find (p, p->args->operands[1], &from, &f);
  if (r == 0)
    r = dedup_disk_reset (p->d, root, from.root, &f);
  free (from.name);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

int
disk_reset (const struct disk_args *a)
{
  return disk_with_pool (a, true, reset);
}

/* --- rename --------------------------------------------------------------- */

/* Returns the name that INFO gets when the disk OLD becomes NEW: NULL if it is
 * neither this disk nor a snapshot of it, or if memory is out (*R). */
static char *
new_name (const struct dedup_disk_info *info, const char *old,
          const char *new, int *r)
{
  const size_t len = strlen (old);
  const bool is_it = strcmp (info->name, old) == 0;
  char *name;

  if (!is_it && (!info->is_disk || info->writable ||
                 strncmp (info->name, old, len) != 0 || info->name[len] != '@'))
    return NULL;
  if (asprintf (&name, "%s%s", new, info->name + len) >= 0)
    return name;
  *r = -ENOMEM;
  return NULL;
}

/* Renames those of V that are the disk OLD or its snapshots, or only CHECKs that
 * their new names are free. */
static int
rename_all (struct disk_pool *p, const struct dedup_disk_info *v, size_t nr,
            bool check, struct fault *f)
{
  const char *old = p->args->operands[0], *new = p->args->operands[1];
  unsigned root;
  size_t i;
  int r = 0;

  for (i = 0; i < nr && r == 0; i++) {
    CLEANUP_FREE char *name = new_name (&v[i], old, new, &r);

    if (name == NULL)
      continue;
    if (!check)
      r = dedup_disk_rename (p->d, v[i].root, name, f);
    else if (dedup_disk_find (p->d, name, &root, NULL) == 0)
      r = fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX,
                     "there is a disk or snapshot \"%s\" already", name);
  }
  return r;
}

static int
rename_disk (struct disk_pool *p)
{
  struct dedup_disk_info *v = NULL;
  struct fault f = { 0 };
  size_t nr = 0;
  unsigned root;
  int r = dedup_disk_find (p->d, p->args->operands[0], &root, &f);

  if (r == 0)
    r = dedup_disk_list (p->d, &v, &nr);
  if (r == 0)
    r = rename_all (p, v, nr, true, &f);
  if (r == 0)
    r = rename_all (p, v, nr, false, &f);
  dedup_disk_list_free (v, nr);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

int
disk_rename (const struct disk_args *a)
{
  const bool is_snapshot = strchr (a->operands[0], '@') != NULL;
  int r = check_name (a, a->operands[1], is_snapshot);

  return r >= 0 ? r : disk_with_pool (a, true, rename_disk);
}

/* --- resize --------------------------------------------------------------- */

static int
resize_info (struct disk_pool *p, const struct dedup_disk_info *info,
             uint64_t size, struct fault *f)
{
  int r = 0;

  if (size < info->size && !p->args->shrink)
    return fault_usage (f, "\"%s\" has %" PRIu64 " bytes: --shrink makes it "
                        "smaller, and drops the data at its end", info->name,
                        info->size);
  if (size < info->size && info->writable)
    r = disk_cut_off (p, info->root, info->size, size);
  return r < 0 ? r : dedup_disk_resize (p->d, info->root, size, f);
}

static int
resize (struct disk_pool *p)
{
  struct dedup_disk_info info = { 0 };
  struct fault f = { 0 };
  uint64_t size;
  int r;

  r = disk_parse_size (p->args, p->args->operands[1], &size);
  if (r >= 0)
    return r;
  if (*p->args->operands[0] == '\0')
    return tool_error (p->args->path, "the active disk is resized by qemu-img "
                       "resize");
  r = disk_find (p, p->args->operands[0], &info, &f);
  if (r == 0)
    r = resize_info (p, &info, size, &f);
  free (info.name);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

int
disk_resize (const struct disk_args *a)
{
  uint64_t size;
  int r = disk_parse_size (a, a->operands[1], &size);

  return r >= 0 ? r : disk_with_pool (a, true, resize);
}

/* --- set ------------------------------------------------------------------ */

/* Parses "compress=VALUE", where "pool" is the setting of the pool.  -1 if it is valid,
 * else the exit code. */
static int
parse_setting (const struct disk_args *a, enum dedup_compress *compress)
{
  static const char key[] = "compress=";
  const char *s = a->operands[1], *value = s + strlen (key);

  *compress = DEDUP_COMPRESS_KEEP;
  if (strncmp (s, key, strlen (key)) != 0)
    return tool_usage_error (a->command, "'%s' is not a setting: it must be "
                             "compress=zstd, zlib, off or pool", s);
  if (strcmp (value, "pool") == 0 || dedup_compress_parse (value, compress) == 0)
    return -1;
  return tool_usage_error (a->command, "compress=%s: must be zstd, zlib, off or pool",
                           value);
}

static int
set (struct disk_pool *p)
{
  struct fault f = { 0 };
  enum dedup_compress compress;
  unsigned root;
  int r = parse_setting (p->args, &compress);

  if (r >= 0)
    return r;
  if (*p->args->operands[0] == '\0')
    return tool_error (p->args->path, "the active disk has no setting of its own: a "
                       "server with compress= changes that of the pool");
  r = dedup_disk_find (p->d, p->args->operands[0], &root, &f);
  if (r == 0)
    r = dedup_disk_set_compress (p->d, root, compress, &f);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

int
disk_set (const struct disk_args *a)
{
  enum dedup_compress compress;
  int r = parse_setting (a, &compress);

  return r >= 0 ? r : disk_with_pool (a, true, set);
}

/* --- delete --------------------------------------------------------------- */

/* Finds the root of a disk or snapshot of this program. */
static int
find_ours (struct disk_pool *p, const char *name, unsigned *root,
           struct fault *f)
{
  struct dedup_disk_info info = { 0 };
  int r = dedup_disk_find (p->d, name, root, f);

  if (r == 0)
    r = disk_find (p, name, &info, f);
  if (r == 0 && !info.is_disk)
    r = fault_usage (f, "\"%s\" was made by another program: delete it with "
                     "qemu-img snapshot -d", name);
  free (info.name);
  return r;
}

/* Finds the roots of all names, before any of them is deleted. */
static int
find_all (struct disk_pool *p, unsigned *roots, struct fault *f)
{
  int i, k, r = 0;

  for (i = 0; i < p->args->nr_operands && r == 0; i++) {
    r = find_ours (p, p->args->operands[i], &roots[i], f);
    for (k = 0; k < i && r == 0; k++)
      if (roots[k] == roots[i])
        r = fault_usage (f, "\"%s\" is named twice", p->args->operands[i]);
  }
  return r;
}

static int
delete (struct disk_pool *p)
{
  CLEANUP_FREE unsigned *roots = calloc ((size_t) p->args->nr_operands,
                                         sizeof *roots);
  struct fault f = { 0 };
  int i, r;

  if (roots == NULL)
    return tool_error (p->args->path, "out of memory");
  r = find_all (p, roots, &f);
  for (i = 0; i < p->args->nr_operands && r == 0; i++)
    r = dedup_disk_delete (p->d, roots[i], &f);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

int
disk_delete (const struct disk_args *a)
{
  return disk_with_pool (a, true, delete);
}
