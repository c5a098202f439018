"""Read a Chrome trace entry by entry, so that one of many GB takes the memory of its longest entry."""

import codecs
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

from . import limits
from .limits import TraceError

_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*(,?)[ \t\n\r]*")
_decode, _scan = json.JSONDecoder().raw_decode, json.JSONDecoder().scan_once


def entries(path: Path, others: dict) -> Iterator[dict]:
    """Yield the entries of traceEvents, and put the other values of the trace's object into `others`, as they come.

    TraceError if it is not such an object, was cut short, or exceeds limits.unpacked_bytes() or limits.ENTRY_BYTES.
    OSError if the file cannot be read.
    """
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        text = _Text(gzip.GzipFile(fileobj=raw) if packed else raw)
        try:
            yield from _object(text, others)
        except (EOFError, gzip.BadGzipFile) as error:
            raise TraceError(f"is not JSON or was cut short ({error}); copy or export it again") from error


class _Text:
    """The text of a file from `at` on, which values are taken from."""

    def __init__(self, file):
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._read, self._most = 0, limits.unpacked_bytes()
        self.text, self.at, self.whole = "", 0, False

    def more(self) -> None:
        """Read on: a chunk, or as much again as waits to be taken."""
        waiting = len(self.text) - self.at
        if waiting > limits.ENTRY_BYTES:
            raise TraceError(f"has an entry of more than {limits.ENTRY_BYTES:,} bytes, which no profiler writes")
        data = self._file.read(max(_CHUNK, waiting))
        self._read += len(data)
        if self._read > self._most:
            raise TraceError(
                f"is larger than {self._most / 1e9:,.2f} GB unpacked; record fewer steps, or raise "
                f"{limits.BYTES_VARIABLE} (bytes)"
            )
        self.whole = not data
        self.text, self.at = self.text[self.at :] + self._decoder.decode(data, final=self.whole), 0

    def sign(self) -> str:
        """Return the next character that is no space, without taking it; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.whole:
                return self.text[self.at : self.at + 1]
            self.more()

    def take(self, signs: str) -> str:
        """Take the next character, which must be one of `signs`."""
        found = self.sign()
        if not found or found not in signs:
            raise self.error(f"expected {' or '.join(signs)}")
        self.at += 1
        return found

    def value(self):
        """Take the next value. What ends where the text ends may go on, and is read again with more of it."""
        self.sign()
        while True:
            try:
                value, end = _decode(self.text, self.at)
                if end < len(self.text) or self.whole:
                    self.at = end
                    return value
            except ValueError as error:
                if self.whole or not self._goes_on(error):
                    raise self.error(str(error).split(":")[0]) from error
            self.more()

    def _goes_on(self, error) -> bool:
        """Whether more text can mend it: the mistake is near the end, or a string that has not ended."""
        place = getattr(error, "pos", self.at)
        return len(self.text) - place < 16 or "Unterminated string" in str(error)

    def error(self, why: str) -> TraceError:
        place = self._read - len(self.text) + self.at
        why = "it ends early" if self.whole and not self.sign() else f"{why} near byte {place:,}"
        return TraceError(f"is not JSON or was cut short ({why}); copy or export it again")


def _object(text: _Text, others: dict) -> Iterator[dict]:
    found = False
    if text.sign() != "{":
        text.value()
        raise TraceError("is JSON but not a trace: it has no list traceEvents; give what torch.profiler exported")
    text.take("{")
    if text.sign() == "}":
        text.take("}")
    else:
        while True:
            key = text.value()
            text.take(":")
            if key == "traceEvents" and text.sign() == "[":
                found = True
                yield from _array(text)
            else:
                others[key if isinstance(key, str) else ""] = text.value()
            if text.take(",}") == "}":
                break
    if text.sign():
        raise text.error("expected the end")
    if not found:
        raise TraceError("is JSON but not a trace: it has no list traceEvents; give what torch.profiler exported")


def _array(text: _Text) -> Iterator[dict]:
    """Yield the values of an array. The inner loop takes those that lie whole in the text, without a call for each."""
    text.take("[")
    if text.sign() == "]":
        text.take("]")
        return
    while True:
        yield text.value()
        if text.take(",]") == "]":
            return
        text.sign()
        whole, place = text.text, text.at
        while True:  # what fails here is met again above, where more is read or the mistake is said
            try:
                value, end = _scan(whole, place)
            except (ValueError, StopIteration):
                break
            comma = _NEXT.match(whole, end)
            if not comma.group(1):
                break
            text.at = place = comma.end()
            yield value
