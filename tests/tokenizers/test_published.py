"""Published vocabularies give the ids of the programs that they were made for."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inkstone.errors import InkstoneError, TokenizerError
from inkstone.tokenizers import charsmap, marks, sentencepiece, tiktoken
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.load import bert, open_backend
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

HARD = [
    "e\u0301", "n\u0303o", "ﬁ", "①½", "ｶﾞﾊﾟ", "각가", "\u200b", "\u200d", "\u3000", "\xa0", "\xad",
    "▁", " ", "  ", "\n", "\r\n", "\t", "\x00", "\x01", "\x7f", "\x85", "\u2028", "\ufeff",
    "\ufffd", "🙂", "👨‍👩‍👧", "🇨🇳", "春眠不覺曉", "日本語", "ชำ", "مرحبا", "naïve",
    "İstanbul", "ẞ", "Hello", "the", "world", "don't", "1234", "3.14", "...", "</s>", "<s>",
    "<unk>", "<pad>", "<0x41>", "<0x0A>",
    "</w>", "[SEP]", "[UNK]", "<|endoftext|>", "<extra_id_0>", "A" * 30, "aaa",
    "e\u0301\u0323\u0308",
]  # fmt: skip
hard = st.text(max_size=40) | st.lists(st.sampled_from(HARD), max_size=15).map("".join)


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "tokenizers"


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    """Some hundred varied strings: English, Chinese, code, and what is hard."""
    rng = random.Random(0)
    article = (shared_data / "tokenizers" / "bpe-training" / "taylorswift.txt").read_text("utf-8")
    with gzip.open(shared_data / "chinese-poetry-tang" / "train.jsonl.gz", "rt", "utf-8") as file:
        poems = [json.loads(line)["text"] for line in itertools.islice(file, 60)]
    code = Path(__file__).read_text("utf-8")
    cuts = [rng.randrange(len(article) - 400) for _ in range(150)]
    made = [article[place : place + rng.randint(1, 400)] for place in cuts]
    made += poems + code.splitlines() + [code]
    made += ["".join(rng.choices(HARD, k=rng.randint(0, 20))) for _ in range(300)]
    return made


# --- expected ids ---------------------------------------------------------------------------------

OPENERS: dict[str, Callable[[Path], Tokenizer]] = {
    "gpt2": lambda folder: Tokenizer.load(folder / "gpt2"),
    "clip": lambda folder: Tokenizer.load(folder / "clip"),
    "bert-base-uncased": lambda folder: Tokenizer.load(
        folder / "bert" / "bert-base-uncased-vocab.txt"
    ),
    "bert-base-cased": lambda folder: Tokenizer.load(folder / "bert" / "bert-base-cased-vocab.txt"),
}


def test_all_parity_cases(folder: Path) -> None:
    lines = (folder / "parity_cases.jsonl").read_text("utf-8").splitlines()
    opened = {name: make(folder) for name, make in OPENERS.items()}
    for case in map(json.loads, lines):
        tokenizer = opened[case["tokenizer"]]
        whole = case.get("never_split", ["<|startoftext|>", "<|endoftext|>"])
        parts = regex.split(
            "(" + "|".join(map(regex.escape, whole)) + ")" if whole else "$^", case["text"]
        )
        ids: list[int] = []
        for number, part in enumerate(parts):
            name = tokenizer.backend.token_to_id(part)
            ids += [name] if number % 2 else tokenizer.encode(part)
        assert ids == case["ids"], case
    assert len(lines) == 36


@pytest.mark.parametrize(
    ("file", "lowercase"), [("uncased", True), ("cased", False), ("chinese", True)]
)
def test_bert_equals_transformers(
    folder: Path, texts: list[str], file: str, lowercase: bool, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    path = folder / "bert" / f"bert-base-{file}-vocab.txt"
    ours = Tokenizer.load(path)
    theirs = transformers.BertTokenizer(vocab=str(path), do_lower_case=lowercase)
    cased = Tokenizer(bert(path, lowercase=False), ours.special)
    kept = [text for text in texts if not any(name in text for name in ("[SEP]", "[UNK]"))]
    found = theirs(kept, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch(kept) == found and len(kept) > 400
    assert (cased.encode_batch(kept) == found) is not lowercase


@pytest.mark.parametrize("name", ["gpt2", "clip", "gpt1"])
def test_merges_equal_transformers(folder: Path, texts: list[str], name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, files = {
        "gpt2": ("GPT2Tokenizer", ("vocab.json", "merges.txt")),
        "clip": ("CLIPTokenizer", ("encoder.json", "vocab.bpe")),
        "gpt1": ("OpenAIGPTTokenizer", ("vocab.json", "merges.txt")),
    }[name]
    vocab = json.loads((folder / name / files[0]).read_text("utf-8"))
    lines = (folder / name / files[1]).read_text("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    theirs = getattr(transformers, kind)(vocab=vocab, merges=merges)
    backend = open_backend(folder / name)[0]
    control = ("<unk>", "<|endoftext|>")
    kept = [text for text in texts if not any(literal in text for literal in control)]
    found = [e.ids for e in backend.encode_batch(kept, add_special_tokens=False)]
    assert found == theirs(kept, add_special_tokens=False)["input_ids"]


def test_a_vocabulary_without_an_end_of_text_says_so(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        Tokenizer.load(folder / "gpt1")


# --- SentencePiece --------------------------------------------------------------------------------


class Pair:
    """Our reading of a model file beside the program that it was made by."""

    def __init__(self, path: Path) -> None:
        oracle = pytest.importorskip("sentencepiece")
        self.ours = Tokenizer.load(path)
        self.theirs: Any = oracle.SentencePieceProcessor(model_file=str(path))

    def check(self, text: str) -> None:
        found, wanted = self.ours.encode(text), self.theirs.encode(text)
        if found != wanted:  # two ways of exactly the same likelihood: rounding decides
            score = self.theirs.get_score
            assert sorted(found) == sorted(wanted), text
            assert sum(map(score, found)) == pytest.approx(sum(map(score, wanted)), abs=1e-4)
        if self.ours.unk_id not in found:
            assert self.ours.decode(found) == self.theirs.decode(found)


@pytest.fixture(scope="module")
def pairs(folder: Path) -> dict[str, Pair]:
    files = {"t5": "t5/spiece.model", "llama2": "llama2/tokenizer.model"}
    return {name: Pair(folder / file) for name, file in files.items()}


@pytest.mark.parametrize("name", ["t5", "llama2"])
def test_sentencepiece_ids(pairs: dict[str, Pair], texts: list[str], name: str) -> None:
    for text in texts:
        pairs[name].check(text)
    tied = sum(pairs[name].ours.encode(t) != pairs[name].theirs.encode(t) for t in texts)
    assert tied <= (20 if name == "t5" else 0)  # runs of one letter or digit


@settings(max_examples=400, deadline=None)
@given(hard)
@example(" ")
@example("e\u0301\u0323 ﬁ\u0301")
@pytest.mark.parametrize("name", ["t5", "llama2"])
def test_sentencepiece_ids_of_any_text(pairs: dict[str, Pair], name: str, text: str) -> None:
    pairs[name].check(text)


@pytest.mark.parametrize("name", ["t5", "llama2"])
def test_saved_it_opens_here_and_in_transformers(
    pairs: dict[str, Pair], texts: list[str], name: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = pairs[name].ours
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode_batch(texts) == ours.encode_batch(texts)
    assert (again.special, again.fingerprint()) == (ours.special, ours.fingerprint())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = [t for t in texts[:210] if "<" not in t]
    assert theirs(plain, add_special_tokens=False)["input_ids"] == ours.encode_batch(plain)
    first, last = theirs("a")["input_ids"][0], theirs("a")["input_ids"][-1]
    assert first == ours.bos_id if name == "llama2" else last == ours.eos_id
    ids = ours.encode(plain[0])
    assert theirs.decode(ids) == ours.decode(ids)


def test_long_texts_are_cut_where_nothing_joins(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    text = (folder / "bpe-training" / "corpus.en").read_text("utf-8")[:20_000]
    for pair in pairs.values():
        whole = pair.ours.encode(text)
        with monkeypatch.context() as patch:
            patch.setattr(marks, "PART_CHARS", 500)
            assert pair.ours.encode(text) == whole == pair.theirs.encode(text)


def test_the_normalisation_table_equals_sentencepieces(folder: Path) -> None:
    oracle = pytest.importorskip("sentencepiece")
    path = folder / "t5" / "spiece.model"
    table = charsmap.read(sentencepiece.read(path.read_bytes()).charsmap)
    theirs = oracle.SentencePieceNormalizer(model_file=str(path))
    keys, rng = list(table.rules), random.Random(0)
    for _ in range(5000):
        text = "x" + "".join(rng.choices(keys, k=5)) + rng.choice(HARD) + "x"
        wanted = theirs.normalize(text)
        assert "▁" + " ".join(table(text).split(" ")).replace(" ", "▁") == wanted or "  " in table(
            text
        )


def test_sentinels_of_t5_count_down_from_the_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").symlink_to(folder / "t5" / "spiece.model")
    names = [f"<extra_id_{number}>" for number in range(100)]
    mapping = {"additional_special_tokens": names, "eos_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(mapping))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.backend.token_to_id("<extra_id_0>") == 32_099
    assert tokenizer.backend.token_to_id("<extra_id_99>") == 32_000
    assert not tokenizer.special_ids & {*tokenizer.encode("a <extra_id_0> </s> b")} - {2}


# --- tiktoken -------------------------------------------------------------------------------------


def test_gpt2_ranks_and_gpt2_merges_are_one_tokenizer(folder: Path, texts: list[str]) -> None:
    by_ranks = Tokenizer.load(folder / "whisper" / "gpt2.tiktoken")
    assert by_ranks.encode_batch(texts) == Tokenizer.load(folder / "gpt2").encode_batch(texts)
    assert (by_ranks.vocab_size, by_ranks.eos_id) == (51_864, 50_256)


def _by_rank(ranks: dict[bytes, int], word: bytes) -> list[int]:
    """The pair whose union ranks lowest is joined, the first of equals, until none is left."""
    parts = [bytes([b]) for b in word]
    while True:
        options = [
            (ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(itertools.pairwise(parts))
        ]
        rank, place = min(options, default=(1 << 30, 0))
        if rank == 1 << 30:
            return [ranks[part] for part in parts]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


WORDS = regex.compile(
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)


def test_whisper_ids_are_those_of_the_plain_algorithm(folder: Path, texts: list[str]) -> None:
    path = folder / "whisper" / "multilingual.tiktoken"
    ours = Tokenizer.load(path)
    rows = [line.split() for line in path.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    for text in texts:
        wanted = [i for word in WORDS.findall(text) for i in _by_rank(ranks, word.encode())]
        assert ours.encode(text) == wanted, text


def test_whisper_control_tokens(folder: Path) -> None:
    whisper = pytest.importorskip("transformers.models.whisper.tokenization_whisper")
    assert list(whisper.LANGUAGES)[:99] == list(tiktoken.LANGUAGES)
    ours = Tokenizer.load(folder / "whisper" / "multilingual.tiktoken")
    names = ("endoftext", "startoftranscript", "en", "translate", "transcribe")
    ids = [ours.backend.token_to_id(f"<|{name}|>") for name in names]
    assert ids == [50257, 50258, 50259, 50358, 50359]  # openai/whisper, tokenizer.py
    assert ours.backend.token_to_id("<|0.00|>") == 50364 and ours.vocab_size == 51_865


def test_an_unknown_rank_file_is_refused_not_guessed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.tiktoken").symlink_to(folder / "whisper" / "gpt2.tiktoken")
    with pytest.raises(TokenizerError, match=r"known: gpt2\.tiktoken, multilingual\.tiktoken"):
        Tokenizer.load(tmp_path)


# --- hostile files --------------------------------------------------------------------------------

FILES = {
    "spiece.model": "t5/spiece.model",
    "tokenizer.model": "llama2/tokenizer.model",
    "gpt2.tiktoken": "whisper/gpt2.tiktoken",
    "tok.bin": "../checkpoints/tok512.bin",
}


def _small(raw: bytes, name: str) -> bytes:
    """A short file of the same kind, so that many can be tried."""
    if not name.endswith(".model"):
        return raw if name == "tok.bin" else b"\n".join(raw.splitlines()[:300])
    kept = [(n, v) for n, v in sentencepiece._fields(raw) if n != 1 or not isinstance(v, bytes)]
    pieces = [v for n, v in sentencepiece._fields(raw) if n == 1 and isinstance(v, bytes)][:400]
    fields = [(1, piece) for piece in pieces] + kept
    out = bytearray()
    for number, value in fields:
        assert isinstance(value, bytes)
        out += bytes([number << 3 | 2]) + _varint(len(value)) + value
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@pytest.fixture(scope="module")
def small(folder: Path) -> dict[str, bytes]:
    return {name: _small((folder / path).read_bytes(), name) for name, path in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_the_small_files_open(small: dict[str, bytes], name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(small[name])
    tokenizer = Tokenizer.load(tmp_path / name)
    assert tokenizer.encode("the a") and tokenizer.vocab_size >= 300


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_a_typed_error_or_a_shorter_vocabulary(
    small: dict[str, bytes], name: str, tmp_path: Path, no_side_effects: Callable[[], Any]
) -> None:
    raw, path, refused = small[name], tmp_path / name, 0
    sizes = [*range(0, 60), *range(60, len(raw), max(1, len(raw) // 40))]
    for size in sizes:
        path.write_bytes(raw[:size])
        try:
            with no_side_effects():
                assert Tokenizer.load(path).vocab_size >= 3
        except TokenizerError as error:
            assert name in str(error)
            refused += 1
    assert refused >= 50


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_changed_bytes_load_or_are_a_typed_error(
    small: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    data: st.DataObject,
) -> None:
    raw = bytearray(small[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 200) | st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / name
    path.write_bytes(bytes(raw))
    try:
        tokenizer = Tokenizer.load(path)
        for text in ("the é ﬁ 한국 \u3000x", "<0x41></s>"):
            tokenizer.decode(tokenizer.encode(text))
    except InkstoneError:
        pass


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_a_changed_normalisation_table(folder: Path, data: st.DataObject) -> None:
    spec = sentencepiece.read((folder / "t5" / "spiece.model").read_bytes())
    raw = bytearray(spec.charsmap)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 1100) | st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    try:
        table = charsmap.read.__wrapped__(bytes(raw))
    except ValueError:
        return
    assert isinstance(table("e\u0301 ﬁ 한국"), str)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x7f", "past the end"),
        (b"\x0a" + b"\xff" * 12, "more than ten bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\x07\x0a\x01a\x15\x00\x00\x80\x7f"[:9], "past the end"),
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\x7f", "score inf"),
        (b"\x0a\x05\x0a\x03<u>", "0 pieces are the unknown one"),
        (b"\x0a\x05\x0a\x01a\x18\x05\x0a\x05\x0a\x01b\x18\x02", "unused"),
        (b"\x0a\x05\x0a\x01a\x18\x02\x0a\x05\x0a\x01a\x18\x01", "stands twice"),
        (b"\x0a\x05\x0a\x01a\x18\x02\x12\x02\x18\x04", "algorithm 4"),
        (b"\x0a\x05\x0a\x01a\x18\x02\x12\x03\x98\x02\x01", "0 pieces stand for bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "tokenizer.model"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_model_file_is_said(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (struct.pack("<i", -1), "-1 bytes"),
        (struct.pack("<ifi", 7, 0.0, 1 << 30), "malformed"),
        (struct.pack("<ifi", 7, float("nan"), 1) + b"a", "malformed"),
        (struct.pack("<ifi", 7, 0.0, 5) + b"<unk>", "1 tokens"),
    ],
)
def test_what_is_wrong_with_a_tok_bin_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tok.bin").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path / "tok.bin")


def test_a_hostile_table_inside_a_tokenizer_json(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pairs["t5"].ours.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    tree = json.loads(path.read_text("utf-8"))
    table = bytearray(
        base64.b64decode(tree["normalizer"]["normalizers"][0]["precompiled_charsmap"])
    )
    table[4:4096] = b"\xff" * 4092
    table[12] = 0
    tree["normalizer"]["normalizers"][0]["precompiled_charsmap"] = base64.b64encode(table).decode()
    path.write_text(json.dumps(tree))
    with pytest.raises(TokenizerError, match="normalisation table"):
        Tokenizer.load(path)


# --- the trainer ----------------------------------------------------------------------------------


def _counts(words: Counter[str], merges: list[tuple[str, ...]]) -> list[tuple[int, int]]:
    """How often each merge's pair occurred when it was made, and the greatest count then."""
    split = {word: list(word) for word in words}
    pairs: Counter[tuple[str, str]] = Counter()
    for word, n in words.items():
        for pair in itertools.pairwise(split[word]):
            pairs[pair] += n
    out = []
    for left, right in merges:
        out.append((pairs[left, right], max(pairs.values())))
        for word, n in words.items():
            parts = split[word]
            if (left, right) not in itertools.pairwise(parts):
                continue
            for pair in itertools.pairwise(parts):
                pairs[pair] -= n
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == (left, right):
                    parts[place : place + 2] = [left + right]
                place += 1
            for pair in itertools.pairwise(parts):
                pairs[pair] += n
    return out


def test_trained_merges_are_the_reference_but_for_the_order_of_ties(folder: Path) -> None:
    """Equal counts have no order: the reference takes the greater pair, the library the older."""
    text = (folder / "bpe-training" / "corpus.en").read_text("utf-8")
    file = folder / "bpe-training" / "train-bpe-reference-merges.txt"
    reference = [tuple(line.split(" ")) for line in file.read_text("utf-8").splitlines() if line]
    config = TokenizerConfig(vocab_size=500, pattern="gpt2", min_frequency=1)
    made = train([text], config, specials=("<|endoftext|>",))
    ours = [tuple(pair) for pair in json.loads(made.backend.to_str())["model"]["merges"]]
    words = Counter(w for w, _ in made.backend.pre_tokenizer.pre_tokenize_str(text))
    assert len(ours) == len(reference) == 243 and len({*ours} & {*reference}) == 239
    assert all(count == most for count, most in _counts(words, ours) + _counts(words, reference))
