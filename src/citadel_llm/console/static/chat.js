// A conversation with one model, streamed; its answers can be stopped and rated.

import { call, events, send } from "./api.js";
import { byId, el, say, svg } from "./dom.js";

let messages = [];
let running = null; // the AbortController of the answer that comes
let mayRate = false;

/** Offer the models that generate; what was chosen stays chosen. */
export function offerModels(models, permissions) {
  mayRate = permissions.includes("feedback");
  const select = byId("chat-model");
  const offered = models.filter(({ kind }) => kind === "generate");
  const now = [...select.options].map(({ value, textContent }) => `${value} ${textContent}`).join("\n");
  const label = ({ display_name: name, state }) => (state === "up" ? name : `${name} (${state})`);
  if (now === offered.map((model) => `${model.id} ${label(model)}`).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...offered.map((model) => el("option", { value: model.id }, label(model))));
  if (offered.some(({ id }) => id === chosen)) select.value = chosen;
}

export function startChat() {
  byId("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    void answer();
  });
  byId("chat-stop").addEventListener("click", () => running?.abort());
  byId("chat-clear").addEventListener("click", clearChat);
  byId("chat-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("chat-form").requestSubmit();
  });
}

/** Nothing is left of a conversation, also where an answer is on its way. */
export function clearChat() {
  running?.abort();
  running = null;
  messages = [];
  byId("turns").replaceChildren();
  say(byId("chat-said"), "");
  busy(false);
}

function busy(yes) {
  byId("chat-send").disabled = yes;
  byId("chat-stop").disabled = !yes;
  byId("turns").setAttribute("aria-busy", String(yes)); // it is read out when it is whole
}

function turn(who, text) {
  const words = el("p", { class: "words" }, text);
  const below = el("div", { class: "below" });
  const log = byId("turns");
  log.append(el("div", { class: `turn ${who === "You" ? "mine" : "theirs"}` }, el("p", { class: "speaker" }, who), words, below));
  log.scrollTop = log.scrollHeight;
  return { words, below };
}

async function answer() {
  const box = byId("chat-text");
  const text = box.value.trim();
  if (!text || running) return;
  const model = byId("chat-model").value;
  const control = (running = new AbortController());
  const talk = messages;
  busy(true);
  turn("You", text);
  say(byId("chat-said"), "Waiting for the answer…");
  const { words, below } = turn(byId("chat-model").selectedOptions[0]?.textContent ?? model, "");
  talk.push({ role: "user", content: text });
  box.value = "";
  const began = performance.now();
  let response = null;
  let said = "";
  let note;
  try {
    response = await send("POST", "/v1/chat/completions", {
      signal: control.signal,
      body: { model, messages: talk, stream: true, stream_options: { include_usage: true }, max_tokens: Number(byId("chat-tokens").value) || 512 },
    });
    let usage = null;
    for await (const event of events(response)) {
      const piece = event.choices?.[0]?.delta?.content ?? "";
      if (piece) {
        following(() => words.append(String(piece)));
        said += piece;
        if (running === control) say(byId("chat-said"), "Answering…");
      }
      usage = event.usage ?? usage;
    }
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    note = `Complete after ${seconds} s${usage ? `: ${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out` : ""}.`;
  } catch (error) {
    note = error.name === "AbortError" ? "Stopped." : error.words ?? `The answer broke off: ${error.message}`;
  }
  if (said) talk.push({ role: "assistant", content: said });
  else talk.pop(); // a question without an answer is not asked again with the next one
  if (running !== control) return; // begun anew meanwhile
  running = null;
  busy(false);
  say(byId("chat-said"), note);
  const id = response?.headers.get("x-request-id");
  following(() => {
    below.append(el("span", { class: "quiet" }, note));
    if (id && said && mayRate) rating(below, id);
  });
}

// Who looks at the end of the talk goes on doing so when something is added to it.
function following(add) {
  const log = byId("turns");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  add();
  if (follows) log.scrollTop = log.scrollHeight;
}

// Drawn, for not every system has a font with one.
const hand = (thumb) => svg("svg", { viewBox: "0 0 24 24", class: thumb, "aria-hidden": "true" },
  svg("path", { d: "M3 11h4v9H3zM7 11l4-8c1.7 0 2.6 1.1 2.3 2.7L12.7 9H19c1.4 0 2.3 1.2 1.9 2.6l-2 7c-.3.9-1 1.4-1.9 1.4H7z" }));

function rating(below, requestId) {
  const result = el("span", { class: "quiet", role: "status" });
  const buttons = [["up", "Good answer"], ["down", "Bad answer"]].map(([thumb, label]) =>
    el("button", { type: "button", class: "thumb", "aria-label": label, "aria-pressed": "false", title: label, click: (event) => void rate(thumb, event.currentTarget) }, hand(thumb)));

  async function rate(thumb, button) {
    const back = button.getAttribute("aria-pressed") === "true";
    try {
      if (back) await call("DELETE", `/v1/feedback/${encodeURIComponent(requestId)}`);
      else await call("POST", "/v1/feedback", { request_id: requestId, thumb });
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button && !back));
      say(result, back ? "Taken back." : "Thank you.");
    } catch (error) {
      say(result, error.words ?? String(error));
    }
  }
  below.append(...buttons, result);
}
