/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2-dedup control: gives one command to a running server, and prints what it
 * returns.
 *
 * Commands and arguments are not checked here: the server knows them, and its
 * messages are printed as they are.  An argument is KEY=TEXT or KEY:=JSON, so that
 * nothing has to guess which of 10 and "10" is meant.
 */
#include "control-client.h"
#include "tool.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SECONDS 600

static void
help (void)
{
  printf ("qcow2-dedup control [--timeout=SECONDS] SOCKET COMMAND [ARGUMENT]...\n"
          "\n"
          "Give a command to the server whose control socket is SOCKET, and print "
          "what it\nreturns, as JSON.  An ARGUMENT is KEY=TEXT, or KEY:=JSON for "
          "numbers, booleans and\nthe like.\n"
          "\n"
          "    --timeout=SECONDS  how long to wait for the answer (%d)\n"
          "\n"
          "See qcow2-dedup-control(1), and nbdkit-dedup-control(7) for the "
          "commands.\n", DEFAULT_SECONDS);
}

/* Adds the argument S to ARGS.  -1 if that was done, else the exit code. */
static int
add_argument (json_t *args, const char *s)
{
  const size_t len = strcspn (s, ":=");
  const bool is_json = s[len] == ':' && s[len + 1] == '=';
  CLEANUP_FREE char *key = strndup (s, len);
  json_t *value;

  if (key == NULL)
    return tool_error (NULL, "out of memory");
  if (len == 0 || (s[len] != '=' && !is_json))
    return tool_usage_error ("control", "'%s' is not an argument: it must be "
                             "KEY=TEXT or KEY:=JSON", s);
  value = is_json ? json_loads (s + len + 2, JSON_DECODE_ANY, NULL)
    : json_string (s + len + 1);
  if (value == NULL)
    return tool_usage_error ("control", is_json ? "'%s' is not valid JSON"
                             : "'%s' is not valid UTF-8", s);
  if (json_object_get (args, key) != NULL) {
    json_decref (value);
    return tool_usage_error ("control", "'%s' is there twice", key);
  }
  return json_object_set_new (args, key, value) == 0 ? -1
    : tool_usage_error ("control", "'%s' is not valid UTF-8", key);
}

/* Prints RET, unless it is {}, which most commands return. */
static void
print (const json_t *ret)
{
  if (json_is_object (ret) && json_object_size (ret) == 0)
    return;
  json_dumpf (ret, stdout, JSON_INDENT (4) | JSON_PRESERVE_ORDER |
              JSON_ENCODE_ANY);
  putchar ('\n');
}

/* Takes the reference to ARGS. */
static int
run (const char *socket, unsigned seconds, const char *command, json_t *args)
{
  struct control_client *c;
  struct fault f = { 0 };
  json_t *ret = NULL;
  int r;

  r = control_connect (socket, seconds * 1000, &c, &f);
  if (r < 0) {
    json_decref (args);
    return tool_fault (socket, r, &f);
  }
  r = control_command (c, command, args, &ret, &f);
  control_close (c);
  if (r < 0)
    return tool_fault (socket, r, &f);
  print (ret);
  json_decref (ret);
  return tool_finish_stdout (TOOL_OK);
}

static int
take_options (int argc, char *argv[], uint64_t *seconds)
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "timeout", required_argument, NULL, 't' },
    { NULL },
  };
  int c;

  opterr = 0;
  while ((c = getopt_long (argc, argv, "+:hV", options, NULL)) != -1) {
    if (c == 'h' || c == 'V') {
      c == 'h' ? help () : tool_version ();
      return tool_finish_stdout (TOOL_OK);
    }
    if (c != 't')
      return tool_bad_option ("control", c, argv, options);
    if (!tool_parse_number (optarg, 1, 86400, seconds))
      return tool_usage_error ("control", "--timeout must be 1 to 86400 "
                               "seconds, not '%s'", optarg);
  }
  return -1;
}

int
tool_control (int argc, char *argv[])
{
  uint64_t seconds = DEFAULT_SECONDS;
  json_t *args;
  int i, r;

  r = take_options (argc, argv, &seconds);
  if (r >= 0)
    return r;
  if (argc - optind < 2)
    return tool_usage_error ("control", "SOCKET and COMMAND are needed");
  args = json_object ();
  if (args == NULL)
    return tool_error (NULL, "out of memory");
  for (i = optind + 2; i < argc; i++) {
    r = add_argument (args, argv[i]);
    if (r >= 0) {
      json_decref (args);
      return r;
    }
  }
  return run (argv[optind], (unsigned) seconds, argv[optind + 1], args);
}
