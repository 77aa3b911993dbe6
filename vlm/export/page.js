"use strict";
// Every text of a study reaches the page through textContent or an attribute: nothing in a report can become markup.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const PALETTE = ["#4cc9f0", "#ffd166", "#ff8c61", "#9be564", "#c3a6ff", "#ff7fb0", "#3ee6c1", "#e6e1d8", "#7fb2ff", "#d9b26f"];
const SHOWN = 0.15;          // findings below this probability are folded away, unless they are said to be present or uncertain
const meta = JSON.parse($("meta").textContent);
const index = JSON.parse($("index").textContent);
const state = { at: -1, entry: null, only: null, boxes: true, truth: false, heat: null, pinned: null, all: false, why: null };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const plain = (label) => label.replaceAll("_", " ");
const title = (label) => { const text = plain(label); return text.charAt(0).toUpperCase() + text.slice(1); };
const percent = (p) => (p === null || p === undefined ? "–" : p > 0 && p < 0.005 ? "<1%" : p > 0.995 && p < 1 ? ">99%" : `${Math.round(100 * p)}%`);
const colour = (label) => { const i = state.entry.findings.findIndex((f) => f.label === label); return PALETTE[(i < 0 ? label.length : i) % PALETTE.length]; };
const ground = (label) => state.entry.findings.find((f) => f.label === label);
const pressed = (node, on) => node.setAttribute("aria-pressed", on ? "true" : "false");

// ---- the list of studies
function list() {
  $("title").textContent = meta.title;
  const failed = index.filter((s) => s.failed).length;
  $("counts").textContent = `${index.length - failed} report${index.length - failed === 1 ? "" : "s"}${failed ? `, ${failed} failed` : ""}`;
  index.forEach((s, i) => {
    const picture = s.thumb ? make("img", { src: s.thumb, alt: "", loading: "lazy", decoding: "async" }) : make("span", { class: "none" }, s.failed ? "!" : "");
    const line = s.failed ? make("small", { class: "flag" }, "failed") : make("small", {}, s.said.length ? s.said.map(plain).join(", ") : "no finding said to be present");
    const flag = s.contradicted ? make("small", { class: "flag" }, `${s.contradicted} contradicted`) : null;
    const button = make("button", { type: "button", onclick: () => open(i) }, picture, make("span", { style: "min-width:0" }, make("b", { title: s.id }, s.id), line, flag));
    $("list").append(make("li", {}, button));
  });
  $("list").parentElement.parentElement.classList.toggle("single", index.length === 1);
  for (const [name, value] of meta.facts) $("facts").append(make("dt", {}, name), make("dd", {}, value));
}
function filter() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  index.forEach((s, i) => {
    const text = `${s.id} ${s.failed ? "failed" : s.said.map(plain).join(" ")} ${s.contradicted ? "contradicted" : ""}`.toLowerCase();
    $("list").children[i].hidden = !words.every((w) => text.includes(w));
  });
}
function step(by) {
  for (let i = state.at + by; i >= 0 && i < index.length; i += by) if (!$("list").children[i].hidden) return open(i);
}

// ---- one study: its data stay text until it is opened
function open(i) {
  if (i === state.at || !index[i]) return;
  const entry = JSON.parse($(`study-${i}`).textContent);
  Object.assign(state, { at: i, entry, only: entry.images.length > 4 ? 0 : null, heat: null, pinned: null, all: false, why: null });
  [...$("list").children].forEach((li, n) => li.firstChild.setAttribute("aria-current", n === i ? "true" : "false"));
  $("list").children[i].scrollIntoView({ block: "nearest", inline: "nearest" });
  history.replaceState(null, "", `#${encodeURIComponent(entry.id)}`);
  $("previous").disabled = i === 0; $("next").disabled = i === index.length - 1;
  render();
  $("report").scrollTop = 0;
}
function render() { views(); stage(); report(); light(null); }

function views() {
  const images = state.entry.images;
  const set = (n) => () => { state.only = n; views(); stage(); light(state.pinned); };
  const button = (text, n) => make("button", { type: "button", "aria-pressed": state.only === n || images.length === 1 ? "true" : "false", onclick: set(n) }, text);
  const names = images.map((im, n) => im.view ? title(im.view) : `Image ${n + 1}`);
  $("views").replaceChildren(...(images.length > 1 && images.length <= 4 ? [button("All", null)] : []), ...names.map((name, n) => button(names.indexOf(name) === names.lastIndexOf(name) ? name : `${name} ${n + 1}`, n)));
  $("truth").disabled = !state.entry.truth;
  $("truth").hidden = !index.some((s) => s.truth);
  pressed($("truth"), state.truth && !!state.entry.truth);
  pressed($("boxes"), state.boxes);
  document.querySelector(".app").classList.toggle("beside", state.truth && !!state.entry.truth && !!Object.keys(state.entry.truth.sections).length);
  $("noheat").hidden = !state.heat;
  $("noheat").textContent = state.heat ? `Heat map: ${plain(state.heat)} ×` : "";
  pressed($("noheat"), !!state.heat);
}

// ---- images, boxes, heat maps
function stage() {
  const { entry } = state;
  if (entry.error) {
    $("stage").className = "stage";
    $("stage").replaceChildren(make("p", { class: "failed" }, make("b", {}, "This study failed"), entry.error));
    return;
  }
  const shown = entry.images.map((_, n) => n).filter((n) => state.only === null || state.only === n);
  $("stage").className = shown.length > 2 ? "stage four" : "stage";
  $("stage").replaceChildren(...shown.map(sheet));
  fitTags();
}
function fitTags() {
  // A name that would leave its image at the right is moved to end there.
  document.querySelectorAll(".sheet .tag").forEach((tag) => {
    const room = tag.parentElement.clientWidth - tag.offsetWidth;
    if (room > 0 && tag.offsetLeft > room) { tag.style.left = `${room}px`; }
  });
}
function sheet(n) {
  const image = state.entry.images[n];
  const node = make("div", { class: "sheet", style: `--ratio:${image.width / image.height}` });
  node.append(make("img", { src: image.src, alt: `${image.view ? title(image.view) : "Image"} ${n + 1} of study ${state.entry.id}`, decoding: "async", draggable: "false" }));
  if (state.heat && state.entry.heat[state.heat]) node.append(heat(image, state.entry.heat[state.heat], n));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  svg.setAttribute("aria-hidden", "true");
  node.append(svg);
  const draw = (box, number, reference) => {
    if (box.image !== n) return;
    const [x1, y1, x2, y2] = box.xyxy;
    const tint = reference ? "#ffffff" : colour(box.label);
    const group = document.createElementNS(SVG, "g");
    group.setAttribute("class", reference ? "box reference" : "box");
    group.dataset.box = reference ? `r${number}` : number;
    group.dataset.label = box.label;
    if (!reference && box.confidence !== null && box.confidence < 0.5) group.classList.add("faint");
    for (const kind of ["halo", "line"]) {
      const rect = document.createElementNS(SVG, "rect");
      Object.entries({ class: kind, x: x1, y: y1, width: x2 - x1, height: y2 - y1, rx: 0 }).forEach(([k, v]) => rect.setAttribute(k, v));
      if (kind === "line" && !reference) rect.style.stroke = tint;
      group.append(rect);
    }
    svg.append(group);
    const under = reference ? y2 / image.height < 0.93 : y1 / image.height < 0.06;
    const tag = make("span", { class: `tag${reference ? " reference" : ""}${under ? " under" : ""}`, style: `left:${100 * x1 / image.width}%;top:${100 * (under ? y2 : y1) / image.height}%;background:${tint}` },
      reference ? plain(box.label) : `${plain(box.label)} ${box.confidence === null ? "" : box.confidence.toFixed(2)}`.trim());
    tag.dataset.box = group.dataset.box;
    tag.dataset.label = box.label;
    if (group.classList.contains("faint")) tag.classList.add("faint");
    node.append(tag);
    if (!reference) { group.addEventListener("pointerenter", () => light({ box: number })); group.addEventListener("pointerleave", () => light(state.pinned)); }
  };
  if (state.truth && state.entry.truth) state.entry.truth.boxes.forEach((box, i) => draw(box, i, true));
  if (state.boxes) state.entry.boxes.forEach((box, i) => draw(box, i, false));
  strongest(n, image, svg);
  const frame = make("div", { class: "cell" }, node);
  if (image.marks) node.append(make("span", { class: "mark left", title: "the patient's right" }, "R"), make("span", { class: "mark right", title: "the patient's left" }, "L"));
  const words = [image.modality, image.view].filter(Boolean).map((w) => (w === "ct" || w === "mr" || w === "us" ? w.toUpperCase() : w === "xray" ? "X-ray" : w)).concat(image.slice ? [sliceName(image.slice)] : []).join(" · ");
  if (words) node.append(make("span", { class: "caption" }, words));
  if (image.mm) {
    const wide = image.mm * image.width;
    const bar = wide > 150 ? 50 : wide > 40 ? 10 : 5;
    node.append(make("span", { class: "scale", style: `width:${100 * bar / wide}%` }, `${bar / 10} cm`));
  }
  zoomable(frame, node);
  return frame;
}
function sliceName(place) {  // counted from 1, as viewers do
  const at = place.first === place.last ? `slice ${place.first + 1}` : `slices ${place.first + 1}–${place.last + 1}`;
  return `${at} of ${place.count}${place.position_mm === undefined ? "" : ` at ${place.position_mm} mm`}`;
}
function heat(image, map, n) {
  const raw = Uint8Array.from(atob(map.data[n] || ""), (c) => c.charCodeAt(0));
  const canvas = make("canvas", { width: 256, height: Math.max(1, Math.round(256 * image.height / image.width)) });
  if (!raw.length) return canvas;
  // The model sees the image centred in a square: a square grid covers that square, any other grid the image itself.
  const side = map.h === map.w ? Math.max(image.width, image.height) : 0;
  const [sx, sy] = side ? [side, side] : [image.width, image.height];
  const [ox, oy] = [(sx - image.width) / 2, (sy - image.height) / 2];
  const value = (x, y) => raw[Math.min(map.h - 1, Math.max(0, y)) * map.w + Math.min(map.w - 1, Math.max(0, x))] / 255;
  const stops = [[20, 11, 53], [106, 23, 110], [188, 55, 84], [237, 105, 37], [251, 180, 26], [252, 255, 164]];
  const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
  for (let row = 0; row < canvas.height; row++) for (let column = 0; column < canvas.width; column++) {
    const gx = ((column + .5) / canvas.width * image.width + ox) / sx * map.w - .5, gy = ((row + .5) / canvas.height * image.height + oy) / sy * map.h - .5;
    const x = Math.floor(gx), y = Math.floor(gy), fx = gx - x, fy = gy - y;
    const v = (value(x, y) * (1 - fx) + value(x + 1, y) * fx) * (1 - fy) + (value(x, y + 1) * (1 - fx) + value(x + 1, y + 1) * fx) * fy;
    const place = Math.min(4.999, 5 * v), low = Math.floor(place), part = place - low, at = 4 * (row * canvas.width + column);
    for (let c = 0; c < 3; c++) pixels.data[at + c] = stops[low][c] * (1 - part) + stops[low + 1][c] * part;
    pixels.data[at + 3] = 255 * Math.min(1, .08 + .92 * Math.pow(v, .8));
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
function zoomable(frame, node) {
  let scale = 1, x = 0, y = 0, from = null;
  const apply = () => {
    node.style.transform = scale === 1 ? "" : `translate(${x}px,${y}px) scale(${scale})`;
    node.querySelectorAll(".tag").forEach((tag) => { tag.style.fontSize = `${12 / scale}px`; });
    frame.classList.toggle("zoomed", scale > 1);
  };
  frame.zoom = (factor, cx = node.offsetWidth / 2, cy = node.offsetHeight / 2) => {
    const next = Math.min(8, Math.max(1, scale * factor));
    x = next === 1 ? 0 : cx - (cx - x) * next / scale; y = next === 1 ? 0 : cy - (cy - y) * next / scale; scale = next; apply();
  };
  frame.addEventListener("wheel", (e) => { e.preventDefault(); frame.zoom(e.deltaY < 0 ? 1.2 : 1 / 1.2, e.clientX - frame.getBoundingClientRect().left - node.offsetLeft, e.clientY - frame.getBoundingClientRect().top - node.offsetTop); }, { passive: false });
  frame.addEventListener("pointerdown", (e) => { if (scale > 1) { from = [e.clientX - x, e.clientY - y]; frame.setPointerCapture(e.pointerId); } });
  frame.addEventListener("pointermove", (e) => { if (from) { x = e.clientX - from[0]; y = e.clientY - from[1]; apply(); } });
  frame.addEventListener("pointerup", () => { from = null; });
  frame.addEventListener("dblclick", () => frame.zoom(scale > 1 ? 0 : 2));
}

// ---- the report
function report() {
  const { entry } = state;
  const head = [make("h1", {}, entry.id)];
  const clinical = Object.entries(entry.clinical || {});
  if (clinical.length) head.push(make("div", { class: "clinical" }, ...clinical.map(([name, text]) => make("p", {}, `${title(name)}: ${text}`))));
  if (entry.error) { $("report").replaceChildren(...head, make("p", { class: "notice" }, `Failed: ${entry.error}`)); return; }
  if (entry.unmet.length) head.push(make("p", { class: "notice" }, `The report could not hold: ${entry.unmet.join("; ")}`));
  for (const s of entry.abstained || []) head.push(make("p", { class: "notice" }, `Left out as too uncertain (${s.status === "contradicted" ? "contradicted by what was seen" : `confidence ${(s.confidence ?? 0).toFixed(2)}`}): ${s.text}`));
  const beside = state.truth && entry.truth && Object.keys(entry.truth.sections).length;
  const texts = make("div", { class: "texts", id: "texts" });
  const own = make("section", { "aria-label": "Generated report" }, beside ? make("p", { class: "who" }, "Generated") : null);
  for (const [name, text] of Object.entries(entry.sections)) {
    const prose = make("p", { class: "prose" });
    const said = entry.sentences.map((s, i) => [s, i]).filter(([s]) => s.section === name);
    said.forEach(([s, i], n) => prose.append(n ? " " : "", sentence(s, i)));
    if (!said.length) prose.append(text);
    own.append(make("h2", {}, title(name)), prose);
  }
  texts.append(own);
  if (beside) {
    const other = make("section", { class: "reference-text", "aria-label": "Reference report" }, make("p", { class: "who" }, "Reference"));
    for (const [name, text] of Object.entries(entry.truth.sections)) other.append(make("h2", {}, title(name)), make("p", { class: "prose" }, text));
    texts.append(other);
  }
  $("report").replaceChildren(...head, texts, make("h2", {}, "What the model measures"), ...findings(), ...tracePanel());
}
function sentence(s, i) {
  const node = make("span", { class: `sentence ${s.status}`, role: "button", tabindex: "0", "aria-pressed": "false", "aria-controls": "tray", "data-sentence": i }, s.text);
  const pin = () => { const same = state.pinned && state.pinned.sentence === i; state.pinned = same ? null : { sentence: i }; light(same ? { sentence: i } : state.pinned); };
  node.addEventListener("pointerenter", () => light({ sentence: i }));
  node.addEventListener("pointerleave", () => light(state.pinned));
  node.addEventListener("focus", () => light({ sentence: i }));
  node.addEventListener("blur", () => light(state.pinned));
  node.addEventListener("click", pin);
  node.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); pin(); } });
  return node;
}
function findings() {
  const { entry } = state;
  const truth = state.truth && entry.truth && entry.truth.labels ? entry.truth.labels : null;
  const matters = (f) => f.certainty === "present" || f.certainty === "uncertain" || f.probability === null || f.probability >= SHOWN || (truth && truth[f.label] === "present");
  const sorted = [...entry.findings].sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
  let shown = sorted.filter((f) => state.all || matters(f));
  if (!shown.length) shown = sorted.slice(0, 3);
  const body = make("tbody", {}, ...shown.flatMap((f) => (state.why === f.label ? [row(f, truth), whyPanel(f.label, truth ? 6 : 5)] : [row(f, truth)])));
  const head = make("thead", {}, make("tr", {}, ...["Finding", "Probability", "", "Says", truth ? "Reference" : null, ""].filter((t) => t !== null).map((t) => make("th", { scope: "col" }, t))));
  const nodes = [make("table", { class: "findings" }, head, body)];
  if (shown.length < sorted.length || state.all) nodes.push(make("button", { type: "button", class: "toggle more", onclick: () => { state.all = !state.all; report(); light(state.pinned); } }, state.all ? "Show the leading ones" : `Show all ${sorted.length}`));
  return nodes;
}
function meter(f) {
  return make("span", { class: `meter ${f.certainty || ""}`, role: "img", "aria-label": percent(f.probability) }, make("b", { style: `width:${100 * (f.probability ?? 0)}%` }));
}
function row(f, truth) {
  const swatch = make("i"); if (f.boxes.length || state.entry.boxes.some((b) => b.label === f.label)) swatch.style.background = colour(f.label);
  const side = f.side ? ` (${f.side})` : "";
  const cells = [
    make("th", { scope: "row", class: `name ${f.certainty || ""}` }, swatch, `${title(f.label)}${side}`),
    make("td", { class: "chance" }, meter(f)), make("td", { class: "number" }, percent(f.probability)),
    make("td", { class: `word ${f.certainty || ""}` }, f.certainty || "–")];
  if (truth) cells.push(make("td", { class: `word ${truth[f.label] || ""}` }, truth[f.label] || "–"));
  cells.push(make("td", { class: "number" }, state.entry.heat[f.label] ? make("button", { type: "button", class: "heat", "aria-pressed": state.heat === f.label ? "true" : "false", "aria-label": `Heat map of ${plain(f.label)}`, onclick: () => showHeat(state.heat === f.label ? null : f.label) }, "heat") : "", whyButton(f)));
  return make("tr", { "data-label": f.label, onpointerenter: () => light({ label: f.label }), onpointerleave: () => light(state.pinned) }, ...cells);
}
function showHeat(label) {
  state.heat = label;
  const focused = document.activeElement && document.activeElement.closest ? document.activeElement.closest("tr[data-label]") : null;
  const name = focused && focused.dataset.label;
  views(); stage(); report(); light(state.pinned);
  if (name) { const again = document.querySelector(`tr[data-label="${CSS.escape(name)}"] .heat`); if (again) again.focus(); }
}

// ---- light one sentence, finding or box, and dim the rest
function light(what) {
  const { entry } = state;
  if (entry.error) { $("tray").replaceChildren(make("p", { class: "hint" }, "No report was made for this study.")); return; }
  let boxes = null, sentences = null, labels = null;
  if (what && what.sentence !== undefined) { const s = entry.sentences[what.sentence]; boxes = new Set(s.boxes); sentences = new Set([what.sentence]); labels = new Set(s.labels); }
  if (what && what.label !== undefined) {
    const f = ground(what.label); labels = new Set([what.label]); boxes = new Set(f.boxes);
    entry.boxes.forEach((b, i) => { if (b.label === what.label) boxes.add(i); });
    sentences = new Set(entry.sentences.flatMap((s, i) => (s.labels.includes(what.label) ? [i] : [])));
  }
  if (what && what.box !== undefined) {
    boxes = new Set([what.box]); labels = new Set([entry.boxes[what.box].label]);
    sentences = new Set(entry.sentences.flatMap((s, i) => (s.boxes.includes(what.box) ? [i] : [])));
  }
  $("stage").classList.toggle("dimmed", !!boxes && boxes.size > 0);
  document.querySelectorAll(".stage [data-box]").forEach((node) => node.classList.toggle("on", !!boxes && (boxes.has(Number(node.dataset.box)) || (node.dataset.box.startsWith("r") && labels.has(node.dataset.label)))));
  const texts = $("texts");
  if (texts) texts.classList.toggle("dimmed", !!sentences && sentences.size > 0);
  document.querySelectorAll("[data-sentence]").forEach((node) => {
    const i = Number(node.dataset.sentence);
    node.classList.toggle("on", !!sentences && sentences.has(i));
    pressed(node, !!state.pinned && state.pinned.sentence === i);
  });
  document.querySelectorAll("tr[data-label]").forEach((node) => node.classList.toggle("on", !!labels && labels.has(node.dataset.label)));
  tray(what);
}
function tray(what) {
  const { entry } = state;
  const show = (label) => { const f = ground(label) || { label, probability: null, boxes: [] }; return make("span", { class: "ground" }, make("span", {}, `${title(label)}${f.side ? ` (${f.side})` : ""}`), meter(f), make("span", {}, percent(f.probability))); };
  const where = (image, n) => (image && image.slice ? sliceName(image.slice) : image && image.view || `image ${n + 1}`);
  const boxLine = (numbers) => numbers.map((i) => entry.boxes[i]).filter(Boolean).map((b) => `${plain(b.label)}${entry.images.length > 1 ? ` on ${where(entry.images[b.image], b.image)}` : ""}${b.confidence === null ? "" : ` ${b.confidence.toFixed(2)}`}`).join(" · ");
  if (what && what.sentence !== undefined) {
    const s = entry.sentences[what.sentence];
    const lines = [make("p", { class: "said" }, s.text),
      make("p", {}, make("span", { class: `status ${s.status}` }, { supported: "✓ supported", contradicted: "✕ contradicted", unsupported: "? unsupported" }[s.status]),
        s.confidence === null ? make("span", { class: "quiet" }, s.status === "unsupported" ? "nothing the model measures speaks for or against it" : "") : `${percent(s.confidence)} sure that this is right`)];
    if (s.labels.length) lines.push(make("div", { class: "grounds" }, ...s.labels.map(show)));
    if (s.boxes.length) lines.push(make("p", { class: "quiet", style: "margin:6px 0 0" }, `Boxes: ${boxLine(s.boxes)}`));
    $("tray").replaceChildren(...lines);
  } else if (what && (what.label !== undefined || what.box !== undefined)) {
    const label = what.label !== undefined ? what.label : entry.boxes[what.box].label;
    const numbers = what.box !== undefined ? [what.box] : entry.boxes.flatMap((b, i) => (b.label === label ? [i] : []));
    const said = entry.sentences.filter((s) => (what.box !== undefined ? s.boxes.includes(what.box) : s.labels.includes(label)));
    $("tray").replaceChildren(make("div", { class: "grounds" }, show(label)), make("p", { class: "quiet", style: "margin:6px 0 0" }, numbers.length ? `Boxes: ${boxLine(numbers)}` : "No box."),
      make("p", { class: "quiet", style: "margin:2px 0 0" }, said.length ? `In the report: “${said.map((s) => s.text).join(" ")}”` : "Not in the report."));
  } else {
    const count = (status) => entry.sentences.filter((s) => s.status === status).length;
    $("tray").replaceChildren(make("p", { class: "hint" }, "Point at a sentence, a finding or a box to see what it rests on. Click a sentence to keep it."),
      make("p", {}, ...["supported", "unsupported", "contradicted"].filter(count).map((status) => make("span", { class: `status ${status}` }, `${count(status)} ${status}`))));
  }
}

// ---- keys, buttons, theme
function theme(name) { document.documentElement.dataset.theme = name; try { localStorage.setItem("radscribe-theme", name); } catch (error) { /* a file: page may have no storage; the choice then lasts as long as the page */ } }
function flip(key) { state[key] = !state[key]; views(); stage(); if (key === "truth") report(); light(state.pinned); }
function leading() { const f = state.entry.findings.filter((x) => state.entry.heat[x.label] && x.label !== "normal").sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0))[0]; return f ? f.label : null; }
function letGo() { state.pinned = null; if (state.why) showWhy(null); if (state.heat) showHeat(null); else light(null); if (document.activeElement) document.activeElement.blur(); }
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || $("legend").open) return;
  if (e.target.type === "range") return;
  if (e.target === $("search")) { if (e.key === "Escape") { $("search").value = ""; filter(); $("search").blur(); } return; }
  const keys = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), k: () => step(-1), j: () => step(1), b: () => flip("boxes"),
    t: () => state.entry.truth && flip("truth"), h: () => !state.entry.error && showHeat(state.heat ? null : leading()), Escape: letGo,
    "/": () => $("search").focus(), "?": () => $("legend").showModal(),
    "+": () => document.querySelectorAll(".cell").forEach((c) => c.zoom(1.25)), "-": () => document.querySelectorAll(".cell").forEach((c) => c.zoom(0.8)),
  };
  const key = e.key.length === 1 ? e.key.toLowerCase() : e.key;
  if (/^[0-9]$/.test(key) && Number(key) <= state.entry.images.length) { state.only = key === "0" ? null : Number(key) - 1; views(); stage(); light(state.pinned); e.preventDefault(); return; }
  if (keys[key]) { keys[key](); e.preventDefault(); }
});
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("boxes").addEventListener("click", () => flip("boxes"));
$("truth").addEventListener("click", () => flip("truth"));
$("noheat").addEventListener("click", () => showHeat(null));
$("help").addEventListener("click", () => $("legend").showModal());
$("search").addEventListener("input", filter);
window.addEventListener("resize", () => { if (state.entry) { stage(); light(state.pinned); } });
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
let remembered = null;
try { remembered = localStorage.getItem("radscribe-theme"); } catch (error) { /* no storage: follow the system */ }
theme(remembered === "dark" || remembered === "light" ? remembered : matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark");
list();
const asked = (() => { try { return decodeURIComponent(location.hash.slice(1)); } catch (error) { return ""; } })();
if (index.length) open(Math.max(0, index.findIndex((s) => s.id === asked)));
