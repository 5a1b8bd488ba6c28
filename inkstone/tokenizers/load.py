"""Opening tokenizers that others made, as if they were hostile."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from inkstone.errors import TokenizerError
from inkstone.tokenizers import charsmap, llama2c, sentencepiece, tiktoken

MAX_FILE_BYTES = 256 * 2**20
MAX_PATTERN_CHARS = 4096
ROLES: dict[str, tuple[str, ...]] = {  # a role and the names it commonly goes by
    "eos_token": ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]"),
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "mask_token": ("[MASK]", "<mask>"),
}
OPTIONAL = ("cls_token", "sep_token", "mask_token")  # often named where the vocabulary has none
FILES = (  # what a folder is searched for, in this order
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("vocab.txt",),
)
END, CLIP_START, WORD_END = "<|endoftext|>", "<|startoftext|>", "</w>"
CLIP_WORDS = (  # Radford et al. 2021, released code
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]"
    r"|[^\s\p{L}\p{N}]+"
)
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
    mapping = _json(folder / "special_tokens_map.json")
    files = _find(path)
    backend, roles = _open(files, settings)
    if files[0].suffix == ".model":
        _add_sentinels(backend, settings, mapping)
    special = _special(backend, settings, roles | mapping)
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


def _find(path: Path) -> tuple[Path, ...]:
    """The file, or the two files, that hold the vocabulary."""
    if path.is_file():
        return (path,)
    for names in FILES:
        if all((path / name).is_file() for name in names):
            return tuple(path / name for name in names)
    ranks = sorted(path.glob("*.tiktoken"))
    if len(ranks) == 1:
        return (ranks[0],)
    raise TokenizerError(
        f"no tokenizer in {path}",
        fix="expected "
        + ", ".join(" with ".join(names) for names in FILES)
        + ", or one *.tiktoken",
    )


def _open(
    files: tuple[Path, ...], settings: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer in some files, and the roles of its tokens where the files say them."""
    path = files[0]
    if len(files) == 2:
        return _merges(*files), {}
    if path.suffix in (".model", ".bin"):
        spec = _parsed(sentencepiece.read if path.suffix == ".model" else llama2c.read, path)
        return _safely(lambda: sentencepiece.build(spec), path), spec.names()
    if path.suffix == ".tiktoken":
        tokens = _parsed(tiktoken.read, path)
        roles = {"bos_token": tiktoken.WHISPER[1]}
        backend = _safely(lambda: tiktoken.build(tokens, path.name), path)
        return backend, roles if backend.token_to_id(roles["bos_token"]) is not None else {}
    if path.suffix == ".txt":
        lower = settings.get("do_lower_case")
        return bert(path, lowercase=lower if isinstance(lower, bool) else None), {}
    return _from_json(path), {}


def _parsed(read: Callable[[bytes], T], path: Path) -> T:
    try:
        return read(_read(path, MAX_FILE_BYTES))
    except (ValueError, RecursionError, OverflowError, struct.error) as error:
        raise TokenizerError(f"{path} is not a tokenizer: {error}") from error


def _add_sentinels(
    backend: tokenizers.Tokenizer, settings: dict[str, Any], mapping: dict[str, Any]
) -> None:
    """T5's <extra_id_0> …, which its folder names and numbers from the end of the vocabulary."""
    named = settings.get("additional_special_tokens") or mapping.get("additional_special_tokens")
    names = {str(n.get("content") if isinstance(n, dict) else n) for n in named or ()}
    found = {int(m[1]): m[0] for n in names if (m := re.fullmatch(r"<extra_id_(\d{1,4})>", n))}
    backend.add_special_tokens([_special_token(found[n]) for n in sorted(found, reverse=True)])


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
    for table in _values(tree, "precompiled_charsmap"):
        charsmap.read(base64.b64decode(table))  # the library trusts it
    for pattern in _values(tree, "Regex"):
        if len(pattern) > MAX_PATTERN_CHARS or _NESTED_QUANTIFIER.search(pattern):
            raise TokenizerError(f"{path}: the pattern {pattern[:60]!r} could run for ever")


def _values(node: Any, name: str) -> Iterator[str]:
    """All texts of that name in a tokenizer.json, outside its vocabulary."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name and isinstance(value, str):
                yield value
            elif key not in ("vocab", "merges"):
                yield from _values(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, name)


def _merges(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """A vocabulary and its merges as OpenAI released them for GPT-2, CLIP and GPT-1."""
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
        raise TokenizerError(f"{vocab}: not a vocabulary with merges: {error}") from error
    ended = {"end_of_word_suffix": WORD_END} if any(t.endswith(WORD_END) for t in table) else {}
    unknown = next((n for n in ("<unk>", END) if ended and n in table), None)
    backend = _safely(
        lambda: tokenizers.Tokenizer(
            models.BPE(vocab=table, merges=pairs, unk_token=unknown, **ended)
        ),
        vocab,
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not ended:  # GPT-2
        backend.pre_tokenizer, backend.decoder = level, decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    elif CLIP_START in table:
        backend.normalizer = normalizers.Sequence(
            [
                normalizers.NFC(),
                normalizers.Replace(Regex(r"\s+"), " "),
                normalizers.Lowercase(),
            ]
        )
        words = pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, level])
        backend.decoder = decoders.ByteLevel()
    else:  # GPT-1
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    control = [n for n in (CLIP_START, END, "<unk>") if n in table]
    backend.add_special_tokens([_special_token(n) for n in control])
    return backend


def bert(vocab: Path, *, lowercase: bool | None = None) -> tokenizers.Tokenizer:
    """BERT's vocab.txt, one WordPiece a line.

    Args:
        vocab: The file.
        lowercase: The uncased models fold case and strip accents; None: as the vocabulary does.
    """
    try:
        lines = _read(vocab, MAX_FILE_BYTES).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{vocab}: not UTF-8: {error}") from error
    table = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    if len(table) != len(lines) or "[UNK]" not in table:
        raise TokenizerError(f"{vocab}: a piece stands twice, or [UNK] is missing")
    if lowercase is None:
        words = (piece for piece in table if not re.fullmatch(r"\[.*\]|<.*>", piece))
        lowercase = all(word == word.lower() for word in words)
    backend = _safely(
        lambda: tokenizers.Tokenizer(models.WordPiece(table, unk_token="[UNK]")), vocab
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    backend.add_special_tokens([_special_token(n) for n in names if n in table])
    if {"[CLS]", "[SEP]"} <= table.keys():
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, table[name]) for name in ("[CLS]", "[SEP]")],
        )
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
                if role in OPTIONAL:
                    continue
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
