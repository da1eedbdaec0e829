"""Norms of the blocks of the Hessian in pairs of layers."""
