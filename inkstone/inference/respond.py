"""Generate, then score: several candidates, unsafe ones dropped, the best of the rest answers.

Thoppilan et al. 2022, section 6.1: the model rates its own candidates, P(<|yes|> | context ·
response · attribute) against <|no|>. A candidate whose safety is below a threshold is dropped; the
others are ranked by 3 P(sensible) + P(specific) + P(interesting). A model that learned no qualities
ranks by log-likelihood per token (section 3, after Adiwardana et al. 2020). Section 6.2: what a
source says about the last message is put before the answer, which cites it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inkstone.errors import UsageError
from inkstone.inference.chat import Conversation, Message
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.inference.grounding import CITED, Found, Library
from inkstone.inference.predict import evaluating
from inkstone.inference.scoring import states
from inkstone.inference.stream import Chunk, FinishReason, Generation
from inkstone.tasks._turns import SOURCE, Frame

CANDIDATES = 16  # as many as in the paper
MOST = 256
SAFE = "safe"
SAFETY = 0.5
WEIGHTS = {"sensible": 3.0, "specific": 1.0, "interesting": 1.0}  # any other quality counts 1
REFUSAL = "I would rather not answer that."
SOURCE_SHARE = 3  # sources take one part in this many of the context, at most
PASSAGES = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something the model could say.

    Attributes:
        text: Without space around it.
        ids: Its tokens.
        finish_reason: As of a `Generation`.
        scores: Probability of each quality that the model learned to rate.
        likelihood: Mean log-probability of its tokens, in nats.
        quality: What it is ranked by: the weighted sum of its scores, or the likelihood.
        safe: Whether it may be said.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    scores: Mapping[str, float]
    likelihood: float
    quality: float
    safe: bool

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"text": self.text, "scores": dict(self.scores), "likelihood": self.likelihood,
                "quality": self.quality, "safe": self.safe}  # fmt: skip


@dataclass(slots=True)
class Response(Generation):
    """A chosen answer.

    Attributes:
        candidates: All different ones, best first, the unsafe at the end.
        citations: Passages in which at least half of the answer stands.
        sources: All passages that the model was given.
        refused: No candidate was safe, so a fixed sentence is said.
    """

    candidates: list[Candidate] = field(default_factory=list)
    citations: list[Found] = field(default_factory=list)
    sources: list[Found] = field(default_factory=list)
    refused: bool = False

    @property
    def scores(self) -> Mapping[str, float]:
        """Of the candidate that is said."""
        return {} if self.refused or not self.candidates else self.candidates[0].scores

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "role": "assistant",
            "content": self.text,
            "scores": dict(self.scores),
            "refused": self.refused,
            "citations": [
                {"file": f.passage.file, "passage": f.passage.number, "text": f.passage.text,
                 "support": f.support}
                for f in self.citations
            ],
            "candidates": [c.to_dict() for c in self.candidates],
        }  # fmt: skip


class Respondent(Conversation):
    """A conversation whose answers are chosen among candidates, and may stand on sources.

    Args:
        generator: The model and its tokenizer, trained with task.name=dialogue.
        info: The contents of its `inkstone.json`; "labels" are the qualities that it can rate.
        system: Instructions ahead of the talk.
        candidates: How many answers to sample; equal ones count once.
        safety: Least P(safe) of what may be said; only where the model learned to rate that.
        weights: Of the qualities; None takes the paper's.
        library: Where to look things up; None for nowhere.

    Raises:
        UsageError: The model was taught no dialogue, or a setting is out of range.
        TokenizerError: Its tokenizer has no marks for ratings and sources.
    """

    def __init__(
        self,
        generator: Generator,
        info: Mapping[str, Any],
        *,
        system: str | None = None,
        candidates: int = CANDIDATES,
        safety: float = SAFETY,
        weights: Mapping[str, float] | None = None,
        library: Library | None = None,
    ) -> None:
        super().__init__(generator, info, system=system)
        if not self.dialogue:
            raise UsageError(
                "candidates and sources need a model that was taught dialogue",
                fix="train one: inkstone train lamda-dialogue --data CONVERSATIONS",
            )
        if not 1 <= candidates <= MOST:
            raise UsageError(f"candidates = {candidates} is not between 1 and {MOST}")
        if not 0 <= safety <= 1:
            raise UsageError(f"safety = {safety} is not between 0 and 1")
        self.frame = Frame(self.tokenizer)
        given = info.get("labels") if info.get("task") == "dialogue" else None
        labels = given if isinstance(given, list) else []
        self.attributes = tuple(x for x in labels if isinstance(x, str) and x)
        self.weights = dict(WEIGHTS if weights is None else weights)
        self.candidates, self.safety, self.library = candidates, safety, library
        self._frames: list[int] = []
        self._response: Response | None = None

    def reply(
        self, messages: Sequence[Mapping[str, str]], config: SamplingConfig | None = None
    ) -> Response:
        """The chosen answer to a list of messages; the conversation is not touched.

        Raises:
            UsageError: A setting is out of range, or the messages do not fit the context.
            TokenizerError: A message is malformed.
        """
        super().reply(messages, config)
        assert self._response is not None
        return self._response

    def _remembered(self, chunks: Iterator[Chunk]) -> Iterator[str]:
        yield from super()._remembered(chunks)
        self.last = self._response

    def _answer(self, messages: list[Message], config: SamplingConfig) -> Iterator[Chunk]:
        if config.greedy and self.candidates > 1:
            raise UsageError(
                "candidates are drawn by chance, and at temperature 0 all are the same",
                fix="raise the temperature, or ask for one candidate",
            )
        sources = self._look_up(messages)
        ids, self.dropped = self._fitting(messages, config)
        ranked = self.rank(self._without(ids), self._sample(ids, config))
        self._response = self._choose(ranked, sources)
        said = self._response
        return iter([Chunk(0, said.text, said.ids, said.finish_reason)])

    def rank(self, context: Sequence[int], answers: Sequence[Generation]) -> list[Candidate]:
        """Rate candidates; best first, the unsafe at the end.

        Args:
            context: Ids of the conversation, the mark of the assistant's turn at the end.
            answers: With log-probabilities.
        """
        different: dict[str, Generation] = {}
        for answer in answers:
            different.setdefault(answer.text.strip(), answer)
        texts = [text for text in different if text] or [""]  # silence only for want of words
        rated = self._rate(context, texts)
        found = []
        for text, scores in zip(texts, rated, strict=True):
            answer = different[text]
            likelihood = sum(x.logprob for x in answer.logprobs) / max(1, len(answer.logprobs))
            quality = sum(self.weights.get(k, 1.0) * p for k, p in scores.items() if k != SAFE)
            quality = quality if scores.keys() - {SAFE} else likelihood
            safe = scores.get(SAFE, 1.0) >= self.safety
            found.append(
                Candidate(text, answer.ids, answer.finish_reason, scores, likelihood, quality, safe)
            )
        return sorted(found, key=lambda c: (not c.safe, -c.quality, -c.likelihood))

    def _rate(self, context: Sequence[int], texts: Sequence[str]) -> list[dict[str, float]]:
        """P(attribute) of each text, behind a context that is read once."""
        if not self.attributes:
            return [{} for _ in texts]
        frame, encoded = self.frame, self.tokenizer.encode_batch(list(texts))
        rows = [
            (0, [*ids, frame.end, *frame.ask(name), frame.yes])
            for ids in encoded
            for name in self.attributes
        ]
        room = self.generator.max_seq_len + 1 - max(len(ids) for _, ids in rows)
        model = self.generator.model
        found = [0.0] * len(rows)
        with evaluating(model):
            for part in states(model, [context[-max(1, room) :]], rows):
                for number, state in part:
                    found[number] = frame.good(model.logits(state[-1]).float())
        left = iter(found)
        return [{name: next(left) for name in self.attributes} for _ in texts]

    def _sample(self, ids: list[int], config: SamplingConfig) -> list[Generation]:
        settings = config.but(logprobs=True)
        prompts = [ids] * self.candidates
        return self.generator.generate(prompts, settings, end_ids=self._end_ids())

    def _choose(self, ranked: list[Candidate], sources: list[Found]) -> Response:
        best = ranked[0]
        if not best.safe:
            said = self.tokenizer.encode(REFUSAL)
            return Response(REFUSAL, said, "stop", [], ranked, [], sources, True)
        cited = []
        for found in sources:
            assert self.library is not None
            support = self.library.support(best.text, found.passage)
            cited.append(replace(found, support=support))
        citations = [found for found in cited if found.support >= CITED]
        return Response(
            best.text, best.ids, best.finish_reason, [], ranked, citations, cited, False
        )

    # --- sources ---------------------------------------------------------------------------------

    def _look_up(self, messages: Sequence[Mapping[str, str]]) -> list[Found]:
        """Passages for what was said last, as far as they fit; they become turns of their own."""
        self._frames = []
        asked = next((m["content"] for m in reversed(messages) if m.get("role") == "user"), "")
        if self.library is None or not isinstance(asked, str):
            return []
        room = self.generator.max_seq_len // SOURCE_SHARE
        kept: list[Found] = []
        for found in self.library.search(asked, PASSAGES):
            frame = self.frame.turn(SOURCE, self.tokenizer.encode(found.passage.text))
            if len(frame) <= room - len(self._frames):
                self._frames += frame
                kept.append(found)
        return kept

    def _ids(self, messages: list[Message]) -> list[int]:
        """The conversation, the sources, then the mark of the assistant's turn."""
        ids = super()._ids(messages)
        return [*ids[:-1], *self._frames, ids[-1]]

    def _without(self, ids: list[int]) -> list[int]:
        """The conversation alone: what ratings were learned on."""
        return [*ids[: len(ids) - 1 - len(self._frames)], ids[-1]]
