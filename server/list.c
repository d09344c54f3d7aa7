/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists the exports of an image, and describes them to people.
 *
 * The list is copied under the lock of the exports, a few disks at a time, and passed
 * on without any.  If a name comes or goes meanwhile, the copy begins again, so that
 * no disk is missing in it or there twice.  If that happens again and again, all is
 * copied under one hold.  Where each disk stands for itself, a part of the list is
 * copied and passed on before the next one, so that a caller who stops early pays for
 * no more than that part.
 * As a change of the disks notes its end there before another one begins, each
 * name in the copy belongs to the root that was looked at, or that root was just
 * deleted.  Origins are found by UUID in a sorted list, so that a long list takes
 * no longer than sorting does.
 *
 * Threads: any.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "image-internal.h"

#define PER_HOLD 8              /* disks; some 2 us each */
#define TRIES 4
#define PART 64                 /* disks that are copied before they are passed on */

struct item {
  char *name;                   /* owned */
  struct srv_root root;
  enum dedup_compress compress;
  bool compress_is_own;
  unsigned nr_clients;
  uint64_t mapped_bytes;
  struct srv_counters counters;
};

struct list {
  struct item *v;
  const struct item **by_uuid;  /* those that have one, sorted */
  size_t nr, nr_uuids;
  const char *after;            /* the names before and this one are left out; NULL:
                                 * none */
  size_t max;                   /* items */
  size_t next;                  /* of the names, which is to be copied */
  uint64_t edits;               /* of the names, when the copy began */
};

static const uint8_t no_uuid[16];

static void
free_list (struct list *l)
{
  for (size_t i = 0; i < l->nr; i++)
    free (l->v[i].name);
  free (l->v);
  free (l->by_uuid);
}

/* --- Copy ------------------------------------------------------------------- */

static int MUST_CHECK
add_item_locked (struct srv_exports *x, struct list *l, const char *name,
                 unsigned root)
{
  struct item *i = &l->v[l->nr];

  srv_root_look (dedup_image (x->pool), root, &i->root);
  if (!i->root.exists)
    return 0;
  i->root.writable &= x->writable;
  i->compress = dedup_compress_said (x->pool, i->root.compress, &i->compress_is_own);
  i->nr_clients = srv_exports_nr_clients_locked (x, root);
  i->mapped_bytes = srv_exports_mapped_locked (x, root);
  srv_exports_counters_locked (x, root, &i->counters);
  i->name = strdup (name);
  l->nr += i->name != NULL;
  return i->name ? 0 : -ENOMEM;
}

static int MUST_CHECK
begin_copy_locked (struct srv_exports *x, struct list *l)
{
  const size_t nr = MIN_OF (x->names.nr + 1, l->max);   /* at most 65537 */

  l->edits = x->names.edits;
  l->next = l->after ? srv_names_after (&x->names, l->after) : 0;
  l->v = calloc (nr, sizeof *l->v);
  l->by_uuid = calloc (nr, sizeof *l->by_uuid);
  if (l->v == NULL || l->by_uuid == NULL)
    return -ENOMEM;
  return l->after == NULL && srv_exports_active_is_served_locked (x)
    ? add_item_locked (x, l, "", QCOW2_ROOT_ACTIVE) : 0;
}

/* Copies up to MAX names under one hold of the lock.  1: there are more to be copied;
 * 0: none; -EAGAIN: the names have changed since the copy began. */
static int MUST_CHECK
copy_some (struct srv_exports *x, struct list *l, size_t max)
{
  LOCK_FOR_SCOPE (&x->lock);
  const struct srv_names *names = &x->names;
  int r = l->v == NULL ? begin_copy_locked (x, l) : 0;

  if (l->edits != names->edits)
    return -EAGAIN;
  for (; l->next < names->nr && l->nr < l->max && max > 0 && r == 0;
       l->next++, max--)
    if (srv_names_counts (names, l->next))
      r = add_item_locked (x, l, names->v[l->next].s, names->v[l->next].root);
  return r < 0 ? r : l->next < names->nr && l->nr < l->max;
}

static int MUST_CHECK
copy (struct srv_exports *x, struct list *l)
{
  int r;

  for (unsigned i = 1; i <= TRIES; i++) {
    do
      r = copy_some (x, l, i < TRIES ? PER_HOLD : SIZE_MAX);
    while (r == 1);
    if (r != -EAGAIN)
      return r;
    free_list (l);
    *l = (struct list) { .after = l->after, .max = l->max };
  }
  return r;
}

/* --- Origins ---------------------------------------------------------------- */

static int
compare_uuids (const void *a, const void *b)
{
  const struct item *const *x = a, *const *y = b;

  return memcmp ((*x)->root.uuid, (*y)->root.uuid, sizeof no_uuid);
}

static bool
has_uuid (const uint8_t uuid[16])
{
  return memcmp (uuid, no_uuid, sizeof no_uuid) != 0;
}

static void
sort_uuids (struct list *l)
{
  for (size_t i = 0; i < l->nr; i++)
    if (has_uuid (l->v[i].root.uuid))
      l->by_uuid[l->nr_uuids++] = &l->v[i];
  qsort (l->by_uuid, l->nr_uuids, sizeof *l->by_uuid, compare_uuids);
}

static const char *
name_of_origin (const struct list *l, const struct item *i)
{
  struct item key;
  const struct item *k = &key, *const *found;

  if (!has_uuid (i->root.origin))
    return NULL;
  memcpy (key.root.uuid, i->root.origin, sizeof key.root.uuid);
  found = bsearch (&k, l->by_uuid, l->nr_uuids, sizeof *l->by_uuid,
                   compare_uuids);
  return found ? (*found)->name : NULL;
}

/* --- List ------------------------------------------------------------------- */

static struct srv_disk_info
info_of (const struct list *l, const struct item *i)
{
  const struct srv_root *r = &i->root;

  return (struct srv_disk_info) {
    .name = i->name, .size = r->size, .is_disk = r->is_disk,
    .writable = r->writable,
    .is_snapshot = r->is_snapshot,
    .origin = name_of_origin (l, i), .created = r->created,
    .compress = dedup_compress_name (i->compress), .compress_is_own = i->compress_is_own,
    .nr_clients = i->nr_clients, .mapped_bytes = i->mapped_bytes,
    .counters = i->counters,
  };
}

/* Calls CB for all that was copied. */
static int
pass_on (const struct list *l,
         int (*cb) (void *opaque, const struct srv_disk_info *info),
         void *opaque)
{
  int r = 0;

  for (size_t i = 0; i < l->nr && r == 0; i++) {
    const struct srv_disk_info info = info_of (l, &l->v[i]);

    r = cb (opaque, &info);
  }
  return r;
}

int
srv_image_list_disks (struct srv_image *m,
                      int (*cb) (void *opaque,
                                 const struct srv_disk_info *info),
                      void *opaque)
{
  struct list l = { .max = SIZE_MAX };
  int r = copy (&m->exports, &l);

  if (r == 0) {
    sort_uuids (&l);
    r = pass_on (&l, cb, opaque);
  }
  free_list (&l);
  return r;
}

/* Passes on the next part of the list.  *LAST is the last name of it, and was the last
 * one before; NULL: there are no more. */
static int
list_part (struct srv_image *m, char **last,
           int (*cb) (void *opaque, const struct srv_disk_info *info),
           void *opaque)
{
  struct list l = { .after = *last, .max = PART };
  int r = copy (&m->exports, &l);

  if (r == 0)
    r = pass_on (&l, cb, opaque);
  free (*last);
  *last = NULL;
  if (r == 0 && l.nr == PART) {
    *last = l.v[l.nr - 1].name;
    l.v[l.nr - 1].name = NULL;
  }
  free_list (&l);
  return r;
}

int
srv_image_list_disks_after (struct srv_image *m, const char *after,
                            int (*cb) (void *opaque,
                                       const struct srv_disk_info *info),
                            void *opaque)
{
  char *last = after ? strdup (after) : NULL;
  int r = after && last == NULL ? -ENOMEM : 0;

  while (r == 0) {
    r = list_part (m, &last, cb, opaque);
    if (last == NULL)
      break;
  }
  free (last);
  return r;
}

/* --- Describe --------------------------------------------------------------- */

const char *
srv_format_size (uint64_t bytes, char *buf, size_t len)
{
  static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB",
                                       "PiB", "EiB" };
  size_t i = 0;

  while (bytes > 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    i++;
  }
  snprintf (buf, len, "%" PRIu64 " %s", bytes, units[i]);
  return buf;
}

#define LAST_SECOND UINT64_C (253402300799)     /* of the year 9999 */

/* Writes ", made 2026-11-29" to BUF, or nothing if that is not known. */
static const char *
format_date (uint64_t created, char *buf, size_t len)
{
  const time_t t = (time_t) MIN_OF (created, LAST_SECOND);
  struct tm tm;

  if (created == 0 || gmtime_r (&t, &tm) == NULL ||
      strftime (buf, len, ", made %Y-%m-%d", &tm) == 0)
    buf[0] = '\0';
  return buf;
}

const char *
srv_disk_describe (const struct srv_disk_info *info, char *buf, size_t len)
{
  const char *kind = info->writable ? "writable" : info->is_snapshot ?
    "snapshot" : "read-only";
  char size[32], date[64];

  if (info->name[0] == '\0')
    snprintf (buf, len, "the disk");
  else if (!info->is_disk)
    snprintf (buf, len, "internal snapshot, read-only");
  else
    snprintf (buf, len, "%s, %s%s%s%s",
              srv_format_size (info->size, size, sizeof size), kind,
              info->origin == NULL ? "" : info->is_snapshot ? " of "
              : ", clone of ", info->origin ? info->origin : "",
              format_date (info->created, date, sizeof date));
  return buf;
}

/* --- Describe all ------------------------------------------------------------ */

struct census {
  unsigned nr_disks, nr_snapshots;      /* that this program made */
  bool has_active;
};

static int
count_cb (void *opaque, const struct srv_disk_info *info)
{
  struct census *c = opaque;

  c->has_active |= info->name[0] == '\0';
  c->nr_disks += info->is_disk && !info->is_snapshot;
  c->nr_snapshots += info->is_disk && info->is_snapshot;
  return 0;
}

static void
describe_pool (const struct census *c, const char *active_size, char *buf,
               size_t len)
{
  char snapshots[40] = "";

  if (c->nr_snapshots > 0)
    snprintf (snapshots, sizeof snapshots, " and %u snapshot%s",
              c->nr_snapshots, c->nr_snapshots == 1 ? "" : "s");
  snprintf (buf, len, "a pool of %u disk%s%s%s%s", c->nr_disks,
            c->nr_disks == 1 ? "" : "s", snapshots,
            c->has_active ? ", and a default disk of " : "",
            c->has_active ? active_size : "");
}

const char *
srv_describe_exports (struct srv_image *m, char *buf, size_t len)
{
  struct census c = { 0 };
  char size[32];
  int r = srv_image_list_disks (m, count_cb, &c);

  srv_format_size (srv_disk_size (m->exports.active), size, sizeof size);
  if (r == 0 && c.nr_disks + c.nr_snapshots > 0)
    describe_pool (&c, size, buf, len);
  else
    snprintf (buf, len, "a disk of %s", size);
  return buf;
}
