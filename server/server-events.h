/* SPDX-License-Identifier: BSD-3-Clause */
/* Tells a listener what happens to an image while it is served.  A part of server.h,
 * which includes it.
 *
 * An event is a value that is valid during the call only: the listener copies what
 * it keeps.  The listener is called on the thread on which the event happened, which
 * may be one of a client's and may hold locks.  Therefore the listener must not
 * block, and must not call functions of this room.  Events of one thread arrive in
 * the order in which they happened.
 */
#ifndef DEDUP_SERVER_EVENTS_H
#define DEDUP_SERVER_EVENTS_H

#include <stdint.h>

struct srv_image;

enum srv_event_kind {
  SRV_EVENT_JOB_STATUS,         /* id, type, status: the new one */
  SRV_EVENT_READ_ONLY,          /* reason: clients can write no more */
  SRV_EVENT_SPACE,              /* status: "ok", "low" or "gone"; bytes: free on the
                                 * host, or UINT64_MAX */
  SRV_EVENT_IO_ERROR,           /* name, operation, error, offset, length: a
                                 * request failed; reason may be NULL */
  SRV_EVENT_SCRUB_FINDING,      /* reason, host_offset, length; name and offset of
                                 * the disk's range, if one was looked up */
  SRV_EVENT_CLIENT_REFUSED,     /* name, reason, error */
  SRV_EVENT_EXPORT_DELETED,     /* name: it leads nowhere from now on */
};

struct srv_event {              /* what a kind does not name is 0 or NULL */
  enum srv_event_kind kind;
  const char *id, *type;        /* of a job; type as srv_job_ops has it */
  const char *status;
  const char *name;             /* the export's; "" is the active disk */
  const char *operation;        /* "read", "write", "flush", "trim", "zero" ... */
  const char *reason;           /* for people */
  int error;                    /* positive errno */
  uint64_t offset, length;      /* bytes of the disk */
  uint64_t host_offset;         /* bytes, in the image file */
  uint64_t bytes;
};

/* Sets the listener, before srv_image_start.  NULL: there is none.  It gets no event
 * after srv_image_close returned. */
void srv_image_set_listener (struct srv_image *m,
                             void (*event) (void *opaque,
                                            const struct srv_event *e),
                             void *opaque);

#endif
