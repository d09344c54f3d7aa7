/* SPDX-License-Identifier: BSD-3-Clause */
/* Draws the figures of a server as one screen of text.
 *
 * Each line is formatted on its own and cut at the width of the screen, in columns
 * and not in bytes, so that names of any length and script keep the screen in order.  Control
 * characters in names are replaced.  Colour marks only what somebody should look at.
 * The disks come last, the busiest first, as many as there are lines for.
 */
#include "status.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "checked.h"
#include "tool.h"
#include "utf8.h"

#define MAX_LINE 1024
#define BAR_COLUMNS 24
#define MAX_DISKS_SHOWN 20      /* where the height has no limit */

#define SECOND_NS 1e9

enum style { PLAIN, STRONG, ALARM };

struct drawing {
  FILE *to;
  const struct screen *s;
  const struct server_figures *before, *now;
  bool interval;
  double seconds;               /* between BEFORE and NOW */
  unsigned nr_lines;
};

/* --- Lines ---------------------------------------------------------------- */

/* Returns the code of the UTF-8 character of LEN bytes at P. */
static uint32_t
code_at (const unsigned char *p, unsigned len)
{
  uint32_t c = len == 1 ? p[0] : p[0] & (0x7fu >> len);

  for (unsigned i = 1; i < len; i++)
    c = c << 6 | (p[i] & 0x3f);
  return c;
}

/* Returns how many columns terminals take for a character.  Only what is in use in names
 * is told apart: accents that combine, and what Unicode calls wide (UAX #11). */
static unsigned
columns_of (uint32_t c)
{
  static const struct {
    uint32_t first, last;
    unsigned columns;
  } v[] = {
    { 0x300, 0x36f, 0 }, { 0x1100, 0x115f, 2 }, { 0x200b, 0x200f, 0 },
    { 0x2e80, 0x303e, 2 }, { 0x3041, 0xa4cf, 2 }, { 0xa960, 0xa97f, 2 },
    { 0xac00, 0xd7a3, 2 }, { 0xf900, 0xfaff, 2 }, { 0xfe00, 0xfe0f, 0 },
    { 0xfe30, 0xfe6f, 2 }, { 0xff00, 0xff60, 2 }, { 0xffe0, 0xffe6, 2 },
    { 0x1f300, 0x1f64f, 2 }, { 0x1f680, 0x1f6ff, 2 }, { 0x1f900, 0x1faff, 2 },
    { 0x20000, 0x3fffd, 2 },
  };

  for (size_t i = 0; i < sizeof v / sizeof v[0]; i++)
    if (c >= v[i].first && c <= v[i].last)
      return v[i].columns;
  return 1;
}

/* Cuts UTF-8 text behind so many columns; 0: nowhere.  A byte that is no UTF-8 counts as
 * a character. */
static void
cut (char *text, unsigned columns)
{
  unsigned char *p = (unsigned char *) text;
  unsigned used = 0, len;

  for (; *p && columns; p += len) {
    len = MAX_OF (utf8_length (p), 1u);
    used += columns_of (code_at (p, len));
    if (used > columns) {
      *p = '\0';
      return;
    }
  }
}

static void
put_line (struct drawing *d, enum style style, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

static void
put_line (struct drawing *d, enum style style, const char *fmt, ...)
{
  static const char *const begin[] = { "", "\033[1m", "\033[1;31m" };
  const bool styled = d->s->colour && style != PLAIN;
  char text[MAX_LINE];
  va_list args;

  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  fault_make_printable (text);
  cut (text, d->s->width);
  fprintf (d->to, "%s%s%s\n", styled ? begin[style] : "", text,
           styled ? "\033[0m" : "");
  d->nr_lines++;
}

/* --- Numbers -------------------------------------------------------------- */

/* Writes a time of up to some seconds as "12 us", "3.4 ms" or "1.20 s". */
static const char *
format_ns (uint64_t ns, char buf[32])
{
  if (ns == 0)
    snprintf (buf, 32, "-");
  else if (ns < 10000)
    snprintf (buf, 32, "%.1f us", (double) ns / 1e3);
  else if (ns < 1000000)
    snprintf (buf, 32, "%.0f us", (double) ns / 1e3);
  else if (ns < 1000000000)
    snprintf (buf, 32, "%.1f ms", (double) ns / 1e6);
  else
    snprintf (buf, 32, "%.2f s", (double) ns / 1e9);
  return buf;
}

/* Writes a longer time as "3d 04:05:06". */
static const char *
format_uptime (uint64_t seconds, char buf[32])
{
  const uint64_t days = seconds / 86400;
  int n = 0;

  if (days > 0)
    n = snprintf (buf, 32, "%" PRIu64 "d ", days);
  snprintf (buf + n, 32 - (size_t) n, "%02u:%02u:%02u",
            (unsigned) (seconds / 3600 % 24), (unsigned) (seconds / 60 % 60),
            (unsigned) (seconds % 60));
  return buf;
}

static const char *
format_bytes (const json_t *o, const char *key, char buf[32])
{
  if (!figure_known (o, key))
    return "unknown";
  return tool_human (figure (o, key), buf);
}

/* Returns how much a figure grew each second. */
static double
rate (const struct drawing *d, const json_t *before, const json_t *now,
      const char *key)
{
  const uint64_t a = figure (before, key), b = figure (now, key);

  return d->seconds > 0 && b > a ? (double) (b - a) / d->seconds : 0;
}

/* --- The parts of the screen ---------------------------------------------- */

static void
put_title (struct drawing *d)
{
  const json_t *stats = d->now->stats;
  const json_t *space = json_object_get (stats, "space");
  char uptime[32];

  put_line (d, STRONG, "%s   up %s   disks %" PRIu64 "   snapshots %" PRIu64
            "   clients %" PRIu64, d->s->path,
            format_uptime (figure (stats, "uptime-ns") / 1000000000, uptime),
            figure (space, "disks"), figure (space, "snapshots"),
            figure (stats, "clients"));
  if (json_is_true (json_object_get (stats, "read-only")))
    put_line (d, ALARM, "read-only: %s",
              figure_text (stats, "read-only-reason"));
}

static void
put_ratio (struct drawing *d, const json_t *space)
{
  char logical[32], stored[32], age[48] = "";
  const uint64_t at = figure (space, "counted-at");
  const uint64_t now = (uint64_t) time (NULL);

  if (at == 0) {
    put_line (d, PLAIN, "logical  being counted");
    return;
  }
  if (now > at + 1)
    snprintf (age, sizeof age, "   (%" PRIu64 " s ago)", now - at);
  put_line (d, PLAIN, "logical  %-12s stored %-12s ratio %.2f%s",
            tool_human (figure (space, "logical-bytes"), logical),
            tool_human (figure (space, "stored-bytes"), stored),
            figure_real (space, "ratio"), age);
}

static void
put_host (struct drawing *d, const json_t *space)
{
  const char *status = figure_text (space, "status");
  const bool ok = strcmp (status, "ok") == 0;
  char used[32], file[32], on_host[32], available[32], host[32];

  put_line (d, PLAIN, "image    %-12s in use %-12s on the host %s",
            format_bytes (space, "file-bytes", file),
            format_bytes (space, "used-bytes", used),
            figure_known (space, "allocated-bytes") ?
            format_bytes (space, "allocated-bytes", on_host) : "(device)");
  put_line (d, ok ? PLAIN : ALARM, "space    %-12s available %s of %s",
            status, format_bytes (space, "available-bytes", available),
            format_bytes (space, "host-bytes", host));
}

static void
put_index (struct drawing *d)
{
  const json_t *index = json_object_get (d->now->stats, "index");
  const json_t *dedup = json_object_get (d->now->stats, "dedup");
  const uint64_t shared = figure (dedup, "clusters-shared");
  const uint64_t all = shared + figure (dedup, "clusters-stored");
  char memory[32], disk[32];

  if (index == NULL) {
    put_line (d, PLAIN, "index    %s",
              json_object_get (d->now->stats, "journal")
              ? "not known yet: a job works on it"
              : "none: the image is not deduplicated");
    return;
  }
  put_line (d, PLAIN, "index    %" PRIu64 " entries   memory %s   disk %s   runs %"
            PRIu64, figure (index, "entries"),
            format_bytes (index, "memory-bytes", memory),
            format_bytes (index, "disk-bytes", disk), figure (index, "runs"));
  put_line (d, PLAIN, "written  %" PRIu64 " clusters since the start, %.1f %% of them "
            "shared", all, all ? 100.0 * (double) shared / (double) all : 0);
}

static void
put_request (struct drawing *d, const char *type)
{
  const json_t *now = figures_of_type (d->now->stats, type);
  const json_t *before = figures_of_type (d->before->stats, type);
  const uint64_t max = figure (now, "max-ns"), errors = figure (now, "errors");
  struct latency l, old;
  char p50[32], p99[32], longest[32];

  if (figure (now, "requests") == 0)
    return;
  figure_latency (now, &l);
  if (d->interval) {
    figure_latency (before, &old);
    latency_subtract (&l, &old);
  }
  put_line (d, errors ? ALARM : PLAIN, "%-12s %10" PRIu64 " %9.0f %9.1f %9s %9s "
            "%9s %7" PRIu64, type, figure (now, "requests"),
            rate (d, before, now, "requests"),
            rate (d, before, now, "bytes") / (1 << 20),
            format_ns (latency_quantile (&l, 0.5, max), p50),
            format_ns (latency_quantile (&l, 0.99, max), p99),
            format_ns (max, longest), errors);
}

static void
put_requests (struct drawing *d)
{
  static const char *const types[] = { "read", "write", "flush", "trim", "zero",
                                       "cache", "block-status" };
  const unsigned first = d->nr_lines;

  put_line (d, PLAIN, "%s", "");
  put_line (d, STRONG, "%-12s %10s %9s %9s %9s %9s %9s %7s", "requests", "all",
            "/s", "MiB/s", "p50", "p99", "max", "errors");
  for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
    put_request (d, types[i]);
  if (d->nr_lines == first + 2)
    put_line (d, PLAIN, "none yet");
}

static void
put_job (struct drawing *d, const json_t *job)
{
  const uint64_t done = figure (job, "current-progress");
  const uint64_t total = figure (job, "total-progress");
  const double share = total == 0 ? 0
    : MIN_OF ((double) done / (double) total, 1.0);
  const unsigned full = (unsigned) (share * BAR_COLUMNS);
  char bar[BAR_COLUMNS + 1];

  memset (bar, '-', BAR_COLUMNS);
  memset (bar, '#', full);
  bar[BAR_COLUMNS] = '\0';
  put_line (d, figure_known (job, "error") ? ALARM : PLAIN,
            "[%s] %3.0f %%  %-10s %s%s%s", bar, 100 * share,
            figure_text (job, "status"), figure_text (job, "id"),
            figure_known (job, "error") ? ": " : "", figure_text (job, "error"));
}

static void
put_jobs (struct drawing *d)
{
  const json_t *job;
  size_t i;

  if (json_array_size (d->now->jobs) == 0)
    return;
  put_line (d, PLAIN, "%s", "");
  put_line (d, STRONG, "jobs");
  json_array_foreach (d->now->jobs, i, job)
    put_job (d, job);
}

/* --- Disks ---------------------------------------------------------------- */

struct disk {
  const json_t *now, *before;
  double read, written;         /* bytes a second */
};

static int
compare_disks (const void *a, const void *b)
{
  const struct disk *x = a, *y = b;
  const double dx = x->read + x->written, dy = y->read + y->written;

  if (dx != dy)
    return dx < dy ? 1 : -1;
  return strcmp (figure_text (x->now, "name"), figure_text (y->now, "name"));
}

/* Returns the disk with the name of NOW in the list BEFORE, in which it most likely is
 * at the same place I. */
static const json_t *
find_disk (const json_t *before, const json_t *now, size_t i)
{
  const char *name = figure_text (now, "name");
  const json_t *same = json_array_get (before, i), *disk;
  size_t j;

  if (strcmp (figure_text (same, "name"), name) == 0)
    return same;
  json_array_foreach (before, j, disk)
    if (strcmp (figure_text (disk, "name"), name) == 0)
      return disk;
  return NULL;
}

static struct disk
look_at_disk (struct drawing *d, const json_t *now, size_t i)
{
  const json_t *before = find_disk (d->before->disks, now, i);

  return (struct disk) {
    .now = now, .before = before,
    .read = rate (d, figures_of_type (before, "read"),
                  figures_of_type (now, "read"), "bytes"),
    .written = rate (d, figures_of_type (before, "write"),
                     figures_of_type (now, "write"), "bytes"),
  };
}

static void
put_disk (struct drawing *d, const struct disk *disk)
{
  const char *name = figure_text (disk->now, "name");
  char size[32], mapped[32];

  put_line (d, PLAIN, "%10s %10s %7" PRIu64 " %10.1f %10.1f  %s",
            format_bytes (disk->now, "size", size),
            format_bytes (disk->now, "mapped-bytes", mapped),
            figure (disk->now, "clients"), disk->read / (1 << 20),
            disk->written / (1 << 20), name[0] ? name : "(the default disk)");
}

/* Returns for how many of NR disks there are lines, with one for a line that says how
 * many are left out. */
static size_t
room_for_disks (const struct drawing *d, size_t nr)
{
  const unsigned used = d->nr_lines + 3;
  size_t room = MAX_DISKS_SHOWN;

  if (d->s->height)
    room = d->s->height > used ? d->s->height - used : 0;
  return nr <= room ? nr : room > 0 ? room - 1 : 0;
}

static void
put_disks (struct drawing *d)
{
  const size_t nr = json_array_size (d->now->disks);
  const size_t shown = room_for_disks (d, nr);
  struct disk *v = calloc (nr + 1, sizeof *v);
  size_t i;

  if (v == NULL || shown == 0) {
    free (v);
    return;
  }
  for (i = 0; i < nr; i++)
    v[i] = look_at_disk (d, json_array_get (d->now->disks, i), i);
  qsort (v, nr, sizeof *v, compare_disks);
  put_line (d, PLAIN, "%s", "");
  put_line (d, STRONG, "%10s %10s %7s %10s %10s  %s", "size", "mapped", "clients",
            "read MiB/s", "write", "disk");
  for (i = 0; i < shown; i++)
    put_disk (d, &v[i]);
  if (shown < nr)
    put_line (d, PLAIN, "... and %zu more", nr - shown);
  free (v);
}

void
screen_draw (FILE *to, const struct screen *s,
             const struct server_figures *before,
             const struct server_figures *now, bool interval)
{
  struct drawing d = {
    .to = to, .s = s, .before = before, .now = now, .interval = interval,
    .seconds = (double) (now->taken_ns - before->taken_ns) / SECOND_NS,
  };
  const json_t *space = json_object_get (now->stats, "space");

  put_title (&d);
  put_ratio (&d, space);
  put_host (&d, space);
  put_index (&d);
  put_requests (&d);
  put_jobs (&d);
  put_disks (&d);
}
