/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the commands on the control socket of an image, over the socket itself: many
 * clients at once beside requests to the disks, lists that need several replies, and an
 * end while commands run.
 *
 * Breaks if: a command is lost or answered with another one's result, two changes meet, a
 * reply is too long for clients that read lines, an event does not reach each client or
 * comes after the reply of the command that caused it, or the end of the socket loses a
 * reply.  What each command does with wrong arguments is tested by
 * tests/interop/test-control-*.sh.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "commands.h"
#include "io.h"
#include "qcow2.h"

#define MAX_SIZE (UINT64_C (64) << 20)
#define SIZE (UINT64_C (1) << 20)
#define CLUSTER 4096u
#define NR_CLIENTS 8
#define NR_WRITERS 2
#define ROUNDS 6
#define MAX_REPLY 65536

static char dir[64], path[96], sock[96];
static struct srv_image *image;
static struct srv_control *control;
static unsigned nr_quits;       /* atomic */
static enum log_level level;    /* atomic */

/* Asserts X on any thread: cmocka's assertions know the main thread only. */
#define CHECK(x)                                                                 \
  do {                                                                           \
    if (!(x)) {                                                                  \
      fprintf (stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                   \
      abort ();                                                                  \
    }                                                                            \
  } while (0)

/* --- The image and its socket ------------------------------------------------ */

static int
make_dir (void **state)
{
  strcpy (dir, "/tmp/test-commands-XXXXXX");
  if (mkdtemp (dir) == NULL)
    return -1;
  snprintf (path, sizeof path, "%s/pool", dir);
  snprintf (sock, sizeof sock, "%s/control", dir);
  return 0;
}

static int
remove_dir (void **state)
{
  return rmdir (dir);
}

static void
log_write (void *opaque, enum log_level l, const char *line)
{
  if (l == LOG_ERROR)
    print_message ("log: %s\n", line);
}

static const struct log_sink sink = { .write = log_write };

static void
quit_cb (void *opaque)
{
  assert_ptr_equal (opaque, &nr_quits);
  __atomic_add_fetch (&nr_quits, 1, __ATOMIC_RELAXED);
}

static void
level_cb (void *opaque, enum log_level l)
{
  __atomic_store_n (&level, l, __ATOMIC_RELAXED);
}

static void
open_all (void)
{
  struct srv_image_params p;
  struct srv_control_params cp = {
    .path = sock, .image_path = path, .log = &sink, .quit = quit_cb,
    .set_log_level = level_cb, .log_level = LOG_INFO, .opaque = &nr_quits,
  };
  struct fault f = { 0 };

  if (srv_control_open (&cp, &control, &f) < 0)
    fail_msg ("srv_control_open: %s", f.msg);
  srv_image_params_default (&p);
  p.path = path;
  p.log = &sink;
  if (srv_image_open (&p, &image, &f) < 0)
    fail_msg ("srv_image_open: %s", f.msg);
  srv_control_attach (control, image);
  assert_int_equal (srv_image_start (image), 0);
  assert_int_equal (srv_control_start (control), 0);
}

/* Each test begins with a new, empty pool that is served. */
static int
make_pool (void **state)
{
  struct qcow2_create_params p = {
    .virtual_size = MAX_SIZE, .cluster_bits = 12, .refcount_order = 5,
  };
  struct fault f = { 0 };
  struct io_store *io;

  unlink (path);
  assert_int_equal (io_file_open (path, IO_FILE_WRITE | IO_FILE_CREATE,
                                  IO_LOCK_WRITE, &io, &f), 0);
  assert_int_equal (qcow2_create (io, &p, &f), 0);
  io_close (io);
  nr_quits = 0;
  open_all ();
  return 0;
}

static void
close_all (void)
{
  struct stat st;

  srv_control_stop (control);
  assert_int_equal (stat (sock, &st), -1);
  assert_int_equal (srv_image_close (image), 0);
  srv_control_free (control);
  image = NULL;
  control = NULL;
}

static int
remove_pool (void **state)
{
  if (image)
    close_all ();
  return unlink (path);
}

static void
create (const char *name)
{
  struct fault f = { 0 };

  if (srv_disk_create (image, name, SIZE, &f) < 0)
    fail_msg ("%s: %s", name, f.msg);
}

/* --- A client ------------------------------------------------------------------ */

struct client {
  int fd;
  char buf[2 * MAX_REPLY];      /* what was read, from START to LEN */
  size_t start, len;
  unsigned nr_deleted, nr_shutdown;     /* events */
};

/* Returns the next line, without its end, or NULL at the end of the connection. */
static char *
read_line (struct client *c)
{
  char *end;
  ssize_t n;

  while ((end = memchr (c->buf + c->start, '\n', c->len - c->start)) == NULL) {
    memmove (c->buf, c->buf + c->start, c->len - c->start);
    c->len -= c->start;
    c->start = 0;
    CHECK (c->len < sizeof c->buf);
    n = read (c->fd, c->buf + c->len, sizeof c->buf - c->len);
    if (n <= 0)
      return NULL;
    c->len += (size_t) n;
  }
  *end = '\0';
  n = (ssize_t) c->start;
  c->start = (size_t) (end + 1 - c->buf);
  CHECK (end - (c->buf + n) < MAX_REPLY);
  return c->buf + n;
}

/* Returns the next reply, and counts the events before it. */
static json_t *
read_reply (struct client *c)
{
  const char *event;
  json_t *o;
  char *line;

  while ((line = read_line (c))) {
    o = json_loads (line, 0, NULL);
    CHECK (o);
    event = json_string_value (json_object_get (o, "event"));
    if (event == NULL)
      return o;
    c->nr_deleted += strcmp (event, "BLOCK_EXPORT_DELETED") == 0;
    c->nr_shutdown += strcmp (event, "SHUTDOWN") == 0;
    json_decref (o);
  }
  return NULL;
}

static void
put_text (struct client *c, const char *text)
{
  CHECK (send (c->fd, text, strlen (text), MSG_NOSIGNAL) ==
         (ssize_t) strlen (text));
}

/* Sends a command, and returns what it returns, or fails. */
__attribute__ ((__format__ (__printf__, 2, 3))) static json_t *
command (struct client *c, const char *fmt, ...)
{
  char text[2048];
  va_list args;
  json_t *o, *ret;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  put_text (c, text);
  o = read_reply (c);
  CHECK (o);
  ret = json_object_get (o, "return");
  if (ret == NULL)
    fprintf (stderr, "%s: %s\n", text, json_dumps (o, 0));
  CHECK (ret);
  json_incref (ret);
  json_decref (o);
  return ret;
}

#define DO(...) json_decref (command (__VA_ARGS__))

static struct client *
connect_client (void)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct client *c = calloc (1, sizeof *c);
  json_t *greeting;

  CHECK (c);
  strcpy (addr.sun_path, sock);
  c->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK (connect (c->fd, (struct sockaddr *) &addr, sizeof addr) == 0);
  greeting = read_reply (c);
  CHECK (json_object_get (greeting, "QMP"));
  json_decref (greeting);
  DO (c, "{'execute': 'qmp_capabilities'}");
  return c;
}

static void
free_client (struct client *c)
{
  close (c->fd);
  free (c);
}

/* --- Many at once ----------------------------------------------------------------- */

struct worker {
  pthread_t thread;
  unsigned nr;
  bool *stop;                   /* atomic */
  unsigned nr_deleted, nr_written;
};

/* Makes, looks at and deletes disks of its own. */
static void *
change_disks (void *opaque)
{
  struct worker *w = opaque;
  struct client *c = connect_client ();

  for (unsigned i = 0; i < ROUNDS; i++) {
    DO (c, "{'execute': 'disk-create', 'arguments': {'name': 'd%u', 'size': "
        "1048576}}", w->nr);
    DO (c, "{'execute': 'query-disks', 'id': %u}", i);
    DO (c, "{'execute': 'disk-clone', 'arguments': {'source': 'w0', 'name': "
        "'c%u'}}", w->nr);
    DO (c, "{'execute': 'query-block-exports'}");
    DO (c, "{'execute': 'query-named-block-nodes'}");
    DO (c, "{'execute': 'query-jobs'}{'execute': 'query-status'}");
    json_decref (read_reply (c));
    DO (c, "{'execute': 'set', 'arguments': {'commit-interval': %u, 'log-level': "
        "'error'}}", 100 + w->nr);
    DO (c, "{'execute': 'disk-delete', 'arguments': {'name': 'd%u'}}", w->nr);
    DO (c, "{'execute': 'flush'}");
    DO (c, "{'execute': 'disk-delete', 'arguments': {'name': 'c%u'}}", w->nr);
  }
  /* Each event comes before the reply of its command. */
  CHECK (c->nr_deleted >= 2 * ROUNDS);
  w->nr_deleted = c->nr_deleted;
  free_client (c);
  return NULL;
}

static void *
write_disk (void *opaque)
{
  struct worker *w = opaque;
  struct srv_disk *d;
  struct fault f = { 0 };
  char name[8], buf[CLUSTER];

  snprintf (name, sizeof name, "w%u", w->nr);
  CHECK (srv_image_disk (image, name, &d, &f) == 0);
  for (; !__atomic_load_n (w->stop, __ATOMIC_RELAXED); w->nr_written++) {
    memset (buf, (int) w->nr_written, sizeof buf);
    CHECK (srv_pwrite (d, buf, w->nr_written % 256 * CLUSTER, CLUSTER, false) ==
           0);
  }
  srv_disk_put (image, d);
  return NULL;
}

static size_t
nr_disks (struct client *c)
{
  json_t *list = command (c, "{'execute': 'query-disks'}");
  size_t nr = json_array_size (list);

  json_decref (list);
  return nr;
}

static void
test_many_clients_beside_requests (void **state)
{
  struct worker clients[NR_CLIENTS], writers[NR_WRITERS];
  struct client *c;
  bool stop = false;
  unsigned i;

  create ("w0");
  create ("w1");
  c = connect_client ();
  for (i = 0; i < NR_WRITERS; i++) {
    writers[i] = (struct worker) { .nr = i, .stop = &stop };
    pthread_create (&writers[i].thread, NULL, write_disk, &writers[i]);
  }
  for (i = 0; i < NR_CLIENTS; i++) {
    clients[i] = (struct worker) { .nr = i };
    pthread_create (&clients[i].thread, NULL, change_disks, &clients[i]);
  }
  for (i = 0; i < NR_CLIENTS; i++)
    pthread_join (clients[i].thread, NULL);
  __atomic_store_n (&stop, true, __ATOMIC_RELAXED);
  for (i = 0; i < NR_WRITERS; i++) {
    pthread_join (writers[i].thread, NULL);
    assert_true (writers[i].nr_written > 0);
  }
  assert_int_equal (nr_disks (c), 2);
  assert_int_equal (c->nr_deleted, 2 * ROUNDS * NR_CLIENTS);
  assert_int_equal (__atomic_load_n (&level, __ATOMIC_RELAXED), LOG_ERROR);
  assert_in_range (srv_image_commit_interval (image), 100,
                       100 + NR_CLIENTS - 1);
  free_client (c);
}

/* --- Long lists --------------------------------------------------------------------- */

/* Asks COMMAND for its list page by page, and asserts that it has NR items whose MEMBER
 * grows. */
static void
assert_pages (struct client *c, const char *name, const char *member, size_t nr)
{
  CLEANUP_FREE char *after = strdup (""), *quoted;
  unsigned pages = 0;
  size_t seen = 0, i;
  json_t *list, *last;

  for (;; pages++) {
    last = json_string (after);
    quoted = json_dumps (last, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    json_decref (last);
    list = command (c, "{\"execute\": \"%s\", \"arguments\": {\"after\": %s}}",
                    name, quoted);
    free (quoted);
    quoted = NULL;
    if (json_array_size (list) == 0)
      break;
    for (i = 0; i < json_array_size (list); i++, seen++) {
      const char *s = json_string_value (
        json_object_get (json_array_get (list, i), member));

      assert_true (strcmp (s, after) > 0);
      free (after);
      after = strdup (s);
    }
    json_decref (list);
  }
  json_decref (list);
  assert_int_equal (seen, nr);
  assert_true (pages > 1);
}

static void
test_long_lists_come_in_pages (void **state)
{
  enum { NR = 180 };
  char name[256];
  struct client *c;
  json_t *list;

  for (unsigned i = 0; i < NR; i++) {
    snprintf (name, sizeof name, "%03u", i);
    while (strlen (name) + 3 < sizeof name)
      strcat (name, "\xe2\x82\xac");    /* a euro sign */
    create (name);
  }
  c = connect_client ();
  assert_pages (c, "query-disks", "name", NR);
  assert_pages (c, "query-block-exports", "id", NR);
  list = command (c, "{'execute': 'query-disks', 'arguments': {'limit': 7}}");
  assert_int_equal (json_array_size (list), 7);
  json_decref (list);
  free_client (c);
}

/* --- Many jobs ------------------------------------------------------------------------ */

static bool
never_cb (void *opaque)
{
  return false;
}

static int
step_cb (void *opaque)
{
  return 0;
}

/* What a job of a disk says whose name is not in Latin letters. */
static void
describe_cb (void *opaque, char *buf, size_t len)
{
  buf[0] = '\0';
  while (strlen (buf) + 3 < len)
    strcat (buf, "\xe2\x82\xac");
}

static void
end_cb (void *opaque, int result)
{
}

static const struct srv_job_ops waiting_job = {
  .type = "test", .can_cancel = true, .is_ready = never_cb, .step = step_cb,
  .describe = describe_cb, .end = end_cb,
};

/* Returns how many elements of the list have DETAILS, and that all jobs are in it. */
static size_t
list_of_jobs (struct client *c, size_t nr)
{
  json_t *list = command (c, "{'execute': 'query-jobs'}"), *job;
  size_t i, with_details = 0;

  assert_int_equal (json_array_size (list), nr);
  json_array_foreach (list, i, job)
    with_details += json_object_get (job, "details") != NULL;
  json_decref (list);
  return with_details;
}

static void
test_all_jobs_fit_into_a_reply (void **state)
{
  struct client *c = connect_client ();
  struct fault f = { 0 };
  char id[SRV_MAX_JOB_ID + 1];

  for (size_t i = 0; i < SRV_MAX_JOBS; i++) {
    memset (id, 'x', SRV_MAX_JOB_ID);
    snprintf (id + SRV_MAX_JOB_ID - 2, 3, "%02zu", i);
    assert_int_equal (srv_job_start (image, id, &waiting_job, NULL, NULL, &f), 0);
    if (i == 9)
      assert_int_equal (list_of_jobs (c, 10), 10);
  }
  assert_int_equal (list_of_jobs (c, SRV_MAX_JOBS), 0);
  free_client (c);
}

/* --- The end -------------------------------------------------------------------------- */

static void
test_quit_is_answered_before_the_end (void **state)
{
  struct client *c = connect_client (), *other = connect_client ();

  DO (c, "{'execute': 'quit'}");
  DO (c, "{'execute': 'quit'}");
  assert_int_equal (nr_quits, 1);
  assert_int_equal (c->nr_shutdown, 0);
  close_all ();
  assert_null (read_reply (c));
  assert_null (read_reply (other));
  assert_int_equal (c->nr_shutdown, 1);
  assert_int_equal (other->nr_shutdown, 1);
  free_client (c);
  free_client (other);
}

/* Returns whether the reply O says that the disk was made; else it says that the server
 * is about to end. */
static bool
was_made (json_t *o)
{
  const char *why = json_string_value (
    json_object_get (json_object_get (o, "error"), "desc"));

  CHECK (json_object_get (o, "return") ||
         (why && strcmp (why, "the server is stopping") == 0));
  json_decref (o);
  return why == NULL;
}

static void *
send_and_count (void *opaque)
{
  struct worker *w = opaque;
  struct client *c = connect_client ();
  char text[200];
  json_t *o;

  for (;; w->nr_written++) {
    snprintf (text, sizeof text, "{'execute': 'disk-create', 'arguments': {'name': "
              "'s%u-%u', 'size': 1048576}}", w->nr, w->nr_written);
    if (send (c->fd, text, strlen (text), MSG_NOSIGNAL) < 0 ||
        (o = read_reply (c)) == NULL || !was_made (o))
      break;
    __atomic_store_n (w->stop, true, __ATOMIC_RELAXED);
  }
  free_client (c);
  return NULL;
}

static int
count_cb (void *opaque, const struct srv_disk_info *info)
{
  ++*(unsigned *) opaque;
  return 0;
}

/* The disks whose creation was answered are there after the end, and no others. */
static void
test_an_end_while_commands_run (void **state)
{
  struct worker w[NR_CLIENTS];
  unsigned answered = 0, found = 0, i;
  bool begun[NR_CLIENTS] = { false };

  for (i = 0; i < NR_CLIENTS; i++) {
    w[i] = (struct worker) { .nr = i, .stop = &begun[i] };
    pthread_create (&w[i].thread, NULL, send_and_count, &w[i]);
  }
  for (i = 0; i < NR_CLIENTS; i++)
    while (!__atomic_load_n (&begun[i], __ATOMIC_RELAXED))
      usleep (1000);
  close_all ();
  for (i = 0; i < NR_CLIENTS; i++) {
    pthread_join (w[i].thread, NULL);
    answered += w[i].nr_written;
  }
  open_all ();
  assert_int_equal (srv_image_list_disks (image, count_cb, &found), 0);
  assert_int_equal (found, answered);
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, make_pool, remove_pool)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_many_clients_beside_requests),
    TEST (test_long_lists_come_in_pages),
    TEST (test_all_jobs_fit_into_a_reply),
    TEST (test_quit_is_answered_before_the_end),
    TEST (test_an_end_while_commands_run),
  };

  return cmocka_run_group_tests_name ("commands", tests, make_dir, remove_dir);
}
