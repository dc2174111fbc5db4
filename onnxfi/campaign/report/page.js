"use strict";
// Tables that sort. They need no data.
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
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

// Elements are made by el(tag, attributes, children…): texts become text nodes, so no name is read as markup.
const el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  made.append(...children.flat(2).filter((one) => one !== null && one !== undefined));
  return made;
};
const OUTCOMES = ["masked", "SDC", "DUE"], COLOURS = ["var(--kept)", "var(--sdc)", "var(--due)"];
const SERIES = [0, 1, 2, 3, 4, 5].map((k) => `var(--c${k})`), SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross"];
const ROWS = 25;
const count = (n) => n.toLocaleString("en");
const text = (metric, x) => x === null || x === undefined ? "–"
  : metric.share ? `${(100 * x).toFixed(2)} %` : `${Number(x.toPrecision(4))} ${metric.unit}`.trim();
const ends = (metric, y) => y === null ? "–" : `${text(metric, y[0])} [${text(metric, y[1])}, ${text(metric, y[2])}]`;
const scaled = (metric, x) => x === null ? null : metric.share ? 100 * x : x;

// Charts by Observable Plot. Its own style element is taken out, since the page's policy runs none but its own.
const draw = (place, options, legend = []) => {
  if (!place) return;
  const made = Plot.plot({ width: Math.max(280, Math.min(860, place.clientWidth)), marginBottom: 38, ...options });
  made.querySelectorAll("style").forEach((one) => one.remove());
  const items = legend.map(([name, colour, symbol]) => el("li", {}, swatch(colour, symbol), name));
  place.replaceChildren(...(items.length ? [el("ul", { class: "legend" }, items)] : []), made);
};
const swatch = (colour, symbol) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of [["width", 14], ["height", 14], ["viewBox", "-7 -7 14 14"], ["aria-hidden", "true"]]) svg.setAttribute(name, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const shape = symbol ? d3[`symbol${symbol[0].toUpperCase()}${symbol.slice(1)}`] : d3.symbolSquare;
  path.setAttribute("d", d3.symbol(shape, symbol ? 60 : 140)());
  path.setAttribute("fill", colour);
  svg.append(path);
  return svg;
};
const rates = (points) => points.some((p) => p.x === 0) ? { type: "point", domain: [...new Set(points.map((p) => p.key))] } : { type: "log" };

const curves = (place, campaigns) => {
  const rows = campaigns.flatMap((one, k) => one.curve.filter((p) => p.y !== null && p.y[0] !== null).map((p) => ({ ...p, k, one })));
  if (!rows.length) return;
  const { metric } = rows[0].one, scale = rates(rows), ordinal = scale.type === "point", many = campaigns.length > 1;
  const at = (p) => ordinal ? p.key : p.x * 10 ** (0.05 * (p.k - (campaigns.length - 1) / 2));
  const [least, most] = [1, 2].map((end) => rows.map((p) => scaled(metric, p.y[end])));
  draw(place, {
    height: 300, marginLeft: 48, ariaLabel: `${metric.label} over rates`,
    x: { ...scale, label: "Rate", tickFormat: ordinal ? undefined : (x) => x.toExponential(0).replace("e-", "e−"), ticks: ordinal ? undefined : [...new Set(rows.map((p) => p.x))] },
    y: { label: metric.axis, grid: true, domain: metric.share ? [0, 100] : [Math.min(...least), Math.max(...most)], nice: !metric.share },
    symbol: { domain: campaigns.map((_, k) => k), range: SYMBOLS },
    marks: [
      ...campaigns.filter((one) => one.metric.golden !== null).map((one, k) => Plot.ruleY([scaled(metric, one.metric.golden)], { stroke: SERIES[k % 6], strokeDasharray: "5,4", strokeOpacity: 0.8 })),
      Plot.ruleX(rows, { x: at, y1: (p) => scaled(metric, p.y[1]), y2: (p) => scaled(metric, p.y[2]), stroke: (p) => SERIES[p.k % 6], strokeWidth: 1.5, strokeOpacity: 0.7 }),
      Plot.line(rows, { x: at, y: (p) => scaled(metric, p.y[0]), z: "k", stroke: (p) => SERIES[p.k % 6], strokeWidth: 2 }),
      Plot.dot(rows, { x: at, y: (p) => scaled(metric, p.y[0]), symbol: "k", fill: (p) => SERIES[p.k % 6], r: 4,
        title: (p) => `${many ? `${p.one.label}\n` : ""}at ${p.key}: ${ends(metric, p.y)}\n${count(p.trials)} trials`, tip: true }),
    ],
  }, many ? campaigns.map((one, k) => [one.label, SERIES[k % 6], SYMBOLS[k % 6]]) : []);
};

const stack = (place, one) => {
  const parts = one.stack.flatMap((p) => ["sdc", "due", "kept"].map((part, k) => ({ ...p, part, share: 100 * p[part], k: [1, 2, 0][k] })));
  if (!parts.length) return;
  const low = one.stack.filter((p) => p.lost !== null);
  draw(place, {
    height: 300, marginLeft: 48, ariaLabel: "masked, SDC and DUE, stacked, over rates",
    x: { type: "band", domain: one.stack.map((p) => p.key), label: "Rate", padding: 0.25 }, y: { label: "Share of answers (%)", grid: true, domain: [0, 100] },
    marks: [
      Plot.barY(parts, { x: "key", y: "share", fill: (p) => COLOURS[p.k], title: (p) => `at ${p.key}: masked ${p.kept === null ? "–" : (100 * p.kept).toFixed(1)} %, SDC ${(100 * p.sdc).toFixed(1)} %, DUE ${(100 * p.due).toFixed(1)} %\nlost ${p.lost === null ? "" : ends(one.silent, p.lost)}\n${count(p.trials)} trials`, tip: true }),
      Plot.ruleX(low, { x: "key", y1: (p) => 100 * p.lost[1], y2: (p) => 100 * p.lost[2], stroke: "var(--ink)", strokeWidth: 1.5 }),
    ],
  }, [["masked: the answer is kept", COLOURS[0]], [`SDC: ${one.silent.label}`, COLOURS[1]], ["DUE: detected", COLOURS[2]]]);
};

const layersCompared = (place, campaigns) => {
  const names = [...new Set(campaigns.flatMap((one) => one.layers.filter((row) => row.rate !== null).map((row) => row.name)))];
  const shared = names.filter((name) => campaigns.filter((one) => one.layers.some((row) => row.name === name && row.rate)).length > 1).slice(0, 60);
  if (!shared.length) return;
  const rows = campaigns.flatMap((one, k) => one.layers.filter((row) => row.rate && shared.includes(row.name)).map((row) => ({ ...row, k, label: one.label })));
  const share = { share: true, unit: "%" };
  draw(place, {
    height: 60 + 14 * shared.length * campaigns.length, marginLeft: Math.min(150, 20 + 6 * Math.max(...shared.map((n) => n.length))),
    x: { label: `${campaigns[0].trials.metrics[0].label} of a fault in the layer (%)`, grid: true, zero: true }, y: { axis: null, domain: campaigns.map((_, k) => k) }, fy: { domain: shared, label: null, tickFormat: (n) => n.length > 20 ? `${n.slice(0, 9)}…${n.slice(-10)}` : n, padding: 0.2 },
    symbol: { domain: campaigns.map((_, k) => k), range: SYMBOLS },
    marks: [
      Plot.ruleY(rows, { fy: "name", y: "k", x1: (r) => 100 * r.rate[1], x2: (r) => 100 * r.rate[2], stroke: (r) => SERIES[r.k % 6], strokeWidth: 1.5 }),
      Plot.dot(rows.filter((r) => r.rate[0] !== null), { fy: "name", y: "k", x: (r) => 100 * r.rate[0], symbol: "k", fill: (r) => SERIES[r.k % 6], r: 3.5, title: (r) => `${r.label}, ${r.name}: ${ends(share, r.rate)}`, tip: true }),
    ],
  }, campaigns.map((one, k) => [one.label, SERIES[k % 6], SYMBOLS[k % 6]]));
};

// From a layer to a fault. The state stands behind the # of the address, so that links, keys and the back button work.
const state = () => {
  const given = new URLSearchParams(location.hash.slice(1)), found = {};
  for (const name of ["c", "layer", "bit", "outcome", "trial"]) found[name] = /^\d{1,12}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null;
  found.rate = given.get("rate");
  return found;
};
const link = (now, change) => {
  const next = { ...now, ...change };
  return `#${new URLSearchParams(Object.entries(next).filter(([, value]) => value !== null && value !== undefined))}`;
};

const trialsOf = (one) => {
  const { columns } = one.trials, names = Object.keys(columns);
  return columns.trial.map((_, k) => Object.fromEntries(names.map((name) => [name, columns[name][k]])));
};
const site = (one, word) => {
  const [target, index, when, , bits] = word, { texts } = one.trials;
  return `${texts[target]}[${index}]${texts[when] ? `@${texts[when]}` : ""}${bits ? `:${bits.join(",")}` : ""}`;
};
// The word in binary, the lowest bit last, in groups of four; flipped bits are marked.
const binary = (hex, other) => {
  const [mine, theirs] = [hex, other].map((one) => BigInt(one)), bits = 4 * (hex.length - 2);
  const out = [];
  for (let bit = bits - 1; bit >= 0; bit--) {
    const shift = BigInt(bit), digit = String((mine >> shift) & 1n);
    out.push((mine ^ theirs) >> shift & 1n ? el("mark", { title: `bit ${bit}` }, digit) : digit);
    if (bit % 4 === 0 && bit) out.push(" ");
  }
  return el("code", { class: "word" }, out);
};

const showFault = (place, one, row) => {
  const metrics = one.trials.metrics, said = [];
  const cause = row.cause ? ` (${row.cause})` : "";
  said.push(el("h4", {}, `Trial ${row.trial}: ${OUTCOMES[row.outcome]}${cause}`));
  said.push(el("p", {}, metrics.map((metric, k) => `${metric.label} ${text(metric, row.values[k])}`).join(", "),
    row.rate === null ? "" : `, at rate ${row.rate}`, `; ${count(row.faults)} ${row.faults === 1 ? "fault" : "faults"}.`));
  for (const word of row.words) {
    const [, , , model, , before, after, was, is] = word;
    said.push(el("p", {}, el("b", {}, site(one, word)), ` ${one.trials.texts[model]}`, was === null ? "" : `: ${was} → ${is}`));
    if (before && after) said.push(el("p", {}, "before ", el("code", {}, before), binary(before, after), "after ", el("code", {}, after), binary(after, before)));
    else said.push(el("p", { class: "soft" }, "The word of an activation is known only while it is computed."));
  }
  if (row.faults > row.words.length) said.push(el("p", { class: "soft" }, row.words.length
    ? `The ${row.words.length} that moved their number most, of ${count(row.faults)}.` : `Its ${count(row.faults)} faults are kept as a recipe, or are not listed here.`));
  if (row.samples) said.push(el("p", {}, row.samples[0] === 0 ? `No answer changed silently, of ${count(one.samples)}.`
    : `${count(row.samples[0])} of ${count(one.samples)} answers changed silently: sample${row.samples[0] === 1 ? "" : "s"} ${row.samples.slice(1).join(", ")}${row.samples[0] > row.samples.length - 1 ? ", …" : "."}`));
  if (row.answers) said.push(el("div", { class: "wide" }, el("table", { class: "answers" }, el("thead", {}, el("tr", {}, ["Sample", "Answer without faults", "With them"].map((name) => el("th", { scope: "col", class: "text" }, name)))),
    el("tbody", {}, row.answers.map((answer) => el("tr", {}, answer.map((one) => el("td", { class: "text" }, String(one)))))))));
  said.push(el("p", { class: "soft" }, "All of it: ", el("code", {}, `onnxfi show ${one.store} ${row.trial}`)));
  place.replaceChildren(...said);
};

// A chart is one stop of the tab key; arrows go from cell to cell, Enter opens one. Bits stand in falling order.
const ARROWS = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const linkOf = (a) => a.getAttribute("href") ?? a.getAttributeNS("http://www.w3.org/1999/xlink", "href");
const byArrows = (chart, now) => {
  const cells = new Map();
  for (const a of chart.querySelectorAll("svg a")) {
    const at = new URLSearchParams(linkOf(a).slice(1)), key = [Number(at.get("layer")), Number(at.get("bit"))];
    a.setAttribute("tabindex", "-1");
    if (!cells.has(String(key))) cells.set(String(key), { a, key });
  }
  const stop = (cell) => { cells.forEach(({ a }) => a.setAttribute("tabindex", a === cell.a ? "0" : "-1")); return cell; };
  const first = (one, other) => other.key[0] < one.key[0] || (other.key[0] === one.key[0] && other.key[1] > one.key[1]) ? other : one;
  if (cells.size) stop(cells.get(String([now.layer, now.bit])) ?? [...cells.values()].reduce(first));
  chart.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key], here = [...cells.values()].find(({ a }) => a === document.activeElement);
    if (!step || !here) return;
    event.preventDefault();
    const far = ({ key }) => [0, 1].map((k) => (key[k] - here.key[k]) * step[k]), aside = step[0] ? 1 : 0;
    const ahead = [...cells.values()].filter((cell) => cell.key[aside] === here.key[aside] && Math.max(...far(cell)) > 0);
    if (ahead.length) stop(ahead.reduce((one, other) => Math.max(...far(one)) <= Math.max(...far(other)) ? one : other)).a.focus();
  });
};

const showBits = (place, one, now, c) => {
  const here = now.layer === null ? [] : one.cells.filter((cell) => cell[0] === now.layer);
  if (now.layer === null || !here.length) return heat(place, one, now, c);
  const metric = { share: true, unit: "%" }, most = Math.max(...here.map((cell) => cell[1]));
  const rows = here.map(([, bit, trials, outcomes, rate]) => ({ bit, trials, outcomes, rate }));
  const chart = el("div", { class: "chart" });
  place.replaceChildren(el("h4", {}, `Bits of ${one.layers[now.layer].name}`), chart,
    el("p", { class: "soft" }, `${one.trials.metrics[0].label} of a fault in the bit, with its interval; bit 0 is the lowest. Choose a bit to see its trials; arrow keys move, Enter opens, Escape goes back.`));
  draw(chart, {
    height: 190, marginLeft: 44, ariaLabel: "rate by bit", x: { type: "band", domain: d3.range(most, -1, -1), label: "Bit", tickSize: 0, tickFormat: (bit) => most < 16 || bit % 4 === 0 || bit === most ? String(bit) : "" },
    y: { label: "%", grid: true, domain: [0, Math.min(100, 100 * Math.max(0.001, ...rows.map((r) => r.rate ? r.rate[2] : 0)))] },
    marks: [
      Plot.barY(rows, { x: "bit", y: () => 100, fill: "var(--wash)", fillOpacity: 0.01, clip: true, href: (r) => link(now, { c, bit: r.bit, trial: null }), ariaLabel: (r) => `bit ${r.bit}: ${ends(metric, r.rate)}` }),
      Plot.barY(rows.filter((r) => r.rate), { x: "bit", y: (r) => 100 * (r.rate[0] ?? 0), fill: (r) => r.bit === now.bit ? "var(--ink)" : "var(--sdc)", href: (r) => link(now, { c, bit: r.bit, trial: null }),
        title: (r) => `bit ${r.bit}: ${ends(metric, r.rate)}\n${OUTCOMES.map((name, k) => `${name} ${r.outcomes[k]}`).join(", ")} of ${r.trials} trials`, tip: true }),
      Plot.ruleX(rows.filter((r) => r.rate), { x: "bit", y1: (r) => 100 * r.rate[1], y2: (r) => 100 * r.rate[2], stroke: "var(--ink)", pointerEvents: "none" }),
    ],
  });
  byArrows(chart, now);
};

const heat = (place, one, now, c) => {
  const rows = one.cells.filter((cell) => cell[4] && cell[4][0] !== null).map(([layer, bit, trials, outcomes, rate]) => ({ layer, bit, trials, outcomes, rate }));
  if (!rows.length) return place.replaceChildren();
  const metric = { share: true, unit: "%" }, most = Math.max(...rows.map((r) => r.bit)), used = [...new Set(rows.map((r) => r.layer))].sort((a, b) => a - b);
  const top = Math.max(...rows.map((r) => r.rate[0])), name = (k) => { const n = one.layers[k].name; return n.length > 18 ? `${n.slice(0, 8)}…${n.slice(-9)}` : n; };
  const chart = el("div", { class: "chart" });
  place.replaceChildren(el("h4", {}, "Layers by bits"), chart,
    el("p", { class: "soft" }, `${one.trials.metrics[0].label} ${top ? `from 0 (pale) to ${text(metric, top)} (dark)` : "is 0 in all of them"}, the mean of a cell's trials; empty cells have none. Choose a cell, or a layer in the column; arrow keys move, Enter opens, Escape goes back.`));
  draw(chart, {
    height: 50 + Math.max(14, Math.min(26, 260 / used.length)) * used.length, marginLeft: 20 + 6.2 * Math.max(...used.map((k) => name(k).length)),
    x: { type: "band", domain: d3.range(most, -1, -1), label: "Bit", tickSize: 0, padding: 0.05, tickFormat: (bit) => most < 16 || bit % 4 === 0 || bit === most ? String(bit) : "" }, y: { type: "band", domain: used, tickFormat: name, label: null, padding: 0.08 },
    marks: [Plot.cell(rows, { x: "bit", y: "layer", fill: "var(--sdc)", fillOpacity: (r) => 0.06 + 0.94 * Math.sqrt(top ? r.rate[0] / top : 0), stroke: "var(--line)",
      href: (r) => link(now, { c, layer: r.layer, bit: r.bit, trial: null }), ariaLabel: (r) => `${one.layers[r.layer].name}, bit ${r.bit}: ${text(metric, r.rate[0])}`,
      title: (r) => `${one.layers[r.layer].name}, bit ${r.bit}: ${ends(metric, r.rate)}\n${OUTCOMES.map((n, k) => `${n} ${r.outcomes[k]}`).join(", ")} of ${r.trials} trials`, tip: true })],
    opacity: { type: "identity" },
  });
  byArrows(chart, now);
};

const showTrials = (place, one, rows, now, c, shown = ROWS) => {
  const some = rows.slice(0, shown), metrics = one.trials.metrics, swept = rows.some((row) => row.rate !== null), placed = 2 * rows.filter((row) => row.layer !== null).length > rows.length;
  const kept = one.trials.columns.trial.length;
  const note = kept < one.trials.all ? ` The page lists ${count(kept)} of ${count(one.trials.all)} trials, those that did most harm.` : "";
  const columns = [["Trial", true], ...(swept ? [["Rate"]] : []), ...(placed && now.layer === null ? [["Layer", true, "place"]] : []), ...(placed && now.bit === null ? [["Bit", false, "place"]] : []), ["Outcome"], ...metrics.map((m) => [m.label]), ["Fault", true]];
  const body = some.map((row) => el("tr", { "aria-current": row.trial === now.trial ? "true" : null },
    el("td", { class: "text" }, el("a", { href: link(now, { c, trial: row.trial }) }, String(row.trial))),
    swept ? el("td", {}, row.rate ?? "–") : null,
    placed && now.layer === null ? el("td", { class: "text name place" }, row.layer === null ? "–" : one.layers[row.layer].name) : null,
    placed && now.bit === null ? el("td", { class: "place" }, row.bit === null ? "–" : String(row.bit)) : null,
    el("td", {}, OUTCOMES[row.outcome] + (row.cause ? ` (${row.cause})` : "")), ...row.values.map((value, k) => el("td", {}, text(metrics[k], value))),
    el("td", { class: "text site" }, row.words.length ? site(one, row.words[0]) + (row.faults > 1 ? ` and ${count(row.faults - 1)} more` : "") : `${count(row.faults)} faults`,
      row.words.length && row.words[0][7] !== null ? [el("br"), el("small", {}, `${row.words[0][7]} → ${row.words[0][8]}`)] : [])));
  const more = el("button", { type: "button", class: "more" }, `Show ${count(Math.min(ROWS, rows.length - some.length))} more`);
  more.addEventListener("click", () => { showTrials(place, one, rows, now, c, shown + ROWS); place.querySelectorAll("tbody a")[shown]?.focus(); });
  place.replaceChildren(el("h4", {}, rows.length === 1 ? "1 trial" : `${count(rows.length)} trials, the most harmful first`), ...(note ? [el("p", { class: "soft" }, note)] : []),
    el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, columns.map(([name, left, place]) => el("th", { scope: "col", class: [left ? "text" : "", place ?? ""].join(" ").trim() || null }, name)))), el("tbody", {}, body))),
    ...(rows.length > some.length ? [more] : []));
};

const filters = (form, one, all, now, c) => {
  const choice = (name, label, options) => {
    const select = el("select", { name }, el("option", { value: "" }, "all"), options.map(([value, said]) => el("option", { value, selected: String(now[name]) === String(value) }, said)));
    select.addEventListener("change", () => { location.hash = link(now, { c, trial: null, [name]: select.value === "" ? null : select.value, ...(name === "layer" ? { bit: null } : {}) }); });
    return el("label", {}, label, select);
  };
  const layers = [...new Set(all.map((row) => row.layer))].filter((k) => k !== null).sort((a, b) => a - b);
  const bits = [...new Set(all.filter((row) => now.layer === null || row.layer === now.layer).map((row) => row.bit))].filter((bit) => bit !== null).sort((a, b) => b - a);
  const swept = [...new Set(all.map((row) => row.rate))].filter((rate) => rate !== null).sort((a, b) => a - b);
  const clear = el("button", { type: "button" }, "Clear");
  clear.addEventListener("click", () => { location.hash = link({ c }, {}); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.replaceChildren(...(layers.length ? [choice("layer", "Layer", layers.map((k) => [k, one.layers[k].name]))] : []),
    ...(bits.length ? [choice("bit", "Bit", bits.map((bit) => [bit, bit]))] : []), choice("outcome", "Outcome", OUTCOMES.map((name, k) => [k, name])),
    ...(swept.length > 1 ? [choice("rate", "Rate", swept.map((rate) => [rate, rate]))] : []), clear);
};

const crumbs = (place, one, now, c) => {
  const steps = [["All layers", { layer: null, bit: null, trial: null }]];
  if (now.layer !== null && one.layers[now.layer]) steps.push([one.layers[now.layer].name, { bit: null, trial: null }]);
  if (now.bit !== null) steps.push([`bit ${now.bit}`, { trial: null }]);
  if (now.trial !== null) steps.push([`trial ${now.trial}`, {}]);
  place.replaceChildren(...steps.flatMap(([name, change], k) => [k ? " › " : "", k === steps.length - 1 ? el("b", {}, name) : el("a", { href: link({ ...now, c }, change) }, name)]));
};

const explore = (data, lists, c, now, asked, opener) => {
  const one = data[c], panel = document.getElementById(`explore-${c}`), part = (name) => panel.querySelector(`.${name}`);
  panel.hidden = false;
  const rows = lists[c].filter((row) => ["layer", "bit", "outcome", "rate"].every((name) => now[name] === null || String(row[name]) === String(now[name])));
  document.querySelectorAll(`a.layer[href^="#c=${c}&"]`).forEach((a) => a.getAttribute("href") === `#c=${c}&layer=${now.layer}` ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current"));
  crumbs(part("crumbs"), one, now, c);
  filters(part("filters"), one, lists[c], now, c);
  showBits(part("bits"), one, now, c);
  showTrials(part("trials"), one, rows, now, c);
  const chosen = now.trial === null ? null : lists[c].find((row) => row.trial === now.trial);
  if (chosen) showFault(part("fault"), one, chosen);
  else part("fault").replaceChildren(...(now.trial === null ? [] : [el("p", {}, `Trial ${now.trial} is not listed on this page; `, el("code", {}, `onnxfi show ${one.store} ${now.trial}`), " prints it.")]));
  if (!asked) return;
  const before = opener && [...panel.closest(".drill").querySelectorAll("a")].find((a) => linkOf(a) === opener);
  if (before) { before.focus(); return; }
  panel.querySelector("h3").focus({ preventScroll: true });
  panel.scrollIntoView({ block: "start" });
};

const unpack = async () => {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
};
unpack().then((data) => {
  const lists = data.map(trialsOf);
  const charts = () => {
    data.forEach((one, c) => { curves(document.getElementById(`chart-curve-${c}`), [one]); stack(document.getElementById(`chart-stack-${c}`), one); });
    curves(document.getElementById("chart-compared"), data.filter((one) => one.curve.length));
    layersCompared(document.getElementById("chart-layers"), data);
  };
  const look = (asked, opener = "") => {
    const now = state(), chosen = now.c !== null && now.c < data.length ? now.c : null;
    const none = { c: null, layer: null, bit: null, outcome: null, rate: null, trial: null };
    data.forEach((_, c) => explore(data, lists, c, c === chosen ? now : none, asked && c === chosen, opener));
  };
  let closed = "";
  addEventListener("keydown", (event) => {
    const now = state(), inner = ["trial", "bit", "layer"].find((name) => now[name] !== null);
    if (event.key !== "Escape" || inner === undefined || event.target.closest("select")) return;
    closed = location.hash;
    location.hash = link(now, { [inner]: null });
  });
  charts();
  look(location.hash.length > 1);
  addEventListener("hashchange", () => { look(true, closed); closed = ""; });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; charts(); look(false); } });
  document.documentElement.dataset.ready = "true";
});
