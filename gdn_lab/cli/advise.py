"""gdn-lab advise: which backend for a model, what it saves, what memory its state needs, from recorded rows."""

import argparse
import json

from ..studies.advice.study import Parameters
from ..studies.parameters import ParameterError
from .errors import UsageError

OPTIONS = {"gpu": "gpu_reference"}  # of the command line: the parameter's name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each parameter of notebook 07, and --json."""
    names = {parameter: option for option, parameter in OPTIONS.items()}
    for name, field in Parameters.model_fields.items():
        kind = {int: "N", float: "GB"}.get(type(field.default), "NAME")
        default = "" if field.default in (0, 0.0) else f" (default: {field.default})"
        parser.add_argument(f"--{names.get(name, name)}", metavar=kind, dest=name, help=f"{field.description}{default}")
    parser.add_argument("--json", action="store_true", help="the answer as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Print the answer. UsageError, one sentence, for a value that cannot be."""
    from ..studies.advice.analysis import advise, as_json
    from ..studies.advice.answer import text

    given = {name: word for name in Parameters.model_fields if (word := getattr(arguments, name)) is not None}
    try:
        p = Parameters.parse(given, "gdn-lab advise")
    except ParameterError as error:
        sentence = str(error)
        for option, name in OPTIONS.items():
            sentence = sentence.replace(f"{name}:", f"{option}:")
        raise UsageError(sentence) from None
    advice = advise(p)
    print(json.dumps(as_json(advice), indent=2, ensure_ascii=False) if arguments.json else text(advice))
