"""Encoders of transformers open here and ours open there: same outputs and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone import registry
from inkstone.checkpoint import load_model, save_model
from inkstone.checkpoint import model as module
from inkstone.errors import CheckpointError
from inkstone.models._encoder import CLASSES
from inkstone.nn.loss import chunked_cross_entropy

SHAPE = {"vocab_size": 67, "max_seq_len": 40, "d_model": 32, "n_layers": 3, "n_heads": 4}
SHAPE |= {"d_ff": 48, "dropout": 0.0}
PREFIX = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
PREFIX |= {"modernbert": "ModernBert"}
EXTRA = {"modernbert": {"window": 4, "global_every": 2}}
CASES = [
    (name, head) for name in PREFIX for head in CLASSES if head != "pretraining" or name == "bert"
]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _ours(name: str, head: str) -> Any:
    family = registry.load("models", name)
    extra = EXTRA.get(name, {}) | ({"n_labels": 3} if head in ("sequence", "token") else {})
    torch.manual_seed(1)
    model = family.Model(family.Config(**{**SHAPE, **extra, "head": head})).eval()
    return _shaken(model)


def _shaken(model: Any) -> Any:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def _theirs_class(name: str, head: str) -> Any:
    import transformers

    return getattr(transformers, PREFIX[name] + CLASSES[head])


def _padded(side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 67, (4, 11), generator=generator)
    types = torch.randint(0, 2, (4, 11), generator=generator)
    mask = torch.zeros(4, 11, dtype=torch.long)
    for i, n in enumerate((11, 4, 1, 8)):
        mask[i, slice(11 - n, 11) if side == "left" else slice(0, n)] = 1
    return ids * mask, mask, types * mask


def _reference(theirs: Any, name: str, ids: Any, mask: Any, types: Any) -> list[torch.Tensor]:
    """Their outputs; positions count real tokens, as ours do."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    options: dict[str, Any] = {"attention_mask": mask}
    options["position_ids"] = positions + (2 if name == "roberta" else 0)
    if name == "bert":
        options["token_type_ids"] = types
    out = theirs(ids, **options)
    if hasattr(out, "start_logits"):
        return [torch.stack((out.start_logits, out.end_logits), -1)]
    if hasattr(out, "last_hidden_state"):
        return [out.last_hidden_state]
    if hasattr(out, "prediction_logits"):
        return [out.prediction_logits, out.seq_relationship_logits]
    return [out.logits]


def _compare(ours: Any, theirs: Any, name: str) -> None:
    for side in ("left", "right"):
        ids, mask, types = _padded(side)
        with torch.no_grad():
            found = _outputs(ours, name, ids, mask, types)
            for a, b in zip(found, _reference(theirs, name, ids, mask, types), strict=True):
                if a.ndim == 2 and side == "left" and not _pools_the_mean(ours):
                    continue  # theirs takes the first column, which is padding there
                difference = (a - b)[mask.bool()] if a.ndim == 3 else a - b
                assert difference.abs().max() <= 1e-4, side
            for i, real in enumerate(mask.bool()):
                row = (t[i : i + 1, real] for t in (ids, mask, types))
                for a, b in zip(found, _reference(theirs, name, *row), strict=True):
                    assert ((a[i, real] if a.ndim == 3 else a[i]) - b[0]).abs().max() <= 1e-4, side
    _compare_gradients(ours, theirs, name)
    if ours.config.head == "mlm":
        _compare_gradients_of_the_loss(ours, theirs)


def _outputs(ours: Any, name: str, ids: Any, mask: Any, types: Any) -> list[torch.Tensor]:
    found = ours(ids, attention_mask=mask, token_types=types if name == "bert" else None)
    return list(found) if isinstance(found, tuple) else [found]


def _compare_gradients(ours: Any, theirs: Any, name: str) -> None:
    """Of a sum with fixed weights over whatever the head gives, without padding's."""
    ids, mask, types = _padded("right")
    for model, outputs in ((ours, _outputs), (theirs, _reference)):
        model.zero_grad()
        generator, total = torch.Generator().manual_seed(6), torch.zeros(())
        for out in outputs(model, name, ids, mask, types):
            weights = torch.randn(out.shape, generator=generator)
            weights = weights * mask[..., None] if out.ndim == 3 else weights
            total = total + (out * weights).sum()
        total.backward()
    _same_gradients(ours, theirs, scale=30.0)


def _pools_the_mean(model: Any) -> bool:
    return getattr(model.config, "pooling", "cls") == "mean"


def _compare_gradients_of_the_loss(ours: Any, theirs: Any) -> None:
    ids, mask, _ = _padded("right")
    labels = torch.where(mask.bool(), ids, -100)
    theirs.zero_grad()
    theirs(ids, attention_mask=mask, labels=labels).loss.backward()
    x, packing = ours.states(ids, mask, None)
    states = ours.prediction_states(x)
    total, count = chunked_cross_entropy(
        states, ours.head_weight, packing.pack(labels), bias=ours.head_bias
    )
    ours.zero_grad()
    (total / count).backward()
    _same_gradients(ours, theirs)


def _same_gradients(ours: Any, theirs: Any, scale: float = 1.0) -> None:
    mine = {name: p.grad for name, p in ours.named_parameters()}
    family = registry.load("models", type(ours).__module__.rsplit(".", 1)[-1])
    prefix = family.HF_PREFIX if ours.config.head == "none" else ""
    reference = {prefix + name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for row in module._table(family, ours.config):
        if row.ours[0] not in mine:
            continue
        compared += len(row.ours)
        if mine[row.ours[0]] is None:  # a pooler that the head does not read
            assert reference[row.theirs] is None
            continue
        found = torch.cat([mine[name] for name in row.ours])
        torch.testing.assert_close(found, reference[row.theirs], rtol=1e-3, atol=1e-5 * scale)
    assert compared == len(mine)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_ours_opens_there(name: str, head: str, tmp_path: Path) -> None:
    ours = _ours(name, head)
    save_model(tmp_path, ours, None)
    theirs, report = _theirs_class(name, head).from_pretrained(tmp_path, output_loading_info=True)
    new = {key for key in report.pop("missing_keys") if "pooler" not in key}  # ours has none
    assert not new and not any(report.values()), report
    _compare(ours, theirs.eval(), name)


@pytest.mark.parametrize(("name", "head"), CASES)
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_theirs_opens_here(name: str, head: str, shard: str | None, tmp_path: Path) -> None:
    hf = registry.load("models", name).to_hf_config(_ours(name, head).config)
    theirs_class = _theirs_class(name, head)
    torch.manual_seed(5)
    hf = {"pad_token_id": 0, **hf}
    theirs = _shaken(theirs_class(theirs_class.config_class(**hf)).eval())
    theirs.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard is not None)
    loaded, _, _ = load_model(tmp_path)
    assert loaded.config.head == head
    _compare(loaded, theirs, name)


def test_theirs_with_only_their_defaults_opens_here(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 48}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4}
    own = {"vocab_size": 67, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    for name, prefix in PREFIX.items():
        shape = own if name == "distilbert" else sizes | depth
        shape = {**shape, "pad_token_id": 1} if name == "modernbert" else shape
        config = getattr(transformers, f"{prefix}Config")(**shape)
        theirs = getattr(transformers, f"{prefix}ForMaskedLM")(config).eval()
        theirs.save_pretrained(tmp_path / name)
        loaded, _, _ = load_model(tmp_path / name)
        ids = torch.arange(4, 14)[None]
        with torch.no_grad():
            assert (loaded(ids) - theirs(ids).logits).abs().max() <= 1e-4, name


def test_an_old_upload_with_both_pre_training_heads_opens_here(tmp_path: Path) -> None:
    """As Google's own: it is called a masked-word model, and its norms have gamma and beta."""
    import json

    from safetensors.torch import load_file, save_file

    ours = _ours("bert", "pretraining")
    save_model(tmp_path, ours, None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(old, tmp_path / "model.safetensors")
    loaded, _, _ = load_model(tmp_path)
    assert loaded.config.head == "pretraining"
    ids = torch.arange(9)[None]
    for a, b in zip(loaded(ids), ours(ids), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "modernbert"])
def test_uploads_of_the_authors_open_here(name: str, tmp_path: Path) -> None:
    """The words' table and bias stored again under the head, a pooler that nothing reads."""
    from safetensors.torch import load_file, save_file

    ours = _ours(name, "mlm")
    save_model(tmp_path, ours, None)
    tensors = load_file(tmp_path / "model.safetensors")
    family = registry.load("models", name)
    rows = {row.ours[0]: row.theirs for row in module._table(family, ours.config)}
    for theirs, mine in family.HF_TIED.items():
        tensors[theirs] = tensors[rows[mine]].clone()
    if name == "roberta":
        tensors["roberta.pooler.dense.weight"] = torch.randn(32, 32)
        tensors["roberta.pooler.dense.bias"] = torch.randn(32)
        tensors["roberta.embeddings.position_ids"] = torch.arange(42)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    loaded, _, _ = load_model(tmp_path)
    ids = torch.arange(2, 11)[None]
    assert torch.equal(loaded(ids), ours(ids))


@pytest.mark.parametrize("name", PREFIX)
def test_what_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(tmp_path, _ours(name, "mlm"), None)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    victim = next(key for key in sorted(whole) if key.endswith("weight") and ".1." in key)
    save_file({k: v for k, v in whole.items() if k != victim}, path)
    with pytest.raises(CheckpointError, match=f"'{victim}' is missing"):
        load_model(tmp_path)
    save_file({**whole, "stranger.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"'stranger\.weight' is unexpected"):
        load_model(tmp_path)
    save_file({**whole, victim: whole[victim][:-1].clone()}, path)
    with pytest.raises(CheckpointError, match=f"'{victim}' has shape"):
        load_model(tmp_path)
