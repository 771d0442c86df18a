// Recent segments to listen to. One at a time; the one that plays stays in the list.

import { brief, byId, list, make, say, show } from "./dom.js";
import { asked } from "./session.js";
import { moment, number, span } from "./units.js";
import { word } from "./words.js";

const SEGMENTS = "/api/v1/audio/segments";
const SHOWN = 20;
const SHORT_S = 10; // below, tenths count
let found = null; // none: the agent has no such door
let playing = null; // the id of one
let broken = null; // the id of one that could not be played
let absent = false;
const player = new Audio();

// Asks for the newest.
export async function look() {
  if (absent) return;
  const answer = await asked(`${SEGMENTS}?count=${SHOWN}`);
  absent = answer.status === 404;
  if (!answer.ok) return;
  const kept = found?.find((one) => one.id === playing);
  found = answer.body.segments;
  if (kept && !found.some((one) => one.id === playing)) found.push(kept);
  render();
}

export function render() {
  show(byId("listen"), found !== null);
  if (found === null) return;
  brief("segments-brief", number(found.length));
  show(byId("no-segments"), found.length === 0);
  list(byId("segments"), found, (one) => one.id, build, update);
}

export function stop() {
  player.pause();
  player.removeAttribute("src");
  playing = null;
}

function build(one) {
  const button = make("button", { type: "button" });
  button.addEventListener("click", () => press(one));
  const when = make("span", { class: "when" });
  const what = make("span", { class: "what" });
  const more = make("span", { class: "quiet" });
  return make("li", {}, make("div", {}, when, what, more), button);
}

function update(item, one) {
  const [text, button] = item.children;
  const [when, what, more] = text.children;
  const plays = playing === one.id;
  say(when, moment(one.heard_us));
  say(what, word("segment", { source: one.source, length: length(one.length_s) }));
  say(more, broken === one.id ? word("mute") : one.name);
  say(button, `${plays ? "■" : "▶"} ${word(plays ? "stop" : "play")}`);
  const name = `${one.source} ${moment(one.heard_us)}`;
  button.setAttribute("aria-label", word(plays ? "stop_of" : "play_of", { name }));
}

function length(seconds) {
  return seconds < SHORT_S ? word("seconds", { count: number(seconds, 1) }) : span(seconds);
}

async function press(one) {
  const stops = playing === one.id;
  stop();
  broken = null;
  if (!stops) {
    playing = one.id;
    player.src = `${SEGMENTS}/${encodeURIComponent(one.stream)}/${one.seq}`;
    player.play().catch((error) => {
      if (playing !== one.id || error.name === "AbortError") return; // another one was chosen
      stop();
      broken = one.id;
      render();
    });
  }
  render();
}

player.addEventListener("ended", () => {
  stop();
  render();
});
