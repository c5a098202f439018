"""Execute notebooks, one or two at a time, and print what they print in their order, as if one ran after the other."""

import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .errors import BatchError, Interrupted, discard_output
from .run import say, seconds, shown
from .stop import Stop


def in_turn(paths: list[Path], execute: Callable[[Path, "Printed"], Path], stop: Stop, at_once: int) -> None:
    """Call execute(path, stream), which returns a page, for each notebook, `at_once` of them at a time.

    After one has failed, or `stop` was asked, no further one begins; those that run end. BatchError or Interrupted then
    has a sentence for each that did not end well, or names the first that did not begin.
    """
    began, broken = time.monotonic(), threading.Event()

    def one(path: Path, begins: Future, stream: Printed) -> tuple[Path, str] | None:
        started = time.monotonic()
        begins.set_result(not stop.asked and not broken.is_set())
        try:
            return (execute(path, stream), seconds(started)) if begins.result() else None
        except BaseException:
            broken.set()
            raise

    errors, not_begun = [], []
    with ThreadPoolExecutor(at_once) as threads:
        begun, streams = [Future() for _ in paths], [Printed(sys.stdout) for _ in paths]
        ends = [threads.submit(one, *each) for each in zip(paths, begun, streams, strict=True)]
        for number, path in enumerate(paths, 1):
            place = f"[{number}/{len(paths)}] {path.stem}"
            if not begun[number - 1].result():
                not_begun.append(path)
                continue
            say(place + (f", {seconds(began)} since the start" if number > 1 else ""))
            streams[number - 1].go_on()
            try:
                page, took = ends[number - 1].result()
                say(f"{place}: done in {took}: {shown(page)}")
            except (BatchError, Interrupted) as error:
                errors.append(error)
    if errors:
        raise type(errors[0])(" ".join(map(str, errors)))
    if not_begun:
        done = len(paths) - len(not_begun)
        raise Interrupted(f"interrupted before {not_begun[0].stem}; {done} of {len(paths)} notebooks are done")


class Printed:
    """A text stream that indents what a notebook prints, to tell it from this command's own lines.

    It keeps what is written until go_on() is called: notebooks may run at the same time. A progress bar redraws itself
    in place after a carriage return; in a log each redraw gets a line.
    """

    def __init__(self, stream):
        self.stream = stream
        self.return_means = "\r" if stream.isatty() else "\n"
        self.at_line_start = True
        self.kept, self.lock = [], threading.Lock()

    def go_on(self) -> None:
        """Write what was kept, and from now on what comes as it comes."""
        with self.lock:
            kept, self.kept = self.kept, None
            self._indent("".join(kept))

    def write(self, text: str) -> None:
        with self.lock:
            if self.kept is None:
                self._indent(text)
            else:
                self.kept.append(text)

    def _indent(self, text: str) -> None:
        try:
            for piece in re.findall(r"[^\r\n]+|[\r\n]", text):
                if piece == "\r":
                    self.stream.write("" if self.at_line_start else self.return_means)
                else:
                    self.stream.write(("    " if self.at_line_start and piece != "\n" else "") + piece)
                self.at_line_start = piece in "\r\n"
        except OSError:  # whoever read it has gone
            discard_output()

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            discard_output()
