"""Truncated and randomized SVD: public path of `panther.linalg.svd`."""

from panther.linalg.svd import TruncatedSVD, randomized_svd, truncated_svd

__all__ = ["TruncatedSVD", "randomized_svd", "truncated_svd"]
