/**
 * Client events of the page, each as the list of messages to send in this order. Pure.
 */

/**
 * End the reply that is being made or played; nothing when there is none.
 * @param {{responding: boolean, playing: boolean}} activity
 */
export function stopReply({ responding, playing }) {
  const messages = [];
  if (responding) messages.push({ type: "response.cancel" });
  if (responding || playing) messages.push({ type: "output_audio_buffer.clear" });
  return messages;
}

/**
 * Silence before a turn of one's own. A reply may be on its way of which the page was not told yet,
 * so this is sent whatever the page knows; with nothing to clear it does nothing.
 * @param {{responding: boolean, playing: boolean}} activity
 */
function silence({ responding }) {
  const cancel = responding ? [{ type: "response.cancel" }] : [];
  return [...cancel, { type: "output_audio_buffer.clear" }];
}

/**
 * A typed turn.
 * @param {string} text
 * @param {{responding: boolean, playing: boolean}} activity
 */
export function typedTurn(text, activity) {
  const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
  return [
    ...silence(activity),
    { type: "conversation.item.create", item },
    { type: "response.create" },
  ];
}

/**
 * Who decides when the caller's turn is over: the caller (push-to-talk) or the server.
 * @param {boolean} pushToTalk
 */
export function turnDetection(pushToTalk) {
  const detection = pushToTalk ? null : { type: "server_vad" };
  return [
    {
      type: "session.update",
      session: { type: "realtime", audio: { input: { turn_detection: detection } } },
    },
  ];
}

/**
 * The caller presses to talk: silence first, then a fresh turn.
 * @param {{responding: boolean, playing: boolean}} activity
 */
export function pressTalk(activity) {
  return [...silence(activity), { type: "input_audio_buffer.clear" }];
}

/** The caller lets go: the turn is over. */
export function releaseTalk() {
  return [{ type: "input_audio_buffer.commit" }, { type: "response.create" }];
}

/** The button was only tapped: there is no turn. */
export function dropTalk() {
  return [{ type: "input_audio_buffer.clear" }];
}
