/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the tables of a server together with the room's own, and what is
 * done by means of them. */
#ifndef DEDUP_TABLES_H
#define DEDUP_TABLES_H

#include "control.h"

struct qmp_tables {
  const struct qmp_schema *const *schemas;
  size_t nr;
};

/* The room's own commands; their RUN is NULL, and own.c has what they do.
 */
extern const struct qmp_schema qmp_own_schema;

/* Returns how many schemas there are, with the room's own, which is number 0.
 */
size_t tables_count (const struct qmp_tables *t);
const struct qmp_schema *tables_schema (const struct qmp_tables *t, size_t i);

/* These return NULL if the tables have no such thing. */
const struct qmp_command *tables_command (const struct qmp_tables *t,
                                          const char *name);
const struct qmp_type *tables_type (const struct qmp_tables *t,
                                    const char *name);

/* Is TYPE a simple type, not the name of a struct qmp_type? */
bool type_is_simple (const char *type);

/* Copies the type of the list's items to ITEM, of SIZE bytes, if TYPE is a
 * list; else returns false. */
bool type_of_items (const char *type, char *item, size_t size);

/* Checks ARGS, an object, against a command's table.  Returns 0 or -EINVAL
 * with E filled. */
int check_args (const struct qmp_tables *t, const struct qmp_command *c,
                json_t *args, struct qmp_error *e) MUST_CHECK;

/* Runs one of the room's own commands but qmp_capabilities. */
int run_own (const struct qmp_params *p, const struct qmp_tables *t,
             const struct qmp_command *c, json_t *args, json_t **ret,
             struct qmp_error *e) MUST_CHECK;

/* The version, as in the greeting. */
json_t *version_json (const struct qmp_params *p);

#endif
