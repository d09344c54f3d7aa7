#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""draw-rooms.py [TREE]: prints a picture (SVG) of the rooms of the source tree.

  docs/draw-rooms.py >docs/rooms.svg

A room is a folder with a meson.build that has C files of its own; tests and
benchmarks are none.  Its box has the first sentence of its manual: of FOLDER.h,
or of the header that MANUAL names; a room with no such header has that sentence
in its meson.build.

There is an arrow from a room to each one whose headers it includes, except those
that other arrows imply.  A room stands above all that it includes.  The same
tree always gives the same bytes.  Fails if rooms form a circle, or if it
can't be told which room a header belongs to.
"""
import itertools
import os
import re
import sys
import textwrap
from xml.sax.saxutils import escape

MANUAL = {'qcow2fmt': 'qcow2.h', 'qcow2fmt/check': 'qcow2-check.h'}
NO_ROOMS = {'tests', 'bench', 'docs'}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)

# --- What the tree says ---------------------------------------------------------


def read(*path):
    with open(os.path.join(*path), encoding='utf-8') as f:
        return f.read()


def find_rooms(tree):
    """Returns {room: its C files}, in the order of their names."""
    rooms = {}
    for folder, dirs, names in os.walk(tree):
        dirs[:] = sorted(d for d in dirs if not d.startswith(('.', 'build')))
        room = os.path.relpath(folder, tree)
        if room == '.':
            dirs[:] = [d for d in dirs if d not in NO_ROOMS]
        elif 'meson.build' in names:
            files = sorted(n for n in names if n.endswith(('.c', '.h')))
            if files:
                rooms[room] = files
    return rooms


def owners(rooms):
    """Returns {header: the rooms that have one of that name}."""
    found = {}
    for room, files in rooms.items():
        for name in files:
            if name.endswith('.h'):
                found.setdefault(name, []).append(room)
    return found


def includes(tree, rooms):
    """Returns {room: the other rooms whose headers it includes}."""
    of = owners(rooms)
    edges = {}
    for room, files in rooms.items():
        edges[room] = set()
        for name in files:
            for header in INCLUDE.findall(read(tree, room, name)):
                homes = of.get(header, [])
                if not homes or room in homes:
                    continue
                if len(homes) > 1:
                    sys.exit('%s/%s: %s is in %s' %
                             (room, name, header, ' and '.join(homes)))
                edges[room].add(homes[0])
    return edges


def comment(text, c_source):
    """Returns the text of the first comment behind the SPDX line."""
    if c_source:
        body = re.search(r'\*/\s*/\*(.*?)\*/', text, re.S)
        lines = body.group(1).splitlines() if body else []
        lines = [re.sub(r'^ ?\*? ?', '', line) for line in lines]
    else:
        lines = re.match(r'(?:#.*\n)*', text).group(0).splitlines()[1:]
        lines = [line.lstrip('# ') for line in lines]
    return ' '.join(itertools.takewhile(str.strip, lines))


def promise(tree, room, files):
    """Returns what the room's manual says first."""
    folder = room.split('/')[-1]
    manual = MANUAL.get(room, folder + '.h')
    if manual in files:
        text = comment(read(tree, room, manual), True)
    else:
        text = comment(read(tree, room, 'meson.build'), False)
    text = re.sub(r'\s+', ' ', text).strip()
    text = re.split(r'(?<=\.) (?=[A-Z])', text)[0]
    text = re.sub(r' \(docs/[^)]*\)', '', text)
    text = re.sub(r'^(The )?%s: ' % re.escape(folder), '', text, flags=re.I)
    if not text:
        sys.exit('%s: no comment says what it is for' % room)
    return text[0].upper() + text[1:]


# --- Layers ---------------------------------------------------------------------


def heights(edges):
    """Returns {room: the length of the longest way down from it}."""
    height = {}

    def visit(room, way):
        if room in way:
            sys.exit('rooms form a circle: ' +
                     ' -> '.join(way[way.index(room):] + [room]))
        if room not in height:
            height[room] = 1 + max((visit(r, way + [room])
                                    for r in sorted(edges[room])), default=-1)
        return height[room]

    for room in sorted(edges):
        visit(room, [])
    return height


def below(edges, room):
    """Returns all rooms that ROOM needs, directly or not."""
    seen, todo = set(), [room]
    while todo:
        for r in edges[todo.pop()]:
            if r not in seen:
                seen.add(r)
                todo.append(r)
    return seen


def reduced(edges):
    """Returns the edges that no others imply."""
    return {room: {r for r in to
                   if not any(r in below(edges, other) for other in to)}
            for room, to in edges.items()}


# --- Places ---------------------------------------------------------------------
#
# A row for each height.  An arrow that passes rows has a point in each of them, (from,
# to, height); it takes part in the row's order as rooms do.


def rows_and_links(edges):
    """Returns the rows, from the top, and the pairs of neighbours in them."""
    height = heights(edges)
    rows = [[] for _ in range(max(height.values()) + 1)]
    links = []
    for room in sorted(edges):
        rows[height[room]].append(room)
    for room in sorted(edges):
        for to in sorted(reduced(edges)[room]):
            last = room
            for h in range(height[room] - 1, height[to], -1):
                point = (room, to, h)
                rows[h].append(point)
                links.append((last, point))
                last = point
            links.append((last, to))
    return rows[::-1], links


def crossings(rows, links):
    place = {n: (y, x) for y, row in enumerate(rows) for x, n in enumerate(row)}
    ends = [(place[a], place[b]) for a, b in links]
    return sum(a[0] == c[0] and (a[1] - c[1]) * (b[1] - d[1]) < 0
               for (a, b), (c, d) in itertools.combinations(ends, 2))


def put_in_order(rows, links):
    """Returns the rows in an order with few crossings: each row is ordered by
    where the neighbours in the row before are, down and up, again and again."""
    best = rows
    for sweep in range(24):
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        for y in range(len(rows)) if down else reversed(range(len(rows))):
            other = y - 1 if down else y + 1
            if not 0 <= other < len(rows):
                continue
            place = {n: i / len(rows[other])
                     for i, n in enumerate(rows[other])}
            own = {n: i / len(rows[y]) for i, n in enumerate(rows[y])}

            def middle(node, own=own, place=place):
                near = [place[b if a == node else a] for a, b in links
                        if node in (a, b) and (a in place or b in place)]
                return sum(near) / len(near) if near else own[node]

            rows[y].sort(key=middle)
        if crossings(rows, links) < crossings(best, links):
            best = rows
    return best


# --- The picture ----------------------------------------------------------------

WIDTH, MARGIN = 900, 20
BOX, LEAST_BOX, POINT = 320, 150, 24    # widths
GAP, POINT_GAP = 36, 16         # between boxes of a row; beside a point
ROW_GAP = 32
LINE, HEAD, PAD = 16, 20, 10    # heights of text, of a title; space around
LETTER = 6.9                    # width of one, at most, on average
STYLE = """
text { font: 12px sans-serif; fill: #24292f }
.name { font-weight: bold; font-size: 13px }
.page { fill: #ffffff }
.room { fill: #f3f4f6; stroke: #8c959f }
.dedup { fill: #ddeefc; stroke: #4f86b8 }
.arrow { fill: none; stroke: #57606a; stroke-width: 1.3 }
#head path { fill: #57606a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .page { fill: #0d1117 }
  .room { fill: #21262d; stroke: #6e7681 }
  .dedup { fill: #14304a; stroke: #5b93c7 }
  .arrow { stroke: #9ea7b1 }
  #head path { fill: #9ea7b1 }
}
"""
LEGEND = ['An arrow points from a room to one whose headers it includes.',
          'Arrows that follow from others are left out.']


def box_width(row):
    """Returns the width of the boxes of a row, so that it fits beside MARGIN.  Points
    at one end of the row have to fit at the other end, too."""
    boxes = [i for i, node in enumerate(row) if isinstance(node, str)]
    ends = 2 * max(boxes[0], len(row) - 1 - boxes[-1])
    inside = boxes[-1] - boxes[0] + 1 - len(boxes)
    free = WIDTH - 2 * MARGIN - (ends + inside) * (POINT + POINT_GAP) - \
        (len(boxes) - 1) * GAP
    if free // len(boxes) < LEAST_BOX:
        sys.exit('too many rooms beside each other: ' +
                 ', '.join(row[i] for i in boxes))
    return min(BOX, free // len(boxes))


def wrap(rows, texts):
    """Returns {room: its lines}."""
    return {room: textwrap.wrap(texts[room],
                                int((box_width(row) - 2 * PAD) / LETTER))
            for row in rows for room in row if room in texts}


def set_row(row):
    """Returns {node: (left, width)}, with the boxes in the middle; points at the
    ends of the row do not move them."""
    left, at, ends, box = 0, {}, [], box_width(row)
    for i, node in enumerate(row):
        is_box = isinstance(node, str)
        if i > 0:
            left += GAP if is_box and isinstance(row[i - 1], str) else POINT_GAP
        at[node] = (left, box if is_box else POINT)
        left += at[node][1]
        if is_box:
            ends += [at[node][0], left]
    shift = (WIDTH - ends[0] - ends[-1]) / 2
    return {node: (x + shift, width) for node, (x, width) in at.items()}


def set_places(rows, words):
    """Returns {node: (left, top, width, height)}, and where they end."""
    place, top = {}, MARGIN
    for row in rows:
        height = max(HEAD + LINE * len(words[n]) + 2 * PAD
                     for n in row if n in words)
        for node, (left, width) in set_row(row).items():
            place[node] = (left, top, width, height)
        top += height + ROW_GAP
    return place, top - ROW_GAP


def ports(links, place):
    """Returns {(link, end): x}: the arrows of a box are spread over its side."""
    found = {}
    for end in (0, 1):
        for node in place:
            mine = sorted((k for k in links if k[end] == node),
                          key=lambda k: place[k[1 - end]][0])
            left, _, width, _ = place[node]
            for i, link in enumerate(mine):
                found[link, end] = left + width * (i + 1) / (len(mine) + 1)
    return found


def draw_arrow(link, place, port):
    x1, x2 = port[link, 0], port[link, 1]
    y1 = place[link[0]][1] + place[link[0]][3]
    y2 = place[link[1]][1]
    middle = (y1 + y2) / 2
    path = 'M%.1f %.1f C%.1f %.1f %.1f %.1f %.1f %.1f' % (
        x1, y1, x1, middle, x2, middle, x2, y2)
    head = ' marker-end="url(#head)"'
    if not isinstance(link[1], str):        # goes on through the row
        path += ' V%.1f' % (y2 + place[link[1]][3])
        head = ''
    return '<path class="arrow" d="%s"%s/>' % (path, head)


def draw_room(room, place, lines):
    left, top, width, height = place[room]
    kind = 'room dedup' if room.split('/')[0] == 'dedup' else 'room'
    yield ('<rect class="%s" x="%.1f" y="%.1f" width="%d" height="%d" rx="5"/>'
           % (kind, left, top, width, height))
    y = top + PAD + 12
    yield '<text class="name" x="%.1f" y="%.1f">%s</text>' % (
        left + PAD, y, escape(room + '/'))
    for i, line in enumerate(lines):
        yield '<text x="%.1f" y="%.1f">%s</text>' % (
            left + PAD, y + HEAD + LINE * i, escape(line))


def draw(rows, links, words):
    place, bottom = set_places(rows, words)
    port = ports(links, place)
    height = bottom + LINE * len(LEGEND) + MARGIN + 16
    yield ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" '
           'width="%d" height="%d" role="img">' % (WIDTH, height, WIDTH, height))
    yield '<title>The rooms of the source, and which includes which</title>'
    yield '<!-- SPDX-License-Identifier: BSD-3-Clause -->'
    yield '<!-- Drawn by docs/draw-rooms.py, not by hand. -->'
    yield '<style>%s</style>' % STYLE
    yield ('<defs><marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" '
           'markerWidth="7" markerHeight="7" orient="auto">'
           '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>')
    yield '<rect class="page" width="%d" height="%d"/>' % (WIDTH, height)
    for link in links:
        yield draw_arrow(link, place, port)
    for room in words:
        yield from draw_room(room, place, words[room])
    for i, line in enumerate(LEGEND):
        yield '<text x="%d" y="%d">%s</text>' % (
            MARGIN, bottom + 28 + LINE * i, escape(line))
    yield '</svg>'


def main():
    tree = sys.argv[1] if len(sys.argv) > 1 else \
        os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    rooms = find_rooms(tree)
    if not rooms:
        sys.exit('%s has no rooms' % tree)
    rows, links = rows_and_links(includes(tree, rooms))
    rows = put_in_order(rows, links)
    texts = {r: promise(tree, r, files) for r, files in rooms.items()}
    print('\n'.join(draw(rows, links, wrap(rows, texts))))


if __name__ == '__main__':
    main()
