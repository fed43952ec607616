// Maps of heads: see head_maps.py for what comes in. One `HeadMaps` for each section of a page.
{
const MOST_ROWS = 24, MOST_TICKS = 32, WIDTH = 560;

const bytes = text => {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out.buffer;
};
const element = (tag, className, text = "") => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
};
const button = (className, text, onClick) => {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
};
// plotly reads <b> and &lt; as markup.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
// A word written from right to left must not carry the numbers beside it along.
const isolated = text => `\u2068${text}\u2069`;
const short = (text, most) => {
  const letters = [...text];
  return letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text;
};
const digits = value => value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential(3)
  : String(Number(value.toPrecision(6)));

// 256 colours of a theme's scale, as [red, green, blue].
const ramp = stops => Array.from({length: 256}, (_, i) => {
  const at = i / 255, next = Math.max(1, stops.findIndex(([place]) => place >= at));
  const [[low, a], [high, b]] = [stops[next - 1], stops[next]];
  return [1, 3, 5].map(j => {
    const [from, to] = [a, b].map(colour => parseInt(colour.slice(j, j + 2), 16));
    return Math.round(from + (to - from) * (at - low) / (high - low));
  });
});

class Kind {
  constructor(packed, nHeads, nTokens, block) {
    Object.assign(this, packed, {nTokens, block});
    this.cells = new Float32Array(bytes(packed.values));
    this.perHead = this.cells.length / nHeads;
    if (block > 1) {
      this.linkKeys = new Int32Array(bytes(packed.linkKeys));
      this.linkValues = new Float32Array(bytes(packed.linkValues));
    }
  }
  // The cell in a row and column, of tokens or of blocks; NaN where there is none.
  cell(head, row, column) {
    if (this.causal && column > row) return NaN;
    const place = this.causal ? row * (row + 1) / 2 + column : row * this.side + column;
    return this.cells[head * this.perHead + place];
  }
  // Exact numbers of a query: [[key, value], ...], all of them or the strongest.
  keys(head, query) {
    if (this.block === 1) {
      const last = this.causal ? query + 1 : this.nTokens;
      return Array.from({length: last}, (_, key) => [key, this.cell(head, query, key)]);
    }
    const from = (head * this.nTokens + query) * this.nLinks;
    return Array.from({length: this.nLinks}, (_, i) => [this.linkKeys[from + i],
      this.linkValues[from + i]]).filter(([key]) => !this.causal || key <= query);
  }
  // Exact numbers of a key: [[query, value], ...].
  queries(head, key) {
    const first = this.causal ? key : 0;
    return Array.from({length: this.nTokens - first}, (_, i) => [first + i,
      this.cell(head, first + i, key)]);
  }
  fullColour(head) {
    if (this.limit !== null) return this.limit;
    let most = 0;
    for (let i = head * this.perHead; i < (head + 1) * this.perHead; i++)
      most = Math.max(most, Math.abs(this.cells[i]));
    return most || 1;
  }
}

class HeadMaps {
  constructor(section, index) {
    this.section = section;
    const spec = JSON.parse(document.getElementById(section.dataset.spec).textContent);
    Object.assign(this, spec);
    this.names = spec.heads.map(([layer, head]) => `${layer}.${head}`);
    this.kinds = spec.kinds.map(kind =>
      new Kind(kind, spec.heads.length, spec.tokens.length, spec.block));
    this.kind = this.kinds[0];
    this.head = spec.chosen;
    this.build();
  }

  build() {
    const maps = element("div", "maps");
    const choose = element("div", "buttons");
    this.kindButtons = this.kinds.map(kind => button("", kind.name, () => {
      this.kind = kind;
      this.drawAll();
    }));
    if (this.kinds.length > 1) choose.append(...this.kindButtons);
    this.explanation = element("p", "explanation");
    maps.append(this.buildGrid(), this.buildLarge());
    this.stripTitle = element("h3", "");
    // Pooled maps have the strongest keys of a query, not the strongest queries of a key.
    this.looking = true;
    this.turn = button("", "", () => {
      this.looking = !this.looking;
      this.drawQuery(this.query);
    });
    this.turn.hidden = this.block > 1;
    this.strip = element("p", "tokens attended");
    this.tokenButtons = this.tokens.map((token, place) => {
      const made = button("token", token || "∅", () => this.choose(place));
      made.title = `position ${this.positions[place]}: ${token}`;
      made.addEventListener("pointerenter", () => this.drawQuery(place));
      return made;
    });
    this.strip.append(...this.tokenButtons);
    this.strip.addEventListener("pointerleave", () => this.drawQuery(this.query));
    this.table = element("div", "scroll");
    this.section.append(choose, this.explanation, maps, this.stripTitle, this.turn, this.strip,
      this.table);
    if ("sideBySide" in this.section.dataset) this.section.append(this.buildLayer());
  }

  buildGrid() {
    const layers = [...new Set(this.heads.map(([layer]) => layer))].sort((a, b) => a - b);
    const columns = [...new Set(this.heads.map(([, head]) => head))].sort((a, b) => a - b);
    this.size = Math.min(84, Math.max(20, Math.floor(WIDTH / columns.length) - 4));
    const grid = element("div", "grid");
    grid.style.gridTemplateColumns = `auto repeat(${columns.length}, ${this.size + 2}px)`;
    const label = (text, row, column) => {
      const made = element("span", "", text);
      made.style.gridRow = row;
      made.style.gridColumn = column;
      grid.append(made);
    };
    columns.forEach((head, i) => label(head, 1, i + 2));
    layers.forEach((layer, i) => label(`layer ${layer}`, i + 2, 1));
    label("head", 1, 1);
    this.thumbs = this.heads.map(([layer, head], i) => {
      const made = button("thumb", "", () => this.open(i));
      made.style.gridRow = layers.indexOf(layer) + 2;
      made.style.gridColumn = columns.indexOf(head) + 2;
      made.title = `head ${this.names[i]}${this.notes[i] && `: ${this.notes[i]}`}`;
      made.setAttribute("aria-label", `head ${this.names[i]}`);
      made.dataset.head = this.names[i];
      const canvas = document.createElement("canvas");
      canvas.style.width = canvas.style.height = `${this.size}px`;
      made.append(canvas);
      grid.append(made);
      return made;
    });
    return grid;
  }

  buildLarge() {
    const large = element("div", "large");
    this.title = element("h3", "");
    this.note = element("p", "note");
    this.plot = element("div", "map");
    this.plot.setAttribute("role", "img");
    this.download = button("", "CSV of this head", () => this.save());
    this.download.hidden = this.block > 1;
    // Titles of the axes would stand in the way of long tokens.
    const axes = element("p", "note", "Rows are queries, columns the keys they look at.");
    large.append(this.title, this.note, this.plot, axes, this.download);
    return large;
  }

  // The heads of a layer, drawn by circuitsvis while somebody looks: it takes a second.
  buildLayer() {
    this.layer = element("details", "layer");
    this.layerTitle = element("summary", "");
    this.layerView = element("div", "");
    this.layer.append(this.layerTitle, this.layerView);
    this.layer.addEventListener("toggle", () => this.drawLayer());
    return this.layer;
  }

  open(head) {
    this.head = head;
    this.drawLarge();
    this.drawLayer();
    this.drawQuery(this.query);
  }
  choose(query) {
    this.query = query;
    this.markRow();
    this.drawQuery(query);
  }

  theme(name) {
    this.template = THEMES[name];
    const {sequential, diverging} = this.template.layout.colorscale;
    this.ramps = {sequential: ramp(sequential), diverging: ramp(diverging)};
    this.drawAll();
  }
  colour(value, most) {
    const share = Math.max(-1, Math.min(1, value / most));
    return this.kind.signed ? this.ramps.diverging[Math.round((share + 1) * 127.5)]
      : this.ramps.sequential[Math.round(Math.max(0, share) * 255)];
  }

  drawAll() {
    for (const [i, made] of this.kindButtons.entries())
      made.setAttribute("aria-pressed", this.kinds[i] === this.kind);
    this.explanation.textContent = this.kind.explanation;
    this.thumbs.forEach((thumb, head) => this.drawSmall(thumb.firstChild, head));
    this.drawLarge();
    this.drawLayer();
    this.drawQuery(this.query);
  }

  drawLayer() {
    if (!this.layer) return;
    const {kind} = this, chosen = this.heads[this.head][0];
    const title = `Heads of layer ${chosen} side by side: ${kind.name}`;
    this.layerTitle.textContent = title;
    if (!this.layer.open) return;
    if (this.layerShown === title) {
      chooseHead(this.layerView, this.names[this.head]);
      return;
    }
    this.layerShown = title;
    const heads = [...this.heads.keys()].filter(head => this.heads[head][0] === chosen);
    const [hover, most] = this.mostCells, cells = heads.length * kind.perHead;
    if (this.block > 1 || cells > most) {
      this.layerView.textContent = "Too many cells for this view: choose fewer heads or positions.";
      return;
    }
    const limit = Math.max(...heads.map(head => kind.fullColour(head))), n = this.tokens.length;
    mountView(this.layerView, "AttentionHeads", {
      ...kind.colours, minValue: -limit, maxValue: limit, maskUpperTri: false,
      tokens: this.tokens.map(token => isolated(short(token, 24))),
      attentionHeadNames: heads.map(head => this.names[head]),
      attention: heads.map(head => Array.from({length: n}, (_, query) =>
        Array.from({length: kind.causal ? query + 1 : n}, (_, key) => kind.cell(head, query, key)))),
    }, cells > hover, this.names[this.head]);
  }

  drawSmall(canvas, head) {
    // Pooled to the pixels there are, or single cells would be lost between them.
    const {side} = this.kind, step = Math.ceil(side / this.size), n = Math.ceil(side / step);
    const most = this.kind.fullColour(head), strongest = new Float32Array(n * n).fill(NaN);
    for (let row = 0; row < side; row++) {
      const end = this.kind.causal ? row + 1 : side;
      for (let column = 0; column < end; column++) {
        const place = Math.floor(row / step) * n + Math.floor(column / step);
        const value = this.kind.cell(head, row, column);
        if (!(Math.abs(strongest[place]) >= Math.abs(value))) strongest[place] = value;
      }
    }
    canvas.width = canvas.height = n;
    canvas.style.imageRendering = n * 2 > this.size ? "auto" : "pixelated";
    const context = canvas.getContext("2d"), image = context.createImageData(n, n);
    strongest.forEach((value, i) => {
      if (!Number.isNaN(value)) image.data.set([...this.colour(value, most), 255], 4 * i);
    });
    context.putImageData(image, 0, 0);
  }

  // Tokens of a row or column: one, or those of a block.
  span(index) {
    const first = index * this.block, last = Math.min(first + this.block, this.tokens.length) - 1;
    const name = place => `${this.positions[place]} ${isolated(this.tokens[place])}`;
    return first === last ? name(first) : `${name(first)} … ${name(last)}`;
  }

  drawLarge() {
    const {kind, head} = this, {side} = kind, most = kind.fullColour(head);
    this.thumbs.forEach((thumb, i) => thumb.setAttribute("aria-pressed", i === head));
    this.title.textContent = `Head ${this.names[head]}: ${kind.name}`;
    this.note.textContent = this.notes[head];
    this.download.textContent = `CSV of head ${this.names[head]}`;
    const spans = Array.from({length: side}, (_, i) => plain(short(this.span(i), 80)));
    const rows = [...Array(side).keys()], z = [], text = [];
    for (const row of rows) {
      z.push(rows.map(column => kind.cell(head, row, column)));
      text.push(z[row].map((value, column) => Number.isNaN(value) ? ""
        : `query ${spans[row]}<br>key ${spans[column]}<br><b>${digits(value)}</b>`
          + (this.block > 1 ? " at most" : "")));
    }
    const every = Math.ceil(side / MOST_TICKS), ticks = rows.filter(i => i % every === 0);
    const axis = {
      tickvals: ticks,
      ticktext: ticks.map(i => plain(isolated(short(this.tokens[i * this.block], 14)))),
      showgrid: false, constrain: "domain", range: [-0.5, side - 0.5],
      tickfont: {size: ticks.length > 20 ? 10 : 12},
    };
    const layout = {
      template: this.template, width: this.width(), height: this.width() - 30,
      margin: {l: 10, r: 0, t: 30, b: 10},
      xaxis: {...axis, tickangle: -60},
      yaxis: {...axis, range: [side - 0.5, -0.5], scaleanchor: "x"},
      shapes: this.row(),
    };
    const trace = {
      type: "heatmap", z, text, hoverinfo: "text", hovertemplate: "%{text}<extra></extra>",
      hoverongaps: false, zmin: kind.signed ? -most : 0, zmax: most,
      xgap: side > 60 ? 0 : 1, ygap: side > 60 ? 0 : 1, colorbar: {thickness: 10, len: 0.6},
    };
    this.plot.setAttribute("aria-label", `${kind.name} of head ${this.names[head]}`);
    Plotly.react(this.plot, [trace], layout, {...CONFIG, responsive: false});
    if (this.listens) return;
    this.listens = true;
    this.plot.on("plotly_click", ({points: [point]}) => this.choose(point.y * this.block));
  }
  width() {
    return Math.max(300, Math.min(610, this.section.clientWidth - 20));
  }
  row() {
    const at = Math.floor(this.query / this.block);
    return [{type: "rect", x0: -0.5, x1: this.kind.side - 0.5, y0: at - 0.5, y1: at + 0.5,
      line: {width: 1.5, color: this.template.layout.font.color}}];
  }
  markRow() {
    Plotly.relayout(this.plot, {shapes: this.row()});
  }

  // What a token attends to, or what attends to it: the tokens coloured, and a table.
  drawQuery(place) {
    const {kind, head, looking} = this, most = kind.fullColour(head);
    const values = new Map(looking ? kind.keys(head, place) : kind.queries(head, place));
    const name = `${isolated(short(this.tokens[place], 30))} (position ${this.positions[place]})`;
    const where = `in head ${this.names[head]}`;
    this.stripTitle.textContent = looking ? `What ${name} attends to ${where}`
      : `What attends to ${name} ${where}`;
    this.turn.textContent = looking ? "what attends to it" : "what it attends to";
    this.tokenButtons.forEach((made, other) => {
      const value = values.get(other);
      const [red, green, blue] = value === undefined ? [] : this.colour(value, most);
      made.classList.toggle("query", other === place);
      made.classList.toggle("blank", value === undefined);
      made.style.background = value === undefined ? "" : `rgb(${red},${green},${blue})`;
      made.style.color = value === undefined ? ""
        : 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "#000" : "#fff";
    });
    this.drawTable(place, values);
  }

  drawTable(place, values) {
    const size = other => Math.abs(values.get(other) ?? 0), exact = this.block === 1;
    // Tokens that this kind has no number for are there when another kind has one.
    const some = exact && !this.kinds.every(kind => kind.causal);
    let others = some ? [...this.tokens.keys()] : [...values.keys()];
    const all = others.length, few = exact && all <= MOST_ROWS;
    if (!few) others = others.sort((a, b) => size(b) - size(a)).slice(0, MOST_ROWS);
    const kinds = exact ? this.kinds : [this.kind];
    const table = document.createElement("table"), header = table.createTHead().insertRow();
    for (const name of [this.looking ? "key" : "query", "token", ...kinds.map(kind => kind.name)])
      header.append(element("th", "", name));
    const body = table.createTBody();
    for (const other of others) {
      const row = body.insertRow(), [query, key] = this.looking ? [place, other] : [other, place];
      row.insertCell().textContent = this.positions[other];
      row.insertCell().textContent = isolated(short(this.tokens[other], 40));
      for (const kind of kinds) {
        const value = exact ? kind.cell(this.head, query, key) : values.get(other);
        const cell = row.insertCell();
        cell.className = "number";
        cell.textContent = Number.isNaN(value) ? "masked" : digits(value);
      }
    }
    const note = few ? "" : `The ${others.length} strongest of ${exact ? all : place + 1}, by `
      + `${this.kind.name}.`;
    this.table.replaceChildren(element("p", "note", note), table);
  }

  save() {
    const [layer, head] = this.heads[this.head], tokens = Object.entries(this.tokenColumns);
    const quoted = text => `"${text.replaceAll('"', '""')}"`;
    const side = axis => [axis, ...tokens.map(([prefix]) => `${prefix}${axis}_token`)];
    const place = at => [this.positions[at], ...tokens.map(([, texts]) => quoted(texts[at]))];
    const columns = ["layer", "head", ...side("query"), ...side("key"),
      ...this.kinds.map(kind => kind.column)];
    const lines = [columns.map(quoted).join(",")];
    for (const query of this.tokens.keys()) for (const key of this.tokens.keys()) {
      const numbers = this.kinds.map(kind => kind.cell(this.head, query, key));
      if (numbers.every(Number.isNaN)) continue;
      lines.push([layer, head, ...place(query), ...place(key),
        ...numbers.map(n => Number.isNaN(n) ? "" : n)].join(","));
    }
    handOver(new Blob([lines.join("\n"), "\n"], {type: "text/csv"}), `head_${layer}.${head}.csv`);
  }
}

let found;
addEventListener("theme", ({detail}) => {
  found ??= [...document.querySelectorAll(".head-maps")].map(section => new HeadMaps(section));
  for (const maps of found) maps.theme(detail);
});
// Whatever has `data-open` opens that head in maps under the same heading, the next, or the last.
const openHead = (from, name) => {
  const follows = (node, other) =>
    node.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING;
  const heading = node =>
    [...document.querySelectorAll("h2")].filter(h2 => follows(h2, node)).at(-1);
  const maps = found.find(({section}) => heading(section) === heading(from))
    ?? found.find(({section}) => follows(from, section)) ?? found.at(-1);
  const head = maps ? maps.names.indexOf(name) : -1;
  if (head < 0) return;
  maps.open(head);
  maps.section.scrollIntoView();
};
addEventListener("open-head", ({detail: {from, name}}) => openHead(from, name));
document.addEventListener("click", ({target}) => {
  const opener = target.closest("[data-open]");
  if (opener) openHead(opener, opener.dataset.open);
});
}
