"use strict";
/* What all pages share: flags, colours, keys, the gallery. The clip page's player is in player.js. */

async function flag(referent, wanted) {
  const answer = await fetch(`/flags/${encodeURIComponent(referent)}`, { method: wanted ? "PUT" : "DELETE" });
  if (!answer.ok) {
    alert(`the flag was not saved: ${answer.status} ${answer.statusText}`);
    return !wanted;
  }
  const { flagged, count } = await answer.json();
  $("flags").textContent = count.toLocaleString("en");
  return flagged;
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (document.documentElement.style.colorScheme || dark) === "dark" ? "light" : "dark";
  document.documentElement.style.colorScheme = next;
  localStorage.setItem("theme", next);
}

function gallery(cards) {
  const at = () => cards.findIndex((card) => card.parentElement.contains(document.activeElement));
  const move = (by) => {
    const to = at() < 0 ? 0 : Math.min(cards.length - 1, Math.max(0, at() + by));
    cards[to].focus({ preventScroll: true });
    cards[to].parentElement.scrollIntoView({ block: "nearest" });
  };
  const row = () => cards.filter((card) => card.offsetTop === cards[0].offsetTop).length || 1;
  const mark = async (cell) => {
    const button = cell.querySelector(".mark");
    const flagged = await flag(button.dataset.referent, button.getAttribute("aria-pressed") !== "true");
    button.setAttribute("aria-pressed", flagged);
    cell.classList.toggle("flagged", flagged);
  };
  for (const card of cards) {
    card.parentElement.querySelector(".mark").addEventListener("click", () => mark(card.parentElement));
    preview(card);
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.focus(); // the clip that we come back from
  return {
    j: () => move(1), k: () => move(-1), ArrowRight: () => move(1), ArrowLeft: () => move(-1),
    ArrowDown: () => move(row()), ArrowUp: () => move(-row()), f: () => at() >= 0 && mark(cards[at()].parentElement),
  };
}

/* A card plays its clip while the pointer rests on it. */
function preview(card) {
  let wait = 0, video = null;
  card.addEventListener("pointerenter", () => {
    if (card.dataset.video)
      wait = setTimeout(() => {
        video = Object.assign(document.createElement("video"), { src: card.dataset.video, muted: true, loop: true, autoplay: true });
        card.querySelector(".thumb").append(video);
      }, 250);
  });
  card.addEventListener("pointerleave", () => {
    clearTimeout(wait);
    video?.remove();
    video = null;
  });
}

/* Choices apply at once, words with Enter; a column's name goes into the WHERE box where the cursor was. */
function filters(form) {
  form.addEventListener("change", (event) => { if (event.target.matches("select, input[type=checkbox]")) form.requestSubmit(); });
  form.addEventListener("submit", () => {
    for (const input of form.elements) if (input.name && !input.value) input.disabled = true; // a short address
  });
  const where = $("where");
  for (const button of document.querySelectorAll(".column"))
    button.addEventListener("click", () => {
      where.setRangeText(button.dataset.name, where.selectionStart, where.selectionEnd, "end");
      where.focus();
    });
  const enter = (input) => { input.focus(); input.select(); };
  return { "/": () => enter(form.elements.text), w: () => enter(where) };
}

function copies(block) {
  const button = Object.assign(document.createElement("button"), { className: "quiet", textContent: "copy" });
  const text = block.textContent.trim();
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
  block.append(button);
}

(async () => {
  $("theme").addEventListener("click", theme);
  if (navigator.clipboard) document.querySelectorAll("pre.copy").forEach(copies);
  const cards = [...document.querySelectorAll(".card")];
  const keys = { n: () => follow("next"), p: () => follow("prev") };
  if ($("filters")) Object.assign(keys, filters($("filters")));
  if (cards.length) Object.assign(keys, gallery(cards));
  if ($("viewer")) Object.assign(keys, await viewer($("viewer")));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input:not([type=checkbox]), select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === " " && event.target.matches("button, summary")) return;
    const action = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
    if (!action) return;
    event.preventDefault();
    action(event);
  });
  document.documentElement.dataset.ready = "yes";
})();
