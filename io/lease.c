/* SPDX-License-Identifier: BSD-3-Clause */
/* Wraps the store of a place, so that its calls pass only while the lease
 * lasts.
 *
 * Promises: a write, sync or other change is passed on only if lease_check
 * returned 0 right before; a read and a sync return 0 only if it did right
 * after.  So bytes that were read are not those of a later server, and what a
 * sync calls durable was written before a later server could read the image.
 *
 * Where the lease area is the end of the place, the wrapper ends before it,
 * and nothing reaches it: changes are -ENOSPC, and reads give zeroes.
 *
 * Threads: any, and one of its own that renews the lease (io_lease_start).
 * Before there is that one, each call renews it where that is due, so that a
 * long recovery does not outlast the term.  Advice, sizes and the search for
 * holes and data pass unchecked. */
#include "lease.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "lease-protocol.h"

/* The least term: claiming takes half a second, of a record that must be
 * renewed within five sixths of the term. */
#define TERM_MIN_S 2

struct io_leased {
  struct io_store store;

  /* Constant after io_lease_take: */
  struct io_store *below;
  struct io_store **self;         /* points to this store; or NULL */
  struct io_store *own_area;      /* NULL: the area is the end of below */
  uint64_t limit;                 /* bytes that are the image's; UINT64_MAX */

  struct lease lease;             /* has a lock of its own */
  bool started;                   /* atomic */
  bool forking;                   /* between before_fork and after_fork */

  /* The thread; protected by lock: */
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t stop_cond;       /* by CLOCK_MONOTONIC */
  bool stop;
};

static const struct io_ops leased_ops;

/* --- Before and after each call ------------------------------------------- */

static void
keep_alive (struct io_leased *ls)
{
  if (!__atomic_load_n (&ls->started, __ATOMIC_ACQUIRE))
    lease_renew_if_due (&ls->lease);
}

static int
before_change (struct io_leased *ls)
{
  keep_alive (ls);
  return lease_check (&ls->lease);
}

static int
after_read (struct io_leased *ls, int r)
{
  if (r < 0)
    return r;
  keep_alive (ls);
  return lease_check (&ls->lease);
}

/* Returns 0, or -ENOSPC if the range goes past the end of the image's bytes. */
static int
check_end (const struct io_leased *ls, uint64_t host_off, uint64_t len)
{
  return host_off <= ls->limit && len <= ls->limit - host_off ? 0 : -ENOSPC;
}

static uint64_t
iov_len (const struct iovec *iov, int iovcnt)
{
  uint64_t len = 0;
  int i;

  for (i = 0; i < iovcnt; i++)
    len += iov[i].iov_len;
  return len;
}

/* Zeroes what was read into BUF from behind the end of the image's bytes. */
static void
zero_behind (const struct io_leased *ls, void *buf, size_t len,
             uint64_t host_off)
{
  const uint64_t left = host_off < ls->limit ? ls->limit - host_off : 0;

  if (len > left)
    memset ((char *) buf + left, 0, len - left);
}

/* --- Calls ---------------------------------------------------------------- */

static int
leased_preadv (struct io_store *s, const struct iovec *iov, int iovcnt,
               uint64_t host_off)
{
  struct io_leased *ls = (struct io_leased *) s;
  int i, r = after_read (ls, io_preadv (ls->below, iov, iovcnt, host_off));

  for (i = 0; r == 0 && i < iovcnt; i++) {
    zero_behind (ls, iov[i].iov_base, iov[i].iov_len, host_off);
    host_off += iov[i].iov_len;
  }
  return r;
}

static int
leased_pread_medium (struct io_store *s, void *buf, size_t len,
                     uint64_t host_off)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = after_read (ls, io_pread_medium (ls->below, buf, len, host_off));

  if (r == 0)
    zero_behind (ls, buf, len, host_off);
  return r;
}

static void
leased_read_many (struct io_store *s, struct io_part *v, size_t nr)
{
  struct io_leased *ls = (struct io_leased *) s;
  size_t i;
  int r;

  (void) !io_read_many (ls->below, v, nr);      /* each part has its result */
  r = after_read (ls, 0);
  for (i = 0; i < nr; i++) {
    if (r < 0)
      v[i].result = r;
    else if (v[i].result == 0)
      zero_behind (ls, v[i].buf, v[i].len, v[i].host_off);
  }
}

static int
leased_pwritev (struct io_store *s, const struct iovec *iov, int iovcnt,
                uint64_t host_off)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = check_end (ls, host_off, iov_len (iov, iovcnt));

  if (r == 0)
    r = before_change (ls);
  return r < 0 ? r : io_pwritev (ls->below, iov, iovcnt, host_off);
}

static int
leased_sync (struct io_store *s)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = before_change (ls);

  return r < 0 ? r : after_read (ls, io_sync (ls->below));
}

static int
leased_pwritev_sync (struct io_store *s, const struct iovec *iov, int iovcnt,
                     uint64_t host_off)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = check_end (ls, host_off, iov_len (iov, iovcnt));

  if (r == 0)
    r = before_change (ls);
  return r < 0 ? r
    : after_read (ls, io_pwritev_sync (ls->below, iov, iovcnt, host_off));
}

static int
leased_discard (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_leased *ls = (struct io_leased *) s;
  const uint64_t end = MIN_OF (host_off + len, ls->limit);
  int r;

  if (host_off >= end)
    return 0;
  r = before_change (ls);
  return r < 0 ? r : io_discard (ls->below, host_off, end - host_off);
}

static int
leased_allocate (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = check_end (ls, host_off, len);

  if (r == 0)
    r = before_change (ls);
  return r < 0 ? r : io_allocate (ls->below, host_off, len);
}

static int
leased_truncate (struct io_store *s, uint64_t size)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = check_end (ls, size, 0);

  if (r == 0)
    r = before_change (ls);
  return r < 0 ? r : io_truncate (ls->below, size);
}

static void
leased_write_out (struct io_store *s, uint64_t host_off, uint64_t len)
{
  io_write_out (((struct io_leased *) s)->below, host_off, len);
}

static bool
leased_will_need (struct io_store *s, const struct io_part *v, size_t nr,
                  bool around)
{
  return io_will_need (((struct io_leased *) s)->below, v, nr, around);
}

static int64_t
leased_size (struct io_store *s)
{
  struct io_leased *ls = (struct io_leased *) s;
  const int64_t size = io_size (ls->below);

  return size > 0 && (uint64_t) size > ls->limit ? (int64_t) ls->limit : size;
}

static uint64_t
leased_max_size (struct io_store *s)
{
  struct io_leased *ls = (struct io_leased *) s;
  const uint64_t max = io_max_size (ls->below);

  return MIN_OF (max, ls->limit);
}

static unsigned
leased_block_size (struct io_store *s)
{
  return io_block_size (((struct io_leased *) s)->below);
}

static bool
leased_host_space (struct io_store *s, uint64_t *bytes_left, uint64_t *bytes)
{
  return io_host_space (((struct io_leased *) s)->below, bytes_left, bytes);
}

static uint64_t
leased_next_hole (struct io_store *s, uint64_t host_off)
{
  struct io_leased *ls = (struct io_leased *) s;
  const uint64_t hole = host_off < ls->limit
    ? io_next_hole (ls->below, host_off) : host_off;

  return hole == UINT64_MAX || host_off >= ls->limit ? hole
    : MIN_OF (hole, ls->limit);
}

static int
leased_next_data (struct io_store *s, uint64_t host_off, uint64_t *data)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = io_next_data (ls->below, host_off, data);

  if (r == 0 && *data >= ls->limit)
    *data = UINT64_MAX;
  return r;
}

static bool
leased_lacks_space (struct io_store *s)
{
  const struct io_store *below = ((struct io_leased *) s)->below;

  return below->ops->lacks_space &&
    below->ops->lacks_space (((struct io_leased *) s)->below);
}

static bool
leased_tainted (struct io_store *s, uint64_t host_off, uint64_t len)
{
  return io_tainted (((struct io_leased *) s)->below, host_off, len);
}

static int
leased_forget_taint (struct io_store *s, uint64_t host_off, uint64_t len)
{
  return io_forget_taint (((struct io_leased *) s)->below, host_off, len);
}

/* --- The thread ----------------------------------------------------------- */

static struct timespec
renewal_time (const struct io_leased *ls)
{
  const uint64_t ns = ls->lease.term_ns / LEASE_RENEW_PART;
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  t.tv_sec += (time_t) (ns / 1000000000);
  t.tv_nsec += (long) (ns % 1000000000);
  if (t.tv_nsec >= 1000000000) {
    t.tv_sec++;
    t.tv_nsec -= 1000000000;
  }
  return t;
}

/* Waits for the time of the next renewal, or (false) for the end. */
static bool
wait_for_renewal (struct io_leased *ls)
{
  const struct timespec t = renewal_time (ls);
  int r = 0;
  bool stop;

  pthread_mutex_lock (&ls->lock);
  while (!ls->stop && r == 0)
    r = pthread_cond_timedwait (&ls->stop_cond, &ls->lock, &t);
  stop = ls->stop;
  pthread_mutex_unlock (&ls->lock);
  return !stop;
}

/* The thread: renews the lease until it is lost, or the store is closed. */
static void *
renew_thread (void *opaque)
{
  struct io_leased *ls = opaque;

  do
    if (lease_renew (&ls->lease) == -ESTALE)
      break;
  while (wait_for_renewal (ls));
  return NULL;
}

static void
stop_thread (struct io_leased *ls)
{
  if (!ls->started)
    return;
  pthread_mutex_lock (&ls->lock);
  ls->stop = true;
  pthread_cond_signal (&ls->stop_cond);
  pthread_mutex_unlock (&ls->lock);
  pthread_join (ls->thread, NULL);
  ls->started = false;
}

/* --- Open and close ------------------------------------------------------- */

/* Closes the stores first: until then io_lease_may_resume may be called. */
static void
leased_free (struct io_leased *ls)
{
  io_close (ls->own_area);
  io_close (ls->below);
  free (ls->self);
  pthread_cond_destroy (&ls->stop_cond);
  pthread_mutex_destroy (&ls->lock);
  lease_destroy (&ls->lease);
  free (ls);
}

/* Between before_fork and after_fork the process that goes on has the lease. */
static void
leased_close (struct io_store *s)
{
  struct io_leased *ls = (struct io_leased *) s;

  stop_thread (ls);
  if (!ls->forking)
    lease_release (&ls->lease);
  leased_free (ls);
}

static void
leased_before_fork (struct io_store *s)
{
  struct io_leased *ls = (struct io_leased *) s;

  stop_thread (ls);
  io_before_fork (ls->below);
  ls->forking = true;
}

static int
leased_after_fork (struct io_store *s)
{
  struct io_leased *ls = (struct io_leased *) s;
  int r = io_after_fork (ls->below);

  if (r < 0)
    return r;
  ls->forking = false;
  return io_lease_start (s);
}

static const struct io_ops leased_ops = {
  .preadv = leased_preadv,
  .pwritev = leased_pwritev,
  .sync = leased_sync,
  .pwritev_sync = leased_pwritev_sync,
  .discard = leased_discard,
  .allocate = leased_allocate,
  .truncate = leased_truncate,
  .write_out = leased_write_out,
  .pread_medium = leased_pread_medium,
  .read_many = leased_read_many,
  .will_need = leased_will_need,
  .size = leased_size,
  .max_size = leased_max_size,
  .block_size = leased_block_size,
  .host_space = leased_host_space,
  .next_hole = leased_next_hole,
  .next_data = leased_next_data,
  .lacks_space = leased_lacks_space,
  .tainted = leased_tainted,
  .forget_taint = leased_forget_taint,
  .before_fork = leased_before_fork,
  .after_fork = leased_after_fork,
  .close = leased_close,
};

/* Finds the area: *OFF in the store that is returned, AREA or S. */
static int
find_area (struct io_store *s, struct io_store *area, uint64_t *off,
           struct fault *f)
{
  int64_t size;

  *off = 0;
  if (area)
    return 0;
  size = io_size (s);
  if (size < 0)
    return fault_io (f, (int) -size, UINT64_MAX, "its size: %s",
                     strerror ((int) -size));
  if ((uint64_t) size < 2 * IO_LEASE_BYTES)
    return fault_usage (f, "is too small for an image and a lease");
  *off = round_down_pow2 ((uint64_t) size, LEASE_SLOT) - IO_LEASE_BYTES;
  return 0;
}

static int
check_term (const struct io_lease_params *p, struct fault *f)
{
  if (p->term_s != 0 &&
      (p->term_s < TERM_MIN_S || p->term_s > IO_LEASE_TERM_MAX_S))
    return fault_usage (f, "the term of a lease must be from %d to %d seconds",
                        TERM_MIN_S, IO_LEASE_TERM_MAX_S);
  return 0;
}

static struct io_leased *
new_leased (struct io_store *s, const struct io_lease_params *p,
            uint64_t area_off)
{
  struct io_leased *ls = calloc (1, sizeof *ls);
  pthread_condattr_t attr;

  if (ls == NULL)
    return NULL;
  ls->store.ops = &leased_ops;
  ls->below = s;
  ls->self = p->self;
  ls->own_area = p->area;
  ls->limit = p->area ? UINT64_MAX : area_off;
  lease_init (&ls->lease, p->area ? p->area : s, area_off, p);
  pthread_mutex_init (&ls->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&ls->stop_cond, &attr);
  pthread_condattr_destroy (&attr);
  return ls;
}

static void
tell_failure (const struct io_lease_params *p)
{
  if (p->failed)
    p->failed (p->opaque);
}

int
io_lease_take (struct io_store *s, const struct io_lease_params *p,
               struct io_store **out, struct fault *f)
{
  struct io_leased *ls = NULL;
  uint64_t area_off;
  int r = find_area (s, p->area, &area_off, f);

  if (r == 0)
    r = check_term (p, f);
  if (r == 0 && (ls = new_leased (s, p, area_off)) == NULL)
    r = fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  if (r < 0) {
    tell_failure (p);
    io_close (p->area);
    io_close (s);
    free (p->self);
    return r;
  }
  r = lease_take (&ls->lease, p->force, f);
  if (r < 0) {
    tell_failure (p);
    leased_free (ls);
    return fault_io (f, -r, UINT64_MAX, "its lease: %s", strerror (-r));
  }
  if (p->self)
    __atomic_store_n (p->self, &ls->store, __ATOMIC_RELEASE);
  *out = &ls->store;
  return 0;
}

bool
io_lease_log (struct io_store *s, const struct log_sink *log, const char *path)
{
  struct io_leased *ls = (struct io_leased *) s;

  if (s->ops != &leased_ops)
    return false;
  ls->lease.log = log;
  ls->lease.path = path;
  return true;
}

int
io_lease_start (struct io_store *leased)
{
  struct io_leased *ls = (struct io_leased *) leased;
  int r;

  if (leased->ops != &leased_ops || ls->started)
    return 0;
  lease_name_process (&ls->lease);
  ls->stop = false;
  __atomic_store_n (&ls->started, true, __ATOMIC_RELEASE);
  r = pthread_create (&ls->thread, NULL, renew_thread, ls);
  if (r != 0)
    __atomic_store_n (&ls->started, false, __ATOMIC_RELEASE);
  return -r;
}

int
io_lease_may_resume (void *leased)
{
  struct io_store *s = __atomic_load_n ((struct io_store **) leased,
                                        __ATOMIC_ACQUIRE);

  assert (s == NULL || s->ops == &leased_ops);
  return s ? lease_resume (&((struct io_leased *) s)->lease) : 0;
}

/* --- Without taking it ---------------------------------------------------- */

/* Reads the area of S. */
static int
look (struct io_store *s, const struct io_lease_params *p, struct lease *l,
      struct lease_view **out, struct fault *f)
{
  struct lease_view *v;
  uint64_t off;
  int r = find_area (s, p->area, &off, f);

  if (r < 0)
    return r;
  v = aligned_alloc (IO_MEDIUM_ALIGN,
                     round_up_pow2 (sizeof *v, IO_MEDIUM_ALIGN));
  if (v == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  lease_init (l, p->area ? p->area : s, off, p);
  r = lease_look (l->area, off, v);
  if (r < 0) {
    free (v);
    return fault_io (f, -r, off, "its lease cannot be read: %s", strerror (-r));
  }
  *out = v;
  return 0;
}

static bool
may_be_held (const struct lease *l, const struct lease_view *v)
{
  const struct io_lease_holder *h = v->newest < 0 ? NULL : &v->h[v->newest];

  return h && h->state != IO_LEASE_FREE &&
    !l->world->has_ended (l->world->opaque, h);
}

/* Two renewals, and a moment more. */
static uint64_t
probe_ns (const struct lease_view *v)
{
  const uint64_t term_ns = lease_longest_term (v, 0);

  return 2 * term_ns / LEASE_RENEW_PART + term_ns / 60;
}

int
io_lease_probe (struct io_store *s, const struct io_lease_params *p,
                struct fault *f)
{
  CLEANUP_FREE struct lease_view *v = NULL;
  char text[IO_LEASE_TEXT];
  struct lease l;
  int r = look (s, p, &l, &v, f);

  if (r < 0)
    return r;
  if (may_be_held (&l, v))
    r = lease_watch (&l, v, probe_ns (v));
  if (r < 0)
    (void) fault_io (f, -r, l.area_off, "its lease cannot be read: %s", strerror (-r));
  if (r == 1 && !may_be_held (&l, v))
    r = 0;
  if (r == 1)
    (void) fault_set (f, FAULT_BUSY, EBUSY, UINT64_MAX,
                      "is in use by the server on %s",
                      io_lease_describe (&v->h[v->newest], text));
  lease_destroy (&l);
  return r;
}

int
io_lease_read (struct io_store *s, struct io_store *area,
               struct io_lease_holder *h)
{
  const struct io_lease_params p = { .area = area };
  CLEANUP_FREE struct lease_view *v = NULL;
  struct lease l;
  int r = look (s, &p, &l, &v, NULL);

  if (r < 0)
    return r;
  lease_destroy (&l);
  if (v->newest >= 0) {
    *h = v->h[v->newest];
    return 1;
  }
  return lease_has_foreign_bytes (v) ? -EINVAL : 0;
}

int
io_lease_break (struct io_store *s, const struct io_lease_params *p,
                struct fault *f)
{
  CLEANUP_FREE struct lease_view *v = NULL;
  struct lease l;
  int r = look (s, p, &l, &v, f);

  if (r < 0)
    return r;
  r = lease_has_foreign_bytes (v) ? lease_refuse_bytes (&l, f)
    : lease_break (&l, v);
  lease_destroy (&l);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "its lease cannot be written: %s",
                           strerror (-r)) : 0;
}
