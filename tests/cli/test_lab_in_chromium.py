"""JupyterLab as `gdn-lab lab` starts it, over a copy of the project, in headless Chromium: `make test-pages`."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from chromium import opened

from gdn_lab.cli.run import ROOT

pytestmark = pytest.mark.browser
TOKEN = "a-token-of-the-test"
PARTS = ("gdn_lab", "notebooks", "data", "README.md", "CONTRIBUTING.md", "pyproject.toml")
PATIENCE_MS = 180_000  # a kernel imports torch
STARTED_S = 60
JUPYTERS = re.compile("^Plugin .* to activate|status of 500 .*/api/kernels")  # slow; asked while a kernel starts


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, for what JupyterLab and the notebooks write."""
    folder = tmp_path_factory.mktemp("project")
    for part in PARTS:
        source = ROOT / part
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(source, folder / part, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def lab(project, tmp_path_factory):
    """The address of a JupyterLab over the copy, with a home folder of its own."""
    home = tmp_path_factory.mktemp("home")
    words = ["--no-browser", "--port=0", f"--IdentityProvider.token={TOKEN}"]
    environment = os.environ | {"PYTHONPATH": str(project), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    log = project.with_name("lab.log")
    with open(log, "w") as written:
        command = [sys.executable, "-m", "gdn_lab", "lab", *words]
        process = subprocess.Popen(command, cwd=project, env=environment, stdout=written, stderr=written)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(30)
    assert list(home.iterdir()) == [], "something was written outside of the project"


def _address(process, log) -> str:
    """The address that JupyterLab prints once it serves."""
    until = time.monotonic() + STARTED_S
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab has not started:\n{log.read_text()}")


def run_all(view) -> None:
    """Run every cell, and go to the end of the notebook, where the panels are."""
    view.page.locator(".jp-StatusBar-TextItem", has_text="Idle").wait_for(timeout=PATIENCE_MS)  # the kernel has started
    view.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    view.page.locator('[data-command="runmenu:run-all"]').click()


def fill(view, name: str, text: str) -> None:
    """Type into the control of a panel that has this label."""
    label = view.page.locator(".widget-label", has_text=re.compile(f"^{name}$"))
    control = view.page.locator(".widget-inline-hbox", has=label).locator("input")
    until = time.monotonic() + PATIENCE_MS / 1000
    while not control.count() and time.monotonic() < until:  # outputs that are not on the screen are not in the page
        view.page.locator(".jp-WindowedPanel-outer").evaluate("box => box.scrollBy(0, 400)")
        view.page.wait_for_timeout(300)
    control.fill(text)
    control.press("Enter")


def quiet(view) -> None:
    """Nothing complained, nothing outside was asked for, and nothing asks the user for anything."""
    complaints = [message for message in view.messages if not JUPYTERS.search(message)]
    assert complaints == [] and view.requests == []
    for asking in (".Toastify__toast", ".jp-Dialog"):
        assert view.page.locator(asking).count() == 0, view.page.locator(asking).first.inner_text()


def test_the_panel_of_notebook_02(chromium, lab, project):
    with opened(chromium, f"{lab}lab/tree/notebooks/02_decode_kernels.ipynb?reset&token={TOKEN}") as view:
        run_all(view)
        fill(view, "batches", "1")
        view.page.locator(".jupyter-button", has_text="Check").click()
        view.page.get_by_text(re.compile("Checked on this CPU.*-panel")).wait_for(timeout=PATIENCE_MS)
        figure = view.page.locator('.widget-html img[alt*="recorded: H100"]')
        assert figure.evaluate("image => image.naturalWidth") > 400
        quiet(view)
    assert list((project / "runs").glob("*-panel/rows.jsonl"))


def test_the_panel_of_notebook_07(chromium, lab):
    with opened(chromium, f"{lab}lab/tree/notebooks/07_advice.ipynb?reset&token={TOKEN}") as view:
        run_all(view)
        fill(view, "batch", "64")
        view.page.locator(".widget-html", has_text="B = 64, bfloat16 state").wait_for(timeout=PATIENCE_MS)
        quiet(view)


def test_it_opens_notebook_00_over_the_whole_project(chromium, lab, project):
    with opened(chromium, f"{lab}?reset&token={TOKEN}") as view:
        view.page.locator(".jp-Notebook h1", has_text="What can this machine run").wait_for(timeout=PATIENCE_MS)
        found = view.page.evaluate("() => fetch('/api/contents').then(answer => answer.json())")
        assert {each["name"] for each in found["content"]} >= set(PARTS)
        quiet(view)
