"use strict";
// Search and sorting. Without it the page says the same.
(() => {
  const form = document.getElementById("finder");
  const input = document.getElementById("search");
  const found = document.getElementById("found");
  const rows = Array.from(document.querySelectorAll("tbody tr, ul.rules > li, details.item"));
  // Of what is shown of an entry its own words count, and those of the entries in it.
  let words = null;
  let asked = 0;
  const search = () => {
    words ??= rows.map((row) => row.textContent.toLowerCase());
    const wanted = input.value.toLowerCase().split(/\s+/).filter((word) => word !== "");
    let shown = 0;
    rows.forEach((row, index) => {
      const hit = wanted.every((word) => words[index].includes(word));
      // Of something whose name is meant all is shown.
      const within = row.parentElement.closest("details.item");
      const named = within !== null && wanted.every((word) => within.dataset.name.toLowerCase().includes(word));
      row.hidden = !(hit || named);
      if (hit && row.tagName === "TR") shown += 1;
    });
    found.textContent = wanted.length === 0 ? "" : `${shown} ${shown === 1 ? "row" : "rows"} found`;
  };
  if (rows.length > 0) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    input.addEventListener("input", () => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(search);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && document.activeElement !== input && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        input.focus();
      }
    });
  }

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  const collator = new Intl.Collator("en", { numeric: true });
  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : collator.compare(one, other);
  for (const head of document.querySelectorAll("table.sortable thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const table = head.closest("table");
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const sorted = Array.from(body.rows, (row) => [value(row, head.cellIndex), row]);
      sorted.sort(([one], [other]) => (down ? compare(other, one) : compare(one, other)));
      body.append(...sorted.map(([, row]) => row));
    });
  }
})();
