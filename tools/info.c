/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup info: counts what an image maps, stores and saves, and what its
 * index holds and costs.
 *
 * The image is opened read-only.  The journal of one that needs recovery is
 * replayed in memory, so that the numbers are those of the disk a client would
 * see.  They come from a walk over the active disk (those of the disks of a pool
 * are in pool-figures.c): mapped bytes are those of its data clusters, and stored
 * bytes those of the distinct host clusters behind them.  If some are compressed, the
 * tables of all disks are read again for what compression does.  Printing is in
 * info-print.c.
 */
#include "info.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The largest number of host clusters that are counted.  With one bit each they
 * take 1 GiB, of which only the pages with clusters in use are touched. */
#define MAX_HOST_CLUSTERS (UINT64_C (1) << 33)

#define EXTENTS 64              /* for one call of qcow2_map */

static void
help (void)
{
  printf ("qcow2-dedup info [--verbose] [--output=human|json] "
          "[--store=PATH] FILE\n"
          "\n"
          "Show how much data the image maps, stores and saves, and how large "
          "its index is.\nThe image is not changed.  If it was not closed, its "
          "journal is replayed in\nmemory.\n"
          "\n"
          "    -v, --verbose show also bytes, and statistics of the index\n"
          "    --store=PATH  the store file, for an image that is served with "
          "store=\n"
          "\n"
          "See qcow2-dedup-info(1).\n");
}

/* --- Counting ----------------------------------------------------------- */

static int
usage_init (struct dedup_pool *d, struct usage *u, struct fault *f)
{
  struct qcow2_image *img = dedup_image (d);
  struct lock *lock = qcow2_lock (img);

  lock_acquire (lock);
  u->nr_host = qcow2_frontier_locked (img);
  lock_release (lock);
  if (u->nr_host > MAX_HOST_CLUSTERS)
    return fault_unsupported (f, "the image is too large to be counted: it has "
                              "more than %" PRIu64 " host clusters",
                              MAX_HOST_CLUSTERS);
  u->seen = calloc (u->nr_host / 8 + 1, 1);
  if (!u->seen)
    return fault_io (f, ENOMEM, UINT64_MAX, "out of memory");
  return 0;
}

static void
count_host (struct usage *u, uint64_t host_idx)
{
  uint8_t bit = (uint8_t) (1u << (host_idx % 8));

  if (host_idx >= u->nr_host || (u->seen[host_idx / 8] & bit))
    return;
  u->seen[host_idx / 8] |= bit;
  u->data_clusters++;
}

static void
count_run (struct usage *u, uint64_t first, uint64_t count)
{
  uint64_t i;

  for (i = 0; i < count; i++)
    count_host (u, first + i);
}

static void
count_extent (struct usage *u, const struct qcow2_image *img,
              const struct qcow2_extent *e)
{
  const uint64_t cs = qcow2_geometry (img)->cluster_size;
  uint64_t nr = e->len / cs + (e->len % cs != 0), first, count;

  switch (e->kind) {
  case QCOW2_DATA:
    u->mapped_bytes += e->len;
    count_run (u, e->host_off / cs, nr);
    break;
  case QCOW2_ZERO:
    u->zero_clusters += nr;
    break;
  case QCOW2_COMPRESSED:
    u->mapped_bytes += e->len;
    u->compressed_clusters += nr;
    qcow2_entry_clusters (img, e->entry, &first, &count);
    count_run (u, first, count);
    break;
  case QCOW2_UNALLOCATED:
    break;
  }
}

static int
count_disk (struct dedup_pool *d, struct usage *u, struct fault *f)
{
  struct qcow2_image *img = dedup_image (d);
  const struct qcow2_geometry *g = qcow2_geometry (img);
  struct tool_progress progress = { .what = "Counting" };
  struct qcow2_extent ext[EXTENTS];
  uint64_t at = 0;
  int n = 0, i;

  while (n >= 0 && at < g->virtual_size) {
    tool_progress_step (&progress, at, g->virtual_size);
    n = qcow2_map (img, QCOW2_ROOT_ACTIVE, at, g->virtual_size - at, ext,
                   EXTENTS);
    for (i = 0; i < n; i++) {
      count_extent (u, img, &ext[i]);
      at = ext[i].guest_off + ext[i].len;
    }
  }
  tool_progress_clear (&progress);
  if (n < 0)
    return fault_io (f, -n, UINT64_MAX, "cannot read the L2 table for guest "
                     "offset %" PRIu64 ": %s", at, strerror (-n));
  return 0;
}

/* Loads the filters of the index, so that its memory is counted as it is while
 * the image is served.  A filter that cannot be loaded ends that without an
 * error. */
static void
load_filters (struct dedup_pool *d)
{
  while (dedup_due (d, NULL) & DEDUP_JOB_FILTERS)
    if (dedup_run (d, DEDUP_JOB_FILTERS) < 0)
      break;
}

static void
summarise (struct report *rep)
{
  uint64_t mapped = rep->usage.mapped_bytes;

  rep->stored_bytes = rep->usage.data_clusters * rep->geo->cluster_size;
  rep->saved_bytes = mapped > rep->stored_bytes
    ? mapped - rep->stored_bytes : 0;
  rep->ratio = rep->stored_bytes == 0 ? 0
    : (double) mapped / (double) rep->stored_bytes;
}

/* Fills REP.  WITH_LIVE_ENTRIES also reads data, to tell live entries of the
 * index from dead ones.  -errno with F filled. */
static int
collect (struct dedup_pool *d, const char *path, bool with_live_entries,
         struct report *rep, struct fault *f)
{
  struct stat st;
  int r;

  rep->path = path;
  rep->geo = qcow2_geometry (dedup_image (d));
  rep->no_disk = qcow2_anchor_was_applied (dedup_image (d));
  r = pool_figures_count (d, false, &rep->pool);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "cannot count the disks: %s",
                     strerror (-r));
  r = usage_init (d, &rep->usage, f);
  if (r == 0)
    r = count_disk (d, &rep->usage, f);
  if (r < 0)
    return r;
  if (rep->usage.compressed_clusters > 0 && !rep->pool.has_disks)
    r = pool_figures_count (d, true, &rep->pool);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "cannot count what is compressed: %s",
                     strerror (-r));
  load_filters (d);
  r = with_live_entries ? dedup_count_live_entries (d, &rep->live_entries) : 0;
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  dedup_get_stats (d, &rep->stats);
  if (stat (path, &st) == 0) {
    rep->actual_size = (uint64_t) st.st_blocks * 512;
    rep->is_device = S_ISBLK (st.st_mode);
  }
  summarise (rep);
  return 0;
}

/* --- Command ------------------------------------------------------------ */

static int
info_disk (struct dedup_pool *d, const struct tool_args *a)
{
  struct report rep = { 0 };
  struct fault f = { 0 };
  int r;

  r = collect (d, a->path, a->verbose || a->json, &rep, &f);
  if (r < 0)
    tool_fault (a->path, r, &f);
  else if (a->json)
    info_print_json (&rep);
  else
    info_print_human (&rep, a->verbose);
  free (rep.usage.seen);
  return tool_finish_stdout (r < 0 ? TOOL_FAILED : TOOL_OK);
}

static int
info_open (struct io_store *io, const struct tool_args *a)
{
  struct dedup_open_params p = {
    .path = a->path, .dedup = true, .verify = true, .max_incarnations = -1,
    .cache_bytes = TOOL_CACHE_BYTES, .log = &tool_log_errors,
    .host_files = QCOW2_FILES_IGNORE, .store_path = a->store_path,
    .no_disk_ok = true,
  };
  struct dedup_pool *d;
  struct fault f = { 0 };
  int r;

  r = tool_open_store (a->store_path, false, &p.store, &f);
  if (r == 0)
    r = dedup_open (io, &p, &d, &f);
  if (r < 0) {
    io_close (p.store);
    return tool_fault (a->path, r, &f);
  }
  r = info_disk (d, a);
  dedup_free (d);
  io_close (p.store);
  return r;
}

int
tool_info (int argc, char *argv[])
{
  struct tool_args a = { .subcommand = "info", .help = help,
                         .has_output = true, .has_verbose = true };

  return tool_on_image (argc, argv, &a, info_open);
}
