/* The chat: asks for what it missed when it connects, shows what comes and who, and sends what is typed. */
(() => {
  "use strict";

  const MAX_MESSAGES = 200;                  // kept on the page

  const [chat, messages, here, count, news, who, text, note] =
    ["chat", "messages", "here", "count", "news", "who", "text", "note"].map((id) => document.getElementById(id));
  const persons = new Map();                 // key → who is in the room
  let changes = [];                          // who came and who left since the page last asked
  let live;
  let lastSent = "";

  function connect() {
    live?.close();
    live = watch(mease.connect(`?${new URLSearchParams({ room: chat.dataset.room, name: who.value })}`));
    live.on("open", () => {
      tell("");
      look();
    });
    live.on("gap", look);                    // Redis was away: what was said and who came was not told
    live.on("chat.message", showMessage);
    live.on("chat.whisper", showWhisper);
    live.on("chat.here", showWhoIsHere);
    live.on("mease.presence", showChange);
    live.on("chat.error", showError);
    live.on("mease.refused", () => showError({ text: "Log in to whisper to somebody." }));
    live.on("refused", ({ reason }) => showError({ text: reason }));
  }

  function look() {
    changes = [];
    live.send({ type: "chat.look", after: Math.max(0, ...[...messages.children].map(idOf)) });
  }

  // In the order of the ids; one that is there already comes again when the page looks for what it missed.
  function showMessage(message) {
    const items = [...messages.children];
    if (items.some((item) => idOf(item) === message.id)) return;
    messages.insertBefore(newItem(message), items.find((item) => idOf(item) > message.id) ?? null);
    while (messages.children.length > MAX_MESSAGES) messages.firstElementChild.remove();
  }

  // A whisper is stored nowhere, and so has no id and no time.
  function showWhisper(message) {
    const text = `to ${message.to} alone: ${message.text}`;
    const item = newItem({ ...message, text, id: 0, created: new Date().toISOString() });
    item.classList.add("whisper");
    messages.append(item);
  }

  // Everything from outside goes through textContent, never through innerHTML.
  function newItem(message) {
    const item = document.getElementById("message").content.firstElementChild.cloneNode(true);
    item.dataset.id = message.id;
    item.querySelector(".message-who").textContent = message.who;
    item.querySelector(".message-text").textContent = message.text;
    showTime(item.querySelector("time"), message.created);
    return item;
  }

  function idOf(item) {
    return Number(item.dataset.id);
  }

  // What came while the list was on its way may be newer than the list.
  function showWhoIsHere(list) {
    persons.clear();
    for (const person of list.persons) persons.set(person.key, person);
    changes.forEach(change);
    showPersons();
  }

  function showChange(person) {
    changes.push(person);
    change(person);
    showPersons(person);
    news.textContent = `${person.info.name} has ${person.event === "join" ? "come" : "left"}.`;
  }

  function change(person) {
    if (person.event === "join") persons.set(person.key, person);
    else persons.delete(person.key);
  }

  function showPersons(fresh) {
    count.textContent = persons.size;
    here.replaceChildren(...[...persons.values()].map((person) => newPerson(person, person === fresh)));
  }

  // Who has logged in has a "user", and is shown so: a guest goes by whatever name was typed.
  function newPerson({ user, info }, isFresh) {
    const item = document.getElementById("person").content.firstElementChild.cloneNode(true);
    item.querySelector("bdi").textContent = info.name;
    item.classList.toggle("user", user !== null);
    item.classList.toggle("fresh", isFresh);
    return item;
  }

  function showError(error) {
    tell(error.text, "problem");
    if (!text.value) text.value = lastSent;
  }

  function tell(words, kind = "note") {
    note.className = kind;
    note.textContent = words;
  }

  // While the connection is away, mease.js keeps what is sent, and sends it once.
  function say(event) {
    event.preventDefault();
    const whisper = /^@(\S+)\s+(.+)$/s.exec(text.value);
    const frame = whisper
      ? { type: "chat.whisper", to: whisper[1], text: whisper[2] }
      : { type: "chat.say", text: text.value };
    if (!live.send(frame)) return;
    tell(live.state === "open" ? "" : "Kept, and sent when the connection is back.");
    lastSent = text.value;
    text.value = "";
  }

  // Each tab keeps its own name, so that one person can try out two.
  function rename() {
    if (!who.reportValidity()) return;
    sessionStorage.setItem("who", who.value);
    // A connection that is away may keep messages: it sends them, when it is back, before it is closed.
    if (["connecting", "reconnecting"].includes(live.state)) live.on("open", connect);
    else connect();
  }

  if (!who.readOnly) {
    who.value = sessionStorage.getItem("who") ?? `Guest ${100 + Math.floor(Math.random() * 900)}`;
    who.addEventListener("change", rename);
  }
  document.getElementById("say").addEventListener("submit", say);
  connect();
})();
