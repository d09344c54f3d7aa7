/* SPDX-License-Identifier: BSD-3-Clause */
/* Passes the operations on disks (dedup-disks.h) on to the room that does them, disks/.
 *
 * What that room does not know is added here: a clone or a reset takes over the marks of
 * what is still to be compressed (fresh.h), and dedup_disks_settle runs the steps of the
 * background's work one after the other, and the jobs that give their space back between
 * them, for tools that have no loop.
 *
 * Any thread, without locks.
 */
#include "checked.h"
#include "fresh.h"
#include "pool.h"

#include <errno.h>

int
dedup_disk_list (struct dedup_pool *pool, struct dedup_disk_info **v,
                 size_t *nr)
{
  return dedup_disks_list (&pool->disks, v, nr);
}

int
dedup_disk_find (struct dedup_pool *pool, const char *name, unsigned *root,
                 struct fault *f)
{
  return dedup_disks_find (&pool->disks, name, root, f);
}

int
dedup_disk_create (struct dedup_pool *pool, const char *name, uint64_t size,
                   unsigned *root, struct fault *f)
{
  return dedup_disks_create (&pool->disks, name, size, root, f);
}

/* Notes that data of the source which was not tried to be compressed yet is that of ROOT,
 * too: the source may be deleted, or get other data. */
static void
note_cloned (struct dedup_pool *pool, unsigned source, unsigned root)
{
  uint64_t size;

  lock_acquire (pool->base.lock);
  size = qcow2_root_size_locked (pool->base.img, root);
  lock_release (pool->base.lock);
  dedup_fresh_copy (pool->fresh, source, root,
                    div_round_up (size, pool->base.cluster_size));
}

int
dedup_disk_clone (struct dedup_pool *pool, unsigned source, const char *name,
                  bool writable, unsigned *root, struct fault *f)
{
  int r = dedup_disks_clone (&pool->disks, source, name, writable, root, f);

  if (r == 0)
    note_cloned (pool, source, *root);
  return r;
}

int
dedup_disk_reset (struct dedup_pool *pool, unsigned root, unsigned source,
                  struct fault *f)
{
  int r = dedup_disks_reset (&pool->disks, root, source, f);

  if (r == 0)
    note_cloned (pool, source, root);
  return r;
}

int
dedup_disk_rename (struct dedup_pool *pool, unsigned root, const char *name,
                   struct fault *f)
{
  return dedup_disks_rename (&pool->disks, root, name, f);
}

int
dedup_disk_resize (struct dedup_pool *pool, unsigned root, uint64_t size,
                   struct fault *f)
{
  return dedup_disks_resize (&pool->disks, root, size, f);
}

int
dedup_disk_delete (struct dedup_pool *pool, unsigned root, struct fault *f)
{
  return dedup_disks_delete (&pool->disks, root, f);
}

bool
dedup_disks_pending (struct dedup_pool *pool)
{
  LOCK_FOR_SCOPE (pool->base.lock);

  return dedup_disks_left_locked (&pool->disks);
}

void
dedup_disks_progress (struct dedup_pool *pool, uint64_t *done, uint64_t *total)
{
  dedup_disks_get_progress (&pool->disks, done, total);
}

/* Runs those jobs that make space usable again, in their order, which are urgent.  The
 * removal of a root frees a copy of the list of roots, which can be used again only after a
 * checkpoint and a commit: what thousands of roots take would grow with the square of their
 * number.  -ENOSPC is not told, as the next step says so if it needs the space. */
static int
make_space (struct dedup_pool *pool)
{
  static const enum dedup_job jobs[] = {
    DEDUP_JOB_JOURNAL, DEDUP_JOB_CHECKPOINT, DEDUP_JOB_COMMIT,
  };
  unsigned urgent;
  int r = 0;

  for (size_t i = 0; i < sizeof jobs / sizeof jobs[0] && r >= 0; i++) {
    dedup_due (pool, &urgent);
    if (urgent & jobs[i])
      r = dedup_run (pool, jobs[i]);
    if (r == -ENOSPC)
      r = 0;
  }
  return MIN_OF (r, 0);
}

int
dedup_disks_settle (struct dedup_pool *pool)
{
  int r;

  if (!pool->base.writable || !pool->store.has_store)
    return 0;
  do
    r = dedup_disks_step (&pool->disks);
  while (r == 1 && (r = make_space (pool)) == 0);
  return r;
}
