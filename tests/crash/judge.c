/* SPDX-License-Identifier: BSD-3-Clause */
/* Judges a crash state.
 *
 *  1. opened read-only, it holds what the oracle accepts, and the image is
 *     not changed by that;
 *  2. opened for writing (recovery runs), it holds the same;
 *  3. what it holds is written again elsewhere: it reads back right and, the
 *     index being whole, stores nothing new; more work follows; a scrub (of one
 *     in four) finds nothing bad;
 *  4. closed, it checks clean, holds the same opened again, and (on a sample)
 *     qemu-img check says so too;
 *  5. deep: step 2 and 3 were recorded; crash there as well, also in the
 *     middle of the recovery, and judge those states against the contents
 *     found in step 1;
 *  6. rot (rot.c): a byte of the crashed image's journal flips; another
 *     program changes the closed image and an older configuration comes back.
 *
 * Everything here depends on the state and its seed alone.
 */
#include "judging.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "pool.h"
#include "index-private.h"
#include "disk-internal.h"

#define CONTINUE_OPS 8
#define INNER_STATES 6
#define SCRUB_ONE_IN 4

bool
bad (struct judging *j, const char *fmt, ...)
{
  va_list ap;

  if (!j->v->bad) {
    va_start (ap, fmt);
    vsnprintf (j->v->msg, sizeof j->v->msg, fmt, ap);
    va_end (ap);
    j->v->bad = true;
  }
  return false;
}

void
verdict_free (struct verdict *v)
{
  if (v->inner) {
    world_free (v->inner);
    free (v->inner);
    bytes_free (&v->inner_base);
    state_free (&v->inner_state);
  }
}

/* --- reading ------------------------------------------------------------------ */

bool
read_ids (struct judging *j, struct dedup_pool *d, uint64_t *ids,
          const char *when)
{
  const struct world *w = j->w;
  size_t u = 0;
  int r = read_slots (w, d, ids, &u);

  if (r == -EILSEQ)
    return bad (j, "%s: unit %zu holds no content that was ever written", when,
                u);
  return r == 0 ? true : bad (j, "%s: read: %s", when, strerror (-r));
}

bool
holds (struct judging *j, struct dedup_pool *d, const uint64_t *want,
       const char *when)
{
  CLEANUP_FREE uint64_t *ids = calloc (j->w->nr_units, sizeof *ids);
  size_t u;

  if (!read_ids (j, d, ids, when))
    return false;
  for (u = 0; u < j->w->nr_units; u++)
    if (!is_as_modelled (ids[u], want[u]))
      return bad (j, "%s: unit %zu is %llx instead of %llx", when, u,
                  (unsigned long long) ids[u], (unsigned long long) want[u]);
  return true;
}

bool
holds_read_only (struct judging *j, struct io_store *io,
                 const uint64_t *want, const char *when)
{
  struct dedup_pool *d;
  struct fault f;
  bool ok;

  if (open_disk (j->w, io, false, &d, &f) < 0)
    return bad (j, "%s: open read-only: %s", when, f.msg);
  ok = holds (j, d, want, when);
  dedup_free (d);
  return ok;
}

/* Else pages may be wrong that nobody has looked at. */
bool
store_file_is_whole (const struct judging *j)
{
  return j->st->store_fate == STORE_KEPT && !j->w->index_lost;
}

/* --- 1. ------------------------------------------------------------------------ */

static bool
judge_contents (struct judging *j)
{
  uint64_t changes = cow_changes (j->disk);
  struct dedup_pool *d;
  struct fault f;
  char why[300];
  bool ok;

  if (open_disk (j->w, j->disk, false, &d, &f) < 0)
    return bad (j, "open read-only: %s", f.msg);
  ok = read_ids (j, d, j->got, "read-only") && samples_are_right (j, d);
  dedup_free (d);
  if (ok && !oracle_accepts (j->w, j->got, j->st->pos, true, why, sizeof why))
    ok = bad (j, "%s", why);
  if (ok && cow_changes (j->disk) != changes)
    ok = bad (j, "a read-only open changed the image");
  return ok;
}

/* --- 4. ------------------------------------------------------------------------- */

static void
note_problem (void *opaque, bool is_leak, const char *line)
{
  char *msg = opaque;

  if (!msg[0])
    snprintf (msg, 200, "%s", line);
}

bool
checks_clean (struct judging *j, struct io_store *io, bool store_too)
{
  char msg[200] = "";
  struct qcow2_check_params p = { .problem = note_problem, .opaque = msg };
  struct dedup_check_result r;
  struct dedup_pool *d;
  struct dedup_stats s;
  struct fault f;
  bool ok = true;

  if (open_disk (j->w, io, false, &d, &f) < 0)
    return bad (j, "check: open: %s", f.msg);
  dedup_get_stats (d, &s);
  if (s.needs_recovery || (!s.has_store && store_too))
    ok = bad (j, "check: after a clean close the disk is not clean");
  else if (dedup_check (d, &p, &r, &f) < 0)
    ok = bad (j, "check: %s", f.msg);
  else if (r.image.corruptions || r.image.leaks || r.image.errors ||
           (store_too && r.store_errors))
    ok = bad (j, "check: %llu corruptions, %llu leaks, %llu store errors: %s",
              (unsigned long long) r.image.corruptions,
              (unsigned long long) r.image.leaks,
              (unsigned long long) r.store_errors, msg);
  dedup_free (d);
  return ok;
}

static bool
qemu_agrees (struct judging *j, struct io_store *io)
{
  char path[] = "/tmp/crash-qemu-XXXXXX", cmd[200];
  struct bytes b;
  int fd = mkstemp (path), status;
  bool ok;

  if (fd < 0 || bytes_of_store (io, &b) < 0)
    return bad (j, "qemu-img: no temporary file");
  ok = write (fd, b.p, b.size) == (ssize_t) b.size;
  close (fd);
  free (b.p);
  snprintf (cmd, sizeof cmd, "qemu-img check -q -f qcow2 %s >&2", path);
  status = ok ? system (cmd) : -1;
  unlink (path);
  __atomic_add_fetch (&j->n->qemu, 1, __ATOMIC_RELAXED);
  return status == 0 ? true : bad (j, "qemu-img check: status %d", status);
}

/* --- 2. and 3. -------------------------------------------------------------------- */

/* Is what the disk holds bound to be in the index?  A table of it that cannot be read is
 * dropped. */
static bool
index_is_whole (const struct judging *j)
{
  const struct world *w = j->w;

  return w->created && !w->twice && store_file_is_whole (j) && !w->cfg.no_dedup &&
    !w->cfg.no_verify && w->cfg.max_incarnations == 0 &&
    w->cfg.index_memory == 0 && w->cfg.refcount_order >= 4 &&
    w->cfg.error_one_in == 0;
}

/* Returns whether a guest cluster of the active disk shows a host cluster that is noted
 * as bad, so that it gets no links.  After a crash such a note may be about data that
 * the cluster had before. */
static bool
is_noted_bad (struct dedup_pool *d, size_t guest_idx, uint64_t cluster)
{
  uint64_t bad_places[256];
  size_t nr = dedup_scrub_bad_places (d, bad_places, 256);
  struct qcow2_extent e;

  if (nr == 0 || qcow2_map (dedup_image (d), QCOW2_ROOT_ACTIVE, guest_idx * cluster,
                            cluster, &e, 1) != 1)
    return false;
  while (nr > 0 && bad_places[nr - 1] != e.host_off)
    nr--;
  return e.kind == QCOW2_DATA && nr > 0;
}

/* Write the content of some clusters to others. */
static bool
duplicate (struct judging *j, struct world *w, struct srv_disk *disk)
{
  struct dedup_stats before, after;
  size_t from, to, i, u, nr = w->data_units / UNITS_PER_CLUSTER -
    w->cfg.partial_end;        /* of the active disk */
  bool adopted;

  for (i = 0; i < 3; i++) {
    from = rnd (&j->rng, nr) * UNITS_PER_CLUSTER;
    to = rnd (&j->rng, nr) * UNITS_PER_CLUSTER;
    for (u = 0, adopted = false; u < UNITS_PER_CLUSTER; u++)
      adopted = adopted || j->got[from + u] >= ID_ADOPTED ||
        may_be_lost (w, j->got[from + u]);
    adopted = adopted || is_noted_bad (disk->pool, from / UNITS_PER_CLUSTER,
                                       w->unit * UNITS_PER_CLUSTER);
    dedup_get_stats (disk->pool, &before);
    if (do_write (w, disk, 0, to, UNITS_PER_CLUSTER, j->got + from, false) < 0)
      return bad (j, "%s", w->error);
    dedup_get_stats (disk->pool, &after);
    if (after.stored > before.stored && !adopted && index_is_whole (j))
      return bad (j, "cluster %zu (%llx), there before the crash, was not "
                  "found again", from / UNITS_PER_CLUSTER,
                  (unsigned long long) j->got[from]);
    memcpy (j->got + to, j->got + from, UNITS_PER_CLUSTER * sizeof *j->got);
  }
  return true;
}

/* Law 8: whatever the configuration lists is there, whole. */
static bool
tables_are_whole (struct judging *j, struct dedup_pool *d)
{
  const struct dedup_index_view *set = d->store.index->view;
  struct fault f = { 0 };
  bool ok = true;
  size_t i;

  if (!d->store.has_store || dedup_is_storeless (d) || !store_file_is_whole (j))
    return true;
  for (i = 0; ok && i < set->nr; i++)
    ok = dedup_incarnation_check (set->v[i], &f) == 0;
  for (i = 0; ok && i < set->nr_segments; i++)
    ok = dedup_segment_check (set->segments[i], &f) == 0;
  return ok || bad (j, "after recovery: %s", f.msg);
}

/* A world that starts from what the state holds, in one thread. */
static struct world *
inner_world (struct judging *j)
{
  struct world *in = malloc (sizeof *in);
  struct cfg cfg = j->w->cfg;

  cfg.clients = 1;
  cfg.fail_sync = false;
  cfg.flush_one_in = 6;
  cfg.job_one_in = 3;
  cfg.zero_one_in = 4;
  world_init (in, &cfg, j->st->seed);
  in->next_id = j->w->next_id + 0x10000;
  in->created = j->w->created;
  in->index_lost = !store_file_is_whole (j);
  in->twice = j->w->twice;
  in->recovered = true;
  memcpy (in->base_ids, j->got, in->nr_units * sizeof *in->base_ids);
  return in;
}

/* A scrub of the recovered image, one in some, calls no more clusters bad than there
 * were in the base. */
static bool
scrub_is_silent (struct judging *j, struct dedup_pool *d)
{
  const int r = j->st->seed % SCRUB_ONE_IN ? 0 : scrub_all (d);

  return (r >= 0 && r <= nr_lost (j->w)) ||
    bad (j, "a scrub after the recovery: %d clusters called bad", r);
}

/* Recover and go on, on the recording of IN.  *OPENED: length of the log
 * after the recovery. */
static bool
recover_and_go_on (struct judging *j, struct world *in, size_t *opened)
{
  CLEANUP_FREE uint64_t *want = calloc (in->nr_units, sizeof *want);
  struct dedup_pool *d;
  struct srv_disk disk;
  struct fault f;
  uint64_t tick;
  bool ok;
  int r;

  if (open_disk (in, in->rec, true, &d, &f) < 0)
    return bad (j, "open for writing: %s", f.msg);
  *opened = io_recording_log (in->rec, &in->log);
  ok = holds (j, d, j->got, "after recovery");
  disk_begin (d, &disk);
  slots_begin (in, d);
  ok = ok && tables_are_whole (j, d) && duplicate (j, in, &disk);
  if (ok)
    run_single (in, &disk, &j->rng, CONTINUE_OPS);
  if (ok && in->error[0])
    ok = bad (j, "going on: %s", in->error);
  final_ids (in, want);
  ok = ok && holds (j, d, want, "going on") && scrub_is_silent (j, d);
  tick = ++in->tick;
  if (ok && in->cfg.disks && (r = dedup_disks_settle (d)) < 0)
    ok = bad (j, "paying and dropping: %s", strerror (-r));
  if (ok && (r = dedup_finish (d)) < 0)
    ok = bad (j, "close: %s", strerror (-r));
  if (ok) {
    note_flushed (in, tick);
    dedup_give_back_all (d);
  }
  slots_end (in);
  disk_end (&disk);
  dedup_free (d);
  in->nr_log = io_recording_log (in->rec, &in->log);
  return ok && holds_read_only (j, in->rec, want, "closed");
}

/* --- 5. ------------------------------------------------------------------------------- */

/* The state ST of the inner world failed: keep it for the report. */
static void
keep_inner (struct judging *j, struct world *in, const struct state *st)
{
  struct io_store *io = cow_new (NULL, j->disk);

  bytes_of_store (io, &j->v->inner_base);
  io_close (io);
  j->v->inner = in;
  state_copy (st, &j->v->inner_state);
}

static bool
crash_again (struct judging *j, struct world *in, size_t opened)
{
  struct state st;
  struct bytes flat;
  struct io_store *io;
  size_t i, pos;

  /* All records before the window are there: play them once a state. */
  for (i = 0; i < INNER_STATES && !j->v->bad; i++) {
    pos = i % 2 ? rnd (&j->rng, opened + 1)
      : opened + rnd (&j->rng, in->nr_log - opened + 1);
    state_random (in, pos, j->st->seed + 7919 * (i + 1), &st);
    bytes_of_store (j->disk, &flat);
    bytes_play (in, 0, st.from, &flat);
    io = cow_new (&flat, NULL);
    state_apply (in, &st, io);
    judge (in, io, &st, 0, j->v, j->n);
    __atomic_add_fetch (&j->n->inner, 1, __ATOMIC_RELAXED);
    if (j->v->bad)
      keep_inner (j, in, &st);
    io_close (io);
    bytes_free (&flat);
    state_free (&st);
  }
  return !j->v->bad;
}

/* --- all of it ---------------------------------------------------------------------------- */

static bool
judge_all (struct judging *j, struct world *in)
{
  CLEANUP_FREE uint64_t *ids = calloc (j->w->nr_units, sizeof *ids);
  struct io_store *io;
  size_t opened = 0;
  bool ok;

  if (!judge_contents (j))
    return false;
  memcpy (in->base_ids, j->got, in->nr_units * sizeof *in->base_ids);
  if (!recover_and_go_on (j, in, &opened) ||
      !checks_clean (j, in->rec, store_file_is_whole (j)))
    return false;
  if ((j->flags & JUDGE_QEMU) && !qemu_agrees (j, in->rec))
    return false;
  if ((j->flags & JUDGE_DEEP) && !crash_again (j, in, opened))
    return false;
  if (!(j->flags & JUDGE_ROT))
    return true;
  if (!survives_journal_rot (j))
    return false;
  if (in->cfg.disks)            /* the other program knows one disk only */
    return true;
  /* On a copy: the recording's log is not for this. */
  io = cow_new (NULL, j->disk);
  {
    struct state all = { .pos = in->nr_log, .nr = in->nr_log };

    all.fate = calloc (all.nr + 1, 1);
    all.order = calloc (all.nr + 1, sizeof *all.order);
    for (size_t i = 0; i < all.nr; i++)
      all.order[i] = (uint32_t) i;
    state_apply (in, &all, io);
    state_free (&all);
  }
  final_ids (in, ids);
  ok = survives_config_rot (j, in, io, ids);
  io_close (io);
  return ok;
}

void
judge (const struct world *w, struct io_store *disk, const struct state *st,
       unsigned flags, struct verdict *v, struct counts *n)
{
  struct judging j = { .w = w, .disk = disk, .st = st, .flags = flags,
                       .v = v, .n = n, .rng = rng_of (st->seed, 3) };
  struct world *in;

  __atomic_add_fetch (&n->states, 1, __ATOMIC_RELAXED);
  j.got = calloc (w->nr_units, sizeof *j.got);
  in = inner_world (&j);
  if (io_recording_new (cow_new (NULL, disk), &in->rec) < 0)
    abort ();
  judge_all (&j, in);
  free (j.got);
  if (v->inner != in) {
    world_free (in);
    free (in);
  }
}
