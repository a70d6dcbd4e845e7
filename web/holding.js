/**
 * Holding the talk button with a finger, the mouse or the keyboard, and holding the space bar.
 */

/**
 * @typedef {object} Talk
 * @property {() => boolean} canTalk is there something to hold for?
 * @property {() => boolean} isHeld
 * @property {() => void} press
 * @property {() => void} release
 */

/** @param {HTMLElement} button @param {Talk} talk */
export function bindHolding(button, talk) {
  bindPointer(button, talk);
  bindKeys(button, talk);
  window.addEventListener("blur", talk.release); // the key's end would go to another window
}

/** @param {HTMLElement} button @param {Talk} talk */
function bindPointer(button, talk) {
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    talk.press();
  });
  for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(type, talk.release);
  }
  button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press on a phone
}

/** @param {HTMLElement} button @param {Talk} talk */
function bindKeys(button, talk) {
  const focus = watchFocus();
  const isTalkKey = (event) => talk.canTalk() && talksHere(event, button, focus.byPointer);
  document.addEventListener("keydown", (event) => {
    if (!isTalkKey(event)) return;
    event.preventDefault();
    if (!event.repeat) talk.press();
  });
  document.addEventListener("keyup", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    if (!talk.isHeld() && !isTalkKey(event)) return;
    event.preventDefault(); // else the button in focus is clicked
    talk.release();
  });
}

/**
 * The space bar talks, unless it has a meaning where the focus is: in a field, or on a control
 * that was reached with the keyboard.
 */
function talksHere(event, button, focusByPointer) {
  if (event.target === button) return event.key === " " || event.key === "Enter";
  if (event.key !== " " || event.target.closest("input, select")) return false;
  return focusByPointer || !event.target.closest("button, summary");
}

/** Was the focus last moved by a pointer? A button keeps the focus after a click. */
function watchFocus() {
  const focus = { byPointer: true };
  document.addEventListener("pointerdown", () => (focus.byPointer = true), true);
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Tab") focus.byPointer = false;
    },
    true,
  );
  return focus;
}
