// What must move, and what was done where it did not.

import { brief, byId, facts, list, make, say, show } from "./dom.js";
import { asked } from "./session.js";
import { moment, span } from "./units.js";
import { counted, word } from "./words.js";

const SHOWN = 10;
const TONES = { fine: "", late: "warn", dead: "critical", flapping: "warn" };
let seen = null; // none: nothing was told yet
let events = [];

// Asks what it sees, and what it did last.
export async function look() {
  const [now, history] = [
    await asked("/api/v1/watchdog"),
    await asked("/api/v1/watchdog/history"),
  ];
  if (!now.ok || !history.ok) return;
  seen = now.body;
  events = history.body.events.slice(0, SHOWN);
  render();
}

export function render() {
  show(byId("watchdog"), seen !== null);
  if (seen === null) return;
  const still = seen.parts.filter((one) => one.verdict !== "fine").length;
  brief("watchdog-brief", still ? counted("parts_still", still) : word("all_move"), still ? "warn" : "ok");
  const { start, hardware } = seen;
  facts(byId("parts"), [
    [word("began"), `${word(`cause_${start.cause}`)}, ${moment(start.at_us)}`],
    [word("safe_mode"), start.safe_mode?.why, "critical", "en"],
    [word("hardware"), device(hardware.found), hardware.found?.armed === false ? "warn" : ""],
    ...seen.parts.map((one) => [one.part, told(one), TONES[one.verdict], one.why ? "en" : ""]),
  ]);
  show(byId("no-remedies"), events.length === 0);
  list(
    byId("remedies"),
    events,
    (one) => `${one.at_us} ${one.event.part} ${one.event.remedy}`,
    () => make("li", {}, make("span", { class: "when" }), make("span", { lang: "en" })),
    (item, { at_us, event }) => {
      say(item.firstChild, moment(at_us));
      say(item.lastChild, `${event.part}: ${event.remedy}. ${event.cause}; ${event.outcome}`);
    },
  );
}

function device(found) {
  if (found === null) return word("hardware_none");
  const { identity, armed, timeout_s } = found;
  const state = armed === false ? word("hardware_unarmed") : timeout_s !== null && span(timeout_s);
  return [identity, state].filter(Boolean).join(", ");
}

function told({ verdict, still_s, why }) {
  if (verdict === "fine") return why || word("moves");
  return word(`verdict_${verdict}`, { age: span(still_s) });
}
