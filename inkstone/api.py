"""The same from Python: `ink.train(...)`, `ink.load(...)`, then generate, classify, tag, …"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from inkstone import device as devices
from inkstone import pipeline
from inkstone.checkpoint import load_model
from inkstone.errors import CheckpointError, UsageError
from inkstone.files import read_json
from inkstone.inference.chat import Conversation
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generation, Generator
from inkstone.inference.predict import Predictor, open_predictor
from inkstone.pipeline.observer import Observer
from inkstone.recipe import LANGUAGE_MODELING
from inkstone.recipe import load as load_recipe
from inkstone.text.config import TextConfig

if TYPE_CHECKING:
    from inkstone.evaluation.perplexity import PerplexityReport
    from inkstone.tasks._base import Task
    from inkstone.tasks.classification import Classification
    from inkstone.tasks.tagging import Tagging
    from inkstone.tasks.translation import Translation
    from inkstone.tokenizers.tokenizer import Tokenizer

Message = Mapping[str, str]
VERBS = {"classification": "classify", "tagging": "tag", "translation": "translate"}


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
) -> LanguageModel:
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


def load(folder: str | Path, *, device: str = "auto") -> LanguageModel:
    """Open a run (its finished model, else its best checkpoint) or a Hugging Face folder.

    Raises:
        CheckpointError: There is no such folder, or it holds no model, or the model is damaged.
        ModelError: The model is not one that continues text.
    """
    path = find_model(Path(folder))
    where = devices.pick_device(device)
    about = path / "inkstone.json"
    info = read_json(about) if about.is_file() else {}
    if info.get("task", LANGUAGE_MODELING) != LANGUAGE_MODELING:
        predictor = open_predictor(path, where)
        return LanguageModel(path, predictor.model, predictor.tokenizer, info, predictor)
    model, tokenizer, info = load_model(path, device=where)
    return LanguageModel(path, model, tokenizer, info)


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
    """A trained model with its tokenizer: one that continues text, or one that does a task.

    Attributes:
        path: The folder it came from.
        model: The network.
        tokenizer: None where the folder has none.
        info: The contents of inkstone.json.
        predictor: The task that it was trained for, where that has labelled examples.
    """

    path: Path
    model: Any
    tokenizer: Tokenizer | None
    info: dict[str, Any]
    predictor: Predictor[Any, Any] | None = None

    @property
    def generator(self) -> Generator:
        """The decoding loop over this model.

        Raises:
            UsageError: It was trained for a task, not to continue text.
        """
        if self.predictor is not None:
            name = self.predictor.task.NAME
            raise UsageError(
                f"{self.path} was trained for {name}, it does not continue text",
                fix=f"use `inkstone run`, or in Python .{VERBS.get(name, 'predict')}(…)",
            )
        return Generator(self.model, self.tokenizer)

    @property
    def n_parameters(self) -> int:
        """How many weights it has; 0 where it is no network."""
        if not hasattr(self.model, "parameters"):
            return 0
        return sum(p.numel() for p in self.model.parameters())

    # --- tasks -----------------------------------------------------------------------------------

    @overload
    def classify(self, text: str, pair: str | None = None) -> Classification: ...  # type: ignore[overload-overlap]

    @overload
    def classify(self, text: Sequence[str], pair: Sequence[str]) -> list[Classification]: ...

    @overload
    def classify(self, text: Sequence[str]) -> list[Classification]: ...

    def classify(self, text: Any, pair: Any = None) -> Any:
        """The label of one text, or of several.

        Args:
            text: A text or a list of texts.
            pair: The second text of each, where the model was trained on pairs.

        Raises:
            UsageError: The model was trained for something else.
        """
        from inkstone.tasks.classification import Example

        if isinstance(text, str):
            return self._predict("classification", [Example(text, (), pair)])[0]
        pairs = [None] * len(text) if pair is None else pair
        examples = [Example(a, (), b) for a, b in zip(text, pairs, strict=True)]
        return self._predict("classification", examples)

    @overload
    def tag(self, sentence: str) -> Tagging: ...  # type: ignore[overload-overlap]

    @overload
    def tag(self, sentence: Sequence[str]) -> Tagging: ...  # type: ignore[overload-overlap]

    @overload
    def tag(self, sentence: Sequence[Sequence[str]]) -> list[Tagging]: ...

    def tag(self, sentence: Any) -> Any:
        """The tag of every word.

        Args:
            sentence: A text, which is cut into words and marks; a list of words; or a list of
                sentences, each a list of words.

        Raises:
            UsageError: The model was trained for something else.
        """
        from inkstone.tasks.tagging import Example

        if isinstance(sentence, str):
            return self._predict("tagging", [self._task("tagging").example(sentence)])[0]
        if all(isinstance(word, str) for word in sentence):
            return self._predict("tagging", [Example(tuple(sentence))])[0]
        return self._predict("tagging", [Example(tuple(words)) for words in sentence])

    @overload
    def translate(self, text: str) -> Translation: ...  # type: ignore[overload-overlap]

    @overload
    def translate(self, text: Sequence[str]) -> list[Translation]: ...

    def translate(self, text: Any) -> Any:
        """The translation of one text, or of several.

        Raises:
            UsageError: The model was trained for something else.
        """
        from inkstone.tasks.translation import Example

        if isinstance(text, str):
            return self._predict("translation", [Example(text)])[0]
        return self._predict("translation", [Example(x) for x in text])

    def predict(self, texts: Sequence[str]) -> list[Any]:
        """What the model's task makes of plain texts.

        Raises:
            UsageError: The model was trained for no task with labelled examples.
        """
        task = self._task()
        return self._predict(task.NAME, [task.example(text) for text in texts])

    def predict_file(self, source: str | Path, target: str | Path | None = None) -> int:
        """Write every record of a table with its prediction, in constant memory.

        Args:
            source: A .jsonl, .csv, .tsv or .parquet file.
            target: A new file of JSON lines; None for stdout.

        Returns:
            How many records there were.
        """
        self._task()
        assert self.predictor is not None
        with self._fast():
            return pipeline.predict_file(self.predictor, source, target)

    def evaluate(self, data: str | Path) -> dict[str, Any]:
        """Scores with confidence intervals, errors and worst mistakes on labelled examples."""
        self._task()
        assert self.predictor is not None
        with self._fast():
            return pipeline.score_file(self.predictor, data)

    @contextlib.contextmanager
    def _fast(self) -> Iterator[None]:
        """Many examples: in the precision of training, where this machine is fast at it."""
        recipe = self.info.get("recipe")
        training = recipe.get("training") if isinstance(recipe, dict) else None
        low = isinstance(training, dict) and training.get("precision") == "bf16"
        if not low or not hasattr(self.model, "compute_dtype"):
            yield
            return
        before = self.model.compute_dtype
        self.model.compute_dtype = devices.training_dtype(self.model.device)
        try:
            yield
        finally:
            self.model.compute_dtype = before

    def _task(self, name: str | None = None) -> Task[Any, Any]:
        task = None if self.predictor is None else self.predictor.task
        if task is None or (name not in (None, task.NAME)):
            trained = "continue text" if task is None else f"do {task.NAME}"
            verb = "generate" if task is None else VERBS.get(task.NAME, "predict")
            raise UsageError(f"{self.path} was trained to {trained}", fix=f"use .{verb}(…)")
        return task

    def _predict(self, name: str, examples: Sequence[Any]) -> list[Any]:
        self._task(name)
        assert self.predictor is not None
        return [prediction for _, prediction in self.predictor(examples)]

    # --- text ------------------------------------------------------------------------------------

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

        _ = self.generator  # says so where the model does not continue text
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
            "context": f"{getattr(self.model.config, 'max_seq_len', 0):,} tokens",
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
