/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdkit's callbacks and the configuration keys, nothing else.
 *
 * One image per process, opened in .get_ready: what is wrong with it is said
 * on the terminal, and a crashed image is recovered, before nbdkit goes into
 * the background and before any client waits.  Threads start in .after_fork
 * and end in .cleanup, or on a signal (stop.c).  Everything else is in server/.
 *
 * Read-only: with -r, or below a filter such as cow, no connection can write.
 * The image must then be opened so that not one byte of it changes and others
 * can read it, but nbdkit tells a plugin only when a client connects, which is
 * too late for the recovery of a crashed image and for refusing one that
 * another server has open.  So the command line is read again
 * (command-line.c).  Should that ever miss something, .open still learns of it
 * and such connections can't write.  The key readonly= says it outright.
 *
 * The files of this room are the only ones with global variables, as nbdkit
 * gives its configuration callbacks no handle.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "checked.h"
#include "command-line.h"
#include "export.h"
#include "malloc-limits.h"
#include "report.h"
#include "stale-socket.h"
#include "stop.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* What NBD clients may rely on without asking (the protocol's "Block size
 * constraints"); larger requests work too. */
#define MAX_BLOCK_BYTES (UINT32_C (32) << 20)

#define MAX_COMMIT_INTERVAL_MS 3600000      /* an hour */

static struct srv_params params;
static const char *file_name;     /* as given, for messages */
static char *file_path;           /* absolute: nbdkit changes directory */
static char *store_path;          /* likewise */
static enum { READONLY_AUTO, READONLY_ON, READONLY_OFF } readonly_key;
static struct srv_export *export;

/* --- Configuration ------------------------------------------------------- */

static int
bad_value (const char *key, const char *value, const char *expected)
{
  report_error ("%s=%s: %s", key, value, expected);
  return -1;
}

/* A decimal number at *S, moving *S behind it. */
static bool
parse_digits (const char **s, uint64_t *n)
{
  const char *p = *s;

  for (*n = 0; *p >= '0' && *p <= '9'; ++p)
    if (!mul_u64 (*n, 10, n) || !add_u64 (*n, (uint64_t) (*p - '0'), n))
      return false;
  if (p == *s)
    return false;
  *s = p;
  return true;
}

/* As nbdkit_parse_size, whose message would not name the key. */
static int
config_size (const char *key, const char *value, int64_t *out)
{
  static const char suffixes[] = "bkmgtpe";
  const char *s = value, *suffix;
  uint64_t n, unit = 1;

  if (!parse_digits (&s, &n))
    return bad_value (key, value, "must be a size, such as 512, 64k or 20G");
  if (*s != '\0') {
    suffix = strchr (suffixes, *s | 0x20);
    if (suffix == NULL || s[1] != '\0')
      return bad_value (key, value, "must be a size, such as 512, 64k or 20G");
    unit = UINT64_C (1) << 10 * (suffix - suffixes);
  }
  if (!mul_u64 (n, unit, &n) || n > INT64_MAX)
    return bad_value (key, value, "is too large");
  *out = (int64_t) n;
  return 0;
}

static int
config_file (const char *key, const char *value)
{
  if (*value == '\0')
    return bad_value (key, value, "must name a file");
  free (file_path);
  file_name = value;            /* nbdkit keeps the string */
  file_path = nbdkit_absolute_path (value);
  return file_path ? 0 : -1;
}

static int
config_store (const char *key, const char *value)
{
  if (*value == '\0')
    return bad_value (key, value, "must name a file");
  free (store_path);
  store_path = nbdkit_absolute_path (value);
  return store_path ? 0 : -1;
}

static int
config_image_size (const char *key, const char *value)
{
  return config_size (key, value, &params.create_size);
}

static int
config_cluster_size (const char *key, const char *value)
{
  int64_t n;

  if (config_size (key, value, &n) < 0)
    return -1;
  if (!is_pow2 ((uint64_t) n) || n < 512 || n > 2 << 20)
    return bad_value (key, value, "must be a power of two from 512 to 2M");
  params.cluster_size = (uint64_t) n;
  params.cluster_size_given = true;
  return 0;
}

static int
config_bool (const char *key, const char *value, bool *out,
             const char *expected)
{
  static const char *const yes[] = { "on", "true", "yes", "1" };
  static const char *const no[] = { "off", "false", "no", "0" };
  size_t i;

  for (i = 0; i < sizeof yes / sizeof yes[0]; ++i) {
    if (strcasecmp (value, yes[i]) == 0) {
      *out = true;
      return 0;
    }
    if (strcasecmp (value, no[i]) == 0) {
      *out = false;
      return 0;
    }
  }
  return bad_value (key, value, expected);
}

static int
config_on_off (const char *key, const char *value, bool *out)
{
  return config_bool (key, value, out, "must be on or off");
}

static int
config_dedup (const char *key, const char *value)
{
  return config_on_off (key, value, &params.dedup);
}

static int
config_verify (const char *key, const char *value)
{
  return config_on_off (key, value, &params.verify);
}

static int
config_index_existing (const char *key, const char *value)
{
  return config_on_off (key, value, &params.index_existing);
}

static int
config_readonly (const char *key, const char *value)
{
  bool on;

  if (strcasecmp (value, "auto") == 0) {
    readonly_key = READONLY_AUTO;
    return 0;
  }
  if (config_bool (key, value, &on, "must be on, off or auto") < 0)
    return -1;
  readonly_key = on ? READONLY_ON : READONLY_OFF;
  return 0;
}

/* Whether it is known, the image's room says when it is opened. */
static int
config_hash (const char *key, const char *value)
{
  params.hash = value;
  return 0;
}

/* Whether it is a policy, the image's room says as well. */
static int
config_backing (const char *key, const char *value)
{
  params.backing = value;
  return 0;
}

static int
config_max_incarnations (const char *key, const char *value)
{
  const char *s = value;
  uint64_t n;

  if (!parse_digits (&s, &n) || *s != '\0' || n > UINT32_MAX)
    return bad_value (key, value, "must be a number, 0 for no limit");
  params.max_incarnations = (int64_t) n;
  return 0;
}

static int
config_index_memory (const char *key, const char *value)
{
  return config_size (key, value, &params.index_memory);
}

static int
config_l2_cache_size (const char *key, const char *value)
{
  return config_size (key, value, &params.l2_cache_bytes);
}

static int
config_commit_interval (const char *key, const char *value)
{
  const char *s = value;
  uint64_t n, unit_ms = 1000;

  if (!parse_digits (&s, &n))
    return bad_value (key, value, "must be a time, such as 5, 5s or 500ms");
  if (strcmp (s, "ms") == 0)
    unit_ms = 1;
  else if (strcmp (s, "") != 0 && strcmp (s, "s") != 0)
    return bad_value (key, value, "must be a time, such as 5, 5s or 500ms");
  if (!mul_u64 (n, unit_ms, &n) || n > MAX_COMMIT_INTERVAL_MS)
    return bad_value (key, value, "must be at most 3600 seconds");
  params.commit_interval_ms = (unsigned) n;
  return 0;
}

static const struct {
  const char *key;
  int (*set) (const char *key, const char *value);
} keys[] = {
  { "file", config_file },
  { "readonly", config_readonly },
  { "size", config_image_size },
  { "cluster-size", config_cluster_size },
  { "dedup", config_dedup },
  { "hash", config_hash },
  { "verify", config_verify },
  { "backing", config_backing },
  { "store", config_store },
  { "max-incarnations", config_max_incarnations },
  { "index-memory", config_index_memory },
  { "l2-cache-size", config_l2_cache_size },
  { "commit-interval", config_commit_interval },
  { "index-existing", config_index_existing },
};

#define NR_KEYS (sizeof keys / sizeof keys[0])

static int
plugin_config (const char *key, const char *value)
{
  size_t i;

  if (strcmp (key, "read-only") == 0)   /* nbdkit's option has two names, too */
    key = "readonly";
  for (i = 0; i < NR_KEYS; ++i)
    if (strcmp (key, keys[i].key) == 0)
      return keys[i].set (key, value);
  report_error ("unknown parameter '%s'", key);
  return -1;
}

static int
plugin_config_complete (void)
{
  if (file_path == NULL) {
    report_error ("the image is missing: nbdkit dedup file=DISK.qcow2");
    return -1;
  }
  return 0;
}

#define plugin_config_help                                                   \
  "[file=]<FILENAME>     (required) The qcow2 image to serve.\n"             \
  "readonly=on|off|auto  Change nothing, share the image with other readers\n" \
  "                      (default auto: with -r, or below a filter such as\n"  \
  "                      cow that never writes).\n"                            \
  "size=<SIZE>           Create the image with this size if it is absent.\n" \
  "cluster-size=<SIZE>   Cluster size of an image that is created\n"         \
  "                      (512 to 2M, default 4k).\n"                         \
  "dedup=on|off          Deduplicate what is written (default on).\n"        \
  "hash=<NAME>           Hash that identifies blocks: sha256 (default),\n"   \
  "                      sha3-256, skein-256-256 or xxh3-128.\n"             \
  "verify=on|off         Compare bytes before sharing (default on).\n"       \
  "backing=off|same-dir|any  Open the backing files that the image names:\n" \
  "                      none (default), in its directory, anywhere.\n"     \
  "store=<FILENAME>      Keep the index in a file of its own.\n"             \
  "max-incarnations=<N>  Bound on the index, 0 for none.\n"                  \
  "index-memory=<SIZE>   Bound on the RAM of the index, 0 for none.\n"       \
  "l2-cache-size=<SIZE>  RAM for qcow2 tables.\n"                            \
  "commit-interval=<T>   Make writes durable this often, 0 for never\n"      \
  "                      (seconds, or as 500ms; default 5).\n"               \
  "index-existing=on|off Index and share what the image holds already, in\n" \
  "                      the background (default off)."

static void
plugin_dump_plugin (void)
{
  size_t i;

  printf ("dedup_keys=");
  for (i = 0; i < NR_KEYS; ++i)
    printf ("%s%s", i > 0 ? " " : "", keys[i].key);
  printf ("\ndedup_hash=sha256 sha3-256 skein-256-256 xxh3-128\n");
  printf ("dedup_min_cluster_size=512\ndedup_max_cluster_size=2097152\n");
}

/* --- Start and stop ------------------------------------------------------ */

static void
plugin_load (void)
{
  srv_limit_malloc ();
  /* A write past the file size limit shall fail with EFBIG, which the client
   * is told of, and not kill the server. */
  signal (SIGXFSZ, SIG_IGN);
  srv_params_default (&params);
  params.log = &report_sink;
}

/* Why the image is to be opened read-only, for messages; NULL: it is not.
 * With -r nothing else counts: that is what nbdkit promises. */
static const char *
read_only_because (void)
{
  const char *argument = command_line_readonly ();

  if (argument && strcmp (argument, "-r") == 0)
    return argument;
  return readonly_key == READONLY_ON ? "readonly=on"
    : readonly_key == READONLY_AUTO ? argument : NULL;
}

static void
make_way_for_socket (void)
{
  CLEANUP_FREE char *path = command_line_socket ();

  if (path && remove_stale_socket (path))
    nbdkit_debug ("%s: removed, as an earlier server left it behind", path);
}

static int
plugin_get_ready (void)
{
  struct fault f = { 0 };
  int r;

  params.path = file_path;
  params.store = store_path;
  params.read_only_because = read_only_because ();
  params.read_only = params.read_only_because != NULL;
  r = srv_open (&params, &export, &f);
  if (r < 0) {
    report_error ("%s: %s", file_name, f.msg[0] ? f.msg : strerror (-r));
    return -1;
  }
  if (params.read_only)
    nbdkit_debug ("%s: opened read-only (%s)", file_name,
                  params.read_only_because);
  else
    nbdkit_debug ("%s: opened for writing", file_name);
  make_way_for_socket ();
  return 0;
}

static void
close_export (void)
{
  bool writable = export && srv_writable (export);
  int r = srv_close (export);   /* reports errors through the log sink */

  export = NULL;
  if (writable && r == 0)
    report_info ("%s: closed cleanly", file_name);
}

static int
plugin_after_fork (void)
{
  int r;

  report_after_fork ();
  r = srv_start (export);
  if (r == 0)
    r = stop_init (close_export);
  if (r < 0) {
    report_error ("%s: cannot start background work: %s", file_name,
                  strerror (-r));
    return -1;
  }
  srv_log_serving (export);
  return 0;
}

static void
plugin_cleanup (void)
{
  stop_finish ();
  close_export ();
}

/* The image is still open if .cleanup was skipped: nbdkit does so when it
 * ends before it served. */
static void
plugin_unload (void)
{
  close_export ();
  free (file_path);
  free (store_path);
}

/* --- Connections --------------------------------------------------------- */

struct connection {
  unsigned root;                /* the disk, or one of its snapshots */
  bool may_write;
};

/* nbdkit takes no more (its MAX_EXPORTS); the rest can be connected to. */
#define MAX_LISTED 9999

struct listing {
  struct nbdkit_exports *exports;
  unsigned nr;
};

static int
list_snapshot_cb (void *opaque, const char *name)
{
  struct listing *l = opaque;

  if (l->nr++ == MAX_LISTED)
    return 1;
  return nbdkit_add_export (l->exports, name,
                            "internal snapshot, read-only");
}

/* In the thread of a new connection, before anything else of it. */
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
  struct listing l = { .exports = exports, .nr = 1 };
  STOP_SCOPE;

  if (nbdkit_add_export (exports, "", "the disk") < 0)
    return -1;
  return srv_list_snapshots (export, list_snapshot_cb, &l) < 0 ? -1 : 0;
}

static const char *
plugin_default_export (int readonly, int is_tls)
{
  return "";
}

static void *
plugin_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct connection *c;
  char printable[128];
  unsigned root;
  STOP_SCOPE;

  if (name == NULL)
    return NULL;
  if (srv_find_root (export, name, &root) < 0) {
    snprintf (printable, sizeof printable, "%s", name);
    fault_make_printable (printable);           /* the client chose it */
    nbdkit_error ("%s: there is no export '%s': the disk has the empty name, "
                  "each snapshot its own; nbdinfo --list shows them", file_name,
                  printable);
    nbdkit_set_error (ENOENT);
    return NULL;
  }
  c = malloc (sizeof *c);
  if (c == NULL) {
    nbdkit_error ("%s: out of memory", file_name);
    nbdkit_set_error (ENOMEM);
    return NULL;
  }
  c->root = root;
  c->may_write = !readonly && srv_writable (export) && root == SRV_ROOT_ACTIVE;
  return c;
}

static void
plugin_close (void *handle)
{
  free (handle);
}

static unsigned
root_of (const void *handle)
{
  return ((const struct connection *) handle)->root;
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

  return (int64_t) srv_root_size (export, root_of (handle));
}

static int
plugin_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                   uint32_t *maximum)
{
  STOP_SCOPE;

  *minimum = 1;
  *preferred = srv_preferred_block (export);
  *maximum = MAX_BLOCK_BYTES;
  return 0;
}

/* --- Requests ------------------------------------------------------------ */

static int
answer (int r, const char *what, uint64_t guest_off)
{
  if (r >= 0)
    return 0;
  if (r != -ENOSPC)             /* the log has a line when space is gone */
    report_request ("%s: %s at %" PRIu64 ": %s", file_name, what, guest_off,
                    strerror (-r));
  nbdkit_set_error (-r);
  return -1;
}

static int
plugin_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  STOP_SCOPE;

  return answer (srv_root_pread (export, root_of (handle), buf, offset,
                                 count), "read", offset);
}

static int
plugin_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags)
{
  bool fua = flags & NBDKIT_FLAG_FUA;
  STOP_SCOPE;

  return answer (srv_pwrite (export, buf, offset, count, fua), "write",
                 offset);
}

static int
plugin_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  bool fua = flags & NBDKIT_FLAG_FUA;
  STOP_SCOPE;

  return answer (srv_trim (export, offset, count, fua), "trim", offset);
}

static int
plugin_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  STOP_SCOPE;

  return answer (srv_zero (export, offset, count,
                           flags & NBDKIT_FLAG_MAY_TRIM,
                           flags & NBDKIT_FLAG_FAST_ZERO,
                           flags & NBDKIT_FLAG_FUA), "zero", offset);
}

static int
plugin_flush (void *handle, uint32_t flags)
{
  STOP_SCOPE;
  int r = srv_flush (export);

  if (r >= 0)
    return 0;
  if (r != -ENOSPC)
    report_request ("%s: flush: %s", file_name, strerror (-r));
  nbdkit_set_error (-r);
  return -1;
}

static int
plugin_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  STOP_SCOPE;

  return answer (srv_root_cache (export, root_of (handle), offset, count),
                 "cache", offset);
}

/* 1: enough (nbdkit_add_extent has reported why and set errno). */
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
  int r = srv_root_extents (export, root_of (handle), offset, count,
                            flags & NBDKIT_FLAG_REQ_ONE, add_extent_cb,
                            extents);

  return r > 0 ? -1 : answer (r, "block status", offset);
}

static struct nbdkit_plugin plugin = {
  .name              = "dedup",
  .longname          = "nbdkit deduplicating qcow2 plugin",
  .version           = PACKAGE_VERSION,
  .description       = "Serve a qcow2 image, storing equal blocks once",
  .magic_config_key  = "file",
  .config_help       = plugin_config_help,

  .load              = plugin_load,
  .unload            = plugin_unload,
  .dump_plugin       = plugin_dump_plugin,
  .config            = plugin_config,
  .config_complete   = plugin_config_complete,
  .get_ready         = plugin_get_ready,
  .after_fork        = plugin_after_fork,
  .cleanup           = plugin_cleanup,

  .preconnect        = plugin_preconnect,
  .list_exports      = plugin_list_exports,
  .default_export    = plugin_default_export,
  .open              = plugin_open,
  .close             = plugin_close,
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

/* What nbdkit looks for; its header does not declare it. */
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
