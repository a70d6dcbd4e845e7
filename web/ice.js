/**
 * Which relays this page may use: the server names them, with a password that ends after a while.
 */

import { CallFailure, refusal } from "/static/errors.js";

const ICE_URL = "/v1/realtime/ice";
const ASK_MS = 5_000;

/** @type {RTCIceServer[]} */
let known = [];
let knownUntil = 0;

/**
 * With `?relay` in the page's address only relays are used, to try whether they work.
 * @param {AbortSignal} signal
 * @returns {Promise<RTCConfiguration>}
 * @throws {CallFailure} or an AbortError
 */
export async function iceConfiguration(signal) {
  if (performance.now() >= knownUntil) await ask(signal);
  const relayOnly = new URLSearchParams(location.search).has("relay");
  return { iceServers: known, iceTransportPolicy: relayOnly ? "relay" : "all" };
}

/** @param {AbortSignal} signal */
async function ask(signal) {
  let response;
  try {
    response = await fetch(ICE_URL, { signal: AbortSignal.any([signal, AbortSignal.timeout(ASK_MS)]) });
  } catch (error) {
    signal.throwIfAborted();
    throw new CallFailure("server_unreachable", { message: String(error) });
  }
  if (!response.ok) throw await refusal(response);
  const { ice_servers: servers, ttl_seconds: ttl } = await response.json();
  known = servers;
  knownUntil = performance.now() + (ttl / 2) * 1000; // the other half is for the call's set-up
}
