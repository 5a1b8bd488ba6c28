"""The body of a request as an object, at a cost that is bounded before it is paid.

What reads JSON and what checks it are single calls that let no other thread run. Text costs them
little, but a body of 16 MB can hold five million objects, and those cost ten seconds: so parts are
counted first.
"""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from inkstone import registry
from inkstone.errors import CheckpointError
from inkstone.files import parse_json
from inkstone.serving.answers import unless_gone
from inkstone.serving.errors import ApiError
from inkstone.serving.threads import beside

B = TypeVar("B", bound=BaseModel)

MOST_PARTS = 1 << 18  # of a body: numbers, texts, lists, objects
MOST_KEYS = 4096  # of one object
SMALL_BYTES = 1 << 14  # read at once: that takes less time than to hand it to a thread
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


async def read(request: Request, kind: type[B]) -> B:
    """The body of a request as an object of some kind.

    Raises:
        ApiError: It is no JSON, or no such object; names the field.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(415, "send JSON: Content-Type: application/json")
    raw = await request.body()
    if len(raw) <= SMALL_BYTES:
        return parsed(raw, kind)
    return await unless_gone(request, beside(parsed, raw, kind))


def parsed(raw: bytes, kind: type[B]) -> B:
    """Bytes as an object of some kind; errors as of `read`."""
    if _parts(raw) > MOST_PARTS:
        raise ApiError(400, f"the body has more than {MOST_PARTS:,} parts")
    try:
        return kind.model_validate(parse_json(raw, "the body", most_keys=MOST_KEYS))
    except CheckpointError as error:
        raise ApiError(400, error.message) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        text = f"{field}: {first['msg']}" if field else first["msg"]
        if first["type"] == "extra_forbidden":
            near = registry.did_you_mean(str(first["loc"][-1])[:100], list(kind.model_fields))
            text = f"{field[:200]} is not supported; {near}"
        raise ApiError(400, text[:500], param=field[:200] or None) from error


def _parts(raw: bytes) -> int:
    """Parts that JSON has, at least: commas outside of its texts, as far as they are too many."""
    if raw.count(b",") <= MOST_PARTS:
        return 0
    parts = end = 0
    for text in _TEXT.finditer(raw):
        parts += raw.count(b",", end, text.start())
        if parts > MOST_PARTS:
            return parts
        end = text.end()
    return parts + raw.count(b",", end)
