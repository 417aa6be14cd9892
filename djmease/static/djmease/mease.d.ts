/** Types of mease.js, for its global `mease`, and of mease.module.js, which exports the same. */

export type State = "connecting" | "open" | "reconnecting" | "closed" | "refused";

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
  /** Seconds of silence after which it asks the server for a sign of life; 0 is never. 25 where it is not said. */
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

export interface Live {
  readonly state: State;

  /** Runs when it opens, before what waited is sent; `again` where it has been open before. */
  on(name: "open", handler: (details: { again: boolean }) => void): () => void;
  /** Runs when an open connection ends, for whatever reason, and for `close()`. */
  on(name: "close", handler: (details: Closed) => void): () => void;
  /** Runs before each further attempt. */
  on(name: "reconnecting", handler: (details: Reconnecting) => void): () => void;
  /** Runs when the server does not want this page; it does not connect again. */
  on(name: "refused", handler: (details: Closed) => void): () => void;
  /** Runs for a message that `send` did not take. */
  on(name: "dropped", handler: (data: unknown, reason: string) => void): () => void;
  /**
   * Runs for each message: parsed where it is JSON, an `ArrayBuffer` where it is binary, else text. Any other name is the
   * `"type"` of JSON objects. Returns a function that removes the handler.
   */
  on(name: "message" | (string & {}), handler: (data: any, event: MessageEvent) => void): () => void;

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
