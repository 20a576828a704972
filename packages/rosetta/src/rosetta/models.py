"""Networks by name: `timm:NAME`, `tv:NAME`, `hf:ID`, `diffusers:ID`, with `@FILE` for weights of a file.

`timm:resnet50` takes the published weights from the cache (`--download` fetches them),
`timm:resnet50@weights.pth` those of a file, `timm:resnet50@untrained` none. Nothing in a file is executed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from paperkit import UserError, rng, suggest
from paperkit.run import fill, load_foreign
from torch import Tensor, nn

from rosetta.hooks import Network

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
UNTRAINED = "untrained"
TIMESTEP = 250
"""Noise level of 1,000 at which a diffusion model looks at images."""
INSTALL = "install rosetta with its extra models (uv sync --package rosetta --extra models)"


def load(words: str, download: bool = False, seed: int = 0) -> Network:
    """The network that `words` name, in evaluation mode, without its sites (`hooks.discover`).

    Raises `UserError` for an unknown source or name (with the nearest), weights that are not at hand, and a
    file that holds code, is damaged, or is of another network.
    """
    source, colon, rest = words.partition(":")
    if not colon or source not in _SOURCES:
        known = ", ".join(f"{name}:" for name in _SOURCES)
        raise UserError(f"{words}: a network is named by its source and name, one of {known} (timm:resnet50)")
    name, _, weights = rest.partition("@")
    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rng.seed_everything(seed, words)
    network = _SOURCES[source](name, weights)
    if weights and weights != UNTRAINED:
        fill(network.module, state_of(Path(weights), network.module), weights)
    network.name = words if weights != UNTRAINED else f"{source}:{name} (untrained)"
    network.module.eval().requires_grad_(False)
    return network


def inputs(size: int, mean: tuple[float, ...], std: tuple[float, ...]):
    """From images in [-1, 1] to a network's input: three channels, bicubic, antialiased, normalised."""

    def prepare(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 s t"]:
        x = (x + 1) / 2
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        if min(x.shape[2:]) != size:
            scale = size / min(x.shape[2:])
            to = [max(size, round(side * scale)) for side in x.shape[2:]]
            x = F.interpolate(x, to, mode="bicubic", align_corners=False, antialias=scale < 1)
        shape = (1, 3, 1, 1)
        return (x - x.new_tensor(mean).view(shape)) / x.new_tensor(std).view(shape)

    return prepare


# ---- Sources -----------------------------------------------------------------------------------------------


def _timm(name: str, weights: str) -> Network:
    try:
        import timm
        from timm.data import resolve_model_data_config
    except ImportError:
        raise UserError(f"timm:{name} needs timm: {INSTALL}") from None
    known = timm.list_models() + timm.list_models(pretrained=True)
    if name.partition(".")[0] not in known and name not in known:
        raise UserError(f"timm has no model {name}{suggest(name, known)}")
    module = _fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=not weights))
    asked = resolve_model_data_config(module)
    return Network(name, module, prepare=inputs(asked["input_size"][-1], asked["mean"], asked["std"]))


def _torchvision(name: str, weights: str) -> Network:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise UserError(f"torchvision has no model {name}{suggest(name, known)}")
    asked: Any = models.get_model_weights(name)
    if not weights:
        file = Path(torch.hub.get_dir()) / "checkpoints" / asked.DEFAULT.url.rsplit("/", 1)[-1]
        if not file.exists() and os.environ.get("HF_HUB_OFFLINE"):
            raise _missing(f"tv:{name}")
    module = _fetched(
        f"tv:{name}", lambda: models.get_model(name, weights=None if weights else asked.DEFAULT)
    )
    return Network(name, module, prepare=inputs(224, *IMAGENET))


def _transformers(name: str, weights: str) -> Network:
    try:
        import transformers
    except ImportError:
        raise UserError(f"hf:{name} needs transformers: {INSTALL}") from None
    config = _fetched(f"hf:{name}", lambda: transformers.AutoConfig.from_pretrained(name))
    if getattr(config, "vision_config", None) is not None:  # CLIP: its image tower
        kind = getattr(transformers, f"{type(config).__name__.removesuffix('Config')}VisionModel", None)
        config = config.vision_config
    else:
        kind = transformers.AutoModel
    if kind is None:
        raise UserError(f"hf:{name}: transformers has no image tower for {type(config).__name__}")
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0
    if weights:
        module = kind.from_config(config) if kind is transformers.AutoModel else kind(config)
    else:
        module = _fetched(f"hf:{name}", lambda: kind.from_pretrained(name, config=config))
    return of_transformers(name, module)


def of_transformers(name: str, module: Any) -> Network:
    """A vision model of transformers, in order to be read: MAE sees all patches, in their own order."""
    size = getattr(module.config, "image_size", 224)
    size = size if isinstance(size, int) else min(size)
    values = CLIP if "clip" in module.config.model_type else IMAGENET

    def call(module: Any, x: Tensor) -> Any:
        if hasattr(module.config, "mask_ratio"):
            tokens = (x.shape[2] // module.config.patch_size) * (x.shape[3] // module.config.patch_size)
            return module(pixel_values=x, noise=torch.arange(tokens).float().expand(len(x), -1))
        return module(pixel_values=x)

    return Network(name, module, prepare=inputs(size, *values), call=call)


def _diffusers(name: str, weights: str) -> Network:
    try:
        import diffusers
    except ImportError:
        raise UserError(f"diffusers:{name} needs diffusers: {INSTALL}") from None
    folder, _, part = name.partition("#")
    kind = "DiTTransformer2DModel" if part == "transformer" else "UNet2DModel"
    kind = "UNet2DConditionModel" if part == "unet" else kind
    model = getattr(diffusers, kind)
    if weights:
        config = _fetched(f"diffusers:{name}", lambda: model.load_config(folder, subfolder=part or None))
        module = model.from_config(config)
    else:
        module = _fetched(f"diffusers:{name}", lambda: model.from_pretrained(folder, subfolder=part or None))
    return of_diffusers(name, module)


def of_diffusers(name: str, module: Any, timestep: int = TIMESTEP) -> Network:
    """A denoiser of diffusers at one timestep, without a condition; images are its input as they are.

    Note: latent models see the image resized to their latent grid, channels repeated, as no decoder is part.
    """
    config = module.config
    size, channels = config.sample_size, config.in_channels
    size = size if isinstance(size, int) else size[0]

    def prepare(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k s t"]:
        x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=True)
        return x.repeat(1, -(-channels // x.shape[1]), 1, 1)[:, :channels]

    def call(module: nn.Module, x: Tensor) -> Any:
        times = torch.full((len(x),), timestep, device=x.device)
        if "class_labels" in type(module).forward.__code__.co_varnames and config.get("num_embeds_ada_norm"):
            none = torch.full((len(x),), config.num_embeds_ada_norm, device=x.device)
            return module(x, timestep=times, class_labels=none.clamp(max=config.num_embeds_ada_norm))
        if config.get("cross_attention_dim"):
            return module(x, times, x.new_zeros(len(x), 1, config.cross_attention_dim))
        return module(x, times)

    return Network(name, module, prepare=prepare, call=call)


_SOURCES = {"timm": _timm, "tv": _torchvision, "hf": _transformers, "diffusers": _diffusers}


def _fetched(words: str, make: Any) -> Any:
    try:
        return make()
    except (OSError, RuntimeError, ValueError) as error:
        if (
            "offline" in str(error).lower()
            or "cache" in str(error).lower()
            or "connect" in str(error).lower()
        ):
            raise _missing(words) from None
        raise UserError(f"{words} cannot be built: {str(error).splitlines()[0]}") from None


def _missing(words: str) -> UserError:
    return UserError(
        f"the weights of {words} are not on this machine: add --download, or name a file "
        f"({words}@FILE), or {words}@{UNTRAINED}"
    )


# ---- State dicts -------------------------------------------------------------------------------------------


def state_of(file: Path, module: nn.Module) -> Mapping[str, Tensor]:
    """The weights of a file (safetensors, or what torch saved as data), under the names of `module`.

    Opens the usual wrappers ("state_dict", "model", "teacher", ...), takes off prefixes that all names share,
    and leaves out a head that the network lacks. Raises `UserError` for code, damage, or no tensors.
    """
    found = _unwrapped(load_foreign(file), file)
    own = set(module.state_dict())
    for prefix in ("", "module.", "model.", "backbone.", "module.backbone.", "encoder.", "visual."):
        renamed = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        if own <= set(renamed):
            return {key: value for key, value in renamed.items() if key in own}
    missing = sorted(own - set(found))
    raise UserError(
        f"{file} is of another network: it lacks {missing[0]} ({len(missing)} of {len(own)} names)"
    )


def _unwrapped(found: Any, file: Path) -> Mapping[str, Tensor]:
    for key in ("state_dict", "model", "teacher", "g_ema", "params"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} holds no weights: a state dict is needed")
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}
