// The talk: turns of what the user said and what one model, or two side by side, answered.

import { stream } from "./ask.js";
import { composing, el, labelled, lines, models, status } from "./parts.js";
import { say, word } from "./words.js";

const MOST = 512; // tokens of an answer, unless the context is small
const NEAR = 120; // pixels from the end of the page at which it follows what is written

export function chat(able) {
  const turns = [];
  const log = el("div", { class: "log", role: "log" });
  const chosen = [models(able), models(able, "second")];
  const compare = el("button", { class: "quiet", type: "button", word: "compare", "aria-pressed": "false" });
  const fresh = el("button", { class: "quiet", type: "button", word: "fresh" });
  const input = lines({ class: "say", wordAs: { placeholder: "chatHint", "aria-label": "chatHint" } });
  const send = el("button", { class: "main", type: "submit", word: "send" });
  const context = Math.min(...able.map((model) => model.context || MOST * 4));
  const settings = settingsOf(Math.max(16, Math.min(MOST, Math.floor(context / 4))));
  const intro = el("div", { class: "intro" },
    el("h1", { word: "chatTitle" }), el("p", { class: "hint", word: "chatText" }));
  const composer = el("form", { class: "composer", on: { submit: submitted } }, input, send);

  chosen[1].hidden = true;
  compare.hidden = able.length < 2;
  if (able.length > 1) chosen[1].value = able[1].id;

  const going = () => turns.flatMap((turn) => turn.answers).filter((answer) => answer.control);

  function submitted(event) {
    event.preventDefault();
    if (going().length) return stop();
    const text = input.value.trim();
    if (!text) return input.focus();
    input.value = "";
    input.grow();
    put(text);
  }

  function stop() {
    for (const answer of going()) answer.control.abort();
  }

  /** Say something, and have it answered. */
  function put(text) {
    const names = compare.ariaPressed === "true" ? chosen.map((c) => c.value) : [chosen[0].value];
    const turn = { text, answers: names.map((model) => ({ model, text: "", control: null })) };
    turns.push(turn);
    show(turn);
    turn.element.scrollIntoView({ block: "nearest" });
    turn.answers.forEach((_, column) => write(turn, column));
  }

  /** What a model is given: its own answers, and those of the first where it gave none yet. */
  function messages(turn, column) {
    const told = settings.system.value.trim() ? [{ role: "system", content: settings.system.value }] : [];
    for (const before of turns.slice(0, turns.indexOf(turn))) {
      const answer = before.answers[column] ?? before.answers[0];
      if (!answer.text) continue; // it failed, and would be a talk to oneself
      told.push({ role: "user", content: before.text }, { role: "assistant", content: answer.text });
    }
    return [...told, { role: "user", content: turn.text }];
  }

  async function write(turn, column) {
    const answer = turn.answers[column];
    answer.control = new AbortController();
    answer.text = "";
    const shown = document.createTextNode("");
    answer.place.replaceChildren(shown);
    answer.place.classList.add("growing");
    answer.state.word("writing");
    buttons();
    const body = { model: answer.model, messages: messages(turn, column),
      stream_options: { include_usage: true }, ...settings.values() };
    const began = performance.now();
    try {
      let used = 0, why = null;
      for await (const event of fitting(body, answer.control.signal)) {
        used = event.usage?.completion_tokens ?? used;
        const choice = event.choices[0];
        why = choice?.finish_reason ?? why;
        const piece = choice?.delta?.content;
        if (!piece) continue;
        answer.text += piece;
        follow(() => shown.appendData(piece));
      }
      const told = used ? [word("rate", used, (performance.now() - began) / 1000)] : [];
      if (why === "length") told.push(word("full"));
      if (body.forgot) told.push(word("forgot", body.forgot));
      answer.state.text(told.join(" · "));
    } catch (error) {
      if (error.name === "AbortError") answer.state.word("stopped");
      else answer.state.wrong(error.message);
    }
    answer.control = null;
    answer.place.classList.remove("growing");
    buttons();
  }

  /** A stream of the answer; where the talk is longer than the context, of its end. */
  async function* fitting(body, signal) {
    for (;;) {
      try {
        const { forgot, ...told } = body;
        return yield* stream("v1/chat/completions", told, signal);
      } catch (error) {
        const first = body.messages.findIndex((message) => message.role === "user");
        if (error.code !== "context_length_exceeded" || body.messages.length - first < 3) throw error;
        body.messages.splice(first, 2); // what was said first, and its answer
        body.forgot = (body.forgot ?? 0) + 1;
      }
    }
  }

  /** Change something, and stay at the end of the page if that is where the reader is. */
  function follow(change) {
    const page = document.scrollingElement;
    const near = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR;
    change();
    if (near) page.scrollTop = page.scrollHeight;
  }

  function show(turn) {
    const text = el("div", { class: "text", dir: "auto" }, turn.text);
    turn.said = el("div", { class: "said" }, text, el("div", { class: "acts" },
      el("button", { class: "quiet edit", type: "button", word: "edit", on: { click: () => edit(turn) } })));
    const answers = turn.answers.map((answer, column) => {
      answer.place = el("div", { class: "text serif", dir: "auto" });
      answer.state = status();
      const copy = el("button", { class: "quiet copy", type: "button", word: "copy",
        on: { click: () => navigator.clipboard?.writeText(answer.text).then(() => say(copy, "copied")) } });
      answer.retry = el("button", { class: "quiet retry", type: "button", word: "retry",
        on: { click: () => write(turn, column) } });
      return el("article", { class: "answer" }, el("h3", { dir: "auto" }, answer.model), answer.place,
        el("div", { class: "acts" }, answer.state.line, answer.retry, copy));
    });
    turn.element = el("div", { class: "turn" }, turn.said,
      el("div", { class: `answers ${answers.length > 1 ? "two" : ""}` }, ...answers));
    log.append(turn.element);
  }

  /** Say it otherwise: what came after is forgotten. */
  function edit(turn) {
    if (turn.said.querySelector("textarea")) return;
    stop();
    const field = lines({ wordAs: { "aria-label": "edit" } });
    field.value = turn.text;
    const back = () => { form.replaceWith(...kept); input.focus(); };
    const again = (event) => {
      event?.preventDefault();
      const text = field.value.trim();
      if (!text) return field.focus();
      for (const gone of turns.splice(turns.indexOf(turn))) gone.element.remove();
      put(text);
      input.focus();
    };
    const form = el("form", { class: "editing", on: { submit: again } }, field, el("div", { class: "acts" },
      el("button", { class: "quiet", type: "button", word: "cancel", on: { click: back } }),
      el("button", { class: "main", type: "submit", word: "send" })));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); back(); }
      if (event.key === "Enter" && !event.shiftKey && !composing(event)) again(event);
    });
    const kept = [...turn.said.children];
    turn.said.replaceChildren(form);
    field.grow();
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  function buttons() {
    const busy = going().length > 0;
    say(send, busy ? "stop" : "send");
    send.classList.toggle("stop", busy);
    for (const turn of turns) {
      for (const answer of turn.answers) answer.retry.hidden = busy || turn !== turns.at(-1);
    }
    intro.hidden = turns.length > 0;
    fresh.hidden = turns.length === 0;
  }

  input.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      if (!going().length) composer.requestSubmit();
    }
    if (event.key === "ArrowUp" && !input.value && turns.length) {
      event.preventDefault();
      edit(turns.at(-1));
    }
  });
  compare.addEventListener("click", () => {
    const on = compare.ariaPressed !== "true";
    compare.ariaPressed = String(on);
    chosen[1].hidden = !on;
  });
  fresh.addEventListener("click", () => {
    stop();
    turns.length = 0;
    log.replaceChildren();
    buttons();
    input.focus();
  });
  const panel = el("div", { class: "chat" },
    el("div", { class: "bar" }, ...chosen, compare, el("span", { class: "gap" }), fresh),
    intro, log, el("div", { class: "foot" }, composer, settings.element));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && panel.offsetParent) stop();
  });
  queueMicrotask(buttons);
  return panel;
}

function settingsOf(tokens) {
  const system = lines({ rows: 2 });
  const temperature = el("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0.8 });
  const most = el("input", { type: "number", min: 1, max: 100000, step: 1, value: tokens });
  const seed = el("input", { type: "number", min: 0, step: 1 });
  const element = el("details", { class: "settings" }, el("summary", { word: "settings" }),
    labelled("system", system),
    el("div", { class: "row" }, labelled("temperature", temperature), labelled("tokens", most), labelled("seed", seed)));
  /** What differs from the defaults of the server; an empty field says nothing. */
  const values = () => Object.fromEntries(
    [["temperature", temperature], ["max_tokens", most], ["seed", seed]]
      .filter(([, field]) => field.value !== "").map(([name, field]) => [name, Number(field.value)]));
  return { system, element, values };
}
