"""What the tests of panther share."""

from __future__ import annotations

import torch

# Two threads on two cores that others use too wait for each other at every small product: ten times slower than one.
torch.set_num_threads(1)
