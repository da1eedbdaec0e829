"""Run Snakemake with the commands of this Python's environment, activated or not.

Whether another build is running is asked first, so that the answer comes at once; the
Snakefile takes the lock.

usage: python tools/build.py [SNAKEMAKE ARGUMENTS]
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from hessinit_book.records.build_lock import take_build_lock
from hessinit_book.records.freshness import stale
from hessinit_lib.errors import UserError


def main() -> None:
    """Look at the lock and become Snakemake."""
    try:
        os.close(take_build_lock())
    except UserError as error:
        sys.exit(str(error))
    given = sys.argv[1:]
    profile = next((text[8:] for text in given if text.startswith("profile=")), "quick")
    # Where Snakemake has kept no notes, as in a fresh clone, what is there counts as done.
    with contextlib.suppress(UserError):  # which the Snakefile tells
        again = stale(profile)
        given += ["--forcerun", *again] if again else []
    tools = Path(sys.executable).parent
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *given])


if __name__ == "__main__":
    main()
