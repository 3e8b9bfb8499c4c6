"use strict";
// The page is complete without this: it adds sorting, a table of contents that follows, and a
// threshold that moves.

function sortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const number = cell => parseFloat(cell.textContent.replace(/[, ]/g, "").replace("−", "-"));
  headers.forEach((header, column) => {
    if (!header.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const rising = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach(other => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...body.rows].map((row, place) => {
        const cell = row.cells[column];
        return {row, place, text: cell.textContent.trim(), value: number(cell)};
      });
      // Numbers by value where all cells that say anything begin with one; dashes come last.
      const said = rows.filter(one => one.text && one.text !== "–");
      const numeric = said.every(one => !Number.isNaN(one.value));
      rows.sort((a, b) => {
        const lack = (said.includes(b) ? 1 : 0) - (said.includes(a) ? 1 : 0);
        if (lack) return lack;
        const order = numeric ? a.value - b.value : a.text.localeCompare(b.text);
        return (rising ? order : -order) || a.place - b.place;
      });
      body.append(...rows.map(one => one.row));
    });
  });
}

function contentsThatFollow(links) {
  const place = new Map(links.map(link => [link.hash.slice(1), link]));
  const seen = new Set();
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (entry.isIntersecting) seen.add(entry.target.id); else seen.delete(entry.target.id);
    }
    const here = [...place.keys()].find(key => seen.has(key));
    for (const [key, link] of place) {
      if (key === here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, {rootMargin: "-15% 0px -70% 0px"});
  for (const key of place.keys()) watch.observe(document.getElementById(key));
}

function movingThreshold(explorer) {
  const {columns, rows} = JSON.parse(document.getElementById("thresholds-data").textContent);
  const slider = explorer.querySelector("input");
  const show = (name, text) => {
    for (const place of explorer.querySelectorAll(`[data-shows="${name}"]`)) {
      place.textContent = text;
    }
  };
  const move = () => {
    const row = rows[slider.value];
    columns.forEach((name, column) => show(name, row[column]));
    const said = name => row[columns.indexOf(name)];
    slider.setAttribute("aria-valuetext",
      `threshold ${said("threshold")}: sensitivity ${said("sensitivity")}, ` +
      `specificity ${said("specificity")}, ${said("recalled")} of 1,000 recalled`);
    for (const button of explorer.querySelectorAll("button[data-row]")) {
      button.setAttribute("aria-pressed", button.dataset.row === slider.value);
    }
  };
  slider.addEventListener("input", move);
  for (const button of explorer.querySelectorAll("button[data-row]")) {
    button.addEventListener("click", () => { slider.value = button.dataset.row; move(); });
  }
  move();
  explorer.querySelector(".control").hidden = false;
}

for (const table of document.querySelectorAll("table.sortable")) sortable(table);
contentsThatFollow([...document.querySelectorAll("nav a")]);
for (const explorer of document.querySelectorAll(".explorer")) movingThreshold(explorer);
// Whatever is folded up is printed too.
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open]):not(.picture)")) {
    one.open = true;
    one.dataset.opened = "";
  }
});
addEventListener("afterprint", () => {
  for (const one of document.querySelectorAll("details[data-opened]")) {
    one.open = false;
    delete one.dataset.opened;
  }
});
