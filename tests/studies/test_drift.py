"""The drift study: regimes, lanes against the reference, what rows say."""

import math

import pytest
import torch

from gdn_lab import GDNShape, reference
from gdn_lab.bench.results import Run
from gdn_lab.studies import study
from gdn_lab.studies.drift import analysis, figures, lanes, regimes, sentences, sweep, tables, ways
from gdn_lab.studies.drift.regimes import RandomStream, synthetic
from gdn_lab.studies.parameters import ParameterError

SHAPE = GDNShape(1, 2, 16, 16)
PARAMETERS = study("drift").parameters


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows():
    torch.set_num_threads(1)
    points = [(regimes.TYPICAL, regimes.FULL), (regimes.HARDLY, regimes.FEW)]
    return sweep.drift_sweep(points, shape=SHAPE, steps=20, rows=1, device="cpu")


def stream(gates=regimes.TYPICAL, keys=regimes.FULL, heads=2, rows=2):
    shape = GDNShape(1, heads, 16, 16)
    return RandomStream(synthetic(gates, heads, 0), keys, shape, rows=rows, chunk=100, device="cpu", seed=0)


# --- regimes


@pytest.mark.parametrize("gates", [regimes.TYPICAL, regimes.HARDLY, regimes.RARE])
def test_heads_decay_at_the_rates_of_their_regime(gates):
    made = stream(gates, heads=64)
    made.next()
    rate = -reference.log_decay(made.inputs.a, made.A_log, made.dt_bias).mean((0, 1))
    low, high = regimes.RATES[gates]
    assert low < rate.median() < high and rate.min() > low / 2 and rate.max() < 2 * high


def test_rare_writes_are_rare():
    made = stream(regimes.RARE, heads=64)
    made.next()
    writes = (torch.sigmoid(made.inputs.b.float()) > 0.01).float().mean()
    assert abs(writes - regimes.WRITES) < 0.005


@pytest.mark.parametrize("keys, rank", [(regimes.FULL, 16), (regimes.FEW, 2)])
def test_keys_span_what_they_should(keys, rank):
    made = stream(keys=keys)
    made.next()
    singular = torch.linalg.svdvals(made.inputs.k.float().flatten(0, 2))
    assert (singular > 0.02 * singular[0]).sum() == rank


def test_nearly_parallel_keys_are():
    made = stream(keys=regimes.PARALLEL)
    made.next()
    k = torch.nn.functional.normalize(made.inputs.k.float().flatten(0, 2), dim=-1)
    assert (k @ k[0]).min() > 0.9


def test_a_recorded_stream_repeats_and_joins_layers():
    def layer(number):
        rng = torch.Generator().manual_seed(number)
        sizes = {"q": (1, 8), "k": (1, 8), "v": (2, 4), "a": (2,), "b": (2,)}
        parts = {name: torch.randn(3, 7, *size, generator=rng).bfloat16() for name, size in sizes.items()}
        return regimes.LayerInputs(number, **parts, A_log=torch.randn(2, generator=rng), dt_bias=torch.zeros(2))

    layers = [layer(0), layer(4)]
    made = regimes.RecordedStream(layers, chunk=10, device="cpu")
    assert made.shape == GDNShape(2, 4, 8, 4) and made.rows == 3
    for start in (0, 10):
        made.next()
        for step in (0, 9):
            token = (start + step) % 7
            assert torch.equal(made.inputs.v[step, :, 2:], layers[1].v[:, token])
            assert torch.equal(made.inputs.a[step, :, :2], layers[0].a[:, token])
    assert torch.equal(made.A_log, torch.cat([each.A_log for each in layers]))


# --- lanes


def test_lanes_agree_with_the_reference_token_by_token():
    made = stream()
    exact = lanes.ReferenceLane(made, "cpu")
    lane = lanes.WayLane(ways.Way("torch/vk", torch.float32), made, "cpu", 0)
    state = torch.zeros(2, 2, 16, 16)
    made.next()
    for each in (exact, lane):
        each.next()
    for t in range(5):
        exact.step(t)
        lane.step(t)
        gates = {"A_log": made.A_log, "dt_bias": made.dt_bias}
        o, state = reference.decode(*made.inputs.at(t), **gates, state=state)
        assert torch.allclose(exact.S, state, rtol=1e-12, atol=1e-14)
        assert torch.allclose(exact.output(exact.S, t), o, rtol=1e-12, atol=1e-14)
        assert torch.allclose(lane.S, state, rtol=1e-5, atol=1e-6)


def test_beta_in_bfloat16_is_bfloat16s():
    made = stream()
    lane = lanes.WayLane(ways.Way("torch/vk", torch.float32, shortcut="beta"), made, "cpu", 0)
    made.next()
    lane.next()
    beta = torch.sigmoid(made.inputs.b.float())
    taken = torch.sigmoid(lane.inputs.b)
    assert torch.allclose(taken, beta.bfloat16().float(), rtol=1e-6) and not torch.equal(taken, beta)
    assert torch.equal(lane.dt_bias, made.dt_bias)
    rounded = lanes.WayLane(ways.Way("torch/vk", torch.float32, shortcut=ways.SHORTCUTS[-1]), made, "cpu", 0)
    assert torch.equal(rounded.dt_bias, made.dt_bias.bfloat16().float())
    assert torch.equal(rounded.A_log, made.A_log.bfloat16().float())


def test_relative_errors():
    expected = torch.ones(1, 3, 2, 2, dtype=torch.float64)
    actual = expected.clone()
    actual[0, 1], actual[0, 2] = 1.5, 3.0
    assert lanes.relative_errors(actual, expected) == (0.5, 2.0)
    actual[0, 0, 0, 0] = torch.nan
    assert lanes.relative_errors(actual, expected) == (None, None)


def test_checkpoints_and_stretches():
    assert sweep.checkpoints(20) == [1, 2, 5, 10, 20] and sweep.checkpoints(10_000)[-3:] == [2000, 5000, 10_000]
    for start, count, stops in (
        (0, 100, [1, 2, 5, 10, 20, 50, 100]),
        (0, 30, [1, 30]),
        (100, 100, [100]),
        (300, 7, [7]),
    ):
        stretches = sweep._stretches(start, count, stops)
        assert [first for first, _ in stretches] == [0, *[last for _, last in stretches[:-1]]]
        assert stretches[-1][1] == count and set(stops) <= {last for _, last in stretches}
    assert sweep._stretches(0, 100, [100]) == [(0, 50), (50, 100)], "nothing is captured before it has run"


# --- rows


def test_every_way_has_a_row_and_dtypes_rank_as_they_must(rows):
    for where in analysis.regimes(rows):
        found = analysis.precisions(rows, where)
        assert list(found) == ["float32", "bfloat16", "float16", "bfloat16, stochastic", "float16, stochastic"]
        assert all(row["steps"] == [1, 2, 5, 10, 20] and len(row["state_error"]) == 5 for row in found.values())
        errors = {kind: analysis.final(row) for kind, row in found.items()}
        assert errors["float32"] < 1e-5 < errors["float16"] < errors["bfloat16"] / 3 < 0.02
        assert set(analysis.shortcuts(rows, where)) == set(ways.SHORTCUTS)
    assert len(analysis.of_regimes(rows)) == 2 and not analysis.timed(rows)


def test_runs_of_the_same_seed_are_alike(rows):
    again = sweep.drift_sweep([(regimes.TYPICAL, regimes.FULL)], shape=SHAPE, steps=20, rows=1, device="cpu")
    assert analysis.of_ways(again) == [row for row in analysis.of_ways(rows) if row["gates"] == regimes.TYPICAL]


def test_the_time_limit_leaves_regimes_out(capsys):
    found = sweep.drift_sweep(
        [(regimes.TYPICAL, regimes.FULL)], shape=SHAPE, steps=20, rows=1, device="cpu", until=-math.inf
    )
    assert found == [] and "The time limit was reached before typical, full rank" in capsys.readouterr().out


def test_a_run_that_leaves_out_regimes_is_interrupted(tmp_path):
    points = [(regimes.TYPICAL, regimes.FULL)]
    options = {"shape": SHAPE, "steps": 2, "rows": 1, "device": "cpu"}
    for until, status in ((-math.inf, "interrupted"), (math.inf, "complete")):
        with Run.create("10_drift", {}, root=tmp_path) as run:
            sweep.drift_sweep(points, **options, until=until, run=run)
        assert run.info["status"] == status


def curve(errors, **fields):
    steps = [1, 10, 100, 1000, 2000, 5000, 10_000]
    return {"steps": steps, "state_error": errors, "output_error_of_state": errors} | fields


def test_growth_is_the_power_of_the_step():
    grows = curve([1e-4 * step**0.5 for step in (1, 10, 100, 1000, 2000, 5000, 10_000)])
    assert analysis.growth(grows) == pytest.approx(0.5) and not analysis.settles(grows)
    flat = curve([1e-3, 1e-2, 2e-2, 2e-2, 2e-2, 2e-2, 2e-2])
    assert analysis.settles(flat) and analysis.settled_after(flat) == 100
    broken = curve([1.0, None, None, None, None, None, None])
    assert analysis.final(broken) == math.inf and not analysis.settles(broken)
    assert sentences.error(analysis.final(broken)) == "not finite"


def recorded_rows():
    """Rows as of a GPU: bfloat16 is enough in one regime, stochastic float16 alone in the other; two backends."""
    ends = {
        "typical": {"float32": 1e-5, "bfloat16": 0.015, "float16": 0.002, "bfloat16 sr": 0.02, "float16 sr": 0.003},
        "rare writes": {"float32": 1e-5, "bfloat16": 0.2, "float16": 0.1, "bfloat16 sr": 0.03, "float16 sr": 0.005},
    }
    found = []
    for gates, errors in ends.items():
        case = {"gates": gates, "keys": "full rank", "status": "fact", "batch": 2}
        case |= {"num_k_heads": 16, "num_v_heads": 64, "head_k_dim": 128, "head_v_dim": 128}
        for backend, factor in (("triton", 1.0), ("flashinfer", 5.0)):
            for kind, error in errors.items():
                dtype, _, rounding = kind.partition(" ")
                if backend == "triton" or kind == "float32":
                    way = {"backend": backend, "variant": "vk", "state_dtype": dtype, "shortcut": "", "way": kind}
                    way["rounding"] = "stochastic" if rounding else "nearest"
                    found.append(curve([factor * error] * 7, **case, **way))
        found.append(case | {"steps": [1], "largest_state": [3.0], "largest_value": 5.0})
        found[-1] |= {"share_of_float16_limit": 3 / 65504, "share_below_float16_normal": 0.0}
        found[-1] |= {"half_life_p5_p50_p95": [1.0, 2.0, 3.0]}
    for kind, us in (("bfloat16", 367.0), ("float16", 368.0), ("float32", 730.0), ("bfloat16 sr", 371.0)):
        dtype, _, rounding = kind.partition(" ")
        row = {
            "way": kind,
            "backend": "triton",
            "variant": "vk",
            "state_dtype": dtype,
            "median_us": us,
            "batch": 256,
            "phase": "decode",
        }
        row |= {"rounding": "stochastic" if rounding else "nearest", "model": "qwen3.5-397b-a17b", "tp": 1}
        row |= {"median_us": us, "batch": 256, "phase": "decode"}
        found.append(row | {"status": "ok", "num_v_heads": 64})
    return found


def test_an_fp8_state_and_the_first_steps_of_float16_are_compared_with_bfloat16():
    rows = recorded_rows()
    assert sentences.fp8(rows) == [] and sentences.first_steps(rows) == []
    bf16 = [row for row in rows if row.get("way") == "bfloat16" and row["backend"] == "triton" and "steps" in row]
    errors = {"typical": 0.06, "rare writes": 0.05}
    rows += [
        row
        | {"state_dtype": "float8_e4m3fn", "rounding": "stochastic", "way": "fp8"}
        | curve([errors[row["gates"]]] * 7)
        for row in bf16
    ]
    (said,) = sentences.fp8(rows)
    assert "is enough in 0 of 2 regimes; its output errs most with typical / full rank, 6.0%" in said
    assert said.endswith("It errs less than bfloat16 with rare writes / full rank (5.0% against 20.0%).")
    rare = next(row for row in rows if row.get("way") == "float16" and row["gates"] == "rare writes")
    rare |= curve([0.3, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1])
    (said,) = sentences.first_steps(rows)
    assert "with rare writes / full rank to step " in said and "(30.0% against 20.0% at first)" in said


def test_sentences_say_what_the_rows_do():
    text = "\n".join(sentences.answers(recorded_rows()))
    assert (
        "A bfloat16 state is enough (error of the output at most 2% after 10,000 steps) in 1 of 2 regimes: typical / "
        in text
    )
    assert "It is not enough in 1: rare writes / full rank (20.0%; float16, stochastic has 0.50%)." in text
    assert "float16 368 µs (+0.3%), float32 730 µs (+98.9%) and bfloat16, stochastic 371 µs (+1.1%)" in text
    assert "flashinfer/vk 5.0" in text and "21,835 times below float16's limit" in text
    assert "to nearest, reduces the error of the state with rare writes / full rank (6.7 times); elsewhere" in text
    assert not any(word in text for word in ("nan", "inf ", "None"))


def test_in_short_names_what_the_worst_regime_needs_and_costs():
    rows = recorded_rows()
    assert sentences.in_short(rows)[2] == (
        "A **float32** state is needed with rare writes / full rank: float32 errs by 1.0e-05 there, bfloat16 by 20.0%, "
        "float16 by 10.0%. A call takes 730 instead of 367 µs at B = 256, 1,000 requests of qwen3.5-397b-a17b 192 "
        "instead of 98 GB. Stochastic rounding to bfloat16 errs by 3.0% and takes 1% more time than bfloat16."
    )
    timed = next(row for row in rows if row.get("rounding") == "stochastic" and "median_us" in row)
    rows.append(timed | {"way": "float16, stochastic", "state_dtype": "float16", "median_us": 400.0})
    last = sentences.in_short(rows)[2]
    assert last.startswith("A **float32** state or stochastic rounding to float16 is needed with rare writes / full")
    assert last.endswith("Stochastic rounding to float16 errs by 0.50% and takes 9% more time than bfloat16.")


def test_in_short_names_every_regime_that_float16_is_not_enough_for_and_the_worst_head():
    rows = recorded_rows()
    for row in list(rows):
        if row.get("gates") == "rare writes" and "steps" in row and "state_error" in row:
            rows.append(row | {"keys": "few dimensions"} | curve([error / 2 for error in row["state_error"]]))
        if row.get("way") == "bfloat16" and row.get("gates") == "typical":
            row["output_error_of_state_worst"] = [0.1] * 7
    first, _, last = sentences.in_short(rows)
    assert first.endswith("over requests and heads is at most 2%, that of the worst head at most 10.0%.")
    assert "rare writes / full rank and rare writes / few dimensions: float32 errs by 5.0e-06 to 1.0e-05 there" in last
    assert "bfloat16 by 10.0% to 20.0%, float16 by 5.0% to 10.0%." in last
    cut_off = [row for row in rows if (row.get("way"), row.get("keys")) != ("bfloat16 sr", "few dimensions")]
    assert "Stochastic rounding" not in sentences.in_short(cut_off)[2], "it is not known of each of these regimes"
    typical = [row for row in rows if row.get("gates") != "rare writes"]
    assert "needed nowhere, not with typical / full rank, the worst regime: float32" in sentences.in_short(typical)[2]


def test_fast_exponentials_are_a_way_of_a_gpu(monkeypatch):
    from gdn_lab.backends.cutedsl import backend

    [way] = [x for x in ways.all_ways("cuda") if x.shortcut == analysis.FAST]
    assert way.name == "cutedsl/vk float32, fast exponentials" and way.io_dtype is torch.bfloat16
    assert not any(x.shortcut == analysis.FAST for x in ways.all_ways("cpu"))
    monkeypatch.setattr(backend, "decode_with_fast_exponentials", lambda *given, **named: (given, named))
    assert way.decode(1, 2, out=3) == ((1, 2), {"out": 3})


def test_fast_exponentials_are_compared_with_exact_ones_of_the_same_kernel():
    rows = recorded_rows()
    ours = [row for row in rows if row.get("way") == "float32" and row["backend"] == "triton"]
    exact = [row | {"backend": "cutedsl", "way": "exact"} for row in ours]
    fast = [row | {"way": "fast", "shortcut": analysis.FAST} for row in exact]
    for row in fast:
        row["state_error"] = [(4 if row["gates"] == "typical" else 6) * error for error in row.get("state_error", [])]
        row["median_us"] = 729.6 if "median_us" in row else None
    fast = [{key: value for key, value in row.items() if value or key == "shortcut"} for row in fast]
    text = "\n".join(sentences.answers(rows + exact + fast))
    assert (
        "Fast exponentials in cutedsl/vk make the error of a float32 state 4.0 to 6.0 times that of exact ones; a "
        "step takes 730 µs with either." in text
    )
    assert "cutedsl/vk 1.0" in text, "multiples of triton's are of exact ones"
    assert analysis.FAST in figures._bars(rows + exact + fast, "typical / full rank")


def test_the_answer_is_short_where_steps_were_timed():
    rows = recorded_rows()
    short = sentences.answer(rows)
    assert short[:3] == [line.replace("**", "") for line in sentences.in_short(rows)]
    untimed = [{key: value for key, value in row.items() if key != "median_us"} for row in rows]
    assert sentences.answer(untimed) == sentences.answers(untimed)


def test_sentences_of_no_rows():
    nothing = ["Nothing was run, so nothing is known of the drift."]
    assert sentences.answers([]) == sentences.answer([]) == nothing


@pytest.mark.parametrize("draw", [figures.over_steps, figures.shortcuts, figures.magnitudes, figures.backends])
def test_figures_have_their_finding_as_title(draw):
    made = draw(recorded_rows(), {"recorded_on": "h100"})
    assert made.get_suptitle()
    assert draw([], {}).get_suptitle()


def test_figure_names_the_worst_regime(rows):
    title = figures.over_steps(recorded_rows(), {"recorded_on": "h100"}).get_suptitle().replace("\n", " ")
    assert title.startswith(
        "bfloat16 drifts most with rare writes / full rank: 20.0% after 10,000 steps, float16 10.0%"
    )
    assert title.endswith("(recorded: H100)")
    assert "CPU, toy size" in figures.over_steps(rows, {}).get_suptitle()


def test_tables(rows):
    assert len(tables.error_table(rows)) == 2 and len(tables.magnitude_table(rows)) == 2
    costs = tables.cost_table(recorded_rows()).set_index("way")
    assert costs.loc["float32", "GB of 1,000 slots"] == pytest.approx(
        2 * costs.loc["bfloat16", "GB of 1,000 slots"], rel=0.02
    )
    assert not tables.shortcut_table(rows, analysis.regimes(rows)[0]).empty


def test_a_way_that_was_wrong_is_left_out_and_named():
    made = recorded_rows()
    made.append(next(row for row in made if "median_us" in row and row["way"] == "bfloat16 sr") | {"status": "wrong"})
    assert "bfloat16, stochastic" not in analysis.precisions(made, "typical / full rank")
    assert sentences.not_run(made) == ["bfloat16 sr: was wrong in the check before timing, so its rows are left out"]


# --- parameters


def test_parameters():
    p = PARAMETERS.parse({})
    assert p.steps == 100 and len(p.points) == 3
    assert PARAMETERS.parse({"gates": "as trained"}).points == [("as trained", "its own")]
    with pytest.raises(ParameterError, match="gates: 'typicl' is unknown .did you mean 'typical'"):
        PARAMETERS.parse({"gates": "typicl"})
    with pytest.raises(ParameterError, match="checkpoint: expected a folder for the gates"):
        PARAMETERS.parse({"gates": "checkpoint"})
    with pytest.raises(ParameterError, match="checkpoint: expected a folder with safetensors files, got"):
        PARAMETERS.parse({"checkpoint": "nowhere/at/all"})
    assert set(study("drift").parameters.model_fields["gates"].description.split("from ")[1].split(",")) < set(
        regimes.GATES
    )
