// Runs in training: their losses as they come, as many side by side as are chosen.

import { ask } from "./ask.js";
import { el, status, svg } from "./parts.js";
import { word } from "./words.js";

const EVERY_MS = 2000;
const COLORS = 6; // of lines, in style.css
const [WIDEST, LEFT, RIGHT, TOP, BOTTOM] = [900, 46, 14, 14, 34]; // pixels
const HELD_OUT = "nats_per_token"; // the name that an evaluation has for the loss

export function runs() {
  const state = status();
  const list = el("div", { class: "runs" });
  const chart = svg("svg", { role: "img", class: "chart" });
  const readout = el("p", { class: "hint", role: "status" });
  const chosen = new Map(); // name → color
  const curves = new Map(); // name → what the server told
  let known = false, asking = false;

  async function refresh() {
    if (asking || !panel.offsetParent || document.hidden) return;
    asking = true;
    try {
      const { data } = await ask("v1/runs");
      if (!known && data.length) chosen.set(data[0].id, 0);
      known ||= data.length > 0;
      for (const name of [...chosen.keys()]) if (!data.some((run) => run.id === name)) chosen.delete(name);
      for (const name of chosen.keys()) curves.set(name, await ask(`v1/runs/${encodeURIComponent(name)}`));
      cards(data);
      draw();
      state.word(data.length ? null : "noRuns");
    } catch (error) {
      state.wrong(error.message);
    }
    asking = false;
  }

  function cards(data) {
    const order = [...data].sort((a, b) => b.in_training - a.in_training || a.id.localeCompare(b.id));
    const names = order.map((run) => run.id).join("\n");
    if (list.dataset.names !== names) { // only what is new, so that the focus stays where it is
      list.dataset.names = names;
      list.replaceChildren(...order.map((run) => {
        const box = el("input", { type: "checkbox", "aria-label": word("showRun", run.id) });
        box.addEventListener("change", () => toggle(run.id, box));
        return el("label", { class: "run" }, box, el("b", { dir: "auto" }, run.id), el("span", { class: "badge" }), el("span", { class: "figures" }));
      }));
    }
    order.forEach((run, i) => {
      const card = list.children[i];
      const color = chosen.get(run.id);
      card.querySelector("input").checked = color !== undefined;
      card.className = `run ${color === undefined ? "" : `chosen line-${color}`}`;
      const badge = card.querySelector(".badge");
      badge.textContent = word(run.in_training ? "inTraining" : "over");
      badge.classList.toggle("live", run.in_training);
      const told = [run.step === null ? null : word("steps", grouped(run.step), run.max_steps === null ? null : grouped(run.max_steps)),
        run.loss === null ? null : `${word("loss")} ${run.loss.toFixed(3)}`,
        run.in_training && run.tokens_per_s !== null ? word("perSecond", grouped(Math.round(run.tokens_per_s))) : null,
        run.in_training && run.remaining_s !== null ? word("left", lasting(run.remaining_s)) : null];
      card.querySelector(".figures").textContent = told.filter(Boolean).join(" · ");
    });
  }

  function toggle(name, box) {
    const free = Array.from({ length: COLORS }, (_, i) => i).find((i) => ![...chosen.values()].includes(i));
    if (box.checked && free === undefined) box.checked = false;
    else if (box.checked) chosen.set(name, free);
    else chosen.delete(name);
    refresh();
  }

  function draw() {
    const lines = [...chosen].flatMap(([name, color]) => {
      const run = curves.get(name);
      return [{ name, color, kind: "loss", points: run.losses }, { name, color, kind: "heldOut", points: run.scores[HELD_OUT] ?? [] }];
    }).filter((line) => line.points.length);
    const all = lines.flatMap((line) => line.points);
    const width = Math.min(WIDEST, chart.clientWidth || WIDEST), height = Math.round(160 + width / 5);
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`); // as wide as it is shown, so that letters keep their size
    if (!all.length) return chart.replaceChildren();
    const steps = Math.max(...all.map(([step]) => step), 1);
    let [low, high] = [Math.min(...all.map(([, loss]) => loss)), Math.max(...all.map(([, loss]) => loss))];
    const ticks = ticksOf(low, high);
    [low, high] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
    const x = (step) => LEFT + ((width - LEFT - RIGHT) * step) / steps;
    const y = (loss) => height - BOTTOM - ((height - TOP - BOTTOM) * (loss - low)) / (high - low || 1);
    const grid = ticks.flatMap((loss) => [
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(loss), y2: y(loss), class: "grid" }),
      svg("text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, String(loss))]);
    const across = ticksOf(0, steps).filter((step) => step <= steps).map((step) =>
      svg("text", { x: x(step), y: height - 12, "text-anchor": "middle" }, grouped(step)));
    const drawn = lines.flatMap(({ color, kind, points }) => [
      svg("polyline", { points: points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" "), class: `${kind} line-${color}` }),
      svg("circle", { cx: x(points.at(-1)[0]), cy: y(points.at(-1)[1]), r: 3.5, class: `dot line-${color}` })]);
    const cross = svg("line", { y1: TOP, y2: height - BOTTOM, class: "cross", visibility: "hidden" });
    chart.replaceChildren(...grid, ...across, ...drawn, cross);
    chart.setAttribute("aria-label", `${word("loss")} (${word("nats")})`);
    const last = () => {
      readout.textContent = lines.map((line) => `${line.name}: ${word(line.kind)} ${line.points.at(-1)[1].toFixed(3)}`).join(" · ");
    };
    chart.onpointermove = (event) => {
      const box = chart.getBoundingClientRect();
      const step = (((event.clientX - box.left) / box.width) * width - LEFT) / (width - LEFT - RIGHT) * steps;
      const nearest = (points) => points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
      cross.setAttribute("visibility", "visible");
      cross.setAttribute("x1", x(nearest(all)[0]));
      cross.setAttribute("x2", x(nearest(all)[0]));
      readout.textContent = `${word("step")} ${grouped(nearest(all)[0])} · ` + lines.map((line) => `${line.name}: ${word(line.kind)} ${nearest(line.points)[1].toFixed(3)}`).join(" · ");
    };
    chart.onpointerleave = () => { cross.setAttribute("visibility", "hidden"); last(); };
    last();
  }

  const panel = el("div", { class: "training" }, list, el("figure", { class: "card" }, chart,
    el("figcaption", {}, readout, el("p", { class: "legend" }, el("span", { class: "key-loss" }), el("span", { word: "loss" }),
      el("span", { class: "key-held" }), el("span", { word: "heldOut" }), el("span", { class: "hint", word: "nats" })))), state.line);
  setInterval(refresh, EVERY_MS);
  queueMicrotask(() => panel.parentElement.addEventListener("shown", refresh));
  document.addEventListener("visibilitychange", refresh);
  return panel;
}

const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** "1:05:20", "4:07". */
function lasting(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(s / 3600), Math.floor(s / 60) % 60, s % 60];
  return (parts[0] ? parts : parts.slice(1)).map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
}

/** Round numbers, four to seven of them, that reach from one value to the other. */
function ticksOf(low, high) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / 5, ten = 10 ** Math.floor(Math.log10(raw));
  const each = [1, 2, 2.5, 5, 10].map((n) => n * ten).find((n) => n >= raw);
  const first = Math.floor(low / each), count = Math.ceil(high / each) - first;
  return Array.from({ length: count + 1 }, (_, i) => Number(((first + i) * each).toPrecision(6)));
}
