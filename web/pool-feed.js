/**
 * Follows the server: everything once (`/pool.json`), then an event each second (`/pool/events`),
 * and again from the start whenever that ends, for as long as the page lives.
 *
 * `EventSource` cannot send the Authorization header, so the stream is read with fetch.
 */

const SILENCE_MS = 4_000;
const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 15_000;

/** The server said no. */
class Refused extends Error {
  /** @param {number} status @param {string} code @param {string} message */
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/**
 * Split a stream of server-sent events; comments (pings) are skipped.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{event: string, data: string}>}
 */
async function* parseEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text = (text + value).replaceAll("\r\n", "\n");
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const field = (/** @type {string} */ name) =>
        lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart());
      const data = field("data").join("\n");
      if (data) yield { event: field("event")[0] ?? "message", data };
    }
  }
}

/** @param {string} token @returns {Record<string, string>} */
export function authorization(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** See the module. */
export class Feed {
  token = "";
  #tell;
  /** Ends the present connection or the present pause. @type {AbortController} */
  #attempt = new AbortController();
  /** @type {() => void} */
  #wake = () => {};
  #pauseMs = FIRST_PAUSE_MS;

  /**
   * @param {object} tell
   * @param {(status: any) => void} tell.whole everything, with the history
   * @param {(status: any) => void} tell.event the newest, with a point of the history
   * @param {(reason: string, seconds: number) => void} tell.lost tried again in so many seconds
   * @param {(code: string) => void} tell.refused 401: `wrong_token` or `token_needed`; `token` may
   *   be changed before `retry`, which is waited for
   */
  constructor(tell) {
    this.#tell = tell;
  }

  /** Try at once: the token changed, or somebody does not want to wait. */
  retry() {
    this.#attempt.abort("retry");
    this.#pauseMs = FIRST_PAUSE_MS;
    this.#wake();
  }

  /** Never returns. */
  async run() {
    for (;;) {
      const attempt = new AbortController();
      this.#attempt = attempt;
      try {
        await this.#follow(attempt);
        this.#tell.lost("The server closed the connection.", this.#pauseMs / 1000);
      } catch (error) {
        if (error instanceof Refused && error.status === 401) {
          const woken = new Promise((resolve) => (this.#wake = () => resolve(undefined)));
          this.#tell.refused(error.code);
          await woken;
          continue;
        }
        if (attempt.signal.reason === "retry") continue;
        this.#tell.lost(sentence(error, attempt.signal), this.#pauseMs / 1000);
      }
      await this.#pause();
    }
  }

  async #pause() {
    const spread = 0.85 + 0.3 * Math.random(); // many pages should not come back in step
    let timer = 0;
    await new Promise((resolve) => {
      this.#wake = () => resolve(undefined);
      timer = setTimeout(resolve, this.#pauseMs * spread);
    });
    clearTimeout(timer);
    this.#pauseMs = Math.min(this.#pauseMs * 2, LONGEST_PAUSE_MS);
  }

  /** @param {AbortController} attempt */
  async #follow(attempt) {
    let watchdog = 0;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => attempt.abort("silent"), SILENCE_MS);
    };
    try {
      alive();
      const whole = await this.#get("/pool.json", attempt.signal);
      this.#tell.whole(await whole.json());
      alive();
      const stream = await this.#get("/pool/events", attempt.signal);
      if (stream.body === null) return;
      for await (const { event, data } of parseEvents(stream.body)) {
        alive();
        if (event !== "status") continue;
        this.#pauseMs = FIRST_PAUSE_MS;
        this.#tell.event(JSON.parse(data));
      }
    } finally {
      clearTimeout(watchdog);
      attempt.abort("over");
    }
  }

  /** @param {string} path @param {AbortSignal} signal */
  async #get(path, signal) {
    const response = await fetch(path, { headers: authorization(this.token), cache: "no-store", signal });
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({ error: null }));
    throw new Refused(response.status, error?.code ?? "", error?.message ?? `The server answered ${response.status}.`);
  }
}

/** @param {unknown} error @param {AbortSignal} signal */
function sentence(error, signal) {
  if (error instanceof Refused) return error.message;
  if (signal.reason === "silent") return "The server is silent.";
  return "The server does not answer.";
}
