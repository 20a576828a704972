"""The networks: an encoder of patches, a predictor of masked tokens, and both as one module.

I-JEPA, StoP, and MAE with and without stochastic positions are one class; they differ in configuration.
Parameters have the names of the published checkpoints.
"""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from paperkit import UserError
from torch import Tensor, nn
from torch.nn import functional as F

from flexpredict.config import NetConfig, PositionConfig, TrainConfig
from flexpredict.masks import Masks
from flexpredict.method import StochasticPosition, noise_to_signal, sincos_grid, std_for

NORM_EPS = 1e-6
MLP_RATIO = 4


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Two layers with an exact GELU between."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """One vector for each patch."""

    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k d"]:
        return rearrange(self.proj(images), "b d h w -> b (h w) d")


class Encoder(nn.Module):
    """A vision transformer without a class token; positions are fixed sines and cosines."""

    pos_embed: Float[Tensor, "1 k d"]

    def __init__(self, net: NetConfig, channels: int, grid: tuple[int, int]):
        super().__init__()
        self.patch, self.grid = net.patch, grid
        self.patch_embed = PatchEmbedding(net.patch, channels, net.width)
        self.register_buffer("pos_embed", sincos_grid(*grid, net.width)[None])
        self.blocks = nn.ModuleList(Block(net.width, net.heads) for _ in range(net.depth))
        self.norm = nn.LayerNorm(net.width, eps=NORM_EPS)

    def forward(
        self, images: Float[Tensor, "b c h w"], places: Int64[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features of all patches, or of those at `places` as if the image had no others."""
        x = self.embed(images)
        if places is not None:
            x = x[torch.arange(len(x), device=x.device)[:, None], places]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k d"]:
        """Patches with their positions. Raises `UserError` for sides that the patch does not divide."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"images of {height}x{width} do not divide into patches of {self.patch}: resize them to "
                f"{height - height % self.patch}x{width - width % self.patch}"
            )
        return self.patch_embed(images) + self.positions((height // self.patch, width // self.patch))

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 k d"]:
        """The positions of a grid; another than the encoder's own stretches them (bicubic)."""
        if grid == self.grid:
            return self.pos_embed
        image = rearrange(self.pos_embed, "1 (h w) d -> 1 d h w", h=self.grid[0])
        stretched = F.interpolate(image, grid, mode="bicubic", align_corners=False)
        return rearrange(stretched, "1 d h w -> 1 (h w) d")

    def layers(self, images: Float[Tensor, "b c h w"], last: int) -> Float[Tensor, "l b k d"]:
        """The outputs of the last blocks, first to last, each through the final norm."""
        x, found = self.embed(images), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number >= len(self.blocks) - last:
                found.append(self.norm(x))
        return torch.stack(found)


class Predictor(nn.Module):
    """From context features to what stands at masked places (eq. 2 and 6)."""

    def __init__(
        self, net: NetConfig, position: PositionConfig, std: float, grid: tuple[int, int], outputs: int
    ):
        super().__init__()
        width = net.predictor_width
        self.predictor_embed = nn.Linear(net.width, width)
        self.position = StochasticPosition(
            grid, width, net.width, std, position.source, position.mode, position.scope
        )
        self.noisy = position.tokens
        # In mode official nothing reads it: no gradient, so that processes do not wait for one.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=position.mode == "paper")
        self.predictor_blocks = nn.ModuleList(
            Block(width, net.predictor_heads) for _ in range(net.predictor_depth)
        )
        self.predictor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.predictor_proj = nn.Linear(width, outputs)

    def forward(
        self,
        context: Float[Tensor, "b c e"],
        masks: Masks,
        normal: Float[Tensor, "b m n1 z"] | None = None,
        context_normal: Float[Tensor, "b 1 c1 z"] | None = None,
    ) -> Float[Tensor, "b m n o"]:
        """Predictions for each target block; a block sees the context and itself, no other block.

        Where context positions are noisy (an ablation), all blocks of an image see the same draw.
        """
        blocks, tokens = masks.targets.shape[1:]
        # c_i = A s_i + b + psi_i, once for each block
        c = (
            self.predictor_embed(context)
            + self._positions(masks.context[:, None], context_normal, "context")[:, 0]
        )
        # m_j = psi_j + A n_j + m~
        m = self._positions(masks.targets, normal, "masked")
        if self.position.mode == "paper":
            m = m + self.mask_token
        x = torch.cat([repeat(c, "b c p -> (b m) c p", m=blocks), rearrange(m, "b m n p -> (b m) n p")], 1)
        for block in self.predictor_blocks:
            x = block(x)
        x = self.predictor_proj(self.predictor_norm(x[:, -tokens:]))
        return rearrange(x, "(b m) n o -> b m n o", m=blocks)

    def _positions(
        self, places: Int64[Tensor, "b m n"], normal: Tensor | None, tokens: str
    ) -> Float[Tensor, "b m n p"]:
        """Noisy where the configuration says so, psi itself elsewhere."""
        if self.noisy in (tokens, "both"):
            return self.position(places, self.predictor_embed, normal)
        return self.position.psi[places]


class Learner(nn.Module):
    """Context encoder and predictor in one module: one backward pass sees both uses of A."""

    def __init__(self, config: TrainConfig, channels: int, grid: tuple[int, int]):
        super().__init__()
        net = config.net
        outputs = net.width if config.objective == "features" else channels * net.patch**2
        self.encoder = Encoder(net, channels, grid)
        std = 1.0 if config.position.unit == "nsr" else _std(config.position)
        self.predictor = Predictor(net, config.position, std, grid, outputs)
        initialise(self, net)
        if config.position.unit == "nsr":
            self.predictor.position.std = _std_from_nsr(self.predictor, config.position.noise)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Masks,
        normal: Float[Tensor, "b m n1 z"] | None = None,
        context_normal: Float[Tensor, "b 1 c1 z"] | None = None,
    ) -> Float[Tensor, "b m n o"]:
        return self.predictor(self.encoder(images, masks.context), masks, normal, context_normal)


def _std(position: PositionConfig) -> float:
    return position.noise if position.unit == "std" else math.sqrt(position.noise)


def _std_from_nsr(predictor: Predictor, nsr: float) -> float:
    """The deviation at which the initial noise has `nsr` of the position's energy."""
    matrix = noise_matrix(predictor)
    return 0.0 if matrix is None or matrix.is_meta else std_for(nsr, matrix)


def noise_matrix(predictor: Predictor) -> Float[Tensor, "p e"] | None:
    """A of the predictor's positions: the identity where the covariance is fixed, None without noise."""
    position = predictor.position
    if position.source == "fixed":
        return torch.eye(position.psi.shape[1], device=position.psi.device)
    found = position.matrix(predictor.predictor_embed)
    return None if found is None else found.detach()


def current_nsr(predictor: Predictor) -> float:
    """Noise to position energy now; 0 without noise and for jittered coordinates."""
    matrix = noise_matrix(predictor)
    return 0.0 if matrix is None else float(noise_to_signal(matrix, predictor.position.std))


def patches(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b k o"]:
    """The pixels of each patch, channel by channel, in raster order of the patches."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


# ---- initial weights -------------------------------------------------------------------------------------


@torch.no_grad()
def initialise(learner: Learner, net: NetConfig) -> None:
    """Fill all weights from torch's global generator: the same in every arm, whatever its positions."""
    own = learner.predictor.position.own
    for module in learner.modules():
        if isinstance(module, nn.Linear) and module is not own:
            _fill(module, net)
    embedding = learner.encoder.patch_embed.proj
    # Xavier's would be silent beside the positions where a patch has few pixels.
    std = math.sqrt(0.5 / embedding.weight[0].numel()) if net.init == "xavier" else 0.02
    nn.init.normal_(embedding.weight, std=std)
    if embedding.bias is not None:
        nn.init.zeros_(embedding.bias)
    nn.init.normal_(learner.predictor.mask_token, std=0.02)
    if net.init == "rescaled":
        for stack in (learner.encoder.blocks, learner.predictor.predictor_blocks):
            for number, block in enumerate(stack, 1):
                block.attn.proj.weight /= math.sqrt(2 * number)  # pyright: ignore
                block.mlp.fc2.weight /= math.sqrt(2 * number)  # pyright: ignore
    if own is not None:  # last, so that the others do not depend on it
        _fill(own, net)


def _fill(layer: nn.Linear, net: NetConfig) -> None:
    if net.init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
