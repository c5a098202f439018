"""Files that are either whole or not there."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path):
    """Yield a temporary path next to `path`, and rename it to `path` if the block succeeds; remove it if it fails.

    The temporary path is a name of this process alone, so two processes that write the same file do not mix. OSError
    passes through.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
