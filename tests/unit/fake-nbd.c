/* SPDX-License-Identifier: BSD-3-Clause */
/* Implements fake-nbd.h by the NBD protocol: the fixed newstyle handshake with
 * NBD_OPT_GO, then simple replies.
 *
 * One lock for all: requests are done one at a time.  A thread accepts, and
 * joins the threads of the connections at the end; each of these frees nothing
 * but its socket.
 */
#include "fake-nbd.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/un.h>

#define OPT_ABORT 2
#define OPT_GO 7
#define REP_ACK 1
#define REP_INFO 3
#define REP_ERR_UNSUP 0x80000001u

struct fake_conn {
  struct fake_conn *next;
  struct fake_nbd *s;
  pthread_t thread;
  int fd;
  unsigned idx;                /* counts from 1 */
};

/* --- Bytes on the wire -------------------------------------------------- */

static bool
get (int fd, void *buf, size_t len)
{
  ssize_t n;

  for (; len > 0; buf = (char *) buf + n, len -= (size_t) n) {
    n = recv (fd, buf, len, 0);
    if (n <= 0)
      return false;
  }
  return true;
}

static bool
put (int fd, const void *buf, size_t len)
{
  ssize_t n;

  for (; len > 0; buf = (const char *) buf + n, len -= (size_t) n) {
    n = send (fd, buf, len, MSG_NOSIGNAL);
    if (n <= 0)
      return false;
  }
  return true;
}

struct option {
  uint64_t magic;
  uint32_t option, len;
} __attribute__ ((__packed__));

struct option_reply {
  uint64_t magic;
  uint32_t option, type, len;
} __attribute__ ((__packed__));

struct info {
  uint16_t type;
  uint64_t size;
  uint16_t flags;
} __attribute__ ((__packed__));

struct block_sizes {
  uint16_t type;
  uint32_t min, preferred, max;
} __attribute__ ((__packed__));

struct request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, off;
  uint32_t len;
} __attribute__ ((__packed__));

struct reply {
  uint32_t magic, error;
  uint64_t cookie;
} __attribute__ ((__packed__));

/* --- Handshake ---------------------------------------------------------- */

static bool
reply_option (int fd, uint32_t option, uint32_t type, const void *data,
              uint32_t len)
{
  const struct option_reply r = {
    htobe64 (0x3e889045565a9), option, htobe32 (type), htobe32 (len)
  };

  return put (fd, &r, sizeof r) && put (fd, data, len);
}

static bool
describe (struct fake_nbd *s, int fd, uint32_t option)
{
  const uint16_t flags = s->flags ? s->flags : FAKE_ALL;
  const struct info info = { 0, htobe64 (s->size), htobe16 (flags) };
  const struct block_sizes sizes = { htobe16 (3), htobe32 (s->min_block),
                                     htobe32 (65536), htobe32 (1 << 25) };

  if (s->min_block > 0 &&
      !reply_option (fd, option, REP_INFO, &sizes, sizeof sizes))
    return false;
  return reply_option (fd, option, REP_INFO, &info, sizeof info) &&
    reply_option (fd, option, REP_ACK, NULL, 0);
}

static bool
shake_hands (struct fake_nbd *s, int fd)
{
  static const char hello[] = "NBDMAGICIHAVEOPT\0\3";
  char data[4096];
  uint32_t flags, type;
  struct option o;

  if (!put (fd, hello, 18) || !get (fd, &flags, sizeof flags))
    return false;
  for (;;) {
    if (!get (fd, &o, sizeof o) || be32toh (o.len) > sizeof data ||
        !get (fd, data, be32toh (o.len)))
      return false;
    type = be32toh (o.option);
    if (type == OPT_GO)
      return describe (s, fd, o.option);
    if (!reply_option (fd, o.option,
                       type == OPT_ABORT ? REP_ACK : REP_ERR_UNSUP, NULL, 0) ||
        type == OPT_ABORT)
      return false;
  }
}

/* --- Requests ----------------------------------------------------------- */

static void
apply (struct fake_nbd *s, const struct fake_request *r, uint8_t *data)
{
  assert (r->off + r->len <= s->size);
  switch (r->type) {
  case FAKE_READ: memcpy (data, s->now + r->off, r->len); break;
  case FAKE_WRITE:
    memcpy (s->now + r->off, data, r->len);
    if (r->fua)
      memcpy (s->flushed + r->off, data, r->len);
    break;
  case FAKE_TRIM: memset (s->now + r->off, 0, r->len); break;
  case FAKE_FLUSH: memcpy (s->flushed, s->now, s->size); break;
  case FAKE_DISC: break;
  }
}

static void
cut_locked (struct fake_nbd *s)
{
  struct fake_conn *c;

  for (c = s->conns; c; c = c->next)
    shutdown (c->fd, SHUT_RDWR);
}

static void
keep_stray (struct fake_nbd *s, const struct fake_request *r,
            const uint8_t *data)
{
  free (s->stray_bytes);
  s->stray = *r;
  s->stray_bytes = malloc (r->len + 1);
  assert (s->stray_bytes);
  if (r->type == FAKE_WRITE)
    memcpy (s->stray_bytes, data, r->len);
}

/* Returns what to reply: an error of NBD, 0, or a fate without a reply. */
static int
decide (struct fake_nbd *s, struct fake_request *r, uint8_t *data)
{
  int fate;

  r->idx = s->nr_requests++;
  if (s->act) {
    fate = s->act (s->opaque, r, data);
    if (fate == FAKE_CUT)
      cut_locked (s);
    return fate;
  }
  fate = s->fate ? s->fate (s->opaque, r) : FAKE_DO;
  if (fate == FAKE_DO || fate == FAKE_LATE || fate == FAKE_DO_AND_CUT ||
      fate == FAKE_DO_AND_CRASH)
    apply (s, r, data);
  if (fate == FAKE_STRAY)
    keep_stray (s, r, data);
  if (fate == FAKE_CRASH || fate == FAKE_DO_AND_CRASH)
    memcpy (s->now, s->flushed, s->size);
  if (fate < 0 && fate != FAKE_SILENCE && fate != FAKE_LATE)
    cut_locked (s);
  return fate;
}

static bool
serve_one (struct fake_nbd *s, const struct fake_conn *c, uint8_t *data)
{
  const int fd = c->fd;
  struct request q;
  struct fake_request r;
  struct reply reply = { htobe32 (0x67446698), 0, 0 };
  int fate;

  if (!get (fd, &q, sizeof q) || be32toh (q.magic) != 0x25609513)
    return false;
  r = (struct fake_request) { 0, be16toh (q.type), be64toh (q.off),
                              be32toh (q.len), q.flags != 0, c->idx };
  if (r.type == FAKE_DISC ||
      (r.type == FAKE_WRITE && !get (fd, data, r.len)))
    return false;
  pthread_mutex_lock (&s->lock);
  fate = decide (s, &r, data);
  pthread_mutex_unlock (&s->lock);
  if (fate < 0 && fate != FAKE_LATE)
    return true;
  if (fate == FAKE_LATE)
    usleep (50000);
  reply.error = htobe32 (fate > 0 ? (uint32_t) fate : 0);
  reply.cookie = q.cookie;
  return put (fd, &reply, sizeof reply) &&
    (r.type != FAKE_READ || fate > 0 || put (fd, data, r.len));
}

static void *
serve (void *opaque)
{
  struct fake_conn *c = opaque;
  uint8_t *data = malloc (c->s->size);

  assert (data);
  if (shake_hands (c->s, c->fd))
    while (serve_one (c->s, c, data))
      ;
  shutdown (c->fd, SHUT_RDWR);
  free (data);
  return NULL;
}

/* --- Listening ---------------------------------------------------------- */

static void
accept_one (struct fake_nbd *s)
{
  struct fake_conn *c = calloc (1, sizeof *c);

  assert (c);
  c->s = s;
  c->fd = accept (s->listener, NULL, NULL);
  assert (c->fd >= 0);
  pthread_mutex_lock (&s->lock);
  c->next = s->conns;
  s->conns = c;
  c->idx = ++s->nr_connections;
  pthread_mutex_unlock (&s->lock);
  assert (pthread_create (&c->thread, NULL, serve, c) == 0);
}

static void *
listen_thread (void *opaque)
{
  struct fake_nbd *s = opaque;
  struct pollfd p[2] = { { .fd = s->listener, .events = POLLIN },
                         { .fd = s->ender[0], .events = POLLIN } };

  for (;;) {
    poll (p, 2, -1);
    if (p[1].revents)
      return NULL;
    if (p[0].revents)
      accept_one (s);
  }
}

void
fake_init (struct fake_nbd *s)
{
  pthread_mutex_init (&s->lock, NULL);
  if (s->act)
    return;
  s->now = calloc (1, s->size);
  s->flushed = calloc (1, s->size);
  assert (s->now && s->flushed);
}

void
fake_listen (struct fake_nbd *s)
{
  struct sockaddr_un a = { .sun_family = AF_UNIX };

  memcpy (a.sun_path, s->socket, sizeof s->socket);
  unlink (s->socket);
  s->listener = socket (AF_UNIX, SOCK_STREAM, 0);
  assert (s->listener >= 0);
  assert (bind (s->listener, (struct sockaddr *) &a, sizeof a) == 0);
  assert (listen (s->listener, 64) == 0);
}

void
fake_start (struct fake_nbd *s)
{
  fake_listen (s);
  assert (pipe (s->ender) == 0);
  assert (pthread_create (&s->thread, NULL, listen_thread, s) == 0);
}

void
fake_cut (struct fake_nbd *s)
{
  pthread_mutex_lock (&s->lock);
  cut_locked (s);
  pthread_mutex_unlock (&s->lock);
}

void
fake_cut_one (struct fake_nbd *s, unsigned idx)
{
  struct fake_conn *c;

  pthread_mutex_lock (&s->lock);
  for (c = s->conns; c; c = c->next)
    if (c->idx == idx)
      shutdown (c->fd, SHUT_RDWR);
  pthread_mutex_unlock (&s->lock);
}

void
fake_stop (struct fake_nbd *s)
{
  struct fake_conn *c;

  assert (write (s->ender[1], "", 1) == 1);
  pthread_join (s->thread, NULL);
  close (s->listener);
  close (s->ender[0]);
  close (s->ender[1]);
  unlink (s->socket);
  fake_cut (s);
  while ((c = s->conns) != NULL) {
    pthread_join (c->thread, NULL);
    pthread_mutex_lock (&s->lock);
    s->conns = c->next;
    pthread_mutex_unlock (&s->lock);
    close (c->fd);
    free (c);
  }
}

void
fake_lose (struct fake_nbd *s)
{
  pthread_mutex_lock (&s->lock);
  memcpy (s->now, s->flushed, s->size);
  pthread_mutex_unlock (&s->lock);
}

void
fake_land (struct fake_nbd *s)
{
  pthread_mutex_lock (&s->lock);
  assert (s->stray_bytes);
  apply (s, &s->stray, s->stray_bytes);
  pthread_mutex_unlock (&s->lock);
}

void
fake_destroy (struct fake_nbd *s)
{
  free (s->now);
  free (s->flushed);
  free (s->stray_bytes);
  s->stray_bytes = NULL;
  pthread_mutex_destroy (&s->lock);
}
