"""Round trips, control tokens, streaming, parity with published vocabularies."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.errors import TokenizerError
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.load import bert
from inkstone.tokenizers.tokenizer import PIECE_CHARS, Tokenizer, pieces
from inkstone.tokenizers.train import SPECIALS, train

ENGLISH = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, they'll say!\n\n",
    "A language model assigns a probability to every text; naïve café façades.\n",
    "def encode(text: str) -> list[int]:\n    return [1, 22, 333]\n",
] * 20
CHINESE = ["春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。\n", "床前明月光，疑是地上霜。\n"] * 20
KINDS = ["bpe", "wordpiece", "unigram", "char", "byte", "word"]
LOSSLESS = ["bpe", "byte", "unigram"]
LITERALS = [*SPECIALS, "<unk>", "[SEP]", "[PAD]"]


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    """One small tokenizer of every kind."""
    return {
        kind: train(ENGLISH + CHINESE, TokenizerConfig(kind=kind, vocab_size=700))  # type: ignore[arg-type]
        for kind in KINDS
    }


texts = st.text(max_size=60) | st.lists(
    st.sampled_from([*LITERALS, " ", "fox", "春", "🙂", "\n", "e\u0301", "<|", "|>", "\u200b"]),
    max_size=12,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_control_tokens_never_come_from_text(made: dict[str, Tokenizer], text: str) -> None:
    for tokenizer in made.values():
        control = tokenizer.special_ids - {tokenizer.unk_id}
        assert not control.intersection(tokenizer.encode(text)), tokenizer.kind


@settings(max_examples=150, deadline=None)
@given(texts)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_text_comes_back_whole(made: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = made[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_equals_decoding(
    made: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = made[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    stream = tokenizer.stream()
    parts = [stream.push(i) for i in ids] + [stream.flush()]
    assert "".join(parts) == tokenizer.decode(ids)
    raw = b"".join(
        tokenizer.token_bytes(i)
        for i in ids
        if i not in tokenizer.special_ids or i == tokenizer.unk_id
    )
    assert tokenizer.decode(ids).strip(" ") == raw.decode("utf-8", "replace").strip(" ")


def test_streaming_waits_for_whole_characters(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["byte"]
    ids = tokenizer.encode("春🙂")
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["", "", "春", "", "", "", "🙂"]
    stream = tokenizer.stream()
    assert stream.push(ids[0]) == "" and stream.flush() == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_saving_keeps_everything(made: dict[str, Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = made[kind]
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    sample = ENGLISH[0] + CHINESE[0] + "<|endoftext|> 🙂"
    assert again.encode(sample) == tokenizer.encode(sample)
    assert again.fingerprint() == tokenizer.fingerprint()
    for name in (
        "vocab_size",
        "eos_id",
        "pad_id",
        "unk_id",
        "special_ids",
        "chat_template",
        "kind",
    ):
        assert getattr(again, name) == getattr(tokenizer, name), name


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"unigram"}))
def test_training_is_deterministic(made: dict[str, Tokenizer], kind: str) -> None:
    again = train(ENGLISH + CHINESE, TokenizerConfig(kind=kind, vocab_size=700))  # type: ignore[arg-type]
    assert again.fingerprint() == made[kind].fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_it_with_the_same_ids(
    made: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    made[kind].save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    sample = ENGLISH[1] + CHINESE[0]
    assert theirs(sample, add_special_tokens=False)["input_ids"] == made[kind].encode(sample)
    assert theirs.eos_token_id == made[kind].eos_id


def test_arrays_equal_lists(made: dict[str, Tokenizer]) -> None:
    for tokenizer in made.values():
        ids, offsets = tokenizer.encode_arrays(["", *ENGLISH[:3], *CHINESE[:2], ""])
        lists = tokenizer.encode_batch(["", *ENGLISH[:3], *CHINESE[:2], ""])
        assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == lists


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="ab 春\n", min_size=1, max_size=8), st.integers(1, 3))
def test_long_texts_are_cut_without_loss(seed: str, times: int) -> None:
    text = seed * (times * PIECE_CHARS // len(seed) + 1)
    assert "".join(pieces(text)) == text
    assert all(len(p) <= PIECE_CHARS for p in pieces(text))


def test_cuts_do_not_change_the_ids(made: dict[str, Tokenizer]) -> None:
    text = " ".join(ENGLISH) * 60
    assert len(pieces(text)) > 2
    whole = made["bpe"].backend.encode(text, add_special_tokens=False).ids
    assert made["bpe"].encode(text) == whole


def test_one_letter_ten_million_times(made: dict[str, Tokenizer]) -> None:
    text = "a" * 10_000_000
    assert made["bpe"].decode(made["bpe"].encode(text)) == text


def test_a_long_run_trains() -> None:
    tokenizer = train(["a" * 1_000_000], TokenizerConfig(vocab_size=300))
    assert max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)) <= 128


def test_empty_corpus_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no text"):
        train([], TokenizerConfig())
    with pytest.raises(TokenizerError, match="no text"):
        train([""], TokenizerConfig())


def test_a_small_unigram_still_knows_every_byte() -> None:
    chinese = "".join(map(chr, range(0x4E00, 0x5000)))
    tokenizer = train([chinese], TokenizerConfig(kind="unigram", vocab_size=300))
    assert tokenizer.vocab_size < 400
    for text in (chinese, "▁ <0x41> a\u2581b 🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def _cases(shared_data: Path, name: str) -> list[dict[str, object]]:
    lines = (shared_data / "tokenizers" / "parity_cases.jsonl").read_text("utf-8").splitlines()
    return [c for c in map(json.loads, lines) if c["tokenizer"] == name]


def test_gpt2_vocabulary_gives_the_reference_ids(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "gpt2")
    cases = _cases(shared_data, "gpt2")
    assert len(cases) == 5 and tokenizer.vocab_size == 50257 and tokenizer.eos_id == 50256
    for case in cases:
        assert tokenizer.encode(str(case["text"])) == case["ids"]


def test_gpt2_files_without_tokenizer_json(shared_data: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(shared_data / "tokenizers" / "gpt2" / name)
    tokenizer = Tokenizer.load(tmp_path)
    for case in _cases(shared_data, "gpt2"):
        assert tokenizer.encode(str(case["text"])) == case["ids"]


@pytest.mark.parametrize(("name", "lower"), [("uncased", True), ("cased", False)])
def test_bert_vocabularies_give_the_reference_ids(
    shared_data: Path, name: str, lower: bool
) -> None:
    path = shared_data / "tokenizers" / "bert" / f"bert-base-{name}-vocab.txt"
    backend = bert(path, lowercase=lower)
    done = 0
    for case in _cases(shared_data, f"bert-base-{name}"):
        if case.get("never_split") or case.get("lower") != lower:
            continue
        backend.encode_special_tokens = True
        ids = backend.encode(str(case["text"]), add_special_tokens=False).ids
        assert ids == case["ids"], case["text"]
        done += 1
    assert done >= 4


def test_chinese_costs_no_more_than_the_reference(shared_data: Path) -> None:
    with gzip.open(shared_data / "chinese-poetry-tang" / "train.jsonl.gz", "rt", "utf-8") as file:
        poems = [json.loads(line)["text"] for line, _ in zip(file, range(4000), strict=False)]
    learn, held = poems[:3500], poems[3500:]
    ours = train(learn, TokenizerConfig(vocab_size=4000))
    reference = tokenizers.ByteLevelBPETokenizer()
    reference.train_from_iterator(learn, vocab_size=4000, show_progress=False)
    assert sum(map(len, ours.encode_batch(held))) <= sum(
        len(e.ids) for e in reference.encode_batch(held)
    )
    assert [ours.decode(ids) for ids in ours.encode_batch(held[:50])] == held[:50]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("literals", [["<unk>"], LITERALS])
def test_text_that_holds_control_tokens_trains_a_sound_tokenizer(
    kind: str, literals: list[str], tmp_path: Path
) -> None:
    """WikiText writes <unk> for rare words; the library's trainer counted it twice."""
    texts = [f"the <unk> fox {literal} jumps <unk> over\n" for literal in literals] * 20
    made = train(texts, TokenizerConfig(kind=kind, vocab_size=300))  # type: ignore[arg-type]
    made.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    ids = again.encode("the <unk> fox <|user|> jumps")
    assert ids == made.encode("the <unk> fox <|user|> jumps")
    assert not (again.special_ids - {again.unk_id}).intersection(ids)
    if kind == "word":
        assert ids[1] == again.unk_id and ids[0] != ids[2] != ids[4]
