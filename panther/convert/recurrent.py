"""Input weights of nn.LSTM, nn.GRU and nn.RNN as layers during conversion, where the module allows it.

See docs/decisions/0080-input-weights-of-recurrent-layers.md.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


def is_plain_recurrent(module: nn.Module) -> bool:
    """Whether it is torch's own layer: no subclass, no projection, no shared parameters."""
    if type(module) not in _KINDS or "forward" in module.__dict__ or not isinstance(module, nn.RNNBase):
        return False
    parameters = {id(parameter) for parameter in module._parameters.values()}
    own = all(id(weight) in parameters for weight in module._flat_weights)
    return own and not module.proj_size and not parametrize.is_parametrized(module)
