/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots as exports: under which names.
 *
 * The author of the image chose names and ids.  Those that NBD can carry, UTF-8
 * without control characters, at most 4096 bytes, not empty (that is the
 * active disk), stand for themselves; of several snapshots with one name, and
 * of one whose name is none of these, the id takes its place; what then still
 * has no name of its own can't be reached.  Sorted once at open, so that many
 * snapshots cost no more than sorting.
 *
 * Constant after open: no locks.  Reading is in request.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define MAX_NAME 4096          /* bytes; NBD protocol, "String values" */

struct srv_name {
  const char *s;               /* the image's; NULL: none */
  unsigned root;
  bool is_id;
};

/* Bytes of the UTF-8 sequence at P, 0 if it is none. */
static unsigned
utf8_length (const unsigned char *p)
{
  unsigned n = p[0] < 0x80 ? 1 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
    : p[0] >= 0xe0 && p[0] < 0xf0 ? 3 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : 0;

  for (unsigned i = 1; i < n; i++)
    if ((p[i] & 0xc0) != 0x80)
      return 0;
  if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90) ||
      (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf4 && p[1] > 0x8f))
    return 0;                  /* too long a form, a surrogate, too large */
  return n;
}

static bool
can_be_name (const char *s)
{
  const unsigned char *p = (const unsigned char *) s;
  unsigned n;

  if (*p == '\0' || strlen (s) > MAX_NAME)
    return false;
  for (; *p; p += n) {
    n = utf8_length (p);
    if (n == 0 || *p < ' ' || *p == 0x7f || (*p == 0xc2 && p[1] < 0xa0))
      return false;
  }
  return true;
}

/* Those without a name last; a name before the same id. */
static int
compare (const void *a, const void *b)
{
  const struct srv_name *x = a, *y = b;
  int c;

  if (x->s == NULL || y->s == NULL)
    return (x->s == NULL) - (y->s == NULL);
  c = strcmp (x->s, y->s);
  return c ? c : (int) x->is_id - (int) y->is_id;
}

static void
use_id (struct srv_name *n, const struct qcow2_snapshot *snapshots)
{
  const char *id = snapshots[n->root - 1].id;

  n->s = can_be_name (id) ? id : NULL;
  n->is_id = true;
}

/* In V, sorted: who shares a name, or has none, goes by the id. */
static void
use_ids (struct srv_name *v, size_t nr, const struct qcow2_snapshot *snapshots)
{
  size_t i, end;

  for (i = 0; i < nr; i = end) {
    for (end = i + 1; end < nr && v[i].s && v[end].s &&
           strcmp (v[i].s, v[end].s) == 0; end++)
      ;
    if (end - i > 1 || v[i].s == NULL)
      for (size_t k = i; k < end; k++)
        use_id (&v[k], snapshots);
  }
}

/* Leave one of each; returns how many. */
static size_t
drop_doubles (struct srv_name *v, size_t nr)
{
  size_t n = 0;

  for (size_t i = 0; i < nr && v[i].s; i++)
    if (n == 0 || strcmp (v[n - 1].s, v[i].s) != 0)
      v[n++] = v[i];
  return n;
}

int
srv_names_init (struct srv_export *e)
{
  const struct qcow2_snapshot *snapshots;
  size_t nr = qcow2_snapshots (dedup_image (e->disk), &snapshots), n = 0;
  struct srv_name *v = calloc (nr + 1, sizeof *v);   /* at most 65536 */

  if (v == NULL)
    return -ENOMEM;
  for (size_t i = 0; i < nr; i++)
    if (!snapshots[i].named_anchor)
      v[n++] = (struct srv_name) {
        .root = (unsigned) i + 1,
        .s = can_be_name (snapshots[i].name) ? snapshots[i].name : NULL,
      };
  qsort (v, n, sizeof *v, compare);
  use_ids (v, n, snapshots);
  qsort (v, n, sizeof *v, compare);
  e->names = v;
  e->nr_names = drop_doubles (v, n);
  return 0;
}

int
srv_find_root (const struct srv_export *e, const char *name, unsigned *root)
{
  size_t low = 0, high = e->nr_names, mid;
  int c;

  *root = SRV_ROOT_ACTIVE;
  if (name[0] == '\0')
    return 0;
  while (low < high) {
    mid = low + (high - low) / 2;
    c = strcmp (name, e->names[mid].s);
    if (c == 0) {
      *root = e->names[mid].root;
      return 0;
    }
    if (c < 0)
      high = mid;
    else
      low = mid + 1;
  }
  return -ENOENT;
}

int
srv_list_snapshots (const struct srv_export *e,
                    int (*cb) (void *opaque, const char *name), void *opaque)
{
  int r = 0;

  for (size_t i = 0; i < e->nr_names && r == 0; i++)
    r = cb (opaque, e->names[i].s);
  return r;
}
