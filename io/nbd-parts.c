/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs parts of any length as batches of commands, and flushes.
 *
 * A part is cut to what the server takes; all commands of up to a batch are
 * under way at once.  Before a batch of writes there must be room in the resend
 * log: when that is full, the store flushes by itself.  It does so, too, where bytes
 * were changed since the last flush that a batch changes.  A failure of such a flush is
 * that of the write, and of the next sync.
 */
#include "nbd-private.h"

#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "clock.h"

int
io_nbd_flush (struct io_nbd *n)
{
  const uint64_t nr = io_nbd_log_begin_flush (n);
  struct nbd_cmd cmd = { .type = NBD_FLUSH };

  io_nbd_run (n, &cmd, 1);
  if (cmd.result == 0)
    io_nbd_log_flushed (n, nr);
  return cmd.result;
}

/* Flushes if that has to come before CMDS, which write MORE bytes.  Not on the link's
 * thread, whose flush drops nothing of the log; and if its connection broke, the
 * failure would be that of a later sync. */
static int
make_room (struct io_nbd *n, const struct nbd_cmd *cmds, size_t nr, uint64_t more)
{
  int r = 0;

  if (!io_nbd_link_is_mine (n) &&
      (io_nbd_log_is_full (n, more) || io_nbd_log_is_over (n, cmds, nr)))
    r = io_nbd_flush (n);
  if (r < 0)
    __atomic_store_n (&n->sync_error, r, __ATOMIC_RELAXED);
  return r;
}

/* The log keeps the write until the next flush, as it may stand for an older
 * one that is not durable. */
int
io_nbd_write_and_flush (struct io_nbd *n, void *buf, uint64_t len,
                        uint64_t host_off)
{
  struct nbd_cmd cmds[] = {
    { .type = NBD_WRITE, .buf = buf, .len = len, .off = host_off,
      .fua = true },
    { .type = NBD_FLUSH },
  };
  uint64_t nr;
  int r = make_room (n, cmds, 1, len);

  if (r < 0)
    return r;
  nr = io_nbd_log_begin_flush (n);
  io_nbd_run (n, cmds, 2);
  if (cmds[1].result == 0)
    io_nbd_log_flushed (n, nr);
  io_nbd_ahead_drop (n, host_off, len);
  return cmds[0].result < 0 ? cmds[0].result : cmds[1].result;
}

/* A batch has at most so many commands; few need no memory of their own. */
#define MAX_BATCH 4096
#define FEW 8
/* Its writes are in the log, which must not grow by much at once. */
#define MAX_WRITES (UINT64_C (16) << 20)

/* The next byte to be cut into commands. */
struct cut {
  struct io_part *v;
  size_t nr, i;               /* parts; the one that is being cut */
  uint64_t done;              /* bytes of it */
};

/* Trims carry no bytes, so the maximum does not hold for them; but one of this
 * size takes no server long. */
#define MAX_TRIM (UINT64_C (128) << 20)

static uint64_t
max_len (const struct io_nbd *n, enum nbd_type type)
{
  return type == NBD_TRIM ? MAX_TRIM : n->export.max_request;
}

/* Makes a command of up to MOST bytes of P, after the first DONE. */
static struct nbd_cmd
command (enum nbd_type type, struct io_part *p, uint64_t done, uint64_t most)
{
  return (struct nbd_cmd) {
    .type = type, .buf = p->buf ? (char *) p->buf + done : NULL,
    .off = p->host_off + done, .len = MIN_OF (most, p->len - done),
    .opaque = p,
  };
}

/* Fills CMDS with the next commands, up to MAX; returns how many.  The opaque
 * pointer of each is its part. */
static size_t
next_commands (const struct io_nbd *n, enum nbd_type type, struct cut *c,
               struct nbd_cmd *cmds, size_t max)
{
  const uint64_t most = max_len (n, type);
  uint64_t bytes = 0;
  struct io_part *p;
  size_t k;

  for (k = 0; k < max && c->i < c->nr &&
       (type != NBD_WRITE || bytes < MAX_WRITES);) {
    p = &c->v[c->i];
    if (c->done < p->len) {
      cmds[k] = command (type, p, c->done, most);
      c->done += cmds[k].len;
      bytes += cmds[k++].len;
    }
    else {
      c->done = 0;
      c->i++;
    }
  }
  return k;
}

static void
note_results (struct nbd_cmd *cmds, size_t nr)
{
  struct io_part *p;
  size_t i;

  for (i = 0; i < nr; i++) {
    p = cmds[i].opaque;
    if (p->result == 0)
      p->result = cmds[i].result;
  }
}

static size_t
count_commands (const struct io_nbd *n, enum nbd_type type,
                const struct io_part *v, size_t nr)
{
  size_t i, count = 0;

  for (i = 0; i < nr && count < MAX_BATCH; i++)
    count += div_round_up (v[i].len, max_len (n, type));
  return MIN_OF (count, MAX_BATCH);
}

static void
run_timed (struct io_nbd *n, struct nbd_cmd *cmds, size_t nr)
{
  const uint64_t start = clock_now_ns ();

  io_nbd_run (n, cmds, nr);
  if (cmds->type == NBD_READ)
    io_nbd_ahead_time (n, clock_now_ns () - start);
}

/* Runs commands of one type after there is room for them in the log. */
static void
run_with_room (struct io_nbd *n, struct nbd_cmd *cmds, size_t nr)
{
  const bool changes = cmds->type == NBD_WRITE || cmds->type == NBD_TRIM;
  uint64_t bytes = 0;
  size_t i;
  int r;

  for (i = 0; i < nr && cmds->type == NBD_WRITE; i++)
    bytes += cmds[i].len;
  r = changes ? make_room (n, cmds, nr, bytes) : 0;
  if (r == 0)
    run_timed (n, cmds, nr);
  for (i = 0; i < nr && r < 0; i++)
    cmds[i].result = r;
  for (i = 0; i < nr && changes; i++)
    io_nbd_ahead_drop (n, cmds[i].off, cmds[i].len);
}

void
io_nbd_run_parts (struct io_nbd *n, enum nbd_type type, struct io_part *v,
                  size_t nr)
{
  struct nbd_cmd few[FEW];
  size_t max = count_commands (n, type, v, nr), i;
  CLEANUP_FREE struct nbd_cmd *many =
    max > FEW ? malloc (max * sizeof *many) : NULL;
  struct nbd_cmd *cmds = many ? many : few;
  struct cut c = { .v = v, .nr = nr };

  max = many ? max : FEW;
  for (i = 0; i < nr; i++)
    v[i].result = 0;
  while ((i = next_commands (n, type, &c, cmds, max)) > 0) {
    run_with_room (n, cmds, i);
    note_results (cmds, i);
  }
}
