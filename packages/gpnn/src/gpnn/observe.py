"""Runs the authors' released code as it stands and writes down each of its search steps.

A script, run by `parity` in a process of its own and never imported: their module is called `gpnn` as well.
It takes the folder of their checkout, a file of inputs and a file to write; needs only what their code needs.
Their functions are watched from outside, wrapped when they have been imported; no file of theirs is changed.
"""

import importlib
import sys
from typing import Any

import numpy as np
import torch


class Watch:
    """Query, keys and answer of every step, and the values of every level."""

    def __init__(self, theirs: Any) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.count = self.level = 0
        self.key: Any = None
        self.index = torch.empty(0)
        step, find = theirs.pnn, theirs.find_normalized_nearest_neighbors

        def find_and_keep(*words: Any, **more: Any) -> Any:
            found = find(*words, **more)
            self.index = found[1].flatten()
            return found

        def step_and_keep(query: Any, key: Any, value: Any, **more: Any) -> Any:
            y = step(query, key=key, value=value, **more)
            if self.key is None or key is not self.key:
                self.key, self.level = key, self.level + 1
                self.keep(f"key_{self.level}", key)
                self.keep(f"value_{self.level}", value)
            self.keep(f"query_{self.count}", query)
            self.keep(f"index_{self.count}", self.index)
            self.keep(f"output_{self.count}", y)
            self.arrays[f"level_{self.count}"] = np.array(self.level)
            self.count += 1
            return y

        theirs.find_normalized_nearest_neighbors, theirs.pnn = find_and_keep, step_and_keep

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """A copy as an array."""
        self.arrays[name] = tensor.detach().clone().numpy()


def call(applications: Any, given: dict[str, np.ndarray]) -> torch.Tensor:
    """One of their applications on the given images."""
    images = [torch.from_numpy(given[name]) for name in ("image", "other") if name in given]
    task, ratio = str(given["task"]), float(given["ratio"])
    common = {"alpha": float(given["alpha"]), "downscale_ratio": ratio, "num_levels": int(given["levels"])}
    if task == "generate":
        noise = torch.from_numpy(given["noise"])
        torch.randn_like = lambda like: noise  # the noise that ours takes, in place of a draw
        return applications.generation(*images, noise_std=float(given["sigma"]), **common)
    if task == "retarget":
        return applications.retargeting(*images, (1.0, float(given["width"])), **common)
    return getattr(applications, {"edit": "editing", "analogy": "structural_analogy"}[task])(
        *images, **common
    )


def main(checkout: str, inputs: str, target: str) -> None:
    """Read, run, write."""
    sys.path.insert(0, checkout)  # ahead of this script's own folder, and of any installed package
    watch = Watch(importlib.import_module("gpnn"))
    with np.load(inputs) as given:
        watch.keep("result", call(importlib.import_module("applications"), dict(given)))
    np.savez(target, steps=np.array(watch.count), **watch.arrays)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main(*sys.argv[1:])
