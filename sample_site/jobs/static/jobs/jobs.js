/* The jobs: asks how far they are when it connects, and moves the bars. */
(() => {
  "use strict";

  const MAX_JOBS = 12;                       // kept on the page

  const jobs = document.getElementById("jobs");

  function show(job) {
    const item = jobs.querySelector(`[data-id="${Number(job.id)}"]`) ?? add(job);
    const bar = item.querySelector("progress");
    bar.max = job.total;
    bar.value = job.done;
    item.dataset.state = job.state;
    item.querySelector(".job-state").textContent = job.state === "running" ? `${job.done} of ${job.total}` : job.state;
  }

  function add(job) {
    const item = document.getElementById("job").content.firstElementChild.cloneNode(true);
    item.dataset.id = job.id;
    item.querySelector(".job-name").textContent = job.name;
    item.querySelector(".job-private").hidden = !job.is_private;
    jobs.prepend(item);
    while (jobs.children.length > MAX_JOBS) jobs.lastElementChild.remove();
    return item;
  }

  const live = watch(mease.connect());
  const look = () => live.send({ type: "jobs.look" });
  live.on("open", look);
  live.on("gap", look);                      // the server had lost Redis, and perhaps the end of a job
  live.on("job.progress", show);
})();
