"""Find the trace that notebook 04 analyses."""

from pathlib import Path

from ...names import readable
from ...report.recorded import DATA
from ..decode_step.record import KINETO_FILE, NSIGHT_FILE


def find_trace(given: str, runs: Path, gpu: str, data: Path = DATA) -> Path | None:
    """Return the trace to analyse and print which one it is; None, also printed, if there is none.

    given: its path, from the current folder or from the repository's. "": that of the newest run in `runs` that has
    one, else the recorded one in data/measured/<gpu>. FileNotFoundError if the given one is not there.
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
    folders = sorted((path for path in runs.glob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for folder in folders:
        for name in (NSIGHT_FILE, KINETO_FILE):
            if (folder / name).is_file():
                print(f"The trace: {name} of the run {folder.name}, the newest that has one.")
                return folder / name
    recorded = data / "measured" / gpu / "04_nsight_systems" / NSIGHT_FILE
    if recorded.is_file():
        print(f"The trace: the recorded one, data/measured/{gpu}/04_nsight_systems/{NSIGHT_FILE}; no run here has one.")
        return recorded
    print(f"There is no trace: no run here has one and none is recorded on {gpu}; make profile records one on a GPU.")
    return None
