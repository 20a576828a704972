"""The networks of the paper's experiments (so far: tables, section 4.1)."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; biases start at 0 (the public Boston notebook)."""

    def __init__(self, columns: int, widths: Sequence[int], outputs: int = 1):
        super().__init__()
        sides = [columns, *widths, outputs]
        layers: list[nn.Module] = []
        for before, after in pairwise(sides):
            linear = nn.Linear(before, after)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return self.layers(x)
