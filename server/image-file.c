/* SPDX-License-Identifier: BSD-3-Clause */
/* The file of an image: opens and locks it, or creates it.
 *
 * Most errors here are about paths and permissions, so their messages name the
 * key that helps.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "image-file.h"

/* As little as tables that are read once need. */
#define REHEARSAL_CACHE_BYTES (UINT64_C (1) << 20)

#define DEFAULT_REFCOUNT_ORDER 4      /* 16 bits, as qemu-img makes them */

static int MUST_CHECK
create_image (const struct srv_image_params *p, enum dedup_hash_alg hash,
              enum dedup_compress compress,
              struct io_store **io, bool *named, struct fault *f)
{
  struct dedup_create_params c = {
    .image.virtual_size = p->create_size,
    .image.cluster_bits = __builtin_ctzll (p->cluster_size),
    .image.refcount_order = DEFAULT_REFCOUNT_ORDER,
    .hash = hash, .compress = compress,
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

/* Returns what a message adds to the reason why opening failed with ERR: the
 * key that helps, or "". */
static const char *
open_advice (const struct srv_image_params *p, int err)
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

/* Refuses an empty file with ENOENT, as if the image were missing.  Not a device without
 * bytes, as size= makes no image there. */
static int MUST_CHECK
refuse_empty (struct io_store **io, struct fault *why)
{
  int64_t size = io_size (*io);

  if (size != 0 || io_max_size (*io) != UINT64_MAX)
    return 0;                   /* qcow2fmt checks what it holds */
  io_close (*io);
  *io = NULL;
  return fault_io (why, ENOENT, UINT64_MAX, "is an empty file");
}

/* Reads from IO what opening the image reads, as far as that changes nothing. */
static void
rehearse_open (void *opaque, struct io_store *io)
{
  const struct srv_image_params *p = opaque;
  const struct dedup_open_params op = {
    .path = p->path, .writable = true, .dedup = p->dedup, .verify = p->verify,
    .max_incarnations = p->max_incarnations, .index_memory = (uint64_t) p->index_memory,
    .host_files = QCOW2_FILES_IGNORE, .cache_bytes = REHEARSAL_CACHE_BYTES,
  };
  struct dedup_pool *pool = NULL;
  struct fault f = { 0 };

  if (dedup_open (io, &op, &pool, &f) == 0)
    dedup_free (pool);
}

static int MUST_CHECK
open_existing (const struct srv_image_params *p, struct io_store **io,
               struct fault *f)
{
  const struct io_place_params place = {
    .place = p->path, .log = p->log,
    .flags = (p->read_only ? 0 : IO_FILE_WRITE) |
      (p->lease ? IO_PLACE_LEASE : 0),
    .lock = p->read_only ? IO_LOCK_READ : IO_LOCK_WRITE,
    .reconnect_delay = p->reconnect_delay, .connections = p->connections,
    .fenced = p->fenced,
    .rehearse = rehearse_open, .opaque = (void *) p,
  };
  struct fault why = { 0 };
  const char *advice;
  int r = io_place_open_with (&place, io, &why);

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

/* Takes the lease of an image that was just created.  If another server has
 * been faster, the file is its image now, and is not to be removed. */
static int MUST_CHECK
lease_new (const struct srv_image_params *p, struct io_store **io,
           bool *created, struct fault *f)
{
  int r = io_place_lease (p->path, p->lease ? IO_PLACE_LEASE : 0, p->log, io,
                          f);

  if (r < 0)
    *created = false;
  return r;
}

/* Opens an image that exists already, also if another process has just made it
 * (-EEXIST). */
int
srv_image_file_open (const struct srv_image_params *p, enum dedup_hash_alg hash,
                     enum dedup_compress compress, struct io_store **io, bool *created, struct fault *f)
{
  *created = false;
  if (p->create_size >= 0 && !p->read_only) {
    int r = create_image (p, hash, compress, io, created, f);

    if (r == 0 && io_is_uri (p->path)) {
      io_close (*io);           /* it was opened as for any program */
      return open_existing (p, io, f);
    }
    if (r == 0)
      r = lease_new (p, io, created, f);
    if (r != -EEXIST)
      return r;
  }
  return open_existing (p, io, f);
}
