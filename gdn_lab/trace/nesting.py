"""Which ranges enclose which launch: the stack of ranges of a thread at every instant, looked up for many launches.

Ranges of one thread mostly nest, but need not: those of different NVTX domains, and start/end ranges, may overlap. A
stack is therefore kept as a chain: each node is one range above a parent node, -1 is the empty stack.
"""

import numpy

NO_NODE = -1


class Chains:
    """The stacks that occur. parent, range: one entry a node: the node below it, the row of its range.

    names: of each range, as codes. path: the node's path of names as an index to `paths`; paths[i] = (path below,
    name). Both -1 where there is none.
    """

    def __init__(self, names):
        self.names = names
        self.parent: list[int] = []
        self.range: list[int] = []
        self.path: list[int] = []
        self.paths: list[tuple[int, int]] = []
        self._path_of: dict[tuple[int, int], int] = {}

    def push(self, node: int, row: int) -> int:
        """The node of range `row` on top of `node`."""
        key = (self.path[node] if node >= 0 else NO_NODE, self.names[row])
        path = self._path_of.get(key)
        if path is None:
            path = self._path_of[key] = len(self.paths)
            self.paths.append(key)
        self.parent.append(node)
        self.range.append(row)
        self.path.append(path)
        return len(self.parent) - 1

    def index_paths(self) -> None:
        """Makes known to push() which paths there are, after they were put in from elsewhere."""
        self._path_of = {key: path for path, key in enumerate(self.paths)}

    def remove(self, node: int, row: int) -> int:
        """The node without range `row`, which may lie below others."""
        above = []
        while self.range[node] != row:
            above.append(self.range[node])
            node = self.parent[node]
        node = self.parent[node]
        for other in reversed(above):
            node = self.push(node, other)
        return node

    def common(self, one: int, other: int) -> int:
        """The node of the ranges that are in both stacks."""
        kept, rows = set(self.rows(other)), self.rows(one)
        node = NO_NODE
        for row in reversed(rows):
            if row in kept:
                node = self.push(node, row)
        return node

    def rows(self, node: int) -> list[int]:
        """The ranges of a stack, innermost first."""
        rows = []
        while node >= 0:
            rows.append(self.range[node])
            node = self.parent[node]
        return rows


def attribute(starts, ends, threads, names, launch_starts, launch_ends, launch_threads):
    """(Chains, node of each launch, node of each range's own beginning), nodes as int64 arrays.

    starts, ends, threads, names: int64 [ranges]; launch_…: int64 [launches], all times in ns. A range encloses a
    launch of its thread if start <= launch start and launch end <= end. At equal starts the longer range is the outer.
    """
    chains = Chains(names.tolist())
    launch_nodes = numpy.full(len(launch_starts), NO_NODE, numpy.int64)
    range_nodes = numpy.full(len(starts), NO_NODE, numpy.int64)
    for rows, launches in _by_thread(threads, launch_threads):
        keys, nodes = _sweep(chains, rows, starts[rows], ends[rows], range_nodes)
        first = nodes[numpy.searchsorted(keys, 2 * launch_starts[launches], "right")]
        last = nodes[numpy.searchsorted(keys, 2 * launch_ends[launches], "right")]
        for place in numpy.flatnonzero(first != last).tolist():  # a range began or ended within the launch: rare
            first[place] = chains.common(int(first[place]), int(last[place]))
        launch_nodes[launches] = first
    return chains, launch_nodes, range_nodes


def _by_thread(threads, launch_threads):
    """(rows of the ranges, places of the launches) of each thread that has ranges."""
    groups, launch_groups = _groups(threads), _groups(launch_threads)
    nothing = numpy.empty(0, numpy.int64)
    for thread, rows in groups.items():
        yield rows, launch_groups.get(thread, nothing)


def _groups(values) -> dict[int, numpy.ndarray]:
    """{value: its places in ascending order}."""
    order = numpy.argsort(values, kind="stable")
    distinct, firsts = numpy.unique(values[order], return_index=True)
    return dict(zip(distinct.tolist(), numpy.split(order, firsts[1:]), strict=True)) if len(values) else {}


def _sweep(chains, rows, starts, ends, range_nodes):
    """(keys, nodes): the stack after each begin and end of a thread's ranges, nodes[0] being the stack before all.

    A begin at time t has the key 2 t and an end 2 t + 1, so that a lookup of 2 t sees what began at t and had not
    ended before t.
    """
    outer_first = numpy.lexsort((rows, -ends, starts))
    rows, starts, ends = rows[outer_first], starts[outer_first], ends[outer_first]
    count = len(rows)
    places = numpy.arange(count)
    keys = numpy.concatenate((2 * starts, 2 * ends + 1))
    order = numpy.lexsort((numpy.concatenate((places, -places)), keys))  # of equal ends the inner one first
    named, node, nodes = rows.tolist(), NO_NODE, [NO_NODE]
    for event in order.tolist():
        if event < count:
            node = chains.push(node, named[event])
            range_nodes[named[event]] = node
        else:
            node = chains.remove(node, named[event - count])
        nodes.append(node)
    return keys[order], numpy.array(nodes, numpy.int64)
