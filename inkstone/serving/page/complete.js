// A text goes on token by token: how likely each was, and what else could have stood in its place.

import { stream } from "./ask.js";
import { composing, el, labelled, lines, models, percent, status, walk } from "./parts.js";
import { say, word } from "./words.js";

const SHOWN = 8; // alternatives
const BROKEN = "\ufffd"; // stands for a part of a character

/** What tokens say, once it is whole characters: [{ text, logprob, top }]; the rest waits.

  A token may be a part of a character; its text comes with the last part. Such tokens become one
  piece, as likely as all of them together. */
export class Pieces {
  constructor() {
    this.tokens = [];
    this.text = "";
  }

  add(choice) {
    const scores = choice.logprobs;
    scores?.tokens.forEach((token, i) =>
      this.tokens.push({ text: token, logprob: scores.token_logprobs[i], top: scores.top_logprobs[i] ?? {} }));
    this.text += choice.text;
    const found = [];
    while (this.tokens.length) {
      const [first] = this.tokens;
      if (!first.text.includes(BROKEN) && this.text.startsWith(first.text)) {
        found.push(this._take(1, first.text.length));
        continue;
      }
      const next = this.tokens.findIndex((token, i) => i && !token.text.includes(BROKEN));
      const end = next < 0 ? this.text.length : this.text.indexOf(this.tokens[next].text);
      if (end <= 0 && !choice.finish_reason) break;
      const all = next < 0 || end <= 0;
      found.push(all ? this._take(this.tokens.length, this.text.length) : this._take(next, end));
    }
    return found;
  }

  _take(count, length) {
    const some = this.tokens.splice(0, count);
    const text = this.text.slice(0, length) || (count === 1 ? some[0].text : "");
    this.text = this.text.slice(length);
    return { text, logprob: some.reduce((sum, one) => sum + one.logprob, 0), top: some[0].top, parts: count };
  }
}

export function complete(able) {
  const model = models(able);
  const prompt = lines({ rows: 3, wordAs: { placeholder: "promptHint" } });
  const temperature = el("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0.8 });
  const most = el("input", { type: "number", min: 1, max: 100000, step: 1, value: 64 });
  const go = el("button", { class: "main", type: "submit", word: "go" });
  const state = status();
  const given = el("span", { class: "given" });
  const written = el("span", { class: "written" });
  const output = el("div", { class: "output text serif", dir: "auto", hidden: true }, given, written);
  const others = el("div", { class: "others", role: "group", hidden: true, wordAs: { "aria-label": "alternatives" } });
  const legend = el("p", { class: "legend", hidden: true },
    el("span", { word: "sure" }), el("span", { class: "scale", "aria-hidden": "true" }), el("span", { word: "unsure" }));
  let pieces = [], control = null, begin = "";

  async function write() {
    control = new AbortController();
    hide();
    say(go, "stop");
    go.classList.add("stop");
    output.hidden = legend.hidden = false;
    state.word("writing");
    const asked = new Pieces();
    const text = begin + pieces.map((piece) => piece.text).join("");
    const body = { model: model.value, prompt: text, max_tokens: Number(most.value) || 64,
      temperature: Number(temperature.value), logprobs: SHOWN };
    try {
      for await (const event of stream("v1/completions", body, control.signal)) {
        if (event.choices[0]) for (const piece of asked.add(event.choices[0])) show(piece);
      }
      const total = pieces.reduce((sum, piece) => sum + piece.logprob, 0);
      const count = pieces.reduce((sum, piece) => sum + piece.parts, 0);
      state.word("meanOf", count, Math.exp(-total / Math.max(1, count)).toFixed(2));
    } catch (error) {
      if (error.name === "AbortError") state.word("stopped");
      else state.wrong(error.message);
    }
    control = null;
    say(go, "go");
    go.classList.remove("stop");
  }

  function show(piece) {
    const p = Math.exp(piece.logprob);
    const element = el("span", { class: "token", tabindex: pieces.length ? -1 : 0, role: "button" }, piece.text);
    element.setAttribute("aria-label", `${piece.text} ${percent(p)}`);
    element.style.setProperty("--doubt", (1 - p).toFixed(3));
    element.classList.toggle("break", piece.text.includes("\n"));
    element.classList.toggle("void", piece.text === "");
    const at = pieces.push(piece) - 1;
    element.addEventListener("mouseenter", () => open(element, at));
    element.addEventListener("focus", () => open(element, at));
    element.addEventListener("click", () => open(element, at));
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "ArrowDown") return;
      event.preventDefault();
      others.querySelector("button:enabled")?.focus();
    });
    written.append(element);
  }

  /** What could have stood in the place of a piece, under it. */
  function open(element, at) {
    for (const one of written.children) one.classList.toggle("chosen", one === element);
    const piece = pieces[at];
    const rows = Object.entries(piece.top).sort((a, b) => b[1] - a[1]).map(([text, logprob]) => {
      const name = text === "" ? "∅" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
      const button = el("button", { type: "button", class: "other", on: { click: () => choose(at, text, logprob) } },
        el("span", { class: "name", dir: "auto" }, name), el("span", { class: "share" }, percent(Math.exp(logprob))));
      button.style.setProperty("--share", Math.exp(logprob).toFixed(4));
      button.classList.toggle("this", text === piece.text);
      button.disabled = text.startsWith("bytes:") || text === "" || control !== null;
      return button;
    });
    others.replaceChildren(el("p", { word: "alternatives" }), ...rows);
    others.hidden = false;
    const box = element.getBoundingClientRect(), around = output.getBoundingClientRect();
    const left = Math.min(box.left - around.left, around.width - others.offsetWidth - 8);
    others.style.left = `${Math.max(0, left)}px`;
    others.style.top = `${box.bottom - around.top + 6}px`;
    others.dataset.at = at;
  }

  /** Go on from another token than the one that was written. */
  function choose(at, text, logprob) {
    const { top } = pieces[at];
    pieces.length = at;
    [...written.children].slice(at).forEach((one) => one.remove());
    show({ text, logprob, top, parts: 1 });
    write();
  }

  function hide() {
    others.hidden = true;
    for (const one of written.children) one.classList.remove("chosen");
  }

  const form = el("form", { class: "asking", on: { submit: (event) => {
    event.preventDefault();
    if (control) return control.abort();
    begin = prompt.value || word("promptHint");
    prompt.value = begin;
    given.textContent = begin;
    pieces = [];
    written.replaceChildren();
    write();
  } } },
  labelled("prompt", prompt),
  el("div", { class: "row" }, labelled("model", model), labelled("temperature", temperature), labelled("tokens", most), go));
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !composing(event)) form.requestSubmit();
  });
  output.append(others);
  output.addEventListener("mouseleave", hide);
  walk(written, ".token");
  const panel = el("div", { class: "complete" }, el("p", { class: "hint", word: "completeText" }), form, output,
    el("div", { class: "below" }, state.line, legend));
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (control) return control.abort();
    const back = written.children[others.dataset.at];
    if (!others.hidden) back?.focus();
    hide();
  });
  return panel;
}
