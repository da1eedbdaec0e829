"""Other papers' initializers: LSUV, MetaInit, GradInit, Fixup."""
