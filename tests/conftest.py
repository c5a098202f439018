"""What every test file shares: the `gpu` marker's meaning, and hypothesis kept repeatable and small."""

import gc
import os
import signal
import sys

import hypothesis
import pytest
import torch
from author_kernel import judged_here, kernel_file  # noqa: F401  fixtures for every test file
from chromium import chromium  # noqa: F401  a fixture for every test file
from extra_backend import extra_backend  # noqa: F401  a fixture for every test file
from forked_kernels import forking, kernel_in, python_in

# Nothing that imports and collecting make is garbage, so it is searched for afterwards: pytest_collection_finish().
gc.disable()
# nbformat imports jsonschema, which for seconds compiles a grammar of addresses that no notebook's schema uses.
sys.modules.setdefault("rfc3987_syntax", None)

HAS_GPU = torch.cuda.is_available() and torch.version.hip is None

# derandomize: the same examples on every machine, so that a failure repeats. No deadline: machines differ.
hypothesis.settings.register_profile(
    "gdn_lab",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("gdn_lab")


# A shell starts its background jobs with SIGINT ignored, nohup with SIGHUP; both stay ignored, as they should, in all
# that such a process starts. Tests send these signals.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# Of several workers each takes its share of the cores, and so does what it starts: the reference runs on the CPU.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


if os.environ.get("TRITON_INTERPRET") == "1":
    from quick_interpreter import quicken

    quicken()


@pytest.fixture(scope="session")
def folder_of_kernels():
    """Where the kernel is that starts four seconds sooner; None on a GPU, since CUDA outlives no fork."""
    if HAS_GPU:
        yield None
        return
    with forking() as folder:
        yield folder


@pytest.fixture
def forked_kernel(folder_of_kernels, monkeypatch):
    """The name of a kernel for a notebook."""
    return kernel_in(folder_of_kernels, monkeypatch)


@pytest.fixture
def forked_python(folder_of_kernels, monkeypatch):
    """Processes that the test starts by sys.executable begin two seconds sooner."""
    python_in(folder_of_kernels, monkeypatch)


@pytest.fixture
def one_thread():
    """For models so small that threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a test that skips has failed; without a GPU nothing runs")


def pytest_configure(config):
    if config.getoption("--no-skips") and not HAS_GPU:
        raise pytest.UsageError("these tests need an NVIDIA GPU, and PyTorch finds none here; make test needs none")


def pytest_collection_modifyitems(config, items):
    """Without a GPU, tests marked gpu are left out, not skipped: there is nothing to say about them."""
    if HAS_GPU:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_collection_finish():
    """Search what tests make for garbage, and not what collecting them has made."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A gpu test that skips on a machine with a GPU has failed: what should have been tested was not."""
    report = yield
    strict = item.config.getoption("--no-skips") or item.get_closest_marker("gpu")
    if report.skipped and strict and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped where it should have run: {call.excinfo.value}"
    return report
