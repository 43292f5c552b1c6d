// Models, their replicas and the peers: state, what is under way, latency and traffic against what is required; drain.

import { call } from "./api.js";
import { chart } from "./chart.js";
import { ask, byId, el, keyed, pill, say } from "./dom.js";
import { History } from "./history.js";

const MOODS = { up: "good", ok: "good", starting: "fair", draining: "fair", waiting: "fair", degraded: "fair", unknown: "fair", down: "bad", full: "bad" };
const WORDS = { ok: "all is well", degraded: "some models are down", down: "no model answers" };

export const milliseconds = (value) => value === null || value === undefined ? "–"
  : value >= 10_000 ? `${(value / 1000).toFixed(0)} s` : value >= 999.5 ? `${(value / 1000).toFixed(1)} s` : value >= 10 ? `${value.toFixed(0)} ms` : `${value.toFixed(1)} ms`;
const rate = (value) => `${value >= 10 ? value.toFixed(0) : value.toFixed(1)}/s`;
const whole = (value) => value.toLocaleString();

/** Show a status. `again` is called after something was changed. */
export function showModels(status, again) {
  const may = status.caller.permissions.includes("operate");
  pill(byId("overall"), WORDS[status.status] ?? status.status, MOODS[status.status] ?? "fair").hidden = false;
  say(byId("read-at"), `read at ${new Date(status.at * 1000).toLocaleTimeString()} from instance ${status.instance}, version ${status.version}`);
  keyed(byId("peers"), Object.entries(status.peers), ([name]) => name, () => {
    const state = el("span");
    const name = el("span");
    return {
      node: el("li", {}, name, " ", state),
      update: ([title, word]) => {
        say(name, title);
        pill(state, word, MOODS[word] ?? "fair");
      },
    };
  });
  keyed(byId("cards"), status.models.map((model) => ({ ...model, at: status.at, availability: status.availability, may })), ({ id }) => id,
    (model) => card(model, again));
}

function card(model, again) {
  const history = new History();
  const title = el("h3", { id: `model-${model.id}` });
  const state = el("span");
  const facts = el("dl", { class: "facts" });
  const latency = chart("Latency", [
    { name: "p50", label: "median", show: milliseconds },
    { name: "p95", label: "95%", show: milliseconds },
  ]);
  const traffic = chart("Traffic", [
    { name: "rate", label: "answers", show: rate },
    { name: "errors", label: "failures", show: rate },
  ]);
  const replicas = el("ul", { class: "replicas", "aria-label": "Replicas" });
  const node = el("article", { class: "card", "aria-labelledby": title.id }, el("div", { class: "bar" }, title, state),
    el("p", { class: "quiet id" }, model.id === model.display_name ? model.kind : `${model.id} · ${model.kind}`),
    facts, el("div", { class: "charts" }, latency.node, traffic.node), replicas);
  return {
    node,
    update(now) {
      history.add(now.at, now);
      say(title, now.display_name);
      pill(state, now.state, MOODS[now.state] ?? "fair");
      factsOf(facts, now, history);
      const levels = [
        now.latency_ms && { name: "limit", label: "required", value: now.latency_ms },
        now.latency_target_ms && { name: "goal", label: "target", value: now.latency_target_ms },
      ].filter(Boolean);
      latency.update(history.points, levels);
      traffic.update(history.points, []);
      keyed(replicas, now.replicas.map((one) => ({ ...one, model: now })), ({ address }) => address, (one) => replica(one, again));
    },
  };
}

function factsOf(node, model, history) {
  const span = history.span;
  const when = history.readings.length > 1 ? `over ${spoken(span.seconds)}` : "since it began";
  const answered = span.answers ? 1 - span.failures / span.answers : null;
  const rows = [
    ["Mean latency", span.mean === null ? "no answers yet" : `${milliseconds(span.mean)} ${when}`, latencyMood(span.mean, model)],
    ["Answered", answered === null ? "no requests yet" : `${(answered * 100).toFixed(2)}% ${when}`,
      answered === null ? null : answered >= model.availability
        ? ["good", `at least ${(model.availability * 100).toFixed(1)}%`] : ["bad", `below ${(model.availability * 100).toFixed(1)}%`]],
    ["Under way", `${whole(model.in_flight)} at work, ${whole(model.queued)} waiting`, null],
    ["Tokens", `${whole(model.tokens.prompt ?? 0)} in, ${whole(model.tokens.completion ?? 0)} out`, null],
  ];
  keyed(node, rows, ([name]) => name, ([name]) => {
    const value = el("span");
    const verdict = el("span");
    return {
      node: el("div", {}, el("dt", {}, name), el("dd", {}, value, " ", verdict)),
      update([, text, mood]) {
        say(value, text);
        verdict.hidden = !mood;
        if (mood) pill(verdict, mood[1], mood[0]);
      },
    };
  });
}

function latencyMood(mean, model) {
  if (mean === null || !model.latency_ms) return null;
  if (model.latency_target_ms && mean <= model.latency_target_ms) return ["good", "within the target"];
  return mean <= model.latency_ms ? ["fair", "within what is required"] : ["bad", "slower than required"];
}

const spoken = (seconds) => (seconds >= 90 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds)} s`);

function replica(first, again) {
  const state = el("span");
  const address = el("code");
  const words = el("span", { class: "quiet" });
  const button = el("button", { type: "button", click: () => void toggle() });
  let now = first;

  async function toggle() {
    const { model, address: where, drained } = now;
    const others = model.replicas.filter((one) => one.address !== where && one.state === "up").length;
    const what = others ? "Its other replicas take its requests." : model.fallback.length
      ? `Nothing else serves the model: ${model.fallback.join(", ")} answers in its place, to callers that may use it.`
      : "Nothing else serves the model: its callers get 503 until it is put back.";
    if (!drained && !(await ask(`Drain ${where} of ${model.display_name}?`, `It finishes what it has and gets nothing new. ${what}`, "Drain"))) return;
    button.disabled = true;
    try {
      await call(drained ? "DELETE" : "PUT", `/admin/v1/drain/${encodeURIComponent(model.id)}?replica=${encodeURIComponent(where)}`);
      say(byId("drain-said"), `${model.display_name} at ${where} ${drained ? "is back in service" : "drains"}.`);
      await again();
    } catch (error) {
      say(byId("drain-said"), error.words ?? String(error));
    } finally {
      button.disabled = false;
      button.focus();
    }
  }

  return {
    node: el("li", {}, state, address, words, button),
    update(one) {
      now = one;
      pill(state, one.drained && one.state === "draining" ? "drained" : one.state, MOODS[one.state] ?? "fair");
      say(address, one.address);
      say(words, [
        `${one.in_flight} under way`,
        one.breaker !== "closed" && `breaker ${one.breaker.replace("_", " ")}`,
        one.ejected && "left out for its failures",
        one.last_error,
      ].filter(Boolean).join(" · "));
      button.hidden = !one.model.may;
      say(button, one.drained ? "Put back" : "Drain");
      button.setAttribute("aria-label", `${one.drained ? "Put back" : "Drain"} ${one.address} of ${one.model.display_name}`);
    },
  };
}
