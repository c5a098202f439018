"""The controls of notebook 02: model, tensor-parallel size, dtype, variants, batch, and a button that measures.

Each press is a run of its own under runs/, as every measurement is. In batch a line says that nothing is shown.
"""

import html
import io
import os

import ipywidgets as widgets
import torch
from IPython.display import display

from ..backends.base import dtype_name
from ..backends.registry import VARIANTS, refusal
from ..bench.results import OutputFolderError, Run
from ..models import MODELS, GDNShape, divisions
from ..pool import STATE_DTYPES
from ..report.text import device_name
from ..report.timed import Timed
from ..studies.decode_kernels.analysis import detail_table
from ..studies.decode_kernels.figures import one_batch
from ..studies.decode_kernels.study import Parameters
from ..studies.decode_kernels.sweep import decode_sweep
from . import notebook


def show(p: Parameters) -> None:
    """Show the controls, set to the parameters `p` of notebook 02; in batch print one line instead."""
    if os.environ.get(notebook.RUN_FOLDER):
        print("The controls of this section are for JupyterLab; in batch they are not shown.")
        return
    panel = DecodePanel(model=p.model, tp=p.tp, dtype=dtype_name(p.dtype), samples=p.samples, seed=p.seed)
    display(panel.box)


class DecodePanel:
    """The controls and what they show. box is the widget; rows are those of the last press.

    model, tp, dtype ("bfloat16"), batch, samples, seed: what is set at first, as Parameters takes them. root: where run
    folders go.
    """

    def __init__(
        self,
        *,
        model="qwen3.5-397b-a17b",
        tp=1,
        dtype="bfloat16",
        batch=16,
        samples=0,
        seed=0,
        root=None,
    ):
        self.samples, self.seed, self.root = samples, seed, root or notebook.ROOT / "runs"
        self.device, self.rows = notebook.device(), []
        self.model = widgets.Dropdown(description="model", options=list(MODELS), value=model)
        self.tp = widgets.Dropdown(description="GPUs (tp)", options=divisions(model), value=tp)
        dtypes = [dtype_name(each) for each in STATE_DTYPES]
        self.dtype = widgets.Dropdown(description="state", options=dtypes, value=dtype)
        self.batch = widgets.BoundedIntText(description="batch", min=1, max=4096, value=batch)
        self.variants = widgets.SelectMultiple(description="variants", rows=6)
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
    def given(self) -> dict:
        """What is set, in the words that Parameters takes."""
        return {
            "model": self.model.value,
            "tp": self.tp.value,
            "dtype": self.dtype.value,
            "backends": ",".join(self.variants.value) or "all",
            "batches": str(self.batch.value),
            "samples": self.samples,
            "seed": self.seed,
        }

    @property
    def p(self) -> Parameters:
        """What is set, parsed. ParameterError, one sentence, for a value that cannot be."""
        return Parameters.parse(self.given, "the panel")

    def refresh(self) -> None:
        """Offer the variants that can serve what is set, and list the others with their refusals."""
        before, p = set(self.variants.value), self.p
        can, cannot = servable(p.shape, p.dtype, self.device)
        self.variants.options = can
        self.variants.value = [name for name in can if name in before] or can
        lines = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in cannot.items())
        self.refusals.value = f"Cannot serve this here:<ul>{lines}</ul>" if lines else ""

    def run(self) -> None:
        """Measure what is set and show table and figure; show an error as its sentence."""
        if not self.variants.value:
            self.status.value = "Choose at least one variant."
            return
        self.button.disabled, self.status.value = True, "Measuring …"
        self.progress.clear_output()
        try:
            p = self.p
            with self.progress, Run.create("panel", self.given, root=self.root, seed=p.seed) as run:
                self.rows = decode_sweep(
                    p.shape,
                    p.batches,
                    variants=p.backends,
                    dtype=p.dtype,
                    device=self.device,
                    run=run,
                    samples=p.samples,
                    seed=p.seed,
                )
                self._show(run)
        except (ValueError, RuntimeError, OutputFolderError) as error:
            self.status.value = html.escape(f"Not measured: {error}")
        except KeyboardInterrupt:
            self.status.value = "Interrupted; the rows measured so far are kept."
        finally:
            self.button.disabled = False

    def _show(self, run) -> None:
        timed = Timed(self.rows, run.info)
        figure, image = one_batch(timed), io.BytesIO()
        run.save_figure(figure, "one_batch")
        figure.savefig(image, format="png", dpi=150)
        self.figure.value, self.figure.layout.display = image.getvalue(), ""
        self.table.value = notebook.table(detail_table(timed), digits=2).to_html()
        kind = "GPU" if self.device.type == "cuda" else "CPU"
        self.status.value = html.escape(f"{kind} times: {device_name(run.info)}. Results: {run.folder.name}")

    def _model_changed(self, change) -> None:
        before = self.tp.value
        self.tp.options = divisions(change["new"])
        self.tp.value = before if before in self.tp.options else 1
        self.refresh()


def servable(shape: GDNShape, dtype: torch.dtype, device: torch.device) -> tuple[list[str], dict[str, str]]:
    """(variants that can serve such a decode call, {the others: why not}), each on a pool of its own layout."""
    reasons = {
        name: refusal(name, shape, layout=variant.layout, dtype=dtype, device=device)
        for name, variant in VARIANTS.items()
        if "decode" in variant.phases
    }
    can = [name for name, reason in reasons.items() if reason is None]
    return can, {name: reason for name, reason in reasons.items() if reason is not None}
