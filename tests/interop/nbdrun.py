#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""nbdrun.py URI 'STATEMENTS': runs Python with an open connection h, one
buffer maker pat(seed, n), and the module nbd; a small nbdsh that needs no
shell quoting of the connection."""
import errno
import random
import sys

import nbd
import nbdclient


def pat(seed, n):
    return random.Random(seed).randbytes(n)


def fails(fn, *args, **kw):
    """The errno that FN fails with, or 0."""
    try:
        fn(*args, **kw)
    except nbd.Error as e:
        return e.errnum
    return 0


h = nbdclient.connect(sys.argv[1])
exec(compile(sys.argv[2], 'statements', 'exec'))
h.shutdown()
