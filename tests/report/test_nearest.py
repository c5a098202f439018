"""What a page was asked for against what is recorded: the nearest rows, and that no answer is silently about others."""

import re
from types import SimpleNamespace

import pytest

from gdn_lab.bench import results
from gdn_lab.cli import notebook
from gdn_lab.models import MODELS
from gdn_lab.report.nearest import Asked, Setting, gpu_name, led, nearest_record
from gdn_lab.report.recorded import DATA
from gdn_lab.report.timed import Timed
from gdn_lab.studies import study
from gdn_lab.studies.decode_kernels import analysis as decode
from gdn_lab.studies.decode_kernels import figures as decode_figures
from gdn_lab.studies.decode_step import figures as step_figures
from gdn_lab.studies.decode_step import sentences as step
from gdn_lab.studies.decode_step.analysis import StepRows
from gdn_lab.studies.pool_layouts import analysis as pool
from gdn_lab.studies.pool_layouts import figures as pool_figures
from gdn_lab.studies.prefill import analysis as prefill
from gdn_lab.studies.prefill import figures as prefill_figures
from gdn_lab.studies.verify import analysis as verify
from gdn_lab.studies.verify import figures as verify_figures

LARGE, SMALL, NEXT = "qwen3.5-397b-a17b", "qwen3.5-35b-a3b", "qwen3-next-80b-a3b"


def nearest(notebook_name, *settings, gpu="h100", **asked):
    return nearest_record(Asked(tuple(Setting.of(*each) for each in settings), **asked), gpu, notebook_name)


# ---- which rows


def test_what_was_asked_comes_without_a_word():
    match = nearest("02_decode_kernels", (LARGE, 1), batches=(8, 64))
    assert not match.differences and "lead" not in match.run and match.run["recorded_on"] == "h100"
    assert {row["batch"] for row in match.rows if row["status"] == "ok"} == {8, 64}


def test_every_run_of_a_notebook_counts():
    match = nearest("02_decode_kernels", (LARGE, 1, "float32"))
    assert match.folder == "02_decode_float32" and not match.differences
    assert nearest("02_decode_kernels", (LARGE, 1)).folder == "02_decode_kernels", "among equals"


def test_a_batch_that_is_not_recorded_has_its_neighbours():
    match = nearest("02_decode_kernels", (LARGE, 1), batches=(96,))
    assert match.differences == {"batches": ("B = 96", "B = 64 and 128")}
    assert {row["batch"] for row in match.rows if "batch" in row} == {64, 128}


def test_heads_count_before_the_dtype_and_the_model():
    same = nearest("06_prefill", (LARGE, 8), (LARGE, 4))
    assert {setting.heads for setting in same.shown} == {(2, 8)}, "of both, nearest to HK 4, HV 16 too"
    other = nearest("02_decode_kernels", ("qwen3.5-122b-a10b", 1))
    assert other.run["lead"] == (
        "You asked for qwen3.5-122b-a10b at tp 1 (HK 16, HV 64); recorded on an H100 is qwen3.5-397b-a17b at tp 1 "
        "(HK 16, HV 64), which has the same heads"
    )


def test_a_step_of_the_heatmap_is_a_record():
    match = nearest("03_decode_step", (SMALL, 4), batches=(64,), precision="fp8", whole_step=True)
    assert not match.differences
    rows = StepRows(match.rows, match.run)
    assert {(row["model"], row["tp"], row["batch"]) for row in rows.whole.values()} == {(SMALL, 4, 64)}
    assert len({row["model"] for row in rows.heatmap}) == 3
    far = nearest("03_decode_step", (NEXT, 4), batches=(64,), precision="bf16", whole_step=True)
    assert far.run["lead"] == (
        f"You asked for {NEXT} at tp 4 (HK 4, HV 8), bf16 weights; recorded on an H100 is {SMALL} at tp 4 "
        "(HK 4, HV 8), fp8 weights"
    )


def test_tokens_and_workloads_are_matched():
    match = nearest("05_verify", (LARGE, 1), tokens=(4,))
    assert {row["tokens"] for row in match.rows if row["phase"] == "verify" and "tokens" in row} == {4}
    assert any(row["phase"] == "decode" for row in match.rows) and not match.differences
    match = nearest("06_prefill", (LARGE, 1), workloads=((8, 1024),))
    assert {(row["batch"], row["length"]) for row in match.rows if row["status"] == "ok"} == {(8, 1024)}
    assert {row["tp"] for row in match.rows} == {1}


def test_a_run_folder_is_a_record_of_its_notebook():
    folder = DATA / "measured" / "h200" / "02_decode_kernels"
    match = nearest("02_decode_kernels", (LARGE, 1), gpu=str(folder))
    assert match.run["recorded_on"] == "H200" and match.rows == results.load(folder)[1]
    with pytest.raises(ValueError, match="is a run of 02_decode_kernels, not of 05_verify"):
        nearest("05_verify", (LARGE, 1), gpu=str(folder))
    assert nearest("01_pool_layouts", (LARGE, 1), gpu="h200") is None, "it is never recorded"


def test_the_first_sentence_is_led():
    assert led({"lead": "You asked for A"}, ["B.", "C."]) == ["You asked for A: B.", "C."]
    assert led({}, ["B."]) == ["B."] and led(None, []) == [] == led({"lead": "A"}, [])


# ---- every page that shows recorded rows


def timed(run, rows, **options):
    return Timed(rows, run, **options)


def page_01(p, run, rows):
    found = timed(run, rows)
    figures = [decode_figures.gather_scatter(found), pool_figures.layout_cost(found)]
    return pool.answers(found, p.model, p.tp), figures


def page_02(p, run, rows):
    found = timed(run, rows)
    names = ("decode_time", "launch_gap", "gather_scatter", "against_published")
    return decode.answers(found), [getattr(decode_figures, name)(found) for name in names]


def page_03(p, run, rows):
    found = StepRows(rows, run)
    return step.answers(found), [getattr(step_figures, n)(found) for n in ("parts", "against_published", "waterfall")]


def page_05(p, run, rows):
    found = timed(run, rows)
    figures = [verify_figures.verify_time(found), verify_figures.speculative_gain(found)]
    return verify.answers(found, p.model, p.tp, max(p.tokens), p.dtype), figures


def page_06(p, run, rows):
    found = timed(run, rows, phase="prefill", indexing=None)
    figures = [prefill_figures.tokens_per_second(found), prefill_figures.native_against_detour(found)]
    return prefill.answers(found), figures


PAGES = {"01": page_01, "02": page_02, "03": page_03, "05": page_05, "06": page_06}
DECODE = {"batches": "96"}
ASKED = [
    *[(number, {"model": NEXT, "tp": "4"}) for number in PAGES],
    *[(number, {"model": SMALL, "tp": "2"}) for number in PAGES],
    *[(number, {"dtype": "float32"}) for number in PAGES if number != "03"],
    ("01", DECODE),
    ("02", DECODE),
    ("02", {"dtype": "float16", "model": "qwen3.5-27b", "tp": "2"}),
    ("03", {"batch": "96"}),
    ("05", {"batch": "32"}),
    ("05", {"tokens": "3", "model": NEXT, "dtype": "float32", "tp": "4"}),
    ("06", {"workloads": "4x300"}),
    ("06", {"second_tp": "0", "tp": "16"}),
]


def page(number, words, capsys):
    """(parameters, match, sentences, titles of figures) of a page whose answer is from recorded rows."""
    each = study(number)
    p = each.parameters.parse(words)
    run = SimpleNamespace(p=p, info={"notebook": each.notebook, "parameters": words_of(each, words)})
    info, rows = notebook.recorded(run, "02_decode_kernels" if number == "01" else None)
    printed = capsys.readouterr().out
    assert bool(printed) == ("lead" in info)
    sentences, figures = PAGES[number](p, info, rows)
    return p, info, rows, sentences, [" ".join(figure.get_suptitle().split()) for figure in figures]


def words_of(each, words):
    return {name: field.default for name, field in each.parameters.model_fields.items()} | words


@pytest.mark.parametrize(("number", "words"), ASKED, ids=str)
def test_no_page_is_silently_about_something_else(number, words, capsys):
    """The first sentence says what was asked and what is shown; titles name model, tp and dtype of their rows."""
    p, info, rows, sentences, titles = page(number, words, capsys)
    ok = [row for row in rows if row["status"] == "ok" and row.get("sweep") != "share"]
    shown = {(row["model"], row["tp"], row["state_dtype"]) for row in ok}
    dtype = str(getattr(p, "dtype", "torch.bfloat16")).removeprefix("torch.")
    asked = {(p.model, tp, dtype) for tp in (p.shapes if number == "06" else [p.tp])}
    first, *others = sentences
    if shown != asked:
        assert first.startswith(f"You asked for {p.model} at tp {p.tp} (HK {p.shape.num_k_heads}, "), first
    if "lead" in info:
        start, _, there = info["lead"].partition("; recorded on an H100 is ")
        assert first.startswith(info["lead"]) and first.startswith("You asked for ")
        for model, tp, state in shown:
            assert model in there and f"tp {tp} (HK " in there
            assert state == dtype or (f"{dtype} state" in start and f"{state} state" in there)
    for title in titles:
        origin = re.search(r"\(recorded: H100, (.+)\)$", title)
        assert origin or re.search("nothing|not timed|not both were measured|No ", title), title
        for model, tp, state in shown if origin else ():
            assert model in origin[1] and re.search(rf"tp .*\b{tp}\b", origin[1]), title
            assert state == "bfloat16" or f"{state} state" in origin[1], title
    for sentence in others:  # whoever else is named is what was asked, and computed
        computed = re.match("Computed for|A request of|In bfloat16|Over models|Per token, .*, another model ", sentence)
        assert computed or not any(model in sentence for model in set(MODELS) - {model for model, *_ in shown}), (
            sentence
        )


@pytest.mark.parametrize("number", PAGES)
def test_the_defaults_are_recorded(number, capsys):
    *_, info, rows, sentences, titles = page(number, {}, capsys)
    assert "lead" not in info and rows and not sentences[0].startswith("You asked")
    assert all("(recorded: H100, qwen3.5-397b-a17b, tp " in title for title in titles)


def test_the_memory_sentence_is_of_what_was_asked(capsys):
    *_, sentences, _ = page("05", {"tokens": "4", "model": NEXT, "dtype": "float32", "tp": "4"}, capsys)
    assert sentences[-1].startswith(
        f"Computed for {NEXT} at tp 4, on each GPU: storing the float32 states after each of 4 tokens takes 76.1 MB "
    ), sentences[-1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        (None, "CPU (a CPU)"),
    ],
)
def test_a_gpu_is_called_by_its_model(name, shown):
    assert gpu_name({"environment": {"gpu_name": name, "cpu": "a CPU"}}) == shown
