"""Operators with results that are not a function of the row, such as random numbers."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import mixes


@operator(
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", counts=True,
    places=True,
)  # fmt: skip
def draw(call: Call) -> Result:
    """Random numbers."""
    del call
    raise mixes("draws random numbers, so a result depends on the position of its row in the batch")
