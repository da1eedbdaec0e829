"""Run Snakemake under a lock that dies with it.

Snakemake's own lock outlives a killed run and has to be taken off by hand. This one is
held by the operating system: it is gone when the process is gone, however it ended.

usage: python tools/build.py [SNAKEMAKE ARGUMENTS]
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path


def main() -> None:
    """Take the lock and become Snakemake."""
    folder = Path("_build")
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("build: another build is running in this folder; wait for it or stop it")
    os.set_inheritable(handle, True)  # through exec, not to the jobs: Snakemake closes it there
    # The venv's papermill and jupyter-book, whether or not it is activated.
    tools = Path(sys.executable).parent
    os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execv(tools / "snakemake", ["snakemake", "--nolock", *sys.argv[1:]])


if __name__ == "__main__":
    main()
