/**
 * What went wrong, as the page shows it, and for how long the server asked to wait.
 */

import { noticeFor } from "/static/errors.js";

/** One notice at a time: the newest. */
export class Notices {
  /** The newest failure: code, title, text. @type {object | null} */
  lastError = null;
  /** The time after which the server wanted to be called again is over. */
  mayRetry = false;
  #view;
  #onRetry;
  #retryTimer = 0;

  /** @param {import("/static/view.js").View} view @param {() => void} onRetry that time is over */
  constructor(view, onRetry) {
    this.#view = view;
    this.#onRetry = onRetry;
  }

  /** @param {import("/static/errors.js").CallFailure} failure */
  note(failure) {
    const notice = noticeFor(failure.code, failure.message, failure.detail.retryAfterSeconds);
    this.show(notice, failure.code);
    if (notice.remedy === "call") this.#countToRetry(failure.detail.retryAfterSeconds ?? 0);
  }

  /** @param {import("/static/errors.js").Notice | null} notice @param {string} [code] */
  show(notice, code = "error") {
    if (!notice) return;
    this.#stopRetryCount();
    this.lastError = { code, title: notice.title, text: notice.text };
    this.#view.showNotice(notice);
  }

  clear() {
    this.#stopRetryCount();
    this.#view.showNotice(null);
  }

  #stopRetryCount() {
    clearInterval(this.#retryTimer);
    this.mayRetry = false;
  }

  /** The caller may call at any time; this only shows for how long the server asked to wait. */
  #countToRetry(/** @type {number} */ retryAfterSeconds) {
    if (!retryAfterSeconds) return;
    const until = performance.now() + 1000 * retryAfterSeconds;
    const show = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      this.mayRetry = left <= 0;
      this.#view.showCountdown(this.mayRetry ? "You can call again now." : `${left} s left; trying earlier does no harm.`);
      if (!this.mayRetry) return;
      clearInterval(this.#retryTimer);
      this.#onRetry();
    };
    this.#retryTimer = setInterval(show, 1000);
    show();
  }
}
