// Who looks at whom: the heads of a layer as small pictures, one of them large, and token by token.

import { ask } from "./ask.js";
import { composing, el, labelled, lines, models, percent, status, walk } from "./parts.js";
import { word } from "./words.js";

const LARGE = 640; // pixels of the large picture

export function attention(able) {
  const model = models(able);
  const input = lines({ rows: 2, wordAs: { placeholder: "textHint" } });
  const layer = el("select", { class: "layer" });
  const layers = labelled("layer", layer);
  const state = status();
  const out = el("div", { class: "looking", hidden: true });
  const heads = el("div", { class: "heads", role: "radiogroup", wordAs: { "aria-label": "heads" } });
  const readers = el("p", { class: "text tokens", dir: "auto" });
  const read = el("p", { class: "text tokens", dir: "auto" });
  const picture = el("canvas", { role: "img", class: "matrix", wordAs: { "aria-label": "matrix" } });
  const told = el("p", { class: "hint", role: "status" });
  const colors = () => getComputedStyle(picture); // of the theme
  let found = null, head = -1, at = 0, latest = 0;
  layers.hidden = true;

  async function look() {
    const mine = ++latest;
    state.word("working");
    try {
      const body = { input: input.value, model: model.value, layer: Number(layer.value || 0) };
      const answer = await ask("v1/attention", body);
      if (mine !== latest) return;
      found = answer;
      state.word(found.cut ? "cut" : null);
      layers.hidden = found.layers < 2;
      layer.replaceChildren(...Array.from({ length: found.layers }, (_, i) => el("option", { value: i }, i + 1)));
      layer.value = found.layer;
      found.weights.push(mean(found.weights));
      head = found.weights.length - 1;
      at = found.rows.length - 1;
      draw();
    } catch (error) {
      state.wrong(error.message);
    }
  }

  function draw() {
    out.hidden = false;
    const last = found.weights.length - 1;
    const order = [last, ...Array.from({ length: last }, (_, i) => i)];
    heads.replaceChildren(...order.map((number) => {
      const name = number === last ? word("mean") : word("head", number + 1);
      const canvas = el("canvas", { "aria-hidden": "true" });
      paint(canvas, found.weights[number], 1, colors());
      return el("button", { class: "head", type: "button", role: "radio", "aria-checked": String(number === head),
        tabindex: number === head ? 0 : -1, on: { click: () => choose(number), focus: () => choose(number) } }, canvas, name);
    }));
    const apart = found.rows.length !== found.columns.length || found.rows.some((one, i) => one !== found.columns[i]);
    readers.replaceChildren(...found.rows.map((text, i) => token(text, i, true)));
    read.hidden = titles[0].hidden = titles[1].hidden = !apart;
    read.replaceChildren(...(apart ? found.columns.map((text, i) => token(text, i, false)) : []));
    show();
  }

  function token(text, i, reads) {
    const shown = text.replaceAll("\n", "↵") || "∅";
    if (!reads) return el("span", { class: "token" }, shown);
    const point = () => { at = i; show(); };
    return el("span", { class: "token", tabindex: i === at ? 0 : -1, role: "button",
      on: { mouseenter: point, focus: point, click: point } }, shown);
  }

  function choose(number) {
    head = number;
    const last = found.weights.length - 1;
    [...heads.children].forEach((one, i) => {
      const mine = (i === 0 ? last : i - 1) === number;
      one.setAttribute("aria-checked", String(mine));
      one.tabIndex = mine ? 0 : -1;
    });
    show();
  }

  /** Shade what the token in question looks at, and say the most of it. */
  function show() {
    const weights = found.weights[head], row = weights[at];
    const most = Math.max(...row, 1e-9);
    const shaded = read.hidden ? readers : read;
    [...readers.children].forEach((one, i) => one.classList.toggle("chosen", i === at));
    [...shaded.children].forEach((one, i) => one.style.setProperty("--doubt", (row[i] / most).toFixed(3)));
    const best = row.map((share, i) => [share, i]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const quoted = (text) => `“${text.trim() || "␣"}”`;
    told.textContent = `${quoted(found.rows[at])} ${word("looks")} ${best.map(([share, i]) => `${quoted(found.columns[i])} ${percent(share)}`).join(", ")}`;
    paint(picture, weights, LARGE, colors(), at);
  }

  const form = el("form", { class: "asking", on: { submit: (event) => {
    event.preventDefault();
    if (!input.value.trim()) return input.focus();
    look();
  } } },
  labelled("text", input),
  el("div", { class: "row" }, labelled("model", model), layers, el("button", { class: "main", type: "submit", word: "attendGo" })));
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !composing(event)) form.requestSubmit();
  });
  layer.addEventListener("change", look);
  model.addEventListener("change", () => { layer.replaceChildren(); layers.hidden = true; });
  const titles = [el("h3", { word: "written" }), el("h3", { word: "read" })];
  out.append(heads, el("div", { class: "large" },
    el("div", {}, titles[0], readers, titles[1], read, told),
    el("figure", {}, picture, el("figcaption", { class: "hint", word: "matrix" }))));
  walk(heads, ".head");
  walk(readers, ".token");
  new MutationObserver(() => found && draw()).observe(document.documentElement, { attributeFilter: ["data-theme", "lang"] });
  return el("div", { class: "attend" }, el("p", { class: "hint", word: "attendText" }), form, state.line, out);
}

function mean(weights) {
  return weights[0].map((row, i) => row.map((_, j) => weights.reduce((sum, head) => sum + head[i][j], 0) / weights.length));
}

/** A picture of T rows and S columns: the more a row looks at a column, the more ink. */
function paint(canvas, weights, pixels, colors, chosen) {
  const [height, width] = [weights.length, weights[0].length];
  const size = Math.max(1, Math.floor(pixels / Math.max(width, height)));
  [canvas.width, canvas.height] = [width * size, height * size];
  const brush = canvas.getContext("2d");
  brush.fillStyle = colors.color;
  weights.forEach((row, i) => row.forEach((share, j) => {
    brush.globalAlpha = Math.sqrt(share); // small ones can be seen, too
    brush.fillRect(j * size, i * size, size, size);
  }));
  if (chosen === undefined) return;
  brush.globalAlpha = 1;
  brush.strokeStyle = colors.outlineColor;
  brush.lineWidth = Math.max(1, size / 8);
  brush.strokeRect(brush.lineWidth / 2, chosen * size + brush.lineWidth / 2, width * size - brush.lineWidth, size - brush.lineWidth);
}
