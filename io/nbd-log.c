/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps copies of what was written since the last flush, and which ranges a
 * lost connection may still change.
 *
 * The resend log.  A server that went away may have lost every write that was
 * not flushed.  So each write and trim has an entry, from before it is sent
 * until a flush covers it: one that was begun after the reply.  When a
 * connection is back, the entries are written again.  Where several of them
 * cover a byte, only the youngest is written.  So what is sent does not
 * overlap, may be sent all at once, and if that connection breaks as well,
 * nothing older can land over something younger.
 *
 * A flush by the link's own thread covers nothing: it comes after the connection is
 * back and before the entries are written again, so the server that answers it may
 * have lost them.  What that thread wrote itself stays in the log as well, or an
 * older entry of the same place would be written over it.
 *
 * An entry whose call is still waiting is written again like the others: the
 * reply may have come just before the connection broke.  Its call sends it once
 * more, which is harmless.
 *
 * The taint.  A write or trim that had no reply when its connection broke may
 * land much later, over whatever is there by then.  So may one that had a reply
 * but was not flushed: a server with a cache answers first, and what it had sent to
 * its storage when it was killed may arrive after what its successor writes.  The
 * ranges of both are tainted for good: what is there may be written again,
 * anything new is refused (-ESTALE).  They are tainted before the first command on the
 * next connection, that of may_resume included (io_nbd_log_taint); what may_resume
 * itself writes is not, as it is under way on a connection that is good.  A new write
 * is checked when the connection is up, before it is in the log.
 *
 * "What is there" must be one version: of two writes of a byte without a flush between,
 * the older one may land over the younger one, which was written again.  So a write of
 * bytes that were changed since the last flush comes after a flush of its own
 * (io_nbd_log_is_over).  That is rare: the engine does it where it writes to what it has
 * just trimmed.
 *
 * A write whose answer said that it is durable (FUA) has landed: neither does a loss
 * taint it, nor need a flush come before the next version.  It is in the log all the
 * same, until a flush, and is sent again as it was: durable.  If that gets no answer, the
 * range is tainted like that of any command.
 *
 * There is no taint and no such flush where the storage is fenced (nbd.h).
 *
 * While entries are being written again, they are only marked as free.
 *
 * The lock of the log is held for moments, never while libnbd is called.
 */
#include "nbd-private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aligned.h"
#include "checked.h"
#include "mutation.h"

/* What the entries may take before the store flushes by itself. */
#define MAX_BYTES (UINT64_C (64) << 20)
/* What an entry counts at least, which bounds their number. */
#define MIN_COST 4096u
/* Each lost connection adds what was under way, so this takes thousands of
 * them; the ranges then take 1 MiB. */
#define MAX_TAINTED 65536

/* The memory of entries with at least so many bytes of room is used again. */
#define LARGE_ROOM (UINT64_C (64) << 10)

struct nbd_entry {
  struct nbd_entry *older, *younger;
  uint64_t room;              /* for data, in bytes; at least len of a write */
  enum nbd_type type;         /* NBD_WRITE or NBD_TRIM */
  uint64_t off, len;
  bool answered, freed;
  bool repeated;              /* it was sent again without FUA */
  bool durable;               /* as its answer said: FUA */
  uint64_t nr_flushes;        /* that were begun before the answer */
  int again;                  /* result of writing it again */
  uint8_t data[] CACHE_ALIGNED;   /* of a write */
};

void
io_nbd_log_init (struct nbd_log *log)
{
  pthread_mutex_init (&log->lock, NULL);
}

static uint64_t
cost (const struct nbd_entry *e)
{
  return MAX_OF (MIN_COST, e->room);
}

/* --- Memory of entries ---------------------------------------------------- */

/* Large entries come and go by the MiB: the memory of each would be given back to the
 * system, and cleared page by page for the next one.  So it is kept while there are other
 * entries, within the bound of the log itself. */
static void
free_or_keep (struct nbd_log *log, struct nbd_entry *e)
{
  if (e->room < LARGE_ROOM || log->bytes + log->spare_bytes + e->room > MAX_BYTES) {
    free (e);
    return;
  }
  e->younger = log->spare;
  log->spare = e;
  log->spare_bytes += e->room;
}

/* Frees memory until all takes MOST bytes, or no spare one is left. */
static void
free_spare (struct nbd_log *log, uint64_t most)
{
  struct nbd_entry *e;

  while ((e = log->spare) && log->bytes + log->spare_bytes > most) {
    log->spare = e->younger;
    log->spare_bytes -= e->room;
    free (e);
  }
}

/* Returns one that has room for BYTES, and not much more; or NULL. */
static struct nbd_entry *
take_spare (struct nbd_log *log, uint64_t bytes)
{
  struct nbd_entry **p, *e;

  for (p = &log->spare; (e = *p); p = &e->younger)
    if (e->room >= bytes && e->room / 2 <= bytes) {
      *p = e->younger;
      log->spare_bytes -= e->room;
      return e;
    }
  return NULL;
}

static struct nbd_entry *
new_entry (struct nbd_log *log, const struct nbd_cmd *cmd)
{
  const uint64_t bytes = cmd->type == NBD_WRITE ? cmd->len : 0;
  struct nbd_entry *e = NULL;
  uint64_t room;

  if (bytes >= LARGE_ROOM) {
    pthread_mutex_lock (&log->lock);
    e = take_spare (log, bytes);
    pthread_mutex_unlock (&log->lock);
  }
  room = e ? e->room : bytes;
  if (e == NULL)
    e = aligned_new (sizeof *e + bytes);
  if (e)
    *e = (struct nbd_entry) { .room = room, .type = cmd->type, .off = cmd->off,
                              .len = cmd->len };
  return e;
}

static void
append (struct nbd_log *log, struct nbd_entry *e)
{
  e->older = log->youngest;
  *(log->youngest ? &log->youngest->younger : &log->oldest) = e;
  log->youngest = e;
  log->bytes += cost (e);
  free_spare (log, MAX_BYTES);
}

static void
drop (struct nbd_log *log, struct nbd_entry *e)
{
  if (log->replaying) {
    e->freed = true;
    return;
  }
  *(e->older ? &e->older->younger : &log->oldest) = e->younger;
  *(e->younger ? &e->younger->older : &log->youngest) = e->older;
  log->bytes -= cost (e);
  free_or_keep (log, e);
}

/* Drops the entries that MAY_DROP names. */
static void
drop_those (struct nbd_log *log,
            bool (*may_drop) (const struct nbd_entry *e, uint64_t flush),
            uint64_t flush)
{
  struct nbd_entry *e, *next;

  for (e = log->oldest; e; e = next) {
    next = e->younger;
    if (may_drop (e, flush))
      drop (log, e);
  }
  if (log->oldest == NULL)
    free_spare (log, 0);
}

static bool
anything (const struct nbd_entry *e, uint64_t flush)
{
  return true;
}

void
io_nbd_log_destroy (struct nbd_log *log)
{
  drop_those (log, anything, 0);
  io_ranges_free (&log->tainted);
  io_ranges_free (&log->unflushed);
  pthread_mutex_destroy (&log->lock);
}

/* --- Writes ------------------------------------------------------------- */

static bool
needs_entry (const struct nbd_cmd *cmd)
{
  return (cmd->type == NBD_WRITE || cmd->type == NBD_TRIM) && !cmd->again;
}

static bool
is_tainted (const struct nbd_log *log, uint64_t off, uint64_t len)
{
  return !mutation (MUTATION_NBD_NO_TAINT) &&
    io_ranges_overlap (&log->tainted, off, off + len);
}

int
io_nbd_log_begin (struct io_nbd *n, struct nbd_cmd *cmd)
{
  struct nbd_log *log = &n->written;
  struct nbd_entry *e;
  int r = 0;

  if (!needs_entry (cmd) || n->delay_ms == 0 || mutation (MUTATION_NBD_ZERO_DELAY))
    return 0;
  e = new_entry (log, cmd);
  if (e == NULL)
    return -ENOMEM;
  pthread_mutex_lock (&log->lock);
  if (is_tainted (log, cmd->off, cmd->len))
    r = -ESTALE;
  else
    r = n->fenced ? 0 : io_ranges_add (&log->unflushed, cmd->off,
                                       cmd->off + cmd->len);
  if (r == 0)
    append (log, e);
  pthread_mutex_unlock (&log->lock);
  if (r < 0)
    free (e);
  else
    cmd->entry = e;
  return r;
}

void
io_nbd_log_fill (struct nbd_cmd *cmd)
{
  if (cmd->entry && cmd->type == NBD_WRITE)
    memcpy (cmd->entry->data, cmd->buf, cmd->len);
}

void
io_nbd_log_end (struct io_nbd *n, struct nbd_cmd *cmd)
{
  struct nbd_log *log = &n->written;
  struct nbd_entry *e = cmd->entry;

  if (e == NULL)
    return;
  cmd->entry = NULL;
  pthread_mutex_lock (&log->lock);
  if (cmd->result == 0)
    cmd->result = e->again;
  e->answered = cmd->result == 0;
  e->durable = e->answered && cmd->fua && !e->repeated;
  e->nr_flushes = log->nr_flushes;
  if (!e->answered)
    drop (log, e);
  pthread_mutex_unlock (&log->lock);
}

/* --- Flushes ------------------------------------------------------------ */

bool
io_nbd_log_is_full (struct io_nbd *n, uint64_t more)
{
  struct nbd_log *log = &n->written;
  bool full;

  pthread_mutex_lock (&log->lock);
  full = log->bytes > 0 && log->bytes + more > MAX_BYTES;
  pthread_mutex_unlock (&log->lock);
  return full;
}

bool
io_nbd_log_is_over (struct io_nbd *n, const struct nbd_cmd *cmds, size_t nr)
{
  struct nbd_log *log = &n->written;
  bool over = false;
  size_t i;

  if (n->fenced || mutation (MUTATION_NBD_TWO_VERSIONS))
    return false;
  pthread_mutex_lock (&log->lock);
  for (i = 0; i < nr && !over; i++)
    over = (cmds[i].type == NBD_WRITE || cmds[i].type == NBD_TRIM) &&
      io_ranges_overlap (&log->unflushed, cmds[i].off,
                         cmds[i].off + cmds[i].len);
  pthread_mutex_unlock (&log->lock);
  return over;
}

uint64_t
io_nbd_log_begin_flush (struct io_nbd *n)
{
  struct nbd_log *log = &n->written;
  uint64_t flush;

  pthread_mutex_lock (&log->lock);
  flush = ++log->nr_flushes;
  pthread_mutex_unlock (&log->lock);
  return flush;
}

static bool
is_covered (const struct nbd_entry *e, uint64_t flush)
{
  return e->answered && e->nr_flushes < flush;
}

/* Makes the unflushed ranges those of the entries that are left and not durable.
 * Without memory for that they stay, which costs flushes. */
static void
shrink_unflushed (struct nbd_log *log)
{
  struct io_ranges left = { 0 };
  const struct nbd_entry *e;
  int r = 0;

  for (e = log->oldest; e && r == 0 && log->unflushed.nr > 0; e = e->younger)
    r = e->durable ? 0 : io_ranges_add (&left, e->off, e->off + e->len);
  if (r < 0) {
    io_ranges_free (&left);
    return;
  }
  io_ranges_free (&log->unflushed);
  log->unflushed = left;
}

void
io_nbd_log_flushed (struct io_nbd *n, uint64_t flush)
{
  struct nbd_log *log = &n->written;

  pthread_mutex_lock (&log->lock);
  if (!io_nbd_link_is_mine (n) || mutation (MUTATION_NBD_RESUME_FLUSHES))
    drop_those (log, is_covered, flush);
  shrink_unflushed (log);
  pthread_mutex_unlock (&log->lock);
}

/* --- Writing again ------------------------------------------------------ */

static int
taint_locked (struct io_nbd *n, uint64_t off, uint64_t len)
{
  struct io_ranges *tainted = &n->written.tainted;

  if (n->fenced)
    return 0;
  return tainted->nr < MAX_TAINTED ? io_ranges_add (tainted, off, off + len) : -ENOMEM;
}

static int
add_command (struct nbd_replay *p, struct nbd_entry *e,
             const struct io_range *gap)
{
  struct nbd_cmd *cmds;

  if (p->nr == p->capacity) {
    p->capacity = p->capacity ? p->capacity * 2 : 64;
    cmds = realloc (p->cmds, p->capacity * sizeof *cmds);
    if (cmds == NULL)
      return -ENOMEM;
    p->cmds = cmds;
  }
  p->cmds[p->nr++] = (struct nbd_cmd) {
    .type = e->type, .again = true, .fua = e->durable, .off = gap->from,
    .len = gap->to - gap->from, .opaque = e,
    .buf = e->type == NBD_WRITE ? e->data + (gap->from - e->off) : NULL,
  };
  return 0;
}

/* Adds what no younger entry covers. */
static int
add_entry (struct nbd_replay *p, struct nbd_entry *e)
{
  const uint64_t to = e->off + e->len;
  struct io_range gap = { e->off, e->off };
  int r = 0;

  while (r == 0 && io_ranges_gap (&p->covered, gap.to, to, &gap))
    r = add_command (p, e, &gap);
  return r < 0 ? r : io_ranges_add (&p->covered, e->off, to);
}

/* The entries, from the youngest on; from the oldest on in a test of that rule. */
static struct nbd_entry *
first_again (const struct nbd_log *log)
{
  return mutation (MUTATION_NBD_RESEND_ORDER) ? log->oldest : log->youngest;
}

static struct nbd_entry *
next_again (const struct nbd_entry *e)
{
  return mutation (MUTATION_NBD_RESEND_ORDER) ? e->younger : e->older;
}

static bool
may_land_later (const struct nbd_entry *e)
{
  return !e->durable && (!mutation (MUTATION_NBD_TAINT_UNANSWERED) || !e->answered);
}

int
io_nbd_log_taint (struct io_nbd *n)
{
  struct nbd_log *log = &n->written;
  const struct nbd_entry *e;
  int r = 0;

  pthread_mutex_lock (&log->lock);
  for (e = log->oldest; e && r == 0; e = e->younger)
    r = may_land_later (e) ? taint_locked (n, e->off, e->len) : 0;
  pthread_mutex_unlock (&log->lock);
  return r;
}

int
io_nbd_log_begin_replay (struct io_nbd *n, struct nbd_replay *p)
{
  struct nbd_log *log = &n->written;
  struct nbd_entry *e;
  int r = 0;

  pthread_mutex_lock (&log->lock);
  log->replaying = true;
  for (e = first_again (log); e && r == 0; e = next_again (e)) {
    e->again = 0;
    e->repeated = !e->durable;
    r = add_entry (p, e);
  }
  pthread_mutex_unlock (&log->lock);
  return r;
}

static bool
is_freed (const struct nbd_entry *e, uint64_t flush)
{
  return e->freed;
}

int
io_nbd_log_end_replay (struct io_nbd *n, struct nbd_replay *p)
{
  struct nbd_log *log = &n->written;
  struct nbd_entry *e;
  size_t i;
  int r = 0;

  pthread_mutex_lock (&log->lock);
  for (i = 0; i < p->nr; i++) {
    e = p->cmds[i].opaque;
    if (e->again == 0 && p->cmds[i].answered)
      e->again = p->cmds[i].result;
    if (e->answered && !e->freed && r == 0)
      r = e->again;
    if (mutation (MUTATION_NBD_RESEND_ONCE) && e->answered)
      e->freed = true;
  }
  log->replaying = false;
  drop_those (log, is_freed, 0);
  pthread_mutex_unlock (&log->lock);
  free (p->cmds);
  io_ranges_free (&p->covered);
  return r;
}

/* --- Taint -------------------------------------------------------------- */

int
io_nbd_taint (struct io_nbd *n, const struct nbd_cmd *cmd)
{
  struct nbd_log *log = &n->written;
  int r;

  if (cmd->type != NBD_WRITE && cmd->type != NBD_TRIM)
    return 0;
  pthread_mutex_lock (&log->lock);
  r = taint_locked (n, cmd->off, cmd->len);
  pthread_mutex_unlock (&log->lock);
  return r;
}

bool
io_nbd_tainted (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_nbd *n = (struct io_nbd *) s;
  bool found;

  pthread_mutex_lock (&n->written.lock);
  found = is_tainted (&n->written, host_off, len);
  pthread_mutex_unlock (&n->written.lock);
  return found;
}

int
io_nbd_forget_taint (struct io_store *s, uint64_t host_off, uint64_t len)
{
  struct io_nbd *n = (struct io_nbd *) s;
  int r;

  pthread_mutex_lock (&n->written.lock);
  r = io_ranges_remove (&n->written.tainted, host_off, host_off + len);
  pthread_mutex_unlock (&n->written.lock);
  return r;
}
