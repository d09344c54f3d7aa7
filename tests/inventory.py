#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Lists the tests there are, for ./check.

  inventory.py names BUILD [SUITE...]    tests that meson knows, of these suites
                                         or all, one name a line
  inventory.py programs BUILD NAME...    ninja's targets that those tests need
  inventory.py untested BUILD            sources of tests in the tree that are
                                         in no program that meson runs
  inventory.py scripts                   scripts of the tree

"untested" and "scripts" start from the files in tests/, so that a test which
meson.build does not name, or leaves out because something is missing, is
noticed.  A source of a test is called test-*.c or has an entry point (main, or
that of libFuzzer).
"""
import json
import os
import re
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
ENTRY = re.compile(r'^(int )?(main|LLVMFuzzerTestOneInput) \(', re.M)
NO_TEST = {'tests/fuzz/seeds.c',         # makes the corpus, by hand
           'tests/control/qmp-server.c'}  # scripts of tests/interop run it


def files(suffixes):
    """The files below tests/ with these suffixes, relative to TOP."""
    for folder, dirs, names in os.walk(os.path.join(TOP, 'tests')):
        dirs.sort()
        for name in sorted(names):
            if name.endswith(suffixes):
                yield os.path.relpath(os.path.join(folder, name), TOP)


def introspect(build, what):
    return json.loads(subprocess.check_output(
        ['meson', 'introspect', build, '--' + what]))


def tests(build):
    """{name: (suites, ids of the targets that it needs)}"""
    return {t['name']: ([s.split(':')[-1] for s in t['suite']], t['depends'])
            for t in introspect(build, 'tests')}


def names(build, *suites):
    for name, (of, _) in tests(build).items():
        if not suites or set(suites) & set(of):
            print(name)


def programs(build, *wanted):
    targets = {t['id']: t['filename'] for t in introspect(build, 'targets')}
    known = tests(build)
    for name in wanted:
        for target in known.get(name, ([], []))[1]:
            for path in targets[target]:
                print(os.path.relpath(path, os.path.realpath(build)))


def is_test(path):
    if os.path.basename(path).startswith('test-'):
        return True
    with open(os.path.join(TOP, path), encoding='utf-8') as f:
        return ENTRY.search(f.read()) is not None


def untested(build):
    needed = {i for _, ids in tests(build).values() for i in ids}
    sources = set()
    for target in introspect(build, 'targets'):
        if target['id'] in needed:
            for part in target['target_sources']:
                sources.update(os.path.realpath(s)
                               for s in part.get('sources', ()))
    for path in files(('.c',)):
        if path not in NO_TEST and is_test(path) and \
           os.path.join(TOP, path) not in sources:
            print(path)


def scripts():
    for path in files(('.sh', '.py')):
        if os.path.basename(path).startswith('test-'):
            print(path)


if __name__ == '__main__':
    commands = {f.__name__: f for f in (names, programs, untested, scripts)}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*sys.argv[2:])
