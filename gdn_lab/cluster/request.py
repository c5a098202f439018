"""What a sweep is asked for: a study, parameters that all its jobs share, and axes; from YAML or from words."""

import math
import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

KEYS = ("study", "over", "set", "gpus", "minutes")
MINUTES = 60.0  # after which a job is stopped, unless the request says another limit
EXAMPLE = "study: 02, over: {tp: [1, 2], model: all}, set: {samples: 20}"


class RequestError(ValueError):
    """What was asked for cannot be read. One sentence."""


class Request(NamedTuple):
    """Jobs of one study. study: as a notebook is named on the command line. over: {parameter: its values, as text}.

    given: {parameter: text} of all jobs. gpus: of one host, for each job; None: the study says. minutes: after which a
    job is stopped.
    """

    study: str
    over: dict[str, list[str]]
    given: dict[str, str] = {}
    gpus: int | None = None
    minutes: float = MINUTES

    def points(self) -> list[dict[str, str]]:
        """{parameter: text} of every job."""
        return [self.given | dict(zip(self.over, values, strict=True)) for values in product(*self.over.values())]

    def as_json(self) -> dict:
        return {
            "study": self.study,
            "over": self.over,
            "set": self.given,
            "gpus": self.gpus,
            "minutes": self.minutes,
        }


def read(path: Path) -> list[Request]:
    """The requests of a YAML file: one mapping with the keys KEYS, or a list of them. RequestError otherwise."""
    import yaml

    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), _loader(yaml))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RequestError as error:
        raise RequestError(f"{path}: {error}; give it once") from None
    return from_entries(found if isinstance(found, list) else [found], str(path))


def _loader(yaml) -> type:
    """PyYAML's safe loader, but a key that is given twice is refused, as on the command line.

    As there 010 stays text: YAML 1.1 reads it as the octal 8.
    """

    class Loader(yaml.SafeLoader):
        def whole_number(self, node):
            return int(node.value) if re.fullmatch("[+-]?(0|[1-9][0-9]{0,17})", node.value) else node.value

        def construct_mapping(self, node, deep=False):
            keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for at, key in enumerate(keys):
                if key in keys[:at]:
                    line = node.value[0][0].start_mark.line + 1
                    raise RequestError(f"{key[1]!r} is given twice in the mapping that begins in line {line}")
            return super().construct_mapping(node, deep)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.whole_number)
    return Loader


def from_entries(entries: list, where: str) -> list[Request]:
    """The requests of a list that YAML or sweep.json holds. RequestError if there is none."""
    if not entries:
        raise RequestError(f"{where} holds no request; expected keys such as {EXAMPLE}")
    return [_from_mapping(entry, where) for entry in entries]


def _from_mapping(entry, where: str) -> Request:
    if not isinstance(entry, dict) or "study" not in entry:
        raise RequestError(f"{where}: expected keys such as {EXAMPLE}, got {entry!r}")
    if unknown := [key for key in entry if key not in KEYS]:
        raise RequestError(f"{where}: {unknown[0]!r} is unknown; choose from {', '.join(KEYS)}")
    over, given = entry.get("over") or {}, entry.get("set") or {}
    for name, value in (("over", over), ("set", given)):
        if not isinstance(value, dict):
            raise RequestError(f"{where}: {name}: expected parameters with their values, got {value!r}")
    axes = {str(name): _values(str(name), value) for name, value in over.items()}
    words = {str(name): _text(value) for name, value in given.items()}
    for names, of in ((axes, over), (words, given)):
        if len(names) < len(of):
            raise RequestError(f"{where}: two names of parameters are the same as text: {', '.join(map(repr, of))}")
    if both := [name for name in axes if name in words]:
        raise RequestError(f"{where}: {both[0]} is in over and in set; choose one")
    study = _study(f"{where}: study", entry["study"])
    return _checked(Request(study, axes, words, entry.get("gpus"), entry.get("minutes", MINUTES)), f"{where}: ")


def _study(name: str, value) -> str:
    """A study as text; the number 2 is the notebook 02."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 99:
        return f"{value:02d}"
    if not isinstance(value, str):
        raise RequestError(f'{name}: expected text such as "02" or 02_decode_kernels, got {value!r}; put it in quotes')
    return value


def from_words(
    study: str, over: list[str], given: dict[str, str], gpus: int | None = None, minutes: float = MINUTES
) -> Request:
    """One request of the command line. over: words such as "tp=1,2,4"."""
    axes = {}
    for word in over:
        name, equals, values = word.partition("=")
        if not equals or not name:
            raise RequestError(f"--over {word}: expected a parameter and its values, such as tp=1,2,4")
        if name in axes:
            raise RequestError(f"--over {name} is given twice; give all its values at once: {name}=1,2,4")
        axes[name] = _values(name, values)
    if both := [name for name in axes if name in given]:
        raise RequestError(f"{both[0]} is given with --over and with -p; choose one")
    return _checked(Request(study, axes, given, gpus, minutes), "--")


def _checked(request: Request, prefix: str) -> Request:
    """The request with its limits checked. prefix: of their names in a message."""
    minutes = request.minutes
    if request.gpus is not None:
        check_gpus(f"{prefix}gpus", request.gpus)
    number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not number or not math.isfinite(minutes) or minutes <= 0:
        raise RequestError(f"{prefix}minutes: expected a number above 0, got {minutes!r}")
    return request._replace(minutes=float(minutes))


def check_gpus(name: str, value) -> None:
    """RequestError unless the value is a number of GPUs."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(f"{name}: expected a whole number from 1 up, got {value!r}")


def _values(name: str, value) -> list[str]:
    """Values of an axis: [1, 2] or "1,2" are two; "1,2;4,8" are two lists; "all" is every model or dtype there is."""
    if value == "all":
        return _every(name)
    if isinstance(value, list):
        found = [_text(each) for each in value]
    else:
        text = _text(value)
        found = [word.strip() for word in text.split(";" if ";" in text else ",") if word.strip()]
    if not found:
        raise RequestError(f"over {name}: expected values such as 1,2,4, got {value!r}")
    return list(dict.fromkeys(found))


def _every(name: str) -> list[str]:
    if name == "model":
        from ..models import MODELS

        return list(MODELS)
    if name == "dtype":
        from ..pool import STATE_DTYPES

        return [str(dtype).removeprefix("torch.") for dtype in STATE_DTYPES]
    raise RequestError(f"over {name}: all is of model and dtype alone; name the values, such as {name}=1,2,4")


def _text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
