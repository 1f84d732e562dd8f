"use strict";
// Sorts by a click on a header, filters by text and flag. Without it the list is as it was written.
(() => {
  const body = document.querySelector(".list tbody");
  const rows = [...body.rows].map((row) => ({
    row,
    text: row.textContent.toLowerCase(),
    flags: row.dataset.flags ? row.dataset.flags.split("|") : [],
  }));
  const filter = document.getElementById("filter"), flag = document.getElementById("flag");

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { row, text, flags } of rows) {
      const flagged = !flag.value || (flag.value === "-" ? !flags.length : flags.includes(flag.value));
      row.hidden = !(flagged && words.every((word) => text.includes(word)));
      count += !row.hidden;
    }
    document.getElementById("count").textContent = `${count} of ${rows.length}`;
  }
  filter.addEventListener("input", show);
  flag.addEventListener("input", show);

  const order = new Intl.Collator(undefined, { numeric: true });
  for (const header of document.querySelectorAll("th[data-sort]")) {
    header.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const other of document.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1, at = header.cellIndex, numbers = header.dataset.sort === "number";
      const key = ({ row }) => {
        const cell = row.cells[at];
        if (!numbers) return cell.textContent.trim();
        return cell.dataset.value === "" ? null : Number(cell.dataset.value);
      };
      const keyed = rows.map((item) => [key(item), item.row]);
      keyed.sort(([a], [b]) => {
        // What was not measured comes last, whichever way.
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (numbers ? a - b : order.compare(a, b));
      });
      body.append(...keyed.map(([, row]) => row));
    });
  }
  show();
})();
