/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin: nbdkit's callbacks.  Its keys are read in config.c; all else is in
 * server/.
 *
 * A process serves one image.  It is opened in .get_ready, so that errors are
 * reported on the terminal, and a crashed image is recovered, before nbdkit
 * goes into the background and before a client waits.  Threads start in
 * .after_fork, and end in .cleanup or on a signal (stop.c).
 *
 * With -r, or below a filter such as cow, no connection can write.  The image
 * must then be opened read-only, so that no byte of it changes and others can
 * read it.  nbdkit tells a plugin only when a client connects, which is too
 * late for the recovery of a crashed image and for refusing one that another
 * server has open, so the command line is parsed again (command-line.c).  If
 * that ever misses something, connections still cannot write, because .open is
 * told.  The key readonly= is explicit.
 *
 * Only the files of this room have global variables, as nbdkit gives its
 * configuration callbacks no handle.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "admin.h"
#include "checked.h"
#include "command-line.h"
#include "config.h"
#include "malloc-limits.h"
#include "peer.h"
#include "report.h"
#include "server.h"
#include "stale-socket.h"
#include "stop.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* The largest request that every NBD client may send without asking (the
 * protocol's "Block size constraints").  Larger ones work, too. */
#define MAX_BLOCK_BYTES (UINT32_C (32) << 20)

static struct srv_image *image;
static bool on_stdin;             /* the only client is on stdin and stdout */

static void
plugin_dump_plugin (void)
{
  printf ("dedup_keys=");
  config_print_keys ();
  printf ("\ndedup_hash=sha256 sha3-256 skein-256-256 xxh3-128\n");
  printf ("dedup_min_cluster_size=512\ndedup_max_cluster_size=2097152\n");
}

/* --- Start and stop ------------------------------------------------------ */

static void
plugin_load (void)
{
  srv_limit_malloc ();
  /* A write past the file size limit must fail with EFBIG, so that the client
   * gets an error, and not kill the server. */
  signal (SIGXFSZ, SIG_IGN);
  srv_image_params_default (&config.params);
  config.params.log = &report_sink;
}

/* Returns what makes the image read-only, for messages, or NULL if nothing
 * does.  -r overrides readonly=off, as nbdkit promises that nothing is
 * written. */
static const char *
read_only_because (void)
{
  const char *argument = command_line_readonly ();

  if (argument && strcmp (argument, "-r") == 0)
    return argument;
  return config.readonly == CONFIG_READONLY_ON ? "readonly=on"
    : config.readonly == CONFIG_READONLY_AUTO ? argument : NULL;
}

/* Removes a socket that an earlier server left behind, which would keep nbdkit
 * from starting. */
static void
remove_socket_of_earlier_server (void)
{
  CLEANUP_FREE char *path = command_line_socket ();

  if (path && remove_stale_socket (path))
    nbdkit_debug ("%s: socket of an earlier server removed", path);
}

static int
plugin_get_ready (void)
{
  struct fault f = { 0 };
  int r;

  config.params.path = config.file_path;
  config.params.store = config.store_path;
  config.params.read_only_because = read_only_because ();
  config.params.read_only = config.params.read_only_because != NULL;
  on_stdin = command_line_on_stdin ();
  if (admin_open (config.file_path) < 0)
    return -1;
  r = srv_image_open (&config.params, &image, &f);
  if (r < 0) {
    report_error ("%s: %s", config.file_name, f.msg[0] ? f.msg : strerror (-r));
    return -1;
  }
  if (config.params.read_only)
    nbdkit_debug ("%s: opened read-only (%s)", config.file_name,
                  config.params.read_only_because);
  else
    nbdkit_debug ("%s: opened for writing", config.file_name);
  remove_socket_of_earlier_server ();
  admin_attach (image);
  return 0;
}

static void
close_image (void)
{
  int r;

  admin_stop ();
  r = srv_image_close (image);          /* logs how it ended */
  (void) r;
  image = NULL;
  admin_free ();
}

static int
plugin_after_fork (void)
{
  int r;

  report_after_fork ();
  r = srv_image_start (image);
  if (r == 0)
    r = stop_init (close_image);
  if (r == 0)
    r = admin_start ();
  if (r < 0) {
    report_error ("%s: cannot start background work: %s", config.file_path,
                  strerror (-r));
    return -1;
  }
  srv_image_log_serving (image);
  return 0;
}

static void
plugin_cleanup (void)
{
  stop_finish ();
  close_image ();
}

/* Closes the image if .cleanup did not: nbdkit skips that if it ends before it
 * serves. */
static void
plugin_unload (void)
{
  close_image ();
  config_free ();
}

/* --- Connections --------------------------------------------------------- */

struct connection {
  struct srv_disk *disk;        /* the image's; this is a client of it */
  struct srv_client *client;    /* likewise, for figures */
  bool may_write;
};

/* nbdkit lists no more exports (its MAX_EXPORTS).  Clients can connect to
 * others, too. */
#define MAX_LISTED 9999

/* A description names an origin, of at most 511 bytes. */
#define DESCRIPTION_BYTES 700

struct listing {
  struct nbdkit_exports *exports;
  unsigned nr;
};

static int
list_disk_cb (void *opaque, const struct srv_disk_info *info)
{
  struct listing *l = opaque;
  char line[DESCRIPTION_BYTES];

  if (l->nr++ == MAX_LISTED)
    return 1;
  return nbdkit_add_export (l->exports, info->name,
                            srv_disk_describe (info, line, sizeof line));
}

/* Called first in the thread of a new connection. */
static int
plugin_preconnect (int readonly)
{
  stop_count_connection ();
  return 0;
}

static int
plugin_list_exports (int readonly, int is_tls,
                     struct nbdkit_exports *exports)
{
  struct listing l = { .exports = exports };
  int r;
  STOP_SCOPE;

  r = srv_image_list_disks (image, list_disk_cb, &l);
  if (r == -ENOMEM)
    nbdkit_error ("%s: out of memory", config.file_path);
  return r < 0 ? -1 : 0;
}

static const char *
plugin_default_export (int readonly, int is_tls)
{
  return "";
}

/* Opens the disk with the export name NAME as client C.  An error is
 * reported. */
static int
open_disk (struct connection *c, const char *name)
{
  struct fault f = { 0 };
  int r = srv_image_disk (image, name, &c->disk, &f);

  if (r < 0) {
    report_refused ("%s: %s", config.file_path, f.msg);
    nbdkit_set_error (-r);
  }
  return r;
}

/* Adds client C, of the export NAME, to the image's list.  An error is
 * reported. */
static int
note_client (struct connection *c, const char *name)
{
  char address[128];
  int r = srv_client_new (image, name, on_stdin ? "stdin" :
                          peer_name (address, sizeof address), &c->client);

  if (r < 0)
    nbdkit_error ("%s: out of memory", config.file_path);
  return r;
}

/* Makes C a client of the export NAME. */
static int
connect_client (struct connection *c, const char *name)
{
  int r = open_disk (c, name);

  if (r < 0)
    return r;
  r = note_client (c, name);
  if (r < 0)
    srv_disk_put (image, c->disk);
  return r;
}

static void *
plugin_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct connection *c;
  STOP_SCOPE;

  if (name == NULL)
    return NULL;
  c = malloc (sizeof *c);
  if (c == NULL) {
    nbdkit_error ("%s: out of memory", config.file_path);
    return NULL;
  }
  if (connect_client (c, name) < 0) {
    free (c);
    return NULL;
  }
  c->may_write = !readonly && srv_disk_writable (c->disk);
  return c;
}

/* Once the server stops, disk and client are freed with the image. */
static void
plugin_close (void *handle)
{
  struct connection *c = handle;

  if (stop_try_enter ()) {
    srv_client_free (c->client);
    srv_disk_put (image, c->disk);
    stop_leave ();
  }
  free (c);
}

/* The description of a connection's disk that is wanted, by its name. */
struct wanted {
  const char *name;
  const char *line;             /* NULL: not found */
};

static int
describe_cb (void *opaque, const struct srv_disk_info *info)
{
  char line[DESCRIPTION_BYTES];
  struct wanted *w = opaque;

  if (strcmp (info->name, w->name) != 0)
    return 0;
  w->line = nbdkit_strdup_intern (srv_disk_describe (info, line, sizeof line));
  return 1;
}

/* Describes the disk of a connection as the list of exports does. */
static const char *
plugin_export_description (void *handle)
{
  struct wanted w = { .name = nbdkit_export_name () };
  STOP_SCOPE;

  if (w.name && srv_image_list_disks (image, describe_cb, &w) < 0)
    nbdkit_error ("%s: out of memory", config.file_path);
  return w.line;
}

static struct srv_disk *
disk_of (const void *handle)
{
  return ((const struct connection *) handle)->disk;
}

static int
answer_writable (void *handle)
{
  return ((struct connection *) handle)->may_write;
}

static int
answer_yes (void *handle)
{
  return 1;
}

static int
answer_no (void *handle)
{
  return 0;
}

static int
answer_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

static int
answer_cache (void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

static int64_t
plugin_get_size (void *handle)
{
  STOP_SCOPE;

  return (int64_t) srv_disk_size (disk_of (handle));
}

static int
plugin_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                   uint32_t *maximum)
{
  STOP_SCOPE;

  *minimum = 1;
  *preferred = srv_disk_preferred_block (disk_of (handle));
  *maximum = MAX_BLOCK_BYTES;
  return 0;
}

/* --- Requests ------------------------------------------------------------ */

static struct srv_client *
client_of (const void *handle)
{
  return ((const struct connection *) handle)->client;
}

/* Counts a request of COUNT bytes that ended with R, reports an error, and returns
 * what nbdkit expects. */
static int
answer (void *handle, enum srv_request type, int r, uint64_t guest_off,
        uint32_t count)
{
  srv_client_count (client_of (handle), type, count, r);
  if (r >= 0)
    return 0;
  if (r != -ENOSPC)             /* logged once, by server/space.c */
    report_request ("%s: %s at %" PRIu64 ": %s", config.file_path,
                    srv_request_name (type), guest_off, strerror (-r));
  nbdkit_set_error (-r);
  return -1;
}

static int
plugin_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  STOP_SCOPE;
  int r = srv_pread (disk_of (handle), buf, offset, count);

  return answer (handle, SRV_REQUEST_READ, r, offset, count);
}

static int
plugin_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  STOP_SCOPE;
  int r = srv_pwrite (disk_of (handle), buf, offset, count,
                      flags & NBDKIT_FLAG_FUA);

  return answer (handle, SRV_REQUEST_WRITE, r, offset, count);
}

static int
plugin_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  STOP_SCOPE;
  int r = srv_trim (disk_of (handle), offset, count, flags & NBDKIT_FLAG_FUA);

  return answer (handle, SRV_REQUEST_TRIM, r, offset, count);
}

static int
plugin_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  STOP_SCOPE;
  int r = srv_zero (disk_of (handle), offset, count,
                    flags & NBDKIT_FLAG_MAY_TRIM, flags & NBDKIT_FLAG_FAST_ZERO,
                    flags & NBDKIT_FLAG_FUA);

  return answer (handle, SRV_REQUEST_ZERO, r, offset, count);
}

static int
plugin_flush (void *handle, uint32_t flags)
{
  STOP_SCOPE;
  int r = srv_flush (disk_of (handle));

  srv_client_count (client_of (handle), SRV_REQUEST_FLUSH, 0, r);
  if (r >= 0)
    return 0;
  if (r != -ENOSPC)
    report_request ("%s: flush: %s", config.file_path, strerror (-r));
  nbdkit_set_error (-r);
  return -1;
}

static int
plugin_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  STOP_SCOPE;
  int r = srv_cache (disk_of (handle), offset, count);

  return answer (handle, SRV_REQUEST_CACHE, r, offset, count);
}

/* Returns 1 to stop if nbdkit_add_extent failed; it has reported why and set
 * errno. */
static int
add_extent_cb (void *opaque, uint64_t guest_off, uint64_t len,
               enum srv_extent_type type)
{
  static const uint32_t flags[] = {
    [SRV_DATA] = 0,
    [SRV_HOLE_ZERO] = NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO,
    [SRV_ZERO] = NBDKIT_EXTENT_ZERO,
  };

  return nbdkit_add_extent (opaque, guest_off, len, flags[type]) < 0;
}

static int
plugin_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                struct nbdkit_extents *extents)
{
  STOP_SCOPE;
  int r = srv_extents (disk_of (handle), offset, count,
                       flags & NBDKIT_FLAG_REQ_ONE, add_extent_cb, extents);

  return r > 0 ? -1
    : answer (handle, SRV_REQUEST_BLOCK_STATUS, r, offset, count);
}

static struct nbdkit_plugin plugin = {
  .name              = "dedup",
  .longname          = "nbdkit deduplicating qcow2 plugin",
  .version           = PACKAGE_VERSION,
  .description       = "Serve a qcow2 image, storing equal blocks once",
  .magic_config_key  = "file",
  .config_help       = CONFIG_HELP,

  .load              = plugin_load,
  .unload            = plugin_unload,
  .dump_plugin       = plugin_dump_plugin,
  .config            = config_key,
  .config_complete   = config_complete,
  .get_ready         = plugin_get_ready,
  .after_fork        = plugin_after_fork,
  .cleanup           = plugin_cleanup,

  .preconnect        = plugin_preconnect,
  .list_exports      = plugin_list_exports,
  .default_export    = plugin_default_export,
  .open              = plugin_open,
  .close             = plugin_close,
  .export_description = plugin_export_description,
  .get_size          = plugin_get_size,
  .block_size        = plugin_block_size,
  .can_write         = answer_writable,
  .can_flush         = answer_yes,
  .can_trim          = answer_writable,
  .can_zero          = answer_writable,
  .can_fast_zero     = answer_writable,
  .can_extents       = answer_yes,
  .can_multi_conn    = answer_yes,
  .can_fua           = answer_fua,
  .can_cache         = answer_cache,
  .is_rotational     = answer_no,

  .pread             = plugin_pread,
  .pwrite            = plugin_pwrite,
  .trim              = plugin_trim,
  .zero              = plugin_zero,
  .flush             = plugin_flush,
  .cache             = plugin_cache,
  .extents           = plugin_extents,
};

/* The symbol that nbdkit looks for.  Its header does not declare it. */
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
