// A table whose head sorts it, and whose rows a text and a choice filter.
const sortable = (table) => {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    return cell.classList.contains("number") ? (text === "equal" ? 1e9 : parseFloat(text.replace("\u2212", "-"))) : text;
  };
  const compare = (one, other) => {
    if (typeof one === "string") return one.localeCompare(other);
    return Number.isNaN(one) - Number.isNaN(other) || one - other;
  };
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      // What was not measured stays last in both directions.
      rows.sort(([one], [other]) => (Number.isNaN(one) || Number.isNaN(other) || !descending ? compare(one, other) : compare(other, one)));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...rows.map(([, row]) => row));
    });
  });
};
const filtered = (table, search, choice, shown) => {
  const rows = [...table.tBodies[0].rows];
  shown.textContent = `${rows.length} of ${rows.length} rows`;
  const update = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      row.hidden = !((!choice.value || row.dataset.method === choice.value) && row.textContent.toLowerCase().includes(wanted));
      count += !row.hidden;
    }
    shown.textContent = `${count} of ${rows.length} rows`;
  };
  search.addEventListener("input", update);
  choice.addEventListener("change", update);
};
