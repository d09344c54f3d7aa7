/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands that tell figures: query-stats, query-disk-stats, query-disk-lines,
 * query-clients, count-space.
 *
 * Each reply is a copy of what server-stats.h has, with units in the names.  A figure
 * that is not known is left out.  query-stats has a fixed size; the lists of disks and
 * clients come in pages.  For a thousand disks most of the time goes into the members of
 * objects, on both sides, so there is a list of lines as well.
 *
 * Threads: all but count-space run on the loop of control.h, as they neither read the
 * disk nor wait for jobs.  So they are answered while a long command runs, or one waits for
 * storage that hangs, which is when somebody looks at the figures.
 */
#include "commands-private.h"

#include <errno.h>
#include <string.h>

/* Sets the member KEY of O to N, unless that is unknown. */
static void
set (json_t *o, const char *key, uint64_t n)
{
  if (n != UINT64_MAX)
    json_object_set_new (o, key, json_integer ((json_int_t) n));
}

/* --- Requests ------------------------------------------------------------- */

static json_t *
describe_counter (enum srv_request type, const struct srv_counter *c)
{
  json_t *o = json_object ();

  json_object_set_new (o, "type", json_string (srv_request_name (type)));
  set (o, "requests", c->nr);
  set (o, "errors", c->errors);
  set (o, "bytes", c->bytes);
  return o;
}

/* Lists the types of which there were requests. */
static json_t *
describe_counters (const struct srv_counters *c)
{
  json_t *list = json_array ();

  for (unsigned i = 0; i < SRV_NR_REQUESTS; i++)
    if (c->v[i].nr > 0)
      json_array_append_new (list, describe_counter (i, &c->v[i]));
  return list;
}

static json_t *
describe_latency (const struct srv_request_stats *s)
{
  json_t *list = json_array ();

  for (unsigned i = 0; i < SRV_LATENCY_BUCKETS; i++)
    json_array_append_new (list, json_integer ((json_int_t) s->latency[i]));
  return list;
}

static json_t *
describe_requests (const struct srv_stats *s)
{
  json_t *list = json_array ();

  for (unsigned i = 0; i < SRV_NR_REQUESTS; i++) {
    json_t *o = describe_counter (i, &s->requests[i].count);

    set (o, "total-ns", s->requests[i].total_ns);
    set (o, "max-ns", s->requests[i].max_ns);
    json_object_set_new (o, "latency", describe_latency (&s->requests[i]));
    json_array_append_new (list, o);
  }
  return list;
}

/* --- Space ---------------------------------------------------------------- */

static void
set_ratio (json_t *o, const char *key, uint64_t a, uint64_t b)
{
  json_object_set_new (o, key, json_real (qcow2_usage_quotient (a, b)));
}

static void
set_counted (json_t *o, const struct srv_space_stats *s)
{
  set (o, "counted-at", s->counted_at);
  if (s->counted_at == 0)
    return;
  set (o, "count-ns", s->count_ns);
  set (o, "disks", s->nr_disks);
  set (o, "snapshots", s->nr_snapshots);
  set (o, "logical-bytes", s->logical_bytes);
  set (o, "logical-bytes-with-snapshots", s->logical_bytes_with_snapshots);
  set (o, "stored-bytes", s->stored_bytes);
  set (o, "deduplicated-bytes", s->deduplicated_bytes);
  set (o, "dead-bytes", s->dead_bytes);
  set (o, "shared-dead-bytes", s->shared_dead_bytes);
  set_ratio (o, "dedup-ratio", s->logical_bytes, s->deduplicated_bytes);
  set_ratio (o, "compression-ratio", s->deduplicated_bytes, s->stored_bytes);
  set_ratio (o, "ratio", s->logical_bytes, s->stored_bytes);
}

static json_t *
describe_space (const struct srv_stats *s)
{
  const struct srv_space_stats *p = &s->space;
  const struct qcow2_figures *f = &s->now.image;
  json_t *o = json_object ();

  json_object_set_new (o, "status", json_string (p->status));
  set_counted (o, p);
  set (o, "cluster-size", s->cluster_size);
  set (o, "used-bytes", f->in_use * s->cluster_size);
  set (o, "free-bytes", f->free * s->cluster_size);
  set (o, "stale-bytes", f->stale * s->cluster_size);
  set (o, "quarantined-bytes", f->quarantined * s->cluster_size);
  set (o, "file-bytes", p->file_bytes);
  set (o, "allocated-bytes", p->allocated_bytes);
  set (o, "host-bytes", p->host_bytes);
  set (o, "host-free-bytes", p->host_free_bytes);
  set (o, "available-bytes", p->available_bytes);
  set (o, "low-bytes", p->low_bytes);
  return o;
}

/* --- Deduplication -------------------------------------------------------- */

static json_t *
describe_dedup (const struct dedup_now *n)
{
  const struct dedup_lookups *l = &n->lookups;
  json_t *o = json_object ();

  set (o, "clusters-stored", n->stored);
  set (o, "clusters-shared", n->linked);
  set (o, "mismatches", n->mismatches);
  set (o, "renewed", n->renewed);
  set (o, "pieces-moved", n->pieces_moved);
  set (o, "clusters-moved", n->clusters_moved);
  set (o, "hint-hits", l->guessed);
  set (o, "lookups", l->lookups);
  set (o, "hits", l->hits);
  set (o, "hit-reads", l->hit_reads);
  set (o, "miss-reads", l->miss_reads);
  set (o, "false-positives", l->false_positives);
  return o;
}

static json_t *
describe_index (const struct srv_stats *s)
{
  const struct dedup_stats *x = &s->index;
  json_t *o = json_object ();

  set (o, "as-of", s->index_at);
  json_object_set_new (o, "hash", json_string (dedup_hash_name (x->hash)));
  set (o, "entries", x->index_entries);
  set (o, "log-store-entries", x->log_store_entries);
  set (o, "incarnation-entries", x->incarnation_entries);
  set (o, "run-entries", x->run_entries);
  set (o, "tombstones", x->tombstones);
  set (o, "incarnations", x->nr_incarnations);
  set (o, "runs", x->nr_runs);
  set (o, "memory-bytes", x->index_memory_bytes);
  set (o, "disk-bytes", x->index_disk_bytes);
  if (x->index_memory_bound)
    set (o, "memory-bound", x->index_memory_bound);
  return o;
}

static json_t *
describe_tables (const struct qcow2_figures *f)
{
  json_t *o = json_object ();

  set (o, "cache-bytes", f->cache_bytes);
  set (o, "cache-max-bytes", f->cache_max_bytes);
  set (o, "cache-dirty-bytes", f->cache_dirty_bytes);
  set (o, "reads", f->tables_read);
  return o;
}

static void
set_store (json_t *o, const struct srv_stats *s)
{
  json_t *journal = json_object ();

  if (s->index_at != 0) {
    set (journal, "bytes", s->index.journal_bytes);
    json_object_set_new (o, "index", describe_index (s));
  }
  set (journal, "left-bytes", s->now.journal_left_bytes);
  json_object_set_new (o, "journal", journal);
}

/* --- The commands --------------------------------------------------------- */

static json_t *
describe (const struct srv_stats *s)
{
  json_t *o = json_object ();

  set (o, "started", s->started_at);
  set (o, "uptime-ns", s->uptime_ns);
  set (o, "clients", s->nr_clients);
  json_object_set_new (o, "read-only", json_boolean (s->read_only));
  if (s->read_only)
    json_object_set_new (o, "read-only-reason",
                         srv_json_text (s->read_only_reason));
  json_object_set_new (o, "needs-recovery",
                       json_boolean (s->now.needs_recovery));
  json_object_set_new (o, "work-left", json_boolean (s->now.work_left));
  json_object_set_new (o, "requests", describe_requests (s));
  json_object_set_new (o, "space", describe_space (s));
  json_object_set_new (o, "dedup", describe_dedup (&s->now));
  json_object_set_new (o, "tables", describe_tables (&s->now.image));
  if (s->now.has_store)
    set_store (o, s);
  return o;
}

static int
run_query_stats (void *opaque, const struct qmp_caller *caller, json_t *args,
                 json_t **ret, struct qmp_error *e)
{
  struct srv_stats s;

  srv_image_stats (srv_control_image (opaque), &s);
  *ret = describe (&s);
  return srv_command_result (*ret ? 0 : -ENOMEM, NULL, e);
}

static int
run_count_space (void *opaque, const struct qmp_caller *caller, json_t *args,
                 json_t **ret, struct qmp_error *e)
{
  struct srv_image *m = srv_control_image (opaque);
  struct srv_stats s;
  int r = srv_image_count_space (m);

  if (r < 0)
    return srv_command_result (r, NULL, e);
  srv_image_stats (m, &s);
  *ret = describe_space (&s);
  return srv_command_result (*ret ? 0 : -ENOMEM, NULL, e);
}

/* --- Lists ---------------------------------------------------------------- */

static json_t *
describe_disk (const struct srv_disk_info *i)
{
  json_t *o = json_object ();

  json_object_set_new (o, "name", srv_json_text (i->name));
  set (o, "size", i->size);
  set (o, "mapped-bytes", i->mapped_bytes);
  set (o, "clients", i->nr_clients);
  json_object_set_new (o, "requests", describe_counters (&i->counters));
  return o;
}

static int
disk_cb (void *opaque, const struct srv_disk_info *i)
{
  struct srv_page *page = opaque;

  return srv_page_add (page, describe_disk (i));
}

/* --- Lines ---------------------------------------------------------------- */

/* Bytes of a line before the name, at the most: three numbers of 20 digits, and three for
 * each type of request with its name, each with a separator. */
#define MAX_FIGURES (3 * 21 + SRV_NR_REQUESTS * (16 + 3 * 21) + 2)

/* Puts the digits of N and then END.  Returns the place behind them. */
static char *
put_number (char *p, uint64_t n, char end)
{
  char digits[20];
  size_t nr = 0;

  do
    digits[nr++] = (char) ('0' + n % 10);
  while ((n /= 10) > 0);
  while (nr > 0)
    *p++ = digits[--nr];
  *p++ = end;
  return p;
}

/* Puts the types of which there were requests, and a space. */
static char *
put_counters (char *p, const struct srv_counters *c)
{
  const char *const start = p;

  for (unsigned i = 0; i < SRV_NR_REQUESTS; i++)
    if (c->v[i].nr > 0) {
      p = stpcpy (p, srv_request_name (i));
      *p++ = ':';
      p = put_number (p, c->v[i].nr, ':');
      p = put_number (p, c->v[i].errors, ':');
      p = put_number (p, c->v[i].bytes, ',');
    }
  if (p == start)
    *p++ = '-';
  else
    p--;
  *p++ = ' ';
  return p;
}

static int
line_cb (void *opaque, const struct srv_disk_info *i)
{
  struct srv_page *page = opaque;
  CLEANUP_FREE char *line = malloc (MAX_FIGURES + strlen (i->name) + 1);
  char *p = line;

  if (line == NULL)
    return -ENOMEM;
  p = put_number (p, i->size, ' ');
  p = i->mapped_bytes == UINT64_MAX ? stpcpy (p, "- ")
    : put_number (p, i->mapped_bytes, ' ');
  p = put_number (p, i->nr_clients, ' ');
  p = put_counters (p, &i->counters);
  strcpy (p, i->name);
  return srv_page_add (page, srv_json_text (line));
}

static json_t *
describe_client (const struct srv_client_info *i)
{
  json_t *o = json_object ();

  set (o, "id", i->id);
  json_object_set_new (o, "export", srv_json_text (i->export_name));
  json_object_set_new (o, "address", srv_json_text (i->address));
  set (o, "since", i->since);
  json_object_set_new (o, "requests", describe_counters (&i->counters));
  return o;
}

static int
client_cb (void *opaque, const struct srv_client_info *i)
{
  struct srv_page *page = opaque;

  return srv_page_add (page, describe_client (i));
}

/* Returns PAGE as the reply of a command, whose listing ended with R. */
static int
end_listing (struct srv_page *page, int r, json_t **ret, struct qmp_error *e)
{
  if (r < 0)
    json_decref (page->list);
  else
    *ret = page->list;
  return srv_command_result (r, NULL, e);
}

/* Lists the disks behind the name in ARGS by CB. */
static int
list_disks (void *opaque, json_t *args,
            int (*cb) (void *page, const struct srv_disk_info *i), json_t **ret,
            struct qmp_error *e)
{
  const char *after = srv_arg_given (args, "after")
    ? srv_arg_string (args, "after") : NULL;
  struct srv_page page = { .list = json_array () };
  int r = page.list
    ? srv_image_list_disks_after (srv_control_image (opaque), after, cb, &page)
    : -ENOMEM;

  return end_listing (&page, r, ret, e);
}

static int
run_query_disk_stats (void *opaque, const struct qmp_caller *caller,
                      json_t *args, json_t **ret, struct qmp_error *e)
{
  return list_disks (opaque, args, disk_cb, ret, e);
}

static int
run_query_disk_lines (void *opaque, const struct qmp_caller *caller,
                      json_t *args, json_t **ret, struct qmp_error *e)
{
  return list_disks (opaque, args, line_cb, ret, e);
}

static int
run_query_clients (void *opaque, const struct qmp_caller *caller, json_t *args,
                   json_t **ret, struct qmp_error *e)
{
  const uint64_t after = (uint64_t) srv_arg_int (args, "after", 0);
  struct srv_page page = { .list = json_array () };
  int r = page.list ? srv_image_list_clients (srv_control_image (opaque), after,
                                              client_cb, &page) : -ENOMEM;

  return end_listing (&page, r, ret, e);
}

/* --- The tables ----------------------------------------------------------- */

static const struct qmp_member stats_members[] = {
  { "started", "int", false, "When the image was opened, in seconds since 1970." },
  { "uptime-ns", "int", false, "Nanoseconds since then." },
  { "clients", "int", false, "How many NBD clients are connected." },
  { "read-only", "bool", false, "Whether nobody can write to the image," },
  { "read-only-reason", "str", true, "and why, for people." },
  { "needs-recovery", "bool", false, "Whether the image file is in use: other "
    "programs refuse it until it is closed." },
  { "work-left", "bool", false, "Whether clones are still to be counted, or deleted "
    "disks to be freed." },
  { "requests", "[RequestStats]", false, "Requests since the image was opened, one "
    "element for each type." },
  { "space", "SpaceStats", false, "Space in the image and on its host." },
  { "dedup", "DedupStats", false, "What became of clusters that were written." },
  { "tables", "TableStats", false, "The cache of qcow2 tables." },
  { "index", "IndexStats", true, "The index, if there is one.  It may be as old as "
    "\"as-of\" says, while a job works on it.  Where there is a journal and no index, a job "
    "has worked on it since the start." },
  { "journal", "JournalStats", true, "The journal, if there is one." },
};

#define COUNTERS                                                               \
  { "type", "RequestType", false, "The type." },                               \
  { "requests", "int", false, "How many were answered," },                     \
  { "errors", "int", false, "how many of these with an error," },              \
  { "bytes", "int", false, "and how many bytes those without an error had." }

static const struct qmp_member request_members[] = {
  COUNTERS,
  { "total-ns", "int", false, "How long all of them took together, in "
    "nanoseconds." },
  { "max-ns", "int", false, "How long the slowest one took." },
  { "latency", "[int]", false, "A histogram of 32 elements: element I counts the "
    "requests that took 2^I nanoseconds or more, and less than twice that.  The last "
    "one also counts all slower ones." },
};
static const struct qmp_member counter_members[] = { COUNTERS };

static const struct qmp_value request_types[] = {
  { "read", "NBD_CMD_READ." },
  { "write", "NBD_CMD_WRITE." },
  { "flush", "NBD_CMD_FLUSH; it has no bytes." },
  { "trim", "NBD_CMD_TRIM." },
  { "zero", "NBD_CMD_WRITE_ZEROES." },
  { "cache", "NBD_CMD_CACHE." },
  { "block-status", "NBD_CMD_BLOCK_STATUS." },
};

static const struct qmp_value space_states[] = {
  { "ok", "There is enough." },
  { "low", "Less than \"low-bytes\" are available." },
  { "gone", "The host refused space: requests that need some fail." },
};

static const struct qmp_member space_members[] = {
  { "status", "SpaceStatus", false, "Whether there is space for new data." },
  { "counted-at", "int", false, "When the members up to \"ratio\" were counted, in "
    "seconds since 1970; 0, without these members: not yet." },
  { "count-ns", "int", true, "How long counting took." },
  { "disks", "int", true, "How many disks are served." },
  { "snapshots", "int", true, "How many snapshots are served." },
  { "logical-bytes", "int", true, "What all disks map." },
  { "logical-bytes-with-snapshots", "int", true, "What all disks and snapshots map." },
  { "stored-bytes", "int", true, "The clusters that hold data." },
  { "deduplicated-bytes", "int", true, "What would be stored without compression." },
  { "dead-bytes", "int", true, "The part of the stored bytes that is left of compressed "
    "data which no disk has any more.  It is free when all data in its cluster is." },
  { "shared-dead-bytes", "int", true, "The part of the dead bytes that no compaction gives "
    "back yet, as they lie beside data that is being deleted, or that more than 2,048 disks "
    "and snapshots have." },
  { "dedup-ratio", "number", true, "Logical bytes by deduplicated bytes; 0: nothing is "
    "stored." },
  { "compression-ratio", "number", true, "Deduplicated bytes by stored bytes." },
  { "ratio", "number", true, "Logical bytes by stored bytes: the product of both." },
  { "cluster-size", "int", false, "Bytes of a cluster." },
  { "used-bytes", "int", false, "Clusters of the image in use, for data or tables." },
  { "free-bytes", "int", false, "Free clusters in the image," },
  { "stale-bytes", "int", false, "of these, those that still have space on the host." },
  { "quarantined-bytes", "int", false, "Clusters that are free after the next "
    "checkpoint." },
  { "file-bytes", "int", true, "The size of the image file or device." },
  { "allocated-bytes", "int", true, "The space that a file takes on the host." },
  { "host-bytes", "int", true, "The size of the file system or device." },
  { "host-free-bytes", "int", true, "What is free there." },
  { "available-bytes", "int", true, "What there is for new data, on the host and in "
    "the image." },
  { "low-bytes", "int", true, "Space is low when less is available." },
};

static const struct qmp_member dedup_members[] = {
  { "clusters-stored", "int", false, "Clusters that were written and stored." },
  { "clusters-shared", "int", false, "Clusters that were written, and were there "
    "already." },
  { "mismatches", "int", false, "Clusters whose hash was there with other bytes." },
  { "renewed", "int", false, "Entries of the index that were renewed, under a memory "
    "limit." },
  { "pieces-moved", "int", false, "Pieces of disks that were defragmented," },
  { "clusters-moved", "int", false, "and their clusters." },
  { "hint-hits", "int", false, "Clusters that were found without the index." },
  { "lookups", "int", false, "Lookups in the index," },
  { "hits", "int", false, "of these, those that named a cluster." },
  { "hit-reads", "int", false, "Pages of the index that hits read." },
  { "miss-reads", "int", false, "Pages of the index that misses read." },
  { "false-positives", "int", false, "Tables of the index that were read in vain." },
};

static const struct qmp_member index_members[] = {
  { "as-of", "int", false, "The time of these figures, in seconds since 1970." },
  { "hash", "str", false, "The hash that identifies clusters." },
  { "entries", "int", false, "All entries but tombstones," },
  { "log-store-entries", "int", false, "those in memory," },
  { "incarnation-entries", "int", false, "in incarnations," },
  { "run-entries", "int", false, "and in runs." },
  { "tombstones", "int", false, "Marks of entries that were deleted." },
  { "incarnations", "int", false, "Tables on disk, of the older kind" },
  { "runs", "int", false, "and of the younger." },
  { "memory-bytes", "int", false, "Memory that it takes." },
  { "disk-bytes", "int", false, "Space that it takes on disk." },
  { "memory-bound", "int", true, "The bound of index-memory=." },
};

static const struct qmp_member journal_members[] = {
  { "bytes", "int", true, "Its size, if that of the index is known." },
  { "left-bytes", "int", false, "What is free in it." },
};

static const struct qmp_member table_members[] = {
  { "cache-bytes", "int", false, "Tables in memory." },
  { "cache-max-bytes", "int", false, "How many of these there are at most, but for "
    "changed ones." },
  { "cache-dirty-bytes", "int", false, "Changed tables that are not written yet." },
  { "reads", "int", false, "Pieces of tables that were read because they were not in "
    "memory." },
};

static const struct qmp_member disk_members[] = {
  { "name", "str", false, "The export name; the default disk has the empty one." },
  { "size", "int", false, "Its size in bytes." },
  { "mapped-bytes", "int", true, "The data in it, as of the last count." },
  { "clients", "int", false, "How many NBD clients it has." },
  { "requests", "[RequestCounter]", false, "Requests of all its clients, since the "
    "image was opened or the disk was made." },
};

static const struct qmp_member client_members[] = {
  { "id", "int", false, "A number that no other client gets." },
  { "export", "str", false, "The export name that it asked for." },
  { "address", "str", false, "Its address, for people: \"192.0.2.7:51234\", "
    "\"unix:pid=4711,uid=107\", \"vsock:3:1024\", \"stdin\" or \"unknown\"." },
  { "since", "int", false, "When it connected, in seconds since 1970." },
  { "requests", "[RequestCounter]", false, "Its requests." },
};

#define OBJECT(type, table, text) \
  { .name = type, .kind = QMP_OBJECT, .members = table, \
    .nr_members = sizeof table / sizeof table[0], .doc = text }
#define ENUM(type, table, text) \
  { .name = type, .kind = QMP_ENUM, .values = table, \
    .nr_values = sizeof table / sizeof table[0], .doc = text }

static const struct qmp_type types[] = {
  OBJECT ("Stats", stats_members, "The figures of a server."),
  OBJECT ("RequestStats", request_members, "Requests of one type, with their "
          "times."),
  OBJECT ("RequestCounter", counter_members, "Requests of one type."),
  ENUM ("RequestType", request_types, "The types of NBD requests."),
  OBJECT ("SpaceStats", space_members, "Space in the image and on its host."),
  ENUM ("SpaceStatus", space_states, "Whether there is space for new data."),
  OBJECT ("DedupStats", dedup_members, "What became of clusters that were written "
          "since the image was opened."),
  OBJECT ("IndexStats", index_members, "The index."),
  OBJECT ("JournalStats", journal_members, "The journal."),
  OBJECT ("TableStats", table_members, "The cache of qcow2 tables."),
  OBJECT ("DiskStats", disk_members, "A disk or snapshot, and its requests."),
  OBJECT ("ClientInfo", client_members, "An NBD client, and its requests."),
};

static const struct qmp_member disk_args[] = {
  { "after", "str", true, "List the disks behind this name only; to go on with a "
    "list that did not fit into one reply, the last name of that." },
};
static const struct qmp_member client_args[] = {
  { "after", "size", true, "List the clients with a higher id only; to go on with a "
    "list that did not fit into one reply, the last id of that." },
};

static const struct qmp_command commands[] = {
  { "query-stats", NULL, 0, "Stats", true, run_query_stats,
    "Tells what the server has done and has.  It reads no disk, and is answered at "
    "once.  Counters begin at 0 when the image is opened, and only grow." },
  { "query-disk-stats", QMP_ARRAY (disk_args), "[DiskStats]", true,
    run_query_disk_stats,
    "Lists the disks and snapshots with what their clients did, the default disk first "
    "and then in order of names, as many as fit into a reply." },
  { "query-disk-lines", QMP_ARRAY (disk_args), "[str]", true, run_query_disk_lines,
    "Lists the same figures as query-disk-stats in a short form, which costs less where "
    "there are many disks: a line for each, of five words with a space between them.  "
    "They are the size, the mapped bytes (C<-> if these are not known), the clients, the "
    "requests, and the name, which may have spaces in it.  The requests are C<->, or for "
    "each type of which there were any TYPE:REQUESTS:ERRORS:BYTES, with commas between "
    "them." },
  { "query-clients", QMP_ARRAY (client_args), "[ClientInfo]", true,
    run_query_clients,
    "Lists the NBD clients that are connected, as many as fit into a reply." },
  { "count-space", NULL, 0, "SpaceStats", false, run_count_space,
    "Counts what the disks map and store, and waits for that.  All tables of the image "
    "are read, which takes seconds for terabytes.  Without this command they are counted "
    "from time to time." },
};

const struct qmp_schema srv_stats_commands = {
  .title = "Figures", .doc = "What a server has done and has.",
  .commands = commands, .nr_commands = sizeof commands / sizeof commands[0],
  .types = types, .nr_types = sizeof types / sizeof types[0],
};
