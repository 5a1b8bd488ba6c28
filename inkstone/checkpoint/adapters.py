"""LoRA adapters on disk, in the format of Hugging Face's peft: it opens ours, and theirs open here.

A folder holds adapter_config.json and adapter_model.safetensors. Each changed module of the
transformers model has `base_model.model.<module>.lora_A.weight` [r, d_in] and `….lora_B.weight`
[d_out, r]. Where one of their modules holds several of our maps (GPT-2's `c_attn`), our pairs stand
side by side in one of a larger rank, which `rank_pattern` and `alpha_pattern` say.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkstone import registry
from inkstone.checkpoint.tensors import read_tensors, write_tensors
from inkstone.errors import CheckpointError
from inkstone.files import read_json, write_json
from inkstone.models._weights import LAYERS, Weight, expand
from inkstone.nn.lora import Change, Pair, changes, maps

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ABOUT = "inkstone.json"  # what peft does not know
FOLDER = "adapter"  # in a checkpoint and in a run
PREFIX = "base_model.model."
UNSUPPORTED = {"use_dora": False, "bias": "none", "modules_to_save": None, "lora_bias": False}


def save_adapter(folder: Path, model: Any, *, base: str) -> None:
    """Write the changes that hang on a model to an existing folder.

    Args:
        folder: Where to.
        model: With changes, all of one rank and scale.
        base: What the model without them is called.
    """
    found = changes(model)
    first = next(iter(found.values()))
    rank, alpha = len(first.a), first.scale * len(first.a)
    tensors: dict[str, Tensor] = {}
    modules: dict[str, int] = {}
    for row in _modules(model):
        own = [found.get(_map(name)) for name in row.ours]
        if any(own):
            a, b = _side_by_side(own, [maps(model)[_map(n)].weight.shape[0] for n in row.ours])
            module = _map(row.theirs)
            modules[module] = len(a) // rank
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
    wide = {_short(m): times for m, times in modules.items() if times > 1}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": _targets(model, set(modules)),
        "rank_pattern": {name: times * rank for name, times in wide.items()},
        "alpha_pattern": {name: times * alpha for name, times in wide.items()},
        "fan_in_fan_out": any(row.transposed for row in _modules(model)),
        "use_rslora": False, "use_dora": False, "modules_to_save": None,
        "layers_to_transform": None, "layers_pattern": None, "init_lora_weights": True,
        "inference_mode": True, "revision": None,
    }  # fmt: skip
    write_json(folder / CONFIG, config)
    write_tensors(folder / WEIGHTS, tensors)


def load_adapter(folder: Path, model: Any) -> dict[str, Pair]:
    """The changes in a folder that peft or `save_adapter` wrote, for `nn.lora.put`.

    Args:
        folder: Of the adapter.
        model: The one it was trained on.

    Raises:
        CheckpointError: A file is missing or damaged, asks for something that is not known here, or
            does not fit the model.
    """
    _check_base(folder, model)
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder / CONFIG}: peft_type is not LORA")
    for key, plain in UNSUPPORTED.items():
        if config.get(key) not in (plain, None):
            raise CheckpointError(f"{folder / CONFIG}: {key} = {config[key]!r} is not known here")
    tensors = dict(read_tensors(folder / WEIGHTS))
    rows = {_map(row.theirs): row for row in _modules(model)}
    pairs: dict[str, Pair] = {}
    for module in sorted({_module(name, folder) for name in tensors}):
        a, b = (tensors.get(f"{PREFIX}{module}.lora_{x}.weight") for x in "AB")
        if module not in rows or a is None or b is None:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {module!r} is no pair of matrices for a map of this model",
                fix="give the model that the adapter was trained on",
            )
        pairs |= _own(rows[module], model, a, b, _scale(config, module, len(a), folder))
    if not pairs:
        raise CheckpointError(f"{folder / WEIGHTS} holds no matrix")
    return pairs


def base_fingerprint(model: Any) -> str:
    """SHA-256 of the vectors of a model, its norms and biases, in bf16.

    It tells a base from another of the same shape, which an adapter would turn into nonsense, and
    is still that of the base once its matrices are whole numbers, or all of it is bf16.
    """
    digest = hashlib.sha256()
    vectors = {name: p for name, p in model.named_parameters() if p.ndim == 1}
    for name in sorted(vectors):
        rounded = vectors[name].detach().to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(name.encode() + rounded.numpy().tobytes())
    return digest.hexdigest()


def about(folder: Path) -> dict[str, Any]:
    """What an adapter remembers of its making; {} for one of other programs."""
    return read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}


def _check_base(folder: Path, model: Any) -> None:
    base = about(folder).get("base")
    if isinstance(base, dict) and base.get("fingerprint") not in (None, base_fingerprint(model)):
        raise CheckpointError(
            f"{folder} was trained on another model: {str(base.get('name'))[:100]!r}",
            fix="give the model that the adapter was trained on",
        )


def adapter_state(folder: Path, model: Any) -> dict[str, Tensor]:
    """The state of a model that has changes, with those of an adapter in their place."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, pair in load_adapter(folder, model).items():
        state |= {f"{name}.parametrizations.weight.0.{x}": getattr(pair, x) for x in "ab"}
    return state


def _modules(model: Any) -> Iterator[Weight]:
    """The modules of transformers whose weights are maps that can be changed."""
    family = registry.load("models", type(model).__module__.rsplit(".", 1)[-1])
    names = family.hf_names(model.config) if hasattr(family, "hf_names") else family.HF_NAMES
    known = maps(model)
    for row in expand(names, model.config, getattr(family, "HF_COUNTS", LAYERS)):
        if all(_map(name) in known and name.endswith(".weight") for name in row.ours):
            yield row


def _side_by_side(own: list[Change | None], heights: list[int]) -> tuple[Tensor, Tensor]:
    """Changes of maps that stand below each other as one change of the whole."""
    a = torch.cat([change.a.detach() for change in own if change is not None])
    parts, left = [], 0
    for change, height in zip(own, heights, strict=True):
        part = a.new_zeros(height, len(a))
        if change is not None:
            part[:, left : left + len(change.a)] = change.b.detach()
            left += len(change.a)
        parts.append(part)
    return a, torch.cat(parts)


def _own(row: Weight, model: Any, a: Tensor, b: Tensor, scale: float) -> dict[str, Pair]:
    """The change of each of our maps, out of that of one of their modules."""
    weights = {_map(name): maps(model)[_map(name)].weight for name in row.ours}
    heights = [len(weight) for weight in weights.values()]
    d_in = next(iter(weights.values())).shape[1]
    if a.shape != (len(a), d_in) or b.shape != (sum(heights), len(a)):
        raise CheckpointError(
            f"adapter of {_map(row.theirs)!r}: {list(a.shape)} and {list(b.shape)} do not fit a "
            f"map of {[sum(heights), d_in]}"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise CheckpointError(f"adapter of {_map(row.theirs)!r} holds NaN or infinity")
    device = next(iter(weights.values())).device
    parts = b.float().to(device).split(heights)
    a = a.float().to(device)
    return {n: Pair(a.clone(), p.clone(), scale) for n, p in zip(weights, parts, strict=True)}


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """α / r, or α / √r where that is asked for (rsLoRA)."""
    alpha = config.get("lora_alpha", 8)
    for name, value in (config.get("alpha_pattern") or {}).items():
        if module == name or module.endswith(f".{name}"):
            alpha = value
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{folder / CONFIG}: lora_alpha is no number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _targets(model: Any, changed: set[str]) -> list[str]:
    """The shortest endings of names that mean the changed modules and no other."""
    every = {_map(row.theirs) for row in _modules(model)}
    for parts in (1, 2):
        endings = {".".join(module.split(".")[-parts:]) for module in changed}
        if {m for m in every if any(m.endswith(f".{e}") for e in endings)} == changed:
            return sorted(endings)
    return sorted(changed)


def _module(name: str, folder: Path) -> str:
    inner = name.removeprefix(PREFIX).removesuffix(".weight")
    module, _, side = inner.rpartition(".")
    if not name.startswith(PREFIX) or side not in ("lora_A", "lora_B"):
        raise CheckpointError(f"{folder / WEIGHTS}: tensor {name[:100]!r} is not known here")
    return module


def _map(weight: str) -> str:
    return weight.removesuffix(".weight")


def _short(module: str) -> str:
    return module.rpartition(".")[2]
