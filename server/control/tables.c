/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds commands and types by name, and checks that tables agree with each
 * other.
 *
 * Lists are short (some fifty commands), so they are searched one by one.
 */
#include <errno.h>
#include <string.h>

#include "tables.h"

#define MAX_TYPE 64

size_t
tables_count (const struct qmp_tables *t)
{
  return t->nr + 1;
}

const struct qmp_schema *
tables_schema (const struct qmp_tables *t, size_t i)
{
  return i == 0 ? &qmp_own_schema : t->schemas[i - 1];
}

const struct qmp_command *
tables_command (const struct qmp_tables *t, const char *name)
{
  for (size_t i = 0; i < tables_count (t); i++) {
    const struct qmp_schema *s = tables_schema (t, i);

    for (size_t j = 0; j < s->nr_commands; j++)
      if (strcmp (s->commands[j].name, name) == 0)
        return &s->commands[j];
  }
  return NULL;
}

const struct qmp_type *
tables_type (const struct qmp_tables *t, const char *name)
{
  for (size_t i = 0; i < tables_count (t); i++) {
    const struct qmp_schema *s = tables_schema (t, i);

    for (size_t j = 0; j < s->nr_types; j++)
      if (strcmp (s->types[j].name, name) == 0)
        return &s->types[j];
  }
  return NULL;
}

bool
type_is_simple (const char *type)
{
  static const char *const simple[] = {
    "str", "int", "size", "bool", "number", "any",
  };

  for (size_t i = 0; i < sizeof simple / sizeof simple[0]; i++)
    if (strcmp (simple[i], type) == 0)
      return true;
  return false;
}

bool
type_of_items (const char *type, char *item, size_t size)
{
  size_t len = strlen (type);

  if (type[0] != '[' || len < 3 || len - 2 >= size)
    return false;
  memcpy (item, type + 1, len - 2);
  item[len - 2] = '\0';
  return true;
}

/* --- Agreement ----------------------------------------------------------- */

static int
check_type (const struct qmp_tables *t, const char *of, const char *type,
            struct fault *f)
{
  char item[MAX_TYPE];

  if (type_of_items (type, item, sizeof item))
    type = item;
  if (type_is_simple (type) || tables_type (t, type) != NULL)
    return 0;
  return fault_usage (f, "%s: the type %s does not exist", of, type);
}

static int
check_doc (const char *of, const char *name, const char *doc, struct fault *f)
{
  if (name != NULL && name[0] != '\0' && doc != NULL && doc[0] != '\0')
    return 0;
  return fault_usage (f, "%s: %s has no name or no text", of, name);
}

static int
check_table (const struct qmp_tables *t, const char *of,
             const struct qmp_member *members, size_t nr, struct fault *f)
{
  int r = 0;

  for (size_t i = 0; i < nr && r == 0; i++) {
    r = check_doc (of, members[i].name, members[i].doc, f);
    if (r == 0)
      r = check_type (t, of, members[i].type, f);
  }
  return r;
}

static int
check_command (const struct qmp_tables *t, const struct qmp_command *c,
               struct fault *f)
{
  int r = check_doc ("command", c->name, c->doc, f);

  if (r == 0 && tables_command (t, c->name) != c)
    r = fault_usage (f, "the command %s is there twice", c->name);
  if (r == 0 && c->returns != NULL)
    r = check_type (t, c->name, c->returns, f);
  return r < 0 ? r : check_table (t, c->name, c->args, c->nr_args, f);
}

static int
check_values (const struct qmp_type *type, struct fault *f)
{
  int r = 0;

  for (size_t i = 0; i < type->nr_values && r == 0; i++)
    r = check_doc (type->name, type->values[i].name, type->values[i].doc, f);
  return r;
}

static int
check_one_type (const struct qmp_tables *t, const struct qmp_type *type,
                struct fault *f)
{
  int r = check_doc ("type", type->name, type->doc, f);

  if (r == 0 && tables_type (t, type->name) != type)
    r = fault_usage (f, "the type %s is there twice", type->name);
  if (r == 0)
    r = check_values (type, f);
  return r < 0 ? r :
    check_table (t, type->name, type->members, type->nr_members, f);
}

static int
check_event (const struct qmp_tables *t, const struct qmp_event *e,
             struct fault *f)
{
  int r = check_doc ("event", e->name, e->doc, f);

  return r < 0 ? r : check_table (t, e->name, e->members, e->nr_members, f);
}

static int
check_schema (const struct qmp_tables *t, const struct qmp_schema *s,
              struct fault *f)
{
  int r = check_doc ("schema", s->title, s->doc, f);

  for (size_t i = 0; i < s->nr_types && r == 0; i++)
    r = check_one_type (t, &s->types[i], f);
  for (size_t i = 0; i < s->nr_commands && r == 0; i++)
    r = check_command (t, &s->commands[i], f);
  for (size_t i = 0; i < s->nr_events && r == 0; i++)
    r = check_event (t, &s->events[i], f);
  return r;
}

int
qmp_schema_check (const struct qmp_schema *const *schemas, size_t nr,
                  struct fault *f)
{
  const struct qmp_tables t = { schemas, nr };
  int r = 0;

  for (size_t i = 0; i < tables_count (&t) && r == 0; i++)
    r = check_schema (&t, tables_schema (&t, i), f);
  return r;
}
