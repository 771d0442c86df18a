// The store and its disk, and where sound comes from.

import { brief, byId, facts } from "./dom.js";
import { number, size } from "./units.js";
import { counted, word } from "./words.js";

const FULL = 0.9; // from here on it is worth a colour

export function render({ store, sources }) {
  const { scrub, quarantine, flash } = store;
  const full = store.used_bytes / store.bytes_max;
  bar("store-bar", full);
  brief("store-brief", word("part_used", { part: number(100 * full) }), full > FULL ? "critical" : "");
  bar("disk-bar", 1 - store.disk_free_bytes / store.disk_size_bytes);
  facts(byId("store"), [
    [word("used"), word("used_is", { used: size(store.used_bytes), all: size(store.bytes_max) })],
    [word("damaged"), scrub.damaged ? number(scrub.damaged) : "", "critical"],
    [word("aside"), quarantine.length ? counted("files", quarantine.length) : "", "critical"],
  ]);
  const disk = { free: size(store.disk_free_bytes), all: size(store.disk_size_bytes) };
  facts(byId("disk"), [
    [word("disk"), word("free", disk)],
    [word("life"), flash?.life_years ? word("years", { count: number(flash.life_years, 1) }) : ""],
  ]);
  const rows = Object.entries(sources).map(([name, one]) => [name, source(one)]);
  brief("sources-brief", number(rows.length));
  facts(byId("sources"), rows.length ? rows : [[word("sources"), word("none")]]);
}

function source({ kind, rejected }) {
  return rejected ? word("rejected", { kind, count: number(rejected) }) : kind;
}

function bar(id, part) {
  const node = byId(id);
  node.firstElementChild.style.width = `${Math.min(100, Math.max(0, part * 100)).toFixed(1)}%`;
  node.className = part > FULL ? "bar warn" : "bar";
}
