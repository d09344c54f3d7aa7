/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the lexer: bytes, in pieces of any size, to tokens of JSON. */
#ifndef DEDUP_JSON_LEX_H
#define DEDUP_JSON_LEX_H

#include <stddef.h>

#include "cleanup.h"

enum json_token {
  JSON_MORE,                   /* no token yet: more bytes are needed */
  JSON_LEFT_BRACE, JSON_RIGHT_BRACE, JSON_LEFT_BRACKET, JSON_RIGHT_BRACKET,
  JSON_COMMA, JSON_COLON,
  JSON_WHOLE_NUMBER, JSON_FRACTION, JSON_WORD,
  JSON_QUOTED,                 /* with its quotes and escapes */
  JSON_STRAY,                  /* bytes that begin no token */
  JSON_TOO_LONG,               /* a token of more than JSON_MAX_TOKEN bytes */
  JSON_NO_MEMORY,
};

#define JSON_MAX_TOKEN ((size_t) 64 << 20)     /* as QEMU */

struct json_lexer {
  int state;
  char quote;                  /* of the string that is being read */
  char *text;                  /* of the token, with a NUL behind */
  size_t len, size;
};

void json_lexer_init (struct json_lexer *l);
void json_lexer_destroy (struct json_lexer *l);

/* Drops the token that is being read; the rest of it is skipped as after a
 * stray token. */
void json_lexer_drop (struct json_lexer *l);

/* Reads BYTES up to the end of a token.  *TAKEN: how many bytes were used; may
 * be 0, as the byte behind a number or word is not part of it.  Returns the
 * token, whose text is in L until the next call. */
enum json_token json_lex (struct json_lexer *l, const char *bytes, size_t len,
                          size_t *taken) MUST_CHECK;

#endif
