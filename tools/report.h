/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of the command report share: the figures, and the
 * sections of the page. */
#ifndef DEDUP_TOOL_REPORT_H
#define DEDUP_TOOL_REPORT_H

#include "disk.h"
#include "pool-figures.h"
#include "qcow2-survey.h"

#define REPORT_CELLS 2000u      /* of the map, at most */
#define REPORT_SAMPLES 1024u    /* that are drawn, at most */
#define REPORT_BAD 256u         /* bad clusters, at most */
#define REPORT_PLACES 1024u     /* that show bad clusters, at most */
#define REPORT_ROWS 50u         /* of the table of disks, at most */

struct report_place {           /* a range of a disk that shows bad clusters */
  size_t root_nr;               /* in s.roots */
  uint64_t guest_off, host_off, len;     /* bytes */
};

struct pool_report {
  const char *path;             /* as the user wrote it */
  time_t when;
  struct qcow2_survey s;
  struct pool_figures pool;
  char **names;                 /* of each root in s.roots, printable; owned */
  const char **types;           /* of each root: "disk", "snapshot" ... */
  uint64_t exclusive_bytes;     /* of all roots together */
  struct dedup_stats stats;
  struct dedup_index_table *tables;      /* of the index; owned */
  size_t nr_tables;
  struct dedup_sample *samples; /* of the past, oldest first; owned */
  size_t nr_samples;
  struct dedup_scrub_memory scrub;
  uint64_t bad[REPORT_BAD];     /* clusters, as bytes of the file; ascending */
  size_t nr_bad;
  struct report_place *places;  /* that show BAD; owned, NULL if there are none */
  size_t nr_places;
  uint64_t nr_more_places;      /* that are not in the list */
  uint64_t actual_bytes;        /* that the file takes on the host */
  bool is_device;               /* then that is not known */
  bool host_known;
  uint64_t host_bytes, host_free_bytes;
};

/* --- report-collect.c ------------------------------------------------------- */
/* Gathers the figures, with progress on stderr.  REP is to be freed, also after an
 * error.  -EINTR: a signal came. */
int report_collect (struct disk_pool *p, struct pool_report *rep,
                    struct fault *f) MUST_CHECK;
void report_free (struct pool_report *rep);
/* Returns whether root I says anything: the active disk of a pool is empty. */
bool report_has_root (const struct pool_report *rep, size_t i);
/* Returns how many of the roots from FIRST on say anything. */
size_t report_count_from (const struct pool_report *rep, size_t first);
/* Writes the name of group G into BUF: that of a root, or "N others". */
const char *report_group_name (const struct pool_report *rep, unsigned g,
                               char buf[64]);
/* Returns how many of the groups have data, and sets V to their numbers. */
unsigned report_groups (const struct pool_report *rep,
                        unsigned v[QCOW2_SURVEY_GROUPS]);
/* Returns N in percent of ALL. */
double report_percent (uint64_t n, uint64_t all);

/* --- report-places.c ---------------------------------------------------------- */
/* Finds the places that show REP->bad.  0, -EINTR or another -errno. */
int report_find_places (struct disk_pool *p, struct pool_report *rep) MUST_CHECK;

/* --- Output ------------------------------------------------------------------ */
void report_json (const struct pool_report *rep, FILE *fp);
void report_page (const struct pool_report *rep, FILE *fp);

/* The style of the page, in CSS. */
extern const char *const report_style[];

/* Begin and end a section with a heading and a sentence on what it shows. */
void report_section (FILE *fp, const char *id, const char *heading,
                     const char *what);
void report_section_end (FILE *fp);
/* Begins a table: HEADS are the headings of its columns, ending with NULL.  Those
 * after the first are of numbers, or of drawings if they begin with '|'.  WHAT is
 * its caption. */
void report_table (FILE *fp, const char *what, const char *const *heads);
void report_table_end (FILE *fp);
/* Writes a cell with a number of bytes, or with text. */
void report_cell_bytes (FILE *fp, uint64_t bytes);
void report_cell (FILE *fp, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));

/* Each writes one section. */
void report_space (const struct pool_report *rep, FILE *fp);
void report_disks (const struct pool_report *rep, FILE *fp);
void report_pairs (const struct pool_report *rep, FILE *fp);
void report_references (const struct pool_report *rep, FILE *fp);
void report_growth (const struct pool_report *rep, FILE *fp);
void report_map (const struct pool_report *rep, FILE *fp);
void report_scrub (const struct pool_report *rep, FILE *fp);
void report_index (const struct pool_report *rep, FILE *fp);

#endif
