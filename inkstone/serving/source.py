"""Where what is served comes from: a model's folder, and those of the adapters beside it.

A source can be asked cheaply whether there is something new (`state`), and opened again, which
gives models that share nothing with those that were opened before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inkstone import api
from inkstone.checkpoint import adapters as lora_files
from inkstone.errors import CheckpointError, InkstoneError, UsageError
from inkstone.nn.adapters import Pairs, with_adapter
from inkstone.pipeline.locate import find_adapter, find_model, step_of
from inkstone.serving.config import ServeConfig
from inkstone.serving.hosted import Hosted
from inkstone.tokenizers.load import FILES
from inkstone.tokenizers.tokenizer import Tokenizer

NAME_CHARS = 200
State = tuple[tuple[Any, ...], ...]
"""Of every file its name, inode, size and time: different once a folder was written anew."""


def named(given: str) -> tuple[str, str]:
    """A name and a folder; of `FOLDER` alone the folder's own name is taken, of `NAME=FOLDER` that.

    Raises:
        UsageError: It is no name.
    """
    name, equals, path = given.partition("=")
    if not equals or "/" in name:
        name, path = Path(given).resolve().name, given
    if not name or len(name) > NAME_CHARS:
        raise UsageError(f"{name!r} is no name for a model", fix="write NAME=FOLDER")
    return name, path


@dataclass(frozen=True)
class Source:
    """A model, and adapters that stand beside its weights.

    Attributes:
        name: What requests call the model.
        folder: A run, a model folder, or a name on the hub.
        adapters: Folders in peft's format, or runs that train one, by the name that requests call.
        device: "auto", "cpu" or "cuda".
    """

    name: str
    folder: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"

    def open(self, config: ServeConfig) -> list[Hosted]:
        """The model, and one more for each adapter, which shares its weights and its engine.

        Raises:
            InkstoneError: As of `inkstone.load`; an adapter is damaged, or for another model.
            UsageError: It holds nothing that can be served, or is none that adapters fit.
        """
        state = self.state()
        model = api.load(self.folder, device=self.device)
        if not isinstance(model, api.LanguageModel):
            raise UsageError(f"{self.folder} holds word vectors, which answer no requests")
        if self.adapters and (model.kind != "causal" or model.tokenizer is None):
            raise UsageError(f"{self.folder} does not continue text, and adapters are for that")
        opened = {
            name: open_adapter(name, Path(path), model) for name, path in self.adapters.items()
        }
        base = Hosted(
            self.name, model, config, adapters={name: pairs for name, (pairs, _) in opened.items()}
        )
        if not base.verbs:
            raise UsageError(
                f"{self.folder} ({model.family}) does nothing that can be asked over HTTP"
            )
        beside = [Hosted(name, own, config, base=base) for name, (_, own) in opened.items()]
        for one in (base, *beside):
            one.source, one.state, one.step = self, state, step_of(one.model.path)
        return [base, *beside]

    def state(self) -> State | None:
        """What the folders look like now; None where a model is missing, or is on the hub."""
        try:
            paths = [find_model(Path(self.folder))]
            paths += [find_adapter(Path(path)) for path in self.adapters.values()]
            return tuple(_looks(path) for path in paths)
        except (InkstoneError, OSError):
            return None


def open_adapter(
    name: str, folder: Path, base: api.LanguageModel
) -> tuple[Pairs, api.LanguageModel]:
    """An adapter's matrices, and the base as it is with them: weights are shared, not copied.

    Raises:
        CheckpointError: It is damaged, or was trained on another model or tokenizer.
        ModelError: It does not fit.
    """
    path = find_adapter(folder)
    pairs = lora_files.load_adapter(path, base.model)
    view = with_adapter(base.model, pairs)
    own = replace(
        base, path=path, model=view, tokenizer=_tokenizer(name, path, base),
        info={**base.info, **lora_files.about(path)},
        predictor=base.predictor and replace(base.predictor, model=view),
    )  # fmt: skip
    return pairs, own


def _tokenizer(name: str, path: Path, base: api.LanguageModel) -> Tokenizer:
    """The base's; with the adapter's own template where it, or its run, brings one."""
    assert base.tokenizer is not None
    places = [path]
    if path.name == lora_files.FOLDER:  # of a checkpoint, or of a run
        places += [path.parent, path.parent / "model"]
    for place in places:
        if any((place / names[0]).is_file() for names in FILES):
            own = Tokenizer.load(place)
            if own.fingerprint() != base.tokenizer.fingerprint():
                raise CheckpointError(
                    f"adapter {name!r}: the tokenizer in {place} is not that of {base.path}",
                    fix="give the model that the adapter was trained on",
                )
            return base.tokenizer if own.chat_template is None else own
    return base.tokenizer


def _looks(folder: Path) -> tuple[Any, ...]:
    with os.scandir(folder) as entries:
        found = [(e.name, e.stat()) for e in entries if e.is_file()]
    files = [(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in sorted(found, key=_first)]
    return (str(folder), *files)


def _first(pair: Sequence[Any]) -> Any:
    return pair[0]
