/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints figures of a server in Prometheus' text format.
 *
 * Names and units follow Prometheus' conventions: base units (bytes, seconds, ratios
 * from 0 to 1) at the end of a name, _total behind counters, one HELP and one TYPE line
 * a metric, all lines of a metric together.  What a server does not know is left out,
 * and not 0.
 *
 * The histograms have the upper bounds of the server's buckets, from 1 us to 2 s: the
 * shorter ones are counted together.
 */
#include "metrics-print.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "disk-line.h"

#define PREFIX "nbdkit_dedup_"
#define FIRST_BUCKET 9          /* up to 1024 ns */
#define LAST_BUCKET (LATENCY_BUCKETS - 2)       /* the last one has no upper bound */

struct metrics {
  FILE *to;
  const char *image;            /* or NULL */
};

/* --- Lines ---------------------------------------------------------------- */

static void
head (const struct metrics *m, const char *name, const char *type,
      const char *help)
{
  fprintf (m->to, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", name, help,
           name, type);
}

static void
put (const struct metrics *m, const char *s)
{
  fputs_unlocked (s, m->to);
}

/* Prints a label's value in quotes. */
static void
put_quoted (const struct metrics *m, const char *s)
{
  size_t run;

  put (m, "\"");
  for (; *s; s += run + (s[run] != '\0')) {
    run = strcspn (s, "\n\"\\");
    fwrite_unlocked (s, 1, run, m->to);
    if (s[run] != '\0')
      put (m, s[run] == '\n' ? "\\n" : s[run] == '"' ? "\\\"" : "\\\\");
  }
  put (m, "\"");
}

struct label {
  const char *name, *value;     /* NAME NULL: none */
};

static const struct label none;

/* Prints the labels of a sample: IMAGE, and A and B.  Returns whether there are any, and
 * the bracket is to be closed. */
static bool
put_labels (const struct metrics *m, struct label a, struct label b)
{
  const struct label all[] = { { m->image ? "image" : NULL, m->image }, a, b };
  const char *between = "{";

  for (unsigned i = 0; i < 3; i++)
    if (all[i].name) {
      put (m, between);
      put (m, all[i].name);
      put (m, "=");
      put_quoted (m, all[i].value);
      between = ",";
    }
  return between[0] == ',';
}

/* Prints the name of a sample and its labels. */
static void
begin_sample (const struct metrics *m, const char *name, struct label a,
              struct label b)
{
  put (m, PREFIX);
  put (m, name);
  put (m, put_labels (m, a, b) ? "} " : " ");
}

/* Prints a value and the end of the line. */
static void
put_value (const struct metrics *m, uint64_t value)
{
  char s[24], *p = s + sizeof s;

  *--p = '\n';
  do
    *--p = (char) ('0' + value % 10);
  while ((value /= 10) > 0);
  fwrite_unlocked (p, 1, (size_t) (s + sizeof s - p), m->to);
}

static void
sample_2 (const struct metrics *m, const char *name, struct label a,
          struct label b, uint64_t value)
{
  begin_sample (m, name, a, b);
  put_value (m, value);
}

static void
sample_real (const struct metrics *m, const char *name, struct label a,
             struct label b, double value)
{
  begin_sample (m, name, a, b);
  fprintf (m->to, "%.15g\n", value);
}

/* --- One metric, one sample ----------------------------------------------- */

struct metric {
  const char *name, *type, *key, *help;
};

/* Prints those of NR metrics whose member O has. */
static void
put_all (const struct metrics *m, const json_t *o, const struct metric *v,
         size_t nr)
{
  for (size_t i = 0; i < nr; i++)
    if (figure_known (o, v[i].key)) {
      head (m, v[i].name, v[i].type, v[i].help);
      sample_2 (m, v[i].name, none, none, figure (o, v[i].key));
    }
}

#define NR_OF(v) (sizeof (v) / sizeof (v)[0])

static void
put_space (const struct metrics *m, const json_t *space)
{
  static const struct metric counted[] = {
    { "disks", "gauge", "disks", "Disks that are served." },
    { "snapshots", "gauge", "snapshots", "Snapshots that are served." },
    { "logical_bytes", "gauge", "logical-bytes",
      "Data mapped in all disks, before deduplication." },
    { "logical_with_snapshots_bytes", "gauge", "logical-bytes-with-snapshots",
      "Data mapped in all disks and snapshots." },
    { "stored_bytes", "gauge", "stored-bytes",
      "Clusters of the image that hold data." },
    { "deduplicated_bytes", "gauge", "deduplicated-bytes",
      "What would be stored without compression." },
    { "dead_bytes", "gauge", "dead-bytes",
      "Stored bytes of compressed data that no disk has any more." },
    { "shared_dead_bytes", "gauge", "shared-dead-bytes",
      "Dead bytes that no compaction gives back yet." },
    { "space_counted_timestamp_seconds", "gauge", "counted-at",
      "When logical and stored bytes were counted, in seconds since 1970." },
  };
  static const struct metric measured[] = {
    { "image_file_bytes", "gauge", "file-bytes", "Size of the image file." },
    { "image_allocated_bytes", "gauge", "allocated-bytes",
      "Space that the image file takes on the host." },
    { "image_used_bytes", "gauge", "used-bytes",
      "Clusters of the image in use: data, tables and index." },
    { "image_free_bytes", "gauge", "free-bytes", "Free clusters in the image." },
    { "image_quarantined_bytes", "gauge", "quarantined-bytes",
      "Clusters that are free after the next checkpoint." },
    { "host_bytes", "gauge", "host-bytes",
      "Size of the file system or device that has the image." },
    { "host_free_bytes", "gauge", "host-free-bytes", "Free space there." },
    { "space_available_bytes", "gauge", "available-bytes",
      "Space for new data, on the host and in the image." },
    { "space_low_threshold_bytes", "gauge", "low-bytes",
      "Space is low when less is available." },
  };

  if (figure (space, "counted-at") > 0) {
    put_all (m, space, counted, NR_OF (counted));
    head (m, "dedup_ratio", "gauge", "Logical bytes by stored bytes.");
    sample_real (m, "dedup_ratio", none, none, figure_real (space, "ratio"));
    if (figure_known (space, "compression-ratio")) {
      head (m, "compression_ratio", "gauge",
            "Deduplicated bytes by stored bytes.");
      sample_real (m, "compression_ratio", none, none,
                   figure_real (space, "compression-ratio"));
    }
  }
  put_all (m, space, measured, NR_OF (measured));
}

static void
put_space_status (const struct metrics *m, const json_t *space)
{
  static const char *const all[] = { "ok", "low", "gone" };
  const char *now = figure_text (space, "status");

  head (m, "space_status", "gauge", "The state of the space, which has the value 1.");
  for (size_t i = 0; i < NR_OF (all); i++)
    sample_2 (m, "space_status", (struct label) { "status", all[i] }, none,
              strcmp (all[i], now) == 0);
}

static void
put_dedup (const struct metrics *m, const json_t *dedup)
{
  static const struct metric v[] = {
    { "clusters_stored_total", "counter", "clusters-stored",
      "Clusters that were written and stored." },
    { "clusters_shared_total", "counter", "clusters-shared",
      "Clusters that were written and found." },
    { "hash_mismatches_total", "counter", "mismatches",
      "Clusters with a hash that was found, and other bytes." },
    { "clusters_moved_total", "counter", "clusters-moved",
      "Clusters that defragmentation moved." },
    { "hint_hits_total", "counter", "hint-hits",
      "Clusters that were found without the index." },
    { "index_lookups_total", "counter", "lookups", "Lookups in the index." },
    { "index_hits_total", "counter", "hits", "Lookups that named a cluster." },
    { "index_hit_reads_total", "counter", "hit-reads",
      "Pages of the index that hits read." },
    { "index_miss_reads_total", "counter", "miss-reads",
      "Pages of the index that misses read." },
    { "index_false_positives_total", "counter", "false-positives",
      "Tables of the index that were read in vain." },
  };

  put_all (m, dedup, v, NR_OF (v));
}

static void
put_index (const struct metrics *m, const json_t *index)
{
  static const struct metric v[] = {
    { "index_entries", "gauge", "entries", "Entries of the index." },
    { "index_tombstones", "gauge", "tombstones", "Deletions in the index." },
    { "index_runs", "gauge", "runs", "Runs of the index on disk." },
    { "index_incarnations", "gauge", "incarnations",
      "Incarnations of the index on disk." },
    { "index_memory_bytes", "gauge", "memory-bytes", "Memory of the index." },
    { "index_disk_bytes", "gauge", "disk-bytes", "Tables of the index on disk." },
  };

  put_all (m, index, v, NR_OF (v));
}

static void
put_rest (const struct metrics *m, const json_t *stats)
{
  static const struct metric journal[] = {
    { "journal_bytes", "gauge", "bytes", "Size of the journal." },
    { "journal_left_bytes", "gauge", "left-bytes", "Free space in the journal." },
  };
  static const struct metric tables[] = {
    { "table_cache_bytes", "gauge", "cache-bytes",
      "Memory of the cache of qcow2 tables." },
    { "table_cache_max_bytes", "gauge", "cache-max-bytes",
      "What that cache may hold of unchanged tables." },
    { "table_cache_dirty_bytes", "gauge", "cache-dirty-bytes",
      "Changed tables that are not written yet." },
    { "table_reads_total", "counter", "reads",
      "Pieces of tables that were read because the cache did not have them." },
  };
  static const struct metric top[] = {
    { "start_time_seconds", "gauge", "started",
      "When the image was opened, in seconds since 1970." },
    { "clients", "gauge", "clients", "NBD clients that are connected." },
  };

  put_all (m, stats, top, NR_OF (top));
  head (m, "read_only", "gauge", "1 if nobody can write to the image.");
  sample_2 (m, "read_only", none, none,
            json_is_true (json_object_get (stats, "read-only")));
  head (m, "needs_recovery", "gauge",
        "1 while only this program can open the image.");
  sample_2 (m, "needs_recovery", none, none,
            json_is_true (json_object_get (stats, "needs-recovery")));
  put_all (m, json_object_get (stats, "journal"), journal, NR_OF (journal));
  put_all (m, json_object_get (stats, "tables"), tables, NR_OF (tables));
}

/* --- Requests ------------------------------------------------------------- */

static struct label
type_of (const json_t *request)
{
  return (struct label) { "type", figure_text (request, "type") };
}

static void
put_by_type (const struct metrics *m, const json_t *stats, const char *name,
             const char *key, const char *help)
{
  const json_t *v;
  size_t i;

  head (m, name, "counter", help);
  json_array_foreach (json_object_get (stats, "requests"), i, v)
    sample_2 (m, name, type_of (v), none, figure (v, key));
}

static void
put_bucket (const struct metrics *m, const json_t *request, const char *bound,
            uint64_t nr)
{
  sample_2 (m, "request_duration_seconds_bucket", type_of (request),
            (struct label) { "le", bound }, nr);
}

static void
put_histogram (const struct metrics *m, const json_t *request)
{
  struct latency l;
  uint64_t nr = 0;
  char bound[32];

  figure_latency (request, &l);
  for (unsigned i = 0; i <= LAST_BUCKET; i++) {
    nr += l.v[i];
    if (i < FIRST_BUCKET)
      continue;
    snprintf (bound, sizeof bound, "%.10g",
              (double) (UINT64_C (1) << (i + 1)) / 1e9);
    put_bucket (m, request, bound, nr);
  }
  nr = latency_count (&l);
  put_bucket (m, request, "+Inf", nr);
  sample_real (m, "request_duration_seconds_sum", type_of (request), none,
               (double) figure (request, "total-ns") / 1e9);
  sample_2 (m, "request_duration_seconds_count", type_of (request), none, nr);
}

static void
put_requests (const struct metrics *m, const json_t *stats)
{
  const json_t *v;
  size_t i;

  put_by_type (m, stats, "request_errors_total", "errors",
               "Requests that were answered with an error.");
  put_by_type (m, stats, "request_bytes_total", "bytes",
               "Bytes of the requests that were answered without an error.");
  head (m, "request_duration_max_seconds", "gauge",
        "The slowest request since the image was opened.");
  json_array_foreach (json_object_get (stats, "requests"), i, v)
    sample_real (m, "request_duration_max_seconds", type_of (v), none,
                 (double) figure (v, "max-ns") / 1e9);
  head (m, "request_duration_seconds", "histogram",
        "How long requests took, those with errors as well.");
  json_array_foreach (json_object_get (stats, "requests"), i, v)
    put_histogram (m, v);
}

/* --- Disks and jobs ------------------------------------------------------- */

/* A disk has up to two dozen samples, and there may be thousands of disks.  So the labels
 * that all samples of a disk have are made once. */
struct disk {
  struct disk_line line;
  size_t at, len;               /* of its labels, which are not ended: {disk="NAME" */
};

struct disks {
  struct disk *v;
  size_t nr;
  char *labels;                 /* of all */
};

/* Writes the label TYPE and the end of the labels to BUF. */
static void
make_tail (const char *type, char buf[2 * DISK_LINE_TYPE_BYTES + 16])
{
  char *p = stpcpy (buf, ",type=\"");

  for (; *type; type++) {
    if (*type == '"' || *type == '\\' || *type == '\n')
      *p++ = '\\';
    *p++ = *type == '\n' ? 'n' : *type;
  }
  strcpy (p, "\"} ");
}

/* Prints a sample of disk I: NAME has the prefix, and TAIL is what follows its labels. */
static void
put_disk_sample (const struct metrics *m, const char *name, const struct disks *all,
                 size_t i, const char *tail, uint64_t value)
{
  put (m, name);
  fwrite_unlocked (all->labels + all->v[i].at, 1, all->v[i].len, m->to);
  put (m, tail);
  put_value (m, value);
}

/* Prints one line for each disk of which a figure is known. */
static void
put_disk_gauge (const struct metrics *m, const struct disks *all, const char *name,
                uint64_t (*get) (const struct disk_line *d), const char *help)
{
  head (m, name + strlen (PREFIX), "gauge", help);
  for (size_t i = 0; i < all->nr; i++) {
    const uint64_t n = get (&all->v[i].line);

    if (n != UINT64_MAX)
      put_disk_sample (m, name, all, i, "} ", n);
  }
}

/* Prints one line for each disk and type of which there were requests.  Nearly all disks
 * have the same few types, so what they end with is made once for each run of them. */
static void
put_disk_counter (const struct metrics *m, const struct disks *all, const char *name,
                  uint64_t (*get) (const struct disk_requests *q), const char *help)
{
  struct {
    char type[DISK_LINE_TYPE_BYTES], tail[2 * DISK_LINE_TYPE_BYTES + 16];
  } last[DISK_LINE_TYPES] = { 0 };

  head (m, name + strlen (PREFIX), "counter", help);
  for (size_t i = 0; i < all->nr; i++)
    for (size_t j = 0; j < all->v[i].line.nr; j++) {
      const struct disk_requests *q = &all->v[i].line.v[j];

      if (last[j].tail[0] == '\0' || strcmp (last[j].type, q->type) != 0) {
        strcpy (last[j].type, q->type);
        make_tail (q->type, last[j].tail);
      }
      put_disk_sample (m, name, all, i, last[j].tail, get (q));
    }
}

static uint64_t
size_of (const struct disk_line *d)
{
  return d->size;
}

static uint64_t
mapped_of (const struct disk_line *d)
{
  return d->mapped_known ? d->mapped_bytes : UINT64_MAX;
}

static uint64_t
clients_of (const struct disk_line *d)
{
  return d->clients;
}

static uint64_t
requests_of (const struct disk_requests *q)
{
  return q->requests;
}

static uint64_t
errors_of (const struct disk_requests *q)
{
  return q->errors;
}

static uint64_t
bytes_of (const struct disk_requests *q)
{
  return q->bytes;
}

static void
put_disk_lines (const struct metrics *m, const struct disks *all)
{
  put_disk_gauge (m, all, PREFIX "disk_size_bytes", size_of, "Size of a disk.");
  put_disk_gauge (m, all, PREFIX "disk_mapped_bytes", mapped_of,
                  "Data mapped in a disk, before deduplication.");
  put_disk_gauge (m, all, PREFIX "disk_clients", clients_of, "NBD clients of a disk.");
  put_disk_counter (m, all, PREFIX "disk_requests_total", requests_of,
                    "Requests to a disk that were answered.");
  put_disk_counter (m, all, PREFIX "disk_request_errors_total", errors_of,
                    "Requests to a disk that were answered with an error.");
  put_disk_counter (m, all, PREFIX "disk_request_bytes_total", bytes_of,
                    "Bytes of the requests to a disk without an error.");
}

/* Returns whether there is memory for the labels. */
static bool
make_labels (const struct metrics *m, struct disks *all)
{
  size_t len;
  const struct metrics to_memory = { .image = m->image,
                                     .to = open_memstream (&all->labels, &len) };
  bool ok;

  for (size_t i = 0; i < all->nr && to_memory.to; i++) {
    struct disk *d = &all->v[i];

    d->at = (size_t) ftello (to_memory.to);
    put_labels (&to_memory, (struct label) { "disk", d->line.name }, none);
    d->len = (size_t) ftello (to_memory.to) - d->at;
  }
  if (to_memory.to == NULL)
    return false;
  ok = !ferror (to_memory.to);
  return fclose (to_memory.to) == 0 && ok;
}

/* Reads element I of the list of disks.  Returns whether it is a disk. */
static bool
read_disk (const struct server_figures *s, size_t i, struct disk_line *line)
{
  const char *text;

  if (s->disks) {
    disk_line_of_object (json_array_get (s->disks, i), line);
    return true;
  }
  text = json_string_value (json_array_get (s->lines, i));
  return text && disk_line_read (text, line);
}

/* Returns whether there is memory for them. */
static bool
read_disks (const struct metrics *m, const struct server_figures *s, struct disks *all)
{
  const size_t max = json_array_size (s->disks ? s->disks : s->lines);

  all->v = malloc (MAX_OF (max, 1) * sizeof *all->v);
  for (size_t i = 0; i < max && all->v; i++)
    all->nr += read_disk (s, i, &all->v[all->nr].line);
  return all->v && make_labels (m, all);
}

/* Returns whether the figures of all disks could be printed: there is memory. */
static bool
put_disks (const struct metrics *m, const struct server_figures *s)
{
  struct disks all = { 0 };
  const bool ok = read_disks (m, s, &all);

  if (ok && all.nr > 0)
    put_disk_lines (m, &all);
  free (all.labels);
  free (all.v);
  return ok;
}

/* The label is not called "job", because Prometheus has a label of that name for what it
 * has asked. */
static void
put_jobs (const struct metrics *m, const json_t *jobs)
{
  const json_t *v;
  size_t i;

  if (json_array_size (jobs) == 0)
    return;
  head (m, "job_progress_ratio", "gauge", "How much of a job is done.");
  json_array_foreach (jobs, i, v) {
    const double total = (double) figure (v, "total-progress");

    sample_real (m, "job_progress_ratio",
                 (struct label) { "id", figure_text (v, "id") },
                 (struct label) { "type", figure_text (v, "type") }, total > 0 ?
                 (double) figure (v, "current-progress") / total : 0);
  }
}

int
metrics_print (FILE *to, const char *image, const struct server_figures *s)
{
  const struct metrics m = { .to = to, .image = image };
  const json_t *space = json_object_get (s->stats, "space");

  put_rest (&m, s->stats);
  put_space (&m, space);
  put_space_status (&m, space);
  put_dedup (&m, json_object_get (s->stats, "dedup"));
  put_index (&m, json_object_get (s->stats, "index"));
  put_requests (&m, s->stats);
  put_jobs (&m, s->jobs);
  return put_disks (&m, s) ? 0 : -ENOMEM;
}
