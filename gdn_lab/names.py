"""Names that others chose, of ranges, kernels, GPUs and files, as text that can be printed, drawn and encoded."""

import re

LIBRARIES = ("torch", "triton", "flashinfer", "cutlass_dsl", "fla")  # that times depend on, as run.json names them
LONGEST = 10_000  # characters of a name that are kept; the longest names of template kernels have about 4,000
# Control characters, line separators, what turns the direction of the text around, halves of surrogate pairs, and what
# neither XML nor fonts know. Joiners and variation selectors, which scripts and emoji need, stay.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffc\ufffe\uffff]"
)


def readable(name) -> str:
    r"""Return a name as one line of printable text: what cannot be printed becomes its escape, such as \x1b or \u202e.

    A name longer than LONGEST ends in "…". readable() of its own result changes nothing.
    """
    text = str(name)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def gpu_short_name(name: str) -> str:
    """A GPU as data/measured names it: "NVIDIA H100 80GB HBM3" -> "h100", "NVIDIA GeForce RTX 4090" -> "rtx-4090"."""
    if model := re.search(r"\b[A-Z]{1,2}\d{2,4}[A-Z]?\b", name):
        return model[0].lower()
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce", "tesla", "quadro"))
