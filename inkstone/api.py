"""The same from Python: `ink.train(...)`, `ink.load(...)`, then generate, classify, tag, …"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from pydantic import ValidationError

from inkstone import device as devices
from inkstone import pipeline, registry
from inkstone.checkpoint import adapters as lora_files
from inkstone.checkpoint import atomic_folder, foreign, hub, load_model, save_model
from inkstone.checkpoint.vectors import is_vectors, load_vectors
from inkstone.checkpoint.vectors import open_vectors as open_vectors
from inkstone.config import Progress
from inkstone.errors import CheckpointError, ModelError, UsageError
from inkstone.files import read_json
from inkstone.inference.chat import Conversation
from inkstone.inference.config import SamplingConfig
from inkstone.inference.embed import BATCH_TOKENS, Embedder, Pooling, embed
from inkstone.inference.generate import Generator
from inkstone.inference.grounding import Library
from inkstone.inference.index import By, Index, Passage
from inkstone.inference.predict import Predictor, connect, is_on_examples, open_predictor
from inkstone.inference.respond import Respondent
from inkstone.inference.stream import Generation
from inkstone.nn import lora
from inkstone.nn.quantized_layers import n_weights
from inkstone.pipeline.locate import find_adapter, find_model
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.score_methods import ScoreMethods
from inkstone.recipe import load as load_recipe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from inkstone.compression.export import Exported
    from inkstone.evaluation.perplexity import PerplexityReport
    from inkstone.inference.middle import Infill
    from inkstone.pipeline.compress import Compressed
    from inkstone.pipeline.wanted import PruneBy
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
    """Open a run (its finished model, else its best checkpoint), a folder, or a name on the hub.

    Args:
        folder: A run or a Hugging Face folder. A string that is no folder here and looks like a
            name on the hub ("gpt2", "org/name", "org/name@revision") is fetched through the cache
            of huggingface_hub.
        device: "auto", "cpu" or "cuda".

    Returns:
        A `LanguageModel`, a `CountedModel` (n-grams), or `Vectors` (word vectors).

    Raises:
        CheckpointError: There is no such folder, or it holds no model, or the model is damaged.
        HubError: The name is not on the hub, or cannot be had from it.
        ModelError: The model is of no family that is known here.
    """
    if isinstance(folder, str) and not Path(folder).exists() and hub.looks_like_name(folder):
        path = hub.fetch(folder)
    else:
        path = find_model(Path(folder))
    if is_vectors(path):
        return load_vectors(path)
    if read_json(path / "config.json").get("model_type") == "ngram":
        return CountedModel.open(path)
    where = devices.pick_device(device)
    about = path / "inkstone.json"
    info = read_json(about) if about.is_file() else {}
    if is_on_examples(info):
        predictor = open_predictor(path, where)
        return LanguageModel(path, predictor.model, predictor.tokenizer, info, predictor)
    model, tokenizer, info = load_model(path, device=where)
    return LanguageModel(path, model, tokenizer, info)


def search(
    docs: str | Path | Sequence[str | Path],
    query: str,
    *,
    model: LanguageModel | str | Path | None = None,
    top: int = 5,
    by: By = "both",
    index: str | Path | None = None,
    device: str = "auto",
) -> list[Passage]:
    """The passages of a folder of documents that answer a query, best first.

    Args:
        docs: A folder, file or pattern, or a list of those.
        query: A question, or words.
        model: An encoder, or its folder or name; None searches by words alone.
        top: How many passages at most.
        by: "words" (BM25), "meaning" (vectors), or "both".
        index: Folder that keeps the index; None keeps it in the user's cache.
        device: "auto", "cpu" or "cuda".

    Raises:
        DataError: The documents cannot be read, or hold no text.
        ModelError: The model is no encoder.
    """
    opened = load(model, device=device) if isinstance(model, str | Path) else model
    embedder = None if opened is None else opened.embedder()
    return Index.open(docs, embedder, folder=index).search(query, top, by=by)


def import_model(
    file: str | Path, to: str | Path, *, tokenizer: str | Path | None = None
) -> LanguageModel:
    """Make a Hugging Face folder of a model in another program's format, and open it.

    Args:
        file: The model; llama2.c's *.bin.
        to: A new folder.
        tokenizer: Its tokenizer, in any form that can be opened here.

    Raises:
        CheckpointError: The file is of no known format or damaged, or the folder exists.
        TokenizerError: The tokenizer cannot be opened.
    """
    foreign.import_model(file, to, tokenizer=tokenizer)
    model: LanguageModel = load(Path(to), device="cpu")
    return model


def merge(base: str | Path, adapter: str | Path, to: str | Path) -> LanguageModel:
    """Write a model whose weights hold a LoRA adapter, and open it.

    Args:
        base: The run or folder of the model that the adapter was trained on.
        adapter: A folder in peft's format.
        to: A new folder.

    Raises:
        CheckpointError: The adapter is damaged or does not fit, or the folder exists.
    """
    model = load(base, device="cpu")
    if not isinstance(model, LanguageModel):
        raise UsageError(f"{base} holds word vectors, which no adapter fits")
    if Path(to).exists():
        raise CheckpointError(f"{to} is there already", fix="choose another folder")
    adapted = model.adapted(adapter)
    with atomic_folder(to) as out:
        save_model(out, adapted.model, model.tokenizer, info=adapted.info)
    opened: LanguageModel = load(Path(to), device="cpu")
    return opened


def compress(
    run: str | Path,
    to: str | None,
    out: str | Path,
    *,
    data: str | Path | None = None,
    evaluate: str | Path | None = None,
    keep: Sequence[str] = (),
    prune: float | None = None,
    prune_by: PruneBy = "magnitude",
    distill: Mapping[str, Any] | str | Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> Compressed:
    """Write a small copy of a model, and compare the two in size, speed, memory and score.

    A student learns first, then zeros come while it learns or after, then numbers are rounded.

    Args:
        run: A run or model folder.
        to: "int8" or "int4" (whole numbers in groups of 32), "fp8" or "bf16"; None leaves numbers
            as they are.
        out: A new folder.
        data: Text or examples like those that the model will read, to round and to train by.
        evaluate: Data to score both on.
        keep: Names of parts that stay as they are: "embed", "head", "blocks.0", "down".
        prune: Share of the weights that become zero, or of the heads or layers that go.
        prune_by: "magnitude", "movement" or "2:4" (weights), "heads" or "layers".
        distill: Shape of a student of this model ({"n_layers": 3}), or a folder with one.
        minutes: Time to train what was pruned, or the student.
        steps: Steps of that training; with `minutes` the end that comes first.
        settings: Of that training: {"training.lr": 0.001, "distill.temperature": 4}.
        device: Where to train: "auto", "cpu" or "cuda".
        observer: Told what happens; nothing is printed.

    Raises:
        UsageError: The model has no weights to round, or arguments do not fit together.
        ModelError: The model cannot lose what it is to lose, or the student does not fit it.
        CheckpointError: The folder exists, or the model is damaged.
        DataError: The data cannot be read, or has labels that the model does not know.
    """
    from inkstone.pipeline.compress import compress as run_it
    from inkstone.pipeline.remembered import Budget
    from inkstone.pipeline.wanted import Wanted

    student = Path(distill) if isinstance(distill, str) else distill
    wanted = Wanted(prune, prune_by, student, Budget(minutes, steps), settings or {}, device)
    return run_it(
        load(run, device="cpu"), to, out, reopen=lambda path: load(path, device="cpu"),
        data=data, evaluate=evaluate, keep=keep, wanted=wanted, observer=observer,
    )  # fmt: skip


@dataclass(frozen=True, repr=False)
class LanguageModel(ScoreMethods):
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

    def describe(self) -> dict[str, Any]:
        """What it is, as plain values."""
        tokenizer = self.tokenizer
        name = None if tokenizer is None else type(tokenizer.backend.model).__name__
        return {
            "folder": str(self.path),
            "family": self.family,
            "kind": self.kind,
            "parameters": self.n_parameters,
            "context": self.model.config.max_seq_len,
            "vocabulary": self.model.config.vocab_size,
            "tokenizer": None if tokenizer is None else f"{name}, {tokenizer.vocab_size:,} tokens",
        }

    @property
    def n_parameters(self) -> int:
        """How many weights it has; 0 where it is no network."""
        if not hasattr(self.model, "parameters"):
            return 0
        return n_weights(self.model)

    def adapted(self, adapter: str | Path) -> LanguageModel:
        """The same model with a LoRA adapter added to its weights; this one stays as it is.

        Args:
            adapter: A folder in peft's format, or a run that trained one.

        Raises:
            CheckpointError: It is damaged, or was trained on another model.
            UsageError: The model is no network.
        """
        if not hasattr(self.model, "parameters"):
            raise UsageError(f"{self.path} is no network, so no adapter fits it")
        folder = find_adapter(Path(adapter))
        plain = lora.merged(self.model)
        lora.put(plain, lora_files.load_adapter(folder, plain))
        lora.remove(plain, keep=True)
        info = {**self.info, **lora_files.about(folder)}
        model = plain.eval()
        predictor = self.predictor and replace(self.predictor, model=model)
        return replace(self, model=model, info=info, predictor=predictor)

    def export(
        self,
        to: str | Path,
        form: str,
        *,
        kind: str | None = None,
        progress: Progress | None = None,
    ) -> Exported:
        """Write the model for another program.

        Args:
            to: A new file or folder.
            form: "gguf" (llama.cpp and kin), "onnx" (ONNX Runtime) or "ctranslate2".
            kind: How numbers are stored: of gguf "f16", "bf16", "q8_0" or "q4_0".
            progress: Told how much is done.

        Raises:
            UsageError: No such format or type, or `to` exists.
            ModelError: The format cannot hold this family, or what it wrote is not this model.
            TokenizerError: The format cannot hold this tokenizer.
            MissingExtraError: A library is not installed: pip install 'inkstone[export]'.
        """
        from inkstone.compression.export import Source, export

        source = Source(self.path, self.model, self.tokenizer, self.info)
        return export(source, to, form, kind=kind, progress=progress)

    def with_task(self, **settings: Any) -> LanguageModel:
        """The same model, its task with other settings: n_beams=1, mode="document", threshold=0.8.

        Raises:
            UsageError: The model was trained for no task, or the task has no such setting.
        """
        task = self._task()
        assert self.predictor is not None
        known = task.config.model_dump()
        for name in settings:
            if name not in known:
                raise UsageError(
                    f"{task.NAME.replace('_', ' ')} has no setting {name!r}",
                    fix=registry.did_you_mean(name, sorted(known)),
                )
        try:
            config = type(task.config).model_validate(known | settings)
        except ValidationError as error:
            raise UsageError(
                f"task.{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
            ) from error
        other = type(task)(config, task.labels, counts=task.counts, characters=task.alphabet)
        connect(other, self.predictor.tokenizer)
        return replace(self, predictor=replace(self.predictor, task=other))

    @property
    def context(self) -> int:
        """How many tokens back it looks at most."""
        return int(getattr(self.model.config, "max_seq_len", 0))

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

    def fill(self, prefix: str, suffix: str, **sampling: Any) -> Infill:
        """Write what stands between two texts, as an editor asks for it.

        Args:
            prefix: Before the cursor.
            suffix: Behind it.
            sampling: As in `generate`.

        Raises:
            UsageError: The model was not trained by `fill_in_the_middle`.
        """
        from inkstone.inference.middle import fill_between

        config = SamplingConfig(**sampling)
        pairs = [(prefix, suffix)]
        return fill_between(self.generator, pairs, config, suffix_first=self.suffix_first)[0]

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """Pieces of a continuation as they come; never half a character.

        Arguments and errors as in `generate`; errors are raised before the first piece.
        """
        chunks = self.generator.stream(prompt, SamplingConfig(**sampling))
        return (chunk.text for chunk in chunks if chunk.text)

    def conversation(
        self,
        *,
        system: str | None = None,
        candidates: int = 1,
        sources: str | Path | Library | None = None,
        **choosing: Any,
    ) -> Conversation:
        """A dialogue that remembers its turns.

        Args:
            system: Instructions ahead of the talk.
            candidates: With more than one, so many answers are sampled and the best is said, by
                the scores that the model has learned (`inference.respond`).
            sources: A folder of text to look things up in; answers then cite it.
            choosing: More of `inference.respond.Respondent`: safety, weights.

        Raises:
            UsageError: The model was taught no dialogue, but candidates or sources are asked for.
        """
        if candidates == 1 and sources is None and not choosing:
            return Conversation(self.generator, self.info, system=system)
        library = Library.open(sources) if isinstance(sources, str | Path) else sources
        return Respondent(
            self.generator, self.info, system=system, candidates=candidates, library=library,
            **choosing,
        )  # fmt: skip

    def chat(
        self,
        messages: Sequence[Message],
        *,
        candidates: int = 1,
        sources: str | Path | Library | None = None,
        **sampling: Any,
    ) -> Generation:
        """The reply to a list of {"role", "content"} messages.

        Args:
            messages: What was said so far.
            candidates: As in `conversation`, like `sources`; the reply is then a `Response`, which
                holds all candidates with their scores, and the citations.
            sampling: Fields of `SamplingConfig`.
        """
        talk = self.conversation(candidates=candidates, sources=sources)
        return talk.reply(list(messages), SamplingConfig(**sampling))

    def embed(
        self, texts: str | Sequence[str], *, batch_tokens: int = BATCH_TOKENS
    ) -> npt.NDArray[np.float32]:
        """A vector for each text, pooled as the folder says (sentence-transformers' files).

        Args:
            texts: A text or a list of N.
            batch_tokens: Tokens computed together, at most.

        Returns:
            [D] for a text, [N, D] for a list.

        Raises:
            ModelError: The model is no encoder.
            UsageError: It has no tokenizer.
        """
        self._check_embeds()
        several = [texts] if isinstance(texts, str) else list(texts)
        pooling = Pooling.read(self.path)
        assert self.tokenizer is not None
        vectors = embed(self.model, self.tokenizer, several, pooling, batch_tokens=batch_tokens)
        result: npt.NDArray[np.float32] = vectors[0] if isinstance(texts, str) else vectors
        return result

    def embedder(self) -> Embedder:
        """What an `Index` searches with.

        Raises:
            ModelError: The model is no encoder.
            UsageError: It has no tokenizer.
        """
        self._check_embeds()
        assert self.tokenizer is not None
        return Embedder.of(self.path, self.model, self.tokenizer)

    def similarity(self, text: str, other: str) -> float:
        """The cosine of the vectors of two texts, from −1 to 1.

        Raises:
            ModelError: The model is no encoder.
            UsageError: It has no tokenizer.
        """
        a, b = self.embed([text, other])
        size = float((a @ a) * (b @ b)) ** 0.5
        return float(a @ b) / size if size else 0.0

    def _check_embeds(self) -> None:
        if self.kind != "encoder":
            raise ModelError(
                f"{self.path} is a {self.family} model, which continues text; only encoders (BERT "
                "and kin) turn a text into a vector"
            )
        if self.tokenizer is None:
            raise UsageError(f"{self.path} has no tokenizer, so text cannot be read")

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
            "context": f"{self.context:,} tokens",
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


class CountedModel(LanguageModel):
    """An n-gram model with its tokenizer: it scores text; it neither generates nor chats."""

    @staticmethod
    def open(path: Path) -> CountedModel:
        """Read the model folder of a run of `inkstone train ngram`.

        Raises:
            CheckpointError: It is damaged.
        """
        from inkstone.models import ngram
        from inkstone.tokenizers.tokenizer import Tokenizer

        model, about = ngram.Model.load(path), path / "inkstone.json"
        info = read_json(about) if about.is_file() else {}
        return CountedModel(path, model, Tokenizer.load(path), info)

    @property
    def generator(self) -> Generator:
        """There is none."""
        raise UsageError(
            f"{self.path} holds counted n-grams, which score text but answer nothing",
            fix="samples of it stand in its run's report; train a neural model to generate",
        )

    @property
    def n_parameters(self) -> int:
        """How many n-grams were counted."""
        return sum(self.model.n_grams)

    @property
    def context(self) -> int:
        """How many tokens back it looks."""
        return int(self.model.config.order) - 1

    def perplexity(
        self, data: str | Path | Sequence[str], *, stride: int | None = None
    ) -> PerplexityReport:
        """As of any model; there are no windows, so no stride can be given."""
        from inkstone.evaluation.counted import perplexity
        from inkstone.text.readers import read

        if stride is not None:
            raise UsageError("an n-gram model has no windows to move", fix="leave out stride")
        assert self.tokenizer is not None
        if not isinstance(data, str | Path):
            return perplexity(self.model, self.tokenizer, data)
        documents = read(Path(data), config=self._text_config())
        return perplexity(self.model, self.tokenizer, (d.text for d in documents))
