"""Other papers' initializers, for the contest: MetaInit, GradInit, Fixup, ZerO, TAT."""
