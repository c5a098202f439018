"""The interactive part of notebook 02: choose model, tensor-parallel size, dtype, backends and batch, and press Run.

Each press is a run of its own under runs/, as every measurement is. In batch there is nobody to press: a line says so.
"""

import html
import io
import os

import ipywidgets as widgets
import torch
from IPython.display import display

from ..backends.base import dtype_name
from ..backends.registry import BACKENDS, refusal
from ..bench.results import OutputFolderError, Run
from ..models import MODELS, GDNShape, divisions
from ..pool import STATE_DTYPES
from ..report.text import device_name
from ..studies.decode_kernels.analysis import detail_table
from ..studies.decode_kernels.figures import one_batch
from ..studies.decode_kernels.sweep import decode_sweep
from . import notebook


def show(**defaults) -> None:
    """Shows the controls, set to `defaults` (as DecodePanel takes them); in batch prints one line instead."""
    if os.environ.get(notebook.RUN_FOLDER):
        print("The controls of this section are for JupyterLab; in batch they are not shown.")
        return
    display(DecodePanel(**defaults).box)


class DecodePanel:
    """The controls and what they show. box is the widget; rows are those of the last press.

    model, tp, dtype ("bfloat16"), batch, samples, seed: what is set at first. root: where run folders go.
    """

    def __init__(
        self, *, model="qwen3.5-397b-a17b", tp=1, dtype="bfloat16", batch=16, samples=0, seed=0, root=None
    ):  # fmt: skip
        self.samples, self.seed, self.root = samples, seed, root or notebook.ROOT / "runs"
        self.device, self.rows = notebook.device(), []
        self.model = widgets.Dropdown(description="model", options=list(MODELS), value=model)
        self.tp = widgets.Dropdown(description="GPUs (tp)", options=divisions(model), value=tp)
        dtypes = [dtype_name(each) for each in STATE_DTYPES]
        self.dtype = widgets.Dropdown(description="state", options=dtypes, value=dtype)
        self.batch = widgets.BoundedIntText(description="batch", min=1, max=4096, value=batch)
        self.variants = widgets.SelectMultiple(description="backends", rows=6)
        self.refusals, self.status, self.table = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.progress, self.figure = widgets.Output(), widgets.Image(format="png", width=880)
        self.figure.layout.display = "none"
        controls = widgets.VBox([self.model, self.tp, self.dtype, self.batch, self.button])
        choice = widgets.VBox([self.variants, self.refusals])
        results = [self.status, self.progress, self.table, self.figure]
        self.box = widgets.VBox([widgets.HBox([controls, choice]), *results])
        self.model.observe(self._model_changed, "value")
        for control in (self.tp, self.dtype):
            control.observe(lambda _: self.refresh(), "value")
        self.button.on_click(lambda _: self.run())
        self.refresh()

    @property
    def shape(self) -> GDNShape:
        return GDNShape.from_model(self.model.value, self.tp.value)

    def refresh(self) -> None:
        """Offers the variants that can serve what is set, and lists the others with their sentence."""
        dtype, before = notebook.parse_dtype(self.dtype.value), set(self.variants.value)
        can, cannot = servable(self.shape, dtype, self.device)
        self.variants.options = can
        self.variants.value = [name for name in can if name in before] or can
        lines = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in cannot.items())
        self.refusals.value = f"Cannot serve this here:<ul>{lines}</ul>" if lines else ""

    def run(self) -> None:
        """Measures what is set and shows table and figure; what goes wrong is shown as its sentence."""
        if not self.variants.value:
            self.status.value = "Choose at least one backend."
            return
        parameters = {
            "model": self.model.value, "tp": self.tp.value, "dtype": self.dtype.value,
            "backends": ",".join(self.variants.value), "batches": str(self.batch.value),
            "samples": self.samples, "seed": self.seed,
        }  # fmt: skip
        self.button.disabled, self.status.value = True, "Measuring …"
        self.progress.clear_output()
        try:
            with self.progress, Run.create("panel", parameters, root=self.root, seed=self.seed) as run:
                self.rows = decode_sweep(
                    self.shape, [self.batch.value], variants=list(self.variants.value),
                    dtype=notebook.parse_dtype(self.dtype.value), device=self.device, run=run,
                    samples=notebook.parse_samples(self.samples), seed=self.seed,
                )  # fmt: skip
                self._show(run)
        except (ValueError, RuntimeError, OutputFolderError) as error:
            self.status.value = html.escape(f"Not measured: {error}")
        except KeyboardInterrupt:
            self.status.value = "Interrupted; the rows measured so far are kept."
        finally:
            self.button.disabled = False

    def _show(self, run) -> None:
        figure, image = one_batch(self.rows, run.info), io.BytesIO()
        run.save_figure(figure, "one_batch")
        figure.savefig(image, format="png", dpi=150)
        self.figure.value, self.figure.layout.display = image.getvalue(), ""
        self.table.value = notebook.table(detail_table(self.rows), digits=2).to_html()
        kind = "GPU" if self.device.type == "cuda" else "CPU"
        self.status.value = html.escape(f"{kind} times: {device_name(run.info)}. Results: {run.folder.name}")

    def _model_changed(self, change) -> None:
        before = self.tp.value
        self.tp.options = divisions(change["new"])
        self.tp.value = before if before in self.tp.options else 1
        self.refresh()


def servable(shape: GDNShape, dtype: torch.dtype, device: torch.device) -> tuple[list[str], dict[str, str]]:
    """(variants that can serve such a decode call, {the others: why not}), each on a pool of its own layout."""
    can, cannot = [], {}
    for backend in BACKENDS.values():
        for variant in backend.variants:
            if "decode" not in variant.phases:
                continue
            name = f"{backend.name}/{variant.name}"
            reason = refusal(name, shape, layout=variant.layout, dtype=dtype, device=device)
            if reason is None:
                can.append(name)
            else:
                cannot[name] = reason
    return can, cannot
