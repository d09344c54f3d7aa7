/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes the first inputs of the fuzzers that need good ones: DIR/image,
 * DIR/header, DIR/snapshots, DIR/compressed, DIR/config.
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
  return 0;
}
