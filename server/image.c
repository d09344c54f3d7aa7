/* SPDX-License-Identifier: BSD-3-Clause */
/* An image: opens, recovers, starts and closes it as a whole.
 *
 * Owns the file and the store file, the pool on them (dedup.h), the exports with
 * their disks, and the loop, and releases them in the opposite order.
 * Opening starts no threads, so that a program may fork between srv_image_open
 * and srv_image_start.  A failed open removes the files that it created; no
 * other file is ever removed.
 *
 * Threads: any for srv_image_disk and srv_disk_put.  Left out on purpose:
 * requests that are in flight at close.  The caller has waited for them.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include "checked.h"
#include "clock.h"
#include "image-file.h"
#include "image-internal.h"
#include "unused-keys.h"

/* The default table cache has room for all L2 tables and refcount blocks: 8 and
 * 2 bytes a cluster, and a quarter more for clusters that are not the guest's
 * (the store, snapshots), within bounds that suit any machine. */
#define CACHE_BYTES_PER_CLUSTER 10
#define CACHE_MIN_BYTES (UINT64_C (32) << 20)
#define CACHE_MAX_BYTES (UINT64_C (1) << 30)

#define DEFAULT_CLUSTER_SIZE 4096
#define DEFAULT_COMMIT_INTERVAL_MS 5000
#define CLOSE_SETTLE_NS (UINT64_C (1) * 1000 * 1000 * 1000)

void
srv_image_params_default (struct srv_image_params *p)
{
  *p = (struct srv_image_params) {
    .create_size = -1,
    .cluster_size = DEFAULT_CLUSTER_SIZE,
    .dedup = true,
    .verify = true,
    .max_incarnations = -1,
    .l2_cache_bytes = -1,
    .commit_interval_ms = DEFAULT_COMMIT_INTERVAL_MS,
    .reconnect_delay = IO_RECONNECT_DELAY,
  };
}

static void
wake_cb (void *opaque)
{
  struct srv_image *m = opaque;

  if (m->loop)
    srv_loop_wake (m->loop);
}

static uint64_t
last_change_cb (const void *opaque)
{
  const struct srv_image *m = opaque;

  return __atomic_load_n (&m->exports.last_change_ns, __ATOMIC_RELAXED);
}

static int MUST_CHECK
parse_hash (const struct srv_image_params *p, enum dedup_hash_alg *alg,
            struct fault *f)
{
  *alg = DEDUP_HASH_SHA256;
  if (p->hash == NULL || dedup_hash_parse (p->hash, alg) == 0)
    return 0;
  return fault_usage (f, "hash=%s: must be " DEDUP_HASH_NAMES, p->hash);
}

static int MUST_CHECK
parse_compress (const struct srv_image_params *p, enum dedup_compress *compress,
                struct fault *f)
{
  *compress = DEDUP_COMPRESS_KEEP;
  if (p->compress == NULL || dedup_compress_parse (p->compress, compress) == 0)
    return 0;
  return fault_usage (f, "compress=%s: must be zstd, zlib or off", p->compress);
}

static int MUST_CHECK
parse_backing (const struct srv_image_params *p, enum qcow2_host_files *files,
               struct fault *f)
{
  *files = QCOW2_FILES_OFF;
  if (p->backing == NULL || qcow2_host_files_parse (p->backing, files) == 0)
    return 0;
  return fault_usage (f, "backing=%s: must be off, same-dir or any",
                      p->backing);
}

/* --- Disks ---------------------------------------------------------------- */

/* Starts to mark scattered units for defragmentation, if there is a store and the
 * image is open for writing. */
static int MUST_CHECK
begin_marks (struct srv_image *m)
{
  struct dedup_stats s;

  if (!m->writable)
    return 0;
  dedup_get_stats (m->pool, &s);
  if (s.has_store)
    return srv_scattered_init (&m->exports.active->scattered, m->pool);
  log_line (m->log, LOG_INFO, "%s: defragment=idle is not used: the image has "
            "no dedup store", m->path);
  return 0;
}

/* Tells that compress= has no effect on an image without a store, nor compress-when= where
 * nothing is compressed. */
static void
tell_of_compress (struct srv_image *m, const struct srv_image_params *p)
{
  struct dedup_stats s;

  if (p->compress_idle && m->writable && !dedup_compress_due (m->pool))
    log_line (m->log, LOG_INFO, "%s: compress-when=idle is not used: new data is not "
              "compressed", m->path);
  if (p->compress == NULL || !m->writable)
    return;
  dedup_get_stats (m->pool, &s);
  if (!s.has_store)
    log_line (m->log, LOG_INFO, "%s: compress=%s is not used: the image has no dedup "
              "store", m->path, p->compress);
}

/* Tells the listener that a client was refused.  Nobody needs to be let in for that, so
 * not all are told. */
static void
tell_refused (struct srv_image *m, const char *name, int err, const char *why)
{
  char reason[sizeof ((struct fault *) NULL)->msg + 48];
  uint64_t untold;

  if (!srv_event_may_pass (&m->refusals, &untold))
    return;
  if (untold > 0)
    snprintf (reason, sizeof reason, "%s (and %" PRIu64 " were refused before)", why,
              untold);
  else
    snprintf (reason, sizeof reason, "%s", why);
  srv_emit (m, &(struct srv_event) {
      .kind = SRV_EVENT_CLIENT_REFUSED, .name = name, .error = err,
      .reason = reason });
}

int
srv_image_disk (struct srv_image *m, const char *name, struct srv_disk **out,
                struct fault *f)
{
  struct fault own = { 0 };
  int r = srv_exports_get (&m->exports, name, out, f ? f : &own);

  if (r < 0)
    tell_refused (m, name, -r, f ? f->msg : own.msg);
  return r;
}

void
srv_disk_put (struct srv_image *m, struct srv_disk *d)
{
  srv_exports_put (&m->exports, d);
}

/* --- Open ----------------------------------------------------------------- */

/* Returns how many bytes all disks of IMG have together; without snapshots, which
 * are read less often, and share tables. */
static uint64_t
disk_bytes (const struct qcow2_image *img)
{
  const struct qcow2_snapshot *v;
  const size_t nr = qcow2_snapshots (img, &v);
  uint64_t bytes = qcow2_geometry (img)->virtual_size;

  for (size_t i = 0; i < nr; i++)
    if (v[i].is_disk && (v[i].disk_flags & QCOW2_DISK_WRITABLE) &&
        !add_u64 (bytes, v[i].disk_size, &bytes))
      return UINT64_MAX;
  return bytes;
}

/* Returns how large a cache holds all tables of IMG. */
static size_t
default_cache (const struct qcow2_image *img)
{
  const struct qcow2_geometry *g = qcow2_geometry (img);
  /* At most 2^55 clusters: this cannot overflow. */
  const uint64_t bytes = (CACHE_BYTES_PER_CLUSTER - 8 + g->l2_entry_size) *
    (disk_bytes (img) >> g->cluster_bits) * 5 / 4;

  return MIN_OF (MAX_OF (bytes, CACHE_MIN_BYTES), CACHE_MAX_BYTES);
}

static int MUST_CHECK
open_pool (struct srv_image *m, const struct srv_image_params *p,
           enum dedup_hash_alg hash, enum dedup_compress compress,
           enum qcow2_host_files host_files, struct fault *f)
{
  struct dedup_open_params op = {
    .path = m->path,
    .writable = !p->read_only,
    .dedup = p->dedup,
    .verify = p->verify,
    .compress = compress,
    .compress_later = p->compress_idle,
    .hash = hash,
    .hash_given = p->hash != NULL,
    .max_incarnations = p->max_incarnations,
    .index_memory = (uint64_t) p->index_memory,
    .host_files = host_files,
    .store = m->store,
    .store_path = p->store,
    .log = p->log,
    .wake = wake_cb,
    .opaque = m,
  };

  if (p->l2_cache_bytes < 0)
    op.choose_cache = default_cache;
  else
    op.cache_bytes = (size_t) p->l2_cache_bytes;
  return dedup_open (m->io, &op, &m->pool, f);
}

/* Opens the file, the store file and the pool on them.  *CREATED: the image is
 * new.  On error, files that were created are removed again. */
static int MUST_CHECK
open_files_and_pool (struct srv_image *m, const struct srv_image_params *p,
                     bool *created, struct fault *f)
{
  enum dedup_hash_alg hash;
  enum dedup_compress compress;
  enum qcow2_host_files host_files;
  bool store_created = false;
  int r;

  if ((r = parse_hash (p, &hash, f)) < 0 ||
      (r = parse_compress (p, &compress, f)) < 0 ||
      (r = parse_backing (p, &host_files, f)) < 0 ||
      (r = srv_image_file_open (p, hash, compress, &m->io, created, f)) < 0)
    return r;
  if (p->store)
    r = dedup_store_file_open (p->store, !p->read_only, &m->store,
                               &store_created, f);
  if (r >= 0)
    r = open_pool (m, p, hash, compress, host_files, f);
  if (r < 0 && *created)
    unlink (p->path);
  if (r < 0 && store_created)
    unlink (p->store);
  return r;
}

static void
free_image (struct srv_image *m)
{
  srv_jobs_destroy (&m->jobs);
  srv_exports_destroy (&m->exports);
  srv_clients_destroy (&m->clients);
  srv_watch_destroy (&m->watch);
  srv_meter_free (m->accounts.meter);
  if (m->pool)
    dedup_free (m->pool);
  io_close (m->store);
  io_close (m->io);
  free (m->path);
  free (m);
}

/* Sets up what counts and watches. */
static void
init_accounts (struct srv_image *m, const struct srv_image_params *p)
{
  m->opened_at = (uint64_t) time (NULL);
  m->opened_ns = clock_now_ns ();
  m->accounts.failed = srv_io_failed;
  m->accounts.opaque = m;
  m->exports.accounts = &m->accounts;
  m->space.listener = &m->listener;
  srv_clients_init (&m->clients);
  srv_watch_init (&m->watch, m, p->space_low_bytes);
}

static struct srv_image *
new_image (const struct srv_image_params *p)
{
  struct srv_image *m = calloc (1, sizeof *m);

  if (m == NULL)
    return NULL;
  m->path = strdup (p->path);
  m->accounts.meter = srv_meter_new ();
  if (m->path == NULL || m->accounts.meter == NULL) {
    srv_meter_free (m->accounts.meter);
    free (m->path);
    free (m);
    return NULL;
  }
  init_accounts (m, p);
  m->read_only_because = p->read_only ? p->read_only_because : NULL;
  m->commit_interval_ms = p->commit_interval_ms;
  m->index_existing = p->index_existing;
  m->dedup = p->dedup;
  m->log = p->log;
  m->space.path = m->path;
  m->space.log = m->log;
  srv_image_init_jobs (m, wake_cb);
  return m;
}

int
srv_image_open (const struct srv_image_params *p, struct srv_image **out,
                struct fault *f)
{
  struct srv_image *m = new_image (p);
  bool created = false;
  int r;

  if (m == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = open_files_and_pool (m, p, &created, f);
  if (r < 0) {
    fault_io (f, -r, UINT64_MAX, "cannot open it: %s", strerror (-r));
    free_image (m);
    return r;
  }
  m->writable = dedup_writable (m->pool);
  m->compaction.on = p->compact && m->writable;
  r = srv_exports_init (&m->exports, m->pool, m->writable, &m->space);
  if (r == 0 && p->defragment)
    r = begin_marks (m);
  if (r < 0) {
    free_image (m);
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  }
  tell_of_compress (m, p);
  if (!created)
    srv_log_unused_keys (p, m->exports.active);
  srv_log_unused_uri_keys (p);
  io_before_fork (m->io);
  m->before_fork = true;
  *out = m;
  return 0;
}

/* --- Start and close ------------------------------------------------------ */

static int MUST_CHECK
start_io (struct srv_image *m)
{
  int r = m->before_fork ? io_after_fork (m->io) : 0;

  if (r == 0)
    m->before_fork = false;
  return r;
}

static int MUST_CHECK
start_loop (struct srv_image *m)
{
  struct srv_loop_params p = {
    .pool = m->pool,
    .path = m->path,
    .log = m->log,
    .commit_interval_ms = m->commit_interval_ms,
    .last_change_ns = last_change_cb,
    .activity = m,
    .space = &m->space,
    .jobs = &m->jobs,
    .start_jobs = srv_image_jobs_due,
    .opaque = m,
  };
  int r;

  assert (m->loop == NULL);
  if (!m->writable)             /* nothing to do in the background */
    return 0;
  r = srv_image_start_jobs (m);
  return r < 0 ? r : srv_loop_start (&p, &m->loop);
}

int
srv_image_start (struct srv_image *m)
{
  int r = start_io (m);

  if (r == 0)
    r = start_loop (m);
  return r < 0 ? r : srv_watch_start (&m->watch);
}

/* Works on what clones and deletes left, for a second at the most, so that the
 * closed image is one that stock programs open, where that can be had. */
static void
settle_disks (struct srv_image *m)
{
  const uint64_t end = uv_hrtime () + CLOSE_SETTLE_NS;
  int r = 0;

  while (r == 0 && dedup_disks_pending (m->pool) && uv_hrtime () < end)
    r = dedup_run (m->pool, DEDUP_JOB_DISKS);
}

static void
log_close (struct srv_image *m, int r)
{
  if (r < 0)
    log_line (m->log, LOG_ERROR, "%s: not closed cleanly, will be recovered "
              "when it is opened next: %s", m->path, strerror (-r));
  else if (dedup_disks_pending (m->pool))
    log_line (m->log, LOG_INFO, "%s: closed while clones and deleted disks are "
              "still to be counted: the next server goes on, and other programs "
              "refuse the image until then (or run qcow2-dedup recover)",
              m->path);
  else
    log_line (m->log, LOG_INFO, "%s: closed cleanly", m->path);
}

int
srv_image_close (struct srv_image *m)
{
  int r = 0;

  if (m == NULL)
    return 0;
  srv_watch_stop (&m->watch);
  srv_jobs_let_sleep (&m->jobs);
  /* The last jobs may still call wake_cb, which needs the loop until they have
   * ended and must not find it afterwards. */
  srv_loop_stop (m->loop);
  m->loop = NULL;
  srv_jobs_stop (&m->jobs);
  if (m->writable) {
    r = start_io (m);           /* it may end before it has started */
    if (r == 0) {
      settle_disks (m);
      r = dedup_finish (m->pool);
    }
    if (r == 0)
      dedup_give_back_all (m->pool);
    dedup_log_stats (m->pool);
    log_close (m, r);
  }
  free_image (m);
  return r;
}

/* --- Properties ----------------------------------------------------------- */

bool
srv_image_writable (const struct srv_image *m)
{
  return m->writable;
}

void
srv_image_log_serving (struct srv_image *m)
{
  struct dedup_stats s;
  char exports[128], cluster[32], index[96];

  dedup_get_stats (m->pool, &s);
  index[0] = '\0';
  if (s.has_store)
    snprintf (index, sizeof index, ", %s index of %" PRIu64 " entries",
              dedup_hash_name (s.hash), s.index_entries);
  log_line (m->log, LOG_INFO, "%s: serving %s, clusters of %s%s%s%s%s%s",
            m->path, srv_describe_exports (m, exports, sizeof exports),
            srv_format_size (srv_disk_preferred_block (m->exports.active), cluster,
                         sizeof cluster), index,
            m->writable ? "" : ", read-only",
            m->read_only_because ? " because of " : "",
            m->read_only_because ? m->read_only_because : "",
            m->writable && !m->dedup ? ", dedup=off" : "");
}
