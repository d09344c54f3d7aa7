/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzzes the control socket's stream of JSON.  The first two bytes are the
 * sizes of the pieces in which the rest comes: the values and errors must not
 * depend on them.  A value must be printed as one line of ASCII, which must be
 * read as a value that is printed alike; the memory that is counted must be
 * none at the end. */
#include "fuzz.h"

#include "json-stream.h"
#include "text.h"

#define BUDGET (4 << 20)         /* enough for inputs of 64 KiB */
#define MAX_INPUT (64 << 10)

/* Minus zero is printed as -0, which is the integer 0 when it is read. */
static void
check_again (const struct text *line, const json_t *back)
{
  struct text again = { 0 };

  text_add_json (&again, back);
  text_add (&again, "\n", 1);
  MUST (strstr (line->bytes, "-0") != NULL ||
        (again.len == line->len &&
         memcmp (again.bytes, line->bytes, line->len) == 0));
  text_free (&again);
}

static void
check_back (const struct text *line)
{
  struct json_budget budget = { 0, BUDGET };
  struct json_stream s;
  struct qmp_error e;
  json_t *back;
  size_t taken;

  for (size_t i = 0; i < line->len - 1; i++)
    MUST (line->bytes[i] >= 0x20 && line->bytes[i] < 0x7f);
  json_stream_init (&s, &budget);
  MUST (json_stream_read (&s, line->bytes, line->len, &taken, &back, &e) ==
        JSON_VALUE);
  check_again (line, back);
  json_decref (back);
  json_stream_destroy (&s);
}

static void
add_value (struct text *log, json_t *value)
{
  struct text line = { 0 };

  text_add_json (&line, value);
  text_add (&line, "\n", 2);   /* with a NUL behind it */
  line.len--;
  MUST (!line.failed);
  check_back (&line);
  text_add (log, line.bytes, line.len);
  text_free (&line);
}

static void
feed (struct json_stream *s, const char *bytes, size_t len, struct text *log)
{
  struct qmp_error e = { "", "" };
  enum json_item item;
  json_t *value;
  size_t taken;

  do {
    item = json_stream_read (s, bytes, len, &taken, &value, &e);
    MUST (taken <= len);
    bytes += taken;
    len -= taken;
    if (item == JSON_VALUE) {
      add_value (log, value);
      json_decref (value);
    }
    else if (item == JSON_ERROR) {
      MUST (e.desc[0] != '\0' && strcmp (e.class, "GenericError") == 0);
      text_add_quoted (log, e.desc);
    }
  } while (item != JSON_NOTHING);
  MUST (len == 0);
}

/* Pieces are of A and B bytes by turns. */
static void
feed_pieces (const uint8_t *data, size_t len, size_t a, size_t b,
             struct text *log)
{
  struct json_budget budget = { 0, BUDGET };
  struct json_stream s;
  size_t next = a, piece;

  json_stream_init (&s, &budget);
  while (len > 0) {
    piece = next < len ? next : len;
    feed (&s, (const char *) data, piece, log);
    data += piece;
    len -= piece;
    next = a + b - next;
  }
  json_stream_destroy (&s);
  MUST (budget.used == 0);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t len)
{
  struct input in = { data, len };
  size_t a = 1 + take (&in, 1), b = 1 + take (&in, 1);
  struct text whole = { 0 }, pieces = { 0 };

  if (len > MAX_INPUT)
    return -1;
  feed_pieces (in.p, in.left, in.left + 1, in.left + 1, &whole);
  feed_pieces (in.p, in.left, a, b, &pieces);
  MUST (whole.len == pieces.len);
  MUST (whole.len == 0 || memcmp (whole.bytes, pieces.bytes, whole.len) == 0);
  text_free (&whole);
  text_free (&pieces);
  return 0;
}
