"""python two_gpus.py: the same sweep on one GPU and on two. Half the time, and the same times of kernels?

Needs two GPUs and Ray. Runs the sweep three times, about five minutes: once to compile every kernel, so that neither of
the two that are compared does, then on GPU 0 alone, then on both. Exits with 1 if two GPUs take over 55 % of one.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = "--study 02 --over tp=1,2,4,8 --over seed=0,1 -p batches=64,256 -p backends=triton,flashinfer -p samples=20"
CASE = ("tp", "seed", "batch", "backend", "variant", "indexing", "timer")
MOST = 0.55  # of one GPU's time


def sweep(gpus: str, folder: Path) -> float:
    """Run the sweep on some GPUs; return the time from the first job's start to the last one's end, seconds."""
    command = [sys.executable, "-m", "gdn_lab", "sweep", *WORDS.split(), "--runs", str(folder)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus, "PYTHONPATH": path}
    done = subprocess.Popen(command, env=environment, cwd=ROOT)
    began = None
    while done.poll() is None:
        if began is None and any(folder.glob("sweeps/*/jobs/*")):
            began = time.monotonic()
        ended = time.monotonic()
        time.sleep(0.1)
    assert done.returncode == 0, f"the sweep on GPUs {gpus} failed"
    return ended - began


def times(folder: Path) -> dict[tuple, float]:
    """{case: median µs} of every timed row."""
    rows = [json.loads(line) for path in folder.glob("sweeps/*/jobs/*/rows.jsonl") for line in path.open()]
    return {tuple(row.get(name) for name in CASE): row["median_us"] for row in rows if row["status"] == "ok"}


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep("0,1", folder / "warm")
        one, two = sweep("0", folder / "one"), sweep("0,1", folder / "two")
        alone, both = times(folder / "one"), times(folder / "two")
    print(f"one GPU {one:.1f} s, two GPUs {two:.1f} s: {two / one:.0%} of the time")
    for timer in sorted({case[-1] for case in alone}):
        ratios = sorted(both[case] / alone[case] for case in alone if case in both and case[-1] == timer)
        low, high = ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]
        print(f"{timer}: {len(ratios)} times with the other GPU busy over those alone: median ", end="")
        print(f"{statistics.median(ratios):.4f}, 5th to 95th percentile {low:.4f} to {high:.4f}")
    return int(two / one > MOST)


if __name__ == "__main__":
    sys.exit(main())
