// Alerts, usage, keys and the audit log: lists, as the API gives them.

import { call } from "./api.js";
import { byId, el, pill, say, table } from "./dom.js";
import { milliseconds } from "./models.js";

const MOODS = { page: "bad", critical: "bad", warning: "fair", ticket: "fair" };
const OUTCOMES = { ok: "good", active: "good", refused: "fair", cancelled: "fair", expired: "fair", error: "bad", lost: "bad", revoked: "bad" };
const ROWS = 50;
const seen = (at) => (at === null || at === undefined ? "–" : new Date(typeof at === "number" ? at * 1000 : at).toLocaleString());
const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString());
const word = (value) => pill(el("span"), value, OUTCOMES[value] ?? "fair");

/** Fill a panel; what goes wrong is said in it, and nowhere else. */
async function fill(name, work) {
  try {
    say(byId(`${name}-said`), (await work()) ?? "");
  } catch (error) {
    say(byId(`${name}-said`), error.words ?? String(error));
  }
}

export const showAlerts = () => fill("alerts", async () => {
  const rows = byId("alert-rows");
  let found;
  try {
    found = await call("GET", "/admin/v1/alerts");
  } catch (error) {
    rows.replaceChildren(); // what was true before may be so no longer
    throw error;
  }
  rows.replaceChildren(...found.data.map((alert) => el("li", { class: "card" },
    el("div", { class: "bar" }, el("h3", {}, alert.name), pill(el("span"), alert.silenced ? "silenced" : alert.severity || "alert", MOODS[alert.severity] ?? "fair")),
    el("p", {}, alert.summary || alert.description),
    el("p", { class: "quiet" }, [alert.model && `model ${alert.model}`, alert.server && `server ${alert.server}`, `since ${seen(alert.since)}`].filter(Boolean).join(" · ")))));
  if (!found.data.length) return "Nothing is firing.";
  return `${found.data.length + found.more} firing${found.more ? `, the newest ${found.data.length} of them here` : ""}.`;
});

export const showUsage = (permissions) => fill("usage", async () => {
  const everybodys = permissions.includes("usage.read");
  const period = byId("usage-period").value;
  const found = await call("GET", `/admin/v1/usage${everybodys ? "" : "/me"}?period=${encodeURIComponent(period)}&limit=${ROWS}`);
  byId("usage-rows").replaceChildren(table(`Usage by ${period}`, [
    ["From", (row) => (period === "hour" ? seen(row.period_start) : row.period_start.slice(0, 10))],
    ["Model", (row) => row.model],
    ["User", (row) => row.user_name ?? "a key of the file"],
    ["Key", (row) => row.key_name],
    ["Requests", (row) => number(row.requests), "number"],
    ["Failed", (row) => number(row.failed_requests), "number"],
    ["Tokens in", (row) => number(row.prompt_tokens), "number"],
    ["Tokens out", (row) => number(row.completion_tokens), "number"],
    ["Cached", (row) => number(row.cached_requests), "number"],
    ["Mean latency", (row) => milliseconds(row.mean_latency_ms), "number"],
    // Where the site has prices.
    ...(found.currency ? [[`Cost, ${found.currency}`, (row) => (row.cost ?? 0).toFixed(4), "number"]] : []),
  ], found.data));
  const whose = everybodys ? "Everybody's" : "Your own";
  return found.data.length ? `${whose}${found.next ? `, the newest ${ROWS} sums` : ""}.` : `${whose}: nothing yet in this time.`;
});

export const showKeys = () => fill("keys", async () => {
  const found = await call("GET", `/admin/v1/keys?limit=${ROWS}`);
  byId("keys-rows").replaceChildren(table("Keys", [
    ["Name", (row) => row.name],
    ["User", (row) => row.user],
    ["Begins with", (row) => el("code", {}, row.prefix)],
    ["State", (row) => word(row.state)],
    ["May", (row) => (row.permissions ? row.permissions.join(", ") : "what its user may")],
    ["Models", (row) => (row.models ? row.models.join(", ") : "all of its user's")],
    ["Ends", (row) => (row.expires_at ? seen(row.expires_at) : "never")],
  ], found.data));
  return found.data.length ? (found.next ? `The newest ${ROWS}.` : "") : "There are none.";
});

export const showAudit = () => fill("audit", async () => {
  const found = await call("GET", `/admin/v1/audit?limit=${ROWS}`);
  byId("audit-rows").replaceChildren(table("What was done, the newest first", [
    ["When", (row) => seen(row.at)],
    ["What", (row) => row.action],
    ["Who", (row) => [row.user_name, row.key_name].filter(Boolean).join(" / ") || "nobody known"],
    ["Model", (row) => row.model],
    ["Outcome", (row) => word(row.outcome)],
    ["Status", (row) => row.status, "number"],
    ["Took", (row) => milliseconds(row.latency_ms), "number"],
    ["Request", (row) => el("code", {}, row.request_id)],
  ], found.data));
  return found.data.length ? `The newest ${found.data.length}, read at ${new Date().toLocaleTimeString()}.` : "Nothing is written down yet.";
});
