#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""circles.py BUILD_DIR SOURCE_DIR ROOM...: prints circles of files in rooms, and
what looks up.

A header needs the headers that it includes.  An object file needs another one
if it has an undefined symbol that the other one defines.  A circle is a set of
files each of which needs all others, directly or through others.  ROOMs are named
from the ground up: a file looks up if it needs one of a later room.  A room that
lies in the folder of another one is a room of its own.

Prints one circle a line, its files sorted, and one need that looks up a line, as
"FILE looks up to FILE"; exit status 1 if there is any, 2 if nothing was found to
look at.
"""
import os
import re
import subprocess
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def include_edges(top, rooms):
    headers = {}
    for room in rooms:
        for folder, _, names in os.walk(os.path.join(top, room)):
            for name in names:
                if name.endswith('.h'):
                    with open(os.path.join(folder, name),
                              encoding='utf-8') as f:
                        headers[name] = set(INCLUDE.findall(f.read()))
    return {h: {i for i in included if i in headers}
            for h, included in headers.items()}


def objects(build, rooms):
    for room in rooms:
        for folder, _, names in os.walk(os.path.join(build, room)):
            for name in names:
                if name.endswith('.c.o'):
                    yield os.path.join(folder, name)


def symbol_edges(build, rooms):
    defines, needs = {}, {}
    for path in objects(build, rooms):
        s = re.sub(r'[^/]*\.p/', '', os.path.relpath(path[:-4], build))
        needs.setdefault(s, set())
        out = subprocess.run(['nm', '-P', path], capture_output=True,
                             text=True, check=True).stdout
        for line in out.splitlines():
            name, kind = line.split()[:2]
            if kind == 'U':
                needs[s].add(name)
            elif kind in 'TDBR':
                defines[name] = s
    return {s: {defines[n] for n in names if defines.get(n, s) != s}
            for s, names in needs.items()}


def components(edges):
    """Sets of nodes that reach each other, by the paths between them."""
    reach = {}
    for start in edges:
        seen, todo = set(), [start]
        while todo:
            for n in edges.get(todo.pop(), ()):
                if n not in seen:
                    seen.add(n)
                    todo.append(n)
        reach[start] = seen
    done = set()
    for s in sorted(edges):
        if s in done or s not in reach[s]:
            continue
        circle = {t for t in reach[s] if s in reach.get(t, ())}
        done |= circle
        yield sorted(circle)


def room_of(path, rooms):
    """The number of the innermost room that PATH lies in."""
    inside = [(len(r), n) for n, r in enumerate(rooms)
              if path.startswith(r + '/')]
    return max(inside)[1]


def looks_up(edges, rooms):
    for path, needs in sorted(edges.items()):
        for need in sorted(needs):
            if room_of(path, rooms) < room_of(need, rooms):
                yield f'{path} looks up to {need}'


def main():
    build, top, rooms = sys.argv[1], sys.argv[2], sys.argv[3:]
    includes = include_edges(top, rooms)
    symbols = symbol_edges(build, rooms)
    if not symbols:
        print('nothing to look at', file=sys.stderr)
        return 2
    found = [' '.join(c) for c in components(includes)]
    found += [' '.join(c) for c in components(symbols)]
    found += looks_up(symbols, rooms)
    print(*found, sep='\n', end='\n' if found else '')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
