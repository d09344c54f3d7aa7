/* SPDX-License-Identifier: BSD-3-Clause */
/* What the commands status and metrics ask a server (server-figures.c), and the screen
 * that status draws of it (status-screen.c). */
#ifndef DEDUP_TOOL_STATUS_H
#define DEDUP_TOOL_STATUS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "control-client.h"
#include "latency.h"

/* The replies of a server, at one time. */
struct server_figures {
  uint64_t taken_ns;            /* CLOCK_MONOTONIC */
  json_t *stats;                /* query-stats */
  json_t *jobs;                 /* query-jobs; an empty list where there is none */
  json_t *disks;                /* query-disk-stats, all of them; or NULL, and */
  json_t *lines;                /* query-disk-lines (disk-line.h) */
};

/* Asks the server; LINES: for lines of the disks, if it has them.  -errno with F
 * filled. */
int server_figures_get (struct control_client *c, bool lines,
                        struct server_figures *s, struct fault *f) MUST_CHECK;
void server_figures_free (struct server_figures *s);

/* Returns the member KEY of O as a number, 0 if it is none.  O may be NULL. */
uint64_t figure (const json_t *o, const char *key);
double figure_real (const json_t *o, const char *key);
/* Returns whether O has the member KEY. */
bool figure_known (const json_t *o, const char *key);
/* Returns it as a string, "" if it is none. */
const char *figure_text (const json_t *o, const char *key);

/* Returns the element of "requests" of O, stats or a disk, that is of TYPE; NULL. */
const json_t *figures_of_type (const json_t *o, const char *type);
void figure_latency (const json_t *request, struct latency *l);

/* Returns -1 if control_path knows the socket, else the exit code, after a message: an image
 * with a URI has no place for a socket beside it. */
int control_check_path (const char *subcommand, const char *control, const char *image);
/* Returns the path of the control socket of a server: CONTROL if it was given, else
 * IMAGE with ".control" behind it.  The caller frees it.  NULL: out of memory. */
char *control_path (const char *control, const char *image);

struct screen {
  const char *path;             /* of the image or socket, for the first line */
  unsigned width;               /* columns; longer lines are cut.  0: no limit */
  unsigned height;              /* lines; 0: no limit */
  bool colour;
};
/* Draws NOW on TO.  Rates are those between BEFORE and NOW; with INTERVAL, so are
 * quantiles of latencies, which are else those since the server was started. */
void screen_draw (FILE *to, const struct screen *s,
                  const struct server_figures *before,
                  const struct server_figures *now, bool interval);

#endif
