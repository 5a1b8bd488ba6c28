// What a model was trained for: classify, tag, translate, answer, summarize.

import { ask } from "./ask.js";
import { composing, el, labelled, lines, models, percent, status } from "./parts.js";
import { word } from "./words.js";

const COLORS = 8; // of tags, in style.css
const MOST_LABELS = 12;

/** A form of some fields with a button; `work(values, model, out)` fills in the result. */
function form(able, fields, work) {
  const model = models(able);
  const inputs = Object.entries(fields).map(([name, { label, hint, rows }]) =>
    [name, label, lines({ rows, wordAs: hint ? { placeholder: hint } : {} })]);
  const run = el("button", { class: "main", type: "submit", word: "run" });
  const state = status();
  const out = el("div", { class: "result", "aria-live": "polite" });
  let latest = 0;
  const submit = async (event) => {
    event.preventDefault();
    const empty = inputs.find(([, , field]) => !field.value.trim());
    if (empty) return empty[2].focus();
    const mine = ++latest;
    state.word("working");
    try {
      const values = Object.fromEntries(inputs.map(([name, , field]) => [name, field.value]));
      const found = await work(values, model.value, (error) => state.wrong(error.message));
      if (mine !== latest) return; // asked again meanwhile
      state.word(null);
      out.replaceChildren(...found);
    } catch (error) {
      state.wrong(error.message);
    }
  };
  const element = el("form", { class: "asking", on: { submit } },
    ...inputs.map(([, label, field]) => labelled(label, field)),
    el("div", { class: "row" }, labelled("model", model), run));
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !composing(event)) element.requestSubmit();
  });
  return el("div", { class: "task" }, element, state.line, out);
}

const text = { input: { label: "text", hint: "textHint", rows: 4 } };

export function classify(able) {
  return form(able, text, async ({ input }, model, wrong) => {
    const { results: [found] } = await ask("v1/classify", { input, model });
    const why = el("div", { class: "why" });
    const explains = able.find((one) => one.id === model).can.includes("attribute");
    const explain = async (label) => {
      for (const bar of bars.children) bar.setAttribute("aria-pressed", String(bar.dataset.label === label));
      try {
        const reasons = await ask("v1/attribute", { input, model, label });
        why.replaceChildren(...reason(reasons));
      } catch (error) {
        wrong(error);
      }
    };
    const scores = Object.entries(found.scores).slice(0, MOST_LABELS);
    const bars = el("div", { class: "bars" }, ...scores.map(([label, score]) => {
      const bar = el("button", { class: "bar-of", type: "button", "data-label": label, on: { click: () => explain(label) } },
        el("span", { class: "name", dir: "auto" }, label), el("span", { class: "track" }, el("span", { class: "fill" })),
        el("span", { class: "share" }, percent(score)));
      bar.style.setProperty("--share", score.toFixed(4));
      bar.classList.toggle("best", found.labels.includes(label));
      bar.disabled = !explains;
      return bar;
    }));
    if (explains) explain(found.label);
    return [el("p", { class: "verdict", dir: "auto" }, found.labels.join(", ") || "–"), bars, why];
  });
}

/** The words of a text, shaded by what they say for a label or against it. */
function reason(found) {
  const most = Math.max(...found.words.map((one) => Math.abs(one.weight)), 1e-9);
  const letters = Array.from(found.text); // places are counted in characters, not in halves of them
  const shown = el("p", { class: "text serif shaded", dir: "auto" });
  let at = 0;
  for (const one of found.words) {
    const part = el("span", { class: one.weight >= 0 ? "pro" : "contra", tabindex: 0 }, letters.slice(one.start, one.end).join(""));
    const told = `${one.weight >= 0 ? "+" : "−"}${Math.abs(one.weight).toFixed(2)}`;
    part.title = `${word(one.weight >= 0 ? "for" : "against")} ${told}`;
    part.dataset.weight = told;
    part.style.setProperty("--weight", (Math.abs(one.weight) / most).toFixed(3));
    shown.append(letters.slice(at, one.start).join(""), part);
    at = one.end;
  }
  shown.append(letters.slice(at).join(""));
  return [el("h2", { dir: "auto" }, word("why", found.label)),
    found.words.length ? shown : el("p", { class: "hint", word: "noWords" }),
    el("p", { class: "legend" }, el("span", { class: "pro" }, word("for")), el("span", { class: "contra" }, word("against")),
      el("span", { class: "hint", word: "whyText" }))];
}

/** Words under their tags; neighbors of one span (B-, I-, E-, …) as one. */
export function spans(tokens, tags) {
  const found = [];
  tags.forEach((tag, i) => {
    const [, how, kind] = /^([BIESLU])-(.*)$/su.exec(tag) ?? [null, null, tag === "O" ? null : tag];
    const last = found.at(-1);
    const joins = kind !== null && last?.kind === kind && ["I", "E", "L"].includes(how);
    if (joins) last.end = i + 1;
    else found.push({ kind, start: i, end: i + 1 });
  });
  return found.map((span) => ({ ...span, tokens: tokens.slice(span.start, span.end) }));
}

export function tag(able) {
  return form(able, text, async ({ input }, model) => {
    const { results: [found] } = await ask("v1/tag", { input, model });
    const kinds = [...new Set(spans(found.tokens, found.tags).map((span) => span.kind).filter(Boolean))].sort();
    const shown = el("p", { class: "text serif tagged", dir: "auto" });
    let at = 0; // where the words stand in what was written; what is between them stays as it is
    const until = (token) => {
      const next = input.indexOf(token, at);
      if (next < 0 || input.slice(at, next).trim()) return " "; // the server reads it normalized
      const between = input.slice(at, next);
      at = next + token.length;
      return between;
    };
    for (const span of spans(found.tokens, found.tags)) {
      let inside = "", before = "";
      span.tokens.forEach((token, i) => {
        const between = until(token);
        if (i) inside += between + token;
        else [before, inside] = [between, token];
      });
      shown.append(before);
      if (span.kind === null) {
        shown.append(inside);
        continue;
      }
      const sure = Math.min(...found.scores.slice(span.start, span.end));
      const mark = el("mark", { class: `kind-${kinds.indexOf(span.kind) % COLORS}`, tabindex: 0 }, inside, el("small", {}, span.kind));
      mark.title = `${span.kind} · ${word("probability")} ${percent(sure)}`;
      shown.append(mark);
    }
    shown.append(input.slice(at).trim() ? "" : input.slice(at));
    return [shown, ...(kinds.length ? [] : [el("p", { class: "hint", word: "noSpans" })])];
  });
}

export function translate(able) {
  return form(able, text, async ({ input }, model) => {
    const { results: [found] } = await ask("v1/translate", { input, model });
    return [written(found.translation)];
  });
}

export function summarize(able) {
  return form(able, text, async ({ input }, model) => {
    const { results: [found] } = await ask("v1/summarize", { input, model });
    const told = word("shorter", count(found.summary), count(input));
    return [written(found.summary), el("p", { class: "hint" }, told)];
  });
}

export function answer(able) {
  const fields = { question: { label: "question", hint: "questionHint", rows: 1 },
    context: { label: "context", hint: "textHint", rows: 6 } };
  return form(able, fields, async ({ question, context }, model) => {
    const found = await ask("v1/answer", { question, context, model });
    if (!found.answer) return [el("p", { class: "hint", word: "noAnswer" })];
    const letters = Array.from(context);
    let [start, end] = [found.start, found.end];
    if (letters.slice(start, end).join("") !== found.answer) { // the server reads it normalized
      start = Array.from(context.slice(0, Math.max(0, context.indexOf(found.answer)))).length;
      end = context.includes(found.answer) ? start + Array.from(found.answer).length : start;
    }
    const mark = el("mark", { class: "kind-0" }, letters.slice(start, end).join(""));
    const shown = el("p", { class: "text serif", dir: "auto" }, letters.slice(0, start).join(""),
      ...(end > start ? [mark] : []), letters.slice(end).join(""));
    return [el("p", { class: "verdict", dir: "auto" }, found.answer),
      el("p", { class: "hint" }, `${word("probability")} ${percent(found.score)}`), shown];
  });
}

function written(told) {
  return told ? el("p", { class: "text serif written-text", dir: "auto" }, told) : el("p", { class: "hint", word: "nothing" });
}

/** Words, and Chinese characters one by one. */
const count = (told) => told.match(/\p{Script=Han}|[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu)?.length ?? 0;
