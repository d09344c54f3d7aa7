/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds the tokens of JSON in a stream of bytes, as QEMU's QMP monitor does.
 *
 * It differs from RFC 8259 as QEMU does: strings may have single quotes.
 * Bytes that begin no token are one stray token, which ends with the first
 * wrong byte; after it everything is skipped up to a byte at which a client
 * that starts anew is likely to start: a structural character, the end of a
 * line, or a byte that occurs in no text (a control character, 0xFE, 0xFF).
 *
 * The text of a token is kept until it is whole, so a lexer uses
 * JSON_MAX_TOKEN bytes at most.  A large buffer is freed as soon as its token
 * has been used.
 */
#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "json-lex.h"

#define FIRST_SIZE 256
#define KEPT_SIZE 4096         /* a larger buffer is freed with its token */

enum state {
  START,                       /* between tokens */
  STRING, ESCAPE, WORD,
  MINUS, ZERO, DIGITS,
  POINT, DECIMALS,             /* behind "1.", behind "1.5" */
  EXPONENT, EXPONENT_SIGN, EXPONENT_DIGITS,
  RECOVERY,                    /* behind a stray token */
};

/* What a byte means in a state. */
struct move {
  enum state next;
  enum json_token token;       /* that is complete */
  bool before;                 /* it ends before this byte */
};

void
json_lexer_init (struct json_lexer *l)
{
  memset (l, 0, sizeof *l);
}

void
json_lexer_destroy (struct json_lexer *l)
{
  free (l->text);
}

static void
forget_text (struct json_lexer *l)
{
  l->len = 0;
  if (l->size > KEPT_SIZE) {
    free (l->text);
    l->text = NULL;
    l->size = 0;
  }
}

/* Makes room for LEN more bytes and a NUL.  The size doubles, but stays near
 * the largest that can be needed. */
static bool
reserve (struct json_lexer *l, size_t len)
{
  size_t size = l->size > 0 ? l->size : FIRST_SIZE;
  char *text;

  while (size - 1 < l->len + len)
    size = size <= JSON_MAX_TOKEN / 2 ? 2 * size : JSON_MAX_TOKEN + 2 * len + 2;
  if (size == l->size)
    return true;
  text = realloc (l->text, size);
  if (text == NULL)
    return false;
  l->text = text;
  l->size = size;
  return true;
}

static bool
append (struct json_lexer *l, const char *bytes, size_t len)
{
  if (!reserve (l, len))
    return false;
  memcpy (l->text + l->len, bytes, len);
  l->len += len;
  l->text[l->len] = '\0';
  return true;
}

/* --- What a byte means --------------------------------------------------- */

static struct move
to (enum state next)
{
  return (struct move) { .next = next };
}

static struct move
done (enum json_token token)
{
  return (struct move) { .next = START, .token = token };
}

static struct move
done_before (enum json_token token)
{
  return (struct move) { .next = START, .token = token, .before = true };
}

static struct move
stray (void)
{
  return (struct move) { .next = RECOVERY, .token = JSON_STRAY };
}

static bool
is_space (unsigned char c)
{
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static enum json_token
structural (unsigned char c)
{
  switch (c) {
  case '{': return JSON_LEFT_BRACE;
  case '}': return JSON_RIGHT_BRACE;
  case '[': return JSON_LEFT_BRACKET;
  case ']': return JSON_RIGHT_BRACKET;
  case ',': return JSON_COMMA;
  case ':': return JSON_COLON;
  }
  return JSON_MORE;
}

static bool
is_letter (unsigned char c)
{
  return c >= 'a' && c <= 'z';
}

static struct move
in_start (unsigned char c)
{
  if (structural (c) != JSON_MORE)
    return done (structural (c));
  if (is_space (c))
    return to (START);
  if (c == '"' || c == '\'')
    return to (STRING);
  if (is_letter (c))
    return to (WORD);
  if (c == '-')
    return to (MINUS);
  if (isdigit (c))
    return to (c == '0' ? ZERO : DIGITS);
  return stray ();
}

/* Control characters, and the bytes that UTF-8 never has, end a string: a
 * client sends one of them to be rid of what it sent before. */
static bool
may_be_in_a_string (unsigned char c)
{
  return c >= 0x20 && c < 0xfe;
}

static struct move
in_string (const struct json_lexer *l, unsigned char c)
{
  if (c == (unsigned char) l->quote)
    return done (JSON_QUOTED);
  if (c == '\\')
    return to (ESCAPE);
  return may_be_in_a_string (c) ? to (STRING) : stray ();
}

/* Behind a zero that begins a number.  0e1 is three tokens, as in QEMU. */
static struct move
in_zero (unsigned char c)
{
  if (isdigit (c))
    return stray ();
  return c == '.' ? to (POINT) : done_before (JSON_WHOLE_NUMBER);
}

/* Behind the digits of a number before the point. */
static struct move
in_digits (unsigned char c)
{
  if (isdigit (c))
    return to (DIGITS);
  if (c == '.')
    return to (POINT);
  if (c == 'e' || c == 'E')
    return to (EXPONENT);
  return done_before (JSON_WHOLE_NUMBER);
}

static struct move
in_decimals (unsigned char c)
{
  if (isdigit (c))
    return to (DECIMALS);
  if (c == 'e' || c == 'E')
    return to (EXPONENT);
  return done_before (JSON_FRACTION);
}

static struct move
in_exponent (unsigned char c)
{
  if (c == '+' || c == '-')
    return to (EXPONENT_SIGN);
  return isdigit (c) ? to (EXPONENT_DIGITS) : stray ();
}

static struct move
in_recovery (unsigned char c)
{
  if (c == '\t' || (may_be_in_a_string (c) && structural (c) == JSON_MORE))
    return to (RECOVERY);
  return (struct move) { .next = START, .before = true };
}

static struct move
move_of (const struct json_lexer *l, unsigned char c)
{
  switch ((enum state) l->state) {
  case START: return in_start (c);
  case STRING: return in_string (l, c);
  case ESCAPE: return may_be_in_a_string (c) ? to (STRING) : stray ();
  case WORD: return is_letter (c) ? to (WORD) : done_before (JSON_WORD);
  case MINUS:
    return isdigit (c) ? to (c == '0' ? ZERO : DIGITS) : stray ();
  case ZERO: return in_zero (c);
  case DIGITS: return in_digits (c);
  case POINT: return isdigit (c) ? to (DECIMALS) : stray ();
  case DECIMALS: return in_decimals (c);
  case EXPONENT: return in_exponent (c);
  case EXPONENT_SIGN: return isdigit (c) ? to (EXPONENT_DIGITS) : stray ();
  case EXPONENT_DIGITS:
    return isdigit (c) ? to (EXPONENT_DIGITS) : done_before (JSON_FRACTION);
  case RECOVERY: return in_recovery (c);
  }
  return stray ();
}

/* --- Reading ------------------------------------------------------------- */

/* How many bytes from BYTES on are the inside of a string: a loop for what is
 * long in practice. */
static size_t
string_run (const struct json_lexer *l, const char *bytes, size_t len)
{
  size_t i;

  for (i = 0; i < len; i++) {
    unsigned char c = bytes[i];

    if (c == (unsigned char) l->quote || c == '\\' || !may_be_in_a_string (c))
      break;
  }
  return i;
}

static size_t
recovery_run (const char *bytes, size_t len)
{
  size_t i;

  for (i = 0; i < len && in_recovery (bytes[i]).next == RECOVERY; i++)
    ;
  return i;
}

/* How many bytes from BYTES on leave the state as it is. */
static size_t
plain_run (const struct json_lexer *l, const char *bytes, size_t len)
{
  if (l->state == STRING)
    return string_run (l, bytes, len);
  return l->state == RECOVERY ? recovery_run (bytes, len) : 0;
}

static bool
has_text (const struct json_lexer *l, const struct move *m)
{
  return m->token != JSON_MORE || (m->next != START && m->next != RECOVERY);
}

/* Takes the byte at BYTES, or a run that has the same meaning.  Returns how
 * many, 0 if the byte is not part of the token that it ends. */
static size_t
take (struct json_lexer *l, const char *bytes, size_t len,
      enum json_token *token)
{
  size_t run = plain_run (l, bytes, len);
  struct move m;

  if (run == 0) {
    m = move_of (l, bytes[0]);
    run = m.before ? 0 : 1;
    if (m.next == STRING && l->state == START)
      l->quote = bytes[0];
  }
  else
    m = to (l->state);
  if (has_text (l, &m) && !append (l, bytes, run))
    *token = JSON_NO_MEMORY;
  else
    *token = m.token;
  l->state = m.next;
  return run;
}

void
json_lexer_drop (struct json_lexer *l)
{
  forget_text (l);
  l->state = RECOVERY;
}

enum json_token
json_lex (struct json_lexer *l, const char *bytes, size_t len, size_t *taken)
{
  enum json_token token = JSON_MORE;

  *taken = 0;
  while (token == JSON_MORE && *taken < len) {
    if (l->state == START || l->state == RECOVERY)
      forget_text (l);
    *taken += take (l, bytes + *taken, len - *taken, &token);
    if (l->len > JSON_MAX_TOKEN)
      token = JSON_TOO_LONG;
  }
  if (token == JSON_NO_MEMORY || token == JSON_TOO_LONG)
    json_lexer_drop (l);
  return token;
}
