/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the user asked for: the plugin's keys and their values
 * (config.c). */
#ifndef DEDUP_CONFIG_KEYS_H
#define DEDUP_CONFIG_KEYS_H

#include "io.h"
#include "server.h"

enum config_readonly {
  CONFIG_READONLY_AUTO, CONFIG_READONLY_ON, CONFIG_READONLY_OFF
};

struct config {
  struct srv_image_params params;
  const char *file_name;        /* as the user gave it, for errors at start */
  char *file_path;              /* absolute (nbdkit changes its directory), or
                                 * a URI with absolute paths */
  char *store_path;             /* likewise */
  enum config_readonly readonly;
};

/* Constant once nbdkit has read its command line, but for PARAMS, which .get_ready
 * completes. */
extern struct config config;

/* Reads one key.  Returns 0, or -1 after a message. */
int config_key (const char *key, const char *value) MUST_CHECK;
/* Returns 0 if all keys that are needed were given, or -1 after a message. */
int config_complete (void) MUST_CHECK;
/* Prints the names of all keys, with spaces between. */
void config_print_keys (void);
void config_free (void);

/* The keys in nbdkit's help. */
#define CONFIG_HELP                                                   \
  "[file=]<FILENAME>     (required) The qcow2 image to serve.\n"             \
  "uri=<URI>             The same on an NBD export, in place of file=.\n"    \
  "readonly=on|off|auto  Change nothing, share the image with other readers\n" \
  "                      (default auto: with -r, or below a filter such as\n"  \
  "                      cow that never writes).\n"                            \
  "size=<SIZE>           Create the image with this size if it is absent.\n" \
  "cluster-size=<SIZE>   Cluster size of an image that is created\n"         \
  "                      (512 to 2M, default 4k).\n"                         \
  "dedup=on|off          Deduplicate what is written (default on).\n"        \
  "compress=zstd|zlib|off  Compress new data from now on, as the image's\n"     \
  "                      compression type says (default: as before, off in an\n" \
  "                      image that is created).\n"                          \
  "compress-when=write|idle  Compress new data when it is written (default), or\n" \
  "                      store it plain and compress it when idle.\n"           \
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
  "                      the background (default off).\n"                   \
  "defragment=idle|off   When idle, move scattered data that clients read in\n" \
  "                      sequence to one place (default off).\n"            \
  "compact=auto|off      Move what is left in mostly dead clusters of compressed\n" \
  "                      data (default off).\n"                              \
  "reconnect-delay=<S>   Seconds in which a lost connection to uri= must be\n"  \
  "                      back (default 60).\n"                               \
  "connections=<N>       Most connections to uri=, up to 16.\n"              \
  "fenced=on|off         The storage behind uri= drops what a server that was\n" \
  "                      killed had sent, such as RBD's exclusive-lock\n"     \
  "                      (default off).\n"                                   \
  "lease=on|off          Take a lease of a block device that several hosts see\n" \
  "                      (default off).\n"                                   \
  "space-low=<SIZE>      Warn when less space is left on the host\n"         \
  "                      (default 0: a twentieth of it, at most 10G).\n"      \
  "control=<SOCKET>      Take commands of QMP's kind on this Unix socket\n"  \
  "                      (default: on none)."

#endif
