/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the text of JSON strings: escapes and UTF-8.
 *
 * In memory, strings are "modified UTF-8": a NUL character is the two bytes C0
 * 80, so that C's strings can hold every string of JSON. */
#ifndef DEDUP_JSON_TEXT_H
#define DEDUP_JSON_TEXT_H

#include <stddef.h>

#include "control.h"

#define JSON_NO_CHARACTER UINT32_MAX

/* Decodes the string token TEXT of LEN bytes, with its quotes, to a new string
 * without them.  Returns NULL with E filled if it is not valid. */
char *json_unquote (const char *text, size_t len, struct qmp_error *e);

/* Reads one character at *P, which ends with a NUL somewhere, and moves *P
 * behind it; behind the bytes that look like one if they are none, for which
 * it returns JSON_NO_CHARACTER. */
uint32_t json_character (const char **p);

/* Writes C at OUT, which has room for 4 bytes.  Returns how many it took. */
size_t json_put_character (char *out, uint32_t c);

#endif
