/* SPDX-License-Identifier: BSD-3-Clause */
/* How qcow2-dedup info prints its report: as JSON all of it, for people first
 * what the disk takes and saves, then the index in one line, and the rest with
 * --verbose only.
 *
 * The names of JSON fields are an interface: qcow2-dedup-info(1).
 */
#include "info.h"

#include <inttypes.h>
#include <jansson.h>

static const char *
state (const struct report *rep)
{
  if (rep->no_disk)
    return "the anchor was applied, the disk is lost";
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

void
info_print_json (const struct report *rep)
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

/* --- For people ----------------------------------------------------------- */

static void
print_label (const char *label)
{
  printf ("%-15s", label);
}

/* EXACT: the number of bytes, too. */
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
  printf (", %.0f %% of what is mapped\n",
          100 * share (rep->saved_bytes, mapped));
  print_label ("ratio:");
  if (rep->stored_bytes > 0)
    printf ("%.2f\n", rep->ratio);
  else
    printf ("none, as nothing is stored\n");
  if (!rep->is_device)
    print_line ("on the host:", rep->actual_size, exact);
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
print_census (const struct report *rep)
{
  const struct dedup_census *c = &rep->census;

  print_label ("  of use:");
  printf ("%" PRIu64 " live, %" PRIu64 " dead", c->live, c->dead);
  if (c->looked_at < rep->stats.index_entries)
    printf (", estimated by %" PRIu64, c->looked_at);
  putchar ('\n');
}

/* What was known of the clusters that were written, in all sessions.  Hints
 * are asked before the index, so the index is asked for what they don't find:
 * its hits alone say little, and are not shown without the hints'. */
static void
print_known (const struct dedup_lookups *l)
{
  const uint64_t all = l->guessed + l->lookups;
  const uint64_t known = l->guessed + l->hits;

  print_label ("writes:");
  printf ("%" PRIu64 " clusters looked for, %.2f %% known: %" PRIu64
          " to hints, %" PRIu64 " to the index; %" PRIu64 " new\n", all,
          100 * share (known, all), l->guessed, l->hits,
          all > known ? all - known : 0);
}

/* What is read includes what filters had read in vain. */
static void
print_reads (const struct dedup_lookups *l)
{
  const uint64_t misses = l->hits < l->lookups ? l->lookups - l->hits : 0;

  print_label ("index reads:");
  printf ("%.4f pages for what it knows, %.4f for what it does not; filters "
          "were wrong %" PRIu64 " times (%.4f a lookup)\n",
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
  print_census (rep);
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
  print_known (&s->all_lookups);
  print_reads (&s->all_lookups);
  print_line ("journal:", s->journal_bytes, true);
}

void
info_print_human (const struct report *rep, bool verbose)
{
  print_label ("image:");
  printf ("%s\n", rep->path);
  print_space (rep, verbose);
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
