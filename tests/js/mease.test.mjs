/* mease.js against a clock and a network of the test's own: node --test tests/js/ */
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { PING, PONG, READY, World, headed, recorded, settle } from "./world.mjs";

const CALLED_OFF = [1000, 1005];
const REFUSED = [1002, 1007, 1008, 1009, 4401, 4403];
const COMES_BACK = [1001, 1006, 1011, 1012, 1013, 4000, 4429];

function recordedGroup(group) {
  const events = [];
  for (const name of ["joined", "refused", "message"]) group.on(name, (details) => events.push([name, { ...details }]));
  return events;
}

describe("messages", () => {
  test("JSON is parsed, other text and bytes come as they are", async () => {
    const world = new World();
    const { events } = await world.connected();
    const bytes = new ArrayBuffer(2);
    for (const data of ['{"a": [1]}', "3", "hello", "", '{"a":', bytes]) world.socket.receive(data);
    const received = events.filter(([name]) => name === "message").map(([, data]) => data);
    assert.equal(JSON.stringify(received.slice(0, 5)), JSON.stringify([{ a: [1] }, 3, "hello", "", '{"a":']));
    assert.equal(received[5], bytes);
    assert.equal(world.socket.binaryType, "arraybuffer");
  });

  test("a handler of a type gets objects of that type, and the event", async () => {
    const world = new World();
    const { live } = await world.connected();
    const seen = [];
    live.on("chat.say", (data, event) => seen.push([data.text, event.data]));
    const objects = [{ type: "chat.say", text: "hi" }, { type: "chat" }, { text: "x" }];
    const others = ['"chat.say"', '["chat.say"]', "null", '{"type": 7}', '{"type": ["chat.say"]}'];
    for (const data of [...objects, ...others]) world.socket.receive(data);
    assert.deepEqual(seen, [["hi", '{"type":"chat.say","text":"hi"}']]);
  });

  test("a message cannot pass for an event of the connection, nor for a part of an object", async () => {
    const world = new World();
    const { events } = await world.connected();
    const types = ["open", "close", "reconnecting", "refused", "dropped", "gap", "message", "constructor", "__proto__"];
    for (const type of types) world.socket.receive({ type });
    assert.deepEqual(events.map(([name]) => name), ["open", ...types.map(() => "message")]);
  });

  test("a handler that is removed is gone, and one that is there twice runs twice", async () => {
    const world = new World();
    const { live } = await world.connected();
    let runs = 0;
    const count = () => runs++;
    const remove = live.on("message", count);
    live.on("message", count);
    world.socket.receive("x");
    assert.equal(runs, 2);
    assert.equal(remove(), undefined);
    remove();
    world.socket.receive("x");
    assert.equal(runs, 3);
  });

  test("a handler that throws disturbs nobody, and its error is seen", async () => {
    const world = new World();
    const { live, events } = await world.connected();
    live.on("a", () => { throw new Error("broken handler"); });
    let isReached = false;
    live.on("a", () => { isReached = true; });
    world.socket.receive({ type: "a" });
    await world.pass(0);
    assert.ok(isReached);
    assert.deepEqual(world.errors.map(String), ["Error: broken handler"]);
    assert.equal(live.state, "open");
    assert.equal(events.length, 2);
  });
});

describe("handlers that come and go while they run", () => {
  test("one that is added by another runs from the next time on", async () => {
    const world = new World();
    const { live } = await world.connected();
    let runs = 0;
    live.on("a", () => live.on("a", () => runs++));
    world.socket.receive({ type: "a" });
    assert.equal(runs, 0);
    world.socket.receive({ type: "a" });
    assert.equal(runs, 1);
  });
});

describe("sending", () => {
  test("text and bytes go as they are, everything else as JSON", async () => {
    const world = new World();
    const { live } = await world.connected();
    const buffer = new ArrayBuffer(1);
    const blob = new Blob(["x"]);
    const view = new Uint8Array(2);
    const all = ["hi", buffer, view, blob, { type: "a" }, [1], 7, null, true];
    assert.ok(all.every((data) => live.send(data) === true));
    assert.deepEqual(world.sent, ["hi", buffer, view, blob, '{"type":"a"}', "[1]", "7", "null", "true"]);
  });

  test("what cannot be sent raises at once", async () => {
    const { live } = await new World().connected();
    const circle = {};
    circle.circle = circle;
    for (const data of [undefined, () => 1, circle, 1n]) assert.throws(() => live.send(data), { name: "TypeError" });
  });

  test("what waits is sent once, in order, as it was when it was handed over", async () => {
    const world = new World();
    const live = world.mease.connect();
    const message = { text: "first" };
    live.send(message);
    message.text = "changed later";
    live.send("second");
    await settle();
    world.socket.open();
    live.send("third");
    assert.deepEqual(world.sent, ['{"text":"first"}', "second", "third"]);
    world.socket.end();
    live.send("fourth");
    await world.pass(1);
    world.socket.open();
    assert.deepEqual(world.socket.sent, ["fourth"]);
  });

  test("what is sent between a close that begins and its end waits for the next connection", async () => {
    const world = new World();
    const { live } = await world.connected();
    world.socket.readyState = 2;
    assert.equal(live.state, "open");
    live.send("late");
    world.socket.end(1012);
    await world.pass(2);
    world.socket.open();
    assert.deepEqual(world.sent, ["late"]);
  });

  test("what a handler of open sends goes before what waited", async () => {
    const world = new World();
    const live = world.mease.connect();
    live.on("open", () => live.send("join"));
    live.send("say");
    await settle();
    world.socket.open();
    assert.deepEqual(world.sent, ["join", "say"]);
  });

  test("what does not fit is not taken, and the cure is named once for each time it is away", async () => {
    const world = new World();
    const live = world.mease.connect({ maxQueue: 2 });
    const events = recorded(live);
    assert.deepEqual(["a", "b", "c", "d"].map((text) => live.send(text)), [true, true, false, false]);
    assert.deepEqual(events.map(([name, data]) => [name, data]), [["dropped", "c"], ["dropped", "d"]]);
    assert.equal(world.warnings.length, 1);
    assert.match(world.warnings[0], /maxQueue/);
    await settle();
    world.socket.open();
    assert.deepEqual(world.sent, ["a", "b"]);
    world.socket.end();
    for (const text of ["e", "f", "g"]) live.send(text);
    assert.equal(world.warnings.length, 2);
  });

  test("a hundred wait where nothing is said", async () => {
    const world = new World();
    const live = world.mease.connect();
    const taken = Array.from({ length: 105 }, (_, number) => live.send(number));
    assert.equal(taken.filter(Boolean).length, 100);
    assert.equal(taken.lastIndexOf(true), 99);
  });

  test("what is sent when all is over is not taken, and said", async () => {
    const world = new World();
    const { live, events } = await world.connected();
    world.socket.end(4401, "logged out");
    assert.equal(live.send("x"), false);
    assert.deepEqual(events.at(-1), ["dropped", "x", "the connection is refused"]);
    assert.match(world.warnings[0], /refused/);
  });
});

describe("a server whose openers take their time", () => {
  async function unready(...options) {
    const world = new World();
    const live = world.mease.connect(...options);
    const events = recorded(live);
    await settle();
    world.socket.open({ isReady: false });
    return { world, live, events };
  }

  test("it is open when the server is ready, and what came before comes behind that, in order", async () => {
    const { world, live, events } = await unready();
    const board = live.group("board");
    const heard = [];
    board.on("message", (data) => heard.push(data));
    live.on("open", () => heard.push("open"));
    world.socket.receive("greeting");
    world.socket.receive(headed({ groups: ["board"] }, "first"));
    assert.deepEqual([live.state, events, heard], ["connecting", [], []]);
    world.socket.receive(READY);
    world.socket.receive(headed({ groups: ["board"] }, "second"));
    assert.equal(live.state, "open");
    assert.deepEqual(events.map(([name, data]) => (name === "open" ? name : data)), ["open", "greeting", "first", "second"]);
    assert.deepEqual(heard, ["open", "first", "second"]);
  });

  test("what is sent waits for it, and groups are asked for before", async () => {
    const { world, live } = await unready({ maxQueue: 1 });
    live.group("board");
    assert.deepEqual([live.send("waits"), live.send("too much")], [true, false]);
    assert.deepEqual(world.socket.asked.map(({ group }) => group), ["board"]);
    world.socket.answer("joined");
    assert.deepEqual([live.group("board").state, world.sent], ["joined", []]);
    world.socket.receive(READY);
    assert.deepEqual(world.sent, ["waits"]);
  });

  test("it is waited for as long as the connection shows signs of life", async () => {
    const { world, live, events } = await unready();
    for (let round = 0; round < 5; round++) {
      await world.pass(25);
      assert.equal(world.socket.sent.at(-1), PING);
      world.socket.receive(PONG);
    }
    assert.deepEqual([live.state, world.sockets.length], ["connecting", 1]);
    assert.deepEqual(world.warnings, ["mease: connected, and not open yet: does one of the server's openers not return?"]);
    await world.pass(36);
    assert.deepEqual(events.map(([name]) => name), ["reconnecting"]);
  });

  test("one that turns the page away was never open", async () => {
    const { world, live, events } = await unready();
    world.socket.end(4403, "not here");
    assert.deepEqual([live.state, events], ["refused", [["refused", { code: 4403, reason: "not here" }]]]);
  });

  test("what an opener writes before it turns the page away comes before its end", async () => {
    for (const [code, end] of [[4403, "refused"], [1000, "close"]]) {
      const { world, events } = await unready();
      world.socket.receive("it is full");
      world.socket.end(code, "");
      assert.deepEqual(events.map(([name]) => name), ["message", end]);
    }
  });

  test("a handler of what an opener wrote may close it, which ends once", async () => {
    const { world, live, events } = await unready();
    live.on("message", () => live.close());
    for (const text of ["one", "two"]) world.socket.receive(text);
    world.socket.end(4403, "");
    assert.deepEqual([live.state, events.map(([name]) => name)], ["closed", ["message", "close"]]);
  });

  test("what came on a connection that breaks before is gone with it", async () => {
    const { world, events } = await unready();
    world.socket.receive("greeting");
    world.socket.end();
    await world.pass(1);
    world.socket.open();
    assert.deepEqual(events.map(([name]) => name), ["reconnecting", "open"]);
    assert.deepEqual(events.at(-1), ["open", { again: false }]);
  });

  test("a handler of open may close it, and hears nothing then", async () => {
    const { world, live, events } = await unready();
    world.socket.receive("greeting");
    live.on("open", () => live.close());
    world.socket.receive(READY);
    assert.deepEqual(events.map(([name]) => name), ["open", "close"]);
  });
});

describe("coming back", () => {
  test("the states and events of a life", async () => {
    const world = new World();
    const live = world.mease.connect();
    const events = recorded(live);
    assert.equal(live.state, "connecting");
    await settle();
    world.socket.open();
    assert.equal(live.state, "open");
    world.socket.end(1006, "");
    assert.equal(live.state, "reconnecting");
    await world.pass(0.5);
    world.socket.open();
    assert.equal(live.state, "open");
    live.close();
    assert.equal(live.state, "closed");
    assert.deepEqual(events, [
      ["open", { again: false }],
      ["close", { code: 1006, reason: "" }],
      ["reconnecting", { code: 1006, reason: "", attempt: 1, delay: 0.5 }],
      ["open", { again: true }],
      ["close", { code: 1000, reason: "" }],
    ]);
    assert.throws(() => { live.state = "open"; }, TypeError);
  });

  test("the limit of the wait doubles from half a second to twenty seconds", async () => {
    const world = new World();
    const live = world.mease.connect();
    const delays = [];
    live.on("reconnecting", ({ delay }) => delays.push(delay));
    await settle();
    for (let attempt = 0; attempt < 9; attempt++) {
      world.socket.end();
      await world.pass(20);
    }
    assert.deepEqual(delays, [0.5, 1, 2, 4, 8, 16, 20, 20, 20]);
  });

  test("a server that restarts has longer waits, and attempts that are counted from one", async () => {
    const world = new World();
    const { events } = await world.connected();
    world.socket.end(1012);
    assert.deepEqual(events.at(-1), ["reconnecting", { code: 1012, reason: "", attempt: 1, delay: 2 }]);
    await world.pass(2);
    world.socket.end();
    assert.deepEqual(events.at(-1), ["reconnecting", { code: 1006, reason: "", attempt: 2, delay: 4 }]);
  });

  test("the wait is any share of its limit, down to none", async () => {
    for (const random of [0, 0.25, 0.999]) {
      const world = new World();
      world.random = random;
      const { events } = await world.connected();
      world.socket.end();
      assert.equal(events.at(-1)[1].delay, random * 0.5);
      assert.deepEqual(world.waits, [random * 500]);
    }
  });

  test("only a connection that stayed makes the waits short again", async () => {
    const world = new World();
    const { events } = await world.connected();
    const delays = () => events.filter(([name]) => name === "reconnecting").map(([, { delay }]) => delay);
    for (const stay of [1, 9.9, 9.9, 10, 9.9]) {
      await world.pass(stay);
      world.socket.end();
      await world.pass(events.at(-1)[1].delay);
      world.socket.open();
    }
    assert.deepEqual(delays(), [0.5, 1, 2, 0.5, 1]);
  });

  test("a server that restarts is given two seconds to spread its pages over", async () => {
    const world = new World();
    const { events } = await world.connected();
    world.socket.end(1012, "");
    assert.equal(events.at(-1)[1].delay, 2);
    for (const delay of [4, 8]) {
      await world.pass(2 * delay);
      world.socket.open();
      world.socket.end(1012);
      assert.equal(events.at(-1)[1].delay, delay);
    }
  });

  for (const code of [1013, 4429]) {
    test(`after ${code} it takes at least five seconds, also when the tab is shown`, async () => {
      const world = new World();
      world.random = 0;
      const { events } = await world.connected();
      world.socket.end(code);
      assert.equal(events.at(-1)[1].delay, 5);
      world.show("visible");
      world.window("online");
      await world.pass(4.9);
      assert.equal(world.sockets.length, 1);
      await world.pass(0.2);
      assert.equal(world.sockets.length, 2);
    });
  }

  for (const code of COMES_BACK) {
    test(`it comes back after ${code}`, async () => {
      const world = new World();
      const { live } = await world.connected();
      world.socket.end(code);
      assert.equal(live.state, "reconnecting");
      await world.pass(10);
      assert.equal(world.sockets.length, 2);
    });
  }

  for (const code of [...REFUSED, ...CALLED_OFF, 4004]) {
    const state = CALLED_OFF.includes(code) ? "closed" : "refused";
    test(`it stays away after ${code}, and is ${state}`, async () => {
      const world = new World();
      const { live, events } = await world.connected({ final: [4004] });
      world.socket.readyState = 2;
      live.send("never sent");
      world.socket.end(code, "why");
      assert.equal(live.state, state);
      const expected = [["close", { code, reason: "why" }], ["refused", { code, reason: "why" }]];
      assert.deepEqual(events.slice(1), state === "refused" ? expected : expected.slice(0, 1));
      assert.match(world.warnings[0], /messages that were not sent: 1/);
      for (const name of ["online", "offline", "pageshow"]) world.window(name, { persisted: true });
      world.show("visible");
      await world.pass(3600);
      assert.equal(world.sockets.length, 1);
      assert.deepEqual(world.waits, []);
      assert.deepEqual(world.sent, []);
    });
  }

  test("an attempt that hangs is given up after twenty seconds", async () => {
    const world = new World();
    const live = world.mease.connect();
    await world.pass(19.9);
    assert.equal(live.state, "connecting");
    const [hanging] = world.sockets;
    await world.pass(0.2);
    assert.equal(live.state, "reconnecting");
    assert.equal(hanging.closedWith, 1000);
    await world.pass(1);
    assert.equal(world.sockets.length, 2);
    hanging.open();
    assert.equal(live.state, "reconnecting");
  });

  test("a page that never connects says so once", async () => {
    const world = new World();
    world.mease.connect();
    for (let attempt = 0; attempt < 10; attempt++) {
      await settle();
      world.socket.end();
      await world.pass(20);
    }
    assert.equal(world.warnings.length, 1);
    assert.match(world.warnings[0], /wss:\/\/shop\.example:8001\/ .*run_websocket_server/);
  });

  test("a page that was connected waits without a word", async () => {
    const world = new World();
    await world.connected();
    for (let attempt = 0; attempt < 10; attempt++) {
      world.socket.end();
      await world.pass(20);
    }
    assert.deepEqual(world.warnings, []);
  });
});

describe("a browser that wakes", () => {
  async function waiting(world) {
    const { live, events } = await world.connected();
    for (let failure = 0; failure < 6; failure++) {
      world.socket.end();
      await world.pass(failure < 5 ? 16 : 0);
    }
    assert.deepEqual(world.waits, [16000]);
    await world.pass(2);
    return { live, events, before: world.sockets.length };
  }

  const wakes = {
    "the network is back": (world) => world.window("online"),
    "the tab is shown": (world) => world.show("visible"),
    "the page comes back from the cache": (world) => world.window("pageshow", { persisted: true }),
  };
  for (const [name, wake] of Object.entries(wakes)) {
    test(`it connects at once when ${name}`, async () => {
      const world = new World();
      const { live, before } = await waiting(world);
      wake(world);
      await world.pass(0);
      assert.equal(world.sockets.length, before + 1);
      world.socket.open();
      assert.equal(live.state, "open");
      await world.pass(24);
      assert.equal(world.sockets.length, before + 1);
    });
  }

  test("nothing is done when the network goes, the tab is hidden, or a page has just been loaded", async () => {
    const world = new World();
    const { before } = await waiting(world);
    world.window("offline");
    world.show("hidden");
    world.window("pageshow", { persisted: false });
    await world.pass(1);
    assert.equal(world.sockets.length, before);
  });

  test("however often it wakes, attempts are a second apart", async () => {
    const world = new World();
    const { before } = await waiting(world);
    for (let tenth = 0; tenth < 100; tenth++) {
      world.show("visible");
      world.window("online");
      await world.pass(0.1);
      if (world.socket.readyState === 0) world.socket.end();
    }
    const attempts = world.sockets.slice(before).map((socket) => socket.at);
    assert.ok(attempts.length >= 5 && attempts.length <= 11, `${attempts.length} attempts in 10 s`);
    for (const [index, at] of attempts.slice(1).entries()) assert.ok(at - attempts[index] >= 1000);
  });

  test("an attempt under way is let be, unless it is from before the network came back", async () => {
    const world = new World();
    world.mease.connect();
    await world.pass(3);
    world.show("visible");
    await world.pass(1.1);
    assert.equal(world.sockets.length, 1);
    world.window("online");
    await world.pass(0);
    assert.equal(world.sockets.length, 2);
    assert.equal(world.sockets[0].readyState, 2);
    world.window("online");
    await world.pass(0.9);
    assert.equal(world.sockets.length, 2);
  });
});

describe("a connection that may be dead", () => {
  test("after 25 seconds of silence it asks, and an answer is enough", async () => {
    const world = new World();
    const { live, events } = await world.connected();
    await world.pass(24);
    assert.deepEqual(world.socket.sent, []);
    await world.pass(2);
    assert.deepEqual(world.socket.sent, [PING]);
    world.socket.receive(PONG);
    await world.pass(24);
    assert.deepEqual(world.socket.sent, [PING]);
    assert.equal(live.state, "open");
    assert.deepEqual(events.map(([name]) => name), ["open"]);
  });

  test("whatever comes counts as a sign of life", async () => {
    const world = new World();
    await world.connected();
    for (let second = 0; second < 100; second += 20) {
      await world.pass(20);
      world.socket.receive("news");
    }
    assert.deepEqual(world.socket.sent, []);
  });

  test("without an answer in ten seconds it is given up, and what was sent meanwhile is sent once", async () => {
    const world = new World();
    const { live, events } = await world.connected();
    await world.pass(25);
    const dead = world.socket;
    live.send("one");
    live.send("two");
    await world.pass(9);
    assert.equal(live.state, "open");
    await world.pass(1);
    assert.equal(live.state, "reconnecting");
    assert.deepEqual(events.at(-2), ["close", { code: 1006, reason: "no answer to a ping" }]);
    await world.pass(1);
    world.socket.open();
    assert.deepEqual(dead.sent, [PING]);
    live.send("three");
    assert.deepEqual(world.socket.sent, ["one", "two", "three"]);
    dead.readyState = 1;
    dead.receive("too late");
    dead.end(4401);
    assert.equal(live.state, "open");
    assert.deepEqual(events.map(([name]) => name), ["open", "close", "reconnecting", "open"]);
  });

  test("what was sent while it asked goes out with the answer, in order", async () => {
    const world = new World();
    const { live } = await world.connected();
    await world.pass(26);
    live.send("one");
    world.socket.receive("anything");
    live.send("two");
    assert.deepEqual(world.sent, ["one", "two"]);
  });

  test("a full queue is no loss while it asks", async () => {
    const world = new World();
    const { live } = await world.connected({ maxQueue: 3 });
    await world.pass(26);
    const numbers = Array.from({ length: 10 }, (_, number) => String(number));
    for (const number of numbers) assert.equal(live.send(number), true);
    world.socket.receive(PONG);
    assert.deepEqual(world.sent, numbers);
    assert.deepEqual(world.warnings, []);
  });

  test("a sleep is found within seconds", async () => {
    const world = new World();
    const { live } = await world.connected();
    await world.pass(12);
    world.sleep(3600);
    await world.pass(5);
    assert.deepEqual(world.socket.sent, [PING]);
    await world.pass(10);
    assert.equal(live.state, "reconnecting");
  });

  for (const [name, wake] of Object.entries({
    "the network goes": (world) => world.window("offline"),
    "the network is back": (world) => world.window("online"),
    "the tab is shown": (world) => world.show("visible"),
  })) {
    test(`it asks when ${name}, once`, async () => {
      const world = new World();
      const { live } = await world.connected();
      await world.pass(3);
      for (let time = 0; time < 20; time++) wake(world);
      assert.deepEqual(world.socket.sent, [PING]);
      await world.pass(10);
      assert.equal(live.state, "reconnecting");
    });
  }

  test("it does not ask what has just been answered", async () => {
    const world = new World();
    await world.connected();
    await world.pass(3);
    world.socket.receive("news");
    await world.pass(0.5);
    world.show("visible");
    assert.deepEqual(world.socket.sent, []);
  });

  test("a clock that is set back does not make it deaf", async () => {
    const world = new World();
    await world.connected();
    world.skew -= 3600_000;
    await world.pass(5);
    assert.deepEqual(world.socket.sent, [PING]);
  });

  test("it can be switched off", async () => {
    const world = new World();
    const { live } = await world.connected("/ws/", { heartbeat: 0 });
    assert.deepEqual(world.waits, []);
    await world.pass(3600);
    for (const wake of ["online", "offline"]) world.window(wake);
    await world.pass(3600);
    assert.deepEqual(world.socket.sent, []);
    assert.equal(live.state, "open");
    assert.equal(world.sockets.length, 1);
  });
});

describe("the subprotocol", () => {
  const ODD = ["\x1e", '\x1e{"type":"ping"}', "\x1e{}\nx"];

  test("what begins as if it had a header is given one, also where it has waited", async () => {
    const world = new World();
    const live = world.mease.connect();
    for (const text of ODD) live.send(text);
    await settle();
    world.socket.open();
    for (const text of ["x\x1e", "", ...ODD]) live.send(text);
    const escaped = ODD.map((text) => `\x1e{}\n${text}`);
    assert.deepEqual(world.socket.sent, [...escaped, "x\x1e", "", ...escaped]);
  });

  test("bytes are sent as they are", async () => {
    const world = new World();
    const { live } = await world.connected();
    const all = [new Uint8Array([0x1e]), new Uint8Array([0x1e]).buffer, new Blob(["\x1e"])];
    for (const data of all) live.send(data);
    assert.deepEqual(world.socket.sent, all);
  });

  test("a message is what stands behind its header, for the handler and in its event", async () => {
    const world = new World();
    const { live } = await world.connected();
    const seen = [];
    live.on("message", (data, event) => seen.push([data, event.data]));
    live.on("a", ({ n }) => seen.push(n));
    const texts = ["", "x\ny", "\x1e", "\x1e{}\n"];
    for (const text of texts) world.socket.receive(headed({ groups: ["g"], later: 1 }, text));
    world.socket.receive(headed({}, '{"type":"a","n":7}'));
    assert.deepEqual(seen.slice(0, 4), texts.map((text) => [text, text]));
    assert.equal(seen[4][1], '{"type":"a","n":7}');
    assert.deepEqual(seen.slice(5), [7]);
  });

  test("so it is with bytes", async () => {
    const world = new World();
    const { live } = await world.connected();
    const seen = [];
    live.on("message", (data, event) => seen.push([[...new Uint8Array(data)], data === event.data]));
    live.group("u").on("message", (data) => seen.push(data.byteLength));
    const bytes = (header, ...more) => new Uint8Array([...new TextEncoder().encode(header), ...more]).buffer;
    world.socket.receive(bytes(headed({ groups: ["u"], later: "ü" }, ""), 10, 0x1e, 255));
    world.socket.receive(bytes(headed({}, ""), 0x1e));
    world.socket.receive(bytes(headed({}, "")));
    world.socket.receive(bytes("", 1, 0x1e));
    world.socket.receive(bytes(""));
    assert.deepEqual(seen, [[[10, 0x1e, 255], true], 3, [[0x1e], true], [[], true], [[1, 0x1e], true], [[], true]]);
  });

  test("a gap is told within two seconds, unless the connection has gone", async () => {
    const world = new World();
    world.random = 0.5;
    const { live } = await world.connected();
    const gaps = [];
    live.on("gap", ({ seconds }) => gaps.push(seconds));
    world.socket.receive(headed({ type: "gap", seconds: 3.5 }));
    await world.pass(0.9);
    assert.deepEqual(gaps, []);
    await world.pass(0.2);
    assert.deepEqual(gaps, [3.5]);
    world.socket.receive(headed({ type: "gap", seconds: 4 }));
    world.socket.end();
    await world.pass(2);
    assert.equal(gaps.length, 1);
  });

  test("what it does not know is passed over, and is a sign of life", async () => {
    const world = new World();
    const { live, events } = await world.connected();
    const board = recordedGroup(live.group("board"));
    await world.pass(20);
    const headers = ["", "{", "null", "[]", '"joined"', '{"type":"dance","group":"board","ref":1}'];
    for (const header of headers) world.socket.receive(`\x1e${header}`);
    const before = ["\n1", "{\n2", "null\n3", '{"type":"joined","group":"board","ref":1}\n4'];
    for (const text of before) world.socket.receive(`\x1e${text}`);
    assert.deepEqual(events.slice(1).map(([, data]) => data), [1, 2, 3, 4]);
    assert.deepEqual(board, []);
    await world.pass(20);
    assert.equal(world.socket.sent.includes(PING), false);
    assert.deepEqual(world.errors, []);
  });
});

test("a server that does not speak mease.v1 is none: it is tried again, and the reason is said", async () => {
  const world = new World();
  world.protocol = "";
  const live = world.mease.connect();
  const events = recorded(live);
  const board = live.group("board");
  live.send("waits");
  for (let attempt = 0; attempt < 3; attempt++) {
    await world.pass(4 * attempt);
    world.socket.open();
    assert.deepEqual(world.socket.sent, []);
  }
  assert.deepEqual([live.state, board.state, world.sockets.length], ["reconnecting", "joining", 3]);
  assert.ok(events.every(([name, { reason }]) => name === "reconnecting" && /mease.v1/.test(reason)));
  assert.match(world.warnings[0], /no connection to wss:.* the server does not speak mease.v1/);
  world.protocol = "mease.v1";
  await world.pass(4);
  world.socket.open();
  assert.equal(live.state, "open");
  assert.deepEqual(world.sent, ["waits"]);
});

describe("groups", () => {
  const message = (name, data) => headed({ groups: [name] }, JSON.stringify(data));

  test("the states and events of a life", async () => {
    const world = new World();
    const live = world.mease.connect();
    const board = live.group("board.7");
    const events = recordedGroup(board);
    assert.deepEqual([board.name, board.state], ["board.7", "joining"]);
    await settle();
    world.socket.open();
    assert.deepEqual(world.socket.sent, ['\x1e{"type":"join","group":"board.7","ref":1}']);
    assert.equal(board.state, "joining");
    world.socket.answer("joined");
    assert.equal(board.state, "joined");
    world.socket.receive(message("board.7", { n: 1 }));
    world.socket.end();
    assert.equal(board.state, "joining");
    await world.pass(1);
    world.socket.open();
    world.socket.answer("joined");
    board.leave();
    assert.equal(board.state, "left");
    assert.deepEqual(world.socket.asked.map(({ type }) => type), ["join", "leave"]);
    world.socket.answer("left");
    world.socket.receive(message("board.7", { n: 2 }));
    board.leave();
    assert.equal(world.socket.asked.length, 2);
    world.socket.end();
    await world.pass(20);
    world.socket.open();
    assert.deepEqual(world.socket.sent, []);
    assert.deepEqual(events, [["joined", { again: false }], ["message", { n: 1 }], ["joined", { again: true }]]);
    assert.throws(() => { "use strict"; board.state = "joined"; }, TypeError);
  });

  test("one that is refused and nobody listens is said, with the cure where there is one", async () => {
    const world = new World();
    const { live } = await world.connected();
    for (const reason of ["not_listed", "too_many"]) {
      live.group(reason);
      world.socket.answer("refused", { reason });
    }
    live.group("heard").on("refused", () => {});
    world.socket.answer("refused", { reason: "not_listed" });
    assert.deepEqual(world.warnings, [
      "mease: the group not_listed is refused (not_listed): MEASE_GROUPS says who may join which groups",
      "mease: the group too_many is refused (too_many)",
    ]);
  });

  test("one that is asked for on an open connection is joined at once", async () => {
    const world = new World();
    const { live } = await world.connected();
    const [one, other] = [live.group("one"), live.group("other")];
    const [join, second] = world.socket.asked;
    assert.deepEqual([join.group, second.group], ["one", "other"]);
    world.socket.receive(headed({ type: "joined", group: "other", ref: second.ref }));
    assert.deepEqual([one.state, other.state], ["joining", "joined"]);
  });

  test("a message goes to the handlers of the connection and of each of its groups", async () => {
    const world = new World();
    const { live } = await world.connected();
    const seen = [];
    live.on("message", ({ n }) => seen.push(["live", n]));
    live.on("a", () => seen.push(["live a"]));
    for (const name of ["one", "two", "three"]) {
      live.group(name).on("message", ({ n }, event) => seen.push([name, n, event.data]));
      live.group(name).on("a", () => seen.push([`${name} a`]));
    }
    world.socket.receive(headed({ groups: ["one", "not-ours", "two"] }, '{"type":"a","n":1}'));
    const text = '{"type":"a","n":1}';
    const expected = [["live", 1], ["live a"], ["one", 1, text], ["one a"], ["two", 1, text], ["two a"]];
    assert.deepEqual(seen, expected);
    world.socket.receive({ n: 2 });
    assert.deepEqual(seen.slice(6), [["live", 2]]);
  });

  test("who is there comes as messages", async () => {
    const world = new World();
    const { live } = await world.connected();
    const seen = [];
    live.group("board").on("mease.presence", ({ event, key }) => seen.push([event, key]));
    world.socket.receive(message("board", { type: "mease.presence", event: "join", key: "7" }));
    world.socket.receive(message("other", { type: "mease.presence", event: "join", key: "8" }));
    assert.deepEqual(seen, [["join", "7"]]);
  });

  test("a message cannot pass for an event of the group", async () => {
    const world = new World();
    const { live } = await world.connected();
    const board = live.group("board");
    const events = recordedGroup(board);
    const types = ["joined", "refused", "message", "constructor"];
    for (const type of types) world.socket.receive(message("board", { type }));
    assert.deepEqual(events.map(([name]) => name), ["message", "message", "message", "message"]);
    assert.equal(board.state, "joining");
  });

  test("the same name is the same group until it is left", async () => {
    const world = new World();
    const { live } = await world.connected();
    const board = live.group("board");
    assert.equal(live.group("board"), board);
    world.socket.answer("joined");
    assert.equal(live.group("board"), board);
    assert.equal(world.socket.asked.length, 1);
    board.leave();
    const another = live.group("board");
    assert.notEqual(another, board);
    board.leave();
    assert.deepEqual([board.state, another.state], ["left", "joining"]);
    assert.deepEqual(world.socket.asked.map(({ type }) => type), ["join", "leave", "join"]);
  });

  test("late answers to earlier questions are not mistaken", async () => {
    const world = new World();
    const { live } = await world.connected();
    live.group("board").leave();
    const board = live.group("board");
    const events = recordedGroup(board);
    const [first, leave, last] = world.socket.asked;
    const answer = ({ group, ref }, type, more) => world.socket.receive(headed({ type, group, ref, ...more }));
    answer(first, "joined");
    answer(leave, "left");
    assert.equal(board.state, "joining");
    answer(last, "refused", { reason: "too_many" });
    answer(first, "joined");
    answer(last, "joined");
    answer({ group: "board" }, "joined");
    assert.deepEqual([board.state, events], ["refused", [["refused", { reason: "too_many" }]]]);
  });

  test("one that is refused is asked for again by the next connection, and by a new start", async () => {
    const world = new World();
    const { live } = await world.connected();
    const board = live.group("board");
    const events = recordedGroup(board);
    world.socket.answer("refused", { reason: "login_required" });
    assert.equal(board.state, "refused");
    assert.equal(live.group("board"), board);
    await world.pass(20);
    assert.equal(world.socket.asked.length, 1);
    world.socket.end();
    await world.pass(1);
    world.socket.open();
    world.socket.answer("joined");
    assert.deepEqual(events, [["refused", { reason: "login_required" }], ["joined", { again: false }]]);
    board.leave();
    live.group("board");
    world.socket.answer("joined");
    assert.equal(live.group("board").state, "joined");
  });

  test("a connection begins with its groups, before what handlers of open send and what waited", async () => {
    const world = new World();
    const live = world.mease.connect();
    live.send("waited");
    live.group("one");
    live.group("two");
    live.group("gone").leave();
    live.on("open", () => {
      live.send("from a handler");
      live.group("three");
    });
    await settle();
    world.socket.open();
    const said = world.socket.sent.map((text) => (text[0] === "\x1e" ? JSON.parse(text.slice(1)).group : text));
    assert.deepEqual(said, ["one", "two", "from a handler", "three", "waited"]);
  });

  test("an answer of the connection before, or after its end, changes nothing", async () => {
    const world = new World();
    const { live } = await world.connected();
    const board = live.group("board");
    const old = world.socket;
    world.socket.end();
    await world.pass(1);
    world.socket.open();
    old.readyState = 1;
    old.answer("joined");
    assert.equal(board.state, "joining");
    const { ref } = old.asked[0];
    world.socket.receive(headed({ type: "joined", group: "board", ref }));
    assert.equal(board.state, "joining");
    world.socket.answer("joined");
    assert.equal(board.state, "joined");
  });

  for (const code of [1000, 4401]) {
    test(`all are left when it is over by ${code}`, async () => {
      const world = new World();
      const { live } = await world.connected();
      const board = live.group("board");
      const states = [];
      for (const name of ["close", "refused"]) live.on(name, () => states.push(board.state));
      world.socket.answer("joined");
      world.socket.end(code);
      assert.deepEqual(new Set(states), new Set(["left"]));
      const late = live.group("late");
      assert.equal(late.state, "left");
      late.leave();
      board.leave();
      await world.pass(3600);
      assert.deepEqual(world.socket.asked.map(({ group }) => group), ["board"]);
    });
  }

  test("a connection that is closing is not asked, and the next one is", async () => {
    const world = new World();
    const { live } = await world.connected();
    const board = live.group("board");
    world.socket.readyState = 2;
    live.group("late");
    board.leave();
    assert.equal(world.socket.asked.length, 1);
    world.socket.end();
    await world.pass(1);
    world.socket.open();
    assert.deepEqual(world.socket.asked.map(({ type, group }) => [type, group]), [["join", "late"]]);
  });

  test("a handler may leave, join and close", async () => {
    const world = new World();
    const { live } = await world.connected();
    const [one, two, three] = ["one", "two", "three"].map((name) => live.group(name));
    const seen = [];
    three.on("message", ({ type }) => seen.push(`3 ${type}`));
    live.on("leave two", () => two.leave());
    live.on("over", () => live.close());
    two.on("message", (data) => seen.push(data.type));
    one.on("again", () => { one.leave(); live.group("one"); });
    for (const type of ["again", "leave two", "over"]) {
      world.socket.receive(headed({ groups: ["one", "two", "three"] }, JSON.stringify({ type })));
    }
    assert.deepEqual(seen, ["again", "3 again", "3 leave two"]);
    assert.deepEqual(world.socket.asked.map(({ type }) => type), ["join", "join", "join", "leave", "join", "leave"]);
    assert.deepEqual(world.errors, []);
  });

  test("a handler that throws disturbs nobody, and one that is removed is gone", async () => {
    const world = new World();
    const { live } = await world.connected();
    const board = live.group("board");
    let runs = 0;
    board.on("joined", () => { throw new Error("broken handler"); });
    const remove = board.on("message", () => runs++);
    world.socket.answer("joined");
    world.socket.receive(message("board", 1));
    remove();
    world.socket.receive(message("board", 2));
    await world.pass(0);
    assert.equal(runs, 1);
    assert.deepEqual(world.errors.map(String), ["Error: broken handler"]);
    assert.equal(board.state, "joined");
  });

  test("joining does not wait while a sign of life is awaited", async () => {
    const world = new World();
    const { live } = await world.connected();
    await world.pass(26);
    live.send("waits");
    live.group("board");
    assert.deepEqual([world.socket.sent[0], world.socket.asked[0].group], [PING, "board"]);
    world.socket.answer("joined");
    assert.deepEqual(world.sent, ["waits"]);
  });

  test("what is no name of a group raises at once: the server would end the connection for some", () => {
    const live = new World().mease.connect();
    for (const name of ["", "a room", "ü", "x".repeat(201), "a\n", undefined, null, 7, ["board"]]) {
      assert.throws(() => live.group(name), { name: "TypeError" });
    }
    for (const name of ["x".repeat(200), "a.b:c/d@e+f-g_h"]) assert.equal(live.group(name).name, name);
  });
});

describe("tickets", () => {
  test("each attempt has a new one, among the subprotocols and nowhere else", async () => {
    const world = new World({ field: "from-a-form", cookie: "csrftoken=from-the-cookie" });
    let number = 0;
    world.answer = () => ({ status: 200, body: { ticket: `t${++number}` } });
    world.mease.connect({ ticket: "/ws-ticket/" });
    await settle();
    world.socket.end();
    await world.pass(1);
    assert.deepEqual(world.sockets.map((socket) => socket.protocols), [
      ["mease.v1", "mease.ticket", "mease.ticket.t1"],
      ["mease.v1", "mease.ticket", "mease.ticket.t2"],
    ]);
    assert.ok(!world.socket.url.includes("t2"));
    const [{ url, method, headers }] = world.requests;
    assert.deepEqual([url, method, headers["X-CSRFToken"]], ["/ws-ticket/", "POST", "from-a-form"]);
  });

  for (const [expected, page, options] of [
    ["from-the-cookie", { cookie: "a=b; csrftoken=from-the-cookie; c=d" }, {}],
    ["", { cookie: "xcsrftoken=not-this" }, {}],
    ["said", { cookie: "csrftoken=from-the-cookie" }, { csrfToken: "said" }],
  ]) {
    test(`the CSRF token is ${JSON.stringify(expected)} for ${page.cookie}`, async () => {
      const world = new World(page);
      world.mease.connect({ ticket: "/t/", ...options });
      await settle();
      assert.equal(world.requests[0].headers["X-CSRFToken"], expected);
    });
  }

  test("it may come from a function, with or without a promise", async () => {
    for (const ticket of [() => "mine", async () => "mine"]) {
      const world = new World();
      world.mease.connect({ ticket });
      await settle();
      assert.deepEqual(world.socket.protocols, ["mease.v1", "mease.ticket", "mease.ticket.mine"]);
    }
  });

  for (const [name, ticket, status] of [
    ["401", "/t/", 401],
    ["403", "/t/", 403],
    ["a function that has none", () => null],
  ]) {
    test(`nobody is logged in: ${name}`, async () => {
      const world = new World();
      world.answer = () => ({ status, body: {} });
      const live = world.mease.connect({ ticket });
      const events = recorded(live);
      await settle();
      assert.equal(live.state, "refused");
      assert.deepEqual(events.map(([event, { code }]) => [event, code]), [["refused", 4401]]);
      assert.equal(world.warnings.length, status === 403 ? 1 : 0, "a 403 may be that of the CSRF check");
      await world.pass(3600);
      assert.equal(world.sockets.length, 0);
    });
  }

  for (const [name, answer] of Object.entries({
    "an error of the site": () => ({ status: 502 }),
    "no network": () => { throw new TypeError("Failed to fetch"); },
  })) {
    test(`it is asked for again after ${name}`, async () => {
      const world = new World();
      world.answer = answer;
      const live = world.mease.connect({ ticket: "/t/" });
      await world.pass(5);
      assert.equal(live.state, "reconnecting");
      assert.match(world.warnings[0], /\/t\/ answered 502|Failed to fetch/);
      world.answer = () => ({ status: 200, body: { ticket: "t" } });
      await world.pass(20);
      world.socket.open();
      assert.equal(live.state, "open");
    });
  }

  test("one that comes too late is not used", async () => {
    const world = new World();
    let give;
    const live = world.mease.connect({ ticket: () => new Promise((resolve) => { give = resolve; }) });
    await settle();
    live.close();
    give("late");
    await settle();
    assert.equal(world.sockets.length, 0);
    assert.equal(live.state, "closed");
  });

  test("one that fails too late changes nothing", async () => {
    const world = new World();
    let fail;
    const live = world.mease.connect({ ticket: () => new Promise((resolve, reject) => { fail = reject; }) });
    await settle();
    live.close();
    fail(new Error("late"));
    await settle();
    assert.equal(live.state, "closed");
    assert.deepEqual(world.waits, []);
  });
});

describe("the address", () => {
  const here = "https://shop.example:8443/page/?q#top";
  for (const [tag, given, expected] of [
    [":8001/", undefined, "wss://shop.example:8001/"],
    [":8001/ws/", "?room=7", "wss://shop.example:8001/ws/?room=7"],
    ["/ws/", "", "wss://shop.example:8443/ws/"],
    ["wss://ws.example/x", undefined, "wss://ws.example/x"],
    [":8001/", "/live/", "wss://shop.example:8443/live/"],
    [null, "/live/?a=b#c", "wss://shop.example:8443/live/?a=b"],
    [null, "live", "wss://shop.example:8443/page/live"],
    [null, "//other.example/", "wss://other.example/"],
    [null, "ws://plain.example/", "ws://plain.example/"],
    [null, "https://other.example/ws", "wss://other.example/ws"],
    [null, ":1234", "wss://shop.example:1234/"],
    [null, new URL("wss://object.example/"), "wss://object.example/"],
  ]) {
    test(`${given} with the tag ${tag} is ${expected}`, async () => {
      const world = new World({ href: here, tag });
      world.mease.connect(given);
      await settle();
      assert.equal(world.socket.url, expected);
    });
  }

  test("a page without TLS connects without, also by an address of IPv6", async () => {
    const world = new World({ href: "http://[::1]:8000/" });
    world.mease.connect();
    await settle();
    assert.equal(world.socket.url, "ws://[::1]:8001/");
  });

  test("no address, or one of nothing that there is, is an error at once", () => {
    assert.throws(() => new World({ tag: null }).mease.connect(), /mease_script/);
    assert.throws(() => new World().mease.connect("mailto:ada@example.com"), { name: "SyntaxError" });
    assert.throws(() => new World().mease.connect("wss://"), { name: "TypeError" });
  });
});

describe("the end", () => {
  test("close is final, whatever the state, and says so once", async () => {
    const world = new World();
    const live = world.mease.connect();
    const events = recorded(live);
    await settle();
    live.close();
    live.close();
    world.socket.onopen?.();
    world.window("online");
    await world.pass(3600);
    assert.equal(live.state, "closed");
    assert.equal(world.sockets.length, 1);
    assert.equal(world.socket.closedWith, 1000);
    assert.deepEqual(events, [["close", { code: 1000, reason: "" }]]);
    assert.deepEqual(world.waits, []);
  });

  test("what was held back while it asked is handed over first", async () => {
    const world = new World();
    const { live } = await world.connected();
    await world.pass(26);
    live.send("last words");
    live.close();
    assert.deepEqual(world.sent, ["last words"]);
  });

  for (const name of ["open", "message", "close", "reconnecting"]) {
    test(`a handler of ${name} may close it`, async () => {
      const world = new World();
      const live = world.mease.connect();
      const events = recorded(live);
      live.on(name, () => live.close());
      live.send("waits");
      await settle();
      world.socket.open();
      world.socket.receive("x");
      world.socket.end();
      await world.pass(3600);
      assert.equal(live.state, "closed");
      assert.equal(world.sockets.length, 1);
      const names = events.map(([event]) => event);
      assert.deepEqual(names.slice(names.lastIndexOf("close") + 1), []);
      assert.equal(names.includes("reconnecting"), name === "reconnecting");
    });
  }

  test("two connections know nothing of each other", async () => {
    const world = new World();
    const { live: one } = await world.connected();
    one.close();
    const { live: other } = await world.connected("/other/");
    assert.deepEqual([one.state, other.state], ["closed", "open"]);
  });

  test("a script that is loaded twice is there once", () => {
    const world = new World();
    const before = world.context.mease;
    world.load();
    assert.equal(world.context.mease, before);
    assert.throws(() => { "use strict"; before.connect = null; }, TypeError);
  });
});
