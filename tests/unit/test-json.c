/* SPDX-License-Identifier: BSD-3-Clause */
/* Tests of the JSON of the control socket: that the pieces in which bytes come
 * do not matter, the limits, the texts of errors, and that what is printed is
 * read back.  The comparison with QEMU is
 * tests/interop/test-qmp-wire-equals-qemu.sh. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "json-stream.h"
#include "json-text.h"
#include "splitmix.h"
#include "text.h"

#define AMPLE ((size_t) 1 << 30)

/* Adds what the stream makes of BYTES to LOG, a line each. */
static void
feed (struct json_stream *s, const char *bytes, size_t len, struct text *log)
{
  struct qmp_error e;
  json_t *value;
  enum json_item item;
  size_t taken;

  for (;;) {
    item = json_stream_read (s, bytes, len, &taken, &value, &e);
    assert_true (taken <= len);
    bytes += taken;
    len -= taken;
    if (item == JSON_NOTHING)
      break;
    if (item == JSON_VALUE) {
      text_add_json (log, value);
      json_decref (value);
    }
    else
      text_add_string (log, e.desc);
    text_add_string (log, "\n");
  }
  assert_int_equal (len, 0);
}

static void
feed_all (const char *bytes, size_t len, size_t piece, struct text *log)
{
  struct json_budget budget = { 0, AMPLE };
  struct json_stream s;

  json_stream_init (&s, &budget);
  for (size_t i = 0; i < len; i += piece)
    feed (&s, bytes + i, piece < len - i ? piece : len - i, log);
  json_stream_destroy (&s);
  assert_int_equal (budget.used, 0);
}

static void
expect (const char *in, const char *out)
{
  for (size_t piece = 1; piece <= strlen (in); piece++) {
    struct text log = { 0 };

    feed_all (in, strlen (in), piece, &log);
    text_add (&log, "", 1);
    assert_string_equal (log.bytes, out);
    text_free (&log);
  }
}

static void
values_are_read_in_any_pieces (void **state)
{
  expect ("{\"a\":[1,-2,0.5,true,false,null,'x']}{}[]",
          "{\"a\": [1, -2, 0.5, true, false, null, \"x\"]}\n{}\n[]\n");
  expect ("1 -1.5e3 \"\\u00e9\\ud83d\\ude00\"",
          "1\n-1500\n\"\\u00E9\\uD83D\\uDE00\"\n");
  expect ("{ \"b\" : 1 ,\r\n\t\"a\" : { } }", "{\"b\": 1, \"a\": {}}\n");
}

static void
an_error_is_told_once_and_what_follows_is_read (void **state)
{
  expect ("[1 2]{}", "JSON parse error, expected separator in list\n{}\n");
  expect ("{\"a\":1,\"a\":2}[]", "JSON parse error, duplicate key\n[]\n");
  expect ("{'a':1e999}[]", "JSON parse error, number out of range\n[]\n");
  expect ("[[[\xff{}", "JSON parse error, stray '\xff'\n{}\n");
  expect ("\"ab\x01 c\n[]", "JSON parse error, stray '\"ab\x01'\n[]\n");
  expect ("[\"\\u12\"]1 ",
          "JSON parse error, \\u12\" is not a valid Unicode character\n1\n");
}

static void
a_client_can_start_anew_after_any_beginning (void **state)
{
  const char whole[] = "{\"a\":[1,-1.5e+3,\"x\\u00e9\\n\",'y',true],\"b\":{}}";

  for (size_t len = 0; len < strlen (whole); len++) {
    struct json_budget budget = { 0, AMPLE };
    struct text log = { 0 };
    struct json_stream s;

    json_stream_init (&s, &budget);
    feed (&s, whole, len, &log);
    feed (&s, "\xff\n", 2, &log);
    log.len = 0;
    feed (&s, "{\"ok\":1}", 8, &log);
    assert_int_equal (log.len, strlen ("{\"ok\": 1}\n"));
    text_free (&log);
    json_stream_destroy (&s);
  }
}

/* --- Limits -------------------------------------------------------------- */

/* Feeds COUNT times PIECE, and returns the first error or value. */
static enum json_item
feed_many (struct json_stream *s, const char *piece, size_t count,
           struct qmp_error *e)
{
  enum json_item item = JSON_NOTHING;
  json_t *value = NULL;
  size_t taken;

  for (size_t i = 0; i < count && item == JSON_NOTHING; i++)
    item = json_stream_read (s, piece, strlen (piece), &taken, &value, e);
  json_decref (value);
  return item;
}

static void
nesting_has_a_limit (void **state)
{
  struct json_budget budget = { 0, AMPLE };
  struct qmp_error e;
  struct json_stream s;

  json_stream_init (&s, &budget);
  assert_int_equal (feed_many (&s, "[", 1024, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&s, "]", 1024, &e), JSON_VALUE);
  assert_int_equal (feed_many (&s, "{'a':", 1024, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&s, "[", 1, &e), JSON_ERROR);
  assert_string_equal (e.desc, "JSON nesting depth limit exceeded");
  assert_int_equal (feed_many (&s, "1 ", 1, &e), JSON_VALUE);
  json_stream_destroy (&s);
}

static void
tokens_have_a_limit (void **state)
{
  struct json_budget budget = { 0, AMPLE };
  struct qmp_error e;
  struct json_stream s;

  json_stream_init (&s, &budget);
  assert_int_equal (feed_many (&s, "[1", 1, &e), JSON_NOTHING);
  /* The comma is the token that completes the 1. */
  assert_int_equal (feed_many (&s, ",1", JSON_MAX_TOKENS / 2 - 1, &e),
                    JSON_NOTHING);
  assert_int_equal (s.count, JSON_MAX_TOKENS - 1);
  assert_int_equal (feed_many (&s, ",", 1, &e), JSON_ERROR);
  assert_string_equal (e.desc, "JSON token count limit exceeded");
  assert_int_equal (s.count, 0);
  json_stream_destroy (&s);
  assert_int_equal (budget.used, 0);
}

static void
a_token_has_a_limit (void **state)
{
  struct json_budget budget = { 0, AMPLE };
  static char chunk[65537];
  struct qmp_error e;
  struct json_stream s;

  memset (chunk, 'x', sizeof chunk - 1);
  json_stream_init (&s, &budget);
  assert_int_equal (feed_many (&s, "['", 1, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&s, chunk, JSON_MAX_TOKEN / 65536 - 1, &e),
                    JSON_NOTHING);
  assert_true (budget.used < JSON_MAX_TOKEN * 5 / 4);
  assert_int_equal (feed_many (&s, chunk, 2, &e), JSON_ERROR);
  assert_string_equal (e.desc, "JSON token size limit exceeded");
  assert_true (budget.used < 65536);
  /* The rest of the string is not read as something else. */
  assert_int_equal (feed_many (&s, "yy' 1 true", 100, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&s, "\n[]", 1, &e), JSON_VALUE);
  json_stream_destroy (&s);
}

static void
strings_of_a_value_have_a_limit_together (void **state)
{
  struct json_budget budget = { 0, AMPLE };
  static char item[65537];
  struct qmp_error e;
  struct json_stream s;

  memset (item, 'x', sizeof item - 1);
  item[0] = '"';
  item[sizeof item - 3] = '"';
  item[sizeof item - 2] = ',';
  json_stream_init (&s, &budget);
  assert_int_equal (feed_many (&s, "[", 1, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&s, item, JSON_MAX_TOKEN / 65536 - 1, &e),
                    JSON_NOTHING);
  assert_int_equal (feed_many (&s, item, 2, &e), JSON_ERROR);
  assert_string_equal (e.desc, "JSON token size limit exceeded");
  json_stream_destroy (&s);
}

static void
streams_have_a_limit_together (void **state)
{
  struct json_budget budget = { 0, 1 << 20 };
  static char chunk[32769];
  struct qmp_error e;
  struct json_stream a, b;

  memset (chunk, 'x', sizeof chunk - 1);
  json_stream_init (&a, &budget);
  json_stream_init (&b, &budget);
  assert_int_equal (feed_many (&a, "'", 1, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&a, chunk, 30, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&b, "'", 1, &e), JSON_NOTHING);
  assert_int_equal (feed_many (&b, chunk, 4, &e), JSON_ERROR);
  assert_string_equal (e.desc, "JSON token size limit exceeded");
  /* What is small gets through all the same. */
  assert_int_equal (feed_many (&b, "\n{'a':[1,2]}", 1, &e), JSON_VALUE);
  json_stream_destroy (&a);
  json_stream_destroy (&b);
  assert_int_equal (budget.used, 0);
}

static void
a_value_counts_until_the_next_read (void **state)
{
  struct json_budget budget = { 0, AMPLE };
  struct qmp_error e;
  struct json_stream s;

  json_stream_init (&s, &budget);
  assert_int_equal (feed_many (&s, "[1,2,3,4]", 1, &e), JSON_VALUE);
  assert_true (budget.used >= 9 * 48);
  assert_int_equal (feed_many (&s, " ", 1, &e), JSON_NOTHING);
  assert_true (budget.used < 9 * 48);
  json_stream_destroy (&s);
  assert_int_equal (budget.used, 0);
}

/* --- There and back ------------------------------------------------------ */

static json_t *
random_string (uint64_t *seed)
{
  static const uint32_t kinds[] = { 0x20, 0x80, 0x800, 0xd800, 0x110000 };
  unsigned count = splitmix64 (seed) % 12;
  char s[12 * 4 + 1];
  size_t len = 0;

  while (count-- > 0) {
    uint32_t c = splitmix64 (seed) % kinds[splitmix64 (seed) % 5];

    if ((c & 0xfffe) != 0xfffe && (c < 0xd800 || c > 0xdfff) &&
        (c < 0xfdd0 || c > 0xfdef))
      len += json_put_character (s + len, c);
  }
  s[len] = '\0';
  return json_string_nocheck (s);
}

static json_t *
random_double (uint64_t *seed)
{
  uint64_t bits = splitmix64 (seed);
  double d;

  memcpy (&d, &bits, sizeof d);
  /* Whole ones would be read as integers. */
  return d == d && d - d == 0 && (d < -9e18 || d > 9e18 || d != (int64_t) d) ?
    json_real (d) : json_real (0.5);
}

static json_t *
random_value (uint64_t *seed, unsigned depth)
{
  unsigned kind = splitmix64 (seed) % (depth > 0 ? 8 : 6);
  json_t *v;

  switch (kind) {
  case 0: return json_null ();
  case 1: return json_boolean (splitmix64 (seed) & 1);
  case 2: return json_integer ((int64_t) splitmix64 (seed));
  case 3: return random_double (seed);
  case 4:
  case 5: return random_string (seed);
  }
  v = kind == 6 ? json_array () : json_object ();
  for (unsigned n = splitmix64 (seed) % 5; n > 0; n--) {
    json_t *key = random_string (seed);

    if (kind == 6)
      json_array_append_new (v, random_value (seed, depth - 1));
    else
      json_object_set_new_nocheck (v, json_string_value (key),
                                   random_value (seed, depth - 1));
    json_decref (key);
  }
  return v;
}

static void
check_there_and_back (json_t *value)
{
  struct json_budget budget = { 0, AMPLE };
  struct text t = { 0 };
  struct json_stream s;
  struct qmp_error e;
  json_t *back;
  size_t taken;

  text_add_json (&t, value);
  text_add (&t, "\n", 1);
  for (size_t i = 0; i < t.len - 1; i++)
    assert_in_range ((unsigned char) t.bytes[i], 0x20, 0x7e);
  json_stream_init (&s, &budget);
  assert_int_equal (json_stream_read (&s, t.bytes, t.len, &taken, &back, &e),
                    JSON_VALUE);
  assert_true (json_equal (value, back));
  json_decref (back);
  json_stream_destroy (&s);
  text_free (&t);
}

static void
what_is_printed_is_read_back (void **state)
{
  uint64_t seed = 20261129;

  for (int i = 0; i < 20000; i++) {
    json_t *v = random_value (&seed, 4);

    check_there_and_back (v);
    json_decref (v);
  }
}

static void
long_texts_are_cut_between_characters (void **state)
{
  struct qmp_error e;
  char s[600];

  for (int before = 0; before < 4; before++) {
    memset (s, 'a', before);
    for (int i = before; i < 594; i += 3)
      memcpy (s + i, "\xe2\x82\xac", 4);
    assert_int_equal (qmp_error_set (&e, "%s", s), -EINVAL);
    assert_true (strlen (e.desc) < sizeof e.desc);
    assert_true (strlen (e.desc) > sizeof e.desc - 8);
    assert_int_equal ((strlen (e.desc) - before) % 3, 0);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (values_are_read_in_any_pieces),
    cmocka_unit_test (an_error_is_told_once_and_what_follows_is_read),
    cmocka_unit_test (a_client_can_start_anew_after_any_beginning),
    cmocka_unit_test (nesting_has_a_limit),
    cmocka_unit_test (tokens_have_a_limit),
    cmocka_unit_test (a_token_has_a_limit),
    cmocka_unit_test (strings_of_a_value_have_a_limit_together),
    cmocka_unit_test (streams_have_a_limit_together),
    cmocka_unit_test (a_value_counts_until_the_next_read),
    cmocka_unit_test (what_is_printed_is_read_back),
    cmocka_unit_test (long_texts_are_cut_between_characters),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
