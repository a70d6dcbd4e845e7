/**
 * What the server says about itself on /readyz.
 */

/**
 * @typedef {{kind: string, name: string, model: string, reason: string, notes: string[]}} Engine
 * @typedef {object} Readiness
 * @property {"ready" | "loading" | "draining" | "failed" | "unreachable"} status
 * @property {string} detail
 * @property {string[]} progress
 * @property {Engine[]} engines
 * @property {string[]} notes
 */

const NOTHING = { detail: "", progress: [], engines: [], notes: [] };
const DEADLINE_MS = 5_000;
const AGAIN_MS = { ready: 30_000, loading: 1_500, draining: 5_000, failed: 15_000, unreachable: 4_000 };

/** Ask the server once. @returns {Promise<Readiness>} */
export async function askReadiness() {
  try {
    const response = await fetch("/readyz", { signal: AbortSignal.timeout(DEADLINE_MS), cache: "no-store" });
    return { ...NOTHING, status: "unreachable", ...(await response.json()) };
  } catch (error) {
    return { ...NOTHING, status: "unreachable", detail: String(error) };
  }
}

/**
 * Ask now and again for as long as the page lives, more often while something is to be expected.
 * @param {(readiness: Readiness) => void} tell
 */
export async function watchReadiness(tell) {
  const readiness = await askReadiness();
  tell(readiness);
  setTimeout(() => void watchReadiness(tell), AGAIN_MS[readiness.status] ?? AGAIN_MS.unreachable);
}
