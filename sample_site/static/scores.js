/* The scoreboard: shows each score that comes, and sends the one that is filled in. */
(() => {
  "use strict";

  const form = document.getElementById("score");

  function show(score) {
    for (const side of ["home", "away"]) {
      if (!Number.isInteger(score[side])) continue;
      const digits = document.getElementById(side);
      digits.classList.toggle("fresh", digits.textContent !== String(score[side]));
      digits.textContent = score[side];
      if (form && !form.contains(document.activeElement)) form[side].value = score[side];
    }
  }

  function publish(event) {
    event.preventDefault();
    live.send({ type: "score", home: form.home.valueAsNumber, away: form.away.valueAsNumber });
  }

  const live = watch(mease.connect());
  live.on("score", show);
  form?.addEventListener("submit", publish);
})();
