// The link, what waits to be sent, and how that goes.

import { byId, facts, say, show } from "./dom.js";
import { number, size, span } from "./units.js";
import { counted, word } from "./words.js";

const KEPT_MS = 600_000; // of the backlog, drawn
const SHORTEST_MS = 60_000; // that is drawn
const TREND_MS = 60_000;
const KNOWN_MS = 10_000; // less says nothing of a trend
const GAP_MS = 7_000; // without a look: the line is broken off
const CHANGE_MIN = 0.05; // of the mean
const CHANGE_BYTES_MIN = 1024;
const ARROWS = { rising: "↗", falling: "↘", steady: "→" };
const WIDE = 600;
const HIGH = 100;
const past = []; // {at, bytes}

// Remembers a backlog as it came.
export function note(backlog) {
  const at = performance.now();
  if (backlog) past.push({ at, bytes: backlog.bytes });
  while (past.length && past[0].at < at - KEPT_MS) past.shift();
}

export function render(link) {
  facts(byId("link"), [
    [word("state"), state(link), link.connected && !link.paused ? "ok" : "warn"],
    [word("cause"), link.down_cause, "", "en"],
    [word("broker"), broker(link)],
    [word("last_ack"), ack(link)],
    [word("rate"), sending(link.rate.sent_bytes_per_s)],
  ]);
  facts(byId("link-more"), [
    [word("acking"), acking(link.rate.acknowledged_records_per_s)],
    [word("limit"), limit(link.limit)],
    [word("quota"), quota(link.quota)],
  ]);
  backlog(link);
}

function state(link) {
  const left = link.paused_for_s;
  const paused = left === null ? word("paused") : word("paused_for", { age: span(left) });
  const since = link.connected ? link.connected_s : link.down_s;
  const is = link.connected ? "connected" : "down";
  const said = since === null ? word(`${is}_now`) : word(is, { age: span(since) });
  return link.paused ? `${said} · ${paused}` : said;
}

function broker(link) {
  if (link.embedded) return word("embedded");
  return link.fallback ? word("fallback", { url: link.broker }) : link.broker;
}

function ack(link) {
  if (link.last_ack_age_s === null) return word("never");
  return word("ack_ago", { age: span(link.last_ack_age_s), from: link.ack_from });
}

function sending(bytes_per_s) {
  return bytes_per_s === null ? word("unknown") : word("per_s", { bytes: size(bytes_per_s) });
}

function acking(records_per_s) {
  return records_per_s === null ? "" : word("records_per_s", { count: number(records_per_s, 1) });
}

function limit({ rate_bytes_per_s_max: most, why, for_s: left }) {
  let said = most === null ? word("limit_none") : word("per_s", { bytes: size(most) });
  if (why !== "settings") said = word(`limit_${why}`, { limit: said });
  return left === null ? said : word("left", { limit: said, age: span(left) });
}

function quota(quota) {
  if (!quota) return "";
  return word("quota_is", {
    used: size(quota.used_bytes),
    all: size(quota.bytes_per_day),
    age: span(quota.begins_anew_s),
  });
}

function backlog(link) {
  const { backlog: waits } = link;
  say(byId("waiting"), amount(waits));
  show(byId("trend"), Boolean(waits));
  if (waits) trend(link, waits);
  const streams = waits?.streams ?? [];
  show(byId("streams"), streams.length > 0);
  facts(
    byId("streams-list"),
    streams.map((one) => [one.name, `${amount(one)}${oldest(one)}`]),
  );
}

function amount(waits) {
  if (!waits) return word("unknown");
  if (!waits.records) return word("nothing_waits");
  return word("waiting", { records: counted("records", waits.records), bytes: size(waits.bytes) });
}

function oldest({ oldest_age_s: age }) {
  return age === null ? "" : ` · ${word("oldest", { age: span(age) })}`;
}

function trend(link, waits) {
  const way = direction();
  const left = waits.records ? ` · ${end(link)}` : "";
  say(byId("trend"), `${ARROWS[way] ?? ""} ${word(way)}${left}`);
  byId("trend").className = way === "rising" ? "warn" : "";
  const top = Math.max(0, ...past.map((one) => one.bytes));
  const long_ms = Math.max(SHORTEST_MS, performance.now() - past[0].at);
  byId("chart").toggleAttribute("hidden", top === 0);
  byId("line").setAttribute("d", drawn(Math.max(1, top), long_ms));
  const words = { age: span(Math.ceil(long_ms / 60_000) * 60), bytes: size(top) };
  say(byId("chart-words"), word(top ? "chart" : "chart_flat", words));
}

function end(link) {
  if (link.eta_s !== null) return word("empty_in", { age: span(link.eta_s) });
  const { acknowledged_bytes_per_s: leaving, arriving_bytes_per_s: coming } = link.rate;
  return link.paused || !leaving || coming === null ? word("no_end") : word("not_shrinking");
}

// The mean of the last minute's newer half against that of its older half.
function direction() {
  const now = performance.now();
  const seen = past.filter((one) => one.at >= now - TREND_MS);
  if (!seen.length || now - seen[0].at < KNOWN_MS) return "gathering";
  const middle = (seen[0].at + now) / 2;
  const before = mean(seen.filter((one) => one.at < middle));
  const after = mean(seen.filter((one) => one.at >= middle));
  const change = after - before;
  const matters = Math.max(CHANGE_BYTES_MIN, (CHANGE_MIN * (before + after)) / 2);
  if (Math.abs(change) < matters) return "steady";
  return change > 0 ? "rising" : "falling";
}

function mean(points) {
  return points.reduce((sum, one) => sum + one.bytes, 0) / Math.max(1, points.length);
}

function drawn(top, long_ms) {
  const now = performance.now();
  let path = "";
  let before = -Infinity;
  for (const { at, bytes } of past) {
    const x = WIDE * (1 - (now - at) / long_ms);
    const y = HIGH - (HIGH - 4) * (bytes / top) - 2;
    path += `${at - before > GAP_MS ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    before = at;
  }
  return path;
}
