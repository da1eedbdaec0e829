// The Explorer's page: controls in, a drawing, a sentence and a table out. Loaded below them.
"use strict";

(function () {
  const { prepare, explore, matching, describe } = globalThis.hessinitExplorer;
  const data = prepare(globalThis.hessinitExplorerData);
  const root = document.getElementById("explorer");
  const form = root.querySelector("form");
  const control = (name) => document.getElementById(`ex-${name}`);
  const WORDS = { vanishing: "vanish", balanced: "are balanced", exploding: "explode" };

  // Numbers for readers: 0.032, 12.5, 4.1e-9 as 4.1 × 10⁻⁹.
  function digits(x) {
    if (!Number.isFinite(x) || (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e4))) {
      return power(Math.log10(Math.abs(x)));
    }
    return String(Number(x.toPrecision(3)));
  }
  function power(log10) {
    let exponent = Math.floor(log10);
    let mantissa = 10 ** (log10 - exponent);
    if (mantissa >= 9.995) [mantissa, exponent] = [1, exponent + 1];
    return `${mantissa.toFixed(1)} × 10${superscript(exponent)}`;
  }
  const superscript = (n) => String(n).replace(/./g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d] ?? "⁻");
  const norm = (log) => (Math.abs(log) < 6.9 ? digits(Math.exp(log)) : power(log / Math.LN10));

  for (const [name, table] of Object.entries(data.activations)) {
    control("activation").add(new Option(table.label, name));
  }
  data.measured.forEach((found, i) => control("measured").add(new Option(found.label, i)));

  // The steps of the width: doublings, and what was measured.
  const doublings = [8, 16, 32, 64, 128, 256, 512, 1024, 2048];
  const widths = [...new Set([...doublings, ...data.measured.map((found) => found.width)])];
  widths.sort((a, b) => a - b);
  control("width").max = widths.length - 1;
  control("width").defaultValue = widths.indexOf(512);

  // What the controls say. Deviations are powers of ten.
  function read() {
    const number = (name) => Number(control(name).value);
    return {
      depth: number("depth"),
      width: widths[number("width")],
      activation: control("activation").value,
      dropout: number("dropout"),
      batch: number("batch"),
      first: 10 ** number("first"),
      others: 10 ** number("others"),
      output: 10 ** number("output"),
    };
  }

  function write(network) {
    control("width").value = widths.indexOf(network.width);
    for (const name of ["first", "others", "output"]) {
      control(name).value = Math.log10(network[name]);
    }
    for (const name of ["depth", "activation", "dropout", "batch"]) {
      control(name).value = network[name];
    }
  }

  function label(network, layers) {
    const show = (name, text) => {
      root.querySelector(`output[for="ex-${name}"]`).textContent = text;
      control(name).setAttribute("aria-valuetext", text);
    };
    const times = (factor, std) => `${digits(factor)} × critical = ${digits(std)}`;
    show("depth", `${network.depth} layers`);
    show("width", `${network.width} units`);
    show("first", times(network.first, layers[0].std));
    const last = layers[network.depth - 1].std / network.output;
    show("others", times(network.others, network.depth > 2 ? layers[1].std : last));
    show("output", `× ${digits(network.output)}`);
    show("dropout", `${Math.round(100 * network.dropout)} %`);
  }

  // "Layers 1 to 3 vanish; layer 4 is balanced."
  function sentence(layers) {
    const runs = [];
    for (const { layer, regime } of layers) {
      const last = runs[runs.length - 1];
      if (last && last.regime === regime) last.to = layer;
      else runs.push({ regime, from: layer, to: layer });
    }
    const said = runs.map(({ regime, from, to }) => {
      if (from === to) return `layer ${from} ${{ vanishing: "vanishes", balanced: "is balanced", exploding: "explodes" }[regime]}`;
      const which = runs.length === 1 ? "all layers" : `layers ${from} to ${to}`;
      return `${which} ${WORDS[regime]}`;
    });
    const text = said.join("; ");
    return `${text[0].toUpperCase()}${text.slice(1)}.`;
  }

  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = (sorted.length - 1) / 2;
    return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
  }

  function fillTable(layers, found) {
    const rows = layers.map((layer, k) => {
      const measured = found ? found.norms[k] : null;
      const row = document.createElement("tr");
      row.className = layer.regime;
      const cells = [
        layer.layer,
        digits(layer.std),
        norm(layer.norm),
        norm(layer.balanced),
        layer.regime,
        measured
          ? `${digits(median(measured))} (${digits(Math.min(...measured))} to ${digits(Math.max(...measured))})`
          : "none",
      ];
      cells.forEach((text, i) => {
        const cell = document.createElement(i ? "td" : "th");
        if (!i) cell.scope = "row";
        cell.textContent = text;
        row.append(cell);
      });
      return row;
    });
    control("table").tBodies[0].replaceChildren(...rows);
  }

  function element(name, attributes, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  // Drawn at the width that there is, so that letters are as large on a phone as on a desk.
  function draw(layers, found) {
    const svg = control("chart");
    const width = Math.max(svg.parentElement.clientWidth, 260);
    const height = Math.round(Math.min(420, Math.max(250, width * 0.5)));
    const [left, right, top, bottom] = [58, 14, 12, 46];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);

    const log = (x) => Math.log10(Math.max(x, 1e-300));
    const lines = {
      critical: layers.map((layer) => layer.balanced / Math.LN10),
      predicted: layers.map((layer) => layer.norm / Math.LN10),
    };
    const seen = [...lines.critical, ...lines.predicted];
    if (found) seen.push(...found.norms.flat().map(log));
    // At least four decades, so that noise does not look like a trend.
    let low = Math.floor(Math.min(...seen) - 0.2);
    let high = Math.ceil(Math.max(...seen) + 0.2);
    while (high - low < 4) [low, high] = high + low < -1 ? [low, high + 1] : [low - 1, high];
    const n = layers.length;
    const x = (k) => left + ((k - 0.5) / n) * (width - left - right);
    const y = (v) => top + ((high - v) / (high - low)) * (height - top - bottom);

    const parts = [];
    const every = Math.ceil((high - low) / 8);
    for (let v = Math.ceil(low / every) * every; v <= high; v += every) {
      parts.push(element("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }));
      parts.push(element("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, `10${superscript(v)}`));
    }
    const step = Math.ceil(n / Math.max(2, Math.floor((width - left) / 42)));
    for (let k = 1; k <= n; k += step) {
      parts.push(element("text", { x: x(k), y: height - bottom + 18, "text-anchor": "middle" }, k));
    }
    const middle = (top + height - bottom) / 2;
    parts.push(element("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "layer k"));
    parts.push(
      element(
        "text",
        { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` },
        "Frobenius norm of its Hessian",
      ),
    );
    for (const [name, values] of Object.entries(lines)) {
      const points = values.map((v, k) => `${x(k + 1)},${y(v)}`).join(" ");
      parts.push(element("polyline", { class: name, points }));
      if (name === "predicted") {
        values.forEach((v, k) => parts.push(element("circle", { class: name, cx: x(k + 1), cy: y(v), r: 3.5 })));
      }
    }
    if (found) {
      found.norms.forEach((norms, k) => {
        const [a, b, m] = [Math.min(...norms), Math.max(...norms), median(norms)].map((v) => y(log(v)));
        parts.push(element("line", { class: "measured", x1: x(k + 1), x2: x(k + 1), y1: a, y2: b }));
        parts.push(element("rect", { class: "measured", x: x(k + 1) - 4.5, y: m - 4.5, width: 9, height: 9 }));
      });
    }
    svg.replaceChildren(...parts);
  }

  function update() {
    const network = read();
    const layers = explore(data, network);
    const found = matching(data, network);
    control("measured").value = found ? data.measured.indexOf(found) : "";
    label(network, layers);
    control("summary").textContent =
      sentence(layers) + (found ? ` Measured: ${found.norms[0].length} seeds of ${found.experiment}.` : "");
    control("key-measured").hidden = !found;
    fillTable(layers, found);
    draw(layers, found);
  }

  form.addEventListener("input", ({ target }) => {
    if (target === control("measured") && target.value !== "") {
      write(describe(data, data.measured[target.value]));
    }
    update();
  });
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  new ResizeObserver(update).observe(root);
  update();
})();
