"use strict";
/* The clip page: a video or pictures with boxes and masks drawn in step, and the timeline under it. */
const $ = (id) => document.getElementById(id);
const follow = (rel) => document.querySelector(`a[rel=${rel}]`)?.click();

/* COCO compressed RLE -> lengths of runs, column by column, the first one of zeros. */
function runsOf(counts) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32 && at < counts.length);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/* A mask as a canvas of its own size: filled faintly, its edge strongly. Colours are A B G R in a word. stripe: pixels
   from one stripe to the next, for a mask that is no segmentation; 0 fills it. */
function paintMask({ size: [height, width], counts }, fill, edge, stripe) {
  const inside = new Uint8Array(width * height);
  let at = 0;
  runsOf(counts).forEach((run, i) => {
    if (i % 2) inside.fill(1, at, at + run);
    at += run;
  });
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let x = 0, p = 0; x < width; x++)
    for (let y = 0; y < height; y++, p++) {
      if (!inside[p]) continue;
      const inner = y && y < height - 1 && x && x < width - 1 && inside[p - 1] && inside[p + 1] && inside[p - height] && inside[p + height];
      pixels[y * width + x] = !inner ? edge : stripe && (x + y) % stripe >= stripe / 3 ? 0 : fill;
    }
  pen.putImageData(image, 0, 0);
  return canvas;
}

async function viewer(root) {
  const id = encodeURIComponent(root.dataset.referent);
  const [data, masks] = await Promise.all(
    [`/clip/${id}/data.json`, `/member/${id}/masks.json`].map((url) => fetch(url).then((r) => (r.ok ? r.json() : {}))));
  const video = $("video"), picture = $("picture"), overlay = $("overlay"), timeline = $("timeline");
  if (!data.frames) {
    $("where").value = "the track cannot be read; run sparrow verify";
    return {};
  }
  const fallback = new Set(data.fallback);
  const last = data.frames - 1, panels = [...document.querySelectorAll("#panels canvas[data-layer]")];
  let now = 0, clock = 0, painted = -1, mask = null, scrubbing = false, sought = false;

  const layers = () => [...document.querySelectorAll(".layer:checked")].map((box) => box.value);
  const size = () => [video?.videoWidth || data.width || 640, video?.videoHeight || data.height || 360];
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`);

  function draw(canvas, names, behind) {
    const [width, height] = size();
    const wide = Math.max(width, Math.round(canvas.clientWidth * devicePixelRatio)), high = Math.round((wide * height) / width);
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    const pen = canvas.getContext("2d"), shown = canvas.clientWidth || width;
    pen.setTransform(wide / width, 0, 0, high / height, 0, 0); // drawn in pixels of the video, with lines as sharp as the screen
    pen.clearRect(0, 0, width, height);
    pen.imageSmoothingEnabled = true;
    if (behind) pen.drawImage(behind, 0, 0, width, height);
    if (names.includes("mask") && masks[now]) {
      if (painted !== now) [mask, painted] = [paintMask(masks[now], 0x66ffa73f, 0xffffa73f, fallback.has(now) ? Math.max(6, Math.round(width / 60)) : 0), now];
      pen.imageSmoothingEnabled = false;
      pen.drawImage(mask, 0, 0);
    }
    for (const name of ["annotation", "track"]) {
      pen.lineWidth = ((name === "annotation" ? 4 : 2) * width) / shown; // pixels of the screen; the track lies on top
      const box = names.includes(name) && data[name][now];
      if (!box) continue;
      pen.strokeStyle = colour(name);
      pen.setLineDash(name === "track" && !data.kept[now] ? [4 * pen.lineWidth, 3 * pen.lineWidth] : []);
      pen.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
    }
  }

  function show() {
    const split = $("split").checked;
    draw(overlay, split ? ["annotation"] : layers(), null);
    if (split) for (const canvas of panels) draw(canvas, [canvas.dataset.layer], video || picture);
    for (const side of ["x1", "x2"]) $("head").setAttribute(side, `${(100 * (now + 0.5)) / (last + 1)}%`);
    const number = (value) => (value === null || value === undefined ? "-" : value.toFixed(2));
    $("where").value = [
      `frame ${now} of 0-${last}`, `source frame ${data.source_frame[now]}`, `${(now / data.fps).toFixed(2)} s`, data.origin[now],
      `score ${number(data.score[now])}`, `IoU ${number(data.iou[now])}`,
      ...(fallback.has(now) ? ["fallback mask"] : []),
      data.kept[now] ? "kept" : `dropped: ${data.dropped[now] || "no reason"}`,
    ].join("  ·  ");
    overlay.dataset.frame = now;
  }

  function fit() {
    const [width, height] = size();
    $("stage").style.maxWidth = $("split").checked ? "" : `calc(66vh * ${width / height})`;
    $("stage").style.aspectRatio = `${width} / ${height}`;
    show();
  }

  /* Pictures are asked for one at a time; the frame is drawn when its picture is there. */
  function turn(t) {
    now = t;
    if (!picture) return show();
    picture.onload = show;
    picture.src = `/frame/${id}/${now}`;
  }

  function seek(t) {
    pause();
    turn(Math.min(last, Math.max(0, t)));
    sought = true;
    if (video) video.currentTime = (now + 0.5) / data.fps; // the middle of a frame, so that rounding cannot miss it
  }

  const playing = () => (video ? !video.paused : clock !== 0);
  function pause() {
    if (video) video.pause();
    clearInterval(clock);
    clock = 0;
    $("play").textContent = "play";
  }
  function play() {
    if (playing()) return pause();
    $("play").textContent = "pause";
    const speed = +$("speed").value;
    if (video) {
      sought = false;
      video.playbackRate = speed;
      return video.play();
    }
    clock = setInterval(() => {
      if (!picture || picture.complete) turn(now >= last ? 0 : now + 1);
    }, 1000 / data.fps / speed);
  }

  if (video) {
    const at = (seconds) => {
      now = Math.min(last, Math.max(0, Math.round(seconds * data.fps)));
      show();
    };
    if (video.requestVideoFrameCallback) {
      const step = (_, meta) => {
        // After a seek the frame that was asked for counts: the callback of an older one may still be on its way.
        if (sought) show();
        else at(meta.mediaTime);
        video.requestVideoFrameCallback(step);
      };
      video.requestVideoFrameCallback(step);
    } else video.addEventListener("timeupdate", () => sought || at(video.currentTime - 0.5 / data.fps));
    video.addEventListener("loadedmetadata", fit);
    video.addEventListener("seeked", show);
    // Not the attribute `loop`: with it, Chromium goes to the first frame when the last one is sought twice.
    video.addEventListener("ended", () => { if (!sought) { video.currentTime = 0; video.play(); } });
    video.addEventListener("error", () => ($("where").value = `the video cannot be played: ${video.error.message}`));
  }
  const placeOf = (event) => {
    const place = timeline.getBoundingClientRect();
    return Math.floor(((event.clientX - place.left) / place.width) * (last + 1));
  };
  timeline.addEventListener("pointerdown", (event) => {
    const mark = event.target.closest(".representative");
    if (mark) return seek(+mark.dataset.frame);
    scrubbing = true;
    timeline.setPointerCapture(event.pointerId);
    seek(placeOf(event));
  });
  timeline.addEventListener("pointermove", (event) => { if (scrubbing && placeOf(event) !== now) seek(placeOf(event)); });
  for (const end of ["pointerup", "pointercancel"]) timeline.addEventListener(end, () => (scrubbing = false));

  for (const target of [$("play"), $("stage")]) target.addEventListener("click", play);
  $("speed").addEventListener("change", () => { if (playing()) { pause(); play(); } });
  $("split").addEventListener("change", () => {
    $("sheet").classList.toggle("split", $("split").checked);
    for (const part of document.querySelectorAll("#panels .more")) part.hidden = !$("split").checked;
    fit();
  });
  for (const box of document.querySelectorAll(".layer")) box.addEventListener("change", show);
  for (const button of document.querySelectorAll("[data-step]")) button.addEventListener("click", () => seek(now + +button.dataset.step));
  for (const crop of document.querySelectorAll(".crop")) crop.addEventListener("click", () => seek(+crop.dataset.frame));
  $("flag").addEventListener("click", async () => {
    const pressed = $("flag").getAttribute("aria-pressed") === "true";
    $("flag").setAttribute("aria-pressed", await flag(root.dataset.referent, !pressed));
  });
  addEventListener("resize", show);
  fit();
  const keys = {
    " ": play, ArrowLeft: (event) => seek(now - (event.shiftKey ? 10 : 1)), ArrowRight: (event) => seek(now + (event.shiftKey ? 10 : 1)),
    Home: () => seek(0), End: () => seek(last), j: () => follow("next"), k: () => follow("prev"),
    s: () => $("split").click(), f: () => $("flag").click(), Escape: () => $("back").click(),
  };
  data.representatives.forEach((frame, rank) => (keys[rank + 1] = () => seek(frame)));
  return keys;
}
