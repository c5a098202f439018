"""What commands raise, and the exit status and the line on stderr that follow."""

import os
import sys
from collections.abc import Callable


class UsageError(Exception):
    """The command names something that is not there. One sentence: what, and the choices."""


class BatchError(Exception):
    """A run could not be made or did not finish. One sentence: what happened, and where to look."""


class Interrupted(Exception):
    """The user stopped a run. One sentence: what is kept, and where."""


def exit_status(do: Callable[[], int | None], failures: tuple[type[Exception], ...] = ()) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 usage error, 130 interrupted.

    do: the command; what it returns is its status, None is 0. failures: exceptions other than BatchError whose message
    is one sentence for the user. What went wrong is printed on stderr in one line; any other exception is a bug and
    passes through.
    """
    try:
        return do() or 0
    except UsageError as error:
        status, sentence = 2, error
    except (BatchError, *failures) as error:
        status, sentence = 1, error
    except Interrupted as error:
        status, sentence = 130, error
    except KeyboardInterrupt:
        status, sentence = 130, "interrupted"
    except BrokenPipeError:  # the reader of our output has gone, as `gdn-lab list | head -1` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    print(f"gdn-lab: {sentence}", file=sys.stderr)
    return status
