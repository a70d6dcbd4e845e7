/**
 * Figures for people. What is not known (null, undefined, not a number) is a dash, never a zero.
 */

export const UNKNOWN = "–";

/** @param {unknown} value @returns {value is number} */
export function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** A plain number. @param {unknown} value @param {number} digits after the point */
export function number(value, digits = 0) {
  if (!known(value)) return UNKNOWN;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** How long something took, up to a minute: `84 ms`, `1.05 s`. @param {unknown} ms milliseconds */
export function latency(ms) {
  if (!known(ms)) return UNKNOWN;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 9_995 ? 2 : 1)} s`;
}

/** How long something lasts: `42 s`, `3m 12s`, `2h 03m`, `4d 2h`. @param {unknown} seconds */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const whole = Math.max(0, Math.floor(seconds));
  const pad = (/** @type {number} */ value) => String(value).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)}m ${pad(whole % 60)}s`;
  if (whole < 86_400) return `${Math.floor(whole / 3_600)}h ${pad(Math.floor((whole % 3_600) / 60))}m`;
  return `${Math.floor(whole / 86_400)}d ${Math.floor((whole % 86_400) / 3_600)}h`;
}

/** Memory: `412 MB`, `61.2 GB`. @param {unknown} mb megabytes */
export function memory(mb) {
  if (!known(mb)) return UNKNOWN;
  if (mb < 999.5) return `${Math.round(mb)} MB`;
  return `${(mb / 1000).toFixed(mb < 99_950 ? 1 : 0)} GB`;
}

/** @param {unknown} value in percent */
export function percent(value) {
  return known(value) ? `${Math.round(value)} %` : UNKNOWN;
}

/** Time of day. @param {number} unix seconds */
export function clock(unix, withSeconds = true) {
  const date = new Date(unix * 1000);
  const parts = [date.getHours(), date.getMinutes(), ...(withSeconds ? [date.getSeconds()] : [])];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

/** `1 caller`, `7 callers`. @param {number} count @param {string} noun @param {string} plural */
export function counted(count, noun, plural = `${noun}s`) {
  return `${number(count)} ${count === 1 ? noun : plural}`;
}

/** `rtc_9e37…0001` of a long call id; ids that the server cut already stay. @param {string} id */
export function shortId(id) {
  return id.length > 16 ? `${id.slice(0, 8)}…${id.slice(-4)}` : id.replace("...", "…");
}

/** `partials_slower` as words. @param {string} name */
export function words(name) {
  return name.replaceAll("_", " ");
}
