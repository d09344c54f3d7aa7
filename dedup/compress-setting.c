/* SPDX-License-Identifier: BSD-3-Clause */
/* Decides whether new data is compressed: the setting of the image, in the configuration,
 * and those of disks, in the snapshot table, which come before it.
 *
 * An image has one compression type, so a disk records only that its data is compressed,
 * or is not.  Whatever is set, the configuration allows records of compressed data before
 * the first of them is written (docs/on-disk.md 3.1, version 6).
 *
 * Threads: dedup_set_compress is called at open; the others on any, without locks.
 */
#include "fresh.h"
#include "pool.h"

#include <errno.h>
#include <string.h>

static const char *const compress_names[] = {
  [DEDUP_COMPRESS_OFF] = "off",
  [DEDUP_COMPRESS_ZLIB] = "zlib",
  [DEDUP_COMPRESS_ZSTD] = "zstd",
};

int
dedup_compress_parse (const char *name, enum dedup_compress *c)
{
  size_t i;

  for (i = DEDUP_COMPRESS_OFF; i <= DEDUP_COMPRESS_ZSTD; i++)
    if (strcmp (name, compress_names[i]) == 0) {
      *c = (enum dedup_compress) i;
      return 0;
    }
  return -EINVAL;
}

const char *
dedup_compress_name (enum dedup_compress c)
{
  return compress_names[c];
}

/* Returns why new data in this image is not compressed as ASKED, NULL if it can be.
 * Many references to one host cluster need refcounts of 16 bits (write/pack.c). */
static const char *
cannot_compress (const struct dedup_pool *pool, enum dedup_compress asked)
{
  const struct qcow2_geometry *g = qcow2_geometry (pool->base.img);

  if (asked == DEDUP_COMPRESS_ZLIB && g->compression_type != 0)
    return "its compression type is zstd";
  if (asked == DEDUP_COMPRESS_ZSTD && g->compression_type != 1)
    return "its compression type is zlib";
  return g->refcount_bits < 16 ? "its refcounts have less than 16 bits"
    : g->cluster_size < 1024 ? "its clusters have only 512 bytes"
    : !pool->writer.dedup ? "it is not deduplicated" : NULL;
}

static int
refuse (enum dedup_compress asked, const char *why, struct fault *f)
{
  return fault_usage (f, "compress=%s cannot be used with this image: %s",
                      compress_names[asked], why);
}

/* --- The image ----------------------------------------------------------------- */

static bool
a_disk_says_on (struct dedup_pool *pool)
{
  LOCK_FOR_SCOPE (pool->base.lock);

  return qcow2_nr_compress_on_locked (pool->base.img) > 0;
}

/* Records the setting, and that there may be compressed data. */
static int
record (struct dedup_pool *pool, bool on, bool may_pack)
{
  struct dedup_config *c = pool->store.config;
  int r;

  if (on == c->compress && may_pack <= c->may_pack)
    return 0;
  c->compress = on;
  c->may_pack = c->may_pack || may_pack;
  r = dedup_config_commit (&pool->store);
  return r == -ENOSPC ? 0       /* owed: until then new data is stored plain (pack.c) */
    : r;
}

int
dedup_set_compress (struct dedup_pool *pool, enum dedup_compress asked, bool later,
                    struct fault *f)
{
  struct dedup_pack *p = &pool->writer.pack;
  const char *why = cannot_compress (pool, asked);
  const bool on = asked == DEDUP_COMPRESS_KEEP ? pool->store.config->compress
    : asked != DEDUP_COMPRESS_OFF;
  int r;

  if (asked > DEDUP_COMPRESS_OFF && why)
    return refuse (asked, why, f);
  p->able = !why;
  p->on = on && !why;
  p->rewrites_only = later;
  dedup_set_may_pack (&pool->store);    /* as it was read */
  r = record (pool, on, on || (!why && a_disk_says_on (pool)));
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "writing the store's configuration: %s",
                     strerror (-r));
  if (later && p->able && (pool->fresh = dedup_fresh_new ()) == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  return 0;
}

/* --- A disk -------------------------------------------------------------------- */

/* Lets the configuration allow compressed data. */
static int
allow_packing (struct dedup_pool *pool)
{
  int r;

  dedup_maintenance_begin (&pool->upkeep);
  r = dedup_gate_failed (&pool->store.gate);
  if (r == 0)
    r = record (pool, pool->store.config->compress, true);
  dedup_maintenance_end (&pool->upkeep);
  return r;
}

/* Marks what the disk holds: it is compressed later, where that is wanted. */
static void
note_plain_data (struct dedup_pool *pool, unsigned root)
{
  uint64_t size;

  lock_acquire (pool->base.lock);
  size = qcow2_root_size_locked (pool->base.img, root);
  lock_release (pool->base.lock);
  if (size > 0)
    dedup_fresh_note (pool->fresh, root, 0, ((size - 1) >> pool->base.cluster_bits) + 1);
}

int
dedup_disk_set_compress (struct dedup_pool *pool, unsigned root,
                         enum dedup_compress compress, struct fault *f)
{
  const uint8_t value = compress == DEDUP_COMPRESS_KEEP ? QCOW2_COMPRESS_AS_IMAGE
    : compress == DEDUP_COMPRESS_OFF ? QCOW2_COMPRESS_OFF : QCOW2_COMPRESS_ON;
  const char *why = cannot_compress (pool, compress);
  int r;

  if (value == QCOW2_COMPRESS_ON && why)
    return refuse (compress, why, f);
  r = dedup_disks_set_compress (&pool->disks, root, value, f);
  if (r == 0 && value == QCOW2_COMPRESS_ON) {
    r = allow_packing (pool);
    if (r < 0)
      return fault_io (f, -r, UINT64_MAX, "writing the store's configuration: %s",
                       strerror (-r));
  }
  if (r == 0 && value != QCOW2_COMPRESS_OFF)
    note_plain_data (pool, root);
  return r;
}

enum dedup_compress
dedup_compress_said (const struct dedup_pool *pool, unsigned says, bool *own)
{
  return dedup_disks_compress (&pool->disks, says, own);
}

enum dedup_compress
dedup_disk_compress (struct dedup_pool *pool, unsigned root, bool *own)
{
  bool is_own;
  LOCK_FOR_SCOPE (pool->base.lock);

  return dedup_compress_said (pool, qcow2_root_compress_locked (pool->base.img, root),
                              own ? own : &is_own);
}
