"""Find which ranges enclose which launch: the stack of open ranges of a thread at every instant.

Ranges of one thread mostly nest, but need not: ranges of different NVTX domains and start/end ranges may overlap. All
stacks that occur are therefore kept as one tree: a node is one range on top of its parent node, -1 is the empty stack.
"""

import numpy

from . import limits

NO_NODE = -1


class RangeStacks:
    """The tree of all stacks of ranges that occur.

    parent, range: for each node, the node below it and the row of its range. path: for each node, its path of names as
    an index into `paths`; paths[i] = (path below, name). All -1 where there is none. names: the name of each range, as
    a code.
    """

    def __init__(self, names):
        self.names = names
        self.parent: list[int] = []
        self.range: list[int] = []
        self.path: list[int] = []
        self.paths: list[tuple[int, int]] = []
        self._path_of: dict[tuple[int, int], int] = {}
        self._depth_of: list[int] = []  # of paths

    def copy(self) -> "RangeStacks":
        """Return a tree that can grow without changing this one."""
        other = RangeStacks(list(self.names))
        other.parent, other.range, other.path = list(self.parent), list(self.range), list(self.path)
        other.paths, other._path_of, other._depth_of = list(self.paths), dict(self._path_of), list(self._depth_of)
        return other

    def push(self, node: int, row: int) -> int:
        """Return the node of range `row` on top of `node`. TraceError beyond limits.DEPTH and limits.NODES."""
        key = (self.path[node] if node >= 0 else NO_NODE, self.names[row])
        path = self._path_of.get(key)
        if path is None:
            path = self._path_of[key] = len(self.paths)
            self.paths.append(key)
            self._depth_of.append(1 + (self._depth_of[key[0]] if key[0] >= 0 else 0))
            if self._depth_of[path] > limits.DEPTH:
                raise limits.TraceError(f"has more than {limits.DEPTH:,} ranges open at once on a thread; push fewer")
        self.parent.append(node)
        self.range.append(row)
        self.path.append(path)
        return len(self.parent) - 1

    def remove(self, node: int, row: int) -> int:
        """Return the node without range `row`, which may lie below others."""
        above = []
        while self.range[node] != row:
            above.append(self.range[node])
            node = self.parent[node]
        node = self.parent[node]
        for other in reversed(above):
            node = self.push(node, other)
        self._check_size()
        return node

    def _check_size(self) -> None:
        if len(self.parent) > limits.NODES + limits.NODES_PER_RANGE * len(self.names):
            raise limits.TraceError("has ranges that overlap in too many ways; push and pop them so that they nest")

    def common(self, one: int, other: int) -> int:
        """Return the node of the ranges that are in both stacks."""
        shared = set(self.rows(other))
        node = NO_NODE
        for row in reversed(self.rows(one)):
            if row in shared:
                node = self.push(node, row)
        self._check_size()
        return node

    def rows(self, node: int) -> list[int]:
        """Return the ranges of a stack, innermost first."""
        rows = []
        while node >= 0:
            rows.append(self.range[node])
            node = self.parent[node]
        return rows

    def depths(self) -> list[int]:
        """Return how many ranges each node's stack has."""
        return [self._depth_of[path] for path in self.path]

    def path_lengths(self, names) -> numpy.ndarray:
        """Return how long each path is as text, and a 0 for path -1 at the end. names: the text of each code."""
        sums = []
        for below, name in self.paths:
            sums.append(len(names[name]) + 3 + (sums[below] if below >= 0 else 0))
        return numpy.array([*sums, 0], numpy.int64)

    def path_names(self, path: int) -> list[int]:
        """Return the names along a path as codes, outermost first; none for -1."""
        names = []
        while path >= 0:
            path, name = self.paths[path]
            names.append(name)
        return names[::-1]


def attribute(starts, ends, threads, names, launch_starts, launch_ends, launch_threads):
    """Return (RangeStacks, node of each launch, node of each range's own beginning); nodes are int64 arrays.

    starts, ends, threads, names: int64 [ranges]; launch_…: int64 [launches]; times in ns. A range encloses a launch
    of its thread if start <= launch start and launch end <= end. Of ranges that start together the longest is outer.
    """
    stacks = RangeStacks(names.tolist())
    launch_nodes = numpy.full(len(launch_starts), NO_NODE, numpy.int64)
    range_nodes = numpy.full(len(starts), NO_NODE, numpy.int64)
    for rows, launches in _by_thread(threads, launch_threads):
        keys, nodes = _sweep(stacks, rows, starts[rows], ends[rows], range_nodes)
        first = nodes[numpy.searchsorted(keys, 2 * launch_starts[launches], "right")]
        last = nodes[numpy.searchsorted(keys, 2 * launch_ends[launches], "right")]
        for place in numpy.flatnonzero(first != last).tolist():  # rare: a range began or ended during the launch
            first[place] = stacks.common(int(first[place]), int(last[place]))
        launch_nodes[launches] = first
    return stacks, launch_nodes, range_nodes


def _by_thread(threads, launch_threads):
    """Yield (rows of the ranges, places of the launches) of each thread that has ranges."""
    groups, launch_groups = _groups(threads), _groups(launch_threads)
    nothing = numpy.empty(0, numpy.int64)
    for thread, rows in groups.items():
        yield rows, launch_groups.get(thread, nothing)


def _groups(values) -> dict[int, numpy.ndarray]:
    """Return {value: its places in ascending order}."""
    order = numpy.argsort(values, kind="stable")
    distinct, firsts = numpy.unique(values[order], return_index=True)
    return dict(zip(distinct.tolist(), numpy.split(order, firsts[1:]), strict=True)) if len(values) else {}


def _sweep(stacks, rows, starts, ends, range_nodes):
    """Return (keys, nodes): the stack after each begin and end of a thread's ranges; nodes[0] is the one before all.

    A begin at time t has the key 2 t and an end 2 t + 1, so that a look-up of 2 t sees what began at t and had not
    ended before t.
    """
    outer_first = numpy.lexsort((rows, -ends, starts))
    rows, starts, ends = rows[outer_first], starts[outer_first], ends[outer_first]
    count = len(rows)
    places = numpy.arange(count)
    keys = numpy.concatenate((2 * starts, 2 * ends + 1))
    order = numpy.lexsort((numpy.concatenate((places, -places)), keys))  # of equal ends the inner one first
    row_list, node, nodes = rows.tolist(), NO_NODE, [NO_NODE]
    for event in order.tolist():
        if event < count:
            node = stacks.push(node, row_list[event])
            range_nodes[row_list[event]] = node
        else:
            node = stacks.remove(node, row_list[event - count])
        nodes.append(node)
    return keys[order], numpy.array(nodes, numpy.int64)
