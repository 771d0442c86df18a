// The status as it comes. What came is live until the stream breaks or is silent for too long; then
// that is said at once, and the stream is asked for again, after ever longer waits.

import { complaint, Unreachable, who } from "./session.js";

const EVENTS = "/api/v1/events";
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
    this.stream.addEventListener("error", () => this.#fail("lost_broken"));
    this.timers.push(setInterval(() => this.#listenFor(), 1_000));
  }

  #listenFor() {
    if (performance.now() - this.heardAt > SILENT_MS) this.#fail("lost_silent");
  }

  #fail(why) {
    this.end();
    this.lost(why);
    const wait = WAITS_MS[Math.min(this.failures, WAITS_MS.length - 1)];
    this.failures += 1;
    const jitter = 0.5 + Math.random(); // not all pages at once, when the agent is back
    this.timers.push(setTimeout(() => void this.#open(), wait * jitter));
  }
}
