/* SPDX-License-Identifier: BSD-3-Clause */
/* Watches an image with a thread of its own, which may block.
 *
 * Once a second the thread asks the host how much space there is, copies the figures
 * of the index unless a job holds them back, and tells the listener when writes have
 * ended for good.  When something was changed, it also counts what the disks map and
 * store, for which all L2 tables are read, past the cache and beside requests
 * (qcow2-usage.h).  It does that for one part in fifty of the time at most, and no
 * more often than every ten seconds, unless somebody asks.  Once a minute at most, what
 * was counted is kept in the image as a sample (dedup_sample_add).
 *
 * Readers get copies, made under the mutex.  No call to a room below is made under it.
 *
 * Threads: srv_watch_start and srv_watch_stop belong to the program's main thread, all
 * else is for any thread.
 */
#include "watch.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "checked.h"
#include "clock.h"
#include "image-internal.h"
#include "image-jobs.h"

#define SECOND_NS UINT64_C (1000000000)
#define LOOK_EVERY_NS SECOND_NS
#define COUNT_EVERY_NS (10 * SECOND_NS)
#define COUNT_SHARE 50          /* a count is one part of so many */
#define FAILED_COUNT_NS (60 * SECOND_NS)

#define SAMPLE_EVERY_NS (60 * SECOND_NS)
#define SAME_SAMPLE_SECONDS 86400

#define LOW_SHARE 20            /* of the host's file system */
#define LOW_MAX_BYTES (UINT64_C (10) << 30)

static bool
stopping (const struct srv_watch *w)
{
  return __atomic_load_n (&w->stopping, __ATOMIC_ACQUIRE);
}

/* --- Space ---------------------------------------------------------------- */

/* Returns the space that the file takes on the host. */
static uint64_t
allocated_bytes (const char *path)
{
  struct stat st;

  return stat (path, &st) == 0 && S_ISREG (st.st_mode) ?
    (uint64_t) st.st_blocks * 512 : UINT64_MAX;
}

/* Fills in what the host has for new data.  Free clusters of a file need space of the
 * host unless they still hold old data; those of a device never do. */
static void
measure_host (struct srv_image *m, const struct qcow2_figures *f,
              struct srv_space_stats *s)
{
  const uint64_t cluster = qcow2_geometry (dedup_image (m->pool))->cluster_size;
  const uint64_t device = io_max_size (m->io);

  s->host_bytes = s->host_free_bytes = s->available_bytes = UINT64_MAX;
  if (io_host_space (m->io, &s->host_free_bytes, &s->host_bytes))
    s->available_bytes = s->host_free_bytes + f->stale * cluster;
  else if (device != UINT64_MAX) {
    s->host_bytes = device;
    s->host_free_bytes = device - MIN_OF (device, f->frontier * cluster);
    s->available_bytes = s->host_free_bytes + f->free * cluster;
  } else
    s->host_bytes = s->host_free_bytes = UINT64_MAX;
}

/* Returns below what space is low on a host of so many bytes. */
static uint64_t
low_bytes (const struct srv_watch *w, uint64_t host_bytes)
{
  const uint64_t set = __atomic_load_n (&w->low_bytes, __ATOMIC_RELAXED);

  return set ? set : host_bytes == UINT64_MAX ? 0
    : MIN_OF (host_bytes / LOW_SHARE, LOW_MAX_BYTES);
}

static void
look_at_space (struct srv_watch *w, const struct qcow2_figures *f)
{
  struct srv_image *m = w->m;
  struct srv_space_stats s;
  const int64_t size = io_size (m->io);

  measure_host (m, f, &s);
  s.low_bytes = low_bytes (w, s.host_bytes);
  s.file_bytes = size < 0 ? UINT64_MAX : (uint64_t) size;
  s.allocated_bytes = allocated_bytes (m->path);
  pthread_mutex_lock (&w->mutex);
  w->space.host_bytes = s.host_bytes;
  w->space.host_free_bytes = s.host_free_bytes;
  w->space.available_bytes = s.available_bytes;
  w->space.low_bytes = s.low_bytes;
  w->space.file_bytes = s.file_bytes;
  w->space.allocated_bytes = s.allocated_bytes;
  pthread_mutex_unlock (&w->mutex);
  if (m->writable && s.available_bytes != UINT64_MAX)
    srv_space_measured (&m->space, s.available_bytes, s.low_bytes);
}

/* --- Index, and the end of writing ---------------------------------------- */

static void
look_at_index (struct srv_watch *w)
{
  struct dedup_stats s;

  if (!dedup_try_get_stats (w->m->pool, &s))
    return;
  pthread_mutex_lock (&w->mutex);
  w->index = s;
  w->index_at = (uint64_t) time (NULL);
  pthread_mutex_unlock (&w->mutex);
}

/* Tells the listener, once, that the image cannot be written any more. */
static void
look_for_failure (struct srv_watch *w, const struct dedup_now *now)
{
  char reason[200];
  const struct srv_event e = { .kind = SRV_EVENT_READ_ONLY, .reason = reason,
                               .error = now->failed_by };

  if (now->failed_by == 0 || w->read_only_told)
    return;
  snprintf (reason, sizeof reason, "%s (%s)", now->failed_what,
            strerror (now->failed_by));
  w->read_only_told = true;
  srv_emit (w->m, &e);
}

/* --- Counting ------------------------------------------------------------- */

static bool
stop_cb (void *opaque)
{
  return stopping (opaque);
}

static void
root_cb (void *opaque, unsigned root, uint64_t mapped_bytes)
{
  struct srv_watch *w = opaque;

  srv_exports_note_mapped (&w->m->exports, root, mapped_bytes);
}

static bool
active_is_served (struct srv_exports *x)
{
  LOCK_FOR_SCOPE (&x->lock);

  return srv_exports_active_is_served_locked (x);
}

static void
take_count (struct srv_watch *w, const struct qcow2_pool_usage *u,
            uint64_t took_ns)
{
  const bool active = active_is_served (&w->m->exports);
  const uint64_t cluster =
    qcow2_geometry (dedup_image (w->m->pool))->cluster_size;

  pthread_mutex_lock (&w->mutex);
  w->space.logical_bytes = u->disk_bytes;
  w->space.logical_bytes_with_snapshots = u->root_bytes;
  w->space.stored_bytes = u->stored_bytes;
  w->space.deduplicated_bytes = qcow2_usage_unpacked (u, cluster);
  w->space.dead_bytes = qcow2_usage_dead (u);
  w->space.shared_dead_bytes = u->packed_kept_dead_bytes;
  w->space.nr_disks = u->nr_disks - !active;
  w->space.nr_snapshots = u->nr_roots - u->nr_disks;
  w->space.counted_at = (uint64_t) time (NULL);
  w->space.count_ns = took_ns;
  pthread_mutex_unlock (&w->mutex);
}

/* Keeps what was counted last as a sample, unless the last one is young, or is the same
 * and not very old, or nobody has changed anything since open: a server that is only
 * read from writes nothing.  If a job has the store, this is tried at the next look;
 * if it fails, after the next count. */
static void
take_sample (struct srv_watch *w, const struct srv_watch_mark *mark)
{
  const struct dedup_sample s = {
    .time = w->space.counted_at, .logical_bytes = w->space.logical_bytes,
    .stored_bytes = w->space.stored_bytes,
    .free_bytes = w->space.available_bytes,
  };
  const bool same = s.logical_bytes == w->sampled.logical_bytes &&
    s.stored_bytes == w->sampled.stored_bytes;
  int r;

  w->sample_is_due = false;
  if ((mark->last_change_ns == 0 && mark->nr_changes == 0) ||
      clock_now_ns () < w->next_sample_ns || s.time <= w->sampled.time ||
      (same && s.time - w->sampled.time < SAME_SAMPLE_SECONDS))
    return;
  r = dedup_sample_add (w->m->pool, &s);
  w->sample_is_due = r == -EAGAIN;
  if (r < 0)
    return;
  w->sampled = s;
  w->next_sample_ns = clock_now_ns () + SAMPLE_EVERY_NS;
}

static struct srv_watch_mark
mark_of (struct srv_image *m, const struct dedup_now *now)
{
  const struct srv_exports *x = &m->exports;

  return (struct srv_watch_mark) {
    .last_change_ns = __atomic_load_n (&x->last_change_ns, __ATOMIC_RELAXED),
    .nr_changes = __atomic_load_n (&x->nr_changes, __ATOMIC_RELAXED),
    .work_left = now->work_left,
  };
}

static int
count (struct srv_watch *w, const struct dedup_now *now)
{
  const struct qcow2_usage_params p = {
    .stop = stop_cb, .root = root_cb, .opaque = w,
  };
  const struct srv_watch_mark mark = mark_of (w->m, now);
  const uint64_t start = clock_now_ns ();
  struct qcow2_pool_usage u;
  uint64_t took;
  int r = qcow2_pool_usage (dedup_image (w->m->pool), &p, &u);

  took = clock_now_ns () - start;
  if (r == 0) {
    take_count (w, &u, took);
    w->counted = mark;
    srv_image_compact_if_due (w->m, qcow2_usage_dead (&u), u.stored_bytes);
    take_sample (w, &mark);
  }
  w->next_count_ns = clock_now_ns () + (r < 0 ? FAILED_COUNT_NS :
                                         MAX_OF (COUNT_EVERY_NS,
                                                 COUNT_SHARE * took));
  return r == -EINTR ? -ESHUTDOWN : r;
}

/* Returns whether what was counted last may be wrong by now. */
static bool
is_stale (const struct srv_watch *w, const struct dedup_now *now)
{
  const struct srv_watch_mark mark = mark_of (w->m, now);
  const struct srv_watch_mark *old = &w->counted;

  return old->work_left || mark.last_change_ns != old->last_change_ns ||
    mark.nr_changes != old->nr_changes || w->space.counted_at == 0;
}

/* Counts if it is time to, or if somebody has asked. */
static void
look_at_usage (struct srv_watch *w, const struct dedup_now *now)
{
  uint64_t asked;
  bool wanted;
  int r;

  pthread_mutex_lock (&w->mutex);
  asked = w->nr_asked;
  wanted = asked > w->nr_answered;
  pthread_mutex_unlock (&w->mutex);
  if (!wanted && (clock_now_ns () < w->next_count_ns || !is_stale (w, now))) {
    if (w->sample_is_due)
      take_sample (w, &w->counted);
    return;
  }
  r = count (w, now);
  pthread_mutex_lock (&w->mutex);
  w->nr_answered = asked;
  w->answer = r;
  pthread_cond_broadcast (&w->changed);
  pthread_mutex_unlock (&w->mutex);
}

/* --- The thread ----------------------------------------------------------- */

static void
look (struct srv_watch *w)
{
  struct dedup_now now;

  dedup_get_now (w->m->pool, &now);
  look_for_failure (w, &now);
  look_at_space (w, &now.image);
  look_at_index (w);
  look_at_usage (w, &now);
}

/* Waits until the next look is due.  Returns false if the thread is to end. */
static bool
wait_for_next_look (struct srv_watch *w, uint64_t next_ns)
{
  const struct timespec until = {
    .tv_sec = (time_t) (next_ns / SECOND_NS),
    .tv_nsec = (long) (next_ns % SECOND_NS),
  };
  int r = 0;

  pthread_mutex_lock (&w->mutex);
  while (!w->stopping && !w->woken && w->nr_asked == w->nr_answered &&
         r != ETIMEDOUT)
    r = pthread_cond_timedwait (&w->changed, &w->mutex, &until);
  w->woken = false;
  pthread_mutex_unlock (&w->mutex);
  return !stopping (w);
}

static void *
thread_main (void *opaque)
{
  struct srv_watch *w = opaque;

  do
    look (w);
  while (wait_for_next_look (w, clock_now_ns () + LOOK_EVERY_NS));
  return NULL;
}

void
srv_watch_init (struct srv_watch *w, struct srv_image *m, uint64_t low)
{
  pthread_condattr_t attr;

  w->m = m;
  w->low_bytes = low;
  w->space = (struct srv_space_stats) {
    .file_bytes = UINT64_MAX, .allocated_bytes = UINT64_MAX,
    .host_bytes = UINT64_MAX, .host_free_bytes = UINT64_MAX,
    .available_bytes = UINT64_MAX,
  };
  pthread_mutex_init (&w->mutex, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&w->changed, &attr);
  pthread_condattr_destroy (&attr);
}

void
srv_watch_destroy (struct srv_watch *w)
{
  assert (!w->started);
  pthread_cond_destroy (&w->changed);
  pthread_mutex_destroy (&w->mutex);
}

/* All signals are blocked in the thread, because they belong to the host
 * program. */
int
srv_watch_start (struct srv_watch *w)
{
  sigset_t all, old;
  int r;

  /* The first count is not to slow down what clients wait for at the start. */
  w->next_count_ns = clock_now_ns () + SECOND_NS;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  r = pthread_create (&w->thread, NULL, thread_main, w);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  w->started = r == 0;
  return -r;
}

void
srv_watch_stop (struct srv_watch *w)
{
  if (!w->started)
    return;
  pthread_mutex_lock (&w->mutex);
  __atomic_store_n (&w->stopping, true, __ATOMIC_RELEASE);
  pthread_cond_broadcast (&w->changed);
  pthread_mutex_unlock (&w->mutex);
  pthread_join (w->thread, NULL);
  w->started = false;
}

void
srv_watch_wake (struct srv_watch *w)
{
  pthread_mutex_lock (&w->mutex);
  w->woken = true;
  pthread_cond_broadcast (&w->changed);
  pthread_mutex_unlock (&w->mutex);
}

/* --- For others ----------------------------------------------------------- */

int
srv_image_count_space (struct srv_image *m)
{
  struct srv_watch *w = &m->watch;
  uint64_t mine;
  int r;

  if (!w->started)
    return -ESHUTDOWN;
  pthread_mutex_lock (&w->mutex);
  mine = ++w->nr_asked;
  pthread_cond_broadcast (&w->changed);
  while (!w->stopping && w->nr_answered < mine)
    pthread_cond_wait (&w->changed, &w->mutex);
  r = w->nr_answered < mine ? -ESHUTDOWN : w->answer;
  pthread_mutex_unlock (&w->mutex);
  return r;
}

void
srv_watch_get (struct srv_watch *w, struct srv_stats *s)
{
  pthread_mutex_lock (&w->mutex);
  s->space = w->space;
  s->index = w->index;
  s->index_at = w->index_at;
  pthread_mutex_unlock (&w->mutex);
}

void
srv_image_set_space_low (struct srv_image *m, uint64_t bytes)
{
  __atomic_store_n (&m->watch.low_bytes, bytes, __ATOMIC_RELAXED);
  srv_watch_wake (&m->watch);
}

uint64_t
srv_image_space_low (const struct srv_image *m)
{
  return __atomic_load_n (&m->watch.low_bytes, __ATOMIC_RELAXED);
}
