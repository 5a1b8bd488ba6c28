"""LoRA: what hangs on a model, that only it learns, and the files that peft knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import inkstone as ink
from inkstone.checkpoint import read_tensors, save_model, write_tensors
from inkstone.checkpoint.adapters import (
    ABOUT,
    CONFIG,
    WEIGHTS,
    base_fingerprint,
    load_adapter,
    save_adapter,
)
from inkstone.errors import CheckpointError, ModelError, UsageError
from inkstone.models import gpt2, lamda, llama, lstm, mixtral
from inkstone.nn import lora
from inkstone.nn.lora import Pair
from inkstone.training.config import TrainingConfig
from inkstone.training.optim import Optimizers

IDS = torch.tensor([[1, 5, 19, 7, 7, 2]])
SHAPE: dict[str, Any] = {"vocab_size": 40, "d_model": 16, "n_layers": 2, "n_heads": 2}


def model_of(family: Any, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return family.Model(family.Config(**SHAPE, **more)).eval()


def taught(model: Any, seed: int = 1) -> Any:
    """A model with changes that do something."""
    lora.attach(model, 4, 8.0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for change in lora.changes(model).values():
            change.b.normal_(0, 0.1)
    return model


FAMILIES = {"llama": llama, "gpt2": gpt2, "lamda": lamda, "mixtral": mixtral}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_change_changes_nothing_and_it_alone_learns(family: str) -> None:
    model = model_of(FAMILIES[family])
    with torch.no_grad():
        before = model(IDS)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    lora.attach(model, 4, 8.0)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), before, rtol=0, atol=0)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all(".parametrizations.weight.0." in name for name in learning)
    optimizers = Optimizers(model, TrainingConfig(optimizer="adamw", max_steps=1, lr=0.1))
    for _ in range(2):
        model(IDS).log_softmax(-1)[..., 3].sum().neg().backward()
        optimizers.step(1.0)
    state = optimizers.state_tensors()
    assert {name.partition("|")[0] for name in state} == learning  # nothing is kept for the rest
    with torch.no_grad():
        assert (model(IDS) - before).abs().max() > 1e-3
    lora.remove(model)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, weights[name], rtol=0, atol=0)
        assert p.requires_grad


def test_the_formula() -> None:
    model = model_of(llama)
    lora.attach(model, 4, 8.0, ["q", "down"])
    names = {"blocks.0.q", "blocks.1.q", "blocks.0.down", "blocks.1.down"}
    assert set(lora.changes(model)) == names
    torch.manual_seed(3)
    change, linear = lora.changes(model)["blocks.0.q"], model.blocks[0].q
    with torch.no_grad():
        change.b.normal_()
        x = torch.randn(5, 16)
        frozen = linear.parametrizations.weight.original
        expected = x @ frozen.T + (8.0 / 4) * (x @ change.a.T) @ change.b.T
        torch.testing.assert_close(linear(x), expected)
        plain = lora.merged(model)
        torch.testing.assert_close(plain(IDS), model(IDS))
    assert type(plain) is llama.Model and not lora.changes(plain) and lora.changes(model)
    assert set(plain.state_dict()) == set(model_of(llama).state_dict())


def test_mistakes() -> None:
    with pytest.raises(ModelError, match=r"no map 'query'"):
        lora.attach(model_of(llama), 4, 8.0, ["query"])
    net = lstm.Model(lstm.Config(vocab_size=20, d_model=8, hidden_size=8, n_layers=1))
    with pytest.raises(ModelError, match="no maps in blocks"):
        lora.attach(net, 4, 8.0)


# --- peft's format -------------------------------------------------------------------------------


def test_the_files_are_those_of_peft(tmp_path: Path) -> None:
    """Names and shapes as peft documents them: for Llama, and for GPT-2's transposed `c_attn`."""
    save_adapter(tmp_path, taught(model_of(llama)), base="base")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (4, 8.0, False)
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    tensors = read_tensors(tmp_path / WEIGHTS)
    assert len(tensors) == 2 * 2 * 7
    stem = "base_model.model.model.layers.1.self_attn.q_proj"
    assert tensors[f"{stem}.lora_A.weight"].shape == (4, 16)
    assert tensors[f"{stem}.lora_B.weight"].shape == (16, 4)
    (tmp_path / "g").mkdir()
    save_adapter(tmp_path / "g", taught(model_of(gpt2)), base="base")
    config = json.loads((tmp_path / "g" / CONFIG).read_text())
    assert config["fan_in_fan_out"] is True and config["rank_pattern"] == {"c_attn": 12}
    assert config["alpha_pattern"] == {"c_attn": 24.0}
    tensors = read_tensors(tmp_path / "g" / WEIGHTS)
    stem = "base_model.model.transformer.h.0.attn.c_attn"
    assert tensors[f"{stem}.lora_A.weight"].shape == (12, 16)
    assert tensors[f"{stem}.lora_B.weight"].shape == (48, 12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", [(), ("q", "o")])
def test_peft_with_the_adapter_gives_the_same(
    family: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """peft opens the folder as it is, on transformers' model, and gives the same scores."""
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    peft = pytest.importorskip("peft", reason="the oracle is not installed")
    model = model_of(FAMILIES[family])
    save_model(tmp_path, model, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    lora.attach(model, 4, 8.0, targets)
    with torch.no_grad():
        for change in lora.changes(model).values():
            change.b.normal_(0, 0.1)
    (tmp_path / "a").mkdir()
    save_adapter(tmp_path / "a", model, base="base")
    with torch.no_grad():
        before = theirs(IDS).logits
        adapted = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "a")).eval()
        found = adapted(IDS).logits
        torch.testing.assert_close(model(IDS), found, rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 1e-2
    adapted.save_pretrained(str(tmp_path / "theirs"))  # and a folder of its making opens here
    fresh = model_of(FAMILIES[family])
    lora.put(fresh, load_adapter(tmp_path / "theirs", fresh))
    with torch.no_grad():
        torch.testing.assert_close(fresh(IDS), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_adapters_take_turns_on_one_base(family: str, tmp_path: Path) -> None:
    outputs = {}
    for name, seed in (("one", 1), ("two", 2)):
        model = taught(model_of(FAMILIES[family]), seed)
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, model, base="base")
        outputs[name] = model(IDS).detach()
    base = model_of(FAMILIES[family])
    with torch.no_grad():
        plain = base(IDS)
        for name in ("one", "two", "one"):
            lora.put(base, load_adapter(tmp_path / name, base))
            torch.testing.assert_close(base(IDS), outputs[name], rtol=1e-4, atol=1e-5)
        lora.remove(base)
        torch.testing.assert_close(base(IDS), plain, rtol=0, atol=0)
    assert (outputs["one"] - outputs["two"]).abs().max() > 1e-3


def test_hostile_and_foreign_adapters(tmp_path: Path) -> None:
    model = taught(model_of(llama))
    save_adapter(tmp_path, model, base="base")
    config = json.loads((tmp_path / CONFIG).read_text())
    tensors = read_tensors(tmp_path / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(match: str, config: Any = config, tensors: Any = tensors) -> None:
        (tmp_path / CONFIG).write_text(json.dumps(config))
        write_tensors(tmp_path / WEIGHTS, tensors)
        with pytest.raises(CheckpointError, match=match):
            load_adapter(tmp_path, model)

    refused("peft_type is not LORA", {**config, "peft_type": "IA3"})
    refused("use_dora = True", {**config, "use_dora": True})
    refused("lora_alpha is no number", {**config, "lora_alpha": "x"})
    refused("do not fit", tensors={**tensors, name: torch.zeros(4, 17)})
    refused("NaN or infinity", tensors={**tensors, name: torch.full((4, 16), torch.nan)})
    refused("is no pair", tensors={k: v for k, v in tensors.items() if k != name})
    refused(
        "is no pair", tensors={k.replace("layers.1", "layers.9"): v for k, v in tensors.items()}
    )
    refused("is not known here", tensors={**tensors, "model.x": torch.zeros(1)})
    refused("holds no matrix", tensors={})
    (tmp_path / CONFIG).write_text(json.dumps({**config, "use_rslora": True}))
    write_tensors(tmp_path / WEIGHTS, tensors)
    pair = load_adapter(tmp_path, model)["blocks.0.q"]
    assert isinstance(pair, Pair) and pair.scale == pytest.approx(8.0 / 2)


# --- a run ---------------------------------------------------------------------------------------


SETTINGS = {"task.name": "instructions", "model.d_model": 32, "model.n_layers": 1,
            "model.n_heads": 2, "tokenizer.vocab_size": 300, "training.precision": "fp32",
            "training.max_steps": 60, "training.lr": 0.01, "evaluation.samples": 0}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows turns, and questions with two sorts of answers."""
    folder = tmp_path_factory.mktemp("lora")
    for name, word in (("yes", "Yes."), ("no", "No!")):
        rows = [{"instruction": f"Is {i} a number?", "output": f"{word}"} for i in range(40)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ink.train(data=folder / "yes.jsonl", run=folder / "base", cache=folder / "c", settings=SETTINGS)
    return folder


def adapt(folder: Path, run: Path, **more: Any) -> dict[str, Any]:
    settings = {"task.name": "instructions", "model.pretrained": str(folder / "base"),
                "training.precision": "fp32", "training.max_steps": 30, "lora.rank": 4,
                "evaluation.samples": 0, "training.lr": 0.02}  # fmt: skip
    ink.train(data=folder / "no.jsonl", run=run, cache=folder / "c", settings=settings | more)
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result


def test_a_run_trains_adapters_and_merging_gives_its_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = adapt(folder, tmp_path / "run")
    assert result["scores"][0]["value"] < 0.5 * result["baseline"]["perplexity"]
    tuned, base = ink.load(tmp_path / "run"), ink.load(folder / "base")
    asked = [{"role": "user", "content": "Is 7 a number?"}]
    said = [m.chat(asked, temperature=0.0, max_tokens=8).text for m in (base, tuned)]
    assert said[0] == "Yes." and said[1] != "Yes."
    adapted = base.adapted(tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(adapted.model(IDS), tuned.model(IDS), rtol=1e-4, atol=1e-4)
        assert (base.model(IDS) - tuned.model(IDS)).abs().max() > 1e-2
    from inkstone.cli.main import main

    place = tmp_path / "merged"
    command = ["merge", str(folder / "base"), str(tmp_path / "run" / "adapter"), "--to", str(place)]
    assert main(command) == 0 and main(command) == 1  # nothing is overwritten
    with torch.no_grad():
        torch.testing.assert_close(ink.load(place).model(IDS), adapted.model(IDS))
    about = json.loads((tmp_path / "run" / "adapter" / ABOUT).read_text())
    assert about["base"] == {"name": "base", "fingerprint": base_fingerprint(base.model)}
    ink.train(data=folder / "no.jsonl", run=tmp_path / "other", cache=folder / "c",
              settings=SETTINGS | {"training.seed": 7})  # fmt: skip
    with pytest.raises(CheckpointError, match="trained on another model: 'base'"):
        ink.load(tmp_path / "other").adapted(tmp_path / "run")
    embed = [m.model.embed.weight for m in (base, tuned)]
    torch.testing.assert_close(*embed, rtol=0, atol=0)


def test_a_run_with_adapters_resumes_to_the_bit(folder: Path, tmp_path: Path) -> None:
    import shutil

    from inkstone import pipeline

    more = {"training.save_every": 10, "training.max_steps": 20, "training.keep_checkpoints": 9}
    adapt(folder, tmp_path / "run", **more)
    whole = read_tensors(tmp_path / "run" / "adapter" / WEIGHTS)
    last = read_tensors(tmp_path / "run/checkpoints/step-00000020/adapter" / WEIGHTS)
    (tmp_path / "run" / "result.json").unlink()
    for name in ("model", "adapter", "checkpoints/step-00000020"):
        shutil.rmtree(tmp_path / "run" / name)
    pipeline.resume(tmp_path / "run", cache=folder / "c")
    again = read_tensors(tmp_path / "run/checkpoints/step-00000020/adapter" / WEIGHTS)
    for name, tensor in last.items():
        assert torch.equal(tensor, again[name]), name
    assert set(whole) == set(read_tensors(tmp_path / "run" / "adapter" / WEIGHTS))


def test_what_adapters_cannot_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lora\.rank is for fine-tuning a decoder"):
        ink.train(data=folder / "no.jsonl", run=tmp_path / "a",
                  settings={"task.name": "instructions", "lora.rank": 4})  # fmt: skip
    with pytest.raises(UsageError, match="learns from plain text"):
        ink.train(data=folder / "no.jsonl", run=tmp_path / "b", settings={"lora.rank": 4})
