/* SPDX-License-Identifier: BSD-3-Clause */
/* Prepares what is printed about disks, for people and as JSON: their order, the
 * names of those they are clones of, times, and names that other programs chose.
 *
 * A name in an image may be any bytes.  On a terminal and in JSON it appears
 * without control characters and as valid UTF-8.  One thread.
 */
#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* --- Table ---------------------------------------------------------------- */

/* Orders by the name up to '@'; the disk itself first, then its snapshots, the
 * oldest first. */
static int
compare (const void *a, const void *b)
{
  const struct dedup_disk_info *x = a, *y = b;
  const size_t nx = strcspn (x->name, "@"), ny = strcspn (y->name, "@");
  int c = memcmp (x->name, y->name, nx < ny ? nx : ny);

  if (c == 0 && nx != ny)
    c = nx < ny ? -1 : 1;
  if (c == 0)
    c = (x->name[nx] == '@') - (y->name[ny] == '@');
  if (c == 0)
    c = (x->created > y->created) - (x->created < y->created);
  return c ? c : strcmp (x->name, y->name);
}

int
disk_table_load (struct disk_pool *p, struct disk_table *t)
{
  int r = dedup_disk_list (p->d, &t->v, &t->nr);

  if (r == 0 && t->nr > 1)
    qsort (t->v, t->nr, sizeof *t->v, compare);
  return r;
}

void
disk_table_free (struct disk_table *t)
{
  dedup_disk_list_free (t->v, t->nr);
  *t = (struct disk_table) { .v = NULL };
}

const char *
disk_origin (const struct disk_table *t, const struct dedup_disk_info *info)
{
  static const uint8_t none[sizeof info->origin];
  size_t i;

  if (memcmp (info->origin, none, sizeof none) == 0)
    return NULL;
  for (i = 0; i < t->nr; i++)
    if (memcmp (t->v[i].uuid, info->origin, sizeof none) == 0)
      return t->v[i].name;
  return NULL;
}

bool
disk_is_snapshot_of (const struct dedup_disk_info *info, const char *disk)
{
  const size_t len = strlen (disk);

  return info->is_disk && !info->writable &&
    strncmp (info->name, disk, len) == 0 && info->name[len] == '@';
}

/* --- Text ----------------------------------------------------------------- */

char *
disk_printable (const char *name)
{
  char *s = strdup (name), *p;
  json_t *valid;

  if (s == NULL)
    return NULL;
  fault_make_printable (s);
  valid = json_string (s);      /* NULL if it is not UTF-8 */
  for (p = s; valid == NULL && *p; p++)
    if ((unsigned char) *p >= 0x80)
      *p = '?';
  json_decref (valid);
  return s;
}

const char *
disk_time (uint64_t seconds, char buf[32])
{
  const time_t t = (time_t) seconds;
  struct tm tm;

  if (seconds == 0 || seconds > INT32_MAX * UINT64_C (1000) ||
      localtime_r (&t, &tm) == NULL ||
      strftime (buf, 32, "%Y-%m-%d %H:%M:%S", &tm) == 0)
    snprintf (buf, 32, "-");
  return buf;
}

/* --- JSON ----------------------------------------------------------------- */

void
disk_json_set_string (json_t *o, const char *key, const char *s)
{
  CLEANUP_FREE char *printable = s ? disk_printable (s) : NULL;

  json_object_set_new (o, key, printable ? json_string (printable)
                       : json_null ());
}

void
disk_json_set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer (v > INT64_MAX ? INT64_MAX
                                             : (json_int_t) v));
}

static void
set_uuid (json_t *o, const char *key, const uint8_t uuid[16])
{
  static const uint8_t none[16];
  char s[37], *p = s;
  int i;

  for (i = 0; i < 16; i++)
    p += snprintf (p, 4, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x"
                   : "%02x", uuid[i]);
  disk_json_set_string (o, key, memcmp (uuid, none, 16) == 0 ? NULL : s);
}

json_t *
disk_to_json (const struct disk_table *t, const struct dedup_disk_info *info)
{
  json_t *o = json_object ();

  disk_json_set_string (o, "name", info->name);
  disk_json_set_string (o, "type", !info->is_disk ? "other" :
                        info->writable ? "disk" : "snapshot");
  json_object_set_new (o, "writable", json_boolean (info->writable));
  disk_json_set (o, "virtual-size", info->size);
  disk_json_set_string (o, "clone-of", disk_origin (t, info));
  set_uuid (o, "uuid", info->uuid);
  set_uuid (o, "origin-uuid", info->origin);
  disk_json_set (o, "created", info->created);
  disk_json_set_string (o, "compress", dedup_compress_name (info->compress));
  disk_json_set_string (o, "compress-source", info->compress_is_own ? "disk" : "pool");
  return o;
}

void
disk_json_print (json_t *o)
{
  json_dumpf (o, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (o);
}
