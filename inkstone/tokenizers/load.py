"""Opening tokenizers that others made, as if they were hostile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from inkstone.errors import TokenizerError

MAX_FILE_BYTES = 256 * 2**20
MAX_PATTERN_CHARS = 4096
ROLES: dict[str, tuple[str, ...]] = {  # a role and the names it commonly goes by
    "eos_token": ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]"),
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]"),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
}
_NESTED_QUANTIFIER = re.compile(r"\((?:[^()\\]|\\.)*[+*}](?:[^()\\]|\\.)*\)(?:[+*]|\{\d*,)")
T = TypeVar("T")


def open_backend(
    path: Path,
) -> tuple[tokenizers.Tokenizer, dict[str, str], str | None, str | None]:
    """The library's tokenizer, special tokens by role, chat template, kind.

    Raises:
        TokenizerError: Nothing to open, or what is there is damaged or hostile; names the file.
    """
    folder = path if path.is_dir() else path.parent
    settings = _json(folder / "tokenizer_config.json")
    if path.is_file() and path.name != "vocab.txt":
        backend = _from_json(path)
    elif (folder / "tokenizer.json").is_file() and path.is_dir():
        backend = _from_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _gpt2(folder / "vocab.json", folder / "merges.txt")
    elif (vocabulary := path if path.is_file() else folder / "vocab.txt").is_file():
        backend = bert(vocabulary, lowercase=bool(settings.get("do_lower_case", True)))
    else:
        raise TokenizerError(
            f"no tokenizer in {path}",
            fix="expected tokenizer.json, vocab.json with merges.txt, or vocab.txt",
        )
    special = _special(backend, settings, _json(folder / "special_tokens_map.json"))
    template = settings.get("chat_template")
    separate = folder / "chat_template.jinja"
    if template is None and separate.is_file():
        template = _read(separate, 2**20).decode("utf-8", "replace")
    kind = settings.get("inkstone_kind")
    return (
        backend,
        special,
        template if isinstance(template, str) else None,
        kind if isinstance(kind, str) else None,
    )


def _from_json(path: Path) -> tokenizers.Tokenizer:
    raw = _read(path, MAX_FILE_BYTES)
    try:
        tree = json.loads(raw)
        _check_tree(tree, path)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from error
    return _safely(lambda: tokenizers.Tokenizer.from_str(raw.decode("utf-8")), path)


def _check_tree(tree: Any, path: Path) -> None:
    """What the library would accept and later fail on, or hang."""
    model = tree["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        ids = list(vocabulary.values())
        names = set(vocabulary)
    else:
        ids = list(range(len(vocabulary)))
        names = {str(piece) for piece, _ in vocabulary}
    added = tree.get("added_tokens") or []
    every = ids + [t["id"] for t in added if t["content"] not in names]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in every):
        raise TokenizerError(f"{path}: an id is not a whole number")
    if len(set(every)) != len(every):
        raise TokenizerError(f"{path}: two tokens share an id")
    if every and not (min(every) >= 0 and max(every) < 2 * len(every) + 1024):
        raise TokenizerError(f"{path}: ids run to {max(every)} for {len(every)} tokens")
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else list(merge)
        if len(pair) != 2 or not {*pair, "".join(pair)} <= names:
            raise TokenizerError(f"{path}: the merge {merge!r} leaves the vocabulary")
    for pattern in _patterns(tree):
        if len(pattern) > MAX_PATTERN_CHARS or _NESTED_QUANTIFIER.search(pattern):
            raise TokenizerError(f"{path}: the pattern {pattern[:60]!r} could run for ever")


def _patterns(node: Any) -> Iterator[str]:
    """All regular expressions in a tokenizer.json, outside its vocabulary."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "Regex" and isinstance(value, str):
                yield value
            elif key not in ("vocab", "merges"):
                yield from _patterns(value)
    elif isinstance(node, list):
        for value in node:
            yield from _patterns(value)


def _gpt2(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """GPT-2's released files: encoder.json and vocab.bpe under their common names."""
    try:
        table = json.loads(_read(vocab, MAX_FILE_BYTES))
        lines = _read(merges, MAX_FILE_BYTES).decode("utf-8").split("\n")
        pairs = [
            (left, right)
            for left, _, right in (x.partition(" ") for x in lines if not x.startswith("#version"))
            if left
        ]
        _check_tree({"model": {"vocab": table, "merges": pairs}}, vocab)
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise TokenizerError(f"{vocab}: not GPT-2's vocabulary: {error}") from error
    backend = _safely(lambda: tokenizers.Tokenizer(models.BPE(vocab=table, merges=pairs)), vocab)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    if "<|endoftext|>" in table:
        backend.add_special_tokens([_special_token("<|endoftext|>")])
    return backend


def bert(vocab: Path, *, lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's vocab.txt, one WordPiece a line.

    Args:
        vocab: The file.
        lowercase: The uncased models fold case and strip accents.
    """
    try:
        lines = _read(vocab, MAX_FILE_BYTES).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{vocab}: not UTF-8: {error}") from error
    table = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if len(table) != len(lines) or "[UNK]" not in table:
        raise TokenizerError(f"{vocab}: a piece stands twice, or [UNK] is missing")
    backend = _safely(
        lambda: tokenizers.Tokenizer(models.WordPiece(table, unk_token="[UNK]")), vocab
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend.add_special_tokens([_special_token(n) for n in names if n in table])
    return backend


def _special(
    backend: tokenizers.Tokenizer, settings: dict[str, Any], mapping: dict[str, Any]
) -> dict[str, str]:
    """Names of the tokens with a role: as configured, else under their common names."""
    found = {}
    for role, common in ROLES.items():
        named = settings.get(role) or mapping.get(role)
        if isinstance(named, dict):
            named = named.get("content")
        if isinstance(named, str):
            if backend.token_to_id(named) is None:
                raise TokenizerError(f"{role} {named!r} is not in the vocabulary")
            found[role] = named
        else:
            known = next((n for n in common if backend.token_to_id(n) is not None), None)
            if known is not None and not settings:
                found[role] = known
    if "eos_token" not in found:
        known = next((n for n in ROLES["eos_token"] if backend.token_to_id(n) is not None), None)
        if known is not None:
            found["eos_token"] = known
    return found


def _special_token(content: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(content, special=True, normalized=False)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read(path, 2**24))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds no JSON object")
    return value


def _read(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise TokenizerError(f"{path} is larger than {limit:,} bytes")
    return data


def _safely(make: Callable[[], T], path: Path) -> T:
    """The library raises plain Exception, and a panic of its Rust code is a BaseException."""
    try:
        return make()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise TokenizerError(f"{path} is not a tokenizer: {str(error)[:200]}") from error
