/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening and closing an image, and the small questions about an open one.
 *
 * Opening is a sequence of steps, each of which checks one part of the image
 * before the next relies on it.  It writes nothing, and what fails leaves
 * nothing behind.  After it the active L1 table, the refcount table and the
 * anchor's L1 table are whole in memory; everything else loads on demand.
 *
 * Where the tables lie is checked here, against the size of the file: a table
 * that reaches past the end is corrupt.  What the tables say is checked where
 * it is used.
 *
 * No threads: the image is handed out when it is complete.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "bitmap.h"
#include "checked.h"
#include "header-format.h"
#include "image.h"

/* --- Header --------------------------------------------------------- */

static int
read_first_cluster (struct qcow2_image *img, uint8_t **buf, size_t *len,
                    struct fault *f)
{
  uint8_t head[1 << QCOW2_MIN_CLUSTER_BITS];
  uint64_t cluster_size;
  int r;

  r = io_pread (img->io, head, sizeof head, 0);
  if (r == 0) {
    r = qcow2_header_cluster_size (head, &cluster_size, f);
    if (r < 0)
      return r;
    *len = cluster_size;                /* at most 2 MiB */
    *buf = aligned_new (*len);
    if (*buf == NULL)
      return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
    r = io_pread (img->io, *buf, *len, 0);
  }
  if (r < 0)
    return fault_io (f, -r, 0, "reading the header: %s", strerror (-r));
  return 0;
}

static int
read_header (struct qcow2_image *img, struct fault *f)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  int64_t size = io_size (img->io);
  size_t len;
  int r;

  if (size < 0)
    return fault_io (f, -size, UINT64_MAX, "its size cannot be read: %s",
                     strerror (-size));
  if (size == 0)
    return fault_corrupt (f, 0, "is an empty file, not a qcow2 image");
  img->file_size = size;
  r = read_first_cluster (img, &buf, &len, f);
  if (r < 0)
    return r;
  r = qcow2_header_decode (buf, len, &img->header, f);
  img->fields = img->header.fields;
  return r;
}

static int
check_recovery (const struct qcow2_image *img,
                const struct qcow2_open_params *params, struct fault *f)
{
  if ((img->header.geo.incompatible & QCOW2_INCOMPAT_RECOVERY) &&
      !params->allow_recovery)
    return fault_unsupported (f, "uses features that are not supported: %s",
                              QCOW2_RECOVERY_NAME);
  return 0;
}

/* --- Tables --------------------------------------------------------- */

/* Load NR entries at HOST_OFF.  An empty table is fine anywhere. */
static int
load_table (struct qcow2_image *img, struct qcow2_flat *t, uint64_t host_off,
            uint64_t nr, const char *what, struct fault *f)
{
  uint64_t end;
  int r;

  if (nr == 0)
    return 0;
  if (!add_u64 (host_off, nr * sizeof (be64), &end) || end > img->file_size)
    return fault_corrupt (f, host_off, "%s reaches past the end of the file",
                          what);
  r = qcow2_flat_load (img->io, t, host_off, nr);
  if (r < 0)
    return fault_io (f, -r, host_off, "reading the %s: %s", what,
                     strerror (-r));
  return 0;
}

static int
load_l1 (struct qcow2_image *img, struct fault *f)
{
  return load_table (img, &img->l1, img->header.l1_off,
                     img->header.l1_entries, "L1 table", f);
}

static int
load_reftable (struct qcow2_image *img, struct fault *f)
{
  uint64_t bytes =                      /* at most 8 MiB */
    img->fields.reftable_clusters * img->header.geo.cluster_size;

  return load_table (img, &img->reftable, img->fields.reftable_off,
                     bytes / sizeof (be64), "refcount table", f);
}

static int
load_anchor (struct qcow2_image *img, struct fault *f)
{
  uint64_t nr = img->fields.anchor_l1_entries;  /* at most 2^22 */

  if (nr > 0 && img->fields.anchor_l1_off == 0)
    return fault_corrupt (f, img->fields.snapshots_off, "L1 table offset of "
                          "the anchor snapshot is invalid");
  return load_table (img, &img->anchor.l1, img->fields.anchor_l1_off, nr,
                     "L1 table of the anchor snapshot", f);
}

static int
init_memory (struct qcow2_image *img, size_t cache_bytes, struct fault *f)
{
  int r;

  r = qcow2_cache_init (img, cache_bytes);
  if (r == 0)
    r = qcow2_alloc_init (img);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "%s", strerror (-r)) : 0;
}

/* A file below this one in a backing chain must have a disk. */
static int
check_has_disk (const struct qcow2_image *img, struct fault *f)
{
  if (img->depth == 0 || !qcow2_anchor_was_applied (img))
    return 0;
  return fault_corrupt (f, UINT64_MAX, "its anchor snapshot was applied to "
                        "the disk, whose tables are lost");
}

static int
open_backing (struct qcow2_image *img, struct fault *f)
{
  const struct qcow2_header *h = &img->header;

  if (!h->geo.has_backing || img->host_files == QCOW2_FILES_IGNORE)
    return 0;
  return qcow2_backing_open (img, h->backing_name, h->backing_format,
                             img->depth + 1, f);
}

/* --- Open and close ------------------------------------------------- */

static struct qcow2_image *
new_image (struct io_store *io, const struct qcow2_open_params *params,
           unsigned depth)
{
  struct qcow2_image *img = calloc (1, sizeof *img);

  if (img == NULL)
    return NULL;
  img->io = io;
  img->log_sink = params->log;
  img->writable = params->writable;
  img->host_files = params->host_files;
  img->depth = depth;
  img->snapshots.anchor = -1;
  lock_init (&img->lock);
  if (params->path && (img->path = strdup (params->path)) == NULL) {
    qcow2_close (img);
    return NULL;
  }
  return img;
}

int
qcow2_open_at_depth (struct io_store *io,
                     const struct qcow2_open_params *params, unsigned depth,
                     struct qcow2_image **out, struct fault *f)
{
  struct qcow2_image *img = new_image (io, params, depth);
  int r;

  if (img == NULL)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  if ((r = read_header (img, f)) < 0 ||
      (r = check_recovery (img, params, f)) < 0 ||
      (r = load_l1 (img, f)) < 0 ||
      (r = load_reftable (img, f)) < 0 ||
      (r = qcow2_snapshot_load (img, f)) < 0 ||
      (r = load_anchor (img, f)) < 0 ||
      (r = check_has_disk (img, f)) < 0 ||
      (r = qcow2_bitmaps_load (img, f)) < 0 ||
      (r = init_memory (img, params->cache_bytes, f)) < 0 ||
      (r = qcow2_data_file_open (img, f)) < 0 ||
      (r = open_backing (img, f)) < 0) {
    qcow2_close (img);
    return r;
  }
  *out = img;
  return 0;
}

int
qcow2_open (struct io_store *io, const struct qcow2_open_params *params,
            struct qcow2_image **out, struct fault *f)
{
  return qcow2_open_at_depth (io, params, 0, out, f);
}

void
qcow2_close (struct qcow2_image *img)
{
  if (img == NULL)
    return;
  qcow2_backing_close (img->backing);
  io_close (img->data);
  qcow2_bitmaps_free (img);
  qcow2_direct_free (img);
  qcow2_alloc_free (img);               /* with the anchor and the holds */
  qcow2_guard_free (img);
  qcow2_cache_free (img);
  qcow2_flat_free (&img->reftable);
  qcow2_flat_free (&img->l1);
  qcow2_snapshot_free (&img->snapshots);
  lock_destroy (&img->lock);
  free (img->path);
  free (img);
}

/* --- Questions ------------------------------------------------------ */

const struct qcow2_geometry *
qcow2_geometry (const struct qcow2_image *img)
{
  return &img->header.geo;
}

struct io_store *
qcow2_io (struct qcow2_image *img)
{
  return img->io;
}

struct io_store *
qcow2_data_io (struct qcow2_image *img)
{
  return img->data ? img->data : img->io;
}

struct lock *
qcow2_lock (struct qcow2_image *img)
{
  return &img->lock;
}

const uint8_t *
qcow2_store_extension (const struct qcow2_image *img)
{
  return img->header.has_store_ext ? img->header.store_ext : NULL;
}

bool
qcow2_has_anchor (const struct qcow2_image *img)
{
  return img->fields.anchor_l1_entries > 0;
}

size_t
qcow2_snapshots (const struct qcow2_image *img,
                 const struct qcow2_snapshot **out)
{
  *out = img->snapshots.v;
  return img->snapshots.nr;
}

/* --- Features of a session ------------------------------------------- */

int
qcow2_begin_session (struct qcow2_image *img)
{
  struct qcow2_geometry *g = &img->header.geo;
  be64 wire = be64_make (qcow2_kept_autoclear (img));
  int r = qcow2_bitmaps_begin (img);

  /* Also where the file seems to say so: see dirty-bitmaps.c on marks. */
  if (r < 0 || g->version < 3)
    return r;
  r = io_pwrite (img->io, &wire, sizeof wire,
                 offsetof (struct qcow2_wire_header, autoclear));
  if (r == 0)
    r = io_sync (img->io);
  if (r == 0)
    g->autoclear = be64_load (wire);
  return r;
}

/* --- The recovery bit ----------------------------------------------- */

/* One write covers all feature fields, so that the autoclear bits never
 * outlive the bit.  Law 1 and law 5 are the caller's; this makes the bit
 * durable before it returns. */
int
qcow2_set_recovery_bit (struct qcow2_image *img, bool on)
{
  struct qcow2_geometry *g = &img->header.geo;
  uint64_t bits = on ? g->incompatible | QCOW2_INCOMPAT_RECOVERY
    : g->incompatible & ~QCOW2_INCOMPAT_RECOVERY;
  be64 wire[3] = {
    be64_make (bits), be64_make (g->compatible),
    be64_make (qcow2_kept_autoclear (img))
  };
  int r;

  assert (img->writable && g->version >= 3);
  r = on ? qcow2_bitmaps_begin (img) : 0;
  if (r == 0 && on)
    r = qcow2_anchor_deter (img);
  if (r < 0)
    return r;
  r = io_pwrite (img->io, wire, on ? sizeof wire : sizeof wire[0],
                 offsetof (struct qcow2_wire_header, incompatible));
  if (r == 0 && !(on && mutation (MUTATION_LAW_1_NO_SYNC)))
    r = io_sync (img->io);
  if (r < 0)
    return r;
  LOCK_FOR_SCOPE (&img->lock);
  g->incompatible = bits;
  if (on)
    g->autoclear = be64_load (wire[2]);
  return 0;
}
