"""A recipe: one TOML file is one whole run, from the data to the evaluation.

Recipes are strict. An unknown key, a duplicate, a value of the wrong type or out of range is an
error that names the file, the line and the nearest known key; nothing is ever ignored. Whatever a
recipe leaves out is chosen by `inkstone.planning`, and the resolved recipe is saved in the run.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from inkstone import registry
from inkstone.config import Section
from inkstone.corpora.config import CorpusConfig
from inkstone.errors import RecipeError, UnknownNameError
from inkstone.text.config import TextConfig
from inkstone.text.words import WordsConfig
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.training.config import LoraConfig, TrainingConfig

SHIPPED = Path(__file__).parent / "recipes"
MAX_RECIPE_BYTES = 1 << 20  # a recipe is a page of text; anything larger is some other file
OVERRIDE = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_.-]+)=(.*)", re.DOTALL)
RECIPE_NAME = re.compile(r"[A-Za-z0-9_-]+")


LANGUAGE_MODELING = "language_modeling"
PATHS = (
    ("data", "path"), ("data", "valid"), ("data", "test"), ("data", "replay"),
    ("model", "pretrained"), ("model", "embeddings"), ("evaluation", "vectors"),
    ("evaluation", "remember"),
)  # fmt: skip


class DataSection(Section):
    """What to train on: paths (files, folders, globs), or the prose that Python itself carries.

    Labelled examples may come with a `valid` part, by which the best checkpoint is picked, and a
    `test` part, which only the last score sees. Without `valid`, a part is held out.

    `replay` is plain text that a fine-tuned decoder goes on learning, so that it forgets less;
    `replay_share` is its share of the tokens of training.
    """

    path: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    replay: tuple[str, ...] = ()
    replay_share: float = Field(default=0.1, gt=0.0, lt=1.0)
    embedded: Literal["python-prose"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if self.path and self.embedded:
            raise ValueError("give either path or embedded, not both")
        paths = (*self.path, *self.valid, *self.test, *self.replay)
        if any("\0" in p or not p for p in paths):
            raise ValueError("a path is empty or holds a NUL character")
        return self


class TaskSection(Section):
    """What the model learns, and any fields of that task's `Config`."""

    model_config = ConfigDict(extra="allow")

    name: str = LANGUAGE_MODELING

    @property
    def fields(self) -> dict[str, Any]:
        """The settings of the task's `Config` that are given."""
        return dict(self.__pydantic_extra__ or {})


class ModelSection(Section):
    """The family, and any fields of that family's `Config`; planning fills what is left out.

    `pretrained` is a model folder whose tokenizer and weights a task begins with; `embeddings` are
    word vectors (a run, a folder or a file) that the token embedding of a new model begins with.
    """

    model_config = ConfigDict(extra="allow")

    family: str = "llama"
    pretrained: str | None = Field(default=None, min_length=1)
    embeddings: str | None = Field(default=None, min_length=1)

    @property
    def fields(self) -> dict[str, Any]:
        """The settings of the family's `Config` that are given."""
        return dict(self.__pydantic_extra__ or {})


class EvaluationSection(Section):
    """How the finished model is scored on the held-out documents."""

    rule: Literal["windows", "stride"] = "windows"
    stride: int | None = Field(default=None, ge=1, le=1 << 24)
    baselines: bool = True
    prompts: tuple[str, ...] = Field(
        default=(), description="sample prompts; empty: taken from held-out"
    )
    samples: int = Field(default=3, ge=0, le=100)
    sample_tokens: int = Field(default=120, ge=1, le=1 << 16)
    live_tokens: int | None = Field(
        default=None, ge=1, description="held-out tokens a look in training"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="held-out tokens of the last score"
    )
    vectors: tuple[str, ...] = Field(
        default=(), description="word vectors: files of analogies, or of word pairs with scores"
    )
    remember: tuple[str, ...] = Field(
        default=(), description="plain text on which a fine-tuned decoder is measured, too"
    )
    neighbors: tuple[str, ...] = Field(
        default=(), description="word vectors: words to show with their nearest; empty: chosen"
    )


class Recipe(Section):
    """Everything that decides a run. Sections belong to the rooms that use them."""

    task: TaskSection = Field(default_factory=TaskSection)
    data: DataSection = Field(default_factory=DataSection)
    text: TextConfig = Field(default_factory=TextConfig)
    words: WordsConfig = Field(default_factory=WordsConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    corpus: CorpusConfig = Field(default_factory=CorpusConfig)
    model: ModelSection = Field(default_factory=ModelSection)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)

    def to_toml(self, notes: Mapping[str, str] | None = None, *, only_given: bool = False) -> str:
        """The recipe as TOML that `load` reads back equal.

        Args:
            notes: A sentence by key ("training.lr"), written as a comment above that key.
            only_given: Leave out defaults, so that planning may still choose them.
        """
        notes = notes or {}
        lines = []
        for section, values in self.to_dict(only_given=only_given).items():
            lines.append(f"[{section}]")
            for key, value in values.items():
                if note := notes.get(f"{section}.{key}"):
                    lines.append(f"# {_comment(note)}")
                lines.append(f"{key} = {_toml(value)}")
            lines.append("")
        return "\n".join(lines)

    def to_dict(self, *, only_given: bool = False) -> dict[str, dict[str, Any]]:
        """Plain values by section, without those that are None.

        Args:
            only_given: Leave out defaults too, so that planning may still choose them.
        """
        return self.model_dump(mode="json", exclude_none=True, exclude_unset=only_given)

    def with_data(self, paths: Sequence[str | Path], minutes: float | None = None) -> Recipe:
        """A copy that reads `paths` (relative to the current folder) for `minutes`, where given."""
        values: dict[str, dict[str, Any]] = {}
        if paths:
            values["data"] = {"path": [p if p == "-" else os.path.abspath(p) for p in paths]}
        if minutes is not None:
            values["training"] = {"minutes": float(minutes)}
        return self.with_values(values) if values else self

    def with_values(self, values: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """A copy with some values of some sections replaced, checked like a file's.

        Raises:
            RecipeError: An unknown key or a value that does not fit.
        """
        merged = self.to_dict(only_given=True)
        for section, entries in values.items():
            merged.setdefault(section, {}).update(entries)
        return from_dict(merged, where="the settings")


def shipped() -> dict[str, str]:
    """Names of the shipped recipes, each with the first line of its comment."""
    found = {}
    for path in sorted(SHIPPED.glob("*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.lstrip("# ").rstrip()
    return found


def load(source: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a TOML file by path, and apply overrides.

    Args:
        source: "gpt-small", "my/recipe.toml", or None for an empty recipe.
        overrides: "section.key=value", the value written as in TOML (quotes may be left out).

    Raises:
        UnknownNameError: No shipped recipe has that name.
        RecipeError: The file or an override is malformed; names the line and the key.
    """
    if source is None:
        values, where, text = {}, "the settings", ""
    else:
        path = find(source)
        text = _read(path)
        where = str(path)
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise RecipeError(
                f"{where}: not valid TOML: {str(error) or 'nested too deeply'}",
                fix="each key may stand once in its [section]; strings need quotes",
            ) from error
        _anchor_paths(values, path)
    for override in overrides:
        section, key, value = parse_override(override)
        if (section, key) in PATHS:  # of the command line: relative to the current folder
            value = _absolute(value, Path.cwd())
        entries = values.setdefault(section, {})
        if not isinstance(entries, dict):
            raise RecipeError(f"{where}: {section!r} must be a [section], not a value")
        _set(entries, key.split("."), value, override)
    return from_dict(values, where=where, text=text)


def find(source: str | Path) -> Path:
    """The file that a recipe's name or path means."""
    text = str(source)
    if isinstance(source, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        path = Path(source)
        if not path.is_file():
            raise RecipeError(
                f"no recipe file {text!r}",
                fix=f"give a .toml file, or the name of a shipped recipe: {', '.join(shipped())}",
            )
        return path
    known = shipped()
    if not RECIPE_NAME.fullmatch(text) or text not in known:
        raise UnknownNameError(f"unknown recipe {text!r}", fix=registry.did_you_mean(text, known))
    return SHIPPED / f"{text}.toml"


def parse_override(text: str) -> tuple[str, str, Any]:
    """Split "section.key=value"; the value is read as TOML, or as a bare string.

    Raises:
        RecipeError: There is no "section.key=" in front.
    """
    match = OVERRIDE.fullmatch(text)
    if match is None:
        raise RecipeError(
            f"cannot read the setting {text!r}", fix="write section.key=value: training.lr=0.001"
        )
    section, key, raw = match.groups()
    try:
        parsed = tomllib.loads(f"x = {raw}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return section, key, raw
    return section, key, parsed["x"] if set(parsed) == {"x"} else raw


def from_dict(values: Mapping[str, Any], *, where: str = "recipe", text: str = "") -> Recipe:
    """Check plain values and build a `Recipe`.

    Args:
        values: Sections of keys.
        where: What to call the source in an error (a file's path).
        text: The source itself, to find line numbers in.

    Raises:
        RecipeError: An unknown key (with the nearest known one), or a value that does not fit.
    """
    values = _with_family(_one_path(values), where, text)
    try:
        _check_numbers(values, (), where, text)
        encoded = json.dumps(values)  # pydantic's strict JSON mode knows lists, but no lax numbers
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{where}: holds something other than text, numbers, booleans and lists: {error}"
        ) from error
    try:
        recipe = Recipe.model_validate_json(encoded, strict=True)
    except ValidationError as error:
        raise _explain(error, where, text) from error
    _check_task(recipe.task, where, text)
    _check_model(recipe.model, where, text)
    sampled, task = recipe.training.sampled_words, recipe.task.name
    if sampled and task != LANGUAGE_MODELING:
        reason = f"only {LANGUAGE_MODELING} scores sampled words, and the task is {task}"
        raise _misfit("training", "sampled_words", sampled, reason, where, text)
    return recipe


def _check_task(section: TaskSection, where: str, text: str) -> None:
    """Check each given field against the task's own `Config`."""
    if section.name == LANGUAGE_MODELING and not section.fields:
        return  # a task's file imports torch: do not, where nothing needs checking
    module = _task(section.name, where, text)
    config = getattr(module, "Config", None)
    _check_fields("task", "name", section.fields, config, where, text)
    if config is not None:
        try:
            config(**section.fields)
        except ValidationError as error:
            problem = error.errors()[0]
            raise _misfit(
                "task", str((*problem["loc"], "")[0]), problem["input"], problem["msg"], where, text
            ) from error


def _task(name: str, where: str, text: str) -> ModuleType:
    tasks = registry.names("tasks")
    if name not in tasks:
        line = _line_of(text, "task", "name")
        raise RecipeError(
            f"{where}{line}: unknown task.name {name!r}", fix=registry.did_you_mean(name, tasks)
        )
    return registry.load("tasks", name)


def _check_model(section: ModelSection, where: str, text: str) -> None:
    """Check each given field against the family's own `Config`.

    Rules that tie fields together are checked when the model is built, after planning has filled
    what is left out.
    """
    families = registry.names("models")
    if section.family not in families:
        line = _line_of(text, "model", "family")
        raise RecipeError(
            f"{where}{line}: unknown model.family {section.family!r}",
            fix=registry.did_you_mean(section.family, families),
        )
    if section.fields:
        config = registry.load("models", section.family).Config
        _check_fields("model", "family", section.fields, config, where, text)


def _check_fields(
    section: str, first: str, fields: Mapping[str, Any], config: Any, where: str, text: str
) -> None:
    """Check single fields of a section whose other fields are those of some `Config`."""
    known: dict[str, FieldInfo] = {} if config is None else config.model_fields
    for key, value in fields.items():
        if key not in known:
            raise _unknown(f"{section}.{key}", key, [first, *known], where, text)
        kind: Any = Annotated[known[key].annotation, known[key]]
        check: TypeAdapter[Any] = TypeAdapter(kind)
        try:
            check.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise _misfit(section, key, value, error.errors()[0]["msg"], where, text) from error


def _with_family(values: dict[str, Any], where: str, text: str) -> dict[str, Any]:
    """A task on examples has a family of its own by default."""
    task, model = values.get("task"), values.get("model", {})
    name = task.get("name", LANGUAGE_MODELING) if isinstance(task, Mapping) else LANGUAGE_MODELING
    if name == LANGUAGE_MODELING or not isinstance(name, str) or not isinstance(model, Mapping):
        return values
    if "family" in model:
        return values
    family = getattr(
        _task(name, where, text), "FAMILY", ModelSection.model_fields["family"].default
    )
    return {**values, "model": {"family": family, **model}}


def _explain(error: ValidationError, where: str, text: str) -> RecipeError:
    """The first problem that pydantic found, as a sentence with file, line and nearest key."""
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    section, key = (*place, "", "")[:2]
    if problem["type"] == "extra_forbidden" and len(place) == 1:
        return _unknown(f"section [{section}]", section, Recipe.model_fields, where, text)
    if problem["type"] == "extra_forbidden":
        model = Recipe.model_fields[section].annotation
        known = getattr(model, "model_fields", {})
        return _unknown(f"{section}.{key}", key, known, where, text)
    return _misfit(section, key, problem["input"], problem["msg"], where, text)


def _unknown(what: str, key: str, known: Iterable[str], where: str, text: str) -> RecipeError:
    section = what.split(".")[0] if "." in what else ""
    return RecipeError(
        f"{where}{_line_of(text, section, key)}: unknown {what}",
        fix=registry.did_you_mean(key, known),
    )


def _misfit(section: str, key: str, value: Any, reason: str, where: str, text: str) -> RecipeError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    name = f"{section}.{key}" if key else f"[{section}]"
    reason = reason.removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    return RecipeError(
        f"{where}{_line_of(text, section, key)}: {name} = {shown}: {reason}",
        fix=f"set {name} to a value that fits, or leave it out to have one chosen",
    )


def _check_numbers(value: Any, place: tuple[str, ...], where: str, text: str) -> None:
    """Refuse what TOML can write but no setting can hold: infinity, NaN, more than 64 bits."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_numbers(entry, (*place, str(key)), where, text)
        return
    if isinstance(value, list | tuple):
        for entry in value:
            _check_numbers(entry, place, where, text)
        return
    section, key = (*place, "", "")[:2]
    if isinstance(value, float) and not math.isfinite(value):
        raise _misfit(section, key, value, "not a finite number", where, text)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _misfit(section, key, value, "does not fit in 64 bits", where, text)


def _line_of(text: str, section: str, key: str) -> str:
    """ ":12" when the key's line can be seen in the TOML source, else nothing."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped.strip("[] ")
            if not section and current == key:
                return f":{number}"
        elif current == section and re.match(rf"""["']?{re.escape(key)}["']?\s*[=.]""", stripped):
            return f":{number}"
    return ""


def _read(path: Path) -> str:
    try:
        if not path.is_file():  # a device or a FIFO would block or never end
            raise RecipeError(f"{path} is not a regular file")
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path} is larger than a recipe can be ({MAX_RECIPE_BYTES} bytes)")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


def _one_path(values: Mapping[str, Any]) -> dict[str, Any]:
    """`data.path = "x"` means `["x"]`, and so for every setting that is a list of paths."""
    result = dict(values)
    lists = {"data": ("path", "valid", "test", "replay"), "evaluation": ("vectors", "remember")}
    for section, parts in lists.items():
        entries = result.get(section)
        if isinstance(entries, Mapping):
            result[section] = {
                key: [value] if key in parts and isinstance(value, str) else value
                for key, value in entries.items()
            }
    return result


def _anchor_paths(values: dict[str, Any], recipe: Path) -> None:
    """Paths in a recipe file are relative to its folder and may not climb out of it.

    A recipe is often somebody else's: `../../.ssh` must not become training text unnoticed.
    """
    for section, key in PATHS:
        entries = values.get(section)
        if not isinstance(entries, dict) or key not in entries:
            continue
        for path in _listed(entries[key]):
            if ".." in Path(path).parts:
                option = "--data PATH" if key == "path" else f"{section}.{key}=PATH"
                raise RecipeError(
                    f"{recipe}: {section}.{key} = {path!r} climbs out of the recipe's folder",
                    fix=f"write an absolute path, or give it on the command line: {option}",
                )
        entries[key] = _absolute(entries[key], recipe.parent.absolute())


def _listed(paths: Any) -> list[str]:
    """Paths of a setting; none where it is of the wrong type, which is reported elsewhere."""
    listed = [paths] if isinstance(paths, str) else paths
    sound = isinstance(listed, list) and all(isinstance(path, str) for path in listed)
    return listed if sound else []


def _absolute(paths: Any, folder: Path) -> Any:
    """The same paths from the root; what is no path stays as it is."""
    listed = [p if p in ("-", "") else str(folder / p) for p in _listed(paths)]
    if not listed:
        return paths
    return listed[0] if isinstance(paths, str) else listed


def _set(entries: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        entries = entries.setdefault(key, {})
        if not isinstance(entries, dict):
            raise RecipeError(f"{override!r}: {key!r} is a value, it holds no keys")
    entries[keys[-1]] = value


def _comment(text: str) -> str:
    """One line without the control characters that TOML forbids in comments."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(_toml(v) for v in value) + "]"
