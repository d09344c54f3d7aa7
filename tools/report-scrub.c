/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists what the last scrubs of the data found, as the image remembers it: how many
 * clusters are known to be bad, where they are in the file, and which bytes of which
 * disks they are (report-places.c).
 *
 * Findings are looked up when the report is made, not when the scrub ended: a disk that
 * was deleted since is not named, and a cluster that was healed is not listed.
 *
 * One thread.
 */
#include "report.h"

#include <inttypes.h>

#include "checked.h"
#include "markup.h"

static void
write_clusters (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = { "Number", "Offset in the file", NULL };
  size_t i;

  report_table (fp, rep->scrub.bad > REPORT_ROWS ? "The first 50 bad clusters"
                : "Bad clusters", heads);
  for (i = 0; i < rep->nr_bad && i < REPORT_ROWS; i++) {
    markup_open (fp, "tr", NULL);
    markup_open (fp, "th", "scope", "row", NULL);
    markup_textf (fp, "%zu", i + 1);
    markup_close (fp, "th");
    report_cell (fp, "0x%" PRIx64, rep->bad[i]);
    markup_close (fp, "tr");
  }
  report_table_end (fp);
}

static void
write_places (const struct pool_report *rep, FILE *fp)
{
  static const char *const heads[] = { "Disk", "First byte of the disk", "Bytes",
                                       "Offset in the file", NULL };
  const size_t nr = MIN_OF (rep->nr_places, REPORT_ROWS);

  report_table (fp, nr < rep->nr_places ? "The first 50 damaged ranges of disks"
                : "Damaged ranges of disks", heads);
  for (size_t i = 0; i < nr; i++) {
    const struct report_place *p = &rep->places[i];

    markup_open (fp, "tr", NULL);
    markup_open (fp, "th", "scope", "row", NULL);
    markup_text (fp, rep->names[p->root_nr]);
    markup_close (fp, "th");
    report_cell (fp, "0x%" PRIx64, p->guest_off);
    report_cell (fp, "%" PRIu64, p->len);
    report_cell (fp, "0x%" PRIx64, p->host_off);
    markup_close (fp, "tr");
  }
  report_table_end (fp);
}

void
report_scrub (const struct pool_report *rep, FILE *fp)
{
  char human[32];

  report_section (fp, "scrub", "Scrub",
                  "What scrubs of the data found, and was neither healed nor freed "
                  "since.");
  if (rep->scrub.unfinished)
    markup_line (fp, "p", NULL, "A scrub has ended early. It had read %s of the "
                 "file, and goes on from there.",
                 tool_human (rep->scrub.position, human));
  if (rep->nr_bad == 0)
    markup_line (fp, "p", NULL, "No cluster is known to be bad.");
  else {
    markup_line (fp, "p", NULL, "%" PRIu64 " %s known to be bad.", rep->scrub.bad,
                 rep->scrub.bad == 1 ? "cluster is" : "clusters are");
    write_clusters (rep, fp);
    if (rep->nr_places > 0)
      write_places (rep, fp);
    else
      markup_line (fp, "p", NULL, "No disk or snapshot shows them.");
  }
  report_section_end (fp);
}
