/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints the figures of a report as JSON: all that the page draws, exactly, and of
 * all disks.
 *
 * Sizes are in bytes.  Pairs and the map are arrays of numbers, whose order is
 * given beside them.  One thread.
 */
#include "report.h"

#include <jansson.h>

static void
set_bytes (json_t *o, const char *key, const struct pool_report *rep,
           enum qcow2_survey_kind kind)
{
  disk_json_set (o, key, rep->s.nr[kind] * rep->s.cluster_size);
}

static json_t *
space_of (const struct pool_report *rep)
{
  json_t *o = json_object ();

  set_bytes (o, "data-bytes", rep, QCOW2_SURVEY_DATA);
  disk_json_set (o, "exclusive-bytes", rep->exclusive_bytes);
  disk_json_set (o, "shared-bytes", rep->pool.u.stored_bytes -
                 rep->exclusive_bytes);
  set_bytes (o, "table-bytes", rep, QCOW2_SURVEY_TABLE);
  set_bytes (o, "store-bytes", rep, QCOW2_SURVEY_STORE);
  set_bytes (o, "unused-bytes", rep, QCOW2_SURVEY_UNUSED);
  set_bytes (o, "free-bytes", rep, QCOW2_SURVEY_FREE);
  disk_json_set (o, "free-runs", rep->s.free_runs);
  disk_json_set (o, "largest-free-run-bytes",
                 rep->s.largest_free_run * rep->s.cluster_size);
  return o;
}

static json_t *
host_of (const struct pool_report *rep)
{
  json_t *o = json_object ();

  disk_json_set (o, "file-bytes", rep->s.nr_clusters * rep->s.cluster_size);
  if (!rep->is_device)
    disk_json_set (o, "actual-size", rep->actual_bytes);
  if (rep->s.holes_known)
    disk_json_set (o, "hole-bytes", rep->s.hole_bytes);
  if (rep->host_known) {
    disk_json_set (o, "host-bytes", rep->host_bytes);
    disk_json_set (o, "host-free-bytes", rep->host_free_bytes);
  }
  return o;
}

/* Sets the name of the root with number I; that of the active disk is "". */
static void
set_name (json_t *o, const char *key, const struct pool_report *rep, size_t i)
{
  disk_json_set_string (o, key, rep->s.roots[i].root == QCOW2_ROOT_ACTIVE ? ""
                        : rep->names[i]);
}

static json_t *
disk_of (const struct pool_report *rep, size_t i)
{
  const struct qcow2_survey_root *r = &rep->s.roots[i];
  json_t *o = json_object ();

  set_name (o, "name", rep, i);
  disk_json_set_string (o, "type", rep->types[i]);
  disk_json_set (o, "virtual-size", r->u.virtual_bytes);
  disk_json_set (o, "mapped-bytes", r->u.mapped_bytes);
  disk_json_set (o, "exclusive-bytes", r->u.exclusive_bytes);
  disk_json_set (o, "table-bytes", r->u.table_bytes);
  if (r->shared_known)
    disk_json_set (o, "shared-bytes", r->u.shared_bytes);
  disk_json_set (o, "runs", r->runs);
  disk_json_set (o, "group", r->group);
  return o;
}

static json_t *
disks_of (const struct pool_report *rep)
{
  json_t *v = json_array ();
  size_t i;

  for (i = 0; i < rep->s.nr_roots; i++)
    json_array_append_new (v, disk_of (rep, i));
  return v;
}

static json_t *
pairs_of (const struct pool_report *rep)
{
  json_t *v = json_array (), *row;
  unsigned a, b;

  for (a = 0; a < rep->s.nr_groups; a++) {
    row = json_array ();
    for (b = 0; b < rep->s.nr_groups; b++)
      json_array_append_new (row, json_integer ((json_int_t)
        (rep->s.pair[a][b] * rep->s.cluster_size)));
    json_array_append_new (v, row);
  }
  return v;
}

static json_t *
references_of (const struct pool_report *rep)
{
  json_t *v = json_array (), *o;
  unsigned k;

  for (k = 0; k < QCOW2_SURVEY_BUCKETS; k++) {
    if (rep->s.references[k].clusters == 0)
      continue;
    o = json_object ();
    disk_json_set (o, "at-least", k ? (UINT64_C (1) << (k - 1)) + 1 : 1);
    disk_json_set (o, "at-most", UINT64_C (1) << k);
    disk_json_set (o, "clusters", rep->s.references[k].clusters);
    disk_json_set (o, "references", rep->s.references[k].references);
    json_array_append_new (v, o);
  }
  return v;
}

static json_t *
cell_of (const struct qcow2_survey_cell *c, uint64_t cluster_size)
{
  static const enum qcow2_survey_kind order[] = {
    QCOW2_SURVEY_DATA, QCOW2_SURVEY_TABLE, QCOW2_SURVEY_STORE,
    QCOW2_SURVEY_UNUSED, QCOW2_SURVEY_FREE,
  };
  json_t *v = json_array ();
  size_t k;

  for (k = 0; k < sizeof order / sizeof order[0]; k++)
    json_array_append_new (v, json_integer ((json_int_t)
      (c->nr[order[k]] * cluster_size)));
  json_array_append_new (v, json_integer ((json_int_t) c->hole_bytes));
  return v;
}

static json_t *
map_of (const struct pool_report *rep)
{
  static const char *const columns[] = {
    "data-bytes", "table-bytes", "store-bytes", "unused-bytes", "free-bytes",
    "hole-bytes",
  };
  json_t *o = json_object (), *names = json_array (), *cells = json_array ();
  size_t i;

  for (i = 0; i < sizeof columns / sizeof columns[0]; i++)
    json_array_append_new (names, json_string (columns[i]));
  for (i = 0; i < rep->s.nr_cells; i++)
    json_array_append_new (cells, cell_of (&rep->s.cells[i],
                                           rep->s.cluster_size));
  disk_json_set (o, "cell-bytes", rep->s.cell_clusters * rep->s.cluster_size);
  json_object_set_new (o, "columns", names);
  json_object_set_new (o, "cells", cells);
  return o;
}

static json_t *
tables_of (const struct pool_report *rep)
{
  json_t *v = json_array (), *o;
  size_t i;

  for (i = 0; i < rep->nr_tables; i++) {
    const struct dedup_index_table *t = &rep->tables[i];

    o = json_object ();
    disk_json_set_string (o, "type", t->is_run ? "run" : "incarnation");
    disk_json_set (o, "level", t->level);
    disk_json_set (o, "segments", t->segments);
    disk_json_set (o, "entries", t->entries);
    disk_json_set (o, "tombstones", t->tombstones);
    disk_json_set (o, "bytes", t->disk_bytes);
    json_object_set_new (o, "merging", json_boolean (t->merging));
    json_array_append_new (v, o);
  }
  return v;
}

static json_t *
growth_of (const struct pool_report *rep)
{
  json_t *v = json_array (), *o;
  size_t i;

  for (i = 0; i < rep->nr_samples; i++) {
    const struct dedup_sample *s = &rep->samples[i];

    o = json_object ();
    disk_json_set (o, "time", s->time);
    disk_json_set (o, "logical-bytes", s->logical_bytes);
    disk_json_set (o, "stored-bytes", s->stored_bytes);
    if (s->free_bytes != UINT64_MAX)
      disk_json_set (o, "free-bytes", s->free_bytes);
    json_array_append_new (v, o);
  }
  return v;
}

static json_t *
place_of (const struct pool_report *rep, const struct report_place *p)
{
  json_t *o = json_object ();

  set_name (o, "disk", rep, p->root_nr);
  disk_json_set (o, "offset", p->guest_off);
  disk_json_set (o, "length", p->len);
  disk_json_set (o, "host-offset", p->host_off);
  return o;
}

static json_t *
scrub_of (const struct pool_report *rep)
{
  json_t *o = json_object (), *v = json_array (), *places = json_array ();
  size_t i;

  for (i = 0; i < rep->nr_places; i++)
    json_array_append_new (places, place_of (rep, &rep->places[i]));
  for (i = 0; i < rep->nr_bad; i++)
    json_array_append_new (v, json_integer ((json_int_t) rep->bad[i]));
  json_object_set_new (o, "unfinished", json_boolean (rep->scrub.unfinished));
  disk_json_set (o, "position", rep->scrub.position);
  json_object_set_new (o, "bad", v);
  json_object_set_new (o, "places", places);
  disk_json_set (o, "places-not-listed", rep->nr_more_places);
  return o;
}

static json_t *
index_of (const struct pool_report *rep)
{
  const struct dedup_stats *s = &rep->stats;
  json_t *o = json_object ();

  disk_json_set_string (o, "hash", dedup_hash_name (s->hash));
  disk_json_set (o, "index-entries", s->index_entries);
  disk_json_set (o, "log-store-entries", s->log_store_entries);
  disk_json_set (o, "tombstones", s->tombstones);
  disk_json_set (o, "index-memory-bytes", s->index_memory_bytes);
  disk_json_set (o, "index-disk-bytes", s->index_disk_bytes);
  disk_json_set (o, "journal-bytes", s->journal_bytes);
  disk_json_set (o, "lookups", s->all_lookups.lookups);
  disk_json_set (o, "hits", s->all_lookups.hits);
  disk_json_set (o, "hint-hits", s->all_lookups.guessed);
  json_object_set_new (o, "tables", tables_of (rep));
  return o;
}

void
report_json (const struct pool_report *rep, FILE *fp)
{
  json_t *o = json_object (), *pool = json_object ();

  disk_json_set_string (o, "filename", rep->path);
  disk_json_set (o, "time", (uint64_t) rep->when);
  disk_json_set (o, "cluster-size", rep->s.cluster_size);
  pool_figures_set (pool, &rep->pool);
  json_object_set_new (o, "pool", pool);
  json_object_set_new (o, "host", host_of (rep));
  json_object_set_new (o, "space", space_of (rep));
  json_object_set_new (o, "disks", disks_of (rep));
  json_object_set_new (o, "pairs-bytes", pairs_of (rep));
  json_object_set_new (o, "references", references_of (rep));
  json_object_set_new (o, "growth", growth_of (rep));
  json_object_set_new (o, "map", map_of (rep));
  json_object_set_new (o, "scrub", scrub_of (rep));
  json_object_set_new (o, "index", rep->stats.has_store ? index_of (rep)
                       : json_null ());
  json_dumpf (o, fp, JSON_INDENT (1) | JSON_PRESERVE_ORDER);
  fputc ('\n', fp);
  json_decref (o);
}
