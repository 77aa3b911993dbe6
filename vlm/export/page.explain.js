// ---- what moved a finding (--explain) and how the text was found (--trace); functions only, used by page.js
function chance(logit) { return 1 / (1 + Math.exp(-logit)); }
function fine(p) { return `${(100 * p).toFixed(p < 0.01 || p > 0.99 ? 2 : 1)}%`; }
function imageName(n) {
  const image = state.entry.images[n];
  if (!image) return "an image that is not shown";
  return image.slice ? sliceName(image.slice) : image.view ? `the ${image.view} view` : `image ${n + 1}`;
}
function explanationOf(label) { const e = state.entry.explanation; return (e && e.findings[label]) || null; }
function whyButton(f) {
  if (!explanationOf(f.label)) return null;
  const on = state.why === f.label;
  return make("button", { type: "button", class: "heat why", "aria-pressed": on ? "true" : "false", "aria-expanded": on ? "true" : "false", "aria-label": `What moved ${plain(f.label)}`, onclick: () => showWhy(on ? null : f.label) }, "why");
}
function showWhy(label) {
  state.why = label;
  views(); stage(); report(); light(state.pinned);
  const again = label && document.querySelector(`tr[data-label="${CSS.escape(label)}"] .why`);
  if (again) again.focus();
}
function effect(change, most) {  // a bar to the right speaks for the finding, one to the left against it
  const width = most ? 50 * Math.abs(change) / most : 0;
  return make("span", { class: `effect ${change < 0 ? "against" : "for"}`, role: "img", "aria-label": `${change < 0 ? "against" : "for"}, ${Math.abs(change).toFixed(3)} log odds` }, make("b", { style: `${change < 0 ? "right" : "left"}:50%;width:${width}%` }));
}
function whyPanel(label, columns) {
  const e = explanationOf(label);
  const without = (change) => `${fine(chance(e.logit))} → ${fine(chance(e.logit - change))}`;
  const lines = [], image = e.image;
  if (image) lines.push(make("p", {}, make("b", {}, "Image. "), `It looked most at ${imageName(image.image)}, ${image.where}: ${percent(image.share)} of its attention lies in the dashed square.`, image.change === null ? "" : ` With this place hidden: ${without(image.change)}.`));
  if (e.views.length) lines.push(make("p", {}, e.views.map((v) => `Without ${imageName(v.image)} (${percent(v.share)} of its attention): ${without(v.change)}`).join(". ") + "."));
  if (e.boxes.length) lines.push(make("p", {}, `Boxes: ${e.boxes.map((i) => state.entry.boxes[i]).filter(Boolean).map((b) => `${plain(b.label)} ${(b.confidence ?? 0).toFixed(2)}`).join(", ")}.`));
  if (e.gate !== null) lines.push(make("p", { class: "gate" }, make("b", {}, "Gate "), make("span", { class: "effect scale1" }, make("b", { style: `${e.gate < 0 ? "right" : "left"}:50%;width:${50 * Math.abs(e.gate)}%` })), ` ${e.gate.toFixed(2)} of what the neighbours say is added`, e.fusion ? `; without any of it: ${without(e.fusion.change)}.` : "."));
  else if (e.fusion) lines.push(make("p", {}, `Without what the neighbours say: ${without(e.fusion.change)}.`));
  const most = Math.max(0, ...e.neighbours.map((n) => Math.abs(n.change)));
  const table = make("table", { class: "neighbours" },
    make("thead", {}, make("tr", {}, ...["Neighbour in the graph", "Tie", "Against | for", "Without it"].map((t) => make("th", { scope: "col" }, t)))),
    make("tbody", {}, ...e.neighbours.map((n) => make("tr", {},
      make("th", { scope: "row" }, n.name),
      make("td", { class: "quiet", title: n.via === "edge" ? `edge of weight ${n.weight}` : `${percent(n.weight)} of the message` }, n.via === "edge" ? n.relations.join(", ") : "its evidence"),
      make("td", { class: "tug" }, effect(n.change, most)), make("td", { class: "number" }, without(n.change))))));
  if (e.neighbours.length) lines.push(table);
  const rest = e.left_out ? `${e.left_out.count} more move it by ${e.left_out.largest} log odds at most. ` : "";
  lines.push(make("p", { class: "quiet small" }, `${rest}Each line takes away one thing alone and runs the model again: the lines do not add up.`));
  return make("tr", { class: "panel" }, make("td", { colspan: columns }, ...lines));
}
function strongest(n, image, svg) {
  const e = state.why && explanationOf(state.why);
  if (!e || !e.image || e.image.image !== n) return;
  const [x1, y1, x2, y2] = e.image.xyxy, [x, y] = e.image.peak, arm = (x2 - x1) / 8;
  const shape = (name, attributes) => { const node = document.createElementNS(SVG, name); Object.entries(attributes).forEach(([k, v]) => node.setAttribute(k, v)); svg.append(node); };
  shape("rect", { class: "place back", x: x1, y: y1, width: x2 - x1, height: y2 - y1 });
  shape("rect", { class: "place", x: x1, y: y1, width: x2 - x1, height: y2 - y1 });
  shape("path", { class: "place", d: `M${x - arm} ${y}H${x + arm}M${x} ${y - arm}V${y + arm}` });
}

// ---- the search
function unpacked(trace) {  // texts are kept as a place in the step before and what was added to it
  let before = [], section = null;
  return trace.steps.map((s) => {
    if (s.section !== section) { section = s.section; before = []; }
    const grown = ([parent, piece]) => ({ old: parent < 0 ? "" : before[parent], piece, parent });
    const beams = s.beams.map((b) => ({ ...grown(b), score: b[2], bank: b[3], state: b[4] }));
    const cut = s.cut.map((c) => ({ ...grown(c), rule: c[2] }));
    before = beams.map((b) => b.old + b.piece);
    return { section: s.section, step: s.step, beams, cut };
  });
}
function tracePanel() {
  const trace = state.entry.trace;
  if (!trace || !trace.steps.length) return [];
  const steps = unpacked(trace);
  const slider = make("input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1, "aria-label": "Step of the search" });
  const where = make("span", { class: "quiet" }), body = make("div"), picture = lineage(steps, (i) => { slider.value = i; show(); });
  const show = () => {
    const i = Number(slider.value), s = steps[i];
    where.textContent = `${s.section ? `${title(s.section)}, word piece ` : "Step "}${s.step} (${i + 1} of ${steps.length})`;
    picture.mark(i);
    body.replaceChildren(...stepView(s, trace.names));
  };
  slider.addEventListener("input", show);
  const by = (d) => () => { slider.value = Number(slider.value) + d; show(); };
  show();
  return [make("h2", {}, "How the text was found"),
    make("p", { class: "quiet small" }, "Each row of the drawing is a beam, the best on top; the heavy line is the text that was kept longest, a red tick a step in which a rule cut something."),
    picture.node, make("div", { class: "stepper" }, make("button", { type: "button", class: "toggle", "aria-label": "Step before", onclick: by(-1) }, "‹"), slider, make("button", { type: "button", class: "toggle", "aria-label": "Next step", onclick: by(1) }, "›"), where), body];
}
function lineage(steps, choose) {
  const rows = Math.max(...steps.map((s) => s.beams.length)), dx = Math.max(6, Math.min(16, 560 / steps.length)), dy = 18;
  const svg = document.createElementNS(SVG, "svg"), width = dx * (steps.length + 1), height = dy * rows + 16;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`); svg.setAttribute("class", "lineage"); svg.setAttribute("role", "img"); svg.setAttribute("aria-label", `${rows} beams over ${steps.length} steps`);
  svg.style.aspectRatio = `${width}/${height}`; svg.style.maxWidth = `${1.6 * width}px`;
  const draw = (name, attributes) => { const node = document.createElementNS(SVG, name); Object.entries(attributes).forEach(([k, v]) => node.setAttribute(k, v)); svg.append(node); return node; };
  const x = (i) => dx * (i + 1), y = (r) => dy * (r + 0.7), best = new Set();
  for (let i = steps.length - 1, r = 0; i >= 0; i--) {  // from the best beam of each section's end backwards
    if (i === steps.length - 1 || steps[i + 1].section !== steps[i].section) r = 0;
    if (r < 0 || !steps[i].beams[r]) continue;
    best.add(`${i}/${r}`); r = steps[i].beams[r].parent;
  }
  const band = draw("rect", { class: "now", y: 0, width: dx, height });
  steps.forEach((s, i) => {
    if (i && s.section !== steps[i - 1].section) draw("path", { class: "part", d: `M${x(i) - dx / 2} 0V${height}` });
    s.beams.forEach((b, r) => {
      const on = best.has(`${i}/${r}`) ? " best" : "";
      if (b.parent >= 0 && i) draw("path", { class: `branch${on}`, d: `M${x(i - 1)} ${y(b.parent)}L${x(i)} ${y(r)}` });
      draw("circle", { class: `knot${on}`, cx: x(i), cy: y(r), r: on ? 2.6 : 1.8 });
    });
    if (s.cut.length) draw("path", { class: "cutmark", d: `M${x(i) - 2} ${height - 7}l4 5m0 -5l-4 5` });
  });
  svg.addEventListener("click", (e) => { const box = svg.getBoundingClientRect(); choose(Math.max(0, Math.min(steps.length - 1, Math.round((e.clientX - box.left) / box.width * width / dx) - 1))); });
  return { node: svg, mark: (i) => band.setAttribute("x", x(i) - dx / 2) };
}
function stepView(s, names) {
  const chips = (letters) => {
    const of = (letter) => names.filter((_, i) => letters[i] === letter).map(plain);
    const chip = (kind, list, text) => (list.length ? make("span", { class: `chip ${kind}`, title: list.join(", ") }, text) : null);
    const held = of("h"), open = of("o"), banned = of("b");
    return [chip("held", held, `✓ ${held.join(", ")}`), chip("open", open, `still to come: ${open.join(", ")}`), chip("banned", banned, `may not assert ${banned.length > 3 ? `${banned.length} findings` : banned.join(", ")}`)].filter(Boolean);
  };
  const text = (b) => { const old = b.old.trimStart(), from = old.length > 90 ? old.length - 84 : 0; return make("span", {}, make("span", { class: "quiet", title: old }, `${from ? "… " : ""}${old.slice(from)}`), make("b", {}, old ? b.piece : b.piece.trimStart())); };
  const states = new Set(s.beams.map((b) => b.state)), alike = states.size === 1;
  const banks = s.beams.some((b) => b.bank !== s.beams[0].bank || b.bank > 0);
  const rows = s.beams.map((b) => make("tr", {}, make("td", { class: "number" }, b.score.toFixed(2)), banks ? make("td", { class: "quiet", title: "bank: how many required terms are met" }, `bank ${b.bank}`) : null, make("td", {}, text(b), ...(alike ? [] : [" ", ...chips(b.state)]))));
  const nodes = [];
  if (alike && s.beams.length) nodes.push(make("p", { class: "chips" }, ...chips(s.beams[0].state)));
  nodes.push(make("table", { class: "beams" }, make("tbody", {}, ...rows)));
  if (s.cut.length) nodes.push(make("p", { class: "cuts" }, make("b", {}, "Cut here: "), ...s.cut.flatMap((c, i) => [i ? "; " : "", make("s", { title: (c.old + c.piece).trim() }, (c.old.length > 40 ? "… " : "") + (c.old.slice(-36) + c.piece).trim()), make("span", { class: "chip cut" }, plain(c.rule))])));
  return nodes;
}
