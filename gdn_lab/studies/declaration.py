"""Study: what one folder of studies/ declares about itself. Light to import: no torch, no matplotlib."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .parameters import StudyParameters

__all__ = ["Section", "Study", "StudyParameters"]


class Section(NamedTuple):
    """What docs/results_<gpu>.md shows of one recorded run. Each text is Markdown.

    table: placed first, or "". conditions: what the figures hold for, one line. sentences: the answer, a point each.
    not_timed: sentences on what was refused or wrong. figures: {name: matplotlib Figure}, saved as
    docs/<gpu>_<name>.png with their title as alternative text.
    """

    conditions: str
    sentences: list[str]
    figures: dict[str, object]
    table: str = ""
    not_timed: list[str] = []


@dataclass(frozen=True)
class Study:
    """One question of the workbook.

    number, name: "02", "decode_kernels": the folder's name, and with the number the notebook's. question: its
    heading. parameters: what the notebook's parameters cell declares. section(run, rows) -> Section: what a page
    shows of a run recorded in data/measured/<gpu>/<notebook>/; None: nothing. section_name: the marker on the page is
    `<!-- measured:<gpu>-<section_name> -->`. computed() -> {name: Figure}: figures that need no data.
    record(parameters, run, earlier): what `gdn-lab record` calls to measure without the notebook; appends rows to
    `run` and leaves out what the rows `earlier` have; None: only the notebook measures. gpus: the parameter that says
    on how many GPUs of one machine, or lists such numbers; "": always on one. records: {folder in
    data/measured/<gpu>/: parameters other than the defaults} of the runs that `gdn-lab record` without a study makes,
    the folder of the notebook's name with its page; none: it makes the notebook's page alone.
    All callables import what they need when called.
    """

    number: str
    name: str
    question: str
    parameters: type[StudyParameters]
    section: Callable[[dict, list[dict]], Section] | None = None
    section_name: str = ""
    computed: Callable[[], dict[str, object]] = field(default=dict)
    record: Callable[[StudyParameters, object, list[dict]], None] | None = None
    gpus: str = ""
    records: dict[str, dict[str, str]] = field(default_factory=dict)

    def gpus_of(self, parameters: StudyParameters) -> int:
        """GPUs of one machine that a run with these parameters takes; 0 if they are none that this machine can run."""
        found = getattr(parameters, self.gpus) if self.gpus else 1
        return max(found, default=0) if isinstance(found, list) else found

    @property
    def notebook(self) -> str:
        """Name of the notebook, and of its folder in data/measured/<gpu>/: "02_decode_kernels"."""
        return f"{self.number}_{self.name}"
