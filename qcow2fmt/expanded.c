/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps a few compressed clusters expanded, so that a guest which reads one in small
 * pieces, or writes its data again and again, does not have it expanded each time.
 *
 * They are found by their L2 entry.  What an entry leads to does not change while its
 * host clusters are in use, so whoever enters data here keeps them in use meanwhile: by
 * the lock on the guest's range, or by a hold; or he is a reader (readers.c), for whom they
 * stay in quarantine.  So what leaves quarantine is forgotten, too, where there may have
 * been such readers (dedup/upkeep/quarantine.c).  When a refcount becomes 0 (change.c), or
 * a cluster is written in place (dedup/write/heal.c), the data of that cluster is
 * forgotten; so the next one with the same entry finds nothing here.
 *
 * It takes 4 MiB at most, in at most 128 clusters, and none before the first compressed
 * cluster is kept.  The data that was used longest ago makes room.
 *
 * It has a lock of its own, which may be taken with the image's lock held, and under
 * which nothing is read or copied: a slot that is being copied has a user.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "image.h"

#define EXPANDED_BYTES (UINT64_C (4) << 20)

void
qcow2_expanded_init (struct qcow2_image *img)
{
  lock_init (&img->expanded.lock);
}

void
qcow2_expanded_free (struct qcow2_image *img)
{
  for (unsigned i = 0; i < QCOW2_MAX_EXPANDED; ++i)
    free (img->expanded.v[i].data);
  lock_destroy (&img->expanded.lock);
}

/* Returns how many clusters may be kept. */
static unsigned
nr_slots (const struct qcow2_image *img)
{
  const uint64_t nr = EXPANDED_BYTES >> img->header.geo.cluster_bits;

  return (unsigned) MIN_OF (nr, QCOW2_MAX_EXPANDED);
}

uint64_t
qcow2_expanded_bytes (struct qcow2_image *img)
{
  return (uint64_t) __atomic_load_n (&img->expanded.nr_data, __ATOMIC_RELAXED) <<
    img->header.geo.cluster_bits;
}

/* Returns the slot that has the data of ENTRY, or NULL. */
static struct qcow2_expanded_slot *
find_locked (struct qcow2_expanded *x, uint64_t entry, unsigned nr)
{
  assert (lock_held (&x->lock));
  for (unsigned i = 0; i < nr; ++i)
    if (x->v[i].entry == entry)
      return &x->v[i];
  return NULL;
}

static void
end_use (struct qcow2_expanded *x, struct qcow2_expanded_slot *s)
{
  LOCK_FOR_SCOPE (&x->lock);

  s->users--;
}

/* Copies LEN bytes from WITHIN on, if the data of ENTRY is kept. */
static bool
copy_kept (struct qcow2_image *img, uint64_t entry, uint8_t *buf, size_t within,
           size_t len)
{
  struct qcow2_expanded *x = &img->expanded;
  struct qcow2_expanded_slot *s;

  lock_acquire (&x->lock);
  s = find_locked (x, entry, nr_slots (img));
  if (s) {
    s->users++;
    s->used = ++x->clock;
  }
  lock_release (&x->lock);
  if (!s)
    return false;
  memcpy (buf, s->data + within, len);
  end_use (x, s);
  return true;
}

/* Takes the slot that was used longest ago and has no user, and empties it.  NULL: there
 * is none, or somebody has entered ENTRY. */
static struct qcow2_expanded_slot *
take_slot (struct qcow2_image *img, uint64_t entry)
{
  struct qcow2_expanded *x = &img->expanded;
  struct qcow2_expanded_slot *s = NULL;
  LOCK_FOR_SCOPE (&x->lock);

  if (find_locked (x, entry, nr_slots (img)))
    return NULL;
  for (unsigned i = 0; i < nr_slots (img); ++i)
    if (x->v[i].users == 0 && (!s || x->v[i].used < s->used))
      s = &x->v[i];
  if (s) {
    s->users = 1;
    s->entry = 0;
  }
  return s;
}

/* Keeps DATA, one cluster.  It is advice, and is omitted where memory is short. */
static void
keep (struct qcow2_image *img, uint64_t entry, const uint8_t *data)
{
  const uint64_t size = img->header.geo.cluster_size;
  struct qcow2_expanded *x = &img->expanded;
  struct qcow2_expanded_slot *s = take_slot (img, entry);

  if (!s)
    return;
  if (!s->data && (s->data = aligned_new (size)) != NULL)
    __atomic_add_fetch (&x->nr_data, 1, __ATOMIC_RELAXED);
  if (s->data)
    memcpy (s->data, data, size);
  LOCK_FOR_SCOPE (&x->lock);
  s->users = 0;
  s->used = ++x->clock;
  if (s->data && !find_locked (x, entry, nr_slots (img)))
    s->entry = entry;
}

int
qcow2_expanded_read (struct qcow2_image *img, uint64_t entry, uint8_t *buf,
                     size_t within, size_t len)
{
  CLEANUP_FREE uint8_t *cluster = NULL;
  int r;

  if (copy_kept (img, entry, buf, within, len))
    return 0;
  cluster = aligned_new (img->header.geo.cluster_size);   /* at most 2 MiB */
  if (cluster == NULL)
    return -ENOMEM;
  r = qcow2_compressed_read (img, entry, cluster);
  if (r < 0)
    return r;
  keep (img, entry, cluster);
  memcpy (buf, cluster + within, len);
  return 0;
}

void
qcow2_expanded_forget (struct qcow2_image *img, uint64_t host_idx,
                       uint64_t count)
{
  struct qcow2_expanded *x = &img->expanded;
  uint64_t first, n;

  if (__atomic_load_n (&x->nr_data, __ATOMIC_ACQUIRE) == 0)
    return;
  LOCK_FOR_SCOPE (&x->lock);
  for (unsigned i = 0; i < nr_slots (img); ++i) {
    if (x->v[i].entry == 0)
      continue;
    qcow2_entry_clusters (img, x->v[i].entry, &first, &n);
    if (first < host_idx + count && host_idx < first + n)
      x->v[i].entry = 0;
  }
}
