// Asks for the page again and puts in what has changed: elements with `data-live` and an id. What the reader has opened,
// scrolled, focused or marked stays so.
"use strict";
const INTERVAL_MS = 2000;
const shown = new Map(regions(document).map(region => [region.id, region.outerHTML]));
let etag = "";

function regions(page) {
  return [...page.querySelectorAll("[data-live][id]")];
}

function tell(text, lost) {
  const line = document.getElementById("connection");
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle("lost", lost);
}

function isSelectedIn(region) {
  const selection = document.getSelection();
  return selection !== null && !selection.isCollapsed && selection.containsNode(region, true);
}

// How an element that has focus, or has been scrolled, is found again in the new region: by its place among its like.
function places(region) {
  return [region, ...region.querySelectorAll(".scroll, pre, summary, a[href], [tabindex]")];
}

function replace(old, fresh) {
  const before = places(old);
  const scrolled = before.map(one => [one.scrollLeft, one.scrollTop]);
  const atEnd = old.scrollHeight - old.scrollTop - old.clientHeight < 8;
  const focused = before.indexOf(document.activeElement);
  for (const details of old.querySelectorAll("details[id]")) {
    const same = fresh.querySelector(`#${CSS.escape(details.id)}`);
    if (same !== null) same.open = details.open;
  }
  old.replaceWith(fresh);
  const after = places(fresh);
  after.forEach((one, place) => { if (scrolled[place]) [one.scrollLeft, one.scrollTop] = scrolled[place]; });
  if ("follow" in fresh.dataset && atEnd) fresh.scrollTop = fresh.scrollHeight;
  if (focused >= 0 && after[focused]) after[focused].focus({ preventScroll: true });
}

async function look() {
  const answer = await fetch(location.href, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
  if (answer.status === 403) return tell("Not allowed any more: open the address that the command has printed.", true);
  if (answer.status !== 304 && !answer.ok) return tell("This cannot be shown any more.", true);
  if (answer.status !== 304) {
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    let isWhole = true;
    for (const fresh of regions(page)) {
      const old = document.getElementById(fresh.id), text = fresh.outerHTML;
      if (old === null || shown.get(fresh.id) === text) continue;
      if (isSelectedIn(old)) { isWhole = false; continue; }
      shown.set(fresh.id, text);
      replace(old, fresh);
    }
    // What was left out for the reader's sake is put in the next time.
    etag = isWhole ? answer.headers.get("ETag") : "";
    markMenu();
  }
  tell("Live", false);
}

function markMenu() {
  for (const link of document.querySelectorAll("nav a")) {
    if (link.pathname === location.pathname) link.setAttribute("aria-current", "page");
  }
}

async function follow() {
  if (!document.hidden) await look().catch(() => tell("No answer: has the command ended?", true));
  setTimeout(follow, INTERVAL_MS);
}

markMenu();
for (const log of document.querySelectorAll("[data-follow]")) log.scrollTop = log.scrollHeight;
follow();
