"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inkstone.labelling.project import Project
from inkstone.labelling.server import Desk, Server
from inkstone.labelling.store import Store
from inkstone.labelling.table import read_texts
from tests.labelling.conftest import Maker, sentences

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
api.expect.set_options(timeout=60_000)
TRUTH = {row["text"]: row["truth"] for row in sentences(200)}
Opener = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Opener]:
    """Opens the page over a project; at the end nothing was complained of or asked elsewhere."""
    servers: list[Server] = []
    complaints: list[str] = []

    def open_page(project: Project, *, fails: tuple[str, ...] = (), **context: Any) -> Any:
        server = Server(Desk(project, refit=4))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append(server)
        page = browser.new_context(**{"locale": "en-GB", **context}).new_page()

        def complain(text: str) -> None:
            if not any(part in text for part in fails):
                complaints.append(text)

        page.on("console", lambda m: complain(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complain(str(e)))
        page.on("request", lambda r: r.url.startswith((server.url, "data:")) or complain(r.url))
        page.goto(server.url)
        shows(page, "#choices", "1")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    for server in servers:
        server.shutdown()
        server.server_close()
        server.desk.project.store.close()
    assert not complaints


def shows(page: Any, place: str, text: str) -> None:
    """Wait until a part of the page holds a text."""
    api.expect(page.locator(place)).to_contain_text(text)


def press(page: Any, key: str, progress: str) -> None:
    """Press a key and wait until the page says that it is done."""
    page.keyboard.press(key)
    shows(page, "#progress", progress)


def test_a_session_by_the_keyboard(project: Maker, open_page: Opener) -> None:
    made = project()
    page = open_page(made)
    assert page.inner_text("#progress") == "0 labelled, 0 skipped, of 200"
    assert page.locator("#curve *").count() == 0 and "no guess yet" in page.inner_text("#about")
    keys = {"money": "1", "sport": "2"}
    for done in range(1, 41):
        press(page, keys[TRUTH[page.inner_text("#text")]], f"{done} labelled, 0 skipped, of 200")
    assert "the model: " in page.inner_text("#about") and page.locator("button.guess").count() == 1
    assert "texts it has not learned from" in page.inner_text("#curve-text")
    assert len(page.get_attribute("#curve polyline", "points").split()) > 1
    text = page.inner_text("#text")
    press(page, "s", "40 labelled, 1 skipped")
    assert page.inner_text("#text") != text
    press(page, "u", "40 labelled, 0 skipped")
    assert page.inner_text("#text") == text
    page.keyboard.press("9")  # no label
    page.keyboard.press("Control+1")  # the browser's own
    page.click("#skip")
    shows(page, "#progress", "40 labelled, 1 skipped")
    page.locator("#choices button").last.click()
    shows(page, "#progress", "41 labelled, 1 skipped")
    assert len(Store(made.store.path).said) == 41, "every label is on the disk"


def test_a_text_is_text(tmp_path: Path, open_page: Opener) -> None:
    texts = ["<img src=x onerror=alert(1)>", "</blockquote><script>alert(1)</script>", "a", "b"]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    labels = ["<b>x</b>", "y"]
    made = Project(read_texts(path, "text", None), Store(tmp_path / "labels.jsonl", labels))
    page = open_page(made)
    shown = []
    for done in range(1, len(texts) + 1):
        shown.append(page.inner_text("#text"))
        assert page.locator("#text *").count() == page.locator("img").count() == 0
        assert "<b>x</b>" in page.locator("#choices").inner_text()
        press(page, "1", f"{done} labelled")
    assert sorted(shown) == sorted(texts)
    shows(page, "#text", "Every text is labelled. Thank you.")
    assert page.locator("#choices button:enabled").count() == 0


def test_chinese_and_back(project: Maker, open_page: Opener) -> None:
    page = open_page(project(), locale="zh-CN")
    assert page.inner_text("#progress") == "已标注 0，跳过 0，共 200"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("#language")
    assert page.inner_text("#progress").startswith("0 labelled")


def test_a_refusal_and_a_lost_program_are_told(project: Maker, open_page: Opener) -> None:
    page = open_page(project(), fails=("409", "ERR_FAILED"))
    text = page.inner_text("#text")
    page.evaluate("state.example.id = 'nothing'")
    page.keyboard.press("1")
    api.expect(page.locator("#problem")).not_to_be_empty()
    assert page.inner_text("#text") == text, "what was shown stays"
    page.route("**/api/*", lambda route: route.abort())
    page.keyboard.press("1")
    shows(page, "#problem", "Is it still running?")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(project: Maker, open_page: Opener, scheme: str) -> None:
    page = open_page(project(), viewport={"width": 360, "height": 640}, color_scheme=scheme)
    press(page, "1", "1 labelled")
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, color[4:-1].split(","))) > 3 * 128
    assert light == (scheme == "light")
