// Figures out of two documents of /dashboard/state.json, and how they are written. Pure.

const NOTHING = "–";
const LEAST_USD = 1e-6;
const CENTS = { minimumFractionDigits: 2, maximumFractionDigits: 2 };

/** `now` less `base`: what happened in between. Without `base`, since the router's start. */
export function between(base, now) {
  const gained = (of) => of(now) - (base ? of(base) : 0);
  const counts = (of) => subtractCounts(of(now), base && of(base));
  const histogram = (of) => subtractHistograms(of(now), base && of(base));
  return {
    seconds: Math.max(now.at - (base ? base.at : now.started_at), 0.001),
    outcomes: counts((s) => s.requests.outcomes),
    refusals: counts((s) => s.requests.refusals),
    withinObjectives: gained((s) => s.requests.within_objectives),
    generated: gained((s) => s.tokens.generated),
    prompt: gained((s) => s.tokens.prompt),
    ttft: histogram((s) => s.latency.time_to_first_token_s),
    itl: histogram((s) => s.latency.inter_token_latency_s),
    tps: histogram((s) => s.latency.user_tokens_per_second),
    transfers: counts((s) => s.transfers),
    paid: counts((s) => perPool(s, "paid_usd")),
    computing: counts((s) => perPool(s, "computing_usd")),
    reasons: counts((s) => s.cost.by_reason),
  };
}

function perPool(state, field) {
  return Object.fromEntries(state.cost.pools.map((pool) => [pool.pool, pool[field]]));
}

function subtractCounts(now, base) {
  return Object.fromEntries(Object.entries(now).map(([name, value]) => [name, value - (base?.[name] ?? 0)]));
}

function subtractHistograms(now, base) {
  const before = new Map(base?.buckets ?? []);
  return {
    buckets: now.buckets.map(([end, count]) => [end, count - (before.get(end) ?? 0)]),
    count: now.count - (base?.count ?? 0),
  };
}

export function sum(counts) {
  return Object.values(counts).reduce((total, value) => total + value, 0);
}

/** As Prometheus' histogram_quantile: linear within a bucket; the last end for what lies above it. null where nothing was seen. */
export function quantile({ buckets, count }, share) {
  if (!count) return null;
  const rank = share * count;
  let [lower, below] = [0, 0];
  for (const [upper, upTo] of buckets) {
    if (upTo >= rank && upTo > below) return lower + ((upper - lower) * (rank - below)) / (upTo - below);
    [lower, below] = [upper, upTo];
  }
  return lower;
}

/** null where there is nothing to divide by. */
export function ratio(part, whole) {
  return whole > 0 ? part / whole : null;
}

// ---- how figures are written: each takes a number, or null for none

const written = (write) => (value) => (value === null || value === undefined || Number.isNaN(value) ? NOTHING : write(value));

const digits = (value) => (value === 0 ? "0" : value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toPrecision(2));

export const count = written((value) => Math.round(value).toLocaleString("en"));
export const number = written((value) => (value >= 1e4 ? Math.round(value).toLocaleString("en") : digits(value)));
export const percent = written((value) => `${(value * 100).toFixed(value > 0 && value < 0.0995 ? 1 : 0)}%`);
export const seconds = written((value) => (value < 1 ? `${digits(value * 1000)} ms` : `${digits(value)} s`));
export const exactSeconds = written((value) => (value < 1 ? `${Number((value * 1000).toPrecision(6))} ms` : `${value} s`));
export const dollars = written((value) => {
  if (value !== 0 && Math.abs(value) < LEAST_USD) return `<$${LEAST_USD.toFixed(6)}`;
  return `$${Math.abs(value) >= 1 ? value.toLocaleString("en", CENTS) : Number(value.toPrecision(4))}`; // as `serval cost`
});
export const bytes = written((value) => scaled(value, ["B", "kB", "MB", "GB", "TB"]));
export const bytesPerSecond = written((value) => `${bytes(value)}/s`);

export function duration(value) {
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

function scaled(value, units) {
  const power = value < 1 ? 0 : Math.min(Math.floor(Math.log10(value) / 3), units.length - 1);
  return `${digits(value / 1000 ** power)} ${units[power]}`;
}
