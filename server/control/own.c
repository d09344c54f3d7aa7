/* SPDX-License-Identifier: BSD-3-Clause */
/* What the room's own commands do that need no client (dispatch.c does the
 * negotiation).
 *
 * query-schema fills a page of limited size, as clients that read lines often
 * have a limit of 64 KiB (Go's scanner).
 */
#include <errno.h>
#include <string.h>

#include "tables.h"
#include "text.h"

#define MAX_PAGE (32 << 10)    /* bytes; one more entry may follow */

json_t *
version_json (const struct qmp_params *p)
{
  return json_pack ("{s:{s:i, s:i, s:i}, s:s}", "qemu",
                    "micro", (int) p->micro, "minor", (int) p->minor,
                    "major", (int) p->major, "package", p->package);
}

static json_t *
command_names (const struct qmp_tables *t)
{
  json_t *names = json_array ();

  for (size_t i = 0; i < tables_count (t); i++) {
    const struct qmp_schema *s = tables_schema (t, i);

    for (size_t j = 0; j < s->nr_commands; j++)
      json_array_append_new (names, json_pack ("{s:s}", "name",
                                               s->commands[j].name));
  }
  return names;
}

/* --- The schema ---------------------------------------------------------- */

struct page {
  size_t first, nr;            /* nr: entries that were seen */
  const char *only;            /* a name, or NULL */
  size_t bytes;                /* on the page, printed */
  json_t *entries;
  bool more;
};

static size_t
printed_size (const json_t *value)
{
  struct text t = { 0 };
  size_t len;

  text_add_json (&t, value);
  len = t.len;
  text_free (&t);
  return len;
}

static json_t *
members_json (const struct qmp_member *members, size_t nr)
{
  json_t *list = json_array ();

  for (size_t i = 0; i < nr; i++)
    json_array_append_new (list, json_pack (
      "{s:s, s:s, s:b, s:s}", "name", members[i].name,
      "type", members[i].type, "optional", (int) members[i].optional,
      "doc", members[i].doc));
  return list;
}

static json_t *
values_json (const struct qmp_type *type)
{
  json_t *list = json_array ();

  for (size_t i = 0; i < type->nr_values; i++)
    json_array_append_new (list, json_string (type->values[i].name));
  return list;
}

static json_t *
entry_json (const char *kind, const char *name, const char *doc,
            const struct qmp_member *members, size_t nr)
{
  return json_pack ("{s:s, s:s, s:s, s:o}", "kind", kind, "name", name,
                    "doc", doc, "members", members_json (members, nr));
}

static json_t *
command_json (const struct qmp_command *c)
{
  json_t *entry = entry_json ("command", c->name, c->doc, c->args,
                              c->nr_args);

  if (c->returns != NULL)
    json_object_set_new (entry, "returns", json_string (c->returns));
  return entry;
}

static json_t *
type_json (const struct qmp_type *type)
{
  if (type->kind == QMP_OBJECT)
    return entry_json ("object", type->name, type->doc, type->members,
                       type->nr_members);
  return json_pack ("{s:s, s:s, s:s, s:o}", "kind", "enum", "name",
                    type->name, "doc", type->doc, "values",
                    values_json (type));
}

/* Is the next entry, called NAME, part of the page? */
static bool
is_wanted (struct page *p, const char *name)
{
  if (p->only != NULL && strcmp (p->only, name) != 0)
    return false;
  if (p->more || p->nr++ < p->first)
    return false;
  p->more = p->bytes > MAX_PAGE;
  if (p->more)
    p->nr--;
  return !p->more;
}

static void
add_entry (struct page *p, json_t *entry)
{
  p->bytes += printed_size (entry);
  json_array_append_new (p->entries, entry);
}

static void
add_schema (struct page *p, const struct qmp_schema *s)
{
  for (size_t i = 0; i < s->nr_commands; i++)
    if (is_wanted (p, s->commands[i].name))
      add_entry (p, command_json (&s->commands[i]));
  for (size_t i = 0; i < s->nr_events; i++)
    if (is_wanted (p, s->events[i].name))
      add_entry (p, entry_json ("event", s->events[i].name, s->events[i].doc,
                                s->events[i].members,
                                s->events[i].nr_members));
  for (size_t i = 0; i < s->nr_types; i++)
    if (is_wanted (p, s->types[i].name))
      add_entry (p, type_json (&s->types[i]));
}

static json_t *
schema_page (const struct qmp_tables *t, json_t *args)
{
  struct page p = {
    .first = json_integer_value (json_object_get (args, "first")),
    .only = json_string_value (json_object_get (args, "name")),
    .entries = json_array (),
  };
  json_t *page;

  for (size_t i = 0; i < tables_count (t); i++)
    add_schema (&p, tables_schema (t, i));
  page = json_pack ("{s:o}", "entries", p.entries);
  if (p.more)
    json_object_set_new (page, "next", json_integer (p.nr));
  return page;
}

int
run_own (const struct qmp_params *p, const struct qmp_tables *t,
         const struct qmp_command *c, json_t *args, json_t **ret,
         struct qmp_error *e)
{
  if (strcmp (c->name, "query-version") == 0)
    *ret = version_json (p);
  else if (strcmp (c->name, "query-commands") == 0)
    *ret = command_names (t);
  else
    *ret = schema_page (t, args);
  return *ret != NULL ? 0 : qmp_error_set (e, "out of memory");
}
