/* SPDX-License-Identifier: BSD-3-Clause */
/* What a lease asks this host: clock, random numbers, and which processes there
 * are.
 *
 * A process is named by the boot of its host, its PID namespace, its number
 * there, and when it started, so that no later process is taken for it.  It has
 * ended if that is certain: in the same boot and namespace there is no process
 * of that number, or another one, or one that has no thread left and waits for
 * its parent.  All system calls of such a process have returned.
 *
 * Where the host does not tell (no /proc), nothing is recorded, and a process
 * never counts as ended.  No state; any thread.
 */
#include "lease.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "zero.h"

static uint64_t
host_now_ns (void *opaque)
{
  struct timespec t;

  clock_gettime (CLOCK_BOOTTIME, &t);
  return (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
}

/* Sleeps by the monotonic clock, which stands still while the host is
 * suspended: the caller looks at now_ns afterwards. */
static void
host_sleep_ns (void *opaque, uint64_t ns)
{
  struct timespec t = { .tv_sec = (time_t) (ns / 1000000000),
                        .tv_nsec = (long) (ns % 1000000000) };

  while (clock_nanosleep (CLOCK_MONOTONIC, 0, &t, &t) == EINTR)
    ;
}

static int
host_random (void *opaque, void *buf, size_t len)
{
  return getrandom (buf, len, 0) == (ssize_t) len ? 0 : -EIO;
}

/* Reads a UUID in the usual form, with hyphens. */
static bool
parse_uuid (const char *s, uint8_t uuid[16])
{
  unsigned i;

  for (i = 0; i < 16; i++) {
    while (*s == '-')
      s++;
    if (sscanf (s, "%2hhx", &uuid[i]) != 1)
      return false;
    s += 2;
  }
  return true;
}

static bool
read_line (const char *path, char *buf, size_t size)
{
  FILE *f = fopen (path, "re");
  bool ok = f && fgets (buf, (int) size, f);

  if (f)
    fclose (f);
  return ok;
}

static void
read_boot_id (uint8_t boot_id[16])
{
  char line[64];

  if (!read_line ("/proc/sys/kernel/random/boot_id", line, sizeof line) ||
      !parse_uuid (line, boot_id))
    memset (boot_id, 0, 16);
}

static uint64_t
read_pid_ns (void)
{
  struct stat st;

  return stat ("/proc/self/ns/pid", &st) == 0 ? (uint64_t) st.st_ino : 0;
}

struct process {
  char state;
  unsigned threads;
  uint64_t start_time;
};

/* Reads /proc/PID/stat: fields 3, 20 and 22 of proc(5).  The second one is a
 * name in parentheses that may hold anything. */
static bool
read_process (uint32_t pid, struct process *p)
{
  char path[64], line[1024];
  const char *s;

  snprintf (path, sizeof path, "/proc/%" PRIu32 "/stat", pid);
  if (!read_line (path, line, sizeof line) || !(s = strrchr (line, ')')))
    return false;
  return sscanf (s + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u "
                 "%*d %*d %*d %*d %u %*d %" SCNu64, &p->state, &p->threads,
                 &p->start_time) == 3;
}

static void
host_describe (void *opaque, struct io_lease_holder *h)
{
  struct process p;

  memset (h->host, 0, sizeof h->host);
  if (gethostname (h->host, sizeof h->host - 1) == -1)
    strcpy (h->host, "?");
  h->since = (int64_t) time (NULL);
  read_boot_id (h->boot_id);
  h->pid_ns = read_pid_ns ();
  h->pid = (uint32_t) getpid ();
  if (!read_process (h->pid, &p))
    h->pid = 0;
  h->start_time = h->pid ? p.start_time : 0;
}

static bool
is_of_this_host (const struct io_lease_holder *h)
{
  uint8_t boot_id[16];

  read_boot_id (boot_id);
  return !all_zero (boot_id, sizeof boot_id) &&
    memcmp (boot_id, h->boot_id, sizeof boot_id) == 0 &&
    h->pid_ns != 0 && h->pid_ns == read_pid_ns ();
}

static bool
host_has_ended (void *opaque, const struct io_lease_holder *h)
{
  struct process p;

  if (h->pid == 0 || h->pid > INT32_MAX || !is_of_this_host (h))
    return false;
  if (kill ((pid_t) h->pid, 0) == -1 && errno == ESRCH)
    return true;
  if (!read_process (h->pid, &p))
    return false;
  return p.start_time != h->start_time ||
    ((p.state == 'Z' || p.state == 'X') && p.threads <= 1);
}

const struct io_lease_world io_lease_this_host = {
  .now_ns = host_now_ns,
  .sleep_ns = host_sleep_ns,
  .describe = host_describe,
  .has_ended = host_has_ended,
  .random = host_random,
};

const char *
io_lease_describe (const struct io_lease_holder *h, char buf[IO_LEASE_TEXT])
{
  const time_t since = (time_t) h->since;
  char when[32], pid[32] = "";
  struct tm tm;

  if (gmtime_r (&since, &tm) == NULL ||
      strftime (when, sizeof when, "%F %T UTC", &tm) == 0)
    strcpy (when, "an unknown time");
  if (h->pid)
    snprintf (pid, sizeof pid, ", process %" PRIu32, h->pid);
  snprintf (buf, IO_LEASE_TEXT, "%s%s, since %s", *h->host ? h->host : "?",
            pid, when);
  fault_make_printable (buf);
  return buf;
}
