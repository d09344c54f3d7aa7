/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests jobs with steps and a clock that are made up: states and their order, what
 * users may ask in each state, who takes a turn and when, rates, failures.
 *
 * Breaks if: a state is told twice or out of QEMU's order, a job that is paused
 * or waits takes a turn, a rate is not kept, a job is ended twice or never, or one
 * user's call meets a job that another one has ended.
 *
 * DEDUP_TEST_SEED=N repeats the last test; the seed is printed.
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
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "jobs.h"

#define MS UINT64_C (1000000)
#define SECOND (1000 * MS)
#define MIB (UINT64_C (1) << 20)

/* --- World --------------------------------------------------------------- */

static uint64_t now;
static char told[4096];         /* states, as "id:state " */
static char logged[1024];
static unsigned nr_woken;
static struct srv_space space;
static struct srv_jobs jobs;
static struct srv_moment moment;

static uint64_t
fake_now (void)
{
  return now;
}

static void
tell (void *opaque, const char *id, const char *type,
      enum srv_job_status status)
{
  const size_t len = strlen (told);

  snprintf (told + len, sizeof told - len, "%s:%s ", id,
            srv_job_status_name (status));
}

static void
keep_line (void *opaque, enum log_level level, const char *line)
{
  const size_t len = strlen (logged);

  snprintf (logged + len, sizeof logged - len, "%s\n", line);
}

static const struct log_sink sink = { .write = keep_line };

static void
count_wake (void *opaque)
{
  nr_woken++;
}

static int
begin (void **state)
{
  now = 1000 * SECOND;
  told[0] = logged[0] = '\0';
  nr_woken = 0;
  moment = (struct srv_moment) { 0 };
  space = (struct srv_space) { .path = "disk", .now_ns = fake_now };
  jobs = (struct srv_jobs) {
    .path = "disk", .log = &sink, .space = &space, .now_ns = fake_now,
    .changed = tell, .wake = count_wake,
  };
  srv_jobs_init (&jobs);
  return 0;
}

static int
end (void **state)
{
  srv_jobs_stop (&jobs);
  srv_jobs_destroy (&jobs);
  return 0;
}

static void
expect_told (const char *what)
{
  assert_string_equal (told, what);
  told[0] = '\0';
}

/* --- A job that is made up ------------------------------------------------ */

struct fake {                   /* static in each test, whose END uses it still */
  unsigned left;                /* steps */
  uint64_t bytes_each, took_ns; /* of a step */
  int fails;                    /* -errno of the next steps; 0: none */
  bool not_ready, slows;
  uint64_t done, too_much;      /* the total is wrong by that */
  unsigned nr_steps, nr_ends;
  int result;
};

static int
fake_step (void *opaque)
{
  struct fake *k = opaque;

  assert_int_equal (k->nr_ends, 0);
  k->nr_steps++;
  now += k->took_ns;
  if (k->fails)
    return k->fails;
  k->done += k->bytes_each;
  return --k->left > 0;
}

static void
fake_progress (void *opaque, uint64_t *done, uint64_t *total)
{
  const struct fake *k = opaque;

  assert_int_equal (k->nr_ends, 0);
  *done = k->done;
  *total = k->done + k->left * k->bytes_each + k->too_much;
}

static void
fake_describe (void *opaque, char *buf, size_t len)
{
  const struct fake *k = opaque;

  assert_int_equal (k->nr_ends, 0);
  snprintf (buf, len, "%u steps left", k->left);
}

static bool
fake_is_ready (void *opaque)
{
  return !((struct fake *) opaque)->not_ready;
}

static bool
fake_slows (void *opaque)
{
  return ((struct fake *) opaque)->slows;
}

static void
fake_end (void *opaque, int result)
{
  struct fake *k = opaque;

  k->nr_ends++;
  k->result = result;
}

#define FAKE                                                            \
  .step = fake_step, .progress = fake_progress,                         \
  .describe = fake_describe, .is_ready = fake_is_ready, .end = fake_end

static const struct srv_job_ops plain = {
  .type = "plain", .can_pause = true, .can_cancel = true, .changes = true, FAKE
};
static const struct srv_job_ops patient = {
  .type = "patient", .can_pause = true, .can_cancel = true,
  .keeps_trying = true, FAKE
};
static const struct srv_job_ops idle = {
  .type = "idle", .when = SRV_JOB_WHEN_IDLE, .changes = true, FAKE
};
static const struct srv_job_ops late = {
  .type = "late", .when = SRV_JOB_AFTER_UPKEEP, FAKE
};
static const struct srv_job_ops sparing = {
  .type = "sparing", .changes = true, .rest_factor = 9, FAKE
};
static const struct srv_job_ops reader = {
  .type = "reader", .slows_clients = fake_slows, FAKE
};

static void
start_with (const char *id, const struct srv_job_ops *ops, struct fake *k,
            uint64_t rate, bool manual_dismiss)
{
  const struct srv_job_options o = { .rate = rate,
                                     .manual_dismiss = manual_dismiss };

  assert_int_equal (srv_jobs_start (&jobs, id, ops, k, &o, false, NULL), 0);
}

static void
start (const char *id, const struct srv_job_ops *ops, struct fake *k)
{
  start_with (id, ops, k, 0, false);
}

/* Lets LANE take a turn, if a job can.  Returns whether one did. */
static bool
turn_of (enum srv_job_lane lane)
{
  struct srv_job *job = srv_jobs_take_turn (&jobs, lane, &moment);

  if (job == NULL)
    return false;
  srv_job_turn (&jobs, job);
  srv_jobs_finish_turn (&jobs, lane, job, &moment);
  return true;
}

static bool
turn (void)
{
  return turn_of (SRV_LANE_STEPS);
}

static int
copy_info (void *opaque, const struct srv_job_info *info)
{
  struct srv_job_info *v = opaque;

  *v = *info;
  return 1;
}

static int
count_info (void *opaque, const struct srv_job_info *info)
{
  ++*(unsigned *) opaque;
  return 0;
}

static unsigned
nr_listed (void)
{
  unsigned nr = 0;

  assert_int_equal (srv_jobs_list (&jobs, count_info, &nr), 0);
  return nr;
}

/* The first job; its strings are gone. */
static struct srv_job_info
first (void)
{
  struct srv_job_info info;

  assert_int_equal (srv_jobs_list (&jobs, copy_info, &info), 1);
  return info;
}

/* --- States --------------------------------------------------------------- */

static void
a_job_that_succeeds_goes_through_qemus_states (void **state)
{
  static struct fake k = { .left = 2, .bytes_each = 10 };

  start ("a", &plain, &k);
  assert_int_equal (nr_woken, 1);
  expect_told ("a:created a:running ");
  assert_true (turn ());
  expect_told ("");
  assert_true (turn ());
  expect_told ("a:waiting a:pending a:concluded a:null ");
  assert_int_equal (k.nr_ends, 1);
  assert_int_equal (k.result, 0);
  assert_false (turn ());
  assert_int_equal (nr_listed (), 0);
}

static void
a_job_that_is_dismissed_by_hand_is_kept (void **state)
{
  static struct fake k = { .left = 3, .bytes_each = 10, .too_much = 5 };
  struct srv_job_info info;

  start_with ("a", &plain, &k, 0, true);
  while (turn ())
    now += SECOND;
  expect_told ("a:created a:running a:waiting a:pending a:concluded ");
  now += 100 * SECOND;
  info = first ();
  assert_int_equal (info.status, SRV_JOB_CONCLUDED);
  assert_int_equal (info.done, 35);
  assert_int_equal (info.total, 35);
  assert_true (info.seconds == 2.0);
  assert_null (info.error);
  assert_int_equal (srv_jobs_dismiss (&jobs, "a", NULL), 0);
  expect_told ("a:null ");
  assert_int_equal (nr_listed (), 0);
}

static void
a_job_that_fails_aborts (void **state)
{
  static struct fake k = { .left = 3, .fails = -EIO };
  struct srv_job_info info;

  start_with ("a", &plain, &k, 0, true);
  assert_true (turn ());
  expect_told ("a:created a:running a:aborting a:concluded ");
  assert_int_equal (k.nr_ends, 1);
  assert_int_equal (k.result, -EIO);
  info = first ();
  assert_string_equal (info.error, strerror (EIO));
  assert_string_equal (logged, "disk: job a failed: Input/output error\n");
}

static void
a_job_that_is_cancelled_aborts (void **state)
{
  static struct fake k = { .left = 3 };

  start ("a", &plain, &k);
  assert_true (turn ());
  assert_int_equal (srv_jobs_cancel (&jobs, "a", NULL), 0);
  expect_told ("a:created a:running ");
  assert_true (turn ());
  expect_told ("a:aborting a:concluded a:null ");
  assert_int_equal (k.nr_steps, 1);
  assert_int_equal (k.nr_ends, 1);
  assert_int_equal (k.result, -ECANCELED);
}

/* A job that may not step, for whatever reason, can be cancelled at once. */
static void
cancelling_waits_for_nothing (void **state)
{
  static struct fake limited = { .left = 9, .bytes_each = MIB };
  static struct fake failing = { .left = 9, .fails = -ENOSPC };
  static struct fake resting = { .left = 9, .took_ns = SECOND };
  static struct fake unready = { .left = 9, .not_ready = true };
  static struct fake *const v[] = { &limited, &failing, &resting, &unready };

  start_with ("limited", &plain, &limited, 1, false);
  assert_true (turn ());
  start ("failing", &plain, &failing);
  assert_true (turn ());
  moment.busy = true;
  start ("resting", &plain, &resting);
  assert_true (turn ());
  start ("unready", &plain, &unready);
  assert_false (turn ());
  assert_int_equal (srv_jobs_cancel (&jobs, "limited", NULL), 0);
  assert_int_equal (srv_jobs_cancel (&jobs, "failing", NULL), 0);
  assert_int_equal (srv_jobs_cancel (&jobs, "resting", NULL), 0);
  assert_int_equal (srv_jobs_cancel (&jobs, "unready", NULL), 0);
  for (unsigned i = 0; i < 4; i++)
    assert_true (turn ());
  for (unsigned i = 0; i < 4; i++)
    assert_int_equal (v[i]->result, -ECANCELED);
  assert_int_equal (nr_listed (), 0);
}

static void
a_job_that_is_paused_takes_no_turn (void **state)
{
  static struct fake k = { .left = 3 };

  start ("a", &plain, &k);
  assert_true (turn ());
  assert_int_equal (srv_jobs_pause (&jobs, "a", NULL), 0);
  expect_told ("a:created a:running a:paused ");
  assert_false (turn ());
  assert_false (srv_jobs_go_on (&jobs, &moment));
  nr_woken = 0;
  assert_int_equal (srv_jobs_resume (&jobs, "a", NULL), 0);
  assert_int_equal (nr_woken, 1);
  expect_told ("a:running ");
  assert_true (srv_jobs_go_on (&jobs, &moment));
  assert_true (turn ());
  assert_true (turn ());
  expect_told ("a:waiting a:pending a:concluded a:null ");
}

/* QEMU's job goes on before it aborts. */
static void
a_job_that_is_paused_can_be_cancelled (void **state)
{
  static struct fake k = { .left = 3 };

  start ("a", &plain, &k);
  assert_int_equal (srv_jobs_pause (&jobs, "a", NULL), 0);
  assert_int_equal (srv_jobs_cancel (&jobs, "a", NULL), 0);
  assert_true (turn ());
  expect_told ("a:created a:running a:paused a:running a:aborting a:concluded "
               "a:null ");
  assert_int_equal (k.nr_steps, 0);
}

static void
what_is_asked_during_a_step_happens_after_it (void **state)
{
  static struct fake k = { .left = 9 }, last = { .left = 1 };
  struct srv_job *job;

  start ("a", &plain, &k);
  job = srv_jobs_take_turn (&jobs, SRV_LANE_STEPS, &moment);
  assert_int_equal (srv_jobs_pause (&jobs, "a", NULL), 0);
  expect_told ("a:created a:running ");
  assert_int_equal (srv_jobs_pause (&jobs, "a", NULL), -EBUSY);
  srv_job_turn (&jobs, job);
  srv_jobs_finish_turn (&jobs, SRV_LANE_STEPS, job, &moment);
  expect_told ("a:paused ");
  assert_int_equal (srv_jobs_resume (&jobs, "a", NULL), 0);
  expect_told ("a:running ");
  job = srv_jobs_take_turn (&jobs, SRV_LANE_STEPS, &moment);
  srv_job_turn (&jobs, job);
  assert_int_equal (srv_jobs_cancel (&jobs, "a", NULL), 0);
  assert_int_equal (srv_jobs_pause (&jobs, "a", NULL), 0);
  srv_jobs_finish_turn (&jobs, SRV_LANE_STEPS, job, &moment);
  expect_told ("");
  assert_true (turn ());
  expect_told ("a:aborting a:concluded a:null ");
  assert_int_equal (k.nr_steps, 2);

  start ("b", &plain, &last);   /* that has ended already */
  job = srv_jobs_take_turn (&jobs, SRV_LANE_STEPS, &moment);
  srv_job_turn (&jobs, job);
  assert_int_equal (srv_jobs_pause (&jobs, "b", NULL), 0);
  assert_int_equal (srv_jobs_cancel (&jobs, "b", NULL), 0);
  srv_jobs_finish_turn (&jobs, SRV_LANE_STEPS, job, &moment);
  expect_told ("b:created b:running b:waiting b:pending b:concluded b:null ");
  assert_int_equal (last.nr_ends, 1);
}

/* --- What users may ask ---------------------------------------------------- */

static void
refused (int r, int wanted, struct fault *f, const char *msg)
{
  assert_int_equal (r, wanted);
  assert_string_equal (f->msg, msg);
  *f = (struct fault) { 0 };
}

static void
calls_that_a_state_does_not_allow_are_refused_as_by_qemu (void **state)
{
  static struct fake k = { .left = 1 };
  struct fault f = { 0 };

  refused (srv_jobs_pause (&jobs, "a", &f), -ENOENT, &f, "Job not found");
  refused (srv_jobs_resume (&jobs, "a", &f), -ENOENT, &f, "Job not found");
  refused (srv_jobs_cancel (&jobs, "a", &f), -ENOENT, &f, "Job not found");
  refused (srv_jobs_dismiss (&jobs, "a", &f), -ENOENT, &f, "Job not found");
  refused (srv_jobs_set_rate (&jobs, "a", 1, &f), -ENOENT, &f,
           "Job not found");
  start_with ("a", &plain, &k, 0, true);
  refused (srv_jobs_dismiss (&jobs, "a", &f), -EBUSY, &f, "Job 'a' in state "
           "'running' cannot accept command verb 'dismiss'");
  refused (srv_jobs_resume (&jobs, "a", &f), -EBUSY, &f, "Can't resume a job "
           "that was not paused");
  assert_int_equal (srv_jobs_pause (&jobs, "a", &f), 0);
  refused (srv_jobs_pause (&jobs, "a", &f), -EBUSY, &f, "Job is already "
           "paused");
  refused (srv_jobs_dismiss (&jobs, "a", &f), -EBUSY, &f, "Job 'a' in state "
           "'paused' cannot accept command verb 'dismiss'");
  assert_int_equal (srv_jobs_resume (&jobs, "a", &f), 0);
  assert_true (turn ());
  refused (srv_jobs_pause (&jobs, "a", &f), -EBUSY, &f, "Job 'a' in state "
           "'concluded' cannot accept command verb 'pause'");
  refused (srv_jobs_resume (&jobs, "a", &f), -EBUSY, &f, "Can't resume a job "
           "that was not paused");
  refused (srv_jobs_cancel (&jobs, "a", &f), -EBUSY, &f, "Job 'a' in state "
           "'concluded' cannot accept command verb 'cancel'");
  refused (srv_jobs_set_rate (&jobs, "a", 1, &f), -EBUSY, &f, "Job 'a' in state "
           "'concluded' cannot accept command verb 'set-speed'");
}

static void
calls_that_a_kind_does_not_allow_are_refused (void **state)
{
  static struct fake k = { .left = 1 };
  struct fault f = { 0 };

  start ("a", &late, &k);
  refused (srv_jobs_cancel (&jobs, "a", &f), -EBUSY, &f, "Job 'a' of type "
           "'late' cannot accept command verb 'cancel'");
  refused (srv_jobs_pause (&jobs, "a", &f), -EBUSY, &f, "Job 'a' of type "
           "'late' cannot accept command verb 'pause'");
}

static void
ids_are_checked_or_made (void **state)
{
  static struct fake k = { .left = 1 };
  struct fault f = { 0 };
  char longest[SRV_MAX_JOB_ID + 2];

  memset (longest, 'x', sizeof longest - 1);
  longest[sizeof longest - 1] = '\0';
  refused (srv_jobs_start (&jobs, "1a", &plain, &k, NULL, false, &f), -EINVAL, &f,
           "Invalid job ID '1a'");
  refused (srv_jobs_start (&jobs, "", &plain, &k, NULL, false, &f), -EINVAL, &f,
           "Invalid job ID ''");
  refused (srv_jobs_start (&jobs, "a b", &plain, &k, NULL, false, &f), -EINVAL,
           &f, "Invalid job ID 'a b'");
  assert_int_equal (srv_jobs_start (&jobs, longest, &plain, &k, NULL, false,
                                    NULL), -EINVAL);
  longest[SRV_MAX_JOB_ID] = '\0';
  assert_int_equal (srv_jobs_start (&jobs, longest, &plain, &k, NULL, false,
                                    NULL), 0);
  start ("a-b.c_9", &plain, &k);
  refused (srv_jobs_start (&jobs, "a-b.c_9", &plain, &k, NULL, false, &f),
           -EEXIST, &f, "Job ID 'a-b.c_9' already in use");
  told[0] = '\0';
  start (NULL, &plain, &k);
  start (NULL, &plain, &k);
  start ("plain-3", &plain, &k);
  start (NULL, &plain, &k);
  expect_told ("plain:created plain:running plain-2:created plain-2:running "
               "plain-3:created plain-3:running plain-4:created plain-4:running ");
  assert_int_equal (k.nr_ends, 0);
}

static void
the_number_of_jobs_is_bounded (void **state)
{
  static struct fake k[SRV_MAX_JOBS + 2] = { { 0 } };
  unsigned i;

  for (i = 0; i < SRV_MAX_JOBS; i++) {
    k[i].left = 1;
    start_with (NULL, &plain, &k[i], 0, true);
  }
  assert_int_equal (srv_jobs_start (&jobs, NULL, &plain, &k[i], NULL, false,
                                    NULL), -EMLINK);
  while (turn ())
    ;
  assert_int_equal (srv_jobs_start (&jobs, NULL, &plain, &k[i], NULL, false,
                                    NULL), -EMLINK);
  /* Not for those that start by themselves. */
  k[i].left = 1;
  assert_int_equal (srv_jobs_start (&jobs, NULL, &plain, &k[i], NULL, true,
                                    NULL), 0);
  assert_true (turn ());
  assert_int_equal (nr_listed (), SRV_MAX_JOBS);
  assert_int_equal (srv_jobs_start (&jobs, NULL, &plain, &k[i], NULL, false,
                                    NULL), -EMLINK);
  assert_int_equal (srv_jobs_dismiss (&jobs, "plain-7", NULL), 0);
  k[++i].left = 1;
  start (NULL, &plain, &k[i]);
}

/* --- Turns ----------------------------------------------------------------- */

static void
jobs_take_turns (void **state)
{
  static struct fake a = { .left = 4 }, b = { .left = 9 }, c = { .left = 9 };

  start ("a", &plain, &a);
  start ("b", &plain, &b);
  start ("c", &plain, &c);
  for (unsigned i = 0; i < 9; i++)
    assert_true (turn ());
  assert_int_equal (a.nr_steps, 3);
  assert_int_equal (b.nr_steps, 3);
  assert_int_equal (c.nr_steps, 3);
  assert_true (turn ());        /* A's last */
  assert_int_equal (a.nr_ends, 1);
  b.not_ready = true;
  assert_true (turn ());
  assert_true (turn ());
  assert_int_equal (b.nr_steps, 3);
  assert_int_equal (c.nr_steps, 5);
  c.not_ready = true;
  assert_false (turn ());
}

static void
steps_use_a_fifth_of_the_time_beside_clients (void **state)
{
  static struct fake a = { .left = 1000, .took_ns = 3 * MS };
  static struct fake b = { .left = 1000, .took_ns = 1 * MS };
  const uint64_t begun = now;
  uint64_t next;

  moment.busy = true;
  start ("a", &plain, &a);
  start ("b", &plain, &b);
  while (now < begun + 10 * SECOND)
    if (!turn ()) {
      next = srv_jobs_next_ns (&jobs, SRV_LANE_STEPS);
      assert_true (next > now);
      now = next;
    }
  assert_in_range (a.nr_steps * 3 + b.nr_steps, 1990, 2010);     /* of 10000 ms */
  assert_in_range (a.nr_steps, b.nr_steps - 1, b.nr_steps + 1);
  moment.busy = false;
  for (unsigned i = 0; i < 100 + 1; i++)        /* the last rest */
    if (!turn ())
      now = srv_jobs_next_ns (&jobs, SRV_LANE_STEPS);
  next = now;
  assert_true (turn ());
  assert_true (turn ());
  assert_int_equal (now - next, 4 * MS);
  assert_int_equal (srv_jobs_next_ns (&jobs, SRV_LANE_STEPS), UINT64_MAX);
}

static void
a_kind_of_job_may_rest_longer_but_not_for_seconds (void **state)
{
  static struct fake a = { .left = 100, .took_ns = MS };

  moment.busy = true;
  start ("a", &sparing, &a);
  assert_true (turn ());
  assert_false (turn ());
  assert_int_equal (srv_jobs_next_ns (&jobs, SRV_LANE_STEPS), now + 9 * MS);
  now = srv_jobs_next_ns (&jobs, SRV_LANE_STEPS);
  a.took_ns = SECOND;           /* the disk was slow */
  assert_true (turn ());
  assert_int_equal (srv_jobs_next_ns (&jobs, SRV_LANE_STEPS), now + 100 * MS);
}

static void
a_job_may_say_itself_whom_it_slows_down (void **state)
{
  static struct fake a = { .left = 100, .took_ns = MS };

  start ("a", &reader, &a);
  moment.busy = true;
  assert_true (turn ());
  assert_true (turn ());
  moment.busy = false;
  a.slows = true;
  assert_true (turn ());
  assert_false (turn ());
  now += 4 * MS - 1;
  assert_false (turn ());
  now += 1;
  assert_true (turn ());
}

/* Two connections of one disk: a turn of one lane does not wait for the other. */
static void
lanes_are_apart (void **state)
{
  static struct fake a = { .left = 9, .took_ns = SECOND }, b = { .left = 9 };
  struct srv_job *job;

  start ("a", &plain, &a);
  start ("b", &late, &b);
  moment.busy = true;
  assert_true (turn ());
  assert_false (turn ());
  assert_true (turn_of (SRV_LANE_UPKEEP));
  job = srv_jobs_take_turn (&jobs, SRV_LANE_UPKEEP, &moment);
  assert_non_null (job);
  now += 4 * SECOND;
  assert_true (turn ());
  srv_job_turn (&jobs, job);
  srv_jobs_finish_turn (&jobs, SRV_LANE_UPKEEP, job, &moment);
  assert_int_equal (a.nr_steps, 2);
  assert_int_equal (b.nr_steps, 2);
}

static void
idle_jobs_wait_for_others (void **state)
{
  static struct fake a = { .left = 3 }, b = { .left = 9 };

  start ("b", &idle, &b);
  start ("a", &plain, &a);
  assert_true (turn ());
  assert_int_equal (a.nr_steps, 1);
  moment.idle = true;
  assert_true (turn ());
  assert_int_equal (a.nr_steps, 2);
  a.not_ready = true;           /* it still has something to do */
  assert_false (turn ());
  assert_true (srv_jobs_go_on (&jobs, &moment));
  assert_int_equal (srv_jobs_pause (&jobs, "a", NULL), 0);
  assert_true (turn ());
  assert_int_equal (b.nr_steps, 1);
  moment.idle = false;
  assert_false (turn ());
  assert_false (srv_jobs_go_on (&jobs, &moment));
  moment.idle = true;
  assert_true (srv_jobs_go_on (&jobs, &moment));
  b.not_ready = true;
  assert_false (srv_jobs_go_on (&jobs, &moment));
}

static void
only_jobs_that_change_the_image_keep_it_from_being_clean (void **state)
{
  static struct fake a = { .left = 9 }, b = { .left = 9, .fails = -ENOSPC };

  start ("a", &patient, &a);
  assert_false (srv_jobs_go_on (&jobs, &moment));
  start ("b", &plain, &b);
  assert_true (srv_jobs_go_on (&jobs, &moment));
  assert_true (turn ());
  assert_true (turn ());
  assert_false (srv_jobs_go_on (&jobs, &moment));       /* it has failed */
}

/* --- Rates ----------------------------------------------------------------- */

/* Lets all turns happen until END, as a loop would. */
static void
run_until (uint64_t until)
{
  uint64_t next;

  while (now < until)
    if (!turn ()) {
      next = srv_jobs_next_ns (&jobs, SRV_LANE_STEPS);
      now = MIN_OF (next, until);
    }
}

static void
a_rate_is_kept (void **state)
{
  static struct fake a = { .left = 100000, .bytes_each = MIB, .took_ns = MS };
  uint64_t before;

  start_with ("a", &plain, &a, 10 * MIB, false);
  run_until (now + 20 * SECOND);
  assert_in_range (a.done, 200 * MIB, 201 * MIB);
  /* Time that was not used is not made up for. */
  assert_int_equal (srv_jobs_pause (&jobs, "a", NULL), 0);
  run_until (now + 100 * SECOND);
  assert_int_equal (srv_jobs_resume (&jobs, "a", NULL), 0);
  before = a.done;
  run_until (now + 10 * SECOND);
  assert_in_range (a.done - before, 100 * MIB, 101 * MIB);

  nr_woken = 0;
  assert_int_equal (srv_jobs_set_rate (&jobs, "a", 100 * MIB, NULL), 0);
  assert_int_equal (nr_woken, 1);
  assert_int_equal (first ().rate, 100 * MIB);
  before = a.done;
  run_until (now + 10 * SECOND);
  assert_in_range (a.done - before, 1000 * MIB, 1001 * MIB);
  assert_int_equal (srv_jobs_set_rate (&jobs, "a", 0, NULL), 0);
  before = a.done;
  run_until (now + 10 * SECOND);
  assert_in_range (a.done - before, 9990 * MIB, 10001 * MIB);
}

static void
a_very_low_rate_can_be_raised (void **state)
{
  static struct fake a = { .left = 1000, .bytes_each = UINT64_C (1) << 62 };

  start_with ("a", &plain, &a, 1, false);
  assert_true (turn ());
  run_until (now + 10000 * SECOND);
  assert_int_equal (a.nr_steps, 1);
  assert_int_equal (srv_jobs_set_rate (&jobs, "a", 0, NULL), 0);
  assert_true (turn ());
}

static void
all_jobs_together_have_a_rate (void **state)
{
  static struct fake a = { .left = 10000, .bytes_each = MIB, .took_ns = MS };
  static struct fake b = { .left = 10000, .bytes_each = MIB, .took_ns = MS };

  start_with ("a", &plain, &a, MIB, false);
  start ("b", &plain, &b);
  srv_jobs_set_all_rate (&jobs, 10 * MIB);
  run_until (now + 20 * SECOND);
  assert_in_range (a.done, 19 * MIB, 21 * MIB);
  assert_in_range (a.done + b.done, 200 * MIB, 201 * MIB);
  srv_jobs_set_all_rate (&jobs, 0);
  b.done = 0;
  run_until (now + SECOND);
  assert_in_range (b.done, 990 * MIB, 1001 * MIB);
}

/* --- Failures -------------------------------------------------------------- */

static void
lack_of_space_is_waited_for (void **state)
{
  static struct fake a = { .left = 3, .fails = -ENOSPC };
  uint64_t begun = now;

  start ("a", &plain, &a);
  assert_true (turn ());
  assert_false (turn ());
  assert_string_equal (first ().waits_for, strerror (ENOSPC));
  assert_true (space.gone);
  now += 500 * MS - 1;
  assert_false (turn ());
  now += 1;
  assert_true (turn ());
  assert_int_equal (srv_jobs_next_ns (&jobs, SRV_LANE_STEPS),
                    now + 1000 * MS);
  run_until (begun + 100 * SECOND);     /* 0.5, 1, 2, 4, 8, 10, 10 ... */
  assert_int_equal (a.nr_steps, 5 + 1 + 8);
  a.fails = 0;
  run_until (now + 11 * SECOND);
  assert_int_equal (a.nr_ends, 1);
  assert_int_equal (a.result, 0);
}

static void
a_patient_job_tries_again_after_any_error (void **state)
{
  static struct fake a = { .left = 2, .fails = -EIO };

  start ("a", &patient, &a);
  run_until (now + 10 * SECOND);
  assert_true (a.nr_steps > 2);
  assert_int_equal (a.nr_ends, 0);
  assert_string_equal (logged, "disk: job a: a step failed: Input/output "
                       "error\n");
  a.fails = 0;
  logged[0] = '\0';
  run_until (now + 10 * SECOND);
  assert_int_equal (a.result, 0);
  assert_string_equal (logged, "disk: job a: steps succeed again\n");
}

static void
a_job_that_waits_after_a_failure_does_not_stop_others (void **state)
{
  static struct fake a = { .left = 2, .fails = -ENOSPC }, b = { .left = 5 };

  start ("a", &plain, &a);
  start ("b", &plain, &b);
  for (unsigned i = 0; i < 6; i++)
    assert_true (turn ());
  assert_int_equal (b.nr_ends, 1);
  assert_int_equal (a.nr_steps, 1);
}

/* --- The end of the image --------------------------------------------------- */

static void
all_jobs_end_with_the_image (void **state)
{
  static struct fake running = { .left = 3 }, paused = { .left = 3 };
  static struct fake concluded = { .left = 1 }, cancelled = { .left = 3 };

  start_with ("c", &plain, &concluded, 0, true);
  assert_true (turn ());
  start ("r", &plain, &running);
  start ("p", &plain, &paused);
  start ("x", &plain, &cancelled);
  assert_int_equal (srv_jobs_pause (&jobs, "p", NULL), 0);
  assert_int_equal (srv_jobs_cancel (&jobs, "x", NULL), 0);
  srv_jobs_stop (&jobs);
  assert_int_equal (running.result, -ESHUTDOWN);
  assert_int_equal (paused.result, -ESHUTDOWN);
  assert_int_equal (cancelled.result, -ESHUTDOWN);
  assert_int_equal (concluded.result, 0);
  assert_int_equal (running.nr_ends + paused.nr_ends + concluded.nr_ends +
                    cancelled.nr_ends, 4);
  assert_false (turn ());
  assert_int_equal (srv_jobs_start (&jobs, NULL, &plain, &running, NULL, false,
                                    NULL), -ESHUTDOWN);
}

/* A step that the end of the image interrupts is no failure. */
static void
an_interrupted_step_is_not_logged (void **state)
{
  static struct fake a = { .left = 3, .fails = -EINTR };

  start ("a", &plain, &a);
  assert_true (turn ());
  assert_false (turn ());
  assert_string_equal (logged, "");
  assert_null (first ().waits_for);
}

/* --- Many threads ----------------------------------------------------------- */

#define NR_USERS 4
#define NR_CALLS 3000

struct busy {                   /* a job that lives on the heap */
  unsigned left;                /* atomic: progress */
};

static unsigned nr_begun, nr_over;      /* atomic */
static bool users_are_done;             /* atomic */
static uint64_t seed;

/* The last state of each job that was told, by its number. */
static int last_status[NR_USERS * NR_CALLS];

static int
busy_step (void *opaque)
{
  struct busy *b = opaque;

  return __atomic_sub_fetch (&b->left, 1, __ATOMIC_RELAXED) > 0;
}

static void
busy_progress (void *opaque, uint64_t *done, uint64_t *total)
{
  const struct busy *b = opaque;

  *total = 100;
  *done = 100 - __atomic_load_n (&b->left, __ATOMIC_RELAXED);
}

static void
busy_end (void *opaque, int result)
{
  free (opaque);
  __atomic_add_fetch (&nr_over, 1, __ATOMIC_RELAXED);
}

static const struct srv_job_ops busy_ops = {
  .type = "busy", .can_pause = true, .can_cancel = true, .changes = true,
  .step = busy_step, .progress = busy_progress, .end = busy_end,
};

/* Called under the lock. */
static void
check_order (void *opaque, const char *id, const char *type,
             enum srv_job_status status)
{
  int *last = &last_status[atoi (id + 1)];

  if (status == SRV_JOB_CREATED)
    assert_int_equal (*last, -1);
  else if (status == SRV_JOB_CONCLUDED)
    assert_true (*last == SRV_JOB_PENDING || *last == SRV_JOB_ABORTING);
  else if (status == SRV_JOB_NULL)
    assert_int_equal (*last, SRV_JOB_CONCLUDED);
  *last = (int) status;
}

static void
start_busy (unsigned nr, bool keep)
{
  const struct srv_job_options o = { .manual_dismiss = keep };
  struct busy *b = malloc (sizeof *b);
  char id[16];

  b->left = 1 + nr % 20;
  snprintf (id, sizeof id, "j%u", nr);
  __atomic_add_fetch (&nr_begun, 1, __ATOMIC_RELAXED);
  if (srv_jobs_start (&jobs, id, &busy_ops, b, &o, false, NULL) == 0)
    return;
  __atomic_sub_fetch (&nr_begun, 1, __ATOMIC_RELAXED);
  free (b);
}

static void
ask (unsigned what, const char *id)
{
  int r = 0;

  switch (what) {
  case 0: r = srv_jobs_pause (&jobs, id, NULL); break;
  case 1: r = srv_jobs_resume (&jobs, id, NULL); break;
  case 2: r = srv_jobs_cancel (&jobs, id, NULL); break;
  case 3: case 4: r = srv_jobs_dismiss (&jobs, id, NULL); break;
  case 5: r = srv_jobs_set_rate (&jobs, id, MIB, NULL); break;
  case 6: nr_listed (); break;
  default: break;
  }
  assert_true (r == 0 || r == -ENOENT || r == -EBUSY);
}

static void *
user (void *opaque)
{
  const unsigned me = (unsigned) (uintptr_t) opaque;
  uint64_t x = seed + me;
  char id[16];

  for (unsigned i = 0; i < NR_CALLS; i++) {
    x = x * UINT64_C (6364136223846793005) + 1442695040888963407;
    start_busy (i * NR_USERS + me, (x >> 40) % 2);
    snprintf (id, sizeof id, "j%u", (unsigned) ((x >> 33) %
                                                (i * NR_USERS + 4)));
    ask ((x >> 50) % 8, id);
  }
  return NULL;
}

/* Plays the loop: takes turns, and after the users' end cancels what is paused. */
static void *
play_loop (void *opaque)
{
  const enum srv_job_lane lane = SRV_LANE_STEPS;
  struct srv_job *job;

  while (!__atomic_load_n (&users_are_done, __ATOMIC_ACQUIRE)) {
    job = srv_jobs_take_turn (&jobs, lane, &moment);
    if (job == NULL) {
      usleep (50);
      continue;
    }
    srv_job_turn (&jobs, job);
    srv_jobs_finish_turn (&jobs, lane, job, &moment);
  }
  return NULL;
}

static void
users_and_turns_do_not_meet (void **state)
{
  const char *given = getenv ("DEDUP_TEST_SEED");
  pthread_t users[NR_USERS], loop;

  seed = given ? strtoull (given, NULL, 0) : (uint64_t) time (NULL);
  print_message ("seed %" PRIu64 "\n", seed);
  memset (last_status, -1, sizeof last_status);
  jobs.changed = check_order;
  jobs.wake = NULL;
  jobs.log = NULL;
  pthread_create (&loop, NULL, play_loop, NULL);
  for (unsigned i = 0; i < NR_USERS; i++)
    pthread_create (&users[i], NULL, user, (void *) (uintptr_t) i);
  for (unsigned i = 0; i < NR_USERS; i++)
    pthread_join (users[i], NULL);
  __atomic_store_n (&users_are_done, true, __ATOMIC_RELEASE);
  pthread_join (loop, NULL);
  assert_true (nr_begun > SRV_MAX_JOBS);
  srv_jobs_stop (&jobs);
  assert_int_equal (nr_over, nr_begun);
}

int
main (void)
{
#define TEST(f) cmocka_unit_test_setup_teardown (f, begin, end)
  const struct CMUnitTest tests[] = {
    TEST (a_job_that_succeeds_goes_through_qemus_states),
    TEST (a_job_that_is_dismissed_by_hand_is_kept),
    TEST (a_job_that_fails_aborts),
    TEST (a_job_that_is_cancelled_aborts),
    TEST (cancelling_waits_for_nothing),
    TEST (a_job_that_is_paused_takes_no_turn),
    TEST (a_job_that_is_paused_can_be_cancelled),
    TEST (what_is_asked_during_a_step_happens_after_it),
    TEST (calls_that_a_state_does_not_allow_are_refused_as_by_qemu),
    TEST (calls_that_a_kind_does_not_allow_are_refused),
    TEST (ids_are_checked_or_made),
    TEST (the_number_of_jobs_is_bounded),
    TEST (jobs_take_turns),
    TEST (steps_use_a_fifth_of_the_time_beside_clients),
    TEST (a_kind_of_job_may_rest_longer_but_not_for_seconds),
    TEST (a_job_may_say_itself_whom_it_slows_down),
    TEST (lanes_are_apart),
    TEST (idle_jobs_wait_for_others),
    TEST (only_jobs_that_change_the_image_keep_it_from_being_clean),
    TEST (a_rate_is_kept),
    TEST (a_very_low_rate_can_be_raised),
    TEST (all_jobs_together_have_a_rate),
    TEST (lack_of_space_is_waited_for),
    TEST (a_patient_job_tries_again_after_any_error),
    TEST (a_job_that_waits_after_a_failure_does_not_stop_others),
    TEST (all_jobs_end_with_the_image),
    TEST (an_interrupted_step_is_not_logged),
    TEST (users_and_turns_do_not_meet),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
