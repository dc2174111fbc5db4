"use strict";
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, k) => row.cells[k].dataset.v ?? row.cells[k].textContent;
  heads.forEach((head, k) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const numbers = rows.every((row) => value(row, k) === "" || !Number.isNaN(Number(value(row, k))));
    const key = (row) => value(row, k) === "" ? -Infinity : Number(value(row, k));
    rows.sort((a, b) => (down ? -1 : 1) * (numbers
      ? (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0)
      : value(a, k).localeCompare(value(b, k), "en", { numeric: true })));
    table.tBodies[0].append(...rows);
  }));
}
