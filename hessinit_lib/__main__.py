"""The command line: `python -m hessinit_lib diagnose package.module:factory`."""

from __future__ import annotations

import sys

from hessinit_lib.diagnosis.command import main

if __name__ == "__main__":
    sys.exit(main())
