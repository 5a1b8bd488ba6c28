"""The same from Python: `ink.train(...)`, `ink.load(...)`, then generate, chat, perplexity."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from inkstone import device as devices
from inkstone import pipeline
from inkstone.checkpoint import load_model
from inkstone.checkpoint.vectors import is_vectors, load_vectors
from inkstone.errors import CheckpointError, UsageError
from inkstone.inference.chat import Conversation
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generation, Generator
from inkstone.pipeline.observer import Observer
from inkstone.recipe import load as load_recipe
from inkstone.text.config import TextConfig
from inkstone.vectors import formats
from inkstone.vectors.table import Vectors

if TYPE_CHECKING:
    from inkstone.evaluation.perplexity import PerplexityReport
    from inkstone.tokenizers.tokenizer import Tokenizer

Message = Mapping[str, str]


def train(
    recipe: str | Path | None = None,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    minutes: float | None = None,
    run: str | Path,
    settings: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    observer: Observer | None = None,
    device: str = "auto",
) -> Any:
    """Train a model and open it.

    Args:
        recipe: Name of a shipped recipe, a .toml file, or None to have everything chosen.
        data: Folder, file or glob of text, or several.
        minutes: Time to train.
        run: A new folder for the run.
        settings: More values, by "section.key": {"training.lr": 0.001}.
        cache: Folder of the reusable stages.
        observer: Told what happens; nothing is printed.
        device: "auto", "cpu" or "cuda".

    Raises:
        InkstoneError: As on the command line.
    """
    chosen = load_recipe(recipe)
    if settings:
        chosen = chosen.with_values(_by_section(settings))
    paths = [data] if isinstance(data, str | Path) else list(data or ())
    chosen = chosen.with_data(paths, minutes)
    where = Path(cache) if cache is not None else None
    pipeline.train(chosen, Path(run), cache=where, observer=observer, device=device)
    return load(run, device=device)


def load(folder: str | Path, *, device: str = "auto") -> Any:
    """Open a run (its finished model, else its best checkpoint) or a Hugging Face folder.

    Returns:
        A `LanguageModel`, or `Vectors` where the folder holds word vectors.

    Raises:
        CheckpointError: There is no such folder, or it holds no model, or the model is damaged.
        ModelError: The model is not one that continues text.
    """
    path = find_model(Path(folder))
    if is_vectors(path):
        return load_vectors(path)
    where = devices.pick_device(device)
    model, tokenizer, info = load_model(path, device=where)
    return LanguageModel(path, model, tokenizer, info)


def open_vectors(source: str | Path) -> Vectors:
    """Word vectors of a run or a model folder, or of a word2vec or GloVe file.

    Raises:
        DataError: The file is damaged or of another format.
        CheckpointError: The folder holds no word vectors.
    """
    if Path(source).is_file():
        return formats.read(source)
    path = find_model(Path(source))
    if not is_vectors(path):
        raise CheckpointError(
            f"{source} holds no word vectors",
            fix="train them: inkstone train word2vec-text8 --data FOLDER --run runs/words",
        )
    return load_vectors(path)


def find_model(folder: Path) -> Path:
    """The model folder that `folder` is or holds."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    from inkstone.training.state import checkpoint_path, checkpoints

    found = checkpoints(folder)
    if found:
        best = pipeline.folder.read_json(folder / "best.json").get("step")
        path = checkpoint_path(folder, best) if isinstance(best, int) else found[-1]
        return path if path.is_dir() else found[-1]
    if not folder.exists():
        raise CheckpointError(
            f"{folder} does not exist", fix="give a run folder or a Hugging Face model folder"
        )
    raise CheckpointError(
        f"{folder} holds no model and no checkpoint",
        fix="give a run folder or a Hugging Face model folder",
    )


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """A model that continues text, with its tokenizer.

    Attributes:
        path: The folder it came from.
        model: The network.
        tokenizer: None where the folder has none.
        info: The contents of inkstone.json.
    """

    path: Path
    model: Any
    tokenizer: Tokenizer | None
    info: dict[str, Any]

    @property
    def generator(self) -> Generator:
        """The decoding loop over this model."""
        return Generator(self.model, self.tokenizer)

    @property
    def n_parameters(self) -> int:
        """How many weights it has."""
        return sum(p.numel() for p in self.model.parameters())

    @overload
    def generate(self, prompt: str, **sampling: Any) -> Generation: ...

    @overload
    def generate(self, prompt: Sequence[str], **sampling: Any) -> list[Generation]: ...

    def generate(
        self, prompt: str | Sequence[str], **sampling: Any
    ) -> Generation | list[Generation]:
        """Continue one text, or several in a batch.

        Args:
            prompt: A text or a list of texts.
            sampling: Fields of `SamplingConfig`: max_tokens, temperature, top_k, top_p, …

        Raises:
            UsageError: A setting is out of range, or a prompt is longer than the context.
        """
        config = SamplingConfig(**sampling)
        if isinstance(prompt, str):
            return self.generator.generate([prompt], config)[0]
        return self.generator.generate(list(prompt), config)

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """Pieces of a continuation as they come; never half a character.

        Arguments and errors as in `generate`; errors are raised before the first piece.
        """
        chunks = self.generator.stream(prompt, SamplingConfig(**sampling))
        return (chunk.text for chunk in chunks if chunk.text)

    def conversation(self, *, system: str | None = None) -> Conversation:
        """A dialogue that remembers its turns."""
        return Conversation(self.generator, self.info, system=system)

    def chat(self, messages: Sequence[Message], **sampling: Any) -> Generation:
        """The reply to a list of {"role", "content"} messages."""
        return self.conversation().reply(list(messages), SamplingConfig(**sampling))

    def perplexity(
        self,
        data: str | Path | Sequence[str],
        *,
        stride: int | None = None,
    ) -> PerplexityReport:
        """Perplexity and bits per byte of files, or of a list of texts.

        Args:
            data: A folder, file or glob; or a list of texts.
            stride: None scores separate windows; a number scores that many new tokens a window.

        Raises:
            UsageError: The model has no tokenizer.
        """
        from inkstone.evaluation.perplexity import perplexity

        if self.tokenizer is None:
            raise UsageError(f"{self.path} has no tokenizer, so text cannot be scored")
        source = Path(data) if isinstance(data, str) else data
        return perplexity(
            self.model,
            self.tokenizer,
            source,
            rule="windows" if stride is None else "stride",
            stride=stride,
            text=self._text_config(),
        )

    def _text_config(self) -> TextConfig:
        """How the training files were read: the same field, the same documents."""
        recipe = self.info.get("recipe")
        try:
            return TextConfig(**recipe["text"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            return TextConfig()  # somebody else's model

    def __repr__(self) -> str:
        family = self.info.get("family", type(self.model).__module__.rsplit(".", 1)[-1])
        return f"<LanguageModel {family}, {self.n_parameters:,} parameters, from {self.path}>"

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        scores = self.info.get("scores")
        rows = {
            "folder": self.path,
            "family": self.info.get("family", "–"),
            "parameters": f"{self.n_parameters:,}",
            "context": f"{self.model.config.max_seq_len:,} tokens",
            **(scores if isinstance(scores, dict) else {}),
        }
        cells = "".join(
            f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>"
            for k, v in rows.items()
        )
        return f"<table>{cells}</table>"


def _by_section(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise UsageError(f"setting {name!r} names no section", fix='write "training.lr"')
        result.setdefault(section, {})[key] = value
    return result
