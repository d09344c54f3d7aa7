/* SPDX-License-Identifier: BSD-3-Clause */
/* Asks a server through its control socket: a small client of QMP's wire protocol
 * (control-client.c). */
#ifndef DEDUP_CONTROL_CLIENT_H
#define DEDUP_CONTROL_CLIENT_H

#include <jansson.h>

#include "cleanup.h"
#include "fault.h"

struct control_client;

/* Connects to the socket at PATH, and negotiates.  No call waits for longer than
 * TIMEOUT_MS.  -ETIMEDOUT, -EPROTO (the other end does not speak QMP), -ENOENT,
 * -ECONNREFUSED (nobody listens), -EACCES ..., with F filled. */
int control_connect (const char *path, unsigned timeout_ms,
                     struct control_client **out, struct fault *f) MUST_CHECK;
/* C may be NULL. */
void control_close (struct control_client *c);

/* Runs the command NAME with ARGS, of which it takes the reference (NULL: none), and
 * sets *RET to what it returns, for the caller to free.  Events are dropped.  -EINVAL:
 * the server refused it, and F has its text; -ENOTSUP: it has no such command; other
 * errors as above, after which C can only be closed. */
int control_command (struct control_client *c, const char *name, json_t *args,
                     json_t **ret, struct fault *f) MUST_CHECK;

/* Runs a command that lists in pages, and puts all pages together: as long as a page
 * has items, the next one is asked for with the argument "after", which is what KEY_OF
 * returns for the last item (a new reference; NULL: there are no more).  At most MAX
 * items. */
int control_list (struct control_client *c, const char *name,
                  json_t *(*key_of) (const json_t *item), size_t max, json_t **ret,
                  struct fault *f) MUST_CHECK;

#endif
