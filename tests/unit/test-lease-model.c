/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests the protocol of a lease in a model of several servers on one disk: no
 * server writes once a later one has written.
 *
 * Time is the model's.  Servers are threads of which one runs at a time, until
 * it sleeps, reads or writes; then the one runs whose time is next.  So a seed
 * fixes everything that happens.  Each server has a clock of its own rate and
 * start, takes the lease, writes, renews the lease from a second thread, and
 * is stopped for up to 100 s at any read of its clock and any I/O.  It dies or
 * gives the lease back, and starts again.  Writes of the lease take up to 45
 * s, become visible in two parts, and may lose their connection: then they are
 * asked again after io_lease_may_resume's check, and what was sent first lands
 * much later.
 *
 * LEASE_SEED=N runs one seed, LEASE_FIRST=N LEASE_ROUNDS=N so many from there
 * on.  LEASE_TRACE=1 prints what is written. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checked.h"
#include "lease-protocol.h"
#include "splitmix.h"

#define MS UINT64_C (1000000)
#define S (1000 * MS)

#define SERVERS 3
#define ACTORS (2 * SERVERS)
#define LATE 64
#define SESSIONS 4096
#define END (3600 * S)
#define TERM_S 30

/* --- The model's time ----------------------------------------------------- */

struct late {
  bool used;
  uint64_t at;
  uint64_t off;
  uint8_t bytes[LEASE_SLOT];
};

static struct {
  uint64_t rng, now;
  pthread_mutex_t mutex;
  pthread_cond_t turn[ACTORS];
  uint64_t wake[ACTORS];        /* UINT64_MAX: has ended */
  int running;                  /* -1: none */
  uint8_t disk[IO_LEASE_BYTES];
  struct late late[LATE];

  /* The judge: which session wrote last, and which must never write again. */
  unsigned last_session, nr_sessions;
  bool over[SESSIONS], dead[SESSIONS];
  unsigned nr_violations;
  /* What happened. */
  struct tally {
    unsigned taken, refused, lost, again, watched, died, freed, late, resumed;
  } nr;
} m;

static __thread int actor;
static bool trace;

/* Prints what happened to a slot. */
static void
print_slot (const char *what, unsigned session, uint64_t off,
            const uint8_t *bytes)
{
  struct io_lease_holder h = { 0 };
  int r;

  if (!trace)
    return;
  r = lease_record_decode (bytes, &h);
  fprintf (stderr, "%8" PRIu64 " ms, session %u, %s slot %u: result %d, state "
           "%d, generation %" PRIu64 ", counter %" PRIu64 "\n", m.now / MS,
           session, what, (unsigned) (off / LEASE_SLOT), r, (int) h.state,
           h.generation, h.counter);
}

static uint64_t
below (uint64_t n)
{
  return splitmix64 (&m.rng) % n;
}

static bool
one_in (unsigned n)
{
  return below (n) == 0;
}

static void
land_late (uint64_t to)
{
  for (unsigned i = 0; i < LATE; i++)
    if (m.late[i].used && m.late[i].at <= to) {
      memcpy (m.disk + m.late[i].off, m.late[i].bytes, LEASE_SLOT);
      print_slot ("late write to", 0, m.late[i].off, m.late[i].bytes);
      m.late[i].used = false;
      m.nr.late++;
    }
}

/* Lets the actor run that is next; the mutex is held. */
static void
hand_over (void)
{
  int next = -1;

  for (int i = 0; i < ACTORS; i++)
    if (m.wake[i] != UINT64_MAX && (next < 0 || m.wake[i] < m.wake[next]))
      next = i;
  m.running = next;
  if (next < 0)
    return;
  m.now = MAX_OF (m.now, m.wake[next]);
  land_late (m.now);
  pthread_cond_signal (&m.turn[next]);
}

static void
model_sleep (uint64_t ns)
{
  pthread_mutex_lock (&m.mutex);
  m.wake[actor] = m.now + ns;
  hand_over ();
  while (m.running != actor)
    pthread_cond_wait (&m.turn[actor], &m.mutex);
  pthread_mutex_unlock (&m.mutex);
}

/* --- A server ------------------------------------------------------------- */

struct server {
  struct io_store store;        /* its way to the disk */
  struct io_lease_world world;
  struct lease lease;
  unsigned nr, session;
  bool same_host;               /* others see when its process has ended */
  double rate;
  uint64_t start;
  bool dead;                    /* does nothing any more */
  bool working;                 /* holds the lease: the second thread renews */
  bool renewing;
  int down;                     /* connections that are being made again */
  bool resuming;                /* ... by this thread, whose calls pass */
  int resumer;
  uint8_t tainted[LEASE_SLOTS][LEASE_SLOT];
  bool is_tainted[LEASE_SLOTS];
};

static struct server servers[SERVERS];
static void
maybe_stop (struct server *s, unsigned rarely)
{
  if (!s->dead && one_in (rarely))
    model_sleep (below (one_in (3) ? 100 * S : 2 * S));
}

static uint64_t
model_now (void *opaque)
{
  struct server *s = opaque;

  maybe_stop (s, 600);
  return s->start + (uint64_t) ((double) m.now * s->rate);
}

static void
model_rest (void *opaque, uint64_t ns)
{
  struct server *s = opaque;

  model_sleep (s->dead ? 1 : (uint64_t) ((double) ns / s->rate));
}

static void
model_describe (void *opaque, struct io_lease_holder *h)
{
  struct server *s = opaque;

  snprintf (h->host, sizeof h->host, "host%u", s->nr);
  h->pid = s->session;
  h->start_time = 1;
}

/* Servers with an odd number are on hosts of their own, about which nobody
 * knows. */
static bool
model_has_ended (void *opaque, const struct io_lease_holder *h)
{
  return h->pid > 0 && h->pid < SESSIONS && h->pid % 2 == 0 && m.dead[h->pid];
}

static int
model_random (void *opaque, void *buf, size_t len)
{
  struct server *s = opaque;

  memset (buf, 0, len);
  memcpy (buf, &s->session, sizeof s->session);
  return 0;
}

/* --- Its way to the disk -------------------------------------------------- */

static uint64_t
latency (void)
{
  if (!one_in (12))
    return below (20 * MS);
  return one_in (4) ? below (45 * S) : below (800 * MS);
}

/* A server that dies in the middle of I/O does nothing any more. */
static void
maybe_die (struct server *s)
{
  if (!s->dead && one_in (900)) {
    s->dead = true;
    m.dead[s->session] = true;
    m.nr.died++;
  }
}

static void
wait_for_connection (struct server *s)
{
  while (s->down > 0 && !(s->resuming && s->resumer == actor))
    model_sleep (50 * MS);
}

static int
model_preadv (struct io_store *store, const struct iovec *iov, int iovcnt,
              uint64_t host_off)
{
  struct server *s = (struct server *) store;

  assert_int_equal (iovcnt, 1);
  maybe_stop (s, 100);
  maybe_die (s);
  if (s->dead)
    return -EIO;
  wait_for_connection (s);
  model_sleep (latency ());
  memcpy (iov->iov_base, m.disk + host_off, iov->iov_len);
  model_sleep (latency ());
  maybe_stop (s, 100);
  return s->dead ? -EIO : 0;
}

static void
put_late (uint64_t off, const uint8_t *bytes)
{
  for (unsigned i = 0; i < LATE; i++)
    if (!m.late[i].used) {
      m.late[i] = (struct late) { .used = true,
                                  .at = m.now + below (200 * S), .off = off };
      memcpy (m.late[i].bytes, bytes, LEASE_SLOT);
      return;
    }
}

/* The connection is lost while a write is under way.  It is made again after a
 * while, and the write sent again if the lease allows that. */
static int
lose_connection (struct server *s, uint64_t off, const uint8_t *bytes)
{
  const unsigned slot = (unsigned) (off / LEASE_SLOT);
  int r = 0;

  put_late (off, bytes);
  s->is_tainted[slot] = true;
  print_slot ("loses the connection to", s->session, off, bytes);
  memcpy (s->tainted[slot], bytes, LEASE_SLOT);
  s->down++;
  model_sleep (below (60 * S));
  if (s->lease.until_ns > 0 && !s->dead) {
    while (s->resuming)
      model_sleep (20 * MS);
    s->resuming = true;
    s->resumer = actor;
    r = lease_resume (&s->lease);
    s->resuming = false;
    m.nr.resumed++;
  }
  s->down--;
  return r < 0 ? -EIO : 0;
}

static int
model_pwritev (struct io_store *store, const struct iovec *iov, int iovcnt,
               uint64_t host_off)
{
  struct server *s = (struct server *) store;
  const unsigned slot = (unsigned) (host_off / LEASE_SLOT);
  const uint8_t *bytes = iov->iov_base;
  int r = 0;

  assert_true (iovcnt == 1 && iov->iov_len == LEASE_SLOT);
  maybe_stop (s, 100);
  maybe_die (s);
  if (s->dead)
    return -EIO;
  wait_for_connection (s);
  if (s->is_tainted[slot] && memcmp (s->tainted[slot], bytes, LEASE_SLOT) != 0)
    return -ESTALE;
  if (!s->is_tainted[slot] && one_in (40) && !s->resuming)
    r = lose_connection (s, host_off, bytes);
  if (r < 0 || s->dead)
    return -EIO;
  model_sleep (latency ());
  memcpy (m.disk + host_off, bytes, 100);
  model_sleep (below (20 * MS));
  maybe_die (s);
  if (s->dead)
    return -EIO;
  memcpy (m.disk + host_off, bytes, LEASE_SLOT);
  print_slot ("writes", s->session, host_off, bytes);
  model_sleep (latency ());
  maybe_die (s);
  maybe_stop (s, 100);
  return s->dead ? -EIO : 0;
}

static int
model_sync (struct io_store *store)
{
  struct server *s = (struct server *) store;

  wait_for_connection (s);
  model_sleep (latency ());
  return s->dead ? -EIO : 0;
}

static bool
model_tainted (struct io_store *store, uint64_t host_off, uint64_t len)
{
  return ((struct server *) store)->is_tainted[host_off / LEASE_SLOT];
}

static void
model_log (void *opaque, enum log_level level, const char *line)
{
  if (trace)
    fprintf (stderr, "%8" PRIu64 " ms, %s\n", m.now / MS, line);
  m.nr.again += strstr (line, "taken again") != NULL;
  m.nr.watched += strstr (line, "waiting up to") != NULL;
}

static const struct log_sink model_sink = { model_log, NULL };

static const struct io_ops model_ops = {
  .preadv = model_preadv, .pwritev = model_pwritev, .sync = model_sync,
  .tainted = model_tainted,
};

/* --- The judge ------------------------------------------------------------ */

static void
judge (const struct server *s, const char *what)
{
  if (m.over[s->session]) {
    fprintf (stderr, "session %u %s at %" PRIu64 " ms, after session %u "
             "wrote\n", s->session, what, m.now / MS, m.last_session);
    m.nr_violations++;
  }
  if (m.last_session != s->session && !m.over[s->session]) {
    m.over[m.last_session] = true;
    m.last_session = s->session;
  }
}

/* Writes data: passes right after the check, and lands within half of the
 * margin. */
static void
write_data (struct server *s)
{
  int r = lease_check (&s->lease);

  if (r == 0 && !s->dead) {
    judge (s, "passed a write");
    model_sleep (below (TERM_S * S / 12));
    if (!s->dead)              /* a process ends after its last call */
      judge (s, "landed a write");
  }
}

/* --- What servers do ------------------------------------------------------ */

static void
begin_session (struct server *s)
{
  m.nr_sessions++;
  s->session = m.nr_sessions;
  s->store.ops = &model_ops;
  s->dead = s->working = s->resuming = false;
  s->down = 0;
  memset (s->is_tainted, 0, sizeof s->is_tainted);
  s->rate = 0.95 + (double) below (100) / 1000;
  s->start = below (1000000 * S);
  s->world = (struct io_lease_world) {
    model_now, model_rest, model_describe, model_has_ended, model_random, s
  };
}

static void
work (struct server *s)
{
  const uint64_t end = m.now + below (one_in (3) ? 400 * S : 60 * S);

  s->working = true;
  while (m.now < end && !s->dead && !__atomic_load_n (&s->lease.lost,
                                                       __ATOMIC_RELAXED)) {
    write_data (s);
    maybe_stop (s, 60);
    model_sleep (below (one_in (10) ? 20 * S : 300 * MS));
  }
  s->working = false;
  while (s->renewing || s->down > 0)
    model_sleep (10 * MS);
}

static void
count_end (struct server *s)
{
  if (s->dead)
    return;
  if (s->lease.lost)
    m.nr.lost++;
  else
    m.nr.freed++;
}

static void
run_session (struct server *s)
{
  struct io_lease_params p = { .term_s = TERM_S, .name = "x",
                               .world = &s->world, .log = &model_sink };
  struct fault f = { 0 };
  int r;

  begin_session (s);
  lease_init (&s->lease, &s->store, 0, &p);
  r = lease_take (&s->lease, false, &f);
  if (r == 0) {
    m.nr.taken++;
    lease_name_process (&s->lease);
    work (s);
    count_end (s);
    lease_release (&s->lease);
  }
  else if (f.kind == FAULT_BUSY)
    m.nr.refused++;
  s->dead = true;
  m.dead[s->session] = true;
  lease_destroy (&s->lease);
}

static void
end_actor (void)
{
  pthread_mutex_lock (&m.mutex);
  m.wake[actor] = UINT64_MAX;
  hand_over ();
  pthread_mutex_unlock (&m.mutex);
}

static void
begin_actor (int nr)
{
  actor = nr;
  pthread_mutex_lock (&m.mutex);
  while (m.running != actor)
    pthread_cond_wait (&m.turn[actor], &m.mutex);
  pthread_mutex_unlock (&m.mutex);
}

static void *
server_thread (void *opaque)
{
  struct server *s = opaque;

  begin_actor ((int) s->nr);
  while (m.now < END && m.nr_sessions < SESSIONS - SERVERS - 1) {
    model_sleep (below (one_in (2) ? 100 * MS : 40 * S));
    run_session (s);
  }
  end_actor ();
  return NULL;
}

static void *
renewing_thread (void *opaque)
{
  struct server *s = opaque;

  begin_actor ((int) (SERVERS + s->nr));
  while (m.now < END) {
    s->renewing = s->working;
    if (s->renewing)
      (void) !lease_renew (&s->lease);
    s->renewing = false;
    model_sleep (TERM_S * S / 6 / 5 + below (TERM_S * S / 6 * 4 / 5));
  }
  end_actor ();
  return NULL;
}

static void
begin_model (uint64_t seed)
{
  memset (&m, 0, sizeof m);
  m.rng = seed;
  pthread_mutex_init (&m.mutex, NULL);
  for (int i = 0; i < ACTORS; i++)
    pthread_cond_init (&m.turn[i], NULL);
  m.running = -1;
  for (unsigned i = 0; i < SERVERS; i++)
    servers[i] = (struct server) { .nr = i };
}

static void
run_model (uint64_t seed)
{
  pthread_t t[ACTORS];

  begin_model (seed);
  for (int i = 0; i < SERVERS; i++)
    assert_int_equal (pthread_create (&t[i], NULL, server_thread, &servers[i]),
                      0);
  for (int i = 0; i < SERVERS; i++)
    assert_int_equal (pthread_create (&t[SERVERS + i], NULL, renewing_thread,
                                      &servers[i]), 0);
  pthread_mutex_lock (&m.mutex);
  hand_over ();
  pthread_mutex_unlock (&m.mutex);
  for (int i = 0; i < ACTORS; i++)
    pthread_join (t[i], NULL);
}

static uint64_t
number (const char *name, uint64_t otherwise)
{
  const char *s = getenv (name);

  return s ? strtoull (s, NULL, 0) : otherwise;
}

static void
add (struct tally *sum)
{
  unsigned *to = (unsigned *) sum;
  const unsigned *from = (const unsigned *) &m.nr;

  for (size_t i = 0; i < sizeof *sum / sizeof *to; i++)
    to[i] += from[i];
}

static void
no_server_writes_after_a_later_one (void **state)
{
  const uint64_t only = number ("LEASE_SEED", 0);
  const uint64_t first = only ? only : number ("LEASE_FIRST", 1);
  const uint64_t rounds = only ? 1 : number ("LEASE_ROUNDS", 40);
  struct tally n = { 0 };
  unsigned bad = 0;

  trace = number ("LEASE_TRACE", 0) != 0;
  for (uint64_t i = first; i < first + rounds; i++) {
    run_model (i);
    if (m.nr_violations > 0)
      fprintf (stderr, "LEASE_SEED=%" PRIu64 "\n", i);
    bad += m.nr_violations > 0;
    add (&n);
  }
  print_message ("taken %u, again %u, watched %u, refused %u, lost %u, died "
                 "%u, freed %u, late writes %u, resumed %u\n", n.taken, n.again,
                 n.watched, n.refused, n.lost, n.died, n.freed, n.late,
                 n.resumed);
  assert_int_equal (bad, 0);
  assert_true (only || (n.taken > rounds && n.refused > rounds &&
                        n.freed > rounds && n.watched > rounds));
  assert_true (only || (n.lost > 0 && n.again > 0 && n.died > 0 && n.late > 0 &&
                        n.resumed > 0));
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (no_server_writes_after_a_later_one),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
