/* SPDX-License-Identifier: BSD-3-Clause */
/* Models storage that is reached through NBD: the real code of io/ talks to a
 * server in this process, which loses connections, and what it did not flush.
 *
 * The bytes are a recording, so a crash of everything makes states of it as of any
 * other one.  When a connection is lost, the server may lose what it had in its
 * cache.  That is recorded as well, as writes of what is there afterwards, and a
 * sync: a server that begins again has on its storage what it has.
 *
 * Requests on a connection that was lost, and what a cache lost, may land later,
 * until the session ends (storage_settle): the next one begins when they are shut
 * out (docs/on-disk.md 13.4).
 *
 * The lease has a clock that moves when it is looked at, mostly a little, sometimes
 * beyond the next renewal, and now and then beyond the term.
 *
 * Locks: that of a host's server, then that of the storage.
 */
#include "remote.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"

struct remote_counts remote_counts;

#define SECOND UINT64_C (1000000000)

/* --- Storage -------------------------------------------------------------- */

void
storage_init (struct storage *s, const struct cfg *cfg, uint64_t seed)
{
  *s = (struct storage) { .cfg = cfg, .rng = rng_of (seed, 31),
                          .clock_ns = 1000 * SECOND };
  pthread_mutex_init (&s->lock, NULL);
}

static void
drop_stray (struct storage *s, size_t i)
{
  free (s->strays[i].data);
  s->strays[i] = s->strays[--s->nr_strays];
}

void
storage_destroy (struct storage *s)
{
  while (s->nr_strays > 0)
    drop_stray (s, 0);
  bytes_free (&s->durable);
  bytes_free (&s->older);
  bytes_free (&s->first);
  bytes_free (&s->left);
  pthread_mutex_destroy (&s->lock);
}

/* Returns N bytes in memory that grows. */
static struct io_store *
memory_of (const uint8_t *p, size_t n)
{
  struct io_store *memory;

  if (io_memory_new (n, &memory) < 0 || (n > 0 && io_pwrite (memory, p, n, 0) < 0))
    abort ();
  return memory;
}

void
storage_begin (struct storage *s, const struct bytes *bytes,
               struct io_store **rec)
{
  struct io_store *memory = memory_of (bytes->p, bytes->size);

  if (s->cfg->store_file)
    memory = pair_new (memory, memory_of (bytes->p2, bytes->size2), bytes->block);
  if (io_recording_new (memory, rec) < 0)
    abort ();
  pthread_mutex_lock (&s->lock);
  s->rec = *rec;
  bytes_free (&s->durable);
  bytes_copy (bytes, &s->durable);
  bytes_free (&s->older);
  bytes_free (&s->first);
  s->older = (struct bytes) { 0 };
  bytes_copy (&(struct bytes) { .p2 = bytes->p2, .size2 = bytes->size2 }, &s->first);
  s->synced = 0;
  pthread_mutex_unlock (&s->lock);
}

void
storage_copy (struct storage *s, struct bytes *out)
{
  pthread_mutex_lock (&s->lock);
  if (bytes_of_store (s->rec, out) < 0 ||
      (s->cfg->store_file && bytes_of_store_file (s->rec, out) < 0))
    abort ();
  pthread_mutex_unlock (&s->lock);
}

/* Returns whether a write changes bytes of one that was recorded. */
static bool
is_other (const struct io_record *r, const uint8_t *data, uint64_t off, uint64_t len)
{
  const uint64_t from = MAX_OF (off, r->host_off);
  const uint64_t to = MIN_OF (off + len, r->host_off + r->len);

  return memcmp (r->data + (from - r->host_off), data + (from - off),
                 to - from) != 0;
}

/* Counts a write over what is not durable yet.  Returns whether it is one: a
 * connection that is lost then is of interest. */
static bool
is_over_locked (struct storage *s, const uint8_t *data, uint64_t off,
                   uint64_t len)
{
  const struct io_record *log, *r;
  size_t i = io_recording_log (s->rec, &log);

  while (i-- > s->synced) {
    r = &log[i];
    if (off >= r->host_off + r->len || r->host_off >= off + len)
      continue;
    if (r->call == IO_DISCARD)
      COUNT (over_trims);
    else if (is_other (r, data, off, len))
      COUNT (over_writes);
    else
      return false;
    return true;
  }
  return false;
}

/* All that was recorded is durable. */
static void
flush_locked (struct storage *s)
{
  struct world w = { 0 };
  const size_t nr = io_recording_log (s->rec, &w.log);

  bytes_play (&w, s->synced, nr, &s->durable);
  if (io_sync (s->rec) < 0)
    abort ();
  s->synced = nr + 1;
  if (s->cfg->store_file && chance (&s->rng, s->older.p ? 200 : 30)) {
    bytes_free (&s->older);
    bytes_copy (&s->durable, &s->older);
    s->older_sessions = media_sessions (&s->durable);
  }
}

static void
change_locked (struct storage *s, enum fake_type type, const uint8_t *data,
               uint64_t off, uint64_t len)
{
  int r = type == FAKE_WRITE ? io_pwrite (s->rec, data, len, off)
    : io_discard (s->rec, off, len);

  if (r < 0)
    abort ();
}

/* --- Strays --------------------------------------------------------------- */

static void
add_stray_locked (struct storage *s, enum fake_type type, const uint8_t *data,
                  uint64_t off, uint64_t len)
{
  struct stray *t = &s->strays[s->nr_strays];

  if (s->nr_strays == MAX_STRAYS)
    return;
  *t = (struct stray) { .type = type, .off = off, .len = (uint32_t) len };
  t->due = s->nr_requests + rnd (&s->rng, chance (&s->rng, 2) ? 20 : 2000);
  if (type == FAKE_WRITE) {
    t->data = malloc (len + 1);
    memcpy (t->data, data, len);
  }
  s->nr_strays++;
}

static void
land_locked (struct storage *s, size_t i)
{
  const struct stray *t = &s->strays[i];

  COUNT (strays);
  change_locked (s, t->type, t->data, t->off, t->len);
  drop_stray (s, i);
}

static void
land_due_locked (struct storage *s)
{
  size_t i;

  for (i = s->nr_strays; i-- > 0;)
    if (s->strays[i].due <= s->nr_requests)
      land_locked (s, i);
}

void
storage_settle (struct storage *s)
{
  pthread_mutex_lock (&s->lock);
  while (s->nr_strays > 0)
    if (chance (&s->rng, 2))
      land_locked (s, s->nr_strays - 1);
    else
      drop_stray (s, s->nr_strays - 1);
  pthread_mutex_unlock (&s->lock);
}

/* --- Losing a cache ------------------------------------------------------- */

/* What becomes of the records that were not flushed. */
struct loss {
  const struct io_record *log; /* the first of them */
  size_t nr;
  uint8_t *fate;
  uint64_t seed;
};

/* Returns how many bytes from OFF on, of record I, share their fate, and that. */
static uint64_t
piece (const struct loss *l, size_t i, uint64_t off, uint64_t len, bool *kept)
{
  const uint64_t unit = l->fate[i] == FATE_TORN_512 ? 512 : 4096;
  struct rng r = rng_of (l->seed + i, off / unit);

  *kept = l->fate[i] == FATE_KEPT;
  if (l->fate[i] == FATE_KEPT || l->fate[i] == FATE_LOST)
    return len;
  *kept = chance (&r, 2);
  return MIN_OF (len, unit - off % unit);
}

/* Does what was kept of record I to BUF, the range [FROM, TO). */
static void
overlay (const struct loss *l, size_t i, uint8_t *buf, uint64_t from,
         uint64_t to)
{
  const struct io_record *r = &l->log[i];
  uint64_t off = MAX_OF (from, r->host_off), n;
  const uint64_t end = MIN_OF (to, r->host_off + r->len);
  bool kept;

  for (; off < end; off += n) {
    n = piece (l, i, off, end - off, &kept);
    if (kept && r->call == IO_PWRITE)
      memcpy (buf + (off - from), r->data + (off - r->host_off), n);
    else if (kept)
      memset (buf + (off - from), 0, n);
  }
}

/* Returns what is in the range of record I after the loss. */
static uint8_t *
bytes_after (const struct storage *s, const struct loss *l, size_t i)
{
  const struct io_record *r = &l->log[i];
  uint8_t *buf = malloc (r->len + 1);
  size_t k;

  memcpy (buf, s->durable.p + r->host_off, r->len);
  for (k = 0; k < l->nr; k++)
    overlay (l, k, buf, r->host_off, r->host_off + r->len);
  return buf;
}

/* Nothing is lost in one of four cases, all in another.  The store file lies elsewhere. */
static bool
choose_fates (struct storage *s, struct loss *l)
{
  const unsigned kind = (unsigned) rnd (&s->rng, 4);
  const unsigned lose = kind == 1 ? 8 : 1 + (unsigned) rnd (&s->rng, 7);
  const bool tear = kind > 1 && chance (&s->rng, 2);
  size_t i;

  for (i = 0; i < l->nr; i++) {
    if (file_of (&l->log[i]))
      continue;
    l->fate[i] = rnd (&s->rng, 8) < lose ? FATE_LOST : FATE_KEPT;
    if (tear && chance (&s->rng, 4) &&
        (l->log[i].host_off > 0 || l->log[i].len > 4096))
      l->fate[i] = chance (&s->rng, 2) ? FATE_TORN_512 : FATE_TORN_4096;
  }
  return kind > 0;
}

/* A cache may have sent a part of what it has when it is lost. */
static void
perhaps_land_later_locked (struct storage *s, const struct io_record *r)
{
  if (s->cfg->strays && (r->call == IO_DISCARD || chance (&s->rng, 2)))
    add_stray_locked (s, r->call == IO_PWRITE ? FAKE_WRITE : FAKE_TRIM, r->data,
                      r->host_off, r->len);
}

static void
lose_locked (struct storage *s)
{
  struct loss l = { .seed = rnd (&s->rng, UINT32_MAX) };
  const size_t nr = io_recording_log (s->rec, &l.log);
  struct { uint8_t *p; uint64_t off, len; } *after;
  size_t i;

  l.nr = nr - s->synced;
  l.log += s->synced;
  l.fate = calloc (l.nr + 1, 1);
  after = calloc (l.nr + 1, sizeof *after);
  if (!choose_fates (s, &l))
    l.nr = 0;                  /* only the connection is lost */
  for (i = 0; i < l.nr; i++)
    if (l.fate[i] != FATE_KEPT) {
      after[i].p = bytes_after (s, &l, i);
      after[i].off = l.log[i].host_off;
      after[i].len = l.log[i].len;
      perhaps_land_later_locked (s, &l.log[i]);
    }
  for (i = 0; i < l.nr; free (after[i++].p))
    if (after[i].p)
      change_locked (s, FAKE_WRITE, after[i].p, after[i].off, after[i].len);
  if (l.nr > 0) {
    COUNT (losses);
    flush_locked (s);
  }
  free (after);
  free (l.fate);
}

void
storage_lose (struct storage *s)
{
  pthread_mutex_lock (&s->lock);
  lose_locked (s);
  pthread_mutex_unlock (&s->lock);
}

/* --- Requests ------------------------------------------------------------- */

static void
perform_locked (struct host *h, const struct fake_request *r, uint8_t *data)
{
  struct storage *s = h->storage;

  switch (r->type) {
  case FAKE_READ:
    if (io_pread (s->rec, data, r->len, r->off) < 0)
      abort ();
    break;
  case FAKE_FLUSH:
    flush_locked (s);
    break;
  case FAKE_TRIM:               /* which is advice */
    if (!chance (&s->rng, 3))
      change_locked (s, r->type, NULL, r->off, r->len);
    break;
  case FAKE_WRITE:
    if (is_over_locked (s, data, r->off, r->len) &&
        chance (&s->rng, s->cfg->strays ? 1 : 2)) {
      h->calm = 0;
      h->hot = 8;
    }
    change_locked (s, r->type, data, r->off, r->len);
    if (r->fua)
      flush_locked (s);
    break;
  case FAKE_DISC:
    break;
  }
}

/* Keeps a request that is not done to be done later, perhaps. */
static void
perhaps_later_locked (struct storage *s, const struct fake_request *r,
                      const uint8_t *data)
{
  if (s->cfg->strays && chance (&s->rng, 2) &&
      (r->type == FAKE_WRITE || r->type == FAKE_TRIM))
    add_stray_locked (s, r->type, data, r->off, r->len);
}

/* Returns whether this request is one that loses its connection. */
static bool
is_cut_locked (struct host *h)
{
  struct storage *s = h->storage;

  if (h->calm > 0) {
    h->calm--;
    return false;
  }
  if (h->hot > 0)
    h->hot--;
  return chance (&s->rng, h->hot > 0 ? 4 : s->cfg->cut_one_in);
}

/* After it, more connections may be lost soon, or none for a while. */
static void
cut_locked (struct host *h)
{
  struct storage *s = h->storage;

  COUNT (cuts);
  h->first_conn = h->server.nr_connections + 1;
  h->hot = chance (&s->rng, 2) ? (unsigned) rnd (&s->rng, 12) : 0;
  h->calm = h->hot ? 0 : (unsigned) rnd (&s->rng, 8 * s->cfg->cut_one_in);
  if (chance (&s->rng, 6))
    pass_time (s, rnd (&s->rng, 70 * SECOND));
  lose_locked (s);
}

/* Returns whether the server is cut off at R: a write of the image, which it will send
 * again. */
static bool
leaves (const struct host *h, const struct fake_request *r)
{
  return h->leaves_at > 0 && r->idx >= h->leaves_at && r->type == FAKE_WRITE &&
    r->off < h->server.size - IO_LEASE_BYTES &&
    __atomic_load_n (&h->holds, __ATOMIC_RELAXED);
}

/* The server is cut off from its host until another one has taken over. */
static int
leave (struct host *h)
{
  COUNT (cut_off);
  h->leaves_at = 0;
  h->taken_over (h);
  h->first_conn = h->server.nr_connections + 1;
  return FAKE_CUT;
}

static bool
is_on_blocks (const struct cfg *cfg, const struct fake_request *r)
{
  return cfg->min_block == 0 || ((r->off | r->len) & (cfg->min_block - 1)) == 0;
}

#define NBD_EIO 5
#define NBD_ENOSPC 28

/* Returns whether the storage answers a request with an error.  A write may be done all
 * the same, a flush is not.  Not those of the lease, without which there is no session. */
static bool
is_refused_locked (struct host *h, const struct fake_request *r)
{
  struct storage *s = h->storage;

  if (s->cfg->error_one_in == 0 || !chance (&s->rng, s->cfg->error_one_in) ||
      !__atomic_load_n (&h->holds, __ATOMIC_RELAXED) ||
      (r->type != FAKE_FLUSH && r->off >= h->server.size - IO_LEASE_BYTES))
    return false;
  COUNT (errors);
  __atomic_store_n (&h->refused, true, __ATOMIC_RELAXED);
  if (r->type == FAKE_FLUSH) { /* what was not flushed is soon lost */
    h->hot = 12;
    h->calm = 0;
  }
  return true;
}

static int
act_locked (struct host *h, const struct fake_request *r, uint8_t *data)
{
  struct storage *s = h->storage;

  if (!is_on_blocks (s->cfg, r))
    return 22;                 /* NBD_EINVAL: the call fails, and the workload */
  COUNT (requests);
  s->nr_requests++;
  land_due_locked (s);
  if (is_refused_locked (h, r)) {
    if (r->type == FAKE_WRITE && chance (&s->rng, 2))
      perform_locked (h, r, data);
    return r->type == FAKE_WRITE && chance (&s->rng, 4) ? NBD_ENOSPC : NBD_EIO;
  }
  if (!is_cut_locked (h)) {
    perform_locked (h, r, data);
    return FAKE_DO;
  }
  if (chance (&s->rng, 2))
    perform_locked (h, r, data);
  else
    perhaps_later_locked (s, r, data);
  cut_locked (h);
  return FAKE_CUT;
}

static int
act (void *opaque, const struct fake_request *r, uint8_t *data)
{
  struct host *h = opaque;
  struct storage *s = h->storage;
  int fate = FAKE_SILENCE;

  if (leaves (h, r))
    return leave (h);
  pthread_mutex_lock (&s->lock);
  if (r->conn >= h->first_conn)
    fate = act_locked (h, r, data);
  else if (!__atomic_load_n (&h->over, __ATOMIC_RELAXED))
    perhaps_later_locked (s, r, data);
  pthread_mutex_unlock (&s->lock);
  return fate;
}

/* --- What the lease asks -------------------------------------------------- */

void
pass_time (struct storage *s, uint64_t ns)
{
  __atomic_add_fetch (&s->clock_ns, ns, __ATOMIC_RELAXED);
}

/* Returns whether nothing of this host is under way but what this thread does: then
 * all of it can stop here. */
static bool
may_stop (struct host *h)
{
  bool up;

  if (!__atomic_load_n (&h->holds, __ATOMIC_RELAXED))
    return false;
  if (io_nbd_link_is_mine (h->nbd))
    return true;
  pthread_mutex_lock (&h->nbd->link.lock);
  up = h->nbd->link.phase == NBD_UP;
  pthread_mutex_unlock (&h->nbd->link.lock);
  return up;
}

/* The process stops just before it looks at the clock. */
static void
perhaps_hang (struct host *h, uint64_t n)
{
  uint64_t at = __atomic_load_n (&h->hangs_at, __ATOMIC_RELAXED);

  if (at > 0 && n >= at && may_stop (h) &&
      __atomic_compare_exchange_n (&h->hangs_at, &at, 0, false,
                                   __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    COUNT (hangs);
    __atomic_store_n (&h->stopped, true, __ATOMIC_RELAXED);
    h->taken_over (h);
    __atomic_store_n (&h->stopped, false, __ATOMIC_RELAXED);
  }
  while (__atomic_load_n (&h->stopped, __ATOMIC_RELAXED))
    usleep (1000);
}

/* A server that is too slow each time that it claims the lease gives up.  So there are
 * some looks at the clock between times that pass at once. */
#define LOOKS_BETWEEN 40

static uint64_t
choose_step (struct host *h, uint64_t n)
{
  struct rng r = rng_of (h->world->seed, n);
  const uint64_t usual = rnd (&r, SECOND / 500);
  const uint64_t last = __atomic_load_n (&h->jumped_at, __ATOMIC_RELAXED);

  if (n < last + LOOKS_BETWEEN || !chance (&r, 200))
    return usual;
  __atomic_store_n (&h->jumped_at, n, __ATOMIC_RELAXED);
  return rnd (&r, (chance (&r, 20) ? 80 : 8) * SECOND);
}

static uint64_t
now_ns (void *opaque)
{
  struct host *h = opaque;
  const uint64_t n = __atomic_add_fetch (&h->nr_times, 1, __ATOMIC_RELAXED);
  const uint64_t step = choose_step (h, n);

  perhaps_hang (h, n);
  return __atomic_add_fetch (&h->storage->clock_ns, step, __ATOMIC_RELAXED);
}

static void
sleep_ns (void *opaque, uint64_t ns)
{
  if (ns <= SECOND / 200)       /* another thread is at work meanwhile */
    usleep ((useconds_t) (ns / 1000));
  pass_time (((struct host *) opaque)->storage, ns);
}

static void
describe (void *opaque, struct io_lease_holder *h)
{
  memset (h->host, 0, sizeof h->host);
  snprintf (h->host, sizeof h->host, "%s", ((struct host *) opaque)->name);
  h->pid = 1;
}

/* Sessions of a host follow each other. */
static bool
has_ended (void *opaque, const struct io_lease_holder *holder)
{
  const struct host *h = opaque;

  return !h->forgets && strcmp (holder->host, h->name) == 0;
}

static int
random_bytes (void *opaque, void *buf, size_t len)
{
  struct host *h = opaque;
  uint8_t *p = buf;

  for (; len > 0; len--)
    *p++ = (uint8_t) rnd (&h->rng, 256);
  return 0;
}

/* --- Hosts ---------------------------------------------------------------- */

static void
note_line (void *opaque, enum log_level level, const char *line)
{
  struct host *h = opaque;

  if (getenv ("CRASH_VERBOSE"))
    fprintf (stderr, "  %s: %s\n", h->name, line);
  if (strstr (line, "given up") || strstr (line, "lease was lost"))
    __atomic_store_n (&h->lost, true, __ATOMIC_RELAXED);
}

void
host_begin (struct host *h, struct storage *s, struct world *w,
            const char *name)
{
  memset (h, 0, sizeof *h);
  h->storage = s;
  h->world = w;
  h->rng = rng_of (w->seed, 91);
  h->forgets = chance (&h->rng, 2);
  h->sink = (struct log_sink) { note_line, h };
  h->lease_world = (struct io_lease_world) {
    now_ns, sleep_ns, describe, has_ended, random_bytes, h
  };
  snprintf (h->name, sizeof h->name, "%s", name);
  strcpy (h->dir, "/tmp/crash-nbd-XXXXXX");
  if (mkdtemp (h->dir) == NULL)
    abort ();
  snprintf (h->server.socket, sizeof h->server.socket, "%s/socket", h->dir);
  h->server.size = s->durable.size;
  h->server.min_block = s->cfg->min_block;
  h->server.act = act;
  h->server.opaque = h;
  fake_init (&h->server);
  fake_start (&h->server);
}

void
host_end (struct host *h)
{
  fake_stop (&h->server);
  fake_destroy (&h->server);
  rmdir (h->dir);
}

bool
host_has_failed (const struct host *h)
{
  return __atomic_load_n (&h->over, __ATOMIC_RELAXED) ||
    __atomic_load_n (&h->lost, __ATOMIC_RELAXED);
}

int
host_open (struct host *h, struct io_store **out, struct fault *f)
{
  struct io_store **self = calloc (1, sizeof *self), *nbd;
  struct io_lease_params lease = { .self = self, .log = &h->sink,
                                   .world = &h->lease_world };
  char uri[150];
  const struct io_nbd_params p = {
    .uri = uri, .writable = true, .connections = h->storage->cfg->connections,
    .reconnect_delay = h->storage->cfg->no_delay ? 0 : 60,
    .fenced = !h->storage->cfg->strays, .log = &h->sink,
    .may_resume = io_lease_may_resume, .opaque = self,
  };
  int r;

  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", h->server.socket);
  r = io_nbd_open (&p, &nbd, f);
  if (r < 0) {
    free (self);
    return r;
  }
  h->nbd = (struct io_nbd *) nbd;
  h->refused = false;
  r = io_lease_take (nbd, &lease, out, f);
  if (r < 0)
    h->nbd = NULL;
  else
    *out = noting_new (h, *out);
  __atomic_store_n (&h->holds, r == 0, __ATOMIC_RELAXED);
  return r;
}
