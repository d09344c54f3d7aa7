/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the exports of an image: names, and the disks that clients have open.
 *
 * A disk (struct srv_disk) is made when the first client asks for its root, and
 * freed when the last one goes, so that a root which nobody has open costs its
 * name.  The active disk always exists, as background work uses it.  All clients
 * of a root share one disk, and so its range lock.
 *
 * When a root's contents end (it is deleted, reset or cut), its disk is shut and
 * *ended*: its clients keep it and get errors, and later clients get a new disk.
 * Clients that come during the change wait for its end, and then look their name
 * up again.
 *
 * What clients of a root did is kept as long as the root exists: it is counted in
 * the disk, and moved to the root's account when the disk ends.
 *
 * Threads: any.  The lock is held for memory work, and the image lock is taken
 * under it.
 */
#include "exports.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "clock.h"

#define NAMES_IN_MESSAGE 3
#define LATELY_NS (UINT64_C (1) * 1000 * 1000 * 1000)

static int
out_of_memory (struct fault *f)
{
  return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
}

/* --- Disks ----------------------------------------------------------------- */

static struct srv_disk *
new_disk (struct srv_exports *x, unsigned root)
{
  struct srv_disk *d = malloc (sizeof *d);

  if (d) {
    srv_disk_init (d, x->pool, root, x->writable, x->space);
    d->last_change_ns = &x->last_change_ns;
    d->accounts = x->accounts;
  }
  return d;
}

static void
free_disk (struct srv_disk *d)
{
  srv_disk_destroy (d);
  free (d);
}

bool
srv_exports_changed_lately (const struct srv_exports *x)
{
  const uint64_t last = __atomic_load_n (&x->last_change_ns, __ATOMIC_RELAXED);

  return last != 0 && clock_now_ns () - last < LATELY_NS;
}

/* --- Accounts of roots ------------------------------------------------------ */

/* Makes room for the account of ROOT, at most QCOW2_ROOT_ACTIVE + 65535. */
static struct srv_root_account *
get_account_locked (struct srv_exports *x, unsigned root)
{
  const size_t nr = MAX_OF ((size_t) root + 1, 2 * x->nr_roots);
  struct srv_root_account *v;

  assert (lock_held (&x->lock));
  if (root < x->nr_roots)
    return &x->roots[root];
  v = realloc (x->roots, nr * sizeof *v);
  if (v == NULL)
    return NULL;
  memset (v + x->nr_roots, 0, (nr - x->nr_roots) * sizeof *v);
  x->roots = v;
  x->nr_roots = nr;
  return &v[root];
}

/* Returns the account of ROOT if there is one. */
static struct srv_root_account *
find_account_locked (const struct srv_exports *x, unsigned root)
{
  return root < x->nr_roots ? &x->roots[root] : NULL;
}

/* Takes the disk D, that of ROOT, off its account. */
static void
settle_account_locked (struct srv_exports *x, const struct srv_disk *d)
{
  struct srv_root_account *a = find_account_locked (x, d->root);

  assert (a && a->disk == d);
  srv_counters_add (&a->past, &d->counters);
  a->disk = NULL;
}

/* Begins an account for a root that is new. */
static void
clear_account_locked (struct srv_exports *x, unsigned root)
{
  struct srv_root_account *a = find_account_locked (x, root);

  if (a)
    memset (a, 0, sizeof *a);
}

void
srv_exports_counters_locked (struct srv_exports *x, unsigned root,
                             struct srv_counters *sum)
{
  const struct srv_root_account *a = find_account_locked (x, root);

  assert (lock_held (&x->lock));
  memset (sum, 0, sizeof *sum);
  if (a)
    srv_counters_add (sum, &a->past);
  if (a && a->disk)
    srv_counters_add (sum, &a->disk->counters);
}

void
srv_exports_note_mapped (struct srv_exports *x, unsigned root,
                         uint64_t mapped_bytes)
{
  LOCK_FOR_SCOPE (&x->lock);
  struct srv_root_account *a = get_account_locked (x, root);

  if (a) {
    a->mapped_bytes = mapped_bytes;
    a->mapped_is_known = true;
  }
}

uint64_t
srv_exports_mapped_locked (const struct srv_exports *x, unsigned root)
{
  const struct srv_root_account *a = find_account_locked (x, root);

  return a && a->mapped_is_known ? a->mapped_bytes : UINT64_MAX;
}

void
srv_exports_name (struct srv_exports *x, unsigned root, char *buf, size_t len)
{
  LOCK_FOR_SCOPE (&x->lock);
  const struct srv_names *n = &x->names;
  size_t i;

  buf[0] = '\0';
  for (i = 0; i < n->nr && root != QCOW2_ROOT_ACTIVE; i++)
    if (n->v[i].s && n->v[i].root == root && srv_names_counts (n, i)) {
      snprintf (buf, len, "%s", n->v[i].s);
      return;
    }
}

/* --- Disks of clients -------------------------------------------------------- */

/* Returns the disk that new clients of ROOT get, or NULL if it has none. */
static struct srv_disk *
find_disk_locked (struct srv_exports *x, unsigned root)
{
  const struct srv_root_account *a = find_account_locked (x, root);

  assert (lock_held (&x->lock));
  return a ? a->disk : NULL;
}

static int MUST_CHECK
get_disk_locked (struct srv_exports *x, unsigned root, struct srv_disk **out)
{
  struct srv_root_account *a = get_account_locked (x, root);
  struct srv_disk *d;

  if (a == NULL)
    return -ENOMEM;
  d = a->disk;
  if (d == NULL) {
    d = new_disk (x, root);
    if (d == NULL)
      return -ENOMEM;
    d->next = x->open;
    x->open = a->disk = d;
  }
  d->nr_clients++;
  *out = d;
  return 0;
}

/* Takes a client off D.  Returns true if it was the last one, and the caller
 * frees D. */
static bool
put_disk_locked (struct srv_exports *x, struct srv_disk *d)
{
  struct srv_disk **p;

  assert (lock_held (&x->lock));
  assert (d->nr_clients > 0);
  if (--d->nr_clients > 0 || d == x->active)
    return false;
  for (p = &x->open; *p != d; p = &(*p)->next)
    ;
  *p = d->next;
  if (!d->ended)
    settle_account_locked (x, d);
  return true;
}

unsigned
srv_exports_nr_clients_locked (struct srv_exports *x, unsigned root)
{
  struct srv_disk *d = find_disk_locked (x, root);

  return d ? d->nr_clients : 0;
}

/* Returns whether the active disk has no data, and nobody who might write some. */
static bool
active_is_unused (struct srv_exports *x)
{
  bool has_clients;

  lock_acquire (&x->lock);
  has_clients = x->active->nr_clients > 0;
  lock_release (&x->lock);
  return !has_clients && srv_root_active_is_empty (dedup_image (x->pool));
}

/* --- Clients ---------------------------------------------------------------- */

bool
srv_exports_active_is_served_locked (struct srv_exports *x)
{
  assert (lock_held (&x->lock));
  return !x->active_is_unused || x->names.nr_disks == 0;
}

/* Says which names a client can ask for instead of "". */
static int
no_default_locked (struct srv_exports *x, struct fault *f)
{
  const struct srv_names *n = &x->names;
  char list[300] = "", more[32] = "";
  size_t i, shown = 0, len = 0;

  for (i = 0; i < n->nr && shown < NAMES_IN_MESSAGE; i++)
    if (n->v[i].is_disk && strlen (n->v[i].s) < 80) {
      len += (size_t) snprintf (list + len, sizeof list - len, "%s'%s'",
                                shown ? ", " : " ", n->v[i].s);
      shown++;
    }
  if (n->nr_disks > shown)
    snprintf (more, sizeof more, "%s%zu more", shown ? " and " : " ",
              n->nr_disks - shown);
  return fault_set (f, FAULT_USAGE, ENOENT, UINT64_MAX, "there is no default "
                    "disk: ask for one by its name:%s%s", list, more);
}

static int
no_such_name_locked (struct srv_exports *x, const char *name, struct fault *f)
{
  return fault_set (f, FAULT_USAGE, ENOENT, UINT64_MAX, "there is no export "
                    "'%.128s': %s; nbdinfo --list lists them", name,
                    srv_exports_active_is_served_locked (x) ?
                    "the disk has the empty name, and other disks and snapshots their own"
                    : "disks and snapshots have names of their own");
}

static int MUST_CHECK
find_locked (struct srv_exports *x, const char *name, unsigned *root,
             struct fault *f)
{
  if (srv_names_find (&x->names, name, root) < 0)
    return no_such_name_locked (x, name, f);
  if (*root == QCOW2_ROOT_ACTIVE && !srv_exports_active_is_served_locked (x))
    return no_default_locked (x, f);
  return 0;
}

/* Finds the root, which may be another one or gone after a wait. */
static int MUST_CHECK
find_settled_locked (struct srv_exports *x, const char *name, unsigned *root,
                     struct fault *f)
{
  int r;

  while ((r = find_locked (x, name, root, f)) == 0 && x->is_changing &&
         x->changing == *root)
    lock_wait (&x->lock, &x->settled);
  return r;
}

int
srv_exports_get (struct srv_exports *x, const char *name,
                 struct srv_disk **out, struct fault *f)
{
  unsigned root;
  LOCK_FOR_SCOPE (&x->lock);
  int r = find_settled_locked (x, name, &root, f);

  if (r < 0)
    return r;
  r = get_disk_locked (x, root, out);
  if (r < 0)
    return out_of_memory (f);
  return 0;
}

void
srv_exports_put (struct srv_exports *x, struct srv_disk *d)
{
  bool last;

  lock_acquire (&x->lock);
  last = put_disk_locked (x, d);
  lock_release (&x->lock);
  if (last)
    free_disk (d);
}

/* --- Changes of the set of disks -------------------------------------------- */

int
srv_exports_find (struct srv_exports *x, const char *name, unsigned *root,
                  struct fault *f)
{
  LOCK_FOR_SCOPE (&x->lock);

  return find_locked (x, name, root, f);
}

/* Ends the disk of ROOT for new clients, and returns it, with one client more;
 * NULL: there is none. */
static struct srv_disk *
end_disk_locked (struct srv_exports *x, unsigned root)
{
  struct srv_disk *d = find_disk_locked (x, root);

  if (d) {
    settle_account_locked (x, d);
    d->ended = true;
    d->nr_clients++;
  }
  return d;
}

int
srv_exports_begin_change (struct srv_exports *x, const char *name,
                          unsigned root, bool force, struct fault *f)
{
  struct srv_disk *d;
  unsigned nr;

  assert (root != QCOW2_ROOT_ACTIVE);
  lock_acquire (&x->lock);
  assert (!x->is_changing);
  nr = srv_exports_nr_clients_locked (x, root);
  if (nr > 0 && !force) {
    lock_release (&x->lock);
    return fault_set (f, FAULT_USAGE, EBUSY, UINT64_MAX, "'%s' has %u client%s",
                      name, nr, nr == 1 ? "" : "s");
  }
  x->is_changing = true;
  x->changing = root;
  d = end_disk_locked (x, root);
  lock_release (&x->lock);
  if (d) {
    srv_disk_shut (d);
    srv_exports_put (x, d);
  }
  return 0;
}

void
srv_exports_end_change (struct srv_exports *x)
{
  LOCK_FOR_SCOPE (&x->lock);

  assert (x->is_changing);
  x->is_changing = false;
  pthread_cond_broadcast (&x->settled);
}

void
srv_exports_grow (struct srv_exports *x, unsigned root)
{
  struct srv_disk *d;

  lock_acquire (&x->lock);
  d = find_disk_locked (x, root);
  if (d)
    d->nr_clients++;
  lock_release (&x->lock);
  if (d) {
    srv_disk_grow (d);
    srv_exports_put (x, d);
  }
}

int
srv_exports_prepare_name (struct srv_exports *x, const char *name,
                          char **copy, struct fault *f)
{
  LOCK_FOR_SCOPE (&x->lock);
  int r = srv_names_prepare (&x->names, name, copy);

  return r < 0 ? out_of_memory (f) : 0;
}

void
srv_exports_add_name (struct srv_exports *x, char *copy, unsigned root)
{
  const bool unused = active_is_unused (x);
  LOCK_FOR_SCOPE (&x->lock);

  if (x->names.nr_disks == 0)
    x->active_is_unused = unused;
  clear_account_locked (x, root);
  srv_names_add (&x->names, copy, root);
}

void
srv_exports_remove_name (struct srv_exports *x, unsigned root)
{
  LOCK_FOR_SCOPE (&x->lock);

  srv_names_remove (&x->names, root);
}

void
srv_exports_rename (struct srv_exports *x, char *copy, unsigned root)
{
  LOCK_FOR_SCOPE (&x->lock);

  srv_names_remove (&x->names, root);
  srv_names_add (&x->names, copy, root);
}

/* --- Init ------------------------------------------------------------------- */

/* Makes the active disk, which counts in its account all the time. */
static int MUST_CHECK
make_active (struct srv_exports *x)
{
  struct srv_root_account *a;
  LOCK_FOR_SCOPE (&x->lock);

  x->active = new_disk (x, QCOW2_ROOT_ACTIVE);
  a = get_account_locked (x, QCOW2_ROOT_ACTIVE);
  if (x->active == NULL || a == NULL)
    return -ENOMEM;
  a->disk = x->active;
  return 0;
}

int
srv_exports_init (struct srv_exports *x, struct dedup_pool *pool,
                  bool writable, struct srv_space *space)
{
  const struct qcow2_snapshot *snapshots;
  size_t nr = qcow2_snapshots (dedup_image (pool), &snapshots);

  x->pool = pool;
  x->writable = writable;
  x->space = space;
  pthread_mutex_init (&x->operation, NULL);
  pthread_cond_init (&x->settled, NULL);
  lock_init (&x->lock);
  if (make_active (x) < 0)
    return -ENOMEM;
  x->active_is_unused = active_is_unused (x);
  return srv_names_init (&x->names, snapshots, nr);
}

void
srv_exports_destroy (struct srv_exports *x)
{
  struct srv_disk *d;

  if (x->pool == NULL)
    return;
  while ((d = x->open)) {
    x->open = d->next;
    free_disk (d);
  }
  if (x->active)
    free_disk (x->active);
  srv_names_destroy (&x->names);
  free (x->roots);
  lock_destroy (&x->lock);
  pthread_cond_destroy (&x->settled);
  pthread_mutex_destroy (&x->operation);
}
