"""Layer Hessians in the tools that people train with.

`loggers.py` feeds the logger that is there already, from a plain loop or from anywhere;
`lightning.py` is a callback for Lightning (the package's extra `lightning`).
"""
