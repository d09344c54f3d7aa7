/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads the plugin's keys: one function for each checks the value and stores it in
 * the variable config.  What only the image can tell, such as whether there is a hash
 * of that name, is checked when it is opened.
 *
 * Threads: nbdkit's first one, before there are others.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "absolute-uri.h"
#include "admin.h"
#include "checked.h"
#include "config.h"
#include "report.h"

#define MAX_COMMIT_INTERVAL_MS 3600000      /* an hour */
#define MAX_INCARNATIONS 1024               /* docs/on-disk.md */

struct config config;

static int
bad_value (const char *key, const char *value, const char *expected)
{
  report_error ("%s=%s: %s", key, value, expected);
  return -1;
}

/* Parses a decimal number at *S, and moves *S behind it. */
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

/* Parses a size as nbdkit_parse_size does, whose messages name no key. */
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
  if (strncasecmp (value, "nbd", 3) == 0 && strstr (value, "://"))
    return bad_value (key, value, "is the URI of an NBD export: uri= takes it");
  if (config.file_path)
    return bad_value (key, value, "is a second image: a server serves one");
  config.file_name = value;            /* nbdkit keeps the string */
  config.file_path = nbdkit_absolute_path (value);
  return config.file_path ? 0 : -1;
}

static int
config_uri (const char *key, const char *value)
{
  if (!io_is_uri (value))
    return bad_value (key, value, "must be the URI of an NBD export, and begin with "
                      "nbd://, nbds://, nbd+unix:// or nbds+unix://");
  if (config.file_path)
    return bad_value (key, value, "is a second image: a server serves one");
  config.file_name = value;
  config.file_path = absolute_uri (value);
  if (config.file_path == NULL) {
    report_error ("%s=%s: %s", key, value, strerror (errno));
    return -1;
  }
  return 0;
}

static int
config_store (const char *key, const char *value)
{
  if (*value == '\0')
    return bad_value (key, value, "must name a file");
  free (config.store_path);
  config.store_path = nbdkit_absolute_path (value);
  return config.store_path ? 0 : -1;
}

static int
config_image_size (const char *key, const char *value)
{
  return config_size (key, value, &config.params.create_size);
}

static int
config_cluster_size (const char *key, const char *value)
{
  int64_t n;

  if (config_size (key, value, &n) < 0)
    return -1;
  if (!is_pow2 ((uint64_t) n) || n < 512 || n > 2 << 20)
    return bad_value (key, value, "must be a power of two from 512 to 2M");
  config.params.cluster_size = (uint64_t) n;
  config.params.cluster_size_given = true;
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
  return config_on_off (key, value, &config.params.dedup);
}

static int
config_verify (const char *key, const char *value)
{
  return config_on_off (key, value, &config.params.verify);
}

static int
config_index_existing (const char *key, const char *value)
{
  return config_on_off (key, value, &config.params.index_existing);
}

/* A number from MIN to MAX, with the SUFFIX that is allowed behind it. */
static int
config_number (const char *key, const char *value, uint64_t min, uint64_t max,
               const char *suffix, unsigned *out)
{
  const char *s = value;
  uint64_t n;

  if (!parse_digits (&s, &n) || (*s != '\0' && strcmp (s, suffix) != 0) ||
      n < min || n > max) {
    report_error ("%s=%s: must be a number from %" PRIu64 " to %" PRIu64, key,
                  value, min, max);
    return -1;
  }
  *out = (unsigned) n;
  return 0;
}

#define MAX_RECONNECT_DELAY 86400u
#define MAX_CONNECTIONS 16u

static int
config_reconnect_delay (const char *key, const char *value)
{
  return config_number (key, value, 0, MAX_RECONNECT_DELAY, "s",
                        &config.params.reconnect_delay);
}

static int
config_connections (const char *key, const char *value)
{
  return config_number (key, value, 1, MAX_CONNECTIONS, "",
                        &config.params.connections);
}

static int
config_fenced (const char *key, const char *value)
{
  return config_on_off (key, value, &config.params.fenced);
}

static int
config_lease (const char *key, const char *value)
{
  return config_on_off (key, value, &config.params.lease);
}

static int
config_defragment (const char *key, const char *value)
{
  if (strcasecmp (value, "idle") == 0)
    config.params.defragment = true;
  else if (strcasecmp (value, "off") == 0)
    config.params.defragment = false;
  else
    return bad_value (key, value, "must be idle or off");
  return 0;
}

static int
config_compress_when (const char *key, const char *value)
{
  if (strcasecmp (value, "idle") == 0)
    config.params.compress_idle = true;
  else if (strcasecmp (value, "write") == 0)
    config.params.compress_idle = false;
  else
    return bad_value (key, value, "must be write or idle");
  return 0;
}

static int
config_compact (const char *key, const char *value)
{
  if (strcasecmp (value, "auto") == 0)
    config.params.compact = true;
  else if (strcasecmp (value, "off") == 0)
    config.params.compact = false;
  else
    return bad_value (key, value, "must be auto or off");
  return 0;
}

static int
config_readonly (const char *key, const char *value)
{
  bool on;

  if (strcasecmp (value, "auto") == 0) {
    config.readonly = CONFIG_READONLY_AUTO;
    return 0;
  }
  if (config_bool (key, value, &on, "must be on, off or auto") < 0)
    return -1;
  config.readonly = on ? CONFIG_READONLY_ON : CONFIG_READONLY_OFF;
  return 0;
}

/* The value is checked by srv_image_open. */
static int
config_compress (const char *key, const char *value)
{
  config.params.compress = value;
  return 0;
}

/* The name of the hash is checked by srv_image_open. */
static int
config_hash (const char *key, const char *value)
{
  config.params.hash = value;
  return 0;
}

/* The policy is checked by srv_image_open. */
static int
config_backing (const char *key, const char *value)
{
  config.params.backing = value;
  return 0;
}

static int
config_max_incarnations (const char *key, const char *value)
{
  const char *s = value;
  uint64_t n;

  if (!parse_digits (&s, &n) || *s != '\0' || n > MAX_INCARNATIONS)
    return bad_value (key, value, "must be from 0, for no limit, to 1024");
  config.params.max_incarnations = (int64_t) n;
  return 0;
}

static int
config_index_memory (const char *key, const char *value)
{
  return config_size (key, value, &config.params.index_memory);
}

static int
config_l2_cache_size (const char *key, const char *value)
{
  return config_size (key, value, &config.params.l2_cache_bytes);
}

static int
config_space_low (const char *key, const char *value)
{
  int64_t n = 0;

  if (config_size (key, value, &n) < 0)
    return -1;
  config.params.space_low_bytes = (uint64_t) n;
  return 0;
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
  config.params.commit_interval_ms = (unsigned) n;
  return 0;
}

static const struct {
  const char *key;
  int (*set) (const char *key, const char *value);
} keys[] = {
  { "file", config_file },
  { "uri", config_uri },
  { "readonly", config_readonly },
  { "size", config_image_size },
  { "cluster-size", config_cluster_size },
  { "dedup", config_dedup },
  { "compress", config_compress },
  { "compress-when", config_compress_when },
  { "hash", config_hash },
  { "verify", config_verify },
  { "backing", config_backing },
  { "store", config_store },
  { "max-incarnations", config_max_incarnations },
  { "index-memory", config_index_memory },
  { "l2-cache-size", config_l2_cache_size },
  { "commit-interval", config_commit_interval },
  { "index-existing", config_index_existing },
  { "defragment", config_defragment },
  { "compact", config_compact },
  { "lease", config_lease },
  { "reconnect-delay", config_reconnect_delay },
  { "connections", config_connections },
  { "fenced", config_fenced },
  { "space-low", config_space_low },
  { "control", admin_config },
};

#define NR_KEYS (sizeof keys / sizeof keys[0])

int
config_key (const char *key, const char *value)
{
  size_t i;

  if (strcmp (key, "read-only") == 0)   /* nbdkit's option is spelt both ways */
    key = "readonly";
  for (i = 0; i < NR_KEYS; ++i)
    if (strcmp (key, keys[i].key) == 0)
      return keys[i].set (key, value);
  report_error ("unknown parameter '%s'", key);
  return -1;
}

int
config_complete (void)
{
  if (config.file_path == NULL) {
    report_error ("the image is missing: nbdkit dedup file=DISK.qcow2, or uri=URI");
    return -1;
  }
  if (config.store_path && strcmp (config.store_path, config.file_path) == 0) {
    report_error ("store=%s: is the image itself", config.store_path);
    return -1;
  }
  return 0;
}

void
config_print_keys (void)
{
  size_t i;

  for (i = 0; i < NR_KEYS; ++i)
    printf ("%s%s", i > 0 ? " " : "", keys[i].key);
}

void
config_free (void)
{
  free (config.file_path);
  free (config.store_path);
}
