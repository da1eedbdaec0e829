"""Gauss-Newton blocks of any network, by pairs of backward passes."""
