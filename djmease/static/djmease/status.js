// Keeps the admin's status page up to date: asks for the parts that have changed, and puts them into the page without
// touching what its reader is at.
(() => {
  "use strict";

  const page = document.getElementById("mease");
  if (!page) return;

  const INTERVAL = Number(page.dataset.interval);
  const LISTS_INTERVAL = Number(page.dataset.listsInterval);
  const SLOWEST = 30000;
  const TIMEOUT = 8000;
  const TYPING = 300;
  const versions = new Map(page.dataset.versions.split(",").map((each) => each.split(":")));
  const folds = [...page.querySelectorAll("[data-asked]")];
  const filter = document.getElementById("mease-filter");
  const filtered = document.getElementById("mease-filtered");
  const title = document.title;

  const listedAt = new Map();                // by fold

  let timer = 0;
  let asking = null;
  let failures = 0;
  let updated = performance.now();

  // Asking

  const ageOf = (fold) => performance.now() - (listedAt.get(fold) ?? -Infinity);
  const isDue = (fold) => fold.open && ageOf(fold) > LISTS_INTERVAL - INTERVAL / 2;

  const address = (lists) => {
    const query = new URLSearchParams(page.dataset.query);
    for (const fold of lists) {
      for (const [name, value] of new FormData(fold.querySelector("form"))) query.set(name, value);
    }
    return `${page.dataset.url}?${query}`;
  };

  const askForAll = () => {
    listedAt.clear();
    ask();
  };

  const schedule = (delay) => {
    clearTimeout(timer);
    timer = setTimeout(ask, delay);
  };

  async function ask() {
    clearTimeout(timer);
    if (document.hidden) return;
    // An answer that is on its way may be to an older question.
    asking?.abort();
    const mine = (asking = new AbortController());
    const late = setTimeout(() => mine.abort(), TIMEOUT);
    try {
      await answer(mine);
      failures = 0;
    } catch {
      if (asking === mine) failures += 1;
    } finally {
      clearTimeout(late);
    }
    if (asking !== mine) return;
    asking = null;
    tell();
    schedule(failures ? Math.min(INTERVAL * 2 ** (failures - 1), SLOWEST) : INTERVAL);
  }

  async function answer(mine) {
    const known = [...versions].map((each) => each.join(":")).join(",");
    const lists = folds.filter(isDue);
    const response = await fetch(address(lists), {
      headers: { "X-Mease-Parts": known },
      credentials: "same-origin",
      cache: "no-store",
      redirect: "manual",
      signal: mine.signal,
    });
    if (response.type === "opaqueredirect" || response.status === 403) {
      note(response.status === 403 ? "forbidden" : "login");
      throw new Error("not allowed");
    }
    if (!response.ok) throw new Error(response.status);
    const { parts } = await response.json();
    if (asking !== mine) return;
    note(null);
    updated = performance.now();
    for (const fold of lists) listedAt.set(fold, updated);
    show(parts, lists);
  }

  // What the reader is told of the asking itself

  const note = (name) => {
    for (const each of page.querySelectorAll("[data-note]")) each.hidden = each.dataset.note !== name;
  };
  const noted = (name) => !page.querySelector(`[data-note="${name}"]`).hidden;

  function tell() {
    const age = Math.round((performance.now() - updated) / 1000);
    const isOld = age * 1000 > 2.5 * INTERVAL;
    page.classList.toggle("mease-is-old", isOld);
    if (!isOld || noted("login") || noted("forbidden")) return;
    // The words are read out once; the seconds that go by are not.
    page.querySelector("[data-age]").textContent = `${age} s`;
    if (failures) note("late");
  }

  const MARKS = { good: "", warn: "! ", bad: "✕ " };
  const mark = () => {
    const state = page.querySelector("[data-state]")?.dataset.state;
    document.title = (MARKS[state] ?? "") + title;
  };

  // Putting parts into the page

  function show(parts, lists) {
    for (const [name, part] of Object.entries(parts)) {
      const place = page.querySelector(`[data-part="${name}"]`);
      const fold = place?.closest("[data-asked]");
      if (fold?.open && !lists.includes(fold)) continue;
      // Without the permission to publish there is no such place. What is selected is being read or copied.
      if (place && name !== "top" && isSelected(place)) continue;
      versions.set(name, part.version);
      if (!place) continue;
      const template = document.createElement("template");
      template.innerHTML = part.html;
      const focused = document.activeElement;
      changeChildren(place, template.content);
      if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
      if ("filtered" in place.dataset) applyFilter();
    }
    mark();
  }

  const isSelected = (place) => {
    const selection = getSelection();
    return !selection.isCollapsed && selection.containsNode(place, true);
  };

  const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.dataset?.key : undefined);
  const isAlike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName;

  function change(node, next) {
    if (node.isEqualNode(next)) return;
    if (node.nodeType !== Node.ELEMENT_NODE) {
      node.nodeValue = next.nodeValue;
      return;
    }
    changeAttributes(node, next);
    changeChildren(node, next);
  }

  // Whether details are open and rows are filtered is the reader's.
  const OURS = new Set(["open", "hidden"]);

  function changeAttributes(node, next) {
    for (const { name } of [...node.attributes]) {
      if (!OURS.has(name) && !next.hasAttribute(name)) node.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (!OURS.has(name) && node.getAttribute(name) !== value) node.setAttribute(name, value);
    }
  }

  function changeChildren(parent, next) {
    const keyed = new Map();
    for (const child of parent.children) if (keyOf(child)) keyed.set(keyOf(child), child);
    const kept = new Set(Array.from(next.children, keyOf));
    let here = parent.firstChild;
    for (const wanted of [...next.childNodes]) {
      // What goes makes way first, so that what stays need not be moved, which would take the focus from it.
      while (here && keyOf(here) && !kept.has(keyOf(here))) {
        const gone = here;
        here = here.nextSibling;
        gone.remove();
      }
      const key = keyOf(wanted);
      const known = key ? keyed.get(key) : here && !keyOf(here) && isAlike(here, wanted) ? here : null;
      if (!known || !isAlike(known, wanted)) {
        parent.insertBefore(wanted, here);
        continue;
      }
      if (key) keyed.delete(key);
      if (known === here) here = here.nextSibling;
      else parent.insertBefore(known, here);
      change(known, wanted);
    }
    while (here) {
      const gone = here;
      here = here.nextSibling;
      gone.remove();
    }
  }

  // The filter of the routes

  function applyFilter() {
    const wanted = filter.value.trim().toLowerCase();
    let shown = 0;
    let all = 0;
    for (const row of page.querySelectorAll("[data-filtered] tbody tr")) {
      if (row.classList.contains("mease-error")) {
        row.hidden = row.previousElementSibling.hidden;
        continue;
      }
      row.hidden = wanted !== "" && !`${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase().includes(wanted);
      all += 1;
      shown += row.hidden ? 0 : 1;
    }
    page.classList.toggle("mease-is-filtered", wanted !== "");
    filtered.textContent = wanted && filtered.dataset.text.replace("{shown}", shown).replace("{all}", all);
  }

  function startFilter() {
    applyFilter();
    // What is looked for may be in the folded list.
    const folded = page.querySelector(".mease-quiet-routes");
    if (folded && filter.value) folded.open = true;
  }

  // Beginning

  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : askForAll()));
  let typing = 0;
  for (const fold of folds) {
    fold.addEventListener("toggle", () => fold.open && askForAll());
    fold.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(askForAll, TYPING);
    });
    fold.addEventListener("submit", (event) => {
      event.preventDefault();
      askForAll();
    });
  }
  filter.addEventListener("input", startFilter);
  for (const each of page.querySelectorAll("[data-plain]")) each.hidden = each.disabled = true;
  for (const each of page.querySelectorAll("[data-scripted]")) each.hidden = false;
  if (filter.value) startFilter();
  setInterval(tell, 1000);
  mark();
  schedule(INTERVAL);
})();
