/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks the arguments of a command against the tables.
 *
 * Members are looked at in the order of the table, then those that no table
 * has; the first fault is reported.  The texts are QEMU's, also where they
 * could be better: people and programs know them.
 */
#include <errno.h>
#include <string.h>

#include "tables.h"

#define MAX_TYPE 64

/* Where a value is: "options[0].driver", and the last name of that. */
struct place {
  char path[512];
  const char *name;            /* NULL: an item of a list */
};

static int check_value (const struct qmp_tables *t, const char *type,
                        const struct place *at, json_t *value,
                        struct qmp_error *e);

static struct place
member_of (const struct place *at, const char *name)
{
  struct place p = { .name = name };

  snprintf (p.path, sizeof p.path, "%.200s%s%.250s", at->path,
            at->path[0] != '\0' ? "." : "", name);
  return p;
}

static struct place
item_of (const struct place *at, size_t i)
{
  struct place p = { .name = NULL };

  snprintf (p.path, sizeof p.path, "%.400s[%zu]", at->path, i);
  return p;
}

static int
wrong_type (const struct place *at, const char *expected, struct qmp_error *e)
{
  return qmp_error_set (e, "Invalid parameter type for '%s', expected: %s",
                        at->path, expected);
}

static const char *
simple_type_in_words (const char *type)
{
  if (strcmp (type, "str") == 0)
    return "string";
  if (strcmp (type, "bool") == 0)
    return "boolean";
  return strcmp (type, "int") == 0 ? "integer" : type;
}

static bool
has_simple_type (const char *type, const json_t *value)
{
  if (strcmp (type, "str") == 0)
    return json_is_string (value);
  if (strcmp (type, "bool") == 0)
    return json_is_boolean (value);
  if (strcmp (type, "number") == 0)
    return json_is_number (value);
  if (strcmp (type, "int") == 0)
    return json_is_integer (value);
  if (strcmp (type, "size") == 0)
    return json_is_integer (value) && json_integer_value (value) >= 0;
  return true;                 /* "any" */
}

static int
check_simple (const char *type, const struct place *at, const json_t *value,
              struct qmp_error *e)
{
  if (has_simple_type (type, value))
    return 0;
  if (strcmp (type, "size") == 0)
    return qmp_error_set (e, "Parameter '%s' expects uint64", at->path);
  return wrong_type (at, simple_type_in_words (type), e);
}

static int
check_enum (const struct qmp_type *type, const struct place *at,
            const json_t *value, struct qmp_error *e)
{
  const char *s = json_string_value (value);

  if (s == NULL)
    return wrong_type (at, "string", e);
  for (size_t i = 0; i < type->nr_values; i++)
    if (strcmp (type->values[i].name, s) == 0)
      return 0;
  return qmp_error_set (e, "Parameter '%s' does not accept value '%s'",
                        at->name != NULL ? at->name : "null", s);
}

static int
check_list (const struct qmp_tables *t, const char *item_type,
            const struct place *at, const json_t *value, struct qmp_error *e)
{
  int r = 0;

  if (!json_is_array (value))
    return wrong_type (at, "array", e);
  for (size_t i = 0; i < json_array_size (value) && r == 0; i++) {
    struct place p = item_of (at, i);

    r = check_value (t, item_type, &p, json_array_get (value, i), e);
  }
  return r;
}

static bool
is_member (const struct qmp_member *members, size_t nr, const char *name)
{
  for (size_t i = 0; i < nr; i++)
    if (strcmp (members[i].name, name) == 0)
      return true;
  return false;
}

static int
check_unexpected (const struct qmp_member *members, size_t nr,
                  const struct place *at, json_t *object, struct qmp_error *e)
{
  const char *key;
  json_t *value;

  json_object_foreach (object, key, value)
    if (!is_member (members, nr, key)) {
      struct place p = member_of (at, key);

      return qmp_error_set (e, "Parameter '%s' is unexpected", p.path);
    }
  return 0;
}

static int
check_member (const struct qmp_tables *t, const struct qmp_member *m,
              const struct place *at, const json_t *object,
              struct qmp_error *e)
{
  struct place p = member_of (at, m->name);
  json_t *value = json_object_get (object, m->name);

  if (value != NULL)
    return check_value (t, m->type, &p, value, e);
  if (m->optional)
    return 0;
  return qmp_error_set (e, "Parameter '%s' is missing", p.path);
}

static int
check_members (const struct qmp_tables *t, const struct qmp_member *members,
               size_t nr, const struct place *at, json_t *object,
               struct qmp_error *e)
{
  int r = 0;

  for (size_t i = 0; i < nr && r == 0; i++)
    r = check_member (t, &members[i], at, object, e);
  return r < 0 ? r : check_unexpected (members, nr, at, object, e);
}

static int
check_named (const struct qmp_tables *t, const char *name,
             const struct place *at, json_t *value, struct qmp_error *e)
{
  const struct qmp_type *type = tables_type (t, name);

  if (type->kind == QMP_ENUM)
    return check_enum (type, at, value, e);
  if (!json_is_object (value))
    return wrong_type (at, "object", e);
  return check_members (t, type->members, type->nr_members, at, value, e);
}

static int
check_value (const struct qmp_tables *t, const char *type,
             const struct place *at, json_t *value, struct qmp_error *e)
{
  char item[MAX_TYPE];

  if (type_of_items (type, item, sizeof item))
    return check_list (t, item, at, value, e);
  if (type_is_simple (type))
    return check_simple (type, at, value, e);
  return check_named (t, type, at, value, e);
}

int
check_args (const struct qmp_tables *t, const struct qmp_command *c,
            json_t *args, struct qmp_error *e)
{
  struct place top = { .name = NULL };

  return check_members (t, c->args, c->nr_args, &top, args, e);
}
