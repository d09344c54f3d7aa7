/* SPDX-License-Identifier: BSD-3-Clause */
/* Builds a value from tokens of JSON that come one by one.
 *
 * The objects and lists that are open are a stack, so nothing but the value
 * itself is kept, and no call recurses.  A container becomes part of its
 * parent when it is closed; that is also when a key that is no string, or is
 * there already, is found to be wrong, as QEMU does it.  After an error the
 * value is freed at once, and all further tokens are ignored: the caller knows
 * where the value would have ended. Texts of errors are QEMU's.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json-parse.h"
#include "json-text.h"

#define FIRST_LEVELS 16

enum expect {
  FIRST_KEY, KEY, COLON, MEMBER, NEXT_MEMBER,    /* in an object */
  FIRST_ITEM, ITEM, NEXT_ITEM,                   /* in a list */
};

struct json_level {
  json_t *container;
  json_t *key;                 /* from COLON on */
  enum expect expect;
};

static void
fail (struct json_parser *p, const char *what)
{
  qmp_error_set (&p->error, "JSON parse error, %s", what);
  p->failed = true;
}

static void
fail_memory (struct json_parser *p)
{
  qmp_error_set (&p->error, "out of memory");
  p->failed = true;
}

static void
pop (struct json_parser *p)
{
  json_decref (p->levels[p->depth - 1].container);
  json_decref (p->levels[p->depth - 1].key);
  p->depth--;
}

static void
forget_value (struct json_parser *p)
{
  while (p->depth > 0)
    pop (p);
  json_decref (p->value);
  p->value = NULL;
}

void
json_parser_init (struct json_parser *p)
{
  memset (p, 0, sizeof *p);
}

void
json_parser_reset (struct json_parser *p)
{
  forget_value (p);
  free (p->levels);
  json_parser_init (p);
}

void
json_parser_destroy (struct json_parser *p)
{
  json_parser_reset (p);
}

static struct json_level *
top (struct json_parser *p)
{
  return p->depth > 0 ? &p->levels[p->depth - 1] : NULL;
}

static bool
grow (struct json_parser *p)
{
  unsigned size = p->size > 0 ? 2 * p->size : FIRST_LEVELS;
  struct json_level *levels = realloc (p->levels, size * sizeof *levels);

  if (levels == NULL)
    return false;
  p->levels = levels;
  p->size = size;
  return true;
}

static void
open_container (struct json_parser *p, json_t *container, enum expect expect)
{
  assert (p->depth < JSON_MAX_DEPTH);
  if (container == NULL || (p->depth == p->size && !grow (p))) {
    json_decref (container);
    fail_memory (p);
    return;
  }
  p->levels[p->depth++] = (struct json_level) {
    .container = container, .expect = expect,
  };
}

/* --- Scalars ------------------------------------------------------------- */

static json_t *
parse_real (const char *text, struct json_parser *p)
{
  double d = strtod (text, NULL);

  if (isinf (d)) {
    fail (p, "number out of range");
    return NULL;
  }
  return json_real (d);
}

static json_t *
parse_whole (const char *text, struct json_parser *p)
{
  long long n;

  errno = 0;
  n = strtoll (text, NULL, 10);
  return errno == ERANGE ? parse_real (text, p) : json_integer (n);
}

static json_t *
parse_word (const char *text, struct json_parser *p)
{
  if (strcmp (text, "true") == 0)
    return json_true ();
  if (strcmp (text, "false") == 0)
    return json_false ();
  if (strcmp (text, "null") == 0)
    return json_null ();
  qmp_error_set (&p->error, "JSON parse error, invalid keyword '%s'", text);
  p->failed = true;
  return NULL;
}

static json_t *
parse_string (const char *text, size_t len, struct json_parser *p)
{
  char *s = json_unquote (text, len, &p->error);
  json_t *value;

  if (s == NULL) {
    p->failed = true;
    return NULL;
  }
  value = json_string_nocheck (s);
  free (s);
  return value;
}

/* Returns the value of a token that is a whole value, or NULL after a failure.
 */
static json_t *
parse_scalar (struct json_parser *p, enum json_token token, const char *text,
              size_t len)
{
  json_t *value = NULL;

  switch (token) {
  case JSON_WHOLE_NUMBER: value = parse_whole (text, p); break;
  case JSON_FRACTION: value = parse_real (text, p); break;
  case JSON_WORD: value = parse_word (text, p); break;
  case JSON_QUOTED: value = parse_string (text, len, p); break;
  default: fail (p, "expecting value");
  }
  if (value == NULL && !p->failed)
    fail_memory (p);
  return value;
}

/* --- Places -------------------------------------------------------------- */

static void
take_key (struct json_parser *p, json_t *key)
{
  struct json_level *l = top (p);

  l->key = key;
  l->expect = COLON;
  if (!json_is_string (key))
    fail (p, "key is not a string in object");
}

static void
take_member (struct json_parser *p, json_t *value)
{
  struct json_level *l = top (p);
  const char *key = json_string_value (l->key);

  if (json_object_get (l->container, key) != NULL) {
    json_decref (value);
    fail (p, "duplicate key");
  }
  else if (json_object_set_new_nocheck (l->container, key, value) < 0)
    fail_memory (p);
  json_decref (l->key);
  l->key = NULL;
  l->expect = NEXT_MEMBER;
}

static void
take_item (struct json_parser *p, json_t *value)
{
  struct json_level *l = top (p);

  if (json_array_append_new (l->container, value) < 0)
    fail_memory (p);
  l->expect = NEXT_ITEM;
}

/* Puts a complete value where one is expected. */
static void
take_value (struct json_parser *p, json_t *value)
{
  struct json_level *l = top (p);

  if (l == NULL)
    p->value = value;
  else if (l->expect == FIRST_KEY || l->expect == KEY)
    take_key (p, value);
  else if (l->expect == MEMBER)
    take_member (p, value);
  else
    take_item (p, value);
}

static void
close_container (struct json_parser *p)
{
  json_t *value = json_incref (top (p)->container);

  pop (p);
  take_value (p, value);
}

static void
begin_value (struct json_parser *p, enum json_token token, const char *text,
             size_t len)
{
  json_t *value;

  if (token == JSON_LEFT_BRACE)
    open_container (p, json_object (), FIRST_KEY);
  else if (token == JSON_LEFT_BRACKET)
    open_container (p, json_array (), FIRST_ITEM);
  else {
    value = parse_scalar (p, token, text, len);
    if (value != NULL)
      take_value (p, value);
  }
}

/* Behind a member or an item: CLOSE ends the container, a comma goes on. */
static void
separator (struct json_parser *p, enum json_token token,
           enum json_token close, enum expect next, const char *wrong)
{
  if (token == close)
    close_container (p);
  else if (token == JSON_COMMA)
    top (p)->expect = next;
  else
    fail (p, wrong);
}

static void
colon (struct json_parser *p, enum json_token token)
{
  if (token == JSON_COLON)
    top (p)->expect = MEMBER;
  else
    fail (p, "missing : in object pair");
}

static bool
closes_empty (const struct json_level *l, enum json_token token)
{
  return l != NULL &&
    ((l->expect == FIRST_KEY && token == JSON_RIGHT_BRACE) ||
     (l->expect == FIRST_ITEM && token == JSON_RIGHT_BRACKET));
}

void
json_parse (struct json_parser *p, enum json_token token, const char *text,
            size_t len)
{
  struct json_level *l = top (p);

  assert (p->value == NULL);
  if (p->failed)
    return;
  if (closes_empty (l, token))
    close_container (p);
  else if (l != NULL && l->expect == COLON)
    colon (p, token);
  else if (l != NULL && l->expect == NEXT_MEMBER)
    separator (p, token, JSON_RIGHT_BRACE, KEY, "expected separator in dict");
  else if (l != NULL && l->expect == NEXT_ITEM)
    separator (p, token, JSON_RIGHT_BRACKET, ITEM,
               "expected separator in list");
  else
    begin_value (p, token, text, len);
  if (p->failed)
    forget_value (p);
}
