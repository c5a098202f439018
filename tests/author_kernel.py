"""A kernel of an author's in one file, in eager PyTorch, written by a test into its folder; a judge in this process."""

import pytest
import torch

from gdn_lab.backends import author, author_files, registry
from gdn_lab.judge import apart
from gdn_lab.judge.answers import answer

RIGHT = '''
"""A kernel of my own."""

from gdn_lab import variant
from gdn_lab.backends.torch import _decode


@variant("mine/vk", layout="VK", state_dtypes=("bfloat16", "float32"))
def my_decode(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    """Decode in eager PyTorch.

    It is right.
    """
    from gdn_lab.backends.base import State

    gates = dict(A_log=A_log, dt_bias=dt_bias, scale=scale, use_qk_l2norm=use_qk_l2norm)
    _decode(False, q, k, v, a, b, **gates, state=State(state), indices=indices, out=out)
'''


def forget_all():
    """Take back every kernel of an author's, and what was loaded."""
    for backend in [b for b in registry.BACKENDS.values() if b.name in registry._authors]:
        registry.remove(backend)
    author_files._loaded.clear()


@pytest.fixture
def kernel_file(tmp_path, monkeypatch):
    """kernel_file(source, name="mine.py"): the path of a file in a folder of the test's; its kernels are gone after."""
    monkeypatch.delenv(author_files.VARIABLE, raising=False)

    def write(source=RIGHT, name="mine.py"):
        (tmp_path / name).write_text(source)
        return tmp_path / name

    yield write
    assert not author.loading
    forget_all()


@pytest.fixture
def judged_here(monkeypatch, one_thread):
    """The judge answers in this process, which takes a second where a process of its own takes five."""

    def messages(request, **_):
        found = [{"device": "CPU"}]
        answer(request, torch.device("cpu"), lambda **message: found.append(message))
        return [*found, {"done": True}]

    monkeypatch.setattr(apart, "messages", messages)
