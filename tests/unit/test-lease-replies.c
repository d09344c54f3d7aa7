/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests a lease on an NBD export whose server answers any one request wrongly.
 *
 * A short session takes the lease, writes, renews the lease, lets its term end and takes it
 * again, writes on, and gives it back.  It is repeated for each of its requests and each
 * kind of wrong answer: an error, an answer beyond the term, during which another server
 * may take over, and none at all; once, and from then on.
 *
 * The server in this process judges each write of the image when it arrives: the newest
 * record in the lease area must be the writer's, and must not have been there for a term,
 * as a server that watches may take over then.  After the session, a third
 * server takes the lease and finds all that was flushed.
 *
 * The same is done to those who do not take the lease: a probe, which asks whether a server
 * writes, and unlock, which makes the lease free.  The holder has died, or works on.
 *
 * The lease's clock is the test's: it passes when somebody sleeps, or when the server is
 * late.  Only where nobody answers real time passes, of the NBD store.
 *
 * LEASE_CASE=SESSION:REQUEST:ANSWER, as printed for a failure, runs that case alone.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "checked.h"
#include "fake-nbd.h"
#include "io.h"
#include "lease-record.h"
#include "nbd.h"

#define SIZE (UINT64_C (256) << 10)
#define AREA (SIZE - IO_LEASE_BYTES)
#define BLOCK 4096u
#define BLOCKS (AREA / BLOCK)
#define OLD 0xaa                /* each byte before the session */
#define OF_RIVAL 0xbb

#define MS UINT64_C (1000000)
#define S (1000 * MS)
#define TERM_S 30
#define TERM (TERM_S * S)

#define MAX_REQUESTS 400

/* How long a session may take beyond what the NBD store waits.  It takes some
 * milliseconds; this is for a machine that has other things to do. */
#define SLACK_S 60

/* --- Answers ------------------------------------------------------------ */

static const struct answer {
  const char *name;
  int reply;                  /* of fake-nbd.h: 0, EIO or FAKE_SILENCE */
  bool undone;                /* the request is not done */
  uint64_t before, after;     /* what passes before and after it is done */
  /* Then, or before it is done, another server takes over, which it may as soon as the
   * newest record has been there for a term. */
  enum { NOBODY, BEFORE, AFTER } rival;
  bool ever;                  /* all later requests are answered so, too */
  bool of_lease;              /* only requests of the lease are */
  bool then_errors;           /* later requests of the lease fail */
} answers[] = {
  { "error", EIO, .undone = true },
  { "error-but-done", EIO },
  { "error-ever", EIO, .undone = true, .ever = true },
  { "error-ever-of-lease", EIO, .undone = true, .ever = true, .of_lease = true },
  { "error-after-takeover", EIO, .undone = true, .rival = BEFORE },
  { "late", .before = TERM + S },
  { "late-answer", .after = TERM + S },
  { "late-ever-of-lease", .after = TERM + S, .ever = true, .of_lease = true },
  { "late-then-errors", .after = TERM / 2, .of_lease = true, .then_errors = true },
  { "late-after-takeover", .rival = BEFORE },
  { "late-answer-after-takeover", .rival = AFTER },
  { "silence", FAKE_SILENCE, .undone = true, .before = 3 * S },
  { "silence-but-done", FAKE_SILENCE, .after = 3 * S },
  { "silence-ever", FAKE_SILENCE, .undone = true, .before = 3 * S, .ever = true },
  { "silence-and-takeover", FAKE_SILENCE, .undone = true, .rival = BEFORE },
};

#define NR_ANSWERS (sizeof answers / sizeof answers[0])

/* Seconds for which the NBD store waits for a connection.  After three quarters of it a
 * silent server is left. */
static unsigned
delay_of (const struct answer *a)
{
  return a && a->reply == FAKE_SILENCE ? 2 : 60;
}

/* --- Sessions ----------------------------------------------------------- */

static const struct plan {
  const char *name;
  bool held;                  /* a server that ran elsewhere has the lease still */
  bool without_fua;
  bool threaded;              /* a thread renews; its requests are answered wrongly */
  enum { SERVE, PROBE, UNLOCK } call;   /* the latter do not take the lease */
  bool works;                 /* a server elsewhere renews its lease all the while */
} plans[] = {
  { "free" },
  { "held", .held = true },
  { "without-fua", .without_fua = true },
  { "threaded", .threaded = true },
  { "probe", .call = PROBE, .held = true },
  { "probe-working", .call = PROBE, .works = true },
  { "unlock", .call = UNLOCK, .held = true },
  { "unlock-without-fua", .call = UNLOCK, .held = true, .without_fua = true },
  { "unlock-working", .call = UNLOCK, .works = true },
};

#define NR_PLANS (sizeof plans / sizeof plans[0])

struct session {
  const struct plan *plan;
  const struct answer *answer; /* NULL: all is well */

  struct fake_nbd server;
  struct io_lease_world alpha, beta, gamma, delta;
  uint64_t clock_ns;           /* atomic */
  int64_t began_ms, ended_ms;

  /* Protected by the server's lock: */
  uint8_t now[SIZE], flushed[SIZE];
  unsigned at;                 /* the request that is answered so */
  bool counts;                 /* ... if its time has come: see start_thread */
  unsigned nr_requests;
  bool is_look[MAX_REQUESTS];  /* reads the lease area */
  bool begun;                  /* the first wrong answer was given */
  uint64_t area_ns;            /* when the lease area was changed last */
  uint64_t generation, counter; /* of the newest record */
  uint64_t landed_ns;          /* when that was written */
  struct io_store *rival;      /* NULL: there is none */
  uint64_t rival_ns;           /* it has the lease until then, at the least */
  struct io_store *holder;     /* the server that works; NULL: there is none */

  /* Of the session's thread: */
  bool took;
  unsigned nr_open;            /* requests until then */
  int sticky;                  /* -ESTALE, once a call returned that */
  unsigned nr_calls, nr_failed;
  struct { uint8_t byte; bool durable; } blocks[BLOCKS];

  pthread_mutex_t lock;
  /* Protected by lock: */
  unsigned errors, lost, given_up, troubles;
  char complaint[400];         /* the first one */
};

static char dir[64];

__attribute__ ((__format__ (__printf__, 2, 3)))
static void
complain (struct session *s, const char *fmt, ...)
{
  va_list ap;

  pthread_mutex_lock (&s->lock);
  if (s->complaint[0] == '\0') {
    va_start (ap, fmt);
    vsnprintf (s->complaint, sizeof s->complaint, fmt, ap);
    va_end (ap);
  }
  pthread_mutex_unlock (&s->lock);
}

static int64_t
now_ms (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void
pass (struct session *s, uint64_t ns)
{
  __atomic_add_fetch (&s->clock_ns, ns, __ATOMIC_RELAXED);
}

static uint64_t
clock_of (struct session *s)
{
  return __atomic_load_n (&s->clock_ns, __ATOMIC_RELAXED);
}

/* --- Worlds: alpha is the session's host, beta the rival's, gamma later, delta before --- */

static uint64_t
world_now (void *opaque)
{
  return __atomic_add_fetch (&((struct session *) opaque)->clock_ns, 1000,
                             __ATOMIC_RELAXED);
}

static void
world_sleep (void *opaque, uint64_t ns)
{
  if (ns < 10 * MS)             /* another thread is at work */
    usleep ((useconds_t) (ns / 1000));
  pass (opaque, ns);
}

static void
describe_alpha (void *opaque, struct io_lease_holder *h)
{
  strcpy (h->host, "alpha");
  h->pid = 11;
}

static void
describe_beta (void *opaque, struct io_lease_holder *h)
{
  strcpy (h->host, "beta");
  h->pid = 22;
}

static void
describe_gamma (void *opaque, struct io_lease_holder *h)
{
  strcpy (h->host, "gamma");
  h->pid = 33;
}

static void
describe_delta (void *opaque, struct io_lease_holder *h)
{
  strcpy (h->host, "delta");
  h->pid = 44;
}

static bool
has_ended (void *opaque, const struct io_lease_holder *h)
{
  return false;
}

static int
random_bytes (void *opaque, void *buf, size_t len)
{
  static unsigned n;
  const unsigned mine = __atomic_add_fetch (&n, 1, __ATOMIC_RELAXED);

  memset (buf, 0, len);
  memcpy (buf, &mine, sizeof mine);
  return 0;
}

static struct io_lease_world
world_of (struct session *s, void (*describe) (void *, struct io_lease_holder *))
{
  return (struct io_lease_world) {
    world_now, world_sleep, describe, has_ended, random_bytes, s
  };
}

/* --- The bytes, for servers beside the export --------------------------- */

struct direct {
  struct io_store store;
  struct session *s;
};

static int
direct_preadv (struct io_store *st, const struct iovec *iov, int n, uint64_t off)
{
  struct session *s = ((struct direct *) st)->s;
  int i;

  for (i = 0; i < n; off += iov[i++].iov_len)
    memcpy (iov[i].iov_base, s->now + off, iov[i].iov_len);
  return 0;
}

static int
direct_pwritev (struct io_store *st, const struct iovec *iov, int n, uint64_t off)
{
  struct session *s = ((struct direct *) st)->s;
  int i;

  if (off >= AREA)
    s->area_ns = clock_of (s);
  for (i = 0; i < n; off += iov[i++].iov_len)
    memcpy (s->now + off, iov[i].iov_base, iov[i].iov_len);
  return 0;
}

static int
direct_sync (struct io_store *st)
{
  struct session *s = ((struct direct *) st)->s;

  memcpy (s->flushed, s->now, SIZE);
  return 0;
}

static int64_t
direct_size (struct io_store *st)
{
  return SIZE;
}

static uint64_t
direct_max_size (struct io_store *st)
{
  return SIZE;
}

static void
direct_close (struct io_store *st)
{
  free (st);
}

static const struct io_ops direct_ops = {
  .preadv = direct_preadv, .pwritev = direct_pwritev, .sync = direct_sync,
  .size = direct_size, .max_size = direct_max_size, .close = direct_close,
};

/* Takes the lease as the server of WORLD.  Returns NULL and complains if that fails. */
static struct io_store *
take_direct (struct session *s, const struct io_lease_world *world, bool has_watched)
{
  const struct io_lease_params p = { .term_s = TERM_S, .world = world,
                                     .force = has_watched };
  struct direct *d = calloc (1, sizeof *d);
  struct io_store *leased;
  struct fault f = { 0 };

  if (d == NULL)
    abort ();
  d->store.ops = &direct_ops;
  d->s = s;
  if (io_lease_take (&d->store, &p, &leased, &f) == 0)
    return leased;
  complain (s, "another server cannot take the lease: %s", f.msg);
  return NULL;
}

/* --- Judging ------------------------------------------------------------ */

/* Returns the newest record in the area of an image of BYTES, if there is one. */
static bool
newest_of (const uint8_t *bytes, struct io_lease_holder *newest)
{
  struct io_lease_holder h;
  bool any = false;
  unsigned i;

  for (i = 0; i < LEASE_SLOTS; i++)
    if (lease_record_decode (bytes + AREA + i * LEASE_SLOT, &h) == 1 &&
        (!any || h.generation > newest->generation ||
         (h.generation == newest->generation && h.counter > newest->counter))) {
      *newest = h;
      any = true;
    }
  return any;
}

/* Notes since when the newest record is there.  What is written once more is no news. */
static bool
note_newest (struct session *s, struct io_lease_holder *h)
{
  if (!newest_of (s->now, h))
    return false;
  if (h->generation != s->generation || h->counter != s->counter)
    s->landed_ns = s->area_ns;
  s->generation = h->generation;
  s->counter = h->counter;
  return true;
}

/* A claim that was confirmed is as good as "held": others watch it for a term. */
static void
judge_arrival (struct session *s, const struct fake_request *r)
{
  struct io_lease_holder h = { 0 };
  const bool any = note_newest (s, &h);

  if (r->type != FAKE_WRITE || r->off >= AREA)
    return;
  if (!any || h.state == IO_LEASE_FREE || strcmp (h.host, "alpha") != 0)
    complain (s, "request %u writes without the lease, which %s has", r->idx,
              any ? h.host : "nobody");
  else if (clock_of (s) < s->rival_ns)
    complain (s, "request %u writes while another server has the lease", r->idx);
  else if (clock_of (s) >= s->landed_ns + TERM)
    complain (s, "request %u writes %u ms after the lease was renewed", r->idx,
              (unsigned) ((clock_of (s) - s->landed_ns) / MS));
}

/* --- The server --------------------------------------------------------- */

static void
perform (struct session *s, const struct fake_request *r, uint8_t *data)
{
  if (r->type == FAKE_READ)
    memcpy (data, s->now + r->off, r->len);
  if (r->type == FAKE_WRITE) {
    if (r->off >= AREA)
      s->area_ns = clock_of (s);
    memcpy (s->now + r->off, data, r->len);
    if (r->fua)
      memcpy (s->flushed + r->off, data, r->len);
  }
  if (r->type == FAKE_FLUSH)
    memcpy (s->flushed, s->now, SIZE);
}

/* Another server takes over, and writes.  It has watched the newest record since that
 * was written, and so waits no more than for the rest of the term. */
static void
let_rival_take (struct session *s)
{
  struct io_lease_holder h;
  uint8_t buf[BLOCK];

  if (note_newest (s, &h) && clock_of (s) <= s->landed_ns + TERM)
    pass (s, s->landed_ns + TERM - clock_of (s) + 1);
  if (s->rival || !(s->rival = take_direct (s, &s->beta, true)))
    return;
  s->rival_ns = clock_of (s) + TERM / 2;
  memset (buf, OF_RIVAL, sizeof buf);
  if (io_pwrite (s->rival, buf, BLOCK, AREA - BLOCK) < 0 || io_sync (s->rival) < 0)
    complain (s, "the server that took over cannot write");
}

/* Lets the server that works do so: it renews its lease where that is due, and stops for
 * ever when it sees that it lost it. */
static int
let_holder_work (struct session *s)
{
  uint8_t byte;

  return s->holder ? io_pread (s->holder, &byte, 1, 0) : 0;
}

/* Returns what happens to R; NULL: it is done. */
static const struct answer *
answer_to (const struct session *s, const struct fake_request *r)
{
  static const struct answer error = { .reply = EIO, .undone = true };
  const struct answer *a = s->answer;
  const bool of_lease = r->type != FAKE_FLUSH && r->off >= AREA;

  if (a == NULL || !s->counts || r->idx < s->at ||
      ((s->plan->threaded || a->of_lease) && !of_lease))
    return NULL;
  return !s->begun || a->ever ? a : a->then_errors ? &error : NULL;
}

static int
act (void *opaque, const struct fake_request *r, uint8_t *data)
{
  struct session *s = opaque;
  const struct answer *a = answer_to (s, r);

  s->nr_requests = r->idx + 1;
  if (r->idx < MAX_REQUESTS)
    s->is_look[r->idx] = r->type == FAKE_READ && r->off >= AREA;
  (void) !let_holder_work (s);
  judge_arrival (s, r);
  if (a == NULL) {
    perform (s, r, data);
    return FAKE_DO;
  }
  s->begun = true;
  pass (s, a->before);
  (void) !let_holder_work (s);
  if (a->rival == BEFORE)
    let_rival_take (s);
  if (!a->undone)
    perform (s, r, data);
  pass (s, a->after);
  if (a->rival == AFTER)
    let_rival_take (s);
  return a->reply;
}

/* --- The session -------------------------------------------------------- */

static void
note_line (void *opaque, enum log_level level, const char *line)
{
  struct session *s = opaque;

  if (getenv ("LEASE_CASE"))
    fprintf (stderr, "%d %s\n", (int) level, line);
  if (strchr (line, '\n') || (strncmp (line, "image: ", 7) != 0 &&
                              strncmp (line, "nbd+unix", 8) != 0))
    complain (s, "not one line that names the place: %s", line);
  pthread_mutex_lock (&s->lock);
  s->errors += level == LOG_ERROR;
  s->lost += strstr (line, "lease was lost") != NULL;
  s->given_up += strstr (line, "given up") != NULL;
  s->troubles += strstr (line, "nothing is read or written when its term") != NULL;
  pthread_mutex_unlock (&s->lock);
}

/* Notes the result of a call; returns whether it succeeded. */
static bool
note_call (struct session *s, const char *what, int r)
{
  s->nr_calls++;
  s->nr_failed += r < 0;
  if (r < 0 && r != -EIO && r != -ESTALE)
    complain (s, "%s: %s", what, strerror (-r));
  if (s->sticky && r == 0)
    complain (s, "%s works after the lease was lost", what);
  if (r == -ESTALE)
    s->sticky = r;
  return r == 0;
}

static void
write_block (struct session *s, struct io_store *st, unsigned i)
{
  uint8_t buf[BLOCK];

  memset (buf, (int) i + 1, sizeof buf);
  if (note_call (s, "a write", io_pwrite (st, buf, sizeof buf, i * BLOCK)))
    s->blocks[i].byte = (uint8_t) (i + 1);
}

static void
sync_blocks (struct session *s, struct io_store *st)
{
  unsigned i;

  if (note_call (s, "a sync", io_sync (st)))
    for (i = 0; i < BLOCKS; i++)
      s->blocks[i].durable |= s->blocks[i].byte != 0;
}

static void
read_block (struct session *s, struct io_store *st, unsigned i)
{
  uint8_t buf[BLOCK];

  if (note_call (s, "a read", io_pread (st, buf, sizeof buf, i * BLOCK)) &&
      s->blocks[i].byte && (buf[0] != i + 1 || buf[BLOCK - 1] != i + 1))
    complain (s, "block %u reads as %u", i, buf[0]);
}

static unsigned
requests_of (struct session *s)
{
  unsigned nr;

  pthread_mutex_lock (&s->server.lock);
  nr = s->nr_requests;
  pthread_mutex_unlock (&s->server.lock);
  return nr;
}

static void
start_thread (struct session *s, struct io_store *st)
{
  pthread_mutex_lock (&s->server.lock);
  s->at = s->nr_requests;
  s->counts = true;
  pthread_mutex_unlock (&s->server.lock);
  if (io_lease_start (st) < 0)
    complain (s, "no thread");
}

static void
work (struct session *s, struct io_store *st)
{
  unsigned i;

  write_block (s, st, 0);
  sync_blocks (s, st);
  if (s->plan->threaded)
    start_thread (s, st);
  pass (s, TERM / 6 + S);       /* the next call renews the lease */
  write_block (s, st, 1);
  read_block (s, st, 0);
  sync_blocks (s, st);
  if (!s->plan->threaded)
    pass (s, TERM * 3 / 4);     /* the next call renews it in the last moment */
  write_block (s, st, 2);
  if (!s->plan->threaded)
    pass (s, TERM);             /* the next call takes it again */
  for (i = 3; i < 18; i++) {    /* longer than a term */
    write_block (s, st, i);
    if (i % 4 == 2)
      sync_blocks (s, st);
    pass (s, TERM / 12);
  }
  sync_blocks (s, st);
}

static void
check_refusal (struct session *s, const struct fault *f)
{
  const bool in_use = strstr (f->msg, "is in use by the server on ") != NULL;

  if (strchr (f->msg, '\n') || (strstr (f->msg, "its lease") == NULL && !in_use))
    complain (s, "a refusal that does not say why: \"%s\"", f->msg);
  if (in_use && !s->rival)
    complain (s, "refused for a server that does not run: %s", f->msg);
}

static void
serve (struct session *s)
{
  const struct log_sink sink = { note_line, s };
  struct io_store **self = calloc (1, sizeof *self), *nbd, *st;
  struct io_lease_params lease = { .self = self, .log = &sink, .path = "image",
                                   .term_s = TERM_S, .world = &s->alpha };
  char uri[200];
  const struct io_nbd_params p = {
    .uri = uri, .writable = true, .connections = 1, .log = &sink,
    .reconnect_delay = delay_of (s->answer),
    .may_resume = io_lease_may_resume, .opaque = self,
  };
  struct fault f = { 0 };

  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", s->server.socket);
  if (io_nbd_open (&p, &nbd, &f) < 0) {
    complain (s, "cannot connect: %s", f.msg);
    free (self);
    return;
  }
  s->took = io_lease_take (nbd, &lease, &st, &f) == 0;
  if (!s->took) {
    check_refusal (s, &f);
    return;
  }
  s->nr_open = requests_of (s);
  work (s, st);
  io_close (st);
}

/* What the next server sees as soon as unlock returned.  (An unlock that took so long that
 * the holder had to take its lease again meanwhile made a record of the same generation:
 * the next server waits for a term then.) */
static void
check_unlocked (struct session *s)
{
  const bool late = s->answer && s->answer->before + s->answer->after > 0;
  struct io_lease_holder h = { 0 };

  if (!late && (!newest_of (s->flushed, &h) || h.state != IO_LEASE_FREE))
    complain (s, "unlock returned, and the lease is not free, durably");
}

/* The holder works on, unless its lease was broken; it looks when it renews, a sixth of
 * its term later. */
static void
check_holder (struct session *s, bool unlocked)
{
  struct io_lease_holder h = { 0 };
  const bool broken = newest_of (s->now, &h) && h.state == IO_LEASE_FREE;
  int r;

  pass (s, TERM / 6 + S);
  r = let_holder_work (s);
  if (r == 0 && (unlocked || broken))
    complain (s, "the server that works did not notice unlock");
  else if (r < 0 && (r != -ESTALE || !(unlocked || broken)))
    complain (s, "the server that works was stopped: %s", strerror (-r));
}

static void
check_probe (struct session *s, int r, const uint8_t *before, const struct fault *f)
{
  if (r == 0 && s->holder && !s->rival)
    complain (s, "a probe misses the server that works");
  if (r == 1 && !s->holder && !s->rival)
    complain (s, "a probe sees a server that has died: %s", f->msg);
  if (r == 1 && strstr (f->msg, "is in use by the server on ") == NULL)
    complain (s, "a probe does not say who writes: \"%s\"", f->msg);
  if (!s->holder && !s->rival && memcmp (before, s->now, SIZE) != 0)
    complain (s, "a probe changed bytes");
}

/* Calls what does not take the lease. */
static void
visit (struct session *s)
{
  const struct log_sink sink = { note_line, s };
  const struct io_lease_params lease = { .log = &sink, .path = "image",
                                         .world = &s->alpha };
  const bool unlocks = s->plan->call == UNLOCK;
  char uri[200];
  const struct io_nbd_params p = {
    .uri = uri, .writable = unlocks, .connections = 1, .log = &sink,
    .reconnect_delay = delay_of (s->answer),
  };
  CLEANUP_FREE uint8_t *before = malloc (SIZE);
  struct fault f = { 0 };
  struct io_store *nbd;
  int r;

  if (before == NULL)
    abort ();
  memcpy (before, s->now, SIZE);
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", s->server.socket);
  if (io_nbd_open (&p, &nbd, &f) < 0) {
    complain (s, "cannot connect: %s", f.msg);
    return;
  }
  r = unlocks ? io_lease_break (nbd, &lease, &f) : io_lease_probe (nbd, &lease, &f);
  io_close (nbd);
  s->took = note_call (s, "the call", MIN_OF (r, 0));
  if (r < 0 && (f.msg[0] == '\0' || strchr (f.msg, '\n')))
    complain (s, "a failure that does not say why: \"%s\"", f.msg);
  pthread_mutex_lock (&s->server.lock);
  if (!unlocks)
    check_probe (s, r, before, &f);
  if (unlocks && r == 0 && !s->rival)
    check_unlocked (s);
  if (s->holder && !s->rival)
    check_holder (s, unlocks && r == 0);
  pthread_mutex_unlock (&s->server.lock);
}

/* A server ran elsewhere, and its lease has not ended. */
static void
be_held (struct session *s)
{
  struct io_lease_holder h = {
    .state = IO_LEASE_HELD, .generation = 7, .counter = 3,
    .term_ms = TERM_S * 1000, .pid = 44, .host = "delta", .server = { 0xdd },
  };

  lease_record_encode (&h, s->now + AREA + 2 * LEASE_SLOT);
}

static void
begin (struct session *s)
{
  static unsigned nr;

  pthread_mutex_init (&s->lock, NULL);
  s->clock_ns = 1000 * S;
  s->counts = !s->plan->threaded;
  s->alpha = world_of (s, describe_alpha);
  s->beta = world_of (s, describe_beta);
  s->gamma = world_of (s, describe_gamma);
  s->delta = world_of (s, describe_delta);
  memset (s->now, OLD, AREA);
  if (s->plan->held)
    be_held (s);
  if (s->plan->works)
    s->holder = take_direct (s, &s->delta, false);
  memcpy (s->flushed, s->now, SIZE);
  s->server = (struct fake_nbd) { .size = SIZE, .act = act, .opaque = s };
  s->server.flags = s->plan->without_fua ? FAKE_ALL & ~FAKE_FUA : 0;
  snprintf (s->server.socket, sizeof s->server.socket, "%s/%u", dir,
            __atomic_add_fetch (&nr, 1, __ATOMIC_RELAXED));
  fake_init (&s->server);
  fake_start (&s->server);
}

/* --- Afterwards --------------------------------------------------------- */

/* Each block is as it was written, or as before where nobody promised more. */
static void
check_blocks (struct session *s, const uint8_t *bytes)
{
  unsigned i, k;

  for (i = 0; i < BLOCKS; i++) {
    const uint8_t *b = bytes + i * BLOCK;

    for (k = 1; k < BLOCK && b[k] == b[0]; k++)
      ;
    if (k < BLOCK)
      complain (s, "block %u is torn", i);
    else if (s->blocks[i].durable ? b[0] != i + 1
             : b[0] != OLD && b[0] != i + 1 && b[0] != OF_RIVAL)
      complain (s, "block %u has %u", i, b[0]);
    else if ((b[0] == OF_RIVAL) != (s->rival && i == BLOCKS - 1))
      complain (s, "block %u has the other server's bytes, or lacks them", i);
  }
}

/* What the session could see, if one request met with an error only. */
static void
check_one_error (struct session *s)
{
  if (s->nr_failed > 1)
    complain (s, "%u calls failed for one error", s->nr_failed);
  if (s->lost)
    complain (s, "the lease was lost to nobody");
  if (s->errors > 1)
    complain (s, "%u error lines for one error", s->errors);
}

static void
check_outcome (struct session *s)
{
  const int64_t took = s->ended_ms - s->began_ms;
  const unsigned silent_s = s->answer && s->answer->reply == FAKE_SILENCE
    ? delay_of (s->answer) : 0;

  if (took > 1000 * (silent_s + SLACK_S))
    complain (s, "the session took %d ms", (int) took);
  if (s->answer == NULL && (!s->took || s->nr_failed || s->errors))
    complain (s, "not all is well: %u of %u calls failed, %u error lines",
              s->nr_failed, s->nr_calls, s->errors);
  if (s->answer && s->answer->reply == EIO && !s->answer->ever && !s->answer->rival &&
      !s->answer->then_errors)
    check_one_error (s);
  if (s->lost > 1 || s->given_up > 1)
    complain (s, "%u lines on the loss, %u on giving up", s->lost, s->given_up);
  if (s->sticky && !s->lost)
    complain (s, "calls fail for ever, and no line says why");
  if (s->answer && s->answer->of_lease && s->plan->call == SERVE && s->nr_failed && !s->lost && !s->troubles)
    complain (s, "%u calls failed, and no line says why", s->nr_failed);
}

/* The lease is to be had, and what was flushed is there. */
static void
take_after (struct session *s)
{
  struct io_store *st;
  uint64_t began;

  io_close (s->rival);
  io_close (s->holder);
  memcpy (s->now, s->flushed, SIZE);    /* the server loses its cache */
  began = clock_of (s);
  st = take_direct (s, &s->gamma, false);
  if (st == NULL)
    return;
  if (clock_of (s) - began > 4 * TERM)
    complain (s, "the next server had to wait for %u s",
              (unsigned) ((clock_of (s) - began) / S));
  check_blocks (s, s->now);
  io_close (st);
}

static void
run (struct session *s)
{
  begin (s);
  s->began_ms = now_ms ();
  if (s->plan->call == SERVE)
    serve (s);
  else
    visit (s);
  s->ended_ms = now_ms ();
  fake_stop (&s->server);
  check_outcome (s);
  take_after (s);
  fake_destroy (&s->server);
  pthread_mutex_destroy (&s->lock);
}

/* --- All of them -------------------------------------------------------- */

#define MAX_CASES 5000

static struct {
  struct one { const struct plan *plan; const struct answer *answer; unsigned at; } v[MAX_CASES];
  unsigned nr, next;           /* atomic: next */
  unsigned failed;             /* atomic */
} cases;

static void
run_case (const struct one *c)
{
  struct session *s = calloc (1, sizeof *s);

  if (s == NULL)
    abort ();
  s->plan = c->plan;
  s->answer = c->answer;
  s->at = c->at;
  run (s);
  if (s->complaint[0]) {
    __atomic_add_fetch (&cases.failed, 1, __ATOMIC_RELAXED);
    printf ("LEASE_CASE=%s:%u:%s %s\n", c->plan->name, c->at,
            c->answer ? c->answer->name : "", s->complaint);
  }
  free (s);
}

static void *
run_cases (void *opaque)
{
  unsigned i;

  while ((i = __atomic_fetch_add (&cases.next, 1, __ATOMIC_RELAXED)) < cases.nr)
    run_case (&cases.v[i]);
  return NULL;
}

/* Runs all cases, NR_THREADS at a time. */
static void
run_all (unsigned nr_threads)
{
  pthread_t t[100];
  unsigned i;

  for (i = 0; i < nr_threads; i++)
    assert_int_equal (pthread_create (&t[i], NULL, run_cases, NULL), 0);
  for (i = 0; i < nr_threads; i++)
    pthread_join (t[i], NULL);
  printf ("%u sessions\n", cases.nr);
  assert_int_equal (cases.failed, 0);
}

/* Returns whether request AT is one of many that read the area alone, in a watch: some
 * at its ends are enough. */
static bool
is_amid_watch (const struct session *s, unsigned at)
{
  unsigned i;

  for (i = 0; i < 5; i++)
    if (at + i < 2 || at + i - 2 >= s->nr_requests || !s->is_look[at + i - 2])
      return false;
  return true;
}

static void
add_case (const struct plan *p, const struct answer *a, unsigned at)
{
  assert_true (cases.nr < MAX_CASES);
  cases.v[cases.nr++] = (struct one) { p, a, at };
}

/* Returns whether P asks for A at request AT.  Behind the open all sessions are the same
 * but for flushes instead of FUA. */
static bool
is_of_interest (const struct session *s, const struct answer *a, unsigned at)
{
  if (is_amid_watch (s, at) ||
      (s->plan->call == SERVE && s->plan->held && at >= s->nr_open))
    return false;
  return s->plan->call != SERVE || !s->plan->without_fua || (a->reply != FAKE_SILENCE && !a->ever);
}

/* Adds a case for each request of a session where all is well. */
static void
add_cases (const struct plan *p, bool silent)
{
  struct session *s = calloc (1, sizeof *s);
  unsigned at, k;

  assert_non_null (s);
  s->plan = p;
  run (s);
  if (s->complaint[0])
    fail_msg ("%s: %s", p->name, s->complaint);
  assert_in_range (s->nr_requests, p->call == SERVE ? 20 : 3, MAX_REQUESTS);
  for (at = 0; at < s->nr_requests; at++)
    for (k = 0; k < NR_ANSWERS; k++)
      if ((answers[k].reply == FAKE_SILENCE) == silent &&
          is_of_interest (s, &answers[k], at))
        add_case (p, &answers[k], at);
  free (s);
}

static void
forget_cases (void)
{
  cases.nr = cases.next = cases.failed = 0;
}

static void
each_request_may_fail_or_be_late (void **state)
{
  unsigned i;

  forget_cases ();
  for (i = 0; i < NR_PLANS; i++)
    if (!plans[i].threaded)
      add_cases (&plans[i], false);
  run_all (2);
}

/* These sleep; so they sleep side by side. */
static void
each_request_may_have_no_answer (void **state)
{
  unsigned i;

  forget_cases ();
  for (i = 0; i < NR_PLANS; i++)
    if (!plans[i].threaded)
      add_cases (&plans[i], true);
  run_all (100);
}

/* The thread that renews waits for an answer while others write: till the term ends. */
static void
a_thread_that_cannot_renew_ends_all_writes (void **state)
{
  unsigned i, k;

  forget_cases ();
  for (i = 0; i < NR_PLANS; i++)
    for (k = 0; k < NR_ANSWERS && plans[i].threaded; k++)
      if (answers[k].reply != 0 && !answers[k].rival)
        add_case (&plans[i], &answers[k], 0);
  run_all (10);
}

/* Runs the case that LEASE_CASE names. */
static int
run_one (const char *text)
{
  char plan[40] = "", answer[40] = "";
  struct one c = { 0 };
  unsigned i;

  if (sscanf (text, "%39[^:]:%u:%39s", plan, &c.at, answer) < 2)
    return 2;
  for (i = 0; i < NR_PLANS; i++)
    if (strcmp (plans[i].name, plan) == 0)
      c.plan = &plans[i];
  for (i = 0; i < NR_ANSWERS; i++)
    if (strcmp (answers[i].name, answer) == 0)
      c.answer = &answers[i];
  if (c.plan == NULL)
    return 2;
  run_case (&c);
  return cases.failed > 0;
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (each_request_may_fail_or_be_late),
    cmocka_unit_test (a_thread_that_cannot_renew_ends_all_writes),
    cmocka_unit_test (each_request_may_have_no_answer),
  };
  const char *tmp = getenv ("TMPDIR");
  int r;

  snprintf (dir, sizeof dir, "%.40s/test-lease-XXXXXX", tmp ? tmp : "/tmp");
  if (mkdtemp (dir) == NULL)
    return 1;
  r = getenv ("LEASE_CASE") ? run_one (getenv ("LEASE_CASE"))
    : cmocka_run_group_tests (tests, NULL, NULL);
  rmdir (dir);
  return r;
}
