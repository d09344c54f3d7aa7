/* SPDX-License-Identifier: BSD-3-Clause */
/* Declares the rooms' allocations, which the linker sends through
 * fault-malloc.c. */
#ifndef FAULT_MALLOC_H
#define FAULT_MALLOC_H

#include <stdbool.h>
#include <stddef.h>

/* Shall this one fail?  NULL: none does. */
extern bool (*fault_malloc_fails) (size_t size);

#endif
