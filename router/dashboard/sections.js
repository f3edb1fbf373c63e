// The page's sections: which figure stands where.

import { $, cell, figure, fill, meter, put, rows, say, spark } from "./draw.js";
import * as figures from "./figures.js";
import { Line } from "./history.js";

const { between, quantile, ratio, sum } = figures;
const FINE = ["stop", "length"];
const NEITHER = ["cancelled", "invalid", "unauthenticated", "rate_limited"]; // the caller's own doing
const MEANS = {
  stop: "ended by themselves",
  length: "reached their length",
  cancelled: "were cancelled",
  deadline: "missed their deadline",
  overloaded: "found no room",
  unavailable: "found no worker",
  prefill_failed: "could not be prefilled",
  transfer_failed: "lost their KV cache",
  internal: "met a bug",
};
const HEALTH = { live: "is-good", draining: "is-warn", silent: "is-bad", stalled: "is-bad" };

/** Everything but the lines, for what happened from `base` (null: the start) to `state`. */
export function show(base, state) {
  const past = between(base, state);
  head(state);
  tiles(state, past);
  workers(state);
  latency(state, past);
  outcomes(past);
  transfers(past);
  dollars(state, past);
}

function head({ router }) {
  say($("model"), router.model);
  say($("router"), `on ${router.name}`);
  say($("readiness"), router.why_not_ready ?? "ready");
  $("readiness").className = router.why_not_ready ? "pill is-bad" : "pill is-good";
  say($("version"), `Serval ${router.serval_version}`);
}

function tiles(state, past) {
  const { running, waiting } = state.requests;
  put("in-flight", running + waiting, figures.count);
  put("requests-running", running, figures.count);
  put("requests-waiting", waiting, figures.count);
  put("answered-rate", answered(past) / past.seconds, figures.number);
  put("token-rate", past.generated / past.seconds, figures.number);
  put("goodput-rate", past.withinObjectives / past.seconds, figures.number);
  put("goodput-share", goodputShare(past), figures.percent);
  put("tile-ttft", quantile(past.ttft, 0.5), figures.seconds);
  put("tile-ttft-p99", quantile(past.ttft, 0.99), figures.seconds);
  put("cost-hour", hourly(state), figures.dollars);
  put("cost-computing", ratio(sum(past.computing), sum(past.paid)), figures.percent);
}

function answered({ outcomes }) {
  return FINE.reduce((total, name) => total + (outcomes[name] ?? 0), 0);
}

/** Of all that was asked; what callers withdrew or asked wrongly is nobody's failure. */
function goodputShare({ outcomes, refusals, withinObjectives }) {
  const ours = Object.entries({ ...refusals }).concat(Object.entries(outcomes)).filter(([name]) => isOurs(name));
  return ratio(withinObjectives, ours.reduce((total, [, value]) => total + value, 0));
}

function isOurs(name) {
  return FINE.includes(name) || (name in MEANS && !NEITHER.includes(name));
}

function hourly({ cost }) {
  return cost.pools.reduce((total, pool) => total + pool.workers * pool.worker_hour_usd, 0);
}

// ---- workers

function workers(state) {
  const ordered = [...state.workers].sort((a, b) => b.pool.localeCompare(a.pool) || a.name.localeCompare(b.name, "en", { numeric: true }));
  rows("workers", ordered, (worker) => `${worker.pool} ${worker.name}`, workerCells, fillWorker);
  const missing = state.cost.pools.filter((pool) => !pool.workers).map((pool) => `There is no ${pool.pool} worker.`);
  const lost = Object.entries(state.workers_lost).filter(([, count]) => count).map(([pool, count]) => `${count} ${pool}`);
  say($("workers-note"), [...missing, ...(lost.length ? [`Lost since the start: ${lost.join(", ")}.`] : [])].join(" "));
}

function workerCells(worker) {
  return [
    cell("th", "", worker.name),
    cell("td", "state"),
    figure(),
    figure(),
    cell("td", "", meter(`KV blocks held by ${worker.name}`), document.createElement("data")),
    figure("number roomy"),
    cell("td", "number roomy"),
  ];
}

function fillWorker([, health, running, waiting, held, here, speed], worker) {
  const isQuiet = worker.health === "silent";
  say(health, isQuiet ? `silent ${figures.duration(worker.silent_s)}` : worker.health);
  health.className = `state ${HEALTH[worker.health]}`;
  fill(running.firstChild, worker.running, figures.count);
  fill(waiting.firstChild, worker.waiting, figures.count);
  const [bar, share] = held.children;
  [bar.max, bar.high, bar.optimum, bar.value] = [worker.kv_blocks_total || 1, worker.kv_blocks_total * 0.95, 0, worker.kv_blocks_used];
  fill(share, ratio(worker.kv_blocks_used, worker.kv_blocks_total), figures.percent);
  fill(here.firstChild, worker.in_flight, figures.count);
  say(speed, speedOf(worker));
}

function speedOf(worker) {
  if (worker.pool === "prefill") return worker.prefill_tokens_per_s ? `${figures.number(worker.prefill_tokens_per_s)} tokens/s` : "";
  return worker.step_s ? `${figures.seconds(worker.step_s)} a token` : "";
}

// ---- requests

function latency({ router }, past) {
  for (const [name, share] of [["p50", 0.5], ["p90", 0.9], ["p99", 0.99]]) {
    put(`ttft-${name}`, quantile(past.ttft, share), figures.seconds);
    put(`itl-${name}`, quantile(past.itl, share), figures.seconds);
    put(`tps-${name}`, quantile(past.tps, 1 - share), figures.number);
  }
  const set = [
    router.slo_ttft_s === null ? "" : `first token within ${figures.seconds(router.slo_ttft_s)}`,
    router.slo_itl_s === null ? "" : `${figures.seconds(router.slo_itl_s)} between tokens`,
  ].filter(Boolean);
  const none = "No objective is set (router.slo_ttft_s, router.slo_itl_s), so goodput counts every request that ended well.";
  say($("objectives"), set.length ? `Goodput counts requests with their ${set.join(" and ")}.` : none);
}

function outcomes({ outcomes, refusals }) {
  const all = [
    ...Object.entries(outcomes).map(([name, value]) => ({ name, value, text: MEANS[name] ?? name })),
    ...Object.entries(refusals).map(([name, value]) => ({ name: `refused ${name}`, value, text: `were refused: ${name}` })),
  ].sort((a, b) => b.value - a.value);
  const whole = all.reduce((total, { value }) => total + value, 0);
  rows("outcomes", all, ({ name }) => name, outcomeCells, ([, value, share], outcome) => {
    fill(value.firstChild, outcome.value, figures.count);
    share.firstChild.value = ratio(outcome.value, whole) ?? 0;
  });
}

function outcomeCells({ text, name }) {
  const isFine = FINE.includes(name) || NEITHER.includes(name.replace("refused ", ""));
  return [cell("th", isFine ? "" : "is-bad", text), figure(), cell("td", "", meter(`share that ${text}`))];
}

// ---- transfers and dollars

function transfers({ transfers: moved, seconds }) {
  const exposed = Math.min(moved.exposed_seconds, moved.seconds);
  put("transfer-rate", moved.bytes / seconds, figures.bytesPerSecond);
  put("transfer-count", moved.count, figures.count);
  put("transfer-bytes", moved.bytes, figures.bytes);
  put("transfer-speed", ratio(moved.bytes, moved.seconds), figures.bytesPerSecond);
  put("transfer-hidden", ratio(moved.seconds - exposed, moved.seconds), figures.percent);
  put("transfer-exposed", ratio(exposed, moved.seconds), figures.percent);
  $("hidden-bar").style.flexGrow = moved.seconds - exposed;
  $("exposed-bar").style.flexGrow = exposed;
}

function dollars(state, past) {
  const { cost } = state;
  const tokens = { prefill: past.prompt, decode: past.generated };
  const poolCells = ({ pool }) => [cell("th", "", pool), figure(), figure(), figure()];
  rows("pools", cost.pools, ({ pool }) => pool, poolCells, ([, hour, computing, million], { pool, workers: count, worker_hour_usd }) => {
    fill(hour.firstChild, count * worker_hour_usd, figures.dollars);
    fill(computing.firstChild, ratio(past.computing[pool], past.paid[pool]), figures.percent);
    fill(million.firstChild, ratio(past.paid[pool] * 1e6, tokens[pool]), figures.dollars);
  });
  const reasons = Object.entries(past.reasons).map(([reason, usd]) => `${reason} ${figures.dollars(usd)}`);
  say($("reasons"), reasons.length ? `Computing by what came of it: ${reasons.join(", ")}.` : "");
  rows("tenants", cost.tenants, ({ tenant }) => tenant, tenantCells, ([, requests, generated, usd], tenant) => {
    fill(requests.firstChild, tenant.requests, figures.count);
    fill(generated.firstChild, tenant.generated_tokens, figures.count);
    fill(usd.firstChild, tenant.usd, figures.dollars);
  });
  const more = cost.tenants_left_out ? ` ${cost.tenants_left_out} more tenants are not shown.` : "";
  say($("tenants-note"), `Tenants since the start.${more}`);
}

function tenantCells({ tenant }) {
  return [cell("th", "", tenant), figure(), figure(), figure()];
}

// ---- lines

const LINES = {
  "spark-in-flight": (state) => state.requests.running + state.requests.waiting,
  "spark-answered": (state, past) => past && answered(past) / past.seconds,
  "spark-goodput": (state, past) => past && past.withinObjectives / past.seconds,
  "spark-ttft": (state, past) => past && quantile(past.ttft, 0.5),
  "spark-cost": (state, past) => past && (3600 * sum(past.computing)) / past.seconds,
  "spark-transfers": (state, past) => past && past.transfers.bytes / past.seconds,
};
const lines = Object.fromEntries(Object.keys(LINES).map((id) => [id, new Line()]));

/** One more point for each line. */
export function showLines(history, state) {
  const base = history.recent;
  const past = base && between(base, state);
  for (const [id, value] of Object.entries(LINES)) spark(id, lines[id].add(value(state, past)));
}
