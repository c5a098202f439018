"""Every notebook, executed by one command, as pages in headless Chromium: `make test-pages`."""

import pytest
from chromium import opened

from gdn_lab.cli.main import main
from gdn_lab.cli.run import find
from gdn_lab.cli.run_folders import newest_of_each, run_folders

pytestmark = pytest.mark.browser
NAMES = [path.stem for path in find([])]
SCREEN = 900  # px: the height of the window


@pytest.fixture(scope="module")
def runs(chromium, tmp_path_factory):
    """The folder of what `gdn-lab run` leaves: every notebook, with its defaults."""
    root = tmp_path_factory.mktemp("runs")
    assert main(["run", "--runs", str(root)]) == 0
    return root


@pytest.fixture
def pages(runs):
    return {run.notebook: run.page for run in newest_of_each(run_folders(runs))}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", NAMES)
def test_a_page(chromium, pages, name, width, dark):
    with opened(chromium, pages[name], width=width, dark=dark) as view:
        view.check()
        assert view.page.locator("section.answer li").first.is_visible()
        assert width < 1280 or view.bottom("section.answer") <= SCREEN, "the answer is not on the first screen"
        assert view.page.evaluate("() => [...document.images].filter(i => !i.alt || !i.naturalWidth).length") == 0
        ink, paper = view.page.evaluate(
            "() => [getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]"
        )
        assert ink != paper
        links = view.page.evaluate("() => [...document.links].map(a => a.getAttribute('href'))")
        missing = [to for to in links if not to.startswith(("http", "#")) and not (pages[name].parent / to).exists()]
        assert missing == [] and sum("index.html" in to for to in links) >= 1


@pytest.mark.parametrize("width", [1280, 390])
def test_the_index_of_all_runs(chromium, runs, pages, width):
    with opened(chromium, runs / "index.html", width=width) as view:
        view.check()
        cards = view.page.locator("article")
        assert cards.count() == len(NAMES) and "complete" in cards.first.inner_text()
        for name in NAMES:
            assert view.page.locator(f"[id='{name}'] h3 a").is_visible()
