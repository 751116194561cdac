"use strict";

// Sorting: a click on a heading sorts by its column, another one reverses the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const rising = heading.getAttribute("aria-sort") !== "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const numeric = (text) => text !== "" && !Number.isNaN(Number(text));
    const rows = [...table.tBodies[0].rows].map((row, index) => ({ row, index, key: key(row) }));
    rows.sort((one, other) => {
      const both = numeric(one.key) && numeric(other.key);
      const order = both ? one.key - other.key
        : numeric(one.key) !== numeric(other.key) ? (numeric(one.key) ? -1 : 1)  // missing values come last
        : one.key.localeCompare(other.key);
      return (rising ? order : -order) || one.index - other.index;
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
  }));
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const list = document.getElementById("case-list");
if (list) {
  const cases = [...list.children];
  const chosen = (name) => document.getElementById(`case-${name}`);
  const update = () => {
    const task = chosen("task").value, kind = chosen("kind").value, order = chosen("order").value;
    const text = chosen("text").value.toLowerCase();
    let shown = 0;
    for (const one of cases) {
      one.hidden = (task && one.dataset.task !== task) || (kind && !one.dataset.kinds.split(" ").includes(kind))
        || (text && !one.textContent.toLowerCase().includes(text));
      shown += !one.hidden;
    }
    const sign = order === "loss" ? -1 : 1;
    list.append(...(order ? [...cases].sort((a, b) => sign * (a.dataset[order] - b.dataset[order])) : cases));
    chosen("count").value = `${shown} of ${cases.length} cases`;
  };
  for (const name of ["task", "kind", "text", "order"]) chosen(name).addEventListener("input", update);
  update();
}
