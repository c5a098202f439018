"""Find the trace that notebook 04 analyses, and what it is a trace of."""

from pathlib import Path

from ...bench.run_folder import load, newest_first
from ...names import readable
from ...report.nearest import gpu_name
from ...report.recorded import DATA
from ...report.text import cut
from ...trace.steps import StepTrace
from ..decode_step.record import KINETO_FILE, NSIGHT_FILE


def find_trace(given: str, runs: Path, gpu: str, data: Path = DATA) -> Path | None:
    """Return the trace to analyse and print which one it is; None, also printed, if there is none.

    given: its path, from the current folder or from the repository's. "": that of the newest run in `runs` that has
    one, else the recorded one in data/measured/<gpu>, or in the run folder that `gpu` is the absolute path of.
    FileNotFoundError if the given one is not there.
    """
    if given:
        found = next((path for path in (Path(given).expanduser(), data.parent / given) if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"there is no trace {readable(given)}; give a .nsys-rep or .sqlite file of Nsight Systems, or a .json "
                "or .json.gz that torch.profiler exported"
            )
        print(f"The trace: {readable(found.name)}.")
        return found
    for folder in newest_first(runs):
        if found := _trace_in(folder):
            print(f"The trace: {found.name} of the run {readable(folder.name)}, the newest that has one.")
            return found
    kept = Path(gpu) if Path(gpu).is_absolute() else data / "measured" / gpu / "04_nsight_systems"
    if found := _trace_in(kept):
        where = found.relative_to(data.parent) if found.is_relative_to(data.parent) else readable(found)
        print(f"The trace: the recorded one, {where}; no run here has one.")
        return found
    print(
        f"There is no trace: no run here has one and none is recorded on {readable(gpu)}; make profile records one on "
        "a GPU."
    )
    return None


def traced(path: Path | None) -> dict | None:
    """Return model, tp and batch (0 or none: not known) of the step that a trace in a run's folder is of, and "gpu".

    A run of notebook 03 has them among its parameters; one of 04, which keeps the trace of such a run, in "traced" of
    its run.json. None for a trace that lies in no run's folder, or if the run does not say.
    """
    if path is None or not (path.parent / "run.json").is_file():
        return None
    run, _ = load(path.parent)
    found = run.get("traced") or run.get("parameters", {})
    if not {"model", "tp"} <= set(found):
        return None
    return {"model": found["model"], "tp": found["tp"], "batch": found.get("batch"), "gpu": gpu_name(run)}


def origin(trace: StepTrace, step: dict | None) -> str:
    """Return what titles of figures say of a trace: "recorded: H100, qwen3.5-397b-a17b, tp 8, B = 256".

    step: what traced() returned. Without it the GPU and the name of the file.
    """
    if not trace.modes:
        return ""
    if step is None:
        gpus = ", ".join(dict.fromkeys(trace.recorded.gpus)) or "GPU not recorded"
        return f"recorded: {cut(gpus, 60)}, {cut(trace.name, 60)}"
    batch = f", B = {step['batch']}" if step["batch"] else ""
    return f"recorded: {step['gpu']}, {step['model']}, tp {step['tp']}{batch}"


def _trace_in(folder: Path) -> Path | None:
    return next((folder / name for name in (NSIGHT_FILE, KINETO_FILE) if (folder / name).is_file()), None)
