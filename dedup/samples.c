/* SPDX-License-Identifier: BSD-3-Clause */
/* The samples of an open image: adds them, and hands them out.
 *
 * They are read when they are wanted first, so that opening an image costs nothing for
 * them.  The list is changed under the maintenance mutex.  Where a job holds that, a
 * sample can wait; so adding one never does.
 */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>

#include "samples.h"

/* Makes sure that the list is in memory.  Maintenance. */
static int MUST_CHECK
load (struct dedup_pool *pool)
{
  struct dedup_sample_list *l;
  int r;

  if (!pool->store.has_store)
    return -ENOTSUP;
  if (pool->samples)
    return 0;
  l = malloc (sizeof *l);
  if (l == NULL)
    return -ENOMEM;
  r = dedup_sample_list_read (&pool->store, l);
  if (r < 0)
    free (l);
  else
    pool->samples = l;
  return r;
}

static int MUST_CHECK
add (struct dedup_pool *pool, const struct dedup_sample *sample)
{
  int r = load (pool);

  if (r < 0)
    return r;
  if (!dedup_sample_list_add (pool->samples, sample))
    return -EINVAL;
  return dedup_sample_list_write (&pool->store, pool->samples);
}

int
dedup_sample_add (struct dedup_pool *pool, const struct dedup_sample *sample)
{
  int r;

  if (!pool->base.writable)
    return -EROFS;
  if (pthread_mutex_trylock (&pool->upkeep.maintenance) != 0)
    return -EAGAIN;
  r = add (pool, sample);
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  return r;
}

/* Copies the list, for a caller that frees it. */
static int MUST_CHECK
copy (struct dedup_pool *pool, struct dedup_sample_list **out)
{
  int r;

  *out = malloc (sizeof **out);
  if (*out == NULL)
    return -ENOMEM;
  pthread_mutex_lock (&pool->upkeep.maintenance);
  r = load (pool);
  if (r == 0)
    **out = *pool->samples;
  pthread_mutex_unlock (&pool->upkeep.maintenance);
  return r;
}

int
dedup_samples (struct dedup_pool *pool,
               int (*cb) (void *opaque, const struct dedup_sample *s),
               void *opaque)
{
  CLEANUP_FREE struct dedup_sample_list *l = NULL;
  uint32_t i;
  int r = copy (pool, &l);

  if (r == -ENOTSUP)
    return 0;
  for (i = 0; r == 0 && i < l->nr; i++)
    r = cb (opaque, &l->v[i]);
  return r;
}
