players(document.querySelectorAll(".sample"));
const compare = document.getElementById("compare");
if (compare) viewer(compare);
document.querySelectorAll("table.sortable").forEach(sortable);
const scores = document.getElementById("scores");
if (scores) filtered(scores.querySelector("table"), document.getElementById("find"), document.getElementById("method"), document.getElementById("found"));

// run.js is not part of the page: it may be missing, or be that of another run.
const recorded = window.framelora;
const costs = document.getElementById("costs-text");
const add = (parent, name, text, style) => {
  const element = parent.appendChild(document.createElement(name));
  element.textContent = text;
  if (style) element.className = style;
  return element;
};
const duration = (seconds) => {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
};
if (recorded && recorded.stopped) {
  const notice = document.getElementById("stopped");
  notice.textContent = `The last training stopped: ${recorded.stopped}. It left no adapter; this page shows the run before it.`;
  notice.hidden = false;
} else if (recorded && recorded.page !== document.documentElement.dataset.page) {
  costs.textContent = "run.js belongs to another page: its costs and commit are not shown.";
} else if (recorded) {
  const commit = recorded.commit;
  costs.textContent = commit
    ? `Made from commit ${commit.id}${commit.dirty ? ", with uncommitted changes" : ""}.`
    : "Made outside of a git work tree.";
  const body = document.querySelector("#costs-table tbody");
  for (const cost of recorded.costs) {
    if (cost.stage === "train") {
      document.getElementById("training-cost").textContent = `, ${duration(cost.seconds)} of training with a peak of ${cost.peak_memory_mib} MiB`;
    }
    cost.kinds.forEach((kind, number) => {
      const row = body.insertRow();
      if (!number) {
        const head = add(row, "th", cost.stage);
        head.scope = "rowgroup";
        const cells = [head, add(row, "td", duration(cost.seconds), "number"), add(row, "td", `${cost.peak_memory_mib} MiB`, "number")];
        for (const cell of cells) cell.rowSpan = cost.kinds.length;
      }
      add(row, "td", kind.kind);
      for (const name of ["cells", "computed", "reused"]) add(row, "td", kind[name], "number");
    });
  }
  document.getElementById("costs-table").hidden = !recorded.costs.length;
}
