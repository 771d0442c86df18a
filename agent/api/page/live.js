// The status as it comes. What came is live until the stream breaks or is silent for too long; then
// that is said at once, and the stream is asked for again, after ever longer waits.

import { complaint, Unreachable, who } from "./session.js";

const EVENTS = "/api/v1/events";
const CLOSED = 2; // of a stream that the browser does not ask for again: it was refused
const ANSWER_MS = 5_000;
const SILENT_MS = 7_000; // an event comes each 2 s
const WAITS_MS = [500, 1_000, 2_000, 4_000, 8_000, 15_000];

export class Live {
  // `came` takes a status, `lost` a word for why there is none, `denied` says that there must not
  // be one, `known` takes {name, scopes} of who looks.
  constructor({ came, lost, denied, known }) {
    Object.assign(this, { came, lost, denied, known });
    this.stream = null;
    this.failures = 0;
    this.turn = 0; // an answer to a former turn is too late
    this.heardAt = 0;
    this.timers = [];
  }

  begin() {
    this.end();
    this.failures = 0;
    void this.#open();
  }

  end() {
    this.turn += 1;
    this.stream?.close();
    this.stream = null;
    for (const timer of this.timers) clearInterval(timer);
    this.timers = [];
  }

  async #open() {
    const turn = this.turn;
    let caller;
    try {
      caller = await who();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      if (turn === this.turn) this.#fail("lost_unreachable");
      return;
    }
    if (turn !== this.turn) return;
    this.known(caller);
    if (!caller.scopes.includes("read")) {
      this.end();
      this.denied(caller);
      return;
    }
    this.#listen();
  }

  #listen() {
    this.heardAt = performance.now();
    this.stream = new EventSource(EVENTS);
    this.stream.addEventListener("status", (event) => {
      this.heardAt = performance.now();
      this.failures = 0;
      this.came(JSON.parse(event.data));
    });
    // The agent answers, and cannot tell how it is; the stream goes on.
    this.stream.addEventListener("trouble", (event) => {
      this.heardAt = performance.now();
      this.lost("lost_trouble", complaint(JSON.parse(event.data)));
    });
    this.stream.addEventListener("error", () => void this.#broke());
    this.timers.push(setInterval(() => this.#listenFor(), 1_000));
  }

  #listenFor() {
    if (performance.now() - this.heardAt > SILENT_MS) this.#fail("lost_silent");
  }

  async #broke() {
    const turn = this.turn;
    const why = this.stream?.readyState === CLOSED ? await refused() : "";
    if (turn !== this.turn) return;
    if (why) this.#fail("lost_trouble", why);
    else this.#fail("lost_broken");
  }

  #fail(why, error) {
    this.end();
    this.lost(why, error);
    const wait = WAITS_MS[Math.min(this.failures, WAITS_MS.length - 1)];
    this.failures += 1;
    const jitter = 0.5 + Math.random(); // not all pages at once, when the agent is back
    this.timers.push(setTimeout(() => void this.#open(), wait * jitter));
  }
}

// Why the agent refuses the stream, which a browser does not tell of one; "" where it does not.
async function refused() {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), ANSWER_MS);
  try {
    const answer = await fetch(EVENTS, { cache: "no-store", signal: stop.signal });
    return answer.ok ? "" : complaint(await answer.json());
  } catch {
    return ""; // it does not answer at all
  } finally {
    clearTimeout(timer);
    stop.abort(); // a stream, where there is room again
  }
}
