/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps servers on different hosts from writing to one image at the same time.
 *
 * A lease says which server writes to a place: a block device, an NBD export,
 * or a file.  Its record lies in a lease area of 64 KiB and is renewed while
 * the server runs.  A server that could not renew it in time writes nothing
 * more, until it has seen that nobody else took it meanwhile.  docs/on-disk.md
 * section 13 has the bytes, the protocol, and what a lease cannot do.
 *
 * A program calls, in this order:
 *
 *   io_lease_take     waits for the lease, and wraps the store of the image
 *   io_lease_start    after the process has forked: renews it from a thread
 *                     (io_after_fork calls it)
 *   io_close          gives the lease back
 *
 * Before io_lease_start, calls of the wrapped store renew the lease. */
#ifndef DEDUP_LEASE_H
#define DEDUP_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "io.h"
#include "log.h"

#define IO_LEASE_BYTES UINT64_C (65536)     /* of a lease area */
#define IO_LEASE_TERM_S 30                  /* unless another is asked for */
#define IO_LEASE_TERM_MAX_S 3600

/* What a record says of a server. */
struct io_lease_holder {
  enum { IO_LEASE_FREE, IO_LEASE_CLAIMED, IO_LEASE_HELD } state;
  uint64_t generation;       /* grows each time that the lease is taken */
  uint64_t counter;          /* grows with each record of a generation */
  uint32_t term_ms;
  uint32_t pid;              /* 0: not known yet */
  uint64_t start_time;       /* of the process, in ticks since boot */
  int64_t since;             /* when it took the lease: Unix time */
  uint64_t pid_ns;           /* inode number of its PID namespace */
  uint8_t server[16];        /* random, new for each io_lease_take */
  uint8_t boot_id[16];
  char host[65], name[257];  /* each ends with a NUL */
};

/* What the lease asks the host for; tests replace it. */
struct io_lease_world {
  /* The time since the host booted, also that in which it was suspended. */
  uint64_t (*now_ns) (void *opaque);
  void (*sleep_ns) (void *opaque, uint64_t ns);
  /* Fills host, boot_id, pid_ns, pid, start_time and since. */
  void (*describe) (void *opaque, struct io_lease_holder *h);
  /* Returns true only if the process is known to have ended. */
  bool (*has_ended) (void *opaque, const struct io_lease_holder *h);
  int (*random) (void *opaque, void *buf, size_t len);
  void *opaque;
};

/* The world of this host (lease-world.c). */
extern const struct io_lease_world io_lease_this_host;

struct io_lease_params {
  const char *name;           /* what is served, for messages; or NULL */
  bool force;                 /* do not wait for another holder's term */
  unsigned term_s;            /* 0: IO_LEASE_TERM_S */
  /* Another store that holds the area, at 0; NULL: the end of the store itself.
   * It is made longer where needed. */
  struct io_store *area;
  /* From malloc, or NULL: is set to *OUT, for io_lease_may_resume, and freed when
   * S is closed. */
  struct io_store **self;
  /* Is called on failure, before the stores are closed; may be NULL. */
  void (*failed) (void *opaque);
  void *opaque;
  const struct log_sink *log;
  const char *path;           /* begins each log line; must outlive the store */
  const struct io_lease_world *world;     /* NULL: io_lease_this_host */
};

/* Takes the lease of the place S, and makes *OUT, which passes calls to S as
 * long as the lease lasts.  S and P->area belong to *OUT; they are closed on
 * failure.
 *
 * Where the area is the end of S, *OUT is shorter than S by IO_LEASE_BYTES,
 * and by what S is longer than a multiple of 4096.  If the area holds bytes but
 * no record, it is refused unchanged, as they may be an image's.
 *
 * Takes half a second and four round trips if the lease is free, or if its holder was a
 * process of this host that has ended.  If somebody holds it, the call waits until that
 * one renews it (FAULT_BUSY, which names it), or has not done so for its term.  Where two
 * round trips take more than 0.4 s it waits for a term, and at most a twelfth of the term
 * may pass in them then.
 *
 * Calls of *OUT that find the term over try to get the lease again, which
 * waits while S does; they return -ESTALE if that is not possible.  So do all
 * calls after that, also those that read. */
int io_lease_take (struct io_store *s, const struct io_lease_params *p,
                   struct io_store **out, struct fault *f) MUST_CHECK;

/* Returns whether S has a lease, and if so tells it to log to LOG, in lines
 * that begin with PATH; both must outlive S. */
bool io_lease_log (struct io_store *s, const struct log_sink *log,
                   const char *path);

/* Starts the thread that renews the lease of LEASED, and records the number of
 * this process, by which other processes of this host see when it has ended.
 * Returns 0 and does nothing for a store without a lease. */
int io_lease_start (struct io_store *leased) MUST_CHECK;

/* Checks and renews the lease of the store at LEASED (a struct io_store **,
 * which may hold NULL as long as the lease is not taken), for may_resume of an
 * NBD store: called when a connection is back, before anything is written
 * again.  Returns 0, or -errno if nothing may be written. */
int io_lease_may_resume (void *leased) MUST_CHECK;

/* Returns 1 if a server writes to the place S, and describes it in F; 0 if not;
 * or -errno.  Where a record says that somebody holds the lease it waits for a
 * renewal, for a third of the term at the most.  Uses area, world and log of P,
 * and closes nothing. */
int io_lease_probe (struct io_store *s, const struct io_lease_params *p,
                    struct fault *f) MUST_CHECK;

/* Reads the record of the lease of S into *H, without waiting.  Returns 1, 0 if
 * there is none, -EINVAL if the area holds something else, or -errno. */
int io_lease_read (struct io_store *s, struct io_store *area,
                   struct io_lease_holder *h) MUST_CHECK;

/* Makes the lease free, whoever holds it, but changes nothing (-EINVAL) if the
 * area holds bytes and no record.  A holder that still runs stops writing when
 * it renews the lease next, which is up to a sixth of its term later. */
int io_lease_break (struct io_store *s, const struct io_lease_params *p,
                    struct fault *f) MUST_CHECK;

/* Describes H in one line, as "HOST, process 12, since 2026-01-31 12:00:00
 * UTC"; returns BUF. */
#define IO_LEASE_TEXT 200
const char *io_lease_describe (const struct io_lease_holder *h,
                               char buf[IO_LEASE_TEXT]);

#endif
