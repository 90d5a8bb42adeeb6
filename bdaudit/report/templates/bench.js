"use strict";
const table = document.getElementById("audits"), body = table.tBodies[0], rows = [...body.rows];
const words = document.getElementById("words"), selects = [...document.querySelectorAll("#filters select")];
const shown = row => row.textContent.toLowerCase();
const filter = () => {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const matches = wanted.every(w => shown(row).includes(w))
      && selects.every(s => !s.value || row.cells[s.dataset.column].textContent === s.value);
    row.hidden = !matches;
    count += matches;
  }
  document.getElementById("count").textContent = `${count} of ${rows.length} audits`;
};
const value = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
};
const compare = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
};
[...table.tHead.rows[0].cells].forEach((head, column) => {
  const button = head.querySelector("button");
  button.disabled = false;
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      return x === "" || y === "" ? compare(x, y) : down ? compare(y, x) : compare(x, y);
    });
    body.append(...rows);
  });
});
words.addEventListener("input", filter);
for (const select of selects) select.addEventListener("change", filter);
document.getElementById("filters").hidden = false;
filter();
