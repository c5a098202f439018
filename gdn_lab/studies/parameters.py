"""Typed parameters of notebooks: one pydantic model a study, for papermill, the command line and the widgets.

A value is what a person types: a word of the command line, a string or a number of a notebook cell. What a study reads
are the parsed attributes: lists, dtypes, numbers with "auto" replaced by what suits the device.
"""

import difflib
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

GPU_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GPU_SAMPLES, CPU_SAMPLES = 50, 1  # one on a CPU: it checks and ranks nothing


class ParameterError(ValueError):
    """A parameter that is not declared, or a value that cannot be. Shown as its one sentence, without a traceback."""

    def _render_traceback_(self):  # what IPython shows
        return [f"{type(self).__name__}: {self}"]


def nearest(name: str, choices) -> str:
    """ " (did you mean 'batches'?)", or "" where nothing is near."""
    begins = [choice for choice in choices if name and choice.startswith(str(name))]
    near = begins or difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def on_gpu() -> bool:
    """Whether torch has a GPU here."""
    import torch

    return torch.cuda.is_available()


class StudyParameters(BaseModel):
    """Base of every study's parameters. Fields are declared in the order of the notebook's cell.

    Each field has a default, as the notebook's cell has it, and a description. parse() makes an instance out of words.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        arbitrary_types_allowed=True,
        frozen=True,
        coerce_numbers_to_str=True,  # papermill makes a number of a word such as 64
    )

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, values):
        """True is 1 to Python; for a field that is no bool it is a mistake."""
        for name, value in values.items():
            if isinstance(value, bool) and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name}: expected {_plain(cls.model_fields[name].annotation)}, got {value!r}")
        return values

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "this notebook") -> "StudyParameters":
        """An instance of words or numbers by name. ParameterError, one sentence, for the first that cannot be."""
        for name in values:
            if name not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                hint = nearest(name, cls.model_fields)
                raise ParameterError(f"{where} has no parameter {name!r}{hint}; it has: {known}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ParameterError(_sentence(error)) from None

    @property
    def checks_only(self) -> bool:
        """Whether this machine checks and ranks nothing: on a CPU, unless more than one sample is asked for."""
        return not on_gpu() and getattr(self, "samples", CPU_SAMPLES) == CPU_SAMPLES


def _plain(annotation) -> str:
    return {int: "a whole number", float: "a number"}.get(annotation, "text")


def _sentence(error: ValidationError) -> str:
    """The first error of pydantic in the words of this workbook: the parameter, what was expected, what came."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return message if not name or message.startswith(f"{name}: ") else f"{name}: {message}"
    limits = first.get("ctx", {})
    expected = {
        "int_parsing": "a whole number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "string_type": "text",
        "bool_parsing": "True or False",
        "bool_type": "True or False",
        "greater_than_equal": f"at least {limits.get('ge')}",
        "greater_than": f"more than {limits.get('gt')}",
        "less_than_equal": f"at most {limits.get('le')}",
        "less_than": f"less than {limits.get('lt')}",
    }.get(first["type"], first["msg"])
    return f"{name}: expected {expected}, got {first['input']!r}"


def words_of(value) -> list[str]:
    """ "1,2" -> ["1", "2"]; 8 -> ["8"]; [1, 2] -> ["1", "2"]: a number where a list is meant is a list of one."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [str(word) for word in value] if isinstance(value, (list, tuple)) else [str(value)]


def whole_numbers(value, least: int = 1, most: int | None = None) -> list[int]:
    """Sorted different whole numbers of `value` as words_of() reads it. ValueError with an example otherwise."""
    words = words_of(value)
    found = sorted({int(word) for word in words if word.isdecimal()})
    bad = not words or not all(word.isdecimal() for word in words)
    if bad or found[0] < least or (most is not None and found[-1] > most):
        limits = f"from {least} to {most}" if most is not None else "from 1 up" if least == 1 else f"from {least} up"
        raise ValueError(f"expected whole numbers {limits} such as {least},{2 * least},{4 * least}, got {value!r}")
    return found


def batch_list(cpu, gpu=GPU_BATCHES):
    """A field type: comma-separated batch sizes; "auto" is `gpu` on a GPU and `cpu` without one."""

    def parse(value):
        if value == "auto":
            return list(gpu if on_gpu() else cpu)
        try:
            return whole_numbers(value)
        except ValueError as error:
            raise ValueError(str(error).replace("expected", "expected auto or", 1)) from None

    return Annotated[list[int], BeforeValidator(parse)]


def _model(name: str) -> str:
    from ..models import MODELS

    if name not in MODELS:
        raise ValueError(
            f"{name!r} is not in the model table{nearest(name, MODELS)}; choose one of {', '.join(MODELS)}"
        )
    return name


def _dtype(name):
    from ..pool import STATE_DTYPES

    known = {str(dtype).removeprefix("torch."): dtype for dtype in STATE_DTYPES}
    if name not in known:
        raise ValueError(f"{name!r} is unknown{nearest(name, known)}; choose one of {', '.join(known)}")
    return known[name]


def _variants(value):
    """ "all" -> "all"; "triton/vk, torch" -> ["triton/vk", "torch/vk", "torch/kv"]."""
    from ..backends.registry import BACKENDS, VARIANTS

    if value == "all":
        return "all"
    chosen = []
    for word in words_of(value):
        if word in BACKENDS:
            chosen += [variant.full_name for variant in BACKENDS[word].variants]
        elif word in VARIANTS:
            chosen.append(word)
        else:
            choices = [*BACKENDS, *VARIANTS]
            raise ValueError(f"{word!r} is unknown{nearest(word, choices)}; choose all or from {', '.join(choices)}")
    if not chosen:
        raise ValueError(f"expected all, or backends and variants such as triton,flashinfer/vk, got {value!r}")
    return list(dict.fromkeys(chosen))


def _one_variant(name: str) -> str:
    from ..backends.registry import VARIANTS

    if name not in VARIANTS:
        raise ValueError(f"{name!r} is unknown{nearest(name, VARIANTS)}; choose one of {', '.join(VARIANTS)}")
    return name


def _precision(name: str) -> str:
    from ..layer.fp8 import PRECISIONS

    if name not in PRECISIONS:
        raise ValueError(f"expected one of {', '.join(PRECISIONS)}, got {name!r}")
    return name


def _configurations(value) -> list[str]:
    """ "auto" -> those made for this device; "before,best" -> ["before", "best"]."""
    from ..layer import CONFIGURATIONS, made_for

    if value == "auto":
        return made_for("cuda" if on_gpu() else "cpu")
    names = list(dict.fromkeys(words_of(value)))
    for name in names:
        if name not in CONFIGURATIONS:
            hint = nearest(name, CONFIGURATIONS)
            raise ValueError(f"{name!r} is unknown{hint}; choose auto or from {', '.join(CONFIGURATIONS)}")
    if not names:
        raise ValueError(f"expected auto or some of {', '.join(CONFIGURATIONS)}, got {value!r}")
    return names


def variant_list(cpu: list[str]):
    """A field type: what Variants takes, or "auto", which is all on a GPU and `cpu` without one."""

    def parse(value):
        if value == "auto":
            return "all" if on_gpu() else cpu
        return _variants(value)

    return Annotated[Any, BeforeValidator(parse)]


def by_device(cpu: int, gpu: int):
    """A field type: a whole number, of which 0 is `gpu` on a GPU and `cpu` without one."""
    return Annotated[int, Field(ge=0), AfterValidator(lambda value: value or (gpu if on_gpu() else cpu))]


def _recorded_gpu(name: str) -> str:
    from ..report.recorded import recorded_gpus, run_folder

    known = recorded_gpus()
    if name in known:
        return name
    if folder := run_folder(name):
        return str(folder)
    choices = ", ".join(known) or "none yet"
    raise ValueError(
        f"nothing is recorded of {name!r}{nearest(name, known)}; recorded are: {choices}; or give a run folder"
    )


# Field types. Those with a parser take what a person types and hold what a study reads.
ModelName = Annotated[str, AfterValidator(_model)]
Dtype = Annotated[Any, BeforeValidator(_dtype)]  # holds a torch.dtype
Variants = Annotated[Any, BeforeValidator(_variants)]  # holds "all" or full names
OneVariant = Annotated[str, AfterValidator(_one_variant)]
Precision = Annotated[str, AfterValidator(_precision)]
Configurations = Annotated[list[str], BeforeValidator(_configurations)]
Samples = by_device(cpu=CPU_SAMPLES, gpu=GPU_SAMPLES)
Seed = Annotated[int, Field(ge=0)]
RecordedGPU = Annotated[str, AfterValidator(_recorded_gpu)]  # a GPU's name, or the path of a run folder


class Here(NamedTuple):
    """What this machine measures: the shape (GDNShape) that one of `tp` GPUs holds."""

    tp: int
    shape: Any


class ModelParameters(StudyParameters):
    """Of studies over one model: checks that `tp` GPUs can share its heads, and has its shape."""

    model: ModelName = Field("qwen3.5-397b-a17b", description="a name in the model table, gdn_lab.models.MODELS")
    tp: int = Field(1, ge=1, description="tensor-parallel GPUs that share the heads; this machine plays one of them")

    @model_validator(mode="after")
    def _heads_divide(self):
        self.shape  # noqa: B018  raises ValueError with the sizes that divide
        return self

    @property
    def shape(self):
        """GDNShape of one of `tp` GPUs."""
        from ..models import GDNShape

        return GDNShape.from_model(self.model, self.tp)

    @property
    def here(self) -> "Here":
        """What is measured here: the shape asked for; where kernels are only checked, the smallest of the model."""
        from ..models import GDNShape, divisions

        tp = divisions(self.model)[-1] if self.checks_only else self.tp
        return Here(tp, GDNShape.from_model(self.model, tp))

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a sweep (bench.cases.SweepOptions): those of them that this study's parameters set."""
        names = {"model": "model", "tp": "tp", "dtype": "dtype", "backends": "variants", "samples": "samples"}
        names["seed"] = "seed"
        return {option: getattr(self, name) for name, option in names.items() if name in type(self).model_fields}
