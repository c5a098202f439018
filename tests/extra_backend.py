"""A stranger's backend in 20 lines, dropped into a folder as one file: what a contributor adds.

`extra_backend` is a fixture: inside the test, "extra" is registered like any other backend, and gone afterwards.
"""

import importlib
import sys

import pytest

from gdn_lab.backends import registry

SOURCE = """
from gdn_lab.backends.base import Backend, Variant
from gdn_lab.backends.torch import BACKEND as TORCH, PHASES, STATE_DTYPES


class ExtraBackend(Backend):
    name = "extra"
    distribution = "torch"
    variants = (Variant("vk", "VK", STATE_DTYPES, "eager PyTorch under another name", PHASES),)

    def missing(self, device):
        return None

    def decode_launch(self, variant, call):
        return TORCH.decode_launch(variant, call)

    def verify_launch(self, variant, call):
        return TORCH.verify_launch(variant, call)

    def prefill_launch(self, variant, call):
        return TORCH.prefill_launch(variant, call)


BACKEND = ExtraBackend()
"""


@pytest.fixture
def extra_backend(tmp_path, monkeypatch):
    """The name of a variant, "extra/vk", that one file in a folder of its own adds."""
    (tmp_path / "extra.py").write_text(SOURCE)
    package = importlib.import_module(registry.__package__)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    registry.discover()
    yield "extra/vk"
    monkeypatch.undo()
    sys.modules.pop(f"{package.__name__}.extra", None)
    registry.discover()
