/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the parser: tokens of JSON, one by one, to a value. */
#ifndef DEDUP_JSON_PARSE_H
#define DEDUP_JSON_PARSE_H

#include <jansson.h>
#include <stdbool.h>

#include "control.h"
#include "json-lex.h"

#define JSON_MAX_DEPTH 1024    /* as QEMU */

struct json_level;

struct json_parser {
  struct json_level *levels;   /* the objects and lists that are open */
  unsigned depth, size;
  json_t *value;               /* the whole value, once its last token came */
  bool failed;
  struct qmp_error error;      /* the first one, if it failed */
};

void json_parser_init (struct json_parser *p);
void json_parser_destroy (struct json_parser *p);

/* Forgets all tokens and the value. */
void json_parser_reset (struct json_parser *p);

/* Takes a token with its text of LEN bytes and a NUL.  The caller keeps the
 * depth below JSON_MAX_DEPTH, and gives no token after one that completed a
 * value. */
void json_parse (struct json_parser *p, enum json_token token,
                 const char *text, size_t len);

#endif
