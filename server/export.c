/* SPDX-License-Identifier: BSD-3-Clause */
/* An open image as an export: opened, perhaps created, started, closed.
 *
 * Owns the byte store, the disk on it, the range lock and the loop, and lets
 * go of them in the opposite order.  Opening has no threads, so that a
 * program may fork between srv_open and srv_start.  What a failed open
 * created, it removes; nothing else is ever removed.
 *
 * Left out on purpose: what to do with requests that are under way at close.
 * The caller has none then.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "internal.h"

/* Room in the table cache for all L2 tables and refcount blocks: 8 and 2
 * bytes a cluster, a quarter more for what lies beyond the guest's clusters
 * (the store, snapshots), within bounds that suit any machine. */
#define CACHE_BYTES_PER_CLUSTER 10
#define CACHE_MIN_BYTES (UINT64_C (32) << 20)
#define CACHE_MAX_BYTES (UINT64_C (1) << 30)

/* Enough for the look at the geometry that the default is made from. */
#define PROBE_CACHE_BYTES (UINT64_C (1) << 20)

#define DEFAULT_CLUSTER_SIZE 4096
#define DEFAULT_COMMIT_INTERVAL_MS 5000
#define DEFAULT_REFCOUNT_ORDER 4      /* 16 bits, as qemu-img makes them */

void
srv_params_default (struct srv_params *p)
{
  *p = (struct srv_params) {
    .create_size = -1,
    .cluster_size = DEFAULT_CLUSTER_SIZE,
    .dedup = true,
    .verify = true,
    .max_incarnations = -1,
    .l2_cache_bytes = -1,
    .commit_interval_ms = DEFAULT_COMMIT_INTERVAL_MS,
  };
}

static void
wake_cb (void *opaque)
{
  struct srv_export *e = opaque;

  if (e->loop)
    srv_loop_wake (e->loop);
}

static int MUST_CHECK
parse_hash (const struct srv_params *p, enum dedup_hash_alg *alg,
            struct fault *f)
{
  *alg = DEDUP_HASH_SHA256;
  if (p->hash == NULL || dedup_hash_parse (p->hash, alg) == 0)
    return 0;
  return fault_usage (f, "hash=%s: must be " DEDUP_HASH_NAMES, p->hash);
}

static int MUST_CHECK
parse_backing (const struct srv_params *p, enum qcow2_host_files *files,
               struct fault *f)
{
  *files = QCOW2_FILES_OFF;
  if (p->backing == NULL || qcow2_host_files_parse (p->backing, files) == 0)
    return 0;
  return fault_usage (f, "backing=%s: must be off, same-dir or any",
                      p->backing);
}

/* --- Create -------------------------------------------------------------- */

static int MUST_CHECK
create_image (const struct srv_params *p, enum dedup_hash_alg hash,
              struct io_store **io, bool *named, struct fault *f)
{
  struct dedup_create_params c = {
    .image.virtual_size = p->create_size,
    .image.cluster_bits = __builtin_ctzll (p->cluster_size),
    .image.refcount_order = DEFAULT_REFCOUNT_ORDER,
    .hash = hash,
    .max_incarnations = MAX_OF (p->max_incarnations, 0),
  };
  int r;

  if (!is_pow2 (p->cluster_size) ||
      p->cluster_size < 512 || p->cluster_size > 2 << 20)
    return fault_usage (f, "cluster-size=%" PRIu64 ": must be a power of two "
                        "from 512 to 2M", p->cluster_size);
  r = dedup_make (p->path, &c, false, io, named, f);
  if (r < 0 && r != -EEXIST)
    fault_io (f, -r, UINT64_MAX, "cannot create it: %s", strerror (-r));
  return r;
}

/* What follows the reason why the image could not be opened, ERR (ENOENT: there
 * is none): which key helps, or "". */
static const char *
open_advice (const struct srv_params *p, int err)
{
  if (err == ENOENT && p->read_only && p->create_size >= 0)
    return ", and size= creates none, as it is opened read-only";
  if (err == ENOENT && !p->read_only)
    return ": size=SIZE creates an image";
  if ((err == EACCES || err == EPERM || err == EROFS) && !p->read_only &&
      faccessat (AT_FDCWD, p->path, R_OK, AT_EACCESS) == 0)
    return ": it can only be read: readonly=on serves it read-only";
  return "";
}

/* An empty file is no image either. */
static int MUST_CHECK
refuse_empty (struct io_store **io, struct fault *why)
{
  int64_t size = io_size (*io);

  if (size != 0)
    return 0;                   /* what it is, the format's room says */
  io_close (*io);
  *io = NULL;
  return fault_io (why, ENOENT, UINT64_MAX, "is an empty file");
}

static int MUST_CHECK
open_existing (const struct srv_params *p, struct io_store **io,
               struct fault *f)
{
  int flags = p->read_only ? 0 : IO_FILE_WRITE;
  enum io_file_lock lock = p->read_only ? IO_LOCK_READ : IO_LOCK_WRITE;
  struct fault why = { 0 };
  const char *advice;
  int r = io_file_open (p->path, flags, lock, io, &why);

  if (r == 0)
    r = refuse_empty (io, &why);
  if (r == 0)
    return 0;
  advice = open_advice (p, -r);
  if (*advice && p->read_only && p->read_only_because)
    return fault_set (f, why.kind, -r, UINT64_MAX, "%.300s%s because of %s",
                      why.msg, advice, p->read_only_because);
  return fault_set (f, why.kind, -r, UINT64_MAX, "%.400s%s", why.msg, advice);
}

/* An image that is there is opened, as is one that somebody else made in the
 * meantime. */
static int MUST_CHECK
open_file (const struct srv_params *p, enum dedup_hash_alg hash,
           struct io_store **io, bool *created, struct fault *f)
{
  *created = false;
  if (p->create_size >= 0 && !p->read_only) {
    int r = create_image (p, hash, io, created, f);

    if (r != -EEXIST)
      return r;
  }
  return open_existing (p, io, f);
}

/* --- Open ---------------------------------------------------------------- */

/* How large a cache holds all tables of this image? */
static int MUST_CHECK
default_cache (struct io_store *io, const struct srv_params *p,
               uint64_t *cache_bytes, struct fault *f)
{
  struct qcow2_open_params op = {
    .path = p->path, .allow_recovery = true, .cache_bytes = PROBE_CACHE_BYTES,
    .host_files = QCOW2_FILES_IGNORE,
  };
  struct qcow2_image *img;
  uint64_t bytes;
  int r = qcow2_open (io, &op, &img, f);

  if (r < 0)
    return r;
  /* At most 2^55 clusters: this cannot overflow. */
  bytes = (CACHE_BYTES_PER_CLUSTER - 8 + qcow2_geometry (img)->l2_entry_size) *
    qcow2_geometry (img)->nr_clusters * 5 / 4;
  *cache_bytes = MIN_OF (MAX_OF (bytes, CACHE_MIN_BYTES), CACHE_MAX_BYTES);
  qcow2_close (img);
  return 0;
}

static int MUST_CHECK
open_disk (struct srv_export *e, const struct srv_params *p,
           enum dedup_hash_alg hash, enum qcow2_host_files host_files,
           struct fault *f)
{
  struct dedup_open_params op = {
    .path = e->path,
    .writable = !p->read_only,
    .dedup = p->dedup,
    .verify = p->verify,
    .hash = hash,
    .hash_given = p->hash != NULL,
    .max_incarnations = p->max_incarnations,
    .index_memory = (uint64_t) p->index_memory,
    .host_files = host_files,
    .store = e->store,
    .store_path = p->store,
    .log = p->log,
    .wake = wake_cb,
    .opaque = e,
  };
  uint64_t cache_bytes = p->l2_cache_bytes;

  if (p->l2_cache_bytes < 0) {
    int r = default_cache (e->io, p, &cache_bytes, f);

    if (r < 0)
      return r;
  }
  op.cache_bytes = cache_bytes;
  return dedup_open (e->io, &op, &e->disk, f);
}

static void
note_geometry (struct srv_export *e)
{
  const struct qcow2_geometry *g = qcow2_geometry (dedup_image (e->disk));

  e->cluster_bits = g->cluster_bits;
  e->nr_clusters = g->nr_clusters;
  e->size_bytes = g->virtual_size;
}

static void
free_export (struct srv_export *e)
{
  if (e->disk)
    dedup_free (e->disk);
  io_close (e->store);
  io_close (e->io);
  srv_range_lock_destroy (&e->ranges);
  srv_read_ahead_destroy (&e->read_ahead);
  free (e->names);
  free (e->path);
  free (e);
}

static struct srv_export *
new_export (const struct srv_params *p)
{
  struct srv_export *e = calloc (1, sizeof *e);

  if (e == NULL)
    return NULL;
  e->path = strdup (p->path);
  if (e->path == NULL) {
    free (e);
    return NULL;
  }
  e->writable = !p->read_only;
  e->read_only_because = p->read_only ? p->read_only_because : NULL;
  e->commit_interval_ms = p->commit_interval_ms;
  e->index_existing = p->index_existing;
  e->dedup = p->dedup;
  e->log = p->log;
  srv_range_lock_init (&e->ranges);
  e->space.path = e->path;
  e->space.log = e->log;
  srv_read_ahead_init (&e->read_ahead);
  return e;
}

int
srv_open (const struct srv_params *p, struct srv_export **out,
          struct fault *f)
{
  enum dedup_hash_alg hash;
  enum qcow2_host_files host_files;
  struct srv_export *e;
  bool created = false, store_created = false;
  int r;

  if ((r = parse_hash (p, &hash, f)) < 0 ||
      (r = parse_backing (p, &host_files, f)) < 0)
    return r;
  e = new_export (p);
  if (e == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  r = open_file (p, hash, &e->io, &created, f);
  if (r >= 0) {
    if (p->store)
      r = dedup_store_file_open (p->store, !p->read_only, &e->store,
                                 &store_created, f);
    if (r >= 0)
      r = open_disk (e, p, hash, host_files, f);
    if (r < 0 && created)
      unlink (p->path);
    if (r < 0 && store_created)
      unlink (p->store);
  }
  if (r < 0) {
    fault_io (f, -r, UINT64_MAX, "cannot open it: %s", strerror (-r));
    free_export (e);
    return r;
  }
  e->writable = dedup_writable (e->disk);
  note_geometry (e);
  r = srv_names_init (e);
  if (r < 0) {
    free_export (e);
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  }
  if (!created)
    srv_say_unused_keys (e, p);
  *out = e;
  return 0;
}

/* --- Start and close ----------------------------------------------------- */

int
srv_start (struct srv_export *e)
{
  struct srv_loop_params p = {
    .disk = e->disk,
    .path = e->path,
    .log = e->log,
    .commit_interval_ms = e->commit_interval_ms,
    .last_change_ns = &e->last_change_ns,
    .space = &e->space,
    .step = e->index_existing ? srv_existing_background : NULL,
    .step_opaque = e,
  };

  assert (e->loop == NULL);
  if (!e->writable)             /* nothing to do in the background */
    return 0;
  return srv_loop_start (&p, &e->loop);
}

int
srv_close (struct srv_export *e)
{
  struct srv_loop *loop;
  int r = 0;

  if (e == NULL)
    return 0;
  /* The last jobs may still call wake_cb: it needs the loop until they are
   * done, and finds none afterwards. */
  loop = e->loop;
  srv_loop_stop (loop);
  e->loop = NULL;
  if (e->writable) {
    r = dedup_finish (e->disk);
    if (r == 0)
      dedup_give_back_all (e->disk);
    dedup_log_stats (e->disk);
    if (r < 0)
      log_line (e->log, LOG_ERROR, "%s: not closed cleanly, will be recovered "
                "when it is opened next: %s", e->path, strerror (-r));
  }
  free_export (e);
  return r;
}

/* "20 GiB", or bytes where that is no whole number. */
static const char *
format_size (uint64_t bytes, char *buf, size_t len)
{
  static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB",
                                       "PiB", "EiB" };
  size_t i = 0;

  while (bytes > 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    i++;
  }
  snprintf (buf, len, "%" PRIu64 " %s", bytes, units[i]);
  return buf;
}

void
srv_log_serving (struct srv_export *e)
{
  struct dedup_stats s;
  char size[32], cluster[32], index[96];

  dedup_get_stats (e->disk, &s);
  index[0] = '\0';
  if (s.has_store)
    snprintf (index, sizeof index, ", %s index of %" PRIu64 " entries",
              dedup_hash_name (s.hash), s.index_entries);
  log_line (e->log, LOG_INFO, "%s: serving a disk of %s, clusters of %s%s%s%s%s"
            "%s",
            e->path, format_size (e->size_bytes, size, sizeof size),
            format_size (UINT64_C (1) << e->cluster_bits, cluster,
                         sizeof cluster), index,
            e->writable ? "" : ", read-only",
            e->read_only_because ? " because of " : "",
            e->read_only_because ? e->read_only_because : "",
            e->writable && !e->dedup ? ", dedup=off" : "");
}

/* --- Properties ---------------------------------------------------------- */

uint64_t
srv_size (const struct srv_export *e)
{
  return e->size_bytes;
}

bool
srv_writable (const struct srv_export *e)
{
  return e->writable;
}

uint32_t
srv_preferred_block (const struct srv_export *e)
{
  return UINT32_C (1) << e->cluster_bits;
}
