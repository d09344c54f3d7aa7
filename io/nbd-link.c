/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps the connections to an NBD server, and makes them again when they break.
 *
 * All connections are lost as soon as one is: a flush covers writes on all of
 * them, and one that broke says that the server may have lost some.  Then
 * nobody may send (NBD_DOWN).  The link's thread waits until no thread is in
 * the middle of issuing, closes all, and connects again, at once and then each
 * second.  When the export is there again, and is as it was, it alone may send
 * (NBD_RESUMING): it taints what the lost connections may still change, asks
 * may_resume, and writes the log again.  Then all calls go on (NBD_UP); those that had
 * no answer send their commands once more.
 *
 * After the time for reconnecting the link is given up: all calls fail, and the link's
 * thread closes what connections there are, so that none waits for a reply.  The
 * time runs from the loss until calls go on, however often a connection comes
 * and breaks meanwhile.
 *
 * The first connections are shared.  Each of the others is lent to one thread at a time,
 * which waits on its socket while it has it (io_nbd_link_enter).  Such a thread counts as
 * one that is issuing until it has its reply, so when the link is lost, its socket is shut
 * down, which wakes it.
 *
 * The lock is held for moments.  No call of libnbd is made under it.
 */
#include "nbd-private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "checked.h"

#define CONNECT_MS 5000
/* A server at its limit of clients accepts one more and never answers.  So the
 * second and later connections get less time, and are not needed. */
#define CONNECT_MORE_MS 2000
/* How many connections are lent for each that is shared. */
#define LENT_FOR_SHARED 3
/* Between attempts; tests that lose thousands of connections wait less. */
#ifndef PAUSE_MS
#define PAUSE_MS 1000
#endif

/* --- Phases ------------------------------------------------------------- */

/* Wakes the threads that wait on connections of their own: nothing more will come. */
static void
shut_lent_locked (struct nbd_link *l)
{
  unsigned i;

  for (i = 0; i < NBD_MAX_CONNECTIONS; i++)
    if (l->lent & UINT32_C (1) << i)
      shutdown (l->conns[i].fd, SHUT_RDWR);
}

static void
set_phase_locked (struct nbd_link *l, enum nbd_phase to)
{
  static const bool allowed[][5] = {
    [NBD_UP] = { [NBD_DOWN] = true, [NBD_GIVEN_UP] = true,
                 [NBD_CLOSING] = true },
    [NBD_DOWN] = { [NBD_RESUMING] = true, [NBD_GIVEN_UP] = true,
                   [NBD_CLOSING] = true },
    [NBD_RESUMING] = { [NBD_UP] = true, [NBD_DOWN] = true,
                       [NBD_GIVEN_UP] = true, [NBD_CLOSING] = true },
    [NBD_GIVEN_UP] = { [NBD_CLOSING] = true },
    [NBD_CLOSING] = { 0 },
  };

  assert (allowed[l->phase][to]);
  if (l->phase == NBD_UP)
    shut_lent_locked (l);
  l->phase = to;
  pthread_cond_broadcast (&l->changed);
}

/* Changes the phase if it is still FROM. */
static bool
step_phase (struct nbd_link *l, enum nbd_phase from, enum nbd_phase to)
{
  bool is;

  pthread_mutex_lock (&l->lock);
  is = l->phase == from;
  if (is)
    set_phase_locked (l, to);
  pthread_mutex_unlock (&l->lock);
  return is;
}

static enum nbd_phase
phase_of (struct nbd_link *l)
{
  enum nbd_phase phase;

  pthread_mutex_lock (&l->lock);
  phase = l->phase;
  pthread_mutex_unlock (&l->lock);
  return phase;
}

static bool
must_end_locked (const struct nbd_link *l)
{
  return l->phase == NBD_CLOSING || l->paused;
}

bool
io_nbd_link_must_end (struct io_nbd *n)
{
  bool must;

  pthread_mutex_lock (&n->link.lock);
  must = must_end_locked (&n->link);
  pthread_mutex_unlock (&n->link.lock);
  return must;
}

bool
io_nbd_link_is_mine (struct io_nbd *n)
{
  return n->link.started && pthread_equal (n->link.thread, pthread_self ());
}

/* --- Callers ------------------------------------------------------------ */

static bool
must_wait_locked (const struct nbd_link *l, bool mine)
{
  return !mine && (l->phase == NBD_DOWN || l->phase == NBD_RESUMING);
}

/* Lends the first connection that is free, so that few are used, and often. */
static struct nbd_conn *
lend_locked (struct nbd_link *l)
{
  const uint32_t free = l->can_lend & ~l->lent;

  if (free == 0)
    return NULL;
  l->lent |= free & -free;
  return &l->conns[__builtin_ctz (free)];
}

int
io_nbd_link_enter (struct io_nbd *n, unsigned *generation, struct nbd_conn **own)
{
  struct nbd_link *l = &n->link;
  const bool mine = io_nbd_link_is_mine (n);
  int r = -EIO;

  pthread_mutex_lock (&l->lock);
  while (must_wait_locked (l, mine))
    pthread_cond_wait (&l->changed, &l->lock);
  if (l->phase == (mine ? NBD_RESUMING : NBD_UP)) {
    l->users++;
    *generation = l->generation;
    if (own)
      *own = mine ? NULL : lend_locked (l);
    r = 0;
  }
  pthread_mutex_unlock (&l->lock);
  return r;
}

void
io_nbd_link_leave (struct io_nbd *n, const struct nbd_conn *own)
{
  struct nbd_link *l = &n->link;

  pthread_mutex_lock (&l->lock);
  if (own)
    l->lent &= ~(UINT32_C (1) << (own - l->conns));
  if (--l->users == 0 && l->phase != NBD_UP)
    pthread_cond_broadcast (&l->changed);
  pthread_mutex_unlock (&l->lock);
}

void
io_nbd_link_lost (struct io_nbd *n, unsigned generation, int64_t since_ms,
                  const char *why)
{
  struct nbd_link *l = &n->link;
  bool first = false;

  pthread_mutex_lock (&l->lock);
  if (generation == l->generation &&
      (l->phase == NBD_UP || l->phase == NBD_RESUMING)) {
    first = l->phase == NBD_UP;
    if (first)
      l->lost_ms = since_ms;
    set_phase_locked (l, NBD_DOWN);
  }
  pthread_mutex_unlock (&l->lock);
  if (first)
    log_line (n->sink, LOG_ERROR, "%s: %s; requests wait for up to %lld s",
              n->uri, why, (long long) (n->delay_ms / 1000));
}

void
io_nbd_link_give_up (struct io_nbd *n, const char *why)
{
  struct nbd_link *l = &n->link;
  bool first;

  pthread_mutex_lock (&l->lock);
  first = l->phase != NBD_GIVEN_UP && l->phase != NBD_CLOSING;
  if (first)
    set_phase_locked (l, NBD_GIVEN_UP);
  pthread_mutex_unlock (&l->lock);
  if (first)
    log_line (n->sink, LOG_ERROR, "%s: %s: given up, all requests fail",
              n->uri, why);
}

/* --- Connecting --------------------------------------------------------- */

/* The thread of a connection calls this.  It is joined before there is another
 * generation. */
static void
conn_lost (void *opaque)
{
  struct io_nbd *n = opaque;
  unsigned generation;

  pthread_mutex_lock (&n->link.lock);
  generation = n->link.generation;
  pthread_mutex_unlock (&n->link.lock);
  io_nbd_link_lost (n, generation, io_nbd_now_ms (), "the connection is lost");
}

/* Returns how many of all connections are shared: by batches of several commands, and by
 * what finds none left to be lent. */
static unsigned
max_shared (const struct nbd_link *l)
{
  return div_round_up (l->max_conns, LENT_FOR_SHARED + 1);
}

static int
start (struct io_nbd *n, struct nbd_conn *c, struct fault *f)
{
  const bool lent = c >= n->link.conns + max_shared (&n->link);
  int r = io_nbd_conn_start (c, lent, conn_lost, n);

  return r < 0 ? fault_io (f, -r, UINT64_MAX, "cannot start a thread") : 0;
}

static int
check_export (const struct io_nbd *n, const struct nbd_export *e,
              struct fault *f)
{
  if (!n->writable)
    return 0;
  if (e->read_only)
    return fault_io (f, EROFS, UINT64_MAX, "the export is read-only");
  if (!e->can_flush)
    return fault_unsupported (f, "the server has no flush, so nothing that is "
                              "written there can be made durable");
  return 0;
}

/* Returns whether what was made for the export HAVE is right for E, too. */
static bool
can_replace (const struct nbd_export *e, const struct nbd_export *have)
{
  return e->size >= have->size && e->min_block <= have->min_block &&
    e->max_request >= have->max_request && e->read_only <= have->read_only &&
    e->can_flush >= have->can_flush && e->can_fua >= have->can_fua &&
    e->can_trim >= have->can_trim &&
    e->has_extents >= have->has_extents;
}

struct attempt {
  struct io_nbd *n;
  struct nbd_conn *conn;
  pthread_t thread;
  struct nbd_export export;
  int result;
};

static void *
attempt_thread (void *opaque)
{
  struct attempt *a = opaque;

  a->result = io_nbd_conn_open (a->conn, a->n->uri, false, CONNECT_MORE_MS,
                                a->n->link.cancel_fd, &a->export, NULL);
  a->export.has_extents = a->n->export.has_extents;     /* the first one asks for them */
  return NULL;
}

static bool
can_add (struct io_nbd *n, const struct attempt *a)
{
  return can_replace (&a->export, &n->export) && a->export.multi_conn &&
    start (n, a->conn, NULL) == 0;
}

/* Lets the connections behind the first ones be lent.  Nobody may send yet. */
static void
share (struct nbd_link *l)
{
  unsigned i;

  pthread_mutex_lock (&l->lock);
  l->nr_shared = MIN_OF (l->nr_conns, max_shared (l));
  l->can_lend = 0;
  for (i = l->nr_shared; i < l->nr_conns; i++)
    l->can_lend |= UINT32_C (1) << i;
  pthread_mutex_unlock (&l->lock);
}

/* Opens more connections, up to MAX together, all at the same time: each takes some round
 * trips.  Those that cannot be had are not missed, nor are those behind them. */
static void
connect_more (struct io_nbd *n, unsigned max)
{
  struct nbd_link *l = &n->link;
  struct attempt a[NBD_MAX_CONNECTIONS];
  unsigned nr = 0, i;
  bool more = true;

  for (; l->nr_conns + nr < max; nr++) {
    a[nr] = (struct attempt) { .n = n, .conn = &l->conns[l->nr_conns + nr] };
    if (pthread_create (&a[nr].thread, NULL, attempt_thread, &a[nr]) != 0)
      break;
  }
  for (i = 0; i < nr; i++)
    pthread_join (a[i].thread, NULL);
  for (i = 0; i < nr; i++) {
    if (a[i].result < 0) {
      more = false;
      continue;
    }
    more = more && can_add (n, &a[i]);
    if (more)
      l->nr_conns++;
    else
      io_nbd_conns_close (a[i].conn, 1, true);
  }
}

/* Opens all connections, and tells in *E what the server said. */
static int
connect_all (struct io_nbd *n, int timeout_ms, struct nbd_export *e,
             struct fault *f)
{
  struct nbd_link *l = &n->link;
  int r = io_nbd_conn_open (&l->conns[0], n->uri, true, timeout_ms, l->cancel_fd,
                            e, f);

  if (r < 0)
    return r;
  l->nr_conns = 1;
  r = check_export (n, e, f);
  if (r == 0 && l->started && !can_replace (e, &n->export))
    r = fault_io (f, EIO, UINT64_MAX, "the export is another one now");
  if (r == 0 && !l->started)
    n->export = *e;
  return r < 0 ? r : start (n, &l->conns[0], f);
}

static void
close_all (struct nbd_link *l, bool polite)
{
  io_nbd_conns_close (l->conns, l->nr_conns, polite);
  l->nr_conns = 0;
}

/* --- The thread --------------------------------------------------------- */

/* Waits until nobody is issuing, which never blocks. */
static void
wait_for_users (struct nbd_link *l)
{
  pthread_mutex_lock (&l->lock);
  while (l->users > 0)
    pthread_cond_wait (&l->changed, &l->lock);
  pthread_mutex_unlock (&l->lock);
}

static void
pause_until (struct nbd_link *l, int64_t until_ms)
{
  const struct timespec until = {
    .tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000
  };
  int r = 0;

  pthread_mutex_lock (&l->lock);
  while (r == 0 && l->phase == NBD_DOWN && !l->paused)
    r = pthread_cond_timedwait (&l->changed, &l->lock, &until);
  pthread_mutex_unlock (&l->lock);
}

/* Returns when the time for reconnecting ends. */
static int64_t
end_ms (struct io_nbd *n)
{
  int64_t lost_ms;

  pthread_mutex_lock (&n->link.lock);
  lost_ms = n->link.lost_ms;
  pthread_mutex_unlock (&n->link.lock);
  return lost_ms + n->delay_ms;
}

/* Asks whether to go on, and writes the log again.  Returns false if the link
 * cannot be used; the phase tells if that is final.  What may land later is tainted
 * before may_resume writes anything: it looks for a place where nothing does. */
static bool
resume (struct io_nbd *n)
{
  struct nbd_link *l = &n->link;
  const int64_t lost_ms = end_ms (n) - n->delay_ms;
  size_t nr = 0;
  int r;

  if (l->taint (n) < 0)
    return false;
  r = n->may_resume ? n->may_resume (n->opaque) : 0;
  if (r < 0 && phase_of (l) == NBD_RESUMING)
    io_nbd_link_give_up (n, "the export may not be used any more");
  if (phase_of (l) != NBD_RESUMING)
    return false;
  r = l->replay (n, &nr);
  l->refused = r < 0 && r != -ENOMEM;   /* perhaps only for now */
  if (r < 0 || !step_phase (l, NBD_RESUMING, NBD_UP))
    return false;
  log_line (n->sink, LOG_INFO, "%s: connected again after %lld s, %zu writes "
            "repeated", n->uri,
            (long long) ((io_nbd_now_ms () - lost_ms) / 1000), nr);
  return true;
}

/* Lets this thread send, and nobody else. */
static bool
begin_resuming (struct nbd_link *l)
{
  bool is;

  pthread_mutex_lock (&l->lock);
  is = l->phase == NBD_DOWN;
  if (is) {
    l->generation++;
    set_phase_locked (l, NBD_RESUMING);
  }
  pthread_mutex_unlock (&l->lock);
  return is;
}

static void
try_again (struct io_nbd *n, int timeout_ms)
{
  struct nbd_link *l = &n->link;
  struct fault f = { 0 };
  struct nbd_export e;

  if (connect_all (n, timeout_ms, &e, &f) < 0) {
    log_line (n->sink, LOG_DEBUG, "%s: %s", n->uri, f.msg);
    close_all (l, true);
    return;
  }
  if (e.multi_conn)
    connect_more (n, l->max_conns);
  share (l);
  if (!begin_resuming (l) || !resume (n))
    step_phase (l, NBD_RESUMING, NBD_DOWN);
}

/* Tries once, but not sooner than PAUSE_MS after the last time. */
static void
try_in_time (struct io_nbd *n)
{
  struct nbd_link *l = &n->link;
  int64_t left;

  pause_until (l, MIN_OF (l->tried_ms + PAUSE_MS, end_ms (n)));
  if (io_nbd_link_must_end (n) || phase_of (l) != NBD_DOWN)
    return;
  l->tried_ms = io_nbd_now_ms ();
  left = end_ms (n) - l->tried_ms;
  if (left <= 0)
    io_nbd_link_give_up (n, l->refused ?
                         "unflushed writes cannot be written again" :
                         "no connection in time");
  else
    try_again (n, (int) MIN_OF (left, CONNECT_MS));
}

/* Closes all connections of a link that is given up, so that what waits for a reply fails:
 * it may be one that never comes. */
static void
end_requests (struct nbd_link *l)
{
  wait_for_users (l);
  close_all (l, true);
}

/* Tries until the link is up or given up, or the thread has to end. */
static void
reconnect (struct io_nbd *n)
{
  struct nbd_link *l = &n->link;

  while (phase_of (l) == NBD_DOWN && !io_nbd_link_must_end (n)) {
    wait_for_users (l);
    close_all (l, false);
    try_in_time (n);
  }
}

static bool
has_work (const struct nbd_link *l, enum nbd_phase phase)
{
  return phase == NBD_DOWN || (phase == NBD_GIVEN_UP && l->nr_conns > 0);
}

static void *
link_thread (void *opaque)
{
  struct io_nbd *n = opaque;
  struct nbd_link *l = &n->link;
  enum nbd_phase phase;

  pthread_mutex_lock (&l->lock);
  while (!must_end_locked (l)) {
    phase = l->phase;
    if (!has_work (l, phase)) {
      pthread_cond_wait (&l->changed, &l->lock);
      continue;
    }
    pthread_mutex_unlock (&l->lock);
    if (phase == NBD_DOWN)
      reconnect (n);
    else
      end_requests (l);
    pthread_mutex_lock (&l->lock);
  }
  pthread_mutex_unlock (&l->lock);
  return NULL;
}

/* --- Opening and closing ------------------------------------------------ */

static void
init (struct nbd_link *l)
{
  pthread_condattr_t attr;

  pthread_mutex_init (&l->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&l->changed, &attr);
  pthread_condattr_destroy (&attr);
  l->cancel_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  l->tried_ms = -PAUSE_MS;
}

/* Holds the lock, as the thread reads these fields, too. */
static int
start_thread (struct io_nbd *n, struct fault *f)
{
  struct nbd_link *l = &n->link;
  int r;

  pthread_mutex_lock (&l->lock);
  l->paused = false;
  r = pthread_create (&l->thread, NULL, link_thread, n);
  l->started = r == 0;
  pthread_mutex_unlock (&l->lock);
  return r ? fault_io (f, r, UINT64_MAX, "cannot start a thread") : 0;
}

int
io_nbd_link_open (struct io_nbd *n, int (*taint) (struct io_nbd *n),
                  int (*replay) (struct io_nbd *n, size_t *nr),
                  struct fault *f)
{
  struct nbd_link *l = &n->link;
  struct nbd_export e;
  int r;

  init (l);
  l->taint = taint;
  l->replay = replay;
  if (l->cancel_fd == -1)
    return fault_io (f, errno, UINT64_MAX, "eventfd: %m");
  r = connect_all (n, CONNECT_MS, &e, f);
  if (r < 0)
    return r;
  if (e.multi_conn)
    connect_more (n, l->max_conns);
  share (l);
  return start_thread (n, f);
}

static void
cancel (struct nbd_link *l)
{
  const uint64_t one = 1;

  if (l->cancel_fd != -1)
    (void) !write (l->cancel_fd, &one, sizeof one);
}

void
io_nbd_link_close (struct io_nbd *n)
{
  struct nbd_link *l = &n->link;
  bool paused;

  pthread_mutex_lock (&l->lock);
  paused = l->paused;
  set_phase_locked (l, NBD_CLOSING);
  pthread_mutex_unlock (&l->lock);
  cancel (l);
  if (l->started && !paused)
    pthread_join (l->thread, NULL);
  /* Threads that read ahead may be there still: their calls fail from now on. */
  wait_for_users (l);
  close_all (l, true);
}

void
io_nbd_link_destroy (struct io_nbd *n)
{
  struct nbd_link *l = &n->link;

  if (l->cancel_fd != -1)
    close (l->cancel_fd);
  pthread_cond_destroy (&l->changed);
  pthread_mutex_destroy (&l->lock);
}

/* A link that is being made again goes on with that after the fork. */
void
io_nbd_link_pause (struct io_nbd *n)
{
  struct nbd_link *l = &n->link;
  unsigned i;

  pthread_mutex_lock (&l->lock);
  l->paused = true;
  pthread_cond_broadcast (&l->changed);
  pthread_mutex_unlock (&l->lock);
  cancel (l);
  pthread_join (l->thread, NULL);
  for (i = 0; i < l->nr_conns; i++)
    io_nbd_conn_stop (&l->conns[i]);
}

int
io_nbd_link_resume (struct io_nbd *n)
{
  struct nbd_link *l = &n->link;
  uint64_t count;
  unsigned i;
  int r = 0;

  (void) !read (l->cancel_fd, &count, sizeof count);
  for (i = 0; i < l->nr_conns && r == 0; i++)
    r = start (n, &l->conns[i], NULL);
  return r < 0 ? r : start_thread (n, NULL);
}
