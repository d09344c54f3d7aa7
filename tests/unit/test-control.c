/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests of the control server with the table of tests/control/fake-commands.c:
 * checks of arguments and tables, the socket, the order of replies and events,
 * the worker, and the end, with many clients and threads. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <cmocka.h>

#include "fake-commands.h"
#include "tables.h"

#define NR_CLIENTS 8

static char folder[] = "/tmp/test-control-XXXXXX", path[64];
static const struct qmp_schema *const schemas[] = { &fake_schema };

/* --- A server and a client ----------------------------------------------- */

static void
params (struct qmp_params *p, struct fake_world *w)
{
  *p = (struct qmp_params) {
    .path = path, .schemas = schemas, .nr_schemas = 1, .opaque = w,
    .package = "test", .major = 1,
  };
}

static void
start (struct fake_world *w)
{
  struct qmp_params p;

  params (&p, w);
  assert_int_equal (qmp_server_open (&p, &w->server, NULL), 0);
  assert_int_equal (qmp_server_start (w->server), 0);
}

static void
stop (struct fake_world *w)
{
  qmp_server_stop (w->server, NULL, NULL);
  qmp_server_free (w->server);
}

struct client {
  FILE *in;
  int fd;
};

static void
send_text (struct client *c, const char *s)
{
  /* The server may be gone. */
  (void) !send (c->fd, s, strlen (s), MSG_NOSIGNAL);
}

/* Reads a line to LINE, of SIZE bytes, without its end; "" at the end. */
static void
receive (struct client *c, char *line, size_t size)
{
  line[0] = '\0';
  if (fgets (line, size, c->in) != NULL)
    line[strcspn (line, "\r\n")] = '\0';
}

static void
expect (struct client *c, const char *what)
{
  char line[4096], *p;

  receive (c, line, sizeof line);
  p = strstr (line, "\"event\": ");    /* without the time */
  assert_string_equal (p != NULL ? p : line, what);
}

static void
connect_only (struct client *c)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  strcpy (addr.sun_path, path);
  c->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  assert_int_equal (connect (c->fd, (struct sockaddr *) &addr, sizeof addr),
                    0);
  c->in = fdopen (c->fd, "r");
  assert_non_null (c->in);
}

static void
negotiate (struct client *c)
{
  connect_only (c);
  expect (c, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 0, "
          "\"major\": 1}, \"package\": \"test\"}, \"capabilities\": []}}");
  send_text (c, "{\"execute\":\"qmp_capabilities\"}");
  expect (c, "{\"return\": {}}");
}

static void
leave (struct client *c)
{
  fclose (c->in);
}

/* --- Tables -------------------------------------------------------------- */

static void
expect_args (const char *args, const char *what)
{
  static const struct qmp_tables tables = { schemas, 1 };
  const struct qmp_command *c = tables_command (&tables, "check");
  json_t *a = json_loads (args, 0, NULL);
  struct qmp_error e = { "", "" };
  int r = check_args (&tables, c, a, &e);

  assert_string_equal (e.desc, what);
  assert_int_equal (r, what[0] == '\0' ? 0 : -EINVAL);
  json_decref (a);
}

static void
arguments_are_checked (void **state)
{
  expect_args ("{}", "");
  expect_args ("{\"string\":\"\",\"number\":1,\"bool\":true}", "");
  expect_args ("{\"number\":1.5,\"sizes\":[],\"modes\":[]}", "");
  expect_args ("{\"sizes\":[0,9223372036854775807],\"modes\":[\"safe\"]}", "");
  expect_args ("{\"number\":\"1\"}", "Invalid parameter type for 'number', "
               "expected: number");
  expect_args ("{\"sizes\":1}", "Invalid parameter type for 'sizes', "
               "expected: array");
  expect_args ("{\"sizes\":[1,-1]}", "Parameter 'sizes[1]' expects uint64");
  expect_args ("{\"sizes\":[1.0]}", "Parameter 'sizes[0]' expects uint64");
  expect_args ("{\"modes\":[\"safe\",1]}", "Invalid parameter type for "
               "'modes[1]', expected: string");
  expect_args ("{\"string\":\"\",\"other\":1}",
               "Parameter 'other' is unexpected");
}

static void
expect_schema (const struct qmp_schema *s, const char *what)
{
  struct fault f = { 0 };
  int r = qmp_schema_check (&s, 1, &f);

  assert_string_equal (f.msg, what);
  assert_int_equal (r, what[0] == '\0' ? 0 : -EINVAL);
}

static void
tables_are_checked (void **state)
{
  struct qmp_member m = { "a", "str", false, "Text." };
  struct qmp_command c[] = { { "x", &m, 1, NULL, true, NULL, "Text." },
                             { "y", NULL, 0, NULL, true, NULL, "Text." } };
  struct qmp_event e = { "E", &m, 1, "Text." };
  struct qmp_type t = { "T", QMP_OBJECT, &m, 1, NULL, 0, "Text." };
  struct qmp_schema s = { "TITLE", "Text.", c, 2, &e, 1, &t, 1 };

  expect_schema (&s, "");
  expect_schema (&fake_schema, "");
  m.type = "[T]";
  expect_schema (&s, "");
  m.type = "string";
  expect_schema (&s, "T: the type string does not exist");
  m.type = "str";
  m.doc = "";
  expect_schema (&s, "T: a has no name or no text");
  m.doc = "Text.";
  c[0].returns = "[U]";
  expect_schema (&s, "x: the type U does not exist");
  c[0].returns = "T";
  c[1].name = "x";
  expect_schema (&s, "the command x is there twice");
  c[1].name = "query-version";
  expect_schema (&s, "the command query-version is there twice");
  c[1].name = "y";
  t.name = "SchemaPage";
  c[0].returns = NULL;
  expect_schema (&s, "the type SchemaPage is there twice");
}

/* A schema of so many commands that it has several pages. */
#define NR_COMMANDS 500

static void
fill_large_schema (struct qmp_schema *s, struct qmp_command *c,
                   char (*names)[16])
{
  static const struct qmp_member m[] = {
    { "one", "str", false, "A text that takes some room in the page." },
    { "two", "[size]", true, "Another text that takes some room in it." },
  };

  for (int i = 0; i < NR_COMMANDS; i++) {
    sprintf (names[i], "command-%d", i);
    c[i] = (struct qmp_command) { names[i], QMP_ARRAY (m), NULL, true, NULL,
                                  "Does nothing." };
  }
  *s = (struct qmp_schema) { "TITLE", "Text.", c, NR_COMMANDS, NULL, 0, NULL,
                             0 };
}

static void
count_commands (const json_t *page, unsigned *seen)
{
  json_t *entry;
  size_t i;
  int nr;

  json_array_foreach (json_object_get (page, "entries"), i, entry)
    if (sscanf (json_string_value (json_object_get (entry, "name")),
                "command-%d", &nr) == 1)
      seen[nr]++;
}

static void
the_schema_comes_in_pages_below_64_KiB (void **state)
{
  static char names[NR_COMMANDS][16], line[65536];
  static struct qmp_command commands[NR_COMMANDS];
  unsigned seen[NR_COMMANDS] = { 0 }, nr_pages = 0;
  struct qmp_schema large;
  const struct qmp_schema *const list[] = { &large, &fake_schema };
  struct fake_world w = { 0 };
  struct qmp_params p;
  struct client c;
  json_int_t next = 0;

  fill_large_schema (&large, commands, names);
  params (&p, &w);
  p.schemas = list;
  p.nr_schemas = 2;
  assert_int_equal (qmp_server_open (&p, &w.server, NULL), 0);
  assert_int_equal (qmp_server_start (w.server), 0);
  negotiate (&c);
  do {
    json_t *reply, *page;

    snprintf (line, sizeof line, "{\"execute\":\"query-schema\","
              "\"arguments\":{\"first\":%d}}", (int) next);
    send_text (&c, line);
    receive (&c, line, sizeof line);
    reply = json_loads (line, 0, NULL);        /* else it was cut */
    assert_non_null (reply);
    page = json_object_get (reply, "return");
    count_commands (page, seen);
    next = json_integer_value (json_object_get (page, "next"));
    json_decref (reply);
    nr_pages++;
  } while (next != 0);
  for (int i = 0; i < NR_COMMANDS; i++)
    assert_int_equal (seen[i], 1);
  assert_in_range (nr_pages, 3, 10);
  send_text (&c, "{\"execute\":\"query-schema\",\"arguments\":{\"name\":"
             "\"SchemaKind\"}}");
  expect (&c, "{\"return\": {\"entries\": [{\"kind\": \"enum\", \"name\": "
          "\"SchemaKind\", \"doc\": \"Kinds of entries in the schema.\", "
          "\"values\": [\"command\", \"event\", \"object\", \"enum\"]}]}}");
  leave (&c);
  stop (&w);
}

/* --- The socket ---------------------------------------------------------- */

static void
expect_open_fails (enum fault_kind kind, const char *what)
{
  struct fake_world w = { 0 };
  struct fault f = { 0 };
  struct qmp_params p;

  params (&p, &w);
  assert_true (qmp_server_open (&p, &w.server, &f) < 0);
  assert_int_equal (f.kind, kind);
  assert_non_null (strstr (f.msg, what));
}

static void
a_socket_is_replaced_only_if_nobody_listens (void **state)
{
  struct fake_world w = { 0 }, second = { 0 };
  struct stat st;
  char other[80];

  start (&w);
  assert_int_equal (stat (path, &st), 0);
  assert_int_equal (st.st_mode & 07777, 0600);
  expect_open_fails (FAULT_BUSY, "another server has the control socket");
  assert_int_equal (stat (path, &st), 0);

  /* It is kept aside, and somebody puts another one in its place. */
  sprintf (other, "%s.other", path);
  assert_int_equal (rename (path, other), 0);
  start (&second);
  stop (&w);
  assert_int_equal (stat (path, &st), 0);
  stop (&second);
  assert_int_equal (stat (path, &st), -1);

  /* OTHER is stale now. */
  assert_int_equal (rename (other, path), 0);
  memset (&w, 0, sizeof w);
  start (&w);
  stop (&w);
  assert_int_equal (stat (path, &st), -1);
}

/* Servers that start at one moment where a killed one left its socket. */

#define STARTERS 4

static pthread_barrier_t at_once;

static void *
open_at_once (void *arg)
{
  struct fake_world *w = arg;
  struct qmp_params p;

  params (&p, w);
  pthread_barrier_wait (&at_once);
  if (qmp_server_open (&p, &w->server, NULL) < 0)
    w->server = NULL;
  return NULL;
}

static void
leave_a_stale_socket (void)
{
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  strcpy (addr.sun_path, path);
  assert_int_equal (bind (fd, (struct sockaddr *) &addr, sizeof addr), 0);
  close (fd);
}

static void
one_of_several_starts_gets_a_stale_socket (void **state)
{
  pthread_t threads[STARTERS];
  struct stat st;
  int round, i, nr;

  pthread_barrier_init (&at_once, NULL, STARTERS);
  for (round = 0; round < 200; round++) {
    struct fake_world w[STARTERS] = { 0 };

    leave_a_stale_socket ();
    for (i = 0; i < STARTERS; i++)
      assert_int_equal (pthread_create (&threads[i], NULL, open_at_once, &w[i]), 0);
    for (nr = i = 0; i < STARTERS; i++) {
      pthread_join (threads[i], NULL);
      nr += w[i].server != NULL;
    }
    assert_int_equal (nr, 1);
    assert_int_equal (stat (path, &st), 0);
    for (i = 0; i < STARTERS; i++)
      if (w[i].server) {
        qmp_server_stop (w[i].server, NULL, NULL);
        qmp_server_free (w[i].server);
      }
  }
  pthread_barrier_destroy (&at_once);
}

/* A server that is too busy to take a client has not gone. */
static void
a_socket_with_a_full_queue_is_kept (void **state)
{
  int listener = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), fds[8];
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int nr = 0, r = 0;

  strcpy (addr.sun_path, path);
  assert_int_equal (bind (listener, (struct sockaddr *) &addr, sizeof addr),
                    0);
  assert_int_equal (listen (listener, 0), 0);
  while (nr < 8 && r == 0) {
    fds[nr] = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    r = connect (fds[nr++], (struct sockaddr *) &addr, sizeof addr);
  }
  assert_int_equal (r, -1);
  assert_int_equal (errno, EAGAIN);
  expect_open_fails (FAULT_BUSY, "another server has the control socket");
  while (nr > 0)
    close (fds[--nr]);
  close (listener);
  assert_int_equal (unlink (path), 0);
}

static void
a_file_of_another_kind_is_kept (void **state)
{
  FILE *f = fopen (path, "w");

  assert_non_null (f);
  fclose (f);
  expect_open_fails (FAULT_USAGE, "is a file of another kind");
  assert_int_equal (unlink (path), 0);
}

static void
a_path_that_cannot_be_is_an_error (void **state)
{
  char before[sizeof path], text[200];
  struct fake_world w = { 0 };
  struct fault f = { 0 };
  struct qmp_params p;

  strcpy (before, path);
  strcpy (path, "/nonexistent/socket");
  expect_open_fails (FAULT_IO, "cannot make the control socket");
  strcpy (path, before);
  memset (text, 'a', 150);
  text[0] = '/';
  text[150] = '\0';
  params (&p, &w);
  p.path = text;
  assert_true (qmp_server_open (&p, &w.server, &f) < 0);
  assert_int_equal (f.kind, FAULT_USAGE);
}

static void
a_server_that_was_never_started_ends (void **state)
{
  struct fake_world w = { 0 };
  struct qmp_params p;
  struct stat st;

  params (&p, &w);
  assert_int_equal (qmp_server_open (&p, &w.server, NULL), 0);
  qmp_server_emit (w.server, "FAKE_EVENT", json_object ());
  qmp_server_stop (w.server, "SHUTDOWN", NULL);
  assert_int_equal (stat (path, &st), -1);
  qmp_server_free (w.server);
  qmp_server_free (NULL);
}

/* --- Order --------------------------------------------------------------- */

static void
events_come_before_the_reply_of_their_command (void **state)
{
  struct fake_world w = { 0 };
  struct client c, deaf;

  start (&w);
  connect_only (&deaf);
  negotiate (&c);
  for (int i = 0; i < 2; i++) {
    send_text (&c, i == 0 ? "{\"execute\":\"emit\",\"arguments\":{\"count\":2},"
               "\"id\":1}{\"execute\":\"who\",\"arguments\":1}" :
               "{\"execute\":\"emit-at-once\",\"arguments\":{\"count\":2},"
               "\"id\":1}{\"execute\":\"who\",\"arguments\":1}");
    expect (&c, "\"event\": \"FAKE_EVENT\", \"data\": {\"number\": 0}}");
    expect (&c, "\"event\": \"FAKE_EVENT\", \"data\": {\"number\": 1}}");
    expect (&c, "{\"return\": {}, \"id\": 1}");
    expect (&c, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"QMP "
            "input member 'arguments' must be an object\"}}");
  }
  /* A client gets no event before its negotiation. */
  send_text (&deaf, "{\"execute\":\"qmp_capabilities\"}");
  expect (&deaf, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": "
          "0, \"major\": 1}, \"package\": \"test\"}, \"capabilities\": []}}");
  expect (&deaf, "{\"return\": {}}");
  leave (&deaf);
  leave (&c);
  stop (&w);
}

static void
an_errno_alone_becomes_a_text (void **state)
{
  struct fake_world w = { 0 };
  struct client c;

  start (&w);
  negotiate (&c);
  send_text (&c, "{\"execute\":\"fail\"}");
  expect (&c, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"No space "
          "left on device\"}}");
  leave (&c);
  stop (&w);
}

static void
a_client_that_closes_its_side_gets_its_replies (void **state)
{
  struct fake_world w = { 0 };
  struct client c;

  start (&w);
  negotiate (&c);
  send_text (&c, "{\"execute\":\"wait\",\"arguments\":{\"ms\":50},\"id\":1}"
             "{\"execute\":\"echo\",\"arguments\":{\"value\":2}}");
  shutdown (c.fd, SHUT_WR);
  expect (&c, "{\"return\": {}, \"id\": 1}");
  expect (&c, "{\"return\": 2}");
  expect (&c, "");
  leave (&c);
  stop (&w);
}

/* --- Many ---------------------------------------------------------------- */

static void *
wait_many_times (void *opaque)
{
  struct client c;

  negotiate (&c);
  for (int i = 0; i < 20; i++) {
    send_text (&c, "{\"execute\":\"wait\",\"arguments\":{\"ms\":1}}");
    expect (&c, "{\"return\": {}}");
  }
  leave (&c);
  return NULL;
}

static void
run_in_threads (void *(*main) (void *), void *opaque)
{
  pthread_t threads[NR_CLIENTS];

  for (int i = 0; i < NR_CLIENTS; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, main, opaque), 0);
  for (int i = 0; i < NR_CLIENTS; i++)
    pthread_join (threads[i], NULL);
}

static void
one_command_runs_at_a_time (void **state)
{
  struct fake_world w = { 0 };

  start (&w);
  run_in_threads (wait_many_times, &w);
  stop (&w);
  assert_int_equal (w.nr_runs, NR_CLIENTS * 20);
  assert_int_equal (w.max_at_once, 1);
}

static void
an_instant_command_does_not_wait_for_the_worker (void **state)
{
  struct fake_world w = { 0 };
  struct client slow, fast;

  start (&w);
  negotiate (&slow);
  negotiate (&fast);
  send_text (&slow, "{\"execute\":\"wait\",\"arguments\":{\"ms\":1000}}");
  while (__atomic_load_n (&w.nr_at_once, __ATOMIC_ACQUIRE) == 0)
    usleep (1000);
  send_text (&fast, "{\"execute\":\"echo\",\"arguments\":{\"value\":1}}");
  expect (&fast, "{\"return\": 1}");
  assert_int_equal (__atomic_load_n (&w.nr_runs, __ATOMIC_ACQUIRE), 0);
  leave (&fast);
  leave (&slow);
  stop (&w);                    /* waits for the command */
  assert_int_equal (w.nr_runs, 1);
}

/* More clients than there may be: those that have gone are noticed, though
 * their commands wait for the worker. */
static void *
come_and_go (void *opaque)
{
  for (int i = 0; i < QMP_MAX_CLIENTS / 4; i++) {
    struct client c;

    negotiate (&c);
    send_text (&c, i % 2 ? "{\"execute\":\"emit\",\"arguments\":{\"count\":5}}"
               : "{\"execute\":\"wait\",\"arguments\":{\"ms\":1}}{\"exe");
    leave (&c);
  }
  return NULL;
}

struct emitter {
  struct fake_world *world;
  bool stop;                   /* atomic */
};

static void *
emit_all_the_time (void *opaque)
{
  struct emitter *e = opaque;

  while (!__atomic_load_n (&e->stop, __ATOMIC_ACQUIRE)) {
    qmp_server_emit (e->world->server, "FAKE_EVENT", json_object ());
    usleep (100);
  }
  return NULL;
}

static void
clients_come_and_go_while_threads_emit (void **state)
{
  struct fake_world w = { 0 };
  struct emitter e = { .world = &w };
  struct client c;
  pthread_t thread;

  start (&w);
  assert_int_equal (pthread_create (&thread, NULL, emit_all_the_time, &e), 0);
  for (int i = 0; i < 50; i++) {
    connect_only (&c);
    send_text (&c, "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"wait\","
               "\"arguments\":{\"ms\":1}}");
    usleep (i * 50);
    leave (&c);
  }
  __atomic_store_n (&e.stop, true, __ATOMIC_RELEASE);
  pthread_join (thread, NULL);
  stop (&w);
}

static void
threads_emit_until_the_server_is_freed (void **state)
{
  for (int i = 0; i < 20; i++) {
    struct fake_world w = { 0 };
    struct emitter e = { .world = &w };
    pthread_t thread;
    struct client c;

    start (&w);
    negotiate (&c);
    assert_int_equal (pthread_create (&thread, NULL, emit_all_the_time, &e),
                      0);
    usleep (1000);
    qmp_server_stop (w.server, "SHUTDOWN", NULL);
    usleep (1000);
    __atomic_store_n (&e.stop, true, __ATOMIC_RELEASE);
    pthread_join (thread, NULL);
    qmp_server_free (w.server);
    leave (&c);
  }
}

static void
clients_that_vanish_leave_nothing_behind (void **state)
{
  struct fake_world w = { 0 };
  struct client slow, c;

  start (&w);
  negotiate (&slow);
  send_text (&slow, "{\"execute\":\"wait\",\"arguments\":{\"ms\":500}}");
  run_in_threads (come_and_go, &w);
  negotiate (&c);
  leave (&c);
  expect (&slow, "{\"return\": {}}");
  leave (&slow);
  stop (&w);
}

/* --- The end ------------------------------------------------------------- */

static void *
stop_main (void *opaque)
{
  struct fake_world *w = opaque;

  qmp_server_stop (w->server, "SHUTDOWN", json_pack ("{s:b}", "guest", 0));
  return NULL;
}

static pthread_t stopper;

static void
start_to_stop (void *opaque)
{
  assert_int_equal (pthread_create (&stopper, NULL, stop_main, opaque), 0);
}

static void
the_reply_to_quit_comes_before_the_last_event (void **state)
{
  for (int i = 0; i < 30; i++) {
    struct fake_world w = { .quit = start_to_stop, .opaque = &w };
    struct client c, other;

    start (&w);
    negotiate (&c);
    negotiate (&other);
    send_text (&c, "{\"execute\":\"quit\",\"id\":7}{\"execute\":\"who\"}");
    expect (&c, "{\"return\": {}, \"id\": 7}");
    if (i == 0) {
      char line[4096];

      /* The second command may be done or not. */
      do
        receive (&c, line, sizeof line);
      while (strstr (line, "\"return\"") != NULL);
      assert_non_null (strstr (line, "\"SHUTDOWN\""));
      expect (&c, "");
    }
    expect (&other, "\"event\": \"SHUTDOWN\", \"data\": {\"guest\": false}}");
    expect (&other, "");
    leave (&c);
    leave (&other);
    pthread_join (stopper, NULL);
    qmp_server_free (w.server);
  }
}

static void
the_end_does_not_wait_for_who_reads_nothing (void **state)
{
  struct fake_world w = { 0 };
  struct client c;

  start (&w);
  negotiate (&c);
  send_text (&c, "{\"execute\":\"large\",\"arguments\":{\"bytes\":9000000}}");
  usleep (100000);
  stop (&w);
  leave (&c);
}

/* What is queued for a client is sent before the end. */
static void
what_is_queued_is_sent_at_the_end (void **state)
{
  struct fake_world w = { 0 };
  struct client c;
  size_t len = 0;
  int byte;

  start (&w);
  negotiate (&c);
  send_text (&c, "{\"execute\":\"large\",\"arguments\":{\"bytes\":3000000}}");
  usleep (100000);
  qmp_server_emit (w.server, "FAKE_EVENT", NULL);
  start_to_stop (&w);
  while ((byte = getc (c.in)) != EOF)
    len++;
  assert_true (len > 3000000 + 100);
  leave (&c);
  pthread_join (stopper, NULL);
  qmp_server_free (w.server);
}

static int
make_folder (void **state)
{
  if (mkdtemp (folder) == NULL)
    return -1;
  snprintf (path, sizeof path, "%s/socket", folder);
  return 0;
}

static int
remove_folder (void **state)
{
  return rmdir (folder);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (arguments_are_checked),
    cmocka_unit_test (tables_are_checked),
    cmocka_unit_test (the_schema_comes_in_pages_below_64_KiB),
    cmocka_unit_test (a_socket_is_replaced_only_if_nobody_listens),
    cmocka_unit_test (one_of_several_starts_gets_a_stale_socket),
    cmocka_unit_test (a_socket_with_a_full_queue_is_kept),
    cmocka_unit_test (a_file_of_another_kind_is_kept),
    cmocka_unit_test (a_path_that_cannot_be_is_an_error),
    cmocka_unit_test (a_server_that_was_never_started_ends),
    cmocka_unit_test (events_come_before_the_reply_of_their_command),
    cmocka_unit_test (an_errno_alone_becomes_a_text),
    cmocka_unit_test (a_client_that_closes_its_side_gets_its_replies),
    cmocka_unit_test (one_command_runs_at_a_time),
    cmocka_unit_test (an_instant_command_does_not_wait_for_the_worker),
    cmocka_unit_test (clients_come_and_go_while_threads_emit),
    cmocka_unit_test (threads_emit_until_the_server_is_freed),
    cmocka_unit_test (clients_that_vanish_leave_nothing_behind),
    cmocka_unit_test (the_reply_to_quit_comes_before_the_last_event),
    cmocka_unit_test (the_end_does_not_wait_for_who_reads_nothing),
    cmocka_unit_test (what_is_queued_is_sent_at_the_end),
  };

  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
