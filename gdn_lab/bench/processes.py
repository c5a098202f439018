"""Which process writes a run, and whether it is still there. Linux; elsewhere nothing can be told."""

import hashlib
import os
import time
from pathlib import Path

SILENT_S = 24 * 3600  # a run of another boot or container that has written nothing for so long has ended


def this_process() -> dict:
    """This process for run.json: pid, started (clock ticks since boot), boot (a hash that changes with every boot)."""
    return {"pid": os.getpid(), "started": _started(os.getpid()), "boot": _boot()}


def gone(process: dict | None, last_write: float) -> bool:
    """Whether the process that this_process() described has ended.

    last_write: when it last wrote, in seconds since 1970. A process of another boot, machine or container cannot be
    looked up here; it is gone if it has written nothing for a day. False where nothing can be told.
    """
    if not process or process.get("started") is None or _boot() is None:
        return False
    if process.get("boot") != _boot():
        return time.time() - last_write > SILENT_S
    return _started(process["pid"]) != process["started"]


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None if there is none, or if it has ended and was not reaped."""
    try:
        # The name of the program, in parentheses, may hold blanks and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _boot() -> str | None:
    """A hash of the boot and of the container's process table. It names no machine: each boot has a random number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return hashlib.sha256(boot.encode()).hexdigest()[:12]
