"""How much of a trace is read: a trace from somebody else may be made to take all memory, or for ever.

Two environment variables set the limits: GDN_LAB_TRACE_MEMORY, the bytes of memory that the rows of a trace may take
(default: half of what is available), and GDN_LAB_TRACE_BYTES, the bytes that a .json.gz may unpack to and a .json may
have (default: 16 GB). What is larger is refused in one sentence.
"""

import os
import sqlite3
import zlib
from contextlib import contextmanager
from pathlib import Path

from ..names import readable

MEMORY_VARIABLE, BYTES_VARIABLE = "GDN_LAB_TRACE_MEMORY", "GDN_LAB_TRACE_BYTES"
DEFAULT_BYTES = 16 * 10**9
ENTRY_BYTES = 16 * 2**20  # the longest single entry of a JSON trace; real ones have some kB
DEPTH = 1000  # ranges open at once on one thread; real programs have some ten
LAST_NS = 2**62 - 1  # the latest time; a Unix clock in ns is below it until 2116
NODES, NODES_PER_RANGE = 1_000_000, 8  # stacks of ranges that may occur: so many, and so many for each range
ROW_BYTES = 1000  # of memory for a row of kernels, launches or ranges in all tables made of it, about
# What damaged values raise where they are used: the messages are about the value, not about the file.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    zlib.error,
    sqlite3.Error,
)


class TraceError(ValueError):
    """Why a trace cannot be read: the rest of a sentence that begins with the name of its file."""


def memory() -> int:
    """Return how many bytes the rows of a trace may take. ValueError if the variable is no whole number."""
    return _variable(MEMORY_VARIABLE) or max(available() // 2, 2**28)


def unpacked_bytes() -> int:
    """Return how many bytes of JSON are read. ValueError if the variable is no whole number."""
    return _variable(BYTES_VARIABLE) or DEFAULT_BYTES


def _variable(name: str) -> int:
    text = os.environ.get(name, "")
    if text and not (text.isdecimal() and int(text)):
        raise ValueError(f"{name}: expected a number of bytes, such as 8000000000; got {text!r}")
    return int(text or 0)


def available() -> int:
    """Return the bytes of memory that this process can still get: the machine's, or what its cgroup leaves."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = 8 * 2**30
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        free = min(free, limit - used + int(cached.get("inactive_file", 0)))  # files' pages are given back
    except (OSError, ValueError):  # no cgroup, or one without a limit
        pass
    return max(free, 0)


def check_memory(needed: int, what: str) -> None:
    """Refuse to take more memory than memory() allows. TraceError."""
    if needed > (most := memory()):
        raise TraceError(
            f"would take {needed / 1e9:,.1f} GB of memory for {what}, more than the {most / 1e9:,.1f} GB that it may; "
            f"record fewer steps, or raise {MEMORY_VARIABLE} (bytes)"
        )


@contextmanager
def one_sentence(called):
    """Turn whatever a damaged trace raises into a ValueError of one sentence that begins with `called`, its path.

    FileNotFoundError and other OSErrors, which name the file, pass through.
    """
    name = readable(called)
    try:
        yield
    except TraceError as error:
        raise ValueError(f"{name} {error}") from error
    except MemoryError as error:
        raise ValueError(f"{name} needs more memory than there is; record fewer steps") from error
    except RecursionError as error:
        raise ValueError(f"{name} nests too deep for a trace; export it again") from error
    except _DAMAGE as error:
        if name in str(error):  # said already
            raise
        reason = readable(f"{type(error).__name__}: {error}")[:200]
        raise ValueError(f"{name} is damaged or not a profiler's trace ({reason}); copy or export it again") from error
