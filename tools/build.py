"""Run Snakemake with the commands of this Python's environment, activated or not.

Whether another build is running is asked first, so that the answer comes at once; the
Snakefile takes the lock.

usage: python tools/build.py [SNAKEMAKE ARGUMENTS]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hessinit_book.records.build_lock import take_build_lock
from hessinit_lib.errors import UserError


def main() -> None:
    """Look at the lock and become Snakemake."""
    try:
        os.close(take_build_lock())
    except UserError as error:
        sys.exit(str(error))
    tools = Path(sys.executable).parent
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *sys.argv[1:]])


if __name__ == "__main__":
    main()
