/* SPDX-License-Identifier: BSD-3-Clause */
/* dedup-relay: passes the connections of a Unix socket on to another one, and each byte
 * some milliseconds after it came, as a longer line would.
 *
 *   dedup-relay LISTEN TO MILLISECONDS
 *
 * MILLISECONDS is the time of a round trip; half of it is spent in each direction.  It
 * ends with SIGTERM or SIGINT, and prints one line then: the bytes that went to the
 * server and those that came back.  The bandwidth is not bounded.
 *
 * Each direction of a connection has two threads: one receives pieces and notes when they
 * came, the other sends each when it is due.  At most QUEUE bytes wait between the two;
 * then the sender is held up, as by the window of TCP.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "clock.h"

#define PIECE (UINT64_C (256) << 10)
#define QUEUE (UINT64_C (64) << 20)

struct piece {
  struct piece *next;
  uint64_t due_ns;
  size_t len;                 /* 0: the end */
  uint8_t bytes[];
};

struct direction {
  int from, to;
  uint64_t *total;            /* atomic: bytes that were passed on */

  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Protected by lock: */
  struct piece *first, *last;
  uint64_t waiting;           /* bytes */
};

static uint64_t delay_ns, to_server, from_server;
static struct sockaddr_un server;

static void
die (const char *what)
{
  fprintf (stderr, "dedup-relay: %s: %s\n", what, strerror (errno));
  exit (1);
}

static void
sleep_until (uint64_t ns)
{
  const struct timespec t = { .tv_sec = (time_t) (ns / 1000000000),
                              .tv_nsec = (long) (ns % 1000000000) };

  while (clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
    ;
}

/* --- Receiving -------------------------------------------------------------- */

static struct piece *
receive (struct direction *d)
{
  struct piece *p = malloc (sizeof *p + PIECE);
  ssize_t n;

  if (p == NULL)
    die ("malloc");
  do
    n = recv (d->from, p->bytes, PIECE, 0);
  while (n == -1 && errno == EINTR);
  p->next = NULL;
  p->len = n > 0 ? (size_t) n : 0;
  p->due_ns = clock_now_ns () + delay_ns;
  return p;
}

static void
append (struct direction *d, struct piece *p)
{
  pthread_mutex_lock (&d->lock);
  while (d->waiting > QUEUE)
    pthread_cond_wait (&d->changed, &d->lock);
  *(d->last ? &d->last->next : &d->first) = p;
  d->last = p;
  d->waiting += p->len;
  pthread_cond_broadcast (&d->changed);
  pthread_mutex_unlock (&d->lock);
}

static void *
receiver (void *opaque)
{
  struct direction *d = opaque;
  struct piece *p;
  bool end;

  do {
    p = receive (d);
    end = p->len == 0;
    append (d, p);
  } while (!end);
  return NULL;
}

/* --- Sending ---------------------------------------------------------------- */

static struct piece *
take (struct direction *d)
{
  struct piece *p;

  pthread_mutex_lock (&d->lock);
  while (d->first == NULL)
    pthread_cond_wait (&d->changed, &d->lock);
  p = d->first;
  d->first = p->next;
  if (d->first == NULL)
    d->last = NULL;
  d->waiting -= p->len;
  pthread_cond_broadcast (&d->changed);
  pthread_mutex_unlock (&d->lock);
  return p;
}

/* What cannot be sent is dropped: the other side has gone. */
static void
send_piece (struct direction *d, const struct piece *p)
{
  size_t done = 0;
  ssize_t n;

  while (done < p->len) {
    n = send (d->to, p->bytes + done, p->len - done, MSG_NOSIGNAL);
    if (n == -1 && errno != EINTR)
      return;
    done += n > 0 ? (size_t) n : 0;
  }
  __atomic_add_fetch (d->total, p->len, __ATOMIC_RELAXED);
}

static void *
sender (void *opaque)
{
  struct direction *d = opaque;
  struct piece *p;
  bool end;

  do {
    p = take (d);
    sleep_until (p->due_ns);
    send_piece (d, p);
    end = p->len == 0;
    free (p);
  } while (!end);
  shutdown (d->to, SHUT_WR);
  return NULL;
}

/* --- Connections ------------------------------------------------------------ */

static void
start (void *(*run) (void *), struct direction *d)
{
  pthread_t thread;

  errno = pthread_create (&thread, NULL, run, d);
  if (errno)
    die ("pthread_create");
  pthread_detach (thread);
}

/* A connection's memory and sockets are kept until the program ends. */
static void
pass_on (int from, int to, uint64_t *total)
{
  struct direction *d = calloc (1, sizeof *d);

  if (d == NULL)
    die ("calloc");
  d->from = from;
  d->to = to;
  d->total = total;
  pthread_mutex_init (&d->lock, NULL);
  pthread_cond_init (&d->changed, NULL);
  start (receiver, d);
  start (sender, d);
}

static int
new_socket (void)
{
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (fd == -1)
    die ("socket");
  return fd;
}

static struct sockaddr_un
address (const char *path)
{
  struct sockaddr_un a = { .sun_family = AF_UNIX };

  if (strlen (path) >= sizeof a.sun_path) {
    errno = ENAMETOOLONG;
    die (path);
  }
  strcpy (a.sun_path, path);
  return a;
}

static void *
accept_all (void *opaque)
{
  const int listener = *(int *) opaque;
  int client, to;

  while ((client = accept (listener, NULL, NULL)) != -1) {
    to = new_socket ();
    if (connect (to, (struct sockaddr *) &server, sizeof server) == -1)
      die (server.sun_path);
    pass_on (client, to, &to_server);
    pass_on (to, client, &from_server);
  }
  die ("accept");
  return NULL;
}

int
main (int argc, char *argv[])
{
  int listener = new_socket (), number;
  struct sockaddr_un a;
  pthread_t thread;
  sigset_t end;

  if (argc != 4) {
    fprintf (stderr, "usage: dedup-relay LISTEN TO MILLISECONDS\n");
    return 2;
  }
  delay_ns = (uint64_t) (atof (argv[3]) * 1e6 / 2);
  server = address (argv[2]);
  a = address (argv[1]);
  unlink (argv[1]);
  if (bind (listener, (struct sockaddr *) &a, sizeof a) == -1 ||
      listen (listener, 64) == -1)
    die (argv[1]);
  sigemptyset (&end);
  sigaddset (&end, SIGTERM);
  sigaddset (&end, SIGINT);
  pthread_sigmask (SIG_BLOCK, &end, NULL);
  errno = pthread_create (&thread, NULL, accept_all, &listener);
  if (errno)
    die ("pthread_create");
  sigwait (&end, &number);
  printf ("%" PRIu64 " %" PRIu64 "\n", __atomic_load_n (&to_server, __ATOMIC_RELAXED),
          __atomic_load_n (&from_server, __ATOMIC_RELAXED));
  return 0;
}
