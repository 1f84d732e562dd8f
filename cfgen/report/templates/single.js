"use strict";
// Cuts slices from the packed layers. Without this script the page shows still slices.
(async () => {
  const all = (query) => [...document.querySelectorAll(query)];
  const one = (id) => document.getElementById(id);
  if (!window.DecompressionStream) return;

  const data = JSON.parse(one("data").textContent);
  const { shape, affine } = data;
  const layers = Object.fromEntries(data.layers.map((layer) => [layer.name, layer]));
  const strides = [1, shape[0], shape[0] * shape[1]];

  // base64 -> inflate -> running sum: see Layer.packed.
  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const levels = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let i = 1; i < levels.length; i++) levels[i] += levels[i - 1];
    return levels;
  }
  for (const script of all("[data-packed]")) {
    layers[script.dataset.packed].levels = await unpack(script.textContent);
  }

  // 256 colours of a palette, straight lines between its stops.
  const palettes = {};
  for (const [kind, stops] of Object.entries(data.stops)) {
    const rgb = stops.map((s) => [1, 3, 5].map((i) => parseInt(s.slice(i, i + 2), 16)));
    palettes[kind] = Array.from({ length: 256 }, (_, n) => {
      const at = (n / 255) * (rgb.length - 1), i = Math.min(Math.floor(at), rgb.length - 2);
      return rgb[i].map((v, k) => v + (at - i) * (rgb[i + 1][k] - v));
    });
  }

  const start = { cursor: [...data.start], brightness: 100, gain: 100, anatomy: 0 };
  const view = { ...start, cursor: [...start.cursor], swapped: false };

  const high = (layer) =>
    layer.shown * (layer.kind === "grey" ? 100 / view.brightness
      : layer.kind === "change" ? 100 / view.gain : 1);
  const valueOf = (layer, level) => layer.low + (level / 255) * (layer.high - layer.low);

  // The colour of every level in the present window, and how far from 0 it is.
  function table(layer) {
    const top = high(layer), low = layer.kind === "change" ? -top : layer.low;
    return Array.from({ length: 256 }, (_, level) => {
      const value = valueOf(layer, level);
      const at = Math.round(((value - low) / (top - low)) * 255);
      const colour = palettes[layer.kind][Math.min(Math.max(at, 0), 255)];
      return { colour, size: Math.min(Math.abs(value) / top, 1) };
    });
  }

  const format = (x) =>
    (Math.abs(x) >= 1000 ? x.toFixed(0) : Number(x.toPrecision(3)).toString()).replace("-", "−");

  const panels = all(".panel").map((element) => {
    const { layer, axis, across, up } = element.dataset;
    const canvas = document.createElement("canvas");
    const w = shape[across], h = shape[up];
    canvas.width = w;
    canvas.height = h;
    element.tabIndex = 0;
    element.append(canvas);
    const lines = ["v", "h"].map((name) => {
      const line = document.createElement("i");
      line.className = name;
      element.append(line);
      return line;
    });
    const context = canvas.getContext("2d");
    return { element, layer, lines, w, h, axis: +axis, across: +across, up: +up, context };
  });

  function draw() {
    const tables = {};
    for (const [name, layer] of Object.entries(layers)) tables[name] = table(layer);
    for (const panel of panels) drawPanel(panel, tables);
    for (const input of all("input[data-axis]")) input.value = view.cursor[input.dataset.axis];
    for (const out of all("[data-slice]")) {
      const axis = +out.dataset.slice;
      out.textContent = `slice ${view.cursor[axis] + 1} of ${shape[axis]}`;
    }
    for (const legend of all("[data-legend]")) {
      const layer = layers[legend.dataset.legend], top = high(layer), plus = layer.kind === "change";
      legend.querySelector("[data-high]").textContent = (plus ? "+" : "") + format(top);
      if (plus) legend.querySelector("[data-low]").textContent = format(-top);
    }
    readOut();
  }

  function drawPanel(panel, tables) {
    const { w, h, axis, across, up } = panel;
    const name = panel.layer === "counterfactual" && view.swapped ? "factual" : panel.layer;
    const levels = layers[name].levels, colours = tables[name];
    const under = layers[name].kind === "change" ? view.anatomy / 100 : 0;
    const picture = panel.context.createImageData(w, h), pixels = picture.data;
    const base = view.cursor[axis] * strides[axis];
    for (let row = 0, p = 0; row < h; row++) {
      for (let column = 0; column < w; column++, p += 4) {
        const i = base + column * strides[across] + (h - 1 - row) * strides[up];
        const { colour, size } = colours[levels[i]];
        for (let k = 0; k < 3; k++) {
          let shade = colour[k];
          if (under) {
            const grey = tables.factual[layers.factual.levels[i]].colour[k];
            shade += under * (1 - size) * (grey - shade);
          }
          pixels[p + k] = shade;
        }
        pixels[p + 3] = 255;
      }
    }
    panel.context.putImageData(picture, 0, 0);
    panel.lines[0].style.left = `${((view.cursor[across] + 0.5) / w) * 100}%`;
    panel.lines[1].style.bottom = `${((view.cursor[up] + 0.5) / h) * 100}%`;
  }

  function readOut() {
    const [x, y, z] = view.cursor;
    const world = affine.slice(0, 3).map((r) => r[0] * x + r[1] * y + r[2] * z + r[3]);
    const i = x * strides[0] + y * strides[1] + z * strides[2];
    const parts = Object.values(layers).map(
      (layer) => `${layer.title} ${format(valueOf(layer, layer.levels[i]))}`
    );
    const place = world.map((v) => format(Math.round(v * 10) / 10)).join(", ");
    one("readout").textContent = `Cursor at ${place} mm (R, A, S): ${parts.join(" · ")}`;
  }

  const clamp = (axis, value) =>
    (view.cursor[axis] = Math.min(Math.max(Math.round(value), 0), shape[axis] - 1));

  for (const panel of panels) {
    const { element, axis, across, up, w, h } = panel;
    const point = (event) => {
      const box = element.getBoundingClientRect();
      clamp(across, ((event.clientX - box.left) / box.width) * w - 0.5);
      clamp(up, ((box.bottom - event.clientY) / box.height) * h - 0.5);
      draw();
    };
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      point(event);
    });
    element.addEventListener("pointermove", (event) => event.buttons && point(event));
    element.addEventListener("keydown", (event) => {
      const step = {
        ArrowLeft: [across, -1], ArrowRight: [across, 1], ArrowDown: [up, -1], ArrowUp: [up, 1],
        PageDown: [axis, -1], PageUp: [axis, 1],
      }[event.key];
      if (!step) return;
      event.preventDefault();
      clamp(step[0], view.cursor[step[0]] + step[1]);
      draw();
    });
  }
  for (const input of all("input[data-axis]")) {
    input.addEventListener("input", () => {
      clamp(+input.dataset.axis, +input.value);
      draw();
    });
  }
  for (const name of ["brightness", "gain", "anatomy"]) {
    one(name).addEventListener("input", (event) => {
      view[name] = +event.target.value;
      draw();
    });
  }
  one("lines").addEventListener("change", (event) =>
    one("viewer").classList.toggle("plain", !event.target.checked)
  );

  let timer = 0;
  const head = document.querySelector('[data-head="counterfactual"]');
  function flicker(on) {
    clearInterval(timer);
    one("flicker").setAttribute("aria-pressed", on);
    const show = (swapped) => {
      view.swapped = swapped;
      head.textContent = swapped ? "factual" : "counterfactual";
      draw();
    };
    show(on);
    if (on) timer = setInterval(() => show(!view.swapped), 600);
  }
  one("flicker").addEventListener("click", () =>
    flicker(one("flicker").getAttribute("aria-pressed") !== "true")
  );
  one("reset").addEventListener("click", () => {
    Object.assign(view, start, { cursor: [...start.cursor] });
    for (const name of ["brightness", "gain", "anatomy"]) one(name).value = start[name];
    one("lines").checked = true;
    one("viewer").classList.remove("plain");
    flicker(false);
  });
  one("copy").addEventListener("click", async () => {
    const range = document.createRange();
    range.selectNodeContents(one("methods"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    try {
      await navigator.clipboard.writeText(one("methods").textContent);
      one("copy").textContent = "Copied";
    } catch {
      one("copy").textContent = "Selected: copy it with Ctrl+C";
    }
  });

  document.documentElement.classList.add("live");
  draw();
})();
