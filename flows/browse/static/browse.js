"use strict";
const $ = (id) => document.getElementById(id);
const follow = (rel) => document.querySelector(`a[rel=${rel}]`)?.click();

async function flag(referent, wanted) {
  const answer = await fetch(`/flags/${encodeURIComponent(referent)}`, { method: wanted ? "PUT" : "DELETE" });
  if (!answer.ok) alert(`the flag was not saved: ${answer.status} ${answer.statusText}`);
  return answer.ok ? (await answer.json()).flagged : !wanted;
}

/* COCO compressed RLE (column-major runs, first of zeros) painted on a canvas of the mask's size. */
function paintMask(rle, colour) {
  const [height, width] = rle.size;
  const runs = [];
  for (let at = 0; at < rle.counts.length; ) {
    let value = 0, shift = 0, code;
    do {
      code = rle.counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32 && at < rle.counts.length);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  let at = 0;
  runs.forEach((run, i) => {
    if (i % 2) for (let p = at; p < at + run; p++) pixels[(p % height) * width + Math.floor(p / height)] = colour;
    at += run;
  });
  pen.putImageData(image, 0, 0);
  return canvas;
}

async function viewer(root) {
  const id = encodeURIComponent(root.dataset.referent);
  const [data, masks] = await Promise.all(
    [`/clip/${id}/data.json`, `/member/${id}/masks.json`].map((url) => fetch(url).then((r) => (r.ok ? r.json() : {}))));
  const video = $("video"), picture = $("picture"), overlay = $("overlay"), head = $("head");
  if (!data.frames) {
    $("where").value = "the track cannot be read; run sparrow verify";
    return () => undefined;
  }
  const colours = { annotation: "#35c46a", track: "#ff8c1a", mask: "#3fa7ff" };
  const last = data.frames - 1;
  let now = 0, clock = 0, painted = -1, mask = null;

  const layers = () => [...document.querySelectorAll(".layer:checked")].map((box) => box.value);
  const size = () => [video?.videoWidth || data.width || 640, video?.videoHeight || data.height || 360];

  function draw(canvas, names, behind) {
    const [width, height] = size();
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    if (behind) pen.drawImage(behind, 0, 0, width, height);
    if (names.includes("mask") && masks[now]) {
      if (painted !== now) [mask, painted] = [paintMask(masks[now], 0x78ffa73f), now]; // little-endian: A B G R
      pen.drawImage(mask, 0, 0);
    }
    pen.lineWidth = Math.max(2, width / 320);
    for (const name of ["annotation", "track"]) {
      const box = names.includes(name) && data[name][now];
      if (!box) continue;
      pen.strokeStyle = colours[name];
      pen.setLineDash(name === "track" && !data.kept[now] ? [6, 5] : []);
      pen.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
    }
  }

  function show() {
    draw(overlay, layers(), null);
    if ($("split").checked)
      for (const canvas of document.querySelectorAll("#three canvas")) draw(canvas, [canvas.dataset.layer], video || picture);
    head.setAttribute("x1", now + 0.5);
    head.setAttribute("x2", now + 0.5);
    const number = (value) => (value === null || value === undefined ? "-" : value.toFixed(2));
    $("where").value = `frame ${now} of ${last + 1} · ${data.origin[now]} · score ${number(data.score[now])} · ` +
      `IoU ${number(data.iou[now])}${data.kept[now] ? "" : ` · dropped: ${data.dropped[now] || ""}`}`;
    overlay.dataset.frame = now;
  }

  function seek(t) {
    pause();
    now = Math.min(last, Math.max(0, t));
    if (video) video.currentTime = (now + 0.5) / data.fps; // the middle of a frame, so that rounding cannot miss it
    if (picture) { picture.onload = show; picture.src = `/frame/${id}/${now}`; }
    show();
  }

  function pause() { video ? video.pause() : clearInterval(clock); clock = 0; $("play").textContent = "play"; }
  function play() {
    if (video ? !video.paused : clock) return pause();
    $("play").textContent = "pause";
    if (video) return video.play();
    clock = setInterval(() => {
      now = now >= last ? 0 : now + 1;
      if (picture) { picture.onload = show; picture.src = `/frame/${id}/${now}`; } else show();
    }, 1000 / data.fps);
  }

  if (video) {
    const at = (seconds) => { now = Math.min(last, Math.max(0, Math.round(seconds * data.fps))); show(); };
    if (video.requestVideoFrameCallback) {
      const step = (_, meta) => { at(meta.mediaTime); video.requestVideoFrameCallback(step); };
      video.requestVideoFrameCallback(step);
    } else video.addEventListener("timeupdate", () => at(video.currentTime - 0.5 / data.fps));
    video.addEventListener("loadedmetadata", show);
  }
  if (picture) picture.addEventListener("load", show);
  for (const button of [$("play"), $("stage")]) button.addEventListener("click", play);
  $("split").addEventListener("change", () => { $("three").hidden = !$("split").checked; show(); });
  document.querySelectorAll(".layer").forEach((box) => box.addEventListener("change", show));
  document.querySelectorAll(".crop").forEach((crop) => crop.addEventListener("click", () => seek(+crop.dataset.frame)));
  $("timeline").addEventListener("click", (event) => {
    const place = $("timeline").getBoundingClientRect();
    seek(Math.floor(((event.clientX - place.left) / place.width) * (last + 1)));
  });
  $("flag").addEventListener("click", async () => {
    const pressed = $("flag").getAttribute("aria-pressed") === "true";
    $("flag").setAttribute("aria-pressed", await flag(root.dataset.referent, !pressed));
  });
  const keys = {
    " ": play, ArrowLeft: () => seek(now - 1), ArrowRight: () => seek(now + 1), j: () => follow("next"),
    k: () => follow("prev"), s: () => $("split").click(), f: () => $("flag").click(), Escape: () => $("back").click(),
  };
  show();
  return (key) => keys[key] || (data.representatives[key - 1] !== undefined && (() => seek(data.representatives[key - 1])));
}

function gallery(cards) {
  const move = (by) => {
    const at = cards.indexOf(document.activeElement);
    cards[Math.min(cards.length - 1, Math.max(0, at < 0 ? 0 : at + by))]?.focus();
  };
  const row = () => cards.filter((card) => card.offsetTop === cards[0]?.offsetTop).length || 1;
  const mark = async () => {
    const card = document.activeElement;
    if (cards.includes(card))
      card.classList.toggle("flagged", await flag(card.dataset.referent, !card.classList.contains("flagged")));
  };
  const keys = {
    j: () => move(1), k: () => move(-1), ArrowRight: () => move(1), ArrowLeft: () => move(-1),
    ArrowDown: () => move(row()), ArrowUp: () => move(-row()), f: mark, n: () => follow("next"), p: () => follow("prev"),
    "/": () => document.querySelector("input[name=text]").focus(),
  };
  return (key) => keys[key];
}

(async () => {
  const cards = [...document.querySelectorAll(".card")];
  const actions = $("viewer") ? await viewer($("viewer")) : cards.length ? gallery(cards) : () => undefined;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    if (event.key === " " && event.target.matches("button, input, summary")) return;
    const action = actions(event.key);
    if (action) { event.preventDefault(); action(); }
  });
})();
