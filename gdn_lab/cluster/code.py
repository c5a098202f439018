"""Which code a job runs: the commit, and with changes a hash of them."""

import hashlib
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def code_id(root: Path = ROOT) -> str:
    """The commit of a checkout; with changes of what runs "<commit>-<hash of the sources>-dirty".

    Of a copy without .git it is what GDN_LAB_COMMIT says; without that, "<hash of the sources>-dirty".
    """
    try:
        status = _git(root, "status", "--porcelain", "--", "gdn_lab", "notebooks", "tests")
        commit = _git(root, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("GDN_LAB_COMMIT") or f"{sources_hash(root)}-dirty"
    return commit if not status else f"{commit}-{sources_hash(root)}-dirty"


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def sources_hash(root: Path) -> str:
    """8 hexadecimal digits over the package and the notebooks."""
    found = hashlib.sha256()
    for path in sorted([*(root / "gdn_lab").rglob("*.py"), *(root / "notebooks").glob("*.ipynb")]):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:8]
