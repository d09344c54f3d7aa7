/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands of QEMU's block layer that make sense here: query-block-exports and
 * query-named-block-nodes, in QEMU's shapes.
 *
 * There is one node, the image, and each disk of it is an export as long as it exists.
 * So block-export-add would have nothing to add.  block-export-del is left out on
 * purpose: in QEMU it ends an export and keeps the data, which would come back at the
 * next start here, and a client that meant it as QEMU does must not delete a disk.
 *
 * Threads: any.
 */
#include "commands-private.h"

#include <errno.h>
#include <string.h>

/* --- query-block-exports ------------------------------------------------------ */

struct listing {
  struct srv_page page;
  const char *after;            /* NULL: from the first */
};

static int
export_cb (void *opaque, const struct srv_disk_info *info)
{
  struct listing *l = opaque;

  if (l->after && strcmp (info->name, l->after) <= 0)
    return 0;
  return srv_page_add (&l->page,
                       json_pack ("{s:s, s:b, s:s, s:s}", "id", info->name,
                                  "shutting-down", 0,
                                  "node-name", SRV_NODE_NAME, "type", "nbd"));
}

static int
run_query_exports (void *opaque, const struct qmp_caller *caller, json_t *args,
                   json_t **ret, struct qmp_error *e)
{
  struct listing l = {
    .after = srv_arg_given (args, "after") ? srv_arg_string (args, "after")
      : NULL,
    .page.list = json_array (),
  };
  int r = l.page.list ? srv_image_list_disks (srv_control_image (opaque),
                                              export_cb, &l) : -ENOMEM;

  if (r < 0)
    json_decref (l.page.list);
  else
    *ret = l.page.list;
  return srv_command_result (r, NULL, e);
}

/* --- query-named-block-nodes -------------------------------------------------- */

static json_t *
image_info (const struct srv_control *c, const struct srv_image_info *i)
{
  const uint64_t allocated = srv_image_allocated_bytes (c->image);
  json_t *o = json_pack ("{s:o, s:s, s:I, s:I, s:b}",
                         "filename", srv_json_text (c->image_path),
                         "format", "qcow2",
                         "virtual-size", (json_int_t) i->virtual_size,
                         "cluster-size", (json_int_t) i->cluster_size,
                         "dirty-flag", 0);

  if (o && allocated != UINT64_MAX)
    json_object_set_new (o, "actual-size", json_integer ((json_int_t) allocated));
  return o;
}

/* QEMU's BlockDeviceInfo.  Its members for throttling, which does not exist here, are
 * 0. */
static json_t *
describe_node (const struct srv_control *c, const struct srv_image_info *i)
{
  json_t *o = json_pack ("{s:s, s:o, s:s, s:b, s:b, s:i, s:s, s:o, s:i}",
                         "node-name", SRV_NODE_NAME,
                         "file", srv_json_text (c->image_path),
                         "drv", "qcow2", "ro", !i->writable,
                         "encrypted", 0, "backing_file_depth", 0,
                         "detect_zeroes", "unmap", "image", image_info (c, i),
                         "write_threshold", 0);
  static const char *const limits[] = { "bps", "bps_rd", "bps_wr", "iops",
                                        "iops_rd", "iops_wr" };

  for (size_t k = 0; o && k < sizeof limits / sizeof limits[0]; k++)
    json_object_set_new (o, limits[k], json_integer (0));
  if (o)
    json_object_set_new (o, "cache",
                         json_pack ("{s:b, s:b, s:b}", "writeback", 1,
                                    "direct", 0, "no-flush", 0));
  return o;
}

static int
run_query_nodes (void *opaque, const struct qmp_caller *caller, json_t *args,
                 json_t **ret, struct qmp_error *e)
{
  struct srv_image_info i;

  srv_image_info (srv_control_image (opaque), &i);
  *ret = json_pack ("[o]", describe_node (opaque, &i));
  return srv_command_result (*ret ? 0 : -ENOMEM, NULL, e);
}

/* --- The table ---------------------------------------------------------------- */

static const struct qmp_member exports_args[] = {
  { "after", "str", true, "List the exports behind this one only.  QEMU has no "
    "such argument." },
};
static const struct qmp_member nodes_args[] = {
  { "flat", "bool", true, "Without effect: there are no backing files in the "
    "list." },
};

static const struct qmp_member export_info[] = {
  { "id", "str", false, "The export name; empty for the active disk." },
  { "type", "BlockExportType", false, "How it is exported." },
  { "node-name", "str", false, "\"image\"." },
  { "shutting-down", "bool", false, "False." },
};
static const struct qmp_value export_types[] = {
  { "nbd", "Over NBD." },
};
static const struct qmp_member node_info[] = {
  { "node-name", "str", true, "\"image\", the only node." },
  { "file", "str", false, "The path of the image." },
  { "drv", "str", false, "\"qcow2\"." },
  { "ro", "bool", false, "Whether nobody can write to the image." },
  { "encrypted", "bool", false, "False." },
  { "backing_file_depth", "int", false, "0." },
  { "detect_zeroes", "str", false, "\"unmap\": clusters of zeroes are not "
    "stored." },
  { "image", "ImageInfo", false, "The image." },
  { "cache", "BlockdevCacheInfo", false, "How it is cached." },
  { "write_threshold", "int", false, "0." },
  { "bps", "int", false, "0, as the following ones: there are no limits." },
  { "bps_rd", "int", false, "0." },
  { "bps_wr", "int", false, "0." },
  { "iops", "int", false, "0." },
  { "iops_rd", "int", false, "0." },
  { "iops_wr", "int", false, "0." },
};
static const struct qmp_member image_members[] = {
  { "filename", "str", false, "The path of the image." },
  { "format", "str", false, "\"qcow2\"." },
  { "virtual-size", "size", false, "The size of the active disk in bytes." },
  { "cluster-size", "size", true, "Bytes." },
  { "actual-size", "size", true, "The bytes that the file takes on the host." },
  { "dirty-flag", "bool", true, "False." },
};
static const struct qmp_member cache_members[] = {
  { "writeback", "bool", false, "True: a write is durable after a flush." },
  { "direct", "bool", false, "False." },
  { "no-flush", "bool", false, "False." },
};

static const struct qmp_type types[] = {
  { .name = "BlockExportInfo", .kind = QMP_OBJECT, .members = export_info,
    .nr_members = sizeof export_info / sizeof export_info[0],
    .doc = "An export." },
  { .name = "BlockExportType", .kind = QMP_ENUM, .values = export_types,
    .nr_values = sizeof export_types / sizeof export_types[0],
    .doc = "Protocols of exports." },
  { .name = "BlockDeviceInfo", .kind = QMP_OBJECT, .members = node_info,
    .nr_members = sizeof node_info / sizeof node_info[0],
    .doc = "A node." },
  { .name = "ImageInfo", .kind = QMP_OBJECT, .members = image_members,
    .nr_members = sizeof image_members / sizeof image_members[0],
    .doc = "An image file." },
  { .name = "BlockdevCacheInfo", .kind = QMP_OBJECT, .members = cache_members,
    .nr_members = sizeof cache_members / sizeof cache_members[0],
    .doc = "How a node is cached." },
};

static const struct qmp_command commands[] = {
  { "query-block-exports", QMP_ARRAY (exports_args), "[BlockExportInfo]", false,
    run_query_exports,
    "Lists the exports, as QEMU does: the active disk if it is served, and all disks "
    "and snapshots, ordered by the bytes of their names.  A reply has less than "
    "64 KiB: give the last id as \"after\" until the list is empty." },
  { "query-named-block-nodes", QMP_ARRAY (nodes_args), "[BlockDeviceInfo]", false,
    run_query_nodes,
    "Tells about the image, as QEMU does of a node of its block layer." },
};

const struct qmp_schema srv_block_commands = {
  .title = "Exports",
  .doc = "Each disk and snapshot is an export as long as it exists, so there is no "
    "block-export-add.  There is no block-export-del, because it keeps the data in "
    "QEMU; disk-delete deletes a disk.",
  .commands = commands, .nr_commands = sizeof commands / sizeof commands[0],
  .types = types, .nr_types = sizeof types / sizeof types[0],
};
