# SPDX-License-Identifier: BSD-3-Clause
"""Provides connections, processes and pipelining for the load generators."""
import multiprocessing
import os
import sys
import traceback

import nbd

SECTOR = 512


def connect(uri):
    """A new connection to URI that also knows base:allocation."""
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


class Pipe:
    """Keeps up to DEPTH requests of one connection in flight."""

    def __init__(self, h, depth=16):
        self.h = h
        self.depth = depth
        self.flying = {}                # cookie: its buffer, kept alive

    def reap(self, limit):
        """Until at most LIMIT requests are unanswered; raises their errors."""
        while len(self.flying) > limit:
            cookie = self.h.aio_peek_command_completed()
            if cookie > 0:
                del self.flying[cookie]
                self.h.aio_command_completed(cookie)
            else:
                self.h.poll(-1)

    def write(self, data, off, flags=0):
        self.reap(self.depth - 1)
        buf = nbd.Buffer.from_bytearray(bytearray(data))
        self.flying[self.h.aio_pwrite(buf, off, flags=flags)] = buf

    def drain(self):
        self.reap(0)


def _guard(fn, args):
    try:
        fn(*args)
    except BaseException:       # pylint: disable=broad-except
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def run_processes(fn, arg_list):
    """FN once for each tuple of arguments, each in a process of its own, all
    at the same time; ends this program if one fails."""
    ctx = multiprocessing.get_context('fork')
    procs = [ctx.Process(target=_guard, args=(fn, a)) for a in arg_list]
    for p in procs:
        p.start()
    for p in procs:
        p.join()
    if any(p.exitcode != 0 for p in procs):
        sys.exit('a load process failed')
