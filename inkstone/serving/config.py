"""Settings of a server."""

from __future__ import annotations

from pydantic import Field

from inkstone.config import Section

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServeConfig(Section):
    """Who may ask, how much, and for how long.

    Attributes:
        host: Address to listen at; only this machine unless another is named.
        port: 0 takes any that is free.
        keys: Whoever gives one of these (`Authorization: Bearer …`) may ask; () for everybody who
            can reach the port.
        hosts: Names that a request may call this server by, beside `host` and this machine's own;
            anything else is refused (against DNS rebinding).
        origins: Other pages, by origin, whose scripts may ask.
        watch: Folders of runs whose curves are shown; each is a run, or holds runs.
        most: Requests that are answered at once, of each model.
        waiting: Requests that may wait beside those.
        per_key: Requests of one key at once, where keys are set.
        tokens_per_step: Tokens of one pass of a model.
        cache_bytes: Keys and values of a model's requests.
        max_body_bytes: Largest body.
        body_timeout_s: A body must have come by then.
        request_timeout_s: An answer must be complete by then.
        reload_s: Seconds between looks for new checkpoints of what is served; None: it stays.
        grace_s: Answers may go on for so long once the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    most: int = Field(default=64, ge=1, le=4096)
    waiting: int = Field(default=128, ge=0, le=1 << 20)
    per_key: int = Field(default=256, ge=1, le=1 << 20)
    tokens_per_step: int = Field(default=512, ge=1, le=1 << 20)
    cache_bytes: int = Field(default=1 << 30, ge=1)
    max_body_bytes: int = Field(default=1 << 24, ge=1, le=1 << 32)
    body_timeout_s: float = Field(default=30.0, gt=0)
    request_timeout_s: float = Field(default=600.0, gt=0)
    reload_s: float | None = Field(default=None, gt=0)
    grace_s: float = Field(default=30.0, ge=0)
