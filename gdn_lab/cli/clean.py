"""gdn-lab clean: remove old run folders; the newest of each notebook are kept."""

import shutil
from collections import Counter
from pathlib import Path

from .errors import BatchError, UsageError
from .run import add_runs, folder_of_runs, shown
from .run_folders import batches, run_folders


def add_arguments(parser) -> None:
    """Add the command's arguments to an argparse parser."""
    parser.add_argument("--keep", type=int, default=10, metavar="N", help="runs of each notebook to keep (default: 10)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")
    add_runs(parser)


def run(arguments) -> None:
    """Remove all but the newest N runs of each notebook, and write the page of all runs again."""
    if arguments.keep < 0:
        raise UsageError(f"--keep: expected a whole number from 0 up, got {arguments.keep}")
    root = folder_of_runs(arguments.runs)
    old = superfluous(root, arguments.keep)
    size = sum(each.bytes for each in old)
    for each in old:
        if not arguments.dry_run:
            _remove(each.folder)
        print(f"{'would remove' if arguments.dry_run else 'removed'} {shown(each.folder)}")
    if not arguments.dry_run and old:
        _tidy(root)
    print(f"{len(old)} runs, {size / 1e6:,.0f} MB{' would go' if arguments.dry_run else ''}.")


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        reason = error.strerror or error
        raise BatchError(f"cannot remove {shown(folder)}: {reason}; make it writable, or remove it yourself") from None


def superfluous(root: Path, keep: int) -> list:
    """Return the runs beyond the newest `keep` of each notebook; one that is running is never among them."""
    seen, old = Counter(), []
    for each in run_folders(root):
        seen[each.notebook] += 1
        if seen[each.notebook] > keep and each.status != "running":
            old.append(each)
    return old


def _tidy(root: Path) -> None:
    """Remove the pages of commands none of whose runs are left, a link to a removed run, and write the index again."""
    from .index import write_index

    left = {each.folder.name for each in run_folders(root)}
    for folder, about in batches(root):
        if not left & set(about["runs"]):
            _remove(folder)
    latest = root / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    write_index(root)
