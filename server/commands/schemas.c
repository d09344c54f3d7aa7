/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists the tables of this room, in the order of the manual page.
 *
 * A command that is in none of them does not exist for clients.  Three readers use the
 * list: the dispatcher of the control socket, the command query-schema, and the program
 * that writes the manual page (print-manual.c).  So what is documented is what is accepted.
 *
 * Constant, so any thread may read it.
 */
#include "commands-private.h"

const struct qmp_schema *const srv_schemas[] = {
  &srv_image_commands,
  &srv_disk_commands,
  &srv_block_commands,
  &srv_job_commands,
  &srv_scrub_commands, &srv_compact_commands,
  &srv_stats_commands,
  &srv_event_schema,
};

const size_t srv_nr_schemas = sizeof srv_schemas / sizeof srv_schemas[0];
