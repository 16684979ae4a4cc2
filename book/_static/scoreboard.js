/* The scoreboard: search, filter by state, sort by any column. Without this script it is a plain table. */
document.addEventListener("DOMContentLoaded", function () {
  const table = document.querySelector("table.scoreboard");
  if (!table) return;
  const bodies = [...table.tBodies], head = [...table.tHead.rows[0].cells];
  const rows = bodies.flatMap(function (body) { return [...body.rows].filter(function (row) { return row.id; }); });
  const home = new Map(rows.map(function (row) { return [row, row.parentElement]; }));
  const sorted = table.createTBody();
  const cell = function (row, k) { return row.cells[k].textContent.trim(); };
  const failed = head.findIndex(function (th) { return th.textContent === "Failed"; });
  const states = {
    "all papers": function () { return true; },
    "with a chapter": function (row) { return row.className === "chapter"; },
    "with a failed claim": function (row) { return parseFloat(cell(row, failed)) > 0; },
    "with a claim not attempted": function (row) { return parseFloat(cell(row, failed + 1)) > 0; },
    "planned": function (row) { return row.className === "planned"; },
  };

  const tools = document.querySelector(".scoreboard-tools");
  tools.innerHTML = '<label>Search <input type="search"></label> <label>Show <select></select></label> <span role="status"></span>';
  const search = tools.querySelector("input"), state = tools.querySelector("select"), said = tools.querySelector("[role=status]");
  Object.keys(states).forEach(function (name) { state.add(new Option(name)); });

  const show = function () {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0;
    rows.forEach(function (row) {
      const text = row.textContent.toLowerCase() + " " + row.id;
      row.hidden = !(states[state.value](row) && words.every(function (word) { return text.includes(word); }));
      seen += !row.hidden;
    });
    bodies.forEach(function (body) {
      body.hidden = ![...body.rows].some(function (row) { return row.id && !row.hidden; });
    });
    said.textContent = seen + " of " + rows.length + " papers";
  };

  const sort = function (k) {
    const before = head[k].getAttribute("aria-sort");
    const now = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
    head.forEach(function (th) { th.removeAttribute("aria-sort"); });
    if (now === null) {
      rows.forEach(function (row) { home.get(row).append(row); });
    } else {
      head[k].setAttribute("aria-sort", now);
      const numeric = rows.some(function (row) { return !isNaN(parseFloat(cell(row, k))); });
      const value = function (row) { return numeric ? parseFloat(cell(row, k)) : cell(row, k).toLowerCase(); };
      const missing = function (v) { return typeof v === "number" && isNaN(v); };
      const order = rows.map(value), sign = now === "ascending" ? 1 : -1;
      const turn = rows.map(function (_, i) { return i; }).sort(function (a, b) {
        const x = order[a], y = order[b];
        if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b;  // rows without a number stay last
        return x < y ? -sign : x > y ? sign : a - b;
      });
      sorted.append(...turn.map(function (i) { return rows[i]; }));
    }
    show();
  };

  head.forEach(function (th, k) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    button.addEventListener("click", function () { sort(k); });
    th.replaceChildren(button);
  });
  search.addEventListener("input", show);
  state.addEventListener("change", show);
  show();
});
