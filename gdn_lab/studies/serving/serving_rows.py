"""What rows of serving look like, and one run's rows as Points: a configuration at a number of requests in flight.

Every row has phase "serving" and `type`. A serving run of the engine's loop has a number, `serve`, that its rows share:

    "run"       of one serving run: where and what (CASE), what was measured (metrics of engine/metrics.py), and
                requests, output_tokens, input_tokens, wall_s; draft_tokens 0 and acceptance null without speculation
    "part"      one part of a decode step at the concurrency of the run, timed right after it in the same process:
                part, us (of one), count (in a step), length (tokens of each request). CASE too
    "steps"     all steps of the run, a list for each field: kind ("prefill", "decode", "verify"), batch, padded,
                tokens, host_us, gpu_us, start_s, end_s
    "requests"  all requests of the run, a list for each field: id, input_tokens, output_tokens, arrival_s, admitted_s,
                first_token_s, finished_s, outcome
    "check"     of a toy: requests, and alike, of them those that got the tokens that they get when served alone
    "left out"  a point that there was no time for; a run that goes on serves it. No `serve`

status is "fact"; a point that does not fit or failed has one row of status "refused", with CASE and a reason but no
type, and so has one that was left out. Steps and requests are columns of a few rows, so that a run of thousands of
steps is a file of kilobytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...engine.row_log import REQUEST_FIELDS, STEP_FIELDS
from ...layer.configurations import CONFIGURATIONS
from ...report.recorded import titled
from ...report.text import device_name, listed

PHASE = "serving"
RUN, PART, STEPS, REQUESTS, CHECK, LEFT_OUT = "run", "part", "steps", "requests", "check", "left out"
POINT = ("configuration", "concurrency", "draft_tokens", "acceptance")  # of CASE
CASE = (
    "model",
    "tp",
    "ranks",
    "precision",
    "state_dtype",
    "toy",
    "configuration",
    "backend",
    "variant",
    "layout",
    "communicator",
    "concurrency",
    "draft_tokens",
    "acceptance",
    "input_tokens_each",
    "output_tokens_each",
    "seed",
)
# Parts of a decode step, in order, by the names that ServedModel.time_parts() gives them. The GDN kernel is inside the
# GDN layer; it is timed alone so that its share of TPOT is known.
GDN_LAYER, ATTENTION_LAYER, ALL_REDUCES = "GDN layer", "attention layer", "all-reduces"
GDN_KERNEL = "GDN kernel"


@dataclass
class Point:
    """One serving run: its run row, parts {name: (µs of one, count in a step)}, and columns of steps and requests."""

    run: dict
    parts: dict[str, tuple[float, int]] = field(default_factory=dict)
    steps: dict[str, list] = field(default_factory=dict)
    requests: dict[str, list] = field(default_factory=dict)
    check: dict | None = None

    @property
    def configuration(self) -> str:
        return self.run["configuration"]

    @property
    def concurrency(self) -> int:
        return self.run["concurrency"]

    @property
    def tpot_us(self) -> float:
        return 1000 * self.run["tpot_ms"]

    @property
    def per_gpu(self) -> float:
        """Output tokens per second and GPU."""
        return self.run["output_throughput"] / self.run["tp"]

    def part_us(self, part: str) -> float:
        """Microseconds of a part in one step: of one, times its count; 0 where it was not timed."""
        us, count = self.parts.get(part, (0.0, 0))
        return us * count


class ServingRows:
    """The rows of one run: of one model, tensor-parallel size and precision.

    points: {(configuration, concurrency): Point} without speculation. speculation: Points with draft tokens. refused:
    rows of points that could not run, or that no run had time for. run: what run.json holds, or None. all_rows:
    everything given.
    """

    def __init__(self, rows: Iterable[dict], run: dict | None = None):
        self.all_rows, self.run = [row for row in rows if row.get("phase") == PHASE], run
        # A run that was cut off before any request had two tokens has no TPOT.
        runs = [row for row in self.all_rows if row.get("type") == RUN and row.get("tpot_ms")]
        served = {row["serve"]: Point(row) for row in runs}
        for row in self.all_rows:
            point = served.get(row.get("serve"))
            if point is None:
                continue
            if row["type"] == CHECK:
                point.check = row
            elif row["type"] == PART:
                point.parts[row["part"]] = row["us"], row["count"]
            elif row["type"] == STEPS:
                point.steps = _continued(point.steps, row, STEP_FIELDS)
            elif row["type"] == REQUESTS:
                point.requests = _continued(point.requests, row, REQUEST_FIELDS)
        every = list(served.values())
        plain = [point for point in every if not point.run["draft_tokens"]]
        self.points = {(point.configuration, point.concurrency): point for point in plain}
        self.speculation = [point for point in every if point.run["draft_tokens"]]
        refused = [row for row in self.all_rows if row["status"] == "refused"]
        known = {_point_of(row) for row in runs} | {_point_of(row) for row in refused if row.get("type") != LEFT_OUT}
        self.refused = [row for row in refused if row.get("type") != LEFT_OUT or _point_of(row) not in known]

    def __bool__(self) -> bool:
        return bool(self.points)

    @property
    def configurations(self) -> list[str]:
        """Configurations that were served, in the order in which they were first."""
        order = dict.fromkeys(name for name, _ in self.points)
        known = [name for name in CONFIGURATIONS if name in order]
        return known + [name for name in order if name not in known]

    @property
    def concurrencies(self) -> list[int]:
        """Numbers of requests in flight at which something was served, ascending."""
        return sorted({concurrency for _, concurrency in self.points})

    @property
    def compared_at(self) -> int:
        """The most requests in flight at which every configuration was served; if there is none, the most of all."""
        return max(self.whole or self.concurrencies, default=0)

    @property
    def whole(self) -> list[int]:
        """Every C at which every configuration was served."""
        return [c for c in self.concurrencies if len(self.at(c)) == len(self.configurations)]

    def at(self, concurrency: int) -> dict[str, Point]:
        """{configuration: Point} at one concurrency."""
        return {
            name: self.points[name, concurrency] for name in self.configurations if (name, concurrency) in self.points
        }

    @property
    def toy(self) -> bool:
        """Whether the model has toy size, whose times rank nothing."""
        return any(point.run["toy"] for point in self.points.values())

    @property
    def first(self) -> dict:
        """The run row of some point: what all share, such as model, tp and precision."""
        return next(iter(self.points.values())).run

    def titled(self, finding: str) -> str:
        """A figure's title: the finding, and the GPUs, model and tp of which it holds."""
        if not self.points:
            return finding
        if (self.run or {}).get("recorded_on"):
            return titled(finding, self.run, [self.first])
        return f"{finding} ({self.place()})"

    def place(self) -> str:
        """ "2 × NVIDIA H100 80GB HBM3, qwen3.5-35b-a3b, tp 2"."""
        row = self.first
        count = f"{row['ranks']} × " if row["ranks"] > 1 else ""
        device = device_name(self.run) if self.run else "this machine"
        size = ", toy size" if row["toy"] else ""
        return f"{count}{device}, {row['model']}{size}, tp {row['tp']}"

    def conditions(self) -> str:
        """What the figures hold for, in one line."""
        if not self.points:
            return "nothing was served"
        row = self.first
        return (
            f"{self.place()} · whole model with random weights, {row['precision']}, {self._states()}"
            f" · closed loop, {row['input_tokens_each']} tokens in and {row['output_tokens_each']} out each"
            f" · all-reduce: {self._all_reduces()}{self._deferred()}"
        )

    def _states(self) -> str:
        """ "bfloat16 state, of replay-fp8 float8_e4m3fn": the dtype that most configurations have, then the others."""
        dtypes = {name: point.run["state_dtype"] for (name, _), point in self.points.items()}
        most = max(dtypes.values(), key=list(dtypes.values()).count)
        return f"{most} state" + "".join(f", of {name} {dtype}" for name, dtype in dtypes.items() if dtype != most)

    def _deferred(self) -> str:
        """ " · best decodes with triton/replay at C = 256", where recorded times chose that over its own."""
        found: dict[tuple[str, str], list[int]] = {}
        for (name, concurrency), point in self.points.items():
            decode = f"{point.run['backend']}/{point.run['variant']}"
            if name in CONFIGURATIONS and decode == CONFIGURATIONS[name].deferred:
                found.setdefault((name, decode), []).append(concurrency)
        return "".join(
            f" · {name} decodes with {decode} at C = {listed(str(each) for each in sorted(some))}"
            for (name, decode), some in found.items()
        )

    def _all_reduces(self) -> str:
        """ "nccl", or where configurations sum in different ways "nccl, of best fastest"."""
        used = {name: point.run["communicator"] or "none" for (name, _), point in self.points.items()}
        common = self.first["communicator"] or "none"
        return ", ".join([common, *(f"of {name} {how}" for name, how in used.items() if how != common)])


def _point_of(row: dict) -> tuple:
    return tuple(row[name] for name in POINT)


def _continued(columns: dict[str, list], row: dict, names: tuple[str, ...]) -> dict[str, list]:
    """Columns with those of one more row below them: a run may have several rows of steps or requests."""
    return {name: [*columns.get(name, []), *row[name]] for name in names if name in row}
