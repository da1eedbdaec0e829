"""Layer Hessians in the tools that people train with.

`loggers.py` sends reports to any logger, from any training loop;
`lightning.py` is a callback for Lightning (the package's extra `lightning`).
"""
