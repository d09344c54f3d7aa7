/* SPDX-License-Identifier: BSD-3-Clause */
/* Saves a failing state as a file: the configuration, what the model knows, the
 * image before the workload, the log up to the crash and the fate of each
 * record.  For this program on this machine only: no byte order, no version.
 */
#include "crash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"

static const char magic[8] = "CRASHST1";

struct saved_record { uint64_t call, host_off, len; };

static void
put (FILE *fp, const void *p, size_t len)
{
  if (len > 0 && fwrite (p, 1, len, fp) != len)
    fprintf (stderr, "crash-states: the state could not be written\n");
}

#define PUT(fp, x) put ((fp), &(x), sizeof (x))

/* In pages, without those that are zero. */
static void
put_image (FILE *fp, const uint8_t *p, size_t size)
{
  static const uint8_t zero[4096];
  uint64_t i, nr = div_round_up (size, 4096);
  uint64_t end = UINT64_MAX;

  PUT (fp, size);
  for (i = 0; i < nr; i++)
    if (memcmp (p + i * 4096, zero, 4096) != 0) {
      PUT (fp, i);
      put (fp, p + i * 4096, 4096);
    }
  PUT (fp, end);
}

static void
put_world (FILE *fp, const struct world *w, size_t nr_log)
{
  size_t i;

  put (fp, w->base_ids, w->nr_units * sizeof *w->base_ids);
  PUT (fp, w->created);
  PUT (fp, w->recovered);
  PUT (fp, w->index_lost);
  PUT (fp, w->twice);
  PUT (fp, w->next_id);
  PUT (fp, w->fault_from);
  PUT (fp, w->fault_to);
  PUT (fp, w->nr_ops);
  for (i = 0; i < w->nr_ops; i++) {
    PUT (fp, w->ops[i]);
    put (fp, w->ops[i].ids, w->ops[i].nr * sizeof (uint64_t));
  }
  PUT (fp, w->nr_flushes);
  put (fp, w->flushes, w->nr_flushes * sizeof *w->flushes);
  PUT (fp, nr_log);
  for (i = 0; i < nr_log; i++) {
    struct saved_record r = { w->log[i].call, w->log[i].host_off,
                              w->log[i].len };

    PUT (fp, r);
    if (r.call == IO_PWRITE)
      put (fp, w->log[i].data, r.len);
  }
}

int
save_state (const char *path, const struct world *w,
            const struct bytes *base, const struct state *st)
{
  FILE *fp = fopen (path, "w");
  int r;

  if (fp == NULL)
    return -1;
  put (fp, magic, sizeof magic);
  PUT (fp, w->cfg);
  PUT (fp, w->seed);
  put_image (fp, base->p, base->size);
  put_image (fp, base->p2, base->size2);
  put_world (fp, w, st->pos);
  PUT (fp, *st);
  put (fp, st->fate, st->nr);
  put (fp, st->order, st->nr * sizeof *st->order);
  r = ferror (fp);
  return fclose (fp) == 0 && !r ? 0 : -1;
}

/* --- back -------------------------------------------------------------------- */

static void
get (FILE *fp, void *p, size_t len)
{
  if (len > 0 && fread (p, 1, len, fp) != len) {
    fprintf (stderr, "crash-states: this file is no whole state\n");
    exit (2);
  }
}

#define GET(fp, x) get ((fp), &(x), sizeof (x))

static void
get_image (FILE *fp, uint8_t **p, size_t *size)
{
  uint64_t i;

  GET (fp, *size);
  *p = calloc (1, round_up_pow2 (*size, 4096) + 4096);
  for (;;) {
    GET (fp, i);
    if (i == UINT64_MAX)
      return;
    get (fp, *p + i * 4096, 4096);
  }
}

static void
get_log (FILE *fp, struct world *w)
{
  struct io_record *log;
  struct saved_record r;
  size_t i;

  GET (fp, w->nr_log);
  log = calloc (w->nr_log + 1, sizeof *log);
  for (i = 0; i < w->nr_log; i++) {
    GET (fp, r);
    log[i] = (struct io_record) { .call = (enum io_call) r.call,
                                  .host_off = r.host_off, .len = r.len };
    if (r.call == IO_PWRITE) {
      log[i].data = malloc (r.len + 1);
      get (fp, log[i].data, r.len);
    }
  }
  w->log = log;
}

static void
get_world (FILE *fp, struct world *w)
{
  size_t i;

  get (fp, w->base_ids, w->nr_units * sizeof *w->base_ids);
  GET (fp, w->created);
  GET (fp, w->recovered);
  GET (fp, w->index_lost);
  GET (fp, w->twice);
  GET (fp, w->next_id);
  GET (fp, w->fault_from);
  GET (fp, w->fault_to);
  GET (fp, w->nr_ops);
  w->ops = calloc (w->nr_ops + 1, sizeof *w->ops);
  for (i = 0; i < w->nr_ops; i++) {
    GET (fp, w->ops[i]);
    w->ops[i].ids = calloc (w->ops[i].nr + 1, sizeof (uint64_t));
    get (fp, w->ops[i].ids, w->ops[i].nr * sizeof (uint64_t));
  }
  GET (fp, w->nr_flushes);
  w->flushes = calloc (w->nr_flushes + 1, sizeof *w->flushes);
  get (fp, w->flushes, w->nr_flushes * sizeof *w->flushes);
  get_log (fp, w);
}

int
load_state (const char *path, struct world *w, struct bytes *base,
            struct state *st)
{
  FILE *fp = fopen (path, "r");
  char found[sizeof magic];
  struct cfg cfg;
  uint64_t seed;

  if (fp == NULL)
    return -1;
  get (fp, found, sizeof found);
  if (memcmp (found, magic, sizeof magic) != 0) {
    fclose (fp);
    return -1;
  }
  GET (fp, cfg);
  GET (fp, seed);
  world_init (w, &cfg, seed);
  get_image (fp, &base->p, &base->size);
  get_image (fp, &base->p2, &base->size2);
  base->block = cfg.block;
  get_world (fp, w);
  GET (fp, *st);
  st->fate = calloc (st->nr + 1, 1);
  st->order = calloc (st->nr + 1, sizeof *st->order);
  get (fp, st->fate, st->nr);
  get (fp, st->order, st->nr * sizeof *st->order);
  fclose (fp);
  return 0;
}
