/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup disk info: prints what a disk takes, what deleting it would free and
 * which clones it has; or, without a name, what the whole pool stores and saves.
 *
 * The pool is opened read-only, and the tables concerned are read; the counting is
 * that of qcow2fmt/, which is exact while nobody changes the image.  One thread.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "pool-figures.h"

static void
print_label (const char *label)
{
  printf ("%-15s", label);
}

static void
print_bytes (const char *label, uint64_t bytes, const char *more)
{
  char human[32];

  print_label (label);
  printf ("%s%s\n", tool_human (bytes, human), more);
}

static void
print_name (const char *label, const char *name)
{
  CLEANUP_FREE char *printable = disk_printable (name);

  print_label (label);
  printf ("%s\n", printable ? printable : "?");
}

/* --- A disk --------------------------------------------------------------- */

struct one {
  struct disk_pool *p;
  struct disk_table table;
  struct dedup_disk_info info;
  struct qcow2_root_usage u;
};

static bool
is_clone (const struct one *o, const struct dedup_disk_info *d)
{
  const char *origin = disk_origin (&o->table, d);

  return origin && o->info.is_disk && strcmp (origin, o->info.name) == 0 &&
    !disk_is_snapshot_of (d, o->info.name);
}

static json_t *
names_of (const struct one *o, bool snapshots)
{
  json_t *v = json_array ();
  size_t i;

  for (i = 0; i < o->table.nr; i++) {
    const struct dedup_disk_info *d = &o->table.v[i];
    CLEANUP_FREE char *name = disk_printable (d->name);

    if (name && (snapshots ? o->info.is_disk && o->info.writable &&
                 disk_is_snapshot_of (d, o->info.name) : is_clone (o, d)))
      json_array_append_new (v, json_string (name));
  }
  return v;
}

static void
print_one_json (const struct one *o)
{
  json_t *j = disk_to_json (&o->table, &o->info);

  disk_json_set (j, "mapped-bytes", o->u.mapped_bytes);
  disk_json_set (j, "exclusive-bytes", o->u.exclusive_bytes);
  disk_json_set (j, "table-bytes", o->u.table_bytes);
  disk_json_set (j, "shared-bytes", o->u.shared_bytes);
  json_object_set_new (j, "snapshots", names_of (o, true));
  json_object_set_new (j, "clones", names_of (o, false));
  disk_json_print (j);
}

static void
print_names (const struct one *o, const char *label, bool snapshots)
{
  json_t *v = names_of (o, snapshots), *name;
  size_t i;

  print_label (label);
  json_array_foreach (v, i, name)
    printf ("%s%s", i ? ", " : "", json_string_value (name));
  printf ("%s\n", json_array_size (v) ? "" : "none");
  json_decref (v);
}

static void
print_one (const struct one *o)
{
  const struct dedup_disk_info *d = &o->info;
  const char *origin = disk_origin (&o->table, d);
  char human[32];

  print_name ("disk:", *d->name ? d->name : "the active disk");
  print_bytes ("virtual size:", d->size, d->writable ? "" : ", read-only");
  print_bytes ("mapped:", o->u.mapped_bytes, "");
  print_bytes ("exclusive:", o->u.exclusive_bytes + o->u.table_bytes,
               d->root == QCOW2_ROOT_ACTIVE ? ", not in any other disk"
               : ", freed if it is deleted");
  print_bytes ("shared:", o->u.shared_bytes, ", with other disks or snapshots");
  if (origin)
    print_name ("clone of:", origin);
  print_label ("compress:");
  printf ("%s%s\n", dedup_compress_name (d->compress), d->compress_is_own ? ""
          : ", as the pool");
  if (d->root != QCOW2_ROOT_ACTIVE) {
    print_names (o, "snapshots:", true);
    print_names (o, "clones:", false);
    print_label ("created:");
    printf ("%s\n", disk_time (d->created, human));
  }
}

static int
info_one (struct disk_pool *p)
{
  const struct qcow2_usage_params params = { .stop = NULL };
  struct one o = { .p = p };
  struct fault f = { 0 };
  int r = disk_find (p, p->args->operands[0], &o.info, &f);

  if (r == 0)
    r = disk_table_load (p, &o.table);
  if (r == 0)
    r = qcow2_root_usage (dedup_image (p->d), o.info.root, &params, &o.u);
  if (r == 0 && p->args->json)
    print_one_json (&o);
  else if (r == 0)
    print_one (&o);
  disk_table_free (&o.table);
  free (o.info.name);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

/* --- The pool ------------------------------------------------------------- */

static void
print_pool_json (struct disk_pool *p, const struct pool_figures *figures,
                 const uint64_t *host_free)
{
  json_t *j = json_object ();

  disk_json_set_string (j, "filename", p->args->path);
  pool_figures_set (j, figures);
  if (host_free)
    disk_json_set (j, "host-free-bytes", *host_free);
  disk_json_print (j);
}

static void
print_pool (struct disk_pool *p, const struct pool_figures *figures,
            const uint64_t *host_free)
{
  print_name ("pool:", p->args->path);
  print_label ("disks:");
  printf ("%" PRIu64 ", and %" PRIu64 " snapshots\n", figures->nr_disks,
          figures->nr_snapshots);
  pool_figures_print (figures);
  if (host_free)
    print_bytes ("host:", *host_free, " free");
}

static int
info_pool (struct disk_pool *p)
{
  struct pool_figures figures;
  struct fault f = { 0 };
  uint64_t size, left;
  bool known;
  int r = pool_figures_count (p->d, true, &figures);

  if (r < 0)
    return disk_fault (p, r, &f);
  known = io_host_space (p->io, &left, &size);
  (p->args->json ? print_pool_json : print_pool) (p, &figures,
                                                  known ? &left : NULL);
  return TOOL_OK;
}

int
disk_info (const struct disk_args *a)
{
  return disk_with_pool (a, false, a->nr_operands ? info_one : info_pool);
}
