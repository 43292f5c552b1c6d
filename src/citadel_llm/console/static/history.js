// From counts that only grow to what happened in between: rates, quantiles, means.

const KEPT = 120; // readings: ten minutes at one in five seconds

export class History {
  constructor() {
    this.readings = []; // {at, model: what the status says of it}
    this.points = []; // {at, rate, errors, p50, p95, mean}: of each two readings that follow each other
  }

  add(at, model) {
    const last = this.readings.at(-1);
    if (last && at <= last.at) return;
    if (last && restarted(last.model, model)) this.readings = [];
    else if (last) this.points.push({ at, ...between(last, { at, model }) });
    this.readings.push({ at, model });
    this.readings = this.readings.slice(-KEPT);
    this.points = this.points.slice(-KEPT);
  }

  /** Over all readings; of the first one alone: since the gateway began to count. */
  get span() {
    const first = this.readings[0];
    const last = this.readings.at(-1);
    return this.readings.length > 1 ? between(first, last) : between(null, last);
  }
}

const total = (statuses) => Object.values(statuses).reduce((sum, count) => sum + count, 0);
const failed = (statuses) => Object.entries(statuses).reduce((sum, [status, count]) => sum + (status >= 500 ? count : 0), 0);

/** The counts of a host begin anew with it. */
const restarted = (before, now) =>
  total(now.statuses) < total(before.statuses) || (now.duration.counts.at(-1) ?? 0) < (before.duration.counts.at(-1) ?? 0);

/** `before` null: from nothing. */
function between(before, now) {
  const answers = total(now.model.statuses) - (before ? total(before.model.statuses) : 0);
  const errors = failed(now.model.statuses) - (before ? failed(before.model.statuses) : 0);
  const seconds = before ? now.at - before.at : NaN;
  const counts = now.model.duration.counts.map((count, index) => count - (before?.model.duration.counts[index] ?? 0));
  const sum = now.model.duration.sum_s - (before?.model.duration.sum_s ?? 0);
  const bounds = now.model.duration.bounds_s;
  const count = counts.at(-1) ?? 0;
  return {
    answers, failures: errors, seconds,
    rate: answers / seconds,
    errors: errors / seconds,
    mean: count ? (sum / count) * 1000 : null,
    p50: quantile(bounds, counts, 0.5),
    p95: quantile(bounds, counts, 0.95),
  };
}

/** Milliseconds that the part `q` was within, as Prometheus' histogram_quantile estimates it; null of nothing. */
export function quantile(bounds, counts, q) {
  const count = counts.at(-1) ?? 0;
  if (!count || !bounds.length) return null;
  const rank = q * count;
  const index = counts.findIndex((upTo) => upTo >= rank);
  if (index >= bounds.length) return bounds.at(-1) * 1000; // beyond the last bound: at least that
  const [low, below] = index ? [bounds[index - 1], counts[index - 1]] : [0, 0];
  const inside = counts[index] - below;
  return (low + (bounds[index] - low) * (inside ? (rank - below) / inside : 1)) * 1000;
}
