/* Thousands of turns of chance: whatever a network and a person do, these hold. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { PING, PONG, READY, World, headed, settle } from "./world.mjs";

const TURNS = 400;
const NAMES = ["one", "two", "three"];

// A generator of its own (mulberry32), so that a seed that fails does so again.
function chance(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Does the next thing that a connection was asked, as a server does: later, in order, and refusing at times. */
function serve(socket, isRefused) {
  socket.members ??= new Set();
  socket.served ??= 0;
  const question = socket.asked[socket.served];
  if (question === undefined || socket.readyState !== 1) return false;
  socket.served++;
  const { type, group, ref } = question;
  const answer = type === "leave" ? "left" : isRefused ? "refused" : "joined";
  if (answer === "joined") socket.members.add(group);
  else if (answer === "left") socket.members.delete(group);
  socket.receive(headed({ type: answer, group, ref }));
  return true;
}

for (let seed = 1; seed <= 50; seed++) {
  // That there are never two connections is held by the sockets of the World.
  test(`in order, each at most once, none lost that waited, no hammer, in its groups: seed ${seed}`, async () => {
    const random = chance(seed);
    const pick = (list) => list[Math.floor(random() * list.length)];
    const world = new World();
    const asked = [];
    const ticket = async () => {
      asked.push(world.now + world.skew);
      return "t";
    };
    const live = world.mease.connect({ maxQueue: 50, ticket: seed % 2 ? undefined : ticket });
    const taken = [];
    const wokenAt = [];
    live.on("open", () => assert.equal(live.state, "open"));

    // What the page holds, and for each group that it has held whether it was in it before.
    const held = new Map();
    const pasts = [];
    const hold = (name) => {
      const group = live.group(name);
      if (held.get(name) !== group) {
        const past = [];
        group.on("joined", ({ again }) => past.push(again));
        group.on("message", (data) => assert.ok(data === name && group.state !== "left"));
        pasts.push(past);
      }
      held.set(name, group);
    };

    const wake = (run) => {
      wokenAt.push(world.now + world.skew);
      run();
    };
    const turns = {
      send: () => {
        const text = `${pick(["", "\x1e"])}message ${taken.length}`;
        if (live.send(text)) taken.push(text);
      },
      open: () => world.socket?.readyState === 0 && world.socket.open({ isReady: random() < 0.5 }),
      ready: () => world.socket?.receive(READY),
      break: () => world.socket?.readyState < 2 && world.socket.end(pick([1001, 1006, 1011, 1012, 1013, 4429])),
      beginToClose: () => world.socket?.readyState === 1 && (world.socket.readyState = 2),
      closed: () => world.socket?.readyState === 2 && world.socket.end(1006),
      join: () => hold(pick(NAMES)),
      leave: () => held.get(pick(NAMES))?.leave(),
      serve: () => world.socket && serve(world.socket, random() < 0.2),
      publish: () => {
        const name = pick([...(world.socket?.members ?? [])]);
        if (name !== undefined) world.socket.receive(headed({ groups: [name] }, name));
      },
      receive: () => world.socket?.receive(pick(["news", PONG])),
      answer: () => world.socket?.sent.at(-1) === PING && world.socket.receive(PONG),
      show: () => wake(() => world.show(pick(["visible", "hidden"]))),
      online: () => wake(() => world.window(pick(["online", "offline"]))),
      restore: () => wake(() => world.window("pageshow", { persisted: true })),
      sleep: () => world.sleep(random() * 100),
      pass: () => world.pass(random() * pick([0.1, 1, 10, 40])),
    };
    for (let turn = 0; turn < TURNS; turn++) {
      world.random = random();
      await turns[pick(Object.keys(turns))]();
      await settle();
      if (world.socket?.readyState === 3) assert.notEqual(live.state, "open");
    }

    // At last everything works, and all is there.
    world.window("online");
    for (let time = 0; time < 60 && !(live.state === "open" && world.socket.readyState === 1); time++) {
      if (world.socket?.readyState === 2) world.socket.end();
      if (world.socket?.readyState === 0) world.socket.open();
      world.socket?.receive(READY);
      await world.pass(1);
    }
    assert.equal(live.state, "open");
    world.socket.receive(PONG);
    const expected = taken.map((text) => (text[0] === "\x1e" ? `\x1e{}\n${text}` : text));
    assert.deepEqual(world.sent, expected);
    hold(NAMES[0]);
    while (serve(world.socket, false));
    await settle();
    for (const [name, group] of held) {
      assert.equal(group.state === "joined", world.socket.members.has(name), `${name} is ${group.state}`);
      assert.notEqual(group.state, "joining");
    }
    assert.ok(pasts.flat().length > 0);
    for (const [again, ...later] of pasts) assert.ok(!again && later.every(Boolean));
    const attempts = seed % 2 ? world.sockets.filter(({ protocols }) => protocols.length).map(({ at }) => at) : asked;
    const woken = new Set(wokenAt);
    for (const [index, at] of attempts.slice(1).entries()) {
      assert.ok(at - attempts[index] >= 1000 || !woken.has(at), "a wake made an attempt too soon");
    }
    assert.deepEqual(world.errors, []);
  });
}
