/* The browser's side of django-mease: one WebSocket that comes back by itself, and the groups that a page joins by it.

   A plain script that sets the global "mease", so that a script tag is all it takes. The file mease.module.js is this
   one with exports behind it, mease.d.ts has the types, and docs/browser.rst says how to use it. What goes over the
   wire is the subprotocol mease.v1 (docs/mease-v1.rst): a message that begins with U+001E has a header before it. */
(() => {
  "use strict";

  const SECOND = 1000;
  const FIRST_WAIT = 0.5 * SECOND;      // before the first new attempt, at most; it doubles with each
  const LONGEST_WAIT = 20 * SECOND;
  const LATER_WAIT = 5 * SECOND;        // before all else, where the server says "later"
  const CLOSEST = SECOND;               // between two attempts, however often a tab is shown
  const STABLE_AFTER = 10 * SECOND;     // a connection that stayed so long was a good one
  const DIAL_TIMEOUT = 20 * SECOND;
  const STALE_AFTER = 5 * SECOND;       // an attempt so old is given up when the tab is shown
  const LOOK_INTERVAL = 5 * SECOND;     // between two looks at how long it has been silent: finds a sleep too
  const ANSWER_TIMEOUT = 10 * SECOND;
  const GAP_SPREAD = 2 * SECOND;        // all pages hear of a gap at once, and may all ask what they missed

  const ENDED = [1000, 1005];           // a callback closed it, with or without a code
  const REFUSED = [1002, 1007, 1008, 1009, 4401, 4403];
  const LATER = [1013, 4429];
  const RESTARTS = 1012;
  const BROKEN = 1006;
  const LOGIN_ENDED = 4401;

  const PROTOCOL = "mease.v1";
  const MARK = "\x1e";
  const NEWLINE = "\n";
  const GROUP_NAME = /^[\w.:/@+-]{1,200}$/;
  const NO_NAME = "is no name of a group: it has 1 to 200 of letters, digits and ._:-/@+";
  const LIVE_EVENTS = ["message", "open", "close", "reconnecting", "refused", "dropped", "gap"];
  const GROUP_EVENTS = ["message", "joined", "refused"];
  const DEFAULTS = { maxQueue: 100, heartbeat: 25, final: [] };

  /* Handlers by the names of what they wait for: own events, and the types of messages. */
  class Events {
    #own;
    #handlers = new Map();

    constructor(own) {
      this.#own = own;
    }

    on(name, handler) {
      const handlers = this.#handlers.get(name) ?? new Set();
      const entry = { handler };        // so that one function may be there twice
      this.#handlers.set(name, handlers.add(entry));
      return () => void handlers.delete(entry);
    }

    has(name) {
      return this.#handlers.get(name)?.size > 0;
    }

    emit(name, ...details) {
      for (const { handler } of [...(this.#handlers.get(name) ?? [])]) {
        try {
          handler(...details);
        } catch (error) {
          setTimeout(() => { throw error; });     // where window.onerror sees it, and nobody else is disturbed
        }
      }
    }

    // A message cannot pass for an event.
    tell(data, event) {
      this.emit("message", data, event);
      if (typeof data?.type === "string" && !this.#own.includes(data.type)) this.emit(data.type, data, event);
    }
  }

  /* A group that the page wants to be in, until it leaves; "group" is what the page holds of it. */
  class Membership {
    events = new Events(GROUP_EVENTS);
    state = "joining";
    ref = 0;                            // of what was asked last: an answer to something earlier may come late
    #hasBeenIn = false;

    constructor(name, leave) {
      const membership = this;
      this.name = name;
      this.group = Object.freeze({
        name,
        get state() { return membership.state; },
        on: (...listening) => this.events.on(...listening),
        leave: () => leave(this),
      });
    }

    answer({ type, ref, reason }) {
      if (this.state !== "joining" || ref !== this.ref) return;
      if (type === "joined") this.#become(type, { again: this.#hasBeenIn });
      if (type === "refused") this.#become(type, { reason });
    }

    #become(state, details) {
      this.state = state;
      this.#hasBeenIn ||= state === "joined";
      this.events.emit(state, details);
      if (state !== "refused" || this.events.has(state)) return;
      const cure = details.reason === "not_listed" ? ": MEASE_GROUPS says who may join which groups" : "";
      console.warn(`mease: the group ${this.name} is refused (${details.reason})${cure}`);
    }

    lose() {
      this.state = "joining";
      this.ref = 0;
    }
  }

  class Live {
    #url;
    #options;
    #state = "connecting";
    #events = new Events(LIVE_EVENTS);
    #memberships = new Map();           // by the names of the groups
    #lastRef = 0;
    #queue = [];
    #early = [];                        // what came before the server was ready: nothing comes before "open"
    #socket = null;
    #timer;                             // what is waited for: an attempt, its end, or the next look at the silence
    #attempt = null;                    // the one under way; an older one sees that it is not, and gives up
    #attemptAt = 0;
    #notBefore = 0;
    #failures = 0;                      // since a connection was good
    #backoff = 0;                       // how often the longest delay has doubled
    #openedAt = 0;                      // of the connection, 0 while there is none; the server may not be ready yet
    #hasBeenOpen = false;
    #heardAt = 0;
    #isProbing = false;
    #hasWarned = false;
    #isLate = false;                    // whether it was said that the server is not ready yet
    #listening = new AbortController();

    constructor(url, options) {
      this.#url = url;
      this.#options = options;
      this.#listenToBrowser();
      this.#connect();
    }

    get state() {
      return this.#state;
    }

    on(name, handler) {
      return this.#events.on(name, handler);
    }

    group(name) {
      const known = this.#memberships.get(name);
      if (known) return known.group;
      if (typeof name !== "string" || !GROUP_NAME.test(name)) throw new TypeError(`mease: "${name}" ${NO_NAME}`);
      const membership = new Membership(name, (it) => this.#leave(it));
      if (this.#isOver()) membership.state = "left";
      else this.#memberships.set(name, membership);
      if (this.#isConnected()) this.#ask("join", membership);
      return membership.group;
    }

    send(data) {
      const frame = encode(data);
      const { maxQueue } = this.#options;
      const isFull = this.#queue.length >= maxQueue;
      if (this.#isOver()) return this.#drop(data, `the connection is ${this.#state}`);
      // While an answer is awaited the connection may be dead, so that messages wait too; but none is lost for that.
      if (this.#isOpen() && this.#isProbing && isFull) this.#flush();
      if (this.#isOpen() && (!this.#isProbing || isFull)) this.#transmit(frame);
      else if (!isFull) this.#queue.push(frame);
      else return this.#drop(data, `${maxQueue} wait already (send less while state is not "open", or raise maxQueue)`);
      return true;
    }

    close() {
      if (this.#isOver()) return;
      this.#flush();
      this.#end("closed", { code: 1000, reason: "" });
    }

    #isOpen() {
      return this.#state === "open" && this.#isConnected();
    }

    #isConnected() {
      return this.#openedAt > 0 && this.#socket.readyState === 1;
    }

    #isOver() {
      return this.#state === "closed" || this.#state === "refused";
    }

    // What is shifted here has been handed to the socket, and is never sent again.
    #flush() {
      while (this.#queue.length && this.#isOpen()) this.#transmit(this.#queue.shift());
    }

    // What begins as if it had a header is given one.
    #transmit(frame) {
      this.#socket.send(frame[0] === MARK ? headed({}) + NEWLINE + frame : frame);
    }

    #drop(data, reason) {
      if (!this.#hasWarned) console.warn(`mease: not sent, since ${reason}`);
      this.#hasWarned = true;
      this.#events.emit("dropped", data, reason);
      return false;
    }

    #wait(delay, then) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(then, delay);
    }

    /* ---- a connection comes ---- */

    async #connect() {
      const attempt = (this.#attempt = {});
      this.#attemptAt = Date.now();
      this.#notBefore = this.#attemptAt + CLOSEST;
      this.#wait(DIAL_TIMEOUT, () => this.#lose(BROKEN, "no answer in time"));
      try {
        const ticket = this.#options.ticket ? await ticketProtocols(this.#options) : [];
        if (attempt !== this.#attempt) return;
        if (ticket) this.#dial([PROTOCOL, ...ticket]);
        else this.#end("refused", { code: LOGIN_ENDED, reason: "there is no ticket for this page" });
      } catch (error) {
        if (attempt === this.#attempt) this.#lose(BROKEN, String(error));
      }
    }

    #dial(protocols) {
      const socket = (this.#socket = new WebSocket(this.#url, protocols));
      socket.binaryType = "arraybuffer";
      socket.onopen = () => this.#connected();
      socket.onmessage = (event) => this.#receive(event);
      socket.onclose = (event) => this.#lose(event.code, event.reason);
    }

    // It is open when the server is ready: what is published while its openers run does not come, and is to be asked for.
    #connected() {
      // A browser fails such a connection by itself, as its standard has it.
      if (this.#socket.protocol !== PROTOCOL) return this.#lose(BROKEN, `the server does not speak ${PROTOCOL}`);
      this.#attempt = null;
      this.#openedAt = this.#heardAt = Date.now();
      this.#isLate = false;
      this.#watch();
      for (const membership of this.#memberships.values()) this.#ask("join", membership);
    }

    #open() {
      const again = this.#hasBeenOpen;
      this.#state = "open";
      this.#hasBeenOpen = true;
      this.#hasWarned = false;
      this.#events.emit("open", { again });       // before what waited: a handler asks what it missed, say
      this.#tellEarly();
      this.#flush();
    }

    #tellEarly() {
      for (const message of this.#early.splice(0)) if (!this.#isOver()) this.#handOn(...message);
    }

    #receive(event) {
      this.#heardAt = Date.now();
      if (this.#isProbing) {
        this.#isProbing = false;
        this.#flush();
      }
      if (hasHeader(event.data)) this.#receiveHeaded(event);
      else this.#tell(parse(event.data), event);
    }

    #receiveHeaded({ data: frame, origin }) {
      const { header, message } = splitFrame(frame);
      if (message === undefined) return this.#heed(header);
      const data = parse(message);
      const event = new MessageEvent("message", { data: message, origin });
      this.#tell(data, event, header?.groups);
    }

    #tell(data, event, groups = []) {
      if (this.#state !== "open") this.#early.push([data, event, groups]);
      else this.#handOn(data, event, groups);
    }

    #handOn(data, event, groups) {
      this.#events.tell(data, event);
      for (const name of groups) this.#memberships.get(name)?.events.tell(data, event);
    }

    #heed(header) {
      if (header?.type === "ready" && this.#state !== "open") this.#open();
      else if (header?.type === "gap") this.#tellOfGap(header);
      else this.#memberships.get(header?.group)?.answer(header);
    }

    #tellOfGap({ seconds }) {
      const socket = this.#socket;
      setTimeout(() => socket === this.#socket && this.#events.emit("gap", { seconds }), Math.random() * GAP_SPREAD);
    }

    /* ---- it joins groups, for which each connection asks anew ---- */

    // What is asked goes before what waits, as the first words of a connection do.
    #ask(type, membership) {
      const group = membership.name;
      const ref = (membership.ref = ++this.#lastRef);
      this.#socket.send(headed({ type, group, ref }));
    }

    #leave(membership) {
      if (membership.state === "left") return;
      this.#memberships.delete(membership.name);
      membership.state = "left";
      if (this.#isConnected()) this.#ask("leave", membership);
    }

    /* ---- it may be dead without a word: a browser neither shows the server's pings nor sends any ---- */

    get #heartbeat() {
      return this.#options.heartbeat * SECOND;
    }

    #watch() {
      const delay = Math.min(this.#heartbeat, this.#isProbing ? ANSWER_TIMEOUT : LOOK_INTERVAL);
      if (delay) this.#wait(delay, () => this.#look());
      else clearTimeout(this.#timer);
    }

    #look() {
      this.#sayLate();
      if (this.#isProbing) this.#lose(BROKEN, "no answer to a ping");
      else if (Math.abs(Date.now() - this.#heardAt) >= this.#heartbeat) this.#probe();
      else this.#watch();
    }

    #sayLate() {
      if (this.#state === "open" || this.#isLate || Date.now() - this.#openedAt < DIAL_TIMEOUT) return;
      this.#isLate = true;
      console.warn("mease: connected, and not open yet: does one of the server's openers not return?");
    }

    #probe() {
      if (this.#isProbing || !this.#isConnected() || !this.#heartbeat) return;
      this.#isProbing = true;
      this.#socket.send(headed({ type: "ping" }));
      this.#watch();
    }

    #listenToBrowser() {
      const { signal } = this.#listening;
      const listen = (target, name, handler) => target?.addEventListener?.(name, handler, { signal });
      listen(globalThis, "offline", () => this.#doubt());
      listen(globalThis, "online", () => this.#wake(CLOSEST));
      listen(globalThis, "pageshow", (event) => event.persisted && this.#wake(STALE_AFTER));
      listen(globalThis.document, "visibilitychange", () => {
        if (document.visibilityState === "visible") this.#wake(STALE_AFTER);
      });
    }

    #doubt() {
      if (Math.abs(Date.now() - this.#heardAt) > CLOSEST) this.#probe();
    }

    // Connects at once, or doubts the connection there is. An attempt of before the network came back may hang for long.
    #wake(patience) {
      const now = Date.now();
      if (this.#openedAt) {
        this.#doubt();
      } else if (!this.#isOver() && (!this.#attempt || now - this.#attemptAt > patience)) {
        this.#letGo();
        this.#wait(Math.min(LATER_WAIT, this.#notBefore - now), () => this.#connect());
      }
    }

    /* ---- a connection goes ---- */

    #lose(code, reason) {
      const isEnded = ENDED.includes(code);
      if (!isEnded && ![...REFUSED, ...this.#options.final].includes(code)) return this.#reconnect(code, reason);
      this.#tellEarly();                // the opener that closes it may have written why, and never comes again
      if (!this.#isOver()) this.#end(isEnded ? "closed" : "refused", { code, reason });
    }

    #reconnect(code, reason) {
      const now = Date.now();
      const wasOpen = this.#state === "open";
      if (this.#openedAt && now - this.#openedAt >= STABLE_AFTER) this.#failures = this.#backoff = 0;
      const delay = this.#delay(code, now);
      this.#failures++;
      this.#backoff++;
      this.#letGo();
      this.#state = "reconnecting";
      this.#wait(delay, () => this.#connect());
      if (this.#failures === 3 && !this.#hasBeenOpen) this.#explain(reason);
      if (wasOpen) this.#events.emit("close", { code, reason });
      if (this.#isOver()) return;       // a handler has closed it
      this.#events.emit("reconnecting", { code, reason, attempt: this.#failures, delay: delay / SECOND });
    }

    // Any time up to a limit that doubles ("full jitter"): the pages of a server that restarts do not all come at once.
    #delay(code, now) {
      const isLater = LATER.includes(code);
      if (isLater) this.#notBefore = now + LATER_WAIT;
      if (isLater || code === RESTARTS) this.#backoff = Math.max(this.#backoff, 2);
      return Math.random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#backoff) + (isLater ? LATER_WAIT : 0);
    }

    #explain(reason) {
      const why = reason || "does run_websocket_server run there, and does its log say that it refuses this page?";
      console.warn(`mease: no connection to ${this.#url} yet: ${why}`);
    }

    #end(state, details) {
      const wasOpen = this.#state === "open";
      const unsent = this.#queue.splice(0).length;
      this.#letGo();
      this.#listening.abort();
      this.#state = state;
      for (const membership of this.#memberships.values()) membership.state = "left";
      this.#memberships.clear();
      if (unsent) console.warn(`mease: ${state}, messages that were not sent: ${unsent}`);
      if (wasOpen || state === "closed") this.#events.emit("close", details);
      if (state === "refused") this.#events.emit("refused", details);
    }

    // Never two connections: the old one is closed and has no way back before another is begun.
    #letGo() {
      const socket = this.#socket;
      clearTimeout(this.#timer);
      this.#socket = this.#attempt = null;
      this.#openedAt = 0;
      this.#early = [];
      this.#isProbing = false;
      for (const membership of this.#memberships.values()) membership.lose();
      if (!socket) return;
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(1000);
    }
  }

  function encode(data) {
    if (typeof data === "string" || data instanceof ArrayBuffer || ArrayBuffer.isView(data)) return data;
    if (data instanceof Blob) return data;
    const text = JSON.stringify(data);
    if (text === undefined) throw new TypeError(`mease: ${typeof data} cannot be sent`);
    return text;
  }

  function headed(fields) {
    return MARK + JSON.stringify(fields);
  }

  function hasHeader(frame) {
    return typeof frame === "string" ? frame[0] === MARK : new Uint8Array(frame)[0] === MARK.charCodeAt(0);
  }

  // The header goes to the first newline; without one there is no message.
  function splitFrame(frame) {
    const isText = typeof frame === "string";
    const end = isText ? frame.indexOf(NEWLINE) : new Uint8Array(frame).indexOf(NEWLINE.charCodeAt(0));
    const header = frame.slice(1, end < 0 ? undefined : end);
    return {
      header: parse(isText ? header : new TextDecoder().decode(header)),
      message: end < 0 ? undefined : frame.slice(end + 1),
    };
  }

  function parse(data) {
    try {
      return typeof data === "string" ? JSON.parse(data) : data;
    } catch {
      return data;
    }
  }

  // A ticket is good for one attempt, and stands in no log when it goes as a subprotocol.
  async function ticketProtocols({ ticket, csrfToken }) {
    const text = await (typeof ticket === "function" ? ticket() : askForTicket(ticket, csrfToken ?? findCsrfToken()));
    return text ? ["mease.ticket", `mease.ticket.${text}`] : null;
  }

  async function askForTicket(url, csrfToken) {
    const answer = await fetch(url, { method: "POST", headers: { "X-CSRFToken": csrfToken } });
    // Django's 403 may be one of its CSRF check too, of which nothing else would tell.
    if (answer.status === 403) console.warn(`mease: no ticket, since ${url} answered 403: is its CSRF token known here?`);
    if (answer.status === 401 || answer.status === 403) return null;
    if (!answer.ok) throw new Error(`${url} answered ${answer.status}`);
    return (await answer.json()).ticket;
  }

  function findCsrfToken() {
    const field = document.querySelector("[name=csrfmiddlewaretoken]");
    return field?.value ?? document.cookie.match(/(?:^|; )csrftoken=([^;]*)/)?.[1] ?? "";
  }

  // ":8001/ws/" is a port of the page's own host, "/ws/" a path of its own port, "?room=7" more for what the tag says.
  function resolve(url) {
    const { hostname, href } = globalThis.location ?? {};
    let text = String(url ?? "");
    if (text === "" || text[0] === "?") text = addressOfTag() + text;
    if (text[0] === ":") text = `//${hostname}${text}`;
    const address = new URL(text, href);
    address.protocol = address.protocol.replace("http", "ws");
    address.hash = "";
    if (!address.protocol.startsWith("ws")) throw new SyntaxError(`mease: ${text} is no address of a WebSocket`);
    return address.href;
  }

  function addressOfTag() {
    const address = globalThis.document?.querySelector("script[data-mease-url]")?.dataset.measeUrl;
    if (address) return address;
    throw new Error('mease: where to? Put {% mease_script %} into the page, or call mease.connect("/ws/")');
  }

  function connect(url, options) {
    if (url && typeof url === "object" && !(url instanceof URL)) return connect(undefined, url);
    return new Live(resolve(url), { ...DEFAULTS, ...options });
  }

  globalThis.mease ??= Object.freeze({ connect });
})();
