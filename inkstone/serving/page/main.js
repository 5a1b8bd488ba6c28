// Begins: asks what the models can do, and shows a tab for each of it.

import { ask } from "./ask.js";
import { attention } from "./attention.js";
import { chat } from "./chat.js";
import { complete } from "./complete.js";
import { el, kept, problem, walk } from "./parts.js";
import { runs } from "./runs.js";
import { answer, classify, summarize, tag, translate } from "./tasks.js";
import { say, speak, speaks } from "./words.js";

const TABS = { chat, complete, classify, tag, translate, answer, summarize, attend: attention };
const at = (id) => document.getElementById(id);

function language(name) {
  speak(name);
  kept("language", name);
  say(at("language"), "other");
  say(at("language"), "otherName", { as: "aria-label" });
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  say(at("theme"), name === "dark" ? "light" : "dark");
}

function choose(name, focus) {
  for (const tab of at("tabs").children) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    at(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (!chosen) continue;
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (focus) tab.focus();
    at(tab.getAttribute("aria-controls")).dispatchEvent(new Event("shown"));
  }
  history.replaceState(null, "", `#${name}`);
}

function add(name, panel) {
  const tab = el("button", {
    id: `tab-${name}`, role: "tab", type: "button", word: name, "aria-controls": `panel-${name}`,
    on: { click: () => choose(name), focus: () => choose(name) },
  });
  at("tabs").append(tab);
  const attributes = { id: `panel-${name}`, role: "tabpanel", "aria-labelledby": tab.id, hidden: true };
  at("panels").append(el("section", attributes, panel));
}

async function begin() {
  language(kept("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  theme(kept("theme") ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => kept("theme") ?? theme(dark.matches ? "dark" : "light"));
  say(at("theme"), "toTheme", { as: "title" });
  say(at("tabs"), "tabs", { as: "aria-label" });
  at("language").addEventListener("click", () => language(speaks() === "en" ? "zh" : "en"));
  at("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    kept("theme", now);
    theme(now);
  });
  walk(at("tabs"), "[role=tab]");
  const [listed, watched] = [await ask("v1/models"), await ask("v1/runs")];
  for (const [verb, make] of Object.entries(TABS)) {
    const able = listed.data.filter((model) => model.can.includes(verb));
    if (able.length) add(verb, make(able));
  }
  if (watched.watching) add("runs", runs());
  const first = at("tabs").firstElementChild;
  if (!first) return at("panels").append(el("p", { class: "hint", word: "empty" }));
  const wanted = location.hash.slice(1);
  choose(at(`tab-${wanted}`) ? wanted : first.id.slice(4));
  document.body.dataset.ready = "";
}

begin().catch((error) => problem(error.message));
