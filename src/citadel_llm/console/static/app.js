// The page: who looks, which parts they see, and when what is asked for.

import { call, forgetKey, hasKey, useKey } from "./api.js";
import { clearChat, offerModels, startChat } from "./chat.js";
import { byId, el, say } from "./dom.js";
import { showModels } from "./models.js";
import { showAlerts, showAudit, showKeys, showUsage } from "./panels.js";

const STATUS_MS = 5_000;
const ALERTS_MS = 15_000;
const USAGE_MS = 60_000;

// Each part, and the permissions of which one opens it; the API decides, this only leaves out what it would refuse.
const PARTS = {
  models: ["models"],
  alerts: ["operate", "usage.read"],
  chat: ["inference"],
  usage: ["usage.read", "own-keys"],
  keys: ["keys.read", "own-keys"],
  audit: ["audit.read"],
};
let permissions = [];
let opened = false;
let session = 0; // another one begins with each key: what an earlier one asked for is not shown
const may = (part) => PARTS[part].some((permission) => permissions.includes(permission));

/** Calls `work` at an interval while the page is seen and somebody is signed in; never two at once. */
class Repeated {
  constructor(pause, work) {
    Object.assign(this, { pause, work, timer: 0, last: 0, running: null });
  }

  stop() {
    clearTimeout(this.timer);
  }

  /** Now, or as soon as the interval allows. */
  start() {
    this.stop();
    if (!document.hidden && hasKey()) this.timer = setTimeout(() => void this.now(), Math.max(0, this.last + this.pause - Date.now()));
  }

  async now() {
    this.stop();
    this.running ??= this.work().finally(() => {
      this.running = null;
      this.last = Date.now();
      this.start();
    });
    return this.running;
  }
}

const status = new Repeated(STATUS_MS, readStatus);
const lists = [
  new Repeated(ALERTS_MS, async () => { if (may("alerts")) await showAlerts(); }),
  new Repeated(USAGE_MS, async () => { if (may("usage")) await showUsage(permissions); }),
];

async function readStatus() {
  const mine = session;
  let found;
  try {
    found = await call("GET", "/admin/v1/status");
  } catch (error) {
    if (mine !== session) return;
    if (error.status === 401) leave(error.words);
    else if (error.status === 403 && !opened) leave(`${error.words} The console needs the permission to see the models.`);
    else trouble(`${error.words ?? error} What is shown may be old.`);
    return;
  }
  if (mine !== session) return;
  trouble("");
  permissions = found.caller.permissions;
  say(byId("who"), [found.caller.name, found.caller.key].filter(Boolean).join(" · "));
  const first = !opened;
  if (first) open();
  showModels(found, () => readStatus());
  offerModels(found.models, permissions);
}

function trouble(text) {
  say(byId("trouble"), text);
  byId("trouble").hidden = !text;
}

function open() {
  opened = true;
  byId("enter").hidden = true;
  byId("leave").hidden = false;
  const seen = Object.keys(PARTS).filter(may);
  for (const part of Object.keys(PARTS)) byId(part).hidden = !seen.includes(part);
  byId("places").replaceChildren(...seen.map((part) => el("a", { href: `#${part}` }, byId(`${part}-title`).textContent)));
  byId("places").hidden = false;
  byId("content").focus({ preventScroll: true });
  for (const list of lists) void list.now();
  if (may("keys")) void showKeys();
  if (may("audit")) void showAudit();
}

function leave(words = "") {
  session += 1;
  opened = false;
  permissions = [];
  forgetKey();
  for (const one of [status, ...lists]) one.stop();
  clearChat();
  for (const part of Object.keys(PARTS)) byId(part).hidden = true;
  for (const id of ["usage-rows", "keys-rows", "audit-rows", "alert-rows"]) byId(id).replaceChildren();
  for (const id of ["cards", "peers"]) {
    byId(id).replaceChildren();
    byId(id).parts = undefined;
  }
  for (const id of ["overall", "leave", "places"]) byId(id).hidden = true;
  say(byId("who"), "");
  trouble("");
  byId("enter").hidden = false;
  byId("enter-form").reset();
  say(byId("enter-said"), words);
  byId("key").focus();
}

byId("enter-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("key").value.trim();
  if (!/^[\x21-\x7e]{1,512}$/.test(given)) {
    say(byId("enter-said"), "That is no key: letters, digits and signs are expected, without spaces.");
    return;
  }
  useKey(given, byId("keep").checked);
  session += 1;
  say(byId("enter-said"), "Asking the gateway…");
  void status.now().then(() => {
    if (!opened && hasKey()) say(byId("enter-said"), byId("trouble").textContent);
  });
});
byId("leave").addEventListener("click", () => leave("Signed out."));
byId("keys-again").addEventListener("click", () => void showKeys());
byId("audit-again").addEventListener("click", () => void showAudit());
byId("usage-period").addEventListener("change", () => void showUsage(permissions));
document.addEventListener("visibilitychange", () => {
  for (const one of [status, ...(opened ? lists : [])]) {
    if (document.hidden) one.stop();
    else one.start();
  }
});

startChat();
if (hasKey()) void status.now();
else leave();
