"""Models in and out of a Hugging Face folder.

Reading: `config.json` names the family and its shape, the headers of the weight files are compared
with that shape, and only then is memory taken. Nothing in a folder is executed: `auto_map` and
code files are never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from inkstone import __version__, registry
from inkstone import device as devices
from inkstone.checkpoint import compressed
from inkstone.checkpoint.card import model_card
from inkstone.checkpoint.compressed import QuantizedEntry
from inkstone.checkpoint.tensors import Entry, read_header, read_tensor, write_tensors
from inkstone.errors import CheckpointError, InkstoneError, ModelError
from inkstone.files import MANIFEST, read_json, recover, verify_folder, write_json
from inkstone.models._weights import LAYERS, Weight, expand
from inkstone.nn import quantized_layers
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.quantized import Quantized

if TYPE_CHECKING:
    from inkstone.tokenizers.tokenizer import Tokenizer

FORMAT = 1  # of inkstone.json
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def save_model(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer | None,
    *,
    info: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that opens here and, unchanged, in transformers.

    Args:
        folder: An existing folder, usually the private one that `atomic_folder` gives.
        model: A model of any family that has a Hugging Face form.
        tokenizer: Written along, and its special ids into the configuration.
        info: What else to remember in `inkstone.json` (recipe, data hashes, scores).
        dtype: Of the weights on disk; None keeps that of the parameters.

    Raises:
        CheckpointError: Tokenizer and model do not fit, or the family has no such folder.
        OSError: The disk is full or failing.
    """
    folder = Path(folder)
    family = registry.load("models", type(model).__module__.rsplit(".", 1)[-1])
    dtype = dtype or next(model.parameters()).dtype
    hf = family.to_hf_config(model.config) | _label_names(model, (info or {}).get("labels"))
    ids = _special_ids(tokenizer, model.config.vocab_size)
    ids = {key: hf.get(key) if value is None else value for key, value in ids.items()}
    name = str(dtype).removeprefix("torch.")
    hf = hf | ids | {"torch_dtype": name, "dtype": name} | _compression(model)
    write_json(folder / "config.json", hf)
    generation = {key: value for key, value in ids.items() if value is not None}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **generation})
    _write_weights(folder, family, model, dtype)
    about = {
        "format": FORMAT,
        "inkstone": __version__,
        "torch": torch.__version__,
        "family": family.__name__.rsplit(".", 1)[-1],
        "parameters": quantized_layers.n_weights(model),
        **(info or {}),
    }
    write_json(folder / "inkstone.json", about)
    (folder / "README.md").write_text(model_card(hf, about), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)


def load_model(
    folder: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[Any, Tokenizer | None, dict[str, Any]]:
    """Open a folder that `save_model` or transformers wrote.

    Args:
        folder: With `config.json` and `*.safetensors`.
        device: Where the parameters go.
        dtype: Of the parameters, and the compute dtype with them. None is fp32, whatever is stored;
            of a model that was compressed to bf16 it is bf16 where this machine is fast at it.

    Returns:
        The model in evaluation mode, the tokenizer (None if the folder has none), and the contents
        of `inkstone.json` ({} if there is none).

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the configuration; the message
            names the file and the tensor.
        ModelError: The configuration is impossible or of a family that is not known here.
    """
    folder = Path(folder)
    recover(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    family, config = _read_config(folder / "config.json")
    entries = _find_tensors(folder)
    compressed.gather(entries, read_json(folder / "config.json"))
    _rename(family, entries)
    if hasattr(family, "fit_config"):  # some parts show in the weights only
        config = family.fit_config(config, set(entries))
    about = read_json(folder / "inkstone.json") if (folder / "inkstone.json").is_file() else {}
    made = about.get("compressed")
    if dtype is None and isinstance(made, dict) and made.get("to") == "bf16":
        dtype = devices.training_dtype(device)
    with torch.device("meta"):
        model = family.Model(config)
    plan = _plan(family, model, entries, folder)
    if (folder / MANIFEST).is_file():
        used = {"config.json", "tokenizer.json", "tokenizer_config.json", "inkstone.json", INDEX}
        verify_folder(folder, used | {entry.path.name for entry in entries.values()})
    state = _read_state(model, plan, entries, dtype or torch.float32)
    _check_tied(_tied(family, plan), entries, state)
    model.load_state_dict(state, strict=True, assign=True)
    model.compute_dtype = dtype or torch.float32
    model.to(device).eval()
    return model, _read_tokenizer(folder, config.vocab_size), about


def _families(kind: str) -> dict[str, ModuleType]:
    """Families that read config.json files of this `model_type`, by name."""
    modules = {name: registry.load("models", name) for name in registry.names("models")}
    return {n: m for n, m in modules.items() if kind in getattr(m, "HF_MODEL_TYPES", ())}


def _known_types() -> set[str]:
    modules = (registry.load("models", name) for name in registry.names("models"))
    return {kind for module in modules for kind in getattr(module, "HF_MODEL_TYPES", ())}


def _read_config(path: Path) -> tuple[ModuleType, Any]:
    hf = read_json(path)
    kind = str(hf.get("model_type"))[:100]
    families = _families(kind)
    if not families:
        raise ModelError(
            f"{path}: model_type {kind!r} is not known",
            fix=registry.did_you_mean(kind, _known_types()),
        )
    named = str(hf.get("inkstone_family"))
    family = families[named] if named in families else next(iter(families.values()))
    try:
        return family, family.from_hf_config(hf)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "shape"
        raise ModelError(f"{path}: {where}: {first['msg']}") from error
    except ModelError as error:
        raise ModelError(f"{path.parent}/{error.message}", fix=error.fix) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, KeyError) as error:
        raise ModelError(f"{path} is malformed: {error}") from error


def _find_tensors(folder: Path) -> dict[str, Entry]:
    """Where every tensor lies, from one file or from the shards that an index lists."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            others = sorted(p.name for p in folder.glob("*.bin")) + sorted(
                p.name for p in folder.glob("*.pt*")
            )
            also = f" (pickled weights such as {others[0]} are never opened)" if others else ""
            raise CheckpointError(
                f"{folder} has no {SINGLE} and no {INDEX}{also}",
                fix="use a folder whose weights are stored as safetensors",
            )
        return read_header(folder / SINGLE)
    index = folder / INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{index}: weight_map is not a table of tensor names")
    entries: dict[str, Entry] = {}
    for name in sorted({str(value) for value in where.values()}):
        if not re.fullmatch(r"[\w][\w.-]*\.safetensors", name):
            raise CheckpointError(f"{index}: {name[:100]!r} is not a file of this folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; {INDEX} lists it")
        for tensor, entry in read_header(folder / name).items():
            if where.get(tensor) != name:
                raise CheckpointError(f"{entry.path}: {INDEX} does not list tensor {tensor!r} here")
            entries[tensor] = entry
    missing = sorted(where.keys() - entries.keys())
    if missing:
        raise CheckpointError(f"{index}: tensor {missing[0]!r} is not in the file it names")
    return entries


def _rename(family: ModuleType, entries: dict[str, Entry]) -> None:
    """Names of old uploads become those of today; what carries no weight is dropped."""
    for name in list(entries):
        new = name
        for pattern, replacement in getattr(family, "HF_RENAMED", ()):
            new = re.sub(pattern, replacement, new)
        if any(re.fullmatch(pattern, new) for pattern in family.HF_IGNORED):
            del entries[name]
        elif new != name:
            entries[new] = entries.pop(name)


def _table(family: ModuleType, config: Any) -> Iterator[Weight]:
    names = family.hf_names(config) if hasattr(family, "hf_names") else family.HF_NAMES
    return expand(names, config, getattr(family, "HF_COUNTS", LAYERS))


def _plan(family: ModuleType, model: Any, entries: dict[str, Entry], folder: Path) -> list[Weight]:
    """Match the tensors of the files with those of the model, one by one.

    Prefixes are normalised in `entries`; shapes and dtypes are compared; nothing is read.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    table = _table(family, model.config)
    rows = [row for row in table if row.ours[0] in shapes]
    expected = {row.theirs for row in rows}
    tied = _tied(family, rows)
    known = expected | tied.keys()
    for name in list(entries):
        if name not in known and family.HF_PREFIX + name in known:
            entries[family.HF_PREFIX + name] = entries.pop(name)
    for row in rows:  # some uploads hold only the second name of a tied weight
        for alias in (theirs for theirs, name in tied.items() if name == row.ours[0]):
            if row.theirs not in entries and alias in entries:
                entries[row.theirs] = entries.pop(alias)
    optional = set(getattr(family, "HF_OPTIONAL", ())) - entries.keys()
    rows = [row for row in rows if row.theirs not in optional]
    unexpected = sorted(entries.keys() - known)
    missing = sorted(expected - entries.keys() - optional)
    if missing or unexpected:
        found = f"tensor {missing[0]!r} is missing" if missing else ""
        if unexpected:
            found += f"{' and ' if found else ''}tensor {unexpected[0]!r} is unexpected"
        counts = f"{len(missing)} missing and {len(unexpected)} unexpected in all"
        raise CheckpointError(
            f"{folder}: {found} ({counts})",
            fix="config.json and the weights do not belong together",
        )
    for row in rows:
        entry = entries[row.theirs]
        shape = _stacked_shape([shapes[name] for name in row.ours])
        few_bits = isinstance(entry, QuantizedEntry)
        shape = shape[::-1] if row.transposed and not few_bits else shape
        if few_bits and not all(_holds_numbers(model, name) for name in row.ours):
            raise CheckpointError(f"{entry.path}: {row.theirs!r} cannot be of few bits")
        if entry.shape != shape:
            raise CheckpointError(
                f"{entry.path}: tensor {row.theirs!r} has shape {list(entry.shape)}; "
                f"config.json asks for {list(shape)}"
            )
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{entry.path}: tensor {row.theirs!r} holds {entry.dtype}")
    return rows


def _read_state(
    model: nn.Module, rows: list[Weight], entries: dict[str, Entry], dtype: torch.dtype
) -> dict[str, Tensor]:
    sizes = {name: tensor.shape[0] for name, tensor in model.state_dict().items()}
    given = {name for row in rows for name in row.ours}
    state = {
        name: torch.zeros(tensor.shape, dtype=dtype)
        for name, tensor in model.state_dict().items()
        if name not in given
    }
    for row in rows:
        entry = entries[row.theirs]
        if isinstance(entry, QuantizedEntry):
            heights = [sizes[name] for name in row.ours]
            parts = entry.read(row.theirs).split(heights)
            for name, part in zip(row.ours, parts, strict=True):
                module = name.removesuffix(".weight")
                quantized_layers.put(model, module, part)
                state |= {f"{module}.codes": part.codes, f"{module}.scales": part.scales}
            continue
        tensor = _read_weight(row.theirs, entry).to(dtype)
        tensor = tensor.T if row.transposed else tensor
        pieces = tensor.split([sizes[name] for name in row.ours])
        for name, piece in zip(row.ours, pieces, strict=True):
            state[name] = piece.contiguous() if len(pieces) == 1 else piece.clone()
    return state


def _read_weight(name: str, entry: Entry) -> Tensor:
    tensor = read_tensor(name, entry)
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"{entry.path}: tensor {name!r} holds NaN or infinity",
            fix="the training run diverged or the file is damaged; use an earlier checkpoint",
        )
    return tensor


def _tied(family: ModuleType, rows: list[Weight]) -> dict[str, str]:
    """Second names under which a folder may hold a weight of ours again."""
    own = {row.theirs for row in rows}
    return {theirs: ours for theirs, ours in family.HF_TIED.items() if theirs not in own}


def _check_tied(tied: dict[str, str], entries: dict[str, Entry], state: dict[str, Tensor]) -> None:
    """A second copy of a weight that the configuration ties must equal the first."""
    for name, ours in tied.items():
        if name not in entries or ours not in state:
            continue
        entry, first = entries[name], state[ours]
        if entry.shape != tuple(first.shape) or not torch.equal(
            _read_weight(name, entry).to(first.dtype), first
        ):
            raise CheckpointError(
                f"{entry.path}: tensor {name!r} differs from the embedding, "
                "but config.json ties them"
            )


def _write_weights(folder: Path, family: ModuleType, model: Any, dtype: torch.dtype) -> None:
    ours = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for row in _table(family, model.config):
        modules = [name.removesuffix(".weight") for name in row.ours]
        if f"{modules[0]}.codes" in ours:
            few_bits = [_quantized(model, name) for name in modules]
            for name in modules:
                del ours[f"{name}.codes"], ours[f"{name}.scales"]
            tensors |= compressed.tensors(row.theirs, Quantized.below_each_other(few_bits))
            continue
        if row.ours[0] not in ours:
            continue
        parts = [ours.pop(name).detach() for name in row.ours]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        tensors[row.theirs] = (tensor.T if row.transposed else tensor).to(dtype)
    assert not ours, f"HF_NAMES of {family.__name__} forgets {sorted(ours)}"
    shards: list[dict[str, Tensor]] = [{}]
    room = MAX_SHARD_BYTES
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = MAX_SHARD_BYTES
        shards[-1][name] = tensor
        room -= size
    if len(shards) == 1:
        write_tensors(folder / SINGLE, tensors)
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _holds_numbers(model: nn.Module, name: str) -> bool:
    """Whether a parameter is the weight of a map or a table."""
    module, dot, last = name.rpartition(".")
    owner = model.get_submodule(module)
    return bool(dot) and last == "weight" and isinstance(owner, Linear | Embedding)


def _quantized(model: nn.Module, name: str) -> Quantized:
    found = quantized_layers.quantized_of(model.get_submodule(name))
    assert found is not None
    return found


def _compression(model: nn.Module) -> dict[str, Any]:
    """What config.json says of weights that are in few bits."""
    maps = [m.bits for m in model.modules() if isinstance(m, quantized_layers.QuantizedLinear)]
    tables = [m.bits for m in model.modules() if isinstance(m, quantized_layers.QuantizedEmbedding)]
    if not maps and not tables:
        return {}
    floats = all(quantized_layers.integers_of(m) is None for m in model.modules())
    bits, table_bits = (maps or tables)[0], tables[0] if tables else None
    given = compressed.settings(bits, table_bits, floats=floats)
    return {"quantization_config": given}


def _stacked_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _label_names(model: Any, labels: list[str] | None) -> dict[str, Any]:
    """The two tables by which transformers knows what the outputs of a head mean."""
    if not labels or getattr(model.config, "n_labels", None) != len(labels):
        return {}
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def _special_ids(tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, int | None]:
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {vocab_size}"
        )
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    from inkstone.tokenizers.load import FILES

    if not any((folder / names[0]).is_file() for names in FILES):
        return None
    from inkstone.tokenizers.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.load(folder)
    except InkstoneError as error:
        raise CheckpointError(f"{folder}: {error.message}", fix=error.fix) from error
    _special_ids(tokenizer, vocab_size)
    return tokenizer
