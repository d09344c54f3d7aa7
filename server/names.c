/* SPDX-License-Identifier: BSD-3-Clause */
/* Export names: gives a name to each disk and internal snapshot.
 *
 * Names and ids of snapshots were chosen by the author of the image.  NBD can
 * carry those that are UTF-8 without control characters and have at most 4096
 * bytes; the empty name is the active disk's.  The export name of a snapshot is
 * its name if that is such a name and no other snapshot has it, else its id.
 * If a name and another snapshot's id are equal, the name wins.  A snapshot
 * that has no export name then is not served.  The list is sorted once at open,
 * so that an image with many snapshots takes no longer than sorting does.
 *
 * Disks that are made, renamed and deleted while the image is served change the
 * list.  Their names differ from those of all others.  The names of other roots
 * stay as they are until the image is closed, also when it is no longer true
 * that two of them are equal.
 *
 * The owner of the list has the lock.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "utf8.h"

#define MAX_NAME 4096          /* bytes; NBD protocol, "String values" */

static bool
can_be_name (const char *s)
{
  const unsigned char *p = (const unsigned char *) s;
  unsigned n;

  if (*p == '\0' || strlen (s) > MAX_NAME)
    return false;
  for (; *p; p += n) {
    n = utf8_length (p);
    if (n == 0 || utf8_is_control (p))
      return false;
  }
  return true;
}

/* Orders by name; a name comes before an equal id, and those without a name
 * come last. */
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

/* Sets the name of N to a copy of S, or to NULL if NBD cannot carry that. */
static int
set_name (struct srv_name *n, const char *s)
{
  free (n->s);
  n->s = NULL;
  if (!can_be_name (s))
    return 0;
  n->s = strdup (s);
  return n->s ? 0 : -ENOMEM;
}

static int
use_id (struct srv_name *n, const struct qcow2_snapshot *snapshots)
{
  n->is_id = true;
  return set_name (n, snapshots[n->root - 1].id);
}

/* Replaces the names in V, which is sorted, by ids where several are equal or
 * there is none. */
static int
use_ids (struct srv_name *v, size_t nr, const struct qcow2_snapshot *snapshots)
{
  size_t i, end;
  int r = 0;

  for (i = 0; i < nr; i = end) {
    for (end = i + 1; end < nr && v[i].s && v[end].s &&
           strcmp (v[i].s, v[end].s) == 0; end++)
      ;
    if (end - i > 1 || v[i].s == NULL)
      for (size_t k = i; k < end && r == 0; k++)
        r = use_id (&v[k], snapshots);
  }
  return r;
}

/* Removes those without a name, which are the last ones. */
static void
drop_nameless (struct srv_names *names)
{
  while (names->nr > 0 && names->v[names->nr - 1].s == NULL)
    names->nr--;
}

static bool
is_served (const struct qcow2_snapshot *s)
{
  return !s->dead && !s->named_anchor && !(s->disk_flags & QCOW2_DISK_DOOMED);
}

static int
take_names (struct srv_names *names, const struct qcow2_snapshot *snapshots,
            size_t nr)
{
  struct srv_name *n;

  for (size_t i = 0; i < nr; i++) {
    if (!is_served (&snapshots[i]))
      continue;
    n = &names->v[names->nr++];
    *n = (struct srv_name) { .root = (unsigned) i + 1,
                             .is_disk = snapshots[i].is_disk };
    if (set_name (n, snapshots[i].name) < 0)
      return -ENOMEM;
    names->nr_disks += n->is_disk;
  }
  return 0;
}

int
srv_names_init (struct srv_names *names, const struct qcow2_snapshot *snapshots,
                size_t nr)
{
  int r;

  memset (names, 0, sizeof *names);
  names->max = nr + 1;
  names->v = calloc (names->max, sizeof *names->v);    /* at most 65537 */
  if (names->v == NULL)
    return -ENOMEM;
  r = take_names (names, snapshots, nr);
  if (r < 0)
    return r;
  qsort (names->v, names->nr, sizeof *names->v, compare);
  r = use_ids (names->v, names->nr, snapshots);
  if (r < 0)
    return r;
  qsort (names->v, names->nr, sizeof *names->v, compare);
  drop_nameless (names);
  return 0;
}

void
srv_names_destroy (struct srv_names *names)
{
  for (size_t i = 0; i < names->nr; i++)
    free (names->v[i].s);
  free (names->v);
}

/* Returns the index of the first name that is not less than NAME. */
static size_t
lower_bound (const struct srv_names *names, const char *name)
{
  size_t low = 0, high = names->nr, mid;

  while (low < high) {
    mid = low + (high - low) / 2;
    if (strcmp (names->v[mid].s, name) < 0)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

size_t
srv_names_after (const struct srv_names *names, const char *name)
{
  size_t i = lower_bound (names, name);

  while (i < names->nr && strcmp (names->v[i].s, name) == 0)
    i++;
  return i;
}

int
srv_names_find (const struct srv_names *names, const char *name,
                unsigned *root)
{
  size_t i;

  *root = QCOW2_ROOT_ACTIVE;
  if (name[0] == '\0')
    return 0;
  i = lower_bound (names, name);
  if (i == names->nr || strcmp (names->v[i].s, name) != 0)
    return -ENOENT;
  *root = names->v[i].root;
  return 0;
}

bool
srv_names_counts (const struct srv_names *names, size_t i)
{
  return i == 0 || strcmp (names->v[i - 1].s, names->v[i].s) != 0;
}

/* --- Changes ------------------------------------------------------------- */

static int
make_room (struct srv_names *names)
{
  size_t max = names->max + names->max / 2 + 16;
  struct srv_name *v;

  if (names->nr < names->max)
    return 0;
  v = realloc (names->v, max * sizeof *v);
  if (v == NULL)
    return -ENOMEM;
  names->v = v;
  names->max = max;
  return 0;
}

int
srv_names_prepare (struct srv_names *names, const char *name, char **copy)
{
  int r = make_room (names);

  *copy = NULL;
  if (r < 0)
    return r;
  *copy = strdup (name);
  return *copy ? 0 : -ENOMEM;
}

void
srv_names_add (struct srv_names *names, char *copy, unsigned root)
{
  const size_t i = lower_bound (names, copy);

  assert (names->nr < names->max);
  memmove (names->v + i + 1, names->v + i,
           (names->nr - i) * sizeof *names->v);
  names->v[i] = (struct srv_name) { .s = copy, .root = root, .is_disk = true };
  names->nr++;
  names->nr_disks++;
  names->edits++;
}

void
srv_names_remove (struct srv_names *names, unsigned root)
{
  size_t i;

  for (i = 0; i < names->nr && names->v[i].root != root; i++)
    ;
  if (i == names->nr)
    return;
  names->edits++;
  names->nr_disks -= names->v[i].is_disk;
  free (names->v[i].s);
  names->nr--;
  memmove (names->v + i, names->v + i + 1,
           (names->nr - i) * sizeof *names->v);
}
