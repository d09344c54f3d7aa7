/* SPDX-License-Identifier: BSD-3-Clause */
/* Scrubs, and adds samples of the past, while a workload runs; and says what a crash
 * state must have of the samples.
 *
 * Nothing rots here, so whatever a scrub finds is wrong (test-heal is about healing).
 * The fields of a sample follow from its time, so that a mixture of two copies is
 * noticed.  Which copies are durable is taken from the record of the writes.
 */
#include "judging.h"

#include <errno.h>
#include <string.h>

#include "checked.h"
#include "disk-internal.h"
#include "pool.h"
#include "samples.h"
#include "wire.h"

#define WINDOW 48              /* clusters of a scrub's window */

/* --- Scrubs ------------------------------------------------------------------- */

static void
found_cb (void *opaque, const struct dedup_scrub_finding *f)
{
  world_error (opaque, "a scrub called the cluster at 0x%llx bad",
               (unsigned long long) f->host_off);
}

int
scrub_some (struct world *w, struct dedup_pool *d, struct rng *r,
            struct dedup_scrub **sc)
{
  const struct dedup_scrub_params p = {
    .restart = chance (r, 3), .found = found_cb, .opaque = w,
    .window_clusters = WINDOW,
  };
  int res = 0;

  if (w->cfg.scrub_one_in == 0 || !chance (r, w->cfg.scrub_one_in))
    return 0;
  if (*sc == NULL)
    res = dedup_scrub_begin (d, &p, sc);
  if (res == 0)
    res = dedup_scrub_step (*sc);
  if (res <= 0) {
    dedup_scrub_end (*sc);
    *sc = NULL;
  }
  return res < 0 ? result (w, "scrub", res) : 0;
}

/* --- Compactions ---------------------------------------------------------------- */

static int
lock_cb (void *opaque, unsigned root, uint64_t guest_idx, size_t nr)
{
  struct compacting *k = opaque;

  k->locked = root == k->disk->root;
  if (!k->locked)              /* a single client does nothing else meanwhile */
    return k->clients == 1 ? 0 : -ENOENT;
  return srv_range_acquire (&k->disk->ranges, &k->range, guest_idx,
                            guest_idx + nr - 1, true);
}

static void
unlock_cb (void *opaque)
{
  struct compacting *k = opaque;

  if (k->locked)
    srv_range_release (&k->disk->ranges, &k->range);
}

/* One that is interrupted leaves off anywhere, as a crash does. */
int
compact_some (struct world *w, struct rng *r, struct compacting *k)
{
  const struct dedup_compact_params p = {
    .percent = 1 + (unsigned) rnd (r, 20), .max_clusters = 1 + rnd (r, 20),
    .max_packed = 4 + rnd (r, 60), .lock = lock_cb, .unlock = unlock_cb,
    .opaque = k, .ends = w->cfg.block > 0,
  };
  int res = 0;

  if (w->cfg.compact_one_in == 0 || !chance (r, w->cfg.compact_one_in))
    return 0;
  if (k->c == NULL)
    res = dedup_compact_begin (k->disk->pool, &p, &k->c);
  if (res == 0)
    res = dedup_compact_step (k->c);
  if (res <= 0 || chance (r, 60)) {
    dedup_compact_end (k->c);
    k->c = NULL;
  }
  return res < 0 && res != -ENOSPC ? result (w, "compaction", res) : 0;
}

/* Likewise.  A session looks at all data now and then. */
int
compress_some (struct world *w, struct rng *r, struct compacting *k)
{
  const struct dedup_compress_params p = {
    .all = chance (r, 4), .lock = lock_cb, .unlock = unlock_cb, .opaque = k,
  };
  int res = 0;

  if (w->cfg.compress_one_in == 0 || !chance (r, w->cfg.compress_one_in))
    return 0;
  if (k->z == NULL)
    res = dedup_compress_begin (k->disk->pool, &p, &k->z);
  if (res == 0)
    res = dedup_compress_step (k->z);
  if (res <= 0 || chance (r, 60)) {
    dedup_compress_end (k->z);
    k->z = NULL;
  }
  return res < 0 && res != -ENOSPC ? result (w, "compressing", res) : 0;
}

void
end_compacting (struct compacting *k)
{
  dedup_compact_end (k->c);
  dedup_compress_end (k->z);
}

int
scrub_all (struct dedup_pool *d)
{
  const struct dedup_scrub_params p = { .restart = true };
  struct dedup_scrub_figures f;
  struct dedup_scrub *sc;
  int r = dedup_scrub_begin (d, &p, &sc);

  if (r < 0)
    return r;
  while ((r = dedup_scrub_step (sc)) == 1)
    ;
  dedup_scrub_figures (sc, &f);
  dedup_scrub_end (sc);
  return r < 0 ? r : (int) MIN_OF (f.different + f.unreadable, 1000);
}

/* --- Samples ------------------------------------------------------------------ */

static struct dedup_sample
sample_at (uint64_t time)
{
  return (struct dedup_sample) {
    .time = time, .logical_bytes = 3 * time + 1, .stored_bytes = 5 * time + 2,
    .free_bytes = 7 * time + 3,
  };
}

struct seen {
  uint64_t last;               /* time; 0: none */
  bool wrong;                  /* one has other fields than it was added with */
};

static int
see (void *opaque, const struct dedup_sample *s)
{
  const struct dedup_sample want = sample_at (s->time);
  struct seen *seen = opaque;

  seen->wrong = seen->wrong || s->time <= seen->last ||
    memcmp (s, &want, sizeof want) != 0;
  seen->last = s->time;
  return 0;
}

int
sample_some (struct world *w, struct dedup_pool *d, struct rng *r)
{
  struct seen seen = { 0 };
  struct dedup_sample s;
  int res;

  if (w->cfg.sample_one_in == 0 || !chance (r, w->cfg.sample_one_in))
    return 0;
  res = dedup_samples (d, see, &seen);
  if (res < 0)
    return result (w, "samples", res);
  s = sample_at (seen.last + 1);
  res = dedup_sample_add (d, &s);
  return res < 0 && res != -EBUSY && res != -EAGAIN
    ? result (w, "sample", res) : 0;
}

/* Returns the time of the last sample of a copy that a record writes; 0: it writes
 * none.  (docs/on-disk.md 3.1.1) */
static uint64_t
time_written (const struct io_record *rec)
{
  static const uint8_t magic[8] = "DDUPHIS\xa1";
  uint32_t nr;
  be32 n;
  be64 t;

  if (rec->call != IO_PWRITE || rec->len != 16384 ||
      memcmp (rec->data, magic, sizeof magic) != 0)
    return 0;
  memcpy (&n, (const uint8_t *) rec->data + 24, sizeof n);
  nr = be32_load (n);
  if (nr == 0)
    return 0;
  memcpy (&t, (const uint8_t *) rec->data + 64 + 32 * (nr - 1), sizeof t);
  return be64_load (t);
}

bool
samples_are_right (struct judging *j, struct dedup_pool *d)
{
  const struct world *w = j->w;
  struct seen seen = { 0 };
  uint64_t durable = 0;
  size_t i;
  int r;

  if (w->cfg.sample_one_in == 0)
    return true;
  for (i = 0; i < j->st->from; i++)
    durable = MAX_OF (durable, time_written (&w->log[i]));
  r = dedup_samples (d, see, &seen);
  if (r < 0)
    return bad (j, "samples: %s", strerror (-r));
  if (seen.wrong)
    return bad (j, "a sample is not as it was added");
  return seen.last >= durable ||
    bad (j, "samples up to %llu of %llu, which was durable",
         (unsigned long long) seen.last, (unsigned long long) durable);
}
