"use strict";

// Sorting: a click on a heading sorts, best values first; another click reverses. Missing values stay last.
const table = document.querySelector("#numbers table");
const body = table.tBodies[0];

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value === "") return null;
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

function sortBy(heading) {
  const column = Number(heading.dataset.column);
  const before = heading.getAttribute("aria-sort");
  const first = heading.dataset.first;
  const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
  const sign = order === "ascending" ? 1 : -1;
  table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", order);
  const rows = Array.from(body.rows);
  rows.sort((a, b) => {
    const x = valueOf(a, column);
    const y = valueOf(b, column);
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
  body.append(...rows);
}

table.querySelectorAll("th[data-column]").forEach((heading) => {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
});

// Filtering by NFE; teachers are always shown.
const chips = Array.from(document.querySelectorAll(".chips button"));
chips.forEach((chip) => {
  chip.addEventListener("click", () => {
    chips.forEach((other) => other.setAttribute("aria-pressed", String(other === chip)));
    for (const row of body.rows) {
      const matches = chip.dataset.nfe === "" || row.classList.contains("teacher") || row.dataset.nfe === chip.dataset.nfe;
      row.hidden = !matches;
    }
  });
});

const toggle = document.querySelector(".toggle");
if (toggle !== null) {
  toggle.addEventListener("click", () => {
    const shown = document.querySelector("#samples").classList.toggle("differences");
    toggle.setAttribute("aria-pressed", String(shown));
  });
}
