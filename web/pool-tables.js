/**
 * The other lists of the page: replicas, the waiting line, alerts, events, quality, sizing.
 */

import { byId, element, mirror, setAttribute, setStyle, setText } from "/static/dom.js";
import { counted, duration, known, latency, memory, number, percent, shortId, UNKNOWN, words } from "/static/pool-format.js";

const STEPS = {
  normal: "as configured",
  partials_slower: "partials less often",
  no_partials: "final transcripts only",
  economy: "quickest settings",
  queue_only: "new calls wait",
  refuse: "new calls are refused",
};

const SOURCES = {
  settings: "Set by the operator.",
  probe: "Measured on this machine.",
  formula: "Computed from the memory that is free.",
  engine: "What the engine says it carries.",
};

/** @typedef {import("/static/pool-actions.js").Ask} Ask */

const cell = (/** @type {string} */ label, className = "number") => element("td", { "data-label": label, class: className });

const twoLines = () => {
  const main = element("span", { class: "main-line" });
  const sub = element("span", { class: "sub-line" });
  return { main, sub };
};

/** The replicas' card. @param {any} status @param {Ask} ask */
export function showReplicas(status, ask) {
  const replicas = status.replicas ?? [];
  mirror(byId("replicas"), replicas, (replica) => replica.name, () => makeReplica(ask), (row, replica) => updateReplica(row, replica, ask));
  empty("replicas", replicas.length === 0, byId("replicas").parentElement);
  setText(byId("replicas-count"), replicas.length ? number(replicas.length) : "");
}

function makeReplica(/** @type {Ask} */ ask) {
  const name = twoLines();
  const state = { chip: element("span", { class: "chip" }), sub: element("span", { class: "sub-line" }) };
  const figures = ["Leases", "Probe", "Silent for", "Memory", "Age"].map((label) => {
    const lines = twoLines();
    const node = cell(label);
    node.append(lines.main, lines.sub);
    return { node, ...lines };
  });
  const restart = element("button", { class: "button small", type: "button" }, "Restart");
  const quarantine = element("button", { class: "button small", type: "button" }, "Quarantine");
  const row = { node: element("tr"), name, state, figures, restart, quarantine, replica: "" };
  const stateCell = cell("State", "");
  stateCell.append(state.chip, state.sub);
  row.node.append(
    element("th", { scope: "row" }, name.main, name.sub),
    stateCell,
    ...figures.map(({ node }) => node),
    element("td", { class: "row-actions" }, restart, quarantine),
  );
  restart.addEventListener("click", () => ask.restart(row.replica));
  quarantine.addEventListener("click", () => ask.quarantine(row.replica));
  return row;
}

function updateReplica(/** @type {any} */ row, /** @type {any} */ replica, /** @type {Ask} */ ask) {
  row.replica = replica.name;
  setText(row.name.main, replica.name);
  setText(row.name.sub, [replica.engine, replica.model].filter(Boolean).join(" "));
  const pids = (replica.pids ?? []).join(", ");
  setText(row.state.chip, replica.state ?? UNKNOWN);
  setAttribute(row.state.chip, "data-state", replica.state ?? "");
  setText(row.state.sub, replica.reason || [replica.role, replica.mode, known(replica.device) ? `device ${replica.device}` : ""].filter(Boolean).join(", "));
  const ms = (/** @type {unknown} */ seconds) => (known(seconds) ? latency(seconds * 1000) : UNKNOWN);
  const silent = known(replica.silent_seconds) && replica.silent_seconds >= 60;
  const values = [
    [
      known(replica.slots) && replica.slots > 0 ? `${number(replica.leases)} of ${number(replica.slots)}` : number(replica.leases),
      replica.batch_mean > 0 ? `batch ${number(replica.batch_mean, 1)}` : "",
    ],
    [ms(replica.probe_seconds), known(replica.probe_age_seconds) ? `${duration(replica.probe_age_seconds)} ago` : "none yet"],
    [silent ? duration(replica.silent_seconds) : ms(replica.silent_seconds), `busy ${ms(replica.busy_seconds)}`],
    [memory(replica.rss_mb), pids ? `pid ${pids}` : "no process"],
    [duration(replica.age_seconds), replica.failures > 0 ? counted(replica.failures, "failure") : "no failure"],
  ];
  values.forEach(([main, sub], index) => {
    setText(row.figures[index].main, main);
    setText(row.figures[index].sub, sub);
  });
  for (const [button, verb] of [
    [row.restart, "Restart"],
    [row.quarantine, "Quarantine"],
  ]) {
    button.disabled = !ask.unlocked;
    setAttribute(button, "aria-label", `${verb} ${replica.name}`);
  }
}

/** @param {any} status */
export function showLine(status) {
  const { entries = [], waiting } = status.line ?? {};
  mirror(byId("line"), entries, (entry) => `${entry.call} ${entry.mode}`, makeWaiter, updateWaiter);
  empty("line", entries.length === 0, byId("line-table"));
  setText(byId("line-count"), waiting ? number(waiting) : "");
}

function makeWaiter() {
  const row = { node: element("tr"), position: cell("#"), call: element("th", { scope: "row", class: "call-id" }), waited: cell("Waited"), eta: cell("About") };
  row.node.append(row.position, row.call, row.waited, row.eta);
  return row;
}

function updateWaiter(/** @type {any} */ row, /** @type {any} */ entry) {
  setText(row.position, number(entry.position));
  setText(row.call, shortId(entry.call ?? UNKNOWN) + (entry.present === false ? " (away)" : ""));
  setAttribute(row.call, "title", entry.present === false ? `${entry.call}: the connection is lost, the place is kept` : entry.call);
  setAttribute(row.node, "data-present", String(entry.present !== false));
  setText(row.waited, duration(entry.waited_seconds));
  setText(row.eta, duration(entry.eta_seconds));
}

/** What the alerts were, for the announcement of what changed. @type {Map<string, string>} */
let announced = new Map();

/** @param {any[]} alerts */
function announceAlerts(alerts) {
  const present = new Map(alerts.map((alert) => [alert.name, alert.text || words(alert.name)]));
  const news = [
    ...[...present].filter(([name]) => !announced.has(name)).map(([, text]) => `Alert: ${text}`),
    ...[...announced].filter(([name]) => !present.has(name)).map(([name]) => `Alert over: ${words(name)}.`),
  ];
  announced = present;
  if (news.length) setText(byId("alerts-news"), news.join(" "));
}

/** @param {any} status */
export function showAlerts(status) {
  const alerts = status.alerts ?? [];
  announceAlerts(alerts);
  mirror(
    byId("alerts"),
    alerts,
    (alert) => alert.name,
    () => {
      const [severity, text, since] = [element("strong", { class: "severity" }), element("span", { class: "alert-text" }), element("span", { class: "soft" })];
      return { node: element("li", { class: "alert" }, severity, text, since), severity, text, since };
    },
    (row, alert) => {
      setAttribute(row.node, "data-severity", alert.severity ?? "warning");
      setText(row.severity, words(alert.severity ?? "warning"));
      setText(row.text, alert.text || words(alert.name));
      setText(row.since, `for ${duration(alert.since_seconds)}`);
    },
  );
  empty("alerts", alerts.length === 0, null);
  setAttribute(byId("alerts-card"), "data-count", String(alerts.length));
}

/** @param {any} status */
export function showEvents(status) {
  const events = status.events ?? [];
  const now = status.now ?? 0;
  mirror(
    byId("events"),
    events,
    // An event keeps its moment while its age grows; half a second of rounding is forgiven.
    (event) => `${Math.round((now - event.age_seconds) / 2)} ${event.text}`,
    () => {
      const [text, age] = [element("span"), element("span", { class: "soft" })];
      return { node: element("li", {}, text, age), text, age };
    },
    (row, event) => {
      setText(row.text, event.text);
      setText(row.age, known(event.age_seconds) ? `${duration(event.age_seconds)} ago` : "");
    },
  );
  empty("events", events.length === 0, byId("events"));
}

/** @param {any} status */
export function showLadder(status) {
  const ladder = status.ladder;
  const names = ladder?.names ?? [];
  mirror(
    byId("ladder"),
    names.map((/** @type {string} */ name, /** @type {number} */ step) => ({ name, step })),
    (item) => item.name,
    (item) => ({ node: element("li", {}, element("strong", {}, words(item.name)), element("span", { class: "soft" }, STEPS[item.name] ?? "")) }),
    (row, item) => {
      setAttribute(row.node, "aria-current", item.step === ladder.step ? "step" : null);
      setAttribute(row.node, "data-place", item.step < ladder.step ? "passed" : item.step === ladder.step ? "here" : "ahead");
      setAttribute(row.node, "data-level", item.step >= 4 ? "bad" : item.step > 0 ? "busy" : "good");
    },
  );
  empty("ladder", names.length === 0, byId("ladder"));
  const reason = byId("ladder-reason");
  const since = known(ladder?.since_seconds) ? `for ${duration(ladder.since_seconds)}` : "";
  setText(reason, [ladder?.reason, since].filter(Boolean).join("; "));
  reason.hidden = !reason.textContent;
}

/** @param {any} status */
export function showSizing(status) {
  const { explanation, source, gpus = [], gpu_problem: problem } = status.sizing ?? {};
  const { target, max } = status.slots ?? {};
  setText(byId("sizing-text"), explanation || "Not sized yet.");
  setText(byId("sizing-source"), [SOURCES[source] ?? "", known(target) && known(max) && max > 0 ? `${number(target)} slots wanted, at most ${number(max)}.` : ""].filter(Boolean).join(" "));
  mirror(
    byId("gpus"),
    gpus,
    (gpu) => String(gpu.index),
    () => {
      const name = twoLines();
      const meter = element("span", { class: "mini-meter", "aria-hidden": "true" }, element("span"));
      const [used, free] = [cell("Used"), cell("Free")];
      const [inUse, total] = [element("span", { class: "main-line" }), element("span", { class: "sub-line" })];
      used.append(inUse, total);
      return { node: element("tr", {}, element("th", { scope: "row" }, name.main, name.sub, meter), used, free), name, meter, inUse, total, free };
    },
    (row, gpu) => {
      setText(row.name.main, (gpu.name ?? UNKNOWN).replace("NVIDIA ", ""));
      setText(row.name.sub, `GPU ${gpu.index}${gpu.mig ? ", MIG" : ""}, ${percent((100 * gpu.used_mb) / gpu.total_mb)} used`);
      setStyle(row.meter.firstElementChild, "--share", String(Math.min(1, (gpu.used_mb ?? 0) / (gpu.total_mb || 1))));
      setText(row.inUse, memory(gpu.used_mb));
      setText(row.total, `of ${memory(gpu.total_mb)}`);
      setText(row.free, memory(gpu.free_mb));
    },
  );
  empty("gpus", gpus.length === 0, byId("gpus-table"));
  setText(byId("gpus-empty"), problem || "No GPU.");
}

/** Words in place of an empty list. @param {string} name @param {boolean} isEmpty @param {HTMLElement | null} list */
function empty(name, isEmpty, list) {
  byId(`${name}-empty`).hidden = !isEmpty;
  if (list) list.hidden = isEmpty;
}
