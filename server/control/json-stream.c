/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the values in a stream of JSON, and bounds what a client can make the
 * server keep.
 *
 * A value ends where as many braces and brackets were closed as opened,
 * whatever else is wrong with it; so one error is reported for a value, at its
 * end.  A stray token or an exceeded limit drops what came before it at once.
 *
 * One value may have JSON_MAX_TOKEN bytes and JSON_MAX_TOKENS tokens, and all
 * streams of a server together what their budget allows; but each stream
 * always gets FREE_BYTES.  The charge is an estimate: the text of the tokens,
 * and VALUE_COST for each.
 */
#include <string.h>

#include "json-stream.h"

#define VALUE_COST 48          /* a json_t, its heap header, its slot */
#define FREE_BYTES ((size_t) 64 << 10)
#define TOO_LARGE "JSON token size limit exceeded"

void
json_stream_init (struct json_stream *s, struct json_budget *budget)
{
  memset (s, 0, sizeof *s);
  json_lexer_init (&s->lexer);
  json_parser_init (&s->parser);
  s->budget = budget;
}

static void
charge (struct json_stream *s)
{
  size_t now = s->lexer.size + s->size + s->count * VALUE_COST;

  s->budget->used += now - s->charged;
  s->charged = now;
}

static void
reset (struct json_stream *s)
{
  json_parser_reset (&s->parser);
  s->size = s->count = 0;
  s->braces = s->brackets = 0;
  s->ended = false;
  charge (s);
}

void
json_stream_destroy (struct json_stream *s)
{
  reset (s);
  s->budget->used -= s->charged;
  json_lexer_destroy (&s->lexer);
}

static enum json_item
drop (struct json_stream *s, struct qmp_error *e, const char *why)
{
  qmp_error_set (e, "%s", why);
  reset (s);
  return JSON_ERROR;
}

static bool
over_budget (const struct json_stream *s)
{
  return s->charged > FREE_BYTES && s->budget->used > s->budget->max;
}

static const char *
exceeded_limit (const struct json_stream *s)
{
  if (s->size > JSON_MAX_TOKEN || over_budget (s))
    return TOO_LARGE;
  if (s->count > JSON_MAX_TOKENS)
    return "JSON token count limit exceeded";
  if (s->braces + s->brackets > JSON_MAX_DEPTH)
    return "JSON nesting depth limit exceeded";
  return NULL;
}

static void
count (struct json_stream *s, enum json_token token)
{
  s->braces += (token == JSON_LEFT_BRACE) - (token == JSON_RIGHT_BRACE);
  s->brackets += (token == JSON_LEFT_BRACKET) - (token == JSON_RIGHT_BRACKET);
  s->size += s->lexer.len;
  s->count++;
  charge (s);
}

static bool
is_open (const struct json_stream *s)
{
  return s->braces >= 0 && s->brackets >= 0 &&
    (s->braces > 0 || s->brackets > 0);
}

static enum json_item
finish (struct json_stream *s, json_t **value, struct qmp_error *e)
{
  if (s->parser.failed) {
    *e = s->parser.error;
    reset (s);
    return JSON_ERROR;
  }
  *value = s->parser.value;
  s->parser.value = NULL;
  s->ended = true;
  return JSON_VALUE;
}

static enum json_item
take_token (struct json_stream *s, enum json_token token, json_t **value,
            struct qmp_error *e)
{
  const char *limit;

  count (s, token);
  limit = exceeded_limit (s);
  if (limit != NULL)
    return drop (s, e, limit);
  json_parse (&s->parser, token, s->lexer.text, s->lexer.len);
  return is_open (s) ? JSON_NOTHING : finish (s, value, e);
}

static enum json_item
stray (struct json_stream *s, struct qmp_error *e)
{
  qmp_error_set (e, "JSON parse error, stray '%s'", s->lexer.text);
  reset (s);
  return JSON_ERROR;
}

/* Part of a token is there, and more is to come. */
static enum json_item
wait_for_more (struct json_stream *s, struct qmp_error *e)
{
  charge (s);
  if (!over_budget (s))
    return JSON_NOTHING;
  json_lexer_drop (&s->lexer);
  return drop (s, e, TOO_LARGE);
}

enum json_item
json_stream_read (struct json_stream *s, const char *bytes, size_t len,
                  size_t *taken, json_t **value, struct qmp_error *e)
{
  enum json_item item = JSON_NOTHING;
  size_t step;

  *taken = 0;
  if (s->ended)
    reset (s);
  while (item == JSON_NOTHING && *taken < len) {
    enum json_token token = json_lex (&s->lexer, bytes + *taken, len - *taken,
                                      &step);

    *taken += step;
    if (token == JSON_MORE)
      item = wait_for_more (s, e);
    else if (token == JSON_STRAY)
      item = stray (s, e);
    else if (token == JSON_TOO_LONG)
      item = drop (s, e, TOO_LARGE);
    else if (token == JSON_NO_MEMORY)
      item = drop (s, e, "out of memory");
    else
      item = take_token (s, token, value, e);
  }
  return item;
}
