"""Tokenizers as llama.cpp reads them: only those that give the same ids there.

llama.cpp has code of its own for every kind of tokenizer and chooses among a fixed list of
patterns by name (`src/llama-vocab.cpp`), so a tokenizer either is one of those or has no form in a
GGUF file. Control tokens are marked as such: llama.cpp then never finds them in a user's text.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from inkstone.compression.export._base import Source
from inkstone.errors import TokenizerError
from inkstone.tokenizers.marks import Marked
from inkstone.tokenizers.sentencepiece import MARK, merges
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import MODERN

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
GPT2 = "gpt-2"  # the pattern that is built into the library (Radford et al. 2019, released code)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {  # a pattern, and the name that it has there
    MODERN: "llama-bpe",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}": "qwen2",
}
MERGING = {"llama-bpe": "smaug-bpe"}  # the same pattern where a whole word still has to be merged
WHOLE = ("llama-bpe",)  # there, a word that is a token is not merged
NEVER = "一 一"  # a merge that bytes never make: the list may not be empty
ROLES = {
    "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator",
    "mask_token": "mask",
}  # fmt: skip
_ELSEWHERE = 'train with tokenizer.kind="bpe" (or "wordpiece" for encoders), or export to onnx'


@dataclass
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        model: Which of its algorithms: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE), "t5"
            (SentencePiece Unigram) or "bert" (WordPiece).
        pre: Name of the pattern.
        tokens: [V], as many as the model has rows.
        kinds: [V], normal, unknown, control, user-defined, unused or byte.
        scores: [V], or None.
        merges: Of "gpt2".
        keys: What else it says, under names behind "tokenizer.ggml.".
        notes: Where it is less than the tokenizer.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    pre: str = "default"
    scores: list[float] | None = None
    merges: list[str] | None = None
    keys: dict[str, int | bool | bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def vocabulary(source: Source, *, n_rows: int, encoder: bool) -> Vocabulary:
    """The tokenizer of a model.

    Args:
        source: The model.
        n_rows: Words that it has vectors for; those without a token are marked as unused.
        encoder: Whether texts stand in a frame of control tokens; else they begin a document.

    Raises:
        TokenizerError: llama.cpp has no such tokenizer; names what can be done.
    """
    tokenizer = source.read_with()
    tree: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    tokens, kinds = _tokens(tokenizer, n_rows)
    make = {"BPE": _bpe, "WordPiece": _wordpiece, "Unigram": _unigram}.get(tree["model"]["type"])
    marked = Marked.of(tokenizer.backend)
    if make is None or (make is _unigram and marked is None):
        raise TokenizerError(
            f"llama.cpp has no tokenizer of the kind {tokenizer.kind or tree['model']['type']!r}",
            fix=_ELSEWHERE,
        )
    if marked is not None and make is _bpe:
        made = _sentencepiece(tokenizer, tree, marked, tokens, kinds)
    elif marked is not None:
        made = _unigram(tokenizer, tree, marked, tokens, kinds)
    else:
        made = make(tokenizer, tree, marked, tokens, kinds)
    _roles(made, source, tokenizer, encoder=encoder)
    return made


def _tokens(tokenizer: Tokenizer, n_rows: int) -> tuple[list[str], list[int]]:
    """Names and kinds; rows without a token get a name that no text can spell as one."""
    added = tokenizer.backend.get_added_tokens_decoder()
    names = [tokenizer.backend.id_to_token(i) for i in range(n_rows)]
    tokens = [f"[unused {i}]" if name is None else name for i, name in enumerate(names)]
    kinds = [UNUSED if name is None else NORMAL for name in names]
    for i, token in added.items():
        kinds[i] = CONTROL if token.special else USER_DEFINED
    return tokens, kinds


def _bpe(
    tokenizer: Tokenizer, tree: Mapping[str, Any], marked: Marked | None, tokens: list[str],
    kinds: list[int],
) -> Vocabulary:  # fmt: skip
    """Byte-level BPE: GPT-2's, Llama 3's, Qwen's and ours."""
    model = tree["model"]
    affixes = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    if any(model.get(name) for name in affixes) or model.get("byte_fallback"):
        raise TokenizerError("llama.cpp knows BPE over bytes only, without affixes", fix=_ELSEWHERE)
    notes = []
    normalizer = (tree["normalizer"] or {}).get("type")
    if normalizer == "NFC":
        notes.append("llama.cpp leaves out the tokenizer's NFC: text that is not in it, as some "
                     "systems type accents, gets other ids there")  # fmt: skip
    elif normalizer is not None:
        raise TokenizerError(f"llama.cpp has no step like {normalizer} before BPE", fix=_ELSEWHERE)
    pre = _pattern(tree["pre_tokenizer"])
    whole = bool(model.get("ignore_merges"))
    if (pre in WHOLE) != whole and not _reachable(tree, tokens, kinds):
        if whole:
            raise TokenizerError(
                f"llama.cpp merges every word of the pattern {pre!r}, and some tokens of this "
                "vocabulary cannot be merged",
                fix=_ELSEWHERE,
            )
        pre = MERGING[pre]
    joined = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return Vocabulary("gpt2", tokens, kinds, pre, merges=joined or [NEVER], notes=notes)


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """What llama.cpp calls the pattern by which words are cut."""
    steps: list[dict[str, Any]] = [{}]
    if pre_tokenizer is not None:
        steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    level = steps[-1]
    if level.get("type") == "ByteLevel" and not level["add_prefix_space"]:
        if len(steps) == 1 and level["use_regex"]:
            return GPT2
        if len(steps) == 2 and not level["use_regex"] and steps[0]["type"] == "Split":
            plain = steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]
            found = PATTERNS.get(steps[0]["pattern"].get("Regex", ""))
            if plain and found is not None:
                return found
    raise TokenizerError(
        "llama.cpp has no name for the pattern by which this tokenizer cuts words",
        fix='train with tokenizer.pattern="modern" or "gpt2"; or export to onnx',
    )


def _reachable(tree: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> bool:
    """Whether the merges make every token out of its own bytes."""
    model = {**tree["model"], "ignore_merges": False}
    merging = tokenizers.Tokenizer.from_str(json.dumps({**tree, "model": model})).model
    normal = (token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL)
    return all(len(merging.tokenize(token)) == 1 for token in normal)


def _wordpiece(
    tokenizer: Tokenizer, tree: Mapping[str, Any], marked: Marked | None, tokens: list[str],
    kinds: list[int],
) -> Vocabulary:  # fmt: skip
    """BERT's: a word's first piece carries a mark there, the others none."""
    model, steps = tree["model"], tree["normalizer"] or {}
    cut = (tree["pre_tokenizer"] or {}).get("type")
    bert = steps.get("type") == "BertNormalizer" and cut == "BertPreTokenizer"
    bert = bert and steps["clean_text"] and steps["handle_chinese_chars"]
    if not bert or model["continuing_subword_prefix"] != "##":
        raise TokenizerError("llama.cpp knows BERT's WordPiece only", fix=_ELSEWHERE)
    for i, kind in enumerate(kinds):
        if kind == NORMAL:
            inner = tokens[i].startswith("##") and len(tokens[i]) > 2
            tokens[i] = tokens[i][2:] if inner else MARK + tokens[i]
    if len(set(tokens)) != len(tokens):
        twice = next(t for t in tokens if tokens.count(t) > 1)
        raise TokenizerError(
            f"two tokens are both called {twice!r} in llama.cpp", fix="export to onnx instead"
        )
    lower = bool(steps["lowercase"])
    strip = lower if steps["strip_accents"] is None else bool(steps["strip_accents"])
    notes = []
    if strip:  # it decomposes no Hangul and folds no marks that are typed apart
        notes.append("llama.cpp strips accents its own way: Korean, and marks that were typed "
                     "behind their letter, get other ids there")  # fmt: skip
    if not (lower and strip):
        notes.append("llama.cpp of before 2026 folds case and strips accents of any WordPiece")
    keys: dict[str, int | bool | bytes] = {
        "normalizer.lowercase": lower, "normalizer.strip_accents": strip,
    }  # fmt: skip
    return Vocabulary("bert", tokens, kinds, keys=keys, notes=notes)


def _sentencepiece(
    tokenizer: Tokenizer, tree: Mapping[str, Any], marked: Marked, tokens: list[str],
    kinds: list[int],
) -> Vocabulary:  # fmt: skip
    """SentencePiece's BPE with bytes for what is unknown: Llama 1 and 2, Mistral 7B."""
    model = tree["model"]
    if marked.charsmap is not None or marked.collapse or not model.get("byte_fallback"):
        raise TokenizerError(
            "llama.cpp's SentencePiece BPE changes no character and falls back on bytes; this "
            "tokenizer does otherwise",
            fix=_ELSEWHERE,
        )
    split = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    pairs = [(left, right) for left, right in split]
    ranks: dict[str, int] = {}
    for left, right in pairs:
        ranks.setdefault(left + right, len(ranks))
    # a piece without a merge is a single character, and its score decides nothing
    scores = [float(-ranks.get(token, len(ranks))) for token in tokens]
    table = [(t, s) for t, s, k in zip(tokens, scores, kinds, strict=True) if k == NORMAL]
    every = merges([(t, s) for t, s in table if not _names_byte(t)])
    made = [piece for piece, _ in itertools.groupby(left + right for left, right in pairs)]
    if set(every) != set(pairs) or len(set(made)) != len(made):
        raise TokenizerError(
            "the merges of this tokenizer follow no order of its pieces, as llama.cpp's do",
            fix=_ELSEWHERE,
        )
    control = [t for t, k in zip(tokens, kinds, strict=True) if k == CONTROL]
    known = {t for t, _ in table}
    notes = [
        f"llama.cpp finds {name!r} in a user's text, because two pieces spell it"
        for name in control
        if any(name[:n] in known and name[n:] in known for n in range(1, len(name)))
    ]
    return _marked("llama", tokenizer, marked, tokens, kinds, scores, notes)


def _unigram(
    tokenizer: Tokenizer, tree: Mapping[str, Any], marked: Marked | None, tokens: list[str],
    kinds: list[int],
) -> Vocabulary:  # fmt: skip
    """SentencePiece's Unigram: T5's."""
    model = tree["model"]
    assert marked is not None
    if model.get("byte_fallback") or (marked.collapse and not marked.prefix):
        raise TokenizerError(
            "llama.cpp's Unigram has no fallback on bytes, and where it joins spaces it puts one "
            "before a text; this tokenizer does otherwise",
            fix=_ELSEWHERE,
        )
    scores = [score for _, score in model["vocab"]][: len(tokens)]
    scores += [0.0] * (len(tokens) - len(scores))
    made = _marked("t5", tokenizer, marked, tokens, kinds, scores, [])
    made.keys["remove_extra_whitespaces"] = marked.collapse
    steps = tree["normalizer"].get("normalizers", [])
    if steps and steps[0]["type"] == "Precompiled":
        made.keys["precompiled_charsmap"] = base64.b64decode(steps[0]["precompiled_charsmap"])
    return made


def _marked(
    model: str, tokenizer: Tokenizer, marked: Marked, tokens: list[str], kinds: list[int],
    scores: list[float], notes: list[str],
) -> Vocabulary:  # fmt: skip
    for i, token in enumerate(tokens):
        if kinds[i] == NORMAL and _names_byte(token):
            kinds[i] = BYTE
    if tokenizer.unk_id is not None:
        kinds[tokenizer.unk_id] = UNKNOWN
    keys: dict[str, int | bool | bytes] = {"add_space_prefix": marked.prefix}
    return Vocabulary(model, tokens, kinds, scores=scores, keys=keys, notes=notes)


def _names_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _roles(made: Vocabulary, source: Source, tokenizer: Tokenizer, *, encoder: bool) -> None:
    """Ids of the control tokens by role, and which of them llama.cpp puts around a text."""
    before, after = tokenizer.frame()
    if len(before) > 1 or len(after) > 1 or (made.model == "bert" and not (before and after)):
        raise TokenizerError(
            f"llama.cpp puts one control token before and one after a text; this tokenizer's frame "
            f"has {len(before)} and {len(after)}"
            + (", and WordPiece needs both" if made.model == "bert" else ""),
            fix='train decoders with tokenizer.kind="bpe"; or export to onnx',
        )
    for role, name in ROLES.items():
        token = tokenizer.special.get(role)
        number = None if token is None else tokenizer.backend.token_to_id(token)
        if number is not None:
            made.keys[f"{name}_token_id"] = number
    if encoder:
        begin = before[0] if before else tokenizer.bos_id
        end = after[0] if after else tokenizer.eos_id
        made.keys |= {"add_bos_token": bool(before), "add_eos_token": bool(after)}
        made.keys |= {"add_sep_token": bool(after)} if made.model == "bert" else {}
    else:  # in training every document follows the end of the one before
        begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        end = tokenizer.eos_id
        made.keys |= {"add_bos_token": True, "add_eos_token": False}
        _dialogue(made, source, tokenizer, begin)
    made.keys["eos_token_id"] = end
    if begin is not None:
        made.keys["bos_token_id"] = begin


def _dialogue(made: Vocabulary, source: Source, tokenizer: Tokenizer, begin: int) -> None:
    """Which token ends an answer, and whether a conversation begins as a document does."""
    if not talks(source):
        return
    exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    ids = tokenizer.chat_ids(exchange, add_generation_prompt=False)
    made.keys["add_bos_token"] = ids[:1] == [begin]
    special = [i for i in ids if i in tokenizer.special_ids]
    if special:
        made.keys["eot_token_id"] = special[-1]


def talks(source: Source) -> bool:
    """Whether the model was taught to answer in the tokenizer's chat format."""
    taught = source.info.get("dialogue_trained", "inkstone" not in source.info)
    return bool(taught) and source.read_with().chat_template is not None
