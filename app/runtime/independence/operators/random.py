"""Operators that draw random numbers, and others of which a row's answer is no function of the row."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import mixes


@operator(
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", counts=True,
    places=True,
)  # fmt: skip
def draw(call: Call) -> Result:
    """Random numbers."""
    del call
    raise mixes("draws random numbers, so that an answer depends on the place of its row in the batch")
