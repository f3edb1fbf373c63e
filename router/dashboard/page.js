// Serval's page for operators: asks the router once a second, and says so when it does not answer.

import { $, say } from "./draw.js";
import { duration } from "./figures.js";
import { History } from "./history.js";
import { show, showLines } from "./sections.js";

const PERIOD_MS = 1000;
const TIMEOUT_MS = 3000;
const STALE_AFTER_MS = 4000;

const FAILURES = { TimeoutError: "it is too slow", AbortError: "it is too slow", TypeError: "no connection" };

const history = new History();
let latest = null; // the last document, and when it came by this browser's clock
let failure = ""; // why the last poll brought nothing
let timer; // of the next poll
let isAsking = false;

/** One at a time, and one timer: whoever calls it in between only brings the next poll forward. */
async function poll() {
  clearTimeout(timer);
  if (isAsking) return;
  isAsking = true;
  try {
    const answer = await fetch("dashboard/state.json", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    const state = await answer.json();
    if (state.version !== 1) throw new Error("it was upgraded: load this page again");
    history.add(state);
    latest = { state, came: performance.now() };
    failure = "";
    draw();
    showLines(history, state);
  } catch (error) {
    failure = FAILURES[error.name] ?? error.message;
  }
  isAsking = false;
  tell();
  if (!document.hidden) timer = setTimeout(poll, PERIOD_MS);
}

function draw() {
  if (!latest) return;
  const window_s = Number(document.querySelector("input[name=window]:checked").value);
  const base = history.base(window_s);
  const { state } = latest;
  show(base, state);
  say($("span"), base ? `last ${duration(state.at - base.at)}` : `since the start ${duration(state.at - state.started_at)} ago`);
}

/**
 * How old the figures are: on its own clock, so also while the router is silent. Old figures are grey; that the router does not
 * answer is said only if it was asked: a hidden page asks nothing.
 */
function tell() {
  const age_ms = latest ? performance.now() - latest.came : Infinity;
  const isOld = age_ms > STALE_AFTER_MS;
  const isSilent = isOld && failure !== "";
  document.body.classList.toggle("is-stale", latest ? isOld : isSilent);
  document.body.classList.toggle("is-loading", !latest);
  say($("age"), latest ? ` · updated ${duration(age_ms / 1000)} ago` : "");
  $("banner").hidden = !isSilent;
  document.title = isSilent ? "stale – Serval" : `${latest?.state.router.model ?? ""} – Serval`;
  if (!isSilent) return;
  const at = latest && new Date(Date.now() - age_ms).toLocaleTimeString();
  say($("readiness"), "stale");
  $("readiness").className = "pill";
  say($("banner"), `The router does not answer: ${failure}. ${at ? `These figures are from ${at}.` : "There are no figures yet."}`);
}

document.querySelector(".window").addEventListener("change", draw);
document.addEventListener("visibilitychange", () => document.hidden || poll());
setInterval(tell, PERIOD_MS);
poll();
