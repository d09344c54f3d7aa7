/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares what the files of the survey offer each other; no other file includes
 * it. */
#ifndef QCOW2_SURVEY_PRIVATE_H
#define QCOW2_SURVEY_PRIVATE_H

#include "qcow2-survey.h"
#include "usage.h"

/* Who refers to something: 0 nobody, N + 1 root N alone, or SURVEY_MANY with the
 * set of their groups in the other bits. */
#define SURVEY_MANY (UINT32_C (1) << 31)

/* --- survey-tables.c: the set of L2 tables ------------------------------- */

struct survey_table {
  uint64_t host_idx;           /* 0: an empty slot */
  uint64_t paths;              /* L1 entries that name it */
  uint32_t who;                /* names it */
  bool own;                    /* its refcount is 1 */
  uint32_t mapped, runs;       /* of its entries */
};

struct survey_tables {         /* a hash table with open addressing */
  struct survey_table *v;      /* owned */
  size_t nr_slots, nr;
};

/* Returns the table, or NULL. */
struct survey_table *survey_tables_find (const struct survey_tables *t,
                                         uint64_t host_idx);
/* Adds a table that is not in the set, all 0 but for its place.  Other pointers
 * into the set are invalid then.  NULL: out of memory. */
struct survey_table *survey_tables_add (struct survey_tables *t,
                                        uint64_t host_idx);
void survey_tables_free (struct survey_tables *t);

/* --- The survey ---------------------------------------------------------- */

struct survey_counter {        /* of a cluster of the window */
  uint32_t who;                /* refers to it */
  uint32_t refs;               /* how often, or the maximum */
};

struct survey_mask {           /* a set of groups, and clusters that it shares */
  uint32_t mask;
  uint64_t nr;
};
#define SURVEY_MASKS 1024u     /* power of two */

struct survey {
  struct usage_walk w;         /* first, see survey_of */
  const struct qcow2_survey_params *p;
  struct qcow2_survey *s;
  struct survey_tables tables;
  uint64_t nr_clusters;        /* of the file, up to the last that can be used */
  uint64_t l1_done, l1_all;    /* L1 entries */

  /* survey-roots.c: of the table being read */
  uint64_t mapped, mapped_inside, runs, runs_inside;
  uint64_t last_guest, last_host;
  struct qcow2_survey_root *root;        /* that is being read */
  uint32_t *position;          /* of each root in s->roots; owned */
  bool *busy;                  /* windows in which entries name clusters; owned */

  /* survey-window.c: */
  uint64_t start, nr;          /* the window: clusters of the file */
  struct survey_counter *counters;       /* owned */
  const struct survey_table *table;      /* that is being read */
  uint64_t free_run;           /* free clusters before the present one */
  struct qcow2_area *areas;    /* owned, ascending */
  size_t area;                 /* the first that does not end before it */
  struct survey_mask masks[SURVEY_MASKS];
};

static inline struct survey *
survey_of (struct usage_walk *w)
{
  return (struct survey *) w;
}

/* Returns the set of groups of WHO. */
static inline uint32_t
survey_groups (const struct survey *v, uint32_t who)
{
  if (who == 0 || who & SURVEY_MANY)
    return who & ~SURVEY_MANY;
  return UINT32_C (1) << v->s->roots[v->position[who - 1]].group;
}

/* Returns who refers to something if A and B do. */
static inline uint32_t
survey_join (const struct survey *v, uint32_t a, uint32_t b)
{
  if (a == 0 || a == b)
    return b;
  return SURVEY_MANY | survey_groups (v, a) | survey_groups (v, b);
}

#define SURVEY_HALF 500u       /* steps of the progress */

/* Tells how far the work is: DONE of ALL of its first (0) or second (1) half. */
static inline void
survey_progress (const struct survey *v, unsigned half, uint64_t done,
                 uint64_t all)
{
  const double share = all && done < all ? (double) done / (double) all : 1;

  if (v->p->progress)
    v->p->progress (v->w.p->opaque,
                    half * SURVEY_HALF + (uint64_t) (share * SURVEY_HALF),
                    2 * SURVEY_HALF);
}

/* --- survey-roots.c ------------------------------------------------------ */
/* Finds the roots, reads the L2 tables of each, sorts the roots and gives them
 * their groups; then v->tables knows who names each table. */
int survey_roots (struct survey *v, struct fault *f) MUST_CHECK;

/* --- survey-window.c ----------------------------------------------------- */
/* Counts who refers to the clusters of the file, window by window, and judges each
 * cluster. */
int survey_windows (struct survey *v) MUST_CHECK;

/* --- survey-map.c -------------------------------------------------------- */
/* Makes the cells of the map. */
int survey_map_begin (struct survey *v) MUST_CHECK;
/* Enters one cluster.  They come in order, each once. */
void survey_map_put (struct survey *v, uint64_t host_idx, bool has_data,
                     uint64_t refcount, bool anchored);
/* Enters the clusters behind the last that can be used, and holes. */
int survey_map_finish (struct survey *v) MUST_CHECK;

#endif
