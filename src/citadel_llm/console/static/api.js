// The gateway's API, with the viewer's key. The key is in this module alone, and in the tab's session storage if wanted.

const STORED = "citadel-key";
const TIMEOUT_MS = 15_000;
let key = sessionStorage.getItem(STORED) ?? "";

export class Refusal extends Error {
  /** `status` 0: no answer at all. */
  constructor(status, code, message, retryAfter = "") {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }

  /** For the person who looks. */
  get words() {
    switch (this.status) {
      case 0: return `No answer from the gateway: ${this.message}`;
      case 401: return `This key is not accepted here: ${this.message}`;
      case 403: return `Not with this key: ${this.message}`;
      case 501: return `Not set up on this server: ${this.message}`;
      case 503: return `Not available at the moment${this.retryAfter && `, try again in ${this.retryAfter} s`}: ${this.message}`;
      default: return `${this.message} (${this.status})`;
    }
  }
}

export const hasKey = () => key !== "";

export function useKey(given, keep) {
  key = given;
  if (keep) sessionStorage.setItem(STORED, given);
  else sessionStorage.removeItem(STORED);
}

export const forgetKey = () => useKey("", false);

/** The response, whatever its body is. Throws Refusal; and AbortError where `signal` says so. */
export async function send(method, path, { body, signal } = {}) {
  const headers = { authorization: `Bearer ${key}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ?? AbortSignal.timeout(TIMEOUT_MS),
      cache: "no-store", credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "unreachable", error.name === "TimeoutError" ? "it took too long." : "is it up, and this machine online?");
  }
  if (response.ok) return response;
  let found = {};
  try {
    found = (await response.json()).error ?? {};
  } catch { /* not the gateway's own words */ }
  throw new Refusal(response.status, found.code ?? "", String(found.message ?? "The answer says no more than its status."),
    response.headers.get("retry-after") ?? "");
}

/** What an endpoint answers, of JSON. */
export async function call(method, path, body) {
  const response = await send(method, path, { body });
  return response.status === 204 ? null : response.json();
}

/**
 * The events of a streamed answer, as parsed JSON. Throws Refusal where the stream itself tells of an error.
 * A stream may be cut anywhere: in the middle of a line, and of a letter.
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const text = line.slice(5).trim();
      if (text === "[DONE]") return;
      const event = JSON.parse(text);
      if (event.error) throw new Refusal(response.status, event.error.code, String(event.error.message));
      yield event;
    }
  }
}
