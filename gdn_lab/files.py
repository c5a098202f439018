"""Files that are either whole or not there."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path):
    """Yield a temporary path next to `path`; rename it to `path` if the block succeeds, remove it if it fails.

    The temporary name contains the process id, so that two processes that write the same file do not mix. What an
    earlier process left under that name is removed first. Raises OSError where the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
