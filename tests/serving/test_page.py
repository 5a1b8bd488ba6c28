"""The page in a real browser: Debian's Chromium, driven by Playwright as a user would.

INKSTONE_SCREENSHOTS=FOLDER keeps what was seen.
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inkstone import api as ink
from inkstone.inference.engine import Engine
from inkstone.serving import page as serving
from inkstone.serving.server import Server
from tests.serving.conftest import Start
from tests.serving.page_models import HOSTILE, LINES, TEXT, FakeRun, of_tasks, poet

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
api.expect.set_options(timeout=60_000)
expect = api.expect
SHOTS = os.environ.get("INKSTONE_SCREENSHOTS")
PHONE = {"width": 375, "height": 740}
KEY = "a-key-of-the-test"
Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ink.LanguageModel]:
    return {
        "poet": poet(200),
        "poet-at-dawn": poet(100),
        **of_tasks(tmp_path_factory.mktemp("tasks")),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FakeRun]:
    folder = tmp_path_factory.mktemp("runs")
    made = {"wide": FakeRun(folder / "wide", 1.2), "deep": FakeRun(folder / "deep", 1.45)}
    made["wide"].go_on(180)
    made["deep"].go_on(90)
    return made


@pytest.fixture(scope="module")
def server(start: Start, models: dict[str, ink.LanguageModel], runs: dict[str, FakeRun]) -> Server:
    watch = (str(runs["wide"].log.path.parent.parent),)
    return start(*models.items(), watch=watch)


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Opener]:
    """Opens the page; at the end nothing was complained of, and nobody else was asked."""
    complaints: list[str] = []

    def open_page(
        tab: str = "chat", *, at: Server = server, fails: str = "", **context: Any
    ) -> Any:
        settings = {"locale": "en-GB", "viewport": {"width": 1180, "height": 800}, **context}
        page = browser.new_context(**settings).new_page()

        def complain(text: str) -> None:
            if not fails or not re.search(fails, text):
                complaints.append(text)

        page.on("console", lambda m: complain(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complain(str(e)))
        page.on("dialog", lambda d: complain(d.message))
        page.on("request", lambda r: r.url.startswith(at.url) or complain(r.url))
        page.goto(f"{at.url}/#{tab}")
        if at is server:
            page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert not complaints, complaints


def shot(page: Any, name: str) -> None:
    """Keep what is seen."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def say(page: Any, text: str) -> None:
    page.locator(".composer textarea").fill(text)
    page.keyboard.press("Enter")


def settled(page: Any) -> None:
    """No model writes any more."""
    expect(page.locator(".composer button")).to_have_text("Send")


def run(page: Any, tab: str, **fields: str) -> Any:
    """Fill in the form of a tab and send it off by the keyboard."""
    panel = page.locator(f"#panel-{tab}")
    for label, text in fields.items():
        panel.get_by_label(label.replace("_", " "), exact=True).fill(text)
    page.keyboard.press("Control+Enter")
    return panel


# --- the files ------------------------------------------------------------------------------------


def test_the_files_are_those_that_are_listed() -> None:
    assert set(serving.FILES.values()) == {path.name for path in serving.FOLDER.iterdir()}
    everything = {p.name: p.read_text(encoding="utf-8") for p in serving.FOLDER.iterdir()}
    for name, content in everything.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                     "javascript:", "style=", "onclick=", "http://", "https://"):  # fmt: skip
            assert word not in content.replace("http://www.w3.org/2000/svg", ""), (name, word)


def test_they_may_load_nothing_else(server: Server) -> None:
    for path in serving.PATHS:
        with urllib.request.urlopen(server.url + path) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert answer.headers.get_content_type() in serving.TYPES.values()


# --- the frame ------------------------------------------------------------------------------------


def test_tabs_are_what_the_models_can_do(open_page: Opener) -> None:
    page = open_page("")
    names = page.locator("#tabs button").all_inner_texts()
    assert names == ["Chat", "Complete", "Classify", "Tag", "Translate", "Answer", "Summarize",
                     "Attention", "Training"]  # fmt: skip
    page.locator("#tab-chat").focus()
    for name in ("complete", "classify"):
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#tab-{name}")).to_be_focused()
        expect(page.locator(f"#panel-{name}")).to_be_visible()
    page.keyboard.press("End")
    expect(page.locator("#panel-runs")).to_be_visible()
    assert page.locator("[role=tabpanel]:visible").count() == 1 and page.url.endswith("#runs")
    page.reload()
    expect(page.locator("#panel-runs")).to_be_visible()


def test_both_languages_say_everything(open_page: Opener) -> None:
    page = open_page(locale="zh-CN")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.locator("#tab-chat").inner_text() == "对话"
    say(page, "你好")
    expect(page.locator(".composer button")).to_have_text("发送")
    shot(page, "chat-chinese")
    page.click("#language")
    assert page.locator("#tab-chat").inner_text() == "Chat"
    expect(page.locator(".composer textarea")).to_have_attribute("placeholder", "Write something…")
    page.reload()
    expect(page.locator("#tab-chat")).to_have_text("Chat")
    assert page.evaluate("import('/page/words.js').then((m) => m.missing())") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_either_theme(open_page: Opener, scheme: str) -> None:
    page = open_page(viewport=PHONE, color_scheme=scheme)
    say(page, "The river")
    settled(page)
    shot(page, f"phone-chat-{scheme}")
    for tab in page.locator("#tabs button").all():
        tab.click()
        wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner, tab.inner_text()

    def is_light() -> bool:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) > 3 * 128

    assert is_light() == (scheme == "light")
    page.click("#theme")
    assert is_light() == (scheme == "dark")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert is_light() == (scheme == "dark"), "the choice is kept"


def test_the_key_is_asked_for(open_page: Opener, start: Start, models: dict[str, Any]) -> None:
    guarded = start(("poet", models["poet"]), keys=(KEY,))
    page = open_page(at=guarded, fails="401")
    expect(page.locator("#key")).to_be_visible()
    assert page.locator("#tabs button").count() == 0, "nothing is told before"
    page.keyboard.press("Escape")
    page.keyboard.type("a-key-that-is-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-wrong")).to_have_text("This key is not accepted.")
    shot(page, "key")
    page.locator("#key-input").fill(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready]")
    say(page, "The river")
    settled(page)
    expect(page.locator(".answer .text")).not_to_be_empty()
    assert KEY in page.evaluate("JSON.stringify(sessionStorage)")
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    other = page.context.new_page()
    other.goto(guarded.url)
    expect(other.locator("#key")).to_be_visible()


# --- the talk -------------------------------------------------------------------------------------


def test_talk_edit_and_retry(open_page: Opener) -> None:
    page = open_page()
    shot(page, "chat-empty")
    say(page, "The river runs")
    settled(page)
    first = page.locator(".answer .text").inner_text()
    assert first and "tokens" in page.locator(".answer .status").inner_text()
    page.keyboard.press("Shift+Enter")
    page.locator(".composer textarea").press_sequentially("A stone")
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(2)
    settled(page)
    shot(page, "chat")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.locator(".retry:visible").click()
    told = json.loads(asked.value.post_data)
    assert [m["role"] for m in told["messages"]] == ["user", "assistant", "user"]
    assert told["messages"][1]["content"].strip() == first.strip() and told["stream"] is True
    settled(page)
    assert page.locator(".retry:visible").count() == 1, "of the last answer"
    page.locator(".composer textarea").press("ArrowUp")  # what was said last
    field = page.locator(".editing textarea")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(field).to_have_count(0)
    page.locator(".edit").first.click()
    field.fill("Morning came")
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(1)
    assert page.locator(".said > .text").inner_text() == "Morning came"
    settled(page)
    page.get_by_role("button", name="New talk").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_enter_in_an_input_method_sends_nothing(open_page: Opener) -> None:
    page = open_page()
    field = page.locator(".composer textarea")
    field.fill("nihao")
    event = {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True}
    field.dispatch_event("keydown", event)
    assert page.locator(".turn").count() == 0 and field.input_value() == "nihao"


def test_stop_stops(open_page: Opener, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that goes a step where the test lets it; after the stop it has nothing to do."""
    slow, gate, real = poet(1), threading.Semaphore(6), Engine.step

    def step(engine: Engine) -> Any:
        if engine.model is slow.model:
            gate.acquire(timeout=60)
        return real(engine)

    monkeypatch.setattr(Engine, "step", step)
    own = start(("slow", slow))
    page = open_page(at=own)
    page.wait_for_selector("body[data-ready]")
    say(page, "The river")
    expect(page.locator(".answer .text")).not_to_be_empty()
    expect(page.locator(".composer button")).to_have_text("Stop")
    page.keyboard.press("Escape")
    expect(page.locator(".answer .status")).to_have_text("stopped")
    settled(page)
    kept = page.locator(".answer .text").inner_text()

    def gone() -> bool:
        with urllib.request.urlopen(own.url + "/metrics") as answer:
            return b'inkstone_cancelled{model="slow"} 1.0' in answer.read()

    for _ in range(600):
        if gone():
            break
        gate.release()  # a step: the server need not notice sooner than it does
        page.wait_for_timeout(50)
    assert gone() and page.locator(".answer .text").inner_text() == kept
    gate.release(1000)
    page.locator(".composer button").focus()
    say(page, "again")  # and it goes on
    settled(page)


def test_two_models_side_by_side(open_page: Opener) -> None:
    page = open_page()
    page.get_by_role("button", name="Compare two").click()
    page.get_by_label("Second model").select_option("poet-at-dawn")
    with page.expect_request(lambda r: b"poet-at-dawn" in (r.post_data_buffer or b"")):
        say(page, "What the brush forgets")
    settled(page)
    assert page.locator(".answer h3").all_inner_texts() == ["poet", "poet-at-dawn"]
    for text in page.locator(".answer .text").all():
        expect(text).not_to_be_empty()
    left, right = (one.bounding_box() for one in page.locator(".answer").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    shot(page, "chat-two")
    page.click("#theme")
    shot(page, "chat-two-dark")


def test_what_a_model_says_is_text(open_page: Opener) -> None:
    page = open_page()
    said = f"{HOSTILE}<script>alert(1)</script> [x](javascript:alert(1)) <b>bold</b>"
    events = "".join(
        f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': part}}]})}\n\n"
        for part in re.findall(".{1,7}", said)
    )
    kind = "text/event-stream"
    page.route(
        "**/v1/chat/*", lambda r: r.fulfill(body=events + "data: [DONE]\n\n", content_type=kind)
    )
    say(page, HOSTILE)
    settled(page)
    assert page.locator(".answer .text").inner_text() == said
    assert page.locator(".said > .text").inner_text() == HOSTILE
    assert page.locator(".turn :is(img, script, b, a)").count() == 0
    shot(page, "hostile")


def test_refusals_and_a_lost_server_are_told(open_page: Opener) -> None:
    page = open_page(fails="400|ERR_FAILED|Failed to load")
    say(page, "long " * 600)
    expect(page.locator(".answer .status")).to_contain_text("context")
    page.route("**/v1/**", lambda route: route.abort())
    page.locator(".retry:visible").click()
    expect(page.locator(".answer .status")).to_contain_text("Is it still running?")


# --- the other tabs -------------------------------------------------------------------------------


def test_tokens_and_their_alternatives(open_page: Opener) -> None:
    page = open_page("complete")
    panel = run(page, "complete", Text_to_go_on_from="The river runs to")
    expect(panel.locator("button.main")).to_have_text("Continue")
    expect(panel.locator(".status")).to_contain_text("perplexity")
    tokens = panel.locator(".token")
    assert tokens.count() == 64
    doubts = [float(x) for x in tokens.evaluate_all(
        "all => all.map((one) => one.style.getPropertyValue('--doubt'))")]  # fmt: skip
    assert all(0 <= d <= 1 for d in doubts) and len(set(doubts)) > 2
    tokens.nth(3).hover()
    expect(panel.locator(".other")).to_have_count(8)
    shot(page, "complete")
    shares = panel.locator(".other .share").all_inner_texts()
    assert all(share.endswith("%") for share in shares)
    tokens.first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(tokens.nth(5)).to_be_focused()
    kept = "".join(tokens.all_text_contents()[:5])
    other = panel.locator(".other:not(.this):enabled").first
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(tokens.nth(5)).to_be_focused()
    tokens.nth(5).click()
    name = other.locator(".name").inner_text()
    with page.expect_request("**/v1/completions") as asked:
        other.click()
    assert json.loads(asked.value.post_data)["prompt"].startswith("The river runs to" + kept)
    expect(panel.locator(".status")).to_contain_text("perplexity")
    assert "".join(tokens.all_text_contents()[:5]) == kept
    chosen = tokens.nth(5).text_content().replace("\n", "↵")
    assert re.sub("^ | $", "␣", chosen) == name


def test_tokens_that_are_parts_of_a_character(open_page: Opener) -> None:
    page = open_page("complete")
    found = page.evaluate("""async () => {
      const { Pieces } = await import("/page/complete.js");
      const pieces = new Pieces(), found = [];
      const choice = (text, tokens, reason = null) => ({ text, finish_reason: reason, logprobs: {
        tokens, token_logprobs: tokens.map(() => -1), top_logprobs: tokens.map(() => ({})) } });
      for (const one of [choice("a", ["a"]), choice("", ["\\ufffd"]), choice("", ["\\ufffd"]),
        choice("中", ["\\ufffd"]), choice(" b文", [" b", "\\ufffd", "\\ufffd"]), choice("", ["c"]),
        choice("cd", ["d"]), choice("", ["\\ufffd"], "length")]) found.push(...pieces.add(one));
      return found.map(({ text, logprob, parts }) => [text, logprob, parts]);
    }""")
    assert found == [["a", -1, 1], ["中", -3, 3], [" b", -1, 1], ["文", -2, 2], ["c", -1, 1],
                     ["d", -1, 1], ["\ufffd", -1, 1]]  # fmt: skip


def test_classify_and_why(open_page: Opener) -> None:
    page = open_page("classify")
    panel = run(page, "classify", Text="the letter was warm and patient 🙂, not cold")
    expect(panel.locator(".verdict")).to_have_text("praise")
    names = panel.locator(".bar-of .name")
    assert set(names.all_inner_texts()) == {"praise", "blame", HOSTILE}
    word = panel.locator(".shaded span", has_text="warm")
    expect(word).to_have_class("pro")
    assert float(word.get_attribute("data-weight")) > 0
    assert panel.locator(".shaded span", has_text="cold").get_attribute("class") == "contra"
    assert panel.locator(".shaded").inner_text() == "the letter was warm and patient 🙂, not cold"
    shot(page, "classify")
    panel.locator(".bar-of", has_text="blame").click()
    expect(panel.locator(".shaded span", has_text="cold")).to_have_class("pro")
    panel.locator(".bar-of", has_text="onerror").click()
    expect(panel.locator(".why h2")).to_contain_text(HOSTILE)
    assert panel.locator("img").count() == 0


def test_tags_are_spans(open_page: Opener) -> None:
    page = open_page("tag")
    panel = run(
        page, "tag", Text="Ada  Lovelace spoke in London .\n<b>Grace Hopper wrote in Oslo ."
    )
    marks = panel.locator("mark")
    expect(marks.first).to_contain_text("Ada  Lovelace")
    assert marks.first.locator("small").inner_text() == "PER"
    assert "London" in marks.nth(1).inner_text()
    assert marks.nth(1).get_attribute("class") != marks.first.get_attribute("class")
    assert "\n<b>" in panel.locator(".tagged").inner_text()
    shot(page, "tag")
    spans = page.evaluate("""() => import("/page/tasks.js").then((m) => m.spans(
      ["a", "b", "c", "d"], ["B-X", "I-X", "B-X", "NOUN"]).map((s) => [s.kind, s.start, s.end]))""")
    assert spans == [["X", 0, 2], ["X", 2, 3], ["NOUN", 3, 4]]


def test_translate_answer_and_summarize(open_page: Opener) -> None:
    page = open_page("translate")
    panel = run(page, "translate", Text="3 dogs run.")
    expect(panel.locator(".result > *").first).to_be_visible()
    page.click("#tab-answer")
    context = "🙂 Ada wrote in London."
    panel = run(page, "answer", Question="Who wrote?", Text_that_holds_the_answer=context)
    expect(panel.locator(".verdict")).not_to_be_empty()
    assert panel.locator("mark").inner_text() == panel.locator(".verdict").inner_text()
    assert panel.locator(".result .serif").inner_text() == context
    shot(page, "answer")
    page.click("#tab-summarize")
    panel = run(page, "summarize", Text="Dear all. The meeting is at 7. Bring cake.")
    expect(panel.locator(".written-text")).not_to_be_empty()
    expect(panel.locator(".result")).to_contain_text("from 9")
    shot(page, "summarize")


def test_who_looks_at_whom(open_page: Opener) -> None:
    page = open_page("attend")
    panel = run(page, "attend", Text=LINES[0].strip())
    heads = panel.locator(".head")
    expect(heads).to_have_count(5)  # four, and their mean
    tokens = panel.locator(".tokens:visible .token")
    tokens.nth(2).hover()
    shades = tokens.evaluate_all("all => all.map((o) => +o.style.getPropertyValue('--doubt'))")
    assert max(shades[:3]) == 1 and max(shades[3:]) == 0, "nobody looks ahead"
    expect(panel.locator(".large [role=status]")).to_contain_text("looks at")
    heads.first.focus()
    page.keyboard.press("ArrowRight")
    expect(heads.nth(1)).to_have_attribute("aria-checked", "true")
    with page.expect_request("**/v1/attention") as asked:
        panel.get_by_label("Layer").select_option(index=1)
    told = json.loads(asked.value.post_data)
    assert told["layer"] == 1, told
    expect(heads.first).to_have_attribute("aria-checked", "true")
    shot(page, "attention")
    page.click("#theme")
    shot(page, "attention-dark")
    panel.get_by_label("Model").select_option("german")
    run(page, "attend", Text="3 dogs run.")
    expect(panel.locator(".tokens:visible")).to_have_count(2)  # what is written, what was read


def test_curves_grow_while_they_are_looked_at(open_page: Opener, runs: dict[str, FakeRun]) -> None:
    page = open_page("runs")
    cards = page.locator(".run")
    expect(cards).to_have_count(2)
    cards.filter(has_text="wide").locator("input").check()
    cards.filter(has_text="deep").locator("input").check()
    expect(page.locator(".chart polyline")).to_have_count(4)
    before = runs["deep"].step
    expect(cards.filter(has_text="deep")).to_contain_text(f"step {before} of 400")
    runs["deep"].go_on(7)
    expect(cards.filter(has_text="deep")).to_contain_text(f"step {before + 7} of 400")
    box = page.locator(".chart").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    expect(page.locator(".training figcaption [role=status]")).to_contain_text("step")
    shot(page, "training")
    cards.filter(has_text="deep").locator("input").uncheck()
    expect(page.locator(".chart polyline")).to_have_count(2)


def test_desktop_and_phone_are_kept(open_page: Opener) -> None:
    """Every tab with something in it, to be looked at."""
    if not SHOTS:
        pytest.skip("INKSTONE_SCREENSHOTS names no folder")
    page = open_page("tag", viewport=PHONE, color_scheme="dark")
    run(page, "tag", Text=TEXT)
    expect(page.locator("mark").first).to_be_visible()
    shot(page, "phone-tag-dark")
    page.click("#tab-classify")
    run(page, "classify", Text="the letter was warm and patient, not cold")
    expect(page.locator(".shaded")).to_be_visible()
    shot(page, "phone-classify-dark")
    page.click("#tab-complete")
    panel = run(page, "complete", Text_to_go_on_from="The river runs to")
    expect(panel.locator(".status")).to_contain_text("perplexity")
    panel.locator(".token").nth(6).click()
    shot(page, "phone-complete-dark")
    page.click("#tab-attend")
    panel = run(page, "attend", Text=LINES[2].strip())
    expect(panel.locator(".head").first).to_be_visible()
    shot(page, "phone-attention-dark")
    page.click("#tab-runs")
    expect(page.locator(".chart polyline").first).to_be_attached()
    shot(page, "phone-training-dark")
