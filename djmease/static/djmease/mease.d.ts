/** Types of mease.js, for its global `mease`, and of mease.module.js, which exports the same. */

export type State = "connecting" | "open" | "reconnecting" | "closed" | "refused";
export type GroupState = "joining" | "joined" | "refused" | "left";

/**
 * Why the page is not let into a group: no entry of `MEASE_GROUPS` lets anybody in (`not_listed`), what the entry asks
 * for is not met or could not be found out (`error`), or the page is in as many groups as `MEASE_MAX_GROUPS` allows
 * (`too_many`).
 */
export type Reason =
  | "not_listed"
  | "login_required"
  | "permission_required"
  | "user_passes_test"
  | "too_many"
  | "error"
  | (string & {});

export interface Options {
  /**
   * Where a ticket comes from, for each attempt a new one: the URL of `djmease.views.ticket`, which is asked by POST with
   * Django's CSRF token, or a function. Where nobody is logged in (401, 403, or a function that gives nothing), the
   * connection is refused.
   */
  ticket?: string | (() => string | null | undefined | Promise<string | null | undefined>);
  /** For the ticket's URL; without it, the token of a form in the page or of the cookie `csrftoken`. */
  csrfToken?: string;
  /** How many messages may wait while it is not open; what comes on top is not taken. 100 where it is not said. */
  maxQueue?: number;
  /**
   * Seconds of silence after which it asks the server for a sign of life; 0 is never. 25 where it is not said.
   */
  heartbeat?: number;
  /** Close codes of your own callbacks after which it does not connect again. */
  final?: number[];
}

export interface Closed {
  /** https://www.rfc-editor.org/rfc/rfc6455#section-7.4; 1006 is a connection that broke, or never came. */
  code: number;
  reason: string;
}

export interface Reconnecting extends Closed {
  /** 1 for the first attempt after a connection that was good. */
  attempt: number;
  /** Seconds before the attempt. */
  delay: number;
}

/** A group of clients that the page is in, for as long as it does not leave: each new connection joins it again. */
export interface Group {
  readonly name: string;
  /** `joining` also while the connection is away; `left` for good, by `leave()` or with the end of the connection. */
  readonly state: GroupState;

  /**
   * Runs when the page is in the group: what is published to it from now on comes. `again` where it was in it before,
   * on a connection that broke: what was published meanwhile did not come, so ask for it.
   */
  on(name: "joined", handler: (details: { again: boolean }) => void): () => void;
  /** Runs when the server does not let the page in; the next connection asks again, since a login may have changed. */
  on(name: "refused", handler: (details: { reason: Reason }) => void): () => void;
  /**
   * Runs for each message that was published to the group, behind the handlers of the connection, which get it too. Any
   * other name is the `"type"` of JSON objects, such as `"mease.presence"`. Returns a function that removes the
   * handler.
   */
  on(name: "message" | (string & {}), handler: (data: any, event: MessageEvent) => void): () => void;

  /** Leaves the group, for all that hold it; `live.group(name)` is a new one after that. */
  leave(): void;
}

export interface Live {
  readonly state: State;

  /**
   * Runs when it opens, before what waited is sent and before any message; `again` where it has been open before. The
   * server's openers are done then: what a page asks for here, with what comes from now on, is all there is.
   */
  on(name: "open", handler: (details: { again: boolean }) => void): () => void;
  /** Runs when an open connection ends, for whatever reason, and for `close()`. */
  on(name: "close", handler: (details: Closed) => void): () => void;
  /** Runs before each further attempt. */
  on(name: "reconnecting", handler: (details: Reconnecting) => void): () => void;
  /** Runs when the server does not want this page; it does not connect again. */
  on(name: "refused", handler: (details: Closed) => void): () => void;
  /**
   * Runs when the server could not hear what was published for so many seconds, and hears it again: something may have
   * been missed, so ask as after "open". It comes up to two seconds late, so that not all pages ask at once.
   */
  on(name: "gap", handler: (details: { seconds: number }) => void): () => void;
  /** Runs for a message that `send` did not take. */
  on(name: "dropped", handler: (data: unknown, reason: string) => void): () => void;
  /**
   * Runs for each message: parsed where it is JSON, an `ArrayBuffer` where it is binary, else text. Any other name is
   * the `"type"` of JSON objects. `event.data` is the message as it was sent, without a header of `mease.v1`. Returns a
   * function that removes the handler.
   */
  on(name: "message" | (string & {}), handler: (data: any, event: MessageEvent) => void): () => void;

  /**
   * Joins a group that `MEASE_GROUPS` declares, now or as soon as it is open, and again after each reconnect: before
   * what handlers of "open" send and what waited. The same name is the same group until it is left. Its "joined" and
   * "refused" come later, never from within this call. Raises `TypeError` for what cannot be a name of a group.
   */
  group(name: string): Group;

  /**
   * Sends text, an `ArrayBuffer`, a view of one or a `Blob` as it is, anything else as its JSON.
   *
   * While it is not open the message waits, and is sent once, in order. Returns false where it was not taken: too many
   * wait, or the connection is over. What was handed to an open connection is not sent again if that breaks.
   */
  send(data: unknown): boolean;

  /** Ends it; what waits is not sent. */
  close(): void;
}

/**
 * Connects, and keeps connected. Without an address it is that of `{% mease_script %}`; `"?room=7"` adds to that,
 * `"/ws/"` is a path of the page's own address, `":8001/"` a port of its host name.
 */
export function connect(url?: string | URL, options?: Options): Live;
export function connect(options: Options): Live;

declare const mease: { readonly connect: typeof connect };
export default mease;

declare global {
  var mease: { readonly connect: typeof connect };
}
