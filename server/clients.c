/* SPDX-License-Identifier: BSD-3-Clause */
/* Keeps a list of the clients of an image, with what each of them did, and logs who comes
 * and goes.
 *
 * A client is in the list from srv_client_new to srv_client_free, which the program
 * calls when it connects and goes.  A listing is copied under the mutex and passed on
 * without it, so that a slow reader keeps no client from connecting.
 *
 * Threads: any.  Counting takes no lock.
 */
#include "clients.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "image-internal.h"
#include "meter.h"

#define MINUTE_NS (60 * UINT64_C (1000000000))
#define LINES_A_MINUTE 20

struct srv_client {
  /* Constant: */
  struct srv_clients *list;
  const struct srv_image *image;
  uint64_t id, since;
  char *export_name, *address;  /* owned */
  /* Protected by the list's mutex: */
  struct srv_client *next, *prev;
  /* Atomic, away from what others read: */
  char pad[64];
  struct srv_counters counters;
};

void
srv_clients_init (struct srv_clients *l)
{
  pthread_mutex_init (&l->mutex, NULL);
}

static void
free_client (struct srv_client *c)
{
  free (c->export_name);
  free (c->address);
  free (c);
}

void
srv_clients_destroy (struct srv_clients *l)
{
  struct srv_client *c;

  while ((c = l->first)) {
    l->first = c->next;
    free_client (c);
  }
  pthread_mutex_destroy (&l->mutex);
}

uint64_t
srv_clients_count (struct srv_clients *l)
{
  uint64_t nr;

  pthread_mutex_lock (&l->mutex);
  nr = l->nr;
  pthread_mutex_unlock (&l->mutex);
  return nr;
}

/* --- A client ------------------------------------------------------------- */

static void
append (struct srv_clients *l, struct srv_client *c)
{
  pthread_mutex_lock (&l->mutex);
  c->id = ++l->last_id;
  c->prev = l->last;
  if (l->last)
    l->last->next = c;
  else
    l->first = c;
  l->last = c;
  l->nr++;
  pthread_mutex_unlock (&l->mutex);
}

/* Returns whether a line may be written at the default log level now, and then in *LEFT_OUT
 * how many might not since the last one. */
static bool
may_tell (struct srv_clients *l, unsigned *left_out)
{
  const uint64_t now = clock_now_ns ();
  bool may;

  pthread_mutex_lock (&l->mutex);
  if (l->minute_ns == 0 || now - l->minute_ns >= MINUTE_NS) {
    l->minute_ns = now;
    l->told = 0;
  }
  may = l->told < LINES_A_MINUTE;
  *left_out = may ? l->untold : 0;
  l->untold = may ? 0 : l->untold + 1;
  l->told += may;
  pthread_mutex_unlock (&l->mutex);
  return may;
}

/* Logs what C does.  Clients can come and go as often as they like, and must not fill the
 * log: beyond some lines a minute, only the log level debug has them. */
static void
note (const struct srv_client *c, const char *what)
{
  unsigned left_out = 0;
  const enum log_level level = may_tell (c->list, &left_out) ? LOG_INFO : LOG_DEBUG;
  char more[64] = "";

  if (left_out > 0)
    snprintf (more, sizeof more, " (%u more came or went before)", left_out);
  log_line (c->image->log, level, "%s: client %" PRIu64 " (%s) %s the export '%s'%s",
            c->image->path, c->id, c->address, what, c->export_name, more);
}

int
srv_client_new (struct srv_image *m, const char *name, const char *address,
                struct srv_client **out)
{
  struct srv_client *c = calloc (1, sizeof *c);

  if (c == NULL)
    return -ENOMEM;
  c->list = &m->clients;
  c->image = m;
  c->since = (uint64_t) time (NULL);
  c->export_name = strdup (name);
  c->address = strdup (address);
  if (c->export_name == NULL || c->address == NULL) {
    free_client (c);
    return -ENOMEM;
  }
  append (c->list, c);
  note (c, "has opened");
  *out = c;
  return 0;
}

void
srv_client_free (struct srv_client *c)
{
  struct srv_clients *l = c->list;

  note (c, "has left");
  pthread_mutex_lock (&l->mutex);
  if (c->prev)
    c->prev->next = c->next;
  else
    l->first = c->next;
  if (c->next)
    c->next->prev = c->prev;
  else
    l->last = c->prev;
  l->nr--;
  pthread_mutex_unlock (&l->mutex);
  free_client (c);
}

void
srv_client_count (struct srv_client *c, enum srv_request type, uint64_t bytes,
                  int r)
{
  if (c)
    srv_counters_note (&c->counters, type, bytes, r);
}

/* --- The list ------------------------------------------------------------- */

struct copy {
  struct srv_client_info *v;    /* with names of their own */
  size_t nr;
};

static void
free_copy (struct copy *copy)
{
  for (size_t i = 0; i < copy->nr; i++) {
    free ((char *) copy->v[i].export_name);
    free ((char *) copy->v[i].address);
  }
  free (copy->v);
}

static int MUST_CHECK
copy_client (const struct srv_client *c, struct copy *copy)
{
  struct srv_client_info *i = &copy->v[copy->nr++];

  *i = (struct srv_client_info) {
    .id = c->id, .since = c->since, .export_name = strdup (c->export_name),
    .address = strdup (c->address),
  };
  srv_counters_add (&i->counters, &c->counters);
  return i->export_name && i->address ? 0 : -ENOMEM;
}

static int MUST_CHECK
copy_list (struct srv_clients *l, uint64_t after, struct copy *copy)
{
  const struct srv_client *c;
  int r = 0;

  pthread_mutex_lock (&l->mutex);
  copy->v = calloc (l->nr + 1, sizeof *copy->v);
  if (copy->v == NULL)
    r = -ENOMEM;
  for (c = l->first; c && r == 0; c = c->next)
    if (c->id > after)
      r = copy_client (c, copy);
  pthread_mutex_unlock (&l->mutex);
  return r;
}

int
srv_image_list_clients (struct srv_image *m, uint64_t after,
                        int (*cb) (void *opaque,
                                   const struct srv_client_info *c),
                        void *opaque)
{
  struct copy copy = { 0 };
  int r = copy_list (&m->clients, after, &copy);

  for (size_t i = 0; i < copy.nr && r == 0; i++)
    r = cb (opaque, &copy.v[i]);
  free_copy (&copy);
  return r;
}
