"""Damaged and hostile traces: read, shown and scrubbed, or refused in one sentence that names the file.

A case is a small trace of either profiler with something done to it: bytes cut, flipped or replaced, an odd value in
place of another, hostile names, many ranges, an archive that unpacks to much more.
"""

import contextlib
import copy
import gzip
import json
import sqlite3
import tempfile
import time
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from unittest import mock

from hostile_names import NAMES
from recorded_traces import Program, eager_and_graph, kineto_trace, two_steps, write_nsys

from gdn_lab.cli import notebook
from gdn_lab.names import readable
from gdn_lab.studies.nsight_systems import analysis, figures, sentences
from gdn_lab.trace import read, summaries, table
from gdn_lab.trace.scrubber import scrub
from gdn_lab.trace.steps import read_steps

MOST_S = 20  # of CPU time for one file
ODD = (
    None, True, -1, 0, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**70, -(2**70), 1.5, 1e300, float("inf"), float("nan"),
    "", "x", "12", "x" * 20_000, [], [[]], {}, {"a": 1}, "gaps", "step", "part",
)  # fmt: skip
TAGS = {"table", "thead", "tbody", "tr", "th", "td", "caption", "style", "ul", "li", "code"}


@contextmanager
def cases():
    """Inside, one_case(seed, number) makes a trace, opens it and returns what was done to it and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        yield lambda seed, number: one_trace(Random(f"{seed}:{number}"), Path(folder), figures=number % 25 == 0)


def fuzz_traces(seconds: float, seed: int) -> int:
    """Run cases for as long as asked and return how many; the first that fails raises."""
    began, number = time.monotonic(), 0
    with cases() as one_case:
        while time.monotonic() - began < seconds:
            one_case(seed, number)
            number += 1
    return number


def one_trace(random: Random, folder: Path, figures: bool = True) -> str:
    """Make and open one trace and return "damage: outcome". AssertionError or the exception that should not be."""
    for old in folder.iterdir():
        old.unlink()
    damage = random.choice(list(DAMAGES))
    path = DAMAGES[damage](random, folder)
    began = time.process_time()
    try:
        opened = read_steps(path)
    except (ValueError, OSError) as error:
        check_sentence(error, path)
        outcome = "refused"
    else:
        check_shown(opened, figures)
        outcome = "shown"
    check_scrubbed(path, outcome)
    took = time.process_time() - began
    assert took < MOST_S, f"{took:.0f} s"
    return f"{damage} {outcome}"


def check_sentence(error: Exception, path: Path) -> None:
    text = str(error)
    assert readable(path) in text and "\n" not in text and len(text) < 11_000, text
    assert "Traceback" not in text and text == readable(text), text


def check_shown(trace, with_figures: bool) -> None:
    """Everything that notebook 04 shows can be made, holds no tag of a name, and is text that can be encoded."""
    shown = []
    with mock.patch.object(notebook, "display", lambda data, **_: shown.append(data["text/html"])):
        notebook.say([sentences.conditions(trace), *trace.notes])
        notebook.say(sentences.answers(trace))
    tables = (analysis.step_table, analysis.part_table, analysis.ranges, analysis.kernel_table, analysis.gap_table)
    frames = [make(trace) for make in tables] + [analysis.agreement(trace, trace)]
    caption = sentences.comparison(trace, trace)
    shown += [notebook.table(frame, caption).to_html() for frame in frames]
    tags = _Tags()
    tags.feed("".join(shown))
    assert tags.names <= TAGS and not tags.events, (tags.names, tags.events)
    json.dumps([analysis.rows(trace), analysis.agreement_rows(trace, trace)], ensure_ascii=False).encode()
    for summary in (summaries.cuda_gpu_kern_sum, summaries.nvtx_kern_sum, summaries.nvtx_gpu_proj_sum):
        summary(trace.recorded)
    if with_figures:
        for draw in (figures.timeline, figures.gap_sizes, figures.where_time_goes):
            with tempfile.TemporaryFile() as file:
                draw(trace).savefig(file, format="svg")


def check_scrubbed(path: Path, outcome: str) -> None:
    """The copy gives the same tables; what cannot be read is not copied."""
    try:
        made = scrub(path)
    except (ValueError, OSError) as error:
        check_sentence(error, path)
        with contextlib.suppress(ValueError, OSError):
            read(path)
            raise AssertionError("read, but not scrubbed") from error
        return
    assert outcome == "shown" or table(read(path)) is not None
    assert table(read(made)).equals(table(read(path)))


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.events = set(), []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.events += [name for name, _ in attributes if name.startswith("on") or name in ("href", "src")]


# ---- what is done ---------------------------------------------------------------------------------------------------


def a_program(random: Random, processes: int = 2) -> Program:
    first = two_steps(other_process=processes == 2 and random.random() < 0.5)
    made = random.choice([first, eager_and_graph(), eager_and_graph(nodes=False)])
    if random.random() < 0.2:
        made.ranges.clear()
    return made


def whole(random: Random, folder: Path) -> Path:
    """Return a trace to which nothing was done, of a random profiler."""
    kind = random.choice(["sqlite", "json", "json.gz"])
    path = folder / f"trace.{kind}"
    if kind == "sqlite":
        return write_nsys(path, a_program(random), text_ids=random.random() < 0.5)
    return write_json(path, kineto_trace(a_program(random, processes=1)))


def write_json(path: Path, trace) -> Path:
    data = (trace if isinstance(trace, str) else json.dumps(trace)).encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def cut(random: Random, folder: Path) -> Path:
    path = whole(random, folder)
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(len(data))])
    return path


def flipped(random: Random, folder: Path) -> Path:
    path = whole(random, folder)
    data = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 2, 20])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return path


def overwritten(random: Random, folder: Path) -> Path:
    path = whole(random, folder)
    data = path.read_bytes()
    start, length = random.randrange(len(data)), random.choice([1, 16, 512, 4096])
    block = random.choice([bytes(length), b"\xff" * length, random.randbytes(length), data[:length]])
    path.write_bytes(data[:start] + block + data[start + random.choice([0, len(block)]) :])
    return path


def odd_value_in_json(random: Random, folder: Path) -> Path:
    trace = kineto_trace(a_program(random, processes=1))
    for _ in range(random.choice([1, 1, 3])):
        _replace_one(random, trace)
    return write_json(folder / random.choice(["trace.json", "trace.json.gz"]), trace)


def _replace_one(random: Random, value) -> None:
    """Put an odd value somewhere into nested objects and lists."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if not keys:
            return
        key = random.choice(keys)
        if isinstance(value[key], (dict, list)) and random.random() < 0.9:
            value = value[key]
            continue
        if isinstance(value, dict) and random.random() < 0.2:
            del value[key]
        else:
            value[key] = copy.deepcopy(random.choice(ODD))
        return


def odd_value_in_sqlite(random: Random, folder: Path) -> Path:
    path = write_nsys(folder / "trace.sqlite", a_program(random))
    with closing(sqlite3.connect(path)) as connection:
        for _ in range(random.choice([1, 1, 3])):
            with contextlib.suppress(sqlite3.Error, OverflowError):
                _change_one(random, connection)
        connection.commit()
    return path


def _change_one(random: Random, connection) -> None:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    name = random.choice(tables)
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
    rows = random.choice(["", f" WHERE rowid = {random.randint(1, 5)}"])
    values = [value for value in ODD if not isinstance(value, (list, dict))] + [b"\x00\xff", b"", "\x00"]
    change = random.random()
    if change < 0.7:
        connection.execute(f'UPDATE {name} SET "{random.choice(columns)}" = ?{rows}', (random.choice(values),))
    elif change < 0.8:
        connection.execute(f"DELETE FROM {name}{rows}")
    elif change < 0.9:
        connection.execute(f'ALTER TABLE {name} DROP COLUMN "{random.choice(columns)}"')
    else:
        connection.execute(f"DROP TABLE {name}")


def hostile_names(random: Random, folder: Path) -> Path:
    made, time_ns = Program(), 0
    for number in range(random.choice([3, 30])):
        name, kernel = random.choice(NAMES), random.choice(NAMES)
        made.range(name, time_ns, time_ns + 900, domain=random.choice([0, 3]))
        made.launch(time_ns + 100, time_ns + 200, number)
        made.kernel(kernel, time_ns + 300, time_ns + 300 + random.randrange(9000), number)
        time_ns += 10_000
    made.range(random.choice(["decode step", random.choice(NAMES)]), -1000, time_ns)
    file = random.choice(NAMES).encode("utf-8", "replace").decode().replace("/", "").replace("\0", "")[:60]
    if random.random() < 0.5:
        return write_json(folder / f"a{file}.json", kineto_trace(made))
    for rows in (made.ranges, made.kernels):
        rows[:] = [(row[0].encode("utf-8", "replace").decode(), *row[1:]) for row in rows]
    return write_nsys(folder / f"a{file}.sqlite", made, domains={(100, 3): random.choice(NAMES[:60])})


def many_ranges(random: Random, folder: Path) -> Path:
    """Ranges at random times on a few threads, nested or overlapping, some with times before 0."""
    made, last = Program(), 100_000
    depth = random.choice([10, 100, 900, 1100, 5000])
    shape = random.choice(["nested", "overlapping", "random"])
    for number in range(depth):
        start, end = sorted(random.randrange(-1000, last) for _ in range(2))
        if shape != "random":
            start, end = number, (last - number if shape == "nested" else last + number)
        made.range(f"range {number % random.choice([1, 7, 5000])}", start, end, (100, 101 + number % 2), 60)
    for number in range(random.choice([1, 50])):
        start = random.randrange(last)
        made.launch(start, start + random.choice([1, 10, 50_000]), number, (100, random.choice([101, 102])))
        made.kernel(f"kernel {number % 3}", start + 100, start + random.randrange(100, 9000), number, stream=number)
    if random.random() < 0.3:
        return write_json(folder / "trace.json", kineto_trace(made))
    return write_nsys(folder / "trace.sqlite", made)


def archive(random: Random, folder: Path) -> Path:
    """Much text in few bytes: spaces, zeros, brackets, one long name, numbers without an end."""
    count = random.choice([10, 100_000, 40_000_000])
    text = json.dumps(kineto_trace(two_steps(other_process=False)))
    filling = random.choice([" " * count, "\0" * count, "[" * count, '{"a":' * (count // 5), "9" * count])
    place = random.choice([0, text.index("[") + 1, len(text) // 2, len(text) - 1, len(text)])
    named = text.replace("gdn_kernel", "k" * count, 1)
    return write_json(folder / "trace.json.gz", random.choice([text[:place] + filling + text[place:], named]))


def foreign(random: Random, folder: Path) -> Path:
    """Files of other formats, and other things under the name of a trace."""
    path = folder / random.choice(
        ["trace.sqlite", "trace.json", "trace.json.gz", "trace.nsys-rep", "trace.txt", "trace"]
    )
    kind = random.choice(["text", "random", "empty", "folder", "null", "list", "other database"])
    if kind == "folder":
        return folder
    if kind == "other database":
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(
                "CREATE TABLE StringIds (id, value); CREATE VIEW NVTX_EVENTS AS SELECT 1 AS start;"
            )
        return path
    data = {"text": b"hello\n", "random": random.randbytes(5000), "empty": b"", "null": b"null", "list": b"[1, 2]"}
    path.write_bytes(data[kind])
    return path


def unfinished(random: Random, folder: Path) -> Path:
    """A database whose last rows lie in its write-ahead log."""
    path = write_nsys(folder / "whole.sqlite", two_steps())
    target = folder / "trace.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("UPDATE CUPTI_ACTIVITY_KIND_KERNEL SET end = end + 1")
        connection.commit()
        target.write_bytes(path.read_bytes())
        (folder / "trace.sqlite-wal").write_bytes((folder / "whole.sqlite-wal").read_bytes())
    return target


DAMAGES = {
    made.__name__: made
    for made in (
        cut,
        flipped,
        overwritten,
        odd_value_in_json,
        odd_value_in_sqlite,
        hostile_names,
        many_ranges,
        archive,
        foreign,
        unfinished,
    )
}
