/**
 * Line charts of the last hour, drawn as SVG in the size that they are shown in.
 *
 * All charts share a cursor: pointing at one, or moving with the arrow keys, reads the values of all
 * at that moment; without a cursor the legends show the newest values.
 */

import { element, setAttribute, setStyle, setText } from "/static/dom.js";
import { clock, known, UNKNOWN } from "/static/pool-format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 116;
const TOP = 10;
const BOTTOM = 20;
const LEFT = 46;
const ALL_LABELS_FROM = 380;
const RIGHT = 8;
const PAGE_STEPS = 60;
const HOUR_SECONDS = 3_600;

/**
 * @typedef {object} Line
 * @property {string} key name of the series
 * @property {string} label
 * @property {string} look class: `accent`, `soft` or `warm`
 * @property {boolean} [area] filled to the bottom
 * @property {boolean} [steps] holds its value until the next point
 *
 * @typedef {object} Plan
 * @property {string} title
 * @property {Line[]} lines
 * @property {(value: unknown) => string} format for the legend
 * @property {(value: number) => string} [tick] for the axis
 * @property {number} [least] the axis reaches at least so far
 * @property {number} [full] the axis ends here while all is below
 * @property {() => number | null} [goal] a level to be marked
 */

/** @param {string} tag @param {Record<string, string | number>} attributes */
function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  return made;
}

/** Round steps for an axis up to `top`: 1, 2 or 5 times a power of ten. @param {number} top */
export function niceStep(top, most = 3) {
  const rough = top / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough) ?? 10 * power;
}

/** One chart. */
export class Chart {
  #plan;
  #group;
  /** @type {HTMLElement} */
  node;
  #plot;
  #svg;
  #cursor;
  #time;
  #summary;
  /** @type {Map<string, {value: Element}>} */
  #legend = new Map();
  #width = 0;
  /** @type {{at: number[], [name: string]: (number | null)[]}} */
  #series = { at: [] };
  #top = 1;

  /** @param {Plan} plan @param {ChartGroup} group */
  constructor(plan, group) {
    this.#plan = plan;
    this.#group = group;
    const id = `chart-${plan.lines[0].key}`;
    this.#time = element("span", { class: "chart-time" });
    const legend = element("ul", { class: "chart-legend" });
    for (const line of plan.lines) {
      const value = element("strong", {}, UNKNOWN);
      legend.append(element("li", { "data-look": line.look }, `${line.label} `, value));
      this.#legend.set(line.key, { value });
    }
    this.#svg = svg("svg", { "aria-hidden": "true", focusable: "false", height: HEIGHT });
    this.#cursor = svg("g", { class: "chart-cursor" });
    this.#summary = element("p", { class: "hidden", id: `${id}-summary` });
    this.#plot = element(
      "div",
      {
        class: "chart-plot",
        tabindex: "0",
        role: "slider",
        "aria-readonly": "true",
        "aria-label": `${plan.title}, time`,
        "aria-describedby": `${id}-summary`,
        "aria-valuemin": "0",
      },
      this.#svg,
    );
    const heading = element("h3", {}, plan.title);
    this.node = element(
      "div",
      { class: "chart" },
      element("div", { class: "chart-head" }, heading, this.#time),
      legend,
      this.#plot,
      this.#summary,
    );
    this.#listen();
  }

  #listen() {
    const plot = this.#plot;
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width === this.#width || width === 0) return;
      this.#width = width;
      this.#draw();
    }).observe(plot);
    plot.addEventListener("pointermove", (event) => this.#group.point(this.#indexAt(event.clientX)));
    plot.addEventListener("pointerdown", (event) => this.#group.point(this.#indexAt(event.clientX)));
    plot.addEventListener("pointerleave", () => this.#group.point(null));
    plot.addEventListener("blur", () => this.#group.point(null));
    plot.addEventListener("keydown", (event) => {
      const last = this.#series.at.length - 1;
      const here = this.#group.cursor ?? last;
      const there = {
        ArrowLeft: here - 1,
        ArrowDown: here - 1,
        ArrowRight: here + 1,
        ArrowUp: here + 1,
        PageDown: here - PAGE_STEPS,
        PageUp: here + PAGE_STEPS,
        Home: 0,
        End: last,
      }[event.key];
      if (event.key === "Escape") this.#group.point(null);
      if (there === undefined || last < 0) return;
      event.preventDefault();
      this.#group.point(Math.min(Math.max(there, 0), last));
    });
  }

  /** @param {{at: number[]}} series */
  show(series) {
    this.#series = series;
    this.#draw();
    const goal = this.#plan.goal?.();
    setText(
      this.#summary,
      this.#plan.lines.map((line) => this.#describe(line)).join(" ") +
        (known(goal) ? ` The goal is ${this.#plan.format(goal)}.` : ""),
    );
  }

  /** Has any line of the chart a value? @param {Record<string, (number | null)[]>} series */
  has(series) {
    return this.#plan.lines.some((line) => (series[line.key] ?? []).some(known));
  }

  /** @param {Line} line */
  #describe(line) {
    const values = (this.#series[line.key] ?? []).filter(known);
    if (values.length === 0) return `${line.label}: nothing known.`;
    const { format } = this.#plan;
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return `${line.label}: now ${format(this.#value(line, null))}, from ${format(least)} to ${format(most)} since ${known(this.#series.at[0]) ? clock(this.#series.at[0]) : UNKNOWN}.`;
  }

  /** @param {Line} line @param {number | null} index */
  #value(line, index) {
    return (this.#series[line.key] ?? []).at(index ?? -1) ?? null;
  }

  /** Read the values at a point; null: the newest. @param {number | null} index */
  read(index) {
    const { lines, format } = this.#plan;
    for (const line of lines) setText(this.#legend.get(line.key).value, format(this.#value(line, index)));
    const at = this.#series.at.at(index ?? -1);
    setText(this.#time, index !== null && known(at) ? clock(at) : "");
    const last = Math.max(this.#series.at.length - 1, 0);
    setAttribute(this.#plot, "aria-valuemax", String(last));
    setAttribute(this.#plot, "aria-valuenow", String(index ?? last));
    const values = lines.map((line) => `${line.label} ${format(this.#value(line, index))}`).join(", ");
    setAttribute(this.#plot, "aria-valuetext", `${known(at) ? clock(at) : "no point"}: ${values}`);
    this.#drawCursor(index);
  }

  #x(index) {
    const last = Math.max(this.#group.points - 1, 1);
    const skipped = this.#group.points - this.#series.at.length; // a young server's line ends at now
    return LEFT + ((index + skipped) / last) * (this.#width - LEFT - RIGHT);
  }

  #y(value) {
    return TOP + (1 - value / this.#top) * (HEIGHT - TOP - BOTTOM);
  }

  #indexAt(clientX) {
    const left = this.#plot.getBoundingClientRect().left;
    const share = (clientX - left - LEFT) / (this.#width - LEFT - RIGHT);
    const skipped = this.#group.points - this.#series.at.length;
    const index = Math.round(share * (this.#group.points - 1)) - skipped;
    return this.#series.at.length ? Math.min(Math.max(index, 0), this.#series.at.length - 1) : null;
  }

  #draw() {
    if (this.#width === 0) return;
    const { lines, least = 1 } = this.#plan;
    const goal = this.#plan.goal?.() ?? null;
    const values = lines.flatMap((line) => (this.#series[line.key] ?? []).filter(known));
    const most = Math.max(least, goal ?? 0, ...values);
    const step = niceStep(most);
    this.#top = most <= (this.#plan.full ?? 0) ? this.#plan.full : Math.ceil((most * 1.02) / step) * step;
    setAttribute(this.#svg, "width", String(this.#width));
    setAttribute(this.#svg, "viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    this.#svg.replaceChildren(...this.#axes(step));
    if (known(goal)) this.#svg.append(...this.#goal(goal));
    for (const line of lines) this.#svg.append(...this.#paths(line));
    this.#svg.append(this.#cursor);
    this.read(this.#group.cursor);
  }

  #axes(step) {
    const parts = [];
    const right = this.#width - RIGHT;
    const tick = this.#plan.tick ?? this.#plan.format;
    for (let value = 0; value <= this.#top + step / 2; value += step) {
      const y = Math.round(this.#y(value)) + 0.5;
      parts.push(svg("line", { class: value === 0 ? "chart-base" : "chart-rule", x1: LEFT, x2: right, y1: y, y2: y }));
      const label = svg("text", { x: LEFT - 6, y: y + 3.5, "text-anchor": "end" });
      label.textContent = value === 0 ? "0" : tick(value);
      parts.push(label);
    }
    const span = (this.#group.points * this.#group.stepSeconds) / 60;
    for (const share of this.#width < ALL_LABELS_FROM ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) {
      const minutes = span * (1 - share);
      const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
      const x = LEFT + share * (right - LEFT);
      const label = svg("text", { x, y: HEIGHT - 4, "text-anchor": anchor });
      label.textContent = minutes === 0 ? "now" : `−${Number(minutes.toFixed(1))} min`;
      parts.push(label);
    }
    return parts;
  }

  #goal(goal) {
    const y = Math.round(this.#y(goal)) + 0.5;
    const label = svg("text", { class: "chart-goal-text", x: this.#width - RIGHT, y: y - 4, "text-anchor": "end" });
    label.textContent = "goal";
    return [svg("line", { class: "chart-goal", x1: LEFT, x2: this.#width - RIGHT, y1: y, y2: y }), label];
  }

  /** A path for the line, with gaps where nothing is known, and one for its area. @param {Line} line */
  #paths(line) {
    const values = this.#series[line.key] ?? [];
    let path = "";
    let area = "";
    let start = -1;
    const finish = (end) => {
      if (start < 0 || !line.area) return;
      area += `L${this.#x(end).toFixed(1)} ${this.#y(0)}H${this.#x(start).toFixed(1)}Z`;
    };
    values.forEach((value, index) => {
      if (!known(value)) {
        finish(index - 1);
        start = -1;
        return;
      }
      const [x, y] = [this.#x(index).toFixed(1), this.#y(value).toFixed(1)];
      const move = start < 0 ? `M${x} ${y}` : line.steps ? `H${x}V${y}` : `L${x} ${y}`;
      path += move;
      area += move;
      if (start < 0) start = index;
    });
    finish(values.length - 1);
    const parts = [svg("path", { class: `chart-line ${line.look}`, d: path })];
    if (line.area) parts.unshift(svg("path", { class: `chart-area ${line.look}`, d: area }));
    return parts;
  }

  #drawCursor(index) {
    this.#cursor.replaceChildren();
    if (index === null || this.#width === 0) return;
    const x = Math.round(this.#x(index)) + 0.5;
    this.#cursor.append(svg("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    for (const line of this.#plan.lines) {
      const value = this.#value(line, index);
      if (known(value)) this.#cursor.append(svg("circle", { class: line.look, cx: x, cy: this.#y(value), r: 3.5 }));
    }
  }
}

/** Charts of the same moments. */
export class ChartGroup {
  /** Index of the moment that is read; null: the newest. @type {number | null} */
  cursor = null;
  /** Places on the time axis: ten minutes while the server is young, later half an hour, an hour. */
  points = 120;
  stepSeconds = 5;
  #series = { at: /** @type {number[]} */ ([]) };
  /** @type {Chart[]} */
  #charts;
  #container;
  #empty;

  /** @param {HTMLElement} container @param {HTMLElement} empty @param {Plan[]} plans */
  constructor(container, empty, plans) {
    this.#container = container;
    this.#empty = empty;
    this.#charts = plans.map((plan) => new Chart(plan, this));
    container.append(...this.#charts.map((chart) => chart.node));
    this.#show();
  }

  /** The history as the server tells it. @param {any} history */
  replace(history) {
    const series = history?.series ?? {};
    this.stepSeconds = history?.step_seconds || 5;
    this.#series = { ...series, at: series.at ?? [] };
    this.#show();
  }

  /** One more point, if it is new. @param {any} point */
  add(point) {
    if (!known(point?.at) || point.at <= (this.#series.at.at(-1) ?? 0)) return;
    for (const name of new Set([...Object.keys(point), ...Object.keys(this.#series)])) {
      const values = (this.#series[name] ??= Array(this.#series.at.length).fill(null));
      if (name !== "at") values.push(point[name] ?? null);
    }
    this.#series.at.push(point.at);
    for (const values of Object.values(this.#series)) values.splice(0, values.length - HOUR_SECONDS / this.stepSeconds);
    this.#show();
  }

  /** @param {number | null} index */
  point(index) {
    if (index === this.cursor) return;
    this.cursor = index;
    for (const chart of this.#charts) chart.read(index);
  }

  #show() {
    const seconds = this.#series.at.length * this.stepSeconds;
    const span = [HOUR_SECONDS / 6, HOUR_SECONDS / 2].find((each) => seconds <= each) ?? HOUR_SECONDS;
    this.points = Math.round(span / this.stepSeconds);
    const isEmpty = this.#series.at.length === 0;
    this.#container.hidden = isEmpty;
    this.#empty.hidden = !isEmpty;
    for (const chart of this.#charts) {
      chart.node.hidden = !chart.has(this.#series);
      chart.show(this.#series);
    }
    setStyle(this.#container, "--charts", String(this.#charts.filter((chart) => !chart.node.hidden).length));
  }
}
