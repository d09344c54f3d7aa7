/* SPDX-License-Identifier: BSD-3-Clause */
/* Turns events of the image into events of the control socket.
 *
 * Kinds that QEMU knows have its names and shapes; some have members more.  Others are
 * named in its manner.
 *
 * Threads: any, with whatever locks; nothing here blocks (control.h).
 */
#include "commands-private.h"

#include <errno.h>
#include <string.h>

static void
set_size (json_t *o, const char *name, uint64_t value)
{
  if (o && value != UINT64_MAX)
    json_object_set_new (o, name, json_integer ((json_int_t) value));
}

static void
set_text (json_t *o, const char *name, const char *text)
{
  if (o && text)
    json_object_set_new (o, name, srv_json_text (text));
}

/* QEMU knows reads and writes only. */
static json_t *
io_error (const struct srv_event *e)
{
  const bool is_read = e->operation && strcmp (e->operation, "read") == 0;
  json_t *o = json_pack ("{s:s, s:s, s:s, s:b}",
                         "node-name", SRV_NODE_NAME, "action", "report",
                         "operation", is_read ? "read" : "write",
                         "nospace", e->error == ENOSPC);

  set_text (o, "device", e->name ? e->name : "");
  set_text (o, "reason", e->reason ? e->reason : strerror (e->error));
  set_text (o, "request", e->operation);
  set_size (o, "offset", e->offset);
  set_size (o, "length", e->length);
  return o;
}

static json_t *
scrub_finding (const struct srv_event *e)
{
  json_t *o = json_object ();

  set_text (o, "reason", e->reason);
  set_size (o, "host-offset", e->host_offset);
  set_size (o, "length", e->length);
  if (e->name) {
    set_text (o, "export", e->name);
    set_size (o, "offset", e->offset);
  }
  return o;
}

static json_t *
space_status (const struct srv_event *e)
{
  json_t *o = json_object ();

  set_text (o, "status", e->status);
  set_size (o, "free", e->bytes);
  return o;
}

/* Returns an object with two texts, of which the second may be left out. */
static json_t *
texts (const char *name1, const char *text1, const char *name2,
       const char *text2)
{
  json_t *o = json_object ();

  set_text (o, name1, text1);
  set_text (o, name2, text2);
  return o;
}

/* Returns the data of E, and sets *NAME to its name; NULL: out of memory, or no event
 * of the socket. */
static json_t *
translate (const struct srv_event *e, const char **name)
{
  switch (e->kind) {
  case SRV_EVENT_JOB_STATUS:
    *name = "JOB_STATUS_CHANGE";
    return texts ("id", e->id, "status", e->status);
  case SRV_EVENT_READ_ONLY:
    *name = "IMAGE_READ_ONLY";
    return texts ("reason", e->reason, NULL, NULL);
  case SRV_EVENT_SPACE:
    *name = "SPACE_STATUS_CHANGE";
    return space_status (e);
  case SRV_EVENT_IO_ERROR:
    *name = "BLOCK_IO_ERROR";
    return io_error (e);
  case SRV_EVENT_SCRUB_FINDING:
    *name = "SCRUB_FINDING";
    return scrub_finding (e);
  case SRV_EVENT_CLIENT_REFUSED:
    *name = "CLIENT_REFUSED";
    return texts ("export", e->name, "reason", e->reason);
  case SRV_EVENT_EXPORT_DELETED:
    *name = "BLOCK_EXPORT_DELETED";
    return texts ("id", e->name, NULL, NULL);
  }
  return NULL;
}

void
srv_announce (void *opaque, const struct srv_event *e)
{
  struct srv_control *c = opaque;
  const char *name = NULL;
  json_t *data = translate (e, &name);

  if (data)
    qmp_server_emit (c->server, name, data);
}

/* --- The table ---------------------------------------------------------------- */

static const struct qmp_member job_members[] = {
  { "id", "str", false, "The job." },
  { "status", "JobStatus", false, "Its new state." },
};
static const struct qmp_member deleted_members[] = {
  { "id", "str", false, "The export name that leads nowhere from now on." },
};
static const struct qmp_member io_error_members[] = {
  { "device", "str", false, "The export name." },
  { "node-name", "str", false, "\"image\"." },
  { "operation", "str", false, "\"read\", or \"write\" for all others." },
  { "action", "str", false, "\"report\": the client got the error." },
  { "nospace", "bool", true, "Whether the host has no space left." },
  { "reason", "str", false, "The error, for people." },
  { "request", "str", true, "The type of the request, such as \"flush\"." },
  { "offset", "size", true, "Where the request began, in bytes of the disk." },
  { "length", "size", true, "Its bytes." },
};
static const struct qmp_member shutdown_members[] = {
  { "guest", "bool", false, "False." },
  { "reason", "str", false, "\"host-qmp-quit\" after the command quit, else "
    "\"host-signal\"." },
};
static const struct qmp_member read_only_members[] = {
  { "reason", "str", false, "Why, for people." },
};
static const struct qmp_member space_members[] = {
  { "status", "SpaceStatus", false, "The new status." },
  { "free", "size", true, "Bytes that are available for new data, if that is "
    "known." },
};
static const struct qmp_member finding_members[] = {
  { "reason", "str", false, "What is wrong, for people." },
  { "host-offset", "size", false, "Where, in bytes of the image file." },
  { "length", "size", false, "Bytes." },
  { "export", "str", true, "A disk that has these bytes." },
  { "offset", "size", true, "Where it has them, in bytes of that disk." },
};
static const struct qmp_member refused_members[] = {
  { "export", "str", false, "The export name that the client asked for." },
  { "reason", "str", false, "Why it was refused, for people." },
};

static const struct qmp_event events[] = {
  { "JOB_STATUS_CHANGE", QMP_ARRAY (job_members), "A job has another state." },
  { "BLOCK_EXPORT_DELETED", QMP_ARRAY (deleted_members), "A disk or snapshot was "
    "deleted." },
  { "BLOCK_IO_ERROR", QMP_ARRAY (io_error_members), "A request failed.  One in a "
    "second is told at the most, of each type." },
  { "SHUTDOWN", QMP_ARRAY (shutdown_members), "The server ends: the last event." },
  { "IMAGE_READ_ONLY", QMP_ARRAY (read_only_members), "Nobody can write to the "
    "image any more." },
  { "SPACE_STATUS_CHANGE", QMP_ARRAY (space_members), "Space on the host is low, "
    "or gone, or there is enough of it again." },
  { "SCRUB_FINDING", QMP_ARRAY (finding_members), "A scrub found stored data that "
    "is not what was written.  Of one scrub, 1000 places are told at the most." },
  { "CLIENT_REFUSED", QMP_ARRAY (refused_members), "An NBD client asked for an "
    "export that there is not.  One in a second is told at the most." },
};

const struct qmp_schema srv_event_schema = {
  .title = "Events", .doc = "What happens while the image is served.",
  .events = events, .nr_events = sizeof events / sizeof events[0],
};
