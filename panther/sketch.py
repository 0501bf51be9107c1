"""Random sketching matrices: public path of `panther.linalg.sketch`."""

from panther.linalg.sketch import SKETCHES, Sketch, draw_sketches, gaussian_sketch, sign_sketch

__all__ = ["SKETCHES", "Sketch", "draw_sketches", "gaussian_sketch", "sign_sketch"]
