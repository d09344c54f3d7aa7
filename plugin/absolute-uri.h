/* SPDX-License-Identifier: BSD-3-Clause */
/* Makes the paths in the URI of an NBD export absolute (absolute-uri.c). */
#ifndef DEDUP_ABSOLUTE_URI_H
#define DEDUP_ABSOLUTE_URI_H

#include "cleanup.h"

/* Returns URI with the current directory before each path in it that is relative, for
 * the caller to free; or NULL, with errno. */
char *absolute_uri (const char *uri) MUST_CHECK;

#endif
