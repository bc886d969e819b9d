// What script adds to pages that are whole without it: theme, local times, copying, selection.
"use strict";
(() => {
  const THEMES = ["auto", "light", "dark"];
  const SHOWN = { auto: "◐", light: "☀", dark: "☾" };
  const NAMES = { auto: "automatic", light: "light", dark: "dark" };

  function showTheme(button) {
    const theme = document.documentElement.dataset.theme;
    button.hidden = false;
    button.textContent = SHOWN[theme];
    button.setAttribute("aria-label", `Colour theme: ${NAMES[theme]}`);
  }

  function nextTheme(button) {
    const root = document.documentElement;
    root.dataset.theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("turnwise-theme", root.dataset.theme);
    showTheme(button);
    document.dispatchEvent(new CustomEvent("turnwise:theme"));
  }

  const LOCAL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const SHORT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

  // As formats.duration: the two largest units.
  function span(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    for (const [size, unit, small, of] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
      if (whole < size) continue;
      const rest = Math.floor((whole % size) / small);
      return `${Math.floor(whole / size)} ${unit}` + (rest ? ` ${rest} ${of}` : "");
    }
    return `${whole} s`;
  }

  // Times that run: how long ago, how long to go.
  function showSpans() {
    const now = Date.now();
    for (const time of document.querySelectorAll("time[data-format=elapsed]")) {
      time.textContent = span((now - new Date(time.dateTime)) / 1000);
    }
    for (const time of document.querySelectorAll("time[data-format=left]")) {
      const left = (new Date(time.dateTime) - now) / 1000;
      time.textContent = left > 0 ? `about ${span(left)} left` : "ends soon";
    }
  }

  function showTimes(root) {
    for (const time of root.querySelectorAll("time[datetime]:not([data-shown], [data-format=elapsed], [data-format=left])")) {
      const at = new Date(time.dateTime);
      const format = { time: TIME, short: SHORT }[time.dataset.format] ?? LOCAL;
      if (!Number.isNaN(at.valueOf())) time.textContent = format.format(at);
      time.dataset.shown = "";
    }
  }

  // Text of an address of ours. Safari takes a promise of it only.
  async function copyFrom(button) {
    const label = button.textContent;
    const text = fetch(button.dataset.copyUrl).then((response) => {
      if (!response.ok) throw new Error(response.statusText);
      return response.blob().then((body) => new Blob([body], { type: "text/plain" }));
    });
    try {
      await navigator.clipboard.write([new ClipboardItem({ "text/plain": text })]);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Could not copy";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  async function copy(button) {
    const source = document.querySelector(button.dataset.copy);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(source.value ?? source.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
      getSelection().selectAllChildren(source);
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  function furnish(root) {
    showTimes(root);
    showSpans();
    countChosen();
    for (const button of root.querySelectorAll("[data-copy], [data-copy-url]")) button.hidden = false;
    for (const button of root.querySelectorAll("[data-theme-toggle]")) showTheme(button);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.matches("[data-theme-toggle]")) nextTheme(button);
    if (button.matches("[data-copy]")) copy(button);
    if (button.matches("[data-copy-url]")) copyFrom(button);
  });

  // A form that deletes asks once more; without script, the server does.
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (!question) return;
    if (!confirm(question)) event.preventDefault();
    else if (event.target.elements.confirmed) event.target.elements.confirmed.value = "yes";
  });

  // A log that is followed stays at its end, unless the reader has scrolled up.
  function follow() {
    const list = document.querySelector("[data-tail]");
    const wanted = document.querySelector("input[data-follow]");
    if (list && wanted?.checked) list.scrollTop = list.scrollHeight;
  }

  document.addEventListener("DOMContentLoaded", () => {
    const wanted = document.querySelector("input[data-follow]");
    if (wanted) wanted.hidden = false;
    follow();
  });
  document.addEventListener("htmx:after:swap", follow);

  // A form that takes so many of the boxes chosen for it waits for them.
  function countChosen() {
    for (const form of document.querySelectorAll("form[data-choose]")) {
      const [least, most] = form.dataset.choose.split("-").map(Number);
      const chosen = [...form.elements].filter((each) => each.type === "checkbox" && each.checked).length;
      form.querySelector("button").disabled = chosen < least || chosen > most;
    }
  }
  document.addEventListener("change", countChosen);

  setInterval(showSpans, 1000);
  document.addEventListener("DOMContentLoaded", () => furnish(document));
  document.addEventListener("htmx:after:swap", () => furnish(document));
})();
