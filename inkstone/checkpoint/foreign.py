"""Models in the formats of other programs, made into a folder of ours. The content decides."""

from __future__ import annotations

from pathlib import Path

from inkstone.checkpoint import llama2c
from inkstone.checkpoint.model import save_model
from inkstone.errors import CheckpointError
from inkstone.files import atomic_folder
from inkstone.tokenizers.tokenizer import Tokenizer

FORMATS = {"llama2.c": llama2c}  # each: recognizes(first bytes), read(path)
_OTHERS = (  # (first bytes, what it is, what to do)
    (b"GGUF", "a GGUF file", "import the Hugging Face folder that it was made from"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes it", "pickled weights are never opened"),
    (b"\x80", "a Python pickle", "pickled weights are never opened"),
    (b"version https://git-lfs", "a Git LFS pointer", "download the file itself"),
    (b"<", "an HTML page, probably an error page saved by a download", "download it again"),
    (b"\x89HDF", "an HDF5 file", "export the model to a Hugging Face folder first"),
)


def import_model(file: Path | str, to: Path | str, *, tokenizer: Path | str | None = None) -> None:
    """Read a model of another program and write it as a Hugging Face folder.

    Args:
        file: The model, in one of `FORMATS`.
        to: A new folder; what exists is never overwritten.
        tokenizer: Its tokenizer, in any form that `Tokenizer.load` opens; None: the folder has
            none and works with token ids only.

    Raises:
        CheckpointError: The file is of no known format, damaged, or does not fit the tokenizer; or
            the folder exists.
        TokenizerError: The tokenizer cannot be opened.
    """
    path, target = Path(file), Path(to)
    if target.exists() or target.is_symlink():
        raise CheckpointError(f"{target} exists", fix="name a new folder; nothing is overwritten")
    name = detect(path)
    source = FORMATS[name]
    vocabulary = None if tokenizer is None else Tokenizer.load(tokenizer)
    if vocabulary is not None:
        size = source.read_header(path).config.vocab_size
        if vocabulary.vocab_size != size:
            raise CheckpointError(
                f"{tokenizer} has {vocabulary.vocab_size:,} tokens, {path} {size:,}",
                fix="give the tokenizer that the model was trained with",
            )
        if vocabulary.bos_id is not None:  # llama2.c ends a text where the next one begins
            special = {**vocabulary.special, "eos_token": vocabulary.special["bos_token"]}
            vocabulary = Tokenizer(vocabulary.backend, special)
    model = source.read(path)
    with atomic_folder(target) as folder:
        info = {"name": target.name, "imported": {"format": name, "file": path.name}}
        save_model(folder, model, vocabulary, info=info)


def detect(path: Path) -> str:
    """Which of `FORMATS` a file is of.

    Raises:
        CheckpointError: None of them; the message says what it is, if that can be told.
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder", fix="a Hugging Face folder needs no import: inkstone load FOLDER"
        )
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    for name, format_ in FORMATS.items():
        if format_.recognizes(start):
            return name
    known = f"known formats: {', '.join(FORMATS)}"
    if start[8:9] == b"{":
        raise CheckpointError(
            f"{path} is a safetensors file ({known})",
            fix="put config.json beside it and open the folder: inkstone load FOLDER",
        )
    for magic, what, fix in _OTHERS:
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {what} ({known})", fix=fix)
    raise CheckpointError(f"{path} is of no format that is known here", fix=known)
