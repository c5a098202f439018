"""docs/site: every page is listed, small, whole in itself, and says what it is; figures as WebP; pages one by one."""

import base64
import io
import json
from pathlib import Path

import bs4
import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from gdn_lab.cli import kept_answer, site, site_command
from gdn_lab.cli.errors import BatchError
from gdn_lab.cli.main import main
from gdn_lab.cli.site_command import SITE
from gdn_lab.cli.small_figures import webp, with_small_figures

GPUS = sorted(path.parent.name for path in SITE.glob(f"*/{site.CARDS}"))
PAGES = sorted(SITE.rglob("*.html"))
FETCHING = ("script", "link", "iframe", "object", "embed", "video", "audio", "source", "base")


def soup(path: Path) -> bs4.BeautifulSoup:
    return bs4.BeautifulSoup(path.read_text(encoding="utf-8"), features="html.parser")


def test_the_indices_list_every_page():
    assert GPUS, "docs/site has no GPU"
    listed = {link["href"] for link in soup(SITE / "index.html").find_all("a")}
    for gpu in GPUS:
        pages = {path.stem for path in (SITE / gpu).glob("*.html")} - {"index"}
        assert pages == set(site.read_cards(SITE / gpu))
        assert {f"{gpu}/index.html", *(f"{gpu}/{name}.html" for name in pages)} <= listed
        assert {f"{name}.html" for name in pages} <= {
            link["href"] for link in soup(SITE / gpu / "index.html").find_all("a")
        }
    assert {path.name for path in SITE.iterdir()} == {"index.html", *GPUS}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_page_fetches_nothing_and_its_links_lead_somewhere(path):
    page = soup(path)
    assert not page.find_all(FETCHING)
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in page.find_all("img"))
    assert "url(" not in path.read_text(encoding="utf-8").replace("url(#", ""), "a style that loads something"
    for link in page.find_all("a"):
        target = link.get("href", "#")
        assert target.startswith(("#", "https://", "http://")) or (path.parent / target).is_file(), target


@pytest.mark.parametrize("gpu", GPUS)
def test_the_pages_of_a_gpu_are_small_and_say_where_they_were_executed(gpu):
    assert sum(path.stat().st_size for path in (SITE / gpu).iterdir()) <= site.MOST_BYTES
    for name, card in site.read_cards(SITE / gpu).items():
        text = soup(SITE / gpu / f"{name}.html").get_text()
        assert site.what_it_is(card, gpu) in text and card.machine in text
        assert "commit unknown" not in card.machine


def executed(place: Path, name: str, gpu: str | None = None, answer: str = "So fast.", of: str = "H100") -> Path:
    """What a run leaves: notebook with a figure, run.json, answer.json."""
    place.mkdir(parents=True)
    png = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(png, format="png")
    about = {"alt": "red", "width": 2}
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "image/svg+xml": "<svg/>"}
    output = nbformat.v4.new_output("display_data", data, metadata={"image/png": about, "image/svg+xml": about})
    cells = [nbformat.v4.new_markdown_cell("# How fast?"), nbformat.v4.new_code_cell("show()", outputs=[output])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), place / f"{name}.ipynb")
    facts = {"gpu_name": gpu, "git_commit": "c0ffee" * 6, "torch": "2.11.0"}
    info = {"notebook": name, "environment": facts, "start_utc": "2026-11-28T08:00:00Z", "parameters": {}}
    (place / "run.json").write_text(json.dumps(info))
    kept_answer.write(place, sentences=[answer], figure=None, alt="", source="recorded", device=of)
    return place


def test_pages_are_made_one_by_one_and_others_stay(tmp_path):
    first = executed(tmp_path / "a", "02_decode_kernels")
    site.write_site(tmp_path / "site", "h100", {"02_decode_kernels": first})
    second = executed(tmp_path / "b", "03_decode_step", "NVIDIA H100 80GB HBM3", answer="A step takes long.")
    site.write_site(tmp_path / "site", "h100", {"03_decode_step": second})
    third = executed(tmp_path / "c", "03_decode_step", "NVIDIA H200", of="H200, qwen3.5-27b, tp 1")
    site.write_site(tmp_path / "site", "h200", {"03_decode_step": third})
    cards = site.read_cards(tmp_path / "site" / "h100")
    assert [card.here for card in cards.values()] == [False, True]
    index = soup(tmp_path / "site" / "index.html")
    assert [[cell.get_text() for cell in row.find_all("td")[2:]] for row in index.find_all("tr")[1:]] == [
        ["recorded rows", ""],
        ["executed there", "executed there"],
    ]
    of_gpu = (tmp_path / "site" / "h100" / "index.html").read_text()
    assert "So fast." in of_gpu and "A step takes long." in of_gpu and "commit c0ffeec0ff" in of_gpu
    page = soup(tmp_path / "site" / "h100" / "03_decode_step.html")
    assert "Executed on this H100 by make record" in page.get_text() and "NVIDIA H100 80GB HBM3" in page.get_text()
    assert page.find("a", string="All pages")["href"] == "index.html"
    assert page.find("a", string="← 02_decode_kernels")["href"] == "02_decode_kernels.html"
    kept = soup(tmp_path / "site" / "h100" / "02_decode_kernels.html")
    assert len(kept.find_all("a", string="03_decode_step →")) == 2, "a kept page leads to the one that came later"


def test_a_second_record_of_a_notebook_is_named_on_its_card(tmp_path):
    first, second = (executed(tmp_path / folder, "02_decode_kernels") for folder in "ab")
    site.write_site(tmp_path / "site", "h100", {"02_decode_kernels": first, "02_decode_float32": second})
    cards = site.read_cards(tmp_path / "site" / "h100")
    assert cards["02_decode_float32"].question == f"{cards['02_decode_kernels'].question} (02_decode_float32)"
    page = soup(tmp_path / "site" / "h100" / "02_decode_float32.html")
    shown = [link.get_text() for link in page.find("nav", class_="pages").find_all("a")]
    assert "02_decode_kernels →" in shown and not any("02_decode_float32" in text for text in shown)


def test_a_figure_is_a_webp_of_the_same_pixels(tmp_path):
    place = executed(tmp_path / "a", "02_decode_kernels")
    book = with_small_figures(nbformat.read(place / "02_decode_kernels.ipynb", as_version=4))
    (output,) = book.cells[1].outputs
    assert set(output.data) == {"image/webp"} and output.metadata["image/webp"]["alt"] == "red"
    with Image.open(io.BytesIO(base64.b64decode(output.data["image/webp"]))) as image:
        assert image.size == (4, 2) and image.convert("RGB").getpixel((3, 1)) == (255, 0, 0)


def test_a_figure_of_thousands_of_shades_looks_the_same():
    figure, png = Figure(dpi=150), io.BytesIO()
    ax = figure.subplots()
    for place in range(12):
        ax.plot([0, 1, 2, 3], [place, 12 - place, place, 12 - place / 3], alpha=0.7, label=f"variant {place}")
    ax.legend()
    figure.savefig(png)
    small = io.BytesIO(base64.b64decode(webp(base64.b64encode(png.getvalue()))))
    with Image.open(png) as image, Image.open(small) as few:
        before, after = (np.asarray(one.convert("RGB")).astype(int) for one in (image, few))
    shades = [len(np.unique(one.reshape(-1, 3), axis=0)) for one in (before, after)]
    assert shades[0] > 1000 and shades[1] <= 256
    apart = np.abs(before - after).max(axis=-1)  # of 255
    assert (apart > 32).mean() < 0.001 and apart.max() < 80


def test_kept_pages_count_towards_the_limit(tmp_path, monkeypatch):
    site.write_site(tmp_path / "site", "h100", {"02_decode_kernels": executed(tmp_path / "a", "02_decode_kernels")})
    one = (tmp_path / "site" / "h100" / "02_decode_kernels.html").stat().st_size
    monkeypatch.setattr(site, "MOST_BYTES", one + 100)
    with pytest.raises(BatchError, match="the pages of h100 take .* make the figures of 03_decode_step smaller"):
        site.write_site(tmp_path / "site", "h100", {"03_decode_step": executed(tmp_path / "b", "03_decode_step")})
    assert set(site.read_cards(tmp_path / "site" / "h100")) == {"02_decode_kernels"}, "nothing is half written"


def test_what_another_gpu_recorded_is_no_page_of_this_one(tmp_path):
    """Notebook 04 executed on an H200 shows the trace of an H100 where it has none of its own."""
    place = executed(tmp_path / "a", "04_nsight_systems", "NVIDIA H200", of="NVIDIA H100 80GB HBM3 · by Nsight Systems")
    assert not site.write_site(tmp_path / "site", "h200", {"04_nsight_systems": place})
    assert site.write_site(tmp_path / "site", "h100", {"04_nsight_systems": place})


def test_site_leaves_pages_alone_that_were_executed_on_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(site_command, "SITE", tmp_path / "site")
    before = {study.notebook for study in site_command.to_execute("h200")}
    assert {"02_decode_kernels", "07_advice"} <= before
    place = executed(tmp_path / "a", "02_decode_kernels", "NVIDIA H200", of="H200")
    site.write_site(tmp_path / "site", "h200", {"02_decode_kernels": place})
    assert {study.notebook for study in site_command.to_execute("h200")} == before - {"02_decode_kernels"}


def test_the_index_of_a_gpu_lists_its_records_with_their_commits(tmp_path, monkeypatch):
    for record, commit in (("02_decode_kernels", "c0ffee" * 6), ("05_verify", "facade" * 6)):
        place = tmp_path / "measured" / "h200" / record
        place.mkdir(parents=True)
        facts = {"git_commit": commit, "torch": "2.11.0", "flashinfer": "0.7.2"}
        (place / "run.json").write_text(json.dumps({"environment": facts, "start_utc": "2026-11-28T08:00:00Z"}))
    books = {"05_verify": executed(tmp_path / "a", "05_verify", of="H200")}
    site.write_site(tmp_path / "site", "h200", books, tmp_path / "measured")
    index = soup(tmp_path / "site" / "h200" / "index.html")
    assert "The 2 records are of 2 commits: each belongs to the one in its run.json." in index.get_text()
    lines = [[cell.get_text() for cell in line.find_all("td")] for line in index.find_all("tr")[1:]]
    assert lines[1][:3] == ["05_verify", "facadefaca", "2026-11-28"] and lines[0][1] == "c0ffeec0ff"
    assert lines[0][3:] == ["unknown: git does not have the commit", "2.11.0", "", "0.7.2", ""]
    assert "Kernels changed since" not in index.get_text()
    monkeypatch.setattr(
        site, "changed_kernels", lambda info, folder: "triton" if folder.name == "05_verify" else "none"
    )
    assert site.write_indices(tmp_path / "site", tmp_path / "measured")
    index = soup(tmp_path / "site" / "h200" / "index.html").get_text()
    assert index.count("Kernels changed since the record: triton.") == 1
    assert not site.write_indices(tmp_path / "site", tmp_path / "measured"), "nothing has changed"


def test_site_knows_the_recorded_gpus(capsys):
    assert main(["site", "b300"]) == 2
    assert "choose from h100, h200" in capsys.readouterr().err


def test_site_is_for_machines_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert main(["site"]) == 2 and "gdn-lab record makes" in capsys.readouterr().err


def test_log_lines_of_libraries_stay_out_of_a_page():
    log = "2026-11-29 00:54:26,729 - INFO - jit.py:177 - flashinfer.jit: Persisted to /home/someone/.cache/a.o\n"
    warning = "2026-11-29 00:54:26,729 - WARNING - jit.py:9 - slow\n"
    torch = "torch/profiler.py:224: UserWarning: cleared\n"
    texts = (log + "12 points\n" + warning + f"/home/someone/lib/site-packages/{torch}", log)
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in texts]
    book = site.without_logs(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)]))
    assert [output.text for output in book.cells[0].outputs] == ["12 points\n" + warning + torch]
