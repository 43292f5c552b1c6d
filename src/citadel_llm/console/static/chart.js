// A small line chart of SVG: lines over time, and level lines for what is required. It redraws itself where it is.

import { el, say, svg } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [300, 130, 44, 6, 8, 18];

/**
 * `lines` are {name, label, show(value)}; `name` is a point's field and its class's end.
 * `update(points, levels)`: levels are {name, label, value}.
 */
export function chart(title, lines) {
  const plot = svg("g");
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "chart" }, plot, cursor);
  const legend = el("ul", { class: "legend" });
  const readout = el("p", { class: "readout quiet" });
  const node = el("figure", {}, el("figcaption", {}, title), picture, legend, readout);
  let drawn = { points: [], x: () => 0 };

  function update(points, levels) {
    const known = points.filter((point) => lines.some(({ name }) => point[name] !== null));
    const top = nice(Math.max(...known.flatMap((point) => lines.map(({ name }) => point[name] ?? 0)), ...levels.map(({ value }) => value), 0));
    const [first, last] = [points[0]?.at ?? 0, points.at(-1)?.at ?? 0];
    const x = (at) => LEFT + ((at - first) / Math.max(last - first, 1)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
    drawn = { points, x };
    plot.replaceChildren(
      ...[0, top / 2, top].flatMap((value) => [
        svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, value ? lines[0].show(value) : "0"),
      ]),
      ...levels.map(({ name, value }) => svg("line", { class: `level ${name}`, x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) })),
      ...lines.flatMap(({ name }) => drawnLine(points, name, x, y)),
      svg("text", { class: "tick", x: LEFT, y: HEIGHT - 5 }, points.length ? clock(first) : ""),
      svg("text", { class: "tick", x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, points.length > 1 ? clock(last) : ""),
    );
    const now = points.at(-1);
    const words = lines.map(({ name, label, show }) => `${label} ${now?.[name] == null ? "none" : show(now[name])}`);
    picture.setAttribute("aria-label", `${title}: ${points.length ? words.join(", ") : "no readings yet"}`
      + levels.map(({ label, value }) => `; ${label} ${lines[0].show(value)}`).join(""));
    const shown = [...lines.map(({ name, label }) => [name, label]), ...levels.map(({ name, label, value }) => [`level ${name}`, `${label} ${lines[0].show(value)}`])];
    legend.replaceChildren(...shown.map(([name, label]) => el("li", {}, swatch(name), label)));
    if (cursor.getAttribute("visibility") === "hidden") say(readout, points.length ? `now: ${words.join(", ")}` : "the second reading begins the chart");
  }

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const near = drawn.points.reduce((best, point) => (!best || Math.abs(drawn.x(point.at) - at) < Math.abs(drawn.x(best.at) - at) ? point : best), null);
    if (!near) return;
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, drawn.x(near.at));
    cursor.setAttribute("visibility", "visible");
    say(readout, `${clock(near.at)}: ${lines.map(({ name, label, show }) => `${label} ${near[name] === null ? "none" : show(near[name])}`).join(", ")}`);
  });
  picture.addEventListener("pointerleave", () => cursor.setAttribute("visibility", "hidden"));
  return { node, update };
}

/** The line of one field; it has a gap where nothing was answered, and a dot where a point stands alone. */
function drawnLine(points, name, x, y) {
  const runs = [[]];
  for (const point of points) {
    if (point[name] === null) runs.push([]);
    else runs.at(-1).push([x(point.at), y(point[name])]);
  }
  return runs.filter((run) => run.length).map((run) =>
    run.length === 1
      ? svg("circle", { class: `dot ${name}`, cx: run[0][0], cy: run[0][1], r: 2.5 })
      : svg("polyline", { class: `line ${name}`, points: run.map(([left, up]) => `${left.toFixed(1)},${up.toFixed(1)}`).join(" ") }),
  );
}

const swatch = (name) => svg("svg", { class: "swatch", viewBox: "0 0 18 4", "aria-hidden": "true" },
  svg("line", { class: name.startsWith("level") ? name : `line ${name}`, x1: 0, x2: 18, y1: 2, y2: 2 }));

const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** The next 1, 2 or 5 times a power of ten. */
function nice(value) {
  if (!(value > 0)) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((times) => times * step).find((bound) => bound >= value);
}
