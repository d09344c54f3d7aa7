/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup disk list: prints the disks of a pool, each followed by its
 * snapshots, as a table or as JSON.
 *
 * The pool is opened read-only.  With --sizes each disk's tables are read, to say
 * how much of it is mapped.  One thread.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

struct list {
  struct disk_pool *p;
  struct disk_table table;
  uint64_t *mapped;             /* bytes, one of each disk; owned; NULL: not
                                 * counted */
};

static int
count (struct list *l)
{
  const struct qcow2_usage_params params = { .stop = NULL };
  struct tool_progress progress = { .what = "Counting" };
  struct qcow2_root_usage u;
  size_t i;
  int r = 0;

  l->mapped = calloc (l->table.nr + 1, sizeof *l->mapped);
  if (l->mapped == NULL)
    return -ENOMEM;
  for (i = 0; i < l->table.nr && r == 0; i++) {
    tool_progress_step (&progress, i, l->table.nr);
    r = qcow2_root_usage (dedup_image (l->p->d), l->table.v[i].root, &params,
                          &u);
    l->mapped[i] = u.mapped_bytes;
  }
  tool_progress_clear (&progress);
  return r;
}

/* --- JSON ----------------------------------------------------------------- */

static void
print_json (const struct list *l)
{
  json_t *o = json_object (), *disks = json_array (), *d;
  size_t i;

  disk_json_set_string (o, "filename", l->p->args->path);
  for (i = 0; i < l->table.nr; i++) {
    d = disk_to_json (&l->table, &l->table.v[i]);
    if (l->mapped)
      disk_json_set (d, "mapped-bytes", l->mapped[i]);
    json_array_append_new (disks, d);
  }
  json_object_set_new (o, "disks", disks);
  disk_json_print (o);
}

/* --- For people ----------------------------------------------------------- */

/* Returns how many columns S takes: its characters, as UTF-8. */
static int
width_of (const char *s)
{
  int n = 0;

  for (; *s; s++)
    n += ((unsigned char) *s & 0xc0) != 0x80;
  return n;
}

static void
print_cell (const char *s, int width)
{
  const int pad = width - width_of (s);

  printf ("%s%*s  ", s, pad > 0 ? pad : 0, "");
}

/* Returns whether row I stands under the disk that it is a snapshot of.  Snapshots
 * of a disk follow it, without others between. */
static bool
is_under_its_disk (const struct disk_table *t, size_t i)
{
  while (i > 0 && strchr (t->v[i].name, '@')) {
    i--;
    if (strchr (t->v[i].name, '@') == NULL)
      return disk_is_snapshot_of (&t->v[i + 1], t->v[i].name);
  }
  return false;
}

/* Returns the name as it is printed, the caller's: snapshots of a disk are set in
 * below it.  NULL: out of memory. */
static char *
shown_name (const struct disk_table *t, size_t i)
{
  CLEANUP_FREE char *name = disk_printable (t->v[i].name);
  char *s;

  if (name == NULL || asprintf (&s, "%s%s", is_under_its_disk (t, i) ? "  " : "",
                                name) < 0)
    return NULL;
  return s;
}

static int
name_width (char *const *names, size_t nr)
{
  int width = 4;
  size_t i;

  for (i = 0; i < nr; i++)
    width = width_of (names[i]) > width ? width_of (names[i]) : width;
  return width;
}

static void
print_row (const struct list *l, size_t i, const char *name, int width)
{
  const struct dedup_disk_info *d = &l->table.v[i];
  const char *origin = disk_origin (&l->table, d);
  CLEANUP_FREE char *clone_of = origin ? disk_printable (origin) : NULL;
  char human[32];

  print_cell (name, width);
  print_cell (tool_human (d->size, human), 9);
  if (l->mapped)
    print_cell (tool_human (l->mapped[i], human), 9);
  print_cell (disk_time (d->created, human), 19);
  printf ("%s\n", is_under_its_disk (&l->table, i) || !clone_of ? "-"
          : clone_of);
}

static int
print_human (const struct list *l)
{
  char **names = calloc (l->table.nr + 1, sizeof *names);
  size_t i;
  int width, r = names ? 0 : -ENOMEM;

  for (i = 0; i < l->table.nr && r == 0; i++)
    if ((names[i] = shown_name (&l->table, i)) == NULL)
      r = -ENOMEM;
  if (r == 0) {
    width = name_width (names, l->table.nr);
    print_cell ("NAME", width);
    print_cell ("SIZE", 9);
    if (l->mapped)
      print_cell ("MAPPED", 9);
    print_cell ("CREATED", 19);
    printf ("CLONE-OF\n");
    for (i = 0; i < l->table.nr; i++)
      print_row (l, i, names[i], width);
  }
  for (i = 0; names && i < l->table.nr; i++)
    free (names[i]);
  free (names);
  return r;
}

/* --- Command -------------------------------------------------------------- */

static int
list (struct disk_pool *p)
{
  struct list l = { .p = p };
  struct fault f = { 0 };
  int r = disk_table_load (p, &l.table);

  if (r == 0 && p->args->sizes)
    r = count (&l);
  if (r == 0 && p->args->json)
    print_json (&l);
  else if (r == 0)
    r = print_human (&l);
  free (l.mapped);
  disk_table_free (&l.table);
  return r < 0 ? disk_fault (p, r, &f) : TOOL_OK;
}

int
disk_list (const struct disk_args *a)
{
  return disk_with_pool (a, false, list);
}
