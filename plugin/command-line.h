/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef DEDUP_COMMAND_LINE_H
#define DEDUP_COMMAND_LINE_H

#include <stdbool.h>

/* Was this process, an nbdkit, started with -r or --readonly? */
bool command_line_is_readonly (void);

#endif
