/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket of the server, if the key control= asks for one (admin.c).
 * Without it, all calls but admin_config have no effect. */
#ifndef DEDUP_ADMIN_H
#define DEDUP_ADMIN_H

#include "cleanup.h"
#include "server.h"

/* Takes the value of the key.  -1: it is no path for a socket; it is reported. */
int admin_config (const char *key, const char *value) MUST_CHECK;

/* Creates the socket for the image at IMAGE_PATH, before that is opened.  -1: that
 * failed, and is reported. */
int admin_open (const char *image_path) MUST_CHECK;
/* Lets commands work on IMAGE, which is open now. */
void admin_attach (struct srv_image *image);
/* Starts to answer, after the fork.  0 or -errno. */
int admin_start (void) MUST_CHECK;
/* Ends the socket, started or not, when no request is in the plugin and before the image
 * is closed.  Waits for the command that is under way. */
void admin_stop (void);
/* Frees everything, when the image is closed. */
void admin_free (void);

#endif
