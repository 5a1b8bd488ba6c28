// Parts that every tab is made of. Text is put in as text and nothing else: no string becomes HTML.

import { say } from "./words.js";

/** An element. `on` holds listeners, `word` a word of `words.js`; strings among the children are text. */
export function el(tag, { on = {}, word, wordAs = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true || value === false) element.toggleAttribute(name, value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  if (word) say(element, word);
  for (const [place, key] of Object.entries(wordAs)) say(element, key, { as: place });
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

let numbers = 0;

/** A field under its label. */
export function labelled(key, field) {
  field.id ||= `field-${++numbers}`;
  return el("label", { class: "field", for: field.id }, el("span", { word: key }), field);
}

/** A choice among models; a plain name where there is one. */
export function models(able, key = "model") {
  const options = able.map((model) => el("option", { value: model.id }, model.id));
  const select = el("select", { class: "model", dir: "auto", wordAs: { "aria-label": key } }, ...options);
  select.disabled = able.length === 1;
  return select;
}

/** A field of several lines that grows with what is in it. */
export function lines(attributes) {
  const field = el("textarea", { rows: 1, dir: "auto", spellcheck: "false", ...attributes });
  const grow = () => {
    field.style.height = "auto";
    field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight * 0.45)}px`;
  };
  field.addEventListener("input", grow);
  field.grow = grow;
  return field;
}

/** Whether a key press is the end of a word in an input method, not a command. */
export const composing = (event) => event.isComposing || event.keyCode === 229;

/** ← → (and Home, End) walk among some elements, of which Tab meets one. */
export function walk(container, selector) {
  container.addEventListener("keydown", (event) => {
    const all = [...container.querySelectorAll(selector)];
    const at = all.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at < 0 || to === undefined || !all[to]) return;
    event.preventDefault();
    for (const one of all) one.tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
}

/** "12 %", "0.3 %". */
export function percent(share) {
  const value = 100 * share;
  return `${value >= 10 || value === 0 ? value.toFixed(0) : value >= 0.095 ? value.toFixed(1) : "<0.1"} %`;
}

/** What is kept in this browser: the language and the theme. */
export function kept(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`inkstone-${name}`, value);
    return localStorage.getItem(`inkstone-${name}`);
  } catch {
    return null; // a browser that keeps nothing
  }
}

/** Tell what went wrong at the foot of the page, or nothing any more. */
export function problem(text) {
  const place = document.getElementById("problem");
  place.textContent = text ?? "";
  place.hidden = !text;
}

/** A line that tells what is going on: its word, or the message of an error. */
export function status() {
  const line = el("p", { class: "status", role: "status" });
  return {
    line,
    word(key, ...given) {
      line.classList.remove("wrong");
      if (key) say(line, key, { given });
      else this.text("");
    },
    text(text) {
      line.classList.remove("wrong");
      line.removeAttribute("data-said");
      line.textContent = text;
    },
    wrong(text) {
      this.text(text);
      line.classList.add("wrong");
    },
  };
}
