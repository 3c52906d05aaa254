// Text from the data reaches the page through textContent alone, so nothing in it can become markup.
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const PART = "\ufffd"; // a token that holds some bytes of a character
const SVG = "http://www.w3.org/2000/svg";
const counted = (value) => value.toLocaleString("en");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  if (text !== undefined) made.textContent = text;
  return made;
}

// --- charts ----------------------------------------------------------------------------------------------------------

const TALLEST = 340; // pixels of a picture
const HEIGHT = 210, LEFT = 48, BOTTOM = 24, TOP = 18;

function ticks(most, wanted) {
  const rough = most / wanted, power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? 1;
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, index) => index * step);
}

function canvas(width) {
  return shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img" });
}

function axis(drawing, width, x, y, xs, ys) {
  ys.forEach((value) => drawing.append(
    shape("line", { class: "grid", x1: LEFT, x2: width, y1: y(value), y2: y(value) }),
    shape("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, counted(value)),
  ));
  xs.forEach((value) => drawing.append(shape("text", { x: x(value), y: HEIGHT - 6, "text-anchor": "middle" }, counted(value))));
}

function drawLengths(place) {
  const width = place.clientWidth, bins = content.lengths, limit = content.maxLength;
  const first = bins[0][0], end = bins.at(-1)[1] + 1;
  const isNear = limit < first + 1.6 * (end - first);
  const from = Math.max(0, Math.min(first, isNear ? limit : first)), to = Math.max(end, isNear ? limit + 1 : end, from + 12);
  const most = Math.max(...bins.map((bin) => bin[2]));
  const x = (value) => LEFT + ((width - LEFT - 8) * (value - from)) / (to - from);
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / most;
  const drawing = canvas(width);
  const steps = ticks(to - from, width / 90);
  const step = steps[1] ?? 1, start = Math.ceil(from / step) * step;
  axis(drawing, width, x, y, steps.map((value) => value + start).filter((value) => value < to), ticks(most, 4));
  bins.filter((bin) => bin[2]).forEach(([low, high, count]) => {
    const gap = x(high + 1) - x(low) > 4 ? 1 : 0;
    const bar = shape("rect", { class: low > limit ? "bin over" : "bin", x: x(low), y: y(count), width: Math.max(1, x(high + 1) - x(low) - gap), height: y(0) - y(count) });
    bar.append(shape("title", {}, `${low === high ? counted(low) : `${counted(low)} to ${counted(high)}`} tokens: ${counted(count)} examples`));
    drawing.append(bar);
  });
  const label = `max_length ${counted(limit)}`;
  if (isNear) {
    const right = x(limit) > width / 2;
    drawing.append(
      shape("line", { class: "limit", x1: x(limit), x2: x(limit), y1: 4, y2: y(0) }),
      shape("text", { class: "limit-text", x: x(limit) + (right ? -5 : 5), y: 12, "text-anchor": right ? "end" : "start" }, label),
    );
  } else drawing.append(shape("text", { class: "limit-text", x: width, y: 12, "text-anchor": "end" }, `${label} →`));
  place.replaceChildren(drawing);
}

function drawSizes(place) {
  const width = place.clientWidth, sizes = content.sizes;
  const [widest, highest, most] = [0, 1, 2].map((index) => Math.max(...sizes.map((size) => size[index])));
  const x = (value) => LEFT + ((width - LEFT - 16) * value) / widest;
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / highest;
  const drawing = canvas(width);
  axis(drawing, width, x, y, ticks(widest, width / 90), ticks(highest, 4));
  sizes.forEach(([across, down, count]) => {
    const dot = shape("circle", { class: "dot", cx: x(across), cy: y(down), r: 3 + 6 * Math.sqrt((count - 1) / Math.max(1, most - 1)) });
    dot.append(shape("title", {}, `${counted(across)} × ${counted(down)} px: ${counted(count)}`));
    drawing.append(dot);
  });
  drawing.append(shape("text", { x: width, y: y(0) - 5, "text-anchor": "end" }, "width"), shape("text", { x: LEFT + 5, y: 10 }, "height"));
  place.replaceChildren(drawing);
}

function drawCharts() {
  drawLengths($("#lengths .chart"));
  if (content.sizes.length > 1) drawSizes($("#sizes .chart"));
}

// --- tables ----------------------------------------------------------------------------------------------------------

function fillTable(section, headings, rows) {
  const cell = (tag) => (value, index) => element(tag, { textContent: typeof value === "number" ? counted(value) : value, className: typeof rows[0][index] === "number" ? "" : "text long" });
  $("table", section).replaceChildren(
    element("thead", {}, element("tr", {}, ...headings.map(cell("th")))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell("td"))))),
  );
}

// --- rows of a batch -------------------------------------------------------------------------------------------------

// A line break is shown before it breaks the line, and a space that is a token of its own as a dot.
function visible(text) {
  if (text === PART) return [element("span", { className: "space", textContent: PART })];
  if (text.trim() === "" && !text.includes("\n")) return [element("span", { className: "space", textContent: "·".repeat(text.length) })];
  return text.split("\n").flatMap((part, index) => (index ? [element("span", { className: "space", textContent: "↵" }), "\n", part] : [part]));
}

function token([id, text, kind, count]) {
  const made = element("span", { className: `token ${kind}` }, ...visible(text));
  if (count > 1) made.append(` × ${counted(count)}`);
  made.told = `${kind}: ${text === PART ? "a part of a character" : JSON.stringify(text)}, id ${id}${count > 1 ? `, ${counted(count)} times` : ""}`;
  return made;
}

function plain(card) {
  const words = ([, text, kind, count]) => (kind === "padding" || text === PART ? "" : count > 1 ? `${text} × ${count} ` : text);
  return card.segments.map((segment) => (segment.title && card.segments.length > 1 ? `[${segment.title}]\n` : "") + segment.pieces.map(words).join("")).join("\n");
}

function pictures(medium) {
  const many = medium.pictures.length > 1;
  return element("div", { className: "medium" },
    element("div", { className: "pictures" }, ...medium.pictures.map(([source, caption]) => {
      const image = element("img", { src: source, alt: `${medium.title} ${caption}` });
      image.onload = () => {
        image.classList.toggle("small", image.naturalWidth <= 96);
        const [most, least] = many ? [92, 60] : [300, 160];
        image.width = Math.min(most, Math.max(image.naturalWidth, least), Math.max(24, (TALLEST * image.naturalWidth) / image.naturalHeight));
      };
      return element("figure", {}, image, caption ? element("figcaption", { textContent: caption }) : null);
    })),
    element("p", { textContent: `${medium.title}: ${medium.about}` }),
  );
}

function question(asked) {
  const entries = [...asked.fields.filter(([, value]) => value), ["answer", asked.answer]];
  if (asked.accepted.length > 1) entries.push(["accepted", asked.accepted.join(", ")]);
  return element("dl", { className: "question" }, ...entries.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

function headed(card, segment) {
  const accepted = card.questions.find((asked) => asked.id === segment.title)?.accepted ?? [];
  return accepted.length > 1 ? `${segment.title} (accepted: ${accepted.join(", ")})` : segment.title;
}

function drawRow(card) {
  const chips = [["tokens", card.length], ...Object.entries(card.counts)].map(([kind, count]) => element("span", { textContent: `${counted(count)} ${kind}` }));
  const heading = element("header", {}, element("h3", { textContent: card.title }), element("div", { className: "chips" }, ...(card.problem ? [] : chips)));
  const made = element("article", { className: "row" }, heading);
  const fates = card.questions.filter((asked) => asked.fate).map((asked) => element("p", { className: "fate", textContent: card.questions.length > 1 ? `${asked.id}: ${asked.fate}` : asked.fate }));
  if (card.problem) {
    made.append(element("p", { className: "problem-text", textContent: card.problem }));
    return made;
  }
  const segments = card.segments.flatMap((segment) => [
    card.segments.length > 1 ? element("div", { className: "segment", textContent: headed(card, segment) }) : null,
    element("div", { className: "tokens" }, ...segment.pieces.map(token)),
  ]);
  const text = element("div", { className: card.media.length ? "" : "bare" },
    ...fates,
    card.questions.length === 1 ? question(card.questions[0]) : null,
    card.packing ? element("p", { className: "hint", textContent: card.packing }) : null,
    ...segments,
    element("details", {}, element("summary", { textContent: "as plain text" }), element("pre", { textContent: plain(card) })),
  );
  if (card.media.length) made.append(element("div", {}, ...card.media.map(pictures)));
  made.append(text);
  return made;
}

// --- the page --------------------------------------------------------------------------------------------------------

function tell(chosen) {
  const tip = $("#tip");
  document.querySelectorAll(".token.chosen").forEach((other) => other.classList.remove("chosen"));
  tip.hidden = !chosen?.told;
  if (tip.hidden) return;
  chosen.classList.add("chosen");
  tip.textContent = chosen.told;
  const box = chosen.getClientRects()[0], above = box.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${above > 60 ? above : box.bottom + 6}px`;
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

function start() {
  $(".numbers").append(...content.numbers.map(([name, number, about]) => element("div", { className: name === "too long" && number !== "0" ? "warn" : "" },
    element("dt", { textContent: name }), element("dd", {}, number, element("small", { textContent: about })))));
  $("#sizes").hidden = content.sizes.length < 2;
  $("#sizes figcaption").textContent = content.sizesText;
  $(".notes").append(...[content.sharing, content.worst.length ? "" : content.policy, $("#sizes").hidden ? content.sizesText : ""].filter(Boolean).map((text) => element("p", { textContent: text })));
  $(".facts").append(...content.facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));

  $("#overlong").hidden = !content.worst.length;
  $("#overlong .hint").textContent = content.policy;
  if (content.worst.length) fillTable($("#overlong"), ["example", "tokens", "by media", "too many"], content.worst.map((row) => [...row, row[1] - content.maxLength]));

  $("#left").hidden = !content.leftOut;
  $("#left .hint").textContent = `${counted(content.leftOut)} ${content.leftOut === 1 ? "row of this split is" : "rows of this split are"} left out.`;
  $("#left ul").append(...content.errors.map((error) => element("li", { textContent: error })));
  if (content.leftOut > content.errors.length) $("#left ul").append(element("li", { textContent: "…" }));
  $("#rows .hint").prepend(content.choice, " ");

  $(".rows").append(...content.cards.map(drawRow));
  $("nav").append(...[...document.querySelectorAll("section:not([hidden])")].map((section) => element("a", { href: `#${section.id}`, textContent: section.dataset.title })));

  document.addEventListener("pointerover", (event) => tell(event.target.closest(".tokens .token")));
  document.addEventListener("click", (event) => tell(event.target.closest(".tokens .token")));
  document.addEventListener("scroll", () => tell(null), { capture: true, passive: true });
  addEventListener("resize", drawCharts);
  drawCharts();

  $("#theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.onchange = () => setTheme(system.matches);
  setTheme(system.matches);
}

start();
