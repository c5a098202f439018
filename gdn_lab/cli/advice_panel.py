"""The controls of notebook 07: model, GPUs, batch, state dtype, slots, drafts, memory; the answer follows each change.

It rests on recorded rows, so it works without a GPU and measures nothing.
"""

import html
import os

import ipywidgets as widgets
from IPython.display import display

from ..models import MODELS, STATE_BYTES, divisions
from ..report.recorded import recorded_gpus
from ..report.text import sentence_as_html
from ..studies.advice.analysis import advise
from ..studies.advice.answer import sections
from ..studies.advice.study import Parameters
from ..studies.parameters import ParameterError
from . import notebook


def show(p: Parameters) -> None:
    """Show the controls, set to the parameters of notebook 07; in batch print one line instead."""
    if os.environ.get(notebook.RUN_FOLDER):
        print("The controls of this section are for JupyterLab; `gdn-lab advise` asks the same in the terminal.")
        return
    display(AdvicePanel(p).box)


class AdvicePanel:
    """The controls and the answer. box is the widget; answer is the HTML under the controls."""

    def __init__(self, p: Parameters):
        self.controls = {
            "model": widgets.Dropdown(description="model", options=list(MODELS), value=p.model),
            "tp": widgets.Dropdown(description="GPUs (tp)", options=divisions(p.model), value=p.tp),
            "batch": widgets.IntText(description="batch", value=p.batch),
            "dtype": widgets.Dropdown(description="state", options=list(STATE_BYTES), value=p.dtype),
            "slots": widgets.IntText(description="slots", value=p.slots),
            "spec": widgets.Dropdown(description="draft tokens", options=[0, *range(2, 17)], value=p.spec),
            "memory": widgets.FloatText(description="memory, GB", value=p.memory),
            "gpu_reference": widgets.Dropdown(
                description="recorded",
                options=list(dict.fromkeys([*recorded_gpus(), p.gpu_reference])),
                value=p.gpu_reference,
            ),
        }
        for control in self.controls.values():
            control.style.description_width = "100px"  # "memory, GB" is cut off at the default
        self.answer = widgets.HTML()
        half = len(self.controls) // 2
        both = list(self.controls.values())
        columns = widgets.HBox([widgets.VBox(both[:half]), widgets.VBox(both[half:])])
        self.box = widgets.VBox([columns, self.answer])
        self.controls["model"].observe(self._model_changed, "value")
        for name, control in self.controls.items():
            if name != "model":
                control.observe(lambda _: self.refresh(), "value")
        self.refresh()

    def refresh(self) -> None:
        """Answer what is set, or say in one sentence why that cannot be."""
        given = {name: control.value for name, control in self.controls.items()}
        try:
            advice = advise(Parameters.parse(given, "the panel"))
        except ParameterError as error:
            self.answer.value = f"<p>{html.escape(str(error))}.</p>"
            return
        self.answer.value = "".join(_section(*section) for section in sections(advice))

    def _model_changed(self, change) -> None:
        tp = self.controls["tp"]
        before, possible = tp.value, divisions(change["new"])
        tp.options = possible
        tp.value = before if before in possible else possible[0]
        self.refresh()


def _section(heading: str, sentences: list[str]) -> str:
    items = "".join(f"<li>{_item(sentence)}</li>" for sentence in sentences)
    return f"<b>{html.escape(heading)}</b><ul style='margin: 0 0 0.5em; line-height: 1.4'>{items}</ul>"


def _item(sentence: str) -> str:
    return f"<code>{html.escape(sentence)}</code>" if sentence.startswith("--") else sentence_as_html(sentence)
