/* Keeps the page up to date over one WebSocket, and sends what is typed. */
(() => {
  "use strict";

  const MAX_MESSAGES = 200;           // kept on the page
  const FIRST_WAIT = 0.5;             // seconds before the first new attempt, at most
  const LONGEST_WAIT = 20;            // and before the later ones
  const STABLE_AFTER = 5;             // seconds after which a connection counts as a good one

  const byId = (id) => document.getElementById(id);
  const log = byId("log");
  const messages = byId("messages");
  const newest = byId("newest");
  const who = byId("who");
  const text = byId("text");

  /* ---- the connection ---- */

  let socket = null;
  let attempts = 0;
  let timer = null;

  function address() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const { websocketPort, room } = byId("live").dataset;
    return `${scheme}://${location.hostname}:${websocketPort}/?room=${encodeURIComponent(room)}`;
  }

  function connect() {
    clearTimeout(timer);
    timer = null;
    let openedAt = null;
    socket = new WebSocket(address());
    socket.onopen = () => {
      openedAt = Date.now();
      showState("open", "Live");
    };
    socket.onmessage = (event) => receive(event.data);
    socket.onclose = () => {
      if (openedAt !== null && Date.now() - openedAt > STABLE_AFTER * 1000) attempts = 0;
      showState("closed", "Reconnecting…");
      timer = setTimeout(connect, wait(attempts++) * 1000);
    };
  }

  // "Full jitter": any time up to a limit that doubles. When a server comes back, its pages do not all come at once.
  function wait(attempt) {
    return Math.random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** attempt);
  }

  // No need to sit out the wait when the network is back.
  function connectNow() {
    if (timer !== null) connect();
  }

  function showState(state, words) {
    const element = byId("state");
    if (element.dataset.state === state) return;    // or a screen reader says it at every attempt
    element.dataset.state = state;
    element.textContent = words;
  }

  /* ---- what the server sends ---- */

  const shows = new Map([
    ["chat.message", showMessage],
    ["chat.whisper", showWhisper],
    ["mease.refused", showRefusal],
    ["announcement", showAnnouncement],
    ["error", showError],
  ]);

  function receive(data) {
    const message = JSON.parse(data);
    const show = shows.get(message.type);
    if (show) show(message);
  }

  function showMessage(message) {
    if (!place(newItem(message), message.id)) return;
    while (messages.children.length > MAX_MESSAGES) messages.firstElementChild.remove();
    if (atEnd) scrollToEnd();
    else newest.hidden = false;
  }

  // A whisper is stored nowhere, and stands behind what was last when it came.
  function showWhisper(message) {
    const last = Number(messages.lastElementChild?.dataset.id ?? 0);
    const text = `to ${message.to} alone: ${message.text}`;
    const item = newItem({ ...message, text, id: last, created: new Date().toISOString() });
    item.classList.add("whisper");
    messages.append(item);
    if (atEnd) scrollToEnd();
    else newest.hidden = false;
  }

  function showRefusal() {
    showError({ text: "Log in to whisper to somebody: it is what the members' room is for." });
  }

  // Everything from outside goes through textContent, never through innerHTML.
  function newItem(message) {
    const item = byId("message").content.firstElementChild.cloneNode(true);
    item.dataset.id = message.id;
    item.querySelector(".message-who").textContent = message.who;
    item.querySelector(".message-text").textContent = message.text;
    item.querySelector(".message-time").dateTime = message.created;
    return dress(item);
  }

  // In the order of the ids; false if it is there already, as the history after each connect mostly is.
  function place(item, id) {
    let before = messages.lastElementChild;
    while (before && Number(before.dataset.id) > id) before = before.previousElementSibling;
    if (before && Number(before.dataset.id) === id) return false;
    if (before) before.after(item);
    else messages.prepend(item);
    return true;
  }

  function showAnnouncement(message) {
    const element = byId("announcement-text");
    const time = byId("announcement-time");
    time.dateTime = message.updated ?? "";
    showTime(time);
    if (element.textContent === message.text) return;
    element.textContent = message.text;
    element.parentElement.animate?.({ opacity: [0.4, 1] }, 600);
  }

  // A refused message comes back into its field, unless the next one is begun there.
  let sent = "";

  function showError(message) {
    byId("problem").textContent = message.text;
    if (!text.value) text.value = sent;
  }

  /* ---- how it looks ---- */

  // A colour and an initial for the name, and the time as the reader's clock has it.
  function dress(item) {
    const name = item.querySelector(".message-who").textContent;
    item.style.setProperty("--hue", hueOf(name));
    item.querySelector(".message-mark").textContent = [...name][0]?.toUpperCase() ?? "";
    showTime(item.querySelector("time"));
    return item;
  }

  // The golden angle keeps the hues of similar names apart.
  function hueOf(name) {
    let sum = 0;
    for (const character of name) sum = (sum * 31 + character.codePointAt(0)) % 65521;
    return Math.round(sum * 137.508) % 360;
  }

  function showTime(element) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) {
      element.textContent = "";
      return;
    }
    const today = moment.toDateString() === new Date().toDateString();
    const day = today ? {} : { day: "numeric", month: "short" };
    element.textContent = moment.toLocaleString([], { ...day, hour: "numeric", minute: "2-digit" });
  }

  // Whoever reads the end stays there; whoever reads further up is not carried off.
  let atEnd = true;

  function noticeScroll() {
    atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    if (atEnd) newest.hidden = true;
  }

  function scrollToEnd() {
    atEnd = true;
    log.scrollTop = log.scrollHeight;
    newest.hidden = true;
  }

  function keepEnd() {
    if (atEnd) scrollToEnd();
  }

  /* ---- what is typed ---- */

  function say(event) {
    event.preventDefault();
    if (socket.readyState !== WebSocket.OPEN) {
      byId("problem").textContent = "Not connected just now. Your message is kept: send it again in a moment.";
      return;
    }
    sent = text.value;
    socket.send(JSON.stringify(frameOf(sent)));
    text.value = "";
    byId("problem").textContent = "";
    text.focus();
    scrollToEnd();
  }

  function frameOf(typed) {
    const whisper = /^@(\S+)\s+(.+)$/s.exec(typed);
    if (whisper) return { type: "chat.whisper", to: whisper[1], text: whisper[2] };
    return { type: "chat.say", who: who.value, text: typed };
  }

  // Each tab keeps its own name, so that one person can try out two.
  function rememberName() {
    if (who.readOnly) return;
    who.value = sessionStorage.getItem("who") ?? `Guest ${100 + Math.floor(Math.random() * 900)}`;
    who.addEventListener("input", () => sessionStorage.setItem("who", who.value));
  }

  for (const item of messages.children) dress(item);
  showTime(byId("announcement-time"));
  scrollToEnd();
  rememberName();
  byId("say").addEventListener("submit", say);
  newest.addEventListener("click", scrollToEnd);
  log.addEventListener("scroll", noticeScroll);
  new ResizeObserver(keepEnd).observe(log);       // a long announcement takes some of its height
  window.addEventListener("online", connectNow);
  connect();
})();
