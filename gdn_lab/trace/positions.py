"""Tell by its position which part of a step a kernel of a CUDA graph belongs to.

One call launches all kernels of a replay, so no range around a part encloses them. But the graph of a step holds the
step's kernels, and a replay runs them in the order in which an eager run of the same step launches them: kernel i of a
replay is kernel i of the eager run.
"""


def parts_of_replays(
    eager: list[tuple[str, str]], replays: list[list[tuple[str, int, int]]]
) -> list[list[tuple[str, int, int]]]:
    """Return (part, start, end) of each kernel of each replay, in order.

    eager: (kernel name, part) of one eager step, in the order of launch. replays: (kernel name, start, end) of each
    replay, in order of start; the graph of n steps repeats the eager sequence n times. ValueError, one sentence, if the
    number of kernels of a replay is not a multiple of the eager run's, or if a kernel's name differs from the one at
    its position there.
    """
    return [_parts(eager, replay, number) for number, replay in enumerate(replays, 1)]


def _parts(eager, replay, number: int) -> list[tuple[str, int, int]]:
    if not eager or not replay or len(replay) % len(eager):
        raise ValueError(
            f"replay {number} has {len(replay)} kernels, expected a multiple of the {len(eager)} of the eager run: "
            "they did not run the same step, or the profiler lost records; record both anew"
        )
    parts = []
    for place, (name, start, end) in enumerate(replay):
        expected, part = eager[place % len(eager)]
        if name != expected:
            raise ValueError(
                f"kernel {place + 1} of replay {number} is {name}, but the eager run has {expected} there: they did "
                "not run the same step, or kernels of several streams changed places; record both anew"
            )
        parts.append((part, start, end))
    return parts
