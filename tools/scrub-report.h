/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of qcow2-dedup scrub share. */
#ifndef DEDUP_SCRUB_REPORT_H
#define DEDUP_SCRUB_REPORT_H

#include "dedup.h"
#include "tool-image.h"

/* Ranges that are listed; the summary counts all clusters. */
#define SCRUB_MAX_PLACES 100000u

/* A range of a disk, or of the file, that shows bad clusters. */
struct scrub_place {
  enum dedup_scrub_why why;
  char *disk;                   /* owned; NULL: of none */
  unsigned root;
  uint64_t guest_off, host_off, len;
  bool healable;                /* all of it */
};

struct scrub_outcome {
  const char *path;
  bool complete;                /* all was read */
  bool remembers;               /* findings and position are kept */
  struct dedup_scrub_figures figures;
  struct dedup_scrub_memory memory;
  struct scrub_place *places;
  size_t nr_places;
  uint64_t nr_more;             /* places that are not listed */
};

void scrub_print_human (const struct scrub_outcome *o);
void scrub_print_json (const struct scrub_outcome *o);

#endif
