"""The controls of notebook 02: model, tensor-parallel size, dtype, batches, variants; Run measures, Stop stops.

Each press of Run is a run of its own under runs/ and a line of the figure, which keeps the earlier ones and shows what
was recorded of the same setting. Without a GPU a press checks, and the figure shows what was recorded. In batch a line
says that nothing is shown.
"""

import html
import os
import threading

import ipywidgets as widgets
import torch
from IPython.display import display

from ..backends.base import dtype_name
from ..backends.registry import VARIANTS, refusal
from ..bench.free_memory import room_for_pools
from ..bench.results import OutputFolderError, Run, load
from ..models import MODELS, GDNShape, divisions
from ..pool import STATE_DTYPES
from ..report.checks import check_caption, check_table
from ..report.nearest import Asked, Match, Setting, nearest_record
from ..report.recorded import origin, recorded_gpus
from ..report.text import byte_size, device_name
from ..report.timed import Timed, name_of
from ..studies.decode_kernels.analysis import detail_table
from ..studies.decode_kernels.overlay import Entry, overlaid
from ..studies.decode_kernels.study import STUDY, Parameters
from ..studies.decode_kernels.sweep import decode_sweep
from ..studies.parameters import whole_numbers
from . import notebook
from .widget_html import as_figure, as_lines, as_table

NOT_RECORDED = "none"  # choice of the control "recorded"


def show(p: Parameters) -> None:
    """Show the controls, set to the parameters `p` of notebook 02; in batch print one line instead."""
    if os.environ.get(notebook.RUN_FOLDER):
        print("The controls of this section are for JupyterLab; in batch they are not shown.")
        return
    batches = "auto" if p.batches == Parameters.parse({}).batches else ",".join(map(str, p.batches))
    options = {"model": p.model, "tp": p.tp, "dtype": dtype_name(p.dtype), "batches": batches}
    display(DecodePanel(**options, samples=p.samples, seed=p.seed, gpu_reference=p.gpu_reference).box)


class Bar:
    """What a sweep advances: moves a progress widget, and raises KeyboardInterrupt between two variants once stopped.

    progress: a FloatProgress. stopped: a threading.Event. total: of the amounts that update() takes.
    """

    def __init__(self, progress, stopped: threading.Event, total: float):
        self.progress, self.stopped = progress, stopped
        progress.value, progress.max = 0.0, total

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_) -> None:
        self.progress.description = ""

    def update(self, amount: float) -> None:
        self.progress.value += amount
        self._stop()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.progress.description = text
        self._stop()

    def _stop(self) -> None:
        if self.stopped.is_set():
            raise KeyboardInterrupt


class DecodePanel:
    """The controls and what they show. box is the widget; history holds an Entry for each press that timed something.

    model, tp, dtype ("bfloat16"), batches ("auto" or "1,8,64"), samples, seed, gpu_reference: what is set at first, as
    Parameters takes them. root: where run folders go. A press measures in a thread, so that Stop is heard; wait() ends
    when it has ended.
    """

    def __init__(
        self,
        *,
        model="qwen3.5-397b-a17b",
        tp=1,
        dtype="bfloat16",
        batches="auto",
        samples=0,
        seed=0,
        gpu_reference="h100",
        root=None,
    ):
        self.samples, self.seed, self.root = samples, seed, root or notebook.ROOT / "runs"
        self.device, self.rows, self.history, self.pressed = notebook.device(), [], [], 0
        self.stopped, self.thread = threading.Event(), None
        self._make_controls(model, tp, dtype, batches, gpu_reference)
        self._lay_out()
        self.model.observe(self._model_changed, "value")
        for control in (self.tp, self.dtype):
            control.observe(lambda _: self.refresh(), "value")
        for control in (self.batches, self.recorded):
            control.observe(lambda _: self._show_what_is_set(), "value")
        self.button.on_click(lambda _: self.run())
        self.stop.on_click(lambda _: self.stopped.set())
        self.clear.on_click(lambda _: self._forget())
        self.refresh()

    # ---- controls

    def _make_controls(self, model, tp, dtype, batches, gpu_reference) -> None:
        self.model = widgets.Dropdown(description="model", options=list(MODELS), value=model)
        self.tp = widgets.Dropdown(description="GPUs (tp)", options=divisions(model), value=tp)
        dtypes = [dtype_name(each) for each in STATE_DTYPES]
        self.dtype = widgets.Dropdown(description="state", options=dtypes, value=dtype)
        self.batches = widgets.Text(description="batches", value=batches, placeholder="auto, or 1,8,64")
        self.batches.continuous_update = False
        gpus = list(dict.fromkeys([NOT_RECORDED, *recorded_gpus(), gpu_reference]))
        self.recorded = widgets.Dropdown(description="recorded", options=gpus, value=gpu_reference)
        self.variants = widgets.SelectMultiple(description="variants", rows=8)
        self.button = widgets.Button(
            description="Run" if self.device.type == "cuda" else "Check", button_style="primary", icon="play"
        )
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.clear = widgets.Button(description="Clear", icon="trash", tooltip="Forget the lines measured here")
        self.progress = widgets.FloatProgress(
            layout={"width": "520px", "display": "none"}, style={"description_width": "260px"}
        )
        self.memory, self.refusals, self.status, self.lead, self.table, self.figure = (widgets.HTML() for _ in range(6))

    def _lay_out(self) -> None:
        buttons = widgets.HBox([self.button, self.stop, self.clear])
        for button in buttons.children:
            button.layout.width = "96px"
        left = widgets.VBox([self.model, self.tp, self.dtype, self.batches, self.recorded, buttons])
        right = widgets.VBox([self.variants, self.refusals])
        columns = widgets.HBox([left, right], layout={"flex_flow": "row wrap"})
        results = [self.memory, self.progress, self.status, self.lead, self.figure, self.table]
        self.box = widgets.VBox([columns, *results])

    @property
    def given(self) -> dict:
        """What is set, in the words that Parameters takes; of the variants those that can run here."""
        return {
            "model": self.model.value,
            "tp": self.tp.value,
            "dtype": self.dtype.value,
            "backends": ",".join(self._can_run_here()) or "all",
            "batches": self.batches.value.strip() or "auto",
            "samples": self.samples,
            "seed": self.seed,
        }

    @property
    def p(self) -> Parameters:
        """What is set, parsed. ParameterError, one sentence, for a value that cannot be."""
        return Parameters.parse(self.given, "the panel")

    def _can_run_here(self) -> list[str]:
        return [name for name in self.variants.value if name not in self.cannot]

    def refresh(self) -> None:
        """Offer the variants again: those that can serve what is set are chosen, the others say why they cannot."""
        before, offered = set(self.variants.value), len(self.variants.options)
        shape = GDNShape.from_model(self.model.value, self.tp.value)
        can, self.cannot = servable(shape, getattr(torch, self.dtype.value), self.device)
        names = [*can, *self.cannot]
        self.variants.unobserve_all("value")
        self.variants.options = [(name if name in can else f"{name} (recorded only)", name) for name in names]
        self.variants.value = [name for name in names if name in before or not offered]
        self.variants.observe(lambda _: self._show_what_is_set(), "value")
        lines = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in self.cannot.items())
        count = f"{len(self.cannot)} of {len(names)} variants cannot run this here"
        self.refusals.value = f"<details><summary>{count}</summary><ul>{lines}</ul></details>" if lines else ""
        self._show_what_is_set()

    def _model_changed(self, change) -> None:
        before = self.tp.value
        self.tp.options = divisions(change["new"])
        self.tp.value = before if before in self.tp.options else 1
        self.refresh()

    # ---- measuring

    def run(self) -> None:
        """Start to measure what is set, in a thread; show an error as its sentence."""
        if not self._can_run_here():
            self.status.value = as_lines("Choose at least one variant that can run here.")
            return
        try:
            p, given = self.p, self.given
        except ValueError as error:
            self.status.value = as_lines(f"Not measured: {error}")
            return
        self.button.disabled, self.stop.disabled = True, False
        self.progress.layout.display = ""
        self.status.value = as_lines("Measuring. Cells that you run meanwhile would change the times.")
        self.stopped.clear()
        self.thread = threading.Thread(target=self._measure, args=(p, given), name="panel", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Return when the last press has ended."""
        if self.thread:
            self.thread.join()

    def _measure(self, p: Parameters, given: dict) -> None:
        run = None
        try:
            with Run.create("panel", given, root=self.root, seed=p.seed) as run:
                decode_sweep(
                    p.here.shape,
                    p.batches,
                    variants=p.backends,
                    dtype=p.dtype,
                    device=self.device,
                    run=run,
                    samples=p.samples,
                    seed=p.seed,
                    model=p.model,
                    tp=p.here.tp,
                    progress=lambda total: Bar(self.progress, self.stopped, total),
                )
            self._keep(p, run, "checked" if p.checks_only else "timed")
        except (ValueError, RuntimeError, OutputFolderError) as error:
            self.status.value = as_lines(f"Not measured: {error}")
        except KeyboardInterrupt:
            self._keep(p, run, "stopped")
        finally:
            self.button.disabled, self.stop.disabled = False, True
            self.progress.layout.display = "none"

    def _keep(self, p: Parameters, run: Run, how: str) -> None:
        """Add what a press measured, all or until it was stopped, to table and figure."""
        info, self.rows = load(run.folder)
        count = len(self.rows)
        where = f"{count} row{'s' * (count != 1)} in {run.folder.name}"
        timed = Timed(self.rows, info)
        if p.checks_only:
            self.table.value = as_table(notebook.table(check_table(self.rows), check_caption(self.rows)))
            said = f"Checked on this CPU ({device_name(info)}), not ranked"
        else:
            self.table.value = as_table(notebook.table(detail_table(timed), "The last press", digits=2))
            said = f"{'GPU' if self.device.type == 'cuda' else 'CPU'} times: {device_name(info)}"
            if timed:
                self.pressed += 1
                self.history.append(Entry(f"{self.pressed}: {_setting(p)}", timed))
        if how == "stopped":
            said = f"Stopped. {said}"
        self.status.value = as_lines(f"{said}; {where}.", *timed.not_timed())
        self._draw()

    def _forget(self) -> None:
        self.history.clear()
        self.table.value = ""
        self._draw()

    # ---- showing

    def _show_what_is_set(self) -> None:
        """Show the memory that the pools need, and the figure with what is recorded of this setting."""
        try:
            self.memory.value = as_lines(memory_line(self.p))
        except ValueError as error:  # the recorded lines are shown all the same
            self.memory.value = as_lines(f"{error}.")
        self._draw()

    def _draw(self) -> None:
        entries, lead = list(self.history), ""
        if match := self._match():
            rows = [row for row in match.rows if row["status"] != "ok" or name_of(row) in self.variants.value]
            timed = Timed(rows, match.run, phase="decode")
            entries.insert(0, Entry(origin(match.run, match.rows), timed, recorded=True))
            lead = match.run.get("lead", "")
        elif self.recorded.value != NOT_RECORDED:
            lead = f"No run of {STUDY.notebook} is recorded on {self.recorded.value}"
        self.lead.value = as_lines(f"{lead}.") if lead else ""
        self.figure.value = as_figure(overlaid(entries)) if entries else ""

    def _match(self) -> Match | None:
        """What is recorded nearest to what is set; None if nothing is or is to be shown, or the batches are no list."""
        if self.recorded.value == NOT_RECORDED:
            return None
        words = self.batches.value.strip()
        try:
            batches = () if words in ("", "auto") else tuple(whole_numbers(words))
            setting = Setting.of(self.model.value, self.tp.value, self.dtype.value)
            return nearest_record(Asked((setting,), batches), self.recorded.value, STUDY.notebook)
        except ValueError:  # said in the memory line, or a run folder of another notebook
            return None


def memory_line(p: Parameters) -> str:
    """What the pools of the largest batch need, and what the device has for them."""
    room, batch = room_for_pools(), max(p.batches)
    kinds = f"{p.layouts} pool{'s' * (p.layouts != 1)} (KV and VK)" if p.layouts == 2 else "One pool"
    need, has = byte_size(p.pools_nbytes(batch)), byte_size(room.nbytes)
    return f"{kinds} for B = {batch:,}: {need} needed at least; {room.where} has {has} for them."


def _setting(p: Parameters) -> str:
    return f"{p.model}, tp {p.here.tp}, {dtype_name(p.dtype)} state"


def servable(shape: GDNShape, dtype: torch.dtype, device: torch.device) -> tuple[list[str], dict[str, str]]:
    """(variants that can serve such a decode call, {the others: why not}), each on a pool of its own layout."""
    reasons = {
        name: refusal(name, shape, layout=variant.layout, dtype=dtype, device=device)
        for name, variant in VARIANTS.items()
        if "decode" in variant.phases
    }
    can = [name for name, reason in reasons.items() if reason is None]
    return can, {name: reason for name, reason in reasons.items() if reason is not None}
