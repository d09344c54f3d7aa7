/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads an NBD export from its start to its end, with libnbd, on one thread.
 *
 * The thread asks twice what is data (base:allocation): once for all of the
 * export, so that its user knows how much will come, and then again for each
 * window, which it reads.  So nothing grows with the size of the export: a
 * window is a bitmap of CELLS pieces, and SLOTS pieces are read ahead.  A
 * server that does not tell what is data has all of it read.
 *
 * A request that fails, a lost connection, and a server that is silent for
 * SILENCE_NS while something was asked of it end the reading, with a fault that
 * says which it was.  A new connection might see other data, so none is made.
 *
 * Threads: the thread has the handle and the window.  It shares the slots with
 * the user, under the lock, which is a leaf.  Everything that the thread waits
 * for is in turn (), which io_nbd_source_close interrupts.
 */
#include "nbd-source.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "aligned.h"
#include "checked.h"
#include "clock.h"
#include "io.h"
#include "lock.h"
#include "nbd-tls.h"

#define SLOTS 8u                /* pieces that are read ahead: 2 MiB */
#define CELLS 256u              /* pieces of a window: 64 MiB */
#define WINDOW (CELLS * IO_NBD_PIECE)
/* What one question about data covers at the most.  It grows while all is zero,
 * as an export may be sparse, and large. */
#define MAX_ASK (UINT64_C (2) << 30)
#define NS_PER_MS UINT64_C (1000000)
#define SILENCE_NS (UINT64_C (60) * 1000 * NS_PER_MS)
#define LEAVE_NS (1000 * NS_PER_MS)
#define NONE UINT64_MAX

struct slot {
  struct io_nbd_source *s;
  uint8_t *buf;                 /* IO_NBD_PIECE bytes; owned */
  uint64_t off;
  size_t len;
  bool full;                    /* protected by the lock */
};

/* A part of the export: which of its pieces have data. */
struct window {
  uint64_t at, end;             /* what is covered so far, and may be */
  uint64_t base;                /* NONE: all was zero */
  uint64_t next;                /* where to go on */
  bool cells[CELLS];
};

struct io_nbd_source {
  /* Constant after open: */
  char *uri;                    /* owned */
  uint64_t from;                /* where reading begins */
  void (*wake) (void *opaque);
  void *opaque;
  int event;                    /* eventfd: a slot is free, or stop */
  pthread_t thread;

  /* The thread only: */
  struct nbd_handle *nbd;
  unsigned asked;               /* requests under way */
  uint64_t heard_ns;            /* CLOCK_MONOTONIC: the last sign of life */
  bool tells_zeroes;
  uint64_t ask;                 /* bytes of the next question */
  uint64_t counted;             /* bytes of data that were found so far */
  struct window window;

  struct lock lock;

  /* Protected by lock: */
  bool stop;
  bool size_is_known, ended;
  uint64_t size, data_bytes;    /* the thread reads the size without it */
  struct fault fault;           /* kind FAULT_NONE: none */
  struct slot slots[SLOTS];     /* a ring: */
  uint64_t head, tail;          /* next one to be asked for, and to be taken */
};

/* --- Failure ------------------------------------------------------------ */

static int
fail (struct io_nbd_source *s, int err, const char *what)
{
  LOCK_FOR_SCOPE (&s->lock);

  return fault_io (&s->fault, err ? err : EIO, UINT64_MAX, "%s: %s", s->uri,
                   what);
}

static void
tell (struct io_nbd_source *s)
{
  s->wake (s->opaque);
}

static int
fail_nbd (struct io_nbd_source *s)
{
  const char *what = nbd_get_error ();

  return fail (s, nbd_get_errno (), what ? what : "unknown error");
}

/* --- Waiting ------------------------------------------------------------ */

static bool
is_stopped (struct io_nbd_source *s)
{
  LOCK_FOR_SCOPE (&s->lock);
  return s->stop;
}

static bool
is_waited_for (const struct io_nbd_source *s)
{
  return s->asked > 0 || !nbd_aio_is_ready (s->nbd);
}

/* Lets libnbd do what the socket is ready for. */
static int
notify (struct io_nbd_source *s, unsigned direction, short events)
{
  const short gone = POLLHUP | POLLERR;
  int r = 0;

  if ((direction & LIBNBD_AIO_DIRECTION_READ) && (events & (POLLIN | gone)))
    r = nbd_aio_notify_read (s->nbd);
  else if ((direction & LIBNBD_AIO_DIRECTION_WRITE) &&
           (events & (POLLOUT | gone)))
    r = nbd_aio_notify_write (s->nbd);
  else
    return 0;
  s->heard_ns = clock_now_ns ();
  if (r < 0)
    return fail_nbd (s);
  if (nbd_aio_is_dead (s->nbd) || nbd_aio_is_closed (s->nbd))
    return fail (s, ENOTCONN, "the server has closed the connection");
  return 0;
}

static void
drain_event (struct io_nbd_source *s)
{
  uint64_t n;
  ssize_t r = read (s->event, &n, sizeof n);    /* does not block */

  (void) r;
}

/* Waits until the socket or the user has something to do, for a second at the
 * most, and does what the socket is ready for. */
static int MUST_CHECK
wait_once (struct io_nbd_source *s)
{
  const unsigned direction = nbd_aio_get_direction (s->nbd);
  struct pollfd fds[2] = {
    { .fd = nbd_aio_get_fd (s->nbd) },
    { .fd = s->event, .events = POLLIN },
  };

  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;
  if (poll (fds, 2, 1000) < 0 && errno != EINTR)
    return fail (s, errno, "poll");
  drain_event (s);
  return notify (s, direction, fds[0].revents);
}

static int MUST_CHECK
turn (struct io_nbd_source *s)
{
  int r = wait_once (s);

  if (is_stopped (s))
    return -ECANCELED;
  if (r == 0 && is_waited_for (s) && clock_now_ns () - s->heard_ns > SILENCE_NS)
    return fail (s, ETIMEDOUT, "the server does not answer");
  return r;
}

/* --- Connection --------------------------------------------------------- */

static int
prepare (struct io_nbd_source *s)
{
  s->nbd = nbd_create ();
  if (s->nbd == NULL ||
      nbd_set_uri_allow_transports (s->nbd, LIBNBD_ALLOW_TRANSPORT_TCP |
                                    LIBNBD_ALLOW_TRANSPORT_UNIX) < 0 ||
      nbd_add_meta_context (s->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0)
    return fail_nbd (s);
  return 0;
}

static int
look_at_export (struct io_nbd_source *s)
{
  const int64_t size = nbd_get_size (s->nbd);

  if (size < 0)
    return fail_nbd (s);
  s->tells_zeroes =
    nbd_can_meta_context (s->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  s->ask = WINDOW;
  lock_acquire (&s->lock);
  s->size = (uint64_t) size;
  s->size_is_known = true;
  lock_release (&s->lock);
  tell (s);
  return 0;
}

static int
connect_to_server (struct io_nbd_source *s)
{
  struct fault why = { 0 };
  int r = prepare (s);

  s->heard_ns = clock_now_ns ();
  if (r == 0 && io_nbd_tls_check_default (s->uri, &why) < 0)
    r = fail (s, EIO, why.msg);
  if (r == 0 && nbd_aio_connect_uri (s->nbd, s->uri) < 0)
    r = fail_nbd (s);
  while (r == 0 && nbd_aio_is_connecting (s->nbd))
    r = turn (s);
  if (r == 0 && !nbd_aio_is_ready (s->nbd))
    r = fail (s, ENOTCONN, "the server has closed the connection");
  return r == 0 ? look_at_export (s) : r;
}

/* --- Where there is data ------------------------------------------------ */

/* Adds LEN bytes of data at W->at, as far as they are in the window, which
 * begins where the first of them are. */
static void
add_data (struct window *w, uint64_t len)
{
  uint64_t end;

  if (w->base == NONE) {
    w->base = round_down_pow2 (w->at, IO_NBD_PIECE);
    w->end = MIN_OF (w->end, w->base + WINDOW);
  }
  end = w->at + MIN_OF (len, w->end - w->at);
  for (uint64_t at = w->at; at < end;
       at = round_down_pow2 (at, IO_NBD_PIECE) + IO_NBD_PIECE)
    w->cells[(at - w->base) / IO_NBD_PIECE] = true;
  w->at = end;
}

static void
add_zeroes (struct window *w, uint64_t len)
{
  w->at += MIN_OF (len, w->end - w->at);
}

static int
extents_cb (void *opaque, const char *context, uint64_t off, uint32_t *entries,
            size_t nr_entries, int *error)
{
  struct window *w = opaque;

  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || *error)
    return 0;
  for (size_t i = 0; i + 1 < nr_entries; i += 2)
    if (entries[i + 1] & LIBNBD_STATE_ZERO)
      add_zeroes (w, entries[i]);
    else if (w->at < w->end)
      add_data (w, entries[i]);
  return 0;
}

/* Asks for the extents of LEN bytes at W->at, and waits for the answer. */
static int
ask_for_extents (struct io_nbd_source *s, struct window *w, uint64_t len)
{
  const nbd_extent_callback cb = { .callback = extents_cb, .user_data = w };
  int64_t cookie = nbd_aio_block_status (s->nbd, len, w->at, cb,
                                         NBD_NULL_COMPLETION, 0);
  int r = cookie < 0 ? fail_nbd (s) : 0, done = 0;

  if (s->asked == 0)
    s->heard_ns = clock_now_ns ();
  s->asked += cookie >= 0;
  while (r == 0 && done == 0) {
    done = nbd_aio_command_completed (s->nbd, (uint64_t) cookie);
    r = done < 0 ? fail_nbd (s) : done == 0 ? turn (s) : 0;
  }
  s->asked -= cookie >= 0;
  return r;
}

/* Sets where to go on: behind what is known, and behind the pieces that will be
 * read. */
static void
set_next (struct window *w)
{
  w->next = w->at;
  if (w->base != NONE && w->cells[(w->at - 1 - w->base) / IO_NBD_PIECE])
    w->next = round_up_pow2 (w->at, IO_NBD_PIECE);
}

/* Finds what is data from byte FROM on. */
static int
look (struct io_nbd_source *s, uint64_t from, struct window *w)
{
  const uint64_t left = s->size - from;
  int r = 0;

  memset (w, 0, sizeof *w);
  w->base = NONE;
  w->at = from;
  w->end = s->size;
  if (s->tells_zeroes)
    r = ask_for_extents (s, w, MIN_OF (s->ask, left));
  else
    add_data (w, MIN_OF (WINDOW, left));
  if (r < 0)
    return r;
  if (w->at <= from)
    return fail (s, EPROTO, "the server does not say what is data");
  s->ask = w->base == NONE ? MIN_OF (2 * s->ask, MAX_ASK) : WINDOW;
  set_next (w);
  return 0;
}

static size_t
piece_len (const struct io_nbd_source *s, uint64_t off)
{
  return (size_t) MIN_OF (IO_NBD_PIECE, s->size - off);
}

/* Calls CB for each piece with data, in order. */
static int
for_each_piece (struct io_nbd_source *s,
                int (*cb) (struct io_nbd_source *s, uint64_t off))
{
  const struct window *w = &s->window;
  int r = 0;

  for (uint64_t at = s->from; at < s->size && r == 0; at = w->next) {
    r = look (s, at, &s->window);
    for (size_t i = 0; r == 0 && i < CELLS && w->base != NONE; i++)
      if (w->cells[i])
        r = cb (s, w->base + i * IO_NBD_PIECE);
  }
  return r;
}

/* --- Reading ------------------------------------------------------------ */

static int
count_piece (struct io_nbd_source *s, uint64_t off)
{
  s->counted += piece_len (s, off);
  return 0;
}

static int
read_cb (void *opaque, int *error)
{
  struct slot *slot = opaque;
  struct io_nbd_source *s = slot->s;
  char what[64];

  s->asked--;
  if (*error) {
    snprintf (what, sizeof what, "reading at 0x%" PRIx64 ": ", slot->off);
    strncat (what, strerror (*error), sizeof what - strlen (what) - 1);
    fail (s, *error, what);
    return 1;
  }
  lock_acquire (&s->lock);
  slot->full = true;
  lock_release (&s->lock);
  tell (s);
  return 1;
}

/* Returns the next slot if it is free. */
static struct slot *
free_slot (struct io_nbd_source *s)
{
  LOCK_FOR_SCOPE (&s->lock);

  return s->head - s->tail < SLOTS ? &s->slots[s->head++ % SLOTS] : NULL;
}

static bool
has_failed (struct io_nbd_source *s)
{
  LOCK_FOR_SCOPE (&s->lock);
  return s->fault.kind != FAULT_NONE;
}

static int
wait_for_slot (struct io_nbd_source *s, struct slot **slot)
{
  int r = 0;

  while (r == 0 && (*slot = free_slot (s)) == NULL)
    r = has_failed (s) ? -EIO : turn (s);
  return r;
}

static int
read_piece (struct io_nbd_source *s, uint64_t off)
{
  nbd_completion_callback cb = { .callback = read_cb };
  struct slot *slot;
  int r = wait_for_slot (s, &slot);

  if (r < 0)
    return r;
  slot->off = off;
  slot->len = piece_len (s, off);
  cb.user_data = slot;
  if (s->asked++ == 0)
    s->heard_ns = clock_now_ns ();
  if (nbd_aio_pread (s->nbd, slot->buf, slot->len, off, cb, 0) < 0)
    return fail_nbd (s);
  return 0;
}

static int
wait_for_all (struct io_nbd_source *s)
{
  int r = 0;

  while (r == 0 && s->asked > 0)
    r = turn (s);
  return r < 0 || has_failed (s) ? -EIO : 0;
}

static int
read_export (struct io_nbd_source *s)
{
  int r = connect_to_server (s);

  if (r == 0)
    r = for_each_piece (s, count_piece);
  if (r < 0)
    return r;
  lock_acquire (&s->lock);
  s->data_bytes = s->counted;
  lock_release (&s->lock);
  r = for_each_piece (s, read_piece);
  return r == 0 ? wait_for_all (s) : r;
}

/* Takes leave of the server, when it has answered what it was asked: some
 * servers do not survive that a client is gone before.  After a second it is
 * left all the same. */
static void
leave (struct io_nbd_source *s)
{
  const uint64_t end_ns = clock_now_ns () + LEAVE_NS;
  int r = 0;

  while (r == 0 && nbd_aio_in_flight (s->nbd) > 0 && clock_now_ns () < end_ns)
    r = wait_once (s);
  if (nbd_aio_is_ready (s->nbd) || nbd_aio_is_processing (s->nbd))
    (void) nbd_aio_disconnect (s->nbd, 0);
}

static void *
thread_main (void *opaque)
{
  struct io_nbd_source *s = opaque;
  int r = read_export (s);

  (void) r;                     /* the fault tells it, unless it is stopped */
  if (s->nbd)
    leave (s);
  nbd_close (s->nbd);
  lock_acquire (&s->lock);
  s->ended = true;
  lock_release (&s->lock);
  tell (s);
  return NULL;
}

/* --- For the user ------------------------------------------------------- */

static bool
has_ended_locked (struct io_nbd_source *s)
{
  assert (lock_held (&s->lock));
  return s->ended || s->fault.kind != FAULT_NONE;
}

bool
io_nbd_source_has_size (struct io_nbd_source *s)
{
  LOCK_FOR_SCOPE (&s->lock);
  return s->size_is_known || has_ended_locked (s);
}

bool
io_nbd_source_has_next (struct io_nbd_source *s)
{
  LOCK_FOR_SCOPE (&s->lock);

  return has_ended_locked (s) ||
    (s->tail < s->head && s->slots[s->tail % SLOTS].full);
}

static int
failure_locked (struct io_nbd_source *s, struct fault *f)
{
  assert (lock_held (&s->lock));
  if (s->fault.kind == FAULT_NONE)
    return 0;
  *f = s->fault;
  return -s->fault.err;
}

int
io_nbd_source_size (struct io_nbd_source *s, uint64_t *size_bytes,
                    struct fault *f)
{
  LOCK_FOR_SCOPE (&s->lock);

  if (!s->size_is_known)
    return s->fault.kind == FAULT_NONE ? -EAGAIN : failure_locked (s, f);
  *size_bytes = s->size;
  return 0;
}

uint64_t
io_nbd_source_data_bytes (struct io_nbd_source *s)
{
  LOCK_FOR_SCOPE (&s->lock);
  return s->data_bytes;
}

int
io_nbd_source_next (struct io_nbd_source *s, struct io_nbd_piece *piece,
                    struct fault *f)
{
  const struct slot *slot;
  int r;
  LOCK_FOR_SCOPE (&s->lock);

  r = failure_locked (s, f);
  if (r < 0)
    return r;
  slot = &s->slots[s->tail % SLOTS];
  if (s->tail == s->head || !slot->full)
    return s->ended ? 0 : -EAGAIN;
  *piece = (struct io_nbd_piece) {
    .off = slot->off, .len = slot->len, .data = slot->buf,
  };
  return 1;
}

static void
signal_thread (struct io_nbd_source *s)
{
  const uint64_t one = 1;
  ssize_t r = write (s->event, &one, sizeof one);

  (void) r;                     /* fails only if it is signalled already */
}

void
io_nbd_source_done (struct io_nbd_source *s)
{
  lock_acquire (&s->lock);
  assert (s->tail < s->head);
  s->slots[s->tail++ % SLOTS].full = false;
  lock_release (&s->lock);
  signal_thread (s);
}

/* --- Begin and end ------------------------------------------------------ */

static void
free_source (struct io_nbd_source *s)
{
  for (unsigned i = 0; i < SLOTS; i++)
    free (s->slots[i].buf);
  if (s->event >= 0)
    close (s->event);
  lock_destroy (&s->lock);
  free (s->uri);
  free (s);
}

static struct io_nbd_source *
new_source (const char *uri)
{
  struct io_nbd_source *s = calloc (1, sizeof *s);
  bool complete;

  if (s == NULL)
    return NULL;
  lock_init (&s->lock);
  s->event = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  s->uri = strdup (uri);
  complete = s->event >= 0 && s->uri != NULL;
  for (unsigned i = 0; i < SLOTS && complete; i++) {
    s->slots[i] = (struct slot) { .s = s, .buf = aligned_new (IO_NBD_PIECE) };
    complete = s->slots[i].buf != NULL;
  }
  if (complete)
    return s;
  free_source (s);
  return NULL;
}

/* All signals are blocked in the thread, because they belong to the host
 * program. */
static int
start_thread (struct io_nbd_source *s)
{
  sigset_t all, old;
  int r;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  r = pthread_create (&s->thread, NULL, thread_main, s);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return -r;
}

int
io_nbd_source_open (const char *uri, uint64_t from,
                    void (*wake) (void *opaque), void *opaque,
                    struct io_nbd_source **out, struct fault *f)
{
  struct io_nbd_source *s;
  int r;

  if (!io_is_uri (uri))
    return fault_usage (f, "'%s' is not the URI of an NBD export, such as "
                        "nbd://host/name or nbd+unix:///name?socket=PATH", uri);
  s = new_source (uri);
  if (s == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  assert (from % IO_NBD_PIECE == 0);
  s->from = from;
  s->wake = wake;
  s->opaque = opaque;
  r = start_thread (s);
  if (r < 0) {
    free_source (s);
    return fault_io (f, -r, UINT64_MAX, "starting a thread: %s", strerror (-r));
  }
  *out = s;
  return 0;
}

void
io_nbd_source_close (struct io_nbd_source *s)
{
  if (s == NULL)
    return;
  lock_acquire (&s->lock);
  s->stop = true;
  lock_release (&s->lock);
  signal_thread (s);
  pthread_join (s->thread, NULL);
  free_source (s);
}
