/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements one connection to an NBD server: a handle of libnbd, and a thread
 * that waits for its socket.
 *
 * Any thread issues commands on the handle itself: libnbd locks, and sends at
 * once what the socket takes.  The thread of the connection receives replies,
 * and sends what the socket did not take.  It waits in poll without a lock, so
 * an issuer that left bytes behind wakes it through wake_fd.
 *
 * A connection that is lent belongs to one thread for the time of one command.  That
 * thread polls and receives itself (io_nbd_conn_step), so the reply wakes nobody else.
 * The connection's own thread waits for the end of the connection alone (POLLRDHUP).
 *
 * The handle belongs to nobody else: the owner closes the connection only when
 * no thread is issuing on it.
 */
#include "nbd-private.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <libnbd.h>
#include <sys/eventfd.h>

#include "checked.h"
#include "clock.h"
#include "nbd-tls.h"

#define MAX_MIN_BLOCK 4096u
/* Pieces of this size keep a link busy, and a slow one answers within the time
 * after which a connection counts as broken. */
#define MAX_REQUEST (UINT32_C (2) << 20)

int64_t
io_nbd_now_ms (void)
{
  return (int64_t) (clock_now_ns () / 1000000);
}

/* Fills F with libnbd's last message of this thread, without the name of its
 * function. */
static int
failed (struct fault *f, const char *what)
{
  const char *msg = nbd_get_error (), *colon;

  if (msg == NULL)
    msg = "unknown error";
  colon = strstr (msg, ": ");
  if (strncmp (msg, "nbd_", 4) == 0 && colon != NULL)
    msg = colon + 2;
  return fault_io (f, EIO, UINT64_MAX, "%s: %s", what, msg);
}

/* --- Connecting --------------------------------------------------------- */

/* Explains two messages of libnbd that do not name the fault.  With TLS 1.3 a client has
 * finished its part when the server looks at its certificate, so the refusal comes as a
 * failed read or write. */
static const struct {
  const char *says, *means;
} explanations[] = {
  { "gnutls_record_", " (perhaps the server did not accept the client's certificate)" },
  { "getlogin_r: ", " (the URI does not name the user: nbds://USER@HOST/...)" },
};

/* As failed, for connections. */
static int
cannot_connect (struct fault *f)
{
  struct fault why = { 0 };
  const char *means = "";
  size_t i;

  (void) failed (&why, "cannot connect");
  for (i = 0; i < sizeof explanations / sizeof explanations[0]; i++)
    if (strstr (why.msg, explanations[i].says))
      means = explanations[i].means;
  return fault_io (f, EIO, UINT64_MAX, "%.400s%s", why.msg, means);
}

static int
configure (struct nbd_handle *h, bool structured)
{
  /* TLS keys may be named in the URI.  (libnbd zeroes a buffer before it reads
   * into it; so a server whose reply has gaps does not expose our memory.) */
  nbd_set_uri_allow_local_file (h, true);
  if (!structured)
    return nbd_set_request_structured_replies (h, false);
  return nbd_add_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION);
}

/* Waits until the socket FD is ready for what the handle wants, and passes that
 * on.  Returns the result of poll. */
static int
step (struct nbd_handle *h, int fd, int other_fd, int timeout_ms, short *other)
{
  unsigned dir = nbd_aio_get_direction (h);
  struct pollfd p[2] = {
    { .fd = fd,
      .events = (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0) },
    { .fd = other_fd, .events = POLLIN },
  };
  int r = poll (p, 2, timeout_ms);

  *other = 0;
  if (r <= 0)
    return r;
  *other = p[1].revents;
  dir = nbd_aio_get_direction (h);      /* an issuer may have changed it */
  if ((dir & LIBNBD_AIO_DIRECTION_READ) && (p[0].revents & ~POLLOUT))
    nbd_aio_notify_read (h);
  else if ((dir & LIBNBD_AIO_DIRECTION_WRITE) && (p[0].revents & ~POLLIN))
    nbd_aio_notify_write (h);
  return r;
}

/* As step, for a socket whose handle no other thread changes. */
void
io_nbd_conn_step (struct nbd_conn *c, int timeout_ms)
{
  const unsigned dir = nbd_aio_get_direction (c->h);
  struct pollfd p = {
    .fd = c->fd,
    .events = (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
              (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0)
  };

  if (poll (&p, 1, timeout_ms) <= 0)
    return;
  if ((dir & LIBNBD_AIO_DIRECTION_READ) && (p.revents & ~POLLOUT))
    nbd_aio_notify_read (c->h);
  else if ((dir & LIBNBD_AIO_DIRECTION_WRITE) && (p.revents & ~POLLIN))
    nbd_aio_notify_write (c->h);
}

static bool
is_broken (struct nbd_handle *h)
{
  return nbd_aio_is_dead (h) || nbd_aio_is_closed (h);
}

bool
io_nbd_conn_is_broken (struct nbd_conn *c)
{
  return is_broken (c->h);
}

static int
wait_until_ready (struct nbd_handle *h, int64_t deadline_ms, int cancel_fd,
                  struct fault *f)
{
  int64_t left;
  short cancelled;

  while (!nbd_aio_is_ready (h)) {
    if (is_broken (h))
      return cannot_connect (f);
    left = deadline_ms - io_nbd_now_ms ();
    if (left <= 0)
      return fault_io (f, ETIMEDOUT, UINT64_MAX,
                       "cannot connect: the server does not answer");
    if (step (h, nbd_aio_get_fd (h), cancel_fd, (int) left, &cancelled) < 0 &&
        errno != EINTR)
      return fault_io (f, EIO, UINT64_MAX, "cannot connect: poll: %m");
    if (cancelled)
      return fault_io (f, EINTR, UINT64_MAX, "cannot connect: interrupted");
  }
  return 0;
}

static int
learn_sizes (struct nbd_handle *h, struct nbd_export *e, struct fault *f)
{
  const int64_t size = nbd_get_size (h);
  const int64_t min = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  const int64_t max = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size < 0)
    return failed (f, "the size of the export");
  if (min > MAX_MIN_BLOCK || (min > 0 && !is_pow2 ((uint64_t) min)))
    return fault_unsupported (f, "the export's minimum block is %lld bytes, "
                              "not a power of two up to %u", (long long) min,
                              MAX_MIN_BLOCK);
  e->min_block = min > 0 ? (uint32_t) min : 1;
  e->max_request = max > 0 ? (uint32_t) MIN_OF (max, MAX_REQUEST)
    : MAX_REQUEST;
  e->max_request = (uint32_t) round_down_pow2 (e->max_request, e->min_block);
  if (e->max_request == 0)
    return fault_unsupported (f, "the export's maximum request is %lld bytes, "
                              "less than its minimum block", (long long) max);
  e->size = round_down_pow2 ((uint64_t) size, e->min_block);
  return 0;
}

static int
learn (struct nbd_handle *h, struct nbd_export *e, struct fault *f)
{
  e->read_only = nbd_is_read_only (h) != 0;
  e->can_flush = nbd_can_flush (h) > 0;
  e->can_fua = nbd_can_fua (h) > 0;
  e->can_trim = nbd_can_trim (h) > 0;
  e->multi_conn = nbd_can_multi_conn (h) > 0;
  e->has_extents = nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
  return learn_sizes (h, e, f);
}

static int
open_handle (struct nbd_handle *h, const char *uri, bool structured, int timeout_ms,
             int cancel_fd, struct nbd_export *e, struct fault *f)
{
  const int64_t deadline_ms = io_nbd_now_ms () + timeout_ms;
  int r = io_nbd_tls_check (uri, f);

  if (r < 0)
    return r;
  if (configure (h, structured) < 0 || nbd_aio_connect_uri (h, uri) < 0)
    return cannot_connect (f);
  r = wait_until_ready (h, deadline_ms, cancel_fd, f);
  return r < 0 ? r : learn (h, e, f);
}

int
io_nbd_conn_open (struct nbd_conn *c, const char *uri, bool structured,
                  int timeout_ms, int cancel_fd, struct nbd_export *e,
                  struct fault *f)
{
  int r;

  *c = (struct nbd_conn) { .wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK) };
  if (c->wake_fd == -1)
    return fault_io (f, errno, UINT64_MAX, "eventfd: %m");
  c->h = nbd_create ();
  r = c->h ? open_handle (c->h, uri, structured, timeout_ms, cancel_fd, e, f)
    : failed (f, "cannot connect");
  if (r < 0)
    io_nbd_conns_close (c, 1, false);
  else
    c->fd = nbd_aio_get_fd (c->h);
  return r;
}

/* --- The thread --------------------------------------------------------- */

static bool
must_stop (const struct nbd_conn *c)
{
  return __atomic_load_n (&c->stop, __ATOMIC_ACQUIRE);
}

/* Waits until the other side ends the connection. */
static void *
watch_thread (void *opaque)
{
  struct nbd_conn *c = opaque;
  struct pollfd p[2] = { { .fd = c->fd, .events = POLLRDHUP },
                         { .fd = c->wake_fd, .events = POLLIN } };

  uint64_t count;

  do {
    if (poll (p, 2, -1) > 0 && p[1].revents)
      (void) !read (c->wake_fd, &count, sizeof count);
  }
  while (p[0].revents == 0 && !must_stop (c));
  if (!must_stop (c))
    c->lost (c->opaque);
  return NULL;
}

static void *
poll_thread (void *opaque)
{
  struct nbd_conn *c = opaque;
  uint64_t count;
  short woken;

  while (!is_broken (c->h)) {
    step (c->h, c->fd, c->wake_fd, -1, &woken);
    if (must_stop (c))
      return NULL;
    if (woken)
      (void) !read (c->wake_fd, &count, sizeof count);
  }
  c->lost (c->opaque);
  return NULL;
}

int
io_nbd_conn_start (struct nbd_conn *c, bool lent, void (*lost) (void *),
                   void *opaque)
{
  int r;

  c->lost = lost;
  c->opaque = opaque;
  c->stop = false;
  c->lent = lent;
  r = pthread_create (&c->thread, NULL, lent ? watch_thread : poll_thread, c);
  if (r != 0)
    c->lost = NULL;
  return -r;
}

static void
wake (struct nbd_conn *c)
{
  const uint64_t one = 1;

  (void) !write (c->wake_fd, &one, sizeof one);
}

void
io_nbd_conn_kick (struct nbd_conn *c)
{
  if (nbd_aio_get_direction (c->h) & LIBNBD_AIO_DIRECTION_WRITE)
    wake (c);
}

void
io_nbd_conn_stop (struct nbd_conn *c)
{
  if (c->lost == NULL)
    return;
  __atomic_store_n (&c->stop, true, __ATOMIC_RELEASE);
  wake (c);
  pthread_join (c->thread, NULL);
  c->lost = NULL;
}

/* Says goodbye, so that the server does not log a client that vanished. */
static void
say_goodbye (struct nbd_conn *c)
{
  if (!is_broken (c->h))
    (void) nbd_aio_disconnect (c->h, 0);
}

static void
wait_for_goodbye (struct nbd_handle *h, int64_t deadline_ms)
{
  int64_t left = deadline_ms - io_nbd_now_ms ();
  short other;

  for (; left > 0 && !is_broken (h); left = deadline_ms - io_nbd_now_ms ())
    step (h, nbd_aio_get_fd (h), -1, (int) left, &other);
}

static void
free_conn (struct nbd_conn *c)
{
  nbd_close (c->h);
  if (c->wake_fd != -1)
    close (c->wake_fd);
  c->h = NULL;
  c->wake_fd = -1;
}

#define GOODBYE_MS 1000

void
io_nbd_conns_close (struct nbd_conn *c, unsigned nr, bool polite)
{
  int64_t deadline_ms;
  unsigned i;

  for (i = 0; i < nr; i++)
    io_nbd_conn_stop (&c[i]);
  for (i = 0; i < nr && polite; i++)
    say_goodbye (&c[i]);
  deadline_ms = io_nbd_now_ms () + GOODBYE_MS;
  for (i = 0; i < nr && polite; i++)
    wait_for_goodbye (c[i].h, deadline_ms);
  for (i = 0; i < nr; i++)
    free_conn (&c[i]);
}
