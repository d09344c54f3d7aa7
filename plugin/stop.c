/* SPDX-License-Identifier: BSD-3-Clause */
/* Ends the server on a signal, whatever its clients do.
 *
 * nbdkit's own handler sets a flag and then waits until every client has hung
 * up.  That never ends if a client is idle, and meanwhile nbdkit answers
 * requests with ESHUTDOWN, which a guest sees as an I/O error.  So its handlers
 * are replaced by one that wakes a thread, which
 *
 *  1. closes the gate: requests that are in the plugin are finished and
 *     answered; later ones, and new connections, are blocked;
 *  2. closes the image;
 *  3. ends the process: with nbdkit_shutdown if there are no connections, else
 *     with _exit, which cuts them.
 *
 * A client sees its connection end with some requests unanswered, but never an
 * error.  If it connects again (QEMU's reconnect-delay), it sends those
 * requests again, to the next server.  Nothing that was answered is lost, as
 * the image is closed after the last answer.
 *
 * Blocked requests never return.  If they failed instead, the client might get
 * an error before its connection ends; and nbdkit 1.32 aborts when it has
 * several replies to send on a connection that is cut (an assertion in
 * raw_send_socket).
 *
 * The time of steps 1 and 2 depends on the storage alone: a request is in the
 * plugin only while it uses the image, not while nbdkit receives it or sends
 * the reply.
 *
 * Connections are counted by their threads.  nbdkit has a thread for each,
 * which calls .preconnect first.  It calls .close only if the handshake had
 * succeeded, so the end of a connection is taken to be that of its thread (a
 * destructor of thread-specific data; the plugin is linked so that it stays
 * loaded).
 *
 * One abort is handled in the same way, but ends the process with a failure: an
 * assertion in nbdkit that a client can cause by hanging up (send-abort.c).
 * The thread that aborts is stopped in the handler.  It is a thread of nbdkit's
 * between two requests, so the image is in a valid state.
 *
 * Left out on purpose: a filter that calls nbdkit_shutdown.  nbdkit then ends
 * in its own way, after the last client.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "report.h"
#include "send-abort.h"
#include "stale-socket.h"
#include "stop.h"

/* The time for connections to end by themselves, once the image is closed. */
#define CONNECTIONS_GRACE_MS 100

/* The time for nbdkit to call .cleanup after nbdkit_shutdown.  It takes longer
 * only if a client has just connected. */
#define SHUTDOWN_GRACE_MS 1000

static const int signals[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT };

/* Constant after stop_init: */
static void (*close_image) (void);
static pthread_t thread;
static bool started;
static int wake_fd = -1;

/* Atomic: */
static int nr_inside;           /* threads between stop_enter and stop_leave */
static bool gate_closed;
static bool aborted;            /* nbdkit aborted, as a client hung up */

/* What the thread is doing, if it is one of nbdkit's. */
static __thread enum { NO_REQUEST_YET, INSIDE, BETWEEN_REQUESTS } position;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;  /* CLOCK_MONOTONIC */
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

/* Protected by mutex: */
static unsigned nr_connections;
static bool finishing;          /* stop_finish was called */

static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t connection_key;

/* --- The gate ------------------------------------------------------------- */

/* Blocks the calling thread for ever. */
static void
block (void)
{
  pthread_mutex_lock (&mutex);
  for (;;)
    pthread_cond_wait (&never, &mutex);
}

bool
stop_try_enter (void)
{
  __atomic_fetch_add (&nr_inside, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n (&gate_closed, __ATOMIC_SEQ_CST)) {
    stop_leave ();
    return false;
  }
  position = INSIDE;
  return true;
}

void
stop_enter (void)
{
  if (!stop_try_enter ())
    block ();
}

void
stop_leave (void)
{
  position = BETWEEN_REQUESTS;
  if (__atomic_sub_fetch (&nr_inside, 1, __ATOMIC_SEQ_CST) == 0 &&
      __atomic_load_n (&gate_closed, __ATOMIC_SEQ_CST)) {
    pthread_mutex_lock (&mutex);
    pthread_cond_broadcast (&changed);
    pthread_mutex_unlock (&mutex);
  }
}

/* Closes the gate, and waits until no thread is inside. */
static void
close_gate (void)
{
  __atomic_store_n (&gate_closed, true, __ATOMIC_SEQ_CST);
  pthread_mutex_lock (&mutex);
  while (__atomic_load_n (&nr_inside, __ATOMIC_SEQ_CST) > 0)
    pthread_cond_wait (&changed, &mutex);
  pthread_mutex_unlock (&mutex);
}

/* --- Connections ---------------------------------------------------------- */

static void
connection_ended_cb (void *unused)
{
  pthread_mutex_lock (&mutex);
  nr_connections--;
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&mutex);
}

static void
make_key (void)
{
  if (pthread_key_create (&connection_key, connection_ended_cb) != 0)
    abort ();                   /* all 1024 keys are in use */
}

void
stop_count_connection (void)
{
  pthread_once (&key_once, make_key);
  /* If there is no memory, the connection is not counted.  If it is still there
   * when the server stops, that takes SHUTDOWN_GRACE_MS longer. */
  if (pthread_setspecific (connection_key, &connection_key) == 0) {
    pthread_mutex_lock (&mutex);
    nr_connections++;
    pthread_mutex_unlock (&mutex);
  }
  if (__atomic_load_n (&gate_closed, __ATOMIC_SEQ_CST))
    block ();
}

/* --- The thread ----------------------------------------------------------- */

static void
wake (void)
{
  static const uint64_t one = 1;
  ssize_t r = write (wake_fd, &one, sizeof one);

  (void) r;                     /* fails only if the thread is awake already */
}

void
stop_request (void)
{
  wake ();
}

static void
signal_cb (int sig)
{
  int saved_errno = errno;

  wake ();
  errno = saved_errno;
}

/* Handles SIGABRT.  The message is checked first: if the heap is damaged, even
 * the access to the thread-local position may fail.  Any other abort kills the
 * process when the handler returns. */
static void
abort_cb (int sig)
{
  if (!send_abort_is_it () || position != BETWEEN_REQUESTS) {
    signal (sig, SIG_DFL);
    raise (sig);
    return;
  }
  __atomic_store_n (&aborted, true, __ATOMIC_SEQ_CST);
  wake ();
  for (;;)
    pause ();
}

static void
wait_for_wake (void)
{
  uint64_t n;

  while (read (wake_fd, &n, sizeof n) < 0 && errno == EINTR)
    ;
}

static bool
no_connection_locked (void)
{
  return nr_connections == 0;
}

static bool
is_finishing_locked (void)
{
  return finishing;
}

/* Waits until CONDITION is true, but at most MS milliseconds.  Returns the last
 * result of CONDITION. */
static bool
wait_locked (bool (*condition) (void), unsigned ms)
{
  struct timespec deadline;
  int r = 0;

  clock_gettime (CLOCK_MONOTONIC, &deadline);
  deadline.tv_nsec += (long) (ms % 1000) * 1000000;
  deadline.tv_sec += ms / 1000 + deadline.tv_nsec / 1000000000;
  deadline.tv_nsec %= 1000000000;
  while (!condition () && r == 0)
    r = pthread_cond_timedwait (&changed, &mutex, &deadline);
  return condition ();
}

/* Ends the process without nbdkit's shutdown. */
static _Noreturn void
end_at_once (int status)
{
  remove_temporary_socket ();
  _exit (status);
}

/* Ends the process, or returns when nbdkit is in .cleanup. */
static void
end_process (void)
{
  bool orderly;

  if (__atomic_load_n (&aborted, __ATOMIC_SEQ_CST))
    end_at_once (EXIT_FAILURE);
  pthread_mutex_lock (&mutex);
  orderly = finishing || wait_locked (no_connection_locked,
                                      CONNECTIONS_GRACE_MS);
  if (orderly && !finishing) {
    nbdkit_shutdown ();
    orderly = wait_locked (is_finishing_locked, SHUTDOWN_GRACE_MS);
  }
  if (!orderly && !finishing)
    end_at_once (EXIT_SUCCESS);
  pthread_mutex_unlock (&mutex);
}

static bool
is_finishing (void)
{
  bool b;

  pthread_mutex_lock (&mutex);
  b = is_finishing_locked ();
  pthread_mutex_unlock (&mutex);
  return b;
}

static void *
stop_main (void *unused)
{
  wait_for_wake ();
  if (!is_finishing ()) {
    if (__atomic_load_n (&aborted, __ATOMIC_SEQ_CST))
      report_error ("nbdkit failed when a client hung up: closing the image");
    close_gate ();
    close_image ();
    end_process ();
  }
  return NULL;
}

/* --- Start and end -------------------------------------------------------- */

static int
init_cond (void)
{
  pthread_condattr_t attr;
  int r = pthread_condattr_init (&attr);

  if (r == 0) {
    pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
    r = pthread_cond_init (&changed, &attr);
    pthread_condattr_destroy (&attr);
  }
  return r;
}

/* Starts the thread with all signals blocked: they are for nbdkit's threads. */
static int
start_thread (void)
{
  sigset_t all, old;
  int r;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  r = pthread_create (&thread, NULL, stop_main, NULL);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return r;
}

static void
take_signals (void)
{
  struct sigaction sa = { .sa_handler = signal_cb, .sa_flags = SA_RESTART };
  size_t i;

  sigemptyset (&sa.sa_mask);
  for (i = 0; i < sizeof signals / sizeof signals[0]; ++i)
    sigaction (signals[i], &sa, NULL);
  sa.sa_handler = abort_cb;
  sigaction (SIGABRT, &sa, NULL);
}

int
stop_init (void (*close_image_cb) (void))
{
  int r;

  close_image = close_image_cb;
  send_abort_init ();
  wake_fd = eventfd (0, EFD_CLOEXEC);
  if (wake_fd < 0)
    return -errno;
  r = init_cond ();
  if (r == 0)
    r = start_thread ();
  if (r != 0) {
    close (wake_fd);
    wake_fd = -1;
    return -r;
  }
  started = true;
  take_signals ();
  return 0;
}

/* Keeps the eventfd open, because the handler may still use it. */
void
stop_finish (void)
{
  if (!started)
    return;
  pthread_mutex_lock (&mutex);
  finishing = true;
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&mutex);
  wake ();
  pthread_join (thread, NULL);
  started = false;
}
