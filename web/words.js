/**
 * What the page says about its call, in the big line, below it, and to screen readers. Pure.
 */

import { detailWords, titleWords } from "/static/line.js";

/**
 * @typedef {"idle" | "connecting" | "loading" | "queued" | "returning" | "live" | "interrupted"
 *   | "ended" | "failed"} Status
 *   `loading`: the page calls again when the server has loaded its engines; `queued`: in the
 *   waiting line; `returning`: calling again for the place in it.
 *
 * @typedef {object} Situation
 * @property {Status} status
 * @property {"caller" | "agent" | "thinking" | "listening"} floor
 * @property {import("/static/line.js").WaitingLine} line
 * @property {boolean} turnHasCome the wait was over a moment ago
 * @property {boolean} mayRetry the time that the server asked for is over
 * @property {boolean} held the talk button
 * @property {boolean} muted
 * @property {boolean} textOnly
 * @property {boolean} pushToTalk
 */

const STATUS_WORDS = {
  idle: "Ready when you are",
  connecting: "Connecting…",
  loading: "Waiting for the server",
  returning: "Getting your place back…",
  interrupted: "The connection is interrupted",
  ended: "Call ended",
  failed: "No call",
};

const FLOOR_WORDS = {
  caller: "You are speaking",
  agent: "Agent is speaking",
  thinking: "Thinking…",
  listening: "Listening",
};

const HINTS = {
  connecting: "Allow the microphone if the browser asks.",
  loading: "",
  returning: "The connection was lost. Your place in line is kept; no need to do anything.",
  interrupted: "Trying to get it back; no need to do anything.",
  failed: "",
};

const BUTTON_WORDS = {
  connecting: "Cancel",
  loading: "Cancel",
  queued: "Hang up",
  returning: "Hang up",
  live: "Hang up",
  interrupted: "Hang up",
};

/** The big line. @param {Situation} now */
export function statusWords({ status, floor, line, turnHasCome, held, muted, textOnly, pushToTalk }) {
  if (status === "queued" && line.place) return titleWords(line.place);
  if (status !== "live") return STATUS_WORDS[status] ?? "";
  if (held) return "You are speaking";
  if (floor !== "listening") return FLOOR_WORDS[floor];
  if (turnHasCome) return "It is your turn";
  if (textOnly) return "Ready for your message";
  if (muted) return "You are muted";
  return pushToTalk ? "Hold to talk" : FLOOR_WORDS.listening;
}

/** Read aloud by screen readers at each change. @param {Situation} now */
export function connectionWords({ status, line, turnHasCome, muted, mayRetry }) {
  if (status === "queued") return line.announcement;
  if (status === "returning") return `${STATUS_WORDS.returning} ${HINTS.returning}`;
  if (status === "failed" && mayRetry) return "You can call again now.";
  if (status !== "live") return STATUS_WORDS[status] ?? "";
  const connected = muted ? "Connected, you are muted" : "Connected";
  return turnHasCome ? `It is your turn. ${connected}` : connected;
}

/** What to do, or what to expect. @param {Situation} now */
export function hintWords({ status, line, textOnly, pushToTalk, muted, turnHasCome }) {
  if (status === "queued" && line.place) return detailWords(line.place);
  if (status in HINTS) return HINTS[status];
  if (status !== "live") return "Press Call and start talking.";
  if (textOnly) return "Text call: type below, the agent answers aloud.";
  if (pushToTalk) return "Push to talk is on.";
  if (muted) return "Press Mute again to be heard.";
  return turnHasCome ? "Go ahead, you are heard now." : "Speak naturally. You can interrupt at any time.";
}

/** The name of the call button. @param {Status} status */
export function buttonWords(status) {
  return BUTTON_WORDS[status] ?? "Call";
}

/** The tab: who waits looks at something else meanwhile. @param {Situation} now */
export function tabWords({ status, line, turnHasCome }) {
  const news = status === "queued" && line.place ? titleWords(line.place) : turnHasCome ? "It is your turn" : "";
  return news ? `${news} – voice_rtc` : "voice_rtc";
}
