"""Sketches, decompositions, and the linear algebra of sketched layers.

`randomized_svd` and `cqrrpt` have the signatures of the public panther-ml package; `panther.svd.randomized_svd` takes
other arguments.
"""

from panther.linalg.decompositions import SVD, PivotedQR, cqrrpt, randomized_svd

__all__ = ["SVD", "PivotedQR", "cqrrpt", "randomized_svd"]
