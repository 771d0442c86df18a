// The domains and their models: whether they answer, how fast, and on what.

import { brief, byId, facts, list, make, say, shape, turn } from "./dom.js";
import { asked } from "./session.js";
import { milliseconds, number } from "./units.js";
import { counted, word } from "./words.js";

const FAILING = ["open", "half-open"]; // states of a breaker
let calls = {}; // the last ones of each domain, as its trace has them

// Asks where the last calls of these domains spent their time.
export async function measure(names) {
  const fresh = {};
  for (const name of names) {
    const answer = await asked(`/api/v1/domains/${encodeURIComponent(name)}/trace`);
    if (answer.ok) fresh[name] = answer.body.calls.filter((one) => one.total_ms !== null);
  }
  calls = fresh;
}

export function render({ domains, models }) {
  const found = Object.entries(domains).map(([name, one]) => ({ name, ...one }));
  const ready = found.filter((one) => one.ready).length;
  const words = { ready: number(ready), all: number(found.length) };
  brief("domains-brief", word("ready_of", words), ready === found.length ? "ok" : "warn");
  list(
    byId("domains"),
    found,
    (one) => one.name,
    () => make("li", { class: "card" }, head(), make("dl"), make("ul", { class: "models" })),
    (card, one) => update(card, one, models),
  );
}

function head() {
  const pill = make("span", { class: "pill" }, shape("healthy"), make("span"));
  return make("h3", {}, make("span"), make("span", { class: "subject" }), pill);
}

function update(card, domain, models) {
  const [top, body, inside] = card.children;
  const state = domain.ready ? "ready" : domain.quarantined ? "resting" : "not_ready";
  const ep = provider(domain.ep);
  say(top.firstChild, domain.name);
  say(top.children[1], domain.class);
  pill(top.lastChild, domain.ready ? "ok" : "warn", state);
  facts(body, [
    [word("cause"), domain.ready ? "" : domain.cause, "", "en"],
    ...times(calls[domain.name] ?? []),
    [word("runs_on"), domain.ep ? counted("on_is", domain.instances.length, { ep }) : ""],
    [word("queue"), number(domain.waiting)],
    [word("restarts"), number(domain.restarts)],
  ]);
  const own = Object.entries(models).filter(([, one]) => one.domain === domain.name);
  list(
    inside,
    own.map(([name, one]) => ({ name, ...one, several: own.length > 1 })),
    (one) => one.name,
    () => make("li", {}, make("h4", {}, ...head().childNodes), make("dl")),
    (item, one) => model(item, one, calls[domain.name] ?? []),
  );
}

function model(item, one, domainCalls) {
  const [top, body] = item.children;
  const state = one.ready ? "serves" : one.loaded ? "loading" : "not_loaded";
  say(top.firstChild, one.name);
  say(top.children[1], one.version === undefined ? "" : word("version", { version: one.version }));
  pill(top.lastChild, one.ready ? "ok" : "warn", state);
  const own = domainCalls.filter((call) => call.model === one.name);
  facts(body, [
    ...(one.several ? times(own) : []),
    [word("runs_on"), one.several ? provider(one.ep) : ""],
    [word("previous"), one.previous ? word("version", { version: one.previous }) : ""],
    [word("breaker"), FAILING.includes(one.breaker) ? word(`breaker_${one.breaker}`) : "", "warn"],
    [word("instead"), one.instead_of, "warn", "en"],
    [word("warnings"), one.warnings?.join("; "), "warn", "en"],
  ]);
}

function pill(node, tone, key) {
  node.className = `pill ${tone}`;
  turn(node.firstChild, tone === "ok" ? "healthy" : "degraded");
  say(node.lastChild, word(key));
}

function times(found) {
  if (!found.length) return [[word("calls"), word("no_calls")]];
  const sorted = found.map((one) => one.total_ms).sort((a, b) => a - b);
  return [
    [word("half", { count: sorted.length }), within(quantile(sorted, 0.5))],
    [word("most"), within(quantile(sorted, 0.95))],
  ];
}

function within(time_ms) {
  return `≤ ${milliseconds(time_ms)}`;
}

// The smallest that so large a part of them does not exceed.
function quantile(sorted, part) {
  return sorted[Math.max(0, Math.ceil(sorted.length * part) - 1)];
}

export function provider(ep) {
  return (ep ?? "").replace("ExecutionProvider", "");
}
