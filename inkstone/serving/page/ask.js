// What the server is asked: JSON in, JSON or a stream of events out. The key lives in this tab alone.

import { say, word } from "./words.js";

const KEY = "inkstone-key";
let asking = null; // the dialog that waits for a key, if any

/** What the server said instead of an answer; `code` is its name for programs, if it has one. */
export class Refused extends Error {
  constructor(message, code = null) {
    super(message);
    this.code = code;
  }
}

/** Ask for a key once, however many requests wait for it. */
function keyFromUser(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const input = document.getElementById("key-input");
    say(input, "keyLabel", { as: "aria-label" });
    document.getElementById("key-wrong").textContent = wrong ? word("keyWrong") : "";
    document.getElementById("key-form").onsubmit = (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      sessionStorage.setItem(KEY, input.value.trim());
      input.value = "";
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault(); // nothing can be done without one
    dialog.showModal();
    input.focus();
  });
  return asking;
}

async function request(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const text = body === undefined ? undefined : JSON.stringify(body);
    let response;
    try {
      response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: text, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(word("lost"));
    }
    if (response.ok) return response;
    const known = sessionStorage.getItem(KEY);
    if (response.status === 401) {
      if (known === key) { // else another request was given a new one meanwhile
        sessionStorage.removeItem(KEY);
        await keyFromUser(Boolean(key));
      }
      continue;
    }
    const told = await response.json().catch(() => null);
    throw new Refused(told?.error?.message ?? `${response.status} ${response.statusText}`, told?.error?.code);
  }
}

/** A JSON answer; without a body a GET. Throws `Refused`, or AbortError after `signal`. */
export async function ask(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/** The objects of a stream of events as they come; leaving it ends the answer on the server, too. */
export async function* stream(path, body, signal) {
  const response = await request(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (held + value).split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const line = part.split("\n").find((one) => one.startsWith("data: "));
        if (line === undefined || line === "data: [DONE]") continue;
        const found = JSON.parse(line.slice(6));
        if (found.error) throw new Refused(found.error.message);
        yield found;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refused) throw error;
    throw new Refused(word("lost")); // the connection broke
  } finally {
    reader.cancel().catch(() => {});
  }
}
