/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps, gets again and gives back a lease, by reads and writes of its area only.
 *
 * Promises, if clocks of hosts differ in rate by less than a tenth, and writes
 * reach the area before they return:  lease_check returns 0 to two servers at
 * the same time never, however slow reads and writes are and wherever a server
 * is stopped.  docs/on-disk.md section 13.3 has the argument.
 *
 * Threads: any.  No lock is held during I/O, so that lease_resume can work
 * while another thread waits for a connection.  At most one thread (busy)
 * renews or takes, but for lease_resume.
 *
 * Left out on purpose: fencing.  A write that was passed on in time may reach
 * the place later. */
#include "lease-steps.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "mutation.h"

#define BUSY_POLL_NS (5 * LEASE_MS)

static bool
try_busy (struct lease *l)
{
  return !__atomic_exchange_n (&l->busy, true, __ATOMIC_ACQUIRE);
}

static void
end_busy (struct lease *l)
{
  __atomic_store_n (&l->busy, false, __ATOMIC_RELEASE);
}

void
lease_init (struct lease *l, struct io_store *area, uint64_t area_off,
            const struct io_lease_params *p)
{
  const unsigned term_s = p->term_s ? p->term_s : IO_LEASE_TERM_S;

  memset (l, 0, sizeof *l);
  l->area = area;
  l->area_off = area_off;
  l->world = p->world ? p->world : &io_lease_this_host;
  l->log = p->log;
  l->path = p->path ? p->path : "lease";
  l->term_ns = term_s * 1000 * LEASE_MS;
  lock_init (&l->lock);
  l->world->describe (l->world->opaque, &l->self);
  l->self.pid = 0;             /* the process may fork still */
  l->self.start_time = 0;
  l->self.term_ms = term_s * 1000;
  if (p->name)
    strncpy (l->self.name, p->name, sizeof l->self.name - 1);
}

void
lease_destroy (struct lease *l)
{
  lock_destroy (&l->lock);
}

int
lease_take (struct lease *l, bool force, struct fault *f)
{
  int r = l->world->random (l->world->opaque, l->self.server,
                            sizeof l->self.server);

  return r < 0 ? r : lease_get (l, false, force, f);
}

/* --- Holding -------------------------------------------------------------- */

/* Logs that the lease is in trouble, once until it is renewed again: when its term ends,
 * clients get errors that do not say why.  WHY begins with "its lease". */
static void
tell_trouble (struct lease *l, const char *why)
{
  if (!__atomic_exchange_n (&l->troubled, true, __ATOMIC_RELAXED))
    log_line (l->log, LOG_ERROR, "%s: %s; nothing is read or written when its term is "
              "over", l->path, why);
}

/* Reports the result of renewing the lease, which is returned. */
static int
note_renewal (struct lease *l, int r)
{
  char why[100];

  if (r == 0 && __atomic_exchange_n (&l->troubled, false, __ATOMIC_RELAXED))
    log_line (l->log, LOG_INFO, "%s: the lease is renewed again", l->path);
  if (r < 0 && r != -ESTALE && r != -ETIME) {
    snprintf (why, sizeof why, "its lease cannot be renewed: %s", strerror (-r));
    tell_trouble (l, why);
  }
  return r;
}

static int
renew_once (struct lease *l)
{
  CLEANUP_FREE struct lease_view *v = lease_view_new ();

  return note_renewal (l, v ? lease_renew_with (l, v) : -ENOMEM);
}

/* Gets a lease again that has ended. */
static int
take_again (struct lease *l)
{
  struct fault f = { 0 };
  int r = lease_get (l, true, false, &f);

  if (r < 0 && r != -ESTALE) {
    (void) fault_io (&f, -r, UINT64_MAX, "its lease cannot be taken again: %s",
                     strerror (-r));
    tell_trouble (l, f.msg);
  }
  if (r == 0) {
    __atomic_store_n (&l->troubled, false, __ATOMIC_RELAXED);
    log_line (l->log, LOG_INFO, "%s: the lease could not be renewed in time; "
              "nobody else has taken it, so it was taken again", l->path);
  }
  return r;
}

/* Renews the lease or, if it ended, gets it again. */
static int
keep (struct lease *l)
{
  int r = lease_is_lost (l) ? -ESTALE : -ETIME;

  if (r == -ETIME && lease_now (l) < lease_until (l))
    r = renew_once (l);
  return r == -ETIME ? take_again (l) : r;
}

int
lease_renew (struct lease *l)
{
  int r;

  if (!try_busy (l))
    return lease_is_lost (l) ? -ESTALE : 0;
  r = keep (l);
  end_busy (l);
  return r;
}

int
lease_resume (struct lease *l)
{
  return mutation (MUTATION_LEASE_NO_RESUME) ? 0 : keep (l);
}

/* Gets a lease again that has ended, or waits for the thread that does. */
static int
get_again (struct lease *l)
{
  int r = 0;

  while (r == 0 && lease_now (l) >= lease_until (l)) {
    if (lease_is_lost (l))
      return -ESTALE;
    if (!try_busy (l)) {
      lease_rest (l, BUSY_POLL_NS);
      continue;
    }
    if (lease_now (l) >= lease_until (l))
      r = keep (l);
    end_busy (l);
  }
  return r;
}

int
lease_check (struct lease *l)
{
  return lease_now (l) < lease_until (l) || mutation (MUTATION_LEASE_PAST_TERM) ? 0
    : get_again (l);
}

void
lease_renew_if_due (struct lease *l)
{
  if (lease_now (l) < __atomic_load_n (&l->renew_ns, __ATOMIC_RELAXED) ||
      lease_is_lost (l) || !try_busy (l))
    return;
  if (lease_now (l) < lease_until (l))
    (void) renew_once (l);      /* lease_check tells */
  end_busy (l);
}

void
lease_name_process (struct lease *l)
{
  struct io_lease_holder h = { 0 };
  LOCK_FOR_SCOPE (&l->lock);

  l->world->describe (l->world->opaque, &h);
  l->self.pid = h.pid;
  l->self.start_time = h.start_time;
  l->self.pid_ns = h.pid_ns;
}

/* Writes that the lease is free, if no other server can have it yet.  If that
 * fails, its term has to end. */
static void
write_free (struct lease *l)
{
  const int slot = lease_choose_slot (l);
  const struct io_lease_holder mine = lease_next_record (l, IO_LEASE_FREE);

  if (slot >= 0)
    (void) !lease_write_record (l, (unsigned) slot, &mine);
}

void
lease_release (struct lease *l)
{
  if (!lease_is_lost (l) && lease_now (l) < lease_until (l))
    write_free (l);
  (void) lease_end_for_ever (l);
}

/* Empties all slots: for a record behind which there can be no other. */
static int
empty_all (struct lease *l)
{
  static const uint8_t zero[LEASE_SLOT];
  unsigned i;
  int r = 0;

  for (i = 0; i < LEASE_SLOTS && r == 0; i++)
    r = lease_write_slot (l, i, zero);
  return r;
}

int
lease_break (struct lease *l, const struct lease_view *v)
{
  const struct io_lease_holder *last = lease_newest (v);
  struct io_lease_holder h = l->self;
  int r = l->world->random (l->world->opaque, h.server, sizeof h.server);

  if (last && last->generation >= LEASE_GENERATION_MAX)
    return empty_all (l);
  h.state = IO_LEASE_FREE;
  h.generation = last ? last->generation + 1 : 1;
  h.counter = 0;
  return r < 0 ? r : lease_write_record (l, lease_next_slot (v), &h);
}

int
lease_watch (struct lease *l, struct lease_view *v, uint64_t for_ns)
{
  const uint64_t end = lease_now (l) + for_ns;
  const struct io_lease_holder first = *lease_newest (v);
  const struct io_lease_holder *h;
  uint64_t start;
  int r;

  do {
    lease_rest (l, lease_poll_ns (for_ns));
    start = lease_now (l);
    r = lease_look (l->area, l->area_off, v);
    h = r == 0 ? lease_newest (v) : NULL;
    if (h && (lease_is_newer (h, &first) || lease_is_newer (&first, h)))
      return 1;
  } while (r == 0 && start < end);
  return r;
}
