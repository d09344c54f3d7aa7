/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests that the NBD store reads ahead, and that nobody ever reads older bytes because of
 * that, against a server in the same process that answers late (fake-nbd.h).
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
#include <unistd.h>

#include <cmocka.h>

#include "checked.h"
#include "fake-nbd.h"
#include "io.h"
#include "nbd-private.h"

#define BLOCK 4096u
#define SIZE (UINT64_C (40) << 20)

static struct fake_nbd server;
static char dir[64];
/* Protected by the server's lock: */
static unsigned nr_reads, nr_cut;
static uint64_t read_bytes;
static bool late;               /* each read is answered after 50 ms */
static unsigned pause_us;       /* of each request */

static int
fate (void *opaque, const struct fake_request *r)
{
  if (pause_us)
    usleep (pause_us);
  if (r->type != FAKE_READ)
    return FAKE_DO;
  nr_reads++;
  read_bytes += r->len;
  if (nr_cut > 0) {
    nr_cut--;
    return FAKE_CUT;
  }
  return late ? FAKE_LATE : FAKE_DO;
}

static uint64_t
seen (const void *counter, size_t size)
{
  uint64_t n;

  pthread_mutex_lock (&server.lock);
  n = size == 4 ? *(const unsigned *) counter : *(const uint64_t *) counter;
  pthread_mutex_unlock (&server.lock);
  return n;
}

#define SEEN(counter) seen (&(counter), sizeof (counter))

static int
begin (void **state)
{
  server = (struct fake_nbd) { .size = SIZE, .fate = fate };
  snprintf (server.socket, sizeof server.socket, "%s/socket", dir);
  nr_reads = nr_cut = pause_us = 0;
  read_bytes = 0;
  late = true;
  fake_init (&server);
  fake_start (&server);
  return 0;
}

static int
end (void **state)
{
  fake_stop (&server);
  fake_destroy (&server);
  return 0;
}

static struct io_store *
open_store (void)
{
  char uri[200];
  const struct io_nbd_params p = {
    .uri = uri, .writable = true, .connections = 4, .reconnect_delay = 20,
    .fenced = true,
  };
  struct fault f = { 0 };
  struct io_store *s;

  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", server.socket);
  if (io_nbd_open (&p, &s, &f) < 0)
    fail_msg ("%s", f.msg);
  return s;
}

static void
write_at (struct io_store *s, uint64_t off, uint8_t byte)
{
  uint8_t buf[BLOCK];

  memset (buf, byte, sizeof buf);
  assert_int_equal (io_pwrite (s, buf, sizeof buf, off), 0);
}

static uint8_t
read_at (struct io_store *s, uint64_t off)
{
  uint8_t buf[BLOCK];
  unsigned i;

  assert_int_equal (io_pread (s, buf, sizeof buf, off), 0);
  for (i = 1; i < sizeof buf; i++)
    assert_int_equal (buf[i], buf[0]);
  return buf[0];
}

static bool
announce (struct io_store *s, uint64_t off, uint64_t len)
{
  const struct io_part part = { .host_off = off, .len = len };

  return io_will_need (s, &part, 1, true);
}

/* Waits until the server has that many reads. */
static void
wait_for_reads (unsigned nr)
{
  unsigned i;

  for (i = 0; i < 5000 && SEEN (nr_reads) < nr; i++)
    usleep (1000);
  assert_int_equal (SEEN (nr_reads), nr);
}

static uint64_t
bytes_ahead (struct io_store *s)
{
  struct nbd_ahead *a = &((struct io_nbd *) s)->ahead;
  uint64_t n;

  pthread_mutex_lock (&a->lock);
  n = a->bytes;
  pthread_mutex_unlock (&a->lock);
  return n;
}

static void
what_was_announced_is_read_once (void **state)
{
  struct io_store *s = open_store ();
  unsigned i;

  for (i = 0; i < 64; i++)
    write_at (s, i * BLOCK, (uint8_t) (i + 1));
  assert_true (announce (s, 0, 64 * BLOCK));
  wait_for_reads (1);
  for (i = 0; i < 64; i++)
    assert_int_equal (read_at (s, i * BLOCK), i + 1);
  assert_int_equal (SEEN (nr_reads), 1);
  /* Each byte is kept until it was read. */
  assert_int_equal (read_at (s, 63 * BLOCK), 64);
  assert_int_equal (SEEN (nr_reads), 2);
  io_close (s);
}

static void
a_read_over_several_pieces_is_put_together (void **state)
{
  static uint8_t buf[2 << 20];
  struct io_store *s = open_store ();
  unsigned i;

  for (i = 0; i < sizeof buf / BLOCK; i++)
    write_at (s, i * BLOCK, (uint8_t) i);
  assert_true (announce (s, 0, sizeof buf));
  wait_for_reads (8);
  assert_int_equal (io_pread (s, buf, (1 << 20) + 100, 700000), 0);
  for (i = 0; i < (1 << 20) + 100; i++)
    assert_int_equal (buf[i], (uint8_t) ((700000 + i) / BLOCK));
  assert_int_equal (SEEN (nr_reads), 8);
  io_close (s);
}

/* The threads read up to 1 MiB each, so the rest is queued still when it is read.  Who
 * comes then asks for whole pieces, which serve the reads behind, too. */
static void
a_reader_does_not_wait_for_its_turn (void **state)
{
  struct io_store *s = open_store ();
  const uint64_t len = UINT64_C (8) << 20;
  uint64_t off;

  write_at (s, len - (256 << 10), 1);
  write_at (s, len - BLOCK, 2);
  assert_true (announce (s, 0, len));
  for (off = len - (256 << 10); off < len; off += BLOCK)
    assert_int_equal (read_at (s, off), off == len - (256 << 10) ? 1
                      : off == len - BLOCK ? 2 : 0);
  wait_for_reads ((unsigned) (len / (256 << 10)));
  io_close (s);
}

/* Half of it was announced: the server is asked for all. */
static void
a_read_that_is_not_there_wholly_asks_the_server (void **state)
{
  static uint8_t buf[8 * BLOCK];
  struct io_store *s = open_store ();

  write_at (s, 0, 1);
  write_at (s, 7 * BLOCK, 2);
  assert_true (announce (s, 0, 4 * BLOCK));
  wait_for_reads (1);
  assert_int_equal (io_pread (s, buf, sizeof buf, 0), 0);
  assert_int_equal (buf[0], 1);
  assert_int_equal (buf[7 * BLOCK], 2);
  assert_int_equal (SEEN (nr_reads), 2);
  io_close (s);
}

/* The server has read the old bytes when the write comes, and its reply comes later than
 * that of the write. */
static void
a_write_over_what_is_being_read_is_seen (void **state)
{
  struct io_store *s = open_store ();

  write_at (s, 0, 1);
  assert_true (announce (s, 0, 8 * BLOCK));
  wait_for_reads (1);
  write_at (s, 0, 2);
  assert_int_equal (read_at (s, 0), 2);
  io_close (s);
}

static void
a_write_over_what_was_read_is_seen (void **state)
{
  struct io_store *s = open_store ();

  write_at (s, 0, 1);
  assert_true (announce (s, 0, 8 * BLOCK));
  wait_for_reads (1);
  usleep (100000);
  write_at (s, 0, 2);
  assert_int_equal (read_at (s, 0), 2);
  io_close (s);
}

static void
a_durable_write_and_a_trim_are_seen (void **state)
{
  struct io_store *s = open_store ();
  uint8_t buf[BLOCK];
  const struct iovec iov = { .iov_base = buf, .iov_len = sizeof buf };

  write_at (s, 0, 1);
  write_at (s, BLOCK, 1);
  assert_true (announce (s, 0, 8 * BLOCK));
  wait_for_reads (1);
  memset (buf, 2, sizeof buf);
  assert_int_equal (io_pwritev_sync (s, &iov, 1, 0), 0);
  assert_int_equal (read_at (s, 0), 2);
  assert_true (announce (s, 0, 8 * BLOCK));
  usleep (100000);
  assert_int_equal (io_discard (s, BLOCK, BLOCK), 0);
  assert_int_equal (read_at (s, BLOCK), 0);
  io_close (s);
}

static void
a_read_of_the_medium_asks_the_server (void **state)
{
  struct io_store *s = open_store ();
  uint8_t buf[BLOCK];

  write_at (s, 0, 1);
  assert_true (announce (s, 0, 8 * BLOCK));
  wait_for_reads (1);
  usleep (100000);
  /* As if the medium had changed. */
  pthread_mutex_lock (&server.lock);
  memset (server.now, 3, BLOCK);
  pthread_mutex_unlock (&server.lock);
  assert_int_equal (io_pread_medium (s, buf, sizeof buf, 0), 0);
  assert_int_equal (buf[0], 3);
  assert_int_equal (read_at (s, 0), 1);
  io_close (s);
}

static void
a_server_that_is_near_is_not_asked_ahead (void **state)
{
  struct io_store *s = open_store ();
  unsigned i;

  late = false;
  for (i = 0; i < 100; i++)     /* one of them takes less than half a millisecond */
    read_at (s, 0);
  assert_false (announce (s, 0, 8 * BLOCK));
  usleep (20000);
  assert_int_equal (SEEN (nr_reads), 100);
  io_close (s);
}

static void
a_lost_connection_is_read_again (void **state)
{
  struct io_store *s = open_store ();

  write_at (s, 0, 1);
  nr_cut = 1;
  assert_true (announce (s, 0, 8 * BLOCK));
  while (SEEN (nr_reads) == 0)
    usleep (1000);
  assert_int_equal (read_at (s, 0), 1);
  io_close (s);
}

static void
it_takes_sixteen_mebibytes_at_the_most (void **state)
{
  struct io_store *s = open_store ();
  unsigned i;

  for (i = 0; i < 40; i++)
    assert_true (announce (s, (uint64_t) i << 20, 1 << 20));
  for (i = 0; i < 500 && SEEN (read_bytes) < (UINT64_C (16) << 20); i++) {
    usleep (10000);
    assert_true (bytes_ahead (s) <= (UINT64_C (16) << 20));
  }
  assert_true (bytes_ahead (s) >= (UINT64_C (15) << 20));
  usleep (200000);
  /* What was not read gives way to what is announced later. */
  assert_true (announce (s, UINT64_C (39) << 20, 1 << 20));
  usleep (300000);
  i = (unsigned) SEEN (nr_reads);
  read_at (s, UINT64_C (39) << 20);
  assert_int_equal (SEEN (nr_reads), i);
  assert_true (bytes_ahead (s) <= (UINT64_C (16) << 20));
  io_close (s);
}

static void
it_goes_on_after_a_fork (void **state)
{
  struct io_store *s = open_store ();

  write_at (s, 0, 1);
  assert_true (announce (s, 0, 8 * BLOCK));
  io_before_fork (s);
  assert_int_equal (((struct io_nbd *) s)->ahead.nr_threads, 0);
  assert_int_equal (io_after_fork (s), 0);
  assert_true (announce (s, 0, 8 * BLOCK));
  assert_int_equal (read_at (s, 0), 1);
  io_close (s);
}

static void
a_store_closes_while_it_reads_ahead (void **state)
{
  struct io_store *s;
  unsigned i;

  for (i = 0; i < 5; i++) {
    s = open_store ();
    assert_true (announce (s, 0, 4 << 20));
    usleep (i * 10000);
    io_close (s);
  }
}

/* The place is opened without a writer's lease, which would wait for its records. */
static void
the_start_of_a_place_is_read_at_once (void **state)
{
  char uri[200];
  struct io_store *s;
  struct fault f = { 0 };
  uint8_t buf[BLOCK];
  unsigned before, i;

  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", server.socket);
  if (io_place_open (uri, 0, IO_LOCK_READ, &s, &f) < 0)
    fail_msg ("%s", f.msg);
  usleep (200000);
  before = (unsigned) SEEN (nr_reads);
  for (i = 0; i < 60; i++)
    assert_int_equal (io_pread (s, buf, sizeof buf, i * BLOCK), 0);
  assert_int_equal (SEEN (nr_reads), before);
  io_close (s);
}

/* --- Rehearsals ------------------------------------------------------------- */

#define PLACE (UINT64_C (1) << 20)

struct rehearsal {
  uint8_t seen;
  unsigned nr;                  /* reads that succeeded */
  int r[6];
};

/* Reads, tries to change the place, and then another server writes there. */
static void
rehearse (void *opaque, struct io_store *s)
{
  struct rehearsal *h = opaque;
  uint8_t buf[BLOCK];

  h->r[0] = io_pread (s, buf, sizeof buf, PLACE);
  h->seen = buf[0];
  h->r[1] = io_pwrite (s, buf, sizeof buf, PLACE);
  h->r[2] = io_sync (s);
  h->r[3] = io_discard (s, PLACE, BLOCK);
  h->r[4] = io_truncate (s, PLACE);
  h->r[5] = io_allocate (s, PLACE, BLOCK);
  pthread_mutex_lock (&server.lock);
  memset (server.now + PLACE, 7, BLOCK);
  pthread_mutex_unlock (&server.lock);
}

/* Reads until that fails. */
static void
read_on (void *opaque, struct io_store *s)
{
  static uint8_t buf[1 << 20];
  struct rehearsal *h = opaque;

  while (io_pread (s, buf, sizeof buf, (uint64_t) h->nr % 32 << 20) == 0)
    h->nr++;
}

static int
open_place (void (*look) (void *opaque, struct io_store *s), struct rehearsal *h,
            struct io_store **s)
{
  char uri[200];
  const struct io_place_params p = {
    .place = uri, .flags = IO_FILE_WRITE, .lock = IO_LOCK_WRITE, .reconnect_delay = 20,
    .rehearse = look, .opaque = h,
  };
  struct fault f = { 0 };

  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", server.socket);
  return io_place_open_with (&p, s, &f);
}

static void
what_a_rehearsal_has_seen_counts_for_nothing (void **state)
{
  struct rehearsal h = { .seen = 1 };
  struct io_store *s;
  unsigned before, i;

  assert_int_equal (open_place (rehearse, &h, &s), 0);
  assert_int_equal (h.r[0], 0);
  assert_int_equal (h.seen, 0);
  for (i = 1; i < 6; i++)
    assert_int_equal (h.r[i], -EROFS);
  usleep (200000);
  before = (unsigned) SEEN (nr_reads);
  assert_int_equal (read_at (s, PLACE), 7);
  assert_int_equal (SEEN (nr_reads), before);   /* it was read ahead again */
  io_close (s);
}

static void
a_rehearsal_reads_no_more_than_is_kept (void **state)
{
  struct rehearsal h = { 0 };
  struct io_store *s;

  assert_int_equal (open_place (read_on, &h, &s), 0);
  assert_in_range (h.nr, 1, 12);
  io_close (s);
}

/* Bytes of something else are where the lease would be. */
static void
a_rehearsal_ends_when_the_lease_is_refused (void **state)
{
  struct rehearsal h = { 0 };
  struct io_store *s = NULL;

  memset (server.now + SIZE - 100, 1, 100);
  assert_int_equal (open_place (read_on, &h, &s), -EINVAL);
  assert_null (s);
}

/* --- Threads ---------------------------------------------------------------- */

#define THREADS 4u
#define OWN 24u                 /* blocks of each thread */
#define ROUNDS 150u

struct worker {
  struct io_store *s;
  unsigned who, seed;
  pthread_t thread;
};

/* Writes blocks of its own, and reads them back: each has what this thread wrote last.
 * It announces and reads those of others, too. */
static void *
work (void *opaque)
{
  struct worker *w = opaque;
  uint8_t version[OWN] = { 0 };
  unsigned i, b, other;

  for (i = 0; i < ROUNDS; i++) {
    other = (unsigned) rand_r (&w->seed) % (THREADS * OWN);
    announce (w->s, other * BLOCK, (1 + (unsigned) rand_r (&w->seed) % 16) * BLOCK);
    b = (unsigned) rand_r (&w->seed) % OWN;
    if (rand_r (&w->seed) % 2)
      write_at (w->s, (w->who * OWN + b) * BLOCK, ++version[b]);
    assert_int_equal (read_at (w->s, (w->who * OWN + b) * BLOCK), version[b]);
    other = (unsigned) rand_r (&w->seed) % (THREADS * OWN);
    (void) read_at (w->s, other * BLOCK);
  }
  return NULL;
}

static void
nobody_reads_older_bytes (void **state)
{
  struct io_store *s = open_store ();
  struct worker w[THREADS];
  unsigned i;

  late = false;
  pause_us = 600;
  for (i = 0; i < THREADS; i++) {
    w[i] = (struct worker) { .s = s, .who = i, .seed = i + 1 };
    assert_int_equal (pthread_create (&w[i].thread, NULL, work, &w[i]), 0);
  }
  for (i = 0; i < THREADS; i++)
    pthread_join (w[i].thread, NULL);
  io_close (s);
}

#define TEST(t) cmocka_unit_test_setup_teardown (t, begin, end)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (what_was_announced_is_read_once),
    TEST (a_read_over_several_pieces_is_put_together),
    TEST (a_reader_does_not_wait_for_its_turn),
    TEST (a_read_that_is_not_there_wholly_asks_the_server),
    TEST (a_write_over_what_is_being_read_is_seen),
    TEST (a_write_over_what_was_read_is_seen),
    TEST (a_durable_write_and_a_trim_are_seen),
    TEST (a_read_of_the_medium_asks_the_server),
    TEST (a_server_that_is_near_is_not_asked_ahead),
    TEST (a_lost_connection_is_read_again),
    TEST (it_takes_sixteen_mebibytes_at_the_most),
    TEST (it_goes_on_after_a_fork),
    TEST (a_store_closes_while_it_reads_ahead),
    TEST (the_start_of_a_place_is_read_at_once),
    TEST (what_a_rehearsal_has_seen_counts_for_nothing),
    TEST (a_rehearsal_reads_no_more_than_is_kept),
    TEST (a_rehearsal_ends_when_the_lease_is_refused),
    TEST (nobody_reads_older_bytes),
  };
  int r;

  snprintf (dir, sizeof dir, "/tmp/nbd-ahead-XXXXXX");
  if (mkdtemp (dir) == NULL)
    return 1;
  r = cmocka_run_group_tests (tests, NULL, NULL);
  rmdir (dir);
  return r;
}
