// The page's sections: which figure stands where.

import { $, cell, figure, fill, fillMeter, meter, put, rows, say, spark } from "./draw.js";
import * as figures from "./figures.js";
import { Line } from "./history.js";

const { between, quantile, ratio, sum } = figures;
const FINE = ["stop", "length"];
const OURS = ["deadline", "overloaded", "unavailable", "connections", "prefill_failed", "transfer_failed", "internal"];
const SAID = {
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

/** What callers withdrew, asked wrongly or too much of is nobody's failure. */
function goodputShare({ outcomes, refusals, withinObjectives }) {
  const failed = OURS.reduce((total, name) => total + (outcomes[name] ?? 0) + (refusals[name] ?? 0), 0);
  return ratio(withinObjectives, answered({ outcomes }) + failed);
}

function hourly({ cost }) {
  return cost.pools.reduce((total, pool) => total + pool.workers * pool.worker_hour_usd, 0);
}

// ---- workers

function workers(state) {
  const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
  const lines = state.cost.pools.flatMap(({ pool }) => {
    const members = state.workers.filter((worker) => worker.pool === pool).sort(byName);
    return [wholePool(pool, members), ...members];
  });
  rows("workers", lines, (line) => `${line.pool} ${line.name}`, workerCells, fillWorker);
  const lost = Object.entries(state.workers_lost).filter(([, count]) => count).map(([pool, count]) => `${count} ${pool}`);
  say($("workers-note"), lost.length ? `Lost since the start: ${lost.join(", ")}.` : "");
}

function wholePool(pool, members) {
  const added = (field) => members.reduce((total, worker) => total + worker[field], 0);
  const summed = ["running", "waiting", "in_flight", "kv_blocks_used", "kv_blocks_total"].map((field) => [field, added(field)]);
  return { pool, name: pool[0].toUpperCase() + pool.slice(1), size: members.length, ...Object.fromEntries(summed) };
}

function workerCells({ name, size }) {
  const held = cell("div", "held", meter(`KV blocks held, ${name}`), document.createElement("data"));
  const isPool = size !== undefined;
  return [
    cell("th", isPool ? "" : "member", name),
    cell("td", isPool ? "" : "state"),
    figure(),
    figure(),
    cell("td", "", held),
    figure("number roomy"),
    cell("td", "number roomy"),
  ];
}

function fillWorker([title, health, running, waiting, held, here, speed], line) {
  const isPool = line.size !== undefined;
  title.parentElement.classList.toggle("is-pool", isPool);
  say(health, isPool ? `${line.size || "no"} worker${line.size === 1 ? "" : "s"}` : healthOf(line));
  health.className = isPool ? (line.size ? "" : "is-bad") : `state ${HEALTH[line.health]}`;
  fill(running.firstChild, line.running, figures.count);
  fill(waiting.firstChild, line.waiting, figures.count);
  const share = ratio(line.kv_blocks_used, line.kv_blocks_total);
  const [bar, figureOfShare] = held.firstChild.children;
  fillMeter(bar, share, share > 0.95);
  fill(figureOfShare, share, figures.percent);
  fill(here.firstChild, line.in_flight, figures.count);
  say(speed, isPool ? "" : speedOf(line));
}

function healthOf({ health, silent_s }) {
  return health === "silent" ? `silent for ${figures.duration(silent_s)}` : health;
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
    router.slo_ttft_s === null ? "" : `the first token within ${figures.exactSeconds(router.slo_ttft_s)}`,
    router.slo_itl_s === null ? "" : `at most ${figures.exactSeconds(router.slo_itl_s)} between tokens`,
  ].filter(Boolean);
  const none = "No objective is set (router.slo_ttft_s, router.slo_itl_s), so goodput counts every request that ended well.";
  say($("objectives"), set.length ? `Goodput counts answers with ${set.join(" and ")}.` : none);
}

function outcomes({ outcomes, refusals }) {
  const ended = Object.entries(outcomes).map(([name, value]) => ({ name, value, key: name, text: SAID[name] ?? name }));
  const refused = Object.entries(refusals).map(([name, value]) => ({ name, value, key: `refused ${name}`, text: `were refused: ${name}` }));
  const all = [...ended, ...refused].filter(({ value }) => value).sort((a, b) => b.value - a.value);
  const whole = all.reduce((total, { value }) => total + value, 0);
  rows("outcomes", all, ({ key }) => key, outcomeCells, ([title, value, share], outcome) => {
    title.parentElement.className = FINE.includes(outcome.name) ? "is-good" : OURS.includes(outcome.name) ? "is-bad" : "is-own";
    fill(value.firstChild, outcome.value, figures.count);
    fillMeter(share.firstChild, ratio(outcome.value, whole));
  });
  say($("outcomes-note"), all.length ? "" : "No request has ended in this time.");
}

function outcomeCells({ text }) {
  return [cell("th", "", text), figure(), cell("td", "", meter(`share that ${text}`))];
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
  put("exposed-mean", ratio(moved.exposed_seconds, moved.count), figures.seconds);
  $("hidden-bar").style.flexBasis = figures.percent(ratio(moved.seconds - exposed, moved.seconds) ?? 0);
  $("exposed-bar").style.flexBasis = figures.percent(ratio(exposed, moved.seconds) ?? 0);
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

/** Computing that was lost has no tenant: nobody's, as `serval cost` calls it. */
function tenantCells({ tenant }) {
  return [cell("th", "", tenant || "nobody"), figure(), figure(), figure()];
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
