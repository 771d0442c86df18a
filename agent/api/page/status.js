// The first thing to see: one word for it all, how old it is, and what is wrong.

import { told } from "./conditions.js";
import { byId, facts, list, make, say, shape, show, turn } from "./dom.js";
import { moment, span } from "./units.js";
import { counted, language, word } from "./words.js";

const NEEDS = ["critical", "warning"]; // a note needs nothing
let latest = null;
let why = ""; // a word for why it is not live; none: it is
let error = ""; // what the agent said of it
let heard = null; // when it came, by two clocks: one stands still in sleep, one may be set

export function live(status) {
  latest = status;
  why = "";
  heard = { run: performance.now(), wall: Date.now() };
}

export function lost(reason, said = "") {
  why = reason;
  error = said;
  speak();
}

export function forget() {
  latest = null;
  why = "";
  show(byId("verdict"), false);
  say(byId("device"), "Holdfast");
  say(byId("about"), "");
  document.title = "Holdfast";
}

export function speak() {
  verdict();
  age();
}

export function render(status) {
  const needs = status.conditions.filter((one) => NEEDS.includes(one.severity));
  const notes = status.conditions.filter((one) => !NEEDS.includes(one.severity));
  speak();
  say(byId("device"), status.device);
  show(byId("conditions"), needs.length > 0);
  cards(byId("needs"), needs);
  show(byId("notes"), notes.length > 0);
  say(byId("notes-count"), counted("notes", notes.length));
  cards(byId("notes-list"), notes);
}

export function age() {
  show(byId("old"), Boolean(why && latest));
  if (!why || !latest) return;
  const run = performance.now() - heard.run;
  const seconds = Math.max(run, Date.now() - heard.wall) / 1000;
  say(byId("old"), word("old", { age: span(seconds), state: word(latest.status) }));
}

function verdict() {
  const state = why ? "lost" : latest ? latest.status : "starting";
  const needs = latest?.conditions.filter((one) => NEEDS.includes(one.severity)).length ?? 0;
  show(byId("verdict"), true);
  byId("verdict").dataset.state = state;
  turn(byId("verdict-shape"), state);
  say(byId("word"), word(state));
  say(byId("sentence"), sentence(needs));
  show(byId("again"), Boolean(why) && why !== "lost_hidden");
  byId("all").classList.toggle("stale", Boolean(why));
  const device = latest?.device ?? "";
  say(byId("about"), latest ? about(latest) : "");
  document.title = device ? word("title", { state: word(state), device }) : "Holdfast";
}

function about({ uptime, version }) {
  return why ? word("about_old", { version }) : word("about", { up: span(uptime), version });
}

function sentence(needs) {
  if (why) return word(why, { error });
  if (!latest) return word("asking");
  return needs ? counted("attention", needs) : word("calm");
}

function cards(parent, conditions) {
  list(parent, conditions, (one) => `${one.name} ${one.subject}`, build, update);
}

function build() {
  const head = make("h3", {}, shape("note"), make("span"), make("span", { class: "subject" }));
  return make("li", { class: "condition" }, head, make("p", { class: "since" }), make("dl"));
}

function update(card, one) {
  const [head, since, body] = card.children;
  const [drawing, name, subject] = head.children;
  card.dataset.severity = one.severity;
  turn(drawing, { critical: "unhealthy", warning: "degraded", note: "note" }[one.severity]);
  const { title, todo } = told(one.name, language());
  say(name, title);
  say(subject, one.name.split("_").includes(one.subject) ? "" : one.subject);
  const times = { age: span(one.age_s), time: moment(one.since_us) };
  say(since, `${word(one.severity)} · ${word("since", times)} · ${one.name}`);
  facts(body, [
    [word("condition_cause"), one.cause, "", "en"],
    [word("todo"), todo, "todo"],
    [word("condition_remedy"), one.remedy, todo ? "" : "todo", "en"],
  ]);
}
