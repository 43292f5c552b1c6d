// Elements, made without a line of HTML: whatever came from a user or a model is text and stays text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes; a function among them listens to the event of that name, `false` and null leave one out. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Set a text only where it is another, so that a screen reader is not told the same again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Bring the children of `parent` to one for each item, and leave those that stay as they are, with their focus.
 * `make(item)` gives `{node, update(item)}`.
 */
export function keyed(parent, items, keyOf, make) {
  const parts = (parent.parts ??= new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, part] of parts) {
    if (!wanted.has(key)) {
      part.node.remove();
      parts.delete(key);
    }
  }
  items.forEach((item, index) => {
    const key = keyOf(item);
    if (!parts.has(key)) parts.set(key, make(item));
    const part = parts.get(key);
    if (parent.children[index] !== part.node) parent.insertBefore(part.node, parent.children[index] ?? null);
    part.update(item);
  });
}

/** A table: `columns` are [head, value of a row, class]. */
export function table(caption, columns, rows) {
  const head = columns.map(([title, , kind]) => el("th", { scope: "col", class: kind }, title));
  const body = rows.map((row) =>
    el("tr", {}, ...columns.map(([, value, kind]) => {
      const found = value(row);
      return el("td", { class: kind }, found instanceof Node ? found : String(found ?? "–"));
    })),
  );
  return el("table", {}, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
}

/** A word with a dot; the word says it, the colour only helps. */
export function pill(node, word, mood) {
  say(node, word);
  node.className = `pill ${mood}`;
  return node;
}

/** Ask before something is done; true where the answer is yes. */
export function ask(title, text, yes) {
  const dialog = byId("ask");
  say(byId("ask-title"), title);
  say(byId("ask-text"), text);
  say(byId("ask-yes"), yes);
  return new Promise((resolve) => {
    let said = false;
    byId("ask-yes").onclick = () => {
      said = true;
      dialog.close();
    };
    byId("ask-no").onclick = () => dialog.close();
    dialog.onclose = () => resolve(said);
    dialog.showModal();
    byId("ask-no").focus();
  });
}
