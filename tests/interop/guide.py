#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""guide.py FILE.md: prints the code blocks of a guide as a script for bash.

Each block of code is fenced, and says what it is:

    ```sh           commands, run in the order of the text
    ```sh host      commands that need a real host: only their syntax is checked
    ```xml NAME     (or ini, json, python, yaml) the contents of the file NAME
    ```text         output, or anything else that is not run

A comment in HTML that begins with "test:" has commands that a reader does not see,
such as those that make the files which a real host has.  Anything else, also a block
that is indented and not fenced, is an error, so that no command is left out by
mistake.
"""
import re
import shlex
import sys

FENCE = re.compile(r'^```(\w*) ?(.*)$')
FILES = ('xml', 'ini', 'json', 'python', 'yaml')


def fail(path, number, what):
    sys.exit('%s:%d: %s' % (path, number, what))


def blocks(path):
    """(line, kind, word, lines) of each block"""
    kind = word = None
    lines, first, blank = [], 0, True
    for number, line in enumerate(open(path, encoding='utf-8'), 1):
        line = line.rstrip('\n')
        if kind is None:
            match = FENCE.match(line)
            if match:
                kind, word = match.groups()
                lines, first = [], number + 1
            elif line.startswith('<!-- test:'):
                kind, word = 'test', ''
                lines, first = [line[len('<!-- test:'):]], number
            elif line.startswith('    ') and blank:
                fail(path, number, 'a block that is not fenced')
            if kind == 'test' and line.endswith('-->'):
                yield first, kind, word, [lines[0][:-3]]
                kind = None
        elif line == '```' and kind != 'test':
            yield first, kind, word, lines
            kind = None
        elif kind == 'test' and line.endswith('-->'):
            yield first, kind, word, lines + [line[:-3]]
            kind = None
        else:
            lines.append(line)
        blank = line.strip() == ''
    if kind is not None:
        fail(path, first, 'a block without an end')


def main(path):
    for number, kind, word, lines in blocks(path):
        text = '\n'.join(lines) + '\n'
        if kind == 'test' or (kind == 'sh' and word == ''):
            print('at_line %d' % number)
            print(text)
        elif kind == 'sh' and word == 'host':
            print('syntax %d %s\n' % (number, shlex.quote(text)))
        elif kind in FILES and word:
            print('printf %%s %s >%s\n' % (shlex.quote(text), shlex.quote(word)))
        elif kind != 'text' or word:
            fail(path, number, 'a block of an unknown kind: %s %s' % (kind, word))


main(sys.argv[1])
