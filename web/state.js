/**
 * `window.voiceRtc`: a read-only window into the call page's state.
 */

/** Plain copies only: nothing here reaches into the page. @param {import("/static/app.js").CallPage} page */
export function exposeState(page) {
  Object.defineProperty(window, "voiceRtc", {
    value: Object.freeze({
      get status() {
        return page.status;
      },
      get floor() {
        return page.activity.floor;
      },
      get callId() {
        return page.callId;
      },
      get captions() {
        return page.captions.turns;
      },
      get remoteEnergy() {
        return page.sound.remoteEnergy;
      },
      get remoteLevel() {
        return page.sound.remoteLevel;
      },
      get localLevel() {
        return page.sound.localLevel;
      },
      get lastError() {
        return page.notices.lastError && { ...page.notices.lastError };
      },
      /** Of the newest turn whose answer was heard; null before it. */
      get metrics() {
        const { response_ms = null, saved_ms = null, stages = {} } = page.timing.answered ?? {};
        return { response_ms, saved_ms, ...stages, round_trip_ms: page.roundTripMs };
      },
      get turns() {
        return page.timing.turns;
      },
      get place() {
        return page.line.place && { ...page.line.place };
      },
      get degraded() {
        return page.degraded && { ...page.degraded };
      },
      get muted() {
        return page.muted;
      },
      get pushToTalk() {
        return page.pushToTalk;
      },
      get readiness() {
        return page.readiness && structuredClone(page.readiness);
      },
    }),
  });
}
