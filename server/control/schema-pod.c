/* SPDX-License-Identifier: BSD-3-Clause */
/* Prints the tables as sections of a manual page, in POD: one section for each subject,
 * the room's own first, and in it the commands, events and types in the order of their
 * table.  So the manual page has whatever clients can use, in the words of query-schema.
 * Texts of the tables may have POD's inline marks, such as C<name>; query-schema prints
 * them as they are.
 *
 * Runs when the program is built (commands/print-manual.c), in one thread.
 */
#include <string.h>

#include "tables.h"

static void
print_type (const char *type, FILE *to)
{
  char item[64];

  if (type_of_items (type, item, sizeof item))
    fprintf (to, "list of I<%s>", item);
  else
    fprintf (to, "I<%s>", type);
}

static void
print_members (const struct qmp_member *members, size_t nr, FILE *to)
{
  if (nr == 0)
    return;
  fprintf (to, "=over 4\n\n");
  for (size_t i = 0; i < nr; i++) {
    fprintf (to, "=item B<%s>: ", members[i].name);
    print_type (members[i].type, to);
    fprintf (to, "%s\n\n%s\n\n", members[i].optional ? " (optional)" : "",
             members[i].doc);
  }
  fprintf (to, "=back\n\n");
}

static void
print_values (const struct qmp_type *type, FILE *to)
{
  if (type->nr_values == 0)
    return;
  fprintf (to, "=over 4\n\n");
  for (size_t i = 0; i < type->nr_values; i++)
    fprintf (to, "=item B<%s>\n\n%s\n\n", type->values[i].name,
             type->values[i].doc);
  fprintf (to, "=back\n\n");
}

static void
print_command (const struct qmp_command *c, FILE *to)
{
  fprintf (to, "=head2 %s\n\n%s\n\n", c->name, c->doc);
  if (c->nr_args > 0)
    fprintf (to, "Arguments:\n\n");
  print_members (c->args, c->nr_args, to);
  if (c->returns != NULL) {
    fprintf (to, "Returns: ");
    print_type (c->returns, to);
    fprintf (to, "\n\n");
  }
}

static void
print_events (const struct qmp_schema *s, FILE *to)
{
  for (size_t i = 0; i < s->nr_events; i++) {
    fprintf (to, "=head2 Event %s\n\n%s\n\n", s->events[i].name,
             s->events[i].doc);
    print_members (s->events[i].members, s->events[i].nr_members, to);
  }
}

static void
print_types (const struct qmp_schema *s, FILE *to)
{
  for (size_t i = 0; i < s->nr_types; i++) {
    fprintf (to, "=head2 Type %s\n\n%s\n\n", s->types[i].name,
             s->types[i].doc);
    print_members (s->types[i].members, s->types[i].nr_members, to);
    print_values (&s->types[i], to);
  }
}

static void
print_schema (const struct qmp_schema *s, FILE *to)
{
  fprintf (to, "=head1 %s\n\n%s\n\n", s->title, s->doc);
  for (size_t i = 0; i < s->nr_commands; i++)
    print_command (&s->commands[i], to);
  print_events (s, to);
  print_types (s, to);
}

void
qmp_schema_print_pod (const struct qmp_schema *const *schemas, size_t nr,
                      FILE *to)
{
  const struct qmp_tables t = { schemas, nr };

  for (size_t i = 0; i < tables_count (&t); i++)
    print_schema (tables_schema (&t, i), to);
}
