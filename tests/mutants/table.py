"""Mutants: small changes that make the code wrong, each with the tests that must fail.

Each replaces one text, which occurs once in its file, by another.
"""

from .mutant import Mutant
from .mutants_of_calls import MUTANTS_OF_CALLS

REFERENCE = "test_reference.py"
TOLERANCES = "test_tolerances.py"
MODELS = "test_models.py"
COSTS = "test_costs.py"
CONFIG = "test_config.py"
FILES = "test_files.py"
POOL = "test_pool.py"
REFUSALS = "test_refusals.py"
BACKENDS = "backends/test_backend_refusals.py"
TIMERS = "bench/test_timers.py"
CUPTI = "bench/test_cupti.py"
RESULTS = "bench/test_results.py"
ROWS = "bench/test_rows.py"
ENVIRONMENT = "bench/test_environment.py"
AGREEMENT = "bench/test_agreement.py"
CLOCKS = "bench/test_clocks.py"
ROOF = "bench/test_roof.py"
DECODE_SWEEP = "studies/test_decode_sweep.py bench/test_sweep.py"
READERS = "trace/test_readers.py"
GRAPHS = "trace/test_graphs.py trace/test_positions.py"
SCRUBBER = "trace/test_scrubber.py"
SUMMARIES = "trace/test_summaries.py"
NOTEBOOKS = "cli/test_notebooks.py -k raises"
TEXT = "report/test_text.py"
LAYER = "layer/test_step.py"
EXPERTS = "layer/test_experts.py"

MUTANTS = [
    # ---- the reference and how far from it a result may lie
    Mutant("reference.py", "NORM_EPS = 1e-6", "NORM_EPS = 1e-5", REFERENCE),
    Mutant("reference.py", "SOFTPLUS_THRESHOLD = 20.0", "SOFTPLUS_THRESHOLD = 2.0", REFERENCE),
    Mutant("reference.py", "q * scale, k))", "q, k * scale))", REFERENCE),
    Mutant("reference.py", "torch.sigmoid(b)\n", "torch.sigmoid(-b)\n", REFERENCE),
    Mutant("reference.py", "torch.exp(G[:, -1:] - G)[..., None]", "torch.exp(G[:, -1:])[..., None]", REFERENCE),
    Mutant(
        "reference.py", "repeat_interleave(group, dim=-2)", "repeat(1, 1, group, 1)[..., : v.shape[-2], :]", REFERENCE
    ),
    Mutant(
        "reference.py",
        "(bc[:, :, None] * decay * (kc @ kc.transpose(1, 2))).tril(-1)",
        "(bc[:, :, None] * decay * (kc @ kc.transpose(1, 2))).tril()",
        REFERENCE,
        equivalent="unitriangular takes the diagonal to be one whatever it holds",
    ),
    Mutant(
        "reference.py",
        "lower = torch.ones(C, C, dtype=torch.bool).tril()",
        "lower = torch.ones(C, C, dtype=torch.bool).tril(-1)",
        REFERENCE,
    ),
    Mutant("tolerances.py", "ARITHMETIC = 1e-4", "ARITHMETIC = 1e-3", TOLERANCES),
    Mutant(
        "tolerances.py",
        "torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, FP8",
        "torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11, FP8",
        TOLERANCES,
    ),
    Mutant("tolerances.py", "torch.float16: 2.0**-25, FP8", "torch.float16: 2.0**-20, FP8", TOLERANCES),
    Mutant("tolerances.py", "LOGARITHMS = 1e-3", "LOGARITHMS = 1e-2", TOLERANCES),
    Mutant("tolerances.py", "{dtype: 2 * half for", "{dtype: 4 * half for", TOLERANCES),
    Mutant(
        "tolerances.py",
        "4 * 2.0**-8, torch.float16: 8 * 2.0**-11",
        "8 * 2.0**-8, torch.float16: 16 * 2.0**-11",
        TOLERANCES,
    ),
    Mutant("tolerances.py", "arithmetic * expected.abs().max()", "arithmetic * expected.abs().sum()", TOLERANCES),
    Mutant(
        "tolerances.py",
        "(error <= allowed(expected, dtype, arithmetic) + more).all()",
        "(error <= allowed(expected, dtype, arithmetic) + more).any()",
        TOLERANCES,
    ),
    # ---- models, costs, selection rules, files
    Mutant("models.py", "CONV_WINDOW = 3", "CONV_WINDOW = 4", MODELS + " " + POOL),
    Mutant(
        "models.py",
        "return 2 * self.num_k_heads * self.head_k_dim +",
        "return self.num_k_heads * self.head_k_dim +",
        MODELS + " " + POOL,
    ),
    Mutant("models.py", "range(1, min(heads) + 1)", "range(1, min(heads))", MODELS),
    Mutant(
        "costs.py",
        "row = 2 * _state_bytes(shape, state_dtype) + _token_bytes",
        "row = _state_bytes(shape, state_dtype) + _token_bytes",
        COSTS,
    ),
    Mutant("costs.py", '"intermediate": tokens, "output": 0', '"intermediate": 1, "output": 0', COSTS),
    Mutant("costs.py", "6 * K * V + 2 * chunk * V", "4 * K * V + 2 * chunk * V", COSTS),
    Mutant("costs.py", "2 * window + 2 * INDEX_BYTES", "window + 2 * INDEX_BYTES", COSTS),
    Mutant("config.py", 'PADDING_FIXED = "0.6.7"', 'PADDING_FIXED = "0.6.5"', CONFIG),
    Mutant("config.py", 'mamba_scheduler_strategy != "no_buffer"', 'mamba_scheduler_strategy == "no_buffer"', CONFIG),
    Mutant("config.py", "settings.mamba_ssm_dtype or model_ssm_dtype", "model_ssm_dtype", CONFIG),
    Mutant("config.py", "machine.capability < (10, 0)", "machine.capability < (9, 0)", CONFIG),
    Mutant(
        "files.py",
        "        os.replace(partial, path)\n    finally:\n",
        "    finally:\n        os.replace(partial, path)\n",
        FILES,
    ),
    # ---- registry
    Mutant("backends/registry.py", "reason is None and isolated and call.phase in variant.leaks", "False", BACKENDS),
    Mutant(
        "backends/registry.py",
        "key=lambda entry: entry[0])[1]",
        "key=lambda entry: -entry[0][1])[1]",
        BACKENDS + " " + REFUSALS,
    ),
    Mutant(
        "backends/registry.py",
        "lambda v: (v.order, v.full_name)",
        "lambda v: (-v.order, v.full_name)",
        "backends/test_backend_refusals.py",
    ),
    # ---- timers, rows, results
    Mutant("bench/timers.py", "(20, 50, 80)", "(10, 50, 90)", TIMERS),
    Mutant("bench/timers.py", "(20, 50, 80)", "(20, 60, 80)", TIMERS),
    Mutant("bench/timers.py", "max(MIN_SAMPLES, affordable)", "affordable", TIMERS),
    Mutant(
        "bench/timers.py", "ceil(min_sample_us / max(once_us, 1e-3))", "int(min_sample_us / max(once_us, 1e-3))", TIMERS
    ),
    Mutant(
        "bench/timers.py",
        "_host_sample_us(calls[key], plans[key][0]) / per_sample",
        "_host_sample_us(calls[key], plans[key][0])",
        TIMERS,
    ),
    Mutant("bench/timers.py", "        clock.synchronize_event(before[1])\n", "", TIMERS),
    Mutant("bench/timers.py", "[key for key, (_, count) in plans.items() if turn < count]", "list(plans)", TIMERS),
    Mutant("bench/cupti.py", "max(0, end - max(start, until))", "end - start", CUPTI),
    Mutant("bench/cupti.py", "until = max(until, end)", "until = end", CUPTI),
    Mutant("bench/cupti.py", "if len(found) != len(replays):", "if len(found) > len(replays):", CUPTI),
    Mutant(
        "bench/rows.py",
        "gb_per_s / roof.gb_per_s,",
        "gb_per_s / (datasheet_gb_per_s(_gpu_name(device)) or roof.gb_per_s),",
        ROWS,
    ),
    Mutant("bench/rows.py", "nbytes / timing.median_us / 1e3", "nbytes / timing.p20_us / 1e3", ROWS),
    Mutant("bench/results.py", "os.ftruncate(descriptor, before)", "pass", RESULTS),
    Mutant(
        "bench/results.py",
        "written += os.write(descriptor, line[written:])",
        "written = len(line); os.write(descriptor, line)",
        RESULTS,
    ),
    Mutant("bench/results.py", 'NULLABLE = {"max_abs_error"}', 'NULLABLE = {"max_abs_error", "median_us"}', RESULTS),
    Mutant("bench/results.py", "not math.isfinite(value)", "math.isnan(value)", RESULTS),
    Mutant(
        "bench/run_folder.py",
        "if number < len(lines) or line.endswith",
        "if line.endswith",
        RESULTS,
        equivalent="a line that is not the last ends in a newline",
    ),
    Mutant(
        "bench/results.py",
        'self.info["status"] in ("interrupted", "failed")',
        'self.info["status"] == "failed"',
        RESULTS,
    ),
    Mutant("bench/environment.py", 'bool(git("status", "--porcelain"))', "False", ENVIRONMENT),
    Mutant("bench/environment.py", 'commit.endswith("-dirty")', "False", ENVIRONMENT),
    Mutant("bench/agreement.py", "kernels * GAP_US if difference > 0 else 0.0", "kernels * GAP_US", AGREEMENT),
    Mutant("bench/agreement.py", "FROM_US = 5.0", "FROM_US = 50.0", AGREEMENT),
    Mutant("bench/clocks.py", "if when >= since]", "if when <= since]", CLOCKS),
    Mutant("bench/roof.py", "2 * nbytes / timing.median_us / 1e3", "nbytes / timing.median_us / 1e3", ROOF),
    Mutant("bench/roof.py", "2 * nbytes / timing.p80_us / 1e3", "2 * nbytes / timing.p20_us / 1e3", ROOF),
    Mutant("bench/sweep.py", "out.fill_(torch.nan)", "pass", DECODE_SWEEP),
    Mutant(
        "bench/sweep.py",
        "            pool.write(indices, start)\n        return {case: merged",
        "            pass\n        return {case: merged",
        DECODE_SWEEP,
    ),
    Mutant("tolerances.py", "right = right and check.right", "right = check.right", DECODE_SWEEP),
    Mutant("bench/sweep.py", "        pools.require_finite(self.pools, self.where(point))\n", "", DECODE_SWEEP),
    Mutant("studies/decode_kernels/sweep.py", "Check(right_o and right_state,", "Check(right_o,", DECODE_SWEEP),
    # ---- traces
    Mutant("trace/nsight.py", '{1: "HtoD", 2: "DtoH"', '{2: "HtoD", 1: "DtoH"', READERS),
    Mutant("trace/nsight_file.py", ', 70: "PushPop", 71: "StartEnd"', "", READERS),
    Mutant(
        "trace/nsight.py",
        "here = (end_thread <= 0) | (end_thread == thread)",
        "here = end_thread == end_thread",
        READERS,
    ),
    Mutant(
        "trace/nsight.py",
        "return (global_id >> 24) & 0xFFFFFF",
        "return (global_id >> 24) & 0xFFF",
        READERS + " " + GRAPHS,
    ),
    Mutant("trace/kineto.py", '"GraphLaunch" in entry["name"]', '"cudaGraphLaunch" in entry["name"]', READERS),
    Mutant("trace/kineto.py", 'round(entry["ts"] * 1000)', 'round(entry["ts"]) * 1000', READERS),
    Mutant("trace/build.py", "numpy.maximum(start - before, 0)", "start - before", READERS),
    Mutant("trace/build.py", "until = numpy.maximum.accumulate(end)", "until = end", READERS),
    Mutant("trace/build.py", '& (kernels["correlation"] >= 0)', "", READERS),
    Mutant("trace/build.py", "numpy.lexsort((-ends, ranges", "numpy.lexsort((ends, ranges", READERS),
    Mutant(
        "trace/range_stacks.py",
        'numpy.searchsorted(keys, 2 * launch_starts[launches], "right")',
        'numpy.searchsorted(keys, 2 * launch_starts[launches], "left")',
        READERS,
    ),
    Mutant("trace/range_stacks.py", "if row in shared:", "if True:", READERS),
    Mutant("trace/graphs.py", "if row not in known)", ")", GRAPHS),
    Mutant(
        "trace/scrubber.py",
        'connection.execute("VACUUM")',
        "pass",
        SCRUBBER,
        equivalent="nothing is ever freed in a file that is only written",
    ),
    Mutant(
        "trace/scrubber.py",
        "if table == NVTX:\n        return f\"WHERE {nsight_file.used_events(columns, 'source')}\"\n",
        "",
        SCRUBBER,
    ),
    Mutant("trace/summaries.py", "import ROUND_HALF_UP", "import ROUND_DOWN as ROUND_HALF_UP", SUMMARIES),
    # ---- notebooks, text, layer
    Mutant("cli/notebook.py", "error = result.error_before_exec or result.error_in_exec", "error = None", NOTEBOOKS),
    Mutant("cli/notebook.py", '"failed" if isinstance(error, Exception) else "interrupted"', '"failed"', NOTEBOOKS),
    Mutant("report/text.py", "abs(share) >= 0.0095", "abs(share) >= 0.095", TEXT),
    Mutant("report/text.py", "if us >= 10_000:", "if us >= 1_000:", TEXT),
    Mutant("layer/fp8.py", "E4M3_MAX = 448.0", "E4M3_MAX = 240.0", EXPERTS + " " + LAYER),
    Mutant("layer/layer_reference.py", "inputs[..., 1:]", "inputs[..., :-1]", LAYER),
    *MUTANTS_OF_CALLS,
]
