/**
 * The table of calls: who holds which slot, and where the time of the last turn went.
 */

import { byId, element, mirror, setAttribute, setStyle, setText } from "/static/dom.js";
import { counted, duration, known, latency, number, shortId, UNKNOWN } from "/static/pool-format.js";
import { barOf, lengthOf, STAGES } from "/static/stages.js";

const SHOWN_AT_FIRST = matchMedia("(max-width: 47.99rem)").matches ? 8 : 30;
const FILTER_FROM = 12;

const FLOORS = {
  IDLE: "silence",
  USER: "caller speaks",
  PAUSE: "caller pauses",
  THINKING: "thinking",
  AGENT: "agent speaks",
  OVERLAP: "both speak",
};

/** @typedef {import("/static/pool-actions.js").Ask} Ask */

/** The calls' card. */
export class CallsTable {
  #ask;
  #showAll = false;
  /** @type {any} */
  #status = { calls: [] };

  /** @param {Ask} ask */
  constructor(ask) {
    this.#ask = ask;
    byId("calls-filter").addEventListener("input", () => this.show(this.#status));
    byId("calls-all").addEventListener("click", () => {
      this.#showAll = !this.#showAll;
      this.show(this.#status);
    });
  }

  /** @param {any} status */
  show(status) {
    this.#status = status;
    const all = merged(status);
    const filter = byId("calls-filter").value.trim().toLowerCase();
    const fitting = filter ? all.filter((entry) => haystack(entry).includes(filter)) : all;
    const shown = this.#showAll ? fitting : fitting.slice(0, SHOWN_AT_FIRST);
    const longest = Math.max(1, ...shown.map((entry) => lengthOf(entry.call?.last_turn) ?? 0));
    mirror(byId("calls"), shown, keyOf, () => this.#make(), (row, entry) => this.#update(row, entry, longest));
    const active = status.calls_active ?? all.length;
    setText(byId("calls-count"), active ? number(active) : "");
    byId("calls-filter-line").hidden = all.length < FILTER_FROM && !filter;
    byId("calls-table").hidden = shown.length === 0;
    byId("calls-empty").hidden = shown.length > 0;
    setText(byId("calls-empty"), filter && all.length ? "No call fits the filter." : "Nobody is calling.");
    byId("calls-more").hidden = fitting.length <= SHOWN_AT_FIRST;
    setText(byId("calls-all"), this.#showAll ? `Show the first ${SHOWN_AT_FIRST}` : `Show all ${number(fitting.length)}`);
  }

  #make() {
    const cell = (/** @type {string} */ label, className = "") => element("td", { "data-label": label, class: className });
    const id = element("span", { class: "main-line call-id" });
    const age = element("span", { class: "sub-line" });
    const heading = element("th", { scope: "row" }, id, age);
    const floor = element("span", { class: "chip" });
    const now = cell("Now");
    now.append(floor);
    const lease = cell("Lease", "lease");
    const leaseMain = element("span", { class: "main-line" });
    const leaseNote = element("span", { class: "sub-line" });
    lease.append(leaseMain, leaseNote);
    const turn = makeTurn();
    const last = cell("Last turn", "fill");
    last.append(turn.node);
    const hangUp = element("button", { class: "button small", type: "button" }, "Hang up");
    const isolate = element("button", { class: "button small", type: "button" }, "Isolate");
    const row = { node: element("tr"), id, floor, age, leaseMain, leaseNote, turn, hangUp, isolate, callId: "" };
    row.node.append(heading, now, lease, last, element("td", { class: "row-actions" }, isolate, hangUp));
    hangUp.addEventListener("click", () => this.#ask.hangUp(row.callId));
    isolate.addEventListener("click", () => this.#ask.isolate(row.callId));
    return row;
  }

  #update(/** @type {any} */ row, /** @type {Entry} */ { id, call, lease }, /** @type {number} */ longest) {
    row.callId = id;
    setText(row.id, shortId(id));
    setAttribute(row.id, "title", id);
    setText(row.floor, stateWords(call));
    setAttribute(row.floor, "data-floor", call?.state === "live" ? (call.floor ?? "") : (call?.state ?? ""));
    const turns = call?.turns > 0 ? `, ${counted(call.turns, "turn")}` : "";
    setText(row.age, `${duration(call?.age_seconds ?? lease?.held_seconds)}${turns}`);
    setText(row.leaseMain, lease ? `slot ${number(lease.slot)} · ${lease.replica ?? "no replica yet"}` : UNKNOWN);
    setText(row.leaseNote, lease ? leaseNote(lease) : "");
    setAttribute(row.leaseMain.parentElement, "title", lease ? leaseTitle(lease) : null);
    setText(row.turn.none, call?.state === "live" ? "no answered turn yet" : UNKNOWN);
    updateTurn(row.turn, call?.last_turn, longest);
    const enabled = this.#ask.unlocked;
    row.hangUp.disabled = !enabled;
    row.isolate.disabled = !enabled || !lease;
    setAttribute(row.hangUp, "aria-label", `Hang up ${shortId(id)}`);
    setAttribute(row.isolate, "aria-label", `Isolate ${shortId(id)}`);
  }
}

/** @typedef {{id: string, call: any, lease: any}} Entry */

/** Calls with their leases, and leases whose call is not listed. @param {any} status @returns {Entry[]} */
function merged(status) {
  const leases = new Map((status.leases ?? []).map((/** @type {any} */ lease) => [lease.id, lease]));
  const entries = (status.calls ?? []).map((/** @type {any} */ call) => {
    const lease = leases.get(call.lease) ?? null;
    leases.delete(call.lease);
    return { id: call.id, call, lease };
  });
  for (const lease of leases.values()) entries.push({ id: lease.call, call: null, lease });
  return entries;
}

/** Ids that were cut short may be the same; their leases are not. */
function keyOf(/** @type {Entry} */ entry) {
  return `${entry.id} ${entry.lease?.id ?? ""}`;
}

function haystack(/** @type {Entry} */ { id, call, lease }) {
  return `${id} ${stateWords(call)} ${lease?.replica ?? ""} ${lease?.mode ?? ""}`.toLowerCase();
}

function stateWords(/** @type {any} */ call) {
  if (!call) return UNKNOWN;
  if (call.state !== "live") return call.state ?? UNKNOWN;
  if (call.suspended) return "not heard of";
  return FLOORS[call.floor] ?? String(call.floor ?? UNKNOWN).toLowerCase();
}

function leaseNote(/** @type {any} */ lease) {
  return [`lease ${lease.id ?? UNKNOWN}`, lease.replays > 0 ? `replays ${number(lease.replays)}` : lease.mode].filter(Boolean).join(" · ");
}

function leaseTitle(/** @type {any} */ lease) {
  return `mode ${lease.mode ?? UNKNOWN}, held for ${duration(lease.held_seconds)}, ${counted(lease.utterances ?? 0, "utterance")}, ${number(lease.audio_kb)} kB of audio kept for a replay`;
}

function makeTurn() {
  const parts = STAGES.map(({ stage }) => element("span", { "data-stage": stage }));
  const figures = STAGES.map(({ stage, label }) => {
    const figure = element("span");
    const node = element("span", { class: "turn-figure", "data-stage": stage, title: label }, element("span", { class: "hidden" }, `${label} `), figure);
    return { node, figure };
  });
  const bar = element("div", { class: "waterfall", "aria-hidden": "true" }, ...parts);
  const response = element("strong", { class: "turn-response" });
  const list = element("div", { class: "turn-figures" }, ...figures.map(({ node }) => node));
  const none = element("span", { class: "soft" });
  const some = element("div", { class: "turn-bar" }, bar, response);
  return { node: element("div", { class: "turn-cell" }, none, some, list), parts, figures, bar, response, none, some, list };
}

function updateTurn(/** @type {any} */ row, /** @type {any} */ turn, /** @type {number} */ longest) {
  const sum = lengthOf(turn);
  row.none.hidden = sum !== null;
  row.some.hidden = sum === null;
  row.list.hidden = sum === null;
  if (sum === null) return;
  barOf(turn, longest).forEach(({ percent }, index) => setStyle(row.parts[index], "width", `${percent}%`));
  STAGES.forEach(({ key }, index) => setText(row.figures[index].figure, latency(turn[key])));
  setText(row.response, known(turn.response_ms) ? latency(turn.response_ms) : UNKNOWN);
  setAttribute(row.response, "title", "from the caller's last speech to the first sound of the answer");
}
