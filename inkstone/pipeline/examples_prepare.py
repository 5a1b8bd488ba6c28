"""From a recipe to encoded examples: what it leaves out of tokenizer and length is chosen."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from inkstone import registry
from inkstone.checkpoint import load_model
from inkstone.corpora.examples import ExampleTable
from inkstone.errors import UsageError
from inkstone.inference.predict import FITTED
from inkstone.pipeline import adapting, embeddings
from inkstone.pipeline import examples_data as data
from inkstone.pipeline.examples_begin import find_weights, grown
from inkstone.pipeline.examples_finish import check_remember
from inkstone.pipeline.examples_session import Prepared, Session
from inkstone.planning.auto import plan_vocabulary
from inkstone.planning.constants import DEFAULT_MINUTES
from inkstone.planning.examples import plan_length
from inkstone.planning.plan import Choice, CorpusFacts, Plan
from inkstone.recipe import Recipe
from inkstone.tasks._base import Task
from inkstone.tokenizers.tokenizer import Tokenizer

TOKENIZER_KIND = {"encoder": "wordpiece", "seq2seq": "bpe"}


def prepare(recipe: Recipe, session: Session, examples: data.Examples | None = None) -> Prepared:
    """Everything ahead of planning, or what earlier runs left of it.

    Args:
        recipe: With its data.
        session: Where, and for whom.
        examples: Those of the data, or a sample of them; None reads them.
    """
    plan = Plan()
    pretrained = Path(recipe.model.pretrained) if recipe.model.pretrained else None
    recipe = embeddings.plan_size(recipe, plan)
    recipe, model, tokenizer = start_of(recipe, pretrained, plan)
    family = registry.load("models", recipe.model.family)
    examples = examples or data.gather(recipe, session.cache)
    if examples.task.REFERS and pretrained is None:
        raise UsageError(
            f"{examples.task.NAME} needs a model that answers already",
            fix="name it: model.pretrained=RUN, best of a run with task.name=instructions",
        )
    adapting.check(recipe, examples.task)
    if recipe.evaluation.remember:
        check_remember(recipe, examples.task)
    if family.KIND not in examples.task.HEADS:
        fitting = ", ".join(_families(examples.task))
        raise UsageError(
            f"model.family {recipe.model.family!r} does not fit the task {examples.task.NAME}",
            fix=f"families that fit: {fitting}",
        )
    if "char_vocab_size" not in getattr(family.Config, "model_fields", {}):
        examples.task.alphabet = ""
    if family.KIND in FITTED:
        return Prepared(recipe, plan, examples, family.KIND)
    if tokenizer is None:
        recipe = choose_tokenizer(recipe, examples, family.KIND, plan, session.where.type)
        tokenizer = data.tokenizer_for(examples, recipe.tokenizer, session.cache)
    elif model is not None:
        tokenizer = examples.task.adapt(tokenizer)
        adapting.check_vocabulary(recipe, model.config.vocab_size, tokenizer.vocab_size)
        recipe = grown(recipe, model, tokenizer, plan)
    suited = examples.task.suit(tokenizer, family.Config.model_fields, scratch=model is None)
    plan.choices += [Choice(f"task.{name}", *chosen) for name, chosen in suited.items()]
    recipe = recipe.with_values(plan.values())
    limit = None if model is None else int(model.config.max_seq_len)
    if recipe.corpus.seq_len is None:
        plan.choices.append(plan_length(data.sample_lengths(examples, tokenizer), limit))
        recipe = recipe.with_values(plan.values())
    assert recipe.corpus.seq_len
    length = min(recipe.corpus.seq_len, limit or recipe.corpus.seq_len)
    table = ExampleTable(data.encode(examples, tokenizer, length, session.cache, recipe.data))
    return Prepared(recipe, plan, examples, family.KIND, tokenizer, table, pretrained)


def _families(task: Task[Any, Any]) -> list[str]:
    names = registry.names("models")
    return [n for n in names if getattr(registry.load("models", n), "KIND", "") in task.HEADS]


def start_of(
    recipe: Recipe, source: Path | None, plan: Plan
) -> tuple[Recipe, Any, Tokenizer | None]:
    """The family and the tokenizer of the weights to begin with."""
    if source is None:
        return recipe, None, None
    model, tokenizer, _ = load_model(find_weights(source))
    if tokenizer is None:
        raise UsageError(f"{source} has no tokenizer, so it cannot read the examples")
    family = type(model).__module__.rsplit(".", 1)[-1]
    plan.choices.append(Choice("model.family", family, "of the pretrained weights"))
    return recipe.with_values({"model": {"family": family}}), model, tokenizer


def choose_tokenizer(
    recipe: Recipe, examples: data.Examples, kind: str, plan: Plan, device: str
) -> Recipe:
    """The tokenizer's kind and size, by the task and the examples; told to the plan."""
    given = recipe.to_dict(only_given=True).get("tokenizer", {})
    if "kind" not in given:
        wanted = TOKENIZER_KIND.get(kind, "bpe")
        reason = "with the frame [CLS] … [SEP] that encoders read"
        plan.choices.append(
            Choice("tokenizer.kind", wanted, reason if wanted == "wordpiece" else "any text")
        )
        tasks = ("classification", "similarity")
        folded = wanted == "wordpiece" and examples.task.NAME in tasks
        if folded and "lowercase" not in given:
            reason = "few examples: a word is the same word in capitals"
            plan.choices.append(Choice("tokenizer.lowercase", True, reason))
        recipe = recipe.with_values(plan.values())
    texts = [t for e in islice(examples.part("train"), 2000) for t in examples.task.texts(e)]
    letters = len(set("".join(texts)))
    size = (examples.folder / "train.jsonl").stat().st_size
    facts = CorpusFacts(size, examples.counts["train"], characters=letters if letters < 8000 else 0)
    minutes = recipe.training.minutes or DEFAULT_MINUTES
    config = recipe.tokenizer
    plan.choices += plan_vocabulary(facts, config.kind, config.vocab_size, minutes, device).choices
    return recipe.with_values(plan.values())
