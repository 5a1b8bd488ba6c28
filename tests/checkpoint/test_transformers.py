"""Folders go both ways between Inkstone and transformers: same logits, text and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from inkstone import registry
from inkstone.checkpoint import load_model, save_model
from inkstone.checkpoint import model as module
from inkstone.models import gpt2, llama, mixtral
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy

SHAPE = {"vocab_size": 67, "max_seq_len": 40, "d_model": 32, "n_layers": 3, "n_heads": 4}
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "gpt2": (gpt2, {}, "GPT2LMHeadModel"),
    "llama": (llama, {"n_kv_heads": 2, "tied_head": False, "rope_theta": 5e5}, "LlamaForCausalLM"),
    "llama-tied": (llama, {"n_kv_heads": 1, "head_dim": 16}, "LlamaForCausalLM"),
    "llama-3.1": (
        llama,
        {"head_dim": 16, "rope_factor": 8.0, "rope_low": 1.5, "rope_high": 3.0, "rope_length": 12},
        "LlamaForCausalLM",
    ),
    "qwen3": (llama, {"n_kv_heads": 2, "head_dim": 16, "qk_norm": True}, "Qwen3ForCausalLM"),
    "mistral": (llama, {"n_kv_heads": 2, "sliding_window": 5}, "MistralForCausalLM"),
    "qwen3-window": (
        llama,
        {"n_kv_heads": 2, "qk_norm": True, "sliding_window": 5},
        "Qwen3ForCausalLM",
    ),
    "mixtral": (mixtral, {"n_kv_heads": 2, "n_experts": 3, "d_ff": 48}, "MixtralForCausalLM"),
}
EOS = 66


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _ours(case: str) -> Any:
    family, extra, _ = CASES[case]
    torch.manual_seed(1)
    model = family.Model(family.Config(**{**SHAPE, **extra})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def _open_theirs(folder: Path) -> Any:
    """Their model, in which nothing was missing, left over or newly initialised."""
    from transformers import AutoModelForCausalLM

    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return theirs.eval()


def _padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 67, (4, 11), generator=generator)
    mask = torch.zeros(4, 11, dtype=torch.long)
    for i, n in enumerate((11, 4, 1, 8)):
        mask[i, slice(11 - n, 11) if side == "left" else slice(0, n)] = 1
    return ids * mask, mask


def _compare(ours: Any, theirs: Any) -> None:
    with torch.no_grad():
        for side in ("left", "right"):
            ids, mask = _padded(side)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            reference = theirs(ids, attention_mask=mask, position_ids=positions).logits
            found = ours(ids, attention_mask=mask)
            difference = (found - reference)[mask.bool()].abs().max()
            assert difference <= 1e-4, f"{side}: {difference}"
    _compare_greedy(ours, theirs)
    _compare_gradients(ours, theirs)


@torch.no_grad()
def _compare_greedy(ours: Any, theirs: Any) -> None:
    ids, mask = _padded("left")
    theirs.generation_config.eos_token_id = None
    reference = theirs.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=0
    )[:, 11:]
    cache = ours.new_cache(4, 23)
    logits = ours(ids, attention_mask=mask, cache=cache)
    chosen = []
    for _ in range(12):
        chosen.append(logits[:, -1].argmax(-1, keepdim=True))
        logits = ours(chosen[-1], cache=cache)
    assert torch.equal(torch.cat(chosen, 1), reference)


def _gradients(theirs: Any) -> dict[str, Any]:
    """Their gradients under the names of their files, where experts are stored one by one."""
    named = {}
    for name, p in theirs.named_parameters():
        name = (
            name.replace(".mlp.", ".block_sparse_moe.") if hasattr(theirs, "num_experts") else name
        )
        assert p.grad is not None
        for x, expert in enumerate(p.grad if "experts" in name else ()):
            stem = f"{name.partition('experts.')[0]}experts.{x}"
            if "gate_up" in name:
                named[f"{stem}.w1.weight"], named[f"{stem}.w3.weight"] = expert.chunk(2)
            else:
                named[f"{stem}.w2.weight"] = expert
        named[name] = p.grad
    return named


def _compare_gradients(ours: Any, theirs: Any) -> None:
    ids, mask = _padded("right")
    labels = torch.where(mask.bool(), ids, IGNORE_INDEX)
    theirs.zero_grad()
    theirs(ids, attention_mask=mask, labels=labels).loss.backward()
    total, count = chunked_cross_entropy(
        ours.hidden(ids, attention_mask=mask)[:, :-1], ours.head_weight, labels[:, 1:], chunk=7
    )
    ours.zero_grad()
    (total / count).backward()
    family = registry.load("models", type(ours).__module__.rsplit(".", 1)[-1])
    mine = {name: p.grad for name, p in ours.named_parameters()}
    reference = _gradients(theirs)
    compared = 0
    for row in module._table(family, ours.config):
        if row.ours[0] not in mine:
            continue
        found = torch.cat([mine[name] for name in row.ours])
        found = found.T if row.transposed else found
        torch.testing.assert_close(found, reference[row.theirs], rtol=1e-3, atol=1e-5)
        compared += len(row.ours)
    assert compared == len(mine)


@pytest.mark.parametrize("case", CASES)
def test_ours_opens_there(case: str, tmp_path: Path) -> None:
    ours = _ours(case)
    save_model(tmp_path, ours, None)
    theirs = _open_theirs(tmp_path)
    assert type(theirs).__name__ == CASES[case][2]
    _compare(ours, theirs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_theirs_opens_here(case: str, shard: str | None, tmp_path: Path) -> None:
    import transformers

    family, extra, name = CASES[case]
    hf = family.to_hf_config(family.Config(**{**SHAPE, **extra}))
    config_class = transformers.AutoConfig.for_model(hf["model_type"]).__class__
    torch.manual_seed(5)
    theirs = getattr(transformers, name)(config_class(**hf)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    theirs.save_pretrained(tmp_path / "theirs", **({"max_shard_size": shard} if shard else {}))
    files = list((tmp_path / "theirs").glob("*.safetensors"))
    assert (len(files) > 1) == (shard is not None)
    loaded, _, info = load_model(tmp_path / "theirs")
    assert info == {}
    _compare(loaded, theirs)


def test_theirs_with_only_their_defaults_opens_here(tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for i, name in enumerate(("Llama", "Mistral", "Qwen3")):
        config = getattr(transformers, f"{name}Config")(**sizes, **heads)
        theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        theirs.save_pretrained(tmp_path / str(i))
        loaded, _, _ = load_model(tmp_path / str(i))
        ids = torch.arange(10)[None]
        with torch.no_grad():
            assert (loaded(ids) - theirs(ids).logits).abs().max() <= 1e-4, name
    small = transformers.GPT2Config(vocab_size=67, n_embd=32, n_layer=2, n_head=4)
    theirs = transformers.GPT2LMHeadModel(small).eval()
    theirs.save_pretrained(tmp_path / "gpt2")
    loaded, _, _ = load_model(tmp_path / "gpt2")
    with torch.no_grad():
        assert (loaded(ids) - theirs(ids).logits).abs().max() <= 1e-4


def test_a_bare_gpt2_without_prefix_opens_here(tmp_path: Path) -> None:
    """As OpenAI's own upload: no prefix, and the causal masks stored along."""
    from safetensors.torch import load_file, save_file

    ours = _ours("gpt2")
    save_model(tmp_path, ours, None)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 40, 40).tril() for i in range(3)}
    save_file(bare, tmp_path / "model.safetensors")
    loaded, _, _ = load_model(tmp_path)
    ids = torch.arange(7)[None]
    assert torch.equal(loaded(ids), ours(ids))


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_shards_of_ours_open_on_both_sides(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHARD_BYTES", 30_000)
    ours, ids = _ours(case), torch.arange(9)[None]
    save_model(tmp_path, ours, None)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    loaded, _, _ = load_model(tmp_path)
    assert torch.equal(loaded(ids), ours(ids))
    with torch.no_grad():
        assert (_open_theirs(tmp_path)(ids).logits - ours(ids)).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    ours = _ours("llama")
    save_model(tmp_path, ours, None, dtype=dtype)
    assert _open_theirs(tmp_path).dtype == dtype
    loaded, _, _ = load_model(tmp_path)
    for name, p in loaded.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, ours.get_parameter(name).to(dtype).float())
    low, _, _ = load_model(tmp_path, dtype=torch.bfloat16)
    assert low.compute_dtype == low.head_weight.dtype == torch.bfloat16
    assert torch.isfinite(low(torch.arange(5)[None])).all()


def test_what_a_folder_holds(tmp_path: Path) -> None:
    class Stub:
        vocab_size, bos_id, eos_id, pad_id = 67, None, EOS, EOS

        def save(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    ours = _ours("llama-tied")
    save_model(tmp_path, ours, Stub(), info={"scores": {"bits per byte": 1.5}})  # type: ignore
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["eos_token_id"] == EOS
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == EOS and "bos_token_id" not in generation
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (not a dict)
    about = json.loads((tmp_path / "inkstone.json").read_text())
    assert about["family"] == "llama" and about["format"] == 1
    assert about["parameters"] == llama.count_parameters(ours.config)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "| bits per byte | 1.5 |" in card
    assert _open_theirs(tmp_path).generation_config.eos_token_id == EOS
