"""What an opened model can do when it was trained for a task: classify, tag, translate."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from inkstone import device as devices
from inkstone import registry
from inkstone.errors import UsageError
from inkstone.evaluation.objective import objective_of, score_texts
from inkstone.inference.answering import CitedAnswer, answer_from
from inkstone.inference.chat import Conversation
from inkstone.inference.embed import Embedder
from inkstone.inference.fill import Filled, fill_mask, write
from inkstone.inference.generate import Generator
from inkstone.inference.index import Index
from inkstone.inference.predict import Predictor
from inkstone.inference.replies import Replier
from inkstone.pipeline.examples_use import folder_hash, predict_file, score_file
from inkstone.pipeline.observer import Observer
from inkstone.tasks import classification, instructions, question_answering, tagging, translation
from inkstone.tasks._base import Task
from inkstone.tasks._summaries import Summary
from inkstone.tasks.classification import Classification
from inkstone.tasks.question_answering import Answer
from inkstone.tasks.tagging import Tagging
from inkstone.tasks.translation import Translation
from inkstone.text.config import TextConfig
from inkstone.text.normalize import normalize
from inkstone.text.readers import read
from inkstone.tokenizers.tokenizer import Tokenizer

VERBS = {"classification": "classify", "tagging": "tag", "translation": "translate",
         "question_answering": "answer", "dialogue": "chat", "summarization": "summarize",
         "extractive_summarization": "summarize", "phrase_extraction": "summarize",
         "similarity": "embed", "instructions": "chat", "preferences": "chat"}  # fmt: skip


class TaskMethods:
    """The methods of `api.LanguageModel` for models with a `predictor`.

    Attributes:
        path: The folder the model came from.
        model: The network.
        tokenizer: None where the folder has none.
        info: The contents of inkstone.json.
        predictor: The task that the model was trained for, where that has labelled examples.
    """

    path: Path
    model: Any
    tokenizer: Tokenizer | None
    info: dict[str, Any]
    predictor: Predictor[Any, Any] | None

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
        if isinstance(text, str):
            return self._predict("classification", [classification.Example(text, (), pair)])[0]
        pairs = [None] * len(text) if pair is None else pair
        examples = [classification.Example(a, (), b) for a, b in zip(text, pairs, strict=True)]
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
        if isinstance(sentence, str):
            return self._predict("tagging", [self._task("tagging").example(sentence)])[0]
        if all(isinstance(word, str) for word in sentence):
            return self._predict("tagging", [tagging.Example(tuple(sentence))])[0]
        return self._predict("tagging", [tagging.Example(tuple(words)) for words in sentence])

    @overload
    def answer(self, question: str, context: str) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def answer(self, question: Sequence[str], context: Sequence[str]) -> list[Answer]: ...

    def answer(self, question: Any, context: Any) -> Any:
        """The answer to one question, or to several, each out of a text.

        Args:
            question: A question or a list of questions.
            context: The text that holds the answer, or as many texts; of any length.

        Raises:
            UsageError: The model was trained for something else.
        """
        make = question_answering.Example
        if isinstance(question, str):
            return self._predict("question_answering", [make(question, normalize(context))])[0]
        pairs = zip(question, context, strict=True)
        return self._predict("question_answering", [make(q, normalize(c)) for q, c in pairs])

    def answer_from(
        self,
        question: str,
        documents: str | Path | Index,
        *,
        embedder: Embedder | None = None,
        top: int = 1,
    ) -> list[CitedAnswer]:
        """Answers out of documents, best first, each with the passage that it stands in.

        Args:
            question: In words.
            documents: A folder or file, or an index of your own. That of a folder is kept in the
                user's cache; what has changed is read again.
            embedder: Looks passages up by meaning too, where the documents are no index yet.
            top: How many answers at most.

        Raises:
            UsageError: The model was trained for something else.
            DataError: The documents cannot be read, or hold no text.
        """
        self._task("question_answering")
        assert self.predictor is not None
        index = documents if isinstance(documents, Index) else Index.open(documents, embedder)
        return answer_from(self.predictor, index, normalize(question), top=top)

    @overload
    def translate(self, text: str) -> Translation: ...  # type: ignore[overload-overlap]

    @overload
    def translate(self, text: Sequence[str]) -> list[Translation]: ...

    def translate(self, text: Any) -> Any:
        """The translation of one text, or of several; see the task's `mode` for documents.

        Raises:
            UsageError: The model was trained for something else.
        """
        if isinstance(text, str):
            return self._predict("translation", [translation.Example(text)])[0]
        return self._predict("translation", [translation.Example(x) for x in text])

    @overload
    def summarize(self, text: str) -> Summary: ...  # type: ignore[overload-overlap]

    @overload
    def summarize(self, text: Sequence[str]) -> list[Summary]: ...

    def summarize(self, text: Any) -> Any:
        """What one text, or each of several, comes to.

        Raises:
            UsageError: The model was trained for something else.
        """
        task = self._task("summarization", "extractive_summarization", "phrase_extraction")
        texts = [text] if isinstance(text, str) else text
        found = self._predict(task.NAME, [task.example(x) for x in texts])
        return found[0] if isinstance(text, str) else found

    @overload
    def fill_mask(self, text: str, *, top: int = 5) -> Filled: ...  # type: ignore[overload-overlap]

    @overload
    def fill_mask(self, text: Sequence[str], *, top: int = 5) -> list[Filled]: ...

    def fill_mask(self, text: str | Sequence[str], *, top: int = 5) -> Filled | list[Filled]:
        """A text, or several, with the likeliest words in its hidden places.

        Args:
            text: With [MASK] where an encoder is to say a word; with <extra_id_0>, <extra_id_1>, …
                or <mask> where an encoder-decoder is to write.
            top: Words for each [MASK].

        Raises:
            UsageError: The model was pre-trained otherwise, or a text has nothing hidden.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if self.tokenizer is None:
            raise UsageError(f"{self.path} has no tokenizer, so text cannot be read")
        if getattr(self.model.config, "head", None) in ("mlm", "pretraining"):
            found = fill_mask(self.model, self.tokenizer, texts, top=top)
        elif self._repairs:
            found = write(self.model, self.tokenizer, texts)
        else:
            raise UsageError(
                f"{self.path} was not trained to fill in what is hidden",
                fix="train a model that is: inkstone train bert-small-mlm --data FOLDER",
            )
        return found[0] if isinstance(text, str) else found

    @property
    def family(self) -> str:
        """The name of its family: the file in `models/`."""
        return type(self.model).__module__.rsplit(".", 1)[-1]

    @property
    def kind(self) -> str:
        """What it does: "causal", "encoder" or "seq2seq"."""
        kind: str = sys.modules[type(self.model).__module__].KIND
        return kind

    @property
    def objective(self) -> str | None:
        """The objective that it was pre-trained by; None of any other model."""
        name = str(self.info.get("task"))
        known = name in registry.names("tasks")
        return name if known and hasattr(registry.load("tasks", name), "Objective") else None

    def _text_config(self) -> TextConfig:
        """How the training files were read: the same field, the same documents."""
        recipe = self.info.get("recipe")
        try:
            return TextConfig(**recipe["text"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            return TextConfig()  # somebody else's model

    @property
    def _repairs(self) -> bool:
        """Whether it is an encoder-decoder that was pre-trained on damaged text."""
        return self.predictor is None and hasattr(self.model, "encode")

    def predict(self, texts: Sequence[str]) -> list[Any]:
        """What the model's task makes of plain texts: answers of one that talks, `fill_mask` of one
        that was pre-trained.

        Raises:
            UsageError: The model was trained for no task with labelled examples.
        """
        fills = getattr(getattr(self.model, "config", None), "head", None) in ("mlm", "pretraining")
        if self.predictor is None and (fills or self._repairs):
            return self.fill_mask(list(texts))
        self._task()
        predictor = self._used
        examples = [predictor.task.example(text) for text in texts]
        return [prediction for _, prediction in predictor(examples)]

    @property
    def _used(self) -> Predictor[Any, Any]:
        """What predicts: where the task talks, not how likely answers are, but answers."""
        predictor = self.predictor
        assert predictor is not None
        if not predictor.task.TALKS:
            return predictor
        talk = Conversation(Generator(predictor.model, predictor.tokenizer), self.info)
        task = instructions.Task(instructions.Config())
        return Replier(task, predictor.model, predictor.kind, predictor.tokenizer, talk=talk)

    def predict_file(
        self,
        source: str | Path,
        target: str | Path | None = None,
        *,
        on_error: Literal["stop", "skip"] = "stop",
        observer: Observer | None = None,
    ) -> int:
        """Write every record of a table with its prediction, in constant memory.

        Cut off in between, the same call goes on where it stopped.

        Args:
            source: A .jsonl, .csv, .tsv or .parquet file.
            target: A new file of JSON lines; None for stdout.
            on_error: At a bad record "stop", or "skip" it and count it.
            observer: Told how far it is; nothing is printed.

        Returns:
            How many records have a prediction.
        """
        self._task()
        assert self.predictor is not None
        model = "" if target is None else folder_hash(self.path)
        config = TextConfig(on_error=on_error)
        with self._fast():
            return predict_file(self._used, source, target, config, observer, model=model)

    def evaluate(self, data: str | Path) -> dict[str, Any]:
        """Scores on data that the model has not seen.

        Of a task: with confidence intervals, errors and worst mistakes on labelled examples. Of a
        pre-trained model: how well it fills in what its objective hides in plain text.
        """
        if self.objective is not None and self.tokenizer is not None:
            known = objective_of(self.info, self.tokenizer, self.model.config.max_seq_len)
            documents = read(Path(data), config=self._text_config())
            with self._fast():
                return score_texts(known, self.model, (d.text for d in documents))
        self._task()
        assert self.predictor is not None
        with self._fast():
            return score_file(self.predictor, data)

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

    def _task(self, *names: str) -> Task[Any, Any]:
        """The model's task, if it is one of these, or any where none is named."""
        task = None if self.predictor is None else self.predictor.task
        if task is None or (names and task.NAME not in names):
            trained = "continue text" if task is None else f"do {task.NAME.replace('_', ' ')}"
            verb = "generate" if task is None else VERBS.get(task.NAME, "predict")
            if task is None and self.objective is not None:
                trained, verb = "fill in what is hidden", "fill_mask"
            raise UsageError(f"{self.path} was trained to {trained}", fix=f"use .{verb}(…)")
        return task

    def _predict(self, name: str, examples: Sequence[Any]) -> list[Any]:
        self._task(name)
        assert self.predictor is not None
        return [prediction for _, prediction in self.predictor(examples)]
