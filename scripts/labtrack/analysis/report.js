"use strict";
// Everything is readable without this: it sorts and filters tables, and says values under the pointer.
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  const filter = document.createElement("input");
  filter.type = "search";
  filter.className = "filter";
  filter.placeholder = "Filter these rows";
  filter.setAttribute("aria-label", filter.placeholder);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  if (body.rows.length > 10) table.closest(".scroll").before(filter);
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[at].dataset.v ?? row.cells[at].textContent;
      const rows = [...body.rows].map((row) => [key(row), row]);
      const number = head.classList.contains("number");
      const missing = (text) => (number ? Number.isNaN(Number(text)) || text === "" : text === "-" || text === "");
      const order = (a, b) => (number ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
      rows.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : down ? order(b, a) : order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
const svg = (name, attributes, parent) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
};
for (const chart of document.querySelectorAll("svg[data-x0]")) {
  const box = Object.fromEntries(Object.entries(chart.dataset).map(([key, value]) => [key, Number(value)]));
  const readout = chart.querySelector(".readout");
  const lines = [...chart.querySelectorAll(".g")].reverse().map((group) => {
    const mean = group.querySelector(".mean");
    const points = mean ? mean.getAttribute("d").slice(1).split(/[LM]/).map((pair) => pair.split(" ").map(Number)) : [];
    return { points, kind: group.classList[2] };
  });
  chart.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    readout.replaceChildren();
    if (place.x < box.left || place.x > box.right) return;
    svg("path", { d: `M${place.x} ${box.top}V${box.bottom}` }, readout);
    const x = box.x0 + ((place.x - box.left) / (box.right - box.left)) * (box.x1 - box.x0);
    const right = place.x > (box.left + box.right) / 2;
    const say = (text, at, kind) => {
      const made = svg("text", { x: place.x + (right ? -8 : 8), y: box.top + 10 + 14 * at, class: kind ?? "" }, readout);
      if (right) made.style.textAnchor = "end";
      if (kind) made.style.fill = "currentColor";
      made.textContent = text;
    };
    say(Number(x.toPrecision(4)), 0);
    lines.forEach(({ points, kind }, at) => {
      const near = points.reduce((a, b) => (Math.abs(b[0] - place.x) < Math.abs(a[0] - place.x) ? b : a), [Infinity, 0]);
      if (Math.abs(near[0] - place.x) > 12) return;
      const share = (box.bottom - near[1]) / (box.bottom - box.top);
      const value = box.y0 + share * (box.y1 - box.y0);
      say(Number((box.log ? 10 ** value : value).toPrecision(4)), at + 1, kind);
    });
  });
  chart.addEventListener("pointerleave", () => readout.replaceChildren());
}
