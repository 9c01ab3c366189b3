"use strict";
(() => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  // Frames of a denoising: a slider, play and pause. Every picture of the card has one source per frame.
  for (const card of document.querySelectorAll("[data-player]")) {
    const pictures = [...card.querySelectorAll("img[data-frames]")].map((img) => [img, JSON.parse(img.dataset.frames)]);
    const notes = [...card.querySelectorAll("[data-notes]")].map((note) => [note, JSON.parse(note.dataset.notes)]);
    const slider = card.querySelector("input"), button = card.querySelector("button");
    const count = Number(slider.max) + 1;
    let timer = null, onScreen = false;
    const show = (index) => {
      for (const [img, frames] of pictures) img.src = frames[index];
      for (const [note, texts] of notes) note.textContent = texts[index];
      slider.value = index;
    };
    const pause = () => { clearTimeout(timer); timer = null; button.textContent = "▶ play"; };
    const tick = () => {
      if (!card.isConnected) return;
      const next = (Number(slider.value) + 1) % count;
      if (onScreen) show(next);
      timer = setTimeout(tick, next === count - 1 ? 2200 : 650);
    };
    const play = () => { button.textContent = "❚❚ pause"; timer = setTimeout(tick, 650); };
    slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
    button.addEventListener("click", () => (timer === null ? play() : pause()));
    new IntersectionObserver((entries) => { onScreen = entries[0].isIntersecting; }).observe(card);
    show(count - 1);
    if (!still) play(); else pause();
  }

  // Galleries: one sheet at a time, chosen by its thumbnail.
  for (const card of document.querySelectorAll("[data-gallery]")) {
    const sheets = [...card.querySelectorAll("[data-sheet]")], thumbs = [...card.querySelectorAll(".thumbs button")];
    const choose = (index) => {
      sheets.forEach((sheet, at) => { sheet.hidden = at !== index; });
      thumbs.forEach((thumb, at) => thumb.setAttribute("aria-pressed", String(at === index)));
    };
    thumbs.forEach((thumb, index) => thumb.addEventListener("click", () => choose(index)));
    choose(0);
  }

  // Point clouds: drag to turn, wheel or pinch to come nearer; drawn with a z-buffer into an ImageData.
  for (const card of document.querySelectorAll("[data-points]")) {
    const data = JSON.parse(card.querySelector("script[type='application/json']").textContent);
    const raw = new Int16Array(bytes(data.points).buffer), count = raw.length / 3, unit = data.unit;
    const colors = data.colors.map((one) => bytes(one.rgb)), view = data.view;
    const growth = data.growth ? bytes(data.growth) : null;
    const canvas = card.querySelector("canvas"), context = canvas.getContext("2d");
    let shown = 0, yaw = view.yaw, pitch = view.pitch, zoom = 1, pinch = 0, turning = !still, waiting = false;
    const pointers = new Map();

    const draw = () => {
      waiting = false;
      const width = (canvas.width = Math.max(64, Math.round(canvas.clientWidth))), height = (canvas.height = Math.round(width * view.aspect));
      const picture = context.createImageData(width, height), pixels = new Uint32Array(picture.data.buffer);
      pixels.fill(0xff0e0b0a);
      const nearest = new Float32Array(width * height).fill(Infinity);
      const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch);
      const focal = view.focal * height * zoom, rgb = colors[shown];
      for (let i = 0, j = 0; i < count; i++, j += 3) {
        const x = raw[j] * unit, y = raw[j + 1] * unit, z = raw[j + 2] * unit;
        const side = cy * x + sy * z, ahead = cy * z - sy * x;
        const up = cp * y - sp * ahead, depth = sp * y + cp * ahead + view.reach;
        if (depth < 0.08) continue;
        const scale = focal / depth, px = (width / 2 + scale * (side + view.right)) | 0, py = (height / 2 + scale * (up + view.down)) | 0;
        const grown = (1.15 * scale * Math.max(z + data.eye, 0)) / data.focal * (growth ? growth[i] / 50 : 1);
        const reachPx = Math.min(14, Math.max(1, Math.ceil(grown))), left = px - (reachPx >> 1), top = py - (reachPx >> 1);
        const color = 0xff000000 | (rgb[j + 2] << 16) | (rgb[j + 1] << 8) | rgb[j];
        for (let v = top; v < top + reachPx; v++) {
          if (v < 0 || v >= height) continue;
          for (let u = left; u < left + reachPx; u++) {
            if (u < 0 || u >= width || nearest[v * width + u] <= depth) continue;
            nearest[v * width + u] = depth;
            pixels[v * width + u] = color;
          }
        }
      }
      context.putImageData(picture, 0, 0);
    };
    const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
    const stop = () => { turning = false; };
    canvas.addEventListener("pointerdown", (event) => { stop(); pointers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      pointers.set(event.pointerId, event);
      if (pointers.size === 1) {
        yaw -= (event.clientX - before.clientX) * 0.007;
        pitch = Math.min(1.5, Math.max(-1.5, pitch + (event.clientY - before.clientY) * 0.007));
      } else {
        const [a, b] = [...pointers.values()], apart = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
        if (pinch) zoom = Math.min(12, Math.max(0.3, zoom * (apart / pinch)));
        pinch = apart;
      }
      redraw();
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => { pointers.delete(event.pointerId); pinch = 0; });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault(); stop();
      zoom = Math.min(12, Math.max(0.3, zoom * Math.exp(-event.deltaY * 0.0012)));
      redraw();
    }, { passive: false });
    const buttons = [...card.querySelectorAll("button")];
    buttons.forEach((button, index) => button.addEventListener("click", () => {
      shown = index;
      buttons.forEach((other, at) => other.setAttribute("aria-pressed", String(at === index)));
      redraw();
    }));
    let onScreen = false, began = null;
    const sway = (now) => {
      if (!turning || !onScreen) { began = null; return; }
      began = began ?? now;
      yaw = view.yaw * Math.cos((now - began) / 2600);
      draw();
      requestAnimationFrame(sway);
    };
    new IntersectionObserver((entries) => {
      onScreen = entries[0].isIntersecting;
      if (onScreen && turning) requestAnimationFrame(sway);
    }).observe(canvas);
    new ResizeObserver(redraw).observe(canvas);
    redraw();
  }
})();
