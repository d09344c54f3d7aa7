/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares files that get their name when they are complete: reports and metrics. */
#ifndef DEDUP_TOOL_OUTPUT_FILE_H
#define DEDUP_TOOL_OUTPUT_FILE_H

#include <stdbool.h>
#include <stdio.h>

#include "tool.h"

struct output_file;
/* Opens the file to write to; "-" is standard output.  A regular file gets its
 * name, in place of one that is there, when it is complete.  DURABLE: it has it also
 * after a crash of the host.  *FP belongs to the file. */
int output_file_open (const char *path, bool durable, struct output_file **out,
                      FILE **fp, struct fault *f) MUST_CHECK;
/* Names the file.  Frees FILE in any case. */
int output_file_finish (struct output_file *file, struct fault *f) MUST_CHECK;
/* Drops the file.  NULL is allowed. */
void output_file_cancel (struct output_file *file);

#endif
