"""One build at a time in a folder: a lock that ends with the process that holds it.

Snakemake's own lock outlives a killed run and has to be taken off by hand. This one is held
by the operating system: it is gone when the process is gone, however it ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

from hessinit_lib.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def take_build_lock(folder: str | os.PathLike[str] = "_build") -> int:
    """Take the lock, for as long as the process lives or the file is open.

    Args:
        folder: folder of the build; made if it does not exist.

    Returns:
        The open file. Processes that are started do not inherit it.

    Raises:
        UserError: another process has it.

    Example:
        `os.close(take_build_lock())` says whether another build is running.
    """
    path = Path(folder, "lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            "build: another build is running in this folder; wait for it or stop it"
        ) from None
    except OSError as error:  # some network file systems
        if error.errno not in _NO_LOCKS:
            raise
        print(f"build: no lock, start no second build here: {error.strerror}", file=sys.stderr)
    return handle
