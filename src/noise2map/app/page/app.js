"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  let camera = null; // a stream that runs: the page stops it wherever it is no longer seen
  const state = { tab: null, image: null, cover: null, place: 0, running: null, result: null, fov: 60, limits: {}, models: {} };
  const MARK = { "X-Noise2map": "1" };

  const say = (text, error = false) => { $("status").textContent = text; $("status").classList.toggle("error", error); if (error) $("foot").scrollIntoView({ block: "nearest" }); };
  const node = (name, fields = {}, ...children) => {
    const made = Object.assign(document.createElement(name), fields);
    made.append(...children);
    return made;
  };
  const answer = async (response) => {
    const value = await response.json().catch(() => ({ error: "The server gave no answer." }));
    if (!response.ok) throw new Error(value.error || "The server refused.");
    return value;
  };

  // ---- dials -----------------------------------------------------------------------------------------------------------
  const range = (name, title, min, max, value, step = 1) => {
    const shown = node("output", { value: String(value) });
    const input = node("input", { type: "range", name, min, max, step, value });
    input.addEventListener("input", () => { shown.value = input.value; });
    return node("label", {}, node("span", { textContent: title }), input, shown);
  };
  const select = (name, title, pairs) => {
    const input = node("select", { name });
    for (const [value, text] of pairs) input.append(node("option", { value, textContent: text }));
    return node("label", {}, node("span", { textContent: title }), input);
  };
  const seed = () => node("label", {}, node("span", { textContent: "seed" }), node("input", { type: "number", name: "seed", value: 0, min: 0, max: 2147483647 }));

  const own = ["", "the model's own"];
  const drawDials = (chosen) => {
    const form = $("dials"), tab = state.tab, models = tab.models.map((one) => [one.name, one.name]);
    const model = tab.models.find((one) => one.name === chosen) || tab.models[0];
    const chooser = select("model", "model", models);
    chooser.className = "wide"; // names are long
    form.replaceChildren(chooser);
    form.elements.model.value = model.name;
    form.elements.model.addEventListener("change", () => drawDials(form.elements.model.value));
    if (tab.kind === "drawing") {
      form.append(range("steps", "steps", 2, state.limits.drawing_steps, 30), range("consistency_scale", "consistency", 0, 200, 40), range("prior_scale", "prior", 0, 200, 40), seed());
      return;
    }
    if (tab.kind === "places" || model.diffusion) {
      form.append(range("steps", "steps", 1, 50, tab.id === "completion" ? 10 : model.steps || 3), range("samples", "samples", 1, 32, tab.id === "completion" ? 4 : model.samples || 1));
      form.append(select("average", "averaging", [own, ["last", "last step"], ["steps", "all steps"]]));
    }
    if (tab.kind === "map" && model.diffusion) {
      form.append(select("sampler", "sampler", [own, ...model.samplers.map((name) => [name, name === "dpmpp_2m" ? "dpm++ 2m" : name])]));
      const sampling = select("sampling", "sampling", [own, ["diffusion", "diffusion"], ["one_pass", "one pass"], ["field", "smooth field"]]);
      sampling.addEventListener("change", () => { // both are what one call says
        const steps = form.elements.steps;
        if (["one_pass", "field"].includes(form.elements.sampling.value) && steps.value !== "1") { steps.value = 1; steps.dispatchEvent(new Event("input")); }
      });
      form.append(sampling);
    }
    if (tab.kind === "places") form.append(select("threshold", "threshold", [own, ...Array.from({ length: 19 }, (_, i) => [String((i + 1) / 20), `${(i + 1) / 20}`])]));
    if (model.metres) form.append(range("fov_deg", "field of view °", 10, 150, Math.round(state.fov)));
    form.append(seed());
  };

  const fields = () => {
    const found = {};
    for (const input of $("dials").elements) {
      if (!input.name || input.value === "") continue; // an output has no name
      found[input.name] = input.type === "range" || input.type === "number" || input.name === "threshold" ? Number(input.value) : input.value;
    }
    if (state.tab.kind === "map") {
      found.image = state.image;
      if (state.tab.id === "completion" && state.cover) found.cover = state.cover;
    }
    if (state.tab.kind === "places") found.place = state.place;
    return found;
  };

  const show = (tab) => {
    if (state.running) state.running.abort();
    stopCamera();
    state.tab = tab;
    for (const button of $("tabs").children) button.setAttribute("aria-selected", String(button.dataset.tab === tab.id));
    $("source").hidden = tab.kind !== "map";
    $("place-list").hidden = tab.kind !== "places";
    $("cover-hint").hidden = tab.id !== "completion";
    drawDials();
    drawCover();
    clear();
    say("");
    if (tab.kind === "places") listPlaces();
  };

  const listPlaces = async () => {
    if ($("places").children.length) return;
    say("loading the places ...");
    try {
      const { places } = await answer(await fetch("api/places"));
      if ($("places").children.length) return;
      for (const one of places) {
        const button = node("button", { type: "button", title: one.title }, node("img", { src: one.view, alt: one.title }), node("span", { textContent: one.title }));
        button.addEventListener("click", () => { state.place = one.place; press($("places"), button); });
        $("places").append(button);
      }
      press($("places"), $("places").children[0]);
      say("");
    } catch (error) { say(error.message, true); }
  };
  const press = (strip, button) => { for (const one of strip.children) one.setAttribute("aria-pressed", String(one === button)); };

  // ---- the image: a file, a sample frame, the webcam ---------------------------------------------------------------------
  const use = (name, address, fov = 60) => {
    stopCamera();
    state.image = name; state.fov = fov;
    $("chosen").src = address; $("chosen").hidden = false; $("hint").hidden = true;
    const dial = $("dials").elements.fov_deg;
    if (dial) { dial.value = Math.round(fov); dial.dispatchEvent(new Event("input")); }
    drawCover();
  };
  const send = async (blob) => {
    if (!blob) return;
    if (blob.size > state.limits.upload_bytes) { say(`The file has ${(blob.size / 1048576).toFixed(1)} MiB; at most ${state.limits.upload_bytes / 1048576} MiB are taken.`, true); return; }
    say("sending the image ...");
    try {
      const found = await answer(await fetch("api/upload", { method: "POST", headers: MARK, body: blob }));
      press($("samples"), null);
      use(found.image, found.view); // not the file: browsers show no TIFF, and turn and animate what the model reads otherwise
      say(`${found.width} x ${found.height} pixels`);
    } catch (error) { say(error.message, true); }
  };
  const drop = $("drop");
  const covering = () => state.tab && state.tab.id === "completion" && !$("chosen").hidden;
  $("choose").addEventListener("click", () => $("file").click());
  drop.addEventListener("click", () => { if (!covering() && $("video").hidden) $("file").click(); });
  drop.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("file").click(); } });
  $("file").addEventListener("change", () => { send($("file").files[0]); $("file").value = ""; });
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
  drop.addEventListener("drop", (event) => send(event.dataTransfer.files[0]));
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());

  const stopCamera = () => { // what was there before it is what a run takes, so that is shown again
    if (camera) for (const track of camera.getTracks()) track.stop();
    camera = null;
    $("video").hidden = true; $("chosen").hidden = !state.image; $("hint").hidden = Boolean(state.image);
    $("webcam").textContent = "webcam";
    drawCover();
  };
  $("webcam").addEventListener("click", async () => {
    const video = $("video");
    if (camera) {
      const canvas = node("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      stopCamera();
      canvas.toBlob(send, "image/jpeg", 0.95);
      return;
    }
    const tab = state.tab;
    $("webcam").disabled = true; // while the browser asks: a second stream would have nobody to stop it
    try {
      camera = await navigator.mediaDevices.getUserMedia({ video: true });
      video.srcObject = camera; await video.play();
      $("chosen").hidden = true; $("hint").hidden = true; video.hidden = false; $("webcam").textContent = "take the image";
      drawCover();
      if (state.tab !== tab) stopCamera();
    } catch (error) { stopCamera(); say(`The webcam cannot be used: ${error.message}.`, true); } finally { $("webcam").disabled = false; }
  });

  // ---- what is covered ---------------------------------------------------------------------------------------------------
  const drawCover = () => {
    const box = $("rectangle"), image = $("chosen");
    box.hidden = !covering();
    drop.classList.toggle("covering", covering());
    if (box.hidden) return;
    state.cover = state.cover || [0.3, 0.22, 0.78, 0.9];
    const [left, top, right, bottom] = state.cover;
    Object.assign(box.style, { left: `${left * 100}%`, width: `${(right - left) * 100}%`, top: `${top * image.clientHeight}px`, height: `${(bottom - top) * image.clientHeight}px` });
  };
  $("chosen").addEventListener("load", drawCover);
  let corner = null;
  const share = (event) => {
    const box = $("chosen").getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((one) => Math.min(1, Math.max(0, one)));
  };
  drop.addEventListener("pointerdown", (event) => { if (covering()) { corner = share(event); drop.setPointerCapture(event.pointerId); } });
  drop.addEventListener("pointermove", (event) => {
    if (!corner) return;
    const [x, y] = share(event);
    if (Math.abs(x - corner[0]) < 0.03 || Math.abs(y - corner[1]) < 0.03) return;
    state.cover = [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.max(x, corner[0]), Math.max(y, corner[1])];
    drawCover();
  });
  for (const name of ["pointerup", "pointercancel"]) drop.addEventListener(name, () => { corner = null; });

  const BEFORE = {
    map: "Choose an image and press Run. The shipped models know rendered rooms of Freedoom and nothing else: an ordinary photo gives nonsense.",
    places: "Choose a place and press Run: what the car sees around it becomes a map from above.",
    drawing: "Press Run: the same noise becomes an image without guidance, and one with the scales of both kinds of guidance.",
  };

  // ---- a run -------------------------------------------------------------------------------------------------------------
  const clear = () => {
    state.result = null;
    $("cards").replaceChildren(); $("pixel").replaceChildren(); $("links").replaceChildren();
    $("blend").hidden = $("downloads").hidden = $("cross").hidden = true;
    $("empty").hidden = false;
    $("empty").textContent = BEFORE[state.tab.kind];
  };
  const told = (line) => {
    if (line.state === "waiting") say(line.ahead ? `waiting: ${line.ahead} before you` : "waiting");
    if (line.state === "running") say(line.total ? `running: ${Math.min(line.done, line.total)} of ${line.total}` : "running");
    $("progress").hidden = false;
    if (line.total) $("progress").value = Math.min(1, line.done / line.total); else $("progress").removeAttribute("value");
  };
  const run = async () => {
    if (state.running) state.running.abort();
    const control = (state.running = new AbortController());
    $("cancel").disabled = false;
    const began = performance.now();
    say("asking ...");
    try {
      const response = await fetch(`api/run/${state.tab.id}`, { method: "POST", headers: { ...MARK, "Content-Type": "application/json" }, body: JSON.stringify(fields()), signal: control.signal });
      if (!response.ok) await answer(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "", last = null;
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const lines = text.split("\n");
        text = lines.pop();
        for (const line of lines) { last = JSON.parse(line); if (!("result" in last)) told(last); }
      }
      if (!last || !("result" in last)) throw new Error("The server ended the connection.");
      if (last.state !== "done") throw new Error(last.error || "cancelled");
      showResult(last.result);
      // On a narrow screen results stand below the dials, out of sight.
      if ($("results").getBoundingClientRect().top > innerHeight / 2) $("results").scrollIntoView();
      say(`done in ${((performance.now() - began) / 1000).toFixed(1)} s`);
    } catch (error) {
      if (state.running === control) say(error.name === "AbortError" ? "cancelled" : error.message, error.name !== "AbortError");
    } finally {
      if (state.running === control) { state.running = null; $("cancel").disabled = true; $("progress").hidden = true; }
    }
  };
  $("run").addEventListener("click", run);
  $("dials").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("cancel").addEventListener("click", () => { if (state.running) state.running.abort(); });

  const showResult = (result) => {
    clear();
    state.result = result;
    $("empty").hidden = true;
    if (result.layers) {
      $("blend").hidden = false;
      for (const name of ["image", "map", "uncertainty"]) {
        $(`layer-${name}`).hidden = !result.layers[name];
        $(`layer-${name}`).classList.toggle("pixels", result.size[0] <= 400);
        if (result.layers[name]) $(`layer-${name}`).src = result.layers[name];
      }
      const first = result.first || "image", place = first === "truth";
      $("car").hidden = !place;
      $("click-hint").textContent = place ? "Forward is up, the car stands in the middle. Click a cell to see what the map says there." : "Click a pixel to see what the map says there.";
      $("first-layer").textContent = first;
      $("blend-title").textContent = first[0].toUpperCase() + first.slice(1) + (result.layers.uncertainty ? ", map, uncertainty" : ", map (one step of one sample states no uncertainty)");
      $("mix").max = result.layers.uncertainty ? 2 : 1;
      $("last-layer").textContent = result.layers.uncertainty ? result.uncertainty : "map";
      $("middle-layer").hidden = !result.layers.uncertainty;
      for (const name of ["map", "uncertainty"]) {
        const bar = result.bars[name];
        $(`bar-${name}`).innerHTML = bar ? `<b>${name === "map" ? "map" : "uncertainty"}</b>${bar}` : "";
      }
      $("mix").value = 0.75;
      mix();
      $("legend").replaceChildren(...result.legend.map(([color, name]) => { const i = node("i"); i.style.background = `rgb(${color})`; return node("li", {}, i, name); }));
    }
    $("cards").innerHTML = result.html;
    const script = node("script", { src: "page.js" });
    $("cards").append(script);
    for (const name of result.files) $("links").append(node("a", { href: `api/results/${result.token}/${name}`, download: name, textContent: name, className: name === "all.zip" ? "all" : "" }));
    $("downloads").hidden = false;
  };
  const mix = () => {
    const value = Number($("mix").value);
    $("layer-map").style.opacity = Math.min(1, value);
    $("layer-uncertainty").style.opacity = Math.max(0, value - 1);
  };
  $("mix").addEventListener("input", mix);

  $("stack").addEventListener("click", async (event) => {
    const box = $("stack").getBoundingClientRect(), result = state.result;
    if (!result || !result.size) return;
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const [column, row] = [x * result.size[0], y * result.size[1]].map((one, k) => Math.min(result.size[k] - 1, Math.max(0, Math.floor(one))));
    Object.assign($("cross").style, { left: `${x * 100}%`, top: `${y * 100}%` });
    $("cross").hidden = false;
    const click = (state.click = (state.click || 0) + 1), current = () => state.result === result && state.click === click;
    try {
      const found = await answer(await fetch(`api/results/${result.token}/pixel?x=${column}&y=${row}`));
      if (current()) $("pixel").innerHTML = found.html;
    } catch (error) { if (current()) $("pixel").textContent = error.message; }
  });

  // ---- start -------------------------------------------------------------------------------------------------------------
  (async () => {
    try {
      const found = await answer(await fetch("api/state"));
      state.limits = found.limits;
      for (const tab of found.tabs) {
        const button = node("button", { type: "button", textContent: tab.title });
        button.dataset.tab = tab.id; button.setAttribute("role", "tab");
        button.addEventListener("click", () => show(tab));
        $("tabs").append(button);
      }
      for (const one of found.samples) {
        const address = `api/samples/${one.name}`;
        const button = node("button", { type: "button", title: one.title }, node("img", { src: address, alt: one.title, loading: "lazy" }));
        button.addEventListener("click", () => { press($("samples"), button); use(`sample:${one.name}`, address, one.fov_deg); });
        $("samples").append(button);
      }
      show(found.tabs[0]);
      if ($("samples").children.length) $("samples").children[0].click();
    } catch (error) { say(error.message, true); }
  })();
})();
