// Numbers in people's words.

import { language, word } from "./words.js";

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];

export function number(value, digits = 0) {
  return value.toLocaleString(language(), { maximumFractionDigits: digits });
}

export function size(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < SIZES.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${number(value, unit < 2 || value >= 100 ? 0 : 1)} ${SIZES[unit]}`;
}

// A duration in its two largest units.
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return word("seconds", { count: whole });
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return word("minutes", { count: minutes });
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return two("hours", hours, "minutes", minutes % 60);
  return two("days", Math.floor(hours / 24), "hours", hours % 24);
}

function two(large, count, small, rest) {
  const first = word(large, { count });
  return rest ? `${first} ${word(small, { count: rest })}` : first;
}

export function milliseconds(value) {
  return `${number(value, value < 10 ? 1 : 0)} ms`;
}

// A time of day by the device's clock; with its date, if that is not today's.
export function moment(us) {
  const then = new Date(us / 1000);
  const today = then.toDateString() === new Date().toDateString();
  const day = today ? {} : { year: "numeric", month: "short", day: "numeric" };
  const time = { hour: "2-digit", minute: "2-digit", hour12: false };
  return then.toLocaleString(language(), { ...day, ...time });
}
