/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes the first inputs of the fuzzers that need good ones: DIR/image,
 * DIR/header, DIR/snapshots, DIR/compressed, DIR/config, DIR/disk.
 */
#include <stdio.h>

#include "fuzz.h"

static void
write_file (const char *dir, const char *name, const char *what,
            const uint8_t *head, size_t head_len, const uint8_t *bytes,
            size_t len)
{
  char path[4096];
  FILE *f;

  snprintf (path, sizeof path, "%s/%s/seed-%s", dir, name, what);
  f = fopen (path, "wb");
  if (f == NULL) {
    perror (path);
    exit (1);
  }
  MUST (fwrite (head, 1, head_len, f) == head_len);
  MUST (fwrite (bytes, 1, len, f) == len);
  MUST (fclose (f) == 0);
}

static size_t
used (const uint8_t *p, size_t len)
{
  while (len > 0 && p[len - 1] == 0)
    len--;
  return len;
}

static void
config_seeds (const char *dir)
{
  const struct base *b = get_base (BASE_CLEAN);
  unsigned nr = 0;
  char what[32];

  for (size_t i = 0; i < b->nr_places; i++) {
    const uint8_t *p = b->bytes + b->places[i].host_off;

    if (b->places[i].kind != PLACE_CONFIG)
      continue;
    snprintf (what, sizeof what, "slot%u", nr++);
    write_file (dir, "config", what, (const uint8_t *) "\0\0", 2, p,
                used (p, 65536));
  }
}

/* Without patches: a mode, no patches, not killed; then requests (work.c) that
 * read, write, trim, zero and map across clusters of every kind, flush, run
 * the jobs, and look at the first snapshot. */
static void
disk_seed (const char *dir, const char *what, uint8_t mode)
{
  static const uint8_t ops[] = "\0\0"
    "\x0b\x01\x00\x00\x0f" "\x00\x00\x00\xff\xff"  /* read, the snapshot */
    "\x06\x01\x00\x00\x0f" "\x06\x81\x00\x00\x0f"  /* map */
    "\x00\x85\x00\x00\x03" "\x09\x89\x00\x00\x01"  /* write parts */
    "\x00\x01\x00\x00\x0f" "\x02\x01\x01\x00\x0f"
    "\x00\xc1\x00\x00\x0f"                       /* to a cluster's end */
    "\x04\x91\x00\x00\x0f" "\x05\x0d\x01\x00\x0f"  /* trim, zero */
    "\x0d\x15\x01\x00\x07" "\x1f\x01\x00\x00\x00"  /* flush, jobs */
    "\x00\x05\x01\x00\x02" "\x03\x81\x00\x00\x0f"
    "\x0b\x01\x00\x00\x0f" "\x20\x00\x00\xff\x0f";

  write_file (dir, "disk", what, &mode, 1, ops, sizeof ops - 1);
}

static void
image_seeds (const char *dir)
{
  uint8_t buf[DATA_FILE_BYTES];
  uint8_t extended[EXTENDED_BYTES];

  make_data_file (buf, false);
  write_file (dir, "image", "data-file", NULL, 0, buf, sizeof buf);
  write_file (dir, "header", "data-file", NULL, 0, buf, PLAIN_CLUSTER);
  make_data_file (buf, true);
  write_file (dir, "image", "raw-data-file", NULL, 0, buf, sizeof buf);
  make_extended (extended);
  write_file (dir, "header", "extended", NULL, 0, extended, PLAIN_CLUSTER);
}

int
main (int argc, char *argv[])
{
  uint8_t plain[PLAIN_BYTES];
  const struct base *b;
  const char *dir = argc > 1 ? argv[1] : ".";

  make_plain (plain);
  write_file (dir, "image", "plain", NULL, 0, plain, sizeof plain);
  write_file (dir, "header", "plain", NULL, 0, plain, PLAIN_CLUSTER);
  b = get_base (BASE_CLEAN);
  write_file (dir, "header", "store", NULL, 0, b->bytes, 512);
  write_file (dir, "snapshots", "one", (const uint8_t *) "\1\0", 2,
              plain + 9 * PLAIN_CLUSTER, 64);
  write_file (dir, "compressed", "zlib",
              (const uint8_t *) "\0\0\0\0\0\0\0\0\0\0\1", 11,
              plain + 8 * PLAIN_CLUSTER, 64);
  config_seeds (dir);
  image_seeds (dir);
  disk_seed (dir, "plain", 0 | 128);
  disk_seed (dir, "extended", 2 | 128);
  disk_seed (dir, "extended-read-only", 2 | 64);
  disk_seed (dir, "data-file", 6 | 128);
  return 0;
}
