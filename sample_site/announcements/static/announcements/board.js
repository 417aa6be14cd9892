/* The board: joins its group, asks for it each time that it is in, and shows each new state of it. */
(() => {
  "use strict";

  const board = document.getElementById("board");
  const shown = new Map();                   // id → when it was last changed

  function show({ announcements }) {
    const isFirst = shown.size === 0;
    board.replaceChildren(...announcements.map((announcement) => newItem(announcement, isFirst)));
    shown.clear();
    for (const { id, updated } of announcements) shown.set(id, updated);
  }

  function newItem(announcement, isFirst) {
    const item = document.getElementById("notice").content.firstElementChild.cloneNode(true);
    item.querySelector("h3").textContent = announcement.title;
    item.querySelector(".notice-text").textContent = announcement.text;
    item.classList.toggle("pinned", announcement.is_pinned);
    item.classList.toggle("fresh", !isFirst && shown.get(announcement.id) !== announcement.updated);
    showTime(item.querySelector("time"), announcement.updated);
    return item;
  }

  const live = watch(mease.connect());
  const look = () => live.send({ type: "board.look" });
  live.group("board").on("joined", look);
  live.on("gap", look);                      // the server had lost Redis, and perhaps a change
  live.on("board", show);
})();
