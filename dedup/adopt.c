/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes a store for an image that has none (docs/on-disk.md section 6).
 *
 * Everything new is laid out behind the frontier, where all refcounts are 0; on
 * a device the bytes there may be anything.  The first journal block holds the
 * records that give the new areas and tables their refcounts.  One write of the
 * header then turns the image into a crashed one, whose recovery completes the
 * store.  Until that write the image is as it was, but longer.
 *
 * One thread, with the image open nowhere else.
 */
#include "aligned.h"
#include "pool.h"

#include <errno.h>
#include <sys/random.h>

#define FIRST_AREAS 2

struct adoption {
  struct io_store *io;
  const struct dedup_open_params *p;
  struct qcow2_image *img;
  const struct qcow2_geometry *geo;
  struct dedup_config *config;
  struct dedup_ext ext;
  struct qcow2_plan *plan;
  uint64_t sizes[1 + FIRST_AREAS];
};

/* --- the configuration -------------------------------------------------- */

static int
random_id (uint64_t *id)
{
  do
    if (getrandom (id, sizeof *id, 0) != sizeof *id)
      return -EIO;
  while (*id == 0);
  return 0;
}

static int
random_key (enum dedup_hash_alg alg, uint8_t key[DEDUP_HASH_KEY_SIZE])
{
  if (dedup_hash_is_keyed (alg) &&
      getrandom (key, DEDUP_HASH_KEY_SIZE, 0) != DEDUP_HASH_KEY_SIZE)
    return -EIO;
  return 0;
}

int
dedup_check_verify (enum dedup_hash_alg alg, bool verify, struct fault *f)
{
  if (verify || dedup_hash_is_strong (alg))
    return 0;
  return fault_usage (f, "verify=off cannot be used with hash=%s: with this "
                      "hash different blocks may have equal hashes",
                      dedup_hash_name (alg));
}

static int
check_params (const struct dedup_open_params *p, struct fault *f)
{
  if (p->order && (p->order < DEDUP_MIN_ORDER || p->order > DEDUP_MAX_ORDER))
    return fault_usage (f, "the order of log stores must be %d to %d",
                        DEDUP_MIN_ORDER, DEDUP_MAX_ORDER);
  if (p->journal_areas && (p->journal_areas < FIRST_AREAS ||
                           p->journal_areas > DEDUP_MAX_JOURNAL_AREAS))
    return fault_usage (f, "the number of journal areas must be %d to %d",
                        FIRST_AREAS, DEDUP_MAX_JOURNAL_AREAS);
  return dedup_check_verify (p->hash, p->verify, f);
}

static int
choose_config (struct adoption *a, struct fault *f)
{
  struct dedup_config *c = a->config;
  const struct dedup_open_params *p = a->p;
  uint64_t cluster = a->geo->cluster_size;

  if (check_params (p, f) < 0)
    return -EINVAL;
  if (random_id (&c->store_id) < 0 || random_key (p->hash, c->hash_key) < 0)
    return fault_io (f, EIO, UINT64_MAX, "the system gives no random numbers");
  c->epoch = 1;
  c->epoch_start = c->checkpoint = c->index_start = 1;
  c->index.order = p->order ? p->order
    : dedup_default_order (a->geo->nr_clusters);
  c->index.max_incarnations = p->max_incarnations < 0 ? 0
    : (uint32_t) MIN_OF (p->max_incarnations, DEDUP_MAX_INCARNATIONS);
  c->flags = DEDUP_CONFIG_EXACT;  /* it is empty */
  c->notes.complete = true;
  c->index.next_id = 1;
  c->journal_area_size = dedup_default_area_size (c->index.order, cluster);
  c->max_journal_areas = p->journal_areas ? p->journal_areas
    : dedup_default_areas (c->index.order, c->journal_area_size);

  a->ext.config_size = (uint32_t) round_up_pow2 (2 * DEDUP_CONFIG_SLOT,
                                                 cluster);
  a->ext.max_incarnations = c->index.max_incarnations;
  a->ext.hash_alg = (uint8_t) p->hash;
  a->sizes[0] = a->ext.config_size;
  a->sizes[1] = a->sizes[2] = c->journal_area_size;
  return 0;
}

/* --- the layout --------------------------------------------------------- */

static int
lay_out (struct adoption *a, struct fault *f)
{
  struct dedup_config *c = a->config;
  uint32_t blocks = c->journal_area_size / DEDUP_BLOCK_SIZE;
  size_t i;
  int r;

  r = qcow2_plan_new (a->img, a->sizes, 1 + FIRST_AREAS,
                      qcow2_growth_bound (a->img), &a->plan, f);
  if (r < 0)
    return r;
  a->ext.config_off = a->plan->area_host_off[0];
  c->nr_areas = FIRST_AREAS;
  for (i = 0; i < FIRST_AREAS; i++)
    c->areas[i] = (struct dedup_journal_area) {
      .host_off = a->plan->area_host_off[1 + i],
      .first_seq = 1 + i * blocks, .nr_blocks = blocks };
  return 0;
}

/* --- writing ------------------------------------------------------------ */

/* Allocates space for the areas, and behind them for the tables that the
 * recovery will write: once the header is written, that must not meet a full
 * disk.  New journal areas are zeroed, as everywhere
 * (dedup_area_write_zeroes). */
static int
allocate_all (struct adoption *a)
{
  uint64_t off = a->plan->area_host_off[0];
  uint64_t end = a->plan->end_idx * a->geo->cluster_size;
  size_t i;
  int r = dedup_area_allocate_space (a->io, off, end - off);

  for (i = 0; i < FIRST_AREAS && r == 0; i++)
    r = dedup_area_write_zeroes (a->io, a->config->areas[i].host_off,
                                 a->config->journal_area_size);
  return r;
}

/* Writes the plan's changes as the journal's first group. */
static int
write_journal (struct adoption *a)
{
  size_t nr = a->plan->nr_changes, i, len;
  CLEANUP_FREE struct dedup_record *recs = calloc (nr + 1, sizeof *recs);
  CLEANUP_FREE uint8_t *buf = NULL;
  int r;

  if (recs == NULL)
    return -ENOMEM;
  for (i = 0; i < nr; i++)
    dedup_record_of_change (&a->plan->changes[i], &recs[i]);
  recs[nr].type = DEDUP_REC_END;
  r = dedup_journal_compose (a->config->store_id, a->config->epoch, 1, recs,
                             nr + 1, &buf, &len);
  if (r < 0)
    return r;
  if (len > a->config->journal_area_size)
    return -ENOSPC;
  return io_pwrite (a->io, buf, len, a->config->areas[0].host_off);
}

/* Clears the slot that the first configuration is not written to: on a device
 * it may have bytes of an older store. */
static int
clear_slot_0 (struct adoption *a)
{
  CLEANUP_FREE uint8_t *zero = aligned_zero_new (DEDUP_CONFIG_SLOT);

  if (zero == NULL)
    return -ENOMEM;
  return io_pwrite (a->io, zero, DEDUP_CONFIG_SLOT, a->ext.config_off);
}

static int
write_behind_end (struct adoption *a)
{
  int r;

  if ((r = allocate_all (a)) < 0 ||
      (r = clear_slot_0 (a)) < 0 ||
      (r = qcow2_plan_write (a->img, a->plan)) < 0 ||
      (r = write_journal (a)) < 0 ||
      (r = dedup_config_write (a->io, &a->ext, a->config)) < 0)
    return r;
  return io_sync (a->io);
}

/* Cuts the file off at its old SIZE: nothing refers to what was written behind
 * that. */
static void
cut_back (struct adoption *a, int64_t size)
{
  if (size >= 0 && io_truncate (a->io, (uint64_t) size) < 0)
    log_line (a->p->log, LOG_DEBUG, "%s: could not be shortened to its "
              "old size", a->p->path);
}

static int
adopt_image (struct adoption *a, struct fault *f)
{
  int64_t size = io_size (a->io);
  uint8_t ext[DEDUP_EXT_SIZE];
  int r;

  if ((r = choose_config (a, f)) < 0 ||
      (r = lay_out (a, f)) < 0)
    return r;
  dedup_ext_encode (&a->ext, ext);
  r = qcow2_plan_check_header (a->img, a->plan, ext, f);
  if (r < 0)
    return r;
  r = write_behind_end (a);
  if (r < 0) {
    cut_back (a, size);
    return fault_io (f, -r, UINT64_MAX, "cannot make the dedup store: %s",
                     strerror (-r));
  }
  return qcow2_plan_commit_header (a->img, a->plan, ext, f);
}

int
dedup_adopt (struct io_store *io, const struct dedup_open_params *p,
             struct fault *f)
{
  struct qcow2_open_params q = {
    .path = p->path, .writable = true, .log = p->log,
    .host_files = QCOW2_FILES_IGNORE,   /* nothing is read through it */
  };
  struct adoption a = { .io = io, .p = p };
  int r;

  r = qcow2_open (io, &q, &a.img, f);
  if (r < 0)
    return r;
  a.geo = qcow2_geometry (a.img);
  a.config = calloc (1, sizeof *a.config);
  r = a.config ? 0 : fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  if (r == 0)                   /* nothing is laid out over a table */
    r = qcow2_guard_begin (a.img, f);
  if (r == 0)                   /* the replay will need all of it */
    r = qcow2_anchor_load_all (a.img, f);
  if (r == 0)
    r = adopt_image (&a, f);
  qcow2_plan_free (a.plan);
  qcow2_close (a.img);
  free (a.config);
  return r;
}
