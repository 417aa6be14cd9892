/* A page with a clock and a network of its own: what mease.js sees of a browser, for tests of its timing. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import vm from "node:vm";

const FILE = new URL("../../djmease/static/djmease/mease.js", import.meta.url);
const SOURCE = readFileSync(FILE, "utf8");

export const PING = '\x1e{"type":"ping"}';
export const PONG = '\x1e{"type":"pong"}';
export const READY = '\x1e{"type":"ready"}';

/** Lets promises that are settled run on. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

export class World {
  now = 1_000_000;                    // by which timers go
  skew = 0;                           // of the clock on the wall
  random = 1;
  sockets = [];
  sent = [];                          // what any open socket was handed, pings and what is asked of groups apart
  protocol = "mease.v1";              // what the server agrees on where it is offered
  warnings = [];
  errors = [];                        // what handlers threw
  requests = [];
  answer = () => ({ status: 200, body: { ticket: "t" } });
  #timers = new Map();
  #lastTimer = 0;
  #window = new EventTarget();

  constructor({ href = "https://shop.example/page/", tag = ":8001/", field = null, cookie = "" } = {}) {
    const world = this;
    this.document = new EventTarget();
    Object.assign(this.document, {
      visibilityState: "visible",
      cookie,
      querySelector: (selector) => {
        if (selector === "script[data-mease-url]") return tag === null ? null : { dataset: { measeUrl: tag } };
        return field === null ? null : { value: field };
      },
    });
    this.context = vm.createContext({
      AbortController,
      ArrayBuffer,
      Blob,
      MessageEvent,
      TextDecoder,
      Date: { now: () => this.now + this.skew },
      URL,
      WebSocket: class extends Socket {
        constructor(url, protocols) {
          super(world, url, protocols);
        }
      },
      addEventListener: (...listening) => this.#window.addEventListener(...listening),
      clearTimeout: (timer) => this.#timers.delete(timer),
      console: { warn: (text) => this.warnings.push(text) },
      document: this.document,
      fetch: (url, options) => this.#fetch(url, options),
      location: new URL(href),
      queueMicrotask,
      setTimeout: (run, delay = 0) => this.#set(run, delay),
      worldRandom: () => this.random,
    });
    vm.runInContext("Math.random = worldRandom", this.context);
    this.load();
    this.mease = this.context.mease;
  }

  load() {
    vm.runInContext(SOURCE, this.context, FILE.pathname);
  }

  get socket() {
    return this.sockets.at(-1);
  }

  /** Times of the timers that are set, from now. */
  get waits() {
    return [...this.#timers.values()].map(({ at }) => at - this.now);
  }

  #set(run, delay) {
    this.#timers.set(++this.#lastTimer, { run, at: this.now + Math.max(0, delay) });
    return this.#lastTimer;
  }

  async #fetch(url, options) {
    this.requests.push({ url, ...options });
    const { status, body } = await this.answer(url);
    return { status, ok: status < 300, json: async () => body };
  }

  /** Lets so many seconds pass, with each timer at its time. */
  async pass(seconds) {
    const end = this.now + seconds * 1000;
    for (;;) {
      await settle();
      const due = [...this.#timers].filter(([, { at }]) => at <= end).sort(([, one], [, other]) => one.at - other.at);
      if (due.length === 0) break;
      const [number, { run, at }] = due[0];
      this.#timers.delete(number);
      this.now = Math.max(this.now, at);
      this.#run(run);
    }
    this.now = end;
    await settle();
  }

  /** The machine sleeps: time goes on, and no timer runs. */
  sleep(seconds) {
    this.skew += seconds * 1000;
  }

  #run(run) {
    try {
      run();
    } catch (error) {
      this.errors.push(error);
    }
  }

  window(name, details = {}) {
    this.#window.dispatchEvent(Object.assign(new Event(name), details));
  }

  show(state) {
    this.document.visibilityState = state;
    this.document.dispatchEvent(new Event("visibilitychange"));
  }

  /** A page that is connected, with the list of what its events were. */
  async connected(...options) {
    const live = this.mease.connect(...options);
    const events = recorded(live);
    await settle();
    this.socket.open();
    return { live, events };
  }
}

/** A header, and what stands behind it. */
export function headed(fields, message) {
  return `\x1e${JSON.stringify(fields)}${message === undefined ? "" : `\n${message}`}`;
}

const EVENTS = ["message", "open", "close", "reconnecting", "refused", "dropped", "gap"];

export function recorded(live) {
  const events = [];
  for (const name of EVENTS) live.on(name, (...details) => events.push([name, ...plain(details)]));
  return events;
}

// What comes from the other context has other prototypes.
function plain(details) {
  return details.map((detail) => (detail?.constructor?.name === "Object" ? { ...detail } : detail));
}

class Socket {
  readyState = 0;
  constructor(world, url, protocols) {
    const others = world.sockets.filter((socket) => socket.readyState < 2);
    assert.equal(others.length, 0, "a second connection while there is one");
    Object.assign(this, { world, url, protocols: [...protocols], at: world.now + world.skew, sent: [], isReachable: true });
    world.sockets.push(this);
  }

  /** It comes about; "isReady" where the openers of the server are done in the same moment. */
  open({ isReady = true } = {}) {
    const { protocol } = this.world;
    this.readyState = 1;
    this.protocol = this.protocols.includes(protocol) ? protocol : "";
    this.onopen?.({});
    if (isReady && this.protocol === "mease.v1") this.receive(READY);
  }

  isQuestion(data) {
    const isHeader = typeof data === "string" && data.startsWith("\x1e") && !data.includes("\n");
    return isHeader && data !== PING && this.protocol === "mease.v1";
  }

  /** The headers that it was handed, pings apart. */
  get asked() {
    return this.sent.filter((data) => this.isQuestion(data)).map((text) => JSON.parse(text.slice(1)));
  }

  /** Answers what was asked last. */
  answer(type, more = {}) {
    const { group, ref } = this.asked.at(-1);
    this.receive(headed({ type, group, ref, ...more }));
  }

  receive(data) {
    const isFrame = typeof data === "string" || data instanceof ArrayBuffer;
    if (this.readyState === 1) this.onmessage?.({ data: isFrame ? data : JSON.stringify(data) });
  }

  /** It ends without the page's doing. */
  end(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  send(data) {
    assert.notEqual(this.readyState, 0, "a browser throws where a connection is not open yet");
    if (this.readyState !== 1) return;
    this.sent.push(data);
    if (data !== PING && !this.isQuestion(data)) this.world.sent.push(data);
  }

  close(code) {
    assert.ok(code === undefined || code === 1000 || (code >= 3000 && code < 5000));
    if (this.readyState < 2) this.readyState = 2;
    this.closedWith = code;
  }
}
