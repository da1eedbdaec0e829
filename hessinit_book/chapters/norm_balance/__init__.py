"""Which norms do the known rules balance: of a sample, of a batch, literal or per input?"""
