"""Hub names: downloaded once, opened from the cache, refused in words that say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import inkstone as ink
from inkstone.checkpoint import hub as module
from inkstone.checkpoint import model as saving
from inkstone.checkpoint import save_model
from inkstone.errors import CheckpointError, HubError
from inkstone.models import gpt2
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train
from tests.checkpoint.hub_stand_in import Hub, serve

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "on", "mat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models as transformers writes them, and one of ours in shards."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("models")
    tokenizer = train(["the cats sat on the mat. " * 30], TokenizerConfig(vocab_size=300))
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=tokenizer.vocab_size, **shape)
    )
    theirs.save_pretrained(root / "gpt2")
    tokenizer.save(root / "gpt2")
    (root / "gpt2" / "pytorch_model.bin").write_bytes(b"\x80\x04 not opened")
    (root / "gpt2" / "evil.py").write_text("raise SystemExit('ran')")
    (root / "gpt2" / "onnx").mkdir()
    (root / "gpt2" / "onnx" / "model.safetensors").write_bytes(b"not asked for")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(root / "bert")
    (root / "bert" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    mine = gpt2.Model(gpt2.Config(vocab_size=tokenizer.vocab_size, max_seq_len=32, d_model=16,
                                  n_layers=2, n_heads=2))  # fmt: skip
    (root / "sharded").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "MAX_SHARD_BYTES", 8_000)
        save_model(root / "sharded", mine, tokenizer)
    assert len(list((root / "sharded").glob("model-0*.safetensors"))) > 2
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, to which this process' own huggingface_hub is turned."""
    from huggingface_hub import constants

    made = Hub()
    made.add("gpt2", folders["gpt2"])
    made.add("bert-base-uncased", folders["bert"])
    made.add("someone/sharded-model", folders["sharded"])
    made.add("someone/private", folders["gpt2"])
    made.gated.add("someone/private")
    with serve(made):
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # of a machine without a network
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.chdir(tmp_path)
        yield made


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# --- what works -----------------------------------------------------------------------------------


def test_the_command_with_the_variables_of_the_hub(
    hub: Hub, folders: dict[str, Path], tmp_path: Path
) -> None:
    """In processes of its own: huggingface_hub reads its variables when it is imported."""

    def load(*names: str, **variables: str) -> tuple[int, str, str]:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(Path(ink.__file__).parents[1]), **variables,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "inkstone", "load", *names],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    code, out, err = load("gpt2", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["folder"].startswith(str(tmp_path / "home" / "hub" / "models--gpt2"))
    asked = len(hub.asked)
    code, out, err = load("gpt2", HF_HUB_OFFLINE="1")
    assert code == 0 and len(hub.asked) == asked, err
    assert "gpt2" in out and f"{facts['parameters']:,}" in out and "BPE" in out
    code, _, err = load("someone/sharded-model", HF_HUB_OFFLINE="1")
    assert code == 1 and "HF_HUB_OFFLINE is set" in err and "Traceback" not in err


def test_only_what_is_read_is_downloaded(hub: Hub, folders: dict[str, Path]) -> None:
    model = ink.load("gpt2", device="cpu")
    assert hub.fetched() == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    local = ink.load(folders["gpt2"], device="cpu")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.model(ids), local.model(ids))
    assert model.describe()["kind"] == "causal"


def test_the_second_time_is_from_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ink.load("someone/sharded-model", device="cpu")
    sent = len(hub.fetched())
    again = ink.load("someone/sharded-model", device="cpu")
    assert len(hub.fetched()) == sent and again.path == first.path
    asked = len(hub.asked)
    _offline(monkeypatch)
    offline = ink.load("someone/sharded-model", device="cpu")
    assert len(hub.asked) == asked and offline.path == first.path
    assert offline.generate("the", max_tokens=3, temperature=0.0).ids


def test_an_encoder(hub: Hub) -> None:
    model = ink.load("bert-base-uncased", device="cpu")
    assert (model.family, model.kind) == ("bert", "encoder")
    assert model.tokenizer is not None and model.tokenizer.frame() == ([2], [3])
    assert model.tokenizer.encode("The cats on mat") == [5, 6, 7, 8, 9]
    assert model.embed(["the cats", ""]).shape == (2, 16)


def test_revisions(hub: Hub) -> None:
    commit = hub.commit("gpt2")
    for revision in ("main", "v1", commit):
        assert ink.load(f"gpt2@{revision}", device="cpu").path.name == commit


def test_a_token_opens_what_is_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert ink.load("someone/private", device="cpu").family == "gpt2"


def test_a_folder_here_wins(hub: Hub, folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "gpt2").symlink_to(folders["sharded"])
    assert ink.load("gpt2", device="cpu").path == Path("gpt2") and hub.asked == []


def test_a_mistyped_path_is_nobodys_business(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("runs/mine", "./gpt3", "/absent", "~/x", "../x", "a/b/c", "x.txt/", Path("gpt3")):
        with pytest.raises(CheckpointError, match="does not exist"):
            ink.load(name)
    assert hub.asked == []


# --- what is refused ------------------------------------------------------------------------------


def _refused(name: str, message: str) -> HubError:
    with pytest.raises(HubError, match=message) as caught:
        ink.load(name)
    assert "hf_secret" not in str(caught.value)
    return caught.value


def test_not_there(hub: Hub) -> None:
    error = _refused("someone/absent", "has no model of this name")
    assert "no folder 'someone/absent' is here" in str(error) and "spelling" in str(error.fix)
    _refused("gpt2@v99", "no revision")


def test_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_TOKEN" in str(_refused("someone/private", "is gated").fix)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf_wrong" not in str(_refused("someone/private", "is gated"))


def test_offline_and_not_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _offline(monkeypatch)
    _refused("gpt2", "HF_HUB_OFFLINE is set")
    assert hub.asked == []


def test_only_pickles(hub: Hub, tmp_path: Path) -> None:
    hub.models["gpt2"] = {name: data for name, data in hub.models["gpt2"].items()
                          if not name.endswith(".safetensors")}  # fmt: skip
    error = _refused("gpt2", r"no safetensors, only 'pytorch_model\.bin'")
    assert "never opened" in str(error)
    assert not any(name.endswith(".bin") for name in hub.fetched())
    assert not list((tmp_path / "cache").rglob("pytorch_model.bin"))


def test_no_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "HF_ENDPOINT" in str(_refused("gpt2", "cannot be reached").fix)


def test_a_hub_that_is_down_serves_from_the_cache(hub: Hub) -> None:
    first = ink.load("gpt2", device="cpu")
    hub.broken = True
    assert ink.load("gpt2", device="cpu").path == first.path
    _refused("bert-base-uncased", "503")


def test_hostile_names_of_files(hub: Hub, tmp_path: Path) -> None:
    shard = hub.models["gpt2"].pop("model.safetensors")
    names = (
        "../../evil.safetensors", "/tmp/model.safetensors", "model-/../../x-of-1.safetensors",
        "../config.json", "a/../../model.safetensors",
    )  # fmt: skip
    for name in names:
        hub.models["gpt2"][name] = shard
    _refused("gpt2", "no safetensors")
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.rglob("*.safetensors"))
    index = {"weight_map": {"wte.weight": "../../evil.safetensors"}}
    hub.models["gpt2"]["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(CheckpointError, match="is not a file of this folder"):
        ink.load("gpt2@main")


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("gpt2", True), ("bert-base-uncased", True), ("org/name", True), ("a/b@v1", True),
        ("a/b@refs/pr/3", True), ("gpt2@" + "0" * 40, True), ("Qwen/Qwen3-0.6B", True),
        ("", False), (".", False), ("..", False), ("a/b/c", False), ("/a", False), ("./a", False),
        ("a//b", False), ("a b", False), ("a/", False), ("a@", False), ("a/../b", False),
        ("a@../b", False), ("a--b", False), ("a\n", False), ("http://x/y", False), ("-a", False),
        ("C:\\a", False), ("模型", False), ("a.git", False),
    ],
)  # fmt: skip
def test_what_looks_like_a_name(text: str, is_name: bool, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert module.looks_like_name(text) is is_name


def test_every_other_failure_is_typed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*arguments: Any, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "room on the disk" in str(_refused("gpt2", "No space left").fix)
