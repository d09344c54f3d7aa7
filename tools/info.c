/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup info: what an image maps, stores and saves, and what its index
 * holds and costs.
 *
 * The image is opened read-only; one that needs recovery is replayed in
 * memory, so that the numbers are those of the disk a client would see.
 * They are counted by walking the active disk: mapped bytes are those of its
 * data clusters, stored bytes the distinct host clusters behind them.
 * Compressed clusters are counted apart: they are not shared by content.
 */
#include "tool.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dedup.h"

/* One bit per host cluster: 1 GiB of bits, of which only the pages of used
 * clusters are touched. */
#define MAX_HOST_CLUSTERS (UINT64_C (1) << 33)

#define EXTENTS 64

struct usage {
  uint64_t mapped_bytes, data_clusters;
  uint64_t zero_clusters, compressed_clusters;
  uint64_t nr_host;           /* host clusters that have a bit */
  uint8_t *seen;              /* owned */
};

struct report {
  const char *path;
  const struct qcow2_geometry *geo;
  struct usage usage;
  struct dedup_stats stats;
  struct dedup_census census;
  uint64_t stored_bytes, saved_bytes, actual_size;
  double ratio;               /* mapped / stored; 0 while nothing is stored */
};

static void
help (void)
{
  printf ("qcow2-dedup info [--output=human|json] [--store=PATH] FILE\n"
          "\n"
          "Tell what the image maps, stores and saves, and what its index "
          "costs.\nChanges nothing; an image that was not closed is replayed "
          "in memory.\n"
          "\n"
          "See qcow2-dedup-info(1).\n");
}

/* --- Counting ------------------------------------------------------------- */

static int
usage_init (struct dedup_disk *d, struct usage *u, struct fault *f)
{
  struct qcow2_image *img = dedup_image (d);
  struct lock *lock = qcow2_lock (img);

  lock_acquire (lock);
  u->nr_host = qcow2_frontier_locked (img);
  lock_release (lock);
  if (u->nr_host > MAX_HOST_CLUSTERS)
    return fault_unsupported (f, "too large: more than %" PRIu64
                              " host clusters", MAX_HOST_CLUSTERS);
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
count_extent (struct usage *u, const struct qcow2_extent *e, uint64_t cs)
{
  uint64_t nr = e->len / cs + (e->len % cs != 0), i;

  switch (e->kind) {
  case QCOW2_DATA:
    u->mapped_bytes += e->len;
    for (i = 0; i < nr; i++)
      count_host (u, e->host_off / cs + i);
    break;
  case QCOW2_ZERO:
    u->zero_clusters += nr;
    break;
  case QCOW2_COMPRESSED:
    u->compressed_clusters += nr;
    break;
  case QCOW2_UNALLOCATED:
    break;
  }
}

static int
count_disk (struct dedup_disk *d, struct usage *u, struct fault *f)
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
      count_extent (u, &ext[i], g->cluster_size);
      at = ext[i].guest_off + ext[i].len;
    }
  }
  tool_progress_clear (&progress);
  if (n < 0)
    return fault_io (f, -n, UINT64_MAX, "cannot read the table for guest "
                     "offset %" PRIu64 ": %s", at, strerror (-n));
  return 0;
}

/* The index costs what it costs while it is served: with its filters. */
static void
load_filters (struct dedup_disk *d)
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

static int
collect (struct dedup_disk *d, const char *path, struct report *rep,
         struct fault *f)
{
  struct stat st;
  int r;

  rep->path = path;
  rep->geo = qcow2_geometry (dedup_image (d));
  r = usage_init (d, &rep->usage, f);
  if (r == 0)
    r = count_disk (d, &rep->usage, f);
  if (r < 0)
    return r;
  load_filters (d);
  r = dedup_take_census (d, &rep->census);
  if (r < 0)
    return fault_io (f, -r, UINT64_MAX, "out of memory");
  dedup_get_stats (d, &rep->stats);
  rep->actual_size = stat (path, &st) == 0
    ? (uint64_t) st.st_blocks * 512 : 0;
  summarise (rep);
  return 0;
}

/* --- Output --------------------------------------------------------------- */

static const char *
state (const struct report *rep)
{
  return rep->stats.needs_recovery ? "needs recovery" : "clean";
}

static void
print_bytes (const char *label, uint64_t bytes)
{
  char human[32];

  printf ("%-18s %s (%" PRIu64 " bytes)\n", label,
          tool_human (bytes, human), bytes);
}

static void
print_census (const struct report *rep)
{
  const struct dedup_census *c = &rep->census;

  printf ("%-18s %" PRIu64 " live, %" PRIu64 " dead", "of them:", c->live,
          c->dead);
  if (c->looked_at < rep->stats.index_entries)
    printf (", estimated by %" PRIu64, c->looked_at);
  printf ("\n");
}

static double
share (uint64_t n, uint64_t of)
{
  return of ? (double) n / (double) of : 0;
}

/* Of all sessions; what is read includes what filters had read in vain. */
static void
print_lookups (const struct dedup_lookups *l)
{
  const uint64_t misses = l->hits < l->lookups ? l->lookups - l->hits : 0;

  printf ("%-18s %" PRIu64 ", %" PRIu64 " hits (%.2f %%); %" PRIu64
          " more found by hints\n", "lookups:", l->lookups, l->hits,
          100 * share (l->hits, l->lookups), l->guessed);
  printf ("%-18s %.4f a hit, %.4f a miss; filters were wrong %" PRIu64
          " times (%.4f a lookup)\n", "index reads:",
          share (l->hit_reads, l->hits), share (l->miss_reads, misses),
          l->false_positives, share (l->false_positives, l->lookups));
}

static void
print_store (const struct report *rep)
{
  const struct dedup_stats *s = &rep->stats;
  char limit[40] = "no limit";

  if (s->max_incarnations)
    snprintf (limit, sizeof limit, "at most %" PRIu64, s->max_incarnations);
  printf ("%-18s %s\n", "hash:", dedup_hash_name (s->hash));
  printf ("%-18s %" PRIu64 ": %" PRIu64 " in log stores, %" PRIu64 " in "
          "incarnations, %" PRIu64 " in runs; %" PRIu64 " tombstones\n",
          "index entries:", s->index_entries, s->log_store_entries,
          s->incarnation_entries, s->run_entries, s->tombstones);
  print_census (rep);
  printf ("%-18s %" PRIu64 " (%s)\n", "incarnations:", s->nr_incarnations,
          limit);
  printf ("%-18s %" PRIu64 "\n", "runs:", s->nr_runs);
  print_bytes ("index in memory:", s->index_memory_bytes);
  print_bytes ("index on disk:", s->index_disk_bytes);
  print_lookups (&s->all_lookups);
  print_bytes ("journal:", s->journal_bytes);
}

static void
print_human (const struct report *rep)
{
  printf ("%-18s %s\n", "image:", rep->path);
  print_bytes ("virtual size:", rep->geo->virtual_size);
  print_bytes ("actual size:", rep->actual_size);
  print_bytes ("cluster size:", rep->geo->cluster_size);
  print_bytes ("mapped:", rep->usage.mapped_bytes);
  print_bytes ("stored:", rep->stored_bytes);
  print_bytes ("saved:", rep->saved_bytes);
  printf ("%-18s %.2f\n", "ratio:", rep->ratio);
  printf ("%-18s %" PRIu64 " data, %" PRIu64 " zero, %" PRIu64
          " compressed\n", "clusters:", rep->usage.data_clusters,
          rep->usage.zero_clusters, rep->usage.compressed_clusters);
  printf ("%-18s %s\n", "state:", state (rep));
  if (rep->stats.has_store)
    print_store (rep);
  else
    printf ("%-18s no store\n", "deduplication:");
}

static void
set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer ((json_int_t) v));
}

static void
set_store (json_t *o, const struct report *rep)
{
  const struct dedup_stats *s = &rep->stats;

  json_object_set_new (o, "hash", json_string (dedup_hash_name (s->hash)));
  set (o, "index-entries", s->index_entries);
  set (o, "log-store-entries", s->log_store_entries);
  set (o, "incarnation-entries", s->incarnation_entries);
  set (o, "run-entries", s->run_entries);
  set (o, "live-entries", rep->census.live);
  set (o, "dead-entries", rep->census.dead);
  set (o, "entries-looked-at", rep->census.looked_at);
  set (o, "tombstones", s->tombstones);
  set (o, "incarnations", s->nr_incarnations);
  set (o, "runs", s->nr_runs);
  set (o, "max-incarnations", s->max_incarnations);
  set (o, "log-store-order", s->order);
  set (o, "index-memory-bytes", s->index_memory_bytes);
  set (o, "index-disk-bytes", s->index_disk_bytes);
  set (o, "journal-bytes", s->journal_bytes);
  set (o, "lookups", s->all_lookups.lookups);
  set (o, "hits", s->all_lookups.hits);
  set (o, "hint-hits", s->all_lookups.guessed);
  set (o, "hit-reads", s->all_lookups.hit_reads);
  set (o, "miss-reads", s->all_lookups.miss_reads);
  set (o, "false-positives", s->all_lookups.false_positives);
}

static void
print_json (const struct report *rep)
{
  json_t *o = json_object ();

  json_object_set_new (o, "filename", json_string (rep->path));
  json_object_set_new (o, "format", json_string ("qcow2"));
  set (o, "virtual-size", rep->geo->virtual_size);
  set (o, "actual-size", rep->actual_size);
  set (o, "cluster-size", rep->geo->cluster_size);
  set (o, "mapped-bytes", rep->usage.mapped_bytes);
  set (o, "stored-bytes", rep->stored_bytes);
  set (o, "saved-bytes", rep->saved_bytes);
  json_object_set_new (o, "ratio", json_real (rep->ratio));
  set (o, "data-clusters", rep->usage.data_clusters);
  set (o, "zero-clusters", rep->usage.zero_clusters);
  set (o, "compressed-clusters", rep->usage.compressed_clusters);
  json_object_set_new (o, "state", json_string (state (rep)));
  json_object_set_new (o, "store", json_boolean (rep->stats.has_store));
  if (rep->stats.has_store)
    set_store (o, rep);
  json_dumpf (o, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (o);
}

/* --- Command -------------------------------------------------------------- */

static int
info_disk (struct dedup_disk *d, const struct tool_args *a)
{
  struct report rep = { 0 };
  struct fault f = { 0 };
  int r;

  r = collect (d, a->path, &rep, &f);
  if (r < 0)
    tool_fault (a->path, r, &f);
  else if (a->json)
    print_json (&rep);
  else
    print_human (&rep);
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
  };
  struct dedup_disk *d;
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
                         .has_output = true };

  return tool_on_image (argc, argv, &a, info_open);
}
