"""How well a decoder writes Python that it has not seen.

Three shares, each over things drawn with a seed from the files:

- next token: the likeliest token is the one that stands there, given all before it in its window;
- a hidden line: a line of a function is taken out, the model sees what stands before and behind it
  (Bavarian et al. 2022: single-line infilling), and the first line that it writes is right to the
  letter;
- functions that parse: from the head of a function and its docstring the model writes a body, up to
  the first line that stands further left, and `ast.parse` accepts head and body. Nothing is run.

All answers are greedy. A line is also asked for without what stands behind it, which tells what the
text behind it is worth.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from inkstone.errors import DataError
from inkstone.evaluation.scores import Score, share
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.inference.middle import BLANKS, fill_between
from inkstone.inference.predict import evaluating
from inkstone.tasks.fill_in_the_middle import has_marks
from inkstone.text.normalize import normalize

LINE_TOKENS, BODY_TOKENS = 48, 160
SHORTEST = 4  # characters of a line that is hidden: "else:" is one, ")" is none
T = TypeVar("T")


@dataclass(frozen=True)
class Hole:
    """A line that is to be written.

    Attributes:
        before: The file up to it, its indentation included.
        line: Without white space around it.
        after: The rest of the file, from the line's end.
    """

    before: str
    line: str
    after: str


@dataclass(frozen=True)
class Head:
    """A function whose body is to be written.

    Attributes:
        before: The file up to the body.
        start: Where in it the function begins.
        indent: Columns before the body's lines.
    """

    before: str
    start: int
    indent: int


@dataclass(frozen=True)
class Body:
    """A function that a model wrote the body of."""

    text: str
    parses: bool


@dataclass(frozen=True)
class CodeReport:
    """Shares with their intervals, and what was written.

    Attributes:
        scores: Next token; functions that parse; hidden lines, with and without what follows.
        tokens: Over which the first is taken.
        functions: What was written.
        lines: Wanted and written.
    """

    scores: tuple[Score, ...]
    tokens: int
    functions: tuple[Body, ...]
    lines: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def write_python(
    generator: Generator,
    files: Iterable[str],
    *,
    limit: int = 200,
    seed: int = 0,
    suffix_first: bool = True,
) -> CodeReport:
    """Score a decoder on Python files; what does not parse as such is passed over.

    Args:
        generator: The model and its tokenizer.
        files: Texts.
        limit: Functions and lines drawn, at most so many of each.
        seed: Of the drawing.
        suffix_first: As in `fill_between`.

    Raises:
        DataError: No file is Python, or none holds a function.
        UsageError: The model has no tokenizer.
    """
    texts = [text for text in map(normalize, files) if _tree(text) is not None]
    if not texts:
        raise DataError("none of the files is Python", fix="name files of .py")
    heads = _drawn([head for text in texts for head in _heads(text)], limit, seed)
    holes = _drawn([hole for text in texts for hole in _holes(text)], limit, seed)
    if not heads or not holes:
        raise DataError("the files hold no function of two lines or more")
    with evaluating(generator.model):
        right = np.concatenate([_matches(generator, text) for text in texts])
        bodies = _bodies(generator, heads)
        lines = {"a hidden line, from what stands before it": _continued(generator, holes)}
        if generator.tokenizer is not None and has_marks(generator.tokenizer):
            lines["a hidden line"] = _filled(generator, holes, suffix_first)
    scores = [
        share("next token", right, "the likeliest token is the one that stands there"),
        share("functions that parse", [b.parses for b in bodies], "head and written body parse"),
    ]
    for name, written in lines.items():
        same = [w == hole.line for w, hole in zip(written, holes, strict=True)]
        scores.append(share(name, same, "written to the letter, but for white space around it"))
    shown = next(reversed(lines.values()))
    return CodeReport(
        tuple(scores), len(right), tuple(bodies),
        tuple((hole.line, line) for hole, line in zip(holes, shown, strict=True)),
    )  # fmt: skip


def _tree(text: str) -> ast.Module | None:
    """None where the text is not Python, of this version at least."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strings like "\d"
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _functions(text: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.stmt]]:
    """Functions of two statements or more, and the first that is no docstring, on its own line."""
    tree = _tree(text)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1 if ast.get_docstring(node, clean=False) is not None else 0 :]
            if body and len(node.body) > 1 and body[0].lineno > node.lineno:
                yield node, body[0]


def _heads(text: str) -> Iterator[Head]:
    lines = text.splitlines(keepends=True)
    for node, first in _functions(text):
        start = min((d.lineno for d in node.decorator_list), default=node.lineno) - 1
        above = min((d.lineno for d in getattr(first, "decorator_list", ())), default=first.lineno)
        before = "".join(lines[: above - 1])
        yield Head(before, len("".join(lines[:start])), first.col_offset)


def _holes(text: str) -> Iterator[Hole]:
    """Lines in the bodies of functions; those inside a text of several lines are none."""
    lines = text.splitlines(keepends=True)
    inside = _lines_of_strings(text)
    wanted = {
        n for node, first in _functions(text) for n in range(first.lineno - 1, node.end_lineno or 0)
    } - inside
    for n in sorted(wanted):
        line = lines[n].strip()
        if len(line) < SHORTEST or line.startswith("#"):
            continue
        indent = len(lines[n]) - len(lines[n].lstrip())
        rest = lines[n][indent + len(line) :]
        yield Hole("".join(lines[:n]) + lines[n][:indent], line, rest + "".join(lines[n + 1 :]))


def _lines_of_strings(text: str) -> set[int]:
    """Numbers of the lines that texts of several lines stand in."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    try:
        long = [t for t in tokens if t.type == tokenize.STRING and t.end[0] > t.start[0]]
    except (tokenize.TokenError, SyntaxError):
        return set(range(text.count("\n") + 1))
    return {n for t in long for n in range(t.start[0] - 1, t.end[0])}


def _drawn(things: list[T], limit: int, seed: int) -> list[T]:
    order = np.random.default_rng(seed).permutation(len(things))[:limit]
    return [things[i] for i in sorted(order)]


@torch.inference_mode()
def _matches(generator: Generator, text: str) -> npt.NDArray[np.bool_]:
    """Of each token of a text whether it was the likeliest: [T] bool."""
    ids, width = generator.encode(text), generator.max_seq_len
    found = []
    starts = range(0, len(ids) - 1, width)
    for start in starts:
        row = torch.tensor([ids[start : start + width + 1]], device=generator.model.device)
        guess = generator.model(row[:, :-1])[0].argmax(-1)
        found.append((guess == row[0, 1:]).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0, bool)


def _prompt(generator: Generator, before: str, most: int) -> list[int]:
    """The end of a text, as far as there is room for it and `most` more tokens."""
    ids = generator.encode(before)
    return ids[-max(1, generator.max_seq_len - most) :]


def _bodies(generator: Generator, heads: Sequence[Head]) -> list[Body]:
    most = min(BODY_TOKENS, generator.max_seq_len // 2)
    prompts = [_prompt(generator, head.before, most) for head in heads]
    answers = generator.generate(prompts, SamplingConfig(max_tokens=most, temperature=0.0))
    return [
        _body(head, answer.text, answer.finish_reason == "length")
        for head, answer in zip(heads, answers, strict=True)
    ]


def _body(head: Head, written: str, unfinished: bool) -> Body:
    """What belongs to the function: up to the first line further left that is in no bracket or text
    of several lines; without a last line that was cut off."""
    lines = written.splitlines(keepends=True)
    for number, line in enumerate(lines):
        further_left = line.strip() and len(line) - len(line.lstrip()) < head.indent
        if not further_left:
            continue
        ends = _function(head, lines[:number])
        if ends.parses or not "".join(lines[:number]).strip():
            return ends
    return _function(head, lines[:-1] if unfinished else lines)


def _function(head: Head, body: Sequence[str]) -> Body:
    written = "".join(body).rstrip()
    text = head.before[head.start :] + written
    inside = "if True:\n" if text[:1].isspace() else ""  # a method stands further right
    return Body(text, bool(written) and _tree(inside + text) is not None)


def _continued(generator: Generator, holes: Sequence[Hole]) -> list[str]:
    settings = SamplingConfig(max_tokens=LINE_TOKENS, temperature=0.0, stop=("\n",))
    prompts = [_prompt(generator, hole.before.rstrip(BLANKS), LINE_TOKENS) for hole in holes]
    return [answer.text.strip() for answer in generator.generate(prompts, settings)]


def _filled(generator: Generator, holes: Sequence[Hole], suffix_first: bool) -> list[str]:
    settings = SamplingConfig(max_tokens=LINE_TOKENS, temperature=0.0)
    pairs = [(hole.before, hole.after) for hole in holes]
    answers = fill_between(generator, pairs, settings, suffix_first=suffix_first)
    return [answer.text.strip().partition("\n")[0] for answer in answers]
