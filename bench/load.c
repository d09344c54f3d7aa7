/* SPDX-License-Identifier: BSD-3-Clause */
/* dedup-load: puts load on an NBD server and reports how fast it was.
 *
 * Each connection has a thread and a libnbd handle of its own; the threads
 * share only the counter of requests while time is taken.  Request I is for the
 * same block, with the same contents, whichever thread sends it; so the blocks
 * written are always the first N of the order, and verify can find them again.
 *
 * The time is that from the first request to the answer to the last one and,
 * unless only reading, to that of a final flush.  Connecting, and filling
 * buffers except for the few words that name each 4 KiB block, happens before.
 * The latency is that of a request, or in syncwrite and batchsync that of a
 * whole batch with its flush; the final flush is not included.
 *
 * An error ends the program at once, as measurements after it would be
 * worthless.  Wrong contents end it with status 1, too, but only after the
 * requests in flight, and after disconnecting properly from the server, which a
 * test may still need.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <libnbd.h>

#include "checked.h"
#include "clock.h"
#include "content.h"
#include "histogram.h"
#include "options.h"

#define NOT_SEEN UINT64_MAX

struct load {
  /* Constant while threads run: */
  struct options opts;
  uint64_t nr_blocks;       /* of the region */
  uint64_t nr_ops;          /* the most requests */
  uint64_t deadline_ns;     /* claim none after that; UINT64_MAX: no limit */

  /* Atomic: */
  uint64_t next_op;
  uint64_t bad_off;         /* wrong contents seen here; NOT_SEEN: nowhere */
};

struct slot {
  struct connection *conn;
  void *buf;                /* one block, NULL: trim, zero */
  uint64_t guest_off;
  uint64_t start_ns;
  struct slot *next_free;
};

/* Used by its own thread only. */
struct connection {
  struct load *load;
  struct nbd_handle *nbd;
  pthread_t thread;
  struct slot *slots;
  struct slot *free_slots;
  unsigned in_flight;
  uint64_t ops;
  uint64_t bytes;
  struct histogram latency;
};

static void *
xalloc (size_t align, size_t size)
{
  void *p = aligned_alloc (align, round_up_pow2 (size, align));

  if (p == NULL)
    die ("out of memory");
  return p;
}

static void *
xcalloc (size_t nr, size_t size)
{
  void *p = calloc (nr, size);

  if (p == NULL)
    die ("out of memory");
  return p;
}

/* --- Numbers and places of requests ------------------------------------ */

/* Takes up to WANT requests and returns how many; *FIRST is the number of the
 * first.  The time is checked before, never after: requests that were taken are
 * sent. */
static unsigned
claim (struct load *l, unsigned want, uint64_t *first)
{
  if (__atomic_load_n (&l->bad_off, __ATOMIC_RELAXED) != NOT_SEEN)
    return 0;
  if (l->deadline_ns != UINT64_MAX && clock_now_ns () >= l->deadline_ns)
    return 0;
  *first = __atomic_fetch_add (&l->next_op, want, __ATOMIC_RELAXED);
  if (*first >= l->nr_ops)
    return 0;
  return (unsigned) MIN_OF ((uint64_t) want, l->nr_ops - *first);
}

static uint64_t
guest_off_of (const struct load *l, uint64_t op)
{
  const struct options *o = &l->opts;
  uint64_t block;

  if (o->reorder)
    op = permute (op, l->nr_ops, o->reorder);
  block = op % l->nr_blocks;
  if (o->random)
    block = permute (block, l->nr_blocks, o->seed);
  return o->offset + block * o->block;
}

/* --- Requests ---------------------------------------------------------- */

static bool
all_zero (const char *buf, size_t len)
{
  return buf[0] == 0 && memcmp (buf, buf + 1, len - 1) == 0;
}

static void
check_contents (struct load *l, const struct slot *s)
{
  const struct options *o = &l->opts;
  uint64_t bad_off = s->guest_off;
  bool ok = true;

  if (o->mode->check == CHECK_CONTENT)
    ok = content_matches (&o->content, s->buf, s->guest_off, o->block,
                          &bad_off);
  else if (o->mode->check == CHECK_ZERO)
    ok = all_zero (s->buf, o->block);
  if (!ok)
    __atomic_store_n (&l->bad_off, bad_off, __ATOMIC_RELAXED);
}

static void
put_slot (struct connection *c, struct slot *s)
{
  s->next_free = c->free_slots;
  c->free_slots = s;
}

static struct slot *
get_slot (struct connection *c)
{
  struct slot *s = c->free_slots;

  c->free_slots = s->next_free;
  return s;
}

static int
request_done_cb (void *opaque, int *error)
{
  struct slot *s = opaque;
  struct connection *c = s->conn;
  const struct options *o = &c->load->opts;

  if (*error)
    die ("%s at offset %" PRIu64 ": %s", o->mode->name, s->guest_off,
         strerror (*error));
  if (o->mode->batch == 0)
    histogram_add (&c->latency, clock_now_ns () - s->start_ns);
  if (o->mode->check != CHECK_NOTHING)
    check_contents (c->load, s);
  c->ops++;
  c->bytes += o->block;
  c->in_flight--;
  put_slot (c, s);
  return 1;                     /* retire the command */
}

static int64_t
send_request (struct connection *c, struct slot *s,
              nbd_completion_callback done)
{
  const struct options *o = &c->load->opts;

  switch (o->mode->op) {
  case OP_READ:
    return nbd_aio_pread (c->nbd, s->buf, o->block, s->guest_off, done, 0);
  case OP_WRITE:
    return nbd_aio_pwrite (c->nbd, s->buf, o->block, s->guest_off, done, 0);
  case OP_TRIM:
    return nbd_aio_trim (c->nbd, o->block, s->guest_off, done, 0);
  case OP_ZERO:
    return nbd_aio_zero (c->nbd, o->block, s->guest_off, done, 0);
  }
  abort ();
}

static void
start_request (struct connection *c, uint64_t op)
{
  const struct options *o = &c->load->opts;
  struct slot *s = get_slot (c);
  nbd_completion_callback done = {
    .callback = request_done_cb, .user_data = s
  };

  s->guest_off = guest_off_of (c->load, op);
  if (o->mode->op == OP_WRITE)
    content_stamp (&o->content, s->buf, s->guest_off, o->block);
  s->start_ns = clock_now_ns ();
  c->in_flight++;
  if (send_request (c, s, done) == -1)
    die ("%s", nbd_get_error ());
}

static void
wait_for_slots (struct connection *c, unsigned max_in_flight)
{
  while (c->in_flight > max_in_flight)
    if (nbd_poll (c->nbd, -1) == -1)
      die ("%s", nbd_get_error ());
}

static void
flush (struct nbd_handle *nbd)
{
  if (nbd_flush (nbd, 0) == -1)
    die ("flush: %s", nbd_get_error ());
}

/* --- Threads ----------------------------------------------------------- */

static void
run_stream (struct connection *c)
{
  const unsigned depth = c->load->opts.depth;
  uint64_t op;

  while (claim (c->load, 1, &op)) {
    wait_for_slots (c, depth - 1);
    start_request (c, op);
  }
  wait_for_slots (c, 0);
}

static void
run_batches (struct connection *c)
{
  const unsigned batch = c->load->opts.mode->batch;
  uint64_t first, start_ns;
  unsigned nr, i;

  while ((nr = claim (c->load, batch, &first)) > 0) {
    start_ns = clock_now_ns ();
    for (i = 0; i < nr; i++)
      start_request (c, first + i);
    wait_for_slots (c, 0);
    flush (c->nbd);
    histogram_add (&c->latency, clock_now_ns () - start_ns);
  }
}

static void *
run_connection (void *opaque)
{
  struct connection *c = opaque;

  if (c->load->opts.mode->batch)
    run_batches (c);
  else
    run_stream (c);
  return NULL;
}

static void
run_threads (struct connection *conns, unsigned nr)
{
  unsigned i;

  for (i = 0; i < nr; i++)
    if (pthread_create (&conns[i].thread, NULL, run_connection, &conns[i]))
      die ("cannot start a thread");
  for (i = 0; i < nr; i++)
    pthread_join (conns[i].thread, NULL);
}

/* --- Before and after -------------------------------------------------- */

static struct nbd_handle *
connect_to (const char *uri)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd == NULL || nbd_connect_uri (nbd, uri) == -1)
    die ("%s", nbd_get_error ());
  /* Clearing the buffer of each read would add time that is not the
   * server's. */
  if (nbd_set_pread_initialize (nbd, false) == -1)
    die ("%s", nbd_get_error ());
  return nbd;
}

static void
make_slots (struct connection *c)
{
  const struct options *o = &c->load->opts;
  const bool data = o->mode->op == OP_READ || o->mode->op == OP_WRITE;
  unsigned i;

  c->slots = xcalloc (o->depth, sizeof *c->slots);
  for (i = 0; i < o->depth; i++) {
    c->slots[i].conn = c;
    if (data) {
      c->slots[i].buf = xalloc (CONTENT_UNIT, o->block);
      content_prepare (c->slots[i].buf, o->block);
    }
    put_slot (c, &c->slots[i]);
  }
}

static struct connection *
open_connections (struct load *l)
{
  struct connection *conns = xcalloc (l->opts.connections, sizeof *conns);
  unsigned i;

  for (i = 0; i < l->opts.connections; i++) {
    conns[i].load = l;
    conns[i].nbd = connect_to (l->opts.uri);
  }
  return conns;
}

static void
close_connections (struct connection *conns, unsigned nr)
{
  const bool data = conns[0].slots[0].buf != NULL;
  unsigned i, j;

  for (i = 0; i < nr; i++) {
    nbd_shutdown (conns[i].nbd, 0);
    nbd_close (conns[i].nbd);
    for (j = 0; data && j < conns[i].load->opts.depth; j++)
      free (conns[i].slots[j].buf);
    free (conns[i].slots);
  }
  free (conns);
}

/* Sets the region, now that the export's size is known. */
static void
place_region (struct load *l, uint64_t export_bytes)
{
  struct options *o = &l->opts;
  struct content *c = &o->content;

  if (o->offset >= export_bytes || o->size > export_bytes - o->offset)
    die ("the region is not inside the export of %" PRIu64 " bytes",
         export_bytes);
  if (o->size == 0)
    o->size = export_bytes - o->offset;
  if (o->size % o->block != 0)
    die ("the size of the region, %" PRIu64 ", is not a multiple of the "
         "block's", o->size);
  c->first_unit = o->offset / CONTENT_UNIT;
  c->nr_units = o->size / CONTENT_UNIT;
  if (c->dup == DUP_SCATTER && c->nr_units % c->run_units != 0)
    die ("the size of the region, %" PRIu64 ", is not a multiple of a run's",
         o->size);
  l->nr_blocks = o->size / o->block;
}

/* Sets the number of requests.  Reads may start again at the beginning of the
 * region; a second write to a block would not be new data. */
static void
limit_ops (struct load *l)
{
  const struct options *o = &l->opts;
  const bool may_wrap = o->mode->op == OP_READ &&
    o->mode->check == CHECK_NOTHING;

  if (o->ops)
    l->nr_ops = o->ops;
  else
    l->nr_ops = o->seconds > 0 && may_wrap ? UINT64_MAX / 2 : l->nr_blocks;
  if (!may_wrap && l->nr_ops > l->nr_blocks)
    die ("--ops: the region has only %" PRIu64 " blocks", l->nr_blocks);
}

/* Flushes at the end.  One flush covers all connections if the server announces
 * that. */
static void
final_flush (struct connection *conns, unsigned nr)
{
  const struct options *o = &conns[0].load->opts;
  unsigned i;

  if (o->mode->op == OP_READ || o->mode->batch || !o->flush)
    return;
  if (nbd_can_multi_conn (conns[0].nbd) == 1)
    nr = 1;
  for (i = 0; i < nr; i++)
    flush (conns[i].nbd);
}

static double
cpu_seconds (void)
{
  struct rusage u;

  getrusage (RUSAGE_SELF, &u);
  return (double) (u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
    (double) (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void
print_result (const struct options *o, const struct connection *sum,
              double seconds, double cpu)
{
  const struct histogram *h = &sum->latency;

  printf ("{\"mode\": \"%s\", \"ops\": %" PRIu64 ", \"bytes\": %" PRIu64
          ", \"seconds\": %.6f, \"mib_per_s\": %.3f, \"iops\": %.1f, "
          "\"lat_us\": {\"p50\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, "
          "\"max\": %.1f}, \"client_cpu_s\": %.3f}\n",
          o->mode->name, sum->ops, sum->bytes, seconds,
          (double) sum->bytes / 1048576 / seconds,
          (double) sum->ops / seconds,
          (double) histogram_quantile_ns (h, 0.5) / 1e3,
          (double) histogram_quantile_ns (h, 0.99) / 1e3,
          (double) histogram_quantile_ns (h, 0.999) / 1e3,
          (double) h->max_ns / 1e3, cpu);
}

static void
run (struct load *l, struct connection *conns)
{
  const unsigned nr = l->opts.connections;
  struct connection *sum = xcalloc (1, sizeof *sum);
  double cpu = cpu_seconds (), seconds;
  uint64_t start_ns = clock_now_ns ();
  unsigned i;

  if (l->opts.seconds > 0)
    l->deadline_ns = start_ns + (uint64_t) (l->opts.seconds * 1e9);
  run_threads (conns, nr);
  final_flush (conns, nr);
  seconds = (double) (clock_now_ns () - start_ns) / 1e9;
  for (i = 0; i < nr; i++) {
    sum->ops += conns[i].ops;
    sum->bytes += conns[i].bytes;
    histogram_merge (&sum->latency, &conns[i].latency);
  }
  if (l->bad_off == NOT_SEEN)
    print_result (&l->opts, sum, seconds, cpu_seconds () - cpu);
  free (sum);
}

int
main (int argc, char *argv[])
{
  struct load load = { .deadline_ns = UINT64_MAX, .bad_off = NOT_SEEN };
  struct connection *conns;
  int64_t export_bytes;
  unsigned i;

  options_parse (argc, argv, &load.opts);
  conns = open_connections (&load);
  export_bytes = nbd_get_size (conns[0].nbd);
  if (export_bytes < 0)
    die ("%s", nbd_get_error ());
  place_region (&load, (uint64_t) export_bytes);
  limit_ops (&load);
  for (i = 0; i < load.opts.connections; i++)
    make_slots (&conns[i]);
  run (&load, conns);
  close_connections (conns, load.opts.connections);
  if (load.bad_off != NOT_SEEN)
    die ("wrong contents at offset %" PRIu64, load.bad_off);
  if (fflush (stdout) != 0)
    die ("standard output: %s", strerror (errno));
  return EXIT_SUCCESS;
}
