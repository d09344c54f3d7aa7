/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the lines on disks that query-disk-lines lists (disk-line.c). */
#ifndef DEDUP_TOOL_DISK_LINE_H
#define DEDUP_TOOL_DISK_LINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DISK_LINE_TYPES 8       /* of requests, at the most; others are left out */
#define DISK_LINE_TYPE_BYTES 24

struct disk_requests {
  char type[DISK_LINE_TYPE_BYTES];
  uint64_t requests, errors, bytes;
};

/* The figures of a disk. */
struct disk_line {
  const char *name;             /* of the reply that it was read from */
  uint64_t size, mapped_bytes, clients;
  bool mapped_known;
  struct disk_requests v[DISK_LINE_TYPES];
  size_t nr;
};

/* Reads a line.  Returns false if it is none, and then *LINE has no requests and the name
 * "". */
bool disk_line_read (const char *s, struct disk_line *line);
/* The same of an element of query-disk-stats, from servers without lines.  What it lacks is
 * 0. */
void disk_line_of_object (const json_t *disk, struct disk_line *line);
/* Returns the name at the end of ITEM, a line, as a new string; NULL. */
json_t *disk_line_key (const json_t *item);

#endif
