"""Names in a trace reach pages as text: nothing of them runs, nothing is fetched, all of it can be read."""

from pathlib import Path

import bs4
import pytest
from chromium import opened
from forked_kernels import kernel_in
from hostile_names import MARK, NAMES
from hostile_page import executed, faults, shown

from gdn_lab.names import readable


@pytest.fixture(scope="module")
def pages(tmp_path_factory, folder_of_kernels):
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder, kernel = tmp_path_factory.mktemp("hostile"), kernel_in(folder_of_kernels, monkeypatch)
        return executed(folder, monkeypatch, kernel), shown(folder)


def test_pages_have_no_tag_or_link_of_a_name(pages):
    assert [faults(page) for page in pages] == [[], []]


def test_every_name_is_text(pages):
    notebook, all_places = (bs4.BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages)
    cells = {cell.get_text() for cell in notebook.find_all("td")}
    by_part = [name for name in NAMES[1:] if _spelt(name) not in cells]
    assert not by_part
    cells = [cell.get_text() for cell in all_places.find_all(["td", "th", "caption"])]
    assert all(cells.count(readable(name)) >= 5 for name in NAMES)
    said = [point.get_text() for point in all_places.find_all("li")]
    assert said[: len(NAMES)] == [f"before {_without_ticks(readable(name))} after" for name in NAMES]


def _spelt(name: str) -> str:
    """A name as it comes out of a SQLite file: UTF-8, and ended by a NUL."""
    return readable(name.encode("utf-8", "replace").decode().split("\0")[0])


def _without_ticks(name: str) -> str:
    """What stands between two backticks is shown as code, without them."""
    parts = name.split("`")
    return name if len(parts) < 3 else "".join(parts) if len(parts) % 2 else name


@pytest.mark.browser
def test_in_a_browser_nothing_runs_and_nothing_is_fetched(pages, chromium):
    for page, spelt in zip(pages, (_spelt, readable), strict=True):
        with opened(chromium, page) as view:
            view.page.mouse.move(200, 200)
            view.page.wait_for_timeout(500)
            assert view.page.evaluate(f"window.{MARK}") is None
            assert [Path(frame.url).name for frame in view.page.frames] == [page.name]
            view.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")  # long tables
            text = " ".join(view.page.inner_text("body").split())
            assert [name for name in NAMES if " ".join(spelt(name).split()) not in text] == []
            assert view.messages == [] and view.requests == []
