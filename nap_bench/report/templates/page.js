"use strict";
// What the page can do besides being read: sort and filter tables, hide and show arms, say what is under the pointer, and show
// the curves of any run. Without scripts nothing is lost but that. Nothing is ever fetched.
(() => {
  const all = (what, within = document) => [...within.querySelectorAll(what)];
  const byId = id => document.getElementById(id);
  const make = (name, props = {}, ...children) => { const e = Object.assign(document.createElement(name), props); e.append(...children); return e; };

  // Tables: sort by a click on a head, filter by what is typed, save as CSV.
  const value = cell => {
    if (!cell) return null;
    const text = (cell.dataset.v ?? cell.textContent).trim().replace(/\u2212/g, "-");
    const number = text === "" || text === "\u2013" ? null : Number(text.replace(/^[\u00d7<]\s*/, ""));
    return number !== null && Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const compare = (a, b) => a === null ? (b === null ? 0 : 1) : b === null ? -1
    : typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const column = head => [...head.parentNode.children].indexOf(head);
  for (const head of all("th[data-sort]")) {
    const button = make("button", { type: "button", className: "sort" });
    const extra = all("a", head);
    for (const node of [...head.childNodes]) if (!extra.includes(node)) button.append(node);
    head.prepend(button);
    button.addEventListener("click", () => {
      const table = head.closest("table"), body = table.tBodies[0], at = column(head);
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row, place) => ({ row, place, v: value(row.cells[at]) }));
      rows.sort((a, b) => (a.v === null || b.v === null ? compare(a.v, b.v) : (down ? -1 : 1) * compare(a.v, b.v)) || a.place - b.place);
      body.append(...rows.map(r => r.row));
    });
  }
  const quoted = text => /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  const said = cell => cell.textContent.replace(/\s+/g, " ").trim();
  const csv = table => [...table.rows].filter(r => !r.classList.contains("off")).map(r => [...r.cells].map(c => quoted(said(c))).join(",")).join("\n") + "\n";
  const save = (name, text) => {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  for (const table of all("table.data, table.verdicts")) {
    const region = table.closest(".scroll"), rows = [...table.tBodies[0].rows], name = region.getAttribute("aria-label");
    const tools = make("div", { className: "tools" });
    if (rows.length > 8) {
      const field = make("input", { type: "search", placeholder: "Filter", ariaLabel: `Filter: ${name}` });
      const count = make("span", { className: "count" });
      count.setAttribute("aria-live", "polite");
      field.addEventListener("input", () => { table.dataset.words = field.value; narrow(table); });
      tools.append(field, count);
    }
    const button = make("button", { type: "button", textContent: "CSV", title: `Save as a file: ${name}` });
    button.addEventListener("click", () => save(name.toLowerCase().replace(/[^a-z0-9]+/g, "-") + ".csv", csv(table)));
    tools.append(button);
    if (rows.length > 8 || table.matches(".verdicts, .aggregates")) region.before(tools);
  }
  const narrow = table => {
    const words = (table.dataset.words ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const hidden = new Set((table.dataset.hidden ?? "").split("|"));
    const rows = [...table.tBodies[0].rows];
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const shown = words.every(word => text.includes(word)) && !hidden.has(row.dataset.verdict ?? "-");
      row.classList.toggle("off", !shown);
      left += shown;
    }
    const count = table.closest(".scroll").previousElementSibling?.querySelector(".count");
    if (count) count.textContent = left < rows.length ? `${left} of ${rows.length} rows` : "";
  };
  for (const chips of all(".chips")) chips.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const table = byId(chips.dataset.for);
    table.dataset.hidden = all('button[aria-pressed="false"]', chips).map(b => b.dataset.verdict).join("|");
    narrow(table);
  });

  // Legends: a button an arm; with the Alt key (or a double click) it alone.
  for (const legend of all(".legend")) {
    const figure = byId(legend.dataset.for), buttons = all("button", legend);
    const apply = () => {
      const off = new Set(buttons.filter(b => b.getAttribute("aria-pressed") === "false").map(b => b.dataset.key));
      for (const drawn of all("[data-arm]", figure)) drawn.classList.toggle("off", off.has(drawn.dataset.arm));
    };
    legend.title = "Click: show or hide. Double click: this one alone, or all again.";
    for (const button of buttons) {
      const press = on => button.setAttribute("aria-pressed", on);
      button.addEventListener("click", () => { press(button.getAttribute("aria-pressed") !== "true"); apply(); });
      button.addEventListener("dblclick", () => {
        const alone = buttons.every(b => b === button || b.getAttribute("aria-pressed") === "false");
        for (const other of buttons) other.setAttribute("aria-pressed", alone || other === button);
        apply();
      });
    }
  }

  // What is under the pointer.
  const tip = byId("tip");
  const told = target => {
    const marked = target.closest?.("[data-tip]");
    if (marked) return marked.dataset.tip;
    const cell = target.closest?.(".heat td[data-i]");
    if (cell) {
      const table = cell.closest("table"), name = head => head.textContent.trim();
      return `${name(cell.parentNode.cells[0])} beats ${name(table.tHead.rows[0].cells[cell.cellIndex])} with probability ${cell.textContent} %` + (cell.dataset.i && `, 95 % interval ${cell.dataset.i}`);
    }
    for (let at = target.closest?.("svg g"); at; at = at.parentNode.closest?.("g")) {
      const title = at.querySelector(":scope > title");
      if (title) { at.dataset.tip = title.textContent; title.remove(); return at.dataset.tip; }
    }
    return null;
  };
  document.addEventListener("pointerover", event => {
    const text = told(event.target);
    tip.hidden = !text;
    if (text) tip.textContent = text;
  });
  document.addEventListener("pointermove", event => {
    if (tip.hidden) return;
    const right = innerWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, right))}px`;
    tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });

  // A link into a closed part opens it; contents say where one is; printing shows everything but long lists.
  const reveal = () => {
    const target = location.hash.length > 1 ? byId(decodeURIComponent(location.hash.slice(1))) : null;
    if (!target) return;
    for (let at = target; at; at = at.parentElement?.closest("details")) if (at.tagName === "DETAILS") at.open = true;
    target.closest("tr.off")?.classList.remove("off");
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
  addEventListener("beforeprint", () => { for (const d of all("details:not([open])")) if (d.querySelectorAll("tr").length < 60) { d.open = true; d.dataset.print = ""; } });
  addEventListener("afterprint", () => { for (const d of all("details[data-print]")) { d.open = false; delete d.dataset.print; } });
  const links = new Map(all(".side a").map(a => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) {
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "0px 0px -70% 0px" });
  for (const id of links.keys()) if (byId(id)) seen.observe(byId(id));

  // Effective learning rates of any run.
  const data = byId("rates.data");
  if (!data) return;
  const runs = JSON.parse(data.textContent), exhibits = new Map();
  for (const [id, run] of Object.entries(runs)) for (const [exhibit, place] of run.at) {
    if (!exhibits.has(exhibit)) exhibits.set(exhibit, []);
    exhibits.get(exhibit).push([id, place]);
  }
  const pickExhibit = byId("rates.exhibit"), pickRun = byId("rates.run");
  const nameOf = exhibit => byId(exhibit)?.textContent ?? exhibit;
  pickExhibit.append(...[...exhibits.keys()].map(name => new Option(nameOf(name), name)));
  const factor = v => v === null || v === undefined ? "\u2013" : (f => "\u00d7" + (f >= 100 ? f.toFixed(0) : f >= 0.095 ? f.toFixed(2) : f.toPrecision(1)))(Math.exp(v / 100));
  const escaped = text => text.replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
  const draw = (at, steps, lines, words, whole) => {
    const wide = 340, tall = 220, left = 40, low0 = tall - 22, right = wide - 6;
    const values = lines.flatMap(l => l.v).filter(v => v !== null && v !== undefined);
    let low = Math.min(...values, whole ? 0 : -10), high = Math.max(...values, whole ? 100 : 10);
    const x = t => left + (t - steps[0]) / Math.max(1, steps.at(-1) - steps[0]) * (right - left), y = v => 8 + (high - v) / (high - low) * (low0 - 8);
    const marks = whole ? [0, 25, 50, 75, 100] : (() => {
      const within = heads => {
        const found = [];
        for (let k = Math.floor(low / 230.26); k <= high / 230.26; k++) for (const head of heads) {
          const v = 100 * Math.log(head * 10 ** k);
          if (v >= low - 1e-9 && v <= high + 1e-9) found.push(v);
        }
        return found;
      };
      const heads = [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]];
      return heads.map(within).find(found => found.length > 3) ?? within(heads[3]);
    })();
    const grid = marks.map(v => `<path class="grid" d="M${left} ${y(v)}H${right}"/><text x="${left - 4}" y="${y(v) + 4}" text-anchor="end">${whole ? v : factor(v)}</text>`).join("");
    const paths = lines.map(l => {
      let d = "", pen = "M";
      l.v.forEach((v, i) => { if (v === null) pen = "M"; else { d += `${pen}${x(steps[i]).toFixed(1)} ${y(v).toFixed(1)}`; pen = "L"; } });
      return `<g><title>${escaped(l.name)}</title><path class="${l.set ? "set" : "layer"}" d="${d}"${l.dash ? ` stroke-dasharray="${l.dash}"` : ""}/></g>`;
    }).join("");
    const ends = `<text x="${left}" y="${tall - 5}">${steps[0]}</text><text x="${right}" y="${tall - 5}" text-anchor="end">update ${steps.at(-1)}</text>`;
    at.innerHTML = `<svg viewBox="0 0 ${wide} ${tall}" aria-hidden="true">${grid}${paths}${ends}</svg>`;
    at.setAttribute("aria-label", words);
  };
  const show = () => {
    const id = pickRun.value, run = runs[id];
    const rates = run.layers.map((name, i) => ({ name: `${name}: ${factor(run.rates[i].at(-1))} at the end`, v: run.rates[i] }));
    draw(byId("rates.rate"), run.t, [...rates, { name: `the rate that is set: ${factor(run.set.at(-1))} at the end`, v: run.set, set: true }], `Set rate ${factor(run.set.at(-1))}, layers ${run.rates.map(r => factor(r.at(-1))).join(", ")} at the end`);
    const norms = Object.entries(run.norms);
    draw(byId("rates.norm"), run.t, norms.map(([name, v]) => ({ name: `${name}: ${factor(v.at(-1))} at the end`, v })), `Norms ${norms.map(([, v]) => factor(v.at(-1))).join(", ")} at the end`);
    const dashes = ["", "5 3", "2 2"], units = Object.entries(run.units);
    draw(byId("rates.unit"), run.t, units.map(([name, v], i) => ({ name: `${name}: ${v.at(-1)} % at the end`, v, dash: dashes[i] })), units.map(([name, v]) => `${name} ${v.at(-1)} %`).join(", "), true);
    const row = (name, rate, norm) => make("tr", {}, make("td", { textContent: name }), make("td", { className: "num", textContent: rate }), make("td", { className: "num", textContent: norm }));
    byId("rates.layers").replaceChildren(...run.layers.map((name, i) => row(name, factor(run.rates[i].at(-1)), factor(run.norms[name]?.at(-1)))), row("as set", factor(run.set.at(-1)), "\u2013"));
    byId("rates.command").replaceChildren("Dead units solid, dormant dashed, linearised dotted. This run: ", make("code", { textContent: `nap-bench run${document.body.dataset.at ?? ""} ${id}` }));
  };
  const fill = () => { pickRun.replaceChildren(...exhibits.get(pickExhibit.value).map(([id, place]) => new Option(place, id))); show(); };
  pickExhibit.addEventListener("change", fill);
  pickRun.addEventListener("change", show);
  byId("explorer").hidden = false;
  fill();
})();
