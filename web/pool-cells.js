/**
 * The slots as small cells, one for each.
 */

import { byId, element, mirror, setAttribute, setText } from "/static/dom.js";
import { number, shortId } from "/static/pool-format.js";
import { outOfService } from "/static/pool-overview.js";

/** @typedef {{key: string, state: "leased" | "free" | "starting" | "quarantined", text: string}} Cell */

/** @param {any} status @returns {Cell[]} */
export function cells(status) {
  const { total = 0, target = 0 } = status.slots ?? {};
  const taken = leasesByPlace(status.leases ?? [], total);
  const list = /** @type {Cell[]} */ ([]);
  for (let place = 0; place < total; place += 1) {
    const lease = taken.get(place);
    const key = String(place);
    if (lease) list.push({ key, state: "leased", text: `Slot ${number(lease.slot)}: leased to ${shortId(lease.call)}, ${lease.replica ?? "no replica yet"}` });
    else list.push({ key, state: "free", text: "Free slot" });
  }
  const add = (/** @type {Cell["state"]} */ state, /** @type {number} */ count, /** @type {string} */ text) => {
    for (let each = 0; each < count; each += 1) list.push({ key: `${state} ${each}`, state, text });
  };
  const starting = (status.replicas ?? []).some((/** @type {any} */ replica) => replica.state === "starting" && replica.role === "serving");
  if (starting) add("starting", Math.max(0, target - total), "Slot of a replica that is starting");
  add("quarantined", outOfService(status), "Slot of a replica in quarantine");
  return list;
}

/**
 * Each lease at the place of its slot's number, which counts from 1, so that it stays where it is.
 * Numbers that are too high (the pool was resized) or taken (by another mode) get the free places.
 */
function leasesByPlace(/** @type {any[]} */ leases, /** @type {number} */ total) {
  const taken = new Map();
  const rest = [];
  for (const lease of leases) {
    const place = lease.slot - 1;
    if (place >= 0 && place < total && !taken.has(place)) taken.set(place, lease);
    else rest.push(lease);
  }
  for (let place = 0; place < total && rest.length; place += 1) if (!taken.has(place)) taken.set(place, rest.shift());
  return taken;
}

/** @param {any} status */
export function showCells(status) {
  const list = cells(status);
  mirror(byId("cells"), list, (cell) => cell.key, makeCell, updateCell);
  byId("cells").hidden = list.length === 0;
  byId("cells-empty").hidden = list.length > 0;
  const counts = new Map();
  for (const cell of list) counts.set(cell.state, (counts.get(cell.state) ?? 0) + 1);
  const summary = [...counts].map(([state, count]) => `${number(count)} ${state}`).join(", ");
  setAttribute(byId("cells"), "aria-label", `Slots: ${summary}`);
  setAttribute(byId("cells"), "data-size", list.length > 240 ? "tiny" : list.length > 80 ? "small" : "normal");
  for (const item of byId("cells-legend").children) {
    const count = counts.get(item.dataset.cell) ?? 0;
    item.hidden = count === 0 && (item.dataset.cell === "starting" || item.dataset.cell === "quarantined");
    setText(item, `${number(count)} ${item.dataset.cell}`);
  }
}

function makeCell() {
  return { node: element("span", { class: "cell" }) };
}

function updateCell(/** @type {{node: Element}} */ row, /** @type {Cell} */ cell) {
  setAttribute(row.node, "data-cell", cell.state);
  setAttribute(row.node, "title", cell.text);
}
