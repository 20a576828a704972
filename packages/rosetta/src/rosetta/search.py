"""Units of a dictionary that resemble a vector: exact inner products of signatures, by faiss if installed.

CPU and GPU take the same calls; without faiss torch's product gives the same answer.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from paperkit import UserError, suggest
from torch import Tensor

from rosetta.dictionary import SIGNED, Dictionary


@dataclass(frozen=True)
class Hit:
    """A unit and its correlation with what was asked for, on the signature's images."""

    model: str
    unit: str
    r: float


def nearest(
    queries: Float[Tensor, "q m"], keys: Float[Tensor, "d m"], k: int
) -> tuple[Float[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """The k largest inner products of each query and their keys, exactly."""
    k = min(k, len(keys))
    if importlib.util.find_spec("faiss") is None:
        found = (queries @ keys.T).topk(k)
        return found.values, found.indices
    import faiss

    index: Any = faiss.IndexFlatIP(keys.shape[1])
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(keys.float().contiguous().numpy())
    scores, places = index.search(queries.float().contiguous().numpy(), k)
    return torch.from_numpy(scores), torch.from_numpy(places)


def like_unit(dictionary: Dictionary, name: str, model: str, top: int) -> list[Hit]:
    """Units of the other models (or of one) that resemble a unit. Raises `UserError` for an unknown one."""
    number, unit = find(dictionary, name)
    query = _signatures(dictionary, number)[unit]
    others = [i for i in range(len(dictionary.models)) if i != number]
    return _hits(dictionary, query, _chosen(dictionary, model, others), top)


def like_map(
    dictionary: Dictionary, drawn: Float[Tensor, "h w"], image: int, model: str, top: int
) -> list[Hit]:
    """Units whose map on one probe image resembles a drawn one. Raises `UserError` for an image that the
    signatures do not hold, and for a map of one value."""
    held = min(SIGNED[0], dictionary.manifest["probes"]["images"])
    if image >= held:
        raise UserError(f"--image {image}: the signatures hold images 0 to {held - 1}")
    small = F.adaptive_avg_pool2d(drawn[None, None].float(), (SIGNED[1], SIGNED[1])).flatten()
    if float(small.std()) < 1e-6:
        raise UserError("the map has one value everywhere: paint bright where the unit should answer")
    everywhere = list(range(len(dictionary.models)))
    return _hits(dictionary, _centred(small), _chosen(dictionary, model, everywhere), top, image)


def find(dictionary: Dictionary, name: str) -> tuple[int, int]:
    """(model's number, unit) of MODEL/LAYER/CHANNEL."""
    for number, model in enumerate(dictionary.manifest["models"]):
        start = 0
        for layer in model["layers"]:
            channel = name.removeprefix(f"{model['name']}/{layer['name']}/")
            if channel != name and channel.isdecimal() and int(channel) < layer["channels"]:
                return number, start + int(channel)
            start += layer["channels"]
    known = [f"{m['name']}/{layer['name']}/0" for m in dictionary.manifest["models"] for layer in m["layers"]]
    raise UserError(
        f"no unit {name}{suggest(name, known)}; units are named MODEL/LAYER/CHANNEL as in {known[0]}"
    )


def _chosen(dictionary: Dictionary, model: str, numbers: Sequence[int]) -> list[int]:
    if model and model not in dictionary.models:
        raise UserError(
            f"no model {model}{suggest(model, dictionary.models)}: {', '.join(dictionary.models)}"
        )
    return [i for i in numbers if not model or dictionary.models[i] == model]


def _signatures(dictionary: Dictionary, number: int) -> Float[Tensor, "d m"]:
    key = f"{number}.signature"
    if key not in dictionary.tensors:
        raise UserError("this dictionary holds no signatures (it was imported): mine it here to search it")
    return dictionary.tensors[key].float()


def _hits(
    dictionary: Dictionary, query: Tensor, numbers: Sequence[int], top: int, image: int | None = None
) -> list[Hit]:
    names, parts = [], []
    for number in numbers:
        signatures = _signatures(dictionary, number)
        parts.append(signatures if image is None else _on_image(signatures, image))
        names += [(number, unit) for unit in range(len(signatures))]
    if not parts:
        raise UserError("no other model to look among: leave out --model")
    scores, places = nearest(query[None], torch.cat(parts), top)
    return [
        Hit(dictionary.models[names[place][0]], dictionary.unit_name(*names[place]), score)
        for score, place in zip(scores[0].tolist(), places[0].tolist(), strict=True)
    ]


def _on_image(signatures: Float[Tensor, "d m"], image: int) -> Float[Tensor, "d p"]:
    area = SIGNED[1] ** 2
    return _centred(signatures[:, image * area : (image + 1) * area])


def _centred(x: Float[Tensor, "*d m"]) -> Float[Tensor, "*d m"]:
    return F.normalize(x - x.mean(-1, keepdim=True), dim=-1)
