"""Models for other programs: one file a format, named as `inkstone export --to` names it.

A format has `TYPES` (how numbers can be stored, the first by default), `FOLDER` (whether it is a
folder or one file) and `write(source, target, kind, progress)`, which fills a private path and
returns what can be told of the result and what the user should know. Libraries are imported when a
format is written; each is named by the extra `export`.
"""

from __future__ import annotations

from pathlib import Path

from inkstone import registry
from inkstone.compression.export._base import Exported, Source
from inkstone.config import Progress
from inkstone.errors import ModelError, UsageError
from inkstone.files import atomic_folder, new_file
from inkstone.nn.quantized_layers import quantized_of

__all__ = ["Exported", "Source", "export", "formats"]


def formats() -> list[str]:
    """Names of the formats."""
    return registry.names("compression.export")


def export(
    source: Source,
    to: Path | str,
    form: str,
    *,
    kind: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a model in another program's format; it appears whole or not at all.

    Args:
        source: The model.
        to: A new file or folder; what exists is never overwritten.
        form: One of `formats()`.
        kind: How numbers are stored; None: as the format does by default.
        progress: Told how much is done.

    Raises:
        UsageError: No such format or type, or `to` exists.
        ModelError: The format cannot hold this family, or what it wrote is not this model.
        TokenizerError: The format cannot hold this tokenizer.
        MissingExtraError: A library is not installed.
        CheckpointError: The disk is full, read-only or failing.
    """
    writer = registry.load("compression.export", form)
    kind = writer.TYPES[0] if kind is None else kind
    if kind not in writer.TYPES:
        known = registry.did_you_mean(kind, writer.TYPES)
        raise UsageError(f"{form} has no type {kind!r}", fix=known)
    target = Path(to)
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} is there already", fix="nothing is overwritten: name a new one")
    tell = progress or (lambda done, total, unit: None)
    if not hasattr(source.model, "parameters"):
        raise ModelError(
            f"{source.folder} holds no network ({source.family}), so there is no export"
        )
    if any(quantized_of(module) is not None for module in source.model.modules()):
        raise ModelError(
            f"{source.folder} holds whole numbers or 8-bit floats, which are not exported",
            fix="export the model that it was made from; gguf has --type q8_0 and q4_0",
        )
    source.model.eval()
    with (atomic_folder if writer.FOLDER else new_file)(target) as private:
        facts, notes = writer.write(source, private, kind, tell)
    files = [p for p in target.rglob("*") if p.is_file()] if writer.FOLDER else [target]
    n_bytes = sum(path.stat().st_size for path in files)
    return Exported(target, form, kind, n_bytes, facts, notes)
