// The page as a whole: it listens while somebody looks, and says how old it is when it cannot.

import * as accelerators from "./accelerators.js";
import * as commands from "./commands.js";
import * as domains from "./domains.js";
import { byId, show, unfold } from "./dom.js";
import * as ledger from "./ledger.js";
import * as link from "./link.js";
import * as listen from "./listen.js";
import { Live } from "./live.js";
import * as session from "./session.js";
import * as status from "./status.js";
import * as store from "./store.js";
import * as trial from "./trial.js";
import * as watchdog from "./watchdog.js";
import { translate, turn } from "./words.js";

const SLOW_MS = 10_000; // what is asked for beside the stream
let latest = null;
let ages = 0;
let slow = 0;
let entered = false; // somebody could read in this page's life

const live = new Live({
  came(document) {
    latest = document;
    entered = true;
    clearInterval(ages);
    ages = 0;
    status.live(document);
    link.note(document.link.backlog);
    render();
    if (!slow) {
      slow = setInterval(lookAround, SLOW_MS);
      void lookAround();
    }
  },
  lost(why, error) {
    stopLooking();
    status.lost(why, error);
    if (!ages) ages = setInterval(status.age, 1_000);
  },
  denied({ name }) {
    stopLooking();
    forget();
    const stranger = entered ? "login_ended" : "login_ask";
    session.askForToken(session.LOCAL.includes(name) ? stranger : "login_lacks");
  },
  known({ scopes }) {
    trial.allow(scopes.includes("infer"));
  },
});

function render() {
  if (!latest) return;
  show(byId("login"), false);
  show(byId("all"), true);
  status.render(latest);
  link.render(latest.link);
  ledger.render(latest.ledger);
  accelerators.render(latest);
  domains.render(latest);
  store.render(latest);
  trial.render(latest.models);
}

// What the stream does not bring. Whether he who looks still may is asked each time: a session
// ends while a stream goes on.
async function lookAround() {
  try {
    const caller = await session.who();
    if (!slow) return;
    if (!caller.scopes.includes("read")) {
      leave();
      return;
    }
    await domains.measure(Object.keys(latest.domains));
    await listen.look();
    await watchdog.look();
    await commands.look();
  } catch (error) {
    if (!(error instanceof session.Unreachable)) throw error; // the stream says so, too
  }
}

function stopLooking() {
  clearInterval(slow);
  slow = 0;
}

// The session is over, as far as is known: begin anew, which asks who is there.
function leave() {
  live.lost("lost_hidden");
  live.begin();
}

function forget() {
  latest = null;
  clearInterval(ages);
  ages = 0;
  listen.stop();
  show(byId("all"), false);
  status.forget();
}

function attend() {
  if (document.visibilityState === "visible") {
    if (latest) live.lost("lost_hidden");
    live.begin();
  } else {
    rest();
  }
}

// Nothing is asked, and nothing comes.
function rest() {
  live.end();
  stopLooking();
  clearInterval(ages);
  ages = 0;
}

function speak() {
  translate();
  session.render();
  status.speak();
  render();
  listen.render();
  watchdog.render();
  commands.render();
  trial.speak();
}

byId("language").addEventListener("click", () => {
  turn();
  speak();
});
byId("again").addEventListener("click", () => live.begin());
window.addEventListener("online", () => live.stream ?? live.begin());
document.addEventListener("visibilitychange", attend);
session.begin({
  entered: () => live.begin(),
  leaving() {
    rest();
    listen.stop();
  },
  left: leave,
});
unfold();
speak();
attend();
