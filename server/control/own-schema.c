/* SPDX-License-Identifier: BSD-3-Clause */
/* Describes the room's own commands to query-schema, the manual page and the check of
 * arguments.  None has a function in the table, which is how dispatch.c tells them from the
 * commands of the server's user: qmp_capabilities is run there, the others by own.c.
 *
 * Constant, so any thread may read it.
 */
#include "tables.h"

static const struct qmp_member version_members[] = {
  { "qemu", "VersionTriple", false,
    "The version of this server. QEMU's clients look for this name." },
  { "package", "str", false, "The name of the server and its version." },
};

static const struct qmp_member triple_members[] = {
  { "micro", "int", false, "The third number." },
  { "minor", "int", false, "The second number." },
  { "major", "int", false, "The first number." },
};

static const struct qmp_member name_members[] = {
  { "name", "str", false, "The name of the command." },
};

static const struct qmp_member page_members[] = {
  { "entries", "[SchemaEntry]", false, "Commands, events and types." },
  { "next", "int", true,
    "The C<first> of the next page. It is absent if there is none." },
};

static const struct qmp_member entry_members[] = {
  { "kind", "SchemaKind", false, "What the entry describes." },
  { "name", "str", false, "Its name." },
  { "doc", "str", false, "What it is or does." },
  { "members", "[SchemaMember]", true,
    "The arguments of a command; the members of an object or of an event's "
    "data." },
  { "returns", "str", true,
    "The type of what a command returns. If absent, an empty object." },
  { "values", "[str]", true, "The values of an enumeration." },
};

static const struct qmp_member member_members[] = {
  { "name", "str", false, "The name of the member." },
  { "type", "str", false, "Its type; a list is the type in brackets." },
  { "optional", "bool", false, "Whether it may be absent." },
  { "doc", "str", false, "What it is." },
};

static const struct qmp_value kind_values[] = {
  { "command", "A command." },
  { "event", "An event." },
  { "object", "A type with members." },
  { "enum", "A type with values." },
};

static const struct qmp_type own_types[] = {
  { "VersionInfo", QMP_OBJECT, QMP_ARRAY (version_members), NULL, 0,
    "The version of a server." },
  { "VersionTriple", QMP_OBJECT, QMP_ARRAY (triple_members), NULL, 0,
    "Three numbers of a version." },
  { "CommandInfo", QMP_OBJECT, QMP_ARRAY (name_members), NULL, 0,
    "A command." },
  { "QMPCapability", QMP_ENUM, NULL, 0, NULL, 0,
    "A capability of the protocol. This server has none." },
  { "SchemaPage", QMP_OBJECT, QMP_ARRAY (page_members), NULL, 0,
    "Part of the schema." },
  { "SchemaEntry", QMP_OBJECT, QMP_ARRAY (entry_members), NULL, 0,
    "A command, an event or a type." },
  { "SchemaMember", QMP_OBJECT, QMP_ARRAY (member_members), NULL, 0,
    "An argument or a member." },
  { "SchemaKind", QMP_ENUM, NULL, 0, QMP_ARRAY (kind_values),
    "Kinds of entries in the schema." },
};

static const struct qmp_member capabilities_args[] = {
  { "enable", "[QMPCapability]", true,
    "Capabilities to enable. The list must be empty." },
};

static const struct qmp_member schema_args[] = {
  { "first", "size", true, "The number of the first entry, 0 by default." },
  { "name", "str", true, "Returns only entries with this name." },
};

static const struct qmp_command own_commands[] = {
  { "qmp_capabilities", QMP_ARRAY (capabilities_args), NULL, true, NULL,
    "Ends the negotiation. It must be the first command of a client." },
  { "query-version", NULL, 0, "VersionInfo", true, NULL,
    "Returns the version of the server." },
  { "query-commands", NULL, 0, "[CommandInfo]", true, NULL,
    "Returns the names of all commands." },
  { "query-schema", QMP_ARRAY (schema_args), "SchemaPage", true, NULL,
    "Returns the commands with their arguments, the events and the types, in "
    "pages that are below 64 KiB." },
};

const struct qmp_schema qmp_own_schema = {
  "THE PROTOCOL",
  "These commands are about the protocol itself.",
  QMP_ARRAY (own_commands), NULL, 0, QMP_ARRAY (own_types),
};
