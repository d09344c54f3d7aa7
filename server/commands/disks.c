/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands on the disks of a pool: list, create, clone, snapshot, reset, rename,
 * resize, set and delete.
 *
 * Each is one call of server-disks.h, which checks it and makes it durable as a whole,
 * so that a reply without an error says that the change survives a crash.  What would
 * lose data has to be said: a disk gets smaller with "shrink" only, and clients of a
 * disk are cut off with "force" only.  Each change is logged with who asked for it.
 *
 * Threads: the worker of control.h, so that no two changes meet.
 */
#include "commands-private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checked.h"

/* --- query-disks ------------------------------------------------------------- */

struct listing {
  struct srv_page page;
  const char *after;            /* NULL: from the first */
  int64_t left;                 /* so many more */
};

/* Returns whether the list goes on behind AFTER with NAME.  The active disk, "", is
 * the first one. */
static bool
is_behind (const char *after, const char *name)
{
  return after == NULL || strcmp (name, after) > 0;
}

static const char *
kind_of (const struct srv_disk_info *i)
{
  if (i->is_disk)
    return i->is_snapshot ? "snapshot" : "disk";
  return i->name[0] == '\0' ? "active" : "internal-snapshot";
}

static json_t *
describe_disk (const struct srv_disk_info *i)
{
  json_t *o = json_pack ("{s:s, s:s, s:I, s:b, s:I, s:s, s:s}", "name", i->name,
                         "kind", kind_of (i), "size", (json_int_t) i->size,
                         "writable", i->writable,
                         "clients", (json_int_t) i->nr_clients,
                         "compress", i->compress,
                         "compress-source", i->compress_is_own ? "disk" : "pool");

  if (o && i->origin)
    json_object_set_new (o, "origin", json_string (i->origin));
  if (o && i->created)
    json_object_set_new (o, "created", json_integer ((json_int_t) i->created));
  return o;
}

static int
list_cb (void *opaque, const struct srv_disk_info *info)
{
  struct listing *l = opaque;

  if (!is_behind (l->after, info->name))
    return 0;
  return l->left-- <= 0 ? 1 : srv_page_add (&l->page, describe_disk (info));
}

static int
run_query_disks (void *opaque, const struct qmp_caller *caller, json_t *args,
                 json_t **ret, struct qmp_error *e)
{
  struct listing l = {
    .after = srv_arg_given (args, "after") ? srv_arg_string (args, "after")
      : NULL,
    .left = srv_arg_int (args, "limit", INT64_MAX),
    .page.list = json_array (),
  };
  int r = l.page.list ? srv_image_list_disks (srv_control_image (opaque),
                                              list_cb, &l) : -ENOMEM;

  if (r < 0)
    json_decref (l.page.list);
  else
    *ret = l.page.list;
  return srv_command_result (r, NULL, e);
}

/* --- New disks ---------------------------------------------------------------- */

static int
run_create (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  const char *name = srv_arg_string (args, "name");
  const uint64_t size = (uint64_t) srv_arg_int (args, "size", 0);
  struct fault f = { 0 };
  int r = srv_command_result (srv_disk_create (srv_control_image (opaque), name,
                                               size, &f), &f, e);

  srv_command_log (opaque, caller, r, e, "disk-create '%s', %" PRIu64 " bytes",
                   name, size);
  return r;
}

static int
run_clone (void *opaque, const struct qmp_caller *caller, json_t *args,
           json_t **ret, struct qmp_error *e)
{
  const char *source = srv_arg_string (args, "source");
  const char *name = srv_arg_string (args, "name");
  struct fault f = { 0 };
  int r = srv_command_result (srv_disk_clone (srv_control_image (opaque), source,
                                              name, &f), &f, e);

  srv_command_log (opaque, caller, r, e, "disk-clone '%s' of '%s'", name,
                   source);
  return r;
}

static int
run_snapshot (void *opaque, const struct qmp_caller *caller, json_t *args,
              json_t **ret, struct qmp_error *e)
{
  const char *disk = srv_arg_string (args, "name");
  const char *snapshot = srv_arg_string (args, "snapshot");
  CLEANUP_FREE char *name = NULL;
  struct fault f = { 0 };
  int r = asprintf (&name, "%s@%s", disk, snapshot);

  if (r < 0) {
    name = NULL;
    return srv_command_result (-ENOMEM, NULL, e);
  }
  r = srv_command_result (srv_disk_snapshot (srv_control_image (opaque), disk,
                                             name, &f), &f, e);
  srv_command_log (opaque, caller, r, e, "disk-snapshot '%s'", name);
  return r;
}

/* --- Disks that exist ---------------------------------------------------------- */

static int
run_reset (void *opaque, const struct qmp_caller *caller, json_t *args,
           json_t **ret, struct qmp_error *e)
{
  const char *name = srv_arg_string (args, "name");
  const char *source = srv_arg_string (args, "source");
  const bool force = srv_arg_bool (args, "force", false);
  struct fault f = { 0 };
  int r = srv_command_result (srv_disk_reset (srv_control_image (opaque), name,
                                              source, force, &f), &f, e);

  srv_command_log (opaque, caller, r, e, "disk-reset '%s' to '%s'%s", name,
                   source, force ? ", force" : "");
  return r;
}

static int
run_rename (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  const char *name = srv_arg_string (args, "name");
  const char *new_name = srv_arg_string (args, "new-name");
  struct fault f = { 0 };
  int r = srv_command_result (srv_disk_rename (srv_control_image (opaque), name,
                                               new_name, &f), &f, e);

  srv_command_log (opaque, caller, r, e, "disk-rename '%s' to '%s'", name,
                   new_name);
  return r;
}

/* The size of a disk that is wanted, by its name. */
struct wanted {
  const char *name;
  uint64_t size;                /* 0: there is no such disk of the pool */
};

static int
size_cb (void *opaque, const struct srv_disk_info *info)
{
  struct wanted *w = opaque;

  if (strcmp (info->name, w->name) != 0)
    return 0;
  w->size = info->is_disk && !info->is_snapshot ? info->size : 0;
  return 1;
}

/* Refuses a smaller size that was not asked for as such.  What cannot be resized at all,
 * or to no such size, is left to srv_disk_resize, as "shrink" would not help. */
static int MUST_CHECK
check_shrink (struct srv_image *m, const char *name, uint64_t size, bool shrink,
              struct fault *f)
{
  struct wanted w = { .name = name };
  int r = shrink || size == 0 || size % 512 != 0 ? 0
    : srv_image_list_disks (m, size_cb, &w);

  if (r < 0 || w.size <= size)
    return MIN_OF (r, 0);
  return fault_usage (f, "'%s' has %" PRIu64 " bytes: with \"shrink\" it is made "
                      "smaller, and loses the data at its end", name, w.size);
}

static int
run_resize (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  struct srv_image *m = srv_control_image (opaque);
  const char *name = srv_arg_string (args, "name");
  const uint64_t size = (uint64_t) srv_arg_int (args, "size", 0);
  const bool force = srv_arg_bool (args, "force", false);
  struct fault f = { 0 };
  int r = check_shrink (m, name, size, srv_arg_bool (args, "shrink", false), &f);

  if (r == 0)
    r = srv_disk_resize (m, name, size, force, &f);
  r = srv_command_result (r, &f, e);
  srv_command_log (opaque, caller, r, e, "disk-resize '%s' to %" PRIu64
                   " bytes%s", name, size, force ? ", force" : "");
  return r;
}

static int
run_set (void *opaque, const struct qmp_caller *caller, json_t *args,
         json_t **ret, struct qmp_error *e)
{
  const char *name = srv_arg_string (args, "name");
  const char *compress = srv_arg_string (args, "compress");
  struct fault f = { 0 };
  int r = srv_command_result (srv_disk_set_compress (srv_control_image (opaque), name,
                                                     compress, &f), &f, e);

  srv_command_log (opaque, caller, r, e, "disk-set '%s', compress=%s", name, compress);
  return r;
}

static int
run_delete (void *opaque, const struct qmp_caller *caller, json_t *args,
            json_t **ret, struct qmp_error *e)
{
  const char *name = srv_arg_string (args, "name");
  const bool force = srv_arg_bool (args, "force", false);
  struct fault f = { 0 };
  int r = srv_command_result (srv_disk_delete (srv_control_image (opaque), name,
                                               force, &f), &f, e);

  srv_command_log (opaque, caller, r, e, "disk-delete '%s'%s", name,
                   force ? ", force" : "");
  return r;
}

/* --- The table ------------------------------------------------------------------ */

#define FORCE                                                                    \
  { "force", "bool", true, "Do it also while clients have the disk open.  Their "  \
    "requests fail from then on, with the NBD error ESHUTDOWN, until they "        \
    "connect again, also if the command fails then.  Without it the command is "   \
    "refused.  Default: false." }

static const struct qmp_member query_disks_args[] = {
  { "after", "str", true, "List the disks behind this name only; to go on with a "
    "list that did not fit into one reply, the last name of that." },
  { "limit", "size", true, "List so many disks at the most." },
};
static const struct qmp_member create_args[] = {
  { "name", "str", false, "The name of the new disk: 1 to 255 bytes of UTF-8 "
    "without control characters, '/' and '@'." },
  { "size", "size", false, "Its size in bytes, a multiple of 512." },
};
static const struct qmp_member clone_args[] = {
  { "source", "str", false, "The disk or snapshot whose contents the new disk "
    "gets." },
  { "name", "str", false, "The name of the new disk." },
};
static const struct qmp_member snapshot_args[] = {
  { "name", "str", false, "The disk." },
  { "snapshot", "str", false, "What stands behind the '@' in the name of the "
    "snapshot." },
};
static const struct qmp_member reset_args[] = {
  { "name", "str", false, "The disk." },
  { "source", "str", false, "The disk or snapshot whose contents and size it "
    "gets." },
  FORCE,
};
static const struct qmp_member rename_args[] = {
  { "name", "str", false, "The disk or snapshot." },
  { "new-name", "str", false, "Its new name; of a snapshot, DISK@SNAPSHOT." },
};
static const struct qmp_member resize_args[] = {
  { "name", "str", false, "The disk." },
  { "size", "size", false, "The new size in bytes, a multiple of 512." },
  { "shrink", "bool", true, "The size may be smaller than it is; data behind the "
    "new end is lost.  Default: false." },
  FORCE,
};
static const struct qmp_member set_args[] = {
  { "name", "str", false, "The disk." },
  { "compress", "str", false, "\"zstd\" or \"zlib\", which must be the compression type "
    "of the image: new data is compressed.  \"off\": it is not.  \"pool\": the setting "
    "of the pool counts." },
};
static const struct qmp_member delete_args[] = {
  { "name", "str", false, "The disk or snapshot." },
  FORCE,
};

static const struct qmp_member disk_info[] = {
  { "name", "str", false, "The export name; empty for the active disk." },
  { "kind", "DiskKind", false, "What it is." },
  { "size", "size", false, "Bytes." },
  { "writable", "bool", false, "Whether clients can write to it in this "
    "session." },
  { "clients", "int", false, "How many NBD connections have it open." },
  { "compress", "DiskCompress", false, "What is done with new data." },
  { "compress-source", "DiskCompressSource", false, "Whose setting that is." },
  { "origin", "str", true, "The disk or snapshot that it was made from, if that "
    "is still there." },
  { "created", "int", true, "When it was made, in seconds since 1970, if that is "
    "known." },
};
static const struct qmp_value disk_kinds[] = {
  { "active", "The disk that every qcow2 image has." },
  { "disk", "A disk of the pool." },
  { "snapshot", "A snapshot of a disk, which nobody can write." },
  { "internal-snapshot", "A snapshot that another program made, which nobody can "
    "write." },
};

static const struct qmp_value compress_values[] = {
  { "zstd", "It is compressed with zstd." },
  { "zlib", "It is compressed with zlib." },
  { "off", "It is stored plain." },
};
static const struct qmp_value compress_sources[] = {
  { "disk", "The disk's own, which disk-set made or its source had." },
  { "pool", "That of the image, for all disks that have none." },
};

static const struct qmp_type types[] = {
  { .name = "DiskInfo", .kind = QMP_OBJECT, .members = disk_info,
    .nr_members = sizeof disk_info / sizeof disk_info[0],
    .doc = "A disk or snapshot." },
  { .name = "DiskKind", .kind = QMP_ENUM, .values = disk_kinds,
    .nr_values = sizeof disk_kinds / sizeof disk_kinds[0],
    .doc = "Kinds of disks." },
  { .name = "DiskCompress", .kind = QMP_ENUM, .values = compress_values,
    .nr_values = sizeof compress_values / sizeof compress_values[0],
    .doc = "What is done with new data." },
  { .name = "DiskCompressSource", .kind = QMP_ENUM, .values = compress_sources,
    .nr_values = sizeof compress_sources / sizeof compress_sources[0],
    .doc = "Whose setting counts." },
};

static const struct qmp_command commands[] = {
  { "query-disks", QMP_ARRAY (query_disks_args), "[DiskInfo]", false,
    run_query_disks,
    "Lists the disks and snapshots, ordered by the bytes of their names.  A reply "
    "has less than 64 KiB: give the last name as \"after\" until the list is "
    "empty." },
  { "disk-create", QMP_ARRAY (create_args), NULL, false, run_create,
    "Makes an empty disk in a pool." },
  { "disk-clone", QMP_ARRAY (clone_args), NULL, false, run_clone,
    "Makes a writable disk with the contents that another one has at this moment. "
    "Clients of that disk are not stopped." },
  { "disk-snapshot", QMP_ARRAY (snapshot_args), NULL, false, run_snapshot,
    "Keeps the present contents of a disk as DISK@SNAPSHOT, which cannot be "
    "written.  Clients of the disk are not stopped." },
  { "disk-reset", QMP_ARRAY (reset_args), NULL, false, run_reset,
    "Gives a disk the contents and the size that another disk or snapshot has at "
    "this moment.  What it held is lost." },
  { "disk-rename", QMP_ARRAY (rename_args), NULL, false, run_rename,
    "Renames a disk, and its snapshots with it; or one snapshot.  Clients that "
    "have it open go on." },
  { "disk-resize", QMP_ARRAY (resize_args), NULL, false, run_resize,
    "Changes the size of a disk.  Clients see a larger size when they connect "
    "again." },
  { "disk-set", QMP_ARRAY (set_args), NULL, false, run_set,
    "Sets whether new data of a disk is compressed.  What it holds stays as it is, and "
    "clients that have it open go on.  A clone or snapshot that is made later inherits "
    "the setting." },
  { "disk-delete", QMP_ARRAY (delete_args), NULL, false, run_delete,
    "Deletes a disk or snapshot.  Its space is freed in the background, by the "
    "job \"disks\".  Snapshots and clones of the disk stay." },
};

const struct qmp_schema srv_disk_commands = {
  .title = "Disks",
  .doc = "All changes are durable when the reply comes.  The active disk, whose "
    "name is empty, can be a source, and is changed by stock programs only.",
  .commands = commands, .nr_commands = sizeof commands / sizeof commands[0],
  .types = types, .nr_types = sizeof types / sizeof types[0],
};
