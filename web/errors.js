/**
 * Every failure the page can meet, as a sentence that says what to do. Pure: no DOM, no network.
 *
 * A failure has a stable code: the server's (`pool_full`, `lease_lost`, ...) or one of the page's
 * own (`microphone_refused`, `server_unreachable`, ...).
 */

/**
 * @typedef {"call" | "text" | "sound" | null} Remedy
 *   What the notice's button offers: call (again), a text call, start the sound, or nothing.
 * @typedef {{title: string, text: string, remedy: Remedy, retry: boolean}} Notice
 *   `retry`: the page calls again by itself after the server's Retry-After.
 */

/** A call could not be placed, or ended against the caller's will. */
export class CallFailure extends Error {
  /**
   * @param {string} code stable word, see NOTICES
   * @param {{message?: string, retryAfterSeconds?: number}} [detail] what the server said
   */
  constructor(code, detail = {}) {
    super(detail.message ?? code);
    this.name = "CallFailure";
    this.code = code;
    this.detail = detail;
  }
}

/**
 * `again`: when to call again, unless the server says in how many seconds.
 * @type {Record<string, {title: string, text: string, again?: string, remedy?: Remedy, retry?: boolean}>}
 */
const NOTICES = {
  __proto__: null, // a code from the wire must not find what every object has
  // before the call: this browser and its microphone
  insecure_page: {
    title: "The microphone needs a secure page",
    text: "Browsers give the microphone only to pages on HTTPS or on localhost. Open this page with https://, or on the machine that runs the server, or go on without a microphone.",
    remedy: "text",
  },
  webrtc_missing: {
    title: "This browser cannot make calls",
    text: "It has no WebRTC. Use a current Chrome, Edge, Firefox or Safari.",
    remedy: null,
  },
  microphone_refused: {
    title: "The microphone is blocked",
    text: "Allow the microphone in the address bar or in the browser's settings, then call again. You can also go on without it and type.",
    remedy: "text",
  },
  microphone_missing: {
    title: "No microphone was found",
    text: "Plug one in or switch it on, then call again. You can also go on without it and type.",
    remedy: "text",
  },
  microphone_busy: {
    title: "The microphone is in use",
    text: "Another program holds it. Close that program, then call again, or go on without a microphone and type.",
    remedy: "text",
  },
  microphone_lost: {
    title: "The microphone was disconnected",
    text: "Plug it in again or choose another one under Sound. Until then you can type.",
    remedy: null,
  },
  speaker_unusable: {
    title: "That speaker cannot be used",
    text: "Choose another one under Sound; the voice stays where it was.",
    remedy: null,
  },
  sound_blocked: {
    title: "The browser holds the sound back",
    text: "It plays sound only after a click. Press Start sound to hear the agent.",
    remedy: "sound",
  },

  // placing the call
  server_unreachable: {
    title: "The server does not answer",
    text: "Check that it is running and that this device is on its network, then call again.",
    remedy: "call",
  },
  no_media_connection: {
    title: "No sound connection came about",
    text: "The server answers, but audio does not get through. A firewall or VPN may block UDP: try another network, then call again.",
    remedy: "call",
  },
  engines_loading: {
    title: "The speech engines are still loading",
    text: "Nothing to do: the page calls again by itself.",
    remedy: null,
    retry: true,
  },
  engines_failed: {
    title: "The speech engines could not be started",
    text: "Ask the operator to look at the server's log; details are under Engines.",
    remedy: "call",
  },
  pool_full: {
    title: "All lines are busy",
    text: "The server carries as many calls as it can, and its waiting line is full.",
    again: "Wait a moment, then call again.",
    remedy: "call",
  },
  overloaded: {
    title: "The server is too busy",
    text: "It takes no more calls right now.",
    again: "Wait a moment, then call again.",
    remedy: "call",
  },
  draining: {
    title: "The server is shutting down",
    text: "It takes no new calls.",
    again: "Wait until it is back, then call again.",
    remedy: "call",
  },
  rate_limited: {
    title: "Too many calls from here",
    text: "The server takes no more of them for now.",
    again: "Wait a minute, then call again.",
    remedy: "call",
  },
  unauthorized: {
    title: "The server wants a key",
    text: "This page has none that it accepts. Ask the operator for access.",
    remedy: null,
  },
  bad_offer: {
    title: "The server does not understand this browser's offer",
    text: "Reload the page and call again; if it stays so, use a current Chrome, Edge, Firefox or Safari.",
    remedy: "call",
  },

  // in the waiting line
  queue_timeout: {
    title: "It took too long until your turn",
    text: "No line became free in the time that the server lets callers wait. Call again to wait anew.",
    remedy: "call",
  },
  place_lost: {
    title: "Your place in line was lost",
    text: "The connection broke and did not come back in time. Check your network, then call again to wait anew.",
    remedy: "call",
  },
  replaced: {
    title: "The call goes on elsewhere",
    text: "It was taken over on another connection, perhaps in another tab, and ended here.",
    remedy: null,
  },

  // during the call
  connection_lost: {
    title: "The connection was lost",
    text: "Check your network, then call again.",
    remedy: "call",
  },
  server_shutdown: {
    title: "The server is shutting down",
    text: "It ended the call. Wait until it is back, then call again.",
    remedy: "call",
  },
  max_duration: {
    title: "The call reached its maximum length",
    text: "Call again to go on talking; the new call starts afresh.",
    remedy: "call",
  },
  media_lost: {
    title: "Your audio stopped arriving",
    text: "The server heard nothing from you any more and ended the call. Check your network, then call again.",
    remedy: "call",
  },
  lease_lost: {
    title: "The call lost its place at the speech recogniser",
    text: "The server needed it back and ended the call. Call again to get a new one.",
    remedy: "call",
  },
  channel_abused: {
    title: "The server ended the call",
    text: "This page sent it more messages than a call may, or larger ones. Reload the page and call again.",
    remedy: "call",
  },
  idle: {
    title: "Nobody said anything for too long",
    text: "The server ended the call to make room. Call again when you want to talk.",
    remedy: "call",
  },
  engine_failed: {
    title: "The speech recognition failed",
    text: "The server could not go on with this call. Call again; if it stays so, ask the operator to look at the log.",
    remedy: "call",
  },
  internal_error: {
    title: "Something went wrong on the server",
    text: "It ended the call. Call again; if it stays so, ask the operator to look at the log.",
    remedy: "call",
  },
};

/** The server's other words for the same thing. */
const SAME_AS = {
  __proto__: null,
  bad_request: "bad_offer",
  missing_sdp: "bad_offer",
  no_audio_track: "bad_offer",
  no_slot: "pool_full",
  call_replaced: "replaced",
  engine_unavailable: "engines_failed",
  ice_failed: "no_media_connection",
  connect_timeout: "no_media_connection",
  peer_gone: "connection_lost",
  media_error: "media_lost",
  media_stalled: "media_lost",
};

/** Ends of a call that nobody needs to be told about. */
const QUIET_ENDS = new Set(["hangup"]);

/** Errors on the data channel that only say that the reply was over before it was stopped. */
const HARMLESS_ERRORS = new Set(["response_cancel_not_active"]);

/**
 * What to show for a failure. An unknown code shows the server's own message.
 * @param {string} code
 * @param {string} [message] the server's sentence
 * @param {number} [retryAfterSeconds] as the server asked
 * @returns {Notice}
 */
export function noticeFor(code, message = "", retryAfterSeconds) {
  const known = NOTICES[code] ?? NOTICES[SAME_AS[code]];
  if (known) {
    const { title, text, again, remedy = null, retry = false } = known;
    const when = again && retryAfterSeconds ? `Call again in ${secondsWords(retryAfterSeconds)}.` : again;
    return { title, text: when ? `${text} ${when}` : text, remedy, retry };
  }
  const said = message && message !== code ? ` The server says: ${message}` : "";
  return {
    title: "The call did not work",
    text: `Call again; if it stays so, ask the operator.${said}`,
    remedy: "call",
    retry: false,
  };
}

/** @param {number} seconds */
const secondsWords = (seconds) => (seconds === 1 ? "1 second" : `${seconds} seconds`);

/**
 * What to show for an `error` event during a call, or null for one that needs no words.
 * @param {{code?: string, message?: string}} error
 * @returns {Notice | null}
 */
export function noticeForEvent(error) {
  if (HARMLESS_ERRORS.has(error.code ?? "")) return null;
  return {
    title: "The server could not do that",
    text: error.message || "It gave no reason. Try again; the call goes on.",
    remedy: null,
    retry: false,
  };
}

/**
 * What to show when the agent's reply failed; the call goes on.
 * @param {{message?: string} | undefined} error of `response.done`
 * @returns {Notice}
 */
export function noticeForReply(error) {
  return {
    title: "The agent could not answer",
    text: `${error?.message ? `${error.message} ` : ""}Say it again; the call goes on.`,
    remedy: null,
    retry: false,
  };
}

/** Did the call end because somebody hung up? @param {string} reason */
export function isQuietEnd(reason) {
  return QUIET_ENDS.has(reason);
}

/**
 * The failure behind a rejected getUserMedia.
 * @param {unknown} error
 * @returns {CallFailure}
 */
export function microphoneFailure(error) {
  const name = error instanceof Error ? error.name : "";
  const code =
    {
      NotAllowedError: "microphone_refused",
      SecurityError: "microphone_refused",
      NotFoundError: "microphone_missing",
      OverconstrainedError: "microphone_missing",
      NotReadableError: "microphone_busy",
      AbortError: "microphone_busy",
    }[name] ?? "microphone_busy";
  return new CallFailure(code, { message: String(error) });
}

/**
 * The failure behind an answer other than 201.
 * @param {Response} response
 * @returns {Promise<CallFailure>}
 */
export async function refusal(response) {
  const body = await response.text();
  const error = errorObject(body);
  const fallback = { 401: "unauthorized", 403: "unauthorized", 429: "rate_limited" };
  return new CallFailure(error.code ?? fallback[response.status] ?? `http_${response.status}`, {
    message: error.message ?? response.statusText,
    retryAfterSeconds: Number(response.headers.get("Retry-After")) || undefined,
  });
}

/** @param {string} body @returns {{code?: string, message?: string}} */
function errorObject(body) {
  try {
    return JSON.parse(body).error ?? {};
  } catch (error) {
    if (error instanceof SyntaxError) return {}; // a proxy's page: the HTTP status must do
    throw error;
  }
}
