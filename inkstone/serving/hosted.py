"""A model that is served: what it can be asked, and the threads that answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from inkstone import api
from inkstone.errors import UsageError
from inkstone.inference.chat import Asked, Conversation
from inkstone.inference.config import SamplingConfig
from inkstone.inference.engine import Engine
from inkstone.inference.sampling import TokenScore
from inkstone.inference.scoring import token_scores
from inkstone.inference.speculative import PromptLookup
from inkstone.inspection.attention import attention, has_attention
from inkstone.inspection.attribution import attribute
from inkstone.nn.adapters import Pairs
from inkstone.pipeline.task_methods import VERBS
from inkstone.serving.config import ServeConfig
from inkstone.serving.desk import Desk
from inkstone.serving.errors import ApiError
from inkstone.serving.protocol import now
from inkstone.serving.worker import Worker
from inkstone.tasks import question_answering
from inkstone.text.normalize import normalize

if TYPE_CHECKING:
    from inkstone.serving.source import Source, State

TEXT_VERBS = ("classify", "tag", "translate", "summarize")
DIGITS = 4  # of a weight of attention that are told
SHRINKING = 4  # characters that normalisation may make one of


class Hosted:
    """One model under one name.

    Args:
        name: What requests call it.
        model: An opened model.
        config: Of the server.
        adapters: LoRA changes that its engine knows, by the names of those that are hosted beside.
        base: What it is an adapter of, whose weights and engine it shares.

    Attributes:
        verbs: What it can be asked: "chat", "complete", "embed", or the verb of its task; to show
            what it does, "attend" and "attribute".
        worker: Answers that grow token by token; None where it is no causal model.
        desk: Everything else.
        talk: How a conversation is put to it; None where it cannot chat.
        adapter: What its requests ask the engine for; None for the model as it is.
        users: Requests that are under way, of all that share the engine.
        source: Where it came from, how that looked then, and the step of training; None where
            that is not known.
    """

    def __init__(
        self,
        name: str,
        model: api.LanguageModel,
        config: ServeConfig,
        *,
        adapters: Mapping[str, Pairs] | None = None,
        base: Hosted | None = None,
    ) -> None:
        self.name, self.model, self.created = name, model, now()
        self.parent = None if base is None else base.name
        self.adapter = None if base is None else name
        self.users: set[asyncio.Task[Any]] = set() if base is None else base.users
        self.source: Source | None = None
        self.state: State | None = None
        self.step: int | None = None
        self.verbs: set[str] = set()
        self.worker: Worker | None = None
        self.talk: Conversation | None = None
        kinds: dict[str, Callable[[list[Any]], list[Any]]] = {}
        if model.kind == "causal" and model.tokenizer is not None:
            if base is not None:
                self.worker = base.worker
            else:
                engine = Engine(
                    model.model, model.tokenizer, most=config.most,
                    tokens_per_step=config.tokens_per_step,
                    cache_bytes=config.cache_bytes, guesser=PromptLookup(), adapters=adapters,
                )  # fmt: skip
                self.worker = Worker(engine, waiting=config.waiting)
            self.talk = Conversation(model.generator, model.info)
            self.verbs |= {"complete", "chat"}
            kinds["score"] = self._scores
        elif model.predictor is not None:
            verb = VERBS.get(model.predictor.task.NAME)
            if verb in TEXT_VERBS:
                self.verbs.add(verb)
                kinds[verb] = self._texts
                if verb == "classify":
                    self.verbs.add("attribute")
                    kinds["attribute"] = self._attributions
            elif verb == "answer":
                self.verbs.add(verb)
                kinds[verb] = self._answers
        if model.kind == "encoder" and model.tokenizer is not None:
            self.verbs.add("embed")
            kinds["embed"] = lambda texts: list(model.embed(texts))
        if model.tokenizer is not None and has_attention(model.model, model.predictor):
            self.verbs.add("attend")
            kinds["attend"] = self._attentions
        self.desk = Desk(kinds, waiting=config.waiting)

    def start(self) -> None:
        """Begin; called inside the event loop."""
        self.desk.start()
        if self.worker is not None and self.adapter is None:
            self.worker.start()

    def stop(self) -> None:
        """End the threads."""
        self.desk.stop()
        if self.worker is not None and self.adapter is None:
            self.worker.stop()

    def used(self) -> None:
        """The request that asks uses it until it has ended; called in its task."""
        task = asyncio.current_task()
        assert task is not None
        self.users.add(task)
        task.add_done_callback(self.users.discard)

    def about(self) -> dict[str, Any]:
        """An entry of `/v1/models`."""
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "inkstone",
            "family": self.model.family, "parameters": self.model.n_parameters,
            "context": self.model.context, "can": sorted(self.verbs), "parent": self.parent,
            "step": self.step, "loaded_at": self.created,
        }  # fmt: skip

    def asked(self, messages: Sequence[Mapping[str, str]], config: SamplingConfig) -> Asked:
        """A conversation as the model's engine reads it; takes a while where it is long.

        Raises:
            ApiError: The conversation does not fit the context.
            UsageError: Its last message alone does not.
            TokenizerError: A message is malformed.
        """
        assert self.talk is not None
        self.check_length(sum(len(message["content"]) for message in messages), "messages")
        put = self.talk.ask(messages, config)
        if put.dropped:
            raise ApiError(
                400, f"the conversation does not fit the context of {self.model.context:,} "
                f"tokens: its first {put.dropped:,} messages would be lost; leave some out",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        return replace(put, adapter=self.adapter)

    def check_length(self, characters: int, param: str) -> None:
        """Refuse a text that cannot fit the context before anything is done for it.

        Raises:
            ApiError: It has more characters than the context could hold of the longest token.
        """
        most = SHRINKING * self._longest_token * self.model.context
        if characters > most:
            raise ApiError(
                400, f"{characters:,} characters do not fit the context of "
                f"{self.model.context:,} tokens", param=param, code="context_length_exceeded",
            )  # fmt: skip

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of text that one token adds at most."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        text = (i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids)
        return max((len(self.token_bytes(i)) for i in text), default=1)

    def token_bytes(self, token: int) -> bytes:
        """The text of one token, which may be a part of a character."""
        assert self.model.tokenizer is not None
        return self.model.tokenizer.token_bytes(token)

    def _texts(self, texts: list[str]) -> list[dict[str, Any]]:
        predictor = self.model.predictor
        assert predictor is not None
        examples = [predictor.task.example(text) for text in texts]
        return [found.to_dict() for _, found in predictor(examples)]

    def _answers(self, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
        predictor = self.model.predictor
        assert predictor is not None
        make = question_answering.Example
        examples = [make(question, normalize(context)) for question, context in pairs]
        return [found.to_dict() for _, found in predictor(examples)]

    def _attributions(self, asked: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
        """Of texts and labels."""
        assert self.model.predictor is not None
        found = [attribute(self.model.predictor, text, label) for text, label in asked]
        return [asdict(one) for one in found]

    def _attentions(self, asked: list[tuple[str, int]]) -> list[dict[str, Any]]:
        """Of texts and layers; whole answers of deep models would be many megabytes."""
        model, found = self.model, []
        assert model.tokenizer is not None
        for text, layer in asked:
            one = attention(model.model, model.tokenizer, text, predictor=model.predictor)
            layers = len(one.weights)
            if layer >= layers:
                raise UsageError(f"layers are counted from 0 to {layers - 1}")
            told = one.weights[layer].double().numpy().round(DIGITS).tolist()
            found.append({"rows": one.rows, "columns": one.columns, "layers": layers,
                          "layer": layer, "weights": told, "cut": one.cut})  # fmt: skip
        return found

    def _scores(self, asked: list[tuple[Sequence[int], int]]) -> list[list[TokenScore]]:
        """Of texts and numbers of alternatives: what the model thinks of the tokens."""
        assert self.worker is not None
        size = self.worker.engine.vocab_size
        return token_scores(self.model.model, [x for x, _ in asked], [n for _, n in asked], size)
