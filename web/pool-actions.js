/**
 * What an operator may do: the token, the question before each action, and its result.
 */

import { byId, setText } from "/static/dom.js";
import { authorization } from "/static/pool-feed.js";
import { shortId } from "/static/pool-format.js";

const STORED = "voice_rtc.pool.token";

/**
 * @typedef {object} Ask
 * @property {boolean} unlocked
 * @property {(call: string) => void} hangUp
 * @property {(call: string) => void} isolate
 * @property {(replica: string) => void} restart
 * @property {(replica: string) => void} quarantine
 *
 * @typedef {object} Question
 * @property {string} title
 * @property {string} [subject] what it is done to, in full
 * @property {string} text what will happen
 * @property {string} verb on the button
 * @property {Record<string, unknown>} action as the server takes it
 */

/** The token of this tab; "" for none. Where the browser keeps nothing, it lives as long as the page. */
export const token = {
  value: "",

  /** From the address (`#token=...`, which is then cleared), else from this tab's storage. */
  load() {
    const given = new URLSearchParams(location.hash.slice(1)).get("token");
    if (given) {
      history.replaceState(null, "", location.pathname + location.search);
      this.set(given);
    } else {
      try {
        this.value = sessionStorage.getItem(STORED) ?? "";
      } catch (error) {
        if (!(error instanceof DOMException)) throw error;
      }
    }
    return Boolean(given);
  },

  /** @param {string} value */
  set(value) {
    this.value = value;
    try {
      if (value) sessionStorage.setItem(STORED, value);
      else sessionStorage.removeItem(STORED);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
    }
  },
};

/** Is this the server's token? @param {string} value @returns {Promise<string>} "" or what is wrong */
async function problemWith(value) {
  try {
    const response = await fetch("/pool.json", { method: "HEAD", headers: authorization(value), cache: "no-store" });
    if (response.ok) return "";
    return response.status === 401 ? "This is not the server's token." : `The server answered ${response.status}.`;
  } catch (error) {
    if (error instanceof TypeError) return "The server does not answer.";
    throw error;
  }
}

/** Asks for the token. */
export class TokenDialog {
  #dialog = byId("token-dialog");

  /** @param {(token: string) => void} onToken a token that the server took */
  constructor(onToken) {
    byId("token-cancel").addEventListener("click", () => this.#dialog.close());
    byId("token-form").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      const value = byId("token").value.trim();
      setText(byId("token-result"), "");
      const problem = await problemWith(value);
      if (problem) {
        setText(byId("token-result"), problem);
        byId("token").select();
        return;
      }
      this.#dialog.close();
      onToken(value);
    });
    this.#dialog.addEventListener("close", () => (byId("token").value = ""));
  }

  open() {
    setText(byId("token-result"), "");
    this.#dialog.showModal();
    byId("token").focus();
  }
}

/** Asks before an action, does it, and says what came of it. */
export class ActionDialog {
  #dialog = byId("action-dialog");
  #confirm = byId("action-confirm");
  #cancel = byId("action-cancel");
  #result = byId("action-result");
  /** @type {Question | null} */
  #question = null;
  /** @type {HTMLElement | null} */
  #opener = null;
  #fallback = "main";
  #onWrongToken;

  /** @param {() => void} onWrongToken the server does not take the token any more */
  constructor(onWrongToken) {
    this.#onWrongToken = onWrongToken;
    this.#cancel.addEventListener("click", () => this.#dialog.close());
    this.#confirm.addEventListener("click", () => void this.#act());
    this.#dialog.addEventListener("close", () => this.#closed());
  }

  /** @param {Question} question @param {string} fallback id of what gets the focus if the button is gone */
  ask(question, fallback) {
    this.#question = question;
    this.#fallback = fallback;
    this.#opener = /** @type {HTMLElement | null} */ (document.activeElement);
    setText(byId("action-title"), question.title);
    setText(byId("action-subject"), question.subject ?? "");
    setText(byId("action-text"), question.text);
    this.#outcome("", "");
    setText(this.#confirm, question.verb);
    setText(this.#cancel, "Cancel");
    this.#confirm.hidden = false;
    this.#confirm.disabled = false;
    this.#dialog.showModal();
    this.#cancel.focus();
  }

  async #act() {
    const question = this.#question;
    if (question === null) return;
    this.#confirm.disabled = true;
    this.#outcome("Working…", "");
    setText(this.#cancel, "Close");
    const { ok, text, status } = await send(question.action);
    if (this.#question !== question) return; // closed meanwhile
    this.#outcome(text, ok ? "good" : "bad");
    this.#confirm.hidden = ok;
    this.#confirm.disabled = false;
    if (ok) this.#cancel.focus();
    if (status === 401) this.#onWrongToken();
  }

  #outcome(/** @type {string} */ text, /** @type {string} */ outcome) {
    setText(this.#result, text);
    this.#result.dataset.outcome = outcome;
  }

  #closed() {
    this.#question = null;
    if (this.#opener?.isConnected && !(/** @type {any} */ (this.#opener).disabled)) this.#opener.focus();
    else byId(this.#fallback)?.focus();
  }
}

/** @param {Record<string, unknown>} action */
async function send(action) {
  try {
    const response = await fetch("/pool/actions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization(token.value) },
      body: JSON.stringify(action),
    });
    const body = await response.json();
    const text = response.ok ? body.detail : body.error?.message;
    return { ok: response.ok, text: text || `The server answered ${response.status}.`, status: response.status };
  } catch (error) {
    if (error instanceof TypeError || error instanceof SyntaxError)
      return { ok: false, text: "The server does not answer: nothing is known of the result.", status: 0 };
    throw error;
  }
}

/** The questions of all actions. */
export const questions = {
  /** @param {string} call @returns {Question} */
  hangUp: (call) => ({
    title: `Hang up ${shortId(call)}?`,
    subject: call,
    text: "The call ends at once; its slot goes to the next caller in the line.",
    verb: "Hang up",
    action: { action: "hang_up", call },
  }),
  /** @param {string} call @returns {Question} */
  isolate: (call) => ({
    title: `Isolate ${shortId(call)}?`,
    subject: call,
    text: "An engine is loaded for this call alone, to look for a fault. The call goes on meanwhile.",
    verb: "Isolate",
    action: { action: "isolate", call },
  }),
  /** @param {string} replica @returns {Question} */
  restart: (replica) => ({
    title: `Restart ${replica}?`,
    text: "The engine is loaded anew. Its calls go on: another takes over, and what was said is sent again.",
    verb: "Restart",
    action: { action: "restart", replica },
  }),
  /** @param {string} replica @returns {Question} */
  quarantine: (replica) => ({
    title: `Quarantine ${replica}?`,
    text: "The replica is taken out of service for good; another takes its calls over.",
    verb: "Quarantine",
    action: { action: "quarantine", replica },
  }),
  /** @param {number} slots @returns {Question} */
  resize: (slots) => ({
    title: slots === 0 ? "Size the pool automatically?" : `Set the pool to ${slots} slots?`,
    text:
      slots === 0
        ? "The pool goes back to what was measured on this machine."
        : "It stays so until the server restarts. Running calls go on, also when there are more of them than slots.",
    verb: slots === 0 ? "Automatic" : "Set",
    action: { action: "resize", slots },
  }),
  /** @param {string} mode @returns {Question} */
  mode: (mode) => ({
    title: `Switch to mode ${mode}?`,
    text: "New calls get this mode; running calls keep theirs. Loading its engine may take a while.",
    verb: "Switch",
    action: { action: "mode", mode },
  }),
  /** @returns {Question} */
  drain: () => ({
    title: "Refuse new calls?",
    text: "Running calls go on. New ones are refused until you take them again.",
    verb: "Refuse new calls",
    action: { action: "drain" },
  }),
  /** @returns {Question} */
  admit: () => ({
    title: "Take new calls again?",
    text: "The server stops refusing calls.",
    verb: "Take new calls",
    action: { action: "admit" },
  }),
  /** @returns {Question} */
  probe: () => ({
    title: "Measure again?",
    text: "The engine is measured under load, which takes a while and slows down running calls; the pool is sized by the result.",
    verb: "Measure",
    action: { action: "probe" },
  }),
};
