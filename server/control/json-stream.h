/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the stream: bytes of a client, in pieces of any size, to values. */
#ifndef DEDUP_JSON_STREAM_H
#define DEDUP_JSON_STREAM_H

#include "json-parse.h"

#define JSON_MAX_TOKENS ((size_t) 2 << 20)     /* as QEMU */

/* How much memory several streams use together; loop thread only. */
struct json_budget {
  size_t used, max;            /* bytes, roughly */
};

struct json_stream {
  struct json_lexer lexer;
  struct json_parser parser;
  struct json_budget *budget;
  size_t charged;              /* of the budget */
  size_t size, count;          /* bytes and number of the value's tokens */
  int braces, brackets;        /* that are open */
  bool ended;                  /* a value was returned; its charge stands */
};

enum json_item {
  JSON_NOTHING,                /* all bytes were used, and none ended a value */
  JSON_VALUE,
  JSON_ERROR,
};

void json_stream_init (struct json_stream *s, struct json_budget *budget);
void json_stream_destroy (struct json_stream *s);

/* Reads BYTES up to the end of a value or to an error.  *TAKEN: how many were
 * used, maybe 0.  JSON_VALUE: *VALUE is a new reference.  JSON_ERROR: E is
 * filled.  The memory of a value counts until the next call. */
enum json_item json_stream_read (struct json_stream *s, const char *bytes,
                                 size_t len, size_t *taken, json_t **value,
                                 struct qmp_error *e) MUST_CHECK;

#endif
