"""Nsight Compute's headline metrics of one decode call, where `ncu` is installed and may read counters.

`ncu` starts this module as a program, which makes one call between the marks of the profiler.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys

from ..backends.author_files import VARIABLE

METRICS = {  # of ncu: what it is called here
    "gpu__time_duration.sum": "duration",
    "dram__bytes.sum": "bytes of memory",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory throughput, % of peak",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "L2 throughput, % of peak",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM throughput, % of peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active, % of peak",
    "launch__registers_per_thread": "registers a thread",
    "launch__occupancy_limit_registers": "blocks an SM by registers",
    "launch__occupancy_limit_shared_mem": "blocks an SM by shared memory",
}
TIMEOUT_S = 120


def measure(files: list[str], kernel: str, setting: dict[str, str]) -> tuple[list[dict[str, str]], str]:
    """Return ({"kernel": its name, metric: value with unit} of each kernel of a call, "") or ([], why not).

    files: that register the kernel. setting: options of this module's program: k-heads, v-heads, batch and dtype.
    """
    ncu = shutil.which("ncu")
    if ncu is None:
        return [], "Nsight Compute (ncu) is not installed, so it measured nothing."
    child = [sys.executable, "-m", __name__, kernel]
    child += [word for name, value in setting.items() for word in (f"--{name}", str(value))]
    command = [ncu, "--csv", "--profile-from-start", "off", "--metrics", ",".join(METRICS), *child]
    environment = os.environ | {VARIABLE: os.pathsep.join(files), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [], f"Nsight Compute took more than {TIMEOUT_S} s and was stopped."
    found = kernels(done.stdout)
    return found, "" if found else f"Nsight Compute measured nothing: {_reason(done)}"


def kernels(text: str) -> list[dict[str, str]]:
    """Read what `ncu --csv` prints: a line for each kernel and metric, between lines of its own that begin with ==."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        if (name := METRICS.get(row.get("Metric Name"))) is None:
            continue
        entry = found.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        unit = "" if "%" in row["Metric Unit"] else row["Metric Unit"]
        entry[name] = f"{row['Metric Value']} {unit}".strip()
    return list(found.values())


def _reason(done: subprocess.CompletedProcess) -> str:
    """The first error that ncu prints."""
    printed = (done.stdout + done.stderr).splitlines()
    errors = [line.removeprefix("==ERROR==").strip() for line in printed if line.startswith("==ERROR==")]
    return (errors or [f"it ended with status {done.returncode}"])[0].rstrip(".") + "."


def main(words: list[str] | None = None) -> None:
    """Make one call of a kernel between the profiler's marks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel")
    for name, kind in {"k-heads": int, "v-heads": int, "batch": int, "dtype": str}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args(words)

    import torch

    from ..models import GDNShape
    from .launched import one_call

    shape = GDNShape(given.k_heads, given.v_heads)
    call = one_call(given.kernel, shape, given.batch, getattr(torch, given.dtype), torch.device("cuda"))
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
