/**
 * The top of the page: what is going on in one sentence, how full it is, and the vital figures.
 */

import { byId, element, mirror, setAttribute, setStyle, setText } from "/static/dom.js";
import { counted, duration, known, latency, memory, number, percent, UNKNOWN, words } from "/static/pool-format.js";

/**
 * The state in a sentence. Level: `good`, `busy`, `bad` or `unknown`.
 * @param {any} status
 * @returns {{level: string, text: string, detail: string}}
 */
export function verdict(status) {
  const { slots = {}, line = {}, ladder, admission, alerts = [] } = status;
  const critical = alerts.some((/** @type {any} */ alert) => alert.severity === "critical");
  const say = (/** @type {string} */ level, /** @type {string} */ text, detail = "") => ({
    level: critical ? "bad" : level,
    text,
    detail,
  });
  if (status.status === "failed") return say("bad", "Not working: the speech engines could not be loaded", status.detail);
  if (status.status === "loading") return say("busy", "The speech engines are loading", status.detail);
  if (status.status === "draining")
    return say("busy", `Draining: new calls are refused, ${counted(status.calls_active ?? 0, "call")} still running`);
  if (admission?.state === "refuse") return say("bad", "Overloaded: new calls are refused", admission.reason);
  if (admission?.state === "queue_only") return say("bad", "Overloaded: new calls have to wait", admission.reason);
  const waiting = line.waiting ?? 0;
  const full = slots.free === 0 && slots.total > 0;
  if (waiting > 0) return say("busy", `Full: ${counted(waiting, "caller is", "callers are")} waiting`);
  if (ladder?.step > 0) return say("busy", `Reduced quality: ${words(ladder.name)}`, ladder.reason);
  if (alerts.length > 0) return say("busy", `Working, with ${counted(alerts.length, "alert")}`);
  if (full) return say("busy", "All slots are leased, nobody waits");
  return say("good", `All well: ${counted(slots.free ?? 0, "slot")} free`);
}

/**
 * @typedef {object} Tile
 * @property {string} name
 * @property {string} value
 * @property {string} note
 * @property {number | null} [share] of a limit, 0 to 1
 * @property {"good" | "busy" | "bad"} [level]
 */

/** @param {number | null | undefined} share */
function levelOf(share, high = 0.85, critical = 0.95) {
  if (!known(share)) return "good";
  return share >= critical ? "bad" : share >= high ? "busy" : "good";
}

/** @param {any} status @returns {Tile[]} */
function tiles(status) {
  const { line = {}, latency: times, machine, ladder, sizing } = status;
  const goal = sizing?.goal_seconds;
  const p95 = times?.final_p95_seconds;
  const late = known(p95) && known(goal) ? p95 / goal : null;
  const used = known(machine?.memory_total_mb) && known(machine?.memory_available_mb) ? machine.memory_total_mb - machine.memory_available_mb : null;
  const memoryShare = used === null ? null : used / machine.memory_total_mb;
  const pressure = machine?.memory_pressure;
  const own = known(machine?.rss_mb) ? machine.rss_mb + (machine.workers_rss_mb ?? 0) : null;
  const gpus = sizing?.gpus ?? [];
  const sum = (/** @type {string} */ name) => gpus.reduce((/** @type {number} */ total, /** @type {any} */ gpu) => total + (gpu[name] ?? 0), 0);
  const steps = ladder?.names?.length;
  return [
    {
      name: "Waiting",
      value: number(line.waiting),
      note: line.waiting ? `longest ${duration(line.longest_wait_seconds)}` : line.max_waiting > 0 ? `room for ${number(line.max_waiting)}` : "",
      share: known(line.waiting) && line.max_waiting > 0 ? line.waiting / line.max_waiting : null,
      level: line.waiting > 0 ? "busy" : "good",
    },
    {
      name: "Final transcript, p95",
      value: known(p95) ? latency(p95 * 1000) : UNKNOWN,
      note: known(goal) ? `goal ${latency(goal * 1000)}` : "",
      share: late,
      level: levelOf(late, 0.9, 1.0001),
    },
    {
      name: "Quality",
      value: ladder ? words(ladder.name) : UNKNOWN,
      note: ladder && known(steps) ? `step ${number(ladder.step)} of ${number(steps - 1)}` : "",
      share: ladder && steps > 1 ? ladder.step / (steps - 1) : null,
      level: ladder?.step >= 4 ? "bad" : ladder?.step > 0 ? "busy" : "good",
    },
    {
      name: "CPU",
      value: percent(machine?.cpu_percent),
      note: known(machine?.cores) ? `of ${counted(machine.cores, "core")}` : "",
      share: known(machine?.cpu_percent) ? machine.cpu_percent / 100 : null,
      level: levelOf(known(machine?.cpu_percent) ? machine.cpu_percent / 100 : null),
    },
    {
      name: "Memory",
      value: memory(used),
      note: machine ? `of ${memory(machine.memory_total_mb)}, ${memory(own)} ours` : "",
      share: memoryShare,
      level: pressure === "critical" ? "bad" : pressure === "high" ? "busy" : "good",
    },
    {
      name: gpus.length > 1 ? `GPU memory, ${gpus.length} GPUs` : "GPU memory",
      value: gpus.length ? memory(sum("used_mb")) : UNKNOWN,
      note: gpus.length ? `of ${memory(sum("total_mb"))}` : sizing ? "no GPU" : "",
      share: gpus.length ? sum("used_mb") / sum("total_mb") : null,
      level: levelOf(gpus.length ? sum("used_mb") / sum("total_mb") : null, 0.92, 0.98),
    },
  ];
}

/** Draws the overview card. @param {any} status */
export function showOverview(status) {
  const { level, text, detail } = verdict(status);
  setText(byId("verdict-text"), text);
  setAttribute(byId("verdict"), "data-level", level);
  const extra = byId("verdict-detail");
  extra.hidden = !detail;
  setText(extra, detail ?? "");
  document.title = `${text} – voice_rtc pool`;
  setText(byId("server-line"), serverLine(status));

  const { total = 0, leased = 0, free = 0 } = status.slots ?? {};
  setText(byId("slots-leased"), number(leased));
  setText(byId("slots-total"), number(total));
  const away = outOfService(status);
  const rest = [free > 0 ? `${number(free)} free` : "", away > 0 ? `${number(away)} out of service` : ""].filter(Boolean);
  setText(byId("slots-rest"), rest.length ? `, ${rest.join(", ")}` : "");
  const bar = byId("slots-bar");
  const shares = { leased, free, out: away };
  for (const part of bar.children) setStyle(part, "flex-grow", String(shares[part.dataset.part] ?? 0));

  mirror(byId("tiles"), tiles(status), (tile) => tile.name.split(",")[0], makeTile, updateTile);
}

/** Slots of quarantined replicas, which the total does not count. @param {any} status */
export function outOfService(status) {
  return (status.replicas ?? [])
    .filter((/** @type {any} */ replica) => replica.state === "quarantined")
    .reduce((/** @type {number} */ sum, /** @type {any} */ replica) => sum + (replica.slots ?? 0), 0);
}

/** @param {any} status */
function serverLine(status) {
  const { mode, rollout, fallback, media } = status;
  return [
    mode ? `mode ${mode}` : "",
    rollout ? `${rollout.mode} for ${percent(rollout.share * 100)} of calls` : "",
    fallback ? `fell back from ${fallback.from}: ${fallback.reason}` : "",
    media ? `${media.path} media path` : "",
    known(status.uptime_seconds) ? `up ${duration(status.uptime_seconds)}` : "",
    status.version ? `version ${status.version}` : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

function makeTile() {
  const name = element("dt");
  const value = element("dd", { class: "tile-value" });
  const note = element("dd", { class: "tile-note" });
  const meter = element("dd", { class: "tile-meter", "aria-hidden": "true" }, element("span"));
  return { node: element("div", { class: "tile" }, name, value, meter, note), name, value, note, meter };
}

function updateTile(/** @type {any} */ row, /** @type {Tile} */ tile) {
  setText(row.name, tile.name);
  setText(row.value, tile.value);
  setText(row.note, tile.note);
  setAttribute(row.node, "data-level", tile.level ?? "good");
  setAttribute(row.meter, "data-known", String(known(tile.share)));
  setStyle(row.meter.firstElementChild, "--share", String(Math.min(Math.max(tile.share ?? 0, 0), 1)));
}
