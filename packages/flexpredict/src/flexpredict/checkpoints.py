"""Published checkpoints: read, tell what they hold, write. Nothing in a file is ever executed.

Layouts: StoP's and I-JEPA's (a dictionary of encoders and a predictor), V-JEPA's (one more level), VISSL's
(nested, what StoP's probes use), transformers' I-JEPA (query, key and value apart, no predictor), bare
weights, and runs of ours. Sizes are read from shapes and never from names.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from paperkit import UserError
from paperkit.run import atomic, checkpoints, fill, find, load_checkpoint, load_foreign, write_json
from torch import Tensor

from flexpredict.config import Layout, NetConfig
from flexpredict.method import sincos_grid
from flexpredict.model import Encoder

Weights = dict[str, Tensor]
Part = Literal["target", "context"]

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Attention heads by width: shapes do not tell them."""
NAMES = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H", 1408: "g"}
"""Letters of the published widths."""
_NESTED = {"target": ("target_encoder", "teacher"), "context": ("encoder",), "predictor": ("predictor",)}


# ---- sizes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What the shapes of an encoder's weights say."""

    patch: int
    frames: int
    """Frames of a patch: 1 for images."""
    channels: int
    grid: tuple[int, int]
    width: int
    depth: int

    def __str__(self) -> str:
        letter = NAMES.get(self.width)
        name = f"ViT-{letter}/{self.patch}" if letter else f"ViT of width {self.width}, patch {self.patch}"
        side = self.grid[0] * self.patch
        video = f", patches of {self.frames} frames" if self.frames > 1 else ""
        return f"{name}, {self.depth} blocks, {self.grid[0]}x{self.grid[1]} patches ({side} pixels){video}"


def sizes_of(weights: Mapping[str, Tensor], source: str) -> Sizes:
    """Read an encoder's sizes from its weights. Raises `UserError` when these are no vision transformer."""
    for key in ("patch_embed.proj.weight", "pos_embed"):
        if key not in weights:
            raise UserError(f"{source} has no {key}: it holds no vision transformer of a layout that we know")
    kernel, tokens = weights["patch_embed.proj.weight"], weights["pos_embed"].shape[-2]
    frames = kernel.shape[2] if kernel.ndim == 5 else 1
    side = math.isqrt(tokens)
    if frames == 1 and side * side != tokens:
        more = ": it has a class token, which these methods lack" if (side * side == tokens - 1) else ""
        raise UserError(f"{source} has {tokens} positions, which is no square grid{more}")
    depth = 1 + max((int(m[1]) for key in weights if (m := re.match(r"blocks\.(\d+)\.", key))), default=-1)
    return Sizes(kernel.shape[-1], frames, kernel.shape[1], (side, side), len(kernel), depth)


# ---- reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by our names of parts and weights."""

    source: str
    layout: str
    target: Weights | None = None
    """The averaged encoder, which is evaluated."""
    context: Weights | None = None
    """The encoder that was trained."""
    predictor: Weights | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers that stand beside the weights: epoch, batch_size, lr, ..."""
    optimiser: Mapping[str, Any] | None = None
    """AdamW's state as the file has it, by number; None where there is none. See `moments`."""

    @property
    def stepped(self) -> int | None:
        """For how many parameters the optimiser has moments; None where the file has no optimiser."""
        return None if self.optimiser is None else len(self.optimiser.get("state", {}))

    def encoder_weights(self, part: Part = "target") -> Weights:
        """One encoder's weights; the other one's where the file holds one only."""
        found = (self.target, self.context) if part == "target" else (self.context, self.target)
        for weights in found:
            if weights:
                return weights
        raise UserError(f"{self.source} holds no encoder")

    def sizes(self) -> Sizes:
        """Of the encoder."""
        return sizes_of(self.encoder_weights(), self.source)

    def net(self, heads: int = 0) -> NetConfig:
        """The configuration that these weights fit. Raises `UserError` where `heads` must be given."""
        sizes = self.sizes()
        heads = heads or HEADS.get(sizes.width, 0)
        if not heads:
            raise UserError(
                f"{self.source} has width {sizes.width}, which is none of the published ones: say --heads"
            )
        return NetConfig(sizes.patch, sizes.width, sizes.depth, heads)

    def encoder(self, part: Part = "target", heads: int = 0) -> Encoder:
        """The encoder, ready to use. Raises `UserError` for video encoders and what does not fit."""
        sizes = self.sizes()
        if sizes.frames > 1:
            raise UserError(f"{self.source} is a video encoder ({sizes}): ours are for images")
        encoder = Encoder(self.net(heads), sizes.channels, sizes.grid)
        fill(encoder, self.encoder_weights(part), self.source)
        return encoder.eval()


def read(where: str | Path) -> Checkpoint:
    """Read a checkpoint file of any layout, or the last checkpoint of a run of ours.

    Raises `UserError` for a file that is missing, damaged, holds more than data, or is of no known layout.
    """
    path = Path(where)
    if str(where) == "latest" or path.is_dir():
        return _read_run(find("flexpredict", where))
    if not path.is_file():
        raise UserError(f"there is no file or run folder {path}")
    return _sorted_out(load_foreign(path), path.name)


def _read_run(folder: Path) -> Checkpoint:
    saved = checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet")
    weights, state = load_checkpoint(saved[-1])
    parts = {name: {} for name in ("encoder", "predictor")}
    for key, value in weights["learner"].items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    parts["predictor"] = _published_predictor(parts["predictor"])
    return Checkpoint(
        str(folder), "run", weights["average"], parts["encoder"], parts["predictor"],
        {"step": int(saved[-1].name)}, state["optimiser"],
    )  # fmt: skip


def _published_predictor(weights: Weights) -> Weights:
    """Our predictor's weights by the published names."""
    renamed = {key: value for key, value in weights.items() if key != "position.psi"}
    return {**renamed, "predictor_pos_embed": weights["position.psi"][None]}


def own_predictor(weights: Weights) -> Weights:
    """A published predictor's weights by our names."""
    renamed = {key: value for key, value in weights.items() if key != "predictor_pos_embed"}
    return {**renamed, "position.psi": weights["predictor_pos_embed"][0]}


def _sorted_out(content: Any, source: str) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise UserError(f"{source} holds a {type(content).__name__}, not a dictionary of weights")
    if "classy_state_dict" in content:
        try:
            trunk = content["classy_state_dict"]["base_model"]["model"]["trunk"]
        except (KeyError, TypeError):
            raise UserError(f"{source} looks like VISSL's layout and has no base_model.model.trunk") from None
        return Checkpoint(source, "vissl", target=canonical(trunk))
    nested = {
        part: canonical(content[name])
        for part, names in _NESTED.items()
        for name in names
        if isinstance(content.get(name), Mapping)
    }
    if nested.keys() & {"target", "context"}:
        wrapped = any(key.removeprefix("module.").startswith("backbone.") for key in _keys(content))
        facts = {k: v for k, v in content.items() if isinstance(v, int | float | str)}
        opt = content.get("opt")
        optimiser = opt if isinstance(opt, Mapping) else None
        return Checkpoint(source, "vjepa" if wrapped else "stop", **nested, facts=facts, optimiser=optimiser)
    if not all(isinstance(value, Tensor) for value in content.values()) or not content:
        raise UserError(
            f"{source} has the keys {', '.join(map(str, list(content)[:5]))}: no layout that we know"
        )
    if any("patch_embeddings.projection" in key for key in content):
        return Checkpoint(source, "transformers", target=_from_transformers(content))
    return Checkpoint(source, "bare", target=canonical(content))


def moments(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """AdamW's state of a released checkpoint by our names (encoder.…, predictor.…); {} where it has none.

    The file numbers parameters group by group: the encoder's that decay, the predictor's, then those of both
    that do not (biases and vectors). What was frozen or unused has a number and no state. Raises `UserError`
    for an optimiser of other groups or shapes.
    """
    opt, parts = checkpoint.optimiser, {"encoder": checkpoint.context, "predictor": checkpoint.predictor}
    if opt is None or checkpoint.layout not in ("stop", "vjepa"):
        return {}
    names = [
        [f"{part}.{key}" for key, w in (weights or {}).items() if (w.ndim == 1 or "bias" in key) == plain]
        for plain in (False, True)
        for part, weights in parts.items()
    ]
    numbers = [list(group["params"]) for group in opt.get("param_groups", [])]
    if [*map(len, names)] != [*map(len, numbers)]:
        raise UserError(
            f"{checkpoint.source}: its optimiser has groups of {[*map(len, numbers)]} parameters, its "
            f"weights make {[*map(len, names)]}"
        )
    found = {}
    for group, own in zip(names, numbers, strict=True):
        for name, number in zip(group, own, strict=True):
            part, key = name.split(".", 1)
            state = opt["state"].get(number)
            if state is None:
                continue
            if state["exp_avg"].shape != (parts[part] or {})[key].shape:
                raise UserError(f"{checkpoint.source}: the optimiser's state of {name} has another shape")
            found[name] = {k: torch.as_tensor(v) for k, v in state.items()}
    return found


def _keys(content: Mapping[str, Any]) -> list[str]:
    return [key for part in content.values() if isinstance(part, Mapping) for key in map(str, part)]


def canonical(weights: Mapping[str, Tensor]) -> Weights:
    """The names without the levels that wrappers add; V-JEPA's first mask token is the mask token."""
    found = {key.removeprefix("module.").removeprefix("backbone."): w for key, w in weights.items()}
    if "mask_tokens.0" in found:
        found["mask_token"] = found.pop("mask_tokens.0")
    return found


# ---- transformers ----------------------------------------------------------------------------------------

_LAYER = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip
_NEWER = {
    "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense", "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key", "attention.v_proj": "attention.attention.value",
}  # fmt: skip
"""Names of transformers 5 in memory; its files have the older ones."""
_QKV = ("query", "key", "value")


def _from_transformers(content: Mapping[str, Tensor]) -> Weights:
    old = {_older(key.removeprefix("ijepa.")): value for key, value in content.items()}
    found = {
        "pos_embed": old["embeddings.position_embeddings"],
        **{f"patch_embed.proj.{w}": old[f"embeddings.patch_embeddings.projection.{w}"] for w in _WB},
        **{f"norm.{w}": old[f"layernorm.{w}"] for w in _WB},
    }
    depth = 1 + max(int(m[1]) for key in old if (m := re.match(r"encoder\.layer\.(\d+)\.", key)))
    for number in range(depth):
        layer = f"encoder.layer.{number}"
        for w in _WB:
            qkv = [old[f"{layer}.attention.attention.{name}.{w}"] for name in _QKV]
            found[f"blocks.{number}.attn.qkv.{w}"] = torch.cat(qkv)
            for ours, theirs in _LAYER.items():
                found[f"blocks.{number}.{ours}.{w}"] = old[f"{layer}.{theirs}.{w}"]
    return found


_WB = ("weight", "bias")


def _older(key: str) -> str:
    """A name of transformers 5 in memory as its files have it."""
    if not (m := re.match(r"layers\.(\d+)\.(.*)\.(weight|bias)$", key)):
        return key
    return f"encoder.layer.{m[1]}.{_NEWER.get(m[2], m[2])}.{m[3]}"


def _to_transformers(weights: Weights) -> Weights:
    found = {
        "embeddings.position_embeddings": weights["pos_embed"],
        **{f"embeddings.patch_embeddings.projection.{w}": weights[f"patch_embed.proj.{w}"] for w in _WB},
        **{f"layernorm.{w}": weights[f"norm.{w}"] for w in _WB},
    }
    for number in range(sizes_of(weights, "the encoder").depth):
        layer = f"encoder.layer.{number}"
        for w in _WB:
            parts = weights[f"blocks.{number}.attn.qkv.{w}"].chunk(3)
            for name, part in zip(_QKV, parts, strict=True):
                found[f"{layer}.attention.attention.{name}.{w}"] = part
            for ours, theirs in _LAYER.items():
                found[f"{layer}.{theirs}.{w}"] = weights[f"blocks.{number}.{ours}.{w}"]
    return found


# ---- writing ---------------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, layout: Layout, path: Path, part: Part = "target", heads: int = 0) -> Path:
    """Write a checkpoint in another layout; transformers' has a config.json beside it.

    Raises `UserError` where the layout needs a part that the checkpoint lacks.
    """
    if layout == "transformers":
        return _write_transformers(checkpoint, path, part, heads)
    if layout == "vissl":
        trunk = {"trunk": checkpoint.encoder_weights(part), "heads": {}}
        content: dict[str, Any] = {"classy_state_dict": {"base_model": {"model": trunk}}}
    else:
        if checkpoint.predictor is None:
            raise UserError(
                f"{checkpoint.source} has no predictor, which the layout {layout} needs: "
                "use vissl or transformers"
            )
        prefix = "module." if layout == "stop" else "module.backbone."
        parts = {
            "encoder": checkpoint.encoder_weights("context"),
            "predictor": checkpoint.predictor,
            "target_encoder": checkpoint.encoder_weights("target"),
        }
        content = {name: _wrapped(weights, prefix, layout) for name, weights in parts.items()}
        content["epoch"] = int(checkpoint.facts.get("epoch", 0))
    with atomic(path) as stream:
        torch.save(content, stream)
    return path


def _wrapped(weights: Weights, prefix: str, layout: str) -> Weights:
    names = {"mask_token": "mask_tokens.0"} if layout == "vjepa" else {}
    return {f"{prefix}{names.get(key, key)}": value.clone() for key, value in weights.items()}


def _write_transformers(checkpoint: Checkpoint, path: Path, part: Part, heads: int) -> Path:
    from safetensors.torch import save

    weights, net, sizes = checkpoint.encoder_weights(part), checkpoint.net(heads), checkpoint.sizes()
    renamed = {key: value.contiguous() for key, value in _to_transformers(weights).items()}
    config = {
        "architectures": ["IJepaModel"], "model_type": "ijepa", "hidden_size": net.width,
        "num_hidden_layers": net.depth, "num_attention_heads": net.heads,
        "intermediate_size": len(weights["blocks.0.mlp.fc1.weight"]), "hidden_act": "gelu",
        "image_size": sizes.grid[0] * sizes.patch, "patch_size": sizes.patch,
        "num_channels": sizes.channels, "layer_norm_eps": 1e-6, "qkv_bias": True,
    }  # fmt: skip
    with atomic(path) as stream:
        if path.suffix == ".safetensors":
            stream.write(save(renamed, {"format": "pt"}))
        else:
            torch.save(renamed, stream)
    write_json(path.with_name("config.json"), config)
    return path


# ---- forensics -------------------------------------------------------------------------------------------


def positions_apart(weights: Weights, sizes: Sizes) -> float:
    """Largest difference of the stored positions from regenerated sines and cosines."""
    wanted = sincos_grid(*sizes.grid, sizes.width)
    return float((weights["pos_embed"][0] - wanted).abs().max())


def looks_untrained(token: Float[Tensor, "*b d"], std: float = 0.02) -> bool:
    """Whether numbers may still be a draw from N(0, std^2): Kolmogorov and Smirnov at 1 %."""
    from scipy.stats import kstest

    return float(kstest(token.flatten().double().numpy(), "norm", args=(0, std)).pvalue) > 0.01


def contradiction(name: str, sizes: Sizes) -> str:
    """What a file's name says against what it holds, '' where they agree or it says nothing."""
    said = re.search(r"vit[-_]?(b|l|h|g)[-_]?(\d\d)", name.lower())
    held = NAMES.get(sizes.width, "?").lower(), str(sizes.patch)
    if not said or said.groups() == held:
        return ""
    return f"its name says {said[1].upper()}/{said[2]}, this file is {held[0].upper()}/{held[1]}"
