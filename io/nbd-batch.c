/* SPDX-License-Identifier: BSD-3-Clause */
/* Sends commands to an NBD server and waits for them.
 *
 * The calling thread issues all commands of a batch, on the connections that
 * have the least to do, and then waits once.  A batch of one command goes to a
 * connection that is lent to the thread, if there is one left: then the thread receives
 * the reply itself, and no other one has to run for it.  A command is complete when libnbd
 * frees its callback: that happens exactly once for each, also for one that
 * could not be issued, or whose connection broke or was closed before the
 * reply.  The callback runs under libnbd's lock of the handle and takes only
 * the mutex of the batch's bell, which nobody holds while calling libnbd.
 *
 * A server that gives no answer at all for three quarters of the time for
 * reconnecting counts as a broken connection; the last quarter is left to find
 * another one.  A command that was not answered in all of that time, on however
 * many connections, is where the store gives up: the connections may be good
 * each time until the command comes that ends them.
 */
#include "nbd-private.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <libnbd.h>

#include "checked.h"
#include "mutation.h"

/* How long a server may be silent where nothing would be reconnected. */
#define SILENCE_MS 30000
/* The link's thread looks so often whether it has to end. */
#define LOOK_MS 200

struct nbd_batch {
  struct nbd_bell *bell;

  /* Protected by its mutex: */
  size_t pending;
  int64_t last_ms;            /* when it was begun, or the last answer came */

  /* Of the thread that waits: */
  struct nbd_conn *own;       /* is lent to it; or NULL */
  unsigned generation;
  int64_t since_ms;           /* the first loss; 0: there was none */
  bool given_up;              /* the link was told not to wait any more */
};

/* --- Completion --------------------------------------------------------- */

/* Returns the -errno of this room for an error of a reply. */
static int
reply_error (int err)
{
  switch (err) {
  case ENOSPC: case EFBIG:
    return -ENOSPC;
  case EPERM: case EROFS: case ENOMEM: case EOPNOTSUPP:
    return -err;
  default:
    return -EIO;
  }
}

/* libnbd says ENOTCONN for a command whose connection broke; a server that is
 * about to close it says ESHUTDOWN. */
static int
completed (void *opaque, int *error)
{
  struct nbd_cmd *cmd = opaque;

  if (*error == ENOTCONN || *error == ESHUTDOWN)
    return 1;
  cmd->answered = true;
  cmd->result = *error && !(mutation (MUTATION_NBD_FLUSH_ERROR) && cmd->type == NBD_FLUSH)
    ? reply_error (*error) : 0;
  return 1;
}

/* Command and batch may be gone when the mutex is released. */
static void
finish (void *opaque)
{
  struct nbd_cmd *cmd = opaque;
  struct nbd_batch *b = cmd->batch;
  struct nbd_bell *bell = b->bell;
  bool last;

  if (b->own) {                 /* this is the thread that waits */
    b->last_ms = io_nbd_now_ms ();
    b->pending--;
    return;
  }
  __atomic_sub_fetch (&cmd->conn->in_flight, 1, __ATOMIC_RELAXED);
  pthread_mutex_lock (&bell->mutex);
  b->last_ms = io_nbd_now_ms ();
  last = --b->pending == 0;
  pthread_mutex_unlock (&bell->mutex);
  if (last)
    pthread_cond_broadcast (&bell->rung);
}

/* --- Issuing ------------------------------------------------------------ */

/* Returns the connection with the fewest commands under way.  The first one, whose replies
 * cost more, is the last choice. */
static struct nbd_conn *
least_busy (struct nbd_link *l)
{
  unsigned i = l->nr_shared - 1;
  struct nbd_conn *best = &l->conns[i];
  unsigned busy, least = __atomic_load_n (&best->in_flight, __ATOMIC_RELAXED);

  while (i-- > 0 && least > 0) {
    busy = __atomic_load_n (&l->conns[i].in_flight, __ATOMIC_RELAXED);
    if (busy < least) {
      least = busy;
      best = &l->conns[i];
    }
  }
  return best;
}

static int64_t
issue_on (struct nbd_handle *h, struct nbd_cmd *cmd)
{
  const nbd_completion_callback cb = {
    .callback = completed, .user_data = cmd, .free = finish
  };

  switch (cmd->type) {
  case NBD_READ:
    return nbd_aio_pread (h, cmd->buf, cmd->len, cmd->off, cb, 0);
  case NBD_WRITE:
    return nbd_aio_pwrite (h, cmd->buf, cmd->len, cmd->off, cb,
                           cmd->fua ? LIBNBD_CMD_FLAG_FUA : 0);
  case NBD_TRIM:
    return nbd_aio_trim (h, cmd->len, cmd->off, cb, 0);
  case NBD_FLUSH:
    return nbd_aio_flush (h, cb, 0);
  case NBD_EXTENTS:
    return nbd_aio_block_status (h, cmd->len, cmd->off,
                                 (nbd_extent_callback) {
                                   .callback = cmd->extents,
                                   .user_data = cmd->opaque }, cb, 0);
  }
  abort ();
}

/* Issues CMD.  After that it may be complete at any moment.  One that libnbd
 * refuses fails, unless that is because the connection broke. */
static void
issue (struct io_nbd *n, struct nbd_batch *b, struct nbd_cmd *cmd)
{
  struct nbd_conn *c = b->own ? b->own : cmd->type == NBD_EXTENTS ? &n->link.conns[0]
    : least_busy (&n->link);

  cmd->conn = c;
  cmd->batch = b;
  cmd->result = -EIO;
  if (b->own == NULL)
    __atomic_add_fetch (&c->in_flight, 1, __ATOMIC_RELAXED);
  if (issue_on (c->h, cmd) >= 0) {
    cmd->sent = true;
    if (b->own == NULL)
      io_nbd_conn_kick (c);
  }
  else if (!io_nbd_conn_is_broken (c))
    cmd->answered = true;
}

/* Gives the commands entries in the log; one that gets none is answered. */
static void
admit (struct io_nbd *n, struct nbd_cmd *cmds, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++) {
    cmds[i].result = io_nbd_log_begin (n, &cmds[i]);
    cmds[i].answered = cmds[i].result < 0;
  }
}

/* Issues what is not answered.  The copies for the log are made while the
 * server works. */
static void
issue_all (struct io_nbd *n, struct nbd_batch *b, struct nbd_cmd *cmds,
           size_t nr, bool first)
{
  size_t i;

  if (first)
    admit (n, cmds, nr);
  b->given_up = false;
  b->last_ms = io_nbd_now_ms ();
  for (i = 0; i < nr; i++)
    b->pending += !cmds[i].answered;
  for (i = 0; i < nr; i++) {
    cmds[i].sent = false;
    if (!cmds[i].answered)
      issue (n, b, &cmds[i]);
  }
  for (i = 0; i < nr && first; i++)
    io_nbd_log_fill (&cmds[i]);
}

/* --- Waiting ------------------------------------------------------------ */

/* Returns when the commands that are pending have waited too long. */
static int64_t
deadline_ms (const struct io_nbd *n, const struct nbd_batch *b)
{
  const int64_t silence = n->delay_ms > 0 ? n->delay_ms * 3 / 4 : SILENCE_MS;
  const int64_t by = b->last_ms + silence;

  return b->since_ms > 0 ? MIN_OF (by, b->since_ms + n->delay_ms) : by;
}

/* Gives up the connections, so that all that is pending completes.  The link's
 * thread has to close them itself. */
static void
stop_waiting (struct io_nbd *n, struct nbd_batch *b, int64_t since_ms)
{
  io_nbd_link_lost (n, b->generation, since_ms, "the server does not answer");
  if (io_nbd_link_is_mine (n)) {
    io_nbd_conns_close (n->link.conns, n->link.nr_conns, false);
    n->link.nr_conns = 0;
  }
}

/* Receives what answers the command on a connection of this thread's own. */
static void
receive (struct io_nbd *n, struct nbd_batch *b)
{
  int64_t now, until;

  while (b->pending > 0) {
    now = io_nbd_now_ms ();
    until = b->given_up ? now + LOOK_MS : deadline_ms (n, b);
    if (now < until)
      io_nbd_conn_step (b->own, (int) (until - now));
    else {
      b->given_up = true;
      io_nbd_link_lost (n, b->generation, b->last_ms, "the server does not answer");
    }
  }
}

static void
timed_wait (struct nbd_batch *b, int64_t until_ms)
{
  const struct timespec until = {
    .tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000
  };

  pthread_cond_timedwait (&b->bell->rung, &b->bell->mutex, &until);
}

static void
wait_for (struct io_nbd *n, struct nbd_batch *b)
{
  const bool mine = io_nbd_link_is_mine (n);
  pthread_mutex_t *const mutex = &b->bell->mutex;
  int64_t now, since, until;

  pthread_mutex_lock (mutex);
  while (b->pending > 0) {
    now = io_nbd_now_ms ();
    since = b->last_ms;
    until = deadline_ms (n, b);
    if (b->given_up)
      pthread_cond_wait (&b->bell->rung, mutex);
    else if (now < until && !(mine && io_nbd_link_must_end (n)))
      timed_wait (b, mine ? MIN_OF (until, now + LOOK_MS) : until);
    else {
      b->given_up = true;
      pthread_mutex_unlock (mutex);
      stop_waiting (n, b, since);
      pthread_mutex_lock (mutex);
    }
  }
  pthread_mutex_unlock (mutex);
}

/* --- Running ------------------------------------------------------------ */

static bool
all_answered (const struct nbd_cmd *cmds, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (!cmds[i].answered)
      return false;
  return true;
}

static void
taint (struct io_nbd *n, const struct nbd_cmd *cmds, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (!cmds[i].answered && cmds[i].sent && io_nbd_taint (n, &cmds[i]) < 0)
      io_nbd_link_give_up (n, "too many writes were lost with connections");
}

/* Reports the loss.  Returns whether the commands may be sent again. */
static bool
after_loss (struct io_nbd *n, struct nbd_batch *b, const struct nbd_cmd *cmds,
            size_t nr)
{
  const int64_t now = io_nbd_now_ms ();

  taint (n, cmds, nr);
  if (b->since_ms == 0)
    b->since_ms = b->given_up ? b->last_ms : now;
  io_nbd_link_lost (n, b->generation, b->since_ms, "the connection is lost");
  if (io_nbd_link_is_mine (n))
    return false;
  if (now - b->since_ms >= n->delay_ms)
    io_nbd_link_give_up (n, "a request got no answer on any connection");
  return true;
}

static void
run (struct io_nbd *n, struct nbd_batch *b, struct nbd_cmd *cmds, size_t nr)
{
  const bool alone = nr == 1 && cmds->type != NBD_EXTENTS;
  bool first = true;

  while (io_nbd_link_enter (n, &b->generation, alone ? &b->own : NULL) == 0) {
    issue_all (n, b, cmds, nr, first);
    if (b->own)
      receive (n, b);
    io_nbd_link_leave (n, b->own);
    if (b->own == NULL)
      wait_for (n, b);
    first = false;
    if (all_answered (cmds, nr) || !after_loss (n, b, cmds, nr))
      return;
  }
}

void
io_nbd_bells_init (struct nbd_bells *b)
{
  pthread_condattr_t attr;
  unsigned i;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  for (i = 0; i < NBD_BELLS; i++) {
    pthread_mutex_init (&b->v[i].mutex, NULL);
    pthread_cond_init (&b->v[i].rung, &attr);
  }
  pthread_condattr_destroy (&attr);
}

void
io_nbd_bells_destroy (struct nbd_bells *b)
{
  unsigned i;

  for (i = 0; i < NBD_BELLS; i++) {
    pthread_cond_destroy (&b->v[i].rung);
    pthread_mutex_destroy (&b->v[i].mutex);
  }
}

void
io_nbd_run (struct io_nbd *n, struct nbd_cmd *cmds, size_t nr)
{
  const unsigned turn = __atomic_fetch_add (&n->bells.next, 1, __ATOMIC_RELAXED);
  struct nbd_batch b = { .bell = &n->bells.v[turn % NBD_BELLS] };
  size_t i;

  for (i = 0; i < nr; i++)
    cmds[i].result = -EIO;
  run (n, &b, cmds, nr);
  for (i = 0; i < nr; i++)
    io_nbd_log_end (n, &cmds[i]);
}
