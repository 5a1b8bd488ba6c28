"""The page's own script, run by node over a few lines that stand in for a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from inkstone.labelling.server import PAGE

BROWSER = """
const made = [], ids = {}, calls = [], keys = [];
class Element {
  constructor(name) { Object.assign(this, { name, attributes: {}, children: [], on: {}, own: "" });
    this.classes = new Set(); made.push(this);
    this.classList = { toggle: (c, on) => on ? this.classes.add(c) : this.classes.delete(c) }; }
  get textContent() { return this.own + this.children.map((c) => c.textContent ?? c).join(""); }
  set textContent(value) { this.own = String(value); this.children = []; }
  setAttribute(key, value) { this.attributes[key] = String(value); }
  addEventListener(event, act) { this.on[event] = act; }
  replaceChildren(...parts) { this.own = ""; this.children = parts; }
  append(...parts) { this.children.push(...parts); }
}
globalThis.document = {
  documentElement: {}, getElementById: (id) => ids[id] ??= new Element("#" + id),
  createElement: (name) => new Element(name), createElementNS: (_, name) => new Element(name),
  addEventListener: (_, act) => { keys.push(act); },
};
Object.defineProperty(globalThis, "navigator", { value: { language: LANGUAGE } });
globalThis.fetch = async (path, settings) => {
  calls.push([path, settings.method ?? "GET", settings.body ?? null]);
  const [ok, value] = ANSWERS[Math.min(calls.length, ANSWERS.length) - 1];
  return { ok, json: async () => value };
};
"""
AFTER = """
(async () => {
  const wait = () => new Promise((done) => setImmediate(done));
  const shots = [];
  const look = () => shots.push(Object.fromEntries(Object.entries(ids).map(([id, e]) =>
    [id, e.textContent])));
  await wait(); look();
  for (const key of KEYS_PRESSED) {
    keys[0]({ key }); await wait(); look();
  }
  const svg = ids.curve.children.map((e) => [e.name, e.attributes]);
  console.log(JSON.stringify({ calls, shots, svg, lang: document.documentElement.lang,
    chosen: ids.choices.children.map((b) => [...b.classes]),
    shortcuts: ids.choices.children.map((b) => b.attributes["aria-keyshortcuts"]) }));
})();
"""


def press(keys: str, answers: list[tuple[bool, Any]], language: str = "en-GB") -> dict[str, Any]:
    """What the page asked and showed after it was opened and these keys were pressed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = re.findall(r"<script>(.*?)</script>", PAGE.read_text("utf-8"), re.DOTALL)[0]
    browser = BROWSER.replace("LANGUAGE", json.dumps(language), 1)
    after = AFTER.replace("KEYS_PRESSED", json.dumps(list(keys)))
    source = f"const ANSWERS = {json.dumps(answers)};{browser}{script}{after}"
    done = subprocess.run([node, "-"], input=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def state(**changes: Any) -> dict[str, Any]:
    example = {"id": "f00", "text": "<img src=x onerror=alert(1)>", "place": "a.csv, line 2",
               "cut": False, "check": True,
               "guess": {"label": "spam", "confidence": 0.875, "by": "model"}}  # fmt: skip
    points = [{"labels": n, "accuracy": 0.5 + n / 100, "low": 0.4, "high": 0.9, "examples": 9}
              for n in (10, 20)]  # fmt: skip
    return {"labels": ["ham", "spam"], "counts": {"ham": 3, "spam": 4}, "others": 0, "done": 7,
            "skipped": 1, "total": 90, "can_undo": True, "curve": points, "example": example,
            **changes}  # fmt: skip


def test_keys_ask_and_the_page_shows() -> None:
    found = press("2usx9", [(True, state())])
    assert found["calls"] == [
        ["api/state", "GET", None],
        ["api/label", "POST", '{"id":"f00","label":"spam"}'],
        ["api/undo", "POST", "{}"],
        ["api/skip", "POST", '{"id":"f00"}'],
    ], "x and 9 are no labels here"
    shown = found["shots"][-1]
    assert shown["text"] == "<img src=x onerror=alert(1)>"
    assert shown["progress"] == "7 labelled, 1 skipped, of 90"
    assert "the model: spam, 87.5 %" in shown["about"] and "a.csv, line 2" in shown["about"]
    assert shown["choices"] == "1ham32spam4" and found["chosen"] == [[], ["guess"]]
    assert found["shortcuts"] == ["1", "2"] and found["lang"] == "en"
    assert "70.0 % (40.0 % to 90.0 %) on 9 texts" in shown["curve-text"]
    (line,) = [a["points"] for name, a in found["svg"] if name == "polyline"]
    assert len(line.split()) == 2
    assert not {name for name, _ in found["svg"]} - {
        "line",
        "text",
        "polygon",
        "polyline",
        "circle",
    }


def test_chinese() -> None:
    found = press("", [(True, state())], "zh-CN")
    shown = found["shots"][-1]
    assert found["lang"] == "zh-CN" and shown["progress"] == "已标注 7，跳过 1，共 90"
    assert "模型猜测：spam" in shown["about"] and shown["language"] == "English"


def test_the_end_and_a_refusal() -> None:
    end = state(example=None, curve=[])
    found = press("1", [(True, state()), (False, {"error": "no room"})])
    assert found["shots"][-1]["problem"] == "no room"
    assert found["shots"][-1]["text"].startswith("<img"), "what was shown stays"
    found = press("1s", [(True, end)])
    assert len(found["calls"]) == 1 and found["shots"][-1]["text"].startswith("Every text")
