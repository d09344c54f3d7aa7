/* SPDX-License-Identifier: BSD-3-Clause */
/* Says whether a server that is reached over TLS will be verified (nbd-tls.c). */
#ifndef DEDUP_IO_NBD_TLS_H
#define DEDUP_IO_NBD_TLS_H

#include "cleanup.h"
#include "fault.h"

/* Fails with -EIO if URI is one of TLS, and libnbd would connect to any server, or
 * without a certificate of ours that is there but cannot be read. */
int io_nbd_tls_check (const char *uri, struct fault *f) MUST_CHECK;

/* The same for a URI that may name no files, so that libnbd looks in its own folders.  On a
 * Unix socket there is nothing to look for. */
int io_nbd_tls_check_default (const char *uri, struct fault *f) MUST_CHECK;

#endif
