"""What is judged: a variant on a device, the calls that it takes, and how one is made."""

import dataclasses
import itertools
import os
import sys

import torch

from .. import ops
from ..backends import author, registry, solution
from ..models import GDNShape
from .attempt import Refused
from .making import Made, make
from .trials import Trial

HEADS = ((1, 1), (1, 2), (2, 4), (1, 4), (3, 6))  # query/key and value heads
MODEL_HEADS = ((2, 8), (4, 8), (4, 16), (8, 16), (8, 32), (16, 32), (16, 48), (16, 64))  # of kernels of one shape
MODEL_HEAD = (128, 128)  # K and V of every model there is
OTHER_HEADS = ((16, 32), (64, 128), (128, 64), (32, 32))  # of kernels that say which they take
INTERPRETED_HEADS = ((16, 32), (32, 64))  # in Triton's interpreter, which takes seconds for a call of a model's
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


class Candidate:
    """A variant that is judged as a decode kernel.

    calls: (shape, state dtype, io dtype, index dtype) of each kind of call that it takes; on a GPU, `covering`, some of
    them in which each value occurs. seed: of every check. Refused, with the first reason, if it takes none.

    A kernel of an author's without supports() is judged on the models' head size and engines' bf16 inputs alone.
    """

    def __init__(self, full_name: str, device, seed: int = 0):
        self.name, self.record, self.device, self.seed = full_name, registry.VARIANTS[full_name], device, seed
        self.layout = self.record.layout
        self.says_what_it_takes = self._says_what_it_takes()
        sizes = (MODEL_HEAD, *OTHER_HEADS) if self.says_what_it_takes else (MODEL_HEAD,)
        if self.cuts and self.says_what_it_takes:
            sizes = INTERPRETED_HEADS
        inputs = (BF16, FP16, FP32) if self.says_what_it_takes else (BF16,)
        shapes = [GDNShape(*heads, *size) for size, heads in itertools.product(sizes, HEADS)]
        self.calls, reasons = [], []
        for some in (shapes, [GDNShape(*heads, *MODEL_HEAD) for heads in MODEL_HEADS]):
            for call in itertools.product(some, self.record.state_dtypes, inputs, (torch.int32, torch.int64)):
                reason = self.refusal(*call)
                self.calls += [call] if reason is None else []
                reasons += [reason] if reason else []
            if self.calls:
                break
        else:
            raise Refused(reasons[0])
        self.covering = covering(self.calls, self.usual_call())
        if self.device.type == "cuda":  # each kind of call is another kernel to compile
            self.calls = self.covering

    def refusal(self, shape, state_dtype, io_dtype, index_dtype) -> str | None:
        """Return why it does not take such a call, or None."""
        options = {"layout": self.layout, "dtype": state_dtype, "device": self.device}
        return registry.refusal(self.name, shape, io_dtype=io_dtype, index_dtype=index_dtype, **options)

    def usual(self, **fields) -> Trial:
        """Return a plain trial of the call that it takes first, with other values in some fields."""
        values = dict(zip(("shape", "state_dtype", "io_dtype", "index_dtype"), self.usual_call(), strict=True))
        return self.suited(Trial(**({"batch": 3, "seed": self.seed} | values | fields)))

    def suited(self, trial: Trial) -> Trial:
        """Return a trial as the kernel takes it: one that does not normalise q and k gets normalised ones."""
        return trial if self.record.normalises else dataclasses.replace(trial, l2norm=False, magnitude=1.0)

    def usual_call(self) -> tuple:
        """Return the call with several heads of each kind, of which mixed up ones show, that it takes first."""
        several = [call for call in self.calls if call[0].num_k_heads > 1]
        return (several or self.calls)[0]

    def rows(self, wanted: int) -> int:
        """Return how many rows a call should have that is better with `wanted`: few in Triton's interpreter."""
        return min(wanted, 2) if self.cuts else wanted

    def make(self, trial: Trial) -> Made:
        """Make the tensors of a trial as this kernel takes them: q and k normalised, a pool with a ring.

        Slots of a ring are at phases of their own, other ones for each seed: with seed 0 the first call writes slot 1.
        """
        if not self.record.normalises:
            trial = dataclasses.replace(trial, l2norm=False)
        made = make(trial, self.layout, self.device)
        if self.record.ring:
            made.pool.reserve_ring(self.record.ring, key_dtype=trial.io_dtype)
            ring = made.pool.ring
            phases = -(torch.arange(trial.slots) + trial.seed) % ring.period
            ring.span.copy_(phases[:, None])
        return made

    def run(self, made: Made) -> torch.Tensor:
        """Make a trial's call or calls and return the output of all rows.

        Refused if the kernel raises NotImplementedError, or a backend refuses.
        """
        if not made.trial.calls:
            return self._call(made, slice(None))
        ends = list(itertools.accumulate(made.trial.calls))
        parts = [self._call(made, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
        return torch.cat(parts) if made.out is None else made.out

    def _call(self, made: Made, rows: slice) -> torch.Tensor:
        """Make one call of some rows, views of the trial's tensors."""
        trial = made.trial
        try:
            return ops.decode(
                *(x[rows] for x in made.arguments),
                **made.inputs.gates(),
                pool=made.pool,
                indices=made.indices[rows],
                backend=self.name,
                scale=trial.scale,
                use_qk_l2norm=trial.l2norm,
                out=None if made.out is None else made.out[rows],
            )
        except NotImplementedError as error:
            raise Refused(str(error) or "raises NotImplementedError") from error
        except ValueError as error:
            if self.record.role == "yours":
                raise
            raise Refused(str(error)) from error  # as backends of the workbook refuse

    @property
    def uses_triton(self) -> bool:
        """Whether its launch, or the module that it is in, has Triton kernels, or its solution says that it has."""
        if solution.LANGUAGES.get(self.name) == "triton":
            return True
        return any(type(value).__name__ in author.TRITON for value in self.namespace().values())

    @property
    def cuts(self) -> bool:
        """Whether it runs in Triton's interpreter, which cuts float32 to bf16 instead of rounding it."""
        return self.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and self.uses_triton

    def namespace(self) -> dict:
        """Return the globals of the module that its kernel is in; of this workbook's, those of its backend."""
        backend = registry.BACKENDS[self.record.backend]
        if isinstance(backend, author.AuthorBackend):
            return backend.parts[self.record.name, "decode"].function.__globals__
        package = type(backend).__module__.rpartition(".")[0]
        inside = [m for name, m in list(sys.modules.items()) if name.startswith(package) and package.count(".") > 1]
        return {f"{m.__name__}.{name}": value for m in inside for name, value in vars(m).items()}

    def _says_what_it_takes(self) -> bool:
        backend = registry.BACKENDS[self.record.backend]
        if not isinstance(backend, author.AuthorBackend):
            return True
        return backend.parts[self.record.name, "decode"].supports is not None


def covering(calls: list[tuple], usual: tuple) -> list[tuple]:
    """Return the usual call, and for each other shape or dtype that occurs the call nearest to it that has that."""

    def distance(call) -> int:
        return sum(x != y for x, y in zip(call, usual, strict=True))

    found = [usual]
    for place in range(len(usual)):
        for value in dict.fromkeys(call[place] for call in calls):
            if all(call[place] != value for call in found):
                found.append(min((call for call in calls if call[place] == value), key=distance))
    return found
