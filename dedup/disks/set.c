/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the operations on disks, each of them a list of edits of the set of roots.
 *
 *   create   a new root with an empty L1 table
 *   clone    a new root, to which the source's tables are lent
 *   reset    the root gets the source's tables lent; a new, doomed root takes its
 *            old ones
 *   rename   another name
 *   resize   another size, and a larger L1 table where that is needed
 *   compress what the root says of new data
 *   delete   the root is doomed
 *
 * A root that was deleted has no name any more, and no user sees it.
 * When its last table is dropped, work.c removes it.
 *
 * Any thread, without locks.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>

#include "disks-private.h"

#define SECTOR 512u
#define MAX_LENDING_CLUSTER 65536u

/* --- Looking --------------------------------------------------------------- */

const struct qcow2_snapshot *
dedup_root_locked (const struct dedup_disks *d, unsigned root)
{
  const struct qcow2_snapshot *v;
  size_t nr = qcow2_snapshots (d->b->img, &v);

  assert (lock_held (d->b->lock));
  if (root == QCOW2_ROOT_ACTIVE || root > nr)
    return NULL;
  v += root - 1;
  return v->dead || v->is_anchor || (v->disk_flags & QCOW2_DISK_DOOMED) ? NULL
    : v;
}

static bool
is_writable (const struct qcow2_snapshot *s)
{
  return s->is_disk && (s->disk_flags & QCOW2_DISK_WRITABLE);
}

enum dedup_compress
dedup_disks_compress (const struct dedup_disks *d, unsigned says, bool *own)
{
  const struct qcow2_geometry *g = qcow2_geometry (d->b->img);

  *own = says == QCOW2_COMPRESS_OFF || says == QCOW2_COMPRESS_ON;
  if (*own ? says == QCOW2_COMPRESS_OFF : !d->s->config->compress)
    return DEDUP_COMPRESS_OFF;
  return g->compression_type == 1 ? DEDUP_COMPRESS_ZSTD : DEDUP_COMPRESS_ZLIB;
}

static int
copy_info (const struct dedup_disks *d, const struct qcow2_snapshot *s, unsigned root,
           struct dedup_disk_info *out)
{
  *out = (struct dedup_disk_info) {
    .root = root, .name = strdup (s->name), .size = s->disk_size,
    .is_disk = s->is_disk, .writable = is_writable (s),
    .created = s->is_disk ? s->created : s->date_sec,
  };
  memcpy (out->uuid, s->uuid, sizeof out->uuid);
  memcpy (out->origin, s->origin, sizeof out->origin);
  out->compress = dedup_disks_compress (d, s->compress, &out->compress_is_own);
  return out->name ? 0 : -ENOMEM;
}

int
dedup_disks_list (struct dedup_disks *d, struct dedup_disk_info **v,
                  size_t *nr)
{
  const struct qcow2_snapshot *s;
  LOCK_FOR_SCOPE (d->b->lock);
  const size_t max = qcow2_snapshots (d->b->img, &s);
  int r = 0;

  *nr = 0;
  *v = calloc (max + 1, sizeof **v);
  if (*v == NULL)
    return -ENOMEM;
  for (unsigned root = 1; root <= max && r == 0; root++) {
    s = dedup_root_locked (d, root);
    if (s)
      r = copy_info (d, s, root, &(*v)[(*nr)++]);
  }
  if (r < 0) {
    dedup_disk_list_free (*v, *nr);
    *v = NULL;
  }
  return r;
}

void
dedup_disk_list_free (struct dedup_disk_info *v, size_t nr)
{
  for (size_t i = 0; v && i < nr; i++)
    free (v[i].name);
  free (v);
}

static unsigned
find_locked (const struct dedup_disks *d, const char *name)
{
  const struct qcow2_snapshot *v, *s;
  const size_t nr = qcow2_snapshots (d->b->img, &v);

  for (unsigned root = 1; root <= nr; root++) {
    s = dedup_root_locked (d, root);
    if (s && strcmp (s->name, name) == 0)
      return root;
  }
  return 0;
}

int
dedup_disks_find (struct dedup_disks *d, const char *name, unsigned *root,
                  struct fault *f)
{
  LOCK_FOR_SCOPE (d->b->lock);

  *root = find_locked (d, name);
  return *root ? 0 : fault_set (f, FAULT_USAGE, ENOENT, UINT64_MAX,
                                "there is no disk or snapshot \"%s\"", name);
}

/* --- Checks ---------------------------------------------------------------- */

static int
check_image (const struct dedup_disks *d, struct fault *f)
{
  if (!d->b->writable)
    return fault_set (f, FAULT_USAGE, EROFS, UINT64_MAX, "it is open read-only, "
                      "so its disks cannot be changed");
  if (d->b->has_backing)
    return fault_unsupported (f, "an image with a backing file cannot have several "
                              "disks: close the image, and run qemu-img rebase -f "
                              "qcow2 -b '' %s, which copies what it reads from that "
                              "file into the image", d->b->path);
  if (!d->s->has_store)
    return fault_unsupported (f, "only an image with a dedup store can have "
                              "several disks");
  return 0;
}

/* Checks that tables can be lent: what a copy or a payment of one changes is one
 * group of the journal, and for tables of larger clusters that is too much. */
static int
check_lending (const struct dedup_disks *d, struct fault *f)
{
  return d->b->cluster_size <= MAX_LENDING_CLUSTER ? 0
    : fault_unsupported (f, "clones and snapshots need clusters of 64 KiB at the "
                         "most: this image has %" PRIu64 " bytes",
                         d->b->cluster_size);
}

static int
check_size (const struct dedup_disks *d, uint64_t size, struct fault *f)
{
  const uint64_t max = qcow2_max_disk_size (d->b->img);

  if (size == 0 || size % SECTOR != 0)
    return fault_usage (f, "the size of a disk must be a multiple of 512 bytes, "
                        "and not 0");
  if (size > max)
    return fault_usage (f, "a disk of this image can have %" PRIu64 " bytes at "
                        "the most (create --max-disk-size, or qemu-img resize "
                        "of the active disk)", max);
  return 0;
}

static int
check_free_locked (const struct dedup_disks *d, const char *name,
                   struct fault *f)
{
  return find_locked (d, name) == 0 ? 0
    : fault_set (f, FAULT_USAGE, EEXIST, UINT64_MAX,
                 "there is a disk or snapshot \"%s\" already", name);
}

static int
check_new_name (const struct dedup_disks *d, const char *name,
                bool is_snapshot, struct fault *f)
{
  int r = dedup_disk_check_name (name, is_snapshot, f);
  LOCK_FOR_SCOPE (d->b->lock);

  return r < 0 ? r : check_free_locked (d, name, f);
}

/* Copies what is known of ROOT to *S (without its strings).  A root that users
 * may change, if WRITABLE: one that this program made, and no snapshot. */
static int
look_at (const struct dedup_disks *d, unsigned root, bool writable,
         struct qcow2_snapshot *s, struct fault *f)
{
  const struct qcow2_snapshot *found;
  LOCK_FOR_SCOPE (d->b->lock);

  memset (s, 0, sizeof *s);
  s->disk_size = qcow2_geometry (d->b->img)->virtual_size;
  if (root == QCOW2_ROOT_ACTIVE)
    return !writable ? 0 : fault_usage (f, "the active disk cannot be changed "
                                        "in this way");
  found = dedup_root_locked (d, root);
  if (found == NULL)
    return fault_set (f, FAULT_USAGE, ENOENT, UINT64_MAX, "there is no such "
                      "disk");
  if (writable && !is_writable (found))
    return fault_usage (f, "\"%s\" is a snapshot, which cannot be changed",
                        found->name);
  *s = *found;
  s->id = s->name = NULL;
  return 0;
}

/* --- Edits ----------------------------------------------------------------- */

static int
new_uuid (uint8_t uuid[16])
{
  if (gnutls_rnd (GNUTLS_RND_NONCE, uuid, 16) < 0)
    return -EIO;
  uuid[6] = (uint8_t) ((uuid[6] & 0x0f) | 0x40);    /* RFC 4122: random */
  uuid[8] = (uint8_t) ((uuid[8] & 0x3f) | 0x80);
  return 0;
}

static struct qcow2_root_edit
edit_of (unsigned root, const struct qcow2_snapshot *s)
{
  struct qcow2_root_edit e = {
    .root = root, .size = s->disk_size, .flags = s->disk_flags,
    .created = s->created, .compress = s->compress, .l1 = QCOW2_L1_KEEP,
  };

  memcpy (e.uuid, s->uuid, sizeof e.uuid);
  memcpy (e.origin, s->origin, sizeof e.origin);
  return e;
}

/* Checks the image and ROOT, as look_at does, and begins an edit of what is known of it. */
static int
begin_edit (const struct dedup_disks *d, unsigned root, bool writable,
            struct qcow2_snapshot *s, struct qcow2_root_edit *e, struct fault *f)
{
  int r;

  if ((r = check_image (d, f)) < 0 ||
      (r = look_at (d, root, writable, s, f)) < 0)
    return r;
  *e = edit_of (root, s);
  return 0;
}

static void
note_nothing_locked (struct dedup_disks *d, unsigned added,
                     const struct qcow2_root_edit *edits)
{
  (void) d;
  (void) added;
  (void) edits;
}

static void
note_clone_locked (struct dedup_disks *d, unsigned added,
                   const struct qcow2_root_edit *edits)
{
  (void) edits;
  dedup_note_work_locked (d, added, ROOT_OWES);
}

/* Notes the work of a reset.  EDITS has the doomed root that takes the old tables,
 * then the root that is reset. */
static void
note_reset_locked (struct dedup_disks *d, unsigned added,
                   const struct qcow2_root_edit *edits)
{
  dedup_note_work_locked (d, added, ROOT_DOOMED);
  dedup_note_work_locked (d, edits[1].root, ROOT_OWES);
}

static void
note_delete_locked (struct dedup_disks *d, unsigned added,
                    const struct qcow2_root_edit *edits)
{
  (void) added;
  dedup_note_work_locked (d, edits[0].root, ROOT_DOOMED);
}

/* Makes the edits as one change, and makes it durable. */
static int
change_set (struct dedup_disks *d, const struct qcow2_root_edit *edits,
            size_t nr, unsigned *added,
            void (*note_locked) (struct dedup_disks *d, unsigned added,
                                 const struct qcow2_root_edit *edits),
            struct fault *f)
{
  int r = dedup_switch (d, edits, nr, added, note_locked, f);

  if (r == 0 && dedup_upkeep_flush (d->u) < 0)
    r = fault_io (f, EIO, UINT64_MAX, "the change is made, but could not be made "
                  "durable");
  return r;
}

static void
end_change (struct dedup_disks **d)
{
  pthread_mutex_unlock (&(*d)->changing);
}

static inline struct dedup_disks *
begin_change (struct dedup_disks *d)
{
  pthread_mutex_lock (&d->changing);
  return d;
}

/* Lets one change of the set of roots be made at a time: until the end of the
 * enclosing block. */
#define CHANGE_FOR_SCOPE(d)                                             \
  __attribute__ ((__cleanup__ (end_change), __unused__))                \
  struct dedup_disks *changing_ = begin_change (d)

/* --- Operations ------------------------------------------------------------ */

int
dedup_disks_create (struct dedup_disks *d, const char *name, uint64_t size,
                    unsigned *root, struct fault *f)
{
  struct qcow2_root_edit e = {
    .name = name, .size = size, .flags = QCOW2_DISK_WRITABLE,
    .created = (uint64_t) time (NULL), .l1 = QCOW2_L1_EMPTY,
  };
  int r;
  CHANGE_FOR_SCOPE (d);

  if ((r = check_image (d, f)) < 0 ||
      (r = check_new_name (d, name, false, f)) < 0 ||
      (r = check_size (d, size, f)) < 0)
    return r;
  r = new_uuid (e.uuid);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "no random numbers")
    : change_set (d, &e, 1, root, note_nothing_locked, f);
}

int
dedup_disks_clone (struct dedup_disks *d, unsigned source, const char *name,
                   bool writable, unsigned *root, struct fault *f)
{
  struct qcow2_root_edit e = {
    .name = name, .flags = writable ? QCOW2_DISK_WRITABLE : 0,
    .created = (uint64_t) time (NULL), .l1 = QCOW2_L1_LEND, .source = source,
  };
  struct qcow2_snapshot s;
  int r;
  CHANGE_FOR_SCOPE (d);

  if ((r = check_image (d, f)) < 0 ||
      (r = check_lending (d, f)) < 0 ||
      (r = look_at (d, source, false, &s, f)) < 0 ||
      (r = check_new_name (d, name, !writable, f)) < 0)
    return r;
  e.size = s.disk_size;
  e.compress = s.compress;
  memcpy (e.origin, s.uuid, sizeof e.origin);
  r = new_uuid (e.uuid);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "no random numbers")
    : change_set (d, &e, 1, root, note_clone_locked, f);
}

int
dedup_disks_reset (struct dedup_disks *d, unsigned root, unsigned source,
                   struct fault *f)
{
  struct qcow2_root_edit e[2];
  struct qcow2_snapshot s, from;
  int r;
  CHANGE_FOR_SCOPE (d);

  if ((r = check_image (d, f)) < 0 ||
      (r = check_lending (d, f)) < 0 ||
      (r = look_at (d, root, true, &s, f)) < 0 ||
      (r = look_at (d, source, false, &from, f)) < 0)
    return r;
  if (root == source)
    return fault_usage (f, "a disk cannot be reset to itself");
  e[0] = edit_of (0, &s);
  e[0].name = "";
  e[0].flags = QCOW2_DISK_DOOMED;
  e[0].l1 = QCOW2_L1_TAKE;
  e[0].source = root;
  e[1] = edit_of (root, &s);
  e[1].size = from.disk_size;
  e[1].l1 = QCOW2_L1_LEND;
  e[1].source = source;
  memcpy (e[1].origin, from.uuid, sizeof e[1].origin);
  return change_set (d, e, 2, NULL, note_reset_locked, f);
}

int
dedup_disks_rename (struct dedup_disks *d, unsigned root, const char *name,
                    struct fault *f)
{
  struct qcow2_root_edit e;
  struct qcow2_snapshot s;
  int r;
  CHANGE_FOR_SCOPE (d);

  r = begin_edit (d, root, false, &s, &e, f);
  if (r < 0)
    return r;
  if (root == QCOW2_ROOT_ACTIVE || !s.is_disk)
    return fault_usage (f, "only disks and snapshots of this program can be "
                        "renamed");
  r = check_new_name (d, name, !is_writable (&s), f);
  if (r < 0)
    return r;
  e.name = name;
  return change_set (d, &e, 1, NULL, note_nothing_locked, f);
}

int
dedup_disks_resize (struct dedup_disks *d, unsigned root, uint64_t size,
                    struct fault *f)
{
  const struct qcow2_geometry *g = qcow2_geometry (d->b->img);
  struct qcow2_root_edit e;
  struct qcow2_snapshot s;
  int r;
  CHANGE_FOR_SCOPE (d);

  if ((r = begin_edit (d, root, true, &s, &e, f)) < 0 ||
      (r = check_size (d, size, f)) < 0)
    return r;
  e.size = size;
  if (div_round_up (size, g->l2_entries * g->cluster_size) > s.l1_entries)
    e.l1 = QCOW2_L1_GROW;
  return change_set (d, &e, 1, NULL, note_nothing_locked, f);
}

int
dedup_disks_set_compress (struct dedup_disks *d, unsigned root, uint8_t compress,
                          struct fault *f)
{
  struct qcow2_root_edit e;
  struct qcow2_snapshot s;
  int r;
  CHANGE_FOR_SCOPE (d);

  r = begin_edit (d, root, true, &s, &e, f);
  if (r < 0)
    return r;
  e.compress = compress;
  return change_set (d, &e, 1, NULL, note_nothing_locked, f);
}

int
dedup_disks_delete (struct dedup_disks *d, unsigned root, struct fault *f)
{
  struct qcow2_root_edit e;
  struct qcow2_snapshot s;
  int r;
  CHANGE_FOR_SCOPE (d);

  r = begin_edit (d, root, false, &s, &e, f);
  if (r < 0)
    return r;
  if (root == QCOW2_ROOT_ACTIVE || !s.is_disk)
    return fault_usage (f, "only disks and snapshots of this program can be "
                        "deleted here: see qemu-img snapshot -d");
  e.name = "";                  /* its own may be used again at once */
  e.flags = QCOW2_DISK_DOOMED;
  return change_set (d, &e, 1, NULL, note_delete_locked, f);
}
