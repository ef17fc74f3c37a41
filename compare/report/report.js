// Sorts tables, and follows one row through all of them. Nothing here is needed to read the page.
"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.ariaSort !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = up ? "ascending" : "descending";
      const value = (row) => {
        const text = row.cells[column].textContent;
        const found = text.replace(/,/g, "").match(/^[+\u2212-]?\d+(\.\d+)?/);
        return found ? Number(found[0].replace("\u2212", "-")) : column ? Infinity : text;
      };
      const less = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
      const absent = (entry) => entry[0] === Infinity;
      rows.sort((a, b) => absent(a) - absent(b) || (up ? less(a[0], b[0]) : less(b[0], a[0])));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
const chosen = document.getElementById("follow");
const mark = (name) => {
  document.body.classList.toggle("following", Boolean(name));
  for (const element of document.querySelectorAll("[data-row]"))
    element.classList.toggle("on", element.dataset.row === name);
};
chosen.closest(".follow").hidden = false;
chosen.value = "";
chosen.addEventListener("change", () => mark(chosen.value));
for (const figure of document.querySelectorAll("figure")) {
  figure.addEventListener("pointerover", ({ target }) => {
    if (!chosen.value && target.dataset && target.dataset.row) mark(target.dataset.row);
  });
  figure.addEventListener("pointerleave", () => mark(chosen.value));
}
