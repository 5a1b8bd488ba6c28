"""The .html reader."""

from __future__ import annotations

import html
import importlib.util
import re
from collections.abc import Iterator

from inkstone import registry
from inkstone.errors import DataError
from inkstone.text.document import Document
from inkstone.text.opened import Opened, decode

_TAG = re.compile(r"<(?:(/?)([a-zA-Z][^\s/>]*)|[!?/])")
_TAG_END = re.compile(r"""(?:[^"'>]++|"[^"]*+"|'[^']*+')*+>""")
_HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "title", "textarea"})
_BREAKING = """address article aside blockquote br caption dd div dl dt fieldset figcaption figure
    footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol p pre section table td th tr ul"""
_BLOCKS = frozenset(_BREAKING.split())


def read_html(file: Opened) -> Iterator[Document]:
    """.html: the main text, by trafilatura where the extra `web` is installed, else all text."""
    limit = file.config.max_document_bytes
    data = file.stream.read(limit + 1)
    if len(data) > limit:
        raise DataError(
            f"{file.name}: longer than text.max_document_bytes ({limit:,})", fix="raise the limit"
        )
    source = decode(data, file.name)
    yield Document(_main_text(source) or all_text(source), file.name)


def _main_text(source: str) -> str:
    if importlib.util.find_spec("trafilatura") is None:
        return ""
    try:
        return registry.extra("trafilatura", "web").extract(source) or ""
    except Exception:  # it documents no errors, and all of the text is still there to be had
        return ""


def all_text(source: str) -> str:
    """Text outside of tags, comments, scripts and styles, a line for each block.

    Takes time in proportion to the length of any input, which `html.parser` does not
    (CVE-2025-6069). What an unclosed comment, quotation or script swallows is dropped, as in a
    browser.
    """
    parts: list[str] = []
    at = 0
    while (start := source.find("<", at)) >= 0:
        parts.append(source[at:start].replace("\n", " "))
        tag = _TAG.match(source, start)
        if tag is None:  # a < that opens nothing is text
            parts.append("<")
            at = start + 1
            continue
        at = _after(source, tag)
        if at < 0:
            return _tidy(parts)
        name = (tag[2] or "").lower()
        if name in _BLOCKS:
            parts.append("\n")
        elif name in _HIDDEN and not tag[1] and source[at - 2] != "/":
            close = re.compile(rf"</{re.escape(name)}(?=[\s/>])", re.IGNORECASE)
            end = close.search(source, at)
            if end is None:
                return _tidy(parts)
            at = end.start()
    parts.append(source[at:].replace("\n", " "))
    return _tidy(parts)


def _after(source: str, tag: re.Match[str]) -> int:
    """Where the tag, comment or declaration ends; -1 if it never does."""
    if tag[2]:
        end = _TAG_END.match(source, tag.end())
        return end.end() if end else -1
    mark = "-->" if source.startswith("<!--", tag.start()) else ">"
    end_at = source.find(mark, tag.start() + 2)
    return end_at + len(mark) if end_at >= 0 else -1


def _tidy(parts: list[str]) -> str:
    text = html.unescape("".join(parts))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
