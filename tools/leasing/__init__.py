"""Work for a GPU that is there for half an hour: what travels, what is run, what comes back.

The machine is bare: it has Python 3.12, torch, numpy and what goes with them, but no network, and
nothing of this project installed. A call carries the working tree and a folder, within a limit;
files come back within another. `tools/lease.py` is the command.
"""
