// What was ordered last, and how the device stands to what the cloud wants.

import { brief, byId, facts, list, make, say, show } from "./dom.js";
import { asked } from "./session.js";
import { moment } from "./units.js";
import { counted, word } from "./words.js";

const SHOWN = 10;
const TONES = { succeeded: "ok", accepted: "", running: "" }; // others: a warning
const STANDING = { converged: "", converging: "" };
let orders = null; // none: nothing was told yet
let twin = null;

// Asks what was ordered, and what is wanted.
export async function look() {
  const [last, wanted] = [
    await asked(`/api/v1/commands?count=${SHOWN}`),
    await asked("/api/v1/twin"),
  ];
  if (!last.ok || !wanted.ok) return;
  orders = last.body.commands;
  twin = wanted.body;
  render();
}

export function render() {
  show(byId("orders"), orders !== null);
  if (orders === null) return;
  const open = orders.filter((one) => ["accepted", "running"].includes(one.state)).length;
  brief("orders-brief", open ? counted("orders_open", open) : word("orders_none_open"), "");
  const wanted = Object.entries(twin.state).filter(([, one]) => one.standing);
  facts(byId("twin"), wanted.map(([name, one]) => [
    name,
    one.cause ? `${word(`twin_${one.standing}`)}: ${one.cause}` : word(`twin_${one.standing}`),
    STANDING[one.standing] ?? "warn",
    one.cause ? "en" : "",
  ]));
  show(byId("no-orders"), orders.length === 0);
  list(
    byId("order-rows"),
    orders,
    (one) => one.id,
    () => make("li", {}, make("span", { class: "when" }), make("span", { lang: "en" })),
    (item, one) => {
      say(item.firstChild, moment(one.at_us));
      const why = one.message ? `: ${one.message}` : "";
      say(item.lastChild, `${one.name}  ${one.state}${why}`);
      item.lastChild.className = TONES[one.state] ?? "warn";
    },
  );
}
