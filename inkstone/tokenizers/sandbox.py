"""Running a stranger's chat template: Jinja's sandbox, with every step and character counted.

Jinja's own sandbox keeps a template away from Python's internals, but lets it run for ever and fill
the memory. Here the template's syntax tree is rewritten before it is compiled, so that loops,
calls, output and every container it builds are charged to one budget.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from itertools import islice
from typing import Any

import jinja2
import jinja2.ext
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from inkstone.errors import TokenizerError

MAX_SOURCE = 2**16  # characters of template
MAX_WRITTEN = 2**20  # characters that one rendering may write, kept or not
MAX_TEXT = 2**17  # characters of one value on the way
STEPS, STEPS_PER_MESSAGE = 100_000, 1_000

_FILTER_NAMES = """abs capitalize count d default dictsort first float indent int items join last
    length list lower map max min reject rejectattr replace reverse safe select selectattr sort
    string title tojson trim unique upper"""
_FILTERS = frozenset(_FILTER_NAMES.split())
_LIGHT = frozenset({"count", "d", "default", "first", "last", "length"})  # do not read deeply
_TEXT_METHODS = """capitalize count endswith find index isalpha isdigit isspace lower lstrip
    partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines
    startswith strip title upper"""
_METHODS = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values"}),
}
_SCALARS = (bool, int, float, type(None), jinja2.Undefined)


def render(source: str, messages: Sequence[dict[str, str]], **names: Any) -> str:
    """What a template writes for a conversation.

    Args:
        source: Jinja, with the names and tags that `transformers` gives chat templates, but for
            `strftime_now`: the same messages always give the same text.
        messages: Objects with `role` and `content`.
        **names: Further variables.

    Raises:
        TokenizerError: The template is malformed, fails, refuses the messages, reaches for what is
            not its own, or asks for too much.
    """
    meter = _Meter(STEPS + STEPS_PER_MESSAGE * len(messages), MAX_WRITTEN)
    token = _METER.set(meter)
    try:
        if len(source) > MAX_SOURCE:
            raise jinja2.TemplateError(f"it is longer than {MAX_SOURCE:,} characters")
        return _compiled(source).render(messages=messages, tools=None, documents=None, **names)
    except MemoryError:
        raise
    except Exception as error:  # a template is a foreign program: it can raise anything
        message = str(error) or type(error).__name__
        raise TokenizerError(
            f"the chat template failed: {message[:300]}",
            fix="change the messages if it asks for that, or mend chat_template",
        ) from error
    finally:
        _METER.reset(token)


class _Meter:
    """What one rendering may still do."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps, self.characters = steps, characters

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise jinja2.TemplateError("it takes too many steps")

    def write(self, text: str) -> str:
        self.characters -= len(text)
        if self.characters < 0:
            raise jinja2.TemplateError("it writes too much")
        return text


_METER: ContextVar[_Meter] = ContextVar("chat_template_meter")


@jinja2.pass_context  # which also keeps the compiler from running it ahead of time
def _write(context: Any, value: Any) -> str:
    return _METER.get().write(str(_weighed(value)))


@jinja2.pass_context
def _steps(context: Any, value: Any) -> list[Any]:
    items = _taken(value) if value is not None else []
    _METER.get().step(len(items) + 1)
    return items


@jinja2.pass_context
def _weigh(context: Any, value: Any) -> Any:
    return _weighed(value)


def _weighed(value: Any) -> Any:
    """The value, after its whole content was charged; iterators become lists."""
    meter = _METER.get()
    value = _taken(value) if isinstance(value, Iterator) else value
    waiting: list[Any] = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            meter.step(1 + _bounded(part) // 256)
            continue
        meter.step()
        if isinstance(part, _SCALARS):
            continue
        if isinstance(part, range):
            meter.step(len(part))
        elif isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, _CONTAINERS):
            waiting += list(part)
        else:
            raise jinja2.TemplateError(f"it uses a {type(part).__name__} as text")
    return value


_CONTAINERS: tuple[Any, ...] = (
    list, tuple, type({}.keys()), type({}.values()), type({}.items()),
)  # fmt: skip


def _taken(values: Any) -> list[Any]:
    left = _METER.get().steps
    items = list(islice(values, left + 1))
    if len(items) > left:
        raise jinja2.TemplateError("it takes too many steps")
    return items


def _bounded(text: str) -> int:
    if len(text) > MAX_TEXT:
        raise jinja2.TemplateError("it makes too long a text")
    return len(text)


def _range(*bounds: int) -> range:
    steps = range(*bounds)
    if len(steps) > _METER.get().steps:
        raise jinja2.TemplateError("it takes too many steps")
    return steps


def _replace(text: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    times = text.count(old)
    if len(text) + (times if count < 0 else min(times, count)) * len(new) > MAX_TEXT:
        raise jinja2.TemplateError("it makes too long a text")
    return text.replace(old, new, count)


def _join(values: Any, separator: Any = "", attribute: str | None = None) -> str:
    items = [_attribute(v, attribute) for v in values]
    if sum(map(len, items)) + len(str(separator)) * len(items) > MAX_TEXT:
        raise jinja2.TemplateError("it makes too long a text")
    return str(separator).join(items)


def _attribute(value: Any, name: str | None) -> str:
    found = value if name is None else value.get(name, "") if isinstance(value, dict) else ""
    return str(_weighed(found))


def _indent(text: Any, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if not 0 <= width <= 64:
        raise jinja2.TemplateError("it indents too far")
    lines = str(text).split("\n")
    _METER.get().step(len(lines))
    pad = " " * width
    return "\n".join(pad + x if (n or first) and (x or blank) else x for n, x in enumerate(lines))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **how: Any) -> str:
    if not 0 <= (indent or 0) <= 16 or how.keys() - {"separators", "sort_keys"}:
        raise jinja2.TemplateError("tojson: such options are not allowed")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **how)


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:300])


class _Namespace(jinja2.utils.Namespace):
    """Variables that outlive a loop; no names of Python's own."""

    def __init__(*args: Any, **names: Any) -> None:
        if any(str(name).startswith("_") for name in names) or len(args) > 1:
            raise jinja2.TemplateError("a namespace takes plain names only")
        jinja2.utils.Namespace.__init__(args[0], **names)  # type: ignore[misc]

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.TemplateError("a namespace takes plain names only")
        jinja2.utils.Namespace.__setitem__(self, name, value)


class _Metered(NodeTransformer):
    """Puts a charge around whatever loops, writes or builds."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _charged(node.iter, "_steps")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        plain = (
            nodes.Const(n.data) if isinstance(n, nodes.TemplateData) else n for n in node.nodes
        )
        node.nodes = [_charged(n, "_write") for n in plain]
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        if node.node is not None and node.name not in _LIGHT:
            node.node = _charged(node.node, "_weigh")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_charged(n, "_weigh") for n in node.nodes]
        return _charged(node, "_weigh")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _charged(self.generic_visit(node), "_weigh")

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _charged(node, "_weigh") if node.ctx == "load" else node


def _charged(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote; here it only groups."""

    tags = {"generation"}  # noqa: RUF012, the base class's attribute

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metered().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers stay small; texts and lists may only be joined."""
        numbers = all(isinstance(x, (int, float)) for x in (left, right))
        if operator == "**" or (operator != "+" and not numbers):
            raise jinja2.TemplateError(f"{operator} is not allowed here")
        value = super().call_binop(context, operator, left, right)
        if isinstance(value, (int, float)):
            if abs(value) > 2**63:
                raise jinja2.TemplateError("a number is too large")
            return value
        return _weighed(value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Macros, loops, the few functions given, and harmless methods of text and messages."""
        _METER.get().step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join":
            return _join(_weighed(args[0]), owner)
        known = any(isinstance(owner, kind) and name in ok for kind, ok in _METHODS.items())
        own = isinstance(__obj, (jinja2.runtime.Macro, jinja2.runtime.LoopContext))
        cycle = isinstance(owner, jinja2.runtime.LoopContext) and name in ("cycle", "changed")
        if not (known or own or cycle or __obj in (_range, _raise_exception, _Namespace)):
            raise jinja2.TemplateError(f"it may not call {name or type(__obj).__name__}")
        return super().call(__context, __obj, *args, **kwargs)


@functools.cache
def _environment() -> _Sandbox:
    made = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    made.globals = {
        "range": _range, "raise_exception": _raise_exception, "namespace": _Namespace,
    }  # fmt: skip
    made.filters = {k: v for k, v in made.filters.items() if k in _FILTERS}
    made.filters |= {"replace": _replace, "join": _join, "indent": _indent, "tojson": _tojson}
    made.filters |= {"_write": _write, "_steps": _steps, "_weigh": _weigh}
    return made


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)
