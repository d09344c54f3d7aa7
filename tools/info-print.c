/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup info: prints the report that info.c has filled.
 *
 * As JSON the whole report is printed.  For people the space of the disk comes
 * first, then the index in one line, and everything else only with --verbose.
 * The names of the JSON fields are an interface, described in
 * qcow2-dedup-info(1).
 */
#include "disk.h"
#include "info.h"

#include <inttypes.h>
#include <jansson.h>

static const char *
state (const struct report *rep)
{
  if (rep->no_disk)
    return "the anchor was applied, the disk is lost";
  if (rep->stats.closed_with_work)
    return "closed, references of clones are still to be counted";
  return rep->stats.needs_recovery ? "needs recovery" : "clean";
}

/* --- JSON ----------------------------------------------------------------- */

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
  set (o, "live-entries", rep->live_entries.live);
  set (o, "dead-entries", rep->live_entries.dead);
  set (o, "entries-looked-at", rep->live_entries.looked_at);
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

void
info_print_json (const struct report *rep)
{
  json_t *o = json_object ();

  disk_json_set_string (o, "filename", rep->path);
  json_object_set_new (o, "format", json_string ("qcow2"));
  if (rep->pool.has_disks) {
    json_t *pool = json_object ();

    pool_figures_set (pool, &rep->pool);
    json_object_set_new (o, "pool", pool);
  }
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
  if (!rep->pool.has_disks)
    pool_figures_set_compression (o, &rep->pool);
  json_object_set_new (o, "state", json_string (state (rep)));
  json_object_set_new (o, "store", json_boolean (rep->stats.has_store));
  if (rep->stats.has_store)
    set_store (o, rep);
  json_dumpf (o, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (o);
}

/* --- For people ----------------------------------------------------------- */

static void
print_label (const char *label)
{
  printf ("%-15s", label);
}

/* Prints BYTES with a unit and, if EXACT, also in full. */
static void
print_bytes (const char *label, uint64_t bytes, bool exact)
{
  char human[32];

  print_label (label);
  printf ("%s", tool_human (bytes, human));
  if (exact)
    printf (" (%" PRIu64 " bytes)", bytes);
}

static void
print_line (const char *label, uint64_t bytes, bool exact)
{
  print_bytes (label, bytes, exact);
  putchar ('\n');
}

static double
share (uint64_t n, uint64_t of)
{
  return of ? (double) n / (double) of : 0;
}

static void
print_space (const struct report *rep, bool exact)
{
  const uint64_t mapped = rep->usage.mapped_bytes;
  char human[32];

  print_line ("virtual size:", rep->geo->virtual_size, exact);
  print_line ("mapped:", mapped, exact);
  print_bytes ("stored:", rep->stored_bytes, exact);
  printf (", in clusters of %s\n",
          tool_human (rep->geo->cluster_size, human));
  print_bytes ("saved:", rep->saved_bytes, exact);
  printf (", %.0f %% of the mapped data\n",
          100 * share (rep->saved_bytes, mapped));
  print_label ("ratio:");
  if (rep->stored_bytes > 0)
    printf ("%.2f\n", rep->ratio);
  else
    printf ("none, because nothing is stored\n");
}

/* Prints the figures of the disks of a pool, and those of its active disk only if
 * that is used. */
static void
print_pool (const struct report *rep, bool exact)
{
  print_label ("pool:");
  printf ("%" PRIu64 " disks, %" PRIu64 " snapshots\n", rep->pool.nr_disks,
          rep->pool.nr_snapshots);
  pool_figures_print (&rep->pool);
  if (rep->usage.mapped_bytes == 0)
    return;
  print_label ("active disk:");
  printf ("is used, too:\n");
  print_space (rep, exact);
}

static void
print_index (const struct report *rep)
{
  const struct dedup_stats *s = &rep->stats;
  char memory[32], disk[32];

  print_label ("index:");
  if (s->has_store)
    printf ("%" PRIu64 " entries, %s of memory, %s on disk\n",
            s->index_entries, tool_human (s->index_memory_bytes, memory),
            tool_human (s->index_disk_bytes, disk));
  else
    printf ("none: the image is not deduplicated\n");
}

static void
print_live_entries (const struct report *rep)
{
  const struct dedup_live_entries *c = &rep->live_entries;

  print_label ("  liveness:");
  printf ("%" PRIu64 " live, %" PRIu64 " dead", c->live, c->dead);
  if (c->looked_at < rep->stats.index_entries)
    printf (", estimated from a sample of %" PRIu64, c->looked_at);
  putchar ('\n');
}

/* Prints how many of the clusters written in all sessions were found.  Hints
 * are asked first, and the index only for the clusters that they do not find.
 * So the hits of the index say little without those of the hints beside them.
 * */
static void
print_found (const struct dedup_lookups *l)
{
  const uint64_t all = l->guessed + l->lookups;
  const uint64_t found = l->guessed + l->hits;

  print_label ("writes:");
  printf ("%" PRIu64 " clusters looked up, %.2f %% found: %" PRIu64
          " by hints, %" PRIu64 " in the index; %" PRIu64 " new\n", all,
          100 * share (found, all), l->guessed, l->hits,
          all > found ? all - found : 0);
}

/* Prints the pages read per lookup, those for false positives included. */
static void
print_reads (const struct dedup_lookups *l)
{
  const uint64_t misses = l->hits < l->lookups ? l->lookups - l->hits : 0;

  print_label ("index reads:");
  printf ("%.4f pages a hit, %.4f pages a miss; %" PRIu64 " false positives "
          "(%.4f a lookup)\n",
          share (l->hit_reads, l->hits), share (l->miss_reads, misses),
          l->false_positives, share (l->false_positives, l->lookups));
}

static void
print_details (const struct report *rep)
{
  const struct dedup_stats *s = &rep->stats;

  print_label ("  entries:");
  printf ("%" PRIu64 " in log stores, %" PRIu64 " in incarnations, %" PRIu64
          " in runs; %" PRIu64 " tombstones\n", s->log_store_entries,
          s->incarnation_entries, s->run_entries, s->tombstones);
  print_live_entries (rep);
  print_label ("  tables:");
  printf ("%" PRIu64 " runs, %" PRIu64 " incarnations", s->nr_runs,
          s->nr_incarnations);
  if (s->max_incarnations)
    printf (" of at most %" PRIu64, s->max_incarnations);
  putchar ('\n');
  print_line ("  in memory:", s->index_memory_bytes, true);
  print_line ("  on disk:", s->index_disk_bytes, true);
  print_label ("hash:");
  printf ("%s\n", dedup_hash_name (s->hash));
  print_found (&s->all_lookups);
  print_reads (&s->all_lookups);
  print_line ("journal:", s->journal_bytes, true);
}

void
info_print_human (const struct report *rep, bool verbose)
{
  print_label ("image:");
  printf ("%s\n", rep->path);
  if (rep->pool.has_disks)
    print_pool (rep, verbose);
  else {
    print_space (rep, verbose);
    pool_figures_print_compression (&rep->pool);
  }
  if (!rep->is_device)
    print_line ("on the host:", rep->actual_size, verbose);
  print_index (rep);
  if (verbose && rep->stats.has_store)
    print_details (rep);
  if (verbose) {
    print_label ("clusters:");
    printf ("%" PRIu64 " data, %" PRIu64 " zero, %" PRIu64 " compressed\n",
            rep->usage.data_clusters, rep->usage.zero_clusters,
            rep->usage.compressed_clusters);
  }
  print_label ("state:");
  printf ("%s\n", state (rep));
}
