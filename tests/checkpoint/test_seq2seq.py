"""Encoder–decoders of transformers open here and ours open there: outputs, gradients, texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone import registry
from inkstone.checkpoint import load_model, save_model
from inkstone.checkpoint import model as module
from inkstone.inference.beam import BeamConfig, translate
from inkstone.nn.loss import chunked_cross_entropy

SHAPE = {"vocab_size": 67, "max_seq_len": 40, "d_model": 32, "n_layers": 3, "n_heads": 4}
SHAPE |= {"n_decoder_layers": 2, "d_ff": 48, "dropout": 0.0}
V1_1 = {"gated": True, "tied_head": False, "scaled_head": False}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "transformer": ("transformer", {"start_id": 0}, "MarianMTModel"),
    "marian": ("marian", {"start_id": 66}, "MarianMTModel"),
    "bart": ("bart", {}, "BartForConditionalGeneration"),
    "t5": ("t5", {"head_dim": 8}, "T5ForConditionalGeneration"),
    "t5-v1.1": ("t5", {"head_dim": 16, **V1_1}, "T5ForConditionalGeneration"),
}
EOS = 2


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _shaken(model: Any) -> Any:
    """Far from the initial state; the waves of fixed positions stay what they are."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "embed_positions" not in name or "Bart" in type(model).__name__:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model.eval()


def _ours(case: str) -> Any:
    name, extra, _ = CASES[case]
    family = registry.load("models", name)
    torch.manual_seed(1)
    return _shaken(family.Model(family.Config(**{**SHAPE, **extra})))


def _padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 67, (4, 11), generator=generator)
    mask = torch.zeros(4, 11, dtype=torch.long)
    for i, n in enumerate((11, 4, 1, 8)):
        mask[i, slice(11 - n, 11) if side == "left" else slice(0, n)] = 1
    return ids * mask, mask


def _targets() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 67, (4, 7), generator=generator)
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[1, 5:] = mask[2, 2:] = 0
    return ids * mask, mask


def _compare(ours: Any, theirs: Any) -> None:
    for side in ("left", "right"):
        source, source_mask = _padded(side)
        ids, mask = _targets()
        with torch.no_grad():
            found = ours(source, ids, source_mask=source_mask, attention_mask=mask)
            for i, (real, wanted) in enumerate(zip(source_mask.bool(), mask.bool(), strict=True)):
                alone = theirs(source[i : i + 1, real], decoder_input_ids=ids[i : i + 1, wanted])
                assert (found[i, wanted] - alone.logits[0]).abs().max() <= 1e-4, side
            # On the left, absolute positions of theirs count padding; those of T5 are relative.
            if side == "left" and "t5" not in type(ours).__module__:
                continue
            reference = theirs(
                source,
                attention_mask=source_mask,
                decoder_input_ids=ids,
                decoder_attention_mask=mask,
            ).logits
        assert (found - reference)[mask.bool()].abs().max() <= 1e-4, side
    _compare_gradients(ours, theirs)
    for n_beams, penalty in ((1, 1.0), (4, 1.0), (3, 0.0), (4, 2.0)):
        _compare_texts(ours, theirs, n_beams, penalty)
    _compare_texts(ours, theirs, 3, 1.0, no_repeat=2)


def _compare_texts(
    ours: Any, theirs: Any, n_beams: int, penalty: float, no_repeat: int = 0
) -> None:
    source, mask = _padded("right")
    config = BeamConfig(
        n_beams=n_beams, max_tokens=12, length_penalty=penalty, no_repeat_ngram=no_repeat
    )
    found = translate(ours, source, mask, config, {EOS})
    reference = theirs.generate(
        source,
        attention_mask=mask,
        num_beams=n_beams,
        do_sample=False,
        max_new_tokens=12,
        length_penalty=penalty,
        early_stopping=False,
        eos_token_id=EOS,
        pad_token_id=1,
        decoder_start_token_id=ours.config.start_id,
        forced_eos_token_id=None,
        forced_bos_token_id=None,
        no_repeat_ngram_size=no_repeat,
        bad_words_ids=None,
        num_return_sequences=n_beams,
    )[:, 1:]
    for i, row in enumerate(found):
        for j, hypothesis in enumerate(row):
            text = reference[i * n_beams + j].tolist()
            if EOS in text:
                text = text[: text.index(EOS) + 1]
            assert hypothesis.ids == text[: len(hypothesis.ids)], (i, j)


def _compare_gradients(ours: Any, theirs: Any) -> None:
    source, source_mask = _padded("right")
    ids, mask = _targets()
    labels = torch.where(mask.bool(), ids.roll(1, 1), -100)
    theirs.zero_grad()
    theirs(
        source,
        attention_mask=source_mask,
        decoder_input_ids=ids,
        decoder_attention_mask=mask,
        labels=labels,
    ).loss.backward()
    memory = ours.encode(source, source_mask=source_mask)
    hidden = ours.hidden(ids, memory, attention_mask=mask)
    total, count = chunked_cross_entropy(hidden, ours.head_weight, labels, bias=ours.head_bias)
    ours.zero_grad()
    (total / count).backward()
    mine = {name: p.grad for name, p in ours.named_parameters()}
    reference = {name: p.grad for name, p in theirs.named_parameters()}
    family = registry.load("models", type(ours).__module__.rsplit(".", 1)[-1])
    compared = 0
    for row in module._table(family, ours.config):
        if row.ours[0] not in mine:
            continue
        found = torch.cat([mine[name] for name in row.ours])
        torch.testing.assert_close(found, reference[row.theirs], rtol=1e-3, atol=1e-5)
        compared += len(row.ours)
    assert compared == len(mine)


@pytest.mark.parametrize("case", CASES)
def test_ours_opens_there(case: str, tmp_path: Path) -> None:
    import transformers

    ours = _ours(case)
    save_model(tmp_path, ours, None)
    theirs_class = getattr(transformers, CASES[case][2])
    theirs, report = theirs_class.from_pretrained(tmp_path, output_loading_info=True)
    missing = {key for key in report.pop("missing_keys") if "embed_positions" not in key}
    assert not missing - {"final_logits_bias"} and not any(report.values()), report
    _compare(ours, theirs.eval())
    again, _, _ = load_model(tmp_path)
    assert type(again) is type(ours) and again.config == ours.config


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_theirs_opens_here(case: str, shard: str | None, tmp_path: Path) -> None:
    import transformers

    hf = registry.load("models", CASES[case][0]).to_hf_config(_ours(case).config)
    hf.pop("inkstone_family", None)
    theirs_class = getattr(transformers, CASES[case][2])
    torch.manual_seed(5)
    ids = {"pad_token_id": 1, "eos_token_id": EOS, "forced_eos_token_id": None}
    theirs = theirs_class(theirs_class.config_class(**{**hf, **ids}))
    if case == "t5-v1.1":
        theirs.lm_head.weight = torch.nn.Parameter(theirs.shared.weight.detach().clone())
    theirs = _shaken(theirs)
    theirs.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard is not None)
    loaded, _, _ = load_model(tmp_path)
    _compare(loaded, theirs)


def test_an_upload_without_the_constants_opens_here(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model(tmp_path, _ours("bart"), None)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["final_logits_bias"]
    tensors["model.encoder.embed_tokens.weight"] = tensors.pop("model.shared.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    loaded, _, _ = load_model(tmp_path)
    assert not loaded.word_bias.any()


@pytest.mark.parametrize("case", ["marian", "bart", "t5"])
def test_uploads_of_the_authors_open_here(case: str, tmp_path: Path) -> None:
    """Bare networks without a prefix, tables stored twice, waves and a bias that nothing uses."""
    import json

    from safetensors.torch import load_file, save_file

    ours = _ours(case)
    save_model(tmp_path, ours, None)
    tensors = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["inkstone_family" if case != "t5" else "scale_decoder_outputs"]
    if case == "bart":
        config["architectures"] = ["BartModel"]
        del tensors["final_logits_bias"]
        tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
        ours.word_bias.zero_()
    prefix = "model." if case == "marian" else ""
    for side in ("encoder", "decoder"):
        tensors[f"{prefix}{side}.embed_tokens.weight"] = tensors[f"{prefix}shared.weight"].clone()
        if case == "marian":
            tensors[f"model.{side}.embed_positions.weight"] = torch.randn(40, 32)
    if case == "t5":
        unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[unused] = torch.randn(32, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, _, _ = load_model(tmp_path)
    source, ids = torch.arange(3, 9)[None], torch.arange(4)[None]
    assert type(loaded) is type(ours) and torch.equal(loaded(source, ids), ours(source, ids))


CAUSAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("gpt2", {}, "GPT2LMHeadModel"),
    "llama": ("llama", {"n_kv_heads": 2, "tied_head": False}, "LlamaForCausalLM"),
    "mistral": ("llama", {"n_kv_heads": 2, "sliding_window": 5}, "MistralForCausalLM"),
    "qwen3": ("llama", {"n_kv_heads": 1, "head_dim": 16, "qk_norm": True}, "Qwen3ForCausalLM"),
    "mixtral": ("mixtral", {"n_kv_heads": 2, "n_experts": 3, "d_ff": 48}, "MixtralForCausalLM"),
}


@pytest.mark.parametrize("case", CAUSAL)
def test_beams_of_causal_models_find_the_same_texts(case: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from inkstone.inference.beam import continue_text

    name, extra, their_class = CAUSAL[case]
    family = registry.load("models", name)
    shape = {k: SHAPE[k] for k in ("vocab_size", "max_seq_len", "d_model", "n_layers", "n_heads")}
    torch.manual_seed(1)
    ours = _shaken(family.Model(family.Config(**{**shape, **extra})))
    save_model(tmp_path, ours, None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == their_class
    prompts, mask = _padded("left")
    for n_beams, penalty in ((1, 1.0), (4, 1.0), (3, 0.0)):
        config = BeamConfig(n_beams=n_beams, max_tokens=12, length_penalty=penalty)
        found = continue_text(ours, prompts, mask, config, {EOS})
        reference = theirs.generate(
            prompts,
            attention_mask=mask,
            num_beams=n_beams,
            do_sample=False,
            max_new_tokens=12,
            length_penalty=penalty,
            eos_token_id=EOS,
            pad_token_id=1,
        )[:, prompts.shape[1] :]
        for row, text in zip(found, reference.tolist(), strict=True):
            ids = row[0].ids
            assert ids == text[: len(ids)]
