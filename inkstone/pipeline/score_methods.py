"""The scores of an opened model that continues text: perplexity, questions answered, Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inkstone.errors import ModelError, UsageError
from inkstone.inference.generate import Generator
from inkstone.pipeline.task_methods import VERBS, TaskMethods

if TYPE_CHECKING:
    from inkstone.evaluation.code import CodeReport
    from inkstone.evaluation.few_shot import FewShotReport
    from inkstone.evaluation.perplexity import PerplexityReport


class ScoreMethods(TaskMethods):
    """The methods of `api.LanguageModel` that score text."""

    @property
    def generator(self) -> Generator:
        """The decoding loop over this model.

        Raises:
            UsageError: It was trained for a task, not to continue text.
            ModelError: The model does not continue text.
        """
        if self.predictor is not None and self.kind != "causal":
            name = self.predictor.task.NAME
            raise UsageError(
                f"{self.path} was trained for {name}, it does not continue text",
                fix=f"use `inkstone run`, or in Python .{VERBS.get(name, 'predict')}(…)",
            )
        if self.kind != "causal":
            raise ModelError(
                f"{self.path} is a {self.family} model ({self.kind}), which does not continue text"
            )
        return Generator(self.model, self.tokenizer)

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

    def few_shot(
        self,
        data: str | Path,
        *,
        shots: Sequence[int] = (0, 1, 8),
        demonstrations: str | Path | None = None,
        template: str | None = None,
        labels: Sequence[str] = (),
        limit: int | None = None,
        **settings: Any,
    ) -> list[FewShotReport]:
        """Questions answered in context, with K solved examples before each; nothing is trained.

        Args:
            data: A table of questions, a .txt whose lines ask for their last word, or a folder
                with a train… and a test… part.
            shots: Each K.
            demonstrations: Where the solved examples are drawn from; None: from the train… part of
                the folder, or from the other questions.
            template: The prompt, with {field} where a field's text goes; None takes a usual one.
            labels: Names of the labels, in the order of their numbers.
            limit: Ask so many questions at most, drawn by chance.
            settings: Of `evaluation.few_shot.few_shot`: by, shared, seed, max_tokens, progress.

        Raises:
            DataError: The data holds no questions, or too few to draw from.
        """
        from inkstone.evaluation.few_shot import few_shot
        from inkstone.evaluation.questions import Form, read_both, sample

        generator = self.generator
        questions, pool = read_both(Form(template, tuple(labels)), data, demonstrations)
        asked = sample(questions, limit, settings.get("seed", 0))
        return few_shot(generator, asked, pool or questions, shots=shots, **settings)

    def score_python(self, data: str | Path, *, limit: int = 200, seed: int = 0) -> CodeReport:
        """How well it writes Python: next tokens, hidden lines, functions that parse.

        Args:
            data: A .py file, a folder, a pattern, or a table with a text column, not trained on.
            limit: Functions and lines to write, at most so many of each.
            seed: Of what is drawn.

        Raises:
            DataError: There is no Python, or no function in it.
        """
        from inkstone.evaluation.code import write_python
        from inkstone.text.readers import read

        whole = {"source_code": True, "split_on": "file"}
        documents = read(Path(data), config=self._text_config().model_copy(update=whole))
        texts = (document.text for document in documents)
        return write_python(
            self.generator, texts, limit=limit, seed=seed, suffix_first=self.suffix_first
        )

    @property
    def suffix_first(self) -> bool:
        """Whether it has learned to fill with the suffix ahead; others' models mostly have not."""
        from inkstone.tasks import fill_in_the_middle

        if self.objective != fill_in_the_middle.Objective.NAME:
            return False
        given = self.info.get("task_settings")
        settings = given if isinstance(given, dict) else {}
        return settings.get("spm_rate", fill_in_the_middle.Config().spm_rate) != 0
