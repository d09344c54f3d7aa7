/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints what a scrub has found, for people and in JSON.
 *
 * Both say of each damaged range which bytes of which disk it is, and how many ranges are
 * left out, as a scrub keeps a limited number of them.
 *
 * One thread.
 */
#include "disk.h"
#include "scrub-report.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

static const char *
reason (enum dedup_scrub_why why)
{
  return why == DEDUP_SCRUB_UNREADABLE ? "unreadable" : "different";
}

/* --- For people ------------------------------------------------------------ */

static void
print_place (const struct scrub_place *p)
{
  CLEANUP_FREE char *disk = p->disk ? disk_printable (p->disk) : NULL;

  if (p->disk == NULL)
    printf ("ERROR no disk");
  else if (p->disk[0] == '\0')
    printf ("ERROR active disk");
  else
    printf ("ERROR %s", disk ? disk : "?");
  if (p->disk)
    printf (": bytes 0x%" PRIx64 " to 0x%" PRIx64, p->guest_off,
            p->guest_off + p->len - 1);
  printf (": %s (file 0x%" PRIx64 "%s)\n", p->why == DEDUP_SCRUB_UNREADABLE ?
          "cannot be read" : "not what was stored", p->host_off,
          p->healable ? ", its hash is known" : "");
}

static void
print_counts (const struct dedup_scrub_figures *f)
{
  char human[32];

  printf ("%s read; clusters: %" PRIu64 " good, %" PRIu64 " without hash, %"
          PRIu64 " tables and store", tool_human (f->bytes_read, human),
          f->good, f->unknown, f->tables);
  if (f->doubtful)
    printf (", %" PRIu64 " doubtful", f->doubtful);
  printf ("\n");
  if (f->packed_good + f->packed_unknown > 0)
    printf ("Compressed data: %" PRIu64 " pieces good, %" PRIu64 " without "
            "hash\n", f->packed_good, f->packed_unknown);
  if (f->doubtful)
    printf ("Doubtful clusters differ from an entry of the index that may be "
            "older than they are.\n");
}

void
scrub_print_human (const struct scrub_outcome *o)
{
  const struct dedup_scrub_figures *f = &o->figures;
  char human[32];
  size_t i;

  for (i = 0; i < o->nr_places; i++)
    print_place (&o->places[i]);
  if (o->nr_more)
    printf ("%" PRIu64 " more places are not listed.\n", o->nr_more);
  if (f->different + f->unreadable)
    printf ("Bad clusters: %" PRIu64 " with other bytes than were stored, %"
            PRIu64 " that cannot be read.\n", f->different, f->unreadable);
  else if (o->complete)
    printf ("No bad clusters were found.\n");
  print_counts (f);
  if (!o->complete && o->remembers)
    printf ("The scrub ended early; the next one continues at %s.\n",
            tool_human (o->memory.position, human));
}

/* --- JSON -------------------------------------------------------------------- */

static void
set (json_t *o, const char *key, uint64_t v)
{
  json_object_set_new (o, key, json_integer ((json_int_t) v));
}

static json_t *
place_json (const struct scrub_place *p)
{
  json_t *o = json_object ();

  json_object_set_new (o, "why", json_string (reason (p->why)));
  if (p->disk) {
    disk_json_set_string (o, "disk", p->disk);
    set (o, "offset", p->guest_off);
  }
  set (o, "length", p->len);
  set (o, "host-offset", p->host_off);
  json_object_set_new (o, "healable", json_boolean (p->healable));
  return o;
}

static json_t *
places_json (const struct scrub_outcome *o)
{
  json_t *v = json_array ();
  size_t i;

  for (i = 0; i < o->nr_places; i++)
    json_array_append_new (v, place_json (&o->places[i]));
  return v;
}

void
scrub_print_json (const struct scrub_outcome *o)
{
  const struct dedup_scrub_figures *f = &o->figures;
  json_t *j = json_object ();

  disk_json_set_string (j, "filename", o->path);
  json_object_set_new (j, "complete", json_boolean (o->complete));
  json_object_set_new (j, "index-complete", json_boolean (o->memory.complete));
  set (j, "position", o->memory.position);
  set (j, "read-bytes", f->bytes_read);
  set (j, "good-clusters", f->good);
  set (j, "unknown-clusters", f->unknown);
  set (j, "table-clusters", f->tables);
  set (j, "good-compressed", f->packed_good);
  set (j, "unknown-compressed", f->packed_unknown);
  set (j, "doubtful-clusters", f->doubtful);
  set (j, "different-clusters", f->different);
  set (j, "unreadable-clusters", f->unreadable);
  set (j, "known-bad-clusters", o->memory.bad);
  json_object_set_new (j, "findings", places_json (o));
  set (j, "findings-not-listed", o->nr_more);
  json_dumpf (j, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (j);
}
