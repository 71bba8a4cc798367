"use strict";
// Tables become sortable and filterable. Everything from the run enters the page as text.
(async () => {
  const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  const esc = (value) => String(value ?? "").replace(/[&<>"']/g, (c) => escapes[c]);
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const number = (x, digits = 4) => {
    if (x === null || x === undefined) return "";
    const size = Math.abs(x);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return x.toExponential(1);
    return x.toPrecision(digits - 1).includes("e") ? x.toFixed(0) : x.toPrecision(digits - 1);
  };
  const bytes = (x) => {
    if (x === null || x === undefined) return "";
    const units = ["B", "KiB", "MiB", "GiB"];
    let at = 0;
    while (x >= 1024 && at < 3) { x /= 1024; at += 1; }
    return `${at === 0 || x >= 100 ? x.toFixed(0) : x.toFixed(1)} ${units[at]}`;
  };

  const encoded = document.getElementById("table-bundle").textContent;
  const source = new TextDecoder().decode(Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0)));
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const { default: DataTable, set_or_remove_dark_class } = await import(address);
  URL.revokeObjectURL(address);
  set_or_remove_dark_class();
  DataTable.ext.errMode = "throw";

  for (const table of document.querySelectorAll("table.sortable")) {
    const page = Number(table.dataset.page);
    const rows = table.tBodies[0].rows.length;
    new DataTable(table, {
      order: [], autoWidth: false, columnDefs: [{ targets: "high", orderSequence: ["desc", "asc", ""] }],
      pageLength: page, paging: rows > page, lengthChange: false,
      layout: {
        topStart: null, topEnd: rows > 12 ? "search" : null,
        bottomStart: rows > page ? "info" : null, bottomEnd: rows > page ? "paging" : null,
      },
      language: { search: "Filter" },
    });
  }

  const data = JSON.parse(document.getElementById("row-data").textContent);
  const at = Object.fromEntries(data.keys.map((key, i) => [key, i]));
  const range = (row, key, show) => {
    const lo = row[at[`${key}_ci_lo`]], hi = row[at[`${key}_ci_hi`]];
    return lo === null || hi === null ? "" : `<small>${esc(show(lo))} to ${esc(show(hi))}</small>`;
  };
  const milli = (x) => number(x * 1e3);
  const factor = (x) => `${number(x)}×`;
  const shown = {
    text: (value) => `<span class="clip" title="${esc(value)}">${esc(value)}</span>`,
    int: (value) => esc(value),
    number: (value) => esc(number(value)),
    bytes: (value) => esc(bytes(value)),
    ms: (value) => (value === null ? "" : esc(milli(value))),
    time: (value, row) => {
      const lo = row[at.time_s_ci_lo], hi = row[at.time_s_ci_hi];
      if (value === null) return "";
      const known = lo !== null && hi !== null;
      return esc(milli(value)) + (known ? `<small>${esc(milli(lo))} to ${esc(milli(hi))}</small>` : "");
    },
    speedup: (value, row) => (value === null ? "" : esc(factor(value)) + range(row, "speedup", number)),
    status: (value, row) => {
      const flags = row[at.flags], reason = row[at.reason];
      const note = flags ? `<small class="warn">${esc(flags)}</small>` : "";
      const why = reason ? `<small class="clip" title="${esc(reason)}">${esc(reason)}</small>` : "";
      return `<span class="status ${esc(value)}">${esc(value.replace("_", " "))}</span>${note}${why}`;
    },
  };
  const highFirst = new Set(["speedup", "gflops_direct", "gflops_executed"]);
  const textual = new Set(["text", "status"]);
  const columns = data.columns.map(({ title, key, kind }) => ({
    title: esc(title), data: at[key], className: textual.has(kind) ? "dt-left" : "num dt-right",
    render: (value, type, row) => {
      if (type === "display") return shown[kind](value, row);
      if (type === "sort" || type === "type") {
        if (textual.has(kind)) return value ?? "";
        return value === null ? (highFirst.has(key) ? -Infinity : Infinity) : value;
      }
      return value ?? "";
    },
    type: textual.has(kind) ? "string" : "num",
    orderSequence: highFirst.has(key) ? ["desc", "asc", ""] : ["asc", "desc", ""],
  }));
  const place = data.columns.findIndex(({ key }) => key === "status") + 1;  // in sight on a wide page
  columns.splice(place, 0, {
    title: "Repeat", data: null, orderable: false, searchable: false, className: "dt-left actions",
    render: (_, type, row) => (type === "display"
      ? `<button type="button" class="copy" title="${esc(row[at.repro])}">Copy</button>`
        + '<button type="button" class="details" aria-expanded="false">Details</button>'
      : ""),
  });
  const table = new DataTable("#rows-table", {
    data: data.rows, columns, order: [], pageLength: 25, deferRender: true, autoWidth: false,
    lengthMenu: [10, 25, 100, { label: "All", value: -1 }],
    layout: { topStart: "pageLength", topEnd: "search", bottomStart: "info", bottomEnd: "paging" },
    language: { search: "Filter", lengthMenu: "_MENU_ rows", info: "_START_ to _END_ of _TOTAL_ rows",
      infoFiltered: "(of _MAX_)", infoEmpty: "no row fits", zeroRecords: "no row fits the filters" },
    createdRow: (node, row) => { if (row[at.status] !== "ok") node.classList.add("untimed"); },
  });
  table.columns().every(function hint(i) {
    const column = i === place ? undefined : data.columns[i - (i > place)];
    if (column) this.header().title = column.hint;
  });
  for (const region of document.querySelectorAll(".dt-layout-table")) {
    region.tabIndex = 0;
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", "table, scrolls sideways");
  }

  const filters = document.getElementById("filters");
  data.columns.forEach(({ title, key }, i) => {
    if (!data.filters.includes(key)) return;
    const label = make("label", title), select = make("select");
    select.dataset.key = key;
    select.append(new Option("any", ""));
    const values = [...new Set(data.rows.map((row) => row[at[key]]))];
    if (key === "algorithm") values.sort();
    for (const value of values) select.append(new Option(String(value), String(value)));
    select.addEventListener("change", () => {
      const wanted = select.value;
      table.column(i + (i >= place)).search(wanted === "" ? "" : (text) => String(text) === wanted).draw();
    });
    label.append(select);
    filters.append(label);
  });

  const details = (row) => {
    const box = make("div", undefined, "record");
    const command = make("p", undefined, "command");
    command.append(make("code", row[at.repro] || "no command was recorded"));
    const list = make("dl");
    for (const key of data.keys) {
      const value = row[at[key]];
      if (value === null || value === "" || key === "repro") continue;
      const pair = make("div"), name = make("dt", key);
      name.title = data.hints[key];
      pair.append(name, make("dd", key.endsWith("_bytes") ? `${value} (${bytes(value)})` : String(value)));
      list.append(pair);
    }
    box.append(command, list);
    return box;
  };
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = make("textarea", text);
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  document.getElementById("rows-table").addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const row = table.row(button.closest("tr"));
    if (button.classList.contains("copy")) {
      button.textContent = (await copy(row.data()[at.repro])) ? "Copied" : "Open details";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } else if (button.classList.contains("details")) {
      const open = row.child.isShown();
      if (open) row.child.hide(); else row.child(details(row.data())).show();
      button.setAttribute("aria-expanded", String(!open));
    }
  });
  document.documentElement.dataset.ready = "yes";
})();
