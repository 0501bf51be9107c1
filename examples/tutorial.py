"""The tutorial as a script in cells: two networks trained side by side, their costs, and where sketching pays.

    python examples/tutorial.py        a few seconds on two cores

Editors that know ``# %%`` (VS Code, Spyder, PyCharm) run it cell by cell; ``jupytext --to ipynb`` makes a notebook of
it.
"""

# %% [markdown]
# # Sketched linear layers
# A dense layer computes `y = x @ W.T + bias`. A sketched one computes `y = (x @ A) @ B / (2 * L) + bias`: half of `A`
# and of `B` is learned (S), the other half are random signs that stay (U).

# %%
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import panther as pr
from panther.train import evaluate, fit, load_digits

torch.manual_seed(0)
torch.set_num_threads(1)  # small products: a second thread would mostly wait

# %% [markdown]
# ## What a layer costs
# Three counts, never one that hides another. The tutorial of panther-ml loses the bias here, and prints 4,194,304.

# %%
layer = pr.nn.SKLinear(4096, 4096, num_terms=4, low_rank=128)
count = layer.parameter_count()
print(f"dense {count.dense:,}, learnable {count.learnable:,}, fixed {count.fixed:,}")
print(f"learnable: {100 * (1 - count.learnable / count.dense):.1f}% less than dense")
print(f"learnable and fixed: {100 * (1 - (count.learnable + count.fixed) / count.dense):.1f}% less than dense")

# %% [markdown]
# ## It is one matrix of low rank
# The layer computes what a dense layer with this weight computes, and can become one.

# %%
small = pr.nn.SKLinear(96, 80, num_terms=2, low_rank=8)
x = torch.randn(5, 96)
difference = (small(x) - small.to_linear()(x)).abs().max()
rank = torch.linalg.matrix_rank(small.dense_weight())
print(f"difference to its dense twin {difference:.1e}; rank {rank} of at most 2Lk = 32")

# %% [markdown]
# ## Two networks side by side
# The tutorial's 784 → 512 → 256 → 10, on real digits. `fc3` is so small that sketching gains nothing: it is dense.


# %%
class Net(nn.Module):
    """784 → 512 → 256 → 10."""

    def __init__(self, fc1: nn.Module, fc2: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = fc1, fc2, nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows (N, 784) to logits (N, 10)."""
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


networks = {
    "dense": Net(nn.Linear(784, 512), nn.Linear(512, 256)),
    "sketched": Net(pr.nn.SKLinear(784, 512, 2, 64), pr.nn.SKLinear(512, 256, 2, 32)),
}
data = load_digits()
train, test = TensorDataset(data.train_x, data.train_y), TensorDataset(data.test_x, data.test_y)
for name, network in networks.items():
    batches = DataLoader(train, batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))
    fit(network, batches, epochs=8, lr=2e-3)
    accuracy = evaluate(network, DataLoader(test, batch_size=512))
    learnable = sum(parameter.numel() for parameter in network.parameters())
    print(f"{name}: {learnable:,} learnable parameters, accuracy {accuracy:.3f} on held-out digits")

# %% [markdown]
# ## Looking inside
# The report has the counts, bytes, multiply-adds and the measured latency of each layer beside its dense twin.

# %%
print(pr.analyze(networks["sketched"]))

# %% [markdown]
# ## Where it pays
# Sizes that really save; the table of the original tutorial suggests some that store more than the dense layer.

# %%
for d_in, d_out, num_terms, low_rank in ((1024, 512, 2, 32), (1024, 1024, 8, 64)):
    efficient, reduction = pr.check_parameter_efficiency(d_in, d_out, num_terms, low_rank)
    print(f"{d_in}→{d_out}, L={num_terms}, k={low_rank}: efficient={efficient}, {reduction:.1f}% less stored")
print("at least three quarters less of 2048→2048:", pr.suggest(2048, 2048, reduction=0.75))
