"""The study of all-reduces: parameters, the sweep with gloo, what rows say, the figure, the notebook."""

import nbformat
import papermill
import pytest
from on_gpu import HAS_GPU

from gdn_lab.bench.results import Run, load
from gdn_lab.cli import kept_answer, notebook
from gdn_lab.engine.communicator_choice import ADD_NORM, DEFAULT, SUM, chosen
from gdn_lab.engine.communicator_variants import VARIANTS, variants_on
from gdn_lab.report.style import OTHER_COLOURS, title_of
from gdn_lab.studies import study
from gdn_lab.studies.all_reduce import analysis, figures, sweep
from gdn_lab.studies.parameters import ParameterError

# µs at 1, 64, 256 rows of 4,096
TIMES = {
    "nccl": (12.0, 15.0, 33.0),
    "torch-two-shot": (6.5, 8.0, 13.0),
    "one-shot": (4.0, 6.0, 14.0),
    "two-shot": (5.0, 7.0, 11.0),
}
on_a_cpu = pytest.mark.skipif(HAS_GPU, reason="on a GPU the study measures on GPUs")


def made(times=TIMES, ranks=2, **fields):
    """Rows as the sweep makes them on GPUs; residual and norm add 3 µs where they are a kernel of their own."""
    rows = []
    for variant, medians in times.items():
        for operation in (SUM, ADD_NORM):
            for count, us in zip((1, 64, 256), medians, strict=True):
                us += 0 if operation == SUM else 1 if VARIANTS[variant].fused else 3
                row = {"status": "fact", "phase": "all_reduce", "backend": "communicator", "device": "cuda"}
                row |= {"variant": variant, "ranks": ranks, "operation": operation, "rows": count, "hidden": 4096}
                row |= {"bytes": 8192 * count, "median_us": us, "p20_us": us - 0.1, "p80_us": us + 0.2, "count": 50}
                row |= {"calls_per_sample": 40, "timer": "cuda_graph_replay", "error_of_allowed": 0.5}
                rows.append(row | fields)
    return rows


def test_each_variant_has_a_look_of_its_own():
    looks = {(variant.colour, variant.marker) for variant in VARIANTS.values()}
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == len(VARIANTS)
    assert variants_on("cpu") == ["gloo"] and "gloo" not in variants_on("cuda")
    assert {variant.colour for variant in VARIANTS.values()} <= {*OTHER_COLOURS, "#5F5F5F", "#5A5AA8"}


def test_the_fastest_is_chosen_by_size_and_operation():
    choice = chosen(made(), 2, "made up")
    assert [choice.variant(SUM, nbytes) for nbytes in (1, 8192, 8193, 2 << 20)] == ["one-shot"] * 3 + ["two-shot"]
    assert choice.variant(ADD_NORM, 2 << 20) == "two-shot"
    assert choice.variant(SUM, (2 << 20) + 1) == "nccl", "larger than measured"
    with pytest.raises(ValueError, match="rows: no all_reduce was timed on 4 ranks, so none can be chosen"):
        chosen(made(), 4, "made up")
    assert DEFAULT.variant(SUM, 2 << 20) == "torch-two-shot" and DEFAULT.variant(ADD_NORM, 64 << 20) == "nccl"


def test_a_wrong_variant_is_never_chosen():
    rows = [row for row in made() if row["variant"] != "two-shot"]
    rows += [{"operation": SUM, "ranks": 2, "variant": "two-shot", "bytes": 8192, "status": "refused", "reason": "w"}]
    assert chosen(rows, 2, "made up").variant(SUM, 8192) == "one-shot"


def test_answers_and_table():
    answers = analysis.answers(made() + made(ranks=4, times={"nccl": (1.0, 2.0, 3.0)}))
    assert answers[0] == (
        "2 GPUs, 2.1 MB: the fastest all-reduce is two-shot, 11.0 µs (torch-two-shot 13.0 µs, one-shot 14.0 µs, nccl "
        "33.0 µs)."
    )
    assert answers[2] == (
        "2 GPUs, 2.1 MB: residual and norm add 9% to the fastest all-reduce; a layer's two take 24.0 µs."
    )
    assert answers[3] == "2 GPUs, with residual and norm: one-shot is fastest up to 524 kB, two-shot from 2.1 MB."
    assert answers[-1] == "4 GPUs, with residual and norm: nccl is fastest at every size, 8.19 kB to 2.1 MB."
    assert any(sentence.startswith("4 GPUs, 2.1 MB: the fastest all-reduce is nccl, 3.0 µs") for sentence in answers)
    table = analysis.time_table(made())
    assert list(table.fastest) == ["one-shot", "one-shot", "two-shot"] * 2
    assert list(table["torch-two-shot"]) == [6.5, 8, 13, 9.5, 11, 16]
    assert "No all-reduce was timed" in analysis.answers([])[0]


def test_which_is_fastest_at_which_size():
    def said(times, operation=SUM):
        return analysis.by_size(made(times), 2, operation)

    assert said(TIMES) == "one-shot is fastest up to 524 kB, two-shot from 2.1 MB"
    assert said({"nccl": (1, 3, 1), "one-shot": (2, 2, 2)}) == (
        "nccl is fastest up to 8.19 kB, one-shot at 524 kB, nccl from 2.1 MB"
    )
    one = [row for row in made() if row["rows"] == 64]
    assert analysis.by_size(one, 2) == "one-shot is fastest at 524 kB"
    alone = [row for row in made() if row["operation"] == SUM]
    assert analysis.answers(alone)[1] == (
        "2 GPUs, the all-reduce alone: one-shot is fastest up to 524 kB, two-shot from 2.1 MB."
    )


def test_a_norm_kernel_within_the_spread_is_not_resolved():
    assert analysis.unresolved_norm(made()) == [], "3 µs and a spread of 0.3"
    wide = [row | ({"p80_us": row["median_us"] + 5} if row["variant"] == "nccl" else {}) for row in made()]
    assert analysis.unresolved_norm(wide) == [
        "2 GPUs: at 3 of 3 sizes the times do not resolve the norm kernel after nccl, as the 20th to 80th percentiles "
        "with and without it overlap; after torch-two-shot the same kernel adds 3.0 µs."
    ]
    assert analysis.unresolved_norm([row | {"device": "cpu"} for row in wide]) == []


def test_what_was_checked_is_named():
    refused = {"status": "refused", "reason": "it hangs", "variant": "nccl", "ranks": 2}
    assert analysis.checked([refused]) == analysis.not_timed([refused])
    assert analysis.checked([*made({"one-shot": (1, 2, 3)}), *made({"two-shot": (1, 2, 3)}), refused]) == [
        "nccl on 2 ranks, 1 size not timed: it hangs",
        "one-shot and two-shot were right at all sizes checked here.",
    ]


def test_the_figure_marks_the_fastest_and_names_gpu_and_ranks():
    figure = figures.times(made(), 2, {"recorded_on": "h200"})
    assert title_of(figure) == (
        "two-shot is fastest at 2.1 MB with residual and norm: 12.0 µs, nccl 36.0 µs (recorded: H200, 2 GPUs)"
    )
    assert all(axes.get_xlabel().endswith("(labels: times at 2.1 MB)") for axes in figure.axes)
    rings = figure.axes[0].lines[-1]
    assert list(rings.get_ydata()) == [4.0, 6.0, 11.0]
    assert figures.closing(made() + made(ranks=4), {}) is not None and figures.closing(made(device="cpu")) is None
    assert "No all-reduce on 8 GPUs was timed" in title_of(figures.times(made(), 8))


def test_what_is_recorded_of_a_gpu_is_shown_together(tmp_path):
    for ranks in (2, 4):
        folder = tmp_path / f"measured/h200/08_all_reduce{'' if ranks == 2 else '_4'}"
        folder.mkdir(parents=True)
        with Run.create("08_all_reduce", {}, folder=folder) as run:
            for row in made(ranks=ranks):
                run.append(row)
    run, rows = analysis.recorded_rows("h200", tmp_path)
    assert run["recorded_on"] == "h200" and analysis.ranks_of(rows) == [2, 4]
    assert analysis.recorded_rows("h100", tmp_path) == ({}, [])
    assert analysis.recorded_choice("h200", 4, tmp_path) == chosen(made(ranks=4), 4, "recorded on 4 H200")
    assert analysis.choice_on("NVIDIA H200", 4, tmp_path) == analysis.recorded_choice("h200", 4, tmp_path)
    assert analysis.choice_on("NVIDIA H100 80GB HBM3", 4, tmp_path) is analysis.choice_on("", 2, tmp_path) is DEFAULT
    assert analysis.recorded_choice("h200", 8, tmp_path) is analysis.recorded_choice("h100", 2, tmp_path) is DEFAULT


def test_the_section_of_a_recorded_run_has_a_figure_for_each_number_of_gpus():
    refused = {"status": "refused", "reason": "it hangs", "variant": "nccl", "ranks": 4, "device": "cuda"}
    section = study("08").section({"recorded_on": "h200"}, [*made(), *made(ranks=4), refused])
    assert set(section.figures) == {"all_reduce_2", "all_reduce_4"}
    assert all(sentence.endswith(".") for sentence in section.sentences)
    assert section.not_timed == ["nccl on 4 ranks, 1 size not timed: it hangs"]
    assert "slowest rank of each, median of 50 samples" in section.conditions


@on_a_cpu
def test_parameters():
    parse = study("08").parameters.parse
    p = parse({})
    assert (p.ranks, p.rows, p.hidden, p.variants, p.samples, p.checks_only) == ([2], [1, 4], [256], ["gloo"], 1, True)
    assert parse({"ranks": 4}).ranks == [4] and not parse({"samples": 5}).checks_only
    for given, sentence in (
        ({"ranks": "3"}, "ranks: expected auto or powers of 2 such as 2,4, each rank on a GPU of its own, got 3"),
        ({"hidden": "100"}, "hidden: expected multiples of 128"),
        ({"variants": "nclc"}, r"variants: 'nclc' is unknown \(did you mean 'nccl'\?\)"),
        ({"variants": "nccl"}, "variants: 'nccl' needs cuda; here are gloo"),
    ):
        with pytest.raises(ParameterError, match=sentence):
            parse(given)


def test_a_sweep_checks_every_point_and_refuses_what_takes_too_long(tmp_path, forked_python):
    options = {"device": "cpu", "samples": 1, "calls": 1}
    with Run.create("08_all_reduce", {}, root=tmp_path) as run:
        rows = sweep.all_reduce_sweep(["gloo"], [2], [1, 3], [128], **options, run=run)
        slow = options | {"samples": 50, "calls": 50}  # far from done when it is looked at
        late = sweep.all_reduce_sweep(["gloo"], [2], [512], [1024], **slow, timeout_s=0.001, run=run)
    assert load(run.folder)[1] == rows + late
    points = {(row["operation"], row["rows"]) for row in rows}
    assert points == {(operation, count) for operation in (SUM, ADD_NORM) for count in (1, 3)}
    assert all(row["status"] == "fact" and 0 < row["error_of_allowed"] <= 1 for row in rows)
    assert {row["timer"] for row in rows} == {"host_clock"}
    assert [row["status"] for row in late] == ["refused"] * 2
    assert analysis.not_timed(late)[0].startswith(
        "gloo on 2 ranks, 2 sizes not timed: ranks 0, 1 of 2 had not ended after 0.001 s and were stopped"
    )
    assert analysis.answers(rows) == ["4 of 4 sums over 2 processes were right; times of a CPU rank nothing."]


@on_a_cpu
def test_the_notebook_checks_two_processes(tmp_path, monkeypatch, forked_kernel):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv(notebook.RUN_FOLDER, str(folder))
    path, given = notebook.ROOT / "notebooks/08_all_reduce.ipynb", {"ranks": 2, "rows": "1", "hidden": "128"}
    papermill.execute_notebook(
        path, tmp_path / "out.ipynb", given, kernel_name=forked_kernel, cwd=notebook.ROOT, progress_bar=False
    )
    run, rows = load(folder)
    assert run["status"] == "complete" and len(rows) == 2
    book = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("data", output).get("text/plain", output.get("text", "")) for output in outputs)
    assert "CPU times: " in text and "gloo was right at all sizes checked here." in text
    titles = [output.data["text/plain"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(titles) == len(set(titles)) == len(list(folder.glob("*.png"))) > 0, "each figure once"
    assert kept_answer.read(folder)["alt"] in titles and (folder / kept_answer.THUMBNAIL).exists()
