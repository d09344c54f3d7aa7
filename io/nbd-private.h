/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of the NBD store share.  Private to io/.
 *
 * A connection (nbd-conn.c) is a handle of libnbd with a thread that polls it, or one that
 * is lent to the threads that use it.
 * The link (nbd-link.c) is all connections together: they are lost and made
 * again as one.  A batch (nbd-batch.c) is some commands that are sent at once
 * and waited for once, however often the link breaks meanwhile.  The resend log
 * (nbd-log.c) has what nbd-replay.c may have to write again.  nbd.c turns calls
 * of a byte store into parts, and nbd-parts.c these into commands;
 * nbd-extents.c asks where the holes are.
 */
#ifndef DEDUP_IO_NBD_PRIVATE_H
#define DEDUP_IO_NBD_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"
#include "fault.h"
#include "io.h"
#include "lock.h"
#include "log.h"
#include "nbd.h"
#include "ranges.h"

struct nbd_handle;

/* What a server says of its export. */
struct nbd_export {
  uint64_t size;              /* bytes; a multiple of min_block */
  uint32_t min_block;         /* a power of two, 1..4096 */
  uint32_t max_request;       /* bytes of a read or write */
  bool read_only, can_flush, can_fua, can_trim, multi_conn, has_extents;
};

/* --- nbd-conn.c --------------------------------------------------------- */

struct nbd_conn {
  /* Constant after io_nbd_conn_start: */
  struct nbd_handle *h;
  int fd;                     /* its socket */
  bool lent;                  /* to one thread at a time, which receives itself */
  int wake_fd;                /* eventfd: look at the handle again */
  pthread_t thread;
  void (*lost) (void *opaque);
  void *opaque;

  /* Atomic: */
  bool stop;
  unsigned in_flight;         /* commands */
};

/* Connects to URI within TIMEOUT_MS, and learns about the export.  Ends early,
 * with -EINTR, if the descriptor CANCEL_FD (-1: none) becomes readable.  Without
 * STRUCTURED replies there are no extents, and a reply to a read is in two pieces instead
 * of four. */
int io_nbd_conn_open (struct nbd_conn *c, const char *uri, bool structured,
                      int timeout_ms, int cancel_fd, struct nbd_export *e,
                      struct fault *f) MUST_CHECK;

/* Starts the thread, which calls LOST (OPAQUE) once if the connection
 * breaks.  If it is LENT that is all it does. */
int io_nbd_conn_start (struct nbd_conn *c, bool lent, void (*lost) (void *),
                       void *opaque) MUST_CHECK;

/* Ends the thread, if there is one; it may be started again. */
void io_nbd_conn_stop (struct nbd_conn *c);

/* Returns whether the connection ended, so that no command can be sent. */
bool io_nbd_conn_is_broken (struct nbd_conn *c);

/* Makes the thread look at the handle if bytes wait to be sent. */
void io_nbd_conn_kick (struct nbd_conn *c);

/* Waits for the socket of a connection that was lent to the calling thread, up to
 * TIMEOUT_MS, and receives and sends what is possible. */
void io_nbd_conn_step (struct nbd_conn *c, int timeout_ms);

/* Ends the threads that were started, and NR connections.  Commands that had no
 * reply are complete then, without an answer.  POLITE: tells the server before,
 * and waits up to a second until it closes them. */
void io_nbd_conns_close (struct nbd_conn *c, unsigned nr, bool polite);

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t io_nbd_now_ms (void);

/* --- nbd-batch.c -------------------------------------------------------- */

enum nbd_type { NBD_READ, NBD_WRITE, NBD_TRIM, NBD_FLUSH, NBD_EXTENTS };

/* Is called for each run of extents in a reply to NBD_EXTENTS: pairs of length
 * and flags. */
typedef int (*nbd_extents_cb) (void *opaque, const char *context,
                               uint64_t off, uint32_t *entries, size_t nr,
                               int *error);

struct nbd_cmd {
  enum nbd_type type;
  void *buf;
  uint64_t off, len;
  nbd_extents_cb extents;
  void *opaque;

  bool again;                 /* from the log: neither checked nor noted */
  bool fua;                   /* of a write: durable when it is answered */

  int result;                 /* 0 or -errno */
  bool answered;              /* by the server, or refused before it was sent */
  bool sent;                  /* perhaps */
  struct nbd_entry *entry;    /* in the log, or NULL */
  struct nbd_batch *batch;
  struct nbd_conn *conn;
};

struct io_nbd;

/* What a thread waits on until its batch is complete.  It outlives all batches, so that it
 * can be rung after the mutex was released: a thread that is woken under the mutex waits
 * once more, for that. */
struct nbd_bell {
  pthread_mutex_t mutex;
  pthread_cond_t rung;
};

#define NBD_BELLS 64u

struct nbd_bells {
  unsigned next;              /* atomic; batches take turns, and may share one */
  struct nbd_bell v[NBD_BELLS];
};

void io_nbd_bells_init (struct nbd_bells *b);
void io_nbd_bells_destroy (struct nbd_bells *b);

/* Sends NR commands at once and waits for all; sets the result of each.  Those
 * whose connection breaks are sent again on the next one.  A batch of the
 * thread that makes connections is not: it fails with -EIO. */
void io_nbd_run (struct io_nbd *n, struct nbd_cmd *cmds, size_t nr);

/* --- nbd-parts.c -------------------------------------------------------- */

/* Does the same TYPE for NR parts, which lie inside the export and on its
 * blocks, cut to requests; sets the result of each part. */
void io_nbd_run_parts (struct io_nbd *n, enum nbd_type type, struct io_part *v,
                       size_t nr);

/* Makes durable what was answered before the call. */
int io_nbd_flush (struct io_nbd *n) MUST_CHECK;

/* Writes a range that is one command, durably, and flushes, side by side. */
int io_nbd_write_and_flush (struct io_nbd *n, void *buf, uint64_t len,
                            uint64_t host_off) MUST_CHECK;

/* --- nbd-extents.c ------------------------------------------------------ */

/* The last range that was found to be all data: most questions are about it. */
struct nbd_dense {
  pthread_mutex_t lock;
  uint64_t from, to;
};

uint64_t io_nbd_next_hole (struct io_store *s, uint64_t host_off);
int io_nbd_next_data (struct io_store *s, uint64_t host_off, uint64_t *data);
void io_nbd_forget_dense (struct io_nbd *n);

/* --- nbd-link.c --------------------------------------------------------- */

enum nbd_phase {
  NBD_UP,                     /* all may send */
  NBD_DOWN,                   /* nobody may; the connections are made again */
  NBD_RESUMING,               /* the link's thread may: it checks and replays */
  NBD_GIVEN_UP,               /* calls fail */
  NBD_CLOSING,
};

struct nbd_link {
  /* Constant after open: */
  unsigned max_conns;
  int (*taint) (struct io_nbd *n);
  int (*replay) (struct io_nbd *n, size_t *nr);

  pthread_mutex_t lock;
  pthread_cond_t changed;     /* phase, or users became 0 */
  pthread_t thread;
  bool started;               /* there is a thread, or it is paused */
  int cancel_fd;              /* eventfd: stop connecting */

  /* Protected by lock: */
  enum nbd_phase phase;
  unsigned generation;        /* of the connections */
  unsigned users;             /* threads that may be calling libnbd */
  uint32_t can_lend, lent;    /* bit I: conns[I] */
  bool paused;                /* the thread ends, to be started again */
  int64_t lost_ms;            /* when the link was lost; valid while it is */

  /* Of the link's thread: */
  int64_t tried_ms;           /* its last attempt */
  bool refused;               /* ... ended as the log could not be written again */
  /* Changed by the link's thread while there are no users: */
  unsigned nr_conns;
  unsigned nr_shared;         /* the first of them; the others are lent */
  struct nbd_conn conns[NBD_MAX_CONNECTIONS];
};

/* Connects, and starts the link's thread, which calls TAINT on each later connection
 * before it sends anything, and REPLAY: 0, or < 0 and the link is given up, unless it
 * broke meanwhile or memory ran out. */
int io_nbd_link_open (struct io_nbd *n, int (*taint) (struct io_nbd *n),
                      int (*replay) (struct io_nbd *n, size_t *nr),
                      struct fault *f) MUST_CHECK;
/* Ends all connections: calls fail from then on, and the link is destroyed when none is
 * left. */
void io_nbd_link_close (struct io_nbd *n);
void io_nbd_link_destroy (struct io_nbd *n);

/* Ends all threads, and starts them again: a thread does not survive a fork.
 * There are no calls in between. */
void io_nbd_link_pause (struct io_nbd *n);
int io_nbd_link_resume (struct io_nbd *n) MUST_CHECK;

/* Waits until commands may be sent, and keeps the connections from being closed
 * until io_nbd_link_leave.  -EIO: there will be none.  OWN, if not NULL, is set to a
 * connection that nobody else uses until then; NULL: there is none left.  If the link is
 * lost meanwhile, the socket of that one is shut down, as libnbd finds out. */
int io_nbd_link_enter (struct io_nbd *n, unsigned *generation,
                       struct nbd_conn **own) MUST_CHECK;
void io_nbd_link_leave (struct io_nbd *n, const struct nbd_conn *own);

/* Reports that the connections of GENERATION broke, or gave no answer since
 * SINCE_MS.  WHY completes a line of the log. */
void io_nbd_link_lost (struct io_nbd *n, unsigned generation, int64_t since_ms,
                       const char *why);
/* Fails all calls from now on. */
void io_nbd_link_give_up (struct io_nbd *n, const char *why);

/* Returns whether the calling thread is the one that makes connections. */
bool io_nbd_link_is_mine (struct io_nbd *n);
/* Returns whether that thread has to end. */
bool io_nbd_link_must_end (struct io_nbd *n);

/* --- nbd-log.c ---------------------------------------------------------- */

struct nbd_log {
  pthread_mutex_t lock;

  /* Protected by lock: */
  struct nbd_entry *oldest, *youngest;
  struct nbd_entry *spare;    /* memory of entries that were dropped */
  uint64_t spare_bytes;
  uint64_t bytes;             /* what the entries cost */
  uint64_t nr_flushes;        /* begun */
  bool replaying;
  struct io_ranges tainted;
  struct io_ranges unflushed; /* of entries; perhaps more */
};

void io_nbd_log_init (struct nbd_log *log);
void io_nbd_log_destroy (struct nbd_log *log);

/* Admits a command that is about to be sent for the first time, and gives it an
 * entry if it changes bytes.  -ESTALE: the range is tainted. */
int io_nbd_log_begin (struct io_nbd *n, struct nbd_cmd *cmd) MUST_CHECK;
/* Copies the bytes; may be called after the command was sent. */
void io_nbd_log_fill (struct nbd_cmd *cmd);
/* Notes the result, which may become that of writing the entry again. */
void io_nbd_log_end (struct io_nbd *n, struct nbd_cmd *cmd);

/* Returns whether a flush must come before MORE bytes. */
bool io_nbd_log_is_full (struct io_nbd *n, uint64_t more);
/* Returns whether a flush must come before CMDS, as they change bytes that others
 * have changed since the last one. */
bool io_nbd_log_is_over (struct io_nbd *n, const struct nbd_cmd *cmds, size_t nr);
/* Returns the number of a flush that begins now. */
uint64_t io_nbd_log_begin_flush (struct io_nbd *n);
/* Drops what that flush made durable; nothing on the link's thread. */
void io_nbd_log_flushed (struct io_nbd *n, uint64_t flush);

/* Taints the range of each entry: all of them may land later once their connection
 * broke.  -ENOMEM: that cannot be noted. */
int io_nbd_log_taint (struct io_nbd *n) MUST_CHECK;

/* The commands that write again; starts all zero. */
struct nbd_replay {
  struct nbd_cmd *cmds;       /* owned */
  size_t nr, capacity;
  struct io_ranges covered;   /* by younger entries */
};

/* Makes the commands that write everything again, and keeps entries until the
 * end.  -ENOMEM: end it all the same, without running any. */
int io_nbd_log_begin_replay (struct io_nbd *n, struct nbd_replay *p) MUST_CHECK;
/* Notes the results, and frees what P has.  Returns the server's first error
 * for an entry that was answered before, as its caller was told that it is
 * written.  A call that still waits returns the error itself. */
int io_nbd_log_end_replay (struct io_nbd *n, struct nbd_replay *p) MUST_CHECK;

/* Notes that CMD may land later.  Fails if that cannot be noted. */
int io_nbd_taint (struct io_nbd *n, const struct nbd_cmd *cmd) MUST_CHECK;
bool io_nbd_tainted (struct io_store *s, uint64_t host_off, uint64_t len);
int io_nbd_forget_taint (struct io_store *s, uint64_t host_off, uint64_t len) MUST_CHECK;

/* --- nbd-ahead.c -------------------------------------------------------- */

#define NBD_AHEAD_PIECES 256u
#define NBD_AHEAD_THREADS 4u

enum nbd_piece_state {
  NBD_PIECE_FREE,
  NBD_PIECE_QUEUED,           /* to be read */
  NBD_PIECE_READING,
  NBD_PIECE_READY,
  NBD_PIECE_STALE,            /* is freed when it has no users */
};

struct nbd_piece {
  enum nbd_piece_state state;
  unsigned users;             /* threads that read it, wait for it or copy from it */
  uint64_t off, len;
  uint64_t age;
  uint8_t *buf;               /* owned; of the thread that reads it, until it is ready */
  bool failed;                /* of that thread */
};

struct nbd_ahead {
  /* Constant after open: reads parts from the server. */
  void (*read) (struct io_nbd *n, struct io_part *v, size_t nr);

  pthread_mutex_t lock;
  pthread_cond_t changed;
  uint64_t least_ns;          /* atomic: the shortest read so far */

  /* Protected by lock: */
  struct nbd_piece pieces[NBD_AHEAD_PIECES];
  uint64_t bytes;             /* of all pieces */
  uint64_t clock;
  bool stop;
  pthread_t threads[NBD_AHEAD_THREADS];
  unsigned nr_threads;
};

void io_nbd_ahead_init (struct io_nbd *n, void (*read) (struct io_nbd *n, struct io_part *v,
                                                        size_t nr));
/* Stops reading ahead, until the next io_nbd_will_need.  There are no calls meanwhile. */
void io_nbd_ahead_stop (struct io_nbd *n);
void io_nbd_ahead_destroy (struct io_nbd *n);

/* Implements io_will_need. */
bool io_nbd_will_need (struct io_store *s, const struct io_part *v, size_t nr, bool around);
/* Copies PART if all of it was, or is being, read ahead; it may wait for that. */
bool io_nbd_ahead_read (struct io_nbd *n, const struct io_part *part);
/* Must be called after each change of the bytes, before its caller is told. */
void io_nbd_ahead_drop (struct io_nbd *n, uint64_t off, uint64_t len);
/* Notes how long a read took. */
void io_nbd_ahead_time (struct io_nbd *n, uint64_t ns);

/* --- nbd-replay.c ------------------------------------------------------- */

/* Writes everything again; *NR becomes the number of commands.  Fails if the
 * server refuses, and with -ENOMEM.  Whether the connections held, the phase of
 * the link tells. */
int io_nbd_replay (struct io_nbd *n, size_t *nr) MUST_CHECK;

/* --- nbd.c -------------------------------------------------------------- */

struct io_nbd {
  struct io_store store;

  /* Constant after open: */
  char *uri;
  bool writable;
  int64_t delay_ms;           /* of reconnecting */
  bool fenced;
  int (*may_resume) (void *opaque);
  void *opaque;
  const struct log_sink *sink;
  struct nbd_export export;

  struct nbd_link link;       /* these have locks of their own */
  struct nbd_bells bells;
  struct nbd_log written;
  struct nbd_dense dense;
  struct nbd_ahead ahead;
  pthread_mutex_t edges;      /* one write of parts of blocks at a time */
  int sync_error;             /* atomic: of a flush that nobody asked for */
};

#endif
