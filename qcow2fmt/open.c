/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens and closes an image, and sets the feature bits of a session in its
 * header.
 *
 * Opening is a sequence of steps, each of which checks one part of the image
 * before the next relies on it.  It writes nothing, and a failure leaves
 * nothing behind.  After it the active L1 table, the refcount table and the
 * anchor's L1 table are whole in memory; everything else is loaded on demand.
 *
 * The places of the tables are checked here, against the size of the file: a
 * table that reaches past the end is corrupt.  Their entries are checked where
 * they are used.
 *
 * Opening and closing are single-threaded: the image is returned when it is
 * complete.  When the recovery bit is set or cleared (law 1 and law 5) is left
 * to the caller.
 */
#include <errno.h>
#include <string.h>

#include "aligned.h"
#include "bitset.h"
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

/* Loads a table of NR entries at HOST_OFF.  An empty table is valid
 * anywhere. */
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
init_memory (struct qcow2_image *img, const struct qcow2_open_params *params,
             struct fault *f)
{
  int r;

  r = qcow2_cache_init (img, params->choose_cache ? params->choose_cache (img)
                        : params->cache_bytes);
  if (r == 0)
    r = qcow2_anchor_resize (img, 0);
  if (r == 0)
    r = qcow2_alloc_init (img);
  return r < 0 ? fault_io (f, -r, UINT64_MAX, "%s", strerror (-r)) : 0;
}

/* Refuses a backing file whose anchor was applied to the disk, as then it has
 * no disk.  An image that is no backing file is not checked here. */
static int
check_has_disk (const struct qcow2_image *img, struct fault *f)
{
  if (img->depth == 0 || !qcow2_anchor_was_applied (img))
    return 0;
  return fault_corrupt (f, UINT64_MAX, "its anchor snapshot was applied to "
                        "the disk, whose tables are lost");
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
  qcow2_expanded_init (img);
  qcow2_readers_init (img);
  qcow2_decoders_init (img);
  if (params->path && (img->path = strdup (params->path)) == NULL) {
    qcow2_close (img);
    return NULL;
  }
  return img;
}

static int
init_disks (struct qcow2_image *img, struct fault *f)
{
  if (qcow2_disks_init (img) < 0)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  return 0;
}

static int
open_at_depth (struct io_store *io, const struct qcow2_open_params *params,
               unsigned depth, struct qcow2_image **out, struct fault *f);

static int
open_qcow2_backing (struct qcow2_image *img, const char *path, struct fault *f)
{
  struct qcow2_backing *b = img->backing;
  const struct qcow2_open_params params = {
    .path = path, .cache_bytes = QCOW2_BACKING_CACHE_BYTES,
    .host_files = img->host_files, .log = img->log_sink,
  };
  int r = open_at_depth (b->io, &params, img->depth + 1, &b->img, f);

  if (r == 0)
    b->size = b->img->header.geo.virtual_size;
  return r;
}

/* Opens the backing chain below IMG, by recursion: one level for each file. */
static int
open_backing (struct qcow2_image *img, struct fault *f)
{
  const struct qcow2_header *h = &img->header;
  CLEANUP_FREE char *path = NULL;
  struct fault below = { 0 };
  bool is_qcow2 = false;
  int r;

  if (!h->geo.has_backing || img->host_files == QCOW2_FILES_IGNORE)
    return 0;
  if (img->depth >= QCOW2_MAX_BACKING_DEPTH)
    return fault_unsupported (f, "the backing chain is deeper than %d files, "
                              "or a loop", QCOW2_MAX_BACKING_DEPTH);
  r = qcow2_backing_open (img, &path, &is_qcow2, &below);
  if (r == 0 && is_qcow2)
    r = open_qcow2_backing (img, path, &below);
  return r < 0 ? fault_set (f, below.kind, -r, UINT64_MAX, "backing file "
                            "%.160s: %s", h->backing_name, below.msg) : 0;
}

static int
open_at_depth (struct io_store *io, const struct qcow2_open_params *params,
               unsigned depth, struct qcow2_image **out, struct fault *f)
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
      (r = init_disks (img, f)) < 0 ||
      (r = qcow2_bitmaps_load (img, f)) < 0 ||
      (r = init_memory (img, params, f)) < 0 ||
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
  return open_at_depth (io, params, 0, out, f);
}

static void
close_backing (struct qcow2_backing *b)
{
  if (b == NULL)
    return;
  qcow2_close (b->img);
  io_close (b->io);
  free (b);
}

void
qcow2_close (struct qcow2_image *img)
{
  if (img == NULL)
    return;
  close_backing (img->backing);
  io_close (img->data);
  qcow2_bitmaps_free (img);
  qcow2_unlogged_free (img);
  qcow2_verify_free (img);
  qcow2_alloc_free (img);
  qcow2_holds_free (img);
  qcow2_expanded_free (img);
  qcow2_readers_destroy (img);
  qcow2_decoders_free (img);
  qcow2_disks_free (img);
  qcow2_anchor_free (img);
  qcow2_guard_free (&img->guard);
  qcow2_cache_free (img);
  qcow2_flat_free (&img->reftable);
  qcow2_flat_free (&img->l1);
  qcow2_snapshot_free (&img->snapshots);
  lock_destroy (&img->lock);
  free (img->path);
  free (img);
}

/* --- Features of a session ------------------------------------------- */

int
qcow2_begin_session (struct qcow2_image *img)
{
  struct qcow2_geometry *g = &img->header.geo;
  be64 wire = be64_make (qcow2_kept_autoclear (img));
  int r = qcow2_bitmaps_begin (img);

  /* Written even if the file seems to have it: see dirty-bitmaps.c on marks. */
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

/* Sets or clears the recovery bit in the file, and makes that durable before
 * it returns; law 1 and law 5 are the caller's.  One write sets all feature
 * fields, so that an autoclear bit that no longer holds is never in the file
 * together with the recovery bit. */
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
