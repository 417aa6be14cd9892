/* What all pages share: the state of the connection, the light on the wire, and times as the reader's clock has them. */
"use strict";

const WORDS = {
  connecting: "Connecting…",
  open: "Live",
  reconnecting: "Reconnecting…",
  closed: "Closed",
  refused: "Refused",
};

function showState(state) {
  const element = document.getElementById("state");
  if (element.dataset.state === state) return;      // or a screen reader says it at every attempt
  element.dataset.state = state;
  element.textContent = WORDS[state];
}

// A light runs along the way of the message, once for each that comes.
function blink() {
  const wire = document.getElementById("wire");
  if (!wire) return;
  wire.classList.remove("lit");
  void wire.offsetWidth;                            // so that the animation begins anew
  wire.classList.add("lit");
}

/** Show the state of a connection of mease.js in the corner of the page, and return that connection. */
function watch(live) {
  showState(live.state);
  for (const name of ["open", "close", "reconnecting", "refused"]) live.on(name, () => showState(live.state));
  live.on("message", blink);
  return live;
}

// htmx has a connection of its own, and tells of it by events. After these codes it comes back.
const COMES_BACK = [1006, 1011, 1012, 1013];
document.addEventListener("htmx:wsConnecting", () => showState("connecting"));
document.addEventListener("htmx:wsOpen", () => showState("open"));
document.addEventListener("htmx:wsClose", ({ detail }) => {
  showState(COMES_BACK.includes(detail.event.code) ? "reconnecting" : "closed");
});
document.addEventListener("htmx:wsAfterMessage", blink);

function showTime(element, moment = element.dateTime) {
  const time = new Date(moment);
  if (Number.isNaN(time.getTime())) return;
  const day = time.toDateString() === new Date().toDateString() ? {} : { day: "numeric", month: "short" };
  element.dateTime = moment;
  element.textContent = time.toLocaleString([], { ...day, hour: "numeric", minute: "2-digit" });
}

for (const element of document.querySelectorAll("time")) showTime(element);
