/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints figures of a server in Prometheus' text format (metrics-print.c). */
#ifndef DEDUP_TOOL_METRICS_PRINT_H
#define DEDUP_TOOL_METRICS_PRINT_H

#include "status.h"

/* IMAGE is a label of all metrics if it is not NULL.  -ENOMEM; whether it was written, TO
 * tells. */
int metrics_print (FILE *to, const char *image, const struct server_figures *s)
  MUST_CHECK;

#endif
