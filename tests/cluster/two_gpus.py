"""python two_gpus.py: the same sweep on one GPU and on two. Half the time, and the same times of kernels?

Needs two GPUs and Ray, and about six minutes. Uses each GPU and compiles every kernel first, so that neither sweep
does; then sweeps on GPU 0 alone, then on both. Exits with 1 if two GPUs take over 55% of one's time. --made-up: how it
runs, on a CPU.
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
TP, SEEDS = "8", "0,1,2,3"  # four jobs, two for each GPU
POINT = "-p batches=64,256 -p backends=triton/vk,triton/kv32 -p samples=20".split()
ON_A_CPU = "-p backends=torch".split()
CASE = ("tp", "seed", "batch", "backend", "variant", "indexing", "timer")
MOST = 0.55  # of one GPU's time


def started(*words: str, gpus: str) -> subprocess.Popen:
    """A gdn-lab command on these GPUs."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-m", "gdn_lab", *words], env=environment, cwd=ROOT)


def warm(folder: Path, point: list[str]) -> None:
    """Run a point on each GPU, at the same time: a GPU's first use in a machine's life takes seconds longer."""
    running = [started("run", "02", "--runs", str(folder / gpu), "-p", f"tp={TP}", *point, gpus=gpu) for gpu in "01"]
    assert not any([process.wait() for process in running]), "a notebook failed while kernels were compiled"


def sweep(gpus: str, folder: Path, point: list[str]) -> float:
    """Sweep on some GPUs; return the time from the first job's start to the last one's end, seconds."""
    axes = ("--study", "02", "--over", f"tp={TP}", "--over", f"seed={SEEDS}")
    done, began = started("sweep", *axes, *point, "--runs", str(folder), gpus=gpus), None
    while done.poll() is None:
        if began is None and any(folder.glob("sweeps/*/jobs/*")):
            began = time.time()
        time.sleep(0.1)
    assert done.returncode == 0, f"the sweep on GPUs {gpus} failed"
    (journal,) = folder.glob("sweeps/*/journal.jsonl")  # written last when the last job ended
    return journal.stat().st_mtime - began


def times(folder: Path) -> dict[tuple, float]:
    """{case: median µs} of every timed row."""
    rows = [json.loads(line) for path in folder.glob("sweeps/*/jobs/*/rows.jsonl") for line in path.open()]
    return {tuple(row.get(name) for name in CASE): row["median_us"] for row in rows if row["status"] == "ok"}


def durations(folder: Path) -> list[float]:
    """Seconds that each job took, its start-up included."""
    lines = [json.loads(line) for path in folder.glob("sweeps/*/journal.jsonl") for line in path.open()]
    return sorted(line["seconds"] for line in lines if line["event"] == "ended")


def main(made_up: bool) -> int:
    point = ON_A_CPU if made_up else POINT
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        warm(folder / "warm", point)
        print(f"kernels compiled in {time.monotonic() - began:.1f} s", flush=True)
        one = sweep("0", folder / "one", point)
        print(f"one GPU: {one:.1f} s", flush=True)
        two = sweep("0,1", folder / "two", point)
        alone, both = times(folder / "one"), times(folder / "two")
        for gpus in ("one", "two"):
            print(f"jobs on {gpus} GPU(s) took {', '.join(f'{took:.1f}' for took in durations(folder / gpus))} s")
    print(f"one GPU {one:.1f} s, two GPUs {two:.1f} s: {two / one:.0%} of the time")
    for timer in sorted({case[-1] for case in alone}):
        ratios = sorted(both[case] / alone[case] for case in alone if case in both and case[-1] == timer)
        low, high = ratios[len(ratios) // 20], ratios[-1 - len(ratios) // 20]
        print(f"{timer}: {len(ratios)} times with the other GPU busy over those alone: median ", end="")
        print(f"{statistics.median(ratios):.4f}, 5th to 95th percentile {low:.4f} to {high:.4f}")
    return int(two / one > MOST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--made-up"]))
