/* SPDX-License-Identifier: BSD-3-Clause */
/* A small blocking client of QMP's wire protocol.
 *
 * A command is sent as one line, and lines are read until one is its reply, which has
 * the same "id".  What the other end sends is bounded: a line by MAX_LINE, and all
 * calls by a time limit that counts from their beginning, so that neither a server
 * that hangs nor a program that is no server keeps a tool waiting.
 *
 * One thread.  The socket does not block; all waiting is in wait_for.
 */
#include "control-client.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "clock.h"

/* A server cuts its replies at 64 KiB; those of QEMU are larger. */
#define MAX_LINE (4u << 20)
#define FIRST_BUFFER 65536u
#define NO_QMP "the other end does not speak QMP"
#define RETRY_MS 20             /* while a server's queue of connections is full */

struct control_client {
  int fd;
  unsigned timeout_ms;
  uint64_t deadline_ms;         /* of the call that runs */
  json_int_t last_id;
  char *buf;                    /* bytes that were received */
  size_t len, max;
};

static uint64_t
now_ms (void)
{
  return clock_now_ns () / 1000000;
}

static void
begin_call (struct control_client *c)
{
  c->deadline_ms = now_ms () + c->timeout_ms;
}

static int
timed_out (const struct control_client *c, struct fault *f)
{
  return fault_io (f, ETIMEDOUT, UINT64_MAX, "the server did not answer within %u "
                   "ms", c->timeout_ms);
}

static int
has_ended (int err, struct fault *f)
{
  return fault_io (f, err, UINT64_MAX, "the server ended the connection");
}

static int
failed (const char *what, struct fault *f)
{
  const int err = errno;

  if (err == EPIPE || err == ECONNRESET)
    return has_ended (err, f);
  return fault_io (f, err, UINT64_MAX, "%s: %s", what, strerror (err));
}

/* Waits until the socket is ready for EVENTS. */
static int MUST_CHECK
wait_for (struct control_client *c, short events, struct fault *f)
{
  struct pollfd p = { .fd = c->fd, .events = events };
  uint64_t now;
  int r;

  do {
    now = now_ms ();
    if (now >= c->deadline_ms)
      return timed_out (c, f);
    r = poll (&p, 1, (int) MIN_OF (c->deadline_ms - now, 60000));
  } while (r == 0 || (r < 0 && errno == EINTR));
  return r < 0 ? failed ("waiting for the server", f) : 0;
}

/* --- Sending -------------------------------------------------------------- */

static int MUST_CHECK
send_all (struct control_client *c, const char *bytes, size_t len,
          struct fault *f)
{
  while (len > 0) {
    const ssize_t n = send (c->fd, bytes, len, MSG_NOSIGNAL);
    int r;

    if (n < 0 && errno != EAGAIN && errno != EINTR)
      return failed ("sending to the server", f);
    if (n > 0) {
      bytes += n;
      len -= (size_t) n;
    } else if ((r = wait_for (c, POLLOUT, f)) < 0)
      return r;
  }
  return 0;
}

static int MUST_CHECK
send_value (struct control_client *c, const json_t *v, struct fault *f)
{
  char *text = json_dumps (v, JSON_COMPACT | JSON_ENSURE_ASCII), *line;
  int len, r;

  /* In one piece: the server needs no newline, and may have quit when it comes. */
  len = text ? asprintf (&line, "%s\n", text) : -1;
  free (text);
  if (len < 0)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = send_all (c, line, (size_t) len, f);
  free (line);
  return r;
}

/* --- Receiving ------------------------------------------------------------ */

static int MUST_CHECK
make_room (struct control_client *c, struct fault *f)
{
  const size_t max = c->max ? 2 * c->max : FIRST_BUFFER;
  char *buf;

  if (c->len < c->max)
    return 0;
  if (max > MAX_LINE)
    return fault_io (f, EPROTO, UINT64_MAX, "the server sends a line of more than "
                     "%u bytes", MAX_LINE);
  buf = realloc (c->buf, max);
  if (buf == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  c->buf = buf;
  c->max = max;
  return 0;
}

/* Receives some more bytes. */
static int MUST_CHECK
receive (struct control_client *c, struct fault *f)
{
  ssize_t n;
  int r = make_room (c, f);

  while (r == 0) {
    n = recv (c->fd, c->buf + c->len, c->max - c->len, 0);
    if (n > 0) {
      c->len += (size_t) n;
      return 0;
    }
    if (n == 0)
      return has_ended (EPROTO, f);
    if (errno != EAGAIN && errno != EINTR)
      return failed ("reading from the server", f);
    r = wait_for (c, POLLIN, f);
  }
  return r;
}

/* Receives one line, and sets *V to the object in it.  What does not begin as one is no
 * reply, though its line may never end: an NBD server's greeting, for instance. */
static int MUST_CHECK
receive_value (struct control_client *c, json_t **v, struct fault *f)
{
  size_t seen = 0, len;
  char *end;
  int r;

  while ((end = c->len > seen ? memchr (c->buf + seen, '\n', c->len - seen)
          : NULL) == NULL) {
    seen = c->len;
    r = receive (c, f);
    if (r < 0)
      return r;
    if (c->buf[0] != '{')
      return fault_io (f, EPROTO, UINT64_MAX, NO_QMP);
  }
  len = (size_t) (end - c->buf) + 1;
  *v = json_loadb (c->buf, len, JSON_REJECT_DUPLICATES, NULL);
  memmove (c->buf, c->buf + len, c->len - len);
  c->len -= len;
  if (json_is_object (*v))
    return 0;
  json_decref (*v);
  return fault_io (f, EPROTO, UINT64_MAX, NO_QMP);
}

/* --- Commands ------------------------------------------------------------- */

static json_t *
new_command (const char *name, json_t *args, json_int_t id)
{
  json_t *o = json_object ();

  json_object_set_new (o, "execute", json_string (name));
  if (args)
    json_object_set_new (o, "arguments", args);
  json_object_set_new (o, "id", json_integer (id));
  return o;
}

/* Fills F with the error that REPLY has. */
static int
refused (const char *name, const json_t *reply, struct fault *f)
{
  const json_t *e = json_object_get (reply, "error");
  const char *class = json_string_value (json_object_get (e, "class"));
  const char *desc = json_string_value (json_object_get (e, "desc"));

  if (class && strcmp (class, "CommandNotFound") == 0)
    return fault_unsupported (f, "the server does not know the command %s", name);
  return fault_usage (f, "%s: %.400s", name, desc ? desc : "refused");
}

/* Takes *RET out of the reply to the command with the last id.  1: it is something
 * else. */
static int MUST_CHECK
take_reply (struct control_client *c, const char *name, json_t *reply,
            json_t **ret, struct fault *f)
{
  const json_t *id = json_object_get (reply, "id");
  int r = 1;

  if (id && json_integer_value (id) == c->last_id) {
    *ret = json_incref (json_object_get (reply, "return"));
    r = *ret ? 0 : refused (name, reply, f);
  }
  json_decref (reply);
  return r;
}

static int MUST_CHECK
exchange (struct control_client *c, const char *name, json_t *args,
          json_t **ret, struct fault *f)
{
  json_t *command = new_command (name, args, ++c->last_id), *reply;
  int r = send_value (c, command, f);

  json_decref (command);
  if (r < 0)
    return r;
  do {
    r = receive_value (c, &reply, f);
    if (r == 0)
      r = take_reply (c, name, reply, ret, f);
  } while (r == 1);
  return r;
}

int
control_command (struct control_client *c, const char *name, json_t *args,
                 json_t **ret, struct fault *f)
{
  begin_call (c);
  return exchange (c, name, args, ret, f);
}

int
control_list (struct control_client *c, const char *name,
              json_t *(*key_of) (const json_t *item), size_t max, json_t **ret,
              struct fault *f)
{
  json_t *all = json_array (), *page, *after, *args = NULL;
  size_t nr;
  int r;

  do {
    r = control_command (c, name, args, &page, f);
    if (r < 0)
      break;
    nr = json_array_size (page);
    json_array_extend (all, page);
    after = nr > 0 ? key_of (json_array_get (page, nr - 1)) : NULL;
    args = after ? json_pack ("{s:o}", "after", after) : NULL;
    json_decref (page);
  } while (nr > 0 && args && json_array_size (all) < max);
  if (r >= 0) {
    json_decref (args);
    *ret = all;
    return 0;
  }
  json_decref (all);
  return r;
}

/* --- Connecting ----------------------------------------------------------- */

static int MUST_CHECK
set_address (const char *path, struct sockaddr_un *a, struct fault *f)
{
  a->sun_family = AF_UNIX;
  if (strlen (path) >= sizeof a->sun_path)
    return fault_usage (f, "the path of a socket has at most %zu bytes",
                        sizeof a->sun_path - 1);
  strcpy (a->sun_path, path);
  return 0;
}

static int
no_connection (struct fault *f)
{
  const int err = errno;

  if (err == ENOENT || err == ECONNREFUSED)
    return fault_io (f, err, UINT64_MAX, "no server listens there (%s): it is "
                     "started with control=PATH", strerror (err));
  return fault_io (f, err, UINT64_MAX, "cannot connect: %s", strerror (err));
}

/* Connects.  A Unix socket says EAGAIN while the server's queue is full. */
static int MUST_CHECK
connect_to (struct control_client *c, const char *path, struct fault *f)
{
  struct sockaddr_un a = { 0 };
  int r = set_address (path, &a, f);

  if (r < 0)
    return r;
  c->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0)
    return failed ("making a socket", f);
  while (connect (c->fd, (struct sockaddr *) &a, sizeof a) < 0) {
    if (errno != EAGAIN && errno != EINTR)
      return no_connection (f);
    if (now_ms () >= c->deadline_ms)
      return timed_out (c, f);
    poll (NULL, 0, RETRY_MS);
  }
  return 0;
}

static int MUST_CHECK
negotiate (struct control_client *c, struct fault *f)
{
  json_t *v;
  bool is_greeting;
  int r = receive_value (c, &v, f);

  if (r < 0)
    return r;
  is_greeting = json_is_object (json_object_get (v, "QMP"));
  json_decref (v);
  if (!is_greeting)
    return fault_io (f, EPROTO, UINT64_MAX, NO_QMP);
  r = exchange (c, "qmp_capabilities", NULL, &v, f);
  if (r == 0)
    json_decref (v);
  return r;
}

int
control_connect (const char *path, unsigned timeout_ms,
                 struct control_client **out, struct fault *f)
{
  struct control_client *c = calloc (1, sizeof *c);
  int r;

  if (c == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  c->fd = -1;
  c->timeout_ms = timeout_ms;
  begin_call (c);
  r = connect_to (c, path, f);
  if (r == 0)
    r = negotiate (c, f);
  if (r < 0)
    control_close (c);
  else
    *out = c;
  return r;
}

void
control_close (struct control_client *c)
{
  if (c == NULL)
    return;
  if (c->fd >= 0)
    close (c->fd);
  free (c->buf);
  free (c);
}
