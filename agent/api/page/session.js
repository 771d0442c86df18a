// Who looks at the page, and how he says so: a token, typed once, becomes a cookie that no script
// can read. The token is kept nowhere here.

import { byId, say, show } from "./dom.js";
import { word } from "./words.js";

const SESSION = "/api/v1/session";
const ANSWER_MS = 5_000;
const TIMER_MS_MAX = 2 ** 31 - 1; // of setTimeout
export const LOCAL = ["nobody", "loopback"]; // who has no session to end

const form = byId("login");
let shown = "login_ask";
let said = "";
let ends = 0; // the timer of the session's end
const underWay = new Set(); // what ends the questions that have no answer yet

export class Unreachable extends Error {}

// An answer as JSON. Throws Unreachable where none comes in time.
export async function asked(path, options = {}, waitMs = ANSWER_MS) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), waitMs);
  underWay.add(stop);
  let answer;
  let text;
  try {
    answer = await fetch(path, { cache: "no-store", signal: stop.signal, ...options });
    text = await answer.text();
  } catch (error) {
    throw new Unreachable(error.message);
  } finally {
    clearTimeout(timer);
    underWay.delete(stop);
  }
  try {
    return { status: answer.status, ok: answer.ok, body: JSON.parse(text) };
  } catch (error) {
    return { status: answer.status, ok: false, body: { error: error.message } };
  }
}

// What an answer that is an error says, and what to do.
export function complaint({ error, hint }) {
  return hint ? `${error} — ${hint}` : error;
}

// {name, scopes} of whoever looks at the page.
export async function who() {
  const answer = await asked(SESSION);
  if (!answer.ok) throw new Unreachable(answer.body.error);
  show(byId("logout"), !LOCAL.includes(answer.body.name));
  return answer.body;
}

// Shows the form; `why` is a word.
export function askForToken(why) {
  shown = why;
  said = "";
  const fresh = form.hidden;
  show(form, true);
  render();
  if (fresh) byId("token").focus();
}

export function render() {
  say(byId("login-why"), word(shown, { error: said }));
}

// `entered` is called when somebody has come in, `leaving` before he goes, `left` when his time is
// over.
export function begin({ entered, leaving, left }) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = byId("token");
    const body = JSON.stringify({ token: field.value.trim() });
    field.value = "";
    await enter(body, entered, left);
  });
  byId("logout").addEventListener("click", async () => {
    // What still goes on when the session ends, the agent breaks off, and the browser complains.
    leaving();
    for (const stop of underWay) stop.abort();
    try {
      await fetch(SESSION, { method: "DELETE", signal: AbortSignal.timeout(ANSWER_MS) });
    } finally {
      location.reload(); // nothing of what was shown stays
    }
  });
}

async function enter(body, entered, left) {
  const button = byId("enter");
  button.disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await asked(SESSION, { method: "POST", headers, body });
    if (!answer.ok) refuse(complaint(answer.body));
    else if (!answer.body.scopes.includes("read")) askForToken("login_lacks");
    else {
      clearTimeout(ends);
      ends = setTimeout(left, Math.min(answer.body.expires_s * 1000, TIMER_MS_MAX));
      show(form, false);
      entered();
    }
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    refuse(word("no_answer"));
  } finally {
    button.disabled = false;
  }
}

function refuse(why) {
  shown = "login_bad";
  said = why;
  render();
  byId("token").focus();
}
