"""Say in one line why this Python cannot run the project, before anything is installed.

Runs on any Python, however old.

usage: PYTHON tools/fits.py OLDEST WHAT-TO-DO
"""

import os
import platform
import struct
import sys
import sysconfig

NEWEST = (3, 13)
GLIBC = (2, 28)


def facts():
    """Give what decides, as a dictionary."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")  # "glibc 2.36"
    except (AttributeError, ValueError, OSError):
        libc = None
    try:
        import ensurepip  # noqa: F401 - Debian has it in a package of its own
        import venv  # noqa: F401

        has_venv = True
    except ImportError:
        has_venv = False
    return {
        "version": tuple(sys.version_info[:2]),
        "implementation": platform.python_implementation(),
        "bits": 8 * struct.calcsize("P"),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "system": platform.system(),
        "machine": platform.machine(),
        "libc": libc,
        "has_venv": has_venv,
    }


def misfit(oldest, found):
    """Name the first thing that does not fit; None if all fits.

    Args:
        oldest: the oldest version that will do, such as (3, 11).
        found: what `facts` gives.
    """
    version = found["version"]
    expected = "%d.%d to %d.%d" % (tuple(oldest) + NEWEST)
    if version < oldest:
        return "this is Python %d.%d, expected %s" % (version + (expected,))
    if version > NEWEST:
        return "this is Python %d.%d, for which gensim has no wheel; expected %s" % (
            version + (expected,)
        )
    if found["implementation"] != "CPython":
        return "this is %s, for which PyTorch has no wheel; expected CPython %s" % (
            found["implementation"],
            expected,
        )
    if found["bits"] != 64:
        return "this Python has %d bits, PyTorch has no wheel for it; expected 64" % found["bits"]
    if found["free_threaded"]:
        return "this Python is free-threaded, gensim has no wheel for it; expected a usual one"
    if found["system"] == "Darwin" and found["machine"] == "x86_64":
        return "this is a Python for Intel Macs, for which PyTorch has no wheel; expected arm64"
    if found["system"] == "Linux":
        name, _, number = (found["libc"] or "").partition(" ")
        if name != "glibc":
            return "this Linux has no glibc (Alpine?), PyTorch has no wheel for it"
        if tuple(map(int, number.split(".")[:2])) < GLIBC:
            return "this Linux has glibc %s, expected %d.%d or newer" % ((number,) + GLIBC)
    if not found["has_venv"]:
        return "this Python cannot make a .venv (on Debian: apt install python3-venv)"
    return None


if __name__ == "__main__":
    found = misfit(tuple(map(int, sys.argv[1].split("."))), facts())
    if found:
        sys.exit("make: %s: %s" % (found, sys.argv[2]))
