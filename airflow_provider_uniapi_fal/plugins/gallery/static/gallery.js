// Without this script every link still leads to a page of its own; with it, the keyboard works and files open
// above the grid.
"use strict";

// Airflow's theme: the class of the page around us, or what Airflow has stored for this address.
const root = document.documentElement;

function pageAround() {
  try {
    return window.parent !== window ? window.parent.document.documentElement : null;
  } catch {
    return null;
  }
}

function followTheme() {
  const around = pageAround();
  let theme = around && (around.classList.contains("dark") ? "dark" : around.classList.contains("light") ? "light" : null);
  if (!theme) {
    const stored = localStorage.getItem("theme");
    theme = stored === "dark" || stored === "light" ? stored : null;
  }
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
}

followTheme();
window.addEventListener("storage", followTheme);
const around = pageAround();
if (around && window.parent.location.pathname.includes("/plugin/fal-media-")) root.dataset.tab = "";
if (around) new MutationObserver(followTheme).observe(around, { attributeFilter: ["class"] });

const viewer = document.querySelector("dialog.viewer");
const cards = [...document.querySelectorAll(".grid .card")];
const finder = document.querySelector(".filter input[type=search]");
let shown = -1;
let asked = 0;

function button(label, text, className, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = className;
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

async function show(index) {
  if (index < 0 || index >= cards.length) return;
  const mine = ++asked;
  // At once: whoever presses a key twice means two steps, however long the first takes.
  shown = index;
  const address = new URL(cards[index].href);
  address.searchParams.set("part", "inner");
  const reply = await fetch(address, { headers: { Accept: "text/html" } });
  if (!reply.ok) {
    location.assign(cards[index].href);
    return;
  }
  // Our own template, in which everything is escaped; the policy of the page runs no script in it.
  const inner = new DOMParser().parseFromString(await reply.text(), "text/html").body;
  if (mine !== asked) return;
  viewer.replaceChildren(
    ...inner.children,
    button("Previous", "‹", "step previous", () => show(shown - 1)),
    button("Next", "›", "step next", () => show(shown + 1)),
    button("Close", "×", "close", () => viewer.close()),
  );
  if (!viewer.open) viewer.showModal();
  // Not the video, which would take the arrow keys.
  viewer.focus();
}

function columns() {
  const top = cards.length ? cards[0].offsetTop : 0;
  const row = cards.findIndex((card) => card.offsetTop !== top);
  return row < 1 ? cards.length || 1 : row;
}

function move(by) {
  const at = cards.indexOf(document.activeElement);
  const to = at < 0 ? 0 : Math.min(cards.length - 1, Math.max(0, at + by));
  if (cards[to]) cards[to].focus();
}

cards.forEach((card, index) =>
  card.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    show(index);
  }),
);

if (viewer) {
  viewer.tabIndex = -1;
  viewer.addEventListener("close", () => {
    asked += 1;
    viewer.replaceChildren();
    if (cards[shown]) cards[shown].focus();
  });
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inMedia = event.target.closest("video, audio");
  if (viewer && viewer.open) {
    if (event.key === "ArrowLeft" && !inMedia) show(shown - 1);
    else if (event.key === "ArrowRight" && !inMedia) show(shown + 1);
    return;
  }
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  if (event.key in steps && cards.length) {
    event.preventDefault();
    move(steps[event.key]);
  } else if (event.key === "/" && finder) {
    event.preventDefault();
    finder.select();
  } else if (event.key === "n" || event.key === "p") {
    const link = document.querySelector(event.key === "n" ? "a[rel=next]" : "a[rel=prev]");
    if (link) link.click();
  }
});
