"""Every notebook's page of a whole run, and the page that ties them together, in headless Chromium."""

import subprocess
import sys

import pytest
from chromium import opened

from gdn_lab.cli.run import ROOT
from gdn_lab.studies import studies

pytestmark = pytest.mark.browser
NOTEBOOKS = [study.notebook for study in studies()]
FIRST_SCREEN = 900  # px, at 1280 wide
sizes = pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs of all notebooks, as `make run` leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "gdn_lab", "run", "--runs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@sizes
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebooks_page(chromium, runs, notebook, width, dark):
    (page,) = runs.glob(f"*-{notebook}/{notebook}.html")
    with opened(chromium, page, width=width, dark=dark) as view:
        view.check()
        images = view.page.locator("figure img")
        for number in range(images.count()):
            assert len(images.nth(number).get_attribute("alt") or "") > 20, "a figure without its title as text"
        assert view.page.locator("details.code[open]").count() == 0, "code is folded"
        if width == 1280:
            assert view.bottom(".answer li") < FIRST_SCREEN, "the answer's first sentence is below the first screen"


@sizes
def test_the_index_leads_to_every_page(chromium, runs, width, dark):
    with opened(chromium, runs / "index.html", width=width, dark=dark) as view:
        view.check()
        links = view.page.eval_on_selector_all("a", "all => all.map(a => a.getAttribute('href'))")
        assert all(any(link and link.endswith(f"{notebook}.html") for link in links) for notebook in NOTEBOOKS)
